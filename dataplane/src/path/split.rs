//! One frame becomes several on the way out: segmentation of super-frames towards ports that can
//! not take them whole, and IPv4 fragmentation (RFC 791 §2.3) where DF is clear.
//!
//! Only heads are made here; the body stays where it lies, and each piece says which part of it is
//! its own. An encapsulated frame is cut inside: every piece gets the whole outer header.

use wire::{Ethernet, Header, Ipv4, Ipv6, Tcp, Udp, Vxlan, checksum};

use super::encap;
use super::packet::{Checksum, Gso, HEADROOM_BYTES, Meta, Packet, Slot};

const ETHERNET: usize = size_of::<Ethernet>();
/// Most pieces of one super-frame.
pub const MAX_PIECES: u32 = 128;

/// How a frame will be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Split {
    /// Bytes of headers that every piece repeats.
    header_bytes: u16,
    /// Payload bytes of each piece but the last.
    unit_bytes: u32,
    /// Payload bytes of all pieces.
    total_bytes: u32,
    /// How many pieces.
    count: u32,
    fragments: bool,
}

/// Which part of the body belongs to a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyPart {
    /// From the body's first byte.
    pub skip_bytes: usize,
    /// How long.
    pub len_bytes: usize,
}

impl Split {
    /// Plans the cut of a frame with `meta.gso` or `meta.fragment_mtu` set. `None` when its fields
    /// do not allow any.
    pub fn plan(head: &[u8], meta: &Meta) -> Option<Split> {
        let frame_bytes = head.len() as u32 + meta.body_bytes;
        let (header_bytes, unit_bytes) = if meta.gso == Gso::None {
            let ip = Ipv4::at(head, usize::from(meta.l3))?;
            let room = u32::from(meta.fragment_mtu).checked_sub(ip.header_bytes() as u32)?;
            // RFC 791: offsets count in units of 8 bytes.
            (usize::from(meta.l3) + ip.header_bytes(), room & !7)
        } else {
            let l4 = match meta.gso {
                Gso::Udp => size_of::<Udp>(),
                _ => Tcp::at(head, usize::from(meta.l4))?.header_bytes(),
            };
            (usize::from(meta.l4) + l4, u32::from(meta.gso_size))
        };
        if header_bytes > head.len() || unit_bytes == 0 {
            return None;
        }
        let total_bytes = frame_bytes - header_bytes as u32;
        let count = total_bytes.div_ceil(unit_bytes).max(1);
        // A 64 KiB datagram in fragments of the smallest MTU is the largest case.
        let most = if meta.gso == Gso::None { 65_536 / 8 } else { MAX_PIECES };
        (count <= most).then_some(Split {
            header_bytes: header_bytes as u16,
            unit_bytes,
            total_bytes,
            count,
            fragments: meta.gso == Gso::None,
        })
    }

    /// How many pieces there are; at least one.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Makes the head of piece `index` in `slot`, with its facts, and says which part of the body
    /// follows. A segment's layer-4 checksum is left partial; so is a fragment's outer one over
    /// IPv6.
    pub fn piece(
        &self,
        index: u32,
        head: &[u8],
        meta: &Meta,
        slot: &mut Slot,
    ) -> Option<(Meta, BodyPart)> {
        let header_bytes = usize::from(self.header_bytes);
        let from = (index * self.unit_bytes) as usize;
        let to = (from + self.unit_bytes as usize).min(self.total_bytes as usize);
        let (header, payload) = head.split_at_checked(header_bytes)?;
        let private = payload.get(from.min(payload.len())..to.min(payload.len()))?;
        let part = BodyPart {
            skip_bytes: from.max(payload.len()) - payload.len(),
            len_bytes: to.max(payload.len()) - from.max(payload.len()),
        };
        let bytes = header_bytes + private.len();
        // A head that was refilled and encapsulated is longer than a slot has room behind.
        let start = HEADROOM_BYTES.min(slot.0.len().checked_sub(bytes)?);
        let new = slot.0.get_mut(start..start + bytes)?;
        new[..header_bytes].copy_from_slice(header);
        new[header_bytes..].copy_from_slice(private);

        let mut facts = *meta;
        facts.start = start as u16;
        facts.end = (start + bytes) as u16;
        facts.body_bytes = part.len_bytes as u32;
        facts.gso = Gso::None;
        facts.fragment_mtu = 0;
        facts.body_summed = false;
        let last = index + 1 == self.count;
        let ip_bytes = header_bytes - usize::from(meta.l3) + to - from;
        if self.fragments {
            fragment(new, meta, index, self.unit_bytes, last, ip_bytes)?;
            // No piece has a layer-4 checksum of its own.
            facts.l4 = 0;
            facts.checksum = Checksum::Unknown;
        } else {
            segment(new, &mut facts, index, self.unit_bytes, last, ip_bytes)?;
        }
        if meta.outer != 0 {
            let frame_bytes = bytes + part.len_bytes;
            outer_lengths(new, meta.outer, frame_bytes)?;
        }
        if meta.outer == 6 {
            encap::fill_udp6(&mut Packet::new(slot, &mut facts), ETHERNET);
        }
        Some((facts, part))
    }
}

