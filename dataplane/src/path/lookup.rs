//! Route and next hop, and what may not be routed at all.

use std::ops::ControlFlow::{Break, Continue};

use wire::link_local_of;

use super::ingress::{v4, v6};
use super::parse::Ip6;
use super::probe::note;
use super::{DropReason, Origin, Packet, Probe, Step, Verdict};
use crate::table::{HopKind, IfaceId, NextHop, NextHopId, REWRITE_MAX_BYTES, Tables};

/// Where a packet goes: by a next hop, to the node itself, or nowhere.
pub(super) type Route<'a> = (NextHopId, &'a NextHop);

/// No route.
pub(super) static NOWHERE: NextHop = other(HopKind::Unreachable);
/// The gateway on its link-local address, which no table holds.
static GATEWAY: NextHop = other(HopKind::Gateway);

const fn other(kind: HopKind) -> NextHop {
    let rewrite = [0; REWRITE_MAX_BYTES];
    NextHop { kind, out: IfaceId::NONE, mtu_bytes: 0, rewrite_len: 0, rewrite }
}

/// Whether the packet leaves by this kind of next hop, as far as the route says.
#[inline(always)]
pub(super) fn leads_on(hop: &NextHop) -> bool {
    !matches!(hop.kind, HopKind::Gateway | HopKind::Unreachable)
}

/// What kind of destination begins with this byte.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Unicast,
    Martian,
    Group,
    /// 169: link-local if 254 follows.
    LinkLocal,
}

const fn class4(byte: usize) -> Class {
    match byte {
        0 | 127 | 240..=254 => Class::Martian,
        224..=239 => Class::Group,
        // Only 255.255.255.255 is anything, and that is broadcast.
        255 => Class::Group,
        169 => Class::LinkLocal,
        _ => Class::Unicast,
    }
}

static CLASS4: [Class; 256] = {
    let mut table = [Class::Unicast; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = class4(byte);
        byte += 1;
    }
    table
};

/// Whether nothing but the tables decides where a packet to this address goes.
#[inline(always)]
pub(super) fn routable4(dst: u32) -> bool {
    CLASS4[(dst >> 24) as usize] == Class::Unicast
}

/// The same of IPv6, for global unicast and unique local addresses: 2000::/3 and fc00::/7.
#[inline(always)]
pub(super) fn routable6(dst: u128) -> bool {
    matches!(dst >> 120, 0x20..=0x3f | 0xfc | 0xfd)
}

/// Routes an IPv4 packet.
#[inline(always)]
pub(super) fn ip4<'a, P: Probe>(
    tables: &'a Tables,
    from: &Origin<'_>,
    dst: u32,
    probe: &mut P,
) -> Step<Route<'a>> {
    let class = CLASS4[(dst >> 24) as usize];
    if from.group || class != Class::Unicast {
        unroutable4(from, dst, class, probe)?;
    }
    let id = tables.route4(from.vrf, dst);
    let route = route(tables, id);
    note!(probe, Lookup, "{} in {}: {}", v4(dst), from.vrf.name, Shown(route));
    Continue(route)
}

#[cold]
#[inline(never)]
fn unroutable4<P: Probe>(from: &Origin<'_>, dst: u32, class: Class, probe: &mut P) -> Step<()> {
    let link_local = class == Class::LinkLocal && dst >> 16 == 0xa9fe;
    if class == Class::Martian || link_local {
        note!(probe, Lookup, "{} is never routed", v4(dst));
        return Break(Verdict::Drop(DropReason::MartianDestination));
    }
    if class == Class::Group || from.group {
        note!(probe, Lookup, "{} to a group", v4(dst));
        return Break(Verdict::Drop(DropReason::BumUnsupported));
    }
    Continue(())
}

/// Routes an IPv6 packet.
#[inline(always)]
pub(super) fn ip6<'a, P: Probe>(
    tables: &'a Tables,
    from: &Origin<'_>,
    ip: Ip6,
    probe: &mut P,
) -> Step<Route<'a>> {
    if from.group || !routable6(ip.dst) {
        if ip.dst == link_local_of(from.vrf.gateway_mac) && !from.group && from.outer.is_none() {
            return Continue((NextHopId::NONE, &GATEWAY));
        }
        unroutable6(from, ip, probe)?;
    }
    let id = tables.route6(from.vrf, ip.dst);
    let route = route(tables, id);
    note!(probe, Lookup, "{} in {}: {}", v6(ip.dst), from.vrf.name, Shown(route));
    Continue(route)
}

#[cold]
fn unroutable6<P: Probe>(from: &Origin<'_>, ip: Ip6, probe: &mut P) -> Step<()> {
    if ip.dst >> 120 == 0xff || from.group {
        note!(probe, Lookup, "{} to a group", v6(ip.dst));
        return Break(Verdict::Drop(DropReason::BumUnsupported));
    }
    if ip.dst >> 48 == 0 || ip.dst >> 118 == 0x3fa {
        note!(probe, Lookup, "{} is never routed", v6(ip.dst));
        return Break(Verdict::Drop(DropReason::MartianDestination));
    }
    Continue(())
}

#[inline(always)]
fn route(tables: &Tables, id: NextHopId) -> Route<'_> {
    // Number 0 is in the tables as well, and leads nowhere.
    (id, tables.next_hop(id).unwrap_or(&NOWHERE))
}

/// Where the node's own answer to the packet's sender goes: back through the VRF. `None` when
/// there is no way.
pub(super) fn back<'a>(
    tables: &'a Tables,
    from: &Origin<'_>,
    packet: &Packet<'_>,
    to: Sender,
) -> Option<(NextHopId, &'a NextHop)> {
    debug_assert!(packet.meta.vrf == from.vrf.id);
    let id = match to {
        Sender::V4(addr) => tables.route4(from.vrf, addr),
        Sender::V6(addr) => tables.route6(from.vrf, addr),
    };
    let (id, hop) = route(tables, id);
    (leads_on(hop) && hop.kind != HopKind::Unresolved).then_some((id, hop))
}

/// Whom an answer goes to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Sender {
    V4(u32),
    V6(u128),
}

struct Shown<'a>(Route<'a>);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (id, hop) = self.0;
        match hop.kind {
            HopKind::Gateway => write!(f, "the node itself"),
            HopKind::Unreachable if id == NextHopId::NONE => write!(f, "no route"),
            HopKind::Unreachable => write!(f, "unreachable by route"),
            kind => {
                let (id, out, mtu) = (id.0, hop.out.0, hop.mtu_bytes);
                write!(f, "{kind:?}")?;
                if let Some(end) = far_end(hop) {
                    write!(f, " to {end}")?;
                }
                write!(f, " by next hop {id}, interface {out}, MTU {mtu}")
            }
        }
    }
}

/// Where a tunnel leads: the destination of its outer header, behind 14 bytes of Ethernet.
fn far_end(hop: &NextHop) -> Option<std::net::IpAddr> {
    match hop.kind {
        HopKind::Tunnel4 => Some(<[u8; 4]>::try_from(&hop.rewrite[30..34]).ok()?.into()),
        HopKind::Tunnel6 => Some(<[u8; 16]>::try_from(&hop.rewrite[38..54]).ok()?.into()),
        _ => None,
    }
}
