//! The network configuration that the runtime writes to the plugin's stdin.
//!
//! Fields that Bowline does not know are carried in `other`: an IPAM plugin is called with its
//! caller's whole configuration, and the agent may learn fields before the binary does.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The configuration of one call.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NetConf {
    /// Version of the result to print.
    pub cni_version: String,
    /// Name of the network (of the configuration list), unique on the node.
    pub name: String,
    /// The plugin's type; for an IPAM call the caller's.
    #[serde(rename = "type")]
    pub kind: String,
    /// The agent's socket; empty = [`crate::rpc::DEFAULT_SOCKET`].
    #[serde(skip_serializing_if = "String::is_empty")]
    pub agent_socket: String,
    /// Where tombstones are kept; empty = [`crate::rpc::DEFAULT_STATE_DIR`].
    #[serde(skip_serializing_if = "String::is_empty")]
    pub state_dir: String,
    /// The Network of this call's interface; empty = `default`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub network: String,
    /// What this call's interface is made of, where it differs from the Network's defaults.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<InterfaceOptions>,
    /// IPAM-only mode, or pools for this call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipam: Option<Ipam>,
    /// What the runtime or Multus filled in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime_config: Option<RuntimeConfig>,
    /// Which of `runtimeConfig` the runtime may fill in.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub capabilities: BTreeMap<String, bool>,
    /// The result of the plugin before this one, as it was printed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prev_result: Option<serde_json::Value>,
    /// GC: what is still there; everything else of this network is to go.
    #[serde(rename = "cni.dev/valid-attachments", skip_serializing_if = "Option::is_none")]
    pub valid_attachments: Option<Vec<ValidAttachment>>,
    /// Everything else.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

/// What an interface is made of. Absent fields: the Network's defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct InterfaceOptions {
    /// `tap`, `memif` or `vhost-user`.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// memif: `ethernet` or `ip`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Queues that the pod receives from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rx_queues: Option<u32>,
    /// Queues that the pod sends to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_queues: Option<u32>,
    /// Slots of a ring.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ring_size: Option<u32>,
    /// memif: `polling` or `interrupt`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rx_mode: Option<String>,
}

/// The `ipam` section.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ipam {
    /// `bowline-ipam`, or `spiderpool` in configurations written for it.
    #[serde(rename = "type")]
    pub kind: String,
    /// Pools of this network configuration.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub default_ipv4_ippool: Vec<String>,
    /// Pools of this network configuration.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub default_ipv6_ippool: Vec<String>,
    /// No default route.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clean_gateway: Option<bool>,
    /// SR-IOV: only pools whose subnet the port has an address in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub match_master_subnet: Option<bool>,
    /// Everything else.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

/// The `runtimeConfig` section.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RuntimeConfig {
    /// Capability `mac`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Capability `ips`: addresses, with or without prefix length.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<String>,
    /// Capability `portMappings`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
    /// Capability `CNIDeviceInfoFile`: where Multus wants device information written.
    #[serde(rename = "CNIDeviceInfoFile", skip_serializing_if = "Option::is_none")]
    pub device_info_file: Option<String>,
    /// Everything else.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

/// A host port. The convention's keys begin in lower case; containerd 1.6 writes them in upper case,
/// which readers in Go do not notice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PortMapping {
    /// Port on the node.
    #[serde(alias = "HostPort")]
    pub host_port: u16,
    /// Port in the pod.
    #[serde(alias = "ContainerPort")]
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`.
    #[serde(alias = "Protocol")]
    pub protocol: String,
    /// The node's address; absent or empty = all.
    #[serde(rename = "hostIP", alias = "HostIP", skip_serializing_if = "String::is_empty")]
    pub host_ip: String,
}

impl PortMapping {
    /// The node's address, if one is named and valid.
    #[must_use]
    pub fn host_address(&self) -> Option<IpAddr> {
        self.host_ip.parse().ok()
    }
}

/// An attachment that the runtime still knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ValidAttachment {
    /// The sandbox.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// The interface of the call.
    pub ifname: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_ports_are_read_as_the_convention_and_as_containerd_write_them() {
        let convention =
            r#"{"hostPort": 80, "containerPort": 8080, "protocol": "tcp", "hostIP": "::1"}"#;
        let containerd =
            r#"{"HostPort": 80, "ContainerPort": 8080, "Protocol": "tcp", "HostIP": "::1"}"#;
        let read = |text: &str| serde_json::from_str::<PortMapping>(text).unwrap();
        assert_eq!(read(convention), read(containerd));
        assert_eq!((read(containerd).host_port, read(containerd).host_ip.as_str()), (80, "::1"));
    }
}
