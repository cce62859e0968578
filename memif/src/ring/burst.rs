//! What a claim hands out: frames, and the segments that they consist of.
//!
//! Segments are addresses in the peer's memory with a length that was checked. They stay valid
//! while any queue or hold of the connection is alive, and meaningful until their slots are
//! released. Reading through them is `unsafe` and the caller's business; [`crate::RxQueue::copy_to`]
//! and [`crate::TxQueue::send`] are the safe way.

use super::{prefetch_read, prefetch_write};
use std::mem::MaybeUninit;

/// Most descriptors that one received frame may have.
pub const MAX_RX_SEGS: usize = 16;
/// Most slots that one sent frame may take: 64 KiB in buffers of 1 KiB.
pub const MAX_TX_SEGS: usize = 64;

/// Bytes of a received frame, in the peer's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seg {
    pub(crate) pointer: *const u8,
    pub(crate) len_bytes: u32,
}

// SAFETY: an address and a length; touching it is unsafe and not tied to a thread.
unsafe impl Send for Seg {}

impl Seg {
    /// Where it begins. The peer may write to it at any time: copy, never borrow.
    #[inline]
    #[must_use]
    pub fn as_ptr(&self) -> *const u8 {
        self.pointer
    }

    /// How long it is; never zero.
    #[inline]
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "a segment is never empty")]
    pub fn len(&self) -> usize {
        self.len_bytes as usize
    }

    /// Fetches the line at `offset` into the cache.
    #[inline]
    pub fn prefetch(&self, offset: usize) {
        prefetch_read(self.pointer.wrapping_add(offset));
    }
}

/// Room for bytes of a frame to send, in the peer's memory or in what it can see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegMut {
    pub(crate) pointer: *mut u8,
    pub(crate) len_bytes: u32,
}

// SAFETY: as for Seg.
unsafe impl Send for SegMut {}

impl SegMut {
    /// Where to write.
    #[inline]
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.pointer
    }

    /// How much to write; never zero.
    #[inline]
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "a segment is never empty")]
    pub fn len(&self) -> usize {
        self.len_bytes as usize
    }

    /// Fetches the line at `offset` into the cache, to be written.
    #[inline]
    pub fn prefetch(&self, offset: usize) {
        prefetch_write(self.pointer.wrapping_add(offset));
    }
}

/// One received frame of a burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RxFrame {
    /// Index of its first segment in the burst.
    pub first_seg: u16,
    /// How many segments; 0 means that the frame is oversize and to be dropped.
    pub n_segs: u16,
    /// Sum of the segments' lengths.
    pub len_bytes: u32,
    /// Ring slots that it takes: what to release when done with it.
    pub n_slots: u16,
}

impl RxFrame {
    /// Longer, or of more pieces, than this interface takes. It still holds its slots.
    #[inline]
    #[must_use]
    pub fn is_oversize(&self) -> bool {
        self.n_segs == 0
    }
}

/// Frames claimed from one or more receive queues. Allocated once, filled and cleared per burst.
#[derive(Debug)]
pub struct RxBurst {
    frames: Box<[MaybeUninit<RxFrame>]>,
    segs: Box<[MaybeUninit<Seg>]>,
    n_frames: usize,
    n_segs: usize,
    /// Whether a frame was added that does not have one segment.
    mixed: bool,
}

impl RxBurst {
    /// Room for `frames` frames (at most 4,096) of five segments each on average.
    #[must_use]
    pub fn new(frames: usize) -> Self {
        let frames = frames.clamp(1, 4096);
        Self {
            frames: vec![MaybeUninit::uninit(); frames].into_boxed_slice(),
            segs: vec![MaybeUninit::uninit(); frames * 5 + MAX_RX_SEGS].into_boxed_slice(),
            n_frames: 0,
            n_segs: 0,
            mixed: false,
        }
    }

    /// Forgets all frames. Their slots stay claimed.
    #[inline]
    pub fn clear(&mut self) {
        (self.n_frames, self.n_segs, self.mixed) = (0, 0, false);
    }

    /// The frames, in the order of their slots.
    #[inline]
    #[must_use]
    pub fn frames(&self) -> &[RxFrame] {
        // SAFETY: the first n_frames places were written by `push_frame`.
        unsafe { std::slice::from_raw_parts(self.frames.as_ptr().cast(), self.n_frames) }
    }

    /// All segments.
    #[inline]
    #[must_use]
    pub fn segs(&self) -> &[Seg] {
        // SAFETY: the first n_segs places were written by `push_seg`.
        unsafe { std::slice::from_raw_parts(self.segs.as_ptr().cast(), self.n_segs) }
    }

    /// All segments, if each frame has exactly one: the frames need not be looked at.
    #[inline]
    #[must_use]
    pub fn singles(&self) -> Option<&[Seg]> {
        (!self.mixed).then(|| self.segs())
    }

