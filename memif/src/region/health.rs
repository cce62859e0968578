//! One connection's verdict about its peer, shared by all its queues and the SIGBUS handler.

use crate::error::Violation;
use nix::sys::resource::{UsageWho, getrusage};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

const FINE: u8 = 0;
const SIGBUS: u8 = 1;
const VIOLATION: u8 = 2;
const FAULT_RATE: u8 = 3;
const SLOW_SIGNALS: u8 = 4;

/// Page faults per second that a peer's memory may cost us once every page was touched.
pub const FAULTS_PER_S: u64 = 2000;

/// Zeroing so much takes about as long as the fault itself.
const WEIGHTLESS_BYTES: usize = 16 << 10;

/// Smaller pages beside larger ones that may count as large: whose page a fault was in is not known,
/// and rings often lie in small pages, buffers in huge ones.
pub(super) const MIXED_PAGES: usize = 512;

/// What a fault counts where every page was there when the connection began: an honest peer causes
/// none, and each may have zeroed a huge page.
const AGAIN_WEIGHT: u64 = 500;

/// Populating for so long counts as much as a fault.
const POPULATE_US: u128 = 25;

/// So many connections in a row may bring memory that nobody has touched yet …
const FRESH_CONNECTIONS: f64 = 3.0;
/// … and another one after so long: else whoever reconnects all the time never pays.
const FRESH_AGAIN: Duration = Duration::from_secs(10);

/// Whether a peer may still be listened to. Reading it costs one plain load.
#[derive(Debug, Default)]
pub(crate) struct Health {
    poison: AtomicU8,
    /// What a queue found in its ring first.
    violation: OnceLock<Violation>,
    /// Faults that the peer may still cause; touched only when faults were seen.
    faults: FaultAccount,
}

/// What a peer's memory may cost in page faults, over all its connections: clones are one account.
/// A server keeps one for each interface ([`Offer::faults`](crate::Offer::faults)).
#[derive(Debug, Clone, Default)]
pub struct FaultAccount(Arc<Mutex<FaultBudget>>);

impl PartialEq for FaultAccount {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for FaultAccount {}

impl FaultAccount {
    fn budget(&self) -> MutexGuard<'_, FaultBudget> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct FaultBudget {
    /// What a fault counts.
    weight: u64,
    left: u64,
    most: u64,
    /// Connections that may still touch each of their pages once; a part of one for a part of them.
    fresh: f64,
    refilled: Option<Instant>,
}

impl Default for FaultBudget {
    fn default() -> Self {
        let left = FAULTS_PER_S;
        Self { weight: 1, left, most: left, fresh: FRESH_CONNECTIONS, refilled: None }
    }
}

impl FaultBudget {
    fn earn(&mut self, now: Instant) {
        let last = self.refilled.replace(now).unwrap_or(now);
        let seconds = now.saturating_duration_since(last).as_secs_f64();
        let earned = (seconds * FAULTS_PER_S as f64) as u64;
        self.left = self.left.saturating_add(earned).min(self.most);
        self.fresh = (self.fresh + seconds / FRESH_AGAIN.as_secs_f64()).min(FRESH_CONNECTIONS);
    }
}

impl Health {
    /// Of a peer that has an account already.
    pub(crate) fn of(faults: FaultAccount) -> Self {
        Self { faults, ..Self::default() }
    }

    #[inline]
    pub(crate) fn poisoned(&self) -> bool {
        self.poison.load(Ordering::Relaxed) != FINE
    }

    /// What poisoned it.
    pub(crate) fn cause(&self) -> Option<Violation> {
        match self.poison.load(Ordering::Acquire) {
            SIGBUS => Some(Violation::Sigbus),
            FAULT_RATE => Some(Violation::FaultRate),
            SLOW_SIGNALS => Some(Violation::SlowSignals),
            VIOLATION => self.violation.get().copied(),
            _ => None,
        }
    }

    /// Called by the signal handler: atomics only.
    pub(crate) fn poison_sigbus(&self) {
        self.poison_once(SIGBUS);
    }

