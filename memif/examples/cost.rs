//! What a frame costs: nanoseconds per frame for each queue operation, both ends in one thread, so
//! without the price of moving cache lines between cores. Run it with `--release`.

use memif::{
    Address, Answer, ClientConfig, ClientEvent, Connection, Connector, Listener, Offer, Progress,
    Reserved, RxBurst, TxSegs, Violation,
};
use std::time::{Duration, Instant};

const BURST: usize = 64;
const ROUNDS: u32 = 20_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (mut server, mut client) = connect()?;
    let (mut server, mut client) = (server.take_queues(), client.take_queues());
    println!("ns per frame, bursts of {BURST}: best of 7");
    println!(
        "{:>6} {:>12} {:>12} {:>12} {:>12}",
        "bytes", "c reserve", "s claim", "s reserve", "c claim"
    );
    for len in [64, 512, 1500, 9000] {
        let mut best = [f64::MAX; 4];
        for _ in 0..7 {
            let up = one_way(&mut client.1[0], &mut server.0[0], len)?;
            let down = one_way(&mut server.1[0], &mut client.0[0], len)?;
            for (best, now) in best.iter_mut().zip([up.0, up.1, down.0, down.1]) {
                *best = best.min(now);
            }
        }
        let [a, b, c, d] = best;
        println!("{len:>6} {a:>12.2} {b:>12.2} {c:>12.2} {d:>12.2}");
    }
    Ok(())
}

/// Time per frame of reserve + publish, and of claim + release; nothing is copied.
fn one_way(
    tx: &mut memif::TxQueue,
    rx: &mut memif::RxQueue,
    len: u32,
) -> Result<(f64, f64), Violation> {
    let (mut burst, mut segs) = (RxBurst::new(BURST), TxSegs::new());
    let (mut sending, mut receiving) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for _ in 0..BURST {
            assert!(matches!(tx.reserve(len, &mut segs)?, Reserved::Slots(_)));
            std::hint::black_box(segs.as_slice().first());
        }
        tx.publish();
        std::hint::black_box(tx.needs_wakeup());
        let middle = Instant::now();
        burst.clear();
        let n = rx.claim(BURST, &mut burst)?;
        let slots = burst.frames().iter().map(|f| f.n_slots).sum();
        rx.release(slots);
        sending += middle - start;
        receiving += middle.elapsed();
        assert_eq!(n, BURST);
    }
    let frames = f64::from(ROUNDS) * BURST as f64;
    Ok((sending.as_nanos() as f64 / frames, receiving.as_nanos() as f64 / frames))
}

fn connect() -> std::io::Result<(Connection, Connection)> {
    let name = format!("memif-cost-{}", std::process::id());
    let mut listener = Listener::bind_abstract(&name)?;
    let mut connector = Connector::new(ClientConfig::new(Address::Abstract(name), 0));
    let (mut handshake, mut server, mut client) = (None, None, None);
    loop {
        match connector.poll(Instant::now()) {
            ClientEvent::Connected(connection) => client = Some(connection),
            ClientEvent::Failed(reason) => return Err(std::io::Error::other(reason)),
            ClientEvent::Pending => {}
        }
        if handshake.is_none() && server.is_none() {
            handshake = listener.accept()?;
        }
        if let Some(mut h) = handshake.take() {
            match h.on_readable(&|_| Answer::Accept(Offer::default())) {
                Progress::Connected(connection) => server = Some(connection),
                Progress::Closed(reason) => return Err(std::io::Error::other(reason)),
                Progress::Pending => handshake = Some(h),
            }
        }
        if let (Some(_), Some(_)) = (&server, &client)
            && let (Some(server), Some(client)) = (server.take(), client.take())
        {
            return Ok((server, client));
        }
    }
}
