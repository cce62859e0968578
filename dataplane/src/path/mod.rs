//! THE packet's path. Read this file to know what happens to a frame, in order.
//!
//! ```text
//! from a pod     link → parse → link-scope ND? answer │ anti-spoof → lookup → gateway? answer
//!                                                     │ TTL → MTU → rewrite [+ encap]
//! from an uplink ours? no: host tap, unchanged │ yes: VNI, VTEP → inner link → parse → lookup → …
//! from the host  VXLAN to a tunnel end? drop   │ else: uplink, unchanged
//! ```
//!
//! A stage decides by the head alone and either goes on with what it found out or ends the way
//! with a [`Verdict`] ([`Step`]); nothing here allocates, locks, logs or fails. Nothing of the
//! packet is changed before everything that needs its bytes has seen them, so that a packet can
//! come by again with more of its head ([`Verdict::Refill`]) or a sum ([`Verdict::Sum`]).
//! For nearly all packets [`fast`] comes to the same end sooner.
//! Splitting and merging of frames ([`split`], [`coalesce`]) happen on the way out, when the worker
//! knows the port.

mod arp;
mod bump;
pub mod coalesce;
mod decap;
mod encap;
mod fast;
mod gateway;
mod icmp_error;
mod ingress;
mod limit;
mod limits;
mod lookup;
mod nd;
mod packet;
mod parse;
mod probe;
mod reason;
mod rewrite;
pub mod split;
pub mod testing;
#[cfg(test)]
mod tests;

use std::ops::ControlFlow::{self, Break, Continue};

use wire::{Ethernet, Header, ether_type};

pub use fast::Fast;
pub use limit::{Events, IcmpLimiter, PathEvent};
pub use packet::{Checksum, Gso, HEAD_BYTES, HEAD_MAX_BYTES, HEADROOM_BYTES, Meta, Packet, Slot};
pub use probe::{NoProbe, Probe, Recorder, Stage};
pub use reason::{DropReason, TxDropReason};

use crate::table::{HopKind, Iface, IfaceKind, NextHopId, Tables, Vrf, VrfId};
use decap::{Frame, Outer};
use probe::note;

/// The fate of a received frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Rewritten completely; leaves by `meta.out`.
    Forward,
    /// Not Bowline's: crosses the layer-2 bump unchanged to `meta.out`. From an uplink it counts
    /// as punted (to the node's stack), from the host tap as forwarded.
    Bump,
    /// Turned into an answer that leaves by `meta.out`: consumed here, generated there.
    Answer,
    /// Dropped for the reason, and the packet was turned into an ICMP error that leaves by
    /// `meta.out`: dropped here, generated there.
    DropAnswer(DropReason),
    /// Absorbed.
    Consume,
    /// Dropped.
    Drop(DropReason),
    /// Parsing needs more bytes than the head has: refill it up to [`HEAD_MAX_BYTES`] and call
    /// again. The packet is unchanged.
    Refill,
    /// The sum of the body is needed: put it into `meta.body_sum`, set `meta.body_summed`, and call
    /// again. The packet is unchanged but for padding that was cut off its end.
    Sum,
}

/// What the path works with beside the packet.
#[expect(missing_debug_implementations, reason = "the sink of events may be anything")]
pub struct Context<'a> {
    /// The snapshot in force for this burst.
    pub tables: &'a Tables,
    /// Monotonic time of this burst.
    pub now_ns: u64,
    /// The worker's limits on ICMP errors.
    pub limiter: &'a mut IcmpLimiter,
    /// What a person should hear about.
    pub events: &'a mut dyn Events,
}

/// A stage's result: what it found out, or the end of the way.
type Step<T> = ControlFlow<Verdict, T>;

/// Where a packet came from.
#[derive(Debug, Clone, Copy)]
struct Origin<'a> {
    iface: &'a Iface,
    vrf: &'a Vrf,
    /// The tunnel that it came out of, when `iface` is an uplink.
    outer: Option<Outer>,
    /// It was sent to a group on its link.
    group: bool,
}

