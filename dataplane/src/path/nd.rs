//! Neighbour discovery and multicast listening: what stays on a link (RFC 4861, RFC 3810).
//!
//! Every address of a realm is at the gateway's MAC, as for ARP. There are no router
//! advertisements: pods get their routes when they are created.

use std::ops::ControlFlow::{Break, Continue};

use wire::checksum::Sum;
use wire::{
    Ethernet, Header, Icmp6, Ipv6, Mac, NdMessage, NdOption, NdOptions, U32, link_local_of,
    protocol, solicited_node_of,
};

use super::arp::{is_here, owned_by_another};
use super::gateway::icmp6_kind;
use super::ingress::{owns_link_local, owns6, v6};
use super::parse::Ip6;
use super::probe::note;
use super::{Checksum, Context, DropReason, Gso, Origin, Packet, PathEvent, Probe, Step, Verdict};
use crate::table::{IfaceKind, Tables, Vrf};

const UNSPECIFIED: u128 = 0;
const ALL_NODES: u128 = 0xff02 << 112 | 1;
const ALL_NODES_MAC: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);

/// Whether the packet belongs to the link and is never routed.
#[inline]
pub(super) fn stays_on_link(packet: &Packet<'_>) -> bool {
    packet.meta.protocol == protocol::ICMP6
        && icmp6_kind(packet).is_some_and(|kind| {
            matches!(
                kind,
                Icmp6::ROUTER_SOLICITATION..=Icmp6::REDIRECT
                    | Icmp6::MLD_QUERY..=Icmp6::MLD_DONE
                    | Icmp6::MLD2_REPORT
            )
        })
}

/// Such a packet, from a pod or out of a tunnel.
#[inline(never)]
pub(super) fn on_link<P: Probe>(
    cx: &mut Context<'_>,
    from: &Origin<'_>,
    packet: &mut Packet<'_>,
    ip: Ip6,
    probe: &mut P,
) -> Step<Verdict> {
    let may_be_source = ip.src == UNSPECIFIED
        || owns_link_local(from.vrf, ip.src)
        || from.outer.is_some()
        || owns6(from.iface, ip.src);
    if !may_be_source {
        note!(probe, Ingress, "{} is not an address of {}", v6(ip.src), from.iface.name);
        return Break(Verdict::Drop(DropReason::SpoofedSource));
    }
    let kind = icmp6_kind(packet).unwrap_or(0);
    match kind {
        Icmp6::NEIGHBOUR_SOLICITATION => solicitation(cx, from, packet, ip, probe),
        Icmp6::NEIGHBOUR_ADVERTISEMENT => advertisement(from, packet, ip, probe),
        Icmp6::ROUTER_ADVERTISEMENT | Icmp6::REDIRECT => {
            note!(probe, Neighbour, "a pod is no router");
            Break(Verdict::Drop(DropReason::SpoofedNeighbour))
        }
        _ => {
            note!(probe, Neighbour, "ICMPv6 type {kind}: nothing to tell");
            Break(Verdict::Consume)
        }
    }
}

/// The target and the claimed MAC of a message that passes the checks of RFC 4861 §7.1.
fn parse(packet: &mut Packet<'_>, ip: Ip6, option: u8) -> Step<(u128, Option<Mac>)> {
    let malformed = Break(Verdict::Drop(DropReason::NdMalformed));
    let l4 = usize::from(packet.meta.l4);
    if packet.meta.body_bytes > 0 {
        // Its checksum covers all of it, so all of it has to be in the head.
        return match packet.more() {
            Verdict::Refill => Break(Verdict::Refill),
            _ => malformed,
        };
    }
    let Some(bytes) = packet.head().get(l4..) else { return malformed };
    let Some((message, options)) = NdMessage::split(bytes) else { return malformed };
    let pseudo = wire::checksum::pseudo6(ip.src, ip.dst, protocol::ICMP6, bytes.len());
    let options = NdOptions::new(options);
    let target = message.target.get();
    if ip.hop_limit != 255
        || message.icmp.code != 0
        || target >> 120 == 0xff
        || !options.is_valid()
        || pseudo.plus(Sum::of(bytes)).fold() != 0xffff
    {
        return malformed;
    }
    Continue((target, options.mac(option)))
}

