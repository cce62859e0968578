//! Catalog and node to the data plane's desired state.
//!
//! Remote routes come from AddressBlocks and NodeStates alone: a block bound to another node is one
//! route, an address used elsewhere than its block says is a host route. Only Networks with a local
//! attachment are in the state: the data plane accepts no other VNI.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::state::{Interface, Network, Port, Route, State, Via};
use crate::range::Family;
use crate::rules::{Checked, Pool};
use crate::types::block::{AddressBlock, block_cidr};
use crate::types::mac::Mac;
use crate::types::network::{self as resource, Encapsulation};
use crate::types::node::{NodeState, NodeUplink};

/// Outer IPv4, UDP, VXLAN and inner Ethernet headers: 20 + 8 + 8 + 14.
pub const VXLAN_OVERHEAD_IPV4: u32 = 50;
/// Outer IPv6 instead of IPv4: 20 bytes more.
pub const VXLAN_OVERHEAD_IPV6: u32 = 70;
/// MTU where no node says one: what Ethernet carries.
const DEFAULT_UPLINK_MTU: u32 = 1500;

/// A pod's interface on this node, or the node's own leg into a Network.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// Unique, stable: `<sandbox>/<name>`.
    pub id: String,
    /// The Network.
    pub network: String,
    /// Inside the pod.
    pub name: String,
    /// The pod's.
    pub mac: Mac,
    /// The interface's own addresses.
    pub addresses: Vec<IpAddr>,
    /// What it is made of, as granted.
    pub port: Port,
    /// 0 = the Network's.
    #[serde(default)]
    pub mtu: u32,
    /// The pod's namespace; empty for the node's leg.
    #[serde(default)]
    pub pod_namespace: String,
    /// The pod's name; empty for the node's leg.
    #[serde(default)]
    pub pod_name: String,
    /// May send any source address.
    #[serde(default)]
    pub node_leg: bool,
}

/// Everything that the desired state follows from.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// This node's name.
    pub node: &'a str,
    /// Networks and pools.
    pub checked: &'a Checked,
    /// All nodes, this one included, by name.
    pub nodes: &'a BTreeMap<String, Arc<NodeState>>,
    /// Blocks of (at least) the Networks in local use; outlines will do.
    pub blocks: &'a [Arc<AddressBlock>],
    /// Interfaces on this node.
    pub attachments: &'a [Attachment],
    /// 0 = 4789.
    pub vxlan_port: u16,
}

/// The desired state, and a sentence for everything that had to be left out.
#[must_use]
pub fn desired(input: &Input<'_>) -> (State, Vec<String>) {
    let mut notes = Vec::new();
    let mut state = State { vxlan_port: input.vxlan_port, ..State::default() };
    let mut in_use: BTreeMap<&str, Vec<&Attachment>> = BTreeMap::new();
    for attachment in input.attachments {
        in_use.entry(&attachment.network).or_default().push(attachment);
    }
    for (name, attachments) in in_use {
        match realm(input, name, &attachments, &mut notes) {
            Ok(network) => {
                let allowed = allowed_prefixes(input.checked, name);
                state.networks.push(network);
                state.interfaces.extend(attachments.iter().map(|a| interface(a, &allowed)));
            }
            Err(why) => notes.push(format!(
                "Network {name} serves {} interfaces of this node no more: {why}",
                attachments.len()
            )),
        }
    }
    state.interfaces.sort_by(|a, b| a.id.cmp(&b.id));
    state.interfaces.dedup_by(|a, b| a.id == b.id);
    let own = input.nodes.get(input.node);
    state.local_vteps =
        own.and_then(|n| n.uplink("")).map(|u| u.vteps().collect()).unwrap_or_default();
    let others = input.nodes.iter().filter(|(name, _)| *name != input.node);
    let vteps: BTreeSet<IpAddr> = others.flat_map(|(_, n)| n.vteps()).collect();
    state.cluster_vteps = vteps.into_iter().filter(|v| !state.local_vteps.contains(v)).collect();
    (state, notes)
}

