//! Nodes on a fabric: a bridge in a namespace of its own, and a veth to each node.

use crate::binaries::{Binaries, Uplink};
use crate::lab::netns::Netns;
use crate::lab::process::{Supervised, wait_for};
use crate::lab::shell;
use crate::{PREFIX, RUN_DIR, catalog};
use anyhow::Context;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a process may take until it serves.
const START_PATIENCE: Duration = Duration::from_secs(20);

/// A node.
#[derive(Debug)]
pub struct Node {
    /// `node1`.
    pub name: String,
    /// Its network.
    pub netns: Netns,
    /// Its interface towards the fabric.
    pub uplink: String,
    /// Its addresses there.
    pub ipv4: IpAddr,
    /// Its addresses there.
    pub ipv6: IpAddr,
    /// The core of its data plane's worker.
    pub cpu: usize,
    /// How that waits: `adaptive` or `busy`.
    pub poll: &'static str,
    /// Sockets and journals.
    pub dir: PathBuf,
    /// The data plane, while it shall run.
    pub dataplane: Option<Supervised>,
    /// The agent, while it shall run.
    pub agent: Option<Supervised>,
}

impl Node {
    fn new(number: u8) -> anyhow::Result<Self> {
        let name = format!("node{number}");
        Ok(Self {
            netns: Netns::named(&format!("{PREFIX}{name}")),
            uplink: format!("bwd{number}"),
            // The nodes get the machine's cores in turn.
            cpu: usize::from(number - 1) % std::thread::available_parallelism()?.get(),
            poll: "adaptive",
            ipv4: format!("192.0.2.{number}").parse()?,
            ipv6: format!("2001:db8::{number}").parse()?,
            dir: Path::new(RUN_DIR).join(&name),
            dataplane: None,
            agent: None,
            name,
        })
    }

    /// The data plane's API.
    #[must_use]
    pub fn dataplane_socket(&self) -> PathBuf {
        self.dir.join("dataplane.sock")
    }

    /// Where the CNI plugin finds the agent.
    #[must_use]
    pub fn cni_socket(&self) -> PathBuf {
        self.dir.join("cni.sock")
    }

    /// The data plane.
    ///
    /// # Errors
    /// It was stopped.
    pub fn dataplane(&self) -> anyhow::Result<&Supervised> {
        self.dataplane
            .as_ref()
            .with_context(|| format!("{}: the data plane was stopped", self.name))
    }
}

/// The demo's cluster. Dropping it leaves namespaces to [`crate::clean`].
#[derive(Debug)]
pub struct Cluster {
    /// The nodes.
    pub nodes: Vec<Node>,
    /// How they reach each other.
    pub uplink: Uplink,
    /// The shared catalog.
    pub catalog: PathBuf,
    /// The programs.
    pub binaries: Binaries,
}

impl Cluster {
    /// Makes namespaces, the fabric, the nodes' addresses and the catalog; starts nothing.
    ///
    /// # Errors
    /// A command fails, for instance because this is not root.
    pub fn build(binaries: Binaries, uplink: Uplink, nodes: u8) -> anyhow::Result<Self> {
        let catalog = Path::new(RUN_DIR).join("catalog");
        catalog::write(&catalog)?;
        let fabric = Netns::create(&format!("{PREFIX}fabric"))?;
        shell::run_all(&format!(
            "ip -n {0} link add br0 type bridge mcast_snooping 0
             ip -n {0} link set br0 mtu {1} up",
            fabric.name(),
            uplink.mtu()
        ))?;
        let nodes = (1..=nodes).map(|number| {
            let node = Node::new(number)?;
            std::fs::create_dir_all(&node.dir)?;
            connect(&node, &fabric, uplink)?;
            Ok(node)
        });
        let nodes = nodes.collect::<anyhow::Result<_>>()?;
        Ok(Self { nodes, uplink, catalog, binaries })
    }

    /// Starts data planes and agents, and waits until each node knows the other.
    ///
    /// # Errors
    /// A process does not serve in time.
    pub fn start(&mut self) -> anyhow::Result<()> {
        for node in &mut self.nodes {
            let program = self.binaries.dataplane(node, self.uplink);
            node.dataplane = Some(Supervised::start(program)?);
            let program = self.binaries.agent(node, &self.catalog);
            node.agent = Some(Supervised::start(program)?);
        }
        for node in self.nodes.iter().filter(|_| self.uplink == Uplink::Memif) {
            give_addresses(node)?;
        }
        for node in &self.nodes {
            let state = self.catalog.join("NodeState").join(format!("{}.yaml", node.name));
            let ready = || {
                for process in [&node.dataplane, &node.agent].into_iter().flatten() {
                    process.check()?;
                }
                // The others' routes to this node need its tunnel ends.
                let state = std::fs::read_to_string(&state).unwrap_or_default();
                let known = [node.ipv4, node.ipv6].iter().all(|ip| state.contains(&ip.to_string()));
                Ok(node.cni_socket().exists() && known)
            };
            wait_for(&format!("{} ready", node.name), START_PATIENCE, ready)?;
        }
        Ok(())
    }
}

/// A device that no kernel driver had: the node's addresses go to the tap that the data plane makes.
fn give_addresses(node: &Node) -> anyhow::Result<()> {
    let (ns, dev) = (node.netns.name(), &node.uplink);
    wait_for(&format!("{dev} in {}", node.name), START_PATIENCE, || {
        if let Some(process) = &node.dataplane {
            process.check()?;
        }
        Ok(shell::run(&format!("ip -n {ns} link show {dev}")).is_ok())
    })?;
    shell::run_all(&format!(
        "ip -n {ns} addr add {}/24 dev {dev}
         ip -n {ns} addr add {}/64 dev {dev} nodad
         ip -n {ns} link set {dev} up",
        node.ipv4, node.ipv6
    ))
}

/// A veth from the node to the fabric, with the node's addresses.
fn connect(node: &Node, fabric: &Netns, uplink: Uplink) -> anyhow::Result<()> {
    let netns = Netns::create(node.netns.name())?;
    if uplink == Uplink::Memif {
        return Ok(());
    }
    let (ns, fab) = (netns.name(), fabric.name());
    let (dev, port, mtu) = (&node.uplink, format!("to-{}", node.name), uplink.mtu());
    shell::run_all(&format!(
        "ip -n {fab} link add {port} type veth peer name {dev} netns {ns}
         ip -n {fab} link set {port} mtu {mtu} master br0 up
         ip -n {ns} link set {dev} mtu {mtu} up
         ip -n {ns} addr add {}/24 dev {dev}
         ip -n {ns} addr add {}/64 dev {dev} nodad",
        node.ipv4, node.ipv6
    ))?;
    if !uplink.understands_offloads() {
        shell::run_all(&format!(
            "ip netns exec {ns} ethtool -K {dev} tx off tso off gso off gro off
             ip netns exec {fab} ethtool -K {port} tx off tso off gso off gro off"
        ))?;
    }
    Ok(())
}
