//! Several TCP segments become one super-frame on the way to a tap, which takes up to 64 KiB at
//! once: one system call and one trip through the pod's stack instead of forty.
//!
//! Only segments whose checksum is known to be right are merged, and only where the receiver could
//! cut the result back into exactly what came (RFC 9293 semantics are untouched): same headers
//! but for length, sequence and PSH; all but the last of equal size.

use wire::{Ethernet, Header, Ipv4, Ipv6, Tcp};

use super::packet::{Checksum, Gso, Meta};

const ETHERNET: usize = size_of::<Ethernet>();
/// An IP packet can not be longer.
const IP_MAX_BYTES: u32 = 65_535;

/// What is merged so far.
#[derive(Debug, Clone, Copy)]
pub struct Merge {
    header_bytes: u16,
    segment_bytes: u32,
    payload_bytes: u32,
    next_sequence: u32,
    segments: u32,
    push: bool,
    /// A shorter segment or PSH ended it: nothing more may follow.
    closed: bool,
}

/// The parsed outline of a plain TCP segment with data.
#[derive(Debug, Clone, Copy)]
struct Outline {
    header_bytes: usize,
    payload_bytes: u32,
    sequence: u32,
    push: bool,
}

fn outline(head: &[u8], meta: &Meta) -> Option<Outline> {
    if meta.protocol != wire::protocol::TCP || meta.gso != Gso::None || meta.outer != 0 {
        return None;
    }
    if usize::from(meta.l3) != ETHERNET || meta.fragment_mtu != 0 || meta.l4 == 0 {
        return None;
    }
    let l4 = usize::from(meta.l4);
    // Options and extension headers are rare: those packets go as they are.
    let (plain, ip_bytes) = match meta.ip_version {
        4 => {
            let ip = Ipv4::at(head, ETHERNET)?;
            (l4 == ETHERNET + 20 && !ip.is_fragment(), u32::from(ip.total_len.get()))
        }
        _ => {
            let ip = Ipv6::at(head, ETHERNET)?;
            (l4 == ETHERNET + 40, u32::from(ip.payload_len.get()) + 40)
        }
    };
    let tcp = Tcp::at(head, l4)?;
    let header_bytes = l4 + tcp.header_bytes();
    let only_data = tcp.flags & !(Tcp::ACK | Tcp::PSH) == 0 && tcp.flags & Tcp::ACK != 0;
    let payload_bytes = (ip_bytes + ETHERNET as u32).checked_sub(header_bytes as u32)?;
    // A padded frame would put the padding in the middle of the stream.
    let exact = head.len() as u32 + meta.body_bytes == ip_bytes + ETHERNET as u32;
    (plain && only_data && exact && payload_bytes > 0 && header_bytes <= head.len()).then_some(
        Outline {
            header_bytes,
            payload_bytes,
            sequence: tcp.sequence.get(),
            push: tcp.flags & Tcp::PSH != 0,
        },
    )
}

impl Merge {
    /// Whether this packet could be the first of a super-frame.
    pub fn begin(head: &[u8], meta: &Meta) -> Option<Merge> {
        let o = outline(head, meta)?;
        Some(Merge {
            header_bytes: o.header_bytes as u16,
            segment_bytes: o.payload_bytes,
            payload_bytes: o.payload_bytes,
            next_sequence: o.sequence.wrapping_add(o.payload_bytes),
            segments: 1,
            push: o.push,
            closed: o.push,
        })
    }

    /// Bytes of headers in the first segment's head; the same in all of them.
    pub fn header_bytes(&self) -> usize {
        usize::from(self.header_bytes)
    }

    /// How many segments are in it.
    pub fn segments(&self) -> u32 {
        self.segments
    }

