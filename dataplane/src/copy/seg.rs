//! Pieces of memory to copy from and to.

use super::{cpu, prefetch_read};

/// Bytes of a body to read.
#[derive(Debug, Clone, Copy)]
pub struct Seg {
    pub(super) ptr: *const u8,
    pub(super) len: u32,
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

    /// Fetches the line at `offset` into the cache. No effect on correctness, legal beyond its end.
    #[inline]
    pub fn prefetch(&self, offset: usize) {
        prefetch_read(self.ptr.wrapping_add(offset));
    }

    /// Copies the first bytes to private memory; as many as both hold. Returns how many.
    #[inline]
    pub fn read(&self, to: &mut [u8]) -> usize {
        let len = to.len().min(self.len());
        // SAFETY: `self` is readable for `len` bytes (module invariant); `to` is private and
        // exclusively borrowed, so the two do not overlap.
        unsafe { cpu::short(self.ptr, to.as_mut_ptr(), len) };
        len
    }

    /// Reads a byte of each page. Where the kernel has found one missing on our behalf, this makes the
    /// SIGBUS that tells whose it was.
    #[cold]
    pub fn touch(&self) {
        const PAGE_BYTES: usize = 4096;
        let Some(last) = self.len().checked_sub(1) else { return };
        for at in (0..last).step_by(PAGE_BYTES).chain([last]) {
            // SAFETY: `at` is less than the segment's length; it is readable (module invariant).
            unsafe { self.ptr.add(at).read_volatile() };
        }
    }
}

/// Memory of a sink to write.
#[derive(Debug, Clone, Copy)]
pub struct SegMut {
    pub(super) ptr: *mut u8,
    pub(super) len: u32,
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
        // SAFETY: `self` is writable for `len` bytes (promise of `new`); `from` is private memory.
        unsafe { cpu::short(from.as_ptr(), self.ptr, len) };
        // SAFETY: `len` is at most the destination's length.
        let ptr = unsafe { self.ptr.add(len) };
        SegMut { ptr, len: self.len - len as u32 }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests_seg as seg;

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
