//! Rules of one `Network`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::selector::{check_selector, is_dns_label, is_dns_name};
use super::{Problem, Severity};
use crate::types::network::{Encapsulation, InterfaceDefaults, Network, NetworkSpec};

/// VNIs that a Network may have; 0 means none in the data plane.
pub const VNI_RANGE: std::ops::RangeInclusive<u32> = 1..=0xff_ffff;
/// MTUs of a Network with IPv6 (RFC 8200 §5: no link below 1280).
pub const MTU_RANGE: std::ops::RangeInclusive<u32> = 1280..=9216;
/// Smallest MTU of a Network without IPv6 (RFC 791: every module forwards 68 bytes).
pub const MTU_MIN_IPV4: u32 = 68;
/// Ring sizes that every client of memif and virtio knows.
pub const RING_RANGE: std::ops::RangeInclusive<u32> = 32..=16384;
/// Queues per direction that a Network may allow.
pub const QUEUE_RANGE: std::ops::RangeInclusive<u32> = 1..=128;

/// Everything that is wrong with a Network by itself.
#[must_use]
pub fn validate_network(network: &Network) -> Vec<Problem> {
    let mut problems = Vec::new();
    if !is_dns_label(&network.metadata.name) {
        problems.push(Problem::error(
            "metadata.name",
            &network.metadata.name,
            "must be 1 to 63 of a-z, 0-9 and -, beginning and ending with a letter or digit",
        ));
    }
    let spec = &network.spec;
    check_encapsulation(spec, &mut problems);
    check_mtu(spec, &mut problems);
    check_pool_names(spec, &mut problems);
    check_peers(spec, &mut problems);
    check_interface(&spec.interface, &mut problems);
    if let Some(selector) = &spec.namespace_selector {
        check_selector("spec.namespaceSelector", selector, &mut problems);
    }
    problems
}

fn check_encapsulation(spec: &NetworkSpec, problems: &mut Vec<Problem>) {
    let vxlan = spec.encapsulation == Encapsulation::Vxlan;
    match spec.vni {
        Some(vni) if !vxlan => problems.push(Problem::error(
            "spec.vni",
            vni,
            "belongs to encapsulation VXLAN only; remove it or set spec.encapsulation: VXLAN",
        )),
        Some(vni) if !VNI_RANGE.contains(&vni) => problems.push(Problem::error(
            "spec.vni",
            vni,
            "must be 1 to 16777215; leave it out to have a free one chosen",
        )),
        _ => {}
    }
    match (spec.encapsulation, spec.vlan_id) {
        (Encapsulation::Vlan, None) => problems.push(Problem::error(
            "spec.vlanID",
            "",
            "is missing; encapsulation VLAN needs 0 (untagged) to 4094",
        )),
        (Encapsulation::Vlan, Some(id)) if id > 4094 => problems.push(Problem::error(
            "spec.vlanID",
            id,
            "must be 0 (untagged) to 4094 (IEEE 802.1Q reserves 4095)",
        )),
        (Encapsulation::Vlan, _) | (_, None) => {}
        (_, Some(id)) => problems.push(Problem::error(
            "spec.vlanID",
            id,
            "belongs to encapsulation VLAN only; remove it or set spec.encapsulation: VLAN",
        )),
    }
    if !spec.physical_network.is_empty() && !is_dns_label(&spec.physical_network) {
        problems.push(Problem::error(
            "spec.physicalNetwork",
            &spec.physical_network,
            "must be 1 to 63 of a-z, 0-9 and -, or empty for the main uplink",
        ));
    }
}

fn check_mtu(spec: &NetworkSpec, problems: &mut Vec<Problem>) {
    let least = if spec.ip_pools.ipv6.is_empty() { MTU_MIN_IPV4 } else { *MTU_RANGE.start() };
    if spec.mtu != 0 && !(least..=*MTU_RANGE.end()).contains(&spec.mtu) {
        problems.push(Problem::error(
            "spec.mtu",
            spec.mtu,
            format!("must be {least} to 9216, or 0 for the largest that every node carries"),
        ));
    }
}

fn check_pool_names(spec: &NetworkSpec, problems: &mut Vec<Problem>) {
    for (family, names) in [("ipv4", &spec.ip_pools.ipv4), ("ipv6", &spec.ip_pools.ipv6)] {
        let mut seen = BTreeSet::new();
        for (i, name) in names.iter().enumerate() {
            let field = format!("spec.ipPools.{family}[{i}]");
            if !is_dns_name(name) {
                problems.push(Problem::error(field, name, "is not the name of a SpiderIPPool"));
            } else if !seen.insert(name) {
                problems.push(Problem::error(field, name, "is named twice; remove one of them"));
            }
        }
    }
}

