//! A ring in shared memory: two indexes, two flags, and descriptors, all writable by the peer.
//!
//! Who writes what: the client writes `head`, the server writes `tail`, the receiver writes
//! `flags`. S2M: the client fills descriptors and moves head; the server moves tail when it has
//! read them. M2S: the client posts empty buffers and moves head; the server fills them and moves
//! tail. Both indexes run freely through 16 bits.
//!
//! Rules kept here: our own index is never read back (private cursors decide); the peer's index is
//! loaded with acquire and ours stored with release; a descriptor is read as two 64-bit words
//! once and everything afterwards uses that copy.

pub(crate) mod burst;
pub(crate) mod own;
pub(crate) mod rx;
#[cfg(feature = "capi")]
pub(crate) mod slots;
#[cfg(test)]
mod tests;
pub(crate) mod tx;

use crate::error::RingError;
use crate::region::Region;
use crate::wire::{DESCRIPTOR_BYTES, RING_COOKIE, RING_FLAG_MASK_INT, RING_HEADER_BYTES};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

const FLAGS_AT: usize = 4;
const HEAD_AT: usize = 6;
const TAIL_AT: usize = 64;

/// Which end of the connection we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Listens; uses the client's memory.
    Server,
    /// Connects; brings the memory.
    Client,
}

/// Frames' direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Client to server.
    S2m,
    /// Server to client.
    M2s,
}

impl Direction {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::S2m => "S2M ring",
            Self::M2s => "M2S ring",
        }
    }
}

/// A descriptor as read once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub flags: u16,
    pub region: u16,
    pub length: u32,
    pub offset: u32,
}

/// Where a ring lies in its region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub region: u16,
    pub offset: u32,
    pub log2_size: u8,
}

impl Place {
    pub(crate) fn bytes(self) -> u64 {
        RING_HEADER_BYTES + (DESCRIPTOR_BYTES << self.log2_size)
    }

    /// Whether two rings share bytes.
    pub(crate) fn overlaps(self, other: Self) -> bool {
        let (a, b) = (u64::from(self.offset), u64::from(other.offset));
        self.region == other.region && a < b + other.bytes() && b < a + self.bytes()
    }
}

/// One ring: addresses and size, private to us, checked when the ring was added.
#[derive(Debug)]
pub(crate) struct Ring {
    header: NonNull<u8>,
    descriptors: NonNull<u8>,
    mask: u16,
    pub direction: Direction,
    eventfd: RawFd,
}

// SAFETY: a Ring is addresses of shared memory, touched with atomics only; the queue that owns it
// keeps the region mapped, and the eventfd open.
unsafe impl Send for Ring {}

impl Ring {
    /// Largest size for which 16-bit indexes tell full from empty.
    pub(crate) const MAX_LOG2: u8 = 15;

    /// Checks that the ring lies wholly inside its region, on a cache line.
    pub(crate) fn new(
        place: Place,
        region: &Region,
        direction: Direction,
        eventfd: BorrowedFd<'_>,
    ) -> Result<Self, RingError> {
        if !place.offset.is_multiple_of(64) {
            return Err(RingError::Alignment(place.offset));
        }
        let (offset, ring_bytes) = (u64::from(place.offset), place.bytes());
        let out =
            RingError::Bounds { offset: place.offset, ring_bytes, region_bytes: region.size() };
        if place.log2_size > Self::MAX_LOG2 {
            return Err(RingError::Size { got: place.log2_size, min: 0, max: Self::MAX_LOG2 });
        }
        let header = region.at(offset, ring_bytes).ok_or_else(|| out.clone())?;
        let body = ring_bytes - RING_HEADER_BYTES;
        let descriptors = region.at(offset + RING_HEADER_BYTES, body).ok_or(out)?;
        let mask = ((1u32 << place.log2_size) - 1) as u16;
        Ok(Self { header, descriptors, mask, direction, eventfd: eventfd.as_raw_fd() })
    }

