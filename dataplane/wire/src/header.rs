//! How a header is laid over bytes.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub use zerocopy::big_endian::{U16, U32, U128};

/// A header of fixed size. Implemented by every `#[repr(C)]` struct of this crate.
///
/// All methods answer `None` when the bytes are too few; nothing else can go wrong, since every
/// bit pattern is a value.
pub trait Header: FromBytes + IntoBytes + KnownLayout + Immutable + Unaligned + Sized {
    /// Its size.
    const BYTES: usize = size_of::<Self>();

    /// The header at the front of `bytes`.
    #[inline(always)]
    fn view(bytes: &[u8]) -> Option<&Self> {
        Some(Self::ref_from_prefix(bytes).ok()?.0)
    }

    /// The header at the front of `bytes`, to be changed in place.
    #[inline(always)]
    fn view_mut(bytes: &mut [u8]) -> Option<&mut Self> {
        Some(Self::mut_from_prefix(bytes).ok()?.0)
    }

    /// The header `offset` bytes into `bytes`.
    #[inline(always)]
    fn at(bytes: &[u8], offset: usize) -> Option<&Self> {
        Self::view(bytes.get(offset..)?)
    }

    /// The header `offset` bytes into `bytes`, to be changed in place.
    #[inline(always)]
    fn at_mut(bytes: &mut [u8], offset: usize) -> Option<&mut Self> {
        Self::view_mut(bytes.get_mut(offset..)?)
    }

    /// The header at the front of `bytes` and what follows it.
    #[inline(always)]
    fn split(bytes: &[u8]) -> Option<(&Self, &[u8])> {
        Self::ref_from_prefix(bytes).ok()
    }
}

impl<T: FromBytes + IntoBytes + KnownLayout + Immutable + Unaligned> Header for T {}

/// Random bytes never panic, and a view shows exactly the bytes that it lies over.
#[cfg(test)]
pub(crate) fn check_noise<H: Header>(read: impl Fn(&H) + std::panic::RefUnwindSafe) {
    bolero::check!().with_iterations(5_000).with_type::<(Vec<u8>, u8)>().for_each(
        |(bytes, offset)| {
            let offset = usize::from(*offset);
            match H::at(bytes, offset) {
                Some(header) => {
                    assert_eq!(header.as_bytes(), &bytes[offset..offset + H::BYTES]);
                    read(header);
                }
                None => assert!(bytes.len() < offset + H::BYTES),
            }
            let mut copy = bytes.clone();
            if let Some(header) = H::at_mut(&mut copy, offset) {
                header.as_mut_bytes().fill(0xa5);
                assert!(copy[offset..offset + H::BYTES].iter().all(|b| *b == 0xa5));
                assert_eq!(copy[..offset], bytes[..offset]);
                assert_eq!(copy[offset + H::BYTES..], bytes[offset + H::BYTES..]);
            }
        },
    );
}
