//! One connection's verdict about its peer, shared by all its queues and the SIGBUS handler.

use crate::error::Violation;
use nix::sys::resource::{UsageWho, getrusage};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;

const FINE: u8 = 0;
const SIGBUS: u8 = 1;
const VIOLATION: u8 = 2;
const FAULT_RATE: u8 = 3;
const SLOW_SIGNALS: u8 = 4;

/// Page faults per second that a peer's memory may cost us once every page was touched.
pub const FAULTS_PER_S: u64 = 2000;

/// Whether a peer may still be listened to. Reading it costs one plain load.
#[derive(Debug, Default)]
pub(crate) struct Health {
    poison: AtomicU8,
    /// Faults that the peer may still cause; touched only when faults were seen.
    budget: Mutex<FaultBudget>,
}

#[derive(Debug, Default)]
struct FaultBudget {
    left: u64,
    most: u64,
    refilled: Option<Instant>,
}

impl Health {
    #[inline]
    pub(crate) fn poisoned(&self) -> bool {
        self.poison.load(Ordering::Relaxed) != FINE
    }

    /// What poisoned it, as far as it is known here; a violation in a ring is reported by its finder.
    pub(crate) fn cause(&self) -> Option<Violation> {
        match self.poison.load(Ordering::Acquire) {
            SIGBUS => Some(Violation::Sigbus),
            FAULT_RATE => Some(Violation::FaultRate),
            SLOW_SIGNALS => Some(Violation::SlowSignals),
            _ => None,
        }
    }

    /// Called by the signal handler: atomics only.
    pub(crate) fn poison_sigbus(&self) {
        self.poison_once(SIGBUS);
    }

    #[cold]
    pub(crate) fn poison_violation(&self) {
        self.poison_once(VIOLATION);
    }

    #[cold]
    pub(crate) fn poison_slow_signals(&self) {
        self.poison_once(SLOW_SIGNALS);
    }

    /// The first cause stays.
    fn poison_once(&self, cause: u8) {
        let _ = self.poison.compare_exchange(FINE, cause, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// An honest peer costs one fault per page, and again where the kernel took pages back.
    pub(crate) fn allow_faults(&self, pages: usize) {
        let mut budget = self.budget.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        budget.most = pages as u64 + FAULTS_PER_S;
        budget.left = budget.most;
    }

    #[cold]
    pub(crate) fn charge_faults(&self, faults: u64, now: Instant) {
        let mut budget = self.budget.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let since = budget.refilled.replace(now).map_or(0, |t| {
            u64::try_from(now.saturating_duration_since(t).as_micros()).unwrap_or(u64::MAX)
        });
        let earned = since.saturating_mul(FAULTS_PER_S) / 1_000_000;
        budget.left = budget.left.saturating_add(earned).min(budget.most);
        match budget.left.checked_sub(faults) {
            Some(left) => budget.left = left,
            None => self.poison_once(FAULT_RATE),
        }
    }
}

/// Counts this thread's page faults, one system call per look.
///
/// A peer that punches holes into its memory again and again makes every touch of ours zero a
/// fresh page. A worker looks every millisecond or so; when many faults came together, it looks
/// around each port's poll for a while and charges that port's queue
/// ([`RxQueue::charge_faults`](crate::RxQueue::charge_faults)), which poisons the connection when
/// its budget is used up: one fault per mapped page, and [`FAULTS_PER_S`] from then on.
#[derive(Debug)]
pub struct FaultMeter {
    seen: u64,
}

impl Default for FaultMeter {
    fn default() -> Self {
        Self::new()
    }
}

impl FaultMeter {
    /// Starts at the calling thread's present count. Use it on that thread only.
    #[must_use]
    pub fn new() -> Self {
        Self { seen: faults_of_this_thread() }
    }

    /// Faults since the last look.
    pub fn since_last(&mut self) -> u64 {
        let now = faults_of_this_thread();
        now - std::mem::replace(&mut self.seen, now)
    }
}

fn faults_of_this_thread() -> u64 {
    let usage = getrusage(UsageWho::RUSAGE_THREAD);
    usage.map_or(0, |u| {
        u.minor_page_faults().cast_unsigned() + u.major_page_faults().cast_unsigned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_first_cause_stays() {
        let health = Health::default();
        health.poison_sigbus();
        health.poison_violation();
        assert!(health.poisoned());
        assert_eq!(health.cause(), Some(Violation::Sigbus));
    }

    #[test]
    fn a_page_each_is_free_and_a_rate_is_not() {
        let health = Health::default();
        let start = Instant::now();
        health.allow_faults(1000);
        health.charge_faults(1000 + FAULTS_PER_S, start);
        assert!(!health.poisoned());
        health.charge_faults(FAULTS_PER_S / 2, start + Duration::from_millis(500));
        assert!(!health.poisoned(), "half a second earns half a second's worth");
        health.charge_faults(FAULTS_PER_S / 100, start + Duration::from_millis(505));
        assert_eq!(health.cause(), Some(Violation::FaultRate));
    }

    #[test]
    fn the_meter_counts_first_touches() {
        let mut meter = FaultMeter::new();
        let before = meter.since_last();
        let memory = vec![1u8; 64 << 12];
        assert!(meter.since_last() >= 16, "{before} then too few for {} pages", memory.len() >> 12);
    }
}
