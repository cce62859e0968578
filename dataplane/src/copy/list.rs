//! The copies of a burst, planned one by one and run together.

use super::cpu::Cpu;
use super::dma::{Channel, Disabled, Dma, DmaCounts, Thresholds};
use super::{Seg, SegMut};

/// One copy. The list that it is in vouches for its addresses.
#[derive(Debug, Clone, Copy)]
pub struct Op {
    pub(super) from: *const u8,
    pub(super) to: *mut u8,
    pub(super) len: u32,
}

impl Op {
    /// Where it reads.
    pub fn from(&self) -> *const u8 {
        self.from
    }

    /// Where it writes.
    pub fn to(&self) -> *mut u8 {
        self.to
    }

    /// How many bytes.
    #[allow(clippy::len_without_is_empty, reason = "a copy of nothing is never planned")]
    pub fn len(&self) -> u32 {
        self.len
    }
}

/// See the module.
#[derive(Debug)]
pub struct CopyList {
    ops: Vec<Op>,
    cpu: Cpu,
    dma: Option<Box<Dma>>,
}

// SAFETY: the list is empty whenever it changes threads (a worker owns it for life); its pointers
// are as sendable as the segments that they came from.
unsafe impl Send for CopyList {}

/// Ops before a list runs by itself.
const LIST_OPS: usize = 256;

impl Default for CopyList {
    fn default() -> Self {
        let ops = Vec::with_capacity(LIST_OPS);
        Self { ops, cpu: Cpu::default(), dma: None }
    }
}

impl CopyList {
    /// Gives the list a DMA channel of its own for bursts beyond the thresholds.
    pub fn attach(&mut self, channel: Box<dyn Channel>, thresholds: Thresholds) {
        self.dma = Some(Box::new(Dma::new(channel, thresholds)));
    }

    /// Plans to copy the front of `from` to the front of `to`: as much as both hold. Returns what
    /// remains of both.
    #[inline]
    pub fn plan(&mut self, from: Seg, to: SegMut) -> (Seg, SegMut) {
        let len = from.len.min(to.len);
        if len == 0 {
            return (from, to);
        }
        if self.ops.len() >= LIST_OPS {
            self.run_early();
        }
        self.ops.push(Op { from: from.ptr, to: to.ptr, len });
        // SAFETY: `len` is at most the length of either, so both stay inside or one past the end.
        unsafe {
            (
                Seg { ptr: from.ptr.add(len as usize), len: from.len - len },
                SegMut { ptr: to.ptr.add(len as usize), len: to.len - len },
            )
        }
    }

    /// Runs all planned copies. When it returns they are done, whoever did them.
    #[inline]
    pub fn run(&mut self) {
        if self.ops.is_empty() {
            return;
        }
        match &mut self.dma {
            // SAFETY: module invariant: the sources' claims and the sinks' reservations are held
            // until after this call.
            None => unsafe { self.cpu.run(&self.ops) },
            // SAFETY: as above; it returns when nothing is in flight any more.
            Some(dma) => unsafe { dma.run(&self.ops, &mut self.cpu) },
        }
        self.ops.clear();
    }

    /// When there is no more room.
    #[cold]
    #[inline(never)]
    fn run_early(&mut self) {
        self.run();
    }

    /// Copies and bytes since start, by the CPU.
    pub fn cpu_counts(&self) -> (u64, u64) {
        (self.cpu.copies, self.cpu.bytes)
    }

    /// What the DMA channel did since start, if there is one.
    pub fn dma_counts(&self) -> DmaCounts {
        self.dma.as_ref().map_or_else(DmaCounts::default, |dma| dma.counts())
    }

    /// Once, after the DMA channel was given up: why.
    pub fn take_disabled(&mut self) -> Option<Disabled> {
        self.dma.as_mut()?.take_disabled()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests_seg as seg;
    use super::*;

    #[test]
    fn a_body_of_several_segments_arrives_in_order() {
        let (a, b) = (vec![1u8; 300], vec![2u8; 700]);
        let mut to = vec![0u8; 1100];
        // SAFETY: `to` outlives the list's run below.
        let mut dst = unsafe { SegMut::new(to.as_mut_ptr(), 1100) };
        dst = dst.write(&[9; 100]);
        let mut list = CopyList::default();
        for part in [seg(&a), seg(&b)] {
            let (rest, next) = list.plan(part, dst);
            assert!(rest.is_empty());
            dst = next;
        }
        assert!(dst.is_empty());
        list.run();
        assert_eq!(list.cpu_counts(), (2, 1000));
        assert!(to[..100].iter().all(|&x| x == 9));
        assert!(to[100..400].iter().all(|&x| x == 1));
        assert!(to[400..].iter().all(|&x| x == 2));
    }
}
