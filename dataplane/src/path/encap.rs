//! Into a tunnel: outer Ethernet, IP, UDP, VXLAN and inner Ethernet in front of an IP packet
//! (RFC 7348 §5).
//!
//! The outer header gets the inner ECN bits (RFC 6040 §4.1, normal mode) and DSCP 0: a pod's own
//! marking must not buy it priority on the underlay (the pipe model of RFC 2983).

use wire::checksum::Sum;
use wire::{Ethernet, Header, Ipv4, Ipv6, Udp, Vxlan, ports, protocol};

use super::rewrite::{AGED, age, ether_type};
use super::{Checksum, Gso, Packet};
use crate::table::NextHop;

/// UDP, VXLAN and inner Ethernet.
pub(super) const TUNNEL: usize = Udp::BYTES + Vxlan::BYTES + Ethernet::BYTES;
/// All that is put in front of the inner IP header.
pub(super) const FULL4: usize = Ethernet::BYTES + Ipv4::BYTES + TUNNEL;
pub(super) const FULL6: usize = Ethernet::BYTES + Ipv6::BYTES + TUNNEL;

/// ECN bits at the front of an IP header.
#[inline(always)]
pub(super) fn ecn_of(ip: &[u8], version: u8) -> u8 {
    let Some(second) = ip.get(1) else { return 0 };
    if version == 4 { second & Ipv4::ECN } else { second >> 4 & 3 }
}

/// Over IPv4.
#[inline(always)]
pub(super) fn ip4(
    packet: &mut Packet<'_>,
    hop: &NextHop,
    ip_bytes: u32,
    enters: bool,
) -> Option<()> {
    let (version, hash) = (packet.meta.ip_version, packet.meta.flow_hash);
    if usize::from(hop.rewrite_len) != FULL4 {
        return None;
    }
    packet.meta.outer = 4;
    let head = packet.reheader::<{ FULL4 as u16 }, { FULL4 + AGED }>()?;
    let (outer, inner) = head.split_first_chunk_mut::<FULL4>()?;
    let template = hop.rewrite.first_chunk::<FULL4>()?;
    *outer = *template;
    let ecn = ecn_of(inner, version);
    age(inner, version, enters)?;

    let (_, outer) = outer.split_first_chunk_mut::<{ Ethernet::BYTES }>()?;
    let (ip, outer) = outer.split_first_chunk_mut::<{ Ipv4::BYTES }>()?;
    // Of a super-frame no more than the first piece fits: its pieces get their own lengths.
    let udp_bytes = (TUNNEL as u32 + ip_bytes).min(u32::from(u16::MAX) - Ipv4::BYTES as u32) as u16;
    let ip = Ipv4::view_mut(ip)?;
    let total_len = udp_bytes + Ipv4::BYTES as u16;
    ip.tos = ecn;
    ip.total_len.set(total_len);
    // The sum is the template's, which has zeros in these fields: reading back in wide pieces what
    // was just written in narrow ones stalls a CPU.
    let sum = Ipv4::at(template, Ethernet::BYTES)?.sum().word(u16::from(ecn)).word(total_len);
    ip.checksum.set(sum.complement());
    finish(outer, version, hash, udp_bytes)
}

/// Over IPv6.
#[inline(never)]
pub(super) fn ip6(
    packet: &mut Packet<'_>,
    hop: &NextHop,
    ip_bytes: u32,
    enters: bool,
) -> Option<()> {
    let (version, hash) = (packet.meta.ip_version, packet.meta.flow_hash);
    if usize::from(hop.rewrite_len) != FULL6 {
        return None;
    }
    packet.meta.outer = 6;
    let head = packet.reheader::<{ FULL6 as u16 }, { FULL6 + AGED }>()?;
    let (outer, inner) = head.split_first_chunk_mut::<FULL6>()?;
    *outer = *hop.rewrite.first_chunk()?;
    let ecn = ecn_of(inner, version);
    age(inner, version, enters)?;

    let (_, outer) = outer.split_first_chunk_mut::<{ Ethernet::BYTES }>()?;
    let (ip, outer) = outer.split_first_chunk_mut::<{ Ipv6::BYTES }>()?;
    let udp_bytes = (TUNNEL as u32 + ip_bytes).min(u32::from(u16::MAX)) as u16;
    let ip = Ipv6::view_mut(ip)?;
    // Traffic class 0, and the flow's entropy as flow label (RFC 6438).
    ip.version_class_flow.set(6 << 28 | u32::from(ecn) << 20 | hash & 0x000f_ffff);
    ip.payload_len.set(udp_bytes);
    finish(outer, version, hash, udp_bytes)?;
    if packet.meta.gso == Gso::None && packet.meta.fragment_mtu == 0 {
        fill_udp6(packet, Ethernet::BYTES);
    }
    Some(())
}

