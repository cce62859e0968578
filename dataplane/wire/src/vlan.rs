//! A VLAN tag (IEEE 802.1Q), as it follows the two MAC addresses and the tag's EtherType.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::U16;

/// What follows the EtherType of a tag.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Vlan {
    /// Priority (3 bits), drop eligible (1), VLAN (12).
    pub control: U16,
    /// EtherType of what follows.
    pub ether_type: U16,
}

const _: () = assert!(size_of::<Vlan>() == 4);

impl Vlan {
    /// The VLAN, 0 = only a priority.
    #[inline]
    pub fn id(&self) -> u16 {
        self.control.get() & 0x0fff
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Header, header::check_noise};

    #[test]
    fn golden() {
        let tag = Vlan::view(&[0xa0, 0x64, 0x08, 0x00]).unwrap();
        assert_eq!((tag.id(), tag.ether_type.get()), (100, 0x0800));
    }

    #[test]
    fn noise() {
        check_noise::<Vlan>(|tag| assert!(tag.id() < 4096));
    }
}
