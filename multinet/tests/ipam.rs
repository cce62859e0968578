//! Which address a request gets: strategies, blocks, rests, exact addresses, and the sentences.
#![allow(missing_docs, reason = "a test has no users")]

mod common;

use std::net::IpAddr;

use common::{checked, pod, request};
use multinet::ipam::{
    Claim, Holder, Rejections, Request, View, plan_claim, plan_confirm, plan_free_record,
    plan_keep, plan_quarantine, plan_release, plan_return_idle,
};
use multinet::rules::Checked;
use multinet::types::block::{AddressBlock, EntryState};

fn pools(specs: &[(&str, &str)]) -> Checked {
    let mut text = String::from(
        "{kind: Network, apiVersion: bowline.dev/v1alpha1, metadata: {name: blue}, spec: {vni: 1}}",
    );
    for (name, rest) in specs {
        text.push_str(&format!(
            "\n---\nkind: SpiderIPPool\napiVersion: spiderpool.spidernet.io/v2beta1\n\
             metadata: {{name: {name}, labels: {{bowline.dev/network: blue}}}}\n{rest}"
        ));
    }
    checked(&text)
}

fn pool(ips: &str) -> Checked {
    pools(&[("p", &format!("spec: {{subnet: 10.0.0.0/16, ips: [{ips}]}}"))])
}

fn annotated(ips: &str, key: &str, value: &str) -> Checked {
    let text = format!(
        "kind: SpiderIPPool\napiVersion: spiderpool.spidernet.io/v2beta1\nmetadata:\n  name: p\n  \
         labels: {{bowline.dev/network: blue}}\n  annotations: {{bowline.dev/{key}: {value}}}\n\
         spec: {{subnet: 10.0.0.0/16, ips: [{ips}]}}\n---\n\
         {{kind: Network, apiVersion: bowline.dev/v1alpha1, metadata: {{name: blue}}, \
         spec: {{vni: 1}}}}"
    );
    checked(&text)
}

fn view() -> View {
    View::new("blue", [])
}

fn get(view: &mut View, request: &Request, now_ms: u64) -> Result<Claim, Rejections> {
    plan_claim(view, request, 0, now_ms)
}

fn address(view: &mut View, checked: &Checked, name: &str, now_ms: u64) -> String {
    get(view, &request(checked, name, &["p"]), now_ms).unwrap().address.to_string()
}

