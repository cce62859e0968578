//! The packets of one burst: heads, facts and where the bodies lie.

use std::ops::Range;

use memif::RxBurst;

use crate::copy::{CopyList, Seg, SegMut, partial_sum, peer_seg, peer_seg_mut};
use crate::path::{HEAD_BYTES, HEAD_MAX_BYTES, HEADROOM_BYTES, Meta, Packet, Slot};
use crate::table::IfaceId;

/// Most packets of a burst.
pub const BURST_PKTS: usize = 64;
/// Of a cache.
const LINE_BYTES: usize = 64;
/// After so many packets it is looked whether their memory is spoilt, which makes each of them slow.
const LOOK_EVERY: u32 = 8;
/// Most body segments of a burst.
const BURST_SEGS: usize = BURST_PKTS * 17;

/// A worker's one burst, used over and over. Arrays are parallel: slot, facts.
#[derive(Debug)]
pub struct Burst {
    slots: Box<[Slot; BURST_PKTS]>,
    meta: Box<[Meta; BURST_PKTS]>,
    segs: Vec<Seg>,
    len: usize,
    /// Where memif queues put their claims on the way into the burst; one for all of them, so
    /// that it stays in the cache.
    memif: Option<Box<RxBurst>>,
}

impl Default for Burst {
    fn default() -> Self {
        Self {
            slots: Box::new(std::array::from_fn(|_| Slot::default())),
            meta: Box::new([Meta::default(); BURST_PKTS]),
            segs: Vec::with_capacity(BURST_SEGS),
            len: 0,
            memif: Some(Box::new(RxBurst::new(BURST_PKTS))),
        }
    }
}

impl Burst {
    /// Forgets all packets.
    #[inline]
    pub fn clear(&mut self) {
        self.len = 0;
        self.segs.clear();
    }

    /// How many packets there are.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many more packets fit.
    #[inline]
    pub fn room(&self) -> usize {
        if self.segs.len() + 17 > BURST_SEGS { 0 } else { BURST_PKTS - self.len }
    }

    /// Lends the memif claims out; [`Burst::put_memif`] brings them back.
    #[inline]
    pub(super) fn take_memif(&mut self) -> Box<RxBurst> {
        self.memif.take().unwrap_or_else(|| Box::new(RxBurst::new(BURST_PKTS)))
    }

    #[inline]
    pub(super) fn put_memif(&mut self, claimed: Box<RxBurst>) {
        self.memif = Some(claimed);
    }

    /// Takes in a frame that lies in one piece at `frame`. The facts start from scratch.
    /// The caller has checked [`Burst::room`].
    #[inline(always)]
    pub fn push(&mut self, iface: IfaceId, claim: u32, frame: Seg) -> Option<&mut Meta> {
        let slot = self.slots.get_mut(self.len)?;
        let meta = self.meta.get_mut(self.len)?;
        take_in(slot, meta, &mut self.segs, (iface, claim), frame);
        self.len += 1;
        Some(meta)
    }

    /// Takes in frames of one piece each, with claims that count up from `claim`, until they are
    /// `spoilt`. A function of its own, so that what the loop needs stays in registers.
    #[inline(never)]
    pub(super) fn push_singles(
        &mut self,
        iface: IfaceId,
        claim: u32,
        frames: &[memif::Seg],
        spoilt: impl Fn() -> bool,
    ) {
        let slots = &mut self.slots[self.len..];
        let metas = &mut self.meta[self.len..];
        let count = frames.len().min(slots.len());
        for (((slot, meta), frame), i) in slots.iter_mut().zip(metas).zip(frames).zip(0u32..) {
            if i.is_multiple_of(LOOK_EVERY) && spoilt() {
                return;
            }
            let claim = claim.wrapping_add(i);
            take_in(slot, meta, &mut self.segs, (iface, claim), peer_seg(frame));
        }
        self.len += count;
    }

    /// Takes in a frame of several pieces (at most 16).
    pub fn push_pieces(&mut self, iface: IfaceId, claim: u32, frame: &[Seg]) -> Option<&mut Meta> {
        let [first, rest @ ..] = frame else { return None };
        let at = self.len;
        self.push(iface, claim, *first)?;
        let meta = &mut self.meta[at];
        for seg in rest {
            self.segs.push(*seg);
            meta.body_bytes += seg.len() as u32;
            meta.seg_count += 1;
        }
        if usize::from(meta.end - meta.start) < HEAD_BYTES && meta.body_bytes > 0 {
            self.fill(at, HEAD_BYTES);
        }
        self.meta.get_mut(at)
    }

    /// Brings the head up to [`HEAD_MAX_BYTES`] from the body.
    pub fn refill(&mut self, index: usize) {
        self.fill(index, HEAD_MAX_BYTES);
    }

