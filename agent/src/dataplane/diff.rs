//! What a data plane is told: `multinet`'s difference of two states as requests of the API.

use multinet::realm::{self, Ops, state::State};

use super::convert;

/// The request that says `ops`.
pub(crate) fn partial(ops: &Ops, revision: u64) -> api::ApplyRequest {
    let node = ops.node.clone().unwrap_or_default();
    api::ApplyRequest {
        state: Some(api::State {
            revision,
            networks: ops.put_networks.iter().map(convert::network).collect(),
            interfaces: ops.put_interfaces.iter().map(convert::interface).collect(),
            cluster_vteps: node.cluster_vteps.iter().copied().map(convert::ip).collect(),
            local_vteps: node.local_vteps.iter().copied().map(convert::ip).collect(),
            vxlan_port: node.vxlan_port.into(),
        }),
        partial: true,
        remove_networks: ops.remove_networks.clone(),
        remove_interfaces: ops.remove_interfaces.clone(),
    }
}

/// The request that replaces everything by `state`.
pub(crate) fn full(state: &State, revision: u64) -> api::ApplyRequest {
    let ops = realm::diff(state, &State::default());
    api::ApplyRequest { partial: false, ..partial(&ops, revision) }
}

/// The parts of `ops` one by one, each with the name that a refusal of it is about: first removals
/// and what concerns the node, then Networks, then interfaces, which need their Network.
pub(crate) fn pieces(ops: Ops) -> Vec<(String, Ops)> {
    let first = Ops { put_networks: Vec::new(), put_interfaces: Vec::new(), ..ops.clone() };
    let mut pieces = vec![("the node's tunnel ends".to_owned(), first)];
    pieces.extend(ops.put_networks.into_iter().map(|network| {
        (network.name.clone(), Ops { put_networks: vec![network], ..Ops::default() })
    }));
    pieces.extend(ops.put_interfaces.into_iter().map(|interface| {
        (interface.id.clone(), Ops { put_interfaces: vec![interface], ..Ops::default() })
    }));
    pieces
}
