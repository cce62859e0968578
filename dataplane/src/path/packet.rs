//! A packet on its way: a private head, and facts about it.
//!
//! The *head* is the first bytes of the frame, copied once out of whatever memory it came in, with
//! room in front for an encapsulation. All parsing, verdicts and rewriting use the head alone. The
//! *body* (the rest) stays where it lies and is only known by its length here; the worker keeps
//! where that is. A frame of up to [`HEAD_BYTES`] has no body.

use super::{DropReason, Verdict};
use crate::table::{IfaceId, NextHopId, VrfId};

/// Room in front of a head: Ethernet + IPv6 + UDP + VXLAN + Ethernet needs 84, less what is
/// stripped.
pub const HEADROOM_BYTES: usize = 128;
/// Bytes copied at first.
pub const HEAD_BYTES: usize = 128;
/// Bytes that a head may be refilled to when parsing needs them.
pub const HEAD_MAX_BYTES: usize = 256;
const SLOT_BYTES: usize = HEADROOM_BYTES + HEAD_MAX_BYTES;

/// The bytes of one head. Where it begins and ends is in [`Meta`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Slot(pub [u8; SLOT_BYTES]);

impl Default for Slot {
    fn default() -> Self {
        Self([0; SLOT_BYTES])
    }
}

/// What is known about the layer-4 checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Checksum {
    /// As in the packet; nobody looked at it.
    #[default]
    Unknown,
    /// As in the packet, and a NIC or kernel verified it.
    Verified,
    /// The field holds the pseudo-header's sum only: whoever sends the packet completes it, from
    /// `csum_start` on (bytes from the start of the head), into the field `csum_offset` behind.
    Partial,
}

/// How a super-frame is to be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Gso {
    /// Not a super-frame.
    #[default]
    None,
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP, either family: one datagram per piece.
    Udp,
}

/// Facts about one packet, in a parallel array beside the heads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(align(64))]
pub struct Meta {
    /// First byte of the head in its slot.
    pub start: u16,
    /// Behind the last byte of the head in its slot.
    pub end: u16,
    /// Bytes of the frame beyond the head.
    pub body_bytes: u32,
    /// Hash of the innermost flow: chooses queues and the outer source port. Never 0 once parsed.
    pub flow_hash: u32,
    /// What leads onwards, when the verdict is `Forward`.
    pub next_hop: NextHopId,
    /// Where it came in.
    pub iface: IfaceId,
    /// Where it goes out, when the verdict sends it anywhere.
    pub out: IfaceId,
    /// Its VRF.
    pub vrf: VrfId,
    /// Bytes from `start` to the (inner) IP header, once parsed.
    pub l3: u16,
    /// Bytes from `start` to the (inner) layer-4 header, once parsed; 0 = none or a fragment.
    pub l4: u16,
    /// Layer-4 protocol, once parsed.
    pub protocol: u8,
    /// 4 or 6 once parsed.
    pub ip_version: u8,
    /// Encapsulated: 0, 4 or 6 = family of the outer header, which begins 14 bytes from `start`.
    pub outer: u8,
    /// State of the layer-4 checksum.
    pub checksum: Checksum,
    /// Whether it is a super-frame.
    pub gso: Gso,
    /// TCP flags hint of the super-frame: the kernel marked CWR (ECN).
    pub gso_ecn: bool,
    /// Payload bytes of each piece of a super-frame.
    pub gso_size: u16,
    /// With [`Checksum::Partial`].
    pub csum_start: u16,
    /// With [`Checksum::Partial`].
    pub csum_offset: u16,
    /// IPv4 without DF that is larger than this (bytes of IP packet) is fragmented on the way
    /// out; 0 = fits.
    pub fragment_mtu: u16,
    /// The source's claim, for its release.
    pub claim: u32,
    /// First of the body's segments in the burst's list.
    pub seg_first: u16,
    /// How many segments the body has.
    pub seg_count: u16,
    /// With `body_summed`: the folded one's complement sum of the body (`wire::checksum::Sum`), as
    /// if it began at an even offset. The worker fills it in after [`super::Verdict::Sum`].
    pub body_sum: u16,
    /// Whether `body_sum` is that of the body as it is.
    pub body_summed: bool,
}

impl Meta {
    /// Bytes of the whole frame.
    #[inline]
    pub fn frame_bytes(&self) -> u32 {
        u32::from(self.end - self.start) + self.body_bytes
    }
}

const _: () = assert!(size_of::<Meta>() <= 64, "one cache line per packet");

/// One packet, as the path works on it.
#[derive(Debug)]
pub struct Packet<'a> {
    slot: &'a mut Slot,
    /// Facts.
    pub meta: &'a mut Meta,
}

impl<'a> Packet<'a> {
    /// The packet in `slot`; `meta.start..meta.end` is corrected to lie inside it.
    #[inline]
    pub fn new(slot: &'a mut Slot, meta: &'a mut Meta) -> Self {
        meta.end = meta.end.min(SLOT_BYTES as u16);
        meta.start = meta.start.min(meta.end);
        Self { slot, meta }
    }

