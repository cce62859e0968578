//! What the head says: addresses, lengths, the layer-4 header, the flow; and whether a tap's
//! offload fields agree with it.

use std::ops::ControlFlow::{Break, Continue};

use wire::{Header, Icmp4, Icmp6, Ipv4, Ipv6, Piece, Tcp, Udp, Walk, checksum::Sum, protocol};

use super::{Checksum, DropReason, Gso, Packet, Step, Verdict};

/// Smallest segment of a super-frame: TCP's default of 536 (RFC 9293 §3.7.1) counts the options,
/// which take up to 40 of them.
pub(super) const GSO_SIZE_MIN: u16 = 536 - 40;
/// Most pieces of a super-frame, so that one frame can not be the work of a thousand.
pub(super) const GSO_SEGMENTS_MAX: usize = 128;

/// An IPv4 header's facts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ip4 {
    pub src: u32,
    pub dst: u32,
    /// Header and payload.
    pub bytes: u16,
    pub ttl: u8,
    pub dont_fragment: bool,
}

/// An IPv6 header's facts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ip6 {
    pub src: u128,
    pub dst: u128,
    /// Header and payload.
    pub bytes: u32,
    pub hop_limit: u8,
    pub piece: Piece,
}

/// Parses the IPv4 packet `l3` bytes into the frame by RFC 1812 §5.2.2, and trims the padding
/// behind it.
#[inline(always)]
pub(super) fn ip4(packet: &mut Packet<'_>, l3: u16) -> Step<Ip4> {
    let offset = usize::from(l3);
    let available = packet.frame_bytes().saturating_sub(offset);
    let head = packet.head();
    let Some(ip) = Ipv4::at(head, offset) else { return Break(packet.more()) };
    if ip.version_ihl != 0x45 {
        options4(packet, offset)?;
    } else if ip.sum().fold() != 0xffff {
        return Break(Verdict::Drop(DropReason::Ip4BadChecksum));
    }
    let Some(ip) = Ipv4::at(packet.head(), offset) else { return Break(packet.more()) };
    let bytes = ip.total_len.get();
    let header_bytes = ip.header_bytes();
    if usize::from(bytes) < header_bytes {
        return Break(Verdict::Drop(DropReason::Ip4Malformed));
    }
    if usize::from(bytes) > available {
        return Break(Verdict::Drop(DropReason::Runt));
    }
    let facts = Ip4 {
        src: ip.src.get(),
        dst: ip.dst.get(),
        bytes,
        ttl: ip.ttl,
        dont_fragment: ip.dont_fragment(),
    };
    let upper = ip.protocol;
    let fragment = ip.is_fragment();
    let flow = mix(u64::from(facts.src) << 32 | u64::from(facts.dst));
    if usize::from(bytes) < available {
        packet.trim(offset + usize::from(bytes));
    }
    packet.meta.l3 = l3;
    packet.meta.ip_version = 4;
    let l4 = (!fragment).then_some(l3 + header_bytes as u16);
    layer4(packet, upper, l4, usize::from(bytes) - header_bytes, flow)?;
    Continue(facts)
}

/// A header with options, or not one at all.
#[cold]
fn options4(packet: &mut Packet<'_>, offset: usize) -> Step<()> {
    let malformed = Break(Verdict::Drop(DropReason::Ip4Malformed));
    let Some(ip) = Ipv4::at(packet.head(), offset) else { return Break(packet.more()) };
    let header_bytes = ip.header_bytes();
    if ip.version() != 4 || header_bytes < Ipv4::BYTES {
        return malformed;
    }
    match packet.head().get(offset..offset + header_bytes) {
        None => Break(packet.more()),
        Some(header) if Sum::of(header).fold() != 0xffff => {
            Break(Verdict::Drop(DropReason::Ip4BadChecksum))
        }
        Some(_) => Continue(()),
    }
}

/// Parses the IPv6 packet `l3` bytes into the frame, and trims the padding behind it.
#[inline(always)]
pub(super) fn ip6(packet: &mut Packet<'_>, l3: u16) -> Step<Ip6> {
    let offset = usize::from(l3);
    let available = packet.frame_bytes().saturating_sub(offset);
    let Some(bytes) = packet.head().get(offset..) else { return Break(packet.more()) };
    let Some(ip) = Ipv6::view(bytes) else { return Break(packet.more()) };
    if ip.version() != 6 {
        return Break(Verdict::Drop(DropReason::Ip6Malformed));
    }
    let payload = usize::from(ip.payload_len.get());
    let total = Ipv6::BYTES + payload;
    if total > available {
        return Break(Verdict::Drop(DropReason::Runt));
    }
    let upper = match Ipv6::walk(bytes) {
        Walk::Found(upper) => upper,
        Walk::TooMany => return Break(Verdict::Drop(DropReason::HeadTooDeep)),
        // Not more bytes, but fewer: the chain reaches beyond the packet.
        Walk::Short if bytes.len() >= total => {
            return Break(Verdict::Drop(DropReason::Ip6Malformed));
        }
        Walk::Short => return Break(packet.more()),
    };
    if upper.offset > total {
        return Break(Verdict::Drop(DropReason::Ip6Malformed));
    }
    let facts = Ip6 {
        src: ip.src.get(),
        dst: ip.dst.get(),
        bytes: total as u32,
        hop_limit: ip.hop_limit,
        piece: upper.piece,
    };
    let folded = facts.src ^ facts.dst.rotate_left(61);
    let flow = mix((folded >> 64) as u64 ^ mix(folded as u64));
    if total < available {
        packet.trim(offset + total);
    }
    packet.meta.l3 = l3;
    packet.meta.ip_version = 6;
    // A header chain is at most 8 × 2 KiB and the packet holds it: no overflow.
    let l4 = (upper.piece == Piece::Whole).then_some(l3.saturating_add(upper.offset as u16));
    layer4(packet, upper.protocol, l4, total - upper.offset, flow)?;
    Continue(facts)
}