    /// Brings the head to `head_bytes` from the body, as far as both reach. What was stripped off
    /// its front since it came in does not count.
    pub fn lengthen(&mut self, index: usize, head_bytes: usize) {
        let stripped = usize::from(self.meta[index].start).saturating_sub(HEADROOM_BYTES);
        self.fill(index, (stripped + head_bytes).min(HEAD_MAX_BYTES));
    }

    fn fill(&mut self, index: usize, upto_bytes: usize) {
        let meta = &mut self.meta[index];
        let slot = &mut self.slots[index].0;
        while usize::from(meta.end) < HEADROOM_BYTES + upto_bytes && meta.seg_count > 0 {
            let first = usize::from(meta.seg_first);
            let seg = self.segs[first];
            let end = usize::from(meta.end);
            let n = seg.read(&mut slot[end..HEADROOM_BYTES + upto_bytes]);
            meta.end += n as u16;
            meta.body_bytes -= n as u32;
            self.segs[first] = seg.part(n, usize::MAX);
            if self.segs[first].is_empty() {
                meta.seg_first += 1;
                meta.seg_count -= 1;
            }
        }
    }

    /// The packet.
    #[inline]
    pub fn packet(&mut self, index: usize) -> Packet<'_> {
        Packet::new(&mut self.slots[index], &mut self.meta[index])
    }

    /// Its facts.
    #[inline]
    pub fn meta(&self, index: usize) -> &Meta {
        &self.meta[index]
    }

    /// Makes the list of segments agree with what the path left of the body (it may have cut
    /// padding off, or the whole body).
    #[inline]
    pub fn settle(&mut self, index: usize) {
        settle(&mut self.meta[index], &mut self.segs);
    }

    /// Sums the body for the path (see `Meta::body_sum`).
    pub fn sum(&mut self, index: usize) {
        self.meta[index].body_sum = self.body_sum(index);
        self.meta[index].body_summed = true;
    }

    fn body_sum(&self, index: usize) -> u16 {
        let meta = &self.meta[index];
        let first = usize::from(meta.seg_first);
        let mut segs = [Seg::EMPTY; 17];
        let (mut count, mut left) = (0, meta.body_bytes as usize);
        for seg in self.segs.get(first..first + usize::from(meta.seg_count)).unwrap_or(&[]) {
            let part = seg.part(0, left);
            left -= part.len();
            if let Some(place) = segs.get_mut(count) {
                *place = part;
                count += 1;
            }
        }
        partial_sum(&[], &segs[..count]).fold()
    }

    /// Head, body and facts of a packet, to be sent as it is.
    #[inline]
    pub fn parts(&self, index: usize) -> (&[u8], &[Seg], &Meta) {
        let meta = &self.meta[index];
        let head = usize::from(meta.start)..usize::from(meta.end);
        let body = usize::from(meta.seg_first)..usize::from(meta.seg_first + meta.seg_count);
        (&self.slots[index].0[head], self.segs.get(body).unwrap_or(&[]), meta)
    }

    /// The facts of a run of packets.
    #[inline]
    pub fn metas(&self, run: Range<usize>) -> &[Meta] {
        self.meta.get(run).unwrap_or(&[])
    }

    /// The packets that no fast way has decided on yet: heads and facts, from `index` on.
    #[inline]
    pub fn rest_mut(&mut self, index: usize) -> (&mut [Slot], &mut [Meta]) {
        let rest = index.min(self.len)..self.len;
        (&mut self.slots[rest.clone()], &mut self.meta[rest])
    }

    /// Writes the packets of a run to their places, as far as there are places and until those are
    /// `spoilt`: heads now, bodies as the list runs. Returns the bytes of all. A function of its own, so that what the loop needs
    /// stays in registers.
    #[inline(never)]
    pub(super) fn write_run(
        &mut self,
        run: Range<usize>,
        places: &[memif::SegMut],
        list: &mut CopyList,
        spoilt: impl Fn() -> bool,
    ) -> u64 {
        let mut bytes = 0;
        let packets = self.slots[run.clone()].iter().zip(&mut self.meta[run]);
        for (((slot, meta), place), i) in packets.zip(places).zip(0u32..) {
            if i.is_multiple_of(LOOK_EVERY) && spoilt() {
                break;
            }
            bytes += place.len() as u64;
            let head = slot.0.get(usize::from(meta.start)..usize::from(meta.end));
            let Some(head) = head else { continue };
            let rest = peer_seg_mut(place).write(head);
            if meta.seg_count != 0 {
                plan_body(meta, &mut self.segs, rest, list);
            }
        }
        bytes
    }

    /// Its head, for the last touches before it is sent.
    #[inline]
    pub fn slot_mut(&mut self, index: usize) -> (&mut Slot, &mut Meta, &[Seg]) {
        let meta = &mut self.meta[index];
        let body = usize::from(meta.seg_first)..usize::from(meta.seg_first + meta.seg_count);
        (&mut self.slots[index], meta, self.segs.get(body).unwrap_or(&[]))
    }
}

