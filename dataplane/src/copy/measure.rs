//! What the choices of this room rest on: the engines and the ways of copying, side by side, over
//! buffers as a ring of a memif has them. `cargo run --release --example copy_engines` prints it.

use std::time::Instant;

use super::{Channel, CopyList, Seg, SegMut, Thresholds};

/// Bytes of each of the two arenas: a ring of 1,024 buffers of 2 KiB.
const ARENA_BYTES: usize = 2 << 20;

/// A way to copy.
#[derive(Debug)]
pub enum Way {
    /// The C library's `memcpy`.
    Memcpy,
    /// The engine `cpu`.
    Cpu(CopyList),
    /// Vector stores past the cache, with a fence behind each burst.
    Stream,
    /// A DMA channel takes every copy, whatever its size.
    Dma(CopyList),
}

impl Way {
    /// The engine `cpu`.
    pub fn cpu() -> Self {
        Way::Cpu(CopyList::default())
    }

    /// A DMA channel without thresholds.
    pub fn dma(channel: Box<dyn Channel>) -> Self {
        let mut list = CopyList::default();
        list.attach(channel, Thresholds { copy_bytes: 1, burst_copies: 1, burst_bytes: 0 });
        Way::Dma(list)
    }
}

/// Memory to copy from and to.
#[derive(Debug)]
pub struct Arena {
    from: Vec<u8>,
    to: Vec<u8>,
    at: usize,
    sum: u64,
}

impl Default for Arena {
    fn default() -> Self {
        let from = (0..ARENA_BYTES).map(|n| (n % 251) as u8).collect();
        Self { from, to: vec![0; ARENA_BYTES], at: 0, sum: 0 }
    }
}

impl Arena {
    /// Nanoseconds per copy of one burst of up to `count` copies of `bytes` bytes; with `read`,
    /// of somebody's reading what arrived as well.
    pub fn burst(&mut self, way: &mut Way, bytes: usize, count: usize, read: bool) -> f64 {
        let stride = bytes.next_multiple_of(64).max(2048);
        let count = count.min(ARENA_BYTES / stride).min(256);
        let places: Vec<usize> = (0..count).map(|n| self.place(stride, n)).collect();
        self.at = self.place(stride, count);
        let start = Instant::now();
        match way {
            Way::Memcpy => {
                for &at in &places {
                    self.to[at..at + bytes].copy_from_slice(&self.from[at..at + bytes]);
                }
            }
            Way::Stream => {
                for &at in &places {
                    stream(&self.from[at..at + bytes], &mut self.to[at..at + bytes]);
                }
                fence();
            }
            Way::Cpu(list) | Way::Dma(list) => {
                for &at in &places {
                    let (from, to) = (&self.from[at..at + bytes], &mut self.to[at..at + bytes]);
                    // SAFETY: both arenas outlive the run below and are touched by nobody else
                    // until it returns.
                    let (from, to) = unsafe {
                        let len = bytes as u32;
                        (Seg::new(from.as_ptr(), len), SegMut::new(to.as_mut_ptr(), len))
                    };
                    list.plan(from, to);
                }
                list.run();
            }
        }
        if read {
            for &at in &places {
                let words = self.to[at..at + bytes].chunks_exact(8);
                self.sum += words.map(|w| u64::from(w[0])).sum::<u64>();
            }
        }
        start.elapsed().as_nanos() as f64 / count as f64
    }

    fn place(&self, stride: usize, n: usize) -> usize {
        let at = self.at + n * stride;
        at % (ARENA_BYTES / stride * stride) / stride * stride
    }

    /// Keeps the reads from being left out.
    pub fn sum(&self) -> u64 {
        self.sum
    }
}

/// Copies with stores past the cache where the destination is aligned, else as usual.
fn stream(from: &[u8], to: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if to.as_ptr().addr().is_multiple_of(16) && from.len() == to.len() {
        use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};
        let blocks = from.len() / 16;
        for block in 0..blocks {
            // SAFETY: `16 * blocks` bytes are inside both slices; the destination is aligned;
            // SSE2 is part of x86-64.
            unsafe {
                let value = _mm_loadu_si128(from.as_ptr().cast::<__m128i>().add(block));
                _mm_stream_si128(to.as_mut_ptr().cast::<__m128i>().add(block), value);
            }
        }
        to[blocks * 16..].copy_from_slice(&from[blocks * 16..]);
        return;
    }
    to.copy_from_slice(from);
}

/// Streamed stores become visible in order with what follows.
fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of x86-64.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_copies_the_same() {
        for bytes in [64, 100, 1500, 9000] {
            for way in [&mut Way::Memcpy, &mut Way::cpu(), &mut Way::Stream] {
                let mut arena = Arena::default();
                arena.burst(way, bytes, 16, true);
                let stride = bytes.next_multiple_of(64).max(2048);
                for n in 0..16 {
                    let at = n * stride;
                    assert_eq!(arena.to[at..at + bytes], arena.from[at..at + bytes], "{way:?}");
                    assert!(arena.to[at + bytes..at + stride].iter().all(|&b| b == 0));
                }
            }
        }
    }
}
