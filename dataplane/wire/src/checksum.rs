//! The internet checksum (RFC 1071) and how to change it in place (RFC 1624).
//!
//! The sum is that of 16-bit big-endian words in one's complement. It does not care in which byte
//! order it is *computed* (RFC 1071 §2 B), so bytes are added as the machine loads them and the
//! result is swapped once at the end. A [`Sum`] over several ranges is the sum of their sums, where
//! a range that begins at an odd offset counts byte-swapped ([`Sum::shifted`]).

/// A one's complement sum, not yet folded.
///
/// *Invariant*: fewer than 2^32 words of 16 bits were added, so the `u64` never overflows.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sum(u64);

impl Sum {
    /// The sum of one folded word.
    #[inline]
    pub const fn from_word(word: u16) -> Sum {
        Sum(word as u64)
    }

    /// The sum of `bytes`; an odd last byte counts as if a zero byte followed.
    #[inline]
    pub fn of(bytes: &[u8]) -> Sum {
        let mut lanes = [0u64; 4];
        let (blocks, rest) = bytes.as_chunks::<32>();
        for block in blocks {
            let (words, _) = block.as_chunks::<8>();
            for (lane, word) in lanes.iter_mut().zip(words) {
                let word = u64::from_ne_bytes(*word);
                // Halves are added apart: 2^32 of them fit.
                *lane += (word & 0xffff_ffff) + (word >> 32);
            }
        }
        let mut total = lanes.iter().sum::<u64>();
        let (words, rest) = rest.as_chunks::<4>();
        for word in words {
            total += u64::from(u32::from_ne_bytes(*word));
        }
        let mut last = [0; 4];
        for (to, from) in last.iter_mut().zip(rest) {
            *to = *from;
        }
        total += u64::from(u32::from_ne_bytes(last));
        Sum(u64::from(fold_native(total).to_be()))
    }

    /// The sum of a header whose size is known when compiled: a multiple of 4.
    #[inline(always)]
    pub fn of_fixed(bytes: &[u8]) -> Sum {
        Sum(u64::from(fold_native(native(bytes)).to_be()))
    }

    /// Whether the checksum is right in a header as [`Sum::of_fixed`] takes it.
    #[inline(always)]
    pub fn verifies_fixed(bytes: &[u8]) -> bool {
        // In whichever byte order: swapping multiplies by 256, and zero stays zero.
        Sum(native(bytes)).verifies()
    }

    /// Both together.
    #[inline]
    #[must_use]
    pub const fn plus(self, other: Sum) -> Sum {
        Sum(self.0 + other.0)
    }

    /// With one more word.
    #[inline]
    #[must_use]
    pub const fn word(self, word: u16) -> Sum {
        Sum(self.0 + word as u64)
    }

    /// With two more words.
    #[inline]
    #[must_use]
    pub const fn dword(self, dword: u32) -> Sum {
        Sum(self.0 + (dword >> 16) as u64 + (dword & 0xffff) as u64)
    }

    /// What it counts for when its range begins `offset` bytes behind the first.
    #[inline]
    #[must_use]
    pub const fn shifted(self, offset: usize) -> Sum {
        if offset & 1 == 0 { self } else { Sum(self.fold().swap_bytes() as u64) }
    }

    /// Without what `other` counts for.
    #[inline]
    #[must_use]
    pub const fn minus(self, other: Sum) -> Sum {
        Sum(self.0 + !other.fold() as u64)
    }

    /// The 16-bit sum: what a field holds while the checksum is partial. 0xffff over bytes that
    /// include a right checksum (or, rarely, 0 over nothing but zeros).
    #[inline]
    pub const fn fold(self) -> u16 {
        let folded = (self.0 >> 32) + (self.0 & 0xffff_ffff);
        let folded = (folded >> 16) + (folded & 0xffff);
        let folded = (folded >> 16) + (folded & 0xffff);
        let folded = (folded >> 16) + (folded & 0xffff);
        folded as u16
    }

    /// Whether this is the sum over bytes that include a right checksum: `fold() == 0xffff`, but
    /// cheaper, since folding is the remainder by 0xffff.
    #[inline]
    pub const fn verifies(self) -> bool {
        self.0 != 0 && self.0.is_multiple_of(0xffff)
    }

    /// What goes into the checksum field.
    #[inline]
    pub const fn complement(self) -> u16 {
        !self.fold()
    }

    /// What goes into UDP's checksum field, where 0 means "none" (RFC 768).
    #[inline]
    pub const fn complement_udp(self) -> u16 {
        match self.complement() {
            0 => 0xffff,
            sum => sum,
        }
    }
}

/// The words of a short header in the machine's byte order.
#[inline(always)]
fn native(bytes: &[u8]) -> u64 {
    let (words, _) = bytes.as_chunks::<4>();
    words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum()
}

