//! An agent keeps most blocks in outline. It gives the same addresses as one that has all of them whole.
#![allow(missing_docs, reason = "a test has no users")]

mod common;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{checked, now, pod, request};
use multinet::ipam::{Claim, ClaimError, Holder, Request, claim, modify, plan_keep, plan_release};
use multinet::memory::MemoryStore;
use multinet::rules::Checked;
use multinet::store::{Store, StoreError};
use multinet::types::block::{AddressBlock, NETWORK_LABEL, Owner};
use multinet::types::meta::{LabelSelector, Resource};

/// A node's look at a store: blocks that do not concern it are there in outline.
struct SeenFrom<'a> {
    node: &'static str,
    store: &'a MemoryStore,
    fetched: AtomicUsize,
}

impl<'a> SeenFrom<'a> {
    fn new(node: &'static str, store: &'a MemoryStore) -> Self {
        Self { node, store, fetched: AtomicUsize::new(0) }
    }

    fn claim(&self, request: &Request) -> Result<Claim, ClaimError> {
        let request = Request { node: self.node.into(), ..request.clone() };
        now(claim(self, "blue", &[request], 0)).map(|mut claims| claims.remove(0))
    }

    fn fetched(&self) -> usize {
        self.fetched.swap(0, Ordering::Relaxed)
    }
}

impl Store for SeenFrom<'_> {
    async fn get<R: Resource>(
        &self,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Option<R>, StoreError> {
        self.fetched.fetch_add(1, Ordering::Relaxed);
        self.store.get(namespace, name).await
    }
    async fn list<R: Resource>(&self, _: &LabelSelector) -> Result<Vec<R>, StoreError> {
        panic!("all blocks of a large Network are never asked for");
    }
    async fn blocks(&self, domain: &str) -> Result<Vec<Arc<AddressBlock>>, StoreError> {
        let selector = LabelSelector::label(NETWORK_LABEL, domain);
        let blocks: Vec<AddressBlock> = self.store.list(&selector).await?;
        let seen = |b: AddressBlock| if b.concerns(self.node) { b } else { b.outline() };
        Ok(blocks.into_iter().map(|b| Arc::new(seen(b))).collect())
    }
    async fn create<R: Resource>(&self, object: &R) -> Result<R, StoreError> {
        self.store.create(object).await
    }
    async fn update<R: Resource>(&self, object: &R) -> Result<R, StoreError> {
        self.store.update(object).await
    }
    async fn delete<R: Resource>(&self, object: &R) -> Result<(), StoreError> {
        self.store.delete(object).await
    }
}

/// Pools of which nodes hold blocks.
fn pools(ranges: &[&str]) -> Checked {
    let mut text = String::from(
        "{kind: Network, apiVersion: bowline.dev/v1alpha1, metadata: {name: blue}, spec: {vni: 1}}",
    );
    for (n, range) in ranges.iter().enumerate() {
        text.push_str(&format!(
            "\n---\nkind: SpiderIPPool\napiVersion: spiderpool.spidernet.io/v2beta1\nmetadata:\n  \
             name: p{n}\n  labels: {{bowline.dev/network: blue}}\n  \
             annotations: {{bowline.dev/block-binding: always}}\n\
             spec: {{subnet: 10.0.0.0/16, ips: [{range}]}}"
        ));
    }
    checked(&text)
}

