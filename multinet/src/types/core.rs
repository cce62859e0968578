//! The few fields of Kubernetes' own kinds that the rules read.

use serde::{Deserialize, Serialize};

use super::meta::resource;

resource! {
    /// A pod, as far as addresses and interfaces depend on it.
    Pod, PodSpec, PodStatus, "v1", "Pod", "pods", namespaced: true
}

resource! {
    /// A namespace: its labels and annotations matter.
    Namespace, Empty, Empty, "v1", "Namespace", "namespaces", namespaced: false
}

resource! {
    /// A node: its labels matter.
    Node, Empty, Empty, "v1", "Node", "nodes", namespaced: false
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
}

/// Fields that nobody here reads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}
