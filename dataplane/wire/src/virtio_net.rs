//! The header that taps and packet sockets put in front of a frame (virtio 1.2 §5.1.6), with
//! `num_buffers`: 12 bytes. Packet sockets and legacy taps leave the last two out.

use zerocopy::little_endian::U16 as Le16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A virtio-net header. Its fields are little-endian (`IFF_VNET_LE` / `TUNSETVNETLE`).
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct VirtioNet {
    /// [`VirtioNet::NEEDS_CSUM`], [`VirtioNet::DATA_VALID`].
    pub flags: u8,
    /// See the constants `GSO_*`.
    pub gso_type: u8,
    /// Bytes of headers in front of the payload: a hint that nobody may rely on.
    pub hdr_len: Le16,
    /// Payload bytes of each piece.
    pub gso_size: Le16,
    /// Where the checksum begins to count, from the frame's first byte.
    pub csum_start: Le16,
    /// Where it is written, from `csum_start`.
    pub csum_offset: Le16,
    /// Buffers of a mergeable receive: 0 to a tap.
    pub num_buffers: Le16,
}

const _: () = assert!(size_of::<VirtioNet>() == 12);

impl VirtioNet {
    /// Bytes without `num_buffers`.
    pub const LEGACY_BYTES: usize = 10;
    /// Flag: the checksum is partial.
    pub const NEEDS_CSUM: u8 = 1;
    /// Flag: the checksum was verified.
    pub const DATA_VALID: u8 = 2;
    /// Not a super-frame.
    pub const GSO_NONE: u8 = 0;
    /// TCP over IPv4.
    pub const GSO_TCPV4: u8 = 1;
    /// UDP to be fragmented (UFO).
    pub const GSO_UDP: u8 = 3;
    /// TCP over IPv6.
    pub const GSO_TCPV6: u8 = 4;
    /// UDP, one datagram per piece (USO).
    pub const GSO_UDP_L4: u8 = 5;
    /// Bit beside a TCP type: the first piece carries CWR.
    pub const GSO_ECN: u8 = 0x80;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Header, header::check_noise};

    #[test]
    fn golden() {
        let bytes = [1, 0x81, 66, 0, 0xa8, 0x05, 34, 0, 16, 0, 0, 0];
        let header = VirtioNet::view(&bytes).unwrap();
        assert_eq!(header.flags, VirtioNet::NEEDS_CSUM);
        assert_eq!(header.gso_type, VirtioNet::GSO_TCPV4 | VirtioNet::GSO_ECN);
        assert_eq!((header.hdr_len.get(), header.gso_size.get()), (66, 1448));
        assert_eq!((header.csum_start.get(), header.csum_offset.get()), (34, 16));
    }

    #[test]
    fn noise() {
        check_noise::<VirtioNet>(|_| ());
    }
}
