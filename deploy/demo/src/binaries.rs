//! The programs' command lines: nothing else of the demo knows them.

use crate::cluster::Node;
use crate::lab::process::Program;
use anyhow::{Context, ensure};
use std::path::{Path, PathBuf};

/// Inner Ethernet, VXLAN, UDP and IPv6 (RFC 7348 §5).
const TUNNEL_BYTES: u32 = 14 + 8 + 8 + 40;

/// How a node's uplink is driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Uplink {
    /// DPDK's driver over packet sockets.
    #[value(name = "net_af_packet")]
    AfPacket,
    /// DPDK's driver over AF_XDP sockets.
    #[value(name = "net_af_xdp")]
    AfXdp,
    /// Bowline's own port over packet sockets.
    #[value(name = "packet")]
    Packet,
    /// DPDK's memif between the two data planes: a wire that costs nothing, for benchmarks.
    #[value(name = "memif", hide = true)]
    Memif,
}

impl Uplink {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::AfPacket => "net_af_packet",
            Self::AfXdp => "net_af_xdp",
            Self::Packet => "packet",
            Self::Memif => "memif",
        }
    }

    /// What the pods' Networks have: as usual in data centres, and jumbo frames where the uplink
    /// carries them.
    #[must_use]
    pub fn pod_mtu(self) -> u32 {
        if self == Self::Packet { 9000 } else { 1500 }
    }

    /// The fabric's: the pods' packets, and a tunnel's headers over IPv6.
    #[must_use]
    pub fn mtu(self) -> u32 {
        self.pod_mtu() + TUNNEL_BYTES
    }

    /// DPDK's drivers see frames as the far end's stack left them: offloads must be off there.
    #[must_use]
    pub fn understands_offloads(self) -> bool {
        self == Self::Packet
    }
}

/// Where the programs are.
#[derive(Debug, Clone)]
pub struct Binaries {
    folder: PathBuf,
    logs: PathBuf,
}

impl Binaries {
    /// Those beside this program.
    ///
    /// # Errors
    /// One is missing.
    pub fn beside_this(logs: &Path) -> anyhow::Result<Self> {
        let own = std::env::current_exe().context("finding this program's folder")?;
        let folder = own.parent().context("this program has no folder")?.to_owned();
        let binaries = Self { folder, logs: logs.to_owned() };
        for name in ["bowline-dataplane", "bowline-agent", "bowline-cni", "bowline"] {
            let path = binaries.path(name);
            ensure!(path.exists(), "{} is missing: run 'make build'", path.display());
        }
        Ok(binaries)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The CNI plugin.
    #[must_use]
    pub fn cni(&self) -> PathBuf {
        self.path("bowline-cni")
    }

    /// The command-line tool.
    #[must_use]
    pub fn cli(&self) -> PathBuf {
        self.path("bowline")
    }

    /// The traffic generator.
    #[must_use]
    pub fn pktgen(&self) -> PathBuf {
        self.path("bowline-pktgen")
    }

    /// A node's data plane.
    #[must_use]
    pub fn dataplane(&self, node: &Node, uplink: Uplink) -> Program {
        let driver = match uplink {
            Uplink::Memif => memif_driver(node),
            other => other.name().to_owned(),
        };
        let pairs = [
            ("--uplink", format!("{}={driver}", node.uplink)),
            ("--socket", path_text(&node.dataplane_socket())),
            ("--state-dir", path_text(&node.dir.join("dataplane"))),
            ("--metrics", "127.0.0.1:9471".into()),
            ("--poll", node.poll.into()),
            ("--cpus", node.cpu.to_string()),
        ];
        let args = pairs.into_iter().flat_map(|(option, value)| [option.into(), value]);
        self.program(node, "dataplane", "bowline-dataplane", args.collect())
    }

    /// A node's agent.
    #[must_use]
    pub fn agent(&self, node: &Node, catalog: &Path) -> Program {
        let pairs = [
            ("--node", node.name.clone()),
            ("--catalog", path_text(catalog)),
            ("--dataplane", path_text(&node.dataplane_socket())),
            ("--cni-socket", path_text(&node.cni_socket())),
            ("--state-dir", path_text(&node.dir.join("agent"))),
            ("--cni-state-dir", path_text(&node.dir.join("cni"))),
        ];
        let args = pairs.into_iter().flat_map(|(option, value)| [option.into(), value]);
        self.program(node, "agent", "bowline-agent", args.collect())
    }

    fn program(&self, node: &Node, what: &str, file: &str, args: Vec<String>) -> Program {
        Program {
            name: format!("{} {what}", node.name),
            path: self.path(file),
            args,
            env: vec![("BOWLINE_LOG".into(), "info".into())],
            netns: node.netns.clone(),
            log: self.logs.join(format!("{}-{what}.log", node.name)),
        }
    }
}

/// The first node serves, the second connects. Both data planes share a core: the ring holds what one
/// sends while the other waits for its turn.
fn memif_driver(node: &Node) -> String {
    let role = if node.name == "node1" { "server" } else { "client" };
    let socket = Path::new(crate::RUN_DIR).join("wire.sock");
    let socket = socket.display();
    format!("memif,role={role},socket={socket},rsize=12")
}

fn path_text(path: &Path) -> String {
    path.display().to_string()
}
