//! Buffers of one worker for frames that are read by system calls.
//!
//! A stack: the buffer used last is used next, so that a light load stays in one cache-warm
//! buffer and the rest of the memory is never touched.

use crate::copy::Seg;

/// A virtio-net header, an Ethernet header with VLAN tag, and the largest super-frame.
pub const BUFFER_BYTES: usize = 12 + 18 + 65_536;
/// More than a burst, because handed-over frames keep theirs.
const BUFFERS: usize = 192;

/// See the module.
#[derive(Debug)]
pub struct BufferPool {
    memory: Vec<Box<[u8]>>,
    free: Vec<u32>,
}

impl Default for BufferPool {
    fn default() -> Self {
        Self {
            // Zeroed boxes of this size come straight from fresh pages: touched on first use.
            memory: (0..BUFFERS).map(|_| vec![0; BUFFER_BYTES].into_boxed_slice()).collect(),
            free: (0..BUFFERS as u32).rev().collect(),
        }
    }
}

impl BufferPool {
    /// Takes a buffer: its number.
    #[inline]
    pub fn take(&mut self) -> Option<u32> {
        self.free.pop()
    }

    /// The memory of a taken buffer.
    #[inline]
    pub fn bytes(&mut self, number: u32) -> &mut [u8] {
        self.memory.get_mut(number as usize).map_or(&mut [], |buffer| &mut buffer[..])
    }

    /// `len` bytes from `from` on, as a segment that is valid until the buffer is put back.
    #[inline]
    pub fn seg(&self, number: u32, from: usize, len: usize) -> Seg {
        crate::copy::owned_seg(self.memory.get(number as usize).map_or(&[], |b| &b[..]), from, len)
    }

    /// Takes the memory of a taken buffer out, to fill several with one system call.
    /// [`BufferPool::return_lent`] brings it back to its place.
    #[inline]
    pub fn lend(&mut self, number: u32) -> Box<[u8]> {
        self.memory.get_mut(number as usize).map(std::mem::take).unwrap_or_default()
    }

    /// See [`BufferPool::lend`].
    #[inline]
    pub fn return_lent(&mut self, number: u32, memory: Box<[u8]>) {
        if let Some(place) = self.memory.get_mut(number as usize) {
            *place = memory;
        }
    }

    /// Gives a buffer back.
    #[inline]
    pub fn put(&mut self, number: u32) {
        self.free.push(number);
    }

    /// How many are taken.
    pub fn taken(&self) -> usize {
        BUFFERS - self.free.len()
    }
}
