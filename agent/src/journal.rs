//! What this node has attached: one file for each CNI attachment, written before any device is made.
//!
//! The directory lies under /run: it shall not outlive the pods, and it works while the catalog's
//! disk is full. An attachment that is not `Ready` was cut off by the agent's death and is taken back
//! at the next start.

use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use cni::result::CniResult;
use multinet::realm::{self, state};
use multinet::types::block::Owner;
use multinet::types::mac::Mac;
use serde::{Deserialize, Serialize};

use crate::pod::{InterfacePlan, PodRoute};

/// What a CNI call is about: the sandbox and the interface that the runtime named.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachmentKey {
    /// The sandbox.
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
}

impl AttachmentKey {
    /// Names that can be part of a file name and of an interface id.
    pub fn is_valid(&self) -> bool {
        // The CNI specification's character set, section "Parameters".
        let good = |text: &str| {
            let mut bytes = text.bytes();
            bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
                && bytes.all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
        };
        let name = self.ifname.as_bytes();
        good(&self.container_id)
            && self.container_id.len() <= 200
            && (1..=15).contains(&name.len())
            && self.ifname != "."
            && self.ifname != ".."
            && !name.iter().any(|b| b.is_ascii_whitespace() || b"/:".contains(b) || *b == 0)
    }

    /// The id of an interface of this attachment in the data plane.
    pub fn interface_id(&self, name: &str) -> String {
        format!("{}/{name}", self.container_id)
    }
}

impl std::fmt::Display for AttachmentKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.container_id, self.ifname)
    }
}

/// How far an attachment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// An ADD is at work, or was when the agent died.
    Making,
    /// The ADD succeeded.
    Ready,
    /// A DEL is at work, or could not finish: it is tried again until it does.
    Removing,
}

/// One interface of an attachment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachedInterface {
    /// The Network.
    pub network: String,
    /// What is in the pod.
    pub plan: InterfacePlan,
    /// What the data plane makes of it.
    pub port: state::Port,
    /// The pool of each address.
    #[serde(default)]
    pub pools: Vec<String>,
    /// Families (4, 6) in which it has the pod's default route through the pool's gateway.
    #[serde(default)]
    pub default_in: Vec<u8>,
    /// Routes that annotations name; the others follow from the pools.
    #[serde(default)]
    pub named_routes: Vec<PodRoute>,
    /// What is sent from its addresses leaves by it, whatever other interfaces the pod has.
    #[serde(default)]
    pub by_source: bool,
    /// The gateways of its addresses, for the result.
    pub gateways: Vec<IpAddr>,
    /// `tap`, or what stands beside a memif; empty until it is made.
    #[serde(default)]
    pub kernel_device: String,
}

/// One CNI attachment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// Sandbox and interface.
    pub key: AttachmentKey,
    /// Name of the CNI configuration, which GC goes by.
    pub conf_name: String,
    /// Who holds the addresses.
    pub owner: Owner,
    /// Path of the pod's namespace.
    pub netns: PathBuf,
    /// And its identity: paths are reused.
    pub netns_inode: u64,
    /// How far it is.
    pub phase: Phase,
    /// The start of the data plane that has the descriptors; empty = none.
    #[serde(default)]
    pub boot_id: String,
    /// The descriptors are at hand, so that a data plane can be told. In memory: after a restart
    /// whatever is `Ready` can be opened again.
    #[serde(default, skip)]
    pub held: bool,
    /// Interfaces offered to another start than that, until all of them are.
    #[serde(default, skip)]
    pub offered: Vec<String>,
    /// Its interfaces, that of the call first.
    pub interfaces: Vec<AttachedInterface>,
    /// What was answered.
    #[serde(default)]
    pub result: Option<CniResult>,
    /// Its addresses may outlive it: a StatefulSet's pod, a virtual machine.
    #[serde(default)]
    pub sticky: bool,
    /// A virtual machine migrates to it: until the node that it comes from has given its addresses up,
    /// the realm is told none, or what is sent to the machine would go astray.
    #[serde(default)]
    pub arriving: bool,
    /// Ports of the node that lead to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_ports: Vec<HostPort>,
}

/// A port of the node that leads to a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostPort {
    /// The node's address; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
    /// Port on the node.
    pub host_port: u16,
    /// Port in the pod.
    pub container_port: u16,
    /// Whose ports.
    pub protocol: Protocol,
}

/// A protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
    /// RFC 9260.
    Sctp,
}