    /// Nothing more can be appended.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether `head` belongs to the same flow as `first`: a packet that does, but can not be
    /// appended, must not overtake what is merged.
    pub fn same_flow(first: &[u8], first_meta: &Meta, head: &[u8], meta: &Meta) -> bool {
        if first_meta.flow_hash != meta.flow_hash || first_meta.ip_version != meta.ip_version {
            return false;
        }
        let (addresses, l4) = match meta.ip_version {
            4 => (ETHERNET + 12..ETHERNET + 20, ETHERNET + 20),
            _ => (ETHERNET + 8..ETHERNET + 40, ETHERNET + 40),
        };
        first.get(addresses.clone()) == head.get(addresses)
            && first.get(l4..l4 + 4) == head.get(l4..l4 + 4)
    }

    /// Appends the packet if it may follow. Its payload is what comes after
    /// [`Merge::header_bytes`] of its head. The caller has made sure that its checksum is right.
    pub fn append(&mut self, first: &[u8], head: &[u8], meta: &Meta) -> bool {
        let Some(o) = outline(head, meta) else { return false };
        let fits =
            self.header_bytes as u32 - ETHERNET as u32 + self.payload_bytes + o.payload_bytes
                <= IP_MAX_BYTES;
        if self.closed
            || !fits
            || o.header_bytes != self.header_bytes()
            || o.sequence != self.next_sequence
            || o.payload_bytes > self.segment_bytes
            || self.segments >= super::split::MAX_PIECES
            || !same_headers(first, head, meta)
        {
            return false;
        }
        self.payload_bytes += o.payload_bytes;
        self.next_sequence = self.next_sequence.wrapping_add(o.payload_bytes);
        self.segments += 1;
        self.push |= o.push;
        self.closed = o.push || o.payload_bytes < self.segment_bytes;
        true
    }

    /// Turns the first segment's head into the super-frame's. Call once, when more than one
    /// segment was merged; the checksum becomes partial.
    pub fn finish(&self, head: &mut [u8], meta: &mut Meta) -> Option<()> {
        let l4 = usize::from(meta.l4);
        let l4_bytes = self.header_bytes() - l4 + self.payload_bytes as usize;
        let pseudo = if meta.ip_version == 4 {
            let ip = Ipv4::at_mut(head, ETHERNET)?;
            ip.total_len.set(u16::try_from(l4_bytes + 20).ok()?);
            let pseudo = ip.pseudo(l4_bytes);
            Ipv4::fill_checksum(head.get_mut(ETHERNET..)?).then_some(pseudo)?
        } else {
            let ip = Ipv6::at_mut(head, ETHERNET)?;
            ip.payload_len.set(u16::try_from(l4_bytes).ok()?);
            ip.pseudo(meta.protocol, l4_bytes)
        };
        let tcp = Tcp::at_mut(head, l4)?;
        tcp.flags |= if self.push { Tcp::PSH } else { 0 };
        tcp.checksum.set(pseudo.fold());
        meta.gso = if meta.ip_version == 4 { Gso::Tcp4 } else { Gso::Tcp6 };
        meta.gso_size = self.segment_bytes as u16;
        meta.gso_ecn = false;
        meta.checksum = Checksum::Partial;
        meta.csum_start = meta.l4;
        meta.csum_offset = Tcp::CHECKSUM_OFFSET;
        meta.body_bytes = (self.header_bytes() as u32 + self.payload_bytes) - head.len() as u32;
        Some(())
    }
}