fn free(view: &mut View, name: &str, now_ms: u64) {
    let owner = pod(name);
    let holder = Holder { owner: Some(&owner), sandbox_id: "s1", interface: None };
    assert_eq!(plan_release(view, holder, now_ms).len(), 1);
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn lowest_free_address_of_merged_ranges() {
    let checked = pool("10.0.1.5, 10.0.0.200-10.0.0.201, 10.0.0.7");
    let mut view = view();
    let got: Vec<String> =
        (0..4).map(|i| address(&mut view, &checked, &i.to_string(), 0)).collect();
    assert_eq!(got, ["10.0.0.7", "10.0.0.200", "10.0.0.201", "10.0.1.5"]);
    let names: Vec<&str> = view.writes().map(|b| b.metadata.name.as_str()).collect();
    assert_eq!(names, ["blue.10-0-0-0", "blue.10-0-0-192", "blue.10-0-1-0"]);
}

#[test]
fn the_same_key_gets_the_same_address_and_another_interface_another() {
    let checked = pool("10.0.0.10-10.0.0.20");
    let mut view = view();
    let first = request(&checked, "a", &["p"]);
    let claim = get(&mut view, &first, 0).unwrap();
    assert!(claim.fresh);
    let again = get(&mut view, &first, 9).unwrap();
    assert_eq!(again, Claim { fresh: false, ..claim.clone() });
    // Upstream gives both interfaces of a pod one address when they share a pool.
    let other = Request { interface: "eth2".into(), ..first.clone() };
    assert_ne!(get(&mut view, &other, 0).unwrap().address, claim.address);
    // Another pod of the same name is another owner.
    let mut twin = first;
    twin.owner = multinet::types::block::Owner::Pod {
        namespace: "shop".into(),
        name: "a".into(),
        uid: "uid-later".into(),
    };
    assert_ne!(get(&mut view, &twin, 0).unwrap().address, claim.address);
    // Unless it is a StatefulSet's: then it takes the claim over.
    let mut view = View::new("blue", [view.block_of(claim.address).unwrap().clone()]);
    let sticky = Request { sticky: true, ..twin.clone() };
    let free_key = Request { interface: "eth9".into(), ..sticky };
    assert!(get(&mut view, &free_key, 0).unwrap().fresh);
}

#[test]
fn a_stateful_pod_takes_its_predecessors_address_over() {
    let checked = pool("10.0.0.10-10.0.0.20");
    let mut view = view();
    let first = Request { sticky: true, ..request(&checked, "web-0", &["p"]) };
    let claim = get(&mut view, &first, 0).unwrap();
    let mut second = first;
    second.sandbox_id = "s2".into();
    second.node = "n2".into();
    second.owner = multinet::types::block::Owner::Pod {
        namespace: "shop".into(),
        name: "web-0".into(),
        uid: "uid-2".into(),
    };
    let taken = get(&mut view, &second, 5).unwrap();
    assert_eq!(taken, Claim { fresh: false, ..claim });
    let entry = view.block_of(taken.address).unwrap().entry(taken.address).unwrap();
    assert_eq!((entry.owner.as_ref(), entry.node.as_str()), (Some(&second.owner), "n2"));
    // The first pod's late DEL changes nothing.
    let owner = pod("web-0");
    let late = Holder { owner: Some(&owner), sandbox_id: "s1", interface: None };
    assert!(plan_release(&mut view, late, 6).is_empty());
}

/// The machine runs at its source until its migration is complete.
#[test]
fn a_migrations_target_waits_for_its_sources_address() {
    let checked = pool("10.0.0.10-10.0.0.20");
    let mut view = view();
    let source = Request { sticky: true, ..request(&checked, "vm", &["p"]) };
    let claim = get(&mut view, &source, 0).unwrap();
    let other = "n2".to_owned();
    let target = Request { sandbox_id: "s2".into(), node: other, moves: true, ..source.clone() };
    let entry = |view: &View| view.block_of(claim.address).unwrap().entry(claim.address).cloned();
    let before = entry(&view);
    let lent = Claim { fresh: false, elsewhere: true, ..claim.clone() };
    assert_eq!(get(&mut view, &target, 1).unwrap(), lent);
    assert_eq!(entry(&view), before, "the source's record was touched");
    // The migration failed, and nothing is the target's to give back.
    let of = |sandbox_id| Holder { owner: None, sandbox_id, interface: None };
    assert!(plan_release(&mut view, of("s2"), 2).is_empty());
    assert_eq!(entry(&view), before);
    // The source lets go.
    assert_eq!(plan_keep(&mut view, of("s1"), 3), [claim.address]);
    let own = Claim { fresh: false, ..claim.clone() };
    assert_eq!(get(&mut view, &target, 4).unwrap(), own);
    let now = entry(&view).unwrap();
    assert_eq!((now.node.as_str(), now.sandbox_id.as_str()), ("n2", "s2"));
    // Who does not migrate waits for nobody.
    assert_eq!(get(&mut view, &source, 5).unwrap(), own);
}

#[test]
fn a_stateful_pod_leaves_a_pool_that_is_none_of_its_own_any_more() {
    let one = ("p", "spec: {subnet: 10.0.0.0/24, ips: [10.0.0.10-10.0.0.20]}");
    let other = ("q", "spec: {subnet: 10.0.1.0/24, ips: [10.0.1.10-10.0.1.20]}");
    let checked = pools(&[one, other]);
    let mut view = view();
    let first = Request { sticky: true, ..request(&checked, "web-0", &["p"]) };
    assert_eq!(get(&mut view, &first, 0).unwrap().address, ip("10.0.0.10"));
    // Another interface that names both pools stays where it is.
    let wide = Request { interface: "eth2".into(), ..first.clone() };
    assert_eq!(get(&mut view, &wide, 0).unwrap().address, ip("10.0.0.11"));
    let both = request(&checked, "web-0", &["q", "p"]).candidates;
    let later = |of: &Request| Request { sandbox_id: "s2".into(), ..of.clone() };
    let wide = Request { candidates: both, ..later(&wide) };
    assert_eq!(get(&mut view, &wide, 1).unwrap().address, ip("10.0.0.11"));
    // The annotation names another pool, and the pod is made anew.
    let moved = request(&checked, "web-0", &["q"]).candidates;
    let moved = Request { candidates: moved, ..first };
    assert_eq!(get(&mut view, &moved, 1).unwrap().address, ip("10.0.0.10"), "the same sandbox");
    assert_eq!(get(&mut view, &later(&moved), 2).unwrap().address, ip("10.0.1.10"));
    let left = view.block_of(ip("10.0.0.10")).unwrap().entry(ip("10.0.0.10")).unwrap();
    assert_eq!(left.state, EntryState::Released);
}

#[test]
fn a_new_sandbox_keeps_the_address_and_the_old_one_cannot_release_it() {
    let checked = pool("10.0.0.10-10.0.0.20");
    let mut view = view();
    let first = request(&checked, "a", &["p"]);
    let claim = get(&mut view, &first, 0).unwrap();
    let second = Request { sandbox_id: "s2".into(), ..first };
    assert_eq!(get(&mut view, &second, 1).unwrap().address, claim.address);
    let owner = pod("a");
    let of = |sandbox_id| Holder { owner: Some(&owner), sandbox_id, interface: None };
    assert!(plan_release(&mut view, of("s1"), 2).is_empty());
    assert_eq!(plan_confirm(&mut view, of("s2"), 3), [claim.address]);
    assert_eq!(plan_release(&mut view, of("s2"), 4), [claim.address]);
    assert!(plan_release(&mut view, of("s2"), 5).is_empty(), "twice is once");
    // DEL of the old sandbox may also come before the ADD of the new one: the address comes back.
    address(&mut view, &checked, "b", 6);
    assert_eq!(get(&mut view, &second, 7).unwrap().address, claim.address);
}

#[test]
fn released_addresses_rest_and_are_taken_longest_rest_first_when_nothing_else_is_left() {
    let checked = pool("10.0.0.10-10.0.0.12");
    let mut view = view();
    for name in ["a", "b", "c"] {
        address(&mut view, &checked, name, 0);
    }
    for (name, at) in [("b", 1_000), ("a", 2_000)] {
        free(&mut view, name, at);
    }
    assert_eq!(address(&mut view, &checked, "d", 3_000), "10.0.0.11");
    // After its rest the lowest is the lowest again.
    free(&mut view, "c", 3_000);
    assert_eq!(address(&mut view, &checked, "e", 40_000), "10.0.0.10");
}

#[test]
fn of_what_rests_a_block_that_is_written_anyway_comes_first() {
    let checked = pool("10.0.0.60-10.0.0.67");
    let mut view = view();
    let names: Vec<String> = (0..8).map(|n| n.to_string()).collect();
    for name in &names {
        address(&mut view, &checked, name, 0);
    }
    // In turns: the longest rest is once in the one block and once in the other.
    for (at, n) in (1..).zip([0, 4, 1, 5, 2, 6, 3, 7]) {
        free(&mut view, &names[n], at);
    }
    let blocks: Vec<AddressBlock> = view.blocks().cloned().collect();
    let mut view = View::new("blue", blocks);
    let got: Vec<String> = ["a", "b", "c", "d", "e"]
        .map(|name| address(&mut view, &checked, name, 10))
        .into_iter()
        .collect();
    assert_eq!(got, ["10.0.0.60", "10.0.0.61", "10.0.0.62", "10.0.0.63", "10.0.0.64"]);
}

#[test]
fn a_strict_delay_is_kept() {
    let checked = annotated("10.0.0.10", "reuse-delay", "60s");
    let mut view = view();
    address(&mut view, &checked, "a", 0);
    free(&mut view, "a", 1_000);
    let refused = get(&mut view, &request(&checked, "b", &["p"]), 60_999).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "no address for eth1 of pod shop/b (IPv4): pool p is used up (0 of 1 held, 1 resting \
         after release)"
    );
    assert_eq!(address(&mut view, &checked, "b", 61_000), "10.0.0.10");
}

