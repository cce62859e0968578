//! `SpiderIPPool` and `SpiderReservedIP` of spiderpool.spidernet.io/v2beta1, in upstream's shape.
//!
//! The group is somebody else's: no field is added, addresses stay text so that every object that
//! upstream's schema admits can be read, and [`crate::rules::Pool`] is the checked form that all
//! rules work on. What Bowline adds are annotations, see [`annotation`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use super::meta::Condition;
use super::meta::{LabelSelector, resource};

/// Labels and annotations on pools.
pub mod annotation {
    /// Label: the Network that the pool (or subnet, or reservation) belongs to.
    pub const NETWORK: &str = "bowline.dev/network";
    /// `lowest` (default), `random` or `least-recently-released`.
    pub const STRATEGY: &str = "bowline.dev/allocation-strategy";
    /// How long a released address rests, e.g. `30s`, `5m`. A value here is strict; see
    /// [`crate::rules::ReuseDelay`].
    pub const REUSE_DELAY: &str = "bowline.dev/reuse-delay";
    /// `auto` (default), `always` or `never`: whether nodes hold blocks of the pool.
    pub const BLOCK_BINDING: &str = "bowline.dev/block-binding";
    /// `"false"`: what leaves `default` keeps its source address.
    pub const MASQUERADE: &str = "bowline.dev/masquerade";
    /// `"true"`: before a pod gets an address, its link is asked whether somebody else has it.
    pub const DETECT_CONFLICT: &str = "bowline.dev/detect-ip-conflict";
    /// `"true"`: a pod whose gateway does not answer on its link is not started.
    pub const DETECT_GATEWAY: &str = "bowline.dev/detect-gateway";
    /// On pools and subnets, whose status has no room for them: a JSON list of
    /// [`super::Condition`], for people.
    pub const CONDITIONS: &str = "bowline.dev/conditions";
}

resource! {
    /// A pool of addresses. Cluster-scoped.
    SpiderIPPool, IPPoolSpec, IPPoolStatus, "spiderpool.spidernet.io/v2beta1", "SpiderIPPool", "spiderippools", namespaced: false
}

resource! {
    /// Addresses that are never handed out. Cluster-scoped.
    SpiderReservedIP, ReservedIPSpec, super::core::Empty, "spiderpool.spidernet.io/v2beta1", "SpiderReservedIP", "spiderreservedips", namespaced: false
}

/// What a pool holds and for whom.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["subnet"]), extend("x-kubernetes-validations" = [
    {"rule": "self.subnet == oldSelf.subnet", "message": "subnet cannot be changed; make a new object"},
    {"rule": "isCIDR(self.subnet)", "message": "subnet is not a prefix; write it like 10.0.0.0/24 or fd00:1::/64"}
]))]
pub struct IPPoolSpec {
    /// 4 or 6; derived from `subnet` when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = [4, 6], "x-kubernetes-validations" = [
        {"rule": "self == oldSelf", "message": "ipVersion cannot be changed; make a new object"}
    ]))]
    pub ip_version: Option<i64>,
    /// The prefix that the addresses lie in; required, canonical, immutable.
    pub subnet: String,
    /// Addresses (`a`) and ranges (`a-b`).
    #[serde(rename = "ips", skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<String>,
    /// Those of `ips` that are not handed out.
    #[serde(rename = "excludeIPs", skip_serializing_if = "Vec::is_empty")]
    pub exclude_ips: Vec<String>,
    /// The default route of the pool's pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// Further routes of the pool's pods; absent: those of its subnet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub routes: Option<Vec<PoolRoute>>,
    /// Pods that may use it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_affinity: Option<LabelSelector>,
    /// Namespaces that may use it; ignored where `namespaceName` names any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace_affinity: Option<LabelSelector>,
    /// Namespaces that may use it, by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub namespace_name: Vec<String>,
    /// Nodes that may use it; ignored where `nodeName` names any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_affinity: Option<LabelSelector>,
    /// Nodes that may use it, by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub node_name: Vec<String>,
    /// NetworkAttachmentDefinitions (`[namespace/]name`) whose interfaces may use it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub multus_name: Vec<String>,
    /// One of the cluster's default pools.
    #[serde(rename = "default", skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = false))]
    pub is_default: Option<bool>,
    /// No new allocations; releasing goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = false))]
    pub disable: Option<bool>,
}

/// A route of a pool's pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["dst", "gw"]))]
pub struct PoolRoute {
    /// Destination prefix.
    pub dst: String,
    /// Next hop, inside the pool's subnet.
    pub gw: String,
}

/// A projection for people; no decision reads it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct IPPoolStatus {
    /// Upstream's JSON text `{"<ip>":{"pod":"ns/name","podUid":"…"}}`.
    #[serde(rename = "allocatedIPs", skip_serializing_if = "Option::is_none")]
    pub allocated_ips: Option<String>,
    /// Addresses in the pool.
    #[serde(rename = "totalIPCount", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub total_ip_count: Option<i64>,
    /// Addresses held.
    #[serde(rename = "allocatedIPCount", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub allocated_ip_count: Option<i64>,
}

/// Addresses that are never handed out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ReservedIPSpec {
    /// 4 or 6; derived from the first address when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = [4, 6], "x-kubernetes-validations" = [
        {"rule": "self == oldSelf", "message": "ipVersion cannot be changed; make a new object"}
    ]))]
    pub ip_version: Option<i64>,
    /// Addresses and ranges.
    #[serde(rename = "ips")]
    pub ips: Vec<String>,
}