/// One Network's share of the state.
fn realm(
    input: &Input<'_>,
    name: &str,
    attachments: &[&Attachment],
    notes: &mut Vec<String>,
) -> Result<Network, String> {
    let Some(network) = input.checked.networks.get(name) else {
        let mut problems = input.checked.problems_of("Network", name).filter(|p| p.is_error());
        return Err(problems.next().map_or("it does not exist".into(), ToString::to_string));
    };
    let spec = &network.spec;
    if spec.encapsulation != Encapsulation::Vxlan {
        return Err("this version carries encapsulation VXLAN only".into());
    }
    let pools: Vec<&Pool> = input.checked.pools_of(name).collect();
    let gateways: BTreeSet<IpAddr> = pools.iter().filter_map(|p| p.gateway).collect();
    let prefixes: BTreeSet<IpNet> = pools.iter().map(|p| p.subnet).collect();
    let mut routes = Routes::new(input, network, attachments);
    routes.add_blocks(input.blocks, notes);
    routes.add_peers(network);
    routes.add_statics(&pools, attachments, &gateways, input.blocks);
    routes.add_node_leg(&pools, attachments);
    let peers: BTreeSet<IpAddr> = spec.peers.iter().map(|p| p.vtep).collect();
    Ok(Network {
        name: name.into(),
        encapsulation: spec.encapsulation,
        vni: network.vni().unwrap_or(0),
        vlan_id: 0,
        physical_network: spec.physical_network.clone(),
        mtu: network_mtu(network, input.nodes.values().map(AsRef::as_ref)),
        gateways: gateways.into_iter().collect(),
        prefixes: prefixes.into_iter().collect(),
        routes: routes.table.into_iter().map(|(prefix, via)| Route { prefix, via }).collect(),
        peer_vteps: peers.into_iter().collect(),
    })
}

/// The MTU of a Network's interfaces: what is asked for, else the smallest uplink MTU of its physical
/// network less the tunnel's headers. All nodes count, not only those that carry the Network now, so
/// that the MTU does not change under running pods when one more joins.
pub fn network_mtu<'a>(
    network: &resource::Network,
    nodes: impl Iterator<Item = &'a NodeState> + Clone,
) -> u32 {
    if network.spec.mtu != 0 {
        return network.spec.mtu;
    }
    let uplinks = nodes.filter_map(|n| n.uplink(&network.spec.physical_network));
    let smallest = uplinks.clone().map(|u| u.mtu).min().unwrap_or(DEFAULT_UPLINK_MTU);
    let ipv6 = uplinks.clone().any(|u| u.ipv6.is_some())
        || network.spec.peers.iter().any(|p| p.vtep.is_ipv6());
    let overhead = match network.spec.encapsulation {
        Encapsulation::Vxlan if ipv6 => VXLAN_OVERHEAD_IPV6,
        Encapsulation::Vxlan => VXLAN_OVERHEAD_IPV4,
        Encapsulation::Vlan | Encapsulation::None => 0,
    };
    smallest.saturating_sub(overhead).clamp(crate::rules::MTU_MIN_IPV4, 9216)
}

/// Routes by prefix: one prefix leads to one place.
struct Routes<'a> {
    input: &'a Input<'a>,
    name: &'a str,
    physical: &'a str,
    own: Option<&'a NodeUplink>,
    /// Addresses of this node's interfaces.
    local: BTreeSet<IpAddr>,
    table: BTreeMap<IpNet, Via>,
}

impl<'a> Routes<'a> {
    fn new(
        input: &'a Input<'a>,
        network: &'a resource::Network,
        attachments: &[&Attachment],
    ) -> Self {
        let physical = network.spec.physical_network.as_str();
        Routes {
            input,
            name: &network.metadata.name,
            physical,
            own: input.nodes.get(input.node).and_then(|n| n.uplink(physical)),
            local: attachments.iter().flat_map(|a| a.addresses.iter().copied()).collect(),
            table: BTreeMap::new(),
        }
    }

    /// The tunnel to another node: IPv4 where both have it, else IPv6.
    fn tunnel(&self, node: &str) -> Result<Via, String> {
        let Some(remote) = self.input.nodes.get(node) else {
            return Err(format!("node {node} has no NodeState yet"));
        };
        let Some(uplink) = remote.uplink(self.physical) else {
            return Err(format!("node {node} has no uplink into \"{}\"", self.physical));
        };
        let own =
            |family: Family| self.own.is_none_or(|u| u.vteps().any(|v| Family::of(v) == family));
        let vtep = uplink.vteps().find(|v| own(Family::of(*v)));
        let Some(vtep) = vtep else {
            return Err(format!("node {node} and this node share no family of tunnel ends"));
        };
        Ok(Via::Tunnel { vtep, inner_mac: remote.spec.router_mac })
    }