#[inline]
fn fold_native(total: u64) -> u16 {
    Sum(total).fold()
}

/// The checksum field after the covered word `old` has become `new` (RFC 1624, equation 3).
#[inline]
pub const fn update(field: u16, old: u16, new: u16) -> u16 {
    Sum((!field) as u64 + (!old) as u64 + new as u64).complement()
}

/// The sum of an IPv4 pseudo header (RFC 793 §3.1).
#[inline]
pub const fn pseudo4(src: u32, dst: u32, protocol: u8, l4_bytes: usize) -> Sum {
    Sum(0).dword(src).dword(dst).word(protocol as u16).dword(l4_bytes as u32)
}

/// The sum of an IPv6 pseudo header (RFC 8200 §8.1).
#[inline]
pub const fn pseudo6(src: u128, dst: u128, protocol: u8, l4_bytes: usize) -> Sum {
    of_u128(src).plus(of_u128(dst)).word(protocol as u16).dword(l4_bytes as u32)
}

const fn of_u128(addr: u128) -> Sum {
    let sum = Sum(0).dword((addr >> 96) as u32).dword((addr >> 64) as u32);
    sum.dword((addr >> 32) as u32).dword(addr as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As RFC 1071 §4.1 writes it.
    fn naive(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    /// Zero has two forms in one's complement.
    fn same(a: u16, b: u16) -> bool {
        a == b || (a == 0 && b == 0xffff) || (a == 0xffff && b == 0)
    }

    #[test]
    fn golden() {
        // The example of RFC 1071 §3.
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::of(&bytes).fold(), 0xddf2);
        assert_eq!(Sum::of_fixed(&bytes).fold(), 0xddf2);
        assert!(!Sum::verifies_fixed(&bytes) && !Sum::verifies_fixed(&[0; 20]));
        assert!(Sum::verifies_fixed(&[0x00, 0x01, 0xf2, 0x03, 0x0d, 0xfb, 0, 0]));
        assert_eq!(Sum::of(&[0xff; 64]).fold(), 0xffff);
        assert_eq!(Sum::of(&[]).complement_udp(), 0xffff);
    }

    #[test]
    fn equals_the_naive_sum_however_it_is_cut() {
        bolero::check!().with_type::<(Vec<u8>, u16)>().for_each(|(bytes, cut)| {
            assert!(same(Sum::of(bytes).fold(), naive(bytes)));
            assert_eq!(Sum::of(bytes).verifies(), naive(bytes) == 0xffff);
            let cut = usize::from(*cut) % (bytes.len() + 1);
            let (a, b) = bytes.split_at(cut);
            let sum = Sum::of(a).plus(Sum::of(b).shifted(cut));
            assert!(same(sum.fold(), naive(bytes)), "cut at {cut}");
            assert!(same(sum.minus(Sum::of(a)).fold(), Sum::of(b).shifted(cut).fold()));
        });
    }

    #[test]
    fn large_ranges_do_not_overflow() {
        let bytes = vec![0xff; 1 << 20];
        assert_eq!(Sum::of(&bytes).fold(), 0xffff);
    }

    /// Changing one word incrementally gives a checksum that verifies.
    #[test]
    fn incremental_equals_full() {
        bolero::check!().with_type::<([u8; 40], u8, u16)>().cloned().for_each(
            |(mut bytes, at, new)| {
                bytes[..2].fill(0);
                let field = Sum::of(&bytes).complement();
                let at = 2 + usize::from(at) % 19 * 2;
                let old = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
                bytes[at..at + 2].copy_from_slice(&new.to_be_bytes());
                bytes[..2].copy_from_slice(&update(field, old, new).to_be_bytes());
                assert!(same(naive(&bytes), 0xffff));
            },
        );
    }

    #[test]
    fn pseudo_headers_equal_their_bytes() {
        bolero::check!().with_type::<(u128, u128, u8, u16)>().cloned().for_each(
            |(src, dst, protocol, len)| {
                let mut bytes = [src.to_be_bytes(), dst.to_be_bytes()].concat();
                bytes.extend([0, 0]);
                bytes.extend(len.to_be_bytes());
                bytes.extend([0, 0, 0, protocol]);
                assert!(same(pseudo6(src, dst, protocol, len.into()).fold(), naive(&bytes)));

                let (src, dst) = (src as u32, dst as u32);
                let mut bytes = [src.to_be_bytes(), dst.to_be_bytes()].concat();
                bytes.extend([0, protocol]);
                bytes.extend(len.to_be_bytes());
                assert!(same(pseudo4(src, dst, protocol, len.into()).fold(), naive(&bytes)));
            },
        );
    }
}
