//! What every store must do, as a test that any store can be put through. Compiled with the feature
//! `conformance` only.
//!
//! | file | holds |
//! |---|---|
//! | `mod` | compare-and-swap as such; a few agents at once |
//! | `life` | every call of a few pods' lives going wrong, in every way |
//! | `crowd` | a hundred agents, as many pods as addresses |
//! | `watched` | a store whose writes the judge is told, and which goes wrong |
//!
//! The judge is a crate of its own, `deploy/e2e/judge`, which uses nothing of this one.

mod crowd;
mod life;
mod watched;

use std::collections::BTreeSet;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;

use crate::ipam::{Candidate, Claim, Holder, Request, claim, modify, plan_confirm, plan_release};
use crate::range::{AddressSet, Family};
use crate::rules::{Binding, ReuseDelay, Strategy, validate_block};
use crate::store::{Store, StoreError};
use crate::types::block::{AddressBlock, EntryState, NETWORK_LABEL, Owner};
use crate::types::meta::LabelSelector;

pub use crowd::{Crowd, crowd};

/// Runs one future to its end, as the store's users do.
pub type BlockOn<'a> = &'a (dyn Fn(Pin<Box<dyn Future<Output = ()> + Send + '_>>) + Sync);

/// Every version of the AddressBlocks since the last call, as the store's own history has them.
pub type History<'a> = &'a (dyn Fn() -> Vec<judge::Version> + Sync);

/// A store under test.
#[expect(missing_debug_implementations, reason = "it holds closures")]
pub struct Ground<'a, S> {
    /// Gives another handle to the same, initially empty store.
    pub open: &'a (dyn Fn() -> S + Sync),
    /// Called from several threads.
    pub block_on: BlockOn<'a>,
    /// Where the store keeps one.
    pub history: Option<History<'a>>,
    /// In each life one call goes wrong: every n-th, where this is 1; else only every so many-th, where
    /// lives take their time.
    pub step: usize,
}

impl<S> Clone for Ground<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for Ground<'_, S> {}

/// Network of the objects that the suite makes.
const NETWORK: &str = "conformance";

/// Puts a store through the suite.
///
/// # Panics
/// With what the store does wrong.
pub fn check<S: Store>(ground: Ground<'_, S>) {
    compare_and_swap(&ground.open, ground.block_on);
    concurrent_claims(&ground.open, ground.block_on);
    life::lost_calls(ground);
}

/// A pool of one range.
fn candidate(family: Family, range: &str) -> Candidate {
    Candidate {
        pool: "pool".into(),
        addresses: AddressSet::parse(family, &[range.to_string()]).expect("a range"),
        strategy: Strategy::Lowest,
        reuse_delay: ReuseDelay::default(),
        binding: Binding::Auto,
    }
}

fn block(start: [u8; 4]) -> AddressBlock {
    AddressBlock::around(NETWORK, IpAddr::from(start))
}

async fn all<S: Store>(store: &S) -> Vec<AddressBlock> {
    store.list(&LabelSelector::label(NETWORK_LABEL, NETWORK)).await.expect("list")
}

fn compare_and_swap<S: Store>(open: &(impl Fn() -> S + Sync), block_on: BlockOn<'_>) {
    block_on(Box::pin(async {
        let (one, two) = (open(), open());
        let fresh = block([10, 0, 0, 0]);
        let name = fresh.name().to_string();
        let get = |store| get_block(store, &name);
        assert_eq!(get(&one).await, None, "the store is not empty");
        let kind = "AddressBlock";
        let conflict = StoreError::Conflict { kind, name: name.clone() };
        let not_found = StoreError::NotFound { kind, name: name.clone() };

        let first = one.create(&fresh).await.expect("create");
        assert!(first.metadata.resource_version.is_some(), "create gives a version");
        assert_eq!(get(&two).await.as_ref(), Some(&first), "another handle sees what was created");
        let exists = Err(StoreError::Exists { kind, name: name.clone() });
        assert_eq!(two.create(&fresh).await, exists);

        let mut changed = first.clone();
        changed.spec.node = Some("n1".into());
        let second = two.update(&changed).await.expect("update");
        assert_ne!(second.metadata.resource_version, first.metadata.resource_version);
        assert_eq!(get(&one).await.as_ref(), Some(&second));
        changed.spec.node = Some("n2".into());
        assert_eq!(one.update(&changed).await, Err(conflict.clone()), "an old version");
        let mut blind = second.clone();
        blind.metadata.resource_version = None;
        assert_eq!(one.update(&blind).await, Err(conflict.clone()), "no version");
        assert_eq!(get(&two).await.as_ref(), Some(&second), "a refused write changes nothing");

        assert_eq!(all(&one).await.as_slice(), std::slice::from_ref(&second));
        let other = LabelSelector::label(NETWORK_LABEL, "another");
        assert_eq!(one.list::<AddressBlock>(&other).await, Ok(Vec::new()));

        assert_eq!(one.delete(&first).await, Err(conflict), "an old version");
        assert_eq!(two.delete(&second).await, Ok(()));
        assert_eq!(one.delete(&second).await, Err(not_found.clone()));
        assert_eq!(one.update(&second).await, Err(not_found));
        assert_eq!(get(&one).await, None);
        let again = two.create(&fresh).await.expect("create after delete");
        assert_eq!(one.delete(&again).await, Ok(()));
    }));
}

async fn get_block<S: Store>(store: &S, name: &str) -> Option<AddressBlock> {
    store.get(None, name).await.expect("get")
}

const THREADS: usize = 8;
const PODS: usize = 12;

/// As many pods as addresses, from several threads with a handle each: all are served, none twice.
/// Half of them go, at once, and as many come again under another name.
fn concurrent_claims<S: Store>(open: &(impl Fn() -> S + Sync), block_on: BlockOn<'_>) {
    for (round, keep) in [(0, PODS / 2), (1, 0)] {
        let mut given: BTreeSet<IpAddr> = BTreeSet::new();
        for address in in_threads(|thread| claim_all(open, block_on, thread, round)) {
            assert!(given.insert(address), "{address} is given twice");
        }
        assert_eq!(given.len(), THREADS * PODS);
        let released = in_threads(|thread| release_all(open, block_on, thread, round, keep));
        assert_eq!(released.len(), THREADS * (PODS - keep));
        let (held, problems) = held(&open(), block_on);
        assert_eq!(problems, Vec::<String>::new());
        given.retain(|address| !released.contains(address));
        assert_eq!(held, given, "what was released is free, and nothing else");
    }
}

fn in_threads(work: impl Fn(usize) -> Vec<IpAddr> + Sync) -> Vec<IpAddr> {
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|n| scope.spawn(move || work(n))).collect();
        threads.into_iter().flat_map(|t| t.join().expect("a thread failed")).collect()
    })
}

