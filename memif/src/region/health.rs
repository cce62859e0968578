//! One connection's verdict about its peer, shared by all its queues and the SIGBUS handler.

use crate::error::Violation;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

const FINE: u8 = 0;
const SIGBUS: u8 = 1;
const VIOLATION: u8 = 2;
const FAULT_RATE: u8 = 3;

/// Whether a peer may still be listened to. Reading it costs one plain load.
#[derive(Debug, Default)]
pub(crate) struct Health {
    poison: AtomicU8,
    sigbus_count: AtomicU32,
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
            _ => None,
        }
    }

    /// Called by the signal handler: atomics only.
    pub(crate) fn poison_sigbus(&self) {
        self.sigbus_count.fetch_add(1, Ordering::Relaxed);
        self.poison_once(SIGBUS);
    }

    #[cold]
    pub(crate) fn poison_violation(&self) {
        self.poison_once(VIOLATION);
    }

    #[cold]
    pub(crate) fn poison_fault_rate(&self) {
        self.poison_once(FAULT_RATE);
    }

    /// The first cause stays.
    fn poison_once(&self, cause: u8) {
        let _ = self.poison.compare_exchange(FINE, cause, Ordering::AcqRel, Ordering::Relaxed);
    }
}
