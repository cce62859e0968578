//! What a packet may not exceed: its TTL and the MTU on its way; and the errors that say so.

use std::ops::ControlFlow::{Break, Continue};

use wire::{Icmp4, Icmp6};

use super::icmp_error::{self, Told};
use super::parse::{GSO_SEGMENTS_MAX, GSO_SIZE_MIN, Ip4, Ip6, again4, l4_header_bytes};
use super::probe::note;
use super::{Context, DropReason, Gso, Origin, Packet, Probe, Step, Verdict, bump};
use crate::table::{HopKind, NextHop};

/// TTL and MTU of an IPv4 packet on its way to `hop`. The TTL falls (see [`super::rewrite`]) where
/// a packet enters the realm, not a second time where it leaves a tunnel.
#[inline(always)]
pub(super) fn ip4<P: Probe>(
    cx: &mut Context<'_>,
    from: &Origin<'_>,
    packet: &mut Packet<'_>,
    ip: Ip4,
    hop: &NextHop,
    probe: &mut P,
) -> Step<()> {
    let enters = from.outer.is_none();
    if ip.ttl <= u8::from(enters) {
        return Break(expired4(cx, from, packet, probe));
    }
    local_or_tunnel(cx, from, packet, hop, ip.ports, probe)?;
    let mtu = hop.mtu_bytes;
    if ip.bytes > mtu && size(packet, u32::from(ip.bytes)) > u32::from(mtu) {
        too_big4(cx, from, packet, mtu, probe)?;
    }
    note!(probe, Limits, "within TTL and MTU {mtu}");
    Continue(())
}

/// Hop limit and MTU of an IPv6 packet on its way to `hop`.
#[inline(always)]
pub(super) fn ip6<P: Probe>(
    cx: &mut Context<'_>,
    from: &Origin<'_>,
    packet: &mut Packet<'_>,
    ip: Ip6,
    hop: &NextHop,
    probe: &mut P,
) -> Step<()> {
    let enters = from.outer.is_none();
    if ip.hop_limit <= u8::from(enters) {
        note!(probe, Limits, "hop limit {} is used up", ip.hop_limit);
        let told = Told { kind: Icmp6::TIME_EXCEEDED, code: 0, rest: 0 };
        return Break(icmp_error::ip6(cx, from, packet, ip, DropReason::TtlExpired, told, probe));
    }
    local_or_tunnel(cx, from, packet, hop, ip.ports, probe)?;
    let mtu = u32::from(hop.mtu_bytes);
    if ip.bytes > mtu && size(packet, ip.bytes) > mtu {
        note!(probe, Limits, "{} bytes do not fit the MTU {mtu}", size(packet, ip.bytes));
        let told = Told { kind: Icmp6::PACKET_TOO_BIG, code: 0, rest: mtu };
        return Break(icmp_error::ip6(cx, from, packet, ip, DropReason::TooBig, told, probe));
    }
    note!(probe, Limits, "within hop limit and MTU {mtu}");
    Continue(())
}

/// What leaves a tunnel stays on this node; and what leaves by the node's own leg into a network
/// is not VXLAN to a tunnel end (DESIGN §6, "nobody injects").
#[inline(always)]
fn local_or_tunnel<P: Probe>(
    cx: &Context<'_>,
    from: &Origin<'_>,
    packet: &Packet<'_>,
    hop: &NextHop,
    ports: u32,
    probe: &mut P,
) -> Step<()> {
    if from.outer.is_some() && hop.kind != HopKind::Local {
        note!(probe, Limits, "out of one tunnel into another");
        return Break(Verdict::Drop(DropReason::TunnelHairpin));
    }
    if ports as u16 == cx.tables.node.vxlan_port && from.outer.is_none() {
        injection(cx, packet, hop, probe)?;
    }
    Continue(())
}

/// Whether a pod's packet would reach a tunnel end through the node's own leg.
#[cold]
#[inline(never)]
fn injection<P: Probe>(
    cx: &Context<'_>,
    packet: &Packet<'_>,
    hop: &NextHop,
    probe: &mut P,
) -> Step<()> {
    let to_node = cx.tables.iface(hop.out).is_some_and(|out| out.any_source);
    if to_node && bump::is_injection(cx.tables, packet) {
        note!(probe, Limits, "VXLAN to a tunnel end by way of the node");
        return Break(Verdict::Drop(DropReason::VxlanInjection));
    }
    Continue(())
}

