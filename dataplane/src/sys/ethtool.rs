//! A NIC's offloads and queues.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use libc::{self, c_char, c_ulong};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::tun::{check, interface_request};

const SIOCETHTOOL: c_ulong = 0x8946;

/// One switch: the commands that read and write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Switch {
    /// For messages and the journal.
    pub name: &'static str,
    get: u32,
    set: u32,
    /// The bit of a flags word; 0 where the value is the switch.
    bit: u32,
}

/// Merging of received frames by the kernel.
pub const GRO: Switch = Switch { name: "gro", get: 0x2b, set: 0x2c, bit: 0 };
/// Merging of received frames by the NIC (`ETH_FLAG_LRO`).
pub const LRO: Switch = Switch { name: "lro", get: 0x25, set: 0x26, bit: 1 << 15 };
/// Segmentation by the NIC.
pub const TSO: Switch = Switch { name: "tso", get: 0x1e, set: 0x1f, bit: 0 };
/// Late segmentation by the kernel.
pub const GSO: Switch = Switch { name: "gso", get: 0x23, set: 0x24, bit: 0 };
/// Checksums of sent frames.
pub const TX: Switch = Switch { name: "tx", get: 0x16, set: 0x17, bit: 0 };
/// All of them.
pub const ALL: [Switch; 5] = [GRO, LRO, TSO, GSO, TX];

#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// A socket to ask on: for interfaces of the namespace in which it was made.
///
/// # Errors
/// The kernel's refusal to make a socket.
pub fn open() -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?)
}

/// Whether the switch is on.
///
/// # Errors
/// `EOPNOTSUPP` where the device does not have it.
pub fn get(socket: &OwnedFd, interface: &str, switch: Switch) -> io::Result<bool> {
    let data = call(socket, interface, switch.get, 0)?;
    Ok(if switch.bit == 0 { data != 0 } else { data & switch.bit != 0 })
}

/// Turns the switch.
///
/// # Errors
/// `EOPNOTSUPP` where the device does not have it, or refuses.
pub fn set(socket: &OwnedFd, interface: &str, switch: Switch, on: bool) -> io::Result<()> {
    let value = if switch.bit == 0 {
        u32::from(on)
    } else {
        let flags = call(socket, interface, switch.get, 0)?;
        if on { flags | switch.bit } else { flags & !switch.bit }
    };
    call(socket, interface, switch.set, value).map(drop)
}

fn call(socket: &OwnedFd, interface: &str, command: u32, data: u32) -> io::Result<u32> {
    let mut value = Value { command, data };
    // SAFETY: commands of switches read and write one ethtool_value.
    unsafe { ioctl(socket, interface, &mut value) }?;
    Ok(value.data)
}

/// Receive queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RxQueues {
    /// How many the NIC uses.
    pub count: u32,
    /// Each is one with a queue for sending ("combined").
    pub paired: bool,
}

const GET_CHANNELS: u32 = 0x3c;
const SET_CHANNELS: u32 = 0x3d;

/// `struct ethtool_channels`.
#[repr(C)]
#[derive(Default)]
struct Channels {
    command: u32,
    max: [u32; 4],
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

/// The receive queues that the NIC uses.
///
/// # Errors
/// `EOPNOTSUPP` where the device does not say.
pub fn rx_queues(socket: &OwnedFd, interface: &str) -> io::Result<RxQueues> {
    let channels = channels(socket, interface)?;
    let paired = channels.combined > 0;
    Ok(RxQueues { count: if paired { channels.combined } else { channels.rx }, paired })
}

/// Makes the NIC use so many.
///
/// # Errors
/// The device's refusal.
pub fn set_rx_queues(socket: &OwnedFd, interface: &str, count: u32) -> io::Result<()> {
    let mut channels = channels(socket, interface)?;
    *(if channels.combined > 0 { &mut channels.combined } else { &mut channels.rx }) = count;
    channels.command = SET_CHANNELS;
    // SAFETY: the command reads one ethtool_channels.
    unsafe { ioctl(socket, interface, &mut channels) }
}

fn channels(socket: &OwnedFd, interface: &str) -> io::Result<Channels> {
    let mut channels = Channels { command: GET_CHANNELS, ..Channels::default() };
    // SAFETY: the command writes one ethtool_channels.
    unsafe { ioctl(socket, interface, &mut channels) }?;
    Ok(channels)
}

/// # Safety
/// `argument` begins with a command, and is what that command reads and writes.
unsafe fn ioctl<T>(socket: &OwnedFd, interface: &str, argument: &mut T) -> io::Result<()> {
    let mut request = interface_request(interface)?;
    request.ifr_ifru.ifru_data = (&raw mut *argument).cast::<c_char>();
    // SAFETY: the request and what it points to outlive the call; the rest is the caller's.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) }).map(drop)
}
