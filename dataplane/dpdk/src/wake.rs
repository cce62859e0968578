//! Something to sleep on for drivers that have no receive interrupt.
//!
//! DPDK 22.11's af_packet and af_xdp drivers poll sockets of their own, one per queue, and do not
//! show them. Both kinds of socket are readable exactly while their receive ring holds a frame, so
//! they are found among the process's descriptors: the packet or XDP sockets of this namespace that
//! appeared while the device was made, in the order of their queues. What is returned are duplicates: closing
//! them, or the driver closing its own, hurts nobody.

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;

/// The sockets, of the kinds that matter, that were there at one moment.
#[derive(Debug)]
pub(crate) struct Before(HashSet<(RawFd, u64)>);

/// AF_XDP, which the libc crate's SO_DOMAIN users rarely name.
const AF_XDP: i32 = 44;

impl Before {
    pub(crate) fn now() -> Self {
        Self(ring_sockets().into_iter().map(|s| (s.fd, s.inode)).collect())
    }

    /// Duplicates of the sockets that appeared since, if there is exactly one per queue.
    pub(crate) fn appeared(&self, if_index: u32, queues: usize) -> Option<Vec<OwnedFd>> {
        let mut new: Vec<_> = ring_sockets()
            .into_iter()
            .filter(|s| !self.0.contains(&(s.fd, s.inode)))
            // An AF_XDP socket does not tell its interface; a packet socket must be this one's.
            .filter(|s| s.if_index.is_none_or(|index| index == if_index))
            .collect();
        new.sort_by_key(|s| s.fd);
        if new.is_empty() || new.len() != queues {
            return None;
        }
        new.iter().map(|s| duplicate(s.fd)).collect()
    }
}

#[derive(Debug)]
struct RingSocket {
    fd: RawFd,
    inode: u64,
    if_index: Option<u32>,
}

fn ring_sockets() -> Vec<RingSocket> {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let fd: RawFd = entry.file_name().to_str()?.parse().ok()?;
            let target = std::fs::read_link(entry.path()).ok()?;
            let inode =
                target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()?;
            if !in_this_namespace(fd) {
                return None;
            }
            let if_index = match socket_domain(fd)? {
                libc::AF_PACKET => Some(bound_interface(fd)?),
                AF_XDP => None,
                _ => return None,
            };
            Some(RingSocket { fd, inode, if_index })
        })
        .collect()
}

fn socket_domain(fd: RawFd) -> Option<i32> {
    let mut domain: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `domain`; a descriptor that was closed
    // meanwhile gives an error, one that was reused another domain.
    let ret = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_DOMAIN,
            (&raw mut domain).cast(),
            &raw mut length,
        )
    };
    (ret == 0).then_some(domain)
}

/// The same interface number means another device elsewhere.
fn in_this_namespace(fd: RawFd) -> bool {
    const SIOCGSKNS: libc::c_ulong = 0x894c;
    // SAFETY: without an argument; the answer is a new descriptor of the socket's namespace.
    let netns = unsafe { libc::ioctl(fd, SIOCGSKNS) };
    if netns < 0 {
        return false;
    }
    // SAFETY: the descriptor is new and ours alone.
    let netns = File::from(unsafe { OwnedFd::from_raw_fd(netns) });
    let number = |file: &File| file.metadata().map(|m| (m.dev(), m.ino())).ok();
    File::open("/proc/thread-self/ns/net").is_ok_and(|here| number(&here) == number(&netns))
}

fn bound_interface(fd: RawFd) -> Option<u32> {
    // SAFETY: sockaddr_ll is plain data, for which zeros are valid.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `address`.
    let ret = unsafe { libc::getsockname(fd, (&raw mut address).cast(), &raw mut length) };
    (ret == 0).then(|| u32::try_from(address.sll_ifindex).ok())?
}

fn duplicate(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: the driver keeps `fd` open while its device exists, and the device is being set up
    // by our caller; a wrong number would give an error, not undefined behaviour.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    borrowed.try_clone_to_owned().ok()
}
