//! The system calls that have no safe wrapper: tap queues and packet sockets' addresses.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU16, Ordering};

use nix::fcntl::{OFlag, open};
use nix::libc;

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETPERSIST: libc::c_ulong = 0x4004_54cb;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
/// Checksum, TSO over either family, USO over either family.
const OFFLOADS: libc::c_ulong = 1 | 2 | 4 | 0x20 | 0x40;
const OFFLOADS_WITHOUT_USO: libc::c_ulong = 1 | 2 | 4;

fn check(ret: libc::c_int) -> io::Result<()> {
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Opens one queue of a persistent tap in the thread's namespace, as the agent does it.
pub fn open_tap_queue(name: &str, multi_queue: bool) -> io::Result<OwnedFd> {
    let multi_queue = if multi_queue { libc::IFF_MULTI_QUEUE } else { 0 };
    let queue = open_tap(name, libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | multi_queue)?;
    let header_bytes: libc::c_int = 12;
    let fd = queue.as_raw_fd();
    // SAFETY: the kernel reads one int; the other requests take their argument by value.
    unsafe {
        check(libc::ioctl(fd, TUNSETVNETHDRSZ, &raw const header_bytes))?;
        check(libc::ioctl(fd, TUNSETPERSIST, 1 as libc::c_ulong))?;
        check(libc::ioctl(fd, TUNSETOFFLOAD, OFFLOADS))
            .or_else(|_| check(libc::ioctl(fd, TUNSETOFFLOAD, OFFLOADS_WITHOUT_USO)))?;
    }
    Ok(queue)
}

/// Opens a tap without any offload in the thread's namespace; it goes with the descriptor.
pub fn open_plain_tap(name: &str) -> io::Result<OwnedFd> {
    open_tap(name, libc::IFF_TAP | libc::IFF_NO_PI)
}

fn open_tap(name: &str, kind: libc::c_int) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let queue = open("/dev/net/tun", flags, nix::sys::stat::Mode::empty())?;
    // SAFETY: ifreq is plain data, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    assert!(name.len() < request.ifr_name.len(), "interface name `{name}` is too long");
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = kind as libc::c_short;
    // SAFETY: the kernel reads and writes one ifreq.
    check(unsafe { libc::ioctl(queue.as_raw_fd(), TUNSETIFF, &raw mut request) })?;
    Ok(queue)
}

/// Binds a packet socket to one interface, for all protocols.
pub fn bind_packet_socket(socket: &OwnedFd, interface: &str) -> io::Result<()> {
    let index = nix::net::if_::if_nametoindex(interface)?;
    // SAFETY: sockaddr_ll is plain data, for which zeros are valid.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index as i32;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes of the address.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
    let on: libc::c_int = 1;
    // SAFETY: the kernel reads one int.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            PACKET_IGNORE_OUTGOING,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    })
}

/// The calling thread runs before all ordinary ones.
pub fn set_real_time() -> io::Result<()> {
    let parameter = libc::sched_param { sched_priority: 1 };
    // SAFETY: the kernel reads one sched_param; 0 means the calling thread.
    check(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameter) })
}

/// Another thread's share of its core.
pub fn set_nice(tid: i32, nice: libc::c_int) -> io::Result<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::setpriority(libc::PRIO_PROCESS, tid.cast_unsigned(), nice) })
}

/// Takes pages out of a memory file; the next touch of each finds a fresh one.
pub fn punch_hole(file: &impl AsRawFd, at: u64, bytes: u64) -> io::Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: takes numbers only.
    check(unsafe { libc::fallocate(file.as_raw_fd(), mode, at as i64, bytes as i64) })
}

/// A memory file, mapped: the way to write into one that is sealed.
pub struct Mapped {
    base: std::ptr::NonNull<u8>,
    bytes: usize,
}

// SAFETY: an address range that is written byte by byte; no references to it are given out.
unsafe impl Send for Mapped {}
// SAFETY: as above: several writers leave any mixture of their bytes, as in any shared memory.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Maps the first bytes of a file.
    pub fn new(file: &impl std::os::fd::AsFd, bytes: u64) -> io::Result<Self> {
        use nix::sys::mman::{MapFlags, ProtFlags, mmap};
        let length = std::num::NonZeroUsize::new(bytes as usize).expect("at least one byte");
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, file, 0) }?;
        Ok(Self { base: base.cast(), bytes: length.get() })
    }

    /// Writes bytes, in their order.
    pub fn write(&self, at: u64, data: &[u8]) {
        let at = at as usize;
        assert!(at + data.len() <= self.bytes, "{} bytes at {at} of {}", data.len(), self.bytes);
        for (i, byte) in data.iter().enumerate() {
            // SAFETY: inside of the mapping, as checked above; the file is sealed against shrinking.
            unsafe { self.base.as_ptr().add(at + i).write_volatile(*byte) };
        }
    }

    /// Writes an index in one piece, after all that was written before.
    pub fn publish(&self, at: u64, index: u16) {
        assert!(at.is_multiple_of(2) && at as usize + 2 <= self.bytes, "an index at {at}");
        // SAFETY: inside of the mapping and aligned, as checked above.
        let place = unsafe { AtomicU16::from_ptr(self.base.as_ptr().add(at as usize).cast()) };
        place.store(index.to_le(), Ordering::Release);
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: mapped with this length; nobody has pointers into it.
        let _ = unsafe { nix::sys::mman::munmap(self.base.cast(), self.bytes) };
    }
}