#[inline(always)]
fn mix(x: u64) -> u64 {
    let x = x.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^ x >> 32
}

/// Finds the layer-4 header (`l4` from the frame's start, `None` in a fragment) and the flow: five
/// fields, or three where ports are not in every piece, so that all fragments of a packet go the
/// same way.
#[inline(always)]
fn layer4(
    packet: &mut Packet<'_>,
    upper: u8,
    l4: Option<u16>,
    l4_bytes: usize,
    flow: u64,
) -> Step<()> {
    let mut ports = 0;
    packet.meta.protocol = upper;
    packet.meta.l4 = 0;
    if let Some(l4) = l4 {
        let least = match upper {
            protocol::TCP => Tcp::BYTES,
            protocol::UDP => Udp::BYTES,
            _ => 0,
        };
        if least > 0 && l4_bytes >= least {
            let Some(&[a, b, c, d]) = packet.head().get(usize::from(l4)..usize::from(l4) + 4)
            else {
                return Break(packet.more());
            };
            ports = u32::from_be_bytes([a, b, c, d]);
        }
        packet.meta.l4 = if l4_bytes >= least { l4 } else { 0 };
    }
    let flow = mix(flow ^ u64::from(ports) << 8 ^ u64::from(upper));
    // The upper half depends on all bits.
    packet.meta.flow_hash = ((flow >> 32) as u32).max(1);
    if packet.meta.checksum == Checksum::Partial || packet.meta.gso != Gso::None {
        offloads(packet, l4_bytes)?;
    }
    Continue(())
}

/// Bytes of the layer-4 header, when the head holds all of it.
#[inline]
pub(super) fn l4_header_bytes(packet: &Packet<'_>) -> Option<usize> {
    let l4 = usize::from(packet.meta.l4);
    match packet.meta.protocol {
        _ if l4 == 0 => None,
        protocol::TCP => {
            let bytes = Tcp::at(packet.head(), l4)?.header_bytes();
            (bytes >= Tcp::BYTES && l4 + bytes <= packet.head().len()).then_some(bytes)
        }
        protocol::UDP => Udp::at(packet.head(), l4).map(|_| Udp::BYTES),
        _ => None,
    }
}

/// A tap's header is foreign: it must describe the packet that the head shows (DESIGN: offloads).
#[inline(never)]
fn offloads(packet: &mut Packet<'_>, l4_bytes: usize) -> Step<()> {
    let malformed = Break(Verdict::Drop(DropReason::OffloadMalformed));
    let meta = &*packet.meta;
    let (protocol_of_gso, version_of_gso) = match meta.gso {
        Gso::None => (meta.protocol, meta.ip_version),
        Gso::Tcp4 => (protocol::TCP, 4),
        Gso::Tcp6 => (protocol::TCP, 6),
        Gso::Udp => (protocol::UDP, meta.ip_version),
    };
    let csum_offset = match meta.protocol {
        protocol::TCP => Tcp::CHECKSUM_OFFSET,
        protocol::UDP => Udp::CHECKSUM_OFFSET,
        _ => return malformed,
    };
    if meta.checksum != Checksum::Partial
        || meta.l4 == 0
        || (meta.csum_start, meta.csum_offset) != (meta.l4, csum_offset)
        || (meta.protocol, meta.ip_version) != (protocol_of_gso, version_of_gso)
    {
        return malformed;
    }
    let Some(header_bytes) = l4_header_bytes(packet) else {
        // Either its length field lies, or the head is short of it.
        let l4 = usize::from(packet.meta.l4);
        let claimed = Tcp::at(packet.head(), l4).map(Tcp::header_bytes);
        return match claimed {
            Some(bytes) if bytes < Tcp::BYTES || bytes > l4_bytes => malformed,
            _ => Break(packet.more()),
        };
    };
    if packet.meta.gso == Gso::None {
        return Continue(());
    }
    let Some(payload) = l4_bytes.checked_sub(header_bytes) else { return malformed };
    let size = packet.meta.gso_size;
    if size < GSO_SIZE_MIN || payload.div_ceil(usize::from(size)) > GSO_SEGMENTS_MAX {
        return malformed;
    }
    if payload <= usize::from(size) {
        packet.meta.gso = Gso::None;
    }
    Continue(())
}

/// Whether the packet is (or may be: its layer 4 is not in sight) an ICMP error, about which no
/// further error is sent.
pub(super) fn is_icmp_error(packet: &Packet<'_>) -> bool {
    let l4 = usize::from(packet.meta.l4);
    match packet.meta.protocol {
        protocol::ICMP4 | protocol::ICMP6 if l4 == 0 => true,
        protocol::ICMP4 => Icmp4::at(packet.head(), l4).is_none_or(Icmp4::is_error),
        protocol::ICMP6 => Icmp6::at(packet.head(), l4).is_none_or(Icmp6::is_error),
        _ => false,
    }
}