/// Decides what becomes of one frame that came in by `iface`, and rewrites it accordingly.
///
/// `packet.meta` holds the port's facts (bounds, body length, offloads); everything else in it is
/// filled in here. After [`Verdict::Forward`] and the answers, `l3`, `l4`, `protocol`,
/// `ip_version` and `outer` describe the frame that leaves.
#[inline]
pub fn forward<P: Probe>(
    cx: &mut Context<'_>,
    iface: &Iface,
    packet: &mut Packet<'_>,
    probe: &mut P,
) -> Verdict {
    packet.meta.iface = iface.id;
    packet.meta.vrf = iface.vrf;
    packet.meta.outer = 0;
    packet.meta.fragment_mtu = 0;
    let (Break(verdict) | Continue(verdict)) = match iface.kind {
        IfaceKind::Tap | IfaceKind::MemifEthernet => from_pod(cx, iface, packet, probe),
        IfaceKind::MemifIp => from_ip_pod(cx, iface, packet, probe),
        IfaceKind::Uplink => from_uplink(cx, iface, packet, probe),
        IfaceKind::HostTap => bump::from_host(cx, iface, packet, probe),
    };
    if verdict == Verdict::Refill {
        // The body that was summed is about to change.
        packet.meta.body_summed = false;
    }
    verdict
}

/// A frame from a pod.
#[inline]
fn from_pod<P: Probe>(
    cx: &mut Context<'_>,
    iface: &Iface,
    packet: &mut Packet<'_>,
    probe: &mut P,
) -> Step<Verdict> {
    let Some(vrf) = cx.tables.vrf(iface.vrf) else { return gone() };
    let link = ingress::link(cx, iface, vrf, packet, probe)?;
    let from = Origin { iface, vrf, outer: None, group: link.group };
    match link.ether_type {
        ether_type::IPV4 => packet4(cx, &from, packet, Ethernet::BYTES as u16, probe),
        ether_type::IPV6 => packet6(cx, &from, packet, Ethernet::BYTES as u16, probe),
        ether_type::ARP => arp::from_pod(cx, &from, packet, probe),
        ether_type::VLAN | ether_type::SERVICE_VLAN => Break(Verdict::Drop(DropReason::VlanTagged)),
        _ => Break(Verdict::Drop(DropReason::EtherTypeUnsupported)),
    }
}

/// A bare IP packet from a pod's memif in IP mode.
#[inline(never)]
fn from_ip_pod<P: Probe>(
    cx: &mut Context<'_>,
    iface: &Iface,
    packet: &mut Packet<'_>,
    probe: &mut P,
) -> Step<Verdict> {
    let Some(vrf) = cx.tables.vrf(iface.vrf) else { return gone() };
    let from = Origin { iface, vrf, outer: None, group: false };
    match packet.head().first().map(|byte| byte >> 4) {
        Some(4) => packet4(cx, &from, packet, 0, probe),
        Some(6) => packet6(cx, &from, packet, 0, probe),
        Some(_) => Break(Verdict::Drop(DropReason::ProtocolUnsupported)),
        None => Break(packet.more()),
    }
}

/// A frame from the fabric: out of a tunnel into a VRF, or the node's own.
#[inline(never)]
fn from_uplink<P: Probe>(
    cx: &mut Context<'_>,
    iface: &Iface,
    packet: &mut Packet<'_>,
    probe: &mut P,
) -> Step<Verdict> {
    let (outer, vrf, link) = match decap::outer(cx.tables, iface, packet, probe)? {
        Frame::Tunnelled(outer, vrf, link) => (outer, vrf, link),
        Frame::NotOurs => {
            let kind = Ethernet::view(packet.head()).map_or(0, |eth| eth.ether_type.get());
            packet.meta.vrf = VrfId::UNDERLAY;
            bump::observe(packet, kind, Ethernet::BYTES as u16);
            return Continue(bump::cross(iface, packet, probe));
        }
    };
    let from = Origin { iface, vrf, outer: Some(outer), group: link.group };
    let l3 = outer.inner + Ethernet::BYTES as u16;
    match link.ether_type {
        ether_type::IPV4 => packet4(cx, &from, packet, l3, probe),
        ether_type::IPV6 => packet6(cx, &from, packet, l3, probe),
        ether_type::ARP => arp::from_tunnel(cx, &from, packet, probe),
        // RFC 7348 §6.1.
        ether_type::VLAN | ether_type::SERVICE_VLAN => {
            Break(Verdict::Drop(DropReason::VxlanMalformed))
        }
        _ => Break(Verdict::Drop(DropReason::EtherTypeUnsupported)),
    }
}