    /// What the receiver is signalled by.
    pub(crate) fn eventfd(&self) -> BorrowedFd<'_> {
        // SAFETY: the queue that owns this ring keeps it open, as it keeps the region mapped.
        unsafe { BorrowedFd::borrow_raw(self.eventfd) }
    }

    /// Number of slots.
    #[inline]
    pub(crate) fn slots(&self) -> u32 {
        u32::from(self.mask) + 1
    }

    #[inline]
    fn index(&self, at: usize) -> &AtomicU16 {
        // SAFETY: `new` checked that 128 header bytes are mapped, 64-aligned; the queue that owns
        // this ring keeps them mapped. The peer's concurrent accesses are to the same atomic word.
        unsafe { AtomicU16::from_ptr(self.header.as_ptr().add(at).cast()) }
    }

    #[inline]
    fn words(&self, slot: u16) -> (&AtomicU64, &AtomicU64) {
        let at = usize::from(slot & self.mask) * DESCRIPTOR_BYTES as usize;
        // SAFETY: the masked slot is inside the descriptors that `new` checked; 16-aligned.
        unsafe {
            let base = self.descriptors.as_ptr().add(at).cast::<u64>();
            (AtomicU64::from_ptr(base), AtomicU64::from_ptr(base.add(1)))
        }
    }

    /// Flags as the receiver left them.
    #[cfg(feature = "capi")]
    pub(crate) fn load_flags(&self) -> u16 {
        self.index(FLAGS_AT).load(Ordering::Relaxed)
    }

    /// Where the ring lies, for a debugger's eyes.
    #[cfg(feature = "capi")]
    pub(crate) fn address(&self) -> *mut u8 {
        self.header.as_ptr()
    }

    /// The ring's cookie, read once when the ring is added.
    pub(crate) fn cookie(&self) -> u32 {
        // SAFETY: first word of the header, see `index`.
        unsafe { AtomicU32::from_ptr(self.header.as_ptr().cast()) }.load(Ordering::Relaxed)
    }

    /// Writes a fresh header: cookie, no flags, both indexes zero. For the client, which owns it.
    pub(crate) fn initialise(&self) {
        // SAFETY: as in `cookie`.
        unsafe { AtomicU32::from_ptr(self.header.as_ptr().cast()) }
            .store(RING_COOKIE, Ordering::Relaxed);
        self.index(FLAGS_AT).store(0, Ordering::Relaxed);
        self.zero_indexes();
    }

    /// Both sides start from zero at CONNECT.
    pub(crate) fn zero_indexes(&self) {
        self.index(HEAD_AT).store(0, Ordering::Release);
        self.index(TAIL_AT).store(0, Ordering::Release);
    }

    /// The client's index.
    #[inline]
    pub(crate) fn load_head(&self) -> u16 {
        self.index(HEAD_AT).load(Ordering::Acquire)
    }

    /// The server's index.
    #[inline]
    pub(crate) fn load_tail(&self) -> u16 {
        self.index(TAIL_AT).load(Ordering::Acquire)
    }

    #[inline]
    pub(crate) fn store_head(&self, head: u16) {
        self.index(HEAD_AT).store(head, Ordering::Release);
    }

    #[inline]
    pub(crate) fn store_tail(&self, tail: u16) {
        self.index(TAIL_AT).store(tail, Ordering::Release);
    }

    /// Reads a descriptor once. The peer may tear it between the two words; any mixture is checked
    /// like any other contents.
    #[inline]
    pub(crate) fn snapshot(&self, slot: u16) -> Snapshot {
        let (first, second) = self.words(slot);
        let (a, b) = (first.load(Ordering::Relaxed), second.load(Ordering::Relaxed));
        Snapshot {
            flags: a as u16,
            region: (a >> 16) as u16,
            length: (a >> 32) as u32,
            offset: b as u32,
        }
    }

    /// Writes flags, region and length, and leaves the offset alone: the server's part of M2S.
    #[inline]
    pub(crate) fn write_length(&self, slot: u16, flags: u16, region: u16, length: u32) {
        let word = u64::from(flags) | u64::from(region) << 16 | u64::from(length) << 32;
        self.words(slot).0.store(word, Ordering::Relaxed);
    }

    /// Writes a whole descriptor: the client's part, which owns buffers in both directions.
    #[inline]
    pub(crate) fn write(&self, slot: u16, d: Snapshot) {
        self.write_length(slot, d.flags, d.region, d.length);
        self.words(slot).1.store(u64::from(d.offset), Ordering::Relaxed);
    }

    /// Fetches the descriptor `ahead` slots on into the cache.
    #[inline]
    pub(crate) fn prefetch(&self, slot: u16) {
        prefetch_read(self.words(slot).0.as_ptr().cast());
    }

    /// Fetches the descriptor `ahead` slots on to be written: the peer has written its line, and
    /// fetching it to read would only have us ask for it again.
    #[inline]
    pub(crate) fn prefetch_to_write(&self, slot: u16) {
        prefetch_write(self.words(slot).0.as_ptr().cast());
    }

    /// The receiver's wish to be signalled, after which its peer's last publication is visible.
    pub(crate) fn set_mask_int(&self, masked: bool) {
        let value = if masked { RING_FLAG_MASK_INT } else { 0 };
        self.index(FLAGS_AT).store(value, Ordering::Relaxed);
        // Pairs with the fence in `wants_signal`: either the sender sees the flag cleared, or the
        // re-check that the caller does next sees the sender's index.
        full_fence();
    }

    /// Whether the receiver wants its eventfd signalled for what was published before.
    #[inline]
    pub(crate) fn wants_signal(&self) -> bool {
        full_fence();
        self.unmasked()
    }

    /// The receiver's flag as it is seen now, in no order with what was published.
    #[inline]
    pub(crate) fn unmasked(&self) -> bool {
        self.index(FLAGS_AT).load(Ordering::Relaxed) & RING_FLAG_MASK_INT == 0
    }
}

/// Orders earlier stores before later loads. On x86 a locked operation on the own stack does that in
/// half the time of the `mfence` that `fence(SeqCst)` becomes.
#[inline]
fn full_fence() {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: adds zero to a word of our own stack; not marked `nomem`, so the compiler moves no
    // access across it either.
    unsafe {
        std::arch::asm!("lock or dword ptr [rsp], 0");
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    std::sync::atomic::fence(Ordering::SeqCst);
}

/// A cache line. Of a frame the first two are fetched ahead: its headers lie there, and a line that is
/// asked for only when it is read comes from the other core while everything waits.
pub(crate) const LINE_BYTES: usize = 64;
/// Descriptors in a cache line.
pub(crate) const LINE_SLOTS: u16 = (LINE_BYTES / DESCRIPTOR_BYTES as usize) as u16;

/// Hints that a line will be read soon. No effect on correctness, legal on any address.
#[inline]
pub(crate) fn prefetch_read(pointer: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: prefetch never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(pointer.cast());
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = pointer;
}

/// Hints that a line will be written soon.
#[inline]
pub(crate) fn prefetch_write(pointer: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: prefetch never faults and PREFETCHW is a no-op where it is not implemented.
    unsafe {
        std::arch::asm!("prefetchw [{0}]", in(reg) pointer, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = pointer;
}
