//! IPv4 (RFC 791).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::checksum::{self, Sum};
use crate::{Header, U16, U32};

/// The fixed part of an IPv4 header.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Ipv4 {
    /// Version (4 bits) and header length in words (4 bits).
    pub version_ihl: u8,
    /// DSCP (6 bits) and ECN (2 bits).
    pub tos: u8,
    /// Bytes of header and payload.
    pub total_len: U16,
    /// Identification, for reassembly.
    pub id: U16,
    /// [`Ipv4::DF`], [`Ipv4::MF`] and the offset in units of 8 bytes.
    pub flags_offset: U16,
    /// Time to live.
    pub ttl: u8,
    /// What follows, see [`crate::protocol`].
    pub protocol: u8,
    /// Of the header and its options.
    pub checksum: U16,
    /// Source.
    pub src: U32,
    /// Destination.
    pub dst: U32,
}

const _: () = assert!(size_of::<Ipv4>() == 20);

impl Ipv4 {
    /// Do not fragment.
    pub const DF: u16 = 0x4000;
    /// More fragments follow.
    pub const MF: u16 = 0x2000;
    /// The offset's bits in `flags_offset`, in units of 8 bytes.
    pub const OFFSET: u16 = 0x1fff;
    /// ECN's bits in `tos` (RFC 3168 §5).
    pub const ECN: u8 = 0x03;

    /// The version field.
    #[inline]
    pub fn version(&self) -> u8 {
        self.version_ihl >> 4
    }

    /// Bytes of the header with its options: 0..=60, legal from 20.
    #[inline]
    pub fn header_bytes(&self) -> usize {
        usize::from(self.version_ihl & 0x0f) * 4
    }

    /// Whether it is a piece of a larger packet.
    #[inline]
    pub fn is_fragment(&self) -> bool {
        self.flags_offset.get() & (Self::MF | Self::OFFSET) != 0
    }

    /// Whether it is a piece other than the first: no layer-4 header follows.
    #[inline]
    pub fn is_later_fragment(&self) -> bool {
        self.flags_offset.get() & Self::OFFSET != 0
    }

    /// Whether it must not be fragmented.
    #[inline]
    pub fn dont_fragment(&self) -> bool {
        self.flags_offset.get() & Self::DF != 0
    }

    /// Takes one off the TTL and corrects the checksum (RFC 1624). Not for TTL 0.
    #[inline]
    pub fn decrement_ttl(&mut self) {
        self.ttl = self.ttl.wrapping_sub(1);
        // The TTL is the upper half of its word: 0x0100 less there is 0x0100 more here.
        let sum = u32::from(self.checksum.get()) + 0x0100;
        self.checksum.set((sum + u32::from(sum >= 0xffff)) as u16);
    }

    /// Replaces the ECN bits and corrects the checksum (RFC 1624).
    #[inline]
    pub fn set_ecn(&mut self, ecn: u8) {
        let old = u16::from_be_bytes([self.version_ihl, self.tos]);
        self.tos = self.tos & !Self::ECN | ecn & Self::ECN;
        let new = u16::from_be_bytes([self.version_ihl, self.tos]);
        self.checksum.set(checksum::update(self.checksum.get(), old, new));
    }

    /// The sum over the fixed part, for a header without options: 0xffff when its checksum is
    /// right.
    #[inline]
    pub fn sum(&self) -> Sum {
        Sum::of_fixed(self.as_bytes())
    }

    /// Computes the checksum of the header at the front of `bytes`, options included. False when
    /// the header's length does not fit the bytes.
    #[inline]
    pub fn fill_checksum(bytes: &mut [u8]) -> bool {
        let Some(ip) = Self::view_mut(bytes) else { return false };
        ip.checksum.set(0);
        let header_bytes = ip.header_bytes();
        let sum = match bytes.get(..header_bytes) {
            Some(header) if header_bytes >= Self::BYTES => Sum::of(header),
            _ => return false,
        };
        Self::view_mut(bytes).is_some_and(|ip| {
            ip.checksum.set(sum.complement());
            true
        })
    }

    /// Whether the checksum of a header without options is right.
    #[inline(always)]
    pub fn verifies(&self) -> bool {
        Sum::verifies_fixed(self.as_bytes())
    }

    /// The pseudo header's sum for a payload of `l4_bytes` (RFC 793 §3.1).
    #[inline]
    pub fn pseudo(&self, l4_bytes: usize) -> Sum {
        checksum::pseudo4(self.src.get(), self.dst.get(), self.protocol, l4_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::header::check_noise;

    const GOLDEN: [u8; 20] = [
        0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0x00,
        0x01, 0xc0, 0xa8, 0x00, 0xc7,
    ];

    #[test]
    fn golden() {
        let ip = Ipv4::view(&GOLDEN).unwrap();
        assert_eq!((ip.version(), ip.header_bytes()), (4, 20));
        assert_eq!((ip.total_len.get(), ip.ttl, ip.protocol), (115, 64, 17));
        assert!(ip.dont_fragment() && !ip.is_fragment() && !ip.is_later_fragment());
        assert_eq!((ip.src.get(), ip.dst.get()), (0xc0a8_0001, 0xc0a8_00c7));
        assert_eq!(ip.sum().fold(), 0xffff);
        assert!(ip.verifies());
    }

    #[test]
    fn changes_keep_the_checksum_right() {
        bolero::check!().with_type::<([u8; 20], u8)>().cloned().for_each(|(mut bytes, ecn)| {
            bytes[0] = 0x45;
            bytes[8] |= 1;
            assert!(Ipv4::fill_checksum(&mut bytes));
            let ip = Ipv4::view_mut(&mut bytes).unwrap();
            assert_eq!(ip.sum().fold(), 0xffff);
            let ttl = ip.ttl;
            ip.decrement_ttl();
            assert_eq!(ip.ttl, ttl - 1);
            assert_eq!(ip.sum().fold(), 0xffff);
            ip.set_ecn(ecn);
            assert_eq!(ip.tos & Ipv4::ECN, ecn & 3);
            assert_eq!(ip.sum().fold(), 0xffff);
        });
    }

    #[test]
    fn a_length_that_does_not_fit_is_refused() {
        let mut bytes = GOLDEN;
        bytes[0] = 0x46;
        assert!(!Ipv4::fill_checksum(&mut bytes));
        bytes[0] = 0x44;
        assert!(!Ipv4::fill_checksum(&mut bytes));
        assert!(!Ipv4::fill_checksum(&mut bytes[..19]));
    }

    #[test]
    fn noise() {
        check_noise::<Ipv4>(|ip| assert!(ip.header_bytes() <= 60));
    }
}