/// An IPv4 packet in a VRF.
#[inline(always)]
fn packet4<P: Probe>(
    cx: &mut Context<'_>,
    from: &Origin<'_>,
    packet: &mut Packet<'_>,
    l3: u16,
    probe: &mut P,
) -> Step<Verdict> {
    let tables = cx.tables;
    let ip = parse::ip4(packet, l3)?;
    note!(
        probe,
        Parse,
        "IPv4 {} → {}, protocol {}, {} bytes, TTL {}",
        ingress::v4(ip.src),
        ingress::v4(ip.dst),
        packet.meta.protocol,
        ip.bytes,
        ip.ttl
    );
    ingress::source4(from, ip.src, probe)?;
    let (id, hop) = lookup::ip4(tables, from, ip.dst, probe)?;
    if let Some(outer) = &from.outer {
        leave_tunnel(outer, packet)?;
    }
    if !lookup::leads_on(hop) {
        return Break(match hop.kind {
            HopKind::Gateway => gateway::ip4(tables, from, packet, probe),
            _ => limits::no_route4(cx, from, packet, id != NextHopId::NONE, probe),
        });
    }
    limits::ip4(cx, from, packet, ip, hop, probe)?;
    Continue(rewrite::send(packet, id, hop, u32::from(ip.bytes), from.outer.is_none(), probe))
}

/// An IPv6 packet in a VRF.
#[inline(never)]
fn packet6<P: Probe>(
    cx: &mut Context<'_>,
    from: &Origin<'_>,
    packet: &mut Packet<'_>,
    l3: u16,
    probe: &mut P,
) -> Step<Verdict> {
    let tables = cx.tables;
    let ip = parse::ip6(packet, l3)?;
    note!(
        probe,
        Parse,
        "IPv6 {} → {}, protocol {}, {} bytes, hop limit {}",
        ingress::v6(ip.src),
        ingress::v6(ip.dst),
        packet.meta.protocol,
        ip.bytes,
        ip.hop_limit
    );
    if nd::stays_on_link(packet) {
        return nd::on_link(cx, from, packet, ip, probe);
    }
    ingress::source6(from, ip, probe)?;
    let (id, hop) = lookup::ip6(tables, from, ip, probe)?;
    if let Some(outer) = &from.outer {
        leave_tunnel(outer, packet)?;
    }
    if !lookup::leads_on(hop) {
        return Break(match hop.kind {
            HopKind::Gateway => gateway::ip6(tables, from, packet, ip, probe),
            _ => limits::no_route6(cx, from, packet, ip, id != NextHopId::NONE, probe),
        });
    }
    limits::ip6(cx, from, packet, ip, hop, probe)?;
    Continue(rewrite::send(packet, id, hop, ip.bytes, from.outer.is_none(), probe))
}

/// The inner packet stands for itself from here on.
#[inline(always)]
fn leave_tunnel(outer: &Outer, packet: &mut Packet<'_>) -> Step<()> {
    if packet.meta.checksum == Checksum::Verified {
        // That was the outer one's.
        packet.meta.checksum = Checksum::Unknown;
    }
    if decap::merge_ecn(packet, outer.ecn) {
        Continue(())
    } else {
        Break(Verdict::Drop(DropReason::EcnCongested))
    }
}

/// The interface's Network was removed meanwhile.
#[cold]
fn gone() -> Step<Verdict> {
    Break(Verdict::Drop(DropReason::IfaceGone))
}