fn release(store: &SeenFrom<'_>, name: &str) {
    let owner = pod(name);
    let holder = Holder { owner: Some(&owner), sandbox_id: "s1", interface: None };
    let released = now(modify(store, "blue", |view| plan_release(view, holder, 0).len()));
    assert_eq!(released, Ok(1));
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn a_claim_in_ones_own_blocks_reads_nothing_of_others() {
    let checked = pools(&["10.0.0.0-10.0.0.255"]);
    let store = MemoryStore::new();
    let (one, other) = (SeenFrom::new("n1", &store), SeenFrom::new("n2", &store));
    let first = one.claim(&request(&checked, "a", &["p0"])).unwrap();
    let second = other.claim(&request(&checked, "b", &["p0"])).unwrap();
    let third = other.claim(&request(&checked, "c", &["p0"])).unwrap();
    assert_ne!(first.address, second.address);
    assert_ne!(second.address, third.address);
    assert_eq!((one.fetched(), other.fetched()), (0, 0));
}

#[test]
fn every_address_of_a_pool_is_found_and_then_it_is_said_how_many_are_held() {
    let checked = pools(&["10.0.0.0-10.0.0.127"]);
    let store = MemoryStore::new();
    let (one, other) = (SeenFrom::new("n1", &store), SeenFrom::new("n2", &store));
    one.claim(&request(&checked, "first", &["p0"])).unwrap();
    let names: Vec<String> = (1..128).map(|n| format!("pod-{n}")).collect();
    let mut got: Vec<IpAddr> = names
        .iter()
        .map(|name| other.claim(&request(&checked, name, &["p0"])).unwrap().address)
        .collect();
    got.sort_unstable();
    got.dedup();
    assert_eq!(got.len(), 127, "the last 63 lie in the other node's block");
    let why = one.claim(&request(&checked, "late", &["p0"])).unwrap_err().to_string();
    assert!(why.contains("used up (128 of 128 held)"), "{why}");
    one.fetched();
    one.claim(&request(&checked, "later", &["p0"])).unwrap_err();
    assert_eq!(one.fetched(), 0, "nothing is read of blocks that are full");
}

#[test]
fn a_pool_is_used_up_before_the_next_one() {
    let checked = pools(&["10.0.0.0-10.0.0.63", "10.0.1.0-10.0.1.63"]);
    let store = MemoryStore::new();
    let (one, other) = (SeenFrom::new("n1", &store), SeenFrom::new("n2", &store));
    one.claim(&request(&checked, "a", &["p0", "p1"])).unwrap();
    let claim = other.claim(&request(&checked, "b", &["p0", "p1"])).unwrap();
    assert_eq!(claim.pool, "p0");
}

#[test]
fn an_exact_address_of_another_nodes_block() {
    let checked = pools(&["10.0.0.0-10.0.0.255"]);
    let store = MemoryStore::new();
    let (one, other) = (SeenFrom::new("n1", &store), SeenFrom::new("n2", &store));
    let held = one.claim(&request(&checked, "a", &["p0"])).unwrap().address;
    let exact =
        |name: &str, address| Request { exact: Some(address), ..request(&checked, name, &["p0"]) };
    let why = other.claim(&exact("b", held)).unwrap_err().to_string();
    assert!(why.contains(&format!("has given {held} to pod shop/a")), "{why}");
    let IpAddr::V4(held) = held else { panic!() };
    let free = IpAddr::from((u32::from(held) ^ 1).to_be_bytes());
    assert_eq!(other.claim(&exact("b", free)).unwrap().address, free);
}

#[test]
fn a_stateful_pod_finds_its_address_on_another_node_and_so_does_a_pod_its_last_one() {
    let checked = pools(&["10.0.0.0-10.0.0.63"]);
    let store = MemoryStore::new();
    let (one, other) = (SeenFrom::new("n1", &store), SeenFrom::new("n2", &store));
    let web = Request { sticky: true, ..request(&checked, "web-0", &["p0"]) };
    let had = one.claim(&web).unwrap();
    let owner = pod("web-0");
    let holder = Holder { owner: Some(&owner), sandbox_id: "s1", interface: None };
    let kept = now(modify(&one, "blue", |view| plan_keep(view, holder, 0).len()));
    assert_eq!(kept, Ok(1));
    let uid = "uid-2".into();
    let owner = Owner::Pod { namespace: "shop".into(), name: "web-0".into(), uid };
    let took = other.claim(&Request { owner, sandbox_id: "s2".into(), ..web }).unwrap();
    assert_eq!((took.address, took.fresh), (had.address, false));
    // A stray: it lies in a block of n1, and after its release nothing there names n2.
    let stray = other.claim(&request(&checked, "b", &["p0"])).unwrap();
    other.claim(&request(&checked, "c", &["p0"])).unwrap();
    release(&other, "b");
    let again = other.claim(&request(&checked, "b", &["p0"])).unwrap();
    assert_eq!((again.address, again.address == ip("10.0.0.0")), (stray.address, false));
}
