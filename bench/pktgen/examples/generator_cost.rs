//! What a frame costs the generator and sink: they send to a server in this process, which copies
//! each frame back. As in `bowline-bench`, one frame in 64 is verified.
//!
//! ```text
//! cargo run --release -p bowline-pktgen --example generator_cost -- [frame bytes] [flows] [seconds]
//! valgrind --tool=callgrind --toggle-collect='*drive*run*' target/release/examples/generator_cost 64 1 2
//! ```

use bowline_pktgen::drive::{Plan, run};
use bowline_pktgen::endpoint::Endpoint;
use bowline_pktgen::host::Host;
use bowline_pktgen::packet::{PORT, Stream};
use bowline_pktgen::port::{PortConfig, pin};
use bowline_pktgen::sender::{Sender, Traffic};
use memif::{Answer, Connection, Handshake, Listener, Offer, Progress, RxBurst, TxSegs};
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use wire::Mac;

const VERIFY_EVERY: u32 = 64;
const BURST_FRAMES: usize = 64;

fn main() -> anyhow::Result<()> {
    let mut numbers = std::env::args().skip(1).filter_map(|a| a.parse::<u64>().ok());
    let mut next = |default| numbers.next().unwrap_or(default);
    let (bytes, flows, seconds) = (next(64) as usize, next(1) as u16, next(2));
    let name = format!("pktgen-cost-{}", std::process::id());
    let listener = Listener::bind_abstract(&name)?;
    std::thread::spawn(move || reflect(listener));
    let config = PortConfig { socket: format!("@{name}"), ..PortConfig::default() };
    let (own, other) = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));
    let addresses = vec!["192.0.2.1/24".parse().map_err(anyhow::Error::msg)?];
    let (src, dst) = ("192.0.2.1".parse()?, "192.0.2.2".parse()?);
    let mut endpoint = Endpoint::open(
        &config,
        Host::new(Some(own), addresses, vec![]),
        BURST_FRAMES as u32,
        Duration::from_secs(5),
    )?;
    endpoint.verify_every(VERIFY_EVERY);
    let stream =
        Stream { id: 7, macs: Some((own, other)), src, dst, src_port: 20_000, dst_port: PORT };
    let traffic = Traffic { stream, sizes: vec![bytes], flows, dst_count: 1, queues: 1 };
    let mut sender = Sender::new(&traffic)?;
    sender.tag_every(VERIFY_EVERY);
    pin(0)?;
    let plan = Plan {
        duration: Some(Duration::from_secs(seconds)),
        busy: true,
        burst_frames: BURST_FRAMES,
        ..Plan::default()
    };
    let report = run(Some((&mut endpoint, &mut sender)), None, &plan, &AtomicBool::new(false))?;
    let rx = report.rx;
    println!(
        "{bytes} B, {flows} flows: {:.2} Mpps, {} frames received, {} missing, {} corrupt",
        report.rx_rate.pps / 1e6,
        rx.frames,
        rx.missing,
        report.corrupt
    );
    Ok(())
}

/// Sends all frames back to where they came from.
fn reflect(mut listener: Listener) -> anyhow::Result<()> {
    let mut handshake: Option<Handshake> = None;
    let mut connection: Connection = loop {
        if handshake.is_none() {
            handshake = listener.accept()?;
        }
        match handshake.as_mut().map(|h| h.on_readable(&|_| Answer::Accept(Offer::default()))) {
            Some(Progress::Connected(connection)) => break connection,
            Some(Progress::Closed(reason)) => anyhow::bail!("{reason}"),
            _ => std::thread::yield_now(),
        }
    };
    let (mut rx, mut tx) = connection.take_queues();
    let (mut burst, mut places) = (RxBurst::new(BURST_FRAMES), TxSegs::new());
    let mut buffer = vec![0; 65_536];
    rx[0].set_polling(true)?;
    pin(1)?;
    loop {
        burst.clear();
        let room = usize::from(tx[0].free()?).min(BURST_FRAMES);
        if rx[0].claim(room, &mut burst)? == 0 {
            std::thread::yield_now();
            continue;
        }
        let lengths = burst.frames().iter().map(|frame| frame.len_bytes);
        tx[0].reserve_run(lengths, &mut places)?;
        for (frame, place) in burst.frames().iter().zip(places.as_slice()) {
            if let Some(bytes) = rx[0].copy_to(&burst, frame, &mut buffer) {
                anyhow::ensure!(tx[0].write_to(place, &buffer[..bytes]), "reserved for it");
            }
        }
        tx[0].publish();
        let slots = burst.frames().iter().map(|frame| frame.n_slots).sum();
        rx[0].release(slots);
    }
}
