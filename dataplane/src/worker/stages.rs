//! What the parts of a turn cost: the cycles of one burst in [`EVERY_BURSTS`].

use std::sync::atomic::{AtomicU64, Ordering};

use super::bump;
use crate::sys::cycles;

/// One burst in so many is measured, so that the reading of clocks does not show.
const EVERY_BURSTS: u32 = 256;
/// A burst that took longer than about a millisecond was interrupted by another thread.
const LONGEST_CYCLES: u64 = 1 << 22;

/// A part of a turn, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TurnStage {
    /// Frames claimed, heads copied.
    Claim,
    /// The path's verdicts.
    Decide,
    /// Room reserved, heads written, copies planned.
    Send,
    /// Bodies copied.
    Copy,
    /// Published to the sinks.
    Publish,
    /// Given back to the source.
    Release,
}

impl TurnStage {
    /// All of them.
    pub const ALL: [TurnStage; 6] = {
        use TurnStage::{Claim, Copy, Decide, Publish, Release, Send};
        [Claim, Decide, Send, Copy, Publish, Release]
    };

    /// The word in the API.
    pub const fn name(self) -> &'static str {
        match self {
            TurnStage::Claim => "claim",
            TurnStage::Decide => "decide",
            TurnStage::Send => "send",
            TurnStage::Copy => "copy",
            TurnStage::Publish => "publish",
            TurnStage::Release => "release",
        }
    }
}

/// Sums over the bursts that were measured; written by the worker alone.
#[derive(Debug, Default)]
pub struct StageSums {
    /// Packets of those bursts.
    pub packets: AtomicU64,
    /// Cycles, in the order of [`TurnStage::ALL`].
    pub cycles: [AtomicU64; TurnStage::ALL.len()],
}

impl StageSums {
    /// Packets and cycles now.
    pub fn read(&self) -> (u64, [u64; TurnStage::ALL.len()]) {
        let cycles = std::array::from_fn(|at| self.cycles[at].load(Ordering::Relaxed));
        (self.packets.load(Ordering::Relaxed), cycles)
    }
}

/// Measures one burst now and then.
#[derive(Debug, Default)]
pub(super) struct StageClock {
    /// Bursts until the next is measured.
    wait: u32,
    on: bool,
    last: u64,
    cycles: [u64; TurnStage::ALL.len()],
}

impl StageClock {
    /// A queue is about to be polled.
    #[inline]
    pub(super) fn start(&mut self) {
        self.on = self.wait == 0;
        if self.on {
            self.cycles = Default::default();
            self.last = cycles::now();
        }
    }

    /// This part is done.
    #[inline]
    pub(super) fn lap(&mut self, stage: TurnStage) {
        if self.on {
            let now = cycles::now();
            self.cycles[stage as usize] += now.wrapping_sub(self.last);
            self.last = now;
        }
    }

    /// The burst is done; an empty one does not count.
    #[inline]
    pub(super) fn stop(&mut self, packets: usize, sums: &StageSums) {
        if packets == 0 {
            return;
        }
        if !std::mem::take(&mut self.on) {
            self.wait -= 1;
            return;
        }
        self.wait = EVERY_BURSTS - 1;
        if self.cycles.iter().sum::<u64>() > LONGEST_CYCLES {
            return;
        }
        bump(&sums.packets, packets as u64);
        for (sum, cycles) in sums.cycles.iter().zip(self.cycles) {
            bump(sum, cycles);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_burst_in_many_is_measured() {
        let (mut clock, sums) = (StageClock::default(), StageSums::default());
        for burst in 0..2 * EVERY_BURSTS {
            clock.start();
            clock.lap(TurnStage::Claim);
            clock.lap(TurnStage::Decide);
            clock.stop(if burst == 7 { 0 } else { 10 }, &sums);
        }
        let (packets, cycles) = sums.read();
        assert_eq!(packets, 20);
        assert!(cycles[0] > 0 && cycles[1] > 0, "{cycles:?}");
        assert_eq!(cycles[2..], [0; 4]);
    }

    #[test]
    fn stages_are_in_order() {
        assert!(TurnStage::ALL.iter().enumerate().all(|(at, stage)| *stage as usize == at));
    }
}
