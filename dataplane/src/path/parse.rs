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
    /// Source and destination port, where there are any.
    pub ports: u32,
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
    /// Source and destination port, where there are any.
    pub ports: u32,
}

/// What is parsed of either family, before it goes into the meta.
struct Upper {
    protocol: u8,
    /// Bytes of the IP header with all that belongs to it.
    header_bytes: u16,
    /// Bytes that follow it.
    bytes: u32,
    /// Whether the layer-4 header follows in full.
    there: bool,
    ports: u32,
    /// Hash of the addresses.
    addresses: u64,
}

/// Parses the IPv4 packet `l3` bytes into the frame by RFC 1812 §5.2.2, and trims the padding
/// behind it.
#[inline(always)]
pub(super) fn ip4(packet: &mut Packet<'_>, l3: u16) -> Step<Ip4> {
    const PORTS: usize = 4;
    let offset = usize::from(l3);
    let available = packet.frame_bytes().saturating_sub(offset);
    let bytes = packet.head().get(offset..).unwrap_or(&[]);
    // One look at a fixed number of bytes does for nearly all packets.
    let (ip, ports) = match bytes.first_chunk::<{ Ipv4::BYTES + PORTS }>() {
        Some(fixed) if fixed[0] == 0x45 => {
            let (header, ports) = fixed.split_at(Ipv4::BYTES);
            let Some(ip) = Ipv4::view(header) else { return Break(packet.more()) };
            if !ip.verifies() {
                return Break(Verdict::Drop(DropReason::Ip4BadChecksum));
            }
            (ip, ports)
        }
        _ => match unusual4(bytes) {
            Ok(parts) => parts,
            Err(Some(reason)) => return Break(Verdict::Drop(reason)),
            Err(None) => return Break(packet.more()),
        },
    };
    let total = ip.total_len.get();
    let header_bytes = ip.header_bytes();
    let Some(l4_bytes) = usize::from(total).checked_sub(header_bytes) else {
        return Break(Verdict::Drop(DropReason::Ip4Malformed));
    };
    if usize::from(total) > available {
        return Break(Verdict::Drop(DropReason::Runt));
    }
    let there = !ip.is_fragment() && l4_bytes >= least(ip.protocol);
    let Some(ports) = ports_of(ip.protocol, there, ports) else { return Break(packet.more()) };
    let (src, dst) = (ip.src.get(), ip.dst.get());
    let facts =
        Ip4 { src, dst, bytes: total, ttl: ip.ttl, dont_fragment: ip.dont_fragment(), ports };
    let upper = Upper {
        protocol: ip.protocol,
        header_bytes: header_bytes as u16,
        bytes: l4_bytes as u32,
        there,
        ports,
        addresses: addresses4(src, dst),
    };
    if usize::from(total) < available {
        packet.trim(offset + usize::from(total));
    }
    packet.meta.ip_version = 4;
    note_upper(packet, l3, &upper)?;
    Continue(facts)
}

/// The facts of a packet that was parsed before, for those that are rarely asked.
#[cold]
pub(super) fn again4(packet: &Packet<'_>) -> Ip4 {
    let ip = Ipv4::at(packet.head(), usize::from(packet.meta.l3));
    ip.map_or(Ip4 { src: 0, dst: 0, bytes: 0, ttl: 0, dont_fragment: true, ports: 0 }, |ip| Ip4 {
        src: ip.src.get(),
        dst: ip.dst.get(),
        bytes: ip.total_len.get(),
        ttl: ip.ttl,
        dont_fragment: ip.dont_fragment(),
        ports: 0,
    })
}

/// A header with options, at the end of the head, or not one at all. `None` asks for more.
#[cold]
fn unusual4(bytes: &[u8]) -> Result<(&Ipv4, &[u8]), Option<DropReason>> {
    let ip = Ipv4::view(bytes).ok_or(None)?;
    let header_bytes = ip.header_bytes();
    if ip.version() != 4 || header_bytes < Ipv4::BYTES {
        return Err(Some(DropReason::Ip4Malformed));
    }
    let (header, rest) = bytes.split_at_checked(header_bytes).ok_or(None)?;
    if !Sum::of(header).verifies() {
        return Err(Some(DropReason::Ip4BadChecksum));
    }
    Ok((ip, rest))
}

