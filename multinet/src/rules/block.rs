//! Rules of one `AddressBlock`, and of one `NodeState`. Programs write them; a file in a directory
//! may still hold anything.

use super::Problem;
use super::network::is_host_address;
use crate::types::block::{AddressBlock, EntryState, NETWORK_LABEL, block_cidr, block_name};
use crate::types::node::NodeState;

/// Everything that is wrong with a block.
#[must_use]
pub fn validate_block(block: &AddressBlock) -> Vec<Problem> {
    let mut problems = Vec::new();
    let spec = &block.spec;
    let aligned = block_cidr(spec.cidr.addr());
    if spec.cidr != aligned {
        let message = format!("is not 64 aligned addresses; write {aligned}");
        problems.push(Problem::error("spec.cidr", spec.cidr, message));
        return problems;
    }
    let name = block_name(&spec.network, spec.cidr.addr());
    if block.metadata.name != name {
        let message = format!("does not follow from spec.network and spec.cidr; write {name}");
        problems.push(Problem::error("metadata.name", &block.metadata.name, message));
    }
    let label = block.metadata.labels.get(NETWORK_LABEL);
    if label != Some(&spec.network) {
        let field = format!("metadata.labels[{NETWORK_LABEL}]");
        let message = format!("must be spec.network, \"{}\"", spec.network);
        problems.push(Problem::error(field, label.map_or("", String::as_str), message));
    }
    for (i, entry) in spec.entries.iter().enumerate() {
        // Thousands of blocks are checked for each claim: text is made only where something is wrong.
        let field = || format!("spec.entries[{i}].address");
        if !spec.cidr.contains(&entry.address) {
            let message = format!("is outside the block {}", spec.cidr);
            problems.push(Problem::error(field(), entry.address, message));
        } else if i > 0 && spec.entries[i - 1].address >= entry.address {
            let message = "is out of order or there twice; entries are sorted by address";
            problems.push(Problem::error(field(), entry.address, message));
        }
        // No node: kept for the next pod of a StatefulSet's ordinal or of a virtual machine.
        if entry.state.is_held() && entry.owner.is_none() {
            let field = format!("spec.entries[{i}].owner");
            let message = "is missing; a held address has an owner";
            problems.push(Problem::error(field, "", message));
        }
        if entry.state == EntryState::Quarantined && entry.until_ms.is_none() {
            let field = format!("spec.entries[{i}].untilMs");
            problems.push(Problem::error(field, "", "is missing; a quarantine has an end"));
        }
    }
    problems
}

/// Everything that is wrong with what a node says of itself.
#[must_use]
pub fn validate_node_state(node: &NodeState) -> Vec<Problem> {
    let mut problems = Vec::new();
    let spec = &node.spec;
    if !spec.router_mac.is_unicast() {
        let message = "is not the address of one interface";
        problems.push(Problem::error("spec.routerMAC", spec.router_mac, message));
    }
    for (i, uplink) in spec.uplinks.iter().enumerate() {
        let field = format!("spec.uplinks[{i}]");
        if spec.uplinks[..i].iter().any(|u| u.physical_network == uplink.physical_network) {
            let message = "is named by two uplinks; one uplink carries a physical network";
            problems.push(Problem::error(
                format!("{field}.physicalNetwork"),
                &uplink.physical_network,
                message,
            ));
        }
        for vtep in uplink.vteps().filter(|v| !is_host_address(*v)) {
            problems.push(Problem::error(&field, vtep, "is not the address of one host"));
        }
        if uplink.mtu < 576 {
            let message = "must be at least 576; a tunnel needs room for its headers";
            problems.push(Problem::error(format!("{field}.mtu"), uplink.mtu, message));
        }
    }
    problems
}