impl Protocol {
    /// As in packet filters, lower case.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

impl Attachment {
    /// Its interfaces as the realm sees them.
    pub fn realm(&self) -> Vec<realm::Attachment> {
        let here = |interface: &AttachedInterface| match self.arriving {
            true => Vec::new(),
            false => interface.plan.addresses.iter().map(ipnet::IpNet::addr).collect(),
        };
        let of = |interface: &AttachedInterface| realm::Attachment {
            id: self.key.interface_id(&interface.plan.name),
            network: interface.network.clone(),
            name: interface.plan.name.clone(),
            mac: Mac(interface.plan.mac),
            addresses: here(interface),
            port: interface.port.clone(),
            // The Network's: it follows when the Network's changes.
            mtu: 0,
            pod_namespace: self.pod().0.to_owned(),
            pod_name: self.pod().1.to_owned(),
            node_leg: self.is_node_leg(),
        };
        self.interfaces.iter().map(of).collect()
    }

    /// Is it the node's own interface in `default`?
    pub fn is_node_leg(&self) -> bool {
        matches!(self.owner, Owner::Node { .. })
    }

    /// Namespace and name of the pod; empty for the node's own leg.
    pub fn pod(&self) -> (&str, &str) {
        match &self.owner {
            Owner::Pod { namespace, name, .. } => (namespace, name),
            Owner::Node { .. } => ("", ""),
        }
    }

    /// The Networks of its interfaces, each once.
    pub fn networks(&self) -> Vec<String> {
        let mut networks: Vec<_> = self.interfaces.iter().map(|i| i.network.clone()).collect();
        networks.sort_unstable();
        networks.dedup();
        networks
    }

    /// Names of its interfaces.
    pub fn names(&self) -> Vec<String> {
        self.interfaces.iter().map(|i| i.plan.name.clone()).collect()
    }
}

/// The directory of attachments.
#[derive(Debug, Clone)]
pub struct Journal {
    directory: PathBuf,
    /// An empty file for each Network in which this node has claimed addresses.
    networks: PathBuf,
}

/// The note for the LAN domain, whose name is empty; no Network's name has a dot.
const LAN_NOTE: &str = "lan.domain";

impl Journal {
    /// Opens the journal below the agent's state directory.
    pub fn open(state_dir: &Path) -> io::Result<Self> {
        let (directory, networks) = (state_dir.join("attachments"), state_dir.join("networks"));
        fs::create_dir_all(&directory)?;
        fs::create_dir_all(&networks)?;
        Ok(Self { directory, networks })
    }

    /// Notes, before a claim, in which Network (empty: the LAN) it will be: an agent that dies before
    /// the attachment is written looks there for what it left.
    pub fn note_network(&self, network: &str) -> io::Result<()> {
        let name = if network.is_empty() { LAN_NOTE } else { network };
        fs::OpenOptions::new().create(true).append(true).open(self.networks.join(name)).map(drop)
    }

    /// The Networks that were noted.
    pub fn noted_networks(&self) -> io::Result<Vec<String>> {
        let name = |entry: io::Result<fs::DirEntry>| {
            let name = entry?.file_name().to_string_lossy().into_owned();
            Ok(if name == LAN_NOTE { String::new() } else { name })
        };
        fs::read_dir(&self.networks)?.map(name).collect()
    }

    /// Every attachment. A file that cannot be read is set aside under another name and reported.
    pub fn load(&self) -> io::Result<Vec<Attachment>> {
        let mut attachments = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            match path.extension().and_then(|e| e.to_str()) {
                Some("json") => {}
                Some("new") => {
                    fs::remove_file(&path)?; // cut off before it was renamed
                    continue;
                }
                _ => continue,
            }
            let text = fs::read(&path)?;
            match serde_json::from_slice(&text) {
                Ok(attachment) => attachments.push(attachment),
                Err(e) => {
                    tracing::error!("{} cannot be read ({e}); set aside", path.display());
                    fs::rename(&path, path.with_extension("bad"))?;
                }
            }
        }
        Ok(attachments)
    }

    /// Writes an attachment: wholly, or not at all.
    pub fn put(&self, attachment: &Attachment) -> io::Result<()> {
        let path = self.path(&attachment.key);
        let temporary = path.with_extension("new");
        let text = serde_json::to_vec_pretty(attachment)?;
        // No flush: the directory is in memory, and a rename is seen whole by who reads after us.
        let mut file = fs::File::create(&temporary)?;
        file.write_all(&text)?;
        fs::rename(&temporary, &path)
    }

    /// Forgets an attachment. Absent is fine.
    pub fn remove(&self, key: &AttachmentKey) -> io::Result<()> {
        match fs::remove_file(self.path(key)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    fn path(&self, key: &AttachmentKey) -> PathBuf {
        // Neither part has a colon.
        self.directory.join(format!("{}:{}.json", key.container_id, key.ifname))
    }
}
