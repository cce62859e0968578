//! Ports that carry a virtio-net header in front of every frame: pod taps, the host tap.
//!
//! The header brings checksums that nobody has computed yet and super-frames of up to 64 KiB,
//! which stay whole from tap to tap. It is foreign: the path checks it against the packet.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::{BufferPool, Burst, Health, Outgoing};
use crate::path::{Checksum, Gso, Meta, TxDropReason};
use crate::sys::gather;
use crate::table::IfaceId;

/// Bytes of the header (`struct virtio_net_hdr_v1`), set on every descriptor by TUNSETVNETHDRSZ.
pub const HEADER_BYTES: usize = 12;

const F_NEEDS_CSUM: u8 = 1;
const F_DATA_VALID: u8 = 2;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

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
            let header: [u8; HEADER_BYTES] =
                std::array::from_fn(|i| pool.bytes(buffer).get(i).copied().unwrap_or(0));
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
        match gather::write(self.fd.as_fd(), &header, out.head, out.body) {
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

fn decode(header: &[u8; HEADER_BYTES], meta: &mut Meta) {
    let word = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
    if header[0] & F_NEEDS_CSUM != 0 {
        meta.checksum = Checksum::Partial;
        meta.csum_start = word(6);
        meta.csum_offset = word(8);
    } else if header[0] & F_DATA_VALID != 0 {
        meta.checksum = Checksum::Verified;
    }
    meta.gso = match header[1] & !GSO_ECN {
        0 => Gso::None,
        GSO_TCPV4 => Gso::Tcp4,
        GSO_TCPV6 => Gso::Tcp6,
        // Anything else, UFO included, is not offered to the kernel: the path refuses it as a
        // datagram super-frame whose fields do not fit.
        _ => Gso::Udp,
    };
    meta.gso_ecn = header[1] & GSO_ECN != 0;
    meta.gso_size = word(4);
}

fn encode(meta: &Meta, head_bytes: usize) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    let mut put = |at: usize, value: u16| {
        header[at..at + 2].copy_from_slice(&value.to_ne_bytes());
    };
    if meta.checksum == Checksum::Partial {
        put(6, meta.csum_start);
        put(8, meta.csum_offset);
    }
    if meta.gso != Gso::None {
        put(2, head_bytes.min(usize::from(u16::MAX)) as u16);
        put(4, meta.gso_size);
    }
    header[0] = match meta.checksum {
        Checksum::Partial => F_NEEDS_CSUM,
        Checksum::Verified => F_DATA_VALID,
        Checksum::Unknown => 0,
    };
    header[1] = match meta.gso {
        Gso::None => 0,
        Gso::Tcp4 => GSO_TCPV4,
        Gso::Tcp6 => GSO_TCPV6,
        Gso::Udp => GSO_UDP_L4,
    };
    if meta.gso != Gso::None && meta.gso_ecn {
        header[1] |= GSO_ECN;
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_survives_the_way_in_and_out() {
        // Golden: NEEDS_CSUM, TCPv4 | ECN, hdr_len 66, gso_size 1448, csum 34 + 16.
        let header = [1, 0x81, 66, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];
        let mut meta = Meta::default();
        decode(&header, &mut meta);
        assert_eq!(meta.checksum, Checksum::Partial);
        assert_eq!((meta.csum_start, meta.csum_offset), (34, 16));
        assert_eq!((meta.gso, meta.gso_size, meta.gso_ecn), (Gso::Tcp4, 1448, true));
        assert_eq!(encode(&meta, 66), header);
    }
}
