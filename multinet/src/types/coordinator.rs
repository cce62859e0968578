//! `SpiderCoordinator` of spiderpool.spidernet.io/v2beta1, in upstream's shape: how routes of pods
//! with several interfaces are set. One object, `default`; SpiderMultusConfigs override it.
//!
//! Choices stay text, so that every object that upstream's schema admits can be read;
//! [`crate::rules::validate_coordinator`] says what is allowed.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::meta::resource;
use super::pool::PoolRoute;

/// The name of the one object.
pub const DEFAULT_COORDINATOR: &str = "default";
/// Allowed in `spec.mode`.
pub const MODES: [&str; 4] = ["auto", "underlay", "overlay", "disabled"];
/// Allowed in `spec.podCIDRType`.
pub const POD_CIDR_TYPES: [&str; 5] = ["auto", "cluster", "calico", "cilium", "none"];

resource! {
    /// How routes of pods with several interfaces are set. Cluster-scoped.
    SpiderCoordinator, CoordinatorSpec, CoordinatorStatus, "spiderpool.spidernet.io/v2beta1", "SpiderCoordinator", "spidercoordinators", namespaced: false
}

/// How routes are set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct CoordinatorSpec {
    /// `auto`, `underlay`, `overlay` or `disabled`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = MODES, "default" = "auto"))]
    pub mode: Option<String>,
    /// Where the pods' prefixes are learnt: `auto`, `cluster`, `calico`, `cilium` or `none`.
    #[serde(rename = "podCIDRType", skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = POD_CIDR_TYPES))]
    pub pod_cidr_type: Option<String>,
    /// Further prefixes and addresses that pods reach through the node.
    #[serde(rename = "hijackCIDR", skip_serializing_if = "Vec::is_empty")]
    pub hijack_cidr: Vec<String>,
    /// Routes in the interface's own table.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub policy_routes: Vec<PoolRoute>,
    /// The first two bytes of pods' Ethernet addresses, `0a:1b`.
    #[serde(rename = "podMACPrefix", skip_serializing_if = "Option::is_none")]
    pub pod_mac_prefix: Option<String>,
    /// Whether routes of pods with several interfaces are set at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = true))]
    pub tune_pod_routes: Option<bool>,
    /// The interface of the default route; empty = `eth0`.
    #[serde(rename = "podDefaultRouteNIC", skip_serializing_if = "Option::is_none")]
    pub pod_default_route_nic: Option<String>,
    /// The node's table for routes to its pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = 500))]
    pub host_rule_table: Option<i64>,
    /// `rp_filter` in the pod: 0, 1, 2; negative = as it is.
    #[serde(rename = "podRPFilter", skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = 0))]
    pub pod_rp_filter: Option<i64>,
    /// Length of the interface's queue; 0 = as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = 0))]
    pub tx_queue_len: Option<i64>,
    /// An address of the link between pod and node, `169.254.100.1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub veth_link_address: Option<String>,
    /// MTU of the link between pod and node.
    #[serde(rename = "vethMTU", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub veth_mtu: Option<i64>,
}

/// What was learnt.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["phase"]))]
pub struct CoordinatorStatus {
    /// `Synced` or `NotReady`.
    pub phase: String,
    /// Why it is not ready.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Prefixes of the cluster's pods.
    #[serde(rename = "overlayPodCIDR")]
    pub overlay_pod_cidr: Vec<String>,
    /// Prefixes of the cluster's Services.
    #[serde(rename = "serviceCIDR")]
    pub service_cidr: Vec<String>,
}
