//! Keeping pages where they are.
//!
//! Whoever shares a memory file may ask the kernel to collapse 2 MiB of it into one huge page
//! (`MADV_COLLAPSE`), sealed or not: all 512 pages are taken out of every mapping meanwhile, and whoever
//! touches one sleeps until that is done, which is when the asking thread has had its share of a core. A page
//! that somebody refers to stays where it is, and with it all that would be collapsed with it. A pipe refers to
//! pages that were spliced into it (vmsplice(2)), one of each 2 MiB, until it is closed.

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;
use std::os::fd::{AsRawFd, OwnedFd};

/// What is collapsed at a time.
const HUGE_BYTES: usize = 2 << 20;
const PAGE_BYTES: usize = 4096;

/// Refers to one page of each 2 MiB of mappings, each of a memory file from its beginning, until it is
/// dropped. Pages that are not there are brought in.
///
/// # Errors
/// The kernel grants no more pipes (pipe(7), `pipe-user-pages-soft`).
pub(crate) fn pin(
    mappings: impl Iterator<Item = (usize, usize)>,
) -> Result<Option<OwnedFd>, Errno> {
    let pages = mappings.flat_map(|(start, bytes)| (start..start + bytes).step_by(HUGE_BYTES));
    let pages: Vec<_> =
        pages.map(|page| libc::iovec { iov_base: page as *mut libc::c_void, iov_len: 1 }).collect();
    if pages.is_empty() {
        return Ok(None);
    }
    let (kept, full) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    let room = i32::try_from(pages.len() * PAGE_BYTES).map_err(|_| Errno::E2BIG)?;
    fcntl(&full, FcntlArg::F_SETPIPE_SZ(room))?;
    // SAFETY: whole pages of mappings that the caller holds, looked at by the kernel only.
    let spliced = unsafe {
        libc::vmsplice(full.as_raw_fd(), pages.as_ptr(), pages.len(), libc::SPLICE_F_NONBLOCK)
    };
    match Errno::result(spliced)? as usize == pages.len() {
        true => Ok(Some(kept)),
        false => Err(Errno::EAGAIN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
    use std::num::NonZeroUsize;

    const BYTES: usize = 2 * HUGE_BYTES;
    const MADV_COLLAPSE: i32 = 25;

    /// Maps a file at a multiple of 2 MiB.
    fn map(file: &OwnedFd) -> usize {
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let (length, more) = (NonZeroUsize::new(BYTES), NonZeroUsize::new(BYTES + HUGE_BYTES));
        // SAFETY: new mappings, the second within the first.
        unsafe {
            let area =
                mmap_anonymous(None, more.unwrap(), ProtFlags::PROT_NONE, MapFlags::MAP_PRIVATE);
            let at = (area.unwrap().as_ptr() as usize).next_multiple_of(HUGE_BYTES);
            let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
            let mapped = mmap(NonZeroUsize::new(at), length.unwrap(), access, flags, file, 0);
            mapped.unwrap().as_ptr() as usize
        }
    }

    #[test]
    fn what_is_pinned_is_not_collapsed() {
        let file = memfd_create(c"pins", MFdFlags::empty()).unwrap();
        nix::unistd::ftruncate(&file, BYTES as i64).unwrap();
        let (ours, theirs) = (map(&file), map(&file));
        let collapse = |n: usize| {
            let at = (theirs + n * HUGE_BYTES) as *mut libc::c_void;
            // SAFETY: the range is mapped; its contents stay.
            Errno::result(unsafe { libc::madvise(at, HUGE_BYTES, MADV_COLLAPSE) })
        };
        // SAFETY: inside of the mapping.
        unsafe { std::ptr::write_bytes(theirs as *mut u8, 1, BYTES) };
        let pinned = pin([(ours, BYTES)].into_iter()).unwrap();
        assert_eq!([collapse(0).is_err(), collapse(1).is_err()], [true, true]);
        drop(pinned);
        // Before Linux 6.1 nobody collapses anything on demand; where memory is in pieces there is no huge page.
        assert!(matches!(collapse(0), Ok(_) | Err(Errno::EINVAL | Errno::ENOMEM)));
        for mapping in [ours, theirs] {
            let start = std::ptr::NonNull::new(mapping as *mut libc::c_void).unwrap();
            // SAFETY: nobody has pointers into it.
            unsafe { munmap(start, BYTES) }.unwrap();
        }
    }
}
