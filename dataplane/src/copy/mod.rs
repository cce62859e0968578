//! The only place where bytes of packet bodies move.
//!
//! A body is a list of [`Seg`]s: memory of a memif peer, an mbuf, or a port's own buffer. Foreign
//! memory is never a `&[u8]`: it is read by copying, once. The worker lists copies for a burst in
//! a [`CopyList`] and runs it on an engine before the sinks publish.
//!
//! # Invariant
//! A `Seg` or `SegMut` is made only by a port, for memory that stays mapped until the port's
//! claim on it is released; the worker releases claims after [`CopyList::run`]. Hence every
//! pointer in a list is valid when it runs. (The bytes may change under our hands: a peer can
//! only spoil its own payload.)
#![allow(unsafe_code, reason = "this room moves bytes between memory of different owners")]

mod sum;

pub use sum::{complete_checksum, partial_sum};

/// Bytes of a body to read.
#[derive(Debug, Clone, Copy)]
pub struct Seg {
    ptr: *const u8,
    len: u32,
}

// SAFETY: a Seg is an address and a length; the port that made it promises that the memory stays
// mapped until its claim is released, whichever thread reads it.
unsafe impl Send for Seg {}

impl Seg {
    /// A segment of `len` bytes at `ptr`.
    ///
    /// # Safety
    /// The memory must stay readable until the claim that it belongs to is released.
    #[inline]
    pub unsafe fn new(ptr: *const u8, len: u32) -> Self {
        Self { ptr, len }
    }

    /// An empty segment.
    pub const EMPTY: Seg = Seg { ptr: std::ptr::null(), len: 0 };

    /// Its bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether it has none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address, for a system call that gathers (the kernel answers EFAULT, not SIGBUS, for a
    /// page that its owner took away).
    #[inline]
    pub fn as_ptr(&self) -> *const u8 {
        self.ptr
    }

    /// The part from `skip` on, at most `len` bytes long.
    #[inline]
    pub fn part(&self, skip: usize, len: usize) -> Seg {
        let skip = skip.min(self.len());
        let len = len.min(self.len() - skip);
        // SAFETY: `skip` is at most the segment's length, so the result is inside or one past it.
        let ptr = unsafe { self.ptr.add(skip) };
        Seg { ptr, len: len as u32 }
    }

    /// Copies the first bytes to private memory; as many as both hold. Returns how many.
    #[inline]
    pub fn read(&self, to: &mut [u8]) -> usize {
        let len = to.len().min(self.len());
        if len == 0 {
            return 0;
        }
        // SAFETY: `self` is readable for `len` bytes (module invariant); `to` is private and
        // exclusively borrowed, so the two do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(self.ptr, to.as_mut_ptr(), len) };
        len
    }

    /// Asks for the first cache line.
    #[inline]
    pub fn prefetch(&self) {
        prefetch_read(self.ptr);
    }
}

/// Memory of a sink to write.
#[derive(Debug, Clone, Copy)]
pub struct SegMut {
    ptr: *mut u8,
    len: u32,
}

// SAFETY: as for `Seg`; the sink that made it is owned by the thread that uses it.
unsafe impl Send for SegMut {}

impl SegMut {
    /// A destination of `len` bytes at `ptr`.
    ///
    /// # Safety
    /// The memory must stay writable, and be nobody else's to write in this process, until the
    /// sink publishes it.
    #[inline]
    pub unsafe fn new(ptr: *mut u8, len: u32) -> Self {
        Self { ptr, len }
    }

    /// No room.
    pub const EMPTY: SegMut = SegMut { ptr: std::ptr::null_mut(), len: 0 };

    /// Its bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether it has none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies private bytes to the front; returns the rest of the destination.
    #[inline]
    pub fn write(self, from: &[u8]) -> SegMut {
        let len = from.len().min(self.len());
        if len == 0 {
            return self;
        }
        // SAFETY: `self` is writable for `len` bytes (promise of `new`); `from` is private memory.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.ptr, len) };
        // SAFETY: `len` is at most the destination's length.
        let ptr = unsafe { self.ptr.add(len) };
        SegMut { ptr, len: self.len - len as u32 }
    }
}

