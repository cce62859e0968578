//! `SpiderMultusConfig` of spiderpool.spidernet.io/v2beta1, in upstream's shape: what a
//! NetworkAttachmentDefinition is made of. It has no status.
//!
//! Choices stay text, as in [`super::coordinator`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::coordinator::CoordinatorSpec;
use super::meta::resource;

/// Allowed in `spec.cniType`.
pub const CNI_TYPES: [&str; 8] =
    ["macvlan", "ipvlan", "vlan", "sriov", "ovs", "ib-sriov", "ipoib", "custom"];

/// Annotations on SpiderMultusConfigs.
pub mod annotation {
    /// Name of the NetworkAttachmentDefinition; the object's own name without it.
    pub const CR_NAME: &str = "multus.spidernet.io/cr-name";
    /// `cniVersion` of the configuration.
    pub const CNI_VERSION: &str = "multus.spidernet.io/cni-version";
    /// `name` of the configuration.
    pub const CONFIG_NAME: &str = "cni.spidernet.io/cniconfig-name";
    /// Pods that carry this annotation get every configuration that carries it (RDMA).
    pub const RDMA_INJECT: &str = "cni.spidernet.io/rdma-resource-inject";
    /// Pods that carry this annotation get every configuration that carries it.
    pub const NETWORK_INJECT: &str = "cni.spidernet.io/network-resource-inject";
}

resource! {
    /// What a NetworkAttachmentDefinition is made of. Namespaced.
    SpiderMultusConfig, MultusConfigSpec, super::core::Empty, "spiderpool.spidernet.io/v2beta1", "SpiderMultusConfig", "spidermultusconfigs", namespaced: true
}

/// One block, that of `cniType`, and what surrounds it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MultusConfigSpec {
    /// `macvlan`, `ipvlan`, `vlan`, `sriov`, `ovs`, `ib-sriov`, `ipoib` or `custom`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = CNI_TYPES, "default" = "custom"))]
    pub cni_type: Option<String>,
    /// `cniType: macvlan`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub macvlan: Option<MasterConfig>,
    /// `cniType: ipvlan`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipvlan: Option<MasterConfig>,
    /// `cniType: vlan`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vlan: Option<VlanConfig>,
    /// `cniType: sriov`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sriov: Option<SriovConfig>,
    /// `cniType: ovs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ovs: Option<OvsConfig>,
    /// `cniType: ib-sriov`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ibsriov: Option<IbSriovConfig>,
    /// `cniType: ipoib`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipoib: Option<IpoibConfig>,
    /// Whether the coordinator follows in the chain.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = true))]
    pub enable_coordinator: Option<bool>,
    /// No addresses from Spiderpool's pools.
    #[serde(rename = "disableIPAM", skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = false))]
    pub disable_ipam: Option<bool>,
    /// Overrides of the SpiderCoordinator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coordinator: Option<CoordinatorSpec>,
    /// Further plugins of the chain, each a CNI configuration as JSON.
    #[serde(rename = "chainCNIJsonData", skip_serializing_if = "Vec::is_empty")]
    pub chain_cni_json_data: Vec<String>,
    /// `cniType: custom`: a CNI configuration as JSON, or empty.
    #[serde(rename = "customCNI", skip_serializing_if = "Option::is_none")]
    pub custom_cni: Option<String>,
}

/// Pools that a configuration names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ConfigPools {
    /// IPv4 pools.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ipv4: Vec<String>,
    /// IPv6 pools.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ipv6: Vec<String>,
    /// Only pools whose subnet the node's physical device has an address in (SR-IOV).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = false))]
    pub match_master_subnet: Option<bool>,
}

/// A bond to be made of several masters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["name", "mode"]))]
pub struct BondConfig {
    /// The bond's name.
    pub name: String,
    /// The kernel's bonding mode.
    #[schemars(range(min = 0, max = 6), extend("format" = "int32"))]
    pub mode: i64,
    /// `key=value;key=value`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub options: Option<String>,
}

