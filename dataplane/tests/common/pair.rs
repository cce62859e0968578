//! A memif interface in one process.

use std::time::{Duration, Instant};

use memif::{Address, Answer, ClientConfig, Connection, Connector, Listener, Offer, Progress};

const PATIENCE: Duration = Duration::from_secs(20);

/// Client and server of one interface.
pub(crate) fn pair(name: &str) -> (Connection, Connection) {
    let mut listener = Listener::bind_abstract(name).expect("the name is free");
    let config = ClientConfig::new(Address::Abstract(name.to_owned()), 0);
    let client =
        std::thread::spawn(|| Connector::new(config).connect_blocking(PATIENCE).expect("connects"));
    let end = Instant::now() + PATIENCE;
    let mut handshake = None;
    let server = loop {
        assert!(Instant::now() < end, "waited {PATIENCE:?} for a client");
        let Some(open) = handshake.as_mut() else {
            handshake = listener.accept().expect("accepts");
            continue;
        };
        match memif::Handshake::on_readable(open, &|_| Answer::Accept(Offer::default())) {
            Progress::Connected(connection) => break connection,
            Progress::Pending => std::thread::yield_now(),
            Progress::Closed(reason) => panic!("{reason}"),
        }
    };
    (client.join().expect("connected"), server)
}