#[test]
fn least_recently_released_prefers_what_nobody_had() {
    let checked =
        annotated("10.0.0.62-10.0.0.65", "allocation-strategy", "least-recently-released");
    let mut view = view();
    for name in ["a", "b", "c"] {
        address(&mut view, &checked, name, 0);
    }
    for (name, at) in [("c", 1), ("a", 2), ("b", 3)] {
        free(&mut view, name, at);
    }
    let late = 1_000_000;
    let got: Vec<String> =
        ["d", "e", "f", "g"].map(|name| address(&mut view, &checked, name, late)).to_vec();
    assert_eq!(got, ["10.0.0.65", "10.0.0.64", "10.0.0.62", "10.0.0.63"]);
}

#[test]
fn random_spreads_and_still_gives_every_address() {
    let checked = annotated("10.0.0.0-10.0.0.255", "allocation-strategy", "random");
    let mut view = view();
    let mut got: Vec<IpAddr> =
        (0..256).map(|i| ip(&address(&mut view, &checked, &i.to_string(), 0))).collect();
    let ascending = got.windows(2).filter(|w| w[0] < w[1]).count();
    assert!((64..192).contains(&ascending), "{ascending} of 255 steps ascend");
    got.sort();
    got.dedup();
    assert_eq!(got.len(), 256);
    assert!(get(&mut view, &request(&checked, "late", &["p"]), 0).is_err());
}

