//! Out of a tunnel: which frames of an uplink are ours, and whether their sender may send on this
//! VNI (RFC 7348 §4.1).
//!
//! Nothing is taken off here: the inner packet is parsed where it lies, and the rewrite replaces
//! all in front of it. So the packet is unchanged whenever more of its bytes are asked for.

use std::ops::ControlFlow::{Break, Continue};

use wire::checksum::Sum;
use wire::{
    Ethernet, Header, Ipv4, Ipv6, Mac, Piece, U32, Udp, Vxlan, Walk, ether_type, ports, protocol,
};

use super::encap::{TUNNEL, ecn_of};
use super::ingress::{Link, v4, v6};
use super::probe::note;
use super::{Checksum, DropReason, Packet, Probe, Step, Verdict};
use crate::table::{Iface, NextHopId, Tables, Vrf, VrfId};

/// The tunnel that a packet came out of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outer {
    /// 4 or 6.
    pub family: u8,
    /// The outer ECN bits.
    pub ecn: u8,
    /// Bytes to the outer IP header.
    pub l3: u16,
    /// Bytes to the outer UDP header.
    pub udp: u16,
    /// Bytes to the inner Ethernet header.
    pub inner: u16,
    /// Its VNI.
    pub vni: u32,
}

/// What a frame from an uplink is.
pub(super) enum Frame<'a> {
    /// The node's: crosses the bump.
    NotOurs,
    /// Out of a tunnel, into this VRF, with this inner link header.
    Tunnelled(Outer, &'a Vrf, Link),
}

/// An IP header's facts, of either family.
struct Ip {
    family: u8,
    ecn: u8,
    /// Bytes of the frame up to the UDP header.
    udp: usize,
    /// Bytes of UDP header and payload that the IP header leaves room for.
    room: usize,
    src: Vtep,
}

#[derive(Clone, Copy)]
enum Vtep {
    V4(u32),
    V6(u128),
}

/// Looks at the outer headers of a frame from an uplink.
#[inline(always)]
pub(super) fn outer<'a, P: Probe>(
    tables: &'a Tables,
    iface: &Iface,
    packet: &mut Packet<'_>,
    probe: &mut P,
) -> Step<Frame<'a>> {
    let Some((eth, bytes)) = Ethernet::split(packet.head()) else { return Break(packet.more()) };
    if eth.dst != iface.mac {
        return Continue(Frame::NotOurs);
    }
    let (ip, sum, bytes) = match eth.ether_type.get() {
        ether_type::IPV4 => outer4(tables, packet, bytes)?,
        ether_type::IPV6 => outer6(tables, packet, bytes)?,
        _ => return Continue(Frame::NotOurs),
    };
    let Some(ip) = ip else { return Continue(Frame::NotOurs) };
    let Some((udp, bytes)) = Udp::split(bytes) else { return Break(packet.more()) };
    if udp.dst_port.get() != tables.node.vxlan_port {
        return Continue(Frame::NotOurs);
    }
    // From here on the frame is ours: what is wrong with it is a drop.
    if !sum.verifies() {
        return Break(Verdict::Drop(DropReason::Ip4BadChecksum));
    }
    let (udp_bytes, udp_checksum) = (usize::from(udp.len.get()), udp.checksum.get());
    let malformed = Break(Verdict::Drop(DropReason::VxlanMalformed));
    // Of a super-frame (from a neighbour on the same machine) the length fields are the whole's.
    if udp_bytes < TUNNEL || udp_bytes > ip.room || ip.udp + udp_bytes > packet.frame_bytes() {
        return malformed;
    }
    let Some((vxlan, bytes)) = Vxlan::split(bytes) else { return Break(packet.more()) };
    let Some(inner) = Ethernet::view(bytes) else { return Break(packet.more()) };
    let Some(vni) = vxlan.vni() else {
        note!(probe, Decap, "VXLAN flags {:08x} lack the I bit", vxlan.flags.get());
        return malformed;
    };
    let Some(vrf) = tables.vrf_of_vni(vni).and_then(|id| tables.vrf(id)) else {
        note!(probe, Decap, "no Network with VNI {vni} on this node");
        return Break(Verdict::Drop(DropReason::VniUnknown));
    };
    if !may_send(tables, vrf, ip.src) {
        match ip.src {
            Vtep::V4(a) => note!(probe, Decap, "{} is no tunnel end of {}", v4(a), vrf.name),
            Vtep::V6(a) => note!(probe, Decap, "{} is no tunnel end of {}", v6(a), vrf.name),
        }
        return Break(Verdict::Drop(DropReason::VtepUnknown));
    }
    let (dst, group) = (inner.dst, inner.dst.is_group());
    let link = Link { ether_type: inner.ether_type.get(), group };
    packet.trim(ip.udp + udp_bytes);
    if packet.meta.checksum != Checksum::Verified && (udp_checksum != 0 || ip.family == 6) {
        outer_checksum(&ip, udp_checksum, udp_bytes, packet)?;
    }
    packet.meta.vrf = vrf.id;
    if dst != tables.node.router_mac && !group {
        note!(probe, Decap, "inner destination MAC {dst} is not this node's router");
        return Break(Verdict::Drop(DropReason::VxlanNotForRouter));
    }
    note!(probe, Decap, "VNI {vni} is {}, from a tunnel end that may send on it", vrf.name);
    let outer = Outer {
        family: ip.family,
        ecn: ip.ecn,
        l3: Ethernet::BYTES as u16,
        udp: ip.udp as u16,
        inner: (ip.udp + Udp::BYTES + Vxlan::BYTES) as u16,
        vni,
    };
    Continue(Frame::Tunnelled(outer, vrf, link))
}

