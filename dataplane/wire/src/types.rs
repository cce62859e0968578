//! The newtypes of the field.

use std::fmt;
use std::num::NonZeroU32;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// An Ethernet address.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    Default,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
#[repr(transparent)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// `ff:ff:ff:ff:ff:ff`.
    pub const BROADCAST: Mac = Mac([0xff; 6]);

    /// Whether the group bit is set (multicast or broadcast).
    #[inline]
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 == 1
    }

    /// The address in a slice of exactly six bytes.
    pub fn from_slice(bytes: &[u8]) -> Option<Mac> {
        Some(Mac(bytes.try_into().ok()?))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A VXLAN network identifier.
///
/// *Legal values*: 1..=16777215 (24 bits, RFC 7348 §5); 0 is never given to a Network.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Vni(NonZeroU32);

impl Vni {
    /// The largest identifier.
    pub const MAX: u32 = 0x00ff_ffff;

    /// The identifier, if it is legal.
    #[inline]
    pub const fn new(value: u32) -> Option<Vni> {
        if value > Self::MAX {
            return None;
        }
        match NonZeroU32::new(value) {
            Some(v) => Some(Vni(v)),
            None => None,
        }
    }

    /// Its value.
    #[inline]
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Debug for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vni_accepts_24_bits_but_zero() {
        assert_eq!(Vni::new(0), None);
        assert_eq!(Vni::new(1).map(Vni::get), Some(1));
        assert_eq!(Vni::new(Vni::MAX).map(Vni::get), Some(Vni::MAX));
        assert_eq!(Vni::new(Vni::MAX + 1), None);
    }

    #[test]
    fn mac_prints_as_people_write_it() {
        assert_eq!(Mac([2, 0xb0, 0, 0, 0x38, 1]).to_string(), "02:b0:00:00:38:01");
        assert!(Mac::BROADCAST.is_group());
        assert!(!Mac([2, 0, 0, 0, 0, 1]).is_group());
    }
}
