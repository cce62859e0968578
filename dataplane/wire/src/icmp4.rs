//! ICMP for IPv4 (RFC 792).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{U16, U32};

/// The first eight bytes of an ICMP message.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Icmp4 {
    /// See the constants.
    pub kind: u8,
    /// Refines `kind`.
    pub code: u8,
    /// Of the whole message.
    pub checksum: U16,
    /// Identifier and sequence of an echo; the next hop's MTU (lower half, RFC 1191 §4) of
    /// "fragmentation needed"; else 0.
    pub rest: U32,
}

const _: () = assert!(size_of::<Icmp4>() == 8);

impl Icmp4 {
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 0;
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 3;
    /// Source quench (an error message of old).
    pub const SOURCE_QUENCH: u8 = 4;
    /// Redirect.
    pub const REDIRECT: u8 = 5;
    /// Echo request.
    pub const ECHO_REQUEST: u8 = 8;
    /// TTL or reassembly time exceeded.
    pub const TIME_EXCEEDED: u8 = 11;
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 12;
    /// Code of `UNREACHABLE`: no route.
    pub const CODE_NET: u8 = 0;
    /// Code of `UNREACHABLE`: the host does not exist.
    pub const CODE_HOST: u8 = 1;
    /// Code of `UNREACHABLE`: too big, and DF is set.
    pub const CODE_FRAGMENTATION_NEEDED: u8 = 4;

    /// Whether it reports an error (about which no error is ever sent, RFC 1812 §4.3.2.7).
    #[inline]
    pub fn is_error(&self) -> bool {
        matches!(
            self.kind,
            Self::UNREACHABLE
                | Self::SOURCE_QUENCH
                | Self::REDIRECT
                | Self::TIME_EXCEEDED
                | Self::PARAMETER_PROBLEM
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Header, header::check_noise};

    #[test]
    fn golden() {
        let icmp = Icmp4::view(&[8, 0, 0xf7, 0xff, 0x12, 0x34, 0, 1]).unwrap();
        assert_eq!((icmp.kind, icmp.code), (Icmp4::ECHO_REQUEST, 0));
        assert_eq!((icmp.checksum.get(), icmp.rest.get()), (0xf7ff, 0x1234_0001));
        assert!(!icmp.is_error());
        assert!(Icmp4::view(&[3, 4, 0, 0, 0, 0, 5, 0xdc]).unwrap().is_error());
    }

    #[test]
    fn noise() {
        check_noise::<Icmp4>(|icmp| assert!(!icmp.is_error() || icmp.kind <= 12));
    }
}
