//! ARP: every address of a realm is at the gateway's MAC (DESIGN §6).

use std::ops::ControlFlow::{Break, Continue};

use wire::{Arp, Ethernet, Header, Mac};

use super::ingress::{owns4, v4};
use super::probe::note;
use super::{Checksum, Context, DropReason, Gso, Origin, Packet, PathEvent, Probe, Step, Verdict};
use crate::table::{HopKind, NextHop, NextHopId, Tables, Vrf};

/// An ARP packet's facts.
#[derive(Debug, Clone, Copy)]
struct Question {
    request: bool,
    sender_mac: Mac,
    sender: u32,
    target: u32,
}

fn parse(packet: &mut Packet<'_>, l3: u16) -> Step<Question> {
    let Some(arp) = Arp::at(packet.head(), usize::from(l3)) else { return Break(packet.more()) };
    if !arp.is_valid() {
        return Break(Verdict::Drop(DropReason::ArpMalformed));
    }
    let question = Question {
        request: arp.operation.get() == Arp::REQUEST,
        sender_mac: arp.sender_mac,
        sender: arp.sender_ip.get(),
        target: arp.target_ip.get(),
    };
    packet.meta.l3 = l3;
    packet.meta.flow_hash = question.target.max(1);
    Continue(question)
}

/// ARP from a pod.
pub(super) fn from_pod<P: Probe>(
    cx: &mut Context<'_>,
    from: &Origin<'_>,
    packet: &mut Packet<'_>,
    probe: &mut P,
) -> Step<Verdict> {
    let q = parse(packet, Ethernet::BYTES as u16)?;
    let (iface, vrf) = (from.iface, from.vrf);
    if q.sender_mac != iface.mac || (q.sender != 0 && !owns4(iface, q.sender)) {
        note!(probe, Neighbour, "{} at {} is not the sender's own", v4(q.sender), q.sender_mac);
        return Break(Verdict::Drop(DropReason::SpoofedNeighbour));
    }
    if !q.request || q.sender == q.target {
        note!(
            probe,
            Neighbour,
            "announcement of {}: addresses are assigned, not learnt",
            v4(q.target)
        );
        return Break(Verdict::Consume);
    }
    if !in_realm4(vrf, q.target) || iface.addrs4.contains(&q.target) {
        note!(probe, Neighbour, "{} is the sender's own or outside the realm", v4(q.target));
        return Break(Verdict::Consume);
    }
    if q.sender == 0 {
        if !owned_by_another4(cx.tables, from, q.target) {
            note!(probe, Neighbour, "probe for {}, which nobody else has", v4(q.target));
            return Break(Verdict::Consume);
        }
        let address = 0xffff_0000_0000 | u128::from(q.target);
        cx.tell(iface.id, PathEvent::AddressConflict { iface: iface.id, address });
    }
    note!(probe, Neighbour, "{} is at the gateway's MAC", v4(q.target));
    answer(packet, Ethernet::BYTES, q, vrf.gateway_mac);
    if let Some(eth) = Ethernet::view_mut(packet.head_mut()) {
        (eth.dst, eth.src) = (iface.mac, vrf.gateway_mac);
    }
    packet.meta.out = iface.id;
    Continue(Verdict::Answer)
}

/// ARP out of a tunnel: a foreign tunnel end (a Linux VXLAN device) asks where a pod is.
pub(super) fn from_tunnel<P: Probe>(
    cx: &Context<'_>,
    from: &Origin<'_>,
    packet: &mut Packet<'_>,
    probe: &mut P,
) -> Step<Verdict> {
    let Some(outer) = from.outer else { return Break(Verdict::Drop(DropReason::BumUnsupported)) };
    let inner = outer.inner + Ethernet::BYTES as u16;
    let q = parse(packet, inner)?;
    if !q.request || q.sender == q.target {
        note!(
            probe,
            Neighbour,
            "announcement of {}: addresses are assigned, not learnt",
            v4(q.sender)
        );
        return Break(Verdict::Consume);
    }
    if !is_here4(cx.tables, from.vrf, q.target) {
        note!(probe, Neighbour, "{} is not on this node", v4(q.target));
        return Break(Verdict::Drop(DropReason::BumUnsupported));
    }
    let mac = cx.tables.node.router_mac;
    note!(probe, Neighbour, "{} is behind this node's router MAC", v4(q.target));
    answer(packet, usize::from(inner), q, mac);
    packet.meta.out = from.iface.id;
    if !outer.turn(packet, mac, q.sender_mac) {
        return Break(Verdict::Drop(DropReason::ArpMalformed));
    }
    Continue(Verdict::Answer)
}

/// Turns the question into its answer, and the frame ends behind it.
fn answer(packet: &mut Packet<'_>, l3: usize, q: Question, mac: Mac) {
    packet.truncate((l3 + Arp::BYTES) as u16);
    packet.meta.checksum = Checksum::Unknown;
    packet.meta.gso = Gso::None;
    if let Some(arp) = Arp::at_mut(packet.head_mut(), l3) {
        arp.operation.set(Arp::REPLY);
        arp.sender_mac = mac;
        arp.sender_ip.set(q.target);
        arp.target_mac = q.sender_mac;
        arp.target_ip.set(q.sender);
    }
}

fn in_realm4(vrf: &Vrf, addr: u32) -> bool {
    vrf.prefixes4.iter().any(|&(net, mask)| addr & mask == net)
        || vrf.gateways4.iter().any(|gateway| u32::from(*gateway) == addr)
}

fn owned_by_another4(tables: &Tables, from: &Origin<'_>, addr: u32) -> bool {
    from.vrf.gateways4.iter().any(|gateway| u32::from(*gateway) == addr)
        || owned_by_another(tables, from, tables.hosts4.lookup(from.vrf.id, addr))
}

/// Whether a host route leads to anybody else than the asking interface.
pub(super) fn owned_by_another(tables: &Tables, from: &Origin<'_>, id: NextHopId) -> bool {
    let hop = (id != NextHopId::NONE).then(|| tables.next_hop(id)).flatten();
    hop.is_some_and(|hop| hop.kind != HopKind::Unreachable && hop.out != from.iface.id)
}

fn is_here4(tables: &Tables, vrf: &Vrf, addr: u32) -> bool {
    is_here(tables, tables.hosts4.lookup(vrf.id, addr))
        || vrf.gateways4.iter().any(|gateway| u32::from(*gateway) == addr)
}

/// Whether a host route leads to an interface of this node.
pub(super) fn is_here(tables: &Tables, id: NextHopId) -> bool {
    let local = |hop: &NextHop| matches!(hop.kind, HopKind::Local | HopKind::Gateway);
    id != NextHopId::NONE && tables.next_hop(id).is_some_and(local)
}