#[test]
fn exact_addresses() {
    let checked = pool("10.0.0.10-10.0.0.20");
    let mut view = view();
    let want = |name: &str, text: &str| Request {
        exact: Some(ip(text)),
        ..request(&checked, name, &["p"])
    };
    assert_eq!(get(&mut view, &want("a", "10.0.0.15"), 0).unwrap().address, ip("10.0.0.15"));
    for (text, why) in [
        ("10.0.0.15", "pool p has given 10.0.0.15 to pod shop/a"),
        ("10.0.0.9", "pool p does not hold 10.0.0.9"),
    ] {
        let refused = get(&mut view.clone(), &want("b", text), 0).unwrap_err();
        let expected = format!("no address for eth1 of pod shop/b, which wants {text}: {why}");
        assert_eq!(refused.to_string(), expected);
    }
    // The pod asks for another one: the first is given back, never both held.
    assert_eq!(get(&mut view, &want("a", "10.0.0.16"), 1).unwrap().address, ip("10.0.0.16"));
    let held: Vec<_> = view.entries(|e| e.state.is_held()).map(|(_, e)| e.address).collect();
    assert_eq!(held, [ip("10.0.0.16")]);
    // A rest does not keep the one who names the address.
    assert_eq!(get(&mut view, &want("b", "10.0.0.15"), 2).unwrap().address, ip("10.0.0.15"));
}

#[test]
fn a_conflicting_address_is_quarantined_and_the_next_pod_gets_another() {
    let checked = pool("10.0.0.10-10.0.0.11");
    let mut view = view();
    address(&mut view, &checked, "a", 0);
    let owner = pod("a");
    let holder = Holder { owner: Some(&owner), sandbox_id: "s1", interface: None };
    let squatted = ip("10.0.0.10");
    let why = "0e:00:00:00:00:02 answers for it";
    assert!(plan_quarantine(&mut view, squatted, holder, why, 10, 600_000));
    assert!(!plan_quarantine(&mut view, squatted, holder, why, 10, 600_000));
    assert_eq!(address(&mut view, &checked, "a", 20), "10.0.0.11");
    assert!(get(&mut view, &request(&checked, "b", &["p"]), 30).is_err());
    let exact = Request { exact: Some(squatted), ..request(&checked, "b", &["p"]) };
    let text = get(&mut view, &exact, 30).unwrap_err().to_string();
    assert!(text.ends_with(&format!("holds 10.0.0.10 in quarantine: {why}")), "{text}");
    assert_eq!(address(&mut view, &checked, "b", 600_000), "10.0.0.10");
}

#[test]
fn gateways_exclusions_and_reservations_are_never_handed_out() {
    let text = "
{kind: Network, apiVersion: bowline.dev/v1alpha1, metadata: {name: blue}, spec: {vni: 1, ipPools: {ipv4: [p, q]}}}
---
kind: SpiderIPPool
apiVersion: spiderpool.spidernet.io/v2beta1
metadata: {name: p}
spec: {subnet: 10.0.0.0/24, ips: [10.0.0.1-10.0.0.5], excludeIPs: [10.0.0.1, 10.0.0.3], gateway: 10.0.0.1}
---
kind: SpiderIPPool
apiVersion: spiderpool.spidernet.io/v2beta1
metadata: {name: q}
spec: {subnet: 10.0.0.0/24, ips: [10.0.0.6-10.0.0.7], gateway: 10.0.0.5}
---
kind: SpiderReservedIP
apiVersion: spiderpool.spidernet.io/v2beta1
metadata: {name: r}
spec: {ips: [10.0.0.4]}
---
kind: SpiderReservedIP
apiVersion: spiderpool.spidernet.io/v2beta1
metadata: {name: of-another-network, labels: {bowline.dev/network: red}}
spec: {ips: [10.0.0.2]}
";
    let checked = checked(text);
    let mut view = view();
    assert_eq!(address(&mut view, &checked, "a", 0), "10.0.0.2");
    let error = get(&mut view, &request(&checked, "b", &["p"]), 0).unwrap_err();
    assert!(error.to_string().ends_with("pool p is used up (1 of 1 held)"), "{error}");
}

