//! Isolation: the twin with the same address in the other Network never sees a packet.
//!
//! Every pod sends to every address that both Networks have, marked with its own number; every pod
//! counts by number what comes in, all in the same second. What a pod receives from its own Network
//! is the positive control for the zero that it must receive from the other.

use crate::catalog::Network;
use crate::pod::Pod;
use crate::report::Report;
use anyhow::Context;
use bowline_pktgen::endpoint::Endpoint;
use bowline_pktgen::packet::Mark;
use bowline_pktgen::packet::{MAGIC, PAYLOAD_HEADER_BYTES, PORT, Stream, Template};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Packets from each pod to each address.
const PACKETS: u32 = 50;
const ROUND: Duration = Duration::from_millis(10);

/// Counts by sender's number.
type Counts = BTreeMap<u16, u64>;

/// Sends, counts, compares.
///
/// # Errors
/// A pod cannot be entered, or its socket fails.
pub fn check(pods: &[Pod], report: &mut Report) -> anyhow::Result<()> {
    let targets = shared_addresses(pods)?;
    let received = exchange(pods, &targets)?;
    for (pod, counts) in pods.iter().zip(&received) {
        let mine: Vec<IpAddr> =
            targets.iter().copied().filter(|t| pod.addresses.contains(t)).collect();
        if mine.is_empty() {
            continue;
        }
        let own = sum(pods, counts, |sender| sender.plan.network == pod.plan.network);
        let foreign = sum(pods, counts, |sender| sender.plan.network != pod.plan.network);
        let senders = pods
            .iter()
            .filter(|s| s.plan.network == pod.plan.network && s.plan.name != pod.plan.name)
            .count();
        let heard = pods
            .iter()
            .enumerate()
            .filter(|(i, s)| s.plan.network == pod.plan.network && counts.contains_key(&number(*i)))
            .count();
        let sent = senders as u64 * mine.len() as u64 * u64::from(PACKETS);
        let name = format!("isolation: {} ({})", pod.plan.name, mine[0]);
        let expected = format!("0 foreign, {sent} own");
        let found = format!("{foreign} foreign, {own} own");
        // UDP may lose a packet on a busy machine; a sender that is not heard at all is a failure.
        let ok = foreign == 0 && heard == senders && own * 10 >= sent * 9;
        report.check(&name, &expected, &found, ok);
    }
    Ok(())
}

fn number(index: usize) -> u16 {
    100 + index as u16
}

fn sum(pods: &[Pod], counts: &Counts, wanted: impl Fn(&Pod) -> bool) -> u64 {
    let members = pods.iter().enumerate().filter(|(_, pod)| wanted(pod));
    members.map(|(i, _)| counts.get(&number(i)).copied().unwrap_or(0)).sum()
}

/// Addresses that exist in both Networks.
fn shared_addresses(pods: &[Pod]) -> anyhow::Result<Vec<IpAddr>> {
    let of = |network| {
        let members = pods.iter().filter(move |p: &&Pod| p.plan.network == network);
        members.flat_map(|p| p.addresses.iter().copied()).collect::<Vec<_>>()
    };
    let red = of(Network::Red);
    let shared: Vec<_> = of(Network::Blue).into_iter().filter(|a| red.contains(a)).collect();
    anyhow::ensure!(!shared.is_empty(), "no address is shared by both networks");
    Ok(shared)
}

/// All receivers listen, then all senders send, then all counts are read.
fn exchange(pods: &[Pod], targets: &[IpAddr]) -> anyhow::Result<Vec<Counts>> {
    let stop = AtomicBool::new(false);
    let ready = std::sync::Barrier::new(pods.iter().filter(|p| p.station.is_none()).count() + 1);
    let (stop, ready) = (&stop, &ready);
    std::thread::scope(|scope| {
        let receivers: Vec<_> =
            pods.iter().map(|pod| scope.spawn(move || receive(pod, stop, ready))).collect();
        ready.wait();
        let senders: Vec<_> = pods
            .iter()
            .enumerate()
            .map(|(i, pod)| scope.spawn(move || send(pod, number(i), targets)))
            .collect();
        let mut sent = Ok(());
        for sender in senders {
            let result = sender.join().unwrap_or_else(|p| std::panic::resume_unwind(p));
            sent = sent.and(result);
        }
        // What is under way arrives within the time that the slowest park takes, many times over.
        std::thread::sleep(Duration::from_millis(200));
        stop.store(true, Ordering::Relaxed);
        let counts = receivers
            .into_iter()
            .map(|r| r.join().unwrap_or_else(|p| std::panic::resume_unwind(p)))
            .collect();
        sent.and(counts)
    })
}

