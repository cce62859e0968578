//! Neighbour discovery (RFC 4861): solicitation, advertisement and their options.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{Icmp6, Mac, U128};

/// A neighbour solicitation or advertisement up to its options (RFC 4861 §4.3, §4.4).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct NdMessage {
    /// Kind, code, checksum; `rest` holds the flags of an advertisement.
    pub icmp: Icmp6,
    /// The address in question.
    pub target: U128,
}

const _: () = assert!(size_of::<NdMessage>() == 24);

impl NdMessage {
    /// In `icmp.rest` of an advertisement: the sender is a router.
    pub const ROUTER: u32 = 1 << 31;
    /// In `icmp.rest` of an advertisement: it answers a solicitation.
    pub const SOLICITED: u32 = 1 << 30;
    /// In `icmp.rest` of an advertisement: it replaces what was known.
    pub const OVERRIDE: u32 = 1 << 29;
}

/// A link-layer address option for Ethernet (RFC 4861 §4.6.1).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct NdOption {
    /// [`NdOption::SOURCE_MAC`] or [`NdOption::TARGET_MAC`].
    pub kind: u8,
    /// Bytes of the option in units of 8: 1.
    pub units: u8,
    /// The address.
    pub mac: Mac,
}

const _: () = assert!(size_of::<NdOption>() == 8);

impl NdOption {
    /// Source link-layer address.
    pub const SOURCE_MAC: u8 = 1;
    /// Target link-layer address.
    pub const TARGET_MAC: u8 = 2;
}

/// The options of a message: (kind, value behind kind and length).
///
/// Ends at the first option that is malformed; [`NdOptions::is_valid`] tells beforehand.
#[derive(Debug, Clone)]
pub struct NdOptions<'a>(&'a [u8]);

impl<'a> NdOptions<'a> {
    /// The options that fill `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether all options have a length above zero and fill the bytes exactly (RFC 4861 §7.1).
    pub fn is_valid(&self) -> bool {
        let mut rest = self.clone();
        rest.by_ref().for_each(drop);
        rest.0.is_empty()
    }

    /// The Ethernet address in the option of this kind, if there is one.
    pub fn mac(&self, kind: u8) -> Option<Mac> {
        self.clone().find(|(k, _)| *k == kind).and_then(|(_, value)| Mac::from_slice(value))
    }
}

impl<'a> Iterator for NdOptions<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let &[kind, units, ..] = self.0 else { return None };
        let (option, rest) = self.0.split_at_checked(usize::from(units) * 8)?;
        let value = option.get(2..)?;
        self.0 = rest;
        Some((kind, value))
    }
}

/// The link-local address that an interface with this MAC forms (RFC 4291 appendix A).
pub const fn link_local_of(mac: Mac) -> u128 {
    let [a, b, c, d, e, f] = mac.0;
    let id = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    0xfe80 << 112 | id as u128
}

/// The group that is asked for an address (RFC 4291 §2.7.1).
pub const fn solicited_node_of(addr: u128) -> u128 {
    0xff02_0000_0000_0000_0000_0001_ff00_0000 | addr & 0x00ff_ffff
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Header, header::check_noise};

    #[test]
    fn golden() {
        let mut bytes = vec![135, 0, 0xab, 0xcd, 0, 0, 0, 0];
        bytes.extend(0xfd00_0000_0000_0000_0000_0000_0000_0001u128.to_be_bytes());
        bytes.extend([1, 1, 2, 0, 0, 0, 0, 5]);
        let (message, options) = NdMessage::split(&bytes).unwrap();
        assert_eq!(message.icmp.kind, Icmp6::NEIGHBOUR_SOLICITATION);
        assert_eq!(message.target.get() & 0xff, 1);
        let options = NdOptions::new(options);
        assert!(options.is_valid());
        assert_eq!(options.mac(NdOption::SOURCE_MAC), Some(Mac([2, 0, 0, 0, 0, 5])));
        assert_eq!(options.mac(NdOption::TARGET_MAC), None);
    }

    #[test]
    fn malformed_options_are_seen() {
        assert!(NdOptions::new(&[]).is_valid());
        assert!(!NdOptions::new(&[1, 0, 0, 0, 0, 0, 0, 0]).is_valid());
        assert!(!NdOptions::new(&[1, 2, 0, 0, 0, 0, 0, 0]).is_valid());
        assert!(!NdOptions::new(&[1]).is_valid());
    }

    #[test]
    fn derived_addresses() {
        let addr = link_local_of(Mac([0x02, 0xb0, 0, 0, 0x38, 0x01]));
        assert_eq!(addr, 0xfe80_0000_0000_0000_00b0_00ff_fe00_3801);
        assert_eq!(solicited_node_of(addr), 0xff02_0000_0000_0000_0000_0001_ff00_3801);
    }

    #[test]
    fn noise() {
        check_noise::<NdMessage>(|_| ());
        check_noise::<NdOption>(|_| ());
        bolero::check!().with_type::<Vec<u8>>().for_each(|bytes| {
            let options = NdOptions::new(bytes);
            assert!(options.clone().count() <= bytes.len() / 8);
            options.mac(NdOption::SOURCE_MAC);
            options.is_valid();
        });
    }
}