#[test]
fn pools_are_tried_in_order_and_each_says_why_not() {
    let checked = pools(&[
        ("first", "spec: {subnet: 10.0.0.0/24, ips: [10.0.0.9]}"),
        ("empty", "spec: {subnet: 10.1.0.0/24}"),
        ("second", "spec: {subnet: 10.2.0.0/24, ips: [10.2.0.9]}"),
    ]);
    let mut view = view();
    let order = ["first", "empty", "second"];
    let pool_of = |view: &mut View, name: &str| get(view, &request(&checked, name, &order), 0);
    assert_eq!(pool_of(&mut view, "a").unwrap().pool, "first");
    assert_eq!(pool_of(&mut view, "b").unwrap().pool, "second");
    assert_eq!(
        pool_of(&mut view, "c").unwrap_err().to_string(),
        "no address for eth1 of pod shop/c (IPv4): pool first is used up (1 of 1 held); pool empty \
         holds no address; fill its spec.ips; pool second is used up (1 of 1 held)"
    );
    let none = get(&mut view, &request(&checked, "d", &[]), 0).unwrap_err().to_string();
    assert!(none.contains("no pool is eligible; name one"), "{none}");
}

#[test]
fn nodes_hold_blocks_of_large_pools() {
    let checked = pool("10.0.0.0-10.0.255.255");
    let mut view = view();
    let on =
        |node: &str, name: &str| Request { node: node.into(), ..request(&checked, name, &["p"]) };
    for i in 0..130 {
        get(&mut view, &on("n1", &format!("a{i}")), 0).unwrap();
        get(&mut view, &on("n2", &format!("b{i}")), 0).unwrap();
    }
    let blocks: Vec<&AddressBlock> = view.blocks().collect();
    assert_eq!(blocks.len(), 6, "three of 64 each");
    for block in &blocks {
        let node = block.spec.node.clone().unwrap();
        assert!(block.held().all(|e| e.node == node), "no strays while there is room");
    }
    // What a node does not use any more goes back, but for one block to begin with.
    for i in 0..130 {
        free(&mut view, &format!("a{i}"), 1);
    }
    assert_eq!(plan_return_idle(&mut view, "n1", 1).len(), 2);
    assert_eq!(plan_return_idle(&mut view, "n2", 1), Vec::<String>::new());
}

#[test]
fn nodes_that_start_together_take_different_blocks_also_behind_those_of_others() {
    let checked = pool("10.0.0.0-10.0.255.255");
    let mut old = view();
    let on = |node: &str, name: &str| Request {
        node: node.into(),
        cluster_nodes: 20,
        ..request(&checked, name, &["p"])
    };
    for node in 0..200 {
        get(&mut old, &on(&format!("old-{node}"), &format!("old-{node}")), 0).unwrap();
    }
    let blocks: Vec<AddressBlock> = old.blocks().cloned().collect();
    let mut taken: Vec<AddressBlock> = Vec::new();
    for node in 0..20 {
        let mut view = View::new("blue", blocks.clone());
        let name = format!("new-{node}");
        get(&mut view, &on(&name, &name), 0).unwrap();
        taken.extend(view.writes().cloned());
    }
    assert!(taken.iter().all(|new| blocks.iter().all(|old| old.name() != new.name())));
    let names: std::collections::BTreeSet<&str> = taken.iter().map(AddressBlock::name).collect();
    assert!(names.len() >= 14, "20 nodes race for {names:?}");
    let near = |b: &AddressBlock| b.start() < taken[0].start() + 400 * 64;
    assert!(taken.iter().all(near), "addresses stay near the pool's begin: {names:?}");
}

#[test]
fn a_full_pool_takes_idle_blocks_over_and_then_lends_addresses() {
    let checked = annotated("10.0.0.0-10.0.0.127", "block-binding", "always");
    let mut view = view();
    let on =
        |node: &str, name: &str| Request { node: node.into(), ..request(&checked, name, &["p"]) };
    get(&mut view, &on("n1", "a"), 0).unwrap();
    let idle = get(&mut view, &on("n2", "b"), 0).unwrap();
    free(&mut view, "b", 0);
    // n1 fills its block, then takes n2's idle one over.
    for i in 0..64 {
        get(&mut view, &on("n1", &format!("a{i}")), 100_000).unwrap();
    }
    assert_eq!(view.block_of(idle.address).unwrap().spec.node.as_deref(), Some("n1"));
    // n2 finds only blocks of n1 in use: a stray, with its own route.
    let stray = get(&mut view, &on("n2", "c"), 100_000).unwrap();
    let block = view.block_of(stray.address).unwrap();
    assert_eq!(block.spec.node.as_deref(), Some("n1"));
    assert_eq!(block.entry(stray.address).unwrap().node, "n2");
}

