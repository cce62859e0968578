//! Ports that carry a virtio-net header in front of every frame: pod taps, the host tap.
//!
//! The header brings checksums that nobody has computed yet and super-frames of up to 64 KiB,
//! which stay whole from tap to tap. It is foreign: the path checks it against the packet.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use wire::{Header, VirtioNet};
use zerocopy::IntoBytes;

use super::{BufferPool, Burst, Health, Outgoing};
use crate::path::{Checksum, Gso, Meta, TxDropReason};
use crate::sys::gather;
use crate::table::IfaceId;

/// Bytes of the header, set on every descriptor by TUNSETVNETHDRSZ.
pub const HEADER_BYTES: usize = size_of::<VirtioNet>();

/// The receiving side of one descriptor.
#[derive(Debug)]
pub struct VnetRx {
    fd: OwnedFd,
}

/// The sending side of one descriptor. The kernel serialises writers, so every worker has one.
#[derive(Debug)]
pub struct VnetTx {
    fd: OwnedFd,
}

impl VnetRx {
    /// Reads from a descriptor that does not block.
    pub fn new(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// The descriptor to wait on.
    pub fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd.as_fd())
    }

    /// Reads up to `max_pkts` frames; a super-frame counts as its pieces.
    pub fn poll(
        &mut self,
        iface: IfaceId,
        burst: &mut Burst,
        pool: &mut BufferPool,
        max_pkts: usize,
    ) -> Health {
        let mut budget = max_pkts.min(burst.room());
        while budget > 0 {
            let Some(buffer) = pool.take() else { return Health::Good };
            let read = match gather::read(self.fd.as_fd(), pool.bytes(buffer)) {
                Ok(0) => {
                    pool.put(buffer);
                    return Health::Good;
                }
                Ok(read) => read,
                Err(_) => {
                    pool.put(buffer);
                    return Health::Gone;
                }
            };
            let frame = pool.seg(buffer, HEADER_BYTES, read.saturating_sub(HEADER_BYTES));
            let header = VirtioNet::view(pool.bytes(buffer)).copied().unwrap_or_default();
            let Some(meta) = burst.push(iface, buffer, frame) else {
                pool.put(buffer);
                return Health::Good;
            };
            decode(&header, meta);
            budget = budget.saturating_sub(pieces(meta));
        }
        Health::Good
    }
}

impl VnetTx {
    /// Writes to a descriptor that does not block.
    pub fn new(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Writes the frame at once: header, head and body are gathered from where they lie.
    pub fn send(&mut self, out: &Outgoing<'_>) -> Result<u32, TxDropReason> {
        let header = encode(out.meta, out.head.len());
        match gather::write(self.fd.as_fd(), header.as_bytes(), out.head, out.body) {
            Ok(_) => Ok(out.frame_bytes() as u32),
            Err(error) => Err(match error.raw_os_error() {
                Some(libc::EAGAIN | libc::ENOBUFS) => TxDropReason::RingFull,
                Some(libc::EIO | libc::ENETDOWN | libc::EBADFD) => TxDropReason::PortDown,
                Some(libc::EMSGSIZE) => TxDropReason::FrameTooBig,
                _ => TxDropReason::KernelRefused,
            }),
        }
    }

    /// Frames were visible at once.
    pub fn flush(&mut self) -> Health {
        Health::Good
    }
}

/// How many frames a super-frame becomes.
fn pieces(meta: &Meta) -> usize {
    if meta.gso == Gso::None {
        return 1;
    }
    (meta.body_bytes as usize / usize::from(meta.gso_size.max(536))).max(1)
}

pub(super) fn decode(header: &VirtioNet, meta: &mut Meta) {
    if header.flags & VirtioNet::NEEDS_CSUM != 0 {
        meta.checksum = Checksum::Partial;
        meta.csum_start = header.csum_start.get();
        meta.csum_offset = header.csum_offset.get();
    } else if header.flags & VirtioNet::DATA_VALID != 0 {
        meta.checksum = Checksum::Verified;
    }
    meta.gso = match header.gso_type & !VirtioNet::GSO_ECN {
        VirtioNet::GSO_NONE => Gso::None,
        VirtioNet::GSO_TCPV4 => Gso::Tcp4,
        VirtioNet::GSO_TCPV6 => Gso::Tcp6,
        // Anything else, UFO included, is not offered to the kernel: the path refuses it as a
        // datagram super-frame whose fields do not fit.
        _ => Gso::Udp,
    };
    meta.gso_ecn = header.gso_type & VirtioNet::GSO_ECN != 0;
    meta.gso_size = header.gso_size.get();
}

pub(super) fn encode(meta: &Meta, head_bytes: usize) -> VirtioNet {
    let mut header = VirtioNet::default();
    match meta.checksum {
        Checksum::Partial => {
            header.flags = VirtioNet::NEEDS_CSUM;
            header.csum_start.set(meta.csum_start);
            header.csum_offset.set(meta.csum_offset);
        }
        Checksum::Verified => header.flags = VirtioNet::DATA_VALID,
        Checksum::Unknown => {}
    }
    header.gso_type = match meta.gso {
        Gso::None => return header,
        Gso::Tcp4 => VirtioNet::GSO_TCPV4,
        Gso::Tcp6 => VirtioNet::GSO_TCPV6,
        Gso::Udp => VirtioNet::GSO_UDP_L4,
    };
    if meta.gso_ecn {
        header.gso_type |= VirtioNet::GSO_ECN;
    }
    header.hdr_len.set(head_bytes.min(usize::from(u16::MAX)) as u16);
    header.gso_size.set(meta.gso_size);
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sched::{CloneFlags, unshare};

    /// In a namespace of the test's own, which goes with the thread. Needs root.
    #[test]
    fn the_kernels_refusals_have_reasons() {
        unshare(CloneFlags::CLONE_NEWNET).expect("root");
        let queue = crate::sys::tun::open_tap("t0", 1).expect("a tap").remove(0);
        let mut tx = VnetTx::new(queue);
        let mut head = [0; 60];
        let mut send = |meta: &Meta| tx.send(&Outgoing { head: &mut head, body: &[], meta });
        assert_eq!(send(&Meta::default()), Err(TxDropReason::PortDown));
        let up = std::process::Command::new("ip").args(["link", "set", "t0", "up"]).status();
        assert!(up.expect("iproute2").success());
        assert_eq!(send(&Meta::default()), Ok(60), "the control");
        // A super-frame of pieces without length.
        let nonsense = Meta { gso: Gso::Tcp4, gso_size: 0, ..Meta::default() };
        assert_eq!(send(&nonsense), Err(TxDropReason::KernelRefused));
    }

    #[test]
    fn the_header_survives_the_way_in_and_out() {
        // Golden: NEEDS_CSUM, TCPv4 | ECN, hdr_len 66, gso_size 1448, csum 34 + 16.
        let bytes = [1, 0x81, 66, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];
        let header = VirtioNet::view(&bytes).expect("12 bytes");
        let mut meta = Meta::default();
        decode(header, &mut meta);
        assert_eq!(meta.checksum, Checksum::Partial);
        assert_eq!((meta.csum_start, meta.csum_offset), (34, 16));
        assert_eq!((meta.gso, meta.gso_size, meta.gso_ecn), (Gso::Tcp4, 1448, true));
        assert_eq!(encode(&meta, 66).as_bytes(), bytes);
    }
}
