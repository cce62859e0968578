//! A client's own knowledge of its buffers, which no server can change.
//!
//! Every slot of a client's ring has a buffer. Where it lies stands in the descriptor as well, but
//! there the server can write; so it is kept here, and the descriptor is only ever written.

use super::Snapshot;

/// A slot's buffer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot {
    /// Where in the region it begins.
    pub offset: u32,
    /// Bytes left free in front when it was posted; only users of the C interface ask for any.
    pub headroom: u32,
}

/// The buffers of one ring; empty on the server.
#[derive(Debug)]
pub(crate) struct OwnBuffers {
    base: *mut u8,
    region: u16,
    stride: u32,
    slots: Box<[Slot]>,
}

impl OwnBuffers {
    /// A server has none.
    pub(crate) fn none() -> Self {
        Self { base: std::ptr::null_mut(), region: 0, stride: 0, slots: Box::default() }
    }

    /// `slots` buffers of `stride` bytes from `first` on, in the region that begins at `base` and
    /// holds them all.
    pub(crate) fn new(base: *mut u8, region: u16, first: u32, stride: u32, slots: u32) -> Self {
        let slot = |i| Slot { offset: first + i * stride, headroom: 0 };
        Self { base, region, stride, slots: (0..slots).map(slot).collect() }
    }

    #[inline]
    pub(crate) fn stride(&self) -> u32 {
        self.stride
    }

    #[inline]
    pub(crate) fn region(&self) -> u16 {
        self.region
    }

    /// The buffer of a slot; the ring's size is a power of two and there is one buffer per slot.
    #[inline]
    pub(crate) fn slot(&self, slot: u16) -> Slot {
        let index = usize::from(slot) & self.slots.len().wrapping_sub(1);
        // SAFETY: masked by the length less one, which is a power of two less one; queues ask for a
        // slot only as clients, whose rings have one buffer for each of their 2 or more slots.
        unsafe { *self.slots.get_unchecked(index) }
    }

    #[inline]
    pub(crate) fn set(&mut self, slot: u16, to: Slot) {
        let index = usize::from(slot) & self.slots.len().wrapping_sub(1);
        if let Some(place) = self.slots.get_mut(index) {
            *place = to;
        }
    }

    /// Where the contents of a slot's buffer begin.
    #[inline]
    pub(crate) fn pointer(&self, slot: Slot) -> *mut u8 {
        self.base.wrapping_add(slot.offset as usize + slot.headroom as usize)
    }

    /// The descriptor of an empty buffer.
    #[inline]
    pub(crate) fn empty(&self, slot: Slot) -> Snapshot {
        Snapshot {
            flags: 0,
            region: self.region,
            length: self.stride - slot.headroom,
            offset: slot.offset + slot.headroom,
        }
    }

    /// Whether a buffer may lie there.
    #[cfg(feature = "capi")]
    pub(crate) fn fits(&self, offset: u32, views: &[crate::region::View]) -> bool {
        let size = views.get(usize::from(self.region)).map_or(0, |v| v.size);
        u64::from(offset) + u64::from(self.stride) <= size
    }
}
