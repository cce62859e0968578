//! A device under test with the generator's two ends on it.

use crate::report::Sample;
use anyhow::Context;
use bowline_pktgen::drive::{Plan, run};
use bowline_pktgen::endpoint::Endpoint;
use bowline_pktgen::host::Host;
use bowline_pktgen::packet::{PORT, Stream};
use bowline_pktgen::port::PortConfig;
use bowline_pktgen::sender::{Sender, Traffic};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::any::Any;
use std::net::IpAddr;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use wire::Mac;

/// Measures nothing: fills rings and caches.
const WARM_UP: Duration = Duration::from_millis(60);

/// A device under test. Dropping it ends its processes.
pub struct Candidate {
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
    /// The first hop's MAC.
    pub next_hop: Mac,
    /// What keeps the processes alive.
    pub keep: Box<dyn Any>,
}

impl std::fmt::Debug for Candidate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Candidate").field("name", &self.name).field("pids", &self.pids).finish()
    }
}

impl Candidate {
    /// Stops its processes.
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets them run on.
    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        for pid in &self.pids {
            // A dead one shows as a run without frames.
            let _ = kill(Pid::from_raw(*pid), signal);
        }
    }

    /// One run of frames of this size, as many as go.
    ///
    /// # Errors
    /// The connection broke.
    pub fn measure(&mut self, size: usize, flows: u16, time: Duration) -> anyhow::Result<Sample> {
        self.thaw();
        let done = self.warm_up_and_run(size, flows, time);
        self.freeze();
        done.with_context(|| format!("measuring {}", self.name))
    }

    fn warm_up_and_run(
        &mut self,
        size: usize,
        flows: u16,
        time: Duration,
    ) -> anyhow::Result<Sample> {
        let stop = AtomicBool::new(false);
        let stream = Stream {
            id: 1,
            macs: self.tx.host.mac().map(|own| (own, self.next_hop)),
            src: self.tx.host.address_for(self.dst).context("no address of that family")?,
            dst: self.dst,
            src_port: 20_000,
            dst_port: PORT,
        };
        let traffic = Traffic { stream, sizes: vec![size], flows, dst_count: 1, queues: 1 };
        let mut report = None;
        for duration in [WARM_UP, time] {
            let mut sender = Sender::new(&traffic)?;
            self.rx.tracker.reset();
            let plan = Plan { duration: Some(duration), busy: true, ..Plan::default() };
            report =
                Some(run(Some((&mut self.tx, &mut sender)), Some(&mut self.rx), &plan, &stop)?);
        }
        let report = report.context("no run")?;
        anyhow::ensure!(report.corrupt == 0, "{} frames were changed", report.corrupt);
        Ok(Sample { value: report.rx_rate.pps, loss_ratio: report.loss_ratio.unwrap_or(0.0) })
    }
}

impl Drop for Candidate {
    fn drop(&mut self) {
        // A stopped process would not see its end coming.
        self.thaw();
    }
}

/// An endpoint of the generator on a peer's socket.
///
/// # Errors
/// The peer does not serve in time.
pub fn plain_end(socket: &str, number: u8, rx_queues: u16) -> anyhow::Result<Endpoint> {
    let config = PortConfig { socket: socket.into(), rx_queues, ..PortConfig::default() };
    let address = format!("10.0.0.{number}/24").parse().map_err(anyhow::Error::msg)?;
    let host = Host::new(Some(Mac([2, 0, 0, 0, 0, number])), vec![address], vec![]);
    Endpoint::open(&config, host, 64, Duration::from_secs(20))
}