    #[cold]
    pub(crate) fn poison_violation(&self, violation: Violation) {
        self.violation.get_or_init(|| violation);
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

    /// A connection begins with so many pages of such a size in each region. An honest peer costs one
    /// fault for each, and again where the kernel took pages back. The larger the page, the longer it
    /// takes to zero it.
    pub(crate) fn allow_faults(&self, regions: &[(usize, usize)], now: Instant) {
        let mut budget = self.faults.budget();
        budget.earn(now);
        let weight = |page_bytes: usize| (page_bytes / WEIGHTLESS_BYTES).max(1) as u64;
        let heaviest = regions.iter().map(|&(_, bytes)| weight(bytes)).max().unwrap_or(1);
        budget.weight = heaviest;
        let cost = |&(pages, bytes): &(usize, usize)| match pages as u64 {
            pages if weight(bytes) == heaviest => pages * heaviest,
            pages => pages + pages.min(MIXED_PAGES as u64) * heaviest,
        };
        let all: u64 = regions.iter().map(cost).sum();
        let share = budget.fresh.min(1.0);
        budget.fresh -= share;
        budget.most = all + FAULTS_PER_S;
        budget.left = (budget.left + (all as f64 * share) as u64).min(budget.most);
    }

    /// All pages are there now, which took so long: none is left to be touched first.
    pub(crate) fn populated(&self, took: Duration) {
        let mut budget = self.faults.budget();
        let cost = u64::try_from(took.as_micros() / POPULATE_US).unwrap_or(u64::MAX);
        let Some(left) = budget.left.checked_sub(cost) else {
            return self.poison_once(FAULT_RATE);
        };
        budget.weight = AGAIN_WEIGHT;
        budget.most = FAULTS_PER_S;
        budget.left = left.min(FAULTS_PER_S);
    }

    #[cold]
    pub(crate) fn charge_faults(&self, faults: Faults, now: Instant) {
        let mut budget = self.faults.budget();
        budget.earn(now);
        let cost = faults.pages * budget.weight + faults.sleeps * SLEEP_FAULTS;
        match budget.left.checked_sub(cost) {
            Some(left) => budget.left = left,
            None => self.poison_once(FAULT_RATE),
        }
    }
}

/// What one sleep within faults counts: the kernel lets whoever touches a page wait while its owner
/// punches a hole around it, however slowly that goes.
const SLEEP_FAULTS: u64 = 400;

/// Page faults of a thread, and how often it slept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// Pages that were not there.
    pub pages: u64,
    /// Times that the thread gave its core up of its own accord: within a stretch of code that makes
    /// no system call, only a fault can do that.
    pub sleeps: u64,
}

impl Faults {
    /// Nothing happened.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.pages == 0
    }
}

/// Counts this thread's page faults, one system call per look.
///
/// A peer that punches holes into its memory again and again makes every touch of ours zero a
/// fresh page. A worker looks every millisecond or so; when there were any faults, it looks
/// around each port's poll for a while and charges that port's queue
/// ([`RxQueue::charge_faults`](crate::RxQueue::charge_faults)), which poisons the connection when
/// its account ([`FaultAccount`]) is used up: one fault per mapped page, and [`FAULTS_PER_S`] from
/// then on.
#[derive(Debug)]
pub struct FaultMeter {
    seen: Faults,
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
    pub fn since_last(&mut self) -> Faults {
        let now = faults_of_this_thread();
        let before = std::mem::replace(&mut self.seen, now);
        Faults { pages: now.pages - before.pages, sleeps: now.sleeps - before.sleeps }
    }
}

