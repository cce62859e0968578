//! Internet checksums over bodies that may be foreign memory.
//!
//! Foreign bytes are copied in blocks to private memory and summed there, so that nothing is read
//! twice and no reference to shared memory exists.

use wire::checksum::Sum;

use super::Seg;

const BLOCK_BYTES: usize = 512;

/// The sum of `head` followed by `body`, as if they were one string of bytes.
pub fn partial_sum(head: &[u8], body: &[Seg]) -> Sum {
    let mut sum = Sum::of(head);
    let mut offset = head.len();
    let mut block = [0u8; BLOCK_BYTES];
    for seg in body {
        let mut done = 0;
        while done < seg.len() {
            let n = seg.part(done, BLOCK_BYTES).read(&mut block);
            sum = sum.plus(Sum::of(&block[..n]).shifted(offset));
            done += n;
            offset += n;
        }
    }
    sum
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
    let sum = partial_sum(covered, body).complement_udp();
    let field = start + offset;
    head[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::copy::tests_seg;

    #[test]
    fn a_cut_does_not_change_the_sum() {
        bolero::check!().with_type::<(Vec<u8>, Vec<u8>, Vec<u8>)>().for_each(|(a, b, c)| {
            let whole = Sum::of(&[&a[..], b, c].concat()).fold();
            let cut = partial_sum(a, &[tests_seg(b), tests_seg(c)]).fold();
            // 0 and 0xffff are the same number in one's complement.
            assert_eq!(cut % 0xffff, whole % 0xffff);
        });
    }

    #[test]
    fn completes_a_udp_checksum() {
        // RFC 1071 §3's example words, with the field in front.
        let mut head = [0, 0, 0x00, 0x01, 0xf2, 0x03];
        let rest = [0xf4, 0xf5, 0xf6, 0xf7];
        assert!(complete_checksum(&mut head, 0, 0, &[tests_seg(&rest)]));
        assert_eq!(head[..2], (!0xddf2u16).to_be_bytes());
        assert!(!complete_checksum(&mut head, 5, 0, &[]));
    }
}