    /// The segments of one frame.
    #[inline]
    #[must_use]
    pub fn segs_of(&self, frame: &RxFrame) -> &[Seg] {
        let first = usize::from(frame.first_seg);
        self.segs().get(first..first + usize::from(frame.n_segs)).unwrap_or(&[])
    }

    /// Number of frames.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.n_frames
    }

    /// Whether there are none.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.n_frames == 0
    }

    /// Adds frames of one segment each, up to `most` and as long as there is room: what `single` makes of
    /// their number in this run, up to the first that it makes nothing of. Returns how many.
    #[inline(always)]
    pub(crate) fn fill_singles<E>(
        &mut self,
        most: usize,
        mut single: impl FnMut(u16) -> Result<Option<Seg>, E>,
    ) -> Result<usize, E> {
        let frames = self.frames[self.n_frames..].iter_mut();
        let places = frames.zip(&mut self.segs[self.n_segs..]).take(most);
        let mut added = 0;
        for (frame, place) in places {
            let Some(seg) = single(added)? else { break };
            place.write(seg);
            frame.write(RxFrame {
                first_seg: self.n_segs as u16 + added,
                n_segs: 1,
                len_bytes: seg.len_bytes,
                n_slots: 1,
            });
            added += 1;
        }
        self.n_segs += usize::from(added);
        self.n_frames += usize::from(added);
        Ok(usize::from(added))
    }

    /// Segments that still fit.
    #[inline]
    pub(crate) fn seg_room(&self) -> usize {
        self.segs.len() - self.n_segs
    }

    #[inline]
    pub(crate) fn mark(&self) -> (usize, usize) {
        (self.n_frames, self.n_segs)
    }

    /// Back to a mark taken before.
    #[inline]
    pub(crate) fn reset(&mut self, (n_frames, n_segs): (usize, usize)) {
        self.n_frames = self.n_frames.min(n_frames);
        self.n_segs = self.n_segs.min(n_segs);
    }

    /// Drops the frames from index `keep` on and says how many slots they took.
    pub(crate) fn truncate(&mut self, keep: usize) -> u16 {
        let Some(cut) = self.frames().get(keep..) else { return 0 };
        let slots = cut.iter().fold(0u16, |sum, f| sum.wrapping_add(f.n_slots));
        if let Some(first) = cut.first() {
            self.n_segs = usize::from(first.first_seg);
        }
        self.n_frames = self.n_frames.min(keep);
        slots
    }

    pub(crate) fn push_seg(&mut self, seg: Seg) {
        self.segs[self.n_segs].write(seg);
        self.n_segs += 1;
    }

    pub(crate) fn push_frame(&mut self, frame: RxFrame) {
        self.frames[self.n_frames].write(frame);
        self.n_frames += 1;
        self.mixed = true;
    }
}

/// The room reserved for one frame to send.
#[derive(Debug)]
pub struct TxSegs {
    segs: [MaybeUninit<SegMut>; MAX_TX_SEGS],
    n_segs: usize,
}

impl Default for TxSegs {
    fn default() -> Self {
        Self::new()
    }
}

impl TxSegs {
    /// Empty.
    #[must_use]
    pub fn new() -> Self {
        Self { segs: [MaybeUninit::uninit(); MAX_TX_SEGS], n_segs: 0 }
    }

    /// Where to write the frame, in order.
    #[inline]
    #[must_use]
    pub fn as_slice(&self) -> &[SegMut] {
        // SAFETY: the first n_segs places were written by `push`.
        unsafe { std::slice::from_raw_parts(self.segs.as_ptr().cast(), self.n_segs) }
    }

    #[inline]
    pub(crate) fn set_single(&mut self, seg: SegMut) {
        self.segs[0].write(seg);
        self.n_segs = 1;
    }

    #[inline]
    pub(crate) fn clear(&mut self) {
        self.n_segs = 0;
    }

    #[inline]
    pub(crate) fn push(&mut self, seg: SegMut) {
        self.segs[self.n_segs].write(seg);
        self.n_segs += 1;
    }

    /// Fills it from the front with what `place` makes of each, up to the first that it makes
    /// nothing of. Returns how many.
    #[inline(always)]
    pub(crate) fn fill<T, E>(
        &mut self,
        all: impl Iterator<Item = T>,
        mut place: impl FnMut(T) -> Result<Option<SegMut>, E>,
    ) -> Result<usize, E> {
        self.n_segs = 0;
        let mut filled = 0;
        for (to, each) in self.segs.iter_mut().zip(all) {
            let Some(seg) = place(each)? else { break };
            to.write(seg);
            filled += 1;
        }
        self.n_segs = filled;
        Ok(filled)
    }
}