/// Parses the IPv6 packet `l3` bytes into the frame, and trims the padding behind it.
#[inline(always)]
pub(super) fn ip6(packet: &mut Packet<'_>, l3: u16) -> Step<Ip6> {
    let offset = usize::from(l3);
    let available = packet.frame_bytes().saturating_sub(offset);
    let bytes = packet.head().get(offset..).unwrap_or(&[]);
    let Some((ip, rest)) = Ipv6::split(bytes) else { return Break(packet.more()) };
    if ip.version() != 6 {
        return Break(Verdict::Drop(DropReason::Ip6Malformed));
    }
    let total = Ipv6::BYTES + usize::from(ip.payload_len.get());
    if total > available {
        return Break(Verdict::Drop(DropReason::Runt));
    }
    let (upper, rest) = match ip.next_header {
        protocol::TCP | protocol::UDP | protocol::ICMP6 => {
            let (protocol, offset) = (ip.next_header, Ipv6::BYTES);
            (wire::Upper { protocol, offset, piece: Piece::Whole }, rest)
        }
        _ => match unusual6(bytes, total) {
            Ok(parts) => parts,
            Err(Some(reason)) => return Break(Verdict::Drop(reason)),
            Err(None) => return Break(packet.more()),
        },
    };
    let l4_bytes = total - upper.offset;
    let there = upper.piece == Piece::Whole && l4_bytes >= least(upper.protocol);
    let Some(ports) = ports_of(upper.protocol, there, rest) else { return Break(packet.more()) };
    let (src, dst) = (ip.src.get(), ip.dst.get());
    let facts =
        Ip6 { src, dst, bytes: total as u32, hop_limit: ip.hop_limit, piece: upper.piece, ports };
    let upper = Upper {
        protocol: upper.protocol,
        header_bytes: upper.offset as u16,
        bytes: l4_bytes as u32,
        there,
        ports,
        addresses: addresses6(src, dst),
    };
    if total < available {
        packet.trim(offset + total);
    }
    packet.meta.ip_version = 6;
    note_upper(packet, l3, &upper)?;
    Continue(facts)
}

/// A packet with extension headers, of `total` bytes; `None` asks for more.
#[cold]
fn unusual6(bytes: &[u8], total: usize) -> Result<(wire::Upper, &[u8]), Option<DropReason>> {
    match Ipv6::walk(bytes) {
        Walk::TooMany => Err(Some(DropReason::HeadTooDeep)),
        // All of the packet is here: the chain reaches beyond it.
        Walk::Short if bytes.len() >= total => Err(Some(DropReason::Ip6Malformed)),
        Walk::Found(upper) if upper.offset > total => Err(Some(DropReason::Ip6Malformed)),
        Walk::Short => Err(None),
        Walk::Found(upper) => Ok((upper, bytes.get(upper.offset..).unwrap_or(&[]))),
    }
}

/// Source and destination port at the front of `rest`; 0 where there are none. Fragments have
/// none, so that all of a packet's go the same way. `None` when they are beyond the head.
#[inline(always)]
fn ports_of(upper: u8, there: bool, rest: &[u8]) -> Option<u32> {
    if there && matches!(upper, protocol::TCP | protocol::UDP) {
        rest.first_chunk().map(|ports| u32::from_be_bytes(*ports))
    } else {
        Some(0)
    }
}

/// Fewest bytes of a layer-4 message whose header anybody looks at.
#[inline(always)]
pub(super) const fn least(upper: u8) -> usize {
    match upper {
        protocol::TCP => size_of::<Tcp>(),
        protocol::UDP => size_of::<Udp>(),
        _ => 0,
    }
}

#[inline(always)]
fn mix(x: u64) -> u64 {
    let x = x.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^ x >> 32
}

#[inline(always)]
fn addresses4(src: u32, dst: u32) -> u64 {
    mix(u64::from(src) << 32 | u64::from(dst))
}

#[inline(always)]
fn addresses6(src: u128, dst: u128) -> u64 {
    let folded = src ^ dst.rotate_left(61);
    mix((folded >> 64) as u64 ^ mix(folded as u64))
}

/// A flow's hash, from its addresses' hash.
#[inline(always)]
fn flow(addresses: u64, ports: u32, protocol: u8) -> u32 {
    let flow = mix(addresses ^ u64::from(ports) << 8 ^ u64::from(protocol));
    // The upper half depends on all bits.
    ((flow >> 32) as u32).max(1)
}

/// The hash of an IPv4 flow.
#[inline(always)]
pub(super) fn flow4(src: u32, dst: u32, ports: u32, protocol: u8) -> u32 {
    flow(addresses4(src, dst), ports, protocol)
}

/// The hash of an IPv6 flow.
#[inline(always)]
pub(super) fn flow6(src: u128, dst: u128, ports: u32, protocol: u8) -> u32 {
    flow(addresses6(src, dst), ports, protocol)
}

/// Notes where the layer-4 header is, and the flow.
#[inline(always)]
fn note_upper(packet: &mut Packet<'_>, l3: u16, upper: &Upper) -> Step<()> {
    let meta = &mut *packet.meta;
    meta.l3 = l3;
    meta.protocol = upper.protocol;
    meta.l4 = if upper.there { l3.saturating_add(upper.header_bytes) } else { 0 };
    meta.flow_hash = flow(upper.addresses, upper.ports, upper.protocol);
    if meta.checksum == Checksum::Partial || meta.gso != Gso::None {
        offloads(packet, upper.bytes as usize)?;
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