fn receive(pod: &Pod, stop: &AtomicBool, ready: &std::sync::Barrier) -> anyhow::Result<Counts> {
    if let Some(station) = &pod.station {
        station.borrow().tracker.reset();
        while !stop.load(Ordering::Relaxed) {
            std::thread::sleep(ROUND);
        }
        let streams = station.borrow().tracker.streams();
        return Ok(streams.into_iter().map(|(id, totals)| (id, totals.frames)).collect());
    }
    let socket = pod.netns.enter().and_then(|()| {
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, PORT)).context("binding")?;
        socket.set_read_timeout(Some(ROUND))?;
        Ok(socket)
    });
    ready.wait();
    let socket = socket.with_context(|| format!("listening in {}", pod.plan.name))?;
    let mut counts = Counts::new();
    let mut payload = [0; 2048];
    while !stop.load(Ordering::Relaxed) {
        let Ok((len, _)) = socket.recv_from(&mut payload) else { continue };
        if len >= PAYLOAD_HEADER_BYTES && payload[..2] == MAGIC.to_be_bytes() {
            *counts.entry(u16::from_be_bytes([payload[2], payload[3]])).or_default() += 1;
        }
    }
    Ok(counts)
}

fn send(pod: &Pod, number: u16, targets: &[IpAddr]) -> anyhow::Result<()> {
    let others: Vec<IpAddr> =
        targets.iter().copied().filter(|t| !pod.addresses.contains(t)).collect();
    match &pod.station {
        Some(station) => send_by_memif(&mut station.borrow(), number, &others),
        None => {
            pod.netns.enter()?;
            send_by_socket(number, &others)
                .with_context(|| format!("sending from {}", pod.plan.name))
        }
    }
}

fn send_by_socket(number: u16, targets: &[IpAddr]) -> anyhow::Result<()> {
    let v4 = UdpSocket::bind("0.0.0.0:0")?;
    let v6 = UdpSocket::bind("[::]:0")?;
    for seq in 0..PACKETS {
        for target in targets {
            let mut payload = [0; PAYLOAD_HEADER_BYTES];
            payload[..2].copy_from_slice(&MAGIC.to_be_bytes());
            payload[2..4].copy_from_slice(&number.to_be_bytes());
            payload[6..10].copy_from_slice(&seq.to_be_bytes());
            let socket = if target.is_ipv4() { &v4 } else { &v6 };
            socket.send_to(&payload, (*target, PORT)).with_context(|| format!("to {target}"))?;
        }
        std::thread::sleep(ROUND);
    }
    Ok(())
}

fn send_by_memif(endpoint: &mut Endpoint, number: u16, targets: &[IpAddr]) -> anyhow::Result<()> {
    let mut templates = vec![];
    for dst in targets {
        let own = endpoint.host.mac();
        let next = endpoint.resolve(*dst, Duration::from_secs(1))?;
        let stream = Stream {
            id: number,
            macs: own.zip(next),
            src: endpoint.host.address_for(*dst).context("no address of that family")?,
            dst: *dst,
            src_port: 30_000,
            dst_port: PORT,
        };
        templates.push(Template::new(&stream, 100)?);
    }
    for seq in 0..PACKETS {
        for template in &mut templates {
            let mark = Mark { flow: 0, seq, time_ns: 0, port_offset: 0, dst_offset: 0 };
            endpoint.port.send_now(template.mark(mark))?;
        }
        let next = std::time::Instant::now() + ROUND;
        while std::time::Instant::now() < next {
            endpoint.poll_or_nap()?;
        }
    }
    Ok(())
}