/// Fixes the inner headers of segment `index`.
fn segment(
    head: &mut [u8],
    facts: &mut Meta,
    index: u32,
    unit_bytes: u32,
    last: bool,
    ip_bytes: usize,
) -> Option<()> {
    let (l3, l4) = (usize::from(facts.l3), usize::from(facts.l4));
    let l4_bytes = ip_bytes.checked_sub(l4 - l3)?;
    let pseudo = if facts.ip_version == 4 {
        let ip = Ipv4::at_mut(head, l3)?;
        ip.total_len.set(u16::try_from(ip_bytes).ok()?);
        ip.id.set(ip.id.get().wrapping_add(index as u16));
        let pseudo = ip.pseudo(l4_bytes);
        Ipv4::fill_checksum(head.get_mut(l3..)?).then_some(pseudo)?
    } else {
        let ip = Ipv6::at_mut(head, l3)?;
        ip.payload_len.set(u16::try_from(ip_bytes - size_of::<Ipv6>()).ok()?);
        ip.pseudo(facts.protocol, l4_bytes)
    };
    if facts.protocol == wire::protocol::UDP {
        let udp = Udp::at_mut(head, l4)?;
        udp.len.set(u16::try_from(l4_bytes).ok()?);
        udp.checksum.set(pseudo.fold());
        facts.csum_offset = Udp::CHECKSUM_OFFSET;
    } else {
        let tcp = Tcp::at_mut(head, l4)?;
        tcp.sequence.set(tcp.sequence.get().wrapping_add(index.wrapping_mul(unit_bytes)));
        if !last {
            tcp.flags &= !(Tcp::FIN | Tcp::PSH);
        }
        if index > 0 {
            // RFC 3168 §6.1.2: CWR belongs to the first segment only.
            tcp.flags &= !Tcp::CWR;
        }
        tcp.checksum.set(pseudo.fold());
        facts.csum_offset = Tcp::CHECKSUM_OFFSET;
    }
    facts.checksum = Checksum::Partial;
    facts.csum_start = facts.l4;
    Some(())
}

/// Fixes the IPv4 header of fragment `index`. The packet may be a fragment itself.
fn fragment(
    head: &mut [u8],
    meta: &Meta,
    index: u32,
    unit_bytes: u32,
    last: bool,
    ip_bytes: usize,
) -> Option<()> {
    let header = head.get_mut(usize::from(meta.l3)..)?;
    let ip = Ipv4::view_mut(header)?;
    let old = ip.flags_offset.get();
    let offset = u32::from(old & Ipv4::OFFSET) + index * unit_bytes / 8;
    let mut flags_offset = u16::try_from(offset).ok().filter(|o| *o <= Ipv4::OFFSET)?;
    flags_offset |= old & Ipv4::DF;
    if !last || old & Ipv4::MF != 0 {
        flags_offset |= Ipv4::MF;
    }
    ip.flags_offset.set(flags_offset);
    ip.total_len.set(u16::try_from(ip_bytes).ok()?);
    let header_bytes = ip.header_bytes();
    if index > 0 && header_bytes > size_of::<Ipv4>() {
        blank_uncopied_options(header.get_mut(size_of::<Ipv4>()..header_bytes)?);
    }
    Ipv4::fill_checksum(header).then_some(())
}

