//! One life of a few pods, with the n-th write or list going wrong, n = 1 until a run ends untouched. In
//! each life a DEL of an older sandbox comes late, a pod is made anew under its old name while the old
//! one still ends, and two controllers that both believe they lead free the same records, each from
//! what it remembers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use judge::{Event, Told};

use super::watched::{FAULTS, Fault, Run, Trouble, Watched};
use super::{Ground, candidate};
use crate::ipam::{
    ClaimError, Holder, Request, View, claim, modify, plan_confirm, plan_free_record, plan_release,
};
use crate::range::Family;
use crate::store::Store;
use crate::types::block::{Entry, Owner};

/// Two blocks of IPv4 and one of IPv6: a claim is several writes.
const FOUR: &str = "10.7.0.60-10.7.0.67";
const SIX: &str = "fd07::10-fd07::17";
/// Far above the calls of one life.
const MOST_CALLS: u32 = 1_000;

pub(super) fn lost_calls<S: Store>(ground: Ground<'_, S>) {
    for fault in FAULTS {
        let mut calls = (1..MOST_CALLS).step_by(ground.step);
        let untouched = calls.find(|n| !one_life(ground, *n, fault));
        let n = untouched.expect("a life without fault ends the search");
        assert!(n > 5, "{fault:?} could strike only {n} times: it was never looked at");
    }
}

/// Whether the fault came about.
fn one_life<S: Store>(ground: Ground<'_, S>, n: u32, fault: Fault) -> bool {
    if let Some(history) = ground.history {
        history(); // of others
    }
    let run = Arc::new(Run::with(Trouble::Nth(n, fault)));
    let network = format!("life-{}-{n}", format!("{fault:?}").to_lowercase());
    let handle = || Watched::new((ground.open)(), &run);
    let (agent, controllers) = (handle(), [handle(), handle()]);
    let sandboxes = AtomicU32::new(0);
    let life = Life { run: run.clone(), network, agent, controllers, sandboxes };
    (ground.block_on)(Box::pin(async { life.live().await }));
    run.compare(ground.history);
    run.struck() > 0
}

/// A node's kubelet and agent, and two controllers.
struct Life<S> {
    run: Arc<Run>,
    network: String,
    agent: Watched<S>,
    controllers: [Watched<S>; 2],
    sandboxes: AtomicU32,
}

/// A pod that is up.
struct Up {
    uid: &'static str,
    sandbox: String,
    told: Vec<Told>,
}

fn owner(uid: &str) -> Owner {
    // Two pods of one name: the second was made while the first still ends.
    Owner::Pod { namespace: "ns".into(), name: "pod".into(), uid: uid.into() }
}

impl<S: Store> Life<S> {
    async fn live(&self) {
        let first = self.add("one").await;
        let again = self.add("one").await;
        let addresses = |up: &Up| up.told.iter().map(|t| t.address.clone()).collect::<Vec<_>>();
        assert_eq!(addresses(&first), addresses(&again), "a new sandbox keeps the addresses");
        self.del(first.uid, &first.sandbox).await;
        self.check(&[&again]);

        let second = self.add("two").await;
        self.check(&[&again, &second]);
        self.del(again.uid, &again.sandbox).await;
        self.check(&[&second]);

        // Both controllers have seen these records; then the pod gets a new sandbox.
        let inspected = self.records("two").await;
        let renewed = self.add("two").await;
        self.both_free(&inspected).await;
        self.check(&[&renewed]);
        let inspected = self.records("two").await;
        self.both_free(&inspected).await;
        self.check(&[]);
        let third = self.add("three").await;
        self.both_free(&inspected).await;
        self.check(&[&third]);
        self.del(third.uid, &third.sandbox).await;
        self.check(&[]);
    }

    fn may_release(&self, uid: &str, sandbox: &str) {
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
            moves: false,
            cluster_nodes: 4,
        })
    }

    /// As the kubelet does: after a failed ADD the DEL of its sandbox, and another sandbox.
    async fn add(&self, uid: &'static str) -> Up {
        loop {
            let number = self.sandboxes.fetch_add(1, Ordering::Relaxed);
            let sandbox = format!("sandbox-{number}");
            self.agent.revive();
            let requests = self.requests(uid, &sandbox);
            match claim(&self.agent, &self.network, &requests, self.run.now_ms()).await {
                Ok(claims) => {
                    if self.confirm(uid, &sandbox).await {
                        let told = claims.iter().map(|claim| Told {
                            uid: uid.into(),
                            sandbox: sandbox.clone(),
                            network: self.network.clone(),
                            address: claim.address.to_string(),
                        });
                        let told: Vec<Told> = told.collect();
                        told.iter().for_each(|t| self.run.note(Event::Told(t.clone())));
                        return Up { uid, sandbox, told };
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
        let now_ms = self.run.now_ms();
        modify(&self.agent, &self.network, |view| plan_confirm(view, holder, now_ms)).await.is_ok()
    }

    async fn del(&self, uid: &str, sandbox: &str) {
        let owner = owner(uid);
        let holder = Holder { owner: Some(&owner), sandbox_id: sandbox, interface: None };
        loop {
            self.agent.revive();
            self.may_release(uid, sandbox);
            let now_ms = self.run.now_ms();
            let done = modify(&self.agent, &self.network, |v| plan_release(v, holder, now_ms));
            if done.await.is_ok() {
                return;
            }
        }
    }

    /// What both controllers see that a pod has.
    async fn records(&self, uid: &str) -> Vec<Entry> {
        let mut records = Vec::new();
        for controller in &self.controllers {
            let blocks = controller.look(&self.network).await.expect("undisturbed");
            let view = View::of(&self.network, blocks);
            let own = view.entries(|e| e.state.is_held() && e.owner.as_ref() == Some(&owner(uid)));
            records = own.map(|(_, e)| e.clone()).collect();
        }
        records
    }

    /// Each controller frees what was inspected, beginning with what it remembers.
    async fn both_free(&self, inspected: &[Entry]) {
        for controller in &self.controllers {
            controller.look_away();
            for record in inspected {
                let uid = record.owner.as_ref().map(Owner::key).unwrap_or_default();
                loop {
                    let now_ms = self.run.now_ms();
                    let free = |view: &mut View| plan_free_record(view, record, now_ms);
                    controller.revive();
                    self.may_release(&uid, &record.sandbox_id);
                    if modify(controller, &self.network, free).await.is_ok() {
                        break;
                    }
                }
            }
        }
    }

    /// Pods that are up hold what they were told, and nobody holds anything else.
    fn check(&self, up: &[&Up]) {
        let holders = self.run.holders();
        let told = up.iter().flat_map(|pod| &pod.told);
        judge::settled(&holders, told).unwrap_or_else(|wrong| panic!("{wrong}"));
    }
}
