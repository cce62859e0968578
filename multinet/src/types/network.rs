//! `Network` of bowline.dev/v1alpha1: one isolated realm.

use std::net::IpAddr;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::mac::Mac;
use super::meta::{Condition, LabelSelector, Labels, resource};

/// The Network that `eth0` belongs to where Bowline is the cluster's CNI.
pub const DEFAULT_NETWORK: &str = "default";

resource! {
    /// An isolated realm: its own VRF, VNI and addresses. Cluster-scoped.
    Network, NetworkSpec, NetworkStatus, "bowline.dev/v1alpha1", "Network", "networks", namespaced: false
}

impl Network {
    /// The VNI in force: the one asked for, else the one that the controller allocated.
    #[must_use]
    pub fn vni(&self) -> Option<u32> {
        self.spec.vni.or_else(|| self.status.as_ref().and_then(|s| s.vni))
    }

    /// Whether pods of a namespace with these labels may attach. Without a selector nobody may,
    /// except that `default` is open to all.
    #[must_use]
    pub fn admits(&self, namespace_labels: &Labels) -> bool {
        match &self.spec.namespace_selector {
            Some(selector) => selector.matches(namespace_labels),
            None => self.metadata.name == DEFAULT_NETWORK,
        }
    }
}

/// What a Network shall be.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "!has(oldSelf.vni) || !has(self.vni) || self.vni == oldSelf.vni",
     "message": "vni cannot be changed; make a new Network"},
    {"rule": "self.encapsulation == 'VXLAN' || !has(self.vni)",
     "message": "vni belongs to encapsulation VXLAN only; remove it or set encapsulation: VXLAN"},
    {"rule": "(self.encapsulation == 'VLAN') == has(self.vlanID)",
     "message": "vlanID belongs to encapsulation VLAN, which needs it: 0 (untagged) to 4094"},
    {"rule": "self.encapsulation == 'VXLAN' || !has(self.peers) || size(self.peers) == 0",
     "message": "peers belong to encapsulation VXLAN only; remove them"}
]))]
pub struct NetworkSpec {
    /// How packets travel between nodes.
    pub encapsulation: Encapsulation,
    /// `L3` is the only mode; reserved so that an L2 mode can come.
    pub mode: Mode,
    /// VXLAN: 1..16777215, unique, immutable; allocated when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16_777_215))]
    pub vni: Option<u32>,
    /// VLAN only; 0 = untagged.
    #[serde(rename = "vlanID", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 4094))]
    pub vlan_id: Option<u16>,
    /// Which uplink carries it; empty = the main one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub physical_network: String,
    /// Spiderpool pools, tried in this order.
    pub ip_pools: PoolLists,
    /// MTU of pods' interfaces; 0 = the smallest that every node carries.
    #[schemars(range(max = 9216))]
    pub mtu: u32,
    /// Who may attach; absent: nobody (for `default`: everybody).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// Foreign tunnel ends.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<Peer>,
    /// Defaults and caps of pods' interfaces.
    pub interface: InterfaceDefaults,
}

/// How packets of a Network travel between nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Encapsulation {
    /// RFC 7348 between the nodes' tunnel ends.
    #[default]
    #[serde(rename = "VXLAN")]
    Vxlan,
    /// An IEEE 802.1Q VLAN of the data centre.
    #[serde(rename = "VLAN")]
    Vlan,
    /// The untagged network of the data centre.
    None,
}

/// What a Network forwards by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Mode {
    /// Routes between addresses.
    #[default]
    L3,
}

/// Names of pools by family.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct PoolLists {
    /// IPv4 pools.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ipv4: Vec<String>,
    /// IPv6 pools.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ipv6: Vec<String>,
}

impl PoolLists {
    /// Whether no pool is named.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ipv4.is_empty() && self.ipv6.is_empty()
    }

    /// All names, IPv4 first.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.ipv4.iter().chain(&self.ipv6).map(String::as_str)
    }
}

/// A foreign tunnel end: a Linux VXLAN device or a hardware VTEP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Peer {
    /// Its address on the underlay.
    #[schemars(with = "String")]
    pub vtep: IpAddr,
    /// Destination of the inner Ethernet header.
    #[schemars(with = "String", regex(pattern = r"^([0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}$"))]
    pub mac: Mac,
    /// What is behind it.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub prefixes: Vec<IpNet>,
}

/// What a pod's interface is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum InterfaceType {
    /// A kernel device in the pod's network namespace.
    #[default]
    Tap,
    /// Shared memory, Bowline serving.
    Memif,
    /// Shared memory of a virtual machine.
    VhostUser,
}

impl InterfaceType {
    /// As it is written in manifests.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            InterfaceType::Tap => "tap",
            InterfaceType::Memif => "memif",
            InterfaceType::VhostUser => "vhost-user",
        }
    }
}

/// Defaults and caps of the interfaces that attach to a Network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "self.rxQueues <= self.maxQueues && self.txQueues <= self.maxQueues",
     "message": "rxQueues and txQueues must be 1 to maxQueues"},
    {"rule": "self.ringSize <= self.maxRingSize", "message": "ringSize must be at most maxRingSize"}
]))]
pub struct InterfaceDefaults {
    /// The type of interfaces whose name does not say otherwise.
    #[serde(rename = "type")]
    pub kind: InterfaceType,
    /// Queues that the pod receives from.
    #[schemars(range(min = 1, max = 128))]
    pub rx_queues: u32,
    /// Queues that the pod sends to.
    #[schemars(range(min = 1, max = 128))]
    pub tx_queues: u32,
    /// Slots of a ring, a power of two.
    #[schemars(range(min = 32, max = 16384))]
    pub ring_size: u32,
    /// Cap on `rxQueues` and `txQueues` of a pod.
    #[schemars(range(min = 1, max = 128))]
    pub max_queues: u32,
    /// Cap on `ringSize` of a pod.
    #[schemars(range(min = 32, max = 16384))]
    pub max_ring_size: u32,
    /// memif and vhost-user: refuse memory that its owner can still shrink.
    pub require_sealed_memory: bool,
}

impl Default for InterfaceDefaults {
    fn default() -> Self {
        InterfaceDefaults {
            kind: InterfaceType::Tap,
            rx_queues: 1,
            tx_queues: 1,
            ring_size: 1024,
            max_queues: 8,
            max_ring_size: 4096,
            require_sealed_memory: true,
        }
    }
}

/// What became of a Network.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkStatus {
    /// The VNI in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vni: Option<u32>,
    /// The MTU of pods' interfaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Interfaces attached.
    pub attachments: u32,
    /// Nodes that carry it.
    pub nodes: u32,
    /// `Ready` and others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}
