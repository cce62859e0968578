//! Copies by a DMA device, synchronous per burst.
//!
//! A worker has a [`Channel`] of its own. When a burst holds enough long copies, they go to the
//! channel; the CPU does the short ones meanwhile; then the completions are collected. What the
//! device did not take, refused, or failed is copied again by the CPU (a copy may be repeated: its
//! source is still claimed and its destination not published) and counted as an error. A
//! channel that errs too often in a row is given up.
//!
//! # Invariant
//! [`Dma::run`] returns with nothing in flight. That is what lets queues be published, released,
//! and unmapped without knowing about engines. A device that does not finish in time is stopped;
//! if it can not be stopped it may still write anywhere in this process, and the process ends.

use std::time::{Duration, Instant};

use super::cpu::Cpu;
use super::list::Op;

/// How long a burst may take. A DSA copies it in microseconds.
const DEADLINE: Duration = Duration::from_millis(250);
/// Errors in a row after which a channel is given up.
const ERRORS_IN_A_ROW: u32 = 64;
/// Looks at the channel between two looks at the clock.
const LOOKS: u32 = 256;

/// A DMA device's queue, used by one worker alone.
///
/// # Safety
/// After [`Channel::completed`] has reported a copy (done or failed), and after
/// [`Channel::stop`] has returned true, the device does not touch that memory any more. Copies are
/// reported in the order in which they were enqueued, each once.
pub unsafe trait Channel: Send + std::fmt::Debug {
    /// The device's name.
    fn name(&self) -> &str;

    /// Puts copies into the ring until it is full; returns how many went in.
    ///
    /// # Safety
    /// The memory of each copy stays mapped until it is reported.
    unsafe fn enqueue(&mut self, ops: &[Op]) -> usize;

    /// Starts what was enqueued.
    fn submit(&mut self);

    /// What has finished since the last call, at most `max` copies. Never waits.
    fn completed(&mut self, max: usize) -> Completed;

    /// Gives up on what is in flight. True when the device certainly touches no memory any more.
    fn stop(&mut self) -> bool;
}

/// See [`Channel::completed`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Completed {
    /// So many copies were done.
    pub done: usize,
    /// The one after these failed.
    pub failed: bool,
}

/// Which bursts go to the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// Shorter copies are the CPU's.
    pub copy_bytes: u32,
    /// Fewer long copies than this are the CPU's too.
    pub burst_copies: usize,
    /// Fewer bytes of long copies than this are the CPU's too.
    pub burst_bytes: u64,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self { copy_bytes: 1024, burst_copies: 8, burst_bytes: 16 << 10 }
    }
}

/// What a channel did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DmaCounts {
    /// Copies done by the device.
    pub copies: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Copies that the CPU had to do instead.
    pub errors: u64,
}

/// A channel that was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disabled {
    /// The device.
    pub device: String,
    /// Why, as a sentence for a person.
    pub reason: String,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Dma {
    channel: Box<dyn Channel>,
    thresholds: Thresholds,
    deadline: Duration,
    /// The burst's long copies, in order.
    long: Vec<Op>,
    in_flight: usize,
    errors_in_a_row: u32,
    counts: DmaCounts,
    enabled: bool,
    disabled: Option<Disabled>,
}

// SAFETY: `long` is empty between runs, as `CopyList`'s ops are; the channel is Send.
unsafe impl Send for Dma {}

impl Dma {
    pub(super) fn new(channel: Box<dyn Channel>, thresholds: Thresholds) -> Self {
        Self {
            channel,
            thresholds,
            deadline: DEADLINE,
            long: Vec::with_capacity(256),
            in_flight: 0,
            errors_in_a_row: 0,
            counts: DmaCounts::default(),
            enabled: true,
            disabled: None,
        }
    }

    #[cfg(test)]
    pub(super) fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    pub(super) fn counts(&self) -> DmaCounts {
        self.counts
    }

    pub(super) fn take_disabled(&mut self) -> Option<Disabled> {
        self.disabled.take()
    }

