//! The only place where bytes of packet bodies move.
//!
//! A body is a list of [`Seg`]s: memory of a memif peer, an mbuf, or a port's own buffer. Foreign
//! memory is never a `&[u8]`: it is read by copying, once. The worker lists copies for a burst in
//! a [`CopyList`] and runs it on an engine before the sinks publish: the CPU, or a DMA [`Channel`]
//! of the worker's own, chosen by the burst's bytes and count.
//!
//! # Invariant
//! A `Seg` or `SegMut` is made only by a port, for memory that stays mapped until the port's
//! claim on it is released; the worker releases claims after [`CopyList::run`], which returns when
//! no engine touches the memory any more. Hence every pointer in a list is valid while it runs.
//! (The bytes may change under our hands: a peer can only spoil its own payload.)
#![allow(unsafe_code, reason = "this room moves bytes between memory of different owners")]

mod choice;
mod cpu;
mod dma;
#[cfg(feature = "dpdk")]
mod dmadev;
mod list;
pub mod measure;
mod seg;
mod sum;
#[cfg(test)]
mod tests;

pub use choice::{Choice, ChoiceError, OpenError, open_all};
pub use dma::{Channel, Completed, Disabled, DmaCounts, Thresholds};
#[cfg(feature = "dpdk")]
pub use dmadev::open;
pub use list::{CopyList, Op};
pub use seg::{Seg, SegMut};
pub use sum::{complete_checksum, partial_sum};

/// A received piece of a memif frame.
#[inline]
pub(crate) fn peer_seg(seg: &memif::Seg) -> Seg {
    // The memif crate checked that it lies in a mapped region, which its queue keeps mapped; the
    // worker drops no queue while claims on it are held.
    Seg { ptr: seg.as_ptr(), len: seg.len() as u32 }
}

/// A reserved piece of a memif ring.
#[inline]
pub(crate) fn peer_seg_mut(seg: &memif::SegMut) -> SegMut {
    // As for `peer_seg`; the reservation is this worker's until it publishes.
    SegMut { ptr: seg.as_ptr(), len: seg.len() as u32 }
}

/// A segment over a port's own buffer, from `from` on and at most `len` bytes long. The port keeps
/// the buffer in place, and writes it no more, until the claim on it is released.
#[inline]
pub(crate) fn owned_seg(buffer: &[u8], from: usize, len: usize) -> Seg {
    let part = buffer.get(from..).unwrap_or(&[]);
    let len = len.min(part.len());
    Seg { ptr: part.as_ptr(), len: len as u32 }
}

/// A destination over a port's own buffer. The port keeps the buffer in place, and touches it no
/// more, until it publishes.
#[cfg(feature = "dpdk")]
#[inline]
pub(crate) fn owned_seg_mut(buffer: &mut [u8]) -> SegMut {
    SegMut { ptr: buffer.as_mut_ptr(), len: buffer.len() as u32 }
}

/// Asks for a cache line to read.
#[inline]
pub fn prefetch_read(ptr: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults, whatever the address.
    unsafe {
        std::arch::x86_64::_mm_prefetch(ptr.cast(), std::arch::x86_64::_MM_HINT_T0);
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = ptr;
}

/// Asks for a cache line to write, so that the first store does not wait for its owner.
#[inline]
pub fn prefetch_write(ptr: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults, whatever the address; where the CPU does not have
    // PREFETCHW it does nothing.
    unsafe {
        std::arch::asm!("prefetchw [{0}]", in(reg) ptr, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = ptr;
}

/// A segment over a test's own bytes, which the test keeps alive while it uses the segment.
#[cfg(test)]
pub(crate) fn tests_seg(bytes: &[u8]) -> Seg {
    // SAFETY: by the documentation above.
    unsafe { Seg::new(bytes.as_ptr(), bytes.len() as u32) }
}
