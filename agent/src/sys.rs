//! The few system calls that no safe crate wraps: the tun driver's ioctls, and what a signal does.
//!
//! Invariants: every function works on a descriptor that the caller owns and on plain values; no
//! pointer outlives its call. Errors are the kernel's own, the caller adds what it was doing.
#![allow(
    unsafe_code,
    reason = "the tun driver is configured by ioctls alone, for which nix has no wrapper; its wrapper of signal(2) is unsafe"
)]

use std::ffi::c_ulong;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

/// `TUN_F_*` that a queue's reader accepts: partial checksums, TCP and UDP segmentation of both
/// families. ECN travels with TSO.
pub(crate) const OFFLOADS_ALL: u32 = libc::TUN_F_CSUM
    | libc::TUN_F_TSO4
    | libc::TUN_F_TSO6
    | libc::TUN_F_TSO_ECN
    | libc::TUN_F_USO4
    | libc::TUN_F_USO6;
/// The same without UDP segmentation, which kernels before 6.2 refuse.
pub(crate) const OFFLOADS_WITHOUT_USO: u32 =
    libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;

/// Opens one queue of the tap `name` in the calling thread's network namespace and creates the
/// device if it does not exist. Frames carry a virtio-net header without packet information.
///
/// A tap made with one queue takes no second one, so that a stale holder shows up as `EBUSY`
/// instead of silently taking a share of the pod's frames.
pub(crate) fn open_tap_queue(name: &str, multi_queue: bool) -> io::Result<OwnedFd> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")?;
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if multi_queue {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    let mut request = interface_request(name)?;
    // 0x5303 fits: the tun flags occupy the low sixteen bits by definition.
    request.ifr_ifru.ifru_flags = (flags & 0xffff) as u16 as libc::c_short;
    // SAFETY: `request` is a complete `struct ifreq` that lives across the call, which is what
    // TUNSETIFF reads and writes; `file` is an open descriptor.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    // The form of virtio 1.0, with the number of buffers: what the data plane reads and writes.
    let header_bytes: libc::c_int = 12;
    // SAFETY: TUNSETVNETHDRSZ reads one int, which lives across the call.
    check(unsafe {
        libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header_bytes)
    })?;
    Ok(file.into())
}

/// Keeps the tap after its last descriptor is closed.
pub(crate) fn set_tap_persistent(queue: &OwnedFd) -> io::Result<()> {
    set_value(queue, libc::TUNSETPERSIST, 1)
}

/// Tells the kernel which unfinished frames the queue's reader accepts.
pub(crate) fn set_tap_offloads(queue: &OwnedFd, offloads: u32) -> io::Result<()> {
    set_value(queue, libc::TUNSETOFFLOAD, c_ulong::from(offloads))
}

fn set_value(queue: &OwnedFd, request: libc::Ioctl, value: c_ulong) -> io::Result<()> {
    // SAFETY: these requests take their argument by value, so nothing is dereferenced.
    check(unsafe { libc::ioctl(queue.as_raw_fd(), request, value) })
}

fn interface_request(name: &str) -> io::Result<libc::ifreq> {
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes.len() >= libc::IFNAMSIZ || bytes.contains(&0) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("interface name {name:?} must have 1 to 15 bytes"),
        ));
    }
    // SAFETY: `struct ifreq` is plain data, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().zip(bytes) {
        *slot = *byte as libc::c_char;
    }
    Ok(request)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// From here on the process ends when nobody reads any more what it prints, as `cat` does before `head`.
/// Rust programs are started with SIGPIPE ignored and would panic. Sockets do not raise it: the standard
/// library writes to them with MSG_NOSIGNAL.
///
/// # Errors
/// The kernel's own.
pub fn end_with_the_reader() -> io::Result<()> {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: the default action runs no code of this process.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }?;
    Ok(())
}
