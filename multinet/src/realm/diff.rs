//! What to change, from one state to another: `apply(actual, diff(desired, actual)) == desired`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::state::{Interface, Network, State};

/// Changes, as the data plane's partial Apply takes them. An interface whose Network changes stays:
/// Networks are replaced in place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Ops {
    /// Networks to add or replace.
    pub put_networks: Vec<Network>,
    /// Interfaces to add or replace.
    pub put_interfaces: Vec<Interface>,
    /// Networks to remove, by name.
    pub remove_networks: Vec<String>,
    /// Interfaces to remove, by id.
    pub remove_interfaces: Vec<String>,
    /// Node-wide fields, where any of them changed. A partial Apply leaves empty lists alone, so that
    /// a change to an empty list needs a full one: see [`Ops::needs_full`].
    pub node: Option<NodeWide>,
}

/// Node-wide fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeWide {
    /// Tunnel ends of the other nodes.
    pub cluster_vteps: Vec<IpAddr>,
    /// This node's own tunnel ends.
    pub local_vteps: Vec<IpAddr>,
    /// 0 = 4789.
    pub vxlan_port: u16,
}

impl Ops {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Ops::default()
    }

    /// Whether a partial Apply cannot express it: a node-wide field becomes empty.
    #[must_use]
    pub fn needs_full(&self) -> bool {
        self.node.as_ref().is_some_and(|n| {
            n.cluster_vteps.is_empty() || n.local_vteps.is_empty() || n.vxlan_port == 0
        })
    }
}

fn changed<T: Clone + PartialEq>(
    desired: &[T],
    actual: &[T],
    key: impl Fn(&T) -> &str,
) -> (Vec<T>, Vec<String>) {
    let had: BTreeMap<&str, &T> = actual.iter().map(|x| (key(x), x)).collect();
    let wanted: BTreeMap<&str, &T> = desired.iter().map(|x| (key(x), x)).collect();
    let put = wanted.iter().filter(|(k, x)| had.get(*k) != Some(x)).map(|(_, x)| (*x).clone());
    let remove = had.keys().filter(|k| !wanted.contains_key(*k)).map(ToString::to_string);
    (put.collect(), remove.collect())
}

fn node_wide(state: &State) -> NodeWide {
    NodeWide {
        cluster_vteps: state.cluster_vteps.clone(),
        local_vteps: state.local_vteps.clone(),
        vxlan_port: state.vxlan_port,
    }
}

/// What leads from `actual` to `desired`.
#[must_use]
pub fn diff(desired: &State, actual: &State) -> Ops {
    let (put_networks, remove_networks) = changed(&desired.networks, &actual.networks, |n| &n.name);
    let (put_interfaces, remove_interfaces) =
        changed(&desired.interfaces, &actual.interfaces, |i| &i.id);
    let node = Some(node_wide(desired)).filter(|n| *n != node_wide(actual));
    Ops { put_networks, put_interfaces, remove_networks, remove_interfaces, node }
}

/// What a state becomes by `ops`, its lists sorted.
#[must_use]
pub fn apply(state: &State, ops: &Ops) -> State {
    let mut networks: BTreeMap<&str, &Network> =
        state.networks.iter().map(|n| (n.name.as_str(), n)).collect();
    networks.extend(ops.put_networks.iter().map(|n| (n.name.as_str(), n)));
    let mut interfaces: BTreeMap<&str, &Interface> =
        state.interfaces.iter().map(|i| (i.id.as_str(), i)).collect();
    interfaces.extend(ops.put_interfaces.iter().map(|i| (i.id.as_str(), i)));
    for name in &ops.remove_networks {
        networks.remove(name.as_str());
    }
    for id in &ops.remove_interfaces {
        interfaces.remove(id.as_str());
    }
    let node = ops.node.clone().unwrap_or_else(|| node_wide(state));
    State {
        networks: networks.into_values().cloned().collect(),
        interfaces: interfaces.into_values().cloned().collect(),
        cluster_vteps: node.cluster_vteps,
        local_vteps: node.local_vteps,
        vxlan_port: node.vxlan_port,
    }
}
