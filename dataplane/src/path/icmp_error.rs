//! ICMP errors: what happened to a packet, told to its sender (RFC 1812 §4.3, RFC 4443 §2.4).
//!
//! An error quotes the private head only, so that a pod can not make us read its memory again.

use wire::checksum::Sum;
use wire::{Header, Icmp4, Icmp6, Ipv4, Ipv6, U16, U32, link_local_of, protocol};

use super::lookup::Sender;
use super::parse::{Ip6, again4, is_icmp_error};
use super::probe::note;
use super::{Checksum, Context, DropReason, Gso, Origin, Packet, Probe, Verdict, gateway};

/// The source of errors where the VRF has no gateway (RFC 7600 §4.8).
const NO_GATEWAY4: u32 = 0xc000_0008;
/// Quoted at most, so that an error stays below what everything carries (RFC 1812 §4.3.2.3).
const QUOTE4_MAX: usize = 576 - Ipv4::BYTES - Icmp4::BYTES;
/// RFC 4443 §2.4 c.
const QUOTE6_MAX: usize = 1280 - Ipv6::BYTES - Icmp6::BYTES;

/// What is told about an IPv4 packet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Told {
    pub kind: u8,
    pub code: u8,
    pub rest: u32,
}

/// Drops the packet and, where the rules allow, tells its sender.
#[cold]
pub(super) fn ip4<P: Probe>(
    cx: &mut Context<'_>,
    from: &Origin<'_>,
    packet: &mut Packet<'_>,
    reason: DropReason,
    told: Told,
    probe: &mut P,
) -> Verdict {
    let silent = Verdict::Drop(reason);
    let ip = again4(packet);
    // RFC 1812 §4.3.2.7: not about errors, later fragments, or what went to more than one. (The
    // source was checked to be one host's.)
    let later =
        Ipv4::at(packet.head(), usize::from(packet.meta.l3)).is_none_or(Ipv4::is_later_fragment);
    if from.group || later || is_icmp_error(packet) {
        note!(probe, IcmpError, "none about this packet (RFC 1812 §4.3.2.7)");
        return silent;
    }
    if !allowed(cx, from) {
        note!(probe, IcmpError, "none: the sender's rate is used up");
        return silent;
    }
    let source = from.vrf.gateways4.first().map_or(NO_GATEWAY4, |gateway| u32::from(*gateway));
    if !quote(packet, QUOTE4_MAX) {
        return silent;
    }
    let mut headers = [0; Ipv4::BYTES + Icmp4::BYTES];
    let total = headers.len() + packet.head().len();
    let sum = Sum::from_word(u16::from_be_bytes([told.kind, told.code])).dword(told.rest);
    let sum = sum.plus(Sum::of(packet.head()));
    let header = Ipv4 {
        version_ihl: 0x45,
        // RFC 1812 §4.3.2.5: precedence 6, internetwork control.
        tos: 0xc0,
        total_len: U16::new(total as u16),
        id: U16::new(0),
        flags_offset: U16::new(Ipv4::DF),
        ttl: 64,
        protocol: protocol::ICMP4,
        checksum: U16::new(0),
        src: U32::new(source),
        dst: U32::new(ip.src),
    };
    if let Some(to) = Ipv4::view_mut(&mut headers) {
        *to = header;
        to.checksum.set(header.sum().complement());
    }
    if let Some(to) = Icmp4::at_mut(&mut headers, Ipv4::BYTES) {
        to.kind = told.kind;
        to.code = told.code;
        to.checksum.set(sum.complement());
        to.rest.set(told.rest);
    }
    finish(cx, from, packet, &headers, 4, Sender::V4(ip.src), reason, probe)
}

/// Drops the packet and, where the rules allow, tells its sender.
#[cold]
pub(super) fn ip6<P: Probe>(
    cx: &mut Context<'_>,
    from: &Origin<'_>,
    packet: &mut Packet<'_>,
    ip: Ip6,
    reason: DropReason,
    told: Told,
    probe: &mut P,
) -> Verdict {
    let silent = Verdict::Drop(reason);
    // RFC 4443 §2.4 e: not about errors, redirects, or what went to more than one. (The source
    // was checked to be one node's.)
    let redirect = gateway::icmp6_kind(packet) == Some(Icmp6::REDIRECT);
    let later = ip.piece == wire::Piece::Later;
    if from.group || later || redirect || is_icmp_error(packet) {
        note!(probe, IcmpError, "none about this packet (RFC 4443 §2.4 e)");
        return silent;
    }
    if !allowed(cx, from) {
        note!(probe, IcmpError, "none: the sender's rate is used up");
        return silent;
    }
    let link_local = link_local_of(from.vrf.gateway_mac);
    let source = from.vrf.gateways6.first().map_or(link_local, |gateway| u128::from(*gateway));
    if !quote(packet, QUOTE6_MAX) {
        return silent;
    }
    let mut headers = [0; Ipv6::BYTES + Icmp6::BYTES];
    let payload = Icmp6::BYTES + packet.head().len();
    let header = Ipv6 {
        version_class_flow: U32::new(6 << 28),
        payload_len: U16::new(payload as u16),
        next_header: protocol::ICMP6,
        hop_limit: 64,
        src: source.into(),
        dst: ip.src.into(),
    };
    let sum = header.pseudo(protocol::ICMP6, payload);
    let sum = sum.word(u16::from_be_bytes([told.kind, told.code])).dword(told.rest);
    let sum = sum.plus(Sum::of(packet.head()));
    if let Some(to) = Ipv6::view_mut(&mut headers) {
        *to = header;
    }
    if let Some(to) = Icmp6::at_mut(&mut headers, Ipv6::BYTES) {
        to.kind = told.kind;
        to.code = told.code;
        to.checksum.set(sum.complement());
        to.rest.set(told.rest);
    }
    finish(cx, from, packet, &headers, 6, Sender::V6(ip.src), reason, probe)
}

fn allowed(cx: &mut Context<'_>, from: &Origin<'_>) -> bool {
    match from.outer {
        None => cx.limiter.allow_iface(from.iface.id, cx.now_ns),
        Some(_) => cx.limiter.allow_vrf(from.vrf.id, cx.now_ns),
    }
}

/// Leaves of the packet what is quoted: it begins with its IP header, and there is no body.
fn quote(packet: &mut Packet<'_>, max: usize) -> bool {
    let quoted = packet.pull(packet.meta.l3);
    packet.trim(packet.head().len().min(max));
    packet.meta.checksum = Checksum::Verified;
    packet.meta.gso = Gso::None;
    packet.meta.fragment_mtu = 0;
    quoted
}

#[expect(clippy::too_many_arguments, reason = "the one tail of both families")]
fn finish<P: Probe>(
    cx: &mut Context<'_>,
    from: &Origin<'_>,
    packet: &mut Packet<'_>,
    headers: &[u8],
    version: u8,
    to: Sender,
    reason: DropReason,
    probe: &mut P,
) -> Verdict {
    if !packet.push(headers) {
        return Verdict::Drop(reason);
    }
    let ip_header = if version == 4 { Ipv4::BYTES } else { Ipv6::BYTES };
    packet.meta.l3 = 0;
    packet.meta.l4 = ip_header as u16;
    packet.meta.ip_version = version;
    packet.meta.protocol = if version == 4 { protocol::ICMP4 } else { protocol::ICMP6 };
    match gateway::reply(cx.tables, from, packet, to, probe) {
        Verdict::Answer => Verdict::DropAnswer(reason),
        _ => Verdict::Drop(reason),
    }
}
