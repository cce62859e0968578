//! One life of a few pods, with the n-th write going wrong, n = 1 until a run ends untouched: the write's
//! request lost, its answer lost, the agent dead before it, dead after it. In each life a DEL of an
//! older sandbox comes late, a pod is made anew under its old name while the old one still ends, and
//! two controllers that both believe they lead free the same records.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::judge::Event;
use super::watched::{FAULTS, Run, Watched};
use super::{BlockOn, candidate};
use crate::ipam::{
    ClaimError, Holder, Request, claim, load, modify, plan_confirm, plan_free_record, plan_release,
};
use crate::range::Family;
use crate::store::Store;
use crate::types::block::{Entry, Owner};

/// Two blocks of IPv4 and one of IPv6: a claim is several writes.
const FOUR: &str = "10.7.0.60-10.7.0.67";
const SIX: &str = "fd07::10-fd07::17";
/// Far above the writes of one life.
const MOST_WRITES: u32 = 1_000;

pub(super) fn lost_writes<S: Store>(open: &(impl Fn() -> S + Sync), block_on: BlockOn<'_>) {
    for fault in FAULTS {
        let mut n = 0;
        loop {
            n += 1;
            assert!(n < MOST_WRITES, "a life has no end");
            let run = Arc::new(Run::failing(n, fault));
            let network = format!("life-{}-{n}", format!("{fault:?}").to_lowercase());
            let seen = run.clone();
            let node = Node {
                store: Watched { inner: open(), run: run.clone() },
                run,
                network,
                sandboxes: AtomicU32::new(0),
            };
            block_on(Box::pin(async { node.live().await }));
            if !seen.struck() {
                break;
            }
        }
    }
}

/// A node's kubelet and agent, and two controllers.
struct Node<S> {
    store: Watched<S>,
    run: Arc<Run>,
    network: String,
    sandboxes: AtomicU32,
}

/// A pod that is up.
struct Up {
    uid: &'static str,
    sandbox: String,
    addresses: Vec<IpAddr>,
}

fn owner(uid: &str) -> Owner {
    // Two pods of one name: the second was made while the first still ends.
    Owner::Pod { namespace: "ns".into(), name: "pod".into(), uid: uid.into() }
}

impl<S: Store> Node<S> {
    async fn live(&self) {
        let first = self.add("one").await;
        let again = self.add("one").await;
        assert_eq!(first.addresses, again.addresses, "a new sandbox keeps the addresses");
        self.del(first.uid, &first.sandbox).await;
        self.check(&[&again]);

        let second = self.add("two").await;
        self.check(&[&again, &second]);
        self.del(again.uid, &again.sandbox).await;
        self.check(&[&second]);

        // Both controllers have seen these records; then the pod gets a new sandbox.
        let inspected = self.records("two").await;
        let renewed = self.add("two").await;
        for _controller in 0..2 {
            self.free(&inspected).await;
        }
        self.check(&[&renewed]);
        let inspected = self.records("two").await;
        self.free(&inspected).await;
        self.check(&[]);
        let third = self.add("three").await;
        self.free(&inspected).await;
        self.check(&[&third]);
        self.del(third.uid, &third.sandbox).await;
        self.check(&[]);
    }

    fn may_release(&self, uid: &str, sandbox: &str) {
        self.run.revive();
        self.run.note(Event::MayRelease { uid: uid.into(), sandbox: sandbox.into() });
    }

    fn requests(&self, uid: &str, sandbox: &str) -> [Request; 2] {
        [(Family::V4, FOUR), (Family::V6, SIX)].map(|(family, range)| Request {
            owner: owner(uid),
            interface: "eth0".into(),
            family,
            sandbox_id: sandbox.into(),
            node: "n1".into(),
            candidates: vec![candidate(family, range)],
            exact: None,
            sticky: false,
            cluster_nodes: 4,
        })
    }

    /// As the kubelet does: after a failed ADD the DEL of its sandbox, and another sandbox.
    async fn add(&self, uid: &'static str) -> Up {
        loop {
            let number = self.sandboxes.fetch_add(1, Ordering::Relaxed);
            let sandbox = format!("sandbox-{number}");
            self.run.revive();
            let requests = self.requests(uid, &sandbox);
            match claim(&self.store, &self.network, &requests, 1).await {
                Ok(claims) => {
                    let addresses = claims.iter().map(|c| c.address).collect();
                    if self.confirm(uid, &sandbox).await {
                        return Up { uid, sandbox, addresses };
                    }
                }
                Err(ClaimError::Store(_)) => {}
                Err(other) => panic!("{other}"),
            }
            self.del(uid, &sandbox).await;
        }
    }

    async fn confirm(&self, uid: &str, sandbox: &str) -> bool {
        let owner = owner(uid);
        let holder = Holder { owner: Some(&owner), sandbox_id: sandbox, interface: None };
        modify(&self.store, &self.network, |view| plan_confirm(view, holder, 2)).await.is_ok()
    }

    async fn del(&self, uid: &str, sandbox: &str) {
        let owner = owner(uid);
        let holder = Holder { owner: Some(&owner), sandbox_id: sandbox, interface: None };
        loop {
            self.may_release(uid, sandbox);
            let done = modify(&self.store, &self.network, |view| plan_release(view, holder, 3));
            if done.await.is_ok() {
                return;
            }
        }
    }

    async fn records(&self, uid: &str) -> Vec<Entry> {
        let view = load(&self.store, &self.network).await.expect("reading is not disturbed");
        let own = view.entries(|e| e.state.is_held() && e.owner.as_ref() == Some(&owner(uid)));
        own.map(|(_, e)| e.clone()).collect()
    }

    async fn free(&self, inspected: &[Entry]) {
        for record in inspected {
            let uid = record.owner.as_ref().map(Owner::key).unwrap_or_default();
            loop {
                self.may_release(&uid, &record.sandbox_id);
                let free = |view: &mut crate::ipam::View| plan_free_record(view, record, 4);
                if modify(&self.store, &self.network, free).await.is_ok() {
                    break;
                }
            }
        }
    }

    /// Pods that are up hold what they were told, and nobody holds anything else.
    fn check(&self, up: &[&Up]) {
        let holders = self.run.holders();
        let told = up.iter().flat_map(|pod| pod.addresses.iter().map(move |a| (a, pod)));
        let mut count = 0;
        for (address, pod) in told {
            let holder = holders.get(&address.to_string());
            let expected = (pod.uid.to_string(), pod.sandbox.clone());
            assert_eq!(holder, Some(&expected), "{address} of {} in {}", pod.uid, self.network);
            count += 1;
        }
        assert_eq!(holders.len(), count, "leaked in {}: {holders:?}", self.network);
    }
}
