//! Tap devices: `/dev/net/tun` and its ioctls.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use libc::{self, c_int, c_uint, c_ulong};

/// `struct virtio_net_hdr_v1`, as every port of ours uses it.
const VNET_HEADER_BYTES: c_int = 12;

const TUNSETIFF: c_ulong = 0x4004_54ca;
const TUNGETIFF: c_ulong = 0x8004_54d2;
const TUNSETPERSIST: c_ulong = 0x4004_54cb;
const TUNSETOFFLOAD: c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: c_ulong = 0x4004_54d8;
const TUN_F_CSUM: c_uint = 1;
const TUN_F_TSO4: c_uint = 2;
const TUN_F_TSO6: c_uint = 4;

/// Opens `queues` queues of the tap `name` in the calling thread's network namespace, making the
/// device if it does not exist. Frames carry a virtio-net header of 12 bytes; checksums and TCP
/// segmentation are left to the reader. The descriptors do not block.
///
/// # Errors
/// `ENOENT` without /dev/net/tun, `EBUSY`/`EINVAL` when `name` is something else or has all its
/// queues open already.
pub fn open_tap(name: &str, queues: u16) -> io::Result<Vec<OwnedFd>> {
    (0..queues.max(1)).map(|_| open_queue(name)).collect()
}

/// Lets the device outlive its descriptors, or not.
///
/// # Errors
/// The kernel's refusal; none is known for a tap of our own.
pub fn set_persistent(queue: &OwnedFd, on: bool) -> io::Result<()> {
    value_ioctl(queue, TUNSETPERSIST, c_ulong::from(on))
}

fn open_queue(name: &str) -> io::Result<OwnedFd> {
    use nix::fcntl::{OFlag, open};
    let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let queue = open("/dev/net/tun", flags, nix::sys::stat::Mode::empty())?;
    let kind = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
    let mut request = interface_request(name)?;
    request.ifr_ifru.ifru_flags = kind as libc::c_short;
    // SAFETY: the kernel reads and writes one ifreq.
    check(unsafe { libc::ioctl(queue.as_raw_fd(), TUNSETIFF, &raw mut request) })?;
    set_headers(&queue)?;
    value_ioctl(&queue, TUNSETOFFLOAD, c_ulong::from(TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6))?;
    Ok(queue)
}

/// Gives frames of the device a virtio-net header of 12 bytes.
///
/// # Errors
/// `EINVAL` or `ENOTTY` when this is no tap queue with virtio-net headers.
pub(super) fn set_headers(queue: &OwnedFd) -> io::Result<()> {
    let mut flags = interface_request("?")?;
    // SAFETY: the kernel writes one ifreq.
    check(unsafe { libc::ioctl(queue.as_raw_fd(), TUNGETIFF, &raw mut flags) })?;
    // SAFETY: TUNGETIFF filled in the flags.
    let kind = c_int::from(unsafe { flags.ifr_ifru.ifru_flags });
    if kind & libc::IFF_VNET_HDR == 0 || kind & libc::IFF_TAP == 0 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let bytes = VNET_HEADER_BYTES;
    // SAFETY: the kernel reads one int.
    check(unsafe { libc::ioctl(queue.as_raw_fd(), TUNSETVNETHDRSZ, &raw const bytes) })
}

fn value_ioctl(queue: &OwnedFd, request: c_ulong, value: c_ulong) -> io::Result<()> {
    // SAFETY: these requests take their argument by value.
    check(unsafe { libc::ioctl(queue.as_raw_fd(), request, value) })
}

/// An ifreq with the name filled in.
pub(super) fn interface_request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: ifreq is plain data, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.is_empty() || name.len() >= request.ifr_name.len() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("interface name `{name}`: 1 to {} bytes", request.ifr_name.len() - 1),
        ));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

pub(super) fn check(ret: c_int) -> io::Result<()> {
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
