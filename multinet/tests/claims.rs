//! Claims under concurrency, lost requests and crashes, judged by the store's history alone.
//!
//! Tasks are futures that stop before every store operation; a script decides which one goes on, which
//! one is dropped (a crash), and which request or answer is lost. The judge reads raw JSON.
#![allow(missing_docs, reason = "a test has no users")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use common::{checked, now, pod, request};
use multinet::ipam::{
    Claim, ClaimError, Holder, Request, claim, modify, plan_confirm, plan_release,
};
use multinet::memory::MemoryStore;
use multinet::rules::Checked;
use multinet::store::{Store, StoreError};
use multinet::types::block::AddressBlock;
use multinet::types::meta::{LabelSelector, Resource};
use serde_json::Value;

/// A store that waits before each operation and loses what it is told to lose.
#[derive(Default)]
struct Rough {
    inner: MemoryStore,
    /// 1: the next write's request is lost; 2: its answer.
    lose: AtomicU8,
    history: Mutex<Vec<Value>>,
}

impl Rough {
    async fn wait(&self) {
        let mut waited = false;
        poll_fn(
            |_| {
                if std::mem::replace(&mut waited, true) { Poll::Ready(()) } else { Poll::Pending }
            },
        )
        .await;
    }

    async fn write<R: Resource>(
        &self,
        write: impl Future<Output = Result<R, StoreError>> + Send,
    ) -> Result<R, StoreError> {
        self.wait().await;
        let lost = || StoreError::Unavailable("lost".into());
        let fault = self.lose.swap(0, Ordering::Relaxed);
        if fault == 1 {
            return Err(lost());
        }
        let written = write.await?;
        self.history.lock().unwrap().push(serde_json::to_value(&written).unwrap());
        if fault == 2 { Err(lost()) } else { Ok(written) }
    }
}

impl Store for Rough {
    async fn get<R: Resource>(
        &self,
        ns: Option<&str>,
        name: &str,
    ) -> Result<Option<R>, StoreError> {
        self.wait().await;
        self.inner.get(ns, name).await
    }
    async fn list<R: Resource>(&self, selector: &LabelSelector) -> Result<Vec<R>, StoreError> {
        self.wait().await;
        self.inner.list(selector).await
    }
    async fn create<R: Resource>(&self, object: &R) -> Result<R, StoreError> {
        self.write(self.inner.create(object)).await
    }
    async fn update<R: Resource>(&self, object: &R) -> Result<R, StoreError> {
        self.write(self.inner.update(object)).await
    }
    async fn delete<R: Resource>(&self, object: &R) -> Result<(), StoreError> {
        self.wait().await;
        self.inner.delete(object).await
    }
}

/// (address, state, uid, sandbox) of every entry of a stored block.
fn entries(block: &Value) -> Vec<(String, String, String, String)> {
    let text = |v: &Value| v.as_str().unwrap_or("").to_string();
    let list = block["spec"]["entries"].as_array().unwrap();
    list.iter()
        .map(|e| {
            (
                text(&e["address"]),
                text(&e["state"]),
                text(&e["owner"]["uid"]),
                text(&e["sandboxID"]),
            )
        })
        .collect()
}

fn is_held(state: &str) -> bool {
    state == "Intent" || state == "Allocated"
}

/// No address has two entries, and none goes from one holder to the next without being released.
fn judge_history(history: &[Value]) -> BTreeMap<String, (String, String)> {
    let mut holder: BTreeMap<String, (String, String)> = BTreeMap::new();
    for block in history {
        let mut seen = BTreeSet::new();
        for (address, state, uid, sandbox) in entries(block) {
            assert!(seen.insert(address.clone()), "{address} is there twice: {block}");
            if is_held(&state) {
                let before = holder.insert(address.clone(), (uid.clone(), sandbox));
                let stolen = before.is_some_and(|(b, _)| b != uid);
                assert!(!stolen, "{address} goes to {uid} without release: {block}");
            } else {
                holder.remove(&address);
            }
        }
    }
    holder
}

const POOLS: &str = "
kind: Network
apiVersion: bowline.dev/v1alpha1
metadata: {name: blue}
spec: {vni: 56, ipPools: {ipv4: [four], ipv6: [six]}}
---
kind: SpiderIPPool
apiVersion: spiderpool.spidernet.io/v2beta1
metadata: {name: four}
spec: {subnet: 10.0.0.0/24, ips: [10.0.0.60-10.0.0.67]}
---
kind: SpiderIPPool
apiVersion: spiderpool.spidernet.io/v2beta1
metadata: {name: six}
spec: {subnet: 'fd00::/64', ips: ['fd00::10-fd00::17']}
";

type Task<'a> = Pin<Box<dyn Future<Output = Outcome> + 'a>>;

