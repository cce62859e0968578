//! Packet sockets with virtio-net headers: reading many frames with one call.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libc::{c_int, c_void, socklen_t};

/// Bytes of the header in front of every frame (`struct virtio_net_hdr`; the two more of the
/// newer layout only count buffers).
pub const HEADER_BYTES: usize = 10;

const PACKET_AUXDATA: c_int = 8;
const PACKET_STATISTICS: c_int = 6;
const PACKET_VNET_HDR: c_int = 15;
const PACKET_FANOUT: c_int = 18;
const PACKET_QDISC_BYPASS: c_int = 20;
const PACKET_IGNORE_OUTGOING: c_int = 23;
const FANOUT_HASH: u32 = 0;
const FANOUT_FLAG_ROLLOVER: u32 = 0x1000;
const FANOUT_FLAG_UNIQUEID: u32 = 0x2000;
const TP_STATUS_VLAN_VALID: u32 = 1 << 4;
const TP_STATUS_VLAN_TPID_VALID: u32 = 1 << 6;
const RECEIVE_BUFFER_BYTES: c_int = 16 << 20;
const SEND_BUFFER_BYTES: c_int = 4 << 20;
const ETHERTYPE_VLAN: u16 = 0x8100;

/// Opens `queues` sockets that receive what the interface `index` of the thread's namespace
/// receives, each flow on one of them. What the node itself sends there is not received.
///
/// # Errors
/// `ENODEV` for an unknown interface, `EPERM` without CAP_NET_RAW.
pub fn receivers(index: u32, queues: u16) -> io::Result<Vec<OwnedFd>> {
    let mut sockets: Vec<OwnedFd> = Vec::new();
    let mut group = 0;
    for _ in 0..queues.max(1) {
        let socket = open()?;
        set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)?;
        set(&socket, libc::SOL_PACKET, PACKET_AUXDATA, 1)?;
        set(&socket, libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)?;
        bind(&socket, index, libc::ETH_P_ALL as u16)?;
        if queues > 1 {
            // The first one asks for a group that nobody else has.
            let flag = if sockets.is_empty() { FANOUT_FLAG_UNIQUEID } else { 0 };
            let mode = FANOUT_HASH | FANOUT_FLAG_ROLLOVER | flag;
            set(&socket, libc::SOL_PACKET, PACKET_FANOUT, (group | mode << 16) as c_int)?;
            if sockets.is_empty() {
                let mut answer: c_int = 0;
                get(&socket, libc::SOL_PACKET, PACKET_FANOUT, &mut answer)?;
                group = answer as u32 & 0xffff;
            }
        }
        sockets.push(socket);
    }
    Ok(sockets)
}

/// Opens a socket that sends on the interface `index` and receives nothing.
///
/// # Errors
/// As [`receivers`].
pub fn sender(index: u32) -> io::Result<OwnedFd> {
    let socket = open()?;
    set(&socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, SEND_BUFFER_BYTES)?;
    set(&socket, libc::SOL_PACKET, PACKET_QDISC_BYPASS, 1)?;
    bind(&socket, index, 0)?;
    Ok(socket)
}

