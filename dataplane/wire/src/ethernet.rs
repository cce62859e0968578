//! Ethernet II (IEEE 802.3).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{Mac, U16};

/// An Ethernet header without tags.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Ethernet {
    /// Destination.
    pub dst: Mac,
    /// Source.
    pub src: Mac,
    /// What follows, see [`ether_type`]; up to 1500 it is an 802.3 length instead.
    pub ether_type: U16,
}

const _: () = assert!(size_of::<Ethernet>() == 14);

/// Values of [`Ethernet::ether_type`].
pub mod ether_type {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// A customer VLAN tag (802.1Q).
    pub const VLAN: u16 = 0x8100;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
    /// A service VLAN tag (802.1ad).
    pub const SERVICE_VLAN: u16 = 0x88a8;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Header, header::check_noise};

    #[test]
    fn golden() {
        let bytes = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x86, 0xdd, 0x60];
        let (eth, rest) = Ethernet::split(&bytes).unwrap();
        assert_eq!(eth.dst, Mac([2, 0, 0, 0, 0, 1]));
        assert_eq!(eth.src, Mac([2, 0, 0, 0, 0, 2]));
        assert_eq!(eth.ether_type.get(), ether_type::IPV6);
        assert_eq!(rest, [0x60]);
    }

    #[test]
    fn noise() {
        check_noise::<Ethernet>(|_| ());
    }
}
