//! UDP (RFC 768).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::U16;

/// A UDP header.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Udp {
    /// Source port.
    pub src_port: U16,
    /// Destination port.
    pub dst_port: U16,
    /// Bytes of header and payload.
    pub len: U16,
    /// Of pseudo header, header and payload; 0 = none (over IPv4).
    pub checksum: U16,
}

const _: () = assert!(size_of::<Udp>() == 8);

impl Udp {
    /// Where the checksum lies in the header.
    pub const CHECKSUM_OFFSET: u16 = 6;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Header, header::check_noise};

    #[test]
    fn golden() {
        let udp = Udp::view(&[0xc0, 0x01, 0x12, 0xb5, 0x00, 0x24, 0xab, 0xcd]).unwrap();
        assert_eq!((udp.src_port.get(), udp.dst_port.get()), (49153, 4789));
        assert_eq!((udp.len.get(), udp.checksum.get()), (36, 0xabcd));
    }

    #[test]
    fn noise() {
        check_noise::<Udp>(|_| ());
    }
}
