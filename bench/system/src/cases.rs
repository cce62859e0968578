//! What is run: each case with its loads and its candidates.

use crate::candidate::{Candidate, Load};
use crate::report::Metric::{self, Bps, P50, P99, Pps};
use crate::{OURS, kernel, ours, peers, tunnel};
use std::path::{Path, PathBuf};

/// Bytes of a memif buffer, so that a frame lies in one piece.
const SMALL: u32 = 2048;
/// The same for jumbo frames.
const LARGE: u32 = 10_240;
/// The largest frame of a pod: IPv6 tunnels over an MTU of 9000 leave so much.
const JUMBO: usize = 8900;
const MANY_FLOWS: u16 = 10_000;
/// The rate at which latencies are compared.
const LATENCY_PPS: u64 = 1_000_000;

/// Starts one candidate.
pub type Start = Box<dyn Fn() -> anyhow::Result<Box<dyn Candidate>>>;

/// One case of the report, or several that are measured by the same runs.
#[expect(missing_debug_implementations, reason = "candidates are closures")]
pub struct Spec {
    /// Names in the report, each with what it is about.
    pub metrics: Vec<(&'static str, Metric)>,
    /// Loads, one after the other.
    pub loads: Vec<Load>,
    /// Candidates by name, ours first.
    pub starts: Vec<(&'static str, Start)>,
}

impl Spec {
    fn new(name: &'static str, metric: Metric, loads: Vec<Load>) -> Self {
        Self { metrics: vec![(name, metric)], loads, starts: vec![] }
    }

    fn with<C: Candidate + 'static>(
        mut self,
        name: &'static str,
        start: impl Fn() -> anyhow::Result<C> + 'static,
    ) -> Self {
        self.starts.push((name, Box::new(move || Ok(Box::new(start()?)))));
        self
    }
}

/// Where logs go, and the peers' memory arguments.
#[derive(Debug, Clone)]
pub struct Place {
    /// Where logs go.
    pub logs: PathBuf,
    /// See [`peers::memory_arguments`].
    pub memory: Vec<String>,
}

impl Place {
    fn logs(&self) -> PathBuf {
        self.logs.clone()
    }

    fn testpmd(
        &self,
        mode: &'static str,
        buffer_bytes: u32,
    ) -> impl Fn() -> anyhow::Result<crate::candidate::MemifDevice> + 'static {
        let Self { logs, memory } = self.clone();
        move || peers::testpmd(mode, buffer_bytes, &memory, &logs)
    }

    fn ovs(
        &self,
        buffer_bytes: u32,
    ) -> impl Fn() -> anyhow::Result<crate::candidate::MemifDevice> + 'static {
        let Self { logs, memory } = self.clone();
        move || peers::ovs(buffer_bytes, &memory, &logs)
    }
}

/// A start of ours, which needs only a place for its logs.
fn here<C>(
    place: &Place,
    start: impl Fn(&Path) -> anyhow::Result<C> + 'static,
) -> impl Fn() -> anyhow::Result<C> + 'static {
    let logs = place.logs();
    move || start(&logs)
}

/// All cases; `quick` ones have fewer loads.
#[must_use]
pub fn all(place: &Place, quick: bool) -> Vec<Spec> {
    let mut specs = vec![route(place, quick), jumbo(place)];
    if !quick {
        specs.extend([networks(place, false), networks(place, true)]);
    }
    specs.extend([latency(place), encap(place, quick), decap(place, quick)]);
    specs.extend([two_nodes(place, quick), tap(place)]);
    specs
}

fn route(place: &Place, quick: bool) -> Spec {
    let mut loads: Vec<Load> = [64, 512, 1500].map(Load::of).into();
    if !quick {
        let many = |size| Load { flows: MANY_FLOWS, ..Load::of(size) };
        loads.extend([64, 512, 1500].map(many));
    }
    Spec::new("memif-route-memif", Pps, loads)
        .with(OURS, here(place, |logs| ours::memif(1, SMALL, logs)))
        .with("testpmd-io", place.testpmd("io", SMALL))
        .with("testpmd-macfwd", place.testpmd("mac", SMALL))
        .with("ovs-dpdk", place.ovs(SMALL))
}

fn jumbo(place: &Place) -> Spec {
    Spec::new("memif-route-memif", Pps, vec![Load::of(JUMBO)])
        .with(OURS, here(place, |logs| ours::memif(1, LARGE, logs)))
        .with("testpmd-io", place.testpmd("io", LARGE))
        .with("testpmd-macfwd", place.testpmd("mac", LARGE))
        .with("ovs-dpdk", place.ovs(LARGE))
}

/// Only one of our labs can stand at a time, so one network and a thousand are two cases, each
/// beside testpmd: compare the two ratios.
fn networks(place: &Place, crowd: bool) -> Spec {
    let name = if crowd {
        "memif-route-memif-1000-networks-100-routes"
    } else {
        "memif-route-memif-1-network-100-routes"
    };
    Spec::new(name, Pps, vec![Load { flows: 100, ..Load::of(64) }])
        .with(OURS, here(place, move |logs| ours::networks(crowd, SMALL, logs)))
        .with("testpmd-io", place.testpmd("io", SMALL))
}

fn latency(place: &Place) -> Spec {
    let load = Load { rate_pps: Some(LATENCY_PPS), ..Load::of(64) };
    let mut spec = Spec::new("memif-route-memif-latency-1mpps-p50", P50, vec![load])
        .with(OURS, here(place, |logs| ours::memif(1, SMALL, logs)))
        .with("testpmd-io", place.testpmd("io", SMALL));
    spec.metrics.push(("memif-route-memif-latency-1mpps-p99", P99));
    spec
}

fn tunnel_loads(quick: bool) -> Vec<Load> {
    let sizes: &[usize] = if quick { &[64] } else { &[64, 512, 1400] };
    sizes.iter().map(|size| Load::of(*size)).collect()
}

fn encap(place: &Place, quick: bool) -> Spec {
    Spec::new("memif-vxlan-encap-memif", Pps, tunnel_loads(quick))
        .with(OURS, here(place, tunnel::encap))
        .with("testpmd-io", place.testpmd("io", SMALL))
}

fn decap(place: &Place, quick: bool) -> Spec {
    Spec::new("memif-vxlan-decap-memif", Pps, tunnel_loads(quick))
        .with(OURS, here(place, tunnel::decap))
        .with("testpmd-io", place.testpmd("io", SMALL))
}

fn two_nodes(place: &Place, quick: bool) -> Spec {
    Spec::new("memif-vxlan-uplink-vxlan-memif", Pps, tunnel_loads(quick))
        .with(OURS, here(place, |logs| ours::memif(2, SMALL, logs)))
        .with("kernel-vxlan-veth", kernel::vxlan)
}

fn tap(place: &Place) -> Spec {
    Spec::new("tap-tap-tcp", Bps, vec![Load::of(0)])
        .with(OURS, here(place, ours::tap))
        .with("veth-bridge", kernel::bridge)
}