#[derive(Debug, Clone, Copy)]
struct Op {
    from: *const u8,
    to: *mut u8,
    len: u32,
}

/// Copies of a burst, run together.
#[derive(Debug)]
pub struct CopyList {
    ops: Vec<Op>,
    /// Bytes copied since start, by the CPU.
    pub cpu_bytes: u64,
    /// Copies since start, by the CPU.
    pub cpu_copies: u64,
}

// SAFETY: the list is empty whenever it changes threads (a worker owns it for life); its pointers
// are as sendable as the segments that they came from.
unsafe impl Send for CopyList {}

/// Ops before a list runs by itself.
const LIST_OPS: usize = 256;

impl Default for CopyList {
    fn default() -> Self {
        Self { ops: Vec::with_capacity(LIST_OPS), cpu_bytes: 0, cpu_copies: 0 }
    }
}

impl CopyList {
    /// Plans to copy the front of `from` to the front of `to`: as much as both hold. Returns what
    /// remains of both.
    #[inline]
    pub fn plan(&mut self, from: Seg, to: SegMut) -> (Seg, SegMut) {
        let len = from.len.min(to.len);
        if self.ops.len() == LIST_OPS {
            self.run();
        }
        self.ops.push(Op { from: from.ptr, to: to.ptr, len });
        // SAFETY: `len` is at most the length of either, so both stay inside or one past the end.
        unsafe {
            (
                Seg { ptr: from.ptr.add(len as usize), len: from.len - len },
                SegMut { ptr: to.ptr.add(len as usize), len: to.len - len },
            )
        }
    }

    /// Runs all planned copies.
    #[inline]
    pub fn run(&mut self) {
        for op in &self.ops {
            // SAFETY: module invariant: the source's claim and the sink's reservation are held
            // until after this call; source and destination belong to different ports' memory.
            unsafe { copy(op.from, op.to, op.len as usize) };
            self.cpu_bytes += u64::from(op.len);
        }
        self.cpu_copies += self.ops.len() as u64;
        self.ops.clear();
    }
}

/// One copy. Regions of one peer may be handed to us twice under two mappings, so "different
/// memory" is the peer's promise only; an overlap spoils that peer's payload and nothing else,
/// which is why this is `ptr::copy` semantics for the compiler's purposes.
///
/// # Safety
/// `from` is readable and `to` writable for `len` bytes.
#[inline]
unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: by the caller.
    unsafe { std::ptr::copy(from, to, len) };
}

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

/// A segment over a test's own bytes, which the test keeps alive while it uses the segment.
#[cfg(test)]
pub(crate) fn tests_seg(bytes: &[u8]) -> Seg {
    // SAFETY: by the documentation above.
    unsafe { Seg::new(bytes.as_ptr(), bytes.len() as u32) }
}

#[cfg(test)]
mod tests {
    use super::tests_seg as seg;
    use super::*;

    #[test]
    fn a_body_of_several_segments_arrives_in_order() {
        let (a, b) = (vec![1u8; 300], vec![2u8; 700]);
        let mut to = vec![0u8; 1100];
        // SAFETY: `to` outlives the list's run below.
        let mut dst = unsafe { SegMut::new(to.as_mut_ptr(), 1100) };
        dst = dst.write(&[9; 100]);
        let mut list = CopyList::default();
        for part in [seg(&a), seg(&b)] {
            let (rest, next) = list.plan(part, dst);
            assert!(rest.is_empty());
            dst = next;
        }
        assert!(dst.is_empty());
        list.run();
        assert_eq!((list.cpu_bytes, list.cpu_copies), (1000, 2));
        assert!(to[..100].iter().all(|&x| x == 9));
        assert!(to[100..400].iter().all(|&x| x == 1));
        assert!(to[400..].iter().all(|&x| x == 2));
    }

    #[test]
    fn parts_never_leave_the_segment() {
        let bytes = [7u8; 10];
        let s = seg(&bytes);
        assert_eq!(s.part(4, 100).len(), 6);
        assert_eq!(s.part(40, 100).len(), 0);
        let mut out = [0u8; 32];
        assert_eq!(s.part(8, 9).read(&mut out), 2);
    }
}