/// What is behind the outer IP header: `None` where the packet is not UDP in one piece to one of
/// this node's tunnel ends. The sum is that of the header, to be checked when it is ours.
type Behind<'b> = (Option<Ip>, Sum, &'b [u8]);

/// UDP over IPv4.
#[inline(always)]
fn outer4<'b>(tables: &Tables, packet: &Packet<'_>, bytes: &'b [u8]) -> Step<Behind<'b>> {
    let Some((ip, rest)) = Ipv4::split(bytes) else { return Break(packet.more()) };
    if ip.protocol != protocol::UDP
        || ip.is_fragment()
        || !tables.node.vteps4.iter().any(|vtep| u32::from(*vtep) == ip.dst.get())
    {
        return Continue((None, Sum::default(), rest));
    }
    let (sum, rest) = match ip.version_ihl {
        0x45 => (ip.sum(), rest),
        0x46..=0x4f => match bytes.split_at_checked(ip.header_bytes()) {
            Some((header, rest)) => (Sum::of(header), rest),
            None => return Break(packet.more()),
        },
        _ => return Continue((None, Sum::default(), rest)),
    };
    let (ecn, src) = (ip.tos & Ipv4::ECN, Vtep::V4(ip.src.get()));
    let room = usize::from(ip.total_len.get()).saturating_sub(ip.header_bytes());
    let udp = Ethernet::BYTES + ip.header_bytes();
    Continue((Some(Ip { family: 4, ecn, udp, room, src }), sum, rest))
}

