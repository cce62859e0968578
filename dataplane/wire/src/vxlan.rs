//! VXLAN (RFC 7348 §5).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::U32;

/// A VXLAN header.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Vxlan {
    /// Flags (8 bits; [`Vxlan::I`]) and reserved bits: zero when sent, ignored on receipt.
    pub flags: U32,
    /// VNI (24 bits) and reserved bits: zero when sent, ignored on receipt.
    pub vni_reserved: U32,
}

const _: () = assert!(size_of::<Vxlan>() == 8);

impl Vxlan {
    /// The VNI is valid. A header without this flag is not accepted.
    pub const I: u32 = 0x0800_0000;

    /// The header for a VNI.
    #[inline]
    pub fn new(vni: u32) -> Self {
        Self { flags: U32::new(Self::I), vni_reserved: U32::new(vni << 8) }
    }

    /// The VNI, if it is valid.
    #[inline]
    pub fn vni(&self) -> Option<u32> {
        (self.flags.get() & Self::I != 0).then_some(self.vni_reserved.get() >> 8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Header, header::check_noise};

    #[test]
    fn golden() {
        let bytes = [0x08, 0, 0, 0, 0, 0, 56, 0];
        assert_eq!(Vxlan::view(&bytes).unwrap().vni(), Some(56));
        assert_eq!(Vxlan::new(56).as_bytes(), bytes);
        assert_eq!(Vxlan::view(&[0xff; 8]).unwrap().vni(), Some(0xff_ffff));
        assert_eq!(Vxlan::view(&[0xf7, 0, 0, 0, 0, 0, 56, 0]).unwrap().vni(), None);
    }

    #[test]
    fn noise() {
        check_noise::<Vxlan>(|vxlan| assert!(vxlan.vni().is_none_or(|v| v < 1 << 24)));
    }
}