    fn add_blocks(&mut self, blocks: &[Arc<AddressBlock>], notes: &mut Vec<String>) {
        let name = self.name;
        let mut unreachable: BTreeMap<String, usize> = BTreeMap::new();
        for block in blocks.iter().filter(|b| b.spec.network == name) {
            if block.spec.cidr != block_cidr(block.spec.cidr.addr()) {
                notes.push(format!("AddressBlock {} is damaged and left out", block.name()));
                continue;
            }
            let bound = block.spec.node.as_deref();
            let mut add = |routes: &mut Self, prefix: IpNet, node: &str| match routes.tunnel(node) {
                Ok(via) => drop(routes.table.insert(prefix, via)),
                Err(why) => *unreachable.entry(why).or_default() += 1,
            };
            if let Some(node) = bound.filter(|n| *n != self.input.node) {
                add(self, block.spec.cidr, node);
            }
            for entry in block.held() {
                let node = entry.node.as_str();
                // Kept for a pod that is nowhere at the moment.
                if Some(node) == bound || node.is_empty() {
                    continue;
                }
                if node != self.input.node {
                    add(self, IpNet::from(entry.address), node);
                } else if bound.is_some() && !self.local.contains(&entry.address) {
                    // Lent to this node, whose interface is not there (yet): the block's route would
                    // send it to a node that sends it back.
                    self.table.insert(IpNet::from(entry.address), Via::Unreachable);
                }
            }
        }
        for (why, count) in unreachable {
            notes.push(format!("Network {name}: {count} routes left out: {why}"));
        }
    }

    fn add_peers(&mut self, network: &resource::Network) {
        for peer in &network.spec.peers {
            let via = Via::Tunnel { vtep: peer.vtep, inner_mac: peer.mac };
            for prefix in &peer.prefixes {
                self.table.insert(prefix.trunc(), via.clone());
            }
        }
    }

    /// Through the node's own leg leads everything that is not the Network's own. An address of a
    /// pool that nobody holds leads nowhere: the node would only send it back.
    fn add_node_leg(&mut self, pools: &[&Pool], attachments: &[&Attachment]) {
        let Some(leg) = attachments.iter().find(|a| a.node_leg) else { return };
        for pool in pools {
            self.table.entry(pool.subnet.trunc()).or_insert(Via::Unreachable);
        }
        for family in leg.addresses.iter().map(|a| Family::of(*a)).collect::<BTreeSet<_>>() {
            let everything = match family {
                Family::V4 => IpNet::V4(ipnet::Ipv4Net::default()),
                Family::V6 => IpNet::V6(ipnet::Ipv6Net::default()),
            };
            self.table.entry(everything).or_insert_with(|| Via::Interface(leg.id.clone()));
        }
    }

    /// A pool's routes lead to the pod that has the next hop's address, wherever it runs.
    fn add_statics(
        &mut self,
        pools: &[&Pool],
        attachments: &[&Attachment],
        gateways: &BTreeSet<IpAddr>,
        blocks: &[Arc<AddressBlock>],
    ) {
        for (dst, gw) in pools.iter().flat_map(|p| &p.routes) {
            if gateways.contains(gw) {
                continue;
            }
            let local = attachments.iter().find(|a| a.addresses.contains(gw));
            let via = match local {
                Some(attachment) => Some(Via::Interface(attachment.id.clone())),
                None => blocks
                    .iter()
                    .filter(|b| b.spec.network == self.name)
                    .find_map(|b| b.holder_node(*gw))
                    .filter(|node| *node != self.input.node)
                    .and_then(|node| self.tunnel(node).ok()),
            };
            if let Some(via) = via {
                self.table.entry(*dst).or_insert(via);
            }
        }
    }
}

/// Prefixes behind a pod, by the pod's address: it may send from them.
fn allowed_prefixes(checked: &Checked, network: &str) -> BTreeMap<IpAddr, BTreeSet<IpNet>> {
    let mut allowed: BTreeMap<IpAddr, BTreeSet<IpNet>> = BTreeMap::new();
    for (dst, gw) in checked.pools_of(network).flat_map(|p| &p.routes) {
        allowed.entry(*gw).or_default().insert(*dst);
    }
    allowed
}

fn interface(a: &Attachment, allowed: &BTreeMap<IpAddr, BTreeSet<IpNet>>) -> Interface {
    let mut addresses = a.addresses.clone();
    addresses.sort_unstable();
    addresses.dedup();
    let behind: BTreeSet<IpNet> =
        addresses.iter().filter_map(|address| allowed.get(address)).flatten().copied().collect();
    Interface {
        id: a.id.clone(),
        network: a.network.clone(),
        name: a.name.clone(),
        mac: a.mac,
        addresses,
        allowed_prefixes: behind.into_iter().collect(),
        mtu: a.mtu,
        port: a.port.clone(),
        pod_namespace: a.pod_namespace.clone(),
        pod_name: a.pod_name.clone(),
        node_leg: a.node_leg,
    }
}
