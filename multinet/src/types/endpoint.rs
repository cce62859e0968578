//! `SpiderEndpoint` of spiderpool.spidernet.io/v2beta1, in upstream's shape: a pod's addresses for
//! people. It has no spec, and its status is not a subresource.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::meta::resource;
use super::pool::PoolRoute;

resource! {
    /// A pod's addresses, named after the pod (or the virtual machine). A projection: no decision
    /// reads it.
    SpiderEndpoint, super::core::Empty, EndpointStatus, "spiderpool.spidernet.io/v2beta1", "SpiderEndpoint", "spiderendpoints", namespaced: true
}

/// Who has which addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["current", "ownerControllerType", "ownerControllerName"]))]
pub struct EndpointStatus {
    /// What it has now.
    pub current: PodAllocation,
    /// Kind of the outermost owner, `Pod` for a pod without one.
    pub owner_controller_type: String,
    /// Its name.
    pub owner_controller_name: String,
}

/// Addresses of one life of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["uid", "node", "ips"]))]
pub struct PodAllocation {
    /// The pod's UID.
    pub uid: String,
    /// Its node.
    pub node: String,
    /// One element per interface.
    pub ips: Vec<InterfaceAllocation>,
}

/// What one interface has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["interface"]))]
pub struct InterfaceAllocation {
    /// Its name in the pod.
    pub interface: String,
    /// `address/length`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<String>,
    /// `address/length`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<String>,
    /// The pool of `ipv4`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv4_pool: Option<String>,
    /// The pool of `ipv6`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv6_pool: Option<String>,
    /// The VLAN that a provider chose.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 4094), extend("default" = 0))]
    pub vlan: Option<i64>,
    /// Default route.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv4_gateway: Option<String>,
    /// Default route.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv6_gateway: Option<String>,
    /// The interface has no default route.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clean_gateway: Option<bool>,
    /// Further routes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<PoolRoute>,
    /// The Ethernet address that a provider chose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
}