#[test]
fn huge_pools_cost_what_their_ranges_cost() {
    let checked =
        pools(&[("p", "spec: {subnet: 'fd00::/64', ips: ['fd00::1-fd00::ffff:ffff:ffff:fffe']}")]);
    let mut view = view();
    let wanted = request(&checked, "a", &["p"]);
    let got = get(&mut view, &wanted, 0).unwrap().address;
    assert!(got < ip("fd00::1000"), "{got}");
    assert_eq!(view.blocks().count(), 1);
    let never = Request {
        candidates: vec![multinet::ipam::Candidate {
            binding: multinet::rules::Binding::Never,
            ..wanted.candidates[0].clone()
        }],
        ..request(&checked, "b", &["p"])
    };
    assert_eq!(get(&mut View::new("blue", []), &never, 0).unwrap().address, ip("fd00::1"));
}

#[test]
fn a_record_is_freed_only_as_it_was_inspected() {
    let checked = pool("10.0.0.10-10.0.0.20");
    let mut view = view();
    let claim = get(&mut view, &request(&checked, "a", &["p"]), 0).unwrap();
    let inspected = view.block_of(claim.address).unwrap().entry(claim.address).unwrap().clone();
    assert!(
        inspected.is_stale_intent(60_001, 60_000) && !inspected.is_stale_intent(60_000, 60_000)
    );
    let owner = pod("a");
    let holder = Holder { owner: Some(&owner), sandbox_id: "s1", interface: None };
    plan_confirm(&mut view, holder, 5);
    assert!(!plan_free_record(&mut view, &inspected, 6), "it was confirmed meanwhile");
    let inspected = view.block_of(claim.address).unwrap().entry(claim.address).unwrap().clone();
    assert_eq!(inspected.state, EntryState::Allocated);
    assert!(plan_free_record(&mut view, &inspected, 7));
}

#[test]
fn a_del_without_pod_frees_what_its_sandbox_holds_and_nothing_else() {
    let checked = pool("10.0.0.10-10.0.0.20");
    let mut view = view();
    get(&mut view, &request(&checked, "a", &["p"]), 0).unwrap();
    let node = Request {
        owner: multinet::types::block::Owner::Node { name: "n1".into() },
        sandbox_id: String::new(),
        interface: "bowline0".into(),
        ..request(&checked, "", &["p"])
    };
    get(&mut view, &node, 0).unwrap();
    let nobody = Holder { owner: None, sandbox_id: "", interface: None };
    assert!(plan_release(&mut view, nobody, 1).is_empty());
    let anonymous = Holder { owner: None, sandbox_id: "s1", interface: Some("eth1") };
    assert_eq!(plan_release(&mut view, anonymous, 1), [ip("10.0.0.10")]);
    assert_eq!(view.entries(|e| e.state.is_held()).count(), 1);
}

#[test]
fn nothing_is_taken_from_a_block_that_somebody_damaged() {
    let checked = pool("10.0.0.62-10.0.0.65");
    let damage: [&dyn Fn(&mut AddressBlock); 4] = [
        &|b| b.spec.cidr = "10.0.0.0/25".parse().unwrap(),
        &|b| b.metadata.name = "blue.10-0-0-64".into(),
        &|b| b.spec.entries[0].address = ip("10.9.0.1"),
        &|b| b.spec.entries[0].owner = None,
    ];
    for damage in damage {
        let mut sound = view();
        get(&mut sound, &request(&checked, "a", &["p"]), 0).unwrap();
        let mut block = sound.blocks().next().unwrap().clone();
        damage(&mut block);
        let mut view = View::new("blue", [block]);
        assert_eq!(address(&mut view, &checked, "b", 0), "10.0.0.64");
        assert_eq!(address(&mut view, &checked, "c", 0), "10.0.0.65");
        let error = get(&mut view, &request(&checked, "d", &["p"]), 0).unwrap_err().to_string();
        assert!(error.ends_with("are left out, mend them"), "{error}");
        let exact = Request { exact: Some(ip("10.0.0.63")), ..request(&checked, "d", &["p"]) };
        assert!(get(&mut view, &exact, 0).unwrap_err().to_string().contains("mend it"));
    }
}
