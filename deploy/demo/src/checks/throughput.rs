//! How fast: TCP between tap pods, frames between memif pods, on one node and across.
//!
//! Two data planes, two generators and the kernel share the machine's cores: the figures show that
//! all sizes and queues work and what a small machine gives; `make bench` measures.

use crate::lab::netns::Netns;
use crate::pod::Pod;
use crate::report::{Report, Throughput};
use anyhow::Context;
use bowline_pktgen::drive::{self, Plan, run};
use bowline_pktgen::endpoint::Endpoint;
use bowline_pktgen::packet::{PORT, Stream, fresh_stream_id};
use bowline_pktgen::sender::{Sender, Traffic};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, TcpListener, TcpStream};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

const TCP_TIME: Duration = Duration::from_secs(1);
const MEMIF_TIME: Duration = Duration::from_millis(500);
const TCP_PORT: u16 = 9701;
/// Ethernet frames.
const JUMBO_BYTES: usize = 9000;
const ETHERNET_BYTES: usize = 14;

/// TCP between two tap pods on one node and across nodes, in both families.
///
/// # Errors
/// A pod cannot be entered.
pub fn check_tcp(pods: &[Pod], report: &mut Report) -> anyhow::Result<()> {
    let pairs = [
        ("tap to tap, one node", "blue-tap-1a", "blue-tap-1b"),
        ("tap to tap, across", "blue-tap-1a", "blue-tap-2"),
    ];
    for (what, from, to) in pairs {
        for (family, ipv4) in [("IPv4", true), ("IPv6", false)] {
            let (from, to) = (find(pods, from)?, find(pods, to)?);
            let name = format!("TCP {what}, {family}");
            let rate = tcp_rate(&from.netns, &to.netns, to.address(ipv4)?, TCP_TIME);
            let (found, bps) = match rate {
                Ok(bps) => (format!("{:.2} Gb/s", bps / 1e9), bps),
                Err(error) => (format!("{error:#}"), 0.0),
            };
            report.check(&name, "> 0.05 Gb/s", &found, bps > 5e7);
            report.measured(Throughput {
                name,
                size_bytes: 0,
                queues: 1,
                pps: 0.0,
                bps,
                loss_ratio: 0.0,
            });
        }
    }
    Ok(())
}

fn find<'a>(pods: &'a [Pod], name: &str) -> anyhow::Result<&'a Pod> {
    pods.iter().find(|p| p.plan.name == name).with_context(|| format!("no pod {name}"))
}

/// One stream between namespaces; the bits per second that its receiver saw.
///
/// # Errors
/// The connection is not made in time, or breaks.
pub fn tcp_rate(from: &Netns, to: &Netns, dst: IpAddr, time: Duration) -> anyhow::Result<f64> {
    let listener = to.run(|| Ok(TcpListener::bind((Ipv6Addr::UNSPECIFIED, TCP_PORT))?))?;
    std::thread::scope(|scope| {
        let receiver = scope.spawn(move || count(&listener));
        let sent = from.run(|| pour(dst, time));
        let counted = receiver.join().unwrap_or_else(|p| std::panic::resume_unwind(p));
        sent.and(counted)
    })
}

fn pour(dst: IpAddr, time: Duration) -> anyhow::Result<()> {
    let timeout = Duration::from_secs(3);
    let mut stream = TcpStream::connect_timeout(&(dst, TCP_PORT).into(), timeout)
        .with_context(|| format!("connecting to {dst}"))?;
    stream.set_write_timeout(Some(timeout))?;
    let chunk = vec![0xa5; 256 << 10];
    let end = Instant::now() + time;
    while Instant::now() < end {
        stream.write_all(&chunk).context("sending")?;
    }
    Ok(())
}

fn count(listener: &TcpListener) -> anyhow::Result<f64> {
    listener.set_nonblocking(true)?;
    let deadline = Instant::now() + Duration::from_secs(4);
    let mut stream = loop {
        match listener.accept() {
            Ok((stream, _)) => break stream,
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
            Err(error) => return Err(error).context("nobody connected"),
        }
    };
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    let begun = Instant::now();
    let mut buffer = vec![0; 256 << 10];
    let mut bytes = 0usize;
    loop {
        match stream.read(&mut buffer).context("receiving")? {
            0 => return Ok(bytes as f64 * 8.0 / begun.elapsed().as_secs_f64()),
            n => bytes += n,
        }
    }
}

