//! Descriptors that came as numbers.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::unix::AsyncFd;

/// Owns the descriptors of a message, which the kernel has just made for this process.
pub fn own_received(raw: Vec<RawFd>) -> Vec<OwnedFd> {
    // SAFETY: the callers pass what `recvmsg` returned in SCM_RIGHTS, once.
    raw.into_iter().map(|raw| unsafe { OwnedFd::from_raw_fd(raw) }).collect()
}

/// Makes a tap queue as every port of ours uses it, whoever opened it: virtio-net headers of 12
/// bytes, not blocking. Which offloads it has is its opener's choice.
///
/// # Errors
/// The descriptor is no queue of a tap with virtio-net headers (`IFF_VNET_HDR`).
pub fn prepare_tap(queue: &OwnedFd) -> io::Result<()> {
    super::tun::set_headers(queue)?;
    let flags = OFlag::from_bits_retain(fcntl(queue, FcntlArg::F_GETFL)?);
    fcntl(queue, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
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