/// RFC 791 §3.1: options without the copied flag are in the first fragment only. Their place is
/// filled with "no operation", so that the header keeps its length.
fn blank_uncopied_options(options: &mut [u8]) {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const COPIED: u8 = 0x80;
    let mut at = 0;
    while let Some(&kind) = options.get(at) {
        let len = match kind {
            END => return,
            NO_OPERATION => 1,
            _ => options.get(at + 1).map_or(0, |len| usize::from(*len)),
        };
        let Some(option) = options.get_mut(at..at + len.max(1)) else { return };
        if len == 0 {
            return;
        }
        if kind & COPIED == 0 {
            option.fill(NO_OPERATION);
        }
        at += len;
    }
}

/// Sets the lengths of an outer header, and its IPv4 checksum.
fn outer_lengths(head: &mut [u8], outer: u8, frame_bytes: usize) -> Option<()> {
    let udp_at = if outer == 4 {
        let bytes = u16::try_from(frame_bytes - ETHERNET).ok()?;
        let ip = Ipv4::at_mut(head, ETHERNET)?;
        let old = ip.total_len.get();
        ip.total_len.set(bytes);
        ip.checksum.set(checksum::update(ip.checksum.get(), old, bytes));
        ETHERNET + size_of::<Ipv4>()
    } else {
        let bytes = frame_bytes - ETHERNET - size_of::<Ipv6>();
        Ipv6::at_mut(head, ETHERNET)?.payload_len.set(u16::try_from(bytes).ok()?);
        ETHERNET + size_of::<Ipv6>()
    };
    const _: () = assert!(size_of::<Vxlan>() == 8);
    Udp::at_mut(head, udp_at)?.len.set(u16::try_from(frame_bytes - udp_at).ok()?);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ethernet + IPv4 + TCP with `payload`, cut after `head_bytes` into head and body.
    fn tcp4(payload: &[u8], head_bytes: usize, gso_size: u16) -> (Vec<u8>, Vec<u8>, Meta) {
        let mut frame = vec![0u8; 14];
        frame[12] = 8;
        let total = (40 + payload.len()) as u16;
        frame.extend([0x45, 0, 0, 0, 0, 9, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame[16..18].copy_from_slice(&total.to_be_bytes());
        frame.extend([0, 80, 1, 0, 0, 0, 0, 100, 0, 0, 0, 7, 0x50, 0x99, 1, 0, 0, 0, 0, 0]);
        frame.extend(payload);
        let body = frame.split_off(head_bytes);
        let meta = Meta {
            start: 128,
            end: 128 + head_bytes as u16,
            body_bytes: body.len() as u32,
            l3: 14,
            l4: 34,
            protocol: 6,
            ip_version: 4,
            gso: Gso::Tcp4,
            gso_size,
            ..Meta::default()
        };
        (frame, body, meta)
    }

    fn pieces(head: &[u8], body: &[u8], meta: &Meta) -> Vec<(Vec<u8>, Meta)> {
        let split = Split::plan(head, meta).expect("can be cut");
        (0..split.count())
            .map(|index| {
                let mut slot = Slot::default();
                let (facts, part) = split.piece(index, head, meta, &mut slot).expect("a piece");
                let mut frame = slot.0[usize::from(facts.start)..usize::from(facts.end)].to_vec();
                frame.extend(&body[part.skip_bytes..part.skip_bytes + part.len_bytes]);
                (frame, facts)
            })
            .collect()
    }

    #[test]
    fn what_contradicts_itself_is_not_cut() {
        let (head, _, meta) = tcp4(&[0; 3000], 66, 1448);
        assert_eq!(Split::plan(&head, &meta).map(|split| split.count()), Some(3), "the control");
        let short = &head[..50];
        let pieces_of_nothing = Meta { gso_size: 0, ..meta };
        let too_many = Meta { gso_size: 3, ..meta };
        for (head, meta) in [(short, meta), (&head[..], pieces_of_nothing), (&head[..], too_many)] {
            assert!(Split::plan(head, &meta).is_none(), "{meta:?}");
        }
    }

    #[test]
    fn a_tcp_super_frame_becomes_segments_in_order() {
        let payload: Vec<u8> = (0..4000u32).map(|i| i as u8).collect();
        let (head, body, meta) = tcp4(&payload, 128, 1448);
        let pieces = pieces(&head, &body, &meta);
        assert_eq!(pieces.len(), 3);
        let mut joined: Vec<u8> = Vec::new();
        for (index, (frame, facts)) in pieces.iter().enumerate() {
            let ip = Ipv4::at(frame, 14).expect("long enough");
            assert_eq!(usize::from(ip.total_len.get()), frame.len() - 14);
            assert_eq!(usize::from(ip.id.get()), 9 + index);
            assert_eq!(checksum::Sum::of(&frame[14..34]).fold(), 0xffff);
            let tcp = Tcp::at(frame, 34).expect("long enough");
            assert_eq!(tcp.sequence.get() as usize, 100 + index * 1448);
            // PSH and FIN on the last, CWR on the first, ACK on all.
            let expected = [0x90, 0x10, 0x19][index];
            assert_eq!(tcp.flags, expected, "segment {index}");
            assert_eq!((facts.checksum, facts.csum_start), (Checksum::Partial, 34));
            assert_eq!(tcp.checksum.get(), ip.pseudo(frame.len() - 34).fold());
            joined.extend(&frame[54..]);
        }
        assert_eq!(joined, payload);
    }

    #[test]
    fn any_payload_survives_any_cut() {
        bolero::check!().with_type::<(u16, u8, u16)>().cloned().for_each(|(len, head, gso)| {
            let payload: Vec<u8> = (0..u32::from(len) + 1).map(|i| (i * 7) as u8).collect();
            let head = (54 + usize::from(head) % 203).min(54 + payload.len());
            let (head, body, meta) = tcp4(&payload, head, gso.max(536));
            let Some(split) = Split::plan(&head, &meta) else {
                assert!(payload.len() as u32 > MAX_PIECES * u32::from(meta.gso_size));
                return;
            };
            if 40 + payload.len() <= 65_535 || split.count() > 1 {
                let joined: Vec<u8> = pieces(&head, &body, &meta)
                    .iter()
                    .flat_map(|(f, _)| f[54..].to_vec())
                    .collect();
                assert_eq!(joined, payload);
            }
        });
    }

    #[test]
    fn fragments_carry_offsets_and_options_as_rfc_791_wants() {
        let payload: Vec<u8> = (0..3000u32).map(|i| i as u8).collect();
        let mut frame = vec![0u8; 14];
        // Header of 28 bytes: record route (7, not copied), then security (130, copied) of 3 + NOP.
        let total = (28 + payload.len()) as u16;
        frame.extend([0x47, 0, 0, 0, 0, 9, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([7, 4, 4, 0, 130, 3, 0, 1]);
        frame[16..18].copy_from_slice(&total.to_be_bytes());
        frame.extend(&payload);
        let body = frame.split_off(128);
        let meta = Meta {
            body_bytes: body.len() as u32,
            l3: 14,
            ip_version: 4,
            fragment_mtu: 1001,
            ..Meta::default()
        };
        let pieces = pieces(&frame, &body, &meta);
        assert_eq!(pieces.len(), 4);
        let mut joined: Vec<u8> = Vec::new();
        for (index, (frame, _)) in pieces.iter().enumerate() {
            assert!(frame.len() - 14 <= 1001);
            let ip = Ipv4::at(frame, 14).expect("long enough");
            let flags = ip.flags_offset.get();
            assert_eq!(usize::from(flags & Ipv4::OFFSET) * 8, joined.len());
            assert_eq!(flags & Ipv4::MF != 0, index < 3);
            assert_eq!(checksum::Sum::of(&frame[14..42]).fold(), 0xffff);
            let options: [u8; 8] =
                if index == 0 { [7, 4, 4, 0, 130, 3, 0, 1] } else { [1, 1, 1, 1, 130, 3, 0, 1] };
            assert_eq!(frame[34..42], options);
            joined.extend(&frame[42..]);
        }
        assert_eq!(joined, payload);
    }
}
