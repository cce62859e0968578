//! ICMP for IPv6 (RFC 4443).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{U16, U32};

/// The first eight bytes of an ICMPv6 message.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Icmp6 {
    /// See the constants.
    pub kind: u8,
    /// Refines `kind`.
    pub code: u8,
    /// Of the pseudo header and the whole message.
    pub checksum: U16,
    /// Identifier and sequence of an echo, MTU of "packet too big", flags of an advertisement.
    pub rest: U32,
}

const _: () = assert!(size_of::<Icmp6>() == 8);

impl Icmp6 {
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 1;
    /// Packet too big.
    pub const PACKET_TOO_BIG: u8 = 2;
    /// Hop limit exceeded.
    pub const TIME_EXCEEDED: u8 = 3;
    /// Echo request.
    pub const ECHO_REQUEST: u8 = 128;
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 129;
    /// Multicast listener query (RFC 2710).
    pub const MLD_QUERY: u8 = 130;
    /// Multicast listener report (RFC 2710).
    pub const MLD_REPORT: u8 = 131;
    /// Multicast listener done (RFC 2710).
    pub const MLD_DONE: u8 = 132;
    /// Router solicitation.
    pub const ROUTER_SOLICITATION: u8 = 133;
    /// Router advertisement.
    pub const ROUTER_ADVERTISEMENT: u8 = 134;
    /// Neighbour solicitation.
    pub const NEIGHBOUR_SOLICITATION: u8 = 135;
    /// Neighbour advertisement.
    pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    /// Redirect.
    pub const REDIRECT: u8 = 137;
    /// Multicast listener report, version 2 (RFC 3810).
    pub const MLD2_REPORT: u8 = 143;
    /// Code of `UNREACHABLE`: no route.
    pub const CODE_NO_ROUTE: u8 = 0;
    /// Code of `UNREACHABLE`: the address does not exist.
    pub const CODE_ADDRESS: u8 = 3;
    /// Where the checksum lies in the header.
    pub const CHECKSUM_OFFSET: u16 = 2;

    /// Whether it reports an error (about which no error is ever sent, RFC 4443 §2.4 e.1).
    #[inline]
    pub fn is_error(&self) -> bool {
        self.kind < 128
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Header, header::check_noise};

    #[test]
    fn golden() {
        let icmp = Icmp6::view(&[2, 0, 0xab, 0xcd, 0, 0, 5, 0]).unwrap();
        assert_eq!((icmp.kind, icmp.code), (Icmp6::PACKET_TOO_BIG, 0));
        assert_eq!((icmp.checksum.get(), icmp.rest.get()), (0xabcd, 1280));
        assert!(icmp.is_error());
        assert!(!Icmp6::view(&[128, 0, 0, 0, 0, 0, 0, 0]).unwrap().is_error());
    }

    #[test]
    fn noise() {
        check_noise::<Icmp6>(|icmp| assert_eq!(icmp.is_error(), icmp.kind >> 7 == 0));
    }
}