/// Bytes of the largest IP packet that leaves: of a super-frame, of one piece.
#[inline]
fn size(packet: &Packet<'_>, ip_bytes: u32) -> u32 {
    if packet.meta.gso == Gso::None {
        return ip_bytes;
    }
    headers(packet).map_or(ip_bytes, |headers| headers + u32::from(packet.meta.gso_size))
}

/// IP and layer-4 header bytes of a super-frame.
fn headers(packet: &Packet<'_>) -> Option<u32> {
    let l4_header = l4_header_bytes(packet)?;
    Some(u32::from(packet.meta.l4 - packet.meta.l3) + l4_header as u32)
}

#[cold]
#[inline(never)]
fn expired4<P: Probe>(
    cx: &mut Context<'_>,
    from: &Origin<'_>,
    packet: &mut Packet<'_>,
    probe: &mut P,
) -> Verdict {
    note!(probe, Limits, "TTL {} is used up", again4(packet).ttl);
    let told = Told { kind: Icmp4::TIME_EXCEEDED, code: 0, rest: 0 };
    icmp_error::ip4(cx, from, packet, DropReason::TtlExpired, told, probe)
}

/// An IPv4 packet beyond the MTU: fragmented, cut smaller, or refused.
#[cold]
#[inline(never)]
fn too_big4<P: Probe>(
    cx: &mut Context<'_>,
    from: &Origin<'_>,
    packet: &mut Packet<'_>,
    mtu: u16,
    probe: &mut P,
) -> Step<()> {
    let ip = again4(packet);
    if !ip.dont_fragment {
        // Datagrams are cut where their sender said; it learns that this was too big.
        let gso = packet.meta.gso;
        if gso == Gso::None {
            note!(probe, Limits, "fragmented to the MTU {mtu}");
            packet.meta.fragment_mtu = mtu;
            return Continue(());
        }
        if gso == Gso::Tcp4 && shrink(packet, u32::from(ip.bytes), mtu) {
            note!(probe, Limits, "segmented to the MTU {mtu}");
            return Continue(());
        }
    }
    note!(probe, Limits, "{} bytes do not fit the MTU {mtu}", ip.bytes);
    let (kind, code) = (Icmp4::UNREACHABLE, Icmp4::CODE_FRAGMENTATION_NEEDED);
    let told = Told { kind, code, rest: u32::from(mtu) };
    Break(icmp_error::ip4(cx, from, packet, DropReason::TooBig, told, probe))
}

/// Makes the segments of a super-frame small enough.
fn shrink(packet: &mut Packet<'_>, ip_bytes: u32, mtu: u16) -> bool {
    let Some(headers) = headers(packet) else { return false };
    let Some(size) = u32::from(mtu).checked_sub(headers) else { return false };
    let payload = ip_bytes.saturating_sub(headers);
    if size < u32::from(GSO_SIZE_MIN) || payload.div_ceil(size) > GSO_SEGMENTS_MAX as u32 {
        return false;
    }
    packet.meta.gso_size = size as u16;
    true
}

/// Nothing leads to an IPv4 destination; `known` when a route says that it does not exist.
#[cold]
#[inline(never)]
pub(super) fn no_route4<P: Probe>(
    cx: &mut Context<'_>,
    from: &Origin<'_>,
    packet: &mut Packet<'_>,
    known: bool,
    probe: &mut P,
) -> Verdict {
    if from.outer.is_none() && bump::is_injection(cx.tables, packet) {
        return Verdict::Drop(DropReason::VxlanInjection);
    }
    let code = if known { Icmp4::CODE_HOST } else { Icmp4::CODE_NET };
    let told = Told { kind: Icmp4::UNREACHABLE, code, rest: 0 };
    icmp_error::ip4(cx, from, packet, DropReason::NoRoute, told, probe)
}

/// Nothing leads to an IPv6 destination; `known` when a route says that it does not exist.
#[cold]
#[inline(never)]
pub(super) fn no_route6<P: Probe>(
    cx: &mut Context<'_>,
    from: &Origin<'_>,
    packet: &mut Packet<'_>,
    ip: Ip6,
    known: bool,
    probe: &mut P,
) -> Verdict {
    if from.outer.is_none() && bump::is_injection(cx.tables, packet) {
        return Verdict::Drop(DropReason::VxlanInjection);
    }
    let code = if known { Icmp6::CODE_ADDRESS } else { Icmp6::CODE_NO_ROUTE };
    let told = Told { kind: Icmp6::UNREACHABLE, code, rest: 0 };
    icmp_error::ip6(cx, from, packet, ip, DropReason::NoRoute, told, probe)
}