    /// Runs a burst.
    ///
    /// # Safety
    /// Every op's source is readable and its destination writable until this returns.
    pub(super) unsafe fn run(&mut self, ops: &[Op], cpu: &mut Cpu) {
        if !self.enabled || !self.is_worth_it(ops) {
            // SAFETY: by the caller.
            unsafe { cpu.run(ops) };
            return;
        }
        // SAFETY: by the caller: mapped until `collect` below has seen all of them reported.
        let taken = unsafe { self.channel.enqueue(&self.long) }.min(self.long.len());
        self.in_flight = taken;
        if taken > 0 {
            self.channel.submit();
        }
        for op in ops.iter().filter(|op| op.len < self.thresholds.copy_bytes) {
            // SAFETY: by the caller.
            unsafe { cpu.one(op) };
        }
        for at in taken..self.long.len() {
            // SAFETY: by the caller.
            unsafe { self.copy_instead(at, cpu, "its ring is full") };
        }
        // SAFETY: by the caller.
        unsafe { self.collect(taken, cpu) };
        assert_eq!(self.in_flight, 0, "a burst ends with DMA in flight");
        self.long.clear();
    }

    /// Picks the long copies and weighs them.
    fn is_worth_it(&mut self, ops: &[Op]) -> bool {
        let least = self.thresholds.copy_bytes;
        self.long.clear();
        self.long.extend(ops.iter().filter(|op| op.len >= least));
        let bytes: u64 = self.long.iter().map(|op| u64::from(op.len)).sum();
        self.long.len() >= self.thresholds.burst_copies && bytes >= self.thresholds.burst_bytes
    }

    /// Waits until the first `taken` long copies are reported.
    ///
    /// # Safety
    /// As for [`Dma::run`].
    unsafe fn collect(&mut self, taken: usize, cpu: &mut Cpu) {
        let (mut at, mut looks, mut since) = (0, 0u32, None);
        while at < taken {
            let completed = self.channel.completed(taken - at);
            let done = completed.done.min(taken - at);
            for op in &self.long[at..at + done] {
                self.counts.copies += 1;
                self.counts.bytes += u64::from(op.len);
            }
            at += done;
            self.in_flight -= done;
            if done > 0 {
                self.errors_in_a_row = 0;
            }
            if completed.failed && at < taken {
                self.in_flight -= 1;
                // SAFETY: by the caller; the device has reported this copy.
                unsafe { self.copy_instead(at, cpu, "copies fail") };
                at += 1;
            } else if done == 0 {
                std::hint::spin_loop();
                looks += 1;
                if looks.is_multiple_of(LOOKS)
                    && since.get_or_insert_with(Instant::now).elapsed() > self.deadline
                {
                    // SAFETY: by the caller.
                    unsafe { self.give_up(at, taken, cpu) };
                    return;
                }
            }
        }
    }

    /// The CPU does what the device should have done.
    ///
    /// # Safety
    /// As for [`Dma::run`]; the device does not have the copy (any more).
    #[cold]
    unsafe fn copy_instead(&mut self, at: usize, cpu: &mut Cpu, why: &str) {
        // SAFETY: by the caller.
        unsafe { cpu.one(&self.long[at]) };
        self.counts.errors += 1;
        self.errors_in_a_row += 1;
        if self.errors_in_a_row >= ERRORS_IN_A_ROW {
            let reason =
                format!("{why}: {ERRORS_IN_A_ROW} in a row were copied by the CPU instead");
            self.disable(reason);
        }
    }

    /// The copies from `at` on did not finish in time.
    ///
    /// # Safety
    /// As for [`Dma::run`].
    #[cold]
    unsafe fn give_up(&mut self, at: usize, taken: usize, cpu: &mut Cpu) {
        let (name, left) = (self.channel.name().to_owned(), taken - at);
        let waited_ms = self.deadline.as_millis();
        if !self.channel.stop() {
            tracing::error!(
                "DMA device {name} has not finished {left} copies within {waited_ms} ms and can \
                 not be stopped: it may still write to this process's memory, which therefore \
                 ends. Start it with --copy-engine cpu until the device is repaired."
            );
            std::process::abort();
        }
        self.in_flight = 0;
        self.disable(format!("{left} copies did not finish within {waited_ms} ms"));
        for at in at..taken {
            // SAFETY: by the caller; the device was stopped.
            unsafe { self.copy_instead(at, cpu, "") };
        }
    }

    fn disable(&mut self, reason: String) {
        if std::mem::take(&mut self.enabled) {
            self.disabled = Some(Disabled { device: self.channel.name().to_owned(), reason });
        }
    }
}

impl Drop for Dma {
    fn drop(&mut self) {
        assert_eq!(self.in_flight, 0, "a channel is dropped with DMA in flight");
    }
}
