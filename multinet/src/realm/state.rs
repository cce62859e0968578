//! The data plane's desired state in plain structs, field by field as in the data plane's protobuf
//! API (`dataplane/api/proto/dataplane.proto`), which the agent converts to.
//!
//! Invariant of a state made by [`super::desired`]: every list is sorted and free of duplicates, so
//! that equal realms give equal states.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::types::mac::Mac;
pub use crate::types::network::Encapsulation;

/// What a node's data plane shall do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct State {
    /// Sorted by name.
    pub networks: Vec<Network>,
    /// Sorted by id.
    pub interfaces: Vec<Interface>,
    /// Tunnel ends of the other nodes of the cluster.
    pub cluster_vteps: Vec<IpAddr>,
    /// This node's own tunnel ends, at most one per family.
    pub local_vteps: Vec<IpAddr>,
    /// 0 = 4789.
    pub vxlan_port: u16,
}

/// A realm on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Network {
    /// Unique.
    pub name: String,
    /// How packets travel.
    pub encapsulation: Encapsulation,
    /// VXLAN: unique; else 0.
    pub vni: u32,
    /// VLAN: 0 = untagged.
    pub vlan_id: u16,
    /// Which uplink carries it.
    pub physical_network: String,
    /// Of the pods' interfaces.
    pub mtu: u32,
    /// Answered by the node itself.
    pub gateways: Vec<IpAddr>,
    /// The realm's own prefixes.
    pub prefixes: Vec<IpNet>,
    /// Remote attachments, peers' prefixes, statics; sorted by prefix.
    pub routes: Vec<Route>,
    /// Foreign tunnel ends that may send on this VNI.
    pub peer_vteps: Vec<IpAddr>,
}

/// A route of a realm.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Route {
    /// Destination.
    pub prefix: IpNet,
    /// Where it leads.
    pub via: Via,
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Via {
    /// Through a tunnel.
    #[serde(rename_all = "camelCase")]
    Tunnel {
        /// The remote end.
        vtep: IpAddr,
        /// Destination of the inner Ethernet header.
        inner_mac: Mac,
    },
    /// Behind a local interface, named by its id.
    Interface(String),
    /// Answered by ICMP unreachable.
    Unreachable,
}

/// A pod's interface, or the node's leg.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// Unique, stable: `<sandbox>/<name>`.
    pub id: String,
    /// The Network.
    pub network: String,
    /// Inside the pod.
    pub name: String,
    /// The pod's.
    pub mac: Mac,
    /// The interface's own.
    pub addresses: Vec<IpAddr>,
    /// Further source prefixes that it may use.
    pub allowed_prefixes: Vec<IpNet>,
    /// 0 = the network's.
    pub mtu: u32,
    /// What it is made of.
    pub port: Port,
    /// For people and metrics only.
    pub pod_namespace: String,
    /// For people and metrics only.
    pub pod_name: String,
    /// May send any source address.
    pub node_leg: bool,
}

/// What an interface is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Port {
    /// A kernel device.
    Tap {
        /// As many descriptors are offered.
        queues: u32,
    },
    /// Shared memory.
    Memif(MemifPort),
}

/// A memif interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MemifPort {
    /// Ethernet or IP frames.
    pub mode: MemifMode,
    /// As the pod sees them; caps on what the client asks.
    pub rx_queues: u32,
    /// As the pod sees them; caps on what the client asks.
    pub tx_queues: u32,
    /// Largest that is accepted, a power of two.
    pub ring_size: u32,
    /// Refuse memory that its owner can still shrink.
    pub require_sealed_memory: bool,
    /// At most 23 bytes; empty = none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secret: Vec<u8>,
    /// The memif interface id expected in INIT.
    pub id: u32,
}

/// What frames on a memif are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemifMode {
    /// Ethernet frames.
    #[default]
    Ethernet,
    /// IP packets.
    Ip,
}