fn solicitation<P: Probe>(
    cx: &mut Context<'_>,
    from: &Origin<'_>,
    packet: &mut Packet<'_>,
    ip: Ip6,
    probe: &mut P,
) -> Step<Verdict> {
    let (target, mac) = parse(packet, ip, NdOption::SOURCE_MAC)?;
    let probes = ip.src == UNSPECIFIED;
    if probes && (mac.is_some() || ip.dst != solicited_node_of(target)) {
        // RFC 4861 §7.1.1.
        return Break(Verdict::Drop(DropReason::NdMalformed));
    }
    packet.meta.flow_hash = (target as u32).max(1);
    match from.outer {
        Some(_) => asked_by_tunnel(cx.tables, from, packet, ip, target, mac, probe),
        None => asked_by_pod(cx, from, packet, ip, target, mac, probe),
    }
}

fn asked_by_pod<P: Probe>(
    cx: &mut Context<'_>,
    from: &Origin<'_>,
    packet: &mut Packet<'_>,
    ip: Ip6,
    target: u128,
    mac: Option<Mac>,
    probe: &mut P,
) -> Step<Verdict> {
    let (iface, vrf) = (from.iface, from.vrf);
    if iface.kind == IfaceKind::MemifIp {
        note!(probe, Neighbour, "no neighbours on a bare IP interface");
        return Break(Verdict::Consume);
    }
    if mac.is_some_and(|mac| mac != iface.mac) {
        note!(probe, Neighbour, "the source link-layer address is not the sender's");
        return Break(Verdict::Drop(DropReason::SpoofedNeighbour));
    }
    let gateway = target == link_local_of(vrf.gateway_mac) || is_gateway(vrf, target);
    if !gateway && (!in_prefixes(vrf, target) || iface.addrs6.contains(&target)) {
        note!(probe, Neighbour, "{} is the sender's own or outside the realm", v6(target));
        return Break(Verdict::Consume);
    }
    if ip.src == UNSPECIFIED {
        let owner = cx.tables.hosts6.lookup(vrf.id, target);
        if !gateway && !owned_by_another(cx.tables, from, owner) {
            note!(probe, Neighbour, "probe for {}, which nobody else has", v6(target));
            return Break(Verdict::Consume);
        }
        cx.tell(iface.id, PathEvent::AddressConflict { iface: iface.id, address: target });
    }
    note!(probe, Neighbour, "{} is at the gateway's MAC", v6(target));
    if !answer(packet, Ethernet::BYTES, target, ip.src, vrf.gateway_mac, gateway) {
        return Break(Verdict::Drop(DropReason::NdMalformed));
    }
    let dst = if ip.src == UNSPECIFIED { ALL_NODES_MAC } else { iface.mac };
    if let Some(eth) = Ethernet::view_mut(packet.head_mut()) {
        (eth.dst, eth.src) = (dst, vrf.gateway_mac);
    }
    packet.meta.out = iface.id;
    Continue(Verdict::Answer)
}

/// A foreign tunnel end (a Linux VXLAN device) asks where a pod is.
fn asked_by_tunnel<P: Probe>(
    tables: &Tables,
    from: &Origin<'_>,
    packet: &mut Packet<'_>,
    ip: Ip6,
    target: u128,
    mac: Option<Mac>,
    probe: &mut P,
) -> Step<Verdict> {
    let unsupported = Break(Verdict::Drop(DropReason::BumUnsupported));
    let Some(outer) = from.outer else { return unsupported };
    let owner = tables.hosts6.lookup(from.vrf.id, target);
    if ip.src == UNSPECIFIED || !(is_here(tables, owner) || is_gateway(from.vrf, target)) {
        note!(probe, Neighbour, "{} is not on this node, or only probed for", v6(target));
        return unsupported;
    }
    let inner = usize::from(outer.inner);
    let asker = Ethernet::at(packet.head(), inner).map(|eth| eth.src);
    let Some(to) = mac.or(asker) else { return unsupported };
    let router = tables.node.router_mac;
    note!(probe, Neighbour, "{} is behind this node's router MAC", v6(target));
    packet.meta.out = from.iface.id;
    let l3 = inner + Ethernet::BYTES;
    if !answer(packet, l3, target, ip.src, router, false) || !outer.turn(packet, router, to) {
        return Break(Verdict::Drop(DropReason::NdMalformed));
    }
    Continue(Verdict::Answer)
}