/// UDP over IPv6.
#[inline(never)]
fn outer6<'b>(tables: &Tables, packet: &Packet<'_>, bytes: &'b [u8]) -> Step<Behind<'b>> {
    let Some((ip, rest)) = Ipv6::split(bytes) else { return Break(packet.more()) };
    // There is no header checksum: one that is right.
    let right = Sum::from_word(0xffff);
    let ours = tables.node.vteps6.iter().any(|vtep| u128::from(*vtep) == ip.dst.get());
    if !ours || ip.version() != 6 {
        return Continue((None, right, rest));
    }
    let upper = match Ipv6::walk(bytes) {
        Walk::Found(upper) if upper.protocol == protocol::UDP && upper.piece == Piece::Whole => {
            upper
        }
        Walk::Short if packet.meta.body_bytes > 0 => return Break(packet.more()),
        _ => return Continue((None, right, rest)),
    };
    let Some(rest) = bytes.get(upper.offset..) else { return Break(packet.more()) };
    let total = Ipv6::BYTES + usize::from(ip.payload_len.get());
    let (ecn, src) = (ip.ecn(), Vtep::V6(ip.src.get()));
    let (udp, room) = (Ethernet::BYTES + upper.offset, total.saturating_sub(upper.offset));
    Continue((Some(Ip { family: 6, ecn, udp, room, src }), right, rest))
}

/// Whether a tunnel end may send on the VRF's VNI: any of the cluster's but our own, and the VRF's
/// peers.
#[inline(always)]
fn may_send(tables: &Tables, vrf: &Vrf, src: Vtep) -> bool {
    let (known, own) = match src {
        Vtep::V4(a) => (
            tables.hosts4.lookup(VrfId::UNDERLAY, a),
            tables.node.vteps4.iter().any(|vtep| u32::from(*vtep) == a),
        ),
        Vtep::V6(a) => (
            tables.hosts6.lookup(VrfId::UNDERLAY, a),
            tables.node.vteps6.iter().any(|vtep| u128::from(*vtep) == a),
        ),
    };
    !own && (known == NextHopId::CLUSTER_VTEP || is_peer(vrf, src))
}

/// The same for an IPv4 tunnel end.
pub(super) fn may_send4(tables: &Tables, vrf: &Vrf, src: u32) -> bool {
    may_send(tables, vrf, Vtep::V4(src))
}

fn is_peer(vrf: &Vrf, src: Vtep) -> bool {
    let src = match src {
        Vtep::V4(a) => std::net::IpAddr::V4(a.into()),
        Vtep::V6(a) => std::net::IpAddr::V6(a.into()),
    };
    vrf.peers.contains(&src)
}

/// Checks the outer UDP checksum, which nobody has verified.
#[inline(never)]
fn outer_checksum(ip: &Ip, field: u16, udp_bytes: usize, packet: &mut Packet<'_>) -> Step<()> {
    if packet.meta.checksum == Checksum::Partial {
        // The frame never was on a wire: a neighbour's stack on this machine left it to us, at the
        // outer header (then the inner one is complete) or at the inner one.
        if usize::from(packet.meta.csum_start) == ip.udp {
            packet.meta.checksum = Checksum::Verified;
        }
        return Continue(());
    }
    if field == 0 {
        // RFC 8200 §8.1; zero is for those who agreed on it (RFC 6935), and nobody asked us.
        return Break(Verdict::Drop(DropReason::VxlanMalformed));
    }
    if packet.meta.body_bytes > 0 && !packet.meta.body_summed {
        return Break(Verdict::Sum);
    }
    let pseudo = match ip.family {
        4 => Ipv4::at(packet.head(), Ethernet::BYTES).map(|ip| ip.pseudo(udp_bytes)),
        _ => Ipv6::at(packet.head(), Ethernet::BYTES).map(|ip| ip.pseudo(protocol::UDP, udp_bytes)),
    };
    let covered = packet.head().get(ip.udp..).unwrap_or(&[]);
    let mut sum = pseudo.unwrap_or_default().plus(Sum::of(covered));
    if packet.meta.body_bytes > 0 {
        sum = sum.plus(Sum::from_word(packet.meta.body_sum).shifted(covered.len()));
    }
    if sum.fold() != 0xffff {
        return Break(Verdict::Drop(DropReason::VxlanMalformed));
    }
    // Also spares the work when the packet comes by again with more of its head.
    packet.meta.checksum = Checksum::Verified;
    Continue(())
}

