//! A device under test with the generator's two ends on it.

use crate::report::Sample;
use anyhow::Context;
use bowline_demo::checks::throughput::tcp_rate;
use bowline_demo::lab::netns::Netns;
use bowline_pktgen::drive::{Plan, run};
use bowline_pktgen::endpoint::Endpoint;
use bowline_pktgen::host::Host;
use bowline_pktgen::packet::{PORT, Stream, fresh_stream_id};
use bowline_pktgen::port::PortConfig;
use bowline_pktgen::sender::{Sender, Traffic};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::any::Any;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use wire::Mac;

/// Measures nothing: fills rings and caches.
const WARM_UP: Duration = Duration::from_millis(60);
/// One frame of so many is verified byte by byte. All are written and read in full; summing all up
/// as well would make the generator the slower half, and all candidates look alike.
const VERIFY_EVERY: u32 = 64;
/// Frames that the generator puts into a ring before it takes any: with 64 it is the slower half at 512
/// bytes.
const BURST_FRAMES: usize = 128;

/// What is sent through a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Bytes of a frame; 0 where TCP decides.
    pub size: usize,
    /// Flows; each has its own source port.
    pub flows: u16,
    /// Frames per second; `None`: as fast as it goes.
    pub rate_pps: Option<u64>,
}

impl Load {
    /// One flow, as fast as it goes.
    #[must_use]
    pub const fn of(size: usize) -> Self {
        Self { size, flows: 1, rate_pps: None }
    }
}

/// What can be measured in turn with others.
pub trait Candidate {
    /// Its name in the report.
    fn name(&self) -> &str;

    /// Stops its processes while others run.
    fn freeze(&self);

    /// One run.
    ///
    /// # Errors
    /// The device does not work.
    fn measure(&mut self, load: Load, time: Duration) -> anyhow::Result<Sample>;
}

/// What a device says it spent since it started, on turns with packets only.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Spent {
    /// Packets of those turns.
    pub packets: u64,
    /// Cycles of the time stamp counter, by part of the work.
    pub cycles: BTreeMap<String, u64>,
}

impl Spent {
    /// Cycles per packet since `before`, by part; empty when no packets were counted.
    fn per_packet_since(&self, before: &Self) -> BTreeMap<String, f64> {
        let packets = self.packets.saturating_sub(before.packets);
        let cost = |(part, cycles): (&String, &u64)| {
            let old = before.cycles.get(part).copied().unwrap_or(0);
            (part.clone(), cycles.saturating_sub(old) as f64 / packets as f64)
        };
        if packets == 0 { BTreeMap::new() } else { self.cycles.iter().map(cost).collect() }
    }
}

/// Stops processes, or lets them run on.
fn signal_all(pids: &[i32], signal: Signal) {
    for pid in pids {
        // A dead one shows as a run without frames.
        let _ = kill(Pid::from_raw(*pid), signal);
    }
}

/// Asks a device what it spent.
pub type AskSpent = Box<dyn FnMut() -> anyhow::Result<Spent>>;

/// A device between two memifs. Dropping it ends its processes.
pub struct MemifDevice {
    /// Its name in the report.
    pub name: String,
    /// Processes to stop while others run.
    pub pids: Vec<i32>,
    /// The generator's sending end.
    pub tx: Endpoint,
    /// The generator's receiving end.
    pub rx: Endpoint,
    /// Whom it sends to.
    pub dst: IpAddr,
    /// Further destinations, counted up from the first: flow n goes to number n modulo this.
    pub dst_count: u16,
    /// The first hop's MAC.
    pub next_hop: Mac,
    /// What the generator puts in front of its frames of a size: the headers of a tunnel.
    pub outer: Box<dyn Fn(usize) -> Vec<u8>>,
    /// Asks what it spent.
    pub ask_spent: AskSpent,
    /// What keeps the processes alive.
    pub keep: Box<dyn Any>,
}

impl std::fmt::Debug for MemifDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemifDevice").field("name", &self.name).field("pids", &self.pids).finish()
    }
}

impl Candidate for MemifDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn freeze(&self) {
        signal_all(&self.pids, Signal::SIGSTOP);
    }

    fn measure(&mut self, load: Load, time: Duration) -> anyhow::Result<Sample> {
        signal_all(&self.pids, Signal::SIGCONT);
        let done = self.warm_up_and_run(load, time);
        self.freeze();
        done.with_context(|| format!("measuring {}", self.name))
    }
}

