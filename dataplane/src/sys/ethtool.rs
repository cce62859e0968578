//! Switching a NIC's offloads.

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
    let mut request = interface_request(interface)?;
    request.ifr_ifru.ifru_data = (&raw mut value).cast::<c_char>();
    // SAFETY: these commands read and write one ethtool_value, which outlives the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) })?;
    Ok(value.data)
}
