//! Bowline: real data planes and agents in the demo's namespaces, pods attached through the CNI
//! plugin.

use crate::candidate::Candidate;
use crate::{DEVICE_CPU, OURS};
use anyhow::Context;
use bowline_demo::binaries::{Binaries, Uplink};
use bowline_demo::catalog::Network;
use bowline_demo::clean;
use bowline_demo::cluster::Cluster;
use bowline_demo::pod::{self, Plan, Pod};
use std::path::Path;
use std::time::Duration;

/// A cluster with pods; all of it is removed when dropped.
#[derive(Debug)]
pub struct Lab {
    /// Pods, in the order of their plans.
    pub pods: Vec<Pod>,
    /// The nodes.
    pub cluster: Cluster,
}

impl Lab {
    /// Starts so many nodes, with their data planes on the device's core, and makes the pods.
    ///
    /// # Errors
    /// A process does not serve, or a pod is refused.
    pub fn start(
        nodes: u8,
        poll: &'static str,
        plans: &[Plan],
        logs: &Path,
    ) -> anyhow::Result<Self> {
        clean::clean()?;
        clean::claim()?;
        let binaries = Binaries::beside_this(logs)?;
        let mut cluster = Cluster::build(binaries, Uplink::Packet, nodes)?;
        for node in &mut cluster.nodes {
            (node.cpu, node.poll) = (DEVICE_CPU, poll);
        }
        cluster.start()?;
        let pods = pod::create_all(&cluster, plans)?;
        Ok(Self { pods, cluster })
    }

    /// Process ids of the data planes.
    ///
    /// # Errors
    /// One does not run.
    pub fn pids(&self) -> anyhow::Result<Vec<i32>> {
        let nodes = self.cluster.nodes.iter();
        nodes.map(|n| n.dataplane()?.pid().context("the data plane does not run")).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.pods.clear();
        for node in &mut self.cluster.nodes {
            (node.agent, node.dataplane) = (None, None);
        }
        if let Err(error) = clean::clean() {
            eprintln!("bowline-bench: {error:#}");
        }
    }
}

/// A pod of the benchmark.
#[must_use]
pub fn plan(name: &'static str, node: usize, memif_queues: u16, address: u8) -> Plan {
    Plan { name, node, network: Network::Blue, memif_queues, address }
}

/// From one memif pod through the route to another: on one node, or across two.
///
/// # Errors
/// See [`Lab::start`]; or the gateway does not answer.
pub fn memif(nodes: u8, poll: &'static str, logs: &Path) -> anyhow::Result<Candidate> {
    let last = usize::from(nodes) - 1;
    let plans = [plan("bench-a", 0, 1, 31), plan("bench-b", last, 1, 32)];
    let mut lab = Lab::start(nodes, poll, &plans, logs)?;
    let dst = lab.pods[1].address(true)?;
    let mut ends = vec![];
    for pod in &mut lab.pods {
        let station = pod.station.take().context("not a memif pod")?;
        ends.push(station.into_endpoint()?);
    }
    let (Some(rx), Some(mut tx)) = (ends.pop(), ends.pop()) else {
        anyhow::bail!("two pods were made");
    };
    let next_hop = tx.resolve(dst, Duration::from_secs(2))?.context("no MAC")?;
    let pids = lab.pids()?;
    Ok(Candidate { name: OURS.into(), pids, tx, rx, dst, next_hop, keep: Box::new(lab) })
}
