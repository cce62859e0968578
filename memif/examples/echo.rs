//! An echo pod: connects to a memif server and sends every frame back with its MAC addresses
//! swapped. Run it as `cargo run -p memif --example echo -- @memif1` (`@` means an abstract name).

use memif::{Address, ClientConfig, CloseReason, Connection, Connector, Notifier, Status};
use std::time::{Duration, Instant};

fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "@memif1".to_owned());
    let mut connector = Connector::new(ClientConfig::new(Address::parse(&address), 0));
    loop {
        let mut connection = connector.connect_blocking(Duration::MAX)?;
        println!("connected to {} at {address}", connection.info().peer_interface);
        let reason = echo(&mut connection, &mut Notifier::new()?)?;
        connection.disconnect(&reason);
        connector.lost(Instant::now());
    }
}

/// Echoes until the connection ends, and says why it did.
fn echo(connection: &mut Connection, notifier: &mut Notifier) -> std::io::Result<CloseReason> {
    let ((mut rx, mut tx), mut frame) = (connection.take_queues(), [0; 16 << 10]);
    loop {
        let mut idle = true;
        while let Some(len) = match rx[0].recv(&mut frame) {
            Ok(len) => len,
            Err(violation) => return Ok(violation.into()),
        } {
            frame[..12].rotate_left(6);
            // Without room in the ring the frame is lost, as on any wire.
            if let Err(violation) = tx[0].send(&frame[..len]) {
                return Ok(violation.into());
            }
            idle = false;
        }
        tx[0].flush(notifier)?;
        if let Status::Down(reason) = connection.wait(Duration::from_millis(idle.into()))? {
            return Ok(reason);
        }
    }
}
