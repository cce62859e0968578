//! New headers: the next hop's prebuilt ones in the place of what the packet came with.

use super::probe::note;
use super::{DropReason, Packet, Probe, Verdict, encap};
use crate::table::{HopKind, NextHop, NextHopId};

const ETHERNET: usize = 14;

/// EtherType of the IP version.
#[inline]
pub(super) const fn ether_type(ip_version: u8) -> [u8; 2] {
    if ip_version == 4 { [0x08, 0x00] } else { [0x86, 0xdd] }
}

/// Sends the packet by the next hop: everything in front of the IP header is replaced.
/// `ip_bytes` is the length of the (inner) IP packet.
#[inline(always)]
pub(super) fn send<P: Probe>(
    packet: &mut Packet<'_>,
    id: NextHopId,
    hop: &NextHop,
    ip_bytes: u32,
    probe: &mut P,
) -> Verdict {
    packet.meta.next_hop = id;
    packet.meta.out = hop.out;
    let done = match hop.kind {
        HopKind::Local => local(packet, hop),
        HopKind::Tunnel4 => encap::ip4(packet, hop, ip_bytes),
        HopKind::Tunnel6 => encap::ip6(packet, hop, ip_bytes),
        HopKind::Unresolved => {
            note!(probe, Rewrite, "the tunnel's next hop has no MAC address yet");
            return Verdict::Drop(DropReason::NeighbourUnresolved);
        }
        HopKind::Gateway | HopKind::Unreachable => false,
    };
    if !done {
        // The writer's next hop has a rewrite that can not be: no such route.
        return Verdict::Drop(DropReason::NoRoute);
    }
    note!(probe, Rewrite, "{:?} to interface {}", hop.kind, hop.out.0);
    Verdict::Forward
}

#[inline(always)]
fn local(packet: &mut Packet<'_>, hop: &NextHop) -> bool {
    packet.meta.outer = 0;
    let version = packet.meta.ip_version;
    let (rewrite, _) = hop.rewrite.split_at(usize::from(hop.rewrite_len).min(hop.rewrite.len()));
    if packet.meta.l3 == ETHERNET as u16
        && let Ok(template) = <&[u8; ETHERNET]>::try_from(rewrite)
        && let Some(header) = packet.head_mut().first_chunk_mut::<ETHERNET>()
    {
        *header = *template;
        [header[12], header[13]] = ether_type(version);
        return true;
    }
    if !packet.pull(packet.meta.l3) || !packet.push(rewrite) {
        return false;
    }
    if let Some(at) = rewrite.len().checked_sub(2)
        && let Some(field) = packet.head_mut().get_mut(at..at + 2)
    {
        field.copy_from_slice(&ether_type(version));
    }
    true
}
