//! One connection's verdict about its peer, shared by all its queues and the SIGBUS handler.

use crate::error::Violation;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

const FINE: u8 = 0;
const SIGBUS: u8 = 1;
const VIOLATION: u8 = 2;
const SLOW_SIGNALS: u8 = 3;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_cause_stays() {
        let health = Health::default();
        health.poison_sigbus();
        health.poison_violation(Violation::EndlessChain { slot: 1, slots: 2 });
        assert!(health.poisoned());
        assert_eq!(health.cause(), Some(Violation::Sigbus));
    }
}