    /// The head.
    #[inline]
    pub fn head(&self) -> &[u8] {
        self.slot.0.get(usize::from(self.meta.start)..usize::from(self.meta.end)).unwrap_or(&[])
    }

    /// The head.
    #[inline]
    pub fn head_mut(&mut self) -> &mut [u8] {
        let range = usize::from(self.meta.start)..usize::from(self.meta.end);
        self.slot.0.get_mut(range).unwrap_or(&mut [])
    }

    /// Bytes of the whole frame.
    #[inline]
    pub fn frame_bytes(&self) -> usize {
        usize::from(self.meta.end - self.meta.start) + self.meta.body_bytes as usize
    }

    /// Takes `n` bytes away at the front. Offsets in the meta are moved along.
    #[inline]
    pub fn pull(&mut self, n: u16) -> bool {
        if self.meta.end - self.meta.start < n {
            return false;
        }
        self.meta.start += n;
        self.meta.l3 = self.meta.l3.saturating_sub(n);
        self.meta.l4 = self.meta.l4.saturating_sub(n);
        self.meta.csum_start = self.meta.csum_start.saturating_sub(n);
        true
    }

    /// Puts `bytes` in front. Offsets in the meta are moved along. False when there is no room.
    #[inline(always)]
    pub fn push(&mut self, bytes: &[u8]) -> bool {
        let n = bytes.len() as u16;
        let end = usize::from(self.meta.start);
        let room = end.checked_sub(bytes.len()).and_then(|start| self.slot.0.get_mut(start..end));
        let Some(room) = room else { return false };
        room.copy_from_slice(bytes);
        self.meta.start -= n;
        self.meta.l3 += n;
        self.meta.l4 += if self.meta.l4 == 0 { 0 } else { n };
        self.meta.csum_start += n;
        true
    }

    /// Moves the start so that `H` bytes (of no meaning yet) lie in front of the IP header, and
    /// gives the first `W` bytes. Offsets in the meta are moved along. The packet's own bytes from
    /// `meta.l3` on stay where they are.
    #[inline(always)]
    pub fn reheader<const H: u16, const W: usize>(&mut self) -> Option<&mut [u8; W]> {
        let meta = &mut *self.meta;
        let ip_at = meta.start.wrapping_add(meta.l3);
        let start = ip_at.checked_sub(H)?;
        let bytes = self.slot.0.get_mut(usize::from(start)..usize::from(meta.end))?;
        let window = bytes.first_chunk_mut::<W>()?;
        // One distance for all; unsigned arithmetic that wraps goes both ways.
        let moved = meta.start.wrapping_sub(start);
        meta.l4 = if meta.l4 == 0 { 0 } else { meta.l4.wrapping_add(moved) };
        meta.csum_start = meta.csum_start.wrapping_add(moved);
        meta.l3 = H;
        meta.start = start;
        Some(window)
    }

    /// What to do when parsing needs more bytes than the head has.
    #[cold]
    pub fn more(&self) -> Verdict {
        if self.meta.body_bytes == 0 {
            Verdict::Drop(DropReason::Runt)
        } else if self.meta.end - self.meta.start < HEAD_MAX_BYTES as u16 {
            Verdict::Refill
        } else {
            Verdict::Drop(DropReason::HeadTooDeep)
        }
    }

    /// Cuts the frame to its first `n` bytes: what follows is padding.
    #[inline]
    pub fn trim(&mut self, n: usize) {
        let head_bytes = usize::from(self.meta.end - self.meta.start);
        let body_bytes = n.saturating_sub(head_bytes) as u32;
        if body_bytes < self.meta.body_bytes {
            self.meta.body_bytes = body_bytes;
            self.meta.body_summed = false;
        }
        if n < head_bytes {
            self.meta.end = self.meta.start + n as u16;
        }
    }

    /// Makes the head the whole frame and gives it `n` bytes, be that fewer or more than it has.
    /// For answers. False when there is no room.
    #[inline]
    pub fn resize(&mut self, n: u16) -> bool {
        let end = usize::from(self.meta.start) + usize::from(n);
        let fits = end <= SLOT_BYTES;
        if fits {
            self.meta.end = end as u16;
            self.meta.body_bytes = 0;
        }
        fits
    }

    /// Makes the head the whole frame of `n` bytes: the body is forgotten. For answers.
    #[inline]
    pub fn truncate(&mut self, n: u16) {
        self.meta.end = (self.meta.start + n).min(self.meta.end);
        self.meta.body_bytes = 0;
    }

    /// Replaces the whole frame by `bytes` (an answer made from scratch), if it fits a head.
    pub fn replace(&mut self, bytes: &[u8]) -> bool {
        if bytes.len() > HEAD_MAX_BYTES {
            return false;
        }
        self.meta.start = HEADROOM_BYTES as u16;
        self.meta.end = (HEADROOM_BYTES + bytes.len()) as u16;
        self.meta.body_bytes = 0;
        self.meta.checksum = Checksum::Unknown;
        self.meta.gso = Gso::None;
        self.meta.fragment_mtu = 0;
        for (to, from) in self.head_mut().iter_mut().zip(bytes) {
            *to = *from;
        }
        true
    }
}