/// Copies the head of a frame that lies in one piece, and writes down the facts.
#[inline(always)]
fn take_in(
    slot: &mut Slot,
    meta: &mut Meta,
    segs: &mut Vec<Seg>,
    (iface, claim): (IfaceId, u32),
    frame: Seg,
) {
    let head = frame.read(&mut slot.0[HEADROOM_BYTES..HEADROOM_BYTES + HEAD_BYTES]);
    *meta = Meta {
        start: HEADROOM_BYTES as u16,
        end: (HEADROOM_BYTES + head) as u16,
        body_bytes: (frame.len() - head) as u32,
        iface,
        claim,
        seg_first: segs.len() as u16,
        seg_count: u16::from(frame.len() > head),
        ..Meta::default()
    };
    if frame.len() > head {
        // Asked for now, these lines come while the path decides. More of them would keep this loop
        // waiting; the rest comes by itself once the copy runs through the frame.
        let body = frame.part(head, usize::MAX);
        body.prefetch(0);
        body.prefetch(LINE_BYTES);
        segs.push(body);
    }
}

/// Plans the copy of a body, which mostly is one segment. Nobody asks for the segments of a packet that is sent.
#[inline(always)]
fn plan_body(meta: &mut Meta, segs: &mut [Seg], to: SegMut, list: &mut CopyList) {
    match segs.get(usize::from(meta.seg_first)) {
        Some(whole) if meta.seg_count == 1 => {
            list.plan(whole.part(0, meta.body_bytes as usize), to);
        }
        _ => plan_pieces(meta, segs, to, list),
    }
}

/// The same of several. A function of its own, so that frames without do not carry it along.
#[inline(never)]
fn plan_pieces(meta: &mut Meta, segs: &mut [Seg], mut to: SegMut, list: &mut CopyList) {
    settle(meta, segs);
    let body = usize::from(meta.seg_first)..usize::from(meta.seg_first + meta.seg_count);
    for part in segs.get(body).unwrap_or(&[]) {
        to = list.plan(*part, to).1;
    }
}

/// See [`Burst::settle`].
#[inline]
fn settle(meta: &mut Meta, segs: &mut [Seg]) {
    if meta.seg_count == 0 {
        return;
    }
    let mut left = meta.body_bytes as usize;
    let first = usize::from(meta.seg_first);
    for at in 0..usize::from(meta.seg_count) {
        let seg = &mut segs[first + at];
        if seg.len() < left {
            left -= seg.len();
            continue;
        }
        *seg = seg.part(0, left);
        meta.seg_count = (at + usize::from(left > 0)) as u16;
        return;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::copy::tests_seg;

    #[test]
    fn heads_are_filled_across_pieces_and_refilled_from_the_body() {
        let bytes: Vec<u8> = (0..=255).chain(0..=255).collect();
        let pieces: Vec<Seg> = bytes.chunks(50).map(tests_seg).collect();
        let mut burst = Burst::default();
        burst.push_pieces(IfaceId(3), 7, &pieces).expect("there is room");
        assert_eq!(burst.packet(0).head(), &bytes[..128]);
        assert_eq!(burst.packet(0).frame_bytes(), 512);
        burst.refill(0);
        assert_eq!(burst.packet(0).head(), &bytes[..256]);
        let (_, meta, body) = burst.slot_mut(0);
        let mut rest = Vec::new();
        for seg in body {
            let mut part = vec![0; seg.len()];
            seg.read(&mut part);
            rest.extend(part);
        }
        assert_eq!((rest, meta.body_bytes), (bytes[256..].to_vec(), 256));
    }

    #[test]
    fn the_segments_follow_what_the_path_left() {
        let bytes = [5u8; 400];
        let pieces: Vec<Seg> = bytes.chunks(100).map(tests_seg).collect();
        for (left, segs) in [(272, 3), (250, 3), (72, 1), (71, 1), (1, 1), (0, 0)] {
            let mut burst = Burst::default();
            burst.push_pieces(IfaceId(1), 0, &pieces).expect("there is room");
            burst.packet(0).meta.body_bytes = left;
            burst.settle(0);
            let (_, _, body) = burst.slot_mut(0);
            let total: usize = body.iter().map(Seg::len).sum();
            assert_eq!((total, body.len()), (left as usize, segs), "{left} bytes");
        }
    }

    #[test]
    fn a_short_frame_has_no_body() {
        let mut burst = Burst::default();
        burst.push(IfaceId(1), 0, tests_seg(&[1; 60])).expect("there is room");
        let (_, meta, body) = burst.slot_mut(0);
        assert_eq!((meta.body_bytes, body.len()), (0, 0));
    }
}
