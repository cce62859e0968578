//! Memory of a file that the kernel could make one huge page of.

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use std::fs::File;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

/// What the kernel collapses at a time.
pub(crate) const HUGE_BYTES: usize = 2 << 20;
const MADV_COLLAPSE: i32 = 25;

/// The first 2 MiB of a file, at a multiple of 2 MiB.
pub(crate) struct Collapsible {
    area: NonNull<libc::c_void>,
    start: usize,
}

impl Collapsible {
    pub(crate) fn map(file: &File) -> Self {
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let length = NonZeroUsize::new(HUGE_BYTES).unwrap();
        let twice = NonZeroUsize::new(2 * HUGE_BYTES).unwrap();
        // SAFETY: a new mapping, and one inside of it; both are this object's.
        unsafe {
            let none = ProtFlags::PROT_NONE;
            let area = mmap_anonymous(None, twice, none, MapFlags::MAP_PRIVATE).unwrap();
            let start = (area.as_ptr() as usize).next_multiple_of(HUGE_BYTES);
            let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
            mmap(NonZeroUsize::new(start), length, access, flags, file, 0).unwrap();
            Self { area, start }
        }
    }

    /// Asks the kernel to.
    pub(crate) fn collapse(&self) -> Result<(), Errno> {
        // SAFETY: the range is mapped, and keeps its contents.
        let answer =
            unsafe { libc::madvise(self.start as *mut libc::c_void, HUGE_BYTES, MADV_COLLAPSE) };
        Errno::result(answer).map(drop)
    }
}

impl Drop for Collapsible {
    fn drop(&mut self) {
        // SAFETY: nobody has pointers into it.
        let _ = unsafe { munmap(self.area, 2 * HUGE_BYTES) };
    }
}
