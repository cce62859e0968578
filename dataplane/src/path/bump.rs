//! Between an uplink and the node's own stack: frames cross unchanged, but nobody behind the host
//! tap may send VXLAN to a tunnel end (DESIGN §6, "nobody injects").

use std::ops::ControlFlow::{Break, Continue};

use wire::{Ethernet, Header, Ipv4, Ipv6, Piece, Udp, Vlan, Walk, ether_type, protocol};

use super::probe::note;
use super::{Checksum, Context, DropReason, Gso, Packet, Probe, Step, Verdict, parse};
use crate::table::{Iface, IfaceId, NextHopId, Tables, VrfId};

/// VLAN tags that are looked behind.
const TAGS_MAX: usize = 4;

/// Lets the frame cross. Its offsets and flow are noted where it has any, for whoever has to
/// split it or to choose a queue.
#[inline]
pub(super) fn cross<P: Probe>(iface: &Iface, packet: &mut Packet<'_>, probe: &mut P) -> Verdict {
    if iface.peer == IfaceId::NONE {
        note!(probe, Bump, "{} has no other side", iface.name);
        return Verdict::Drop(DropReason::IfaceGone);
    }
    packet.meta.out = iface.peer;
    packet.meta.outer = 0;
    packet.meta.flow_hash = packet.meta.flow_hash.max(1);
    note!(probe, Bump, "crosses unchanged to interface {}", iface.peer.0);
    Verdict::Bump
}

/// A frame from the node's own stack.
pub(super) fn from_host<P: Probe>(
    cx: &Context<'_>,
    iface: &Iface,
    packet: &mut Packet<'_>,
    probe: &mut P,
) -> Step<Verdict> {
    let (kind, l3) = behind_tags(packet)?;
    let injects = match kind {
        ether_type::IPV4 => injects4(cx.tables, packet, l3)?,
        ether_type::IPV6 => injects6(cx.tables, packet, l3)?,
        _ => false,
    };
    if injects {
        note!(probe, Bump, "VXLAN to a tunnel end, not from the data plane");
        return Break(Verdict::Drop(DropReason::VxlanInjection));
    }
    observe(packet, kind, l3 as u16);
    Continue(cross(iface, packet, probe))
}

/// Notes offsets and flow, if the frame is IP. What is wrong with it is the receiver's business.
#[inline]
pub(super) fn observe(packet: &mut Packet<'_>, kind: u16, l3: u16) {
    let before = *packet.meta;
    // The node's own super-frames are not measured by what pods may send.
    (packet.meta.checksum, packet.meta.gso) = (Checksum::Unknown, Gso::None);
    let parsed = match kind {
        ether_type::IPV4 => parse::ip4(packet, l3).is_continue(),
        ether_type::IPV6 => parse::ip6(packet, l3).is_continue(),
        _ => false,
    };
    // Parsing trims padding; the frame crosses with it.
    let meta = &mut *packet.meta;
    (meta.end, meta.body_bytes) = (before.end, before.body_bytes);
    (meta.checksum, meta.gso) = (before.checksum, before.gso);
    if !parsed {
        (meta.l3, meta.l4, meta.protocol, meta.ip_version) = (0, 0, 0, 0);
    }
}

/// The EtherType behind all VLAN tags, and where what it names begins.
fn behind_tags(packet: &mut Packet<'_>) -> Step<(u16, usize)> {
    let Some(eth) = Ethernet::view(packet.head()) else { return Break(packet.more()) };
    let (mut kind, mut l3) = (eth.ether_type.get(), Ethernet::BYTES);
    for _ in 0..TAGS_MAX {
        if !matches!(kind, ether_type::VLAN | ether_type::SERVICE_VLAN) {
            return Continue((kind, l3));
        }
        let Some(tag) = Vlan::at(packet.head(), l3) else { return Break(packet.more()) };
        kind = tag.ether_type.get();
        l3 += Vlan::BYTES;
    }
    match kind {
        ether_type::VLAN | ether_type::SERVICE_VLAN => {
            Break(Verdict::Drop(DropReason::HeadTooDeep))
        }
        _ => Continue((kind, l3)),
    }
}

