//! Generator against generator, over a wire made of two memif servers: what one sends the other
//! must receive, whole and in order, and what is lost, doubled or changed must be noticed.

use bowline_pktgen::drive::{Plan, Report, run};
use bowline_pktgen::endpoint::Endpoint;
use bowline_pktgen::host::Host;
use bowline_pktgen::packet::{PORT, Stream};
use bowline_pktgen::ping::{PingPlan, ping};
use bowline_pktgen::port::PortConfig;
use bowline_pktgen::sender::{Sender, Traffic};
use memif::{Answer, Connection, Handshake, Listener, Notifier, Offer, Progress};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use wire::Mac;

const PATIENCE: Duration = Duration::from_secs(10);

/// What the wire does to every n-th frame.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    None,
    Lose(u64),
    Double(u64),
    Corrupt(u64),
}

/// Two servers and a thread that carries frames between them.
struct Wire {
    sockets: [String; 2],
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Wire {
    fn new(fault: Fault) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let names = ["a", "b"].map(|end| format!("pktgen-{}-{number}{end}", std::process::id()));
        let listeners = names.clone().map(|n| Listener::bind_abstract(&n).unwrap());
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || carry(listeners, fault, &told));
        Self { sockets: names.map(|n| format!("@{n}")), stop, thread: Some(thread) }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn accept(listener: &mut Listener, stop: &AtomicBool) -> Option<Connection> {
    let mut handshake: Option<Handshake> = None;
    while !stop.load(Ordering::Relaxed) {
        if handshake.is_none() {
            handshake = listener.accept().unwrap();
        }
        let answer = |_| Answer::Accept(Offer::default());
        match handshake.as_mut().map(|h| h.on_readable(&answer)) {
            Some(Progress::Connected(connection)) => return Some(connection),
            Some(Progress::Closed(reason)) => panic!("{reason}"),
            _ => std::thread::yield_now(),
        }
    }
    None
}

fn carry(mut listeners: [Listener; 2], fault: Fault, stop: &AtomicBool) {
    let [one, two] = &mut listeners;
    let Some(mut a) = accept(one, stop) else { return };
    let Some(mut b) = accept(two, stop) else { return };
    let mut notifier = Notifier::new().unwrap();
    let mut buffer = vec![0; 65_536];
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let moved = pass(&mut a, &mut b, fault, &mut count, &mut buffer, &mut notifier)
            + pass(&mut b, &mut a, Fault::None, &mut 0, &mut buffer, &mut notifier);
        if moved == 0 {
            std::thread::yield_now();
        }
    }
}

fn pass(
    from: &mut Connection,
    to: &mut Connection,
    fault: Fault,
    count: &mut u64,
    buffer: &mut [u8],
    notifier: &mut Notifier,
) -> usize {
    let mut moved = 0;
    let queues = from.rx().len();
    for index in 0..queues {
        let out = index % to.tx().len();
        for _ in 0..32 {
            // A full sink keeps frames at the source, so that what is lost is lost on purpose.
            if to.tx()[out].free().unwrap() < 16 {
                break;
            }
            let Ok(Some(len)) = from.rx()[index].recv(buffer) else { break };
            *count += 1;
            let frame = &mut buffer[..len];
            match fault {
                Fault::Lose(n) if count.is_multiple_of(n) => continue,
                Fault::Corrupt(n) if count.is_multiple_of(n) => frame[len - 1] ^= 1,
                Fault::Double(n) if count.is_multiple_of(n) => {
                    assert!(to.tx()[out].send(frame).unwrap());
                }
                _ => {}
            }
            assert!(to.tx()[out].send(frame).unwrap());
            moved += 1;
        }
        to.tx()[out].flush(notifier).unwrap();
    }
    moved
}

fn host(number: u8) -> Host {
    let addresses = [format!("10.0.0.{number}/24"), format!("fd00::{number}/64")];
    let addresses = addresses.map(|a| a.parse().unwrap()).to_vec();
    Host::new(Some(Mac([2, 0, 0, 0, 0, number])), addresses, vec![])
}

fn ends(wire: &Wire, queues: u16) -> (Endpoint, Endpoint) {
    let config = |socket: &str| PortConfig {
        socket: socket.into(),
        rx_queues: queues,
        tx_queues: queues,
        ..PortConfig::default()
    };
    let a = Endpoint::open(&config(&wire.sockets[0]), host(1), 1, PATIENCE).unwrap();
    let b = Endpoint::open(&config(&wire.sockets[1]), host(2), 1, PATIENCE).unwrap();
    (a, b)
}

fn sender(dst: &str, sizes: &[usize], flows: u16, queues: usize) -> Sender {
    let dst: std::net::IpAddr = dst.parse().unwrap();
    let src = if dst.is_ipv4() { "10.0.0.1" } else { "fd00::1" };
    let stream = Stream {
        id: 5,
        macs: Some((Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]))),
        src: src.parse().unwrap(),
        dst,
        src_port: 20_000,
        dst_port: PORT,
    };
    let sizes = sizes.to_vec();
    Sender::new(&Traffic { stream, sizes, flows, dst_count: 1, queues }).unwrap()
}