fn open() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: makes a descriptor; protocol 0 receives nothing until it is bound.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` is new and ours alone.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    set(&socket, libc::SOL_PACKET, PACKET_VNET_HDR, 1)?;
    Ok(socket)
}

fn bind(socket: &OwnedFd, index: u32, protocol: u16) -> io::Result<()> {
    // SAFETY: sockaddr_ll is plain data, for which zeros are valid.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = index as c_int;
    let length = size_of::<libc::sockaddr_ll>() as socklen_t;
    // SAFETY: the kernel reads `length` bytes of `address`.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })
}

fn set(socket: &OwnedFd, level: c_int, option: c_int, value: c_int) -> io::Result<()> {
    let length = size_of::<c_int>() as socklen_t;
    // SAFETY: the kernel reads one int.
    check(unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), length)
    })
}

/// Reads an option into plain data.
fn get<T: Copy>(
    socket: &impl AsRawFd,
    level: c_int,
    option: c_int,
    value: &mut T,
) -> io::Result<()> {
    let mut length = size_of::<T>() as socklen_t;
    let to: *mut c_void = std::ptr::from_mut(value).cast();
    // SAFETY: the kernel writes at most `length` bytes into `value`; callers use integers, for
    // which all bytes are valid.
    check(unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, to, &raw mut length) })
}

fn check(ret: c_int) -> io::Result<()> {
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// How many frames the kernel threw away since the last call, because the socket was full.
///
/// # Errors
/// None is known.
pub fn take_drops(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut statistics = [0_u32; 2];
    get(&socket, libc::SOL_PACKET, PACKET_STATISTICS, &mut statistics)?;
    Ok(statistics[1])
}

/// What one call received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Header and frame.
    pub bytes: usize,
    /// The frame was longer than the buffer.
    pub truncated: bool,
    /// The VLAN tag that the kernel took out: type and control information.
    pub vlan: Option<(u16, u16)>,
}

/// Most frames of one call.
pub const BATCH: usize = 32;

/// Reads up to one frame into each buffer, from `offset` on, with one call. Returns how many;
/// `received` says what. 0: nothing is there.
///
/// # Errors
/// `ENETDOWN` once when the interface goes down, others when it is gone.
pub fn receive(
    socket: BorrowedFd<'_>,
    buffers: &mut [Box<[u8]>],
    offset: usize,
    received: &mut [Received; BATCH],
) -> io::Result<usize> {
    let count = buffers.len().min(BATCH);
    // SAFETY: both structures are plain data, for which zeros are valid.
    let (mut pieces, mut messages): ([libc::iovec; BATCH], [libc::mmsghdr; BATCH]) =
        unsafe { zeroed() };
    // Room for one control message of 20 bytes, aligned as its header wants.
    let mut controls = [[0_u64; 8]; BATCH];
    for (at, buffer) in buffers.iter_mut().take(count).enumerate() {
        let part = buffer.get_mut(offset..).unwrap_or(&mut []);
        pieces[at] = libc::iovec { iov_base: part.as_mut_ptr().cast(), iov_len: part.len() };
        let header = &mut messages[at].msg_hdr;
        header.msg_iov = &raw mut pieces[at];
        header.msg_iovlen = 1;
        header.msg_control = controls[at].as_mut_ptr().cast();
        header.msg_controllen = size_of::<[u64; 8]>();
    }
    let flags = libc::MSG_DONTWAIT;
    // SAFETY: the first `count` messages point to one piece of a buffer and one control area each,
    // all exclusively borrowed for this call and of the lengths given.
    let n = unsafe {
        libc::recvmmsg(
            socket.as_raw_fd(),
            messages.as_mut_ptr(),
            count as u32,
            flags as _,
            std::ptr::null_mut(),
        )
    };
    if n < 0 {
        let error = io::Error::last_os_error();
        return match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(0),
            _ => Err(error),
        };
    }
    for (message, to) in messages.iter().zip(received.iter_mut()).take(n as usize) {
        *to = Received {
            bytes: message.msg_len as usize,
            truncated: message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
            vlan: vlan_of(&message.msg_hdr),
        };
    }
    Ok(n as usize)
}

fn vlan_of(header: &libc::msghdr) -> Option<(u16, u16)> {
    // SAFETY: the kernel filled the control area of this header and set its length; the macros
    // stay inside of it. The data is a tpacket_auxdata when it says so, read unaligned.
    let auxiliary: libc::tpacket_auxdata = unsafe {
        let control = libc::CMSG_FIRSTHDR(header);
        let found = !control.is_null()
            && (*control).cmsg_level == libc::SOL_PACKET
            && (*control).cmsg_type == PACKET_AUXDATA;
        if !found {
            return None;
        }
        libc::CMSG_DATA(control).cast::<libc::tpacket_auxdata>().read_unaligned()
    };
    if auxiliary.tp_status & TP_STATUS_VLAN_VALID == 0 {
        return None;
    }
    let typed = auxiliary.tp_status & TP_STATUS_VLAN_TPID_VALID != 0;
    Some((if typed { auxiliary.tp_vlan_tpid } else { ETHERTYPE_VLAN }, auxiliary.tp_vlan_tci))
}
