//! Claims of several callers at once: they share writes, and one that is rejected costs the others
//! nothing.
#![allow(missing_docs, reason = "a test has no users")]

mod common;

use std::sync::Arc;

use common::{checked, now, request};
use multinet::ipam::{ClaimError, Request, claim_groups, load};
use multinet::memory::MemoryStore;

const POOLS: &str = "
kind: Network
apiVersion: bowline.dev/v1alpha1
metadata: {name: blue}
spec: {vni: 1}
---
kind: SpiderIPPool
apiVersion: spiderpool.spidernet.io/v2beta1
metadata: {name: p, labels: {bowline.dev/network: blue}}
spec: {subnet: 10.0.0.0/24, ips: [10.0.0.10-10.0.0.12]}
";

#[test]
fn callers_share_a_write_and_only_the_rejected_one_goes_without() {
    let checked = checked(POOLS);
    let store = Arc::new(MemoryStore::new());
    let one = |name: &str| request(&checked, name, &["p"]);
    // The second wants two addresses where one is left when its turn comes: it gets none of them.
    let second = |name: &str| Request { interface: "eth2".into(), ..one(name) };
    let groups: [&[Request]; 4] =
        [&[one("a")], &[one("b"), second("b")], &[one("c"), second("c")], &[]];
    let outcomes = now(claim_groups(&store, "blue", &groups, 1));
    assert_eq!(outcomes[0].as_ref().unwrap().len(), 1);
    assert_eq!(outcomes[1].as_ref().unwrap().len(), 2);
    assert!(matches!(&outcomes[2], Err(ClaimError::Rejected(_))), "{:?}", outcomes[2]);
    assert_eq!(outcomes[3], Ok(Vec::new()));
    let view = now(load(&store, "blue")).unwrap();
    let blocks: Vec<_> = view.blocks().collect();
    assert_eq!(blocks.len(), 1);
    assert_eq!(blocks[0].metadata.resource_version.as_deref(), Some("1"), "one write for all");
    let owners: Vec<_> = blocks[0].held().map(|e| e.owner.clone().unwrap().to_string()).collect();
    assert_eq!(owners, ["pod shop/a", "pod shop/b", "pod shop/b"]);
    assert_eq!(blocks[0].spec.entries.len(), 3, "the rejected one left no trace");
}
