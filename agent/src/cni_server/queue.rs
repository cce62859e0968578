//! Pods that come or go together share their writes: while one caller writes, the others gather, and the
//! next of them writes for all.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use multinet::ipam::{self, Claim, ClaimError, Holder, Request};
use multinet::store::StoreError;
use tokio::sync::oneshot;

use super::addresses::now_ms;
use crate::catalog::AnyStore;

/// Claims and releases that wait.
#[derive(Debug, Default)]
pub struct WriteQueue {
    claims: Gathering<Vec<Request>, Outcome>,
    releases: Gathering<Held, Result<(), StoreError>>,
}

/// What becomes of one caller's claims.
pub type Outcome = Result<Vec<Claim>, ClaimError>;

/// What a sandbox may hold.
#[derive(Debug, Clone)]
pub struct Held {
    /// The sandbox.
    pub sandbox_id: String,
    /// Its interfaces' names.
    pub interfaces: Vec<String>,
}

impl WriteQueue {
    /// Claims an address for each request, all or none.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub async fn claim(&self, store: &AnyStore, network: &str, requests: Vec<Request>) -> Outcome {
        let write = async |group: &[Vec<Request>]| claim_for_all(store, network, group).await;
        let outcome = self.claims.share(store, network, requests, write).await;
        outcome.unwrap_or_else(|| Err(ClaimError::Store(cut_off())))
    }

    /// Gives back what a sandbox holds for its interfaces.
    ///
    /// # Errors
    /// The store's.
    pub async fn release(
        &self,
        store: &AnyStore,
        network: &str,
        held: Held,
    ) -> Result<(), StoreError> {
        let write =
            async |group: &[Held]| vec![release_all(store, network, group).await; group.len()];
        let outcome = self.releases.share(store, network, held, write).await;
        outcome.unwrap_or_else(|| Err(cut_off()))
    }
}

fn cut_off() -> StoreError {
    StoreError::Unavailable("the call was cut off; try again".into())
}

/// Callers that wait for their turn, by Network: what each wants, and where it hears of it.
#[derive(Debug)]
struct Gathering<T, R> {
    waiting: Mutex<Waiting<T, R>>,
}

type Waiting<T, R> = HashMap<String, Vec<(T, oneshot::Sender<R>)>>;

impl<T, R> Default for Gathering<T, R> {
    fn default() -> Self {
        Self { waiting: Mutex::default() }
    }
}

impl<T, R> Gathering<T, R> {
    /// Has `write` done for this caller, by itself or by another; `None` when that one was cut off.
    async fn share(
        &self,
        store: &AnyStore,
        network: &str,
        wish: T,
        write: impl AsyncFnOnce(&[T]) -> Vec<R>,
    ) -> Option<R> {
        let (reply, mut answer) = oneshot::channel();
        self.lock().entry(network.to_owned()).or_default().push((wish, reply));
        let turn = store.turn(network).await;
        // Who comes at the same moment shall be in the first write already.
        tokio::task::yield_now().await;
        // Somebody before us may have written for us.
        if let Ok(outcome) = answer.try_recv() {
            return Some(outcome);
        }
        let group = self.lock().remove(network).unwrap_or_default();
        let (wishes, replies): (Vec<T>, Vec<_>) = group.into_iter().unzip();
        for (reply, outcome) in replies.into_iter().zip(write(&wishes).await) {
            // A caller that is gone finds its claims, or their remnant is freed.
            let _ = reply.send(outcome);
        }
        // The turn ends after the others have their answers, or they would take it for nothing.
        drop(turn);
        answer.await.ok()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting<T, R>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One write for all; if the store refuses it, each caller's own, so that one whose claim is not
/// allowed does not stand in the way of the others.
async fn claim_for_all(store: &AnyStore, network: &str, group: &[Vec<Request>]) -> Vec<Outcome> {
    let requests: Vec<&[Request]> = group.iter().map(Vec::as_slice).collect();
    let outcomes = ipam::claim_groups(store, network, &requests, now_ms()).await;
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

/// One write for all. It is the same for each: nothing that is released can be refused by itself.
async fn release_all(store: &AnyStore, network: &str, group: &[Held]) -> Result<(), StoreError> {
    ipam::modify(store, network, |view| {
        for Held { sandbox_id, interfaces } in group {
            for interface in interfaces {
                let holder = Holder { owner: None, sandbox_id, interface: Some(interface) };
                ipam::plan_release(view, holder, now_ms());
            }
        }
    })
    .await
}
