//! Internet checksums over bodies that may be foreign memory.
//!
//! Foreign bytes are copied in blocks to private memory and summed there, so that nothing is read
//! twice and no reference to shared memory exists.

use super::Seg;

const BLOCK_BYTES: usize = 512;

/// The one's complement sum (not inverted, not folded below 16 bits of carry) of `head` followed
/// by `body`, as if they were one string of bytes.
pub fn partial_sum(head: &[u8], body: &[Seg]) -> u16 {
    let mut sum = Summer::default();
    sum.add(head);
    let mut block = [0u8; BLOCK_BYTES];
    for seg in body {
        let mut done = 0;
        while done < seg.len() {
            let n = seg.part(done, BLOCK_BYTES).read(&mut block);
            sum.add(&block[..n]);
            done += n;
        }
    }
    sum.fold()
}

/// Completes a layer-4 checksum of which the field holds the pseudo-header's sum: sums everything
/// from `start` and stores the result at `start + offset`. False when the field is not in `head`.
///
/// A computed zero is sent as 0xffff, which is equal in one's complement and is what UDP demands
/// (RFC 768: an all zero checksum means that none was generated).
pub fn complete_checksum(head: &mut [u8], start: usize, offset: usize, body: &[Seg]) -> bool {
    let Some(covered) = head.get(start..) else { return false };
    if covered.len() < offset + 2 {
        return false;
    }
    let sum = match !partial_sum(covered, body) {
        0 => 0xffff,
        other => other,
    };
    let field = start + offset;
    head[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    true
}

/// Sums big-endian 16-bit words over pieces of any length.
#[derive(Default)]
struct Summer {
    /// Of native-endian words: one's complement sums are byte-order independent (RFC 1071 §2(B)).
    sum: u64,
    /// The last piece ended in the middle of a word.
    odd: bool,
}

impl Summer {
    fn add(&mut self, mut bytes: &[u8]) {
        if self.odd
            && let [first, rest @ ..] = bytes
        {
            self.push(u64::from(u16::from_ne_bytes([0, *first])));
            self.odd = false;
            bytes = rest;
        }
        let mut wide = 0u64;
        let (chunks, tail) = bytes.as_chunks::<4>();
        for chunk in chunks {
            // 2^32 additions of 32 bits fit: frames are far shorter.
            wide += u64::from(u32::from_ne_bytes(*chunk));
        }
        self.push(wide);
        let (words, tail) = tail.as_chunks::<2>();
        for word in words {
            self.push(u64::from(u16::from_ne_bytes(*word)));
        }
        if let [last] = tail {
            self.push(u64::from(u16::from_ne_bytes([*last, 0])));
            self.odd = true;
        }
    }

    fn push(&mut self, value: u64) {
        let (sum, carry) = self.sum.overflowing_add(value);
        self.sum = sum + u64::from(carry);
    }

    fn fold(self) -> u16 {
        let mut sum = self.sum;
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::from_be(sum as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slow(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn equals_the_definition_for_any_cut() {
        bolero::check!().with_type::<(Vec<u8>, Vec<u8>, Vec<u8>)>().for_each(|(a, b, c)| {
            let all = [&a[..], b, c].concat();
            let segs = [crate::copy::tests_seg(b), crate::copy::tests_seg(c)];
            let (fast, slow) = (partial_sum(a, &segs), slow(&all));
            // 0 and 0xffff are the same number in one's complement.
            assert!(fast == slow || (fast == 0xffff && slow == 0) || (fast == 0 && slow == 0xffff));
        });
    }

    #[test]
    fn completes_a_udp_checksum() {
        // RFC 1071 §3's example words, with the field in front.
        let mut head = [0, 0, 0x00, 0x01, 0xf2, 0x03];
        let rest = [0xf4, 0xf5, 0xf6, 0xf7];
        assert!(complete_checksum(&mut head, 0, 0, &[crate::copy::tests_seg(&rest)]));
        assert_eq!(head[..2], (!0xddf2u16).to_be_bytes());
        assert!(!complete_checksum(&mut head, 5, 0, &[]));
    }
}
