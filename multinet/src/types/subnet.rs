//! `SpiderSubnet` of spiderpool.spidernet.io/v2beta1, in upstream's shape: addresses that pools are
//! cut from, by people and for applications.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::meta::resource;
use super::pool::PoolRoute;

resource! {
    /// Addresses that pools are cut from. Cluster-scoped.
    SpiderSubnet, SubnetSpec, SubnetStatus, "spiderpool.spidernet.io/v2beta1", "SpiderSubnet", "spidersubnets", namespaced: false
}

/// What a subnet holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["subnet"]), extend("x-kubernetes-validations" = [
    {"rule": "self.subnet == oldSelf.subnet", "message": "subnet cannot be changed; make a new object"},
    {"rule": "isCIDR(self.subnet)", "message": "subnet is not a prefix; write it like 10.0.0.0/24 or fd00:1::/64"}
]))]
pub struct SubnetSpec {
    /// 4 or 6; derived from `subnet` when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = [4, 6], "x-kubernetes-validations" = [
        {"rule": "self == oldSelf", "message": "ipVersion cannot be changed; make a new object"}
    ]))]
    pub ip_version: Option<i64>,
    /// The prefix that the addresses lie in; required, canonical, immutable.
    pub subnet: String,
    /// Addresses (`a`) and ranges (`a-b`).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<String>,
    /// Those of `ips` that no pool gets.
    #[serde(rename = "excludeIPs", skip_serializing_if = "Vec::is_empty")]
    pub exclude_ips: Vec<String>,
    /// The default route that pools of this subnet inherit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// Further routes that pools of this subnet inherit.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<PoolRoute>,
}

/// A projection for people; no decision reads it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SubnetStatus {
    /// Upstream's JSON text: [`ControlledPools`].
    #[serde(rename = "controlledIPPools", skip_serializing_if = "Option::is_none")]
    pub controlled_ip_pools: Option<String>,
    /// Addresses in the subnet.
    #[serde(rename = "totalIPCount", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub total_ip_count: Option<i64>,
    /// Addresses that pools have, not pods.
    #[serde(rename = "allocatedIPCount", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub allocated_ip_count: Option<i64>,
}

/// What `status.controlledIPPools` holds: pools of the subnet by name.
pub type ControlledPools = BTreeMap<String, ControlledPool>;

/// A pool of a subnet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ControlledPool {
    /// Its addresses.
    pub ips: Vec<String>,
    /// For an automatic pool its application, `apps_v1_Deployment_<namespace>_<name>`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub application: Option<String>,
}
