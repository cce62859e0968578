//! New headers: the next hop's prebuilt ones in the place of what the packet came with.

use wire::{Header, Ipv4};

use super::probe::note;
use super::{DropReason, Packet, Probe, Verdict, encap};
use crate::table::{HopKind, NextHop, NextHopId};

const ETHERNET: usize = 14;

/// EtherType of the IP version.
#[inline]
pub(super) const fn ether_type(ip_version: u8) -> [u8; 2] {
    if ip_version == 4 { [0x08, 0x00] } else { [0x86, 0xdd] }
}

/// Sends the packet by the next hop: everything in front of the IP header is replaced. `ip_bytes`
/// is the length of the (inner) IP packet. Where it enters the realm, it loses one hop.
#[inline(always)]
pub(super) fn send<P: Probe>(
    packet: &mut Packet<'_>,
    id: NextHopId,
    hop: &NextHop,
    ip_bytes: u32,
    enters: bool,
    probe: &mut P,
) -> Verdict {
    packet.meta.next_hop = id;
    packet.meta.out = hop.out;
    let done = if hop.kind == HopKind::Local {
        local(packet, hop, enters)
    } else if hop.kind == HopKind::Tunnel4 {
        encap::ip4(packet, hop, ip_bytes, enters)
    } else if hop.kind == HopKind::Tunnel6 {
        encap::ip6(packet, hop, ip_bytes, enters)
    } else {
        note!(probe, Rewrite, "the tunnel's next hop has no MAC address yet");
        return Verdict::Drop(DropReason::NeighbourUnresolved);
    };
    if done.is_none() {
        // The writer's next hop has a rewrite that can not be: no such route.
        return Verdict::Drop(DropReason::NoRoute);
    }
    note!(probe, Rewrite, "{:?} to interface {}", hop.kind, hop.out.0);
    Verdict::Forward
}

/// Whether [`send`] is sure to forward by this next hop: it leads on, and has the headers of its kind.
#[inline]
pub(super) fn is_ready(hop: &NextHop) -> bool {
    let bytes = usize::from(hop.rewrite_len);
    match hop.kind {
        HopKind::Local => bytes == ETHERNET || bytes == 0,
        HopKind::Tunnel4 => bytes == encap::FULL4,
        HopKind::Tunnel6 => bytes == encap::FULL6,
        HopKind::Gateway | HopKind::Unresolved | HopKind::Unreachable => false,
    }
}

/// By a local interface's link header, of whatever length the packet's own was.
#[inline(always)]
pub(super) fn local(packet: &mut Packet<'_>, hop: &NextHop, enters: bool) -> Option<()> {
    packet.meta.outer = 0;
    let version = packet.meta.ip_version;
    match usize::from(hop.rewrite_len) {
        ETHERNET => {
            let head = packet.reheader::<{ ETHERNET as u16 }, { ETHERNET + AGED }>()?;
            let (link, ip) = head.split_first_chunk_mut::<ETHERNET>()?;
            *link = *hop.rewrite.first_chunk()?;
            [link[12], link[13]] = ether_type(version);
            age(ip, version, enters)
        }
        0 => age(packet.reheader::<0, AGED>()?, version, enters),
        _ => None,
    }
}

/// Bytes of an IP header that [`age`] needs, of either family.
pub(super) const AGED: usize = Ipv4::BYTES;

/// Takes one off the TTL or hop limit.
#[inline(always)]
pub(super) fn age(ip: &mut [u8], version: u8, enters: bool) -> Option<()> {
    if !enters {
        return Some(());
    }
    if version == 4 {
        Ipv4::view_mut(ip)?.decrement_ttl();
    } else {
        let hop_limit = ip.get_mut(7)?;
        *hop_limit = hop_limit.wrapping_sub(1);
    }
    Some(())
}