fn faults_of_this_thread() -> Faults {
    let usage = getrusage(UsageWho::RUSAGE_THREAD);
    usage.map_or(Faults::default(), |u| Faults {
        pages: (u.minor_page_faults() + u.major_page_faults()).cast_unsigned(),
        sleeps: u.voluntary_context_switches().cast_unsigned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(pages: u64) -> Faults {
        Faults { pages, sleeps: 0 }
    }

    #[test]
    fn the_first_cause_stays() {
        let health = Health::default();
        health.poison_sigbus();
        health.poison_violation(Violation::EndlessChain { slot: 1, slots: 2 });
        assert!(health.poisoned());
        assert_eq!(health.cause(), Some(Violation::Sigbus));
    }

    #[test]
    fn a_page_each_is_free_and_a_rate_is_not() {
        let health = Health::default();
        let start = Instant::now();
        health.allow_faults(&[(1000, 4096)], start);
        health.charge_faults(pages(1000 + FAULTS_PER_S), start);
        assert!(!health.poisoned());
        health.charge_faults(pages(FAULTS_PER_S / 2), start + Duration::from_millis(500));
        assert!(!health.poisoned(), "half a second earns half a second's worth");
        health.charge_faults(pages(FAULTS_PER_S / 100), start + Duration::from_millis(505));
        assert_eq!(health.cause(), Some(Violation::FaultRate));
    }

    #[test]
    fn a_huge_page_counts_as_many() {
        let health = Health::default();
        let start = Instant::now();
        health.allow_faults(&[(1, 2 << 20)], start);
        health.charge_faults(pages(1 + FAULTS_PER_S / 128), start);
        assert!(!health.poisoned());
        health.charge_faults(pages(1), start);
        assert_eq!(health.cause(), Some(Violation::FaultRate));
    }

    #[test]
    fn small_pages_buy_no_faults_in_huge_ones() {
        let health = Health::default();
        let start = Instant::now();
        health.allow_faults(&[(100_000, 4096), (16, 2 << 20)], start);
        health.charge_faults(pages(512 + 16 + (FAULTS_PER_S + 100_000) / 128), start);
        assert!(!health.poisoned());
        health.charge_faults(pages(1), start);
        assert_eq!(health.cause(), Some(Violation::FaultRate));
    }

    #[test]
    fn what_was_populated_is_not_touched_first() {
        let health = Health::default();
        let start = Instant::now();
        health.allow_faults(&[(3, 4096), (64, 2 << 20)], start);
        health.populated(Duration::from_millis(10));
        health.charge_faults(pages(FAULTS_PER_S / AGAIN_WEIGHT), start);
        assert!(!health.poisoned());
        health.charge_faults(pages(1), start);
        assert_eq!(health.cause(), Some(Violation::FaultRate));
    }

    #[test]
    fn whoever_has_us_populate_all_the_time_pays() {
        let account = FaultAccount::default();
        let mut now = Instant::now();
        let connections = (0..100).take_while(|_| {
            now += Duration::from_millis(100);
            let health = Health::of(account.clone());
            health.allow_faults(&[(64, 2 << 20)], now);
            health.populated(Duration::from_millis(30));
            !health.poisoned()
        });
        assert!((3..=8).contains(&connections.count()));
    }

    #[test]
    fn a_few_sleeps_are_enough() {
        let health = Health::default();
        let start = Instant::now();
        health.allow_faults(&[(100, 4096)], start);
        for _ in 0..5 {
            health.charge_faults(Faults { pages: 1, sleeps: 1 }, start);
            assert!(!health.poisoned());
        }
        health.charge_faults(Faults { pages: 1, sleeps: 1 }, start);
        assert_eq!(health.cause(), Some(Violation::FaultRate));
    }

    /// Connections of one peer, each with 1,000 pages that nobody has touched.
    fn reconnects_until_poisoned(between: Duration, most: usize) -> usize {
        let account = FaultAccount::default();
        let mut now = Instant::now();
        (0..most)
            .take_while(|_| {
                now += between;
                let health = Health::of(account.clone());
                health.allow_faults(&[(1000, 4096)], now);
                health.charge_faults(pages(1000), now);
                !health.poisoned()
            })
            .count()
    }

    #[test]
    fn a_new_connection_is_no_new_account() {
        let often = reconnects_until_poisoned(Duration::from_millis(10), 1000);
        assert!((4..=6).contains(&often), "{often} connections with fresh memory");
        let seldom = reconnects_until_poisoned(Duration::from_secs(1), 1000);
        assert_eq!(seldom, 1000, "1,000 faults a second are everybody's right");
    }

    #[test]
    fn the_meter_counts_first_touches() {
        let mut meter = FaultMeter::new();
        let before = meter.since_last();
        let memory = vec![1u8; 64 << 12];
        assert!(
            meter.since_last().pages >= 16,
            "{before:?} then too few for {} pages",
            memory.len() >> 12
        );
    }
}