enum Outcome {
    Claimed(Vec<Claim>),
    /// No address left; nothing may be held that was not before.
    Rejected,
    Released,
    /// Nobody knows; the runtime tries again, or deletes.
    Unknown,
}

/// What a pod's runtime knows.
#[derive(Default)]
struct Pod {
    /// Sandboxes made so far.
    sandboxes: u8,
    /// A successful ADD and its sandbox, which no DEL of that sandbox or of a newer one has followed.
    up: Option<(u8, Vec<Claim>)>,
    /// A crash or a lost request: claims may be held that nobody was told of.
    unsure: bool,
}

struct World<'a> {
    store: &'a Rough,
    checked: &'a Checked,
    pods: Vec<Pod>,
    tasks: Vec<Option<(Task<'a>, usize)>>,
    clock: u64,
}

impl<'a> World<'a> {
    fn requests(&self, pod: usize, sandbox: u8) -> Vec<Request> {
        let of = |pool: &str| Request {
            sandbox_id: format!("p{pod}-{sandbox}"),
            node: format!("n{}", pod % 2),
            ..request(self.checked, &format!("p{pod}"), &[pool])
        };
        vec![of("four"), of("six")]
    }

    /// The task of pod `p`, one at a time: an agent takes calls of a pod one after the other.
    fn start_add(&mut self, p: usize, new_sandbox: bool) {
        let pod = &mut self.pods[p];
        if new_sandbox || pod.sandboxes == 0 {
            pod.sandboxes += 1;
        }
        let requests = self.requests(p, self.pods[p].sandboxes);
        let (store, now_ms) = (self.store, self.clock);
        self.tasks[p] = Some((
            Box::pin(async move {
                match claim(store, "blue", &requests, now_ms).await {
                    Ok(claims) => Outcome::Claimed(claims),
                    Err(ClaimError::Rejected(_)) => Outcome::Rejected,
                    Err(_) => Outcome::Unknown,
                }
            }),
            p,
        ));
    }

    fn start_del(&mut self, p: usize, sandbox: u8) {
        let known = &mut self.pods[p];
        if sandbox == known.sandboxes || known.up.as_ref().is_some_and(|(of, _)| *of == sandbox) {
            known.up = None;
        }
        // What other sandboxes hold stays, and a rejection says nothing about it.
        known.unsure |= sandbox != known.sandboxes;
        let (store, now_ms) = (self.store, self.clock);
        self.tasks[p] = Some((
            Box::pin(async move {
                let (owner, sandbox_id) = (pod(&format!("p{p}")), format!("p{p}-{sandbox}"));
                let release = |view: &mut multinet::ipam::View| {
                    let holder =
                        Holder { owner: Some(&owner), sandbox_id: &sandbox_id, interface: None };
                    plan_confirm(view, holder, now_ms);
                    plan_release(view, holder, now_ms)
                };
                match modify(store, "blue", release).await {
                    Ok(_) => Outcome::Released,
                    Err(_) => Outcome::Unknown,
                }
            }),
            p,
        ));
    }

    fn step(&mut self, slot: usize) {
        let Some((task, p)) = self.tasks[slot].as_mut() else { return };
        let p = *p;
        let mut context = Context::from_waker(Waker::noop());
        if let Poll::Ready(outcome) = task.as_mut().poll(&mut context) {
            self.tasks[slot] = None;
            match outcome {
                Outcome::Claimed(claims) => {
                    assert_eq!(claims.len(), 2);
                    // Tasks of a pod follow one another: the newest sandbox is the task's.
                    self.pods[p].up = Some((self.pods[p].sandboxes, claims));
                }
                Outcome::Rejected if !self.pods[p].unsure && self.pods[p].up.is_none() => {
                    let holder = judge_history(&self.store.history.lock().unwrap());
                    assert!(holder.values().all(|(uid, _)| *uid != format!("uid-p{p}")));
                }
                Outcome::Unknown => self.pods[p].unsure = true,
                Outcome::Rejected | Outcome::Released => {}
            }
        }
        self.judge();
    }

    /// What a pod was told is its own, is its own in the store.
    fn judge(&self) {
        let holder = judge_history(&self.store.history.lock().unwrap());
        for (p, pod) in self.pods.iter().enumerate() {
            for claim in pod.up.iter().flat_map(|(_, claims)| claims) {
                let (uid, sandbox) = &holder[&claim.address.to_string()];
                assert_eq!(uid, &format!("uid-p{p}"));
                // A newer ADD of the pod may have taken the claim along already.
                assert!(sandbox.starts_with(&format!("p{p}-")), "{sandbox}");
            }
        }
    }

    fn finish(&mut self) {
        for slot in 0..self.tasks.len() {
            while self.tasks[slot].is_some() {
                self.step(slot);
            }
        }
    }
}

