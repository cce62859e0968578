//! Bowline: real data planes and agents in the demo's namespaces, pods attached through the CNI
//! plugin.

use crate::candidate::{MemifDevice, TcpDevice};
use crate::dataplane::Dataplane;
use crate::{DEVICE_CPU, OURS};
use anyhow::Context;
use bowline_demo::binaries::{Binaries, Uplink};
use bowline_demo::catalog::Network;
use bowline_demo::clean;
use bowline_demo::cluster::Cluster;
use bowline_demo::pod::{self, Plan, Pod};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::rc::Rc;
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
    /// Starts as many nodes as the pods need, with their data planes on the device's core, and makes
    /// the pods.
    ///
    /// # Errors
    /// A process does not serve, or a pod is refused.
    pub fn start(plans: &[Plan], uplink: Uplink, logs: &Path) -> anyhow::Result<Self> {
        let nodes = if plans.iter().any(|p| p.node > 0) { 2 } else { 1 };
        // Beside another data plane, or kernels that the scheduler puts there, a worker does not have
        // its core to itself, and waits as it does unless it is told to spin.
        let shared = nodes > 1 || plans.iter().any(|p| p.memif_queues == 0);
        let poll = if shared { "adaptive" } else { "busy" };
        clean::clean()?;
        clean::claim()?;
        let binaries = Binaries::beside_this(logs)?;
        let mut cluster = Cluster::build(binaries, uplink, nodes)?;
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
    Plan { name, node, network: Network::Blue, memif_queues, buffer_bytes: 2048, address }
}

/// From one memif pod through the route to another: on one node, or across two with a memif as wire.
///
/// # Errors
/// See [`Lab::start`]; or the gateway does not answer.
pub fn memif(nodes: u8, buffer_bytes: u32, logs: &Path) -> anyhow::Result<MemifDevice> {
    between_pods(nodes, buffer_bytes, logs).map(|(device, _)| device)
}

/// Networks beside the one with traffic, in the crowded case.
const CROWD: u32 = 999;
/// Routes of each network.
const ROUTES: u16 = 100;

/// From one memif pod by one of a hundred routes to another, with no other network on the node or a
/// crowd of them, with the same addresses.
///
/// # Errors
/// See [`Lab::start`]; or the data plane refuses a network.
pub fn networks(crowd: bool, buffer_bytes: u32, logs: &Path) -> anyhow::Result<MemifDevice> {
    let (mut device, api) = between_pods(1, buffer_bytes, logs)?;
    let first = Ipv4Addr::new(10, 0, 4, 0);
    api.route_to_pod("blue", "bench-b", first, u32::from(ROUTES))?;
    (device.dst, device.dst_count) = (IpAddr::V4(first), ROUTES);
    if crowd {
        api.crowd(CROWD, u32::from(ROUTES))?;
    }
    Ok(device)
}

fn between_pods(
    nodes: u8,
    buffer_bytes: u32,
    logs: &Path,
) -> anyhow::Result<(MemifDevice, Rc<Dataplane>)> {
    let last = usize::from(nodes) - 1;
    let mut plans = [plan("bench-a", 0, 1, 31), plan("bench-b", last, 1, 32)];
    for plan in &mut plans {
        plan.buffer_bytes = buffer_bytes;
    }
    let uplink = if nodes == 1 { Uplink::Packet } else { Uplink::Memif };
    let mut lab = Lab::start(&plans, uplink, logs)?;
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
    let api = Rc::new(Dataplane::connect(&lab.cluster.nodes[0].dataplane_socket())?);
    let asked = Rc::clone(&api);
    let device = MemifDevice {
        name: OURS.into(),
        pids,
        tx,
        rx,
        dst,
        dst_count: 1,
        next_hop,
        outer: Box::new(|_| vec![]),
        ask_spent: Box::new(move || asked.spent()),
        keep: Box::new(lab),
    };
    Ok((device, api))
}

/// From one tap pod to another on the same node.
///
/// # Errors
/// See [`Lab::start`].
pub fn tap(logs: &Path) -> anyhow::Result<TcpDevice> {
    let plans = [plan("bench-c", 0, 0, 33), plan("bench-d", 0, 0, 34)];
    let mut lab = Lab::start(&plans, Uplink::Packet, logs)?;
    let dst = lab.pods[1].address(true)?;
    let pids = lab.pids()?;
    let (from, to) = (lab.pods[0].netns.clone(), lab.pods[1].netns.clone());
    lab.pods.clear();
    Ok(TcpDevice { name: OURS.into(), pids, from, to, dst, keep: Box::new(lab) })
}