/// Whether it is VXLAN over IPv4 to a tunnel end, or may be: what can not be parsed, a tunnel end
/// might.
fn injects4(tables: &Tables, packet: &mut Packet<'_>, l3: usize) -> Step<bool> {
    let Some(ip) = Ipv4::at(packet.head(), l3) else { return Continue(false) };
    if ip.protocol != protocol::UDP
        || ip.is_later_fragment()
        || tables.hosts4.lookup(VrfId::UNDERLAY, ip.dst.get()) == NextHopId::NONE
    {
        return Continue(false);
    }
    let header_bytes = ip.header_bytes().max(Ipv4::BYTES);
    to_vxlan_port(tables, packet, l3 + header_bytes)
}

fn injects6(tables: &Tables, packet: &mut Packet<'_>, l3: usize) -> Step<bool> {
    let Some(bytes) = packet.head().get(l3..) else { return Continue(false) };
    let Some(ip) = Ipv6::view(bytes) else { return Continue(false) };
    if tables.hosts6.lookup(VrfId::UNDERLAY, ip.dst.get()) == NextHopId::NONE {
        return Continue(false);
    }
    match Ipv6::walk(bytes) {
        Walk::Found(upper) if upper.piece == Piece::Later => Continue(false),
        Walk::Found(upper) if upper.protocol == protocol::UDP => {
            to_vxlan_port(tables, packet, l3 + upper.offset)
        }
        Walk::Found(_) => Continue(false),
        Walk::Short | Walk::TooMany => unparsable(packet),
    }
}

fn to_vxlan_port(tables: &Tables, packet: &mut Packet<'_>, l4: usize) -> Step<bool> {
    match Udp::at(packet.head(), l4) {
        Some(udp) => Continue(udp.dst_port.get() == tables.node.vxlan_port),
        None => unparsable(packet),
    }
}

/// The ports are not in sight: asks for more of the head while there is more, then assumes the
/// worst.
fn unparsable(packet: &mut Packet<'_>) -> Step<bool> {
    match packet.more() {
        Verdict::Refill => Break(Verdict::Refill),
        _ => Continue(true),
    }
}

/// Whether a pod's packet is VXLAN to a tunnel end.
pub(super) fn is_injection(tables: &Tables, packet: &Packet<'_>) -> bool {
    is_to_vxlan_port(tables, packet) && names_tunnel_end(tables, packet)
}

/// Whether a parsed packet's destination is a tunnel end on the underlay, this node's included.
pub(super) fn names_tunnel_end(tables: &Tables, packet: &Packet<'_>) -> bool {
    let (head, l3) = (packet.head(), usize::from(packet.meta.l3));
    let node = &tables.node;
    if packet.meta.ip_version == 4 {
        Ipv4::at(head, l3).is_some_and(|ip| {
            tables.hosts4.lookup(VrfId::UNDERLAY, ip.dst.get()) != NextHopId::NONE
                || node.vteps4.iter().any(|&own| u32::from(own) == ip.dst.get())
        })
    } else {
        Ipv6::at(head, l3).is_some_and(|ip| {
            tables.hosts6.lookup(VrfId::UNDERLAY, ip.dst.get()) != NextHopId::NONE
                || node.vteps6.iter().any(|&own| u128::from(own) == ip.dst.get())
        })
    }
}

/// Whether a parsed packet goes to the VXLAN port.
#[inline]
pub(super) fn is_to_vxlan_port(tables: &Tables, packet: &Packet<'_>) -> bool {
    let l4 = usize::from(packet.meta.l4);
    packet.meta.protocol == protocol::UDP
        && l4 != 0
        && Udp::at(packet.head(), l4)
            .is_some_and(|udp| udp.dst_port.get() == tables.node.vxlan_port)
}