#[test]
fn no_address_is_given_twice_and_none_leaks() {
    let checked = checked(POOLS);
    let script = bolero::check!().with_type::<Vec<(u8, u8)>>();
    script.for_each(|script| {
        let store = Rough::default();
        let mut world = World {
            store: &store,
            checked: &checked,
            pods: (0..10).map(|_| Pod::default()).collect(),
            tasks: (0..10).map(|_| None).collect(),
            clock: 0,
        };
        for &(what, which) in script {
            let p = usize::from(which) % 10;
            world.clock += 7_000;
            let idle = world.tasks[p].is_none();
            match what % 16 {
                0 | 1 if idle => world.start_add(p, what % 16 == 1),
                2 if idle => world.start_del(p, world.pods[p].sandboxes),
                // A late DEL of the sandbox before.
                3 if idle => world.start_del(p, world.pods[p].sandboxes.saturating_sub(1)),
                4 => {
                    world.tasks[p] = None;
                    world.pods[p].unsure = true;
                }
                5 => store.lose.store(1 + which % 2, Ordering::Relaxed),
                _ => world.step(p),
            }
        }
        store.lose.store(0, Ordering::Relaxed);
        world.finish();
        // The runtime deletes every sandbox it ever made; then nothing is held.
        for p in 0..10 {
            for sandbox in 0..=world.pods[p].sandboxes {
                world.start_del(p, sandbox);
                world.finish();
            }
        }
        let left = judge_history(&store.history.lock().unwrap());
        assert!(left.is_empty(), "leaked: {left:?}");
    });
}

#[test]
fn as_many_pods_as_addresses_all_start_at_once_twice() {
    let text = POOLS.replace("10.0.0.60-10.0.0.67", "10.0.0.10-10.0.0.209");
    let checked = Arc::new(checked(&text));
    let store = Rough::default();
    let mut random = 1u64;
    for round in 0..2u64 {
        let mut tasks: Vec<Option<Pin<Box<dyn Future<Output = _>>>>> = Vec::new();
        for p in 0..200 {
            let wanted = Request {
                node: format!("n{}", p % 20),
                cluster_nodes: 20,
                ..request(&checked, &format!("r{round}p{p}"), &["four"])
            };
            let store = &store;
            tasks.push(Some(Box::pin(async move { claim(store, "blue", &[wanted], round).await })));
        }
        let mut given = BTreeSet::new();
        let mut context = Context::from_waker(Waker::noop());
        while given.len() < 200 {
            random = multinet::types::mac::mix(random.wrapping_add(0x9e37_79b9));
            let slot = usize::try_from(random % 200).unwrap();
            let Some(task) = &mut tasks[slot] else { continue };
            if let Poll::Ready(result) = task.as_mut().poll(&mut context) {
                let claims: Vec<Claim> = result.unwrap();
                assert!(given.insert(claims[0].address), "{} twice", claims[0].address);
                tasks[slot] = None;
            }
        }
        judge_history(&store.history.lock().unwrap());
        // All go at once and the same number comes again within the rest after release.
        now(modify(&store, "blue", |view| {
            for p in 0..200 {
                let owner = pod(&format!("r{round}p{p}"));
                let holder = Holder { owner: Some(&owner), sandbox_id: "s1", interface: None };
                assert_eq!(plan_release(view, holder, round).len(), 1);
            }
        }))
        .unwrap();
    }
    let blocks: Vec<AddressBlock> = now(store.list(&LabelSelector::default())).unwrap();
    assert!(blocks.iter().all(AddressBlock::is_idle));
}

#[test]
fn a_claim_that_loses_its_last_address_on_the_way_gives_the_others_back() {
    let checked = checked(&POOLS.replace("fd00::10-fd00::17", "fd00::10"));
    let store = Rough::default();
    let of = |name: &str, pools: &[&str]| -> Vec<Request> {
        pools.iter().map(|p| request(&checked, name, &[*p])).collect()
    };
    let (both, one) = (of("slow", &["four", "six"]), of("fast", &["six"]));
    let mut slow = Box::pin(claim(&store, "blue", &both, 0));
    let mut context = Context::from_waker(Waker::noop());
    // It has read what is free, and its writes wait.
    for _ in 0..2 {
        assert!(slow.as_mut().poll(&mut context).is_pending());
    }
    assert!(now(claim(&store, "blue", &one, 0)).is_ok());
    let error = now(slow).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no address for eth1 of pod shop/slow (IPv6): pool six is used up (1 of 1 held)"
    );
    let history = store.history.lock().unwrap();
    let had = |block: &Value| entries(block).iter().any(|(.., uid, _)| uid == "uid-slow");
    assert!(history.iter().any(had), "the other address was never claimed");
    let left = judge_history(&history);
    let holders: Vec<&str> = left.values().map(|(uid, _)| uid.as_str()).collect();
    assert_eq!(holders, ["uid-fast"]);
}