/// UDP and the inner EtherType.
#[inline(always)]
fn finish(outer: &mut [u8], version: u8, hash: u32, udp_bytes: u16) -> Option<()> {
    *outer.last_chunk_mut::<2>()? = ether_type(version);
    let udp = Udp::view_mut(outer)?;
    udp.src_port.set(ports::entropy_port(hash));
    udp.len.set(udp_bytes);
    udp.checksum.set(0);
    Some(())
}

/// The checksum of the outer UDP header whose IPv6 header is `at` bytes into the head.
///
/// A Linux VXLAN device drops zero, so it is computed. Cheaply, where the inner checksum is (or
/// will be) right: then all that it covers adds up to what its pseudo header lacks ("local
/// checksum offload"). Else the packet becomes partial at the *outer* header, and whoever sends
/// it adds the body up.
pub(super) fn fill_udp6(packet: &mut Packet<'_>, at: usize) {
    let inner = covered(packet);
    let udp_at = at + Ipv6::BYTES;
    let l4_or_l3 = match inner {
        Some(_) => usize::from(packet.meta.l4),
        None => udp_at,
    };
    let Some(ip) = Ipv6::at(packet.head(), at) else { return };
    let bytes = usize::from(ip.payload_len.get());
    let pseudo = ip.pseudo(protocol::UDP, bytes);
    let Some(udp) = Udp::at_mut(packet.head_mut(), udp_at) else { return };
    udp.checksum.set(0);
    let field = match inner {
        None => {
            packet.meta.checksum = Checksum::Partial;
            packet.meta.csum_start = udp_at as u16;
            packet.meta.csum_offset = Udp::CHECKSUM_OFFSET;
            pseudo.fold()
        }
        Some(rest) => {
            let headers = packet.head().get(udp_at..l4_or_l3).unwrap_or(&[]);
            pseudo.plus(Sum::of(headers)).plus(rest).complement_udp()
        }
    };
    if let Some(udp) = Udp::at_mut(packet.head_mut(), udp_at) {
        udp.checksum.set(field);
    }
}

/// What the inner layer-4 header and payload add up to, where their checksum tells.
fn covered(packet: &Packet<'_>) -> Option<Sum> {
    let meta = &*packet.meta;
    let (head, l4) = (packet.head(), usize::from(meta.l4));
    if l4 == 0 {
        return None;
    }
    if meta.checksum == Checksum::Partial {
        // The field holds the pseudo header's sum; completed, everything adds up to its inverse.
        let at = usize::from(meta.csum_start) + usize::from(meta.csum_offset);
        let &[a, b] = head.get(at..at + 2)? else { return None };
        return Some(Sum::from_word(!u16::from_be_bytes([a, b])));
    }
    match meta.protocol {
        protocol::TCP | protocol::ICMP6 => (),
        protocol::UDP if Udp::at(head, l4)?.checksum.get() != 0 => (),
        protocol::ICMP4 if meta.ip_version == 4 => return Some(Sum::from_word(0)),
        _ => return None,
    }
    Some(Sum::from_word(inner_pseudo(packet)?.complement()))
}

/// The inner pseudo header's sum.
fn inner_pseudo(packet: &Packet<'_>) -> Option<Sum> {
    let meta = &*packet.meta;
    let l3 = usize::from(meta.l3);
    let l4_at = usize::from(meta.l4).checked_sub(l3)?;
    if meta.ip_version == 6 && l4_at != Ipv6::BYTES {
        // A routing header would put another address into the pseudo header.
        return None;
    }
    if meta.ip_version == 4 {
        let ip = Ipv4::at(packet.head(), l3)?;
        Some(ip.pseudo(usize::from(ip.total_len.get()).checked_sub(l4_at)?))
    } else {
        let ip = Ipv6::at(packet.head(), l3)?;
        let total = Ipv6::BYTES + usize::from(ip.payload_len.get());
        Some(ip.pseudo(meta.protocol, total.checked_sub(l4_at)?))
    }
}