/// Whether everything is equal that a receiver could tell apart after the merge.
fn same_headers(first: &[u8], head: &[u8], meta: &Meta) -> bool {
    let l4 = usize::from(meta.l4);
    let same = |from: usize, to: usize| first.get(from..to) == head.get(from..to);
    let (Some(a), Some(b)) = (Tcp::at(first, l4), Tcp::at(head, l4)) else { return false };
    let network = match meta.ip_version {
        // Version, length, TOS; DF; TTL, protocol; addresses. The identification may differ where
        // DF is set (RFC 6864 §4.1).
        4 => {
            let (Some(x), Some(y)) = (Ipv4::at(first, ETHERNET), Ipv4::at(head, ETHERNET)) else {
                return false;
            };
            same(ETHERNET, ETHERNET + 2)
                && x.dont_fragment()
                && y.dont_fragment()
                && same(ETHERNET + 8, ETHERNET + 10)
                && same(ETHERNET + 12, ETHERNET + 20)
        }
        _ => same(ETHERNET, ETHERNET + 4) && same(ETHERNET + 6, ETHERNET + 40),
    };
    network
        && same(0, ETHERNET)
        && same(l4, l4 + 4)
        && a.acknowledgement == b.acknowledgement
        && a.data_offset == b.data_offset
        && a.window == b.window
        && same(l4 + size_of::<Tcp>(), l4 + a.header_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::Slot;
    use crate::path::split::Split;

    fn segment(sequence: u32, payload: usize, flags: u8) -> (Vec<u8>, Meta) {
        let mut head = vec![0u8; 14];
        head[12] = 8;
        head.extend([0x45, 0, 0, 0, 0, 9, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        head[16..18].copy_from_slice(&((40 + payload) as u16).to_be_bytes());
        head.extend([0, 80, 1, 0]);
        head.extend(sequence.to_be_bytes());
        head.extend([0, 0, 0, 7, 0x50, flags, 1, 0, 0, 0, 0, 0]);
        let meta = Meta {
            body_bytes: payload as u32,
            l3: 14,
            l4: 34,
            protocol: 6,
            ip_version: 4,
            flow_hash: 5,
            ..Meta::default()
        };
        (head, meta)
    }

    #[test]
    fn segments_in_order_are_merged_and_can_be_cut_again() {
        let (first, mut meta) = segment(100, 1000, Tcp::ACK);
        let mut merge = Merge::begin(&first, &meta).expect("data");
        let (second, m2) = segment(1100, 1000, Tcp::ACK);
        assert!(merge.append(&first, &second, &m2));
        let (third, m3) = segment(2100, 300, Tcp::ACK | Tcp::PSH);
        assert!(merge.append(&first, &third, &m3));
        assert!(merge.is_closed());
        let mut head = first.clone();
        merge.finish(&mut head, &mut meta).expect("fits");
        assert_eq!((meta.gso_size, meta.body_bytes), (1000, 2300));
        let split = Split::plan(&head, &meta).expect("can be cut");
        assert_eq!(split.count(), 3);
        let mut slot = Slot::default();
        let (facts, part) = split.piece(2, &head, &meta, &mut slot).expect("a piece");
        assert_eq!((part.skip_bytes, part.len_bytes), (2000, 300));
        let cut = &slot.0[usize::from(facts.start)..usize::from(facts.end)];
        assert_eq!(Tcp::at(cut, 34).map(|t| (t.sequence.get(), t.flags)), Some((2100, 0x18)));
    }

    #[test]
    fn what_a_receiver_could_tell_apart_is_not_merged() {
        let (first, meta) = segment(100, 1000, Tcp::ACK);
        let merge = Merge::begin(&first, &meta).expect("data");
        let cases: [(&str, usize, u8); 7] = [
            ("TOS", 15, 1),
            ("no DF", 20, 0x40),
            ("TTL", 22, 1),
            ("source", 26, 1),
            ("port", 34, 1),
            ("acknowledgement", 45, 1),
            ("window", 48, 1),
        ];
        for (what, at, flip) in cases {
            let (mut next, m) = segment(1100, 1000, Tcp::ACK);
            next[at] ^= flip;
            assert!(!merge.clone().append(&first, &next, &m), "{what}");
        }
        for (what, sequence, payload, flags) in [
            ("gap", 1101, 1000, Tcp::ACK),
            ("longer", 1100, 1001, Tcp::ACK),
            ("no data", 1100, 0, Tcp::ACK),
            ("FIN", 1100, 1000, Tcp::ACK | Tcp::FIN),
            ("SYN", 1100, 1000, Tcp::SYN),
            ("URG", 1100, 1000, Tcp::ACK | Tcp::URG),
        ] {
            let (next, m) = segment(sequence, payload, flags);
            assert!(!merge.clone().append(&first, &next, &m), "{what}");
        }
        let (next, m) = segment(1100, 1000, Tcp::ACK);
        assert!(merge.clone().append(&first, &next, &m), "the control");
    }
}
