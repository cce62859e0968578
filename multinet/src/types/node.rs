//! `NodeState` of bowline.dev/v1alpha1: what other nodes must know of a node. Only that node's agent
//! writes it. Its name is the node's name.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::mac::Mac;
use super::meta::{Condition, resource};

resource! {
    /// What other nodes must know of a node. Cluster-scoped, named after the node.
    NodeState, NodeStateSpec, NodeStateStatus, "bowline.dev/v1alpha1", "NodeState", "nodestates", namespaced: false
}

impl NodeState {
    /// The node's leg into a physical network ("" = the main one).
    #[must_use]
    pub fn uplink(&self, physical_network: &str) -> Option<&NodeUplink> {
        self.spec.uplinks.iter().find(|u| u.physical_network == physical_network)
    }

    /// Every tunnel end of the node.
    pub fn vteps(&self) -> impl Iterator<Item = IpAddr> {
        self.spec.uplinks.iter().flat_map(NodeUplink::vteps)
    }
}

/// What the node's agent says of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeStateSpec {
    /// Tunnel ends and MTU, one entry per physical network.
    pub uplinks: Vec<NodeUplink>,
    /// Destination of the inner Ethernet header of packets tunnelled to this node.
    #[serde(rename = "routerMAC")]
    #[schemars(with = "String", regex(pattern = r"^([0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}$"))]
    pub router_mac: Mac,
    /// The node's own addresses in `default`, on `bowline0`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>")]
    pub node_addresses: Vec<IpAddr>,
    /// Networks in use on the node.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<String>,
    /// Versions of the processes.
    pub versions: Versions,
    /// What the node's data plane can do, e.g. `vxlan`, `memif`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
}

/// A node's leg into a physical network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeUplink {
    /// Empty = the main one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub physical_network: String,
    /// The interface's name on the node, for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The IPv4 tunnel end.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub ipv4: Option<Ipv4Addr>,
    /// The IPv6 tunnel end.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub ipv6: Option<Ipv6Addr>,
    /// MTU of the uplink.
    pub mtu: u32,
}

impl NodeUplink {
    /// Its tunnel ends, IPv4 first.
    pub fn vteps(&self) -> impl Iterator<Item = IpAddr> + use<> {
        self.ipv4.map(IpAddr::V4).into_iter().chain(self.ipv6.map(IpAddr::V6))
    }
}

/// Versions of the processes on a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Versions {
    /// The agent's.
    pub agent: String,
    /// The data plane's.
    pub dataplane: String,
}

/// What became of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct NodeStateStatus {
    /// `Ready` and others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}