/// Combines the outer ECN bits into the inner packet (RFC 6040 §4.2). False when the packet must
/// be dropped: congestion was marked on a flow that does not understand it.
#[inline(always)]
pub(super) fn merge_ecn(packet: &mut Packet<'_>, outer_ecn: u8) -> bool {
    const ECT1: u8 = 1;
    const CE: u8 = 3;
    // Not-ECT and ECT(0) outside change nothing.
    if outer_ecn != ECT1 && outer_ecn != CE {
        return true;
    }
    let (l3, version) = (usize::from(packet.meta.l3), packet.meta.ip_version);
    let inner = ecn_of(packet.head().get(l3..).unwrap_or(&[]), version);
    let merged = match (inner, outer_ecn) {
        (0, CE) => return false,
        (0, _) | (CE, _) => return true,
        (_, outer) => outer,
    };
    if version == 4 {
        if let Some(ip) = Ipv4::at_mut(packet.head_mut(), l3) {
            ip.set_ecn(merged);
        }
    } else if let Some(ip) = Ipv6::at_mut(packet.head_mut(), l3) {
        ip.set_ecn(merged);
    }
    true
}

impl Outer {
    /// Turns the frame around: what is behind the VXLAN header (all of it in the head, an answer
    /// to what the tunnel end asked) goes back to that end, from `mac` to `to`.
    pub(super) fn turn(&self, packet: &mut Packet<'_>, mac: Mac, to: Mac) -> bool {
        let hash = packet.meta.flow_hash;
        let (l3, udp_at) = (usize::from(self.l3), usize::from(self.udp));
        packet.meta.outer = self.family;
        packet.meta.checksum = Checksum::Unknown;
        let head = packet.head_mut();
        let Some(udp_bytes) = head.len().checked_sub(udp_at) else { return false };
        let Some(eth) = Ethernet::view_mut(head) else { return false };
        (eth.dst, eth.src) = (eth.src, eth.dst);
        let Some(inner) = Ethernet::at_mut(head, usize::from(self.inner)) else { return false };
        (inner.dst, inner.src) = (to, mac);
        let Some(udp) = Udp::at_mut(head, udp_at) else { return false };
        udp.src_port.set(ports::entropy_port(hash));
        udp.len.set(udp_bytes as u16);
        udp.checksum.set(0);
        let Some(vxlan) = Vxlan::at_mut(head, udp_at + Udp::BYTES) else { return false };
        *vxlan = Vxlan::new(self.vni);
        if self.family == 4 { turn4(head, l3, udp_at) } else { turn6(head, l3, udp_at) }
    }
}

fn turn4(head: &mut [u8], l3: usize, udp_at: usize) -> bool {
    let bytes = head.len() - l3;
    let Some(header) = head.get_mut(l3..udp_at) else { return false };
    let Some(ip) = Ipv4::view_mut(header) else { return false };
    (ip.src, ip.dst) = (ip.dst, ip.src);
    ip.tos = 0;
    ip.ttl = 64;
    ip.id.set(0);
    ip.flags_offset.set(Ipv4::DF);
    ip.total_len.set(bytes as u16);
    Ipv4::fill_checksum(header)
}

fn turn6(head: &mut [u8], l3: usize, udp_at: usize) -> bool {
    let Some(ip) = Ipv6::at_mut(head, l3) else { return false };
    (ip.src, ip.dst) = (ip.dst, ip.src);
    ip.version_class_flow = U32::new(6 << 28);
    ip.hop_limit = 64;
    let pseudo = *ip;
    let (bytes, payload) = (head.len() - udp_at, head.len() - l3 - Ipv6::BYTES);
    if let Some(ip) = Ipv6::at_mut(head, l3) {
        ip.payload_len.set(payload as u16);
    }
    let sum = pseudo.pseudo(protocol::UDP, bytes).plus(Sum::of(head.get(udp_at..).unwrap_or(&[])));
    match Udp::at_mut(head, udp_at) {
        Some(udp) => udp.checksum.set(sum.complement_udp()),
        None => return false,
    }
    true
}