fn check_peers(spec: &NetworkSpec, problems: &mut Vec<Problem>) {
    if !spec.peers.is_empty() && spec.encapsulation != Encapsulation::Vxlan {
        problems.push(Problem::error(
            "spec.peers",
            spec.peers.len(),
            "belong to encapsulation VXLAN only; remove them",
        ));
    }
    let mut seen = BTreeSet::new();
    for (i, peer) in spec.peers.iter().enumerate() {
        let at = format!("spec.peers[{i}]");
        if !is_host_address(peer.vtep) {
            problems.push(Problem::error(
                format!("{at}.vtep"),
                peer.vtep,
                "is not the address of one host; name the peer's tunnel end",
            ));
        } else if !seen.insert(peer.vtep) {
            problems.push(Problem::error(
                format!("{at}.vtep"),
                peer.vtep,
                "is named twice; put all prefixes into one peer",
            ));
        }
        if !peer.mac.is_unicast() {
            problems.push(Problem::error(
                format!("{at}.mac"),
                peer.mac,
                "is not the address of one interface; name the peer's MAC",
            ));
        }
        for (n, prefix) in peer.prefixes.iter().enumerate() {
            if *prefix != prefix.trunc() {
                problems.push(Problem::error(
                    format!("{at}.prefixes[{n}]"),
                    prefix,
                    format!("has host bits set; write {}", prefix.trunc()),
                ));
            }
        }
    }
}

/// Whether an address can be one host's on the underlay.
#[must_use]
pub fn is_host_address(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(a) if a.is_broadcast());
    !(address.is_unspecified() || address.is_multicast() || address.is_loopback() || broadcast)
}

fn check_interface(interface: &InterfaceDefaults, problems: &mut Vec<Problem>) {
    let mut within = |field: &str, value: u32, range: std::ops::RangeInclusive<u32>, why: &str| {
        if !range.contains(&value) {
            problems.push(Problem {
                severity: Severity::Error,
                field: format!("spec.interface.{field}"),
                value: value.to_string(),
                message: format!("must be {} to {}{why}", range.start(), range.end()),
            });
        }
    };
    within("maxQueues", interface.max_queues, QUEUE_RANGE, "");
    within("maxRingSize", interface.max_ring_size, RING_RANGE, "");
    let queues = 1..=interface.max_queues.clamp(1, *QUEUE_RANGE.end());
    within("rxQueues", interface.rx_queues, queues.clone(), " (spec.interface.maxQueues)");
    within("txQueues", interface.tx_queues, queues, " (spec.interface.maxQueues)");
    let rings = *RING_RANGE.start()..=interface.max_ring_size.clamp(32, *RING_RANGE.end());
    within("ringSize", interface.ring_size, rings, " (spec.interface.maxRingSize)");
    for (field, size) in
        [("ringSize", interface.ring_size), ("maxRingSize", interface.max_ring_size)]
    {
        if !size.is_power_of_two() {
            problems.push(Problem::error(
                format!("spec.interface.{field}"),
                size,
                "must be a power of two, like 1024",
            ));
        }
    }
}

/// What a change of a Network must not change.
#[must_use]
pub fn validate_network_update(old: &Network, new: &Network, in_use: bool) -> Vec<Problem> {
    let mut problems = Vec::new();
    // Left out, it stays what the controller wrote down; before that it would become another.
    let vxlan = new.spec.encapsulation == Encapsulation::Vxlan;
    if let (Some(had), now, true) = (old.vni(), new.vni(), vxlan)
        && now != Some(had)
    {
        problems.push(Problem::error(
            "spec.vni",
            now.map_or_else(String::new, |vni| vni.to_string()),
            format!("cannot be changed from {had}; make a new Network"),
        ));
    }
    let (a, b) = (&old.spec, &new.spec);
    if in_use && (a.encapsulation, a.vlan_id) != (b.encapsulation, b.vlan_id) {
        problems.push(Problem::error(
            "spec.encapsulation",
            format!("{:?}", b.encapsulation),
            "cannot be changed (nor spec.vlanID) while pods are attached; detach them first",
        ));
    }
    if in_use && a.physical_network != b.physical_network {
        problems.push(Problem::error(
            "spec.physicalNetwork",
            &b.physical_network,
            "cannot be changed while pods are attached; detach them first",
        ));
    }
    problems
}