/// Frames of one size from one memif pod to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// Whether both are on one node.
    pub place: &'static str,
    /// The sender. It uses all its queues.
    pub from: &'static str,
    /// The receiver.
    pub to: &'static str,
    /// Bytes of a frame.
    pub size: usize,
}

/// Frames between memif pods on one node and across, of all sizes, over 1 and 2 queues. How many a
/// second, each way.
///
/// # Errors
/// A peer broke memif's rules.
pub fn check_memif(pods: &[Pod], report: &mut Report) -> anyhow::Result<Vec<(Way, f64)>> {
    let pairs = [
        ("one node", "blue-mem-1", "blue-mem-1q2", &[64, 1500][..]),
        ("one node", "blue-mem-1q2", "blue-mem-1", &[64, 1500]),
        // A Network of its own: blue's MTU is what the uplink carries.
        ("one node", "jumbo-mem-1", "jumbo-mem-1q2", &[JUMBO_BYTES]),
        ("one node", "jumbo-mem-1q2", "jumbo-mem-1", &[JUMBO_BYTES]),
        ("across", "blue-mem-1", "blue-mem-2", &[64, 1500, JUMBO_BYTES]),
        ("across", "blue-mem-1q2", "blue-mem-2", &[64, 1500, JUMBO_BYTES]),
    ];
    let mut pps = vec![];
    for (place, from, to, sizes) in pairs {
        let mtu = find(pods, from)?.mtu.min(find(pods, to)?.mtu);
        for &size in sizes {
            if size == JUMBO_BYTES && mtu + ETHERNET_BYTES < JUMBO_BYTES {
                println!("    left out {place} {size} B: the uplink carries pods' MTU {mtu}");
                continue;
            }
            let way = Way { place, from, to, size };
            pps.push((way, check(&way, pods, report)?));
        }
    }
    Ok(pps)
}

fn check(way: &Way, pods: &[Pod], report: &mut Report) -> anyhow::Result<f64> {
    let (measured, done) = measure(way, pods)?;
    let found = format!(
        "{} received, {} reordered, {} corrupt",
        done.rx.frames, done.rx.reordered, done.corrupt
    );
    let ok = done.rx.frames > 1000 && done.rx.reordered == 0 && done.corrupt == 0;
    let name = format!("{}, {} B, {} queue(s)", measured.name, way.size, measured.queues);
    report.check(&name, "> 1000, 0 reordered, 0 corrupt", &found, ok);
    report.measured(measured);
    Ok(done.rx_rate.pps)
}

/// Sends for half a second.
///
/// # Errors
/// A peer broke memif's rules.
pub fn measure(way: &Way, pods: &[Pod]) -> anyhow::Result<(Throughput, drive::Report)> {
    let (from, to) = (find(pods, way.from)?, find(pods, way.to)?);
    let queues = usize::from(from.plan.memif_queues);
    let stations = from.station.as_ref().zip(to.station.as_ref());
    let (tx, rx) = stations.context("not a memif pod")?;
    let (mut tx, mut rx) = (tx.borrow(), rx.borrow());
    let mut sender = sender(&mut tx, to.address(true)?, way.size, queues)?;
    rx.tracker.reset();
    let plan = Plan { duration: Some(MEMIF_TIME), ..Plan::default() };
    let stop = AtomicBool::new(false);
    let done = run(Some((&mut tx, &mut sender)), Some(&mut rx), &plan, &stop)?;
    let measured = Throughput {
        name: format!("memif to memif, {}", way.place),
        size_bytes: way.size,
        queues,
        pps: done.rx_rate.pps,
        bps: done.rx_rate.bps,
        loss_ratio: done.loss_ratio.unwrap_or(0.0),
    };
    Ok((measured, done))
}

/// Four flows per queue towards `dst`.
fn sender(
    endpoint: &mut Endpoint,
    dst: IpAddr,
    size: usize,
    queues: usize,
) -> anyhow::Result<Sender> {
    let next = endpoint.resolve(dst, Duration::from_secs(2))?;
    let stream = Stream {
        id: fresh_stream_id(),
        macs: endpoint.host.mac().zip(next),
        src: endpoint.host.address_for(dst).context("no address of that family")?,
        dst,
        src_port: 20_000,
        dst_port: PORT,
    };
    Sender::new(&Traffic {
        stream,
        sizes: vec![size],
        flows: 4 * queues as u16,
        dst_count: 1,
        queues,
    })
}