/// The addresses that a thread's pods are given. In the second round half of them have theirs.
fn claim_all<S: Store>(
    open: &(impl Fn() -> S + Sync),
    block_on: BlockOn<'_>,
    thread: usize,
    round: usize,
) -> Vec<IpAddr> {
    let mut given = Vec::with_capacity(PODS);
    block_on(Box::pin(async {
        let store = open();
        for pod in 0..PODS {
            let request = request(thread, pod, round);
            let claims = claim(&store, NETWORK, std::slice::from_ref(&request), 1).await;
            let claims: Vec<Claim> = claims.unwrap_or_else(|e| panic!("{e}"));
            let old = round == 1 && pod < PODS / 2;
            assert_eq!(claims[0].fresh, !old, "the same key has its address already");
            given.push(claims[0].address);
        }
    }));
    given
}

fn release_all<S: Store>(
    open: &(impl Fn() -> S + Sync),
    block_on: BlockOn<'_>,
    thread: usize,
    round: usize,
    keep: usize,
) -> Vec<IpAddr> {
    let mut released = Vec::with_capacity(PODS);
    block_on(Box::pin(async {
        let store = open();
        for pod in keep..PODS {
            let Request { owner, sandbox_id, .. } = request(thread, pod, round);
            let holder = Holder { owner: Some(&owner), sandbox_id: &sandbox_id, interface: None };
            let done = modify(&store, NETWORK, |view| {
                plan_confirm(view, holder, 2);
                plan_release(view, holder, 2)
            });
            released.extend(done.await.expect("release"));
        }
    }));
    released
}

fn request(thread: usize, pod: usize, round: usize) -> Request {
    let born = if pod < PODS / 2 { 0 } else { round };
    let candidate = candidate(Family::V4, &format!("10.0.0.10-10.0.0.{}", 9 + THREADS * PODS));
    let name = format!("pod-{thread}-{pod}-{born}");
    Request {
        owner: Owner::Pod { namespace: "ns".into(), uid: format!("uid-{name}"), name },
        interface: "eth0".into(),
        family: Family::V4,
        sandbox_id: format!("sandbox-{thread}-{pod}-{born}"),
        node: format!("n{thread}"),
        candidates: vec![candidate],
        exact: None,
        sticky: false,
        moves: false,
        cluster_nodes: 8,
    }
}

/// Addresses held, and what is wrong with the stored blocks.
fn held<S: Store>(store: &S, block_on: BlockOn<'_>) -> (BTreeSet<IpAddr>, Vec<String>) {
    let mut held = BTreeSet::new();
    let mut problems = Vec::new();
    block_on(Box::pin(async {
        for block in all(store).await {
            problems.extend(validate_block(&block).iter().map(ToString::to_string));
            let entries = block.spec.entries.iter();
            let live =
                entries.filter(|e| matches!(e.state, EntryState::Intent | EntryState::Allocated));
            for entry in live {
                if !held.insert(entry.address) {
                    problems.push(format!("{} is held twice", entry.address));
                }
            }
        }
    }));
    (held, problems)
}

#[cfg(test)]
mod tests;