/// macvlan and ipvlan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["master"]))]
pub struct MasterConfig {
    /// Interfaces of the node; two and more need `bond`.
    pub master: Vec<String>,
    /// 0 = the kernel's choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0), extend("default" = 0, "format" = "int32"))]
    pub mtu: Option<i64>,
    /// A VLAN device on the master is made and used.
    #[serde(rename = "vlanID", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 4094), extend("format" = "int32"))]
    pub vlan_id: Option<i64>,
    /// Made of the masters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bond: Option<BondConfig>,
    /// A resource that pods with the annotation are given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rdma_resource_name: Option<String>,
    /// Pools that this configuration names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ippools: Option<ConfigPools>,
}

/// A VLAN device given to the pod itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["master"]))]
pub struct VlanConfig {
    /// Interfaces of the node; two and more need `bond`.
    pub master: Vec<String>,
    /// `manual`: `vlanID`; `auto`: a provider chooses.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["manual", "auto"], "default" = "manual"))]
    pub vlan_mode: Option<String>,
    /// The VLAN.
    #[serde(rename = "vlanID", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 4094), extend("format" = "int32"))]
    pub vlan_id: Option<i64>,
    /// 0 = the kernel's choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0), extend("default" = 0, "format" = "int32"))]
    pub mtu: Option<i64>,
    /// Made of the masters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bond: Option<BondConfig>,
    /// A resource that pods with the annotation are given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rdma_resource_name: Option<String>,
    /// Pools that this configuration names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ippools: Option<ConfigPools>,
}

/// A virtual function of a NIC.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SriovConfig {
    /// The device plugin's resource.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_name: Option<String>,
    /// The VLAN that the NIC tags with.
    #[serde(rename = "vlanID", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 4094), extend("format" = "int32"))]
    pub vlan_id: Option<i64>,
    /// 0 = the kernel's choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0), extend("default" = 0, "format" = "int32"))]
    pub mtu: Option<i64>,
    /// Guaranteed rate; 0 = none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub min_tx_rate_mbps: Option<i64>,
    /// Highest rate; 0 = any.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub max_tx_rate_mbps: Option<i64>,
    /// Whether the function's RDMA device moves into the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = false))]
    pub rdma_isolation: Option<bool>,
    /// Pools that this configuration names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ippools: Option<ConfigPools>,
}

/// A virtual function of an InfiniBand adapter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct IbSriovConfig {
    /// The device plugin's resource.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_name: Option<String>,
    /// The partition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pkey: Option<String>,
    /// `auto`, `enable` or `disable`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["auto", "enable", "disable"], "default" = "enable"))]
    pub link_state: Option<String>,
    /// Whether the function's RDMA device moves into the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = true))]
    pub rdma_isolation: Option<bool>,
    /// Whether ib-kubernetes manages the function's GUID.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = false))]
    pub enable_ib_kubernetes: Option<bool>,
    /// Pools that this configuration names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ippools: Option<ConfigPools>,
}

/// IP over InfiniBand.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct IpoibConfig {
    /// Interface of the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub master: Option<String>,
    /// Pools that this configuration names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ippools: Option<ConfigPools>,
}

/// A port of an Open vSwitch bridge.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["bridge"]))]
pub struct OvsConfig {
    /// The bridge.
    pub bridge: String,
    /// An access port's VLAN.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "int32"))]
    pub vlan: Option<i64>,
    /// A trunk port's VLANs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub trunk: Vec<Trunk>,
    /// PCI address of a virtual function.
    #[serde(rename = "deviceID", skip_serializing_if = "Option::is_none")]
    pub device_id: Option<String>,
    /// Pools that this configuration names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ippools: Option<ConfigPools>,
}

/// VLANs of a trunk port: one, or a range.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Trunk {
    /// First of a range.
    #[serde(rename = "minID", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 4094))]
    pub min_id: Option<i64>,
    /// Last of a range.
    #[serde(rename = "maxID", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 4094))]
    pub max_id: Option<i64>,
    /// One VLAN.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 4094))]
    pub id: Option<i64>,
}
