//! One connection's verdict about its peer, shared by all its queues and the SIGBUS handler; and what
//! its interface's memory has cost.

use crate::error::Violation;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

const FINE: u8 = 0;
const SIGBUS: u8 = 1;
const VIOLATION: u8 = 2;
const SLOW_SIGNALS: u8 = 3;

/// What bringing one peer's memory in may cost: this part of the time …
const SHARE: u32 = 20;
/// … and so much at once, before the next has to wait.
const CREDIT: Duration = Duration::from_millis(50);

/// Whether a peer may still be listened to. Reading it costs one plain load.
#[derive(Debug, Default)]
pub(crate) struct Health {
    poison: AtomicU8,
    /// What a queue found in its ring first.
    violation: OnceLock<Violation>,
}

impl Health {
    #[inline]
    pub(crate) fn poisoned(&self) -> bool {
        self.poison.load(Ordering::Relaxed) != FINE
    }

    /// What poisoned it.
    pub(crate) fn cause(&self) -> Option<Violation> {
        match self.poison.load(Ordering::Acquire) {
            SIGBUS => Some(Violation::Sigbus),
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
}

/// The time that went into bringing a peer's memory in, over all its connections: clones are one
/// account. A server keeps one for each interface ([`Offer::memory`](crate::Offer::memory)), or a peer
/// that comes again and again with memory that nobody has touched would have us zero pages all day.
#[derive(Debug, Clone, Default)]
pub struct MemoryAccount(Arc<Mutex<Debt>>);

impl PartialEq for MemoryAccount {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for MemoryAccount {}

/// Time owed at an instant; it is paid back with time.
#[derive(Debug, Default)]
struct Debt {
    owed: Duration,
    at: Option<Instant>,
}

impl Debt {
    fn pay(&mut self, now: Instant) {
        let last = self.at.replace(now).unwrap_or(now);
        self.owed = self.owed.saturating_sub(now.saturating_duration_since(last) / SHARE);
    }
}

impl MemoryAccount {
    fn debt(&self) -> MutexGuard<'_, Debt> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long the peer has to wait until its memory is brought in again, if it has to.
    pub(crate) fn wait(&self, now: Instant) -> Option<Duration> {
        let mut debt = self.debt();
        debt.pay(now);
        debt.owed.checked_sub(CREDIT).filter(|over| !over.is_zero()).map(|over| over * SHARE)
    }

    /// Bringing it in took so long.
    pub(crate) fn charge(&self, took: Duration, now: Instant) {
        let mut debt = self.debt();
        debt.pay(now);
        debt.owed = debt.owed.saturating_add(took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_first_cause_stays() {
        let health = Health::default();
        health.poison_sigbus();
        health.poison_violation(Violation::EndlessChain { slot: 1, slots: 2 });
        assert!(health.poisoned());
        assert_eq!(health.cause(), Some(Violation::Sigbus));
    }

    /// How much time goes into a peer's memory that takes so long, if it comes that often.
    fn spent(took: Duration, every: Duration, over: Duration) -> Duration {
        let account = MemoryAccount::default();
        let (start, mut spent) = (Instant::now(), Duration::ZERO);
        let mut now = start;
        while now < start + over {
            if account.wait(now).is_none() {
                account.charge(took, now);
                spent += took;
            }
            now += every;
        }
        spent
    }

    #[test]
    fn whoever_brings_fresh_memory_all_the_time_waits() {
        let minute = Duration::from_secs(60);
        for took in [4 * MS, 30 * MS, 300 * MS] {
            let most = minute / SHARE + CREDIT + took;
            let spent = spent(took, 10 * MS, minute);
            assert!((minute / SHARE..=most).contains(&spent), "{took:?} each: {spent:?}");
        }
    }

    #[test]
    fn an_honest_pod_that_restarts_does_not_wait() {
        assert_eq!(spent(5 * MS, 200 * MS, 100 * 200 * MS), 100 * 5 * MS);
        let account = MemoryAccount::default();
        let now = Instant::now();
        account.charge(70 * MS, now);
        assert_eq!(account.wait(now), Some(400 * MS), "with the time that is left");
        assert_eq!(account.wait(now + 400 * MS), None);
    }
}
