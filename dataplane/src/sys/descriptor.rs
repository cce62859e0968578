//! Descriptors that came as numbers.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use tokio::io::unix::AsyncFd;

use super::tun::check;

/// `_IOR('T', 215, int)`, linux/if_tun.h.
const TUNGETVNETHDRSZ: libc::c_ulong = 0x8004_54d7;

/// Owns the descriptors of a message, which the kernel has just made for this process.
pub fn own_received(raw: Vec<RawFd>) -> Vec<OwnedFd> {
    // SAFETY: the callers pass what `recvmsg` returned in SCM_RIGHTS, once.
    raw.into_iter().map(|raw| unsafe { OwnedFd::from_raw_fd(raw) }).collect()
}

/// How many bytes of virtio-net header a tap queue puts before each frame.
///
/// # Errors
/// The descriptor is no queue of a tap.
pub fn vnet_header_bytes(fd: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one int.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), TUNGETVNETHDRSZ, &raw mut bytes) })?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// Lets the runtime wait for something that owns its descriptor.
///
/// # Errors
/// The descriptor can not be waited for, or is already.
pub fn watched<T: AsFd>(inner: T) -> io::Result<AsyncFd<Watched<T>>> {
    let number = inner.as_fd().as_raw_fd();
    // SAFETY: `Watched` gives the number of the descriptor that `inner` owns, always the same one,
    // and `inner` lives inside the AsyncFd.
    Ok(unsafe { AsyncFd::register(Watched(inner, number)) }?)
}

/// Gives what owns a descriptor the trait that the runtime asks for. The number is remembered: the
/// runtime asks for it once more at the end, when `inner` may have passed its descriptor on (a
/// memif handshake that became a connection).
#[derive(Debug)]
pub struct Watched<T>(pub T, RawFd);

impl<T> AsRawFd for Watched<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.1
    }
}