fn count_plan(count: u64) -> Plan {
    Plan { count: Some(count), duration: Some(PATIENCE), ..Plan::default() }
}

fn send(fault: Fault, dst: &str, sizes: &[usize], flows: u16, queues: u16) -> Report {
    let wire = Wire::new(fault);
    let (mut a, mut b) = ends(&wire, queues);
    let mut sender = sender(dst, sizes, flows, queues.into());
    let stop = AtomicBool::new(false);
    run(Some((&mut a, &mut sender)), Some(&mut b), &count_plan(10_000), &stop).unwrap()
}

#[test]
fn a_whole_wire_loses_nothing() {
    for (dst, sizes, flows, queues) in [
        ("10.0.0.2", &[64][..], 1, 1),
        ("10.0.0.2", &[64, 600, 1500], 7, 2),
        ("fd00::2", &[84, 9000], 300, 1),
    ] {
        let report = send(Fault::None, dst, sizes, flows, queues);
        assert_eq!((report.tx.frames, report.rx.frames), (10_000, 10_000), "{report:?}");
        assert_eq!((report.lost, report.rx.missing, report.rx.reordered), (Some(0), 0, 0));
        assert_eq!((report.rx.duplicates, report.corrupt), (0, 0));
        assert_eq!(report.tx.bytes, report.rx.bytes);
        assert_eq!(report.latency.samples, 10_000);
        assert!(report.latency.p50_ns > 0 && report.latency.p50_ns <= report.latency.max_ns);
        assert_eq!(report.streams[&5].frames, 10_000);
    }
}

#[test]
fn faults_are_counted() {
    let lost = send(Fault::Lose(10), "10.0.0.2", &[64], 1, 1);
    assert_eq!((lost.rx.frames, lost.lost), (9_000, Some(1_000)));
    // The last frame was lost and nothing came after it to show the gap.
    assert_eq!(lost.rx.missing, 999);
    let doubled = send(Fault::Double(10), "10.0.0.2", &[64], 1, 1);
    assert_eq!((doubled.rx.frames, doubled.rx.duplicates, doubled.lost), (11_000, 1_000, Some(0)));
    let changed = send(Fault::Corrupt(10), "fd00::2", &[300], 1, 1);
    assert_eq!((changed.corrupt, changed.rx.frames), (1_000, 9_000));
}

#[test]
fn a_rate_is_kept() {
    let wire = Wire::new(Fault::None);
    let (mut a, mut b) = ends(&wire, 1);
    let mut sender = sender("10.0.0.2", &[64], 1, 1);
    let plan = Plan {
        rate_pps: Some(20_000),
        duration: Some(Duration::from_millis(500)),
        ..Plan::default()
    };
    let stop = AtomicBool::new(false);
    let report = run(Some((&mut a, &mut sender)), Some(&mut b), &plan, &stop).unwrap();
    let ideal = report.seconds * 20_000.0;
    assert!((report.tx.frames as f64 - ideal).abs() < ideal / 10.0, "{report:?}");
    assert_eq!(report.lost, Some(0));
}

#[test]
fn ends_find_and_ping_each_other() {
    let wire = Wire::new(Fault::None);
    let (mut a, mut b) = ends(&wire, 1);
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stop);
    let answering = std::thread::spawn(move || {
        while !told.load(Ordering::Relaxed) {
            b.poll_or_nap().unwrap();
        }
    });
    for dst in ["10.0.0.2", "fd00::2"] {
        let plan = PingPlan {
            dst: dst.parse().unwrap(),
            count: 5,
            interval: Duration::from_millis(1),
            payload_bytes: 100,
            patience: Duration::from_secs(5),
        };
        let report = ping(&mut a, &plan).unwrap();
        assert_eq!((report.sent, report.received), (5, 5), "{dst}");
    }
    let nobody = a.resolve("10.0.0.77".parse().unwrap(), Duration::from_millis(100));
    assert!(nobody.unwrap_err().to_string().contains("10.0.0.77"));
    stop.store(true, Ordering::Relaxed);
    answering.join().unwrap();
}

/// The peer goes and comes back: the port connects again by itself.
#[test]
fn a_port_comes_back() {
    let name = format!("pktgen-back-{}", std::process::id());
    let mut listener = Listener::bind_abstract(&name).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stop);
    let server = std::thread::spawn(move || {
        let first = accept(&mut listener, &told).unwrap();
        drop(first);
        accept(&mut listener, &told)
    });
    let config = PortConfig { socket: format!("@{name}"), ..PortConfig::default() };
    let mut a = Endpoint::open(&config, host(1), 1, PATIENCE).unwrap();
    let end = Instant::now() + PATIENCE;
    while a.port.connects() < 2 && Instant::now() < end {
        a.poll_or_nap().unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    assert_eq!((a.port.connects(), a.port.is_up()), (2, true));
    assert!(server.join().unwrap().is_some());
}
