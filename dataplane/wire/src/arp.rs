//! ARP for IPv4 over Ethernet (RFC 826).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{Mac, U16, U32};

/// An ARP packet for IPv4 over Ethernet.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Arp {
    /// 1 = Ethernet.
    pub hardware: U16,
    /// 0x0800 = IPv4.
    pub protocol: U16,
    /// 6.
    pub hardware_bytes: u8,
    /// 4.
    pub protocol_bytes: u8,
    /// [`Arp::REQUEST`] or [`Arp::REPLY`].
    pub operation: U16,
    /// Who sends.
    pub sender_mac: Mac,
    /// Who sends; 0 in a probe (RFC 5227 §2.1.1).
    pub sender_ip: U32,
    /// Who is asked; meaningless in a request.
    pub target_mac: Mac,
    /// Who is asked.
    pub target_ip: U32,
}

const _: () = assert!(size_of::<Arp>() == 28);

impl Arp {
    /// `operation` of a question.
    pub const REQUEST: u16 = 1;
    /// `operation` of an answer.
    pub const REPLY: u16 = 2;

    /// Whether it is a request or reply for IPv4 over Ethernet.
    #[inline]
    pub fn is_valid(&self) -> bool {
        self.hardware.get() == 1
            && self.protocol.get() == 0x0800
            && self.hardware_bytes == 6
            && self.protocol_bytes == 4
            && matches!(self.operation.get(), Self::REQUEST | Self::REPLY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Header, header::check_noise};

    const REQUEST: [u8; 28] =
        [0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 2, 10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 10, 0, 0, 1];

    #[test]
    fn golden() {
        let arp = Arp::view(&REQUEST).unwrap();
        assert!(arp.is_valid());
        assert_eq!(arp.operation.get(), Arp::REQUEST);
        assert_eq!(arp.sender_mac, Mac([2, 0, 0, 0, 0, 2]));
        assert_eq!(arp.sender_ip.get(), 0x0a00_0002);
        assert_eq!(arp.target_ip.get(), 0x0a00_0001);
    }

    #[test]
    fn other_networks_are_not_valid() {
        for at in [1, 2, 4, 5, 7] {
            let mut bytes = REQUEST;
            bytes[at] ^= 0x10;
            assert!(!Arp::view(&bytes).unwrap().is_valid(), "byte {at}");
        }
    }

    #[test]
    fn noise() {
        check_noise::<Arp>(|arp| assert!(!arp.is_valid() || arp.hardware_bytes == 6));
    }
}
