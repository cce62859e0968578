//! TCP (RFC 9293).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{U16, U32};

/// The fixed part of a TCP header.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Tcp {
    /// Source port.
    pub src_port: U16,
    /// Destination port.
    pub dst_port: U16,
    /// Of the first payload byte.
    pub sequence: U32,
    /// Next expected from the other side.
    pub acknowledgement: U32,
    /// Header length in words (4 bits), reserved and AE (4 bits).
    pub data_offset: u8,
    /// See the constants.
    pub flags: u8,
    /// Receive window.
    pub window: U16,
    /// Of pseudo header, header and payload.
    pub checksum: U16,
    /// Urgent pointer.
    pub urgent: U16,
}

const _: () = assert!(size_of::<Tcp>() == 20);

impl Tcp {
    /// No more data.
    pub const FIN: u8 = 0x01;
    /// Synchronise.
    pub const SYN: u8 = 0x02;
    /// Reset.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement counts.
    pub const ACK: u8 = 0x10;
    /// The urgent pointer counts.
    pub const URG: u8 = 0x20;
    /// ECN echo.
    pub const ECE: u8 = 0x40;
    /// Congestion window reduced.
    pub const CWR: u8 = 0x80;
    /// Where the checksum lies in the header.
    pub const CHECKSUM_OFFSET: u16 = 16;

    /// Bytes of the header with its options: 0..=60, legal from 20.
    #[inline]
    pub fn header_bytes(&self) -> usize {
        usize::from(self.data_offset >> 4) * 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Header, header::check_noise};

    #[test]
    fn golden() {
        let bytes = [
            0x04, 0xd2, 0x00, 0x50, 0, 0, 0, 1, 0, 0, 0, 2, 0x80, 0x19, 0x01, 0x00, 0xbe, 0xef, 0,
            0,
        ];
        let tcp = Tcp::view(&bytes).unwrap();
        assert_eq!((tcp.src_port.get(), tcp.dst_port.get()), (1234, 80));
        assert_eq!((tcp.sequence.get(), tcp.acknowledgement.get()), (1, 2));
        assert_eq!(tcp.header_bytes(), 32);
        assert_eq!(tcp.flags, Tcp::ACK | Tcp::PSH | Tcp::FIN);
        let at = usize::from(Tcp::CHECKSUM_OFFSET);
        assert_eq!(tcp.checksum.get().to_be_bytes(), bytes[at..at + 2]);
    }

    #[test]
    fn noise() {
        check_noise::<Tcp>(|tcp| assert!(tcp.header_bytes() <= 60));
    }
}