impl MemifDevice {
    fn warm_up_and_run(&mut self, load: Load, time: Duration) -> anyhow::Result<Sample> {
        let stop = AtomicBool::new(false);
        let stream = Stream {
            id: 0,
            macs: self.tx.host.mac().map(|own| (own, self.next_hop)),
            src: self.tx.host.address_for(self.dst).context("no address of that family")?,
            dst: self.dst,
            src_port: 20_000,
            dst_port: PORT,
        };
        let before = (self.ask_spent)()?;
        let (sizes, flows, dst_count) = (vec![load.size], load.flows, self.dst_count);
        let mut traffic = Traffic { stream, sizes, flows, dst_count, queues: 1 };
        self.rx.verify_every(VERIFY_EVERY);
        let mut report = None;
        for duration in [WARM_UP, time] {
            traffic.stream.id = fresh_stream_id();
            let mut sender = Sender::new(&traffic)?;
            sender.wrap(&(self.outer)(load.size));
            sender.tag_every(VERIFY_EVERY);
            self.rx.tracker.reset();
            let (duration, rate_pps) = (Some(duration), load.rate_pps);
            let plan = Plan {
                duration,
                rate_pps,
                busy: true,
                burst_frames: BURST_FRAMES,
                ..Plan::default()
            };
            report =
                Some(run(Some((&mut self.tx, &mut sender)), Some(&mut self.rx), &plan, &stop)?);
        }
        let report = report.context("no run")?;
        anyhow::ensure!(report.corrupt == 0, "{} frames were changed", report.corrupt);
        Ok(Sample {
            rate: report.rx_rate.pps,
            loss_ratio: report.loss_ratio.unwrap_or(0.0),
            p50_ns: report.latency.p50_ns,
            p99_ns: report.latency.p99_ns,
            cycles: (self.ask_spent)()?.per_packet_since(&before),
        })
    }
}

impl Drop for MemifDevice {
    fn drop(&mut self) {
        // A stopped process would not see its end coming.
        signal_all(&self.pids, Signal::SIGCONT);
    }
}

/// A device between two kernels' network stacks, under one TCP stream.
pub struct TcpDevice {
    /// Its name in the report.
    pub name: String,
    /// Processes to stop while others run.
    pub pids: Vec<i32>,
    /// Who sends.
    pub from: Netns,
    /// Who receives.
    pub to: Netns,
    /// The receiver's address.
    pub dst: IpAddr,
    /// What keeps the processes alive.
    pub keep: Box<dyn Any>,
}

impl std::fmt::Debug for TcpDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TcpDevice").field("name", &self.name).field("pids", &self.pids).finish()
    }
}

impl Candidate for TcpDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn freeze(&self) {
        signal_all(&self.pids, Signal::SIGSTOP);
    }

    fn measure(&mut self, _: Load, time: Duration) -> anyhow::Result<Sample> {
        signal_all(&self.pids, Signal::SIGCONT);
        let rate = tcp_rate(&self.from, &self.to, self.dst, time);
        self.freeze();
        let rate = rate.with_context(|| format!("measuring {}", self.name))?;
        Ok(Sample { rate, ..Sample::default() })
    }
}

impl Drop for TcpDevice {
    fn drop(&mut self) {
        signal_all(&self.pids, Signal::SIGCONT);
    }
}

/// An endpoint of the generator on a peer's socket.
///
/// # Errors
/// The peer does not serve in time.
pub fn plain_end(
    socket: &str,
    number: u8,
    rx_queues: u16,
    buffer_bytes: u32,
) -> anyhow::Result<Endpoint> {
    let socket = socket.into();
    let config = PortConfig { socket, rx_queues, buffer_bytes, ..PortConfig::default() };
    let address = format!("10.0.0.{number}/24").parse().map_err(anyhow::Error::msg)?;
    let host = Host::new(Some(Mac([2, 0, 0, 0, 0, number])), vec![address], vec![]);
    Endpoint::open(&config, host, 64, Duration::from_secs(20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_of_the_packets_in_between() {
        let spent = |packets, cycles: [u64; 2]| Spent {
            packets,
            cycles: ["claim", "copy"].map(String::from).into_iter().zip(cycles).collect(),
        };
        let (before, after) = (spent(100, [5_000, 0]), spent(110, [5_300, 90]));
        let costs = BTreeMap::from([("claim".into(), 30.0), ("copy".into(), 9.0)]);
        assert_eq!(after.per_packet_since(&before), costs);
        assert_eq!(before.per_packet_since(&Spent::default())["claim"], 50.0);
        assert!(after.per_packet_since(&after).is_empty());
    }
}
