//! Pods that start together share the writes of their claims: while one caller writes, the others
//! gather, and the next of them writes for all.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use multinet::ipam::{self, Claim, ClaimError, Request};
use multinet::store::StoreError;
use tokio::sync::oneshot;

use super::addresses::now_ms;
use crate::catalog::AnyStore;

/// Claims that wait, by Network.
#[derive(Debug, Default)]
pub struct ClaimQueue {
    waiting: Mutex<HashMap<String, Vec<Waiting>>>,
}

/// What becomes of one caller.
pub type Outcome = Result<Vec<Claim>, ClaimError>;

#[derive(Debug)]
struct Waiting {
    requests: Vec<Request>,
    reply: oneshot::Sender<Outcome>,
}

impl ClaimQueue {
    /// Claims an address for each request, all or none.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub async fn claim(&self, store: &AnyStore, network: &str, requests: Vec<Request>) -> Outcome {
        let (reply, mut answer) = oneshot::channel();
        self.lock().entry(network.to_owned()).or_default().push(Waiting { requests, reply });
        let turn = store.turn(network).await;
        // Somebody before us may have written for us.
        if let Ok(outcome) = answer.try_recv() {
            return outcome;
        }
        let group = self.lock().remove(network).unwrap_or_default();
        let requests: Vec<&[Request]> = group.iter().map(|w| w.requests.as_slice()).collect();
        let outcomes = claim_for_all(store, network, &requests).await;
        for (waiting, outcome) in group.into_iter().zip(outcomes) {
            // A caller that is gone finds its claims, or their remnant is freed.
            let _ = waiting.reply.send(outcome);
        }
        // The turn ends after the others have their answers, or they would take it for nothing.
        drop(turn);
        let cancelled = || StoreError::Unavailable("the call was cut off; try again".into());
        answer.await.unwrap_or_else(|_| Err(ClaimError::Store(cancelled())))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Vec<Waiting>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One write for all; if the store refuses it, each caller's own, so that one whose claim is not
/// allowed does not stand in the way of the others.
async fn claim_for_all(store: &AnyStore, network: &str, requests: &[&[Request]]) -> Vec<Outcome> {
    let outcomes = ipam::claim_groups(store, network, requests, now_ms()).await;
    let refused = |outcome: &Outcome| matches!(outcome, Err(ClaimError::Store(_)));
    if requests.len() < 2 || !outcomes.iter().any(refused) {
        return outcomes;
    }
    let mut each = Vec::with_capacity(requests.len());
    for (request, outcome) in requests.iter().zip(outcomes) {
        if refused(&outcome) {
            each.push(ipam::claim(store, network, request, now_ms()).await);
        } else {
            each.push(outcome);
        }
    }
    each
}
