//! The few fields of Kubernetes' own kinds that the rules read. Objects of these types are read only:
//! what is not listed here is lost in them.

use std::any::TypeId;

use serde::{Deserialize, Serialize};

use super::meta::{Condition, resource};

resource! {
    /// A pod, as far as addresses and interfaces depend on it.
    Pod, PodSpec, PodStatus, "v1", "Pod", "pods", namespaced: true
}

resource! {
    /// A namespace: its labels and annotations matter.
    Namespace, Empty, Empty, "v1", "Namespace", "namespaces", namespaced: false
}

resource! {
    /// A node: its labels matter, and whether it is ready.
    Node, Empty, NodeStatus, "v1", "Node", "nodes", namespaced: false
}

resource! {
    /// Prefixes that Services get their addresses from.
    ServiceCIDR, ServicePrefixes, Empty, "networking.k8s.io/v1", "ServiceCIDR", "servicecidrs",
    namespaced: false
}

/// What a ServiceCIDR holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServicePrefixes {
    /// One prefix for each family.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cidrs: Vec<String>,
}

resource! {
    /// What Multus calls plugins with.
    NetworkAttachmentDefinition, DefinitionSpec, Empty, "k8s.cni.cncf.io/v1",
    "NetworkAttachmentDefinition", "network-attachment-definitions", namespaced: true
}

/// The part of a pod's spec that matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// Where it runs.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub node_name: String,
    /// Pods of the host's network have no interfaces of ours.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub host_network: bool,
    /// `Always`, `OnFailure` or `Never`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub restart_policy: String,
    /// How long its containers may take to stop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub termination_grace_period_seconds: Option<i64>,
}

/// The part of a pod's status that matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    /// `Pending`, `Running`, `Succeeded`, `Failed` or `Unknown`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub phase: String,
    /// For instance `Evicted`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Its addresses as the kubelet reports them.
    #[serde(rename = "podIPs", skip_serializing_if = "Vec::is_empty")]
    pub pod_ips: Vec<PodIp>,
    /// What its containers do.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub container_statuses: Vec<ContainerStatus>,
}

/// An element of `status.podIPs`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodIp {
    /// The address.
    pub ip: String,
}

/// The part of a container's status that matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerStatus {
    /// What it does now.
    pub state: ContainerState,
}

/// What a container does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerState {
    /// It runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub running: Option<Running>,
    /// It has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub terminated: Option<Terminated>,
}

/// That a container runs; since when does not matter here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Running {}

/// How a container ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Terminated {
    /// RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
}

/// The part of a node's status that matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    /// `Ready` and others.
    pub conditions: Vec<Condition>,
}

impl Node {
    /// Whether its kubelet says that it is well.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let conditions = self.status.as_ref().map_or(&[][..], |s| &s.conditions);
        conditions.iter().any(|c| c.kind == "Ready" && c.status == "True")
    }
}

/// What a NetworkAttachmentDefinition holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DefinitionSpec {
    /// A CNI configuration as JSON; absent: the file of that name in /etc/cni/net.d.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<String>,
}

/// Fields that nobody here reads, or that a kind does not have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// Whether a part of an object is [`Empty`]: kinds without spec are written without one.
pub(crate) fn is_empty<T: 'static>(_: &T) -> bool {
    TypeId::of::<T>() == TypeId::of::<Empty>()
}
