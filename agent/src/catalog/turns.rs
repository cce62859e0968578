//! Who of this process changes the addresses of a Network at the moment, and how writers of several
//! processes get out of each other's way.
//!
//! Writes are compared and swapped whatever happens; taking turns only saves the writers of one
//! process from racing each other.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;

/// After each lost race in a row, the wait for the next try grows by this …
const PAUSE: Duration = Duration::from_millis(5);
/// … so many times.
const MAX_PAUSES: u32 = 10;

/// How long to wait after so many races lost in a row. Agents that race for one block would otherwise
/// all read it again at once, and all but one of them for nothing.
pub(super) fn pause_after(lost: u32) -> Duration {
    let longest = PAUSE.saturating_mul(lost.min(MAX_PAUSES));
    // Each hasher has keys of its own.
    let random = RandomState::new().hash_one(lost);
    longest.mul_f64((random >> 32) as f64 / f64::from(u32::MAX))
}

/// One turn for each Network.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    by_network: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Turns {
    /// Waits for one's turn.
    pub(crate) async fn take(&self, network: &str) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.by_network.lock().unwrap_or_else(PoisonError::into_inner);
            turns.entry(network.to_owned()).or_default().clone()
        };
        turn.lock_owned().await
    }
}
