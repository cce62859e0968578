//! Who of this process changes the addresses of a Network at the moment.
//!
//! Writes are compared and swapped whatever happens; taking turns only saves the writers of one
//! process from racing each other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedMutexGuard;

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
