//! Noticing at once that a peer took pages out of its memory.
//!
//! Memory that is not sealed can have holes punched into it. Whoever touches one next would be given a
//! fresh page, zeroed on its own time and account, again and again. So all pages of such a region are
//! brought in when the connection begins, and the region is registered with `userfaultfd(2)` for
//! missing pages, to be told by SIGBUS: from then on a page that is not there is a page that was taken
//! out. The handler ([`super::sigbus`]) knows by the address whose it was, puts a page of zeros there,
//! and spoils that one connection.
//!
//! Registered ranges leave the list by `munmap` alone.

use nix::errno::Errno;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;

/// `linux/userfaultfd.h`.
const UFFD_API: u64 = 0xAA;
const UFFD_USER_MODE_ONLY: i32 = 1;
const FEATURE_MISSING_HUGETLBFS: u64 = 1 << 4;
const FEATURE_MISSING_SHMEM: u64 = 1 << 5;
const FEATURE_SIGBUS: u64 = 1 << 7;
const MODE_MISSING: u64 = 1;

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}

#[repr(C)]
struct Register {
    range: Range,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct ZeroPage {
    range: Range,
    mode: u64,
    zeroed: i64,
}

nix::ioctl_readwrite!(uffdio_api, UFFD_API, 0x3F, Api);
nix::ioctl_readwrite!(uffdio_register, UFFD_API, 0x00, Register);
nix::ioctl_readwrite!(uffdio_zeropage, UFFD_API, 0x04, ZeroPage);

/// One for the process.
static WATCH: OnceLock<Result<OwnedFd, Errno>> = OnceLock::new();

/// Opens it before there is anything to watch, so that the process has its descriptor from the start. A
/// refusal is told to those who need it.
pub(crate) fn prepare() {
    let _ = WATCH.get_or_init(open);
}

/// Tells missing pages of a mapping of tmpfs or hugetlbfs by SIGBUS from now on.
///
/// # Errors
/// The kernel has no `userfaultfd`, or a seccomp filter forbids it.
pub(crate) fn watch(start: usize, bytes: usize) -> Result<(), Errno> {
    let fd = WATCH.get_or_init(open).as_ref().map_err(|&errno| errno)?;
    let range = Range { start: start as u64, len: bytes as u64 };
    let mut register = Register { range, mode: MODE_MISSING, ioctls: 0 };
    // SAFETY: a structure of the layout that the kernel asks for; it changes no memory.
    unsafe { uffdio_register(fd.as_raw_fd(), &raw mut register) }.map(drop)
}

/// Puts a page of zeros where one is missing in watched memory. False where it cannot: the memory is not
/// watched, its file ends before, or its pages are huge. One system call, for the signal handler: unlike a
/// new mapping it does not wait for whoever punches holes.
pub(crate) fn fill(page: usize, bytes: usize) -> bool {
    let Some(Ok(fd)) = WATCH.get() else { return false };
    let range = Range { start: page as u64, len: bytes as u64 };
    let mut zero = ZeroPage { range, mode: 0, zeroed: 0 };
    // SAFETY: a structure of the layout that the kernel asks for; the range is a mapping of ours whose page
    // is missing, and one that is there is left alone.
    let filled = unsafe { uffdio_zeropage(fd.as_raw_fd(), &raw mut zero) };
    // Somebody else was faster, or the mappings were changing: the touch is tried again in any case.
    matches!(filled, Ok(_) | Err(Errno::EEXIST | Errno::EAGAIN))
}

fn open() -> Result<OwnedFd, Errno> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | UFFD_USER_MODE_ONLY;
    // SAFETY: no pointers; a descriptor that is returned is ours.
    let fd = unsafe {
        let fd = Errno::result(libc::syscall(libc::SYS_userfaultfd, flags))?;
        OwnedFd::from_raw_fd(fd as i32)
    };
    let features = FEATURE_SIGBUS | FEATURE_MISSING_SHMEM | FEATURE_MISSING_HUGETLBFS;
    let mut api = Api { api: UFFD_API, features, ioctls: 0 };
    // SAFETY: a structure of the layout that the kernel asks for.
    unsafe { uffdio_api(fd.as_raw_fd(), &raw mut api) }?;
    Ok(fd)
}
