//! The node as a destination: it answers echo requests to its addresses in the realm, and nothing
//! else.

use wire::checksum;
use wire::{Ethernet, Header, Icmp4, Icmp6, Ipv4, Ipv6, Mac, protocol};

use super::lookup::{Sender, back};
use super::parse::{Ip6, again4};
use super::probe::note;
use super::{DropReason, Origin, Packet, Probe, Verdict, rewrite};
use crate::table::{IfaceKind, Tables};

const TTL: u8 = 64;

/// The ICMPv6 type, where the packet is ICMPv6 and in one piece.
#[inline]
pub(super) fn icmp6_kind(packet: &Packet<'_>) -> Option<u8> {
    let l4 = usize::from(packet.meta.l4);
    if packet.meta.protocol != protocol::ICMP6 || l4 == 0 {
        return None;
    }
    packet.head().get(l4).copied()
}

/// Answers an IPv4 echo request of any size: its body stays where it is.
pub(super) fn ip4<P: Probe>(
    tables: &Tables,
    from: &Origin<'_>,
    packet: &mut Packet<'_>,
    probe: &mut P,
) -> Verdict {
    let ip = again4(packet);
    let l4 = usize::from(packet.meta.l4);
    if packet.meta.protocol != protocol::ICMP4 || l4 == 0 {
        note!(probe, Gateway, "protocol {} (or a fragment) is not served", packet.meta.protocol);
        return Verdict::Drop(DropReason::GatewayUnserved);
    }
    let Some(icmp) = Icmp4::at_mut(packet.head_mut(), l4) else { return packet.more() };
    if icmp.kind != Icmp4::ECHO_REQUEST || icmp.code != 0 {
        note!(probe, Gateway, "ICMP type {} is not served", icmp.kind);
        return Verdict::Drop(DropReason::GatewayUnserved);
    }
    icmp.kind = Icmp4::ECHO_REPLY;
    let old = u16::from_be_bytes([Icmp4::ECHO_REQUEST, 0]);
    // Of a message that is all zeros now, only 0xffff is the checksum; of others as well.
    let updated = checksum::update(icmp.checksum.get(), old, 0);
    icmp.checksum.set(if updated == 0 { 0xffff } else { updated });
    let l3 = usize::from(packet.meta.l3);
    let Some(header) = packet.head_mut().get_mut(l3..l4) else {
        return Verdict::Drop(DropReason::Ip4Malformed);
    };
    if let Some(header) = Ipv4::view_mut(header) {
        header.src.set(ip.dst);
        header.dst.set(ip.src);
        header.ttl = TTL;
    }
    Ipv4::fill_checksum(header);
    note!(probe, Gateway, "echo request answered");
    reply(tables, from, packet, Sender::V4(ip.src), probe)
}

/// Answers an IPv6 echo request of any size.
pub(super) fn ip6<P: Probe>(
    tables: &Tables,
    from: &Origin<'_>,
    packet: &mut Packet<'_>,
    ip: Ip6,
    probe: &mut P,
) -> Verdict {
    let (l3, l4) = (usize::from(packet.meta.l3), usize::from(packet.meta.l4));
    if packet.meta.protocol != protocol::ICMP6 || l4 == 0 {
        note!(probe, Gateway, "protocol {} (or a fragment) is not served", packet.meta.protocol);
        return Verdict::Drop(DropReason::GatewayUnserved);
    }
    let Some(icmp) = Icmp6::at_mut(packet.head_mut(), l4) else { return packet.more() };
    if icmp.kind != Icmp6::ECHO_REQUEST || icmp.code != 0 {
        note!(probe, Gateway, "ICMPv6 type {} is not served", icmp.kind);
        return Verdict::Drop(DropReason::GatewayUnserved);
    }
    // The pseudo header's sum does not change when source and destination change places.
    icmp.kind = Icmp6::ECHO_REPLY;
    let old = u16::from_be_bytes([Icmp6::ECHO_REQUEST, 0]);
    let new = u16::from_be_bytes([Icmp6::ECHO_REPLY, 0]);
    icmp.checksum.set(checksum::update(icmp.checksum.get(), old, new));
    if let Some(header) = Ipv6::at_mut(packet.head_mut(), l3) {
        header.src.set(ip.dst);
        header.dst.set(ip.src);
        header.hop_limit = TTL;
    }
    note!(probe, Gateway, "echo request answered");
    reply(tables, from, packet, Sender::V6(ip.src), probe)
}

/// Sends what the packet has become back: over the interface that it came from, or (out of a
/// tunnel) by the VRF's route to `to`. The IP header is `meta.l3` bytes into the frame.
pub(super) fn reply<P: Probe>(
    tables: &Tables,
    from: &Origin<'_>,
    packet: &mut Packet<'_>,
    to: Sender,
    probe: &mut P,
) -> Verdict {
    let ip_bytes = packet.frame_bytes().saturating_sub(usize::from(packet.meta.l3)) as u32;
    if from.outer.is_none() {
        return over_link(from, packet);
    }
    let Some((id, hop)) = back(tables, from, packet, to) else {
        note!(probe, Lookup, "no way back to the sender");
        return Verdict::Drop(DropReason::NoRoute);
    };
    if ip_bytes > u32::from(hop.mtu_bytes) {
        return Verdict::Drop(DropReason::TooBig);
    }
    match rewrite::send(packet, id, hop, ip_bytes, false, probe) {
        Verdict::Forward => Verdict::Answer,
        other => other,
    }
}

/// Puts the interface's link header in front and sends the frame back over it.
fn over_link(from: &Origin<'_>, packet: &mut Packet<'_>) -> Verdict {
    packet.meta.out = from.iface.id;
    packet.meta.outer = 0;
    if !packet.pull(packet.meta.l3) {
        return Verdict::Drop(DropReason::Runt);
    }
    if from.iface.kind == IfaceKind::MemifIp {
        return Verdict::Answer;
    }
    let version = packet.meta.ip_version;
    let header = link_header(from.iface.mac, from.vrf.gateway_mac, rewrite::ether_type(version));
    if packet.push(&header) { Verdict::Answer } else { Verdict::Drop(DropReason::HeadTooDeep) }
}

/// An Ethernet header.
pub(super) fn link_header(dst: Mac, src: Mac, ether_type: [u8; 2]) -> [u8; Ethernet::BYTES] {
    let mut header = [0; Ethernet::BYTES];
    if let Some(eth) = Ethernet::view_mut(&mut header) {
        *eth = Ethernet { dst, src, ether_type: u16::from_be_bytes(ether_type).into() };
    }
    header
}