fn advertisement<P: Probe>(
    from: &Origin<'_>,
    packet: &mut Packet<'_>,
    ip: Ip6,
    probe: &mut P,
) -> Step<Verdict> {
    let (target, mac) = parse(packet, ip, NdOption::TARGET_MAC)?;
    let (iface, vrf) = (from.iface, from.vrf);
    let owned = owns6(iface, target) || owns_link_local(vrf, target);
    if from.outer.is_none() && (!owned || mac.is_some_and(|mac| mac != iface.mac)) {
        note!(probe, Neighbour, "{} is not the sender's own", v6(target));
        return Break(Verdict::Drop(DropReason::SpoofedNeighbour));
    }
    note!(probe, Neighbour, "announcement of {}: addresses are assigned, not learnt", v6(target));
    Break(Verdict::Consume)
}

/// Writes the advertisement of `target` in the place of the question, `l3` bytes into the frame.
fn answer(
    packet: &mut Packet<'_>,
    l3: usize,
    target: u128,
    to: u128,
    mac: Mac,
    router: bool,
) -> bool {
    const MESSAGE: usize = size_of::<NdMessage>() + size_of::<NdOption>();
    let bytes = l3 + Ipv6::BYTES + MESSAGE;
    if !packet.resize(bytes as u16) {
        return false;
    }
    packet.meta.l3 = l3 as u16;
    packet.meta.l4 = (l3 + Ipv6::BYTES) as u16;
    packet.meta.checksum = Checksum::Unknown;
    packet.meta.gso = Gso::None;
    let probed = to == UNSPECIFIED;
    let to = if probed { ALL_NODES } else { to };
    let Some(bytes) = packet.head_mut().get_mut(l3..) else { return false };
    let Some((header, message)) = bytes.split_at_mut_checked(Ipv6::BYTES) else { return false };
    let Some(ip) = Ipv6::view_mut(header) else { return false };
    *ip = Ipv6 {
        version_class_flow: U32::new(6 << 28),
        payload_len: (MESSAGE as u16).into(),
        next_header: protocol::ICMP6,
        hop_limit: 255,
        src: target.into(),
        dst: to.into(),
    };
    let pseudo = ip.pseudo(protocol::ICMP6, MESSAGE);
    let flags = NdMessage::OVERRIDE
        | if router { NdMessage::ROUTER } else { 0 }
        | if probed { 0 } else { NdMessage::SOLICITED };
    let Some(nd) = NdMessage::view_mut(message) else { return false };
    nd.icmp.kind = Icmp6::NEIGHBOUR_ADVERTISEMENT;
    nd.icmp.code = 0;
    nd.icmp.checksum.set(0);
    nd.icmp.rest.set(flags);
    nd.target.set(target);
    let Some(option) = NdOption::at_mut(message, size_of::<NdMessage>()) else { return false };
    *option = NdOption { kind: NdOption::TARGET_MAC, units: 1, mac };
    let sum = pseudo.plus(Sum::of(message));
    let Some(nd) = NdMessage::view_mut(message) else { return false };
    nd.icmp.checksum.set(sum.complement());
    true
}

fn is_gateway(vrf: &Vrf, addr: u128) -> bool {
    vrf.gateways6.iter().any(|gateway| u128::from(*gateway) == addr)
}

fn in_prefixes(vrf: &Vrf, addr: u128) -> bool {
    vrf.prefixes6.iter().any(|&(net, mask)| addr & mask == net)
}
