//! Reclaim, row by row: which record is freed, when, and what each switch changes.
#![allow(clippy::needless_pass_by_value, reason = "values are written where they are used")]
#![allow(missing_docs, reason = "a test has no users")]

use std::collections::BTreeMap;

use multinet::ipam::{
    Key, MachineFact, StatefulSetFact, Switches, Verdict, View, World, judge, may_have_moved,
    plan_node_gone,
};
use multinet::pod::{Stickiness, identity, ordinal_of};
use multinet::types::block::{AddressBlock, Entry, EntryState, Owner};
use multinet::types::core::{Node, Pod};
use serde_json::{Value, json};

/// 2026-01-01T00:01:00Z
const NOW: u64 = 1_767_225_660_000;

fn pod(uid: &str, meta: Value, status: Value) -> Pod {
    let mut metadata = json!({"name": "a", "namespace": "shop", "uid": uid});
    metadata.as_object_mut().unwrap().extend(meta.as_object().unwrap().clone());
    let value = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": status});
    serde_json::from_value(value).unwrap()
}

fn node(name: &str, ready: bool) -> Node {
    let ready = if ready { "True" } else { "Unknown" };
    let conditions = json!([{"type": "Ready", "status": ready}]);
    let value = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
                       "status": {"conditions": conditions}});
    serde_json::from_value(value).unwrap()
}

fn entry(name: &str, on: &str) -> Entry {
    Entry {
        address: "10.0.0.5".parse().unwrap(),
        state: EntryState::Allocated,
        owner: Some(Owner::Pod { namespace: "shop".into(), name: name.into(), uid: "u1".into() }),
        interface: "eth0".into(),
        pool: "p".into(),
        sandbox_id: "s".into(),
        node: on.into(),
        since_ms: NOW - 600_000,
        until_ms: None,
        reason: String::new(),
    }
}

#[derive(Default)]
struct Cluster {
    pods: BTreeMap<Key, Pod>,
    nodes: BTreeMap<String, Node>,
    stateful_sets: BTreeMap<Key, StatefulSetFact>,
    machines: BTreeMap<Key, MachineFact>,
}

fn key(name: &str) -> Key {
    ("shop".into(), name.into())
}

impl Cluster {
    /// Two nodes, `up` and `down`; a third one, `gone`, is not there.
    fn new() -> Self {
        let nodes = [("up", true), ("down", false)];
        let nodes = nodes.map(|(n, ready)| (n.to_string(), node(n, ready)));
        Cluster { nodes: nodes.into(), ..Cluster::default() }
    }

    fn with(mut self, pod: Pod) -> Self {
        self.pods.insert(key(&pod.metadata.name.clone()), pod);
        self
    }

    fn judge(&self, entry: &Entry, switches: &Switches) -> Verdict {
        let world = World {
            pods: &self.pods,
            nodes: &self.nodes,
            stateful_sets: &self.stateful_sets,
            machines: &self.machines,
        };
        judge(entry, world, switches, NOW)
    }
}

fn frees(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Free(_))
}

/// What the record of pod `shop/a` (UID u1) on a node becomes, beside a pod of that name.
fn verdict(on: &str, pod: Option<Pod>, switches: &Switches) -> Verdict {
    let cluster = Cluster::new();
    let cluster = if let Some(pod) = pod { cluster.with(pod) } else { cluster };
    cluster.judge(&entry("a", on), switches)
}

fn terminating(deadline: &str, status: Value) -> Pod {
    let meta = json!({"deletionTimestamp": deadline, "deletionGracePeriodSeconds": 30});
    pod("u1", meta, status)
}

fn running() -> Value {
    json!({"phase": "Running", "podIPs": [{"ip": "10.0.0.5"}], "containerStatuses": [{"state": {"running": {}}}]})
}

fn ended() -> Value {
    json!({"phase": "Running", "podIPs": [{"ip": "10.0.0.5"}], "containerStatuses": [{"state": {"terminated": {}}}]})
}

#[test]
fn pods_that_start_or_run_keep_their_address() {
    let switches = Switches { running_without_addresses: true, ..Switches::default() };
    for status in [running(), json!({"phase": "Pending"}), json!({}), Value::Null] {
        let verdict = verdict("down", Some(pod("u1", json!({}), status.clone())), &switches);
        assert!(matches!(verdict, Verdict::Keep(_)), "{status}: {verdict:?}");
    }
}

#[test]
fn a_pod_that_is_gone_frees() {
    for on in ["up", "down", "gone"] {
        assert_eq!(verdict(on, None, &Switches::default()), Verdict::Free("its pod is gone"));
    }
}

#[test]
fn a_pod_of_the_same_name_elsewhere_or_of_another_life_holds_nothing() {
    // G00002: another namespace.
    let mut other = pod("u1", json!({}), running());
    other.metadata.namespace = Some("bank".into());
    let mut cluster = Cluster::new();
    cluster.pods.insert(("bank".into(), "a".into()), other);
    assert!(frees(cluster.judge(&entry("a", "up"), &Switches::default())));
    // G00007: another UID.
    let next = pod("u2", json!({}), json!({"phase": "Pending"}));
    assert!(frees(verdict("up", Some(next), &Switches::default())));
}

#[test]
fn the_grace_period_is_counted_once() {
    // The deadline has passed, by less than the grace period of 30 s.
    let past = terminating("2026-01-01T00:00:59Z", ended());
    let expected = Verdict::Free("its pod is past its grace period");
    assert_eq!(verdict("up", Some(past.clone()), &Switches::default()), expected);
    let ahead = terminating("2026-01-01T00:01:10Z", ended());
    assert_eq!(verdict("up", Some(ahead), &Switches::default()), Verdict::Wait(NOW + 10_000));
    let patient = Switches { additional_grace_ms: 5_000, ..Switches::default() };
    assert_eq!(verdict("up", Some(past), &patient), Verdict::Wait(NOW + 4_000));
    // G00004: deleted with grace 0.
    let at_once = terminating("2026-01-01T00:01:00Z", ended());
    assert!(frees(verdict("up", Some(at_once), &Switches::default())));
}

#[test]
fn a_pending_pod_that_is_being_deleted_frees() {
    let pending = terminating("2026-01-01T00:00:30Z", json!({"phase": "Pending"}));
    assert!(frees(verdict("down", Some(pending), &Switches::default())));
}

#[test]
fn a_container_that_a_ready_node_still_runs_keeps_the_address() {
    let stuck = terminating("2026-01-01T00:00:30Z", running());
    let verdict_up = verdict("up", Some(stuck.clone()), &Switches::default());
    assert_eq!(verdict_up, Verdict::Keep("its kubelet reports that a container still runs"));
    // One that waits for an image, or for its next start, does not run.
    let waits = json!({"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff"}}}]});
    assert!(frees(verdict(
        "up",
        Some(terminating("2026-01-01T00:00:30Z", waits)),
        &Switches::default()
    )));
    // G00009: what a lost node reported last says nothing.
    assert!(frees(verdict("down", Some(stuck), &Switches::default())));
}

#[test]
fn finished_and_failed_pods_free() {
    let finished = |phase: &str| {
        let end = json!({"state": {"terminated": {"finishedAt": "2026-01-01T00:00:50Z"}}});
        pod("u1", json!({}), json!({"phase": phase, "containerStatuses": [end]}))
    };
    for phase in ["Succeeded", "Failed"] {
        let now = verdict("up", Some(finished(phase)), &Switches::default());
        assert_eq!(now, Verdict::Free("its pod has finished"));
    }
    let patient = Switches { additional_grace_ms: 30_000, ..Switches::default() };
    let later = verdict("up", Some(finished("Failed")), &patient);
    assert_eq!(later, Verdict::Wait(NOW + 20_000));
    // Evicted before any container ran: the record's own age counts.
    let evicted = pod("u1", json!({}), json!({"phase": "Failed", "reason": "Evicted"}));
    assert!(frees(verdict("up", Some(evicted), &patient)));
}

#[test]
fn every_switch_is_honoured() {
    let off = Switches { enabled: false, ..Switches::default() };
    assert_eq!(verdict("up", None, &off), Verdict::Keep("reclaiming is switched off"));
    let past = || terminating("2026-01-01T00:00:30Z", ended());
    let not_ready = Switches { on_ready_node: false, ..Switches::default() };
    assert!(!frees(verdict("up", Some(past()), &not_ready)));
    assert!(frees(verdict("down", Some(past()), &not_ready)));
    let not_lost = Switches { on_lost_node: false, ..Switches::default() };
    assert!(frees(verdict("up", Some(past()), &not_lost)));
    for on in ["down", "gone"] {
        assert!(!frees(verdict(on, Some(past()), &not_lost)));
        assert!(!frees(verdict(on, None, &not_lost)));
    }
    let without = || pod("u1", json!({}), json!({"phase": "Running"}));
    assert!(!frees(verdict("up", Some(without()), &Switches::default())));
    let empty = Switches { running_without_addresses: true, ..Switches::default() };
    assert!(frees(verdict("up", Some(without()), &empty)));
    let unknown = pod("u1", json!({}), json!({"phase": "Unknown"}));
    assert!(frees(verdict("down", Some(unknown), &Switches::default())));
}

#[test]
fn ordinals_of_a_stateful_set_keep_theirs() {
    let mut cluster = Cluster::new();
    cluster.stateful_sets.insert(key("web"), StatefulSetFact { start: 2, replicas: 2 });
    let on = Switches::default();
    for (name, kept) in [("web-1", false), ("web-2", true), ("web-3", true), ("web-4", false)] {
        assert_eq!(!frees(cluster.judge(&entry(name, "up"), &on)), kept, "{name}");
    }
    let off = Stickiness { stateful_sets: false, ..Stickiness::default() };
    let off = Switches { stickiness: off, ..on };
    assert!(frees(cluster.judge(&entry("web-2", "up"), &off)));
    // The next pod of the ordinal takes the record over, unless it runs already with other addresses.
    let named = |uid: &str, status| pod(uid, json!({"name": "web-2"}), status);
    let starting = cluster.with(named("u2", json!({"phase": "Pending"})));
    assert!(!frees(starting.judge(&entry("web-2", "up"), &on)));
    let runs = starting.with(named("u2", running()));
    assert!(frees(runs.judge(&entry("web-2", "up"), &on)));
    // A pod beyond the ordinals keeps its address until it is gone.
    let mut shrunk = runs.with(named("u1", running()));
    shrunk.stateful_sets.insert(key("web"), StatefulSetFact { start: 0, replicas: 1 });
    assert!(!frees(shrunk.judge(&entry("web-2", "up"), &on)));
    // A terminating or finished pod of a valid ordinal keeps it as well.
    shrunk.stateful_sets.insert(key("web"), StatefulSetFact { start: 0, replicas: 3 });
    let mut dying = terminating("2026-01-01T00:00:30Z", ended());
    dying.metadata.name = "web-2".into();
    assert!(!frees(shrunk.with(dying).judge(&entry("web-2", "up"), &on)));
}

/// No other node may take over what is held there, and a node that is lost gives nothing back.
#[test]
fn what_outlives_its_pod_leaves_a_node_that_is_lost() {
    let on = Switches::default();
    let mut cluster = Cluster::new();
    cluster.stateful_sets.insert(key("web"), StatefulSetFact { start: 0, replicas: 1 });
    let living = MachineFact { machine_lives: true, ..MachineFact::default() };
    cluster.machines.insert(key("vm"), living);
    let detaches = |verdict| matches!(verdict, Verdict::Detach(_));
    for name in ["web-0", "virtualmachineinstance/vm"] {
        for (node, lost) in [("up", false), ("down", true), ("gone", true), ("", false)] {
            let verdict = cluster.judge(&entry(name, node), &on);
            assert_eq!(detaches(verdict), lost, "{name} on {node}: {verdict:?}");
            assert!(!frees(verdict), "{name} on {node}: {verdict:?}");
        }
    }
    let named = |uid: &str| pod(uid, json!({"name": "web-0"}), json!({"phase": "Pending"}));
    let own = cluster.with(named("u1"));
    assert!(!detaches(own.judge(&entry("web-0", "gone"), &on)), "its own pod may still run there");
    let next = own.with(named("u2"));
    assert!(detaches(next.judge(&entry("web-0", "gone"), &on)), "the next pod waits for it");
    let owner = json!([{"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
                        "name": "vm", "uid": "v", "controller": true}]);
    let meta = json!({"name": "virt-launcher-vm-x", "ownerReferences": owner});
    let mut launcher = pod("l", meta, running());
    launcher.spec.node_name = "down".into();
    let runs = next.with(launcher);
    assert!(!detaches(runs.judge(&entry("virtualmachineinstance/vm", "down"), &on)));
    assert!(detaches(runs.judge(&entry("virtualmachineinstance/vm", "gone"), &on)));
    // What was kept, of an ordinal that is no more: no switch for nodes concerns it.
    let neither = Switches { on_ready_node: false, on_lost_node: false, ..on };
    assert!(frees(Cluster::new().judge(&entry("web-0", ""), &neither)));
}

#[test]
fn virtual_machines_keep_theirs_while_they_live() {
    let record = entry("virtualmachineinstance/vm", "up");
    let on = Switches::default();
    let fact = |instance_lives, restarts, machine_lives| MachineFact {
        instance_lives,
        restarts,
        machine_lives,
        runs_on: String::new(),
    };
    for (fact, kept) in [
        (fact(true, false, false), true),
        (fact(false, true, false), true),
        (fact(false, false, true), true),
        (fact(false, false, false), false),
    ] {
        let mut cluster = Cluster::new();
        cluster.machines.insert(key("vm"), fact.clone());
        assert_eq!(!frees(cluster.judge(&record, &on)), kept, "{fact:?}");
        let off = Stickiness { machines: false, ..Stickiness::default() };
        assert!(frees(cluster.judge(&record, &Switches { stickiness: off, ..on })));
    }
    // Nothing is left of the machine, but its launcher still runs.
    let owner = json!([{"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
                        "name": "vm", "uid": "v", "controller": true}]);
    let launcher =
        pod("u1", json!({"name": "virt-launcher-vm-x", "ownerReferences": owner}), running());
    let identity = identity(&launcher, Stickiness::default());
    assert_eq!(Some(&identity.owner), record.owner.as_ref());
    assert!(identity.sticky);
    assert!(!frees(Cluster::new().with(launcher).judge(&record, &on)));
}

fn launcher(name: &str, node: &str) -> Pod {
    let owner = json!([{"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
                        "name": "vm", "uid": "v", "controller": true}]);
    let mut pod = pod(name, json!({"name": name, "ownerReferences": owner}), running());
    pod.spec.node_name = node.into();
    pod
}

/// While it migrates it is at its source. A source that does not give its addresses up, or that is lost, does
/// not keep them from the machine.
#[test]
fn a_machine_that_has_moved_leaves_the_node_that_it_came_from() {
    let record = entry("virtualmachineinstance/vm", "down");
    let on = Switches::default();
    let runs_on = |node: &str| {
        let mut cluster = Cluster::new().with(launcher("source", "down"));
        cluster = cluster.with(launcher("target", "up"));
        let fact =
            MachineFact { instance_lives: true, runs_on: node.into(), ..MachineFact::default() };
        cluster.machines.insert(key("vm"), fact);
        cluster
    };
    assert_eq!(runs_on("down").judge(&record, &on), Verdict::Keep("its virtual machine runs"));
    assert_eq!(runs_on("").judge(&record, &on), Verdict::Keep("its virtual machine runs"));
    let moved = Verdict::Detach("its virtual machine has moved to another node");
    assert_eq!(runs_on("up").judge(&record, &on), moved);
    // Nothing of it is where it is said to run.
    assert_eq!(runs_on("third").judge(&record, &on), Verdict::Keep("its virtual machine runs"));
    // What is on no node, or where the machine is, stays so.
    for node in ["", "up"] {
        let record = entry("virtualmachineinstance/vm", node);
        assert!(matches!(runs_on("up").judge(&record, &on), Verdict::Keep(_)), "{node}");
    }
    // Only then is it worth asking where it runs.
    let pods = runs_on("up").pods;
    assert!(may_have_moved(&record, &pods));
    assert!(!may_have_moved(&entry("virtualmachineinstance/vm", ""), &pods));
    assert!(!may_have_moved(&entry("target", "down"), &pods));
    let alone = Cluster::new().with(launcher("source", "down"));
    assert!(!may_have_moved(&record, &alone.pods));
    // Its instance is gone: the launcher at the record's node decides, not that of another node.
    let mut finished = runs_on("up");
    finished.machines.clear();
    assert_eq!(finished.judge(&record, &on), Verdict::Keep("its pod runs"));
}

#[test]
fn identities() {
    let owned = |kind: &str, api: &str| {
        let owner =
            json!([{"apiVersion": api, "kind": kind, "name": "o", "uid": "v", "controller": true}]);
        identity(&pod("u1", json!({"ownerReferences": owner}), json!({})), Stickiness::default())
    };
    assert!(owned("StatefulSet", "apps/v1").sticky);
    assert!(!owned("StatefulSet", "apps.kruise.io/v1").sticky);
    assert!(!owned("ReplicaSet", "apps/v1").sticky);
    let off = Stickiness { stateful_sets: false, machines: false };
    assert!(!identity(&pod("u1", json!({}), json!({})), off).sticky);
    for (name, expected) in [
        ("web-0", Some(("web", 0))),
        ("a-b-12", Some(("a-b", 12))),
        ("web-01", None),
        ("web", None),
        ("web-x", None),
        ("web-+1", None),
    ] {
        assert_eq!(ordinal_of(name), expected, "{name}");
    }
}

#[test]
fn a_node_that_is_gone_holds_nothing() {
    let own = Entry { owner: Some(Owner::Node { name: "gone".into() }), ..entry("", "gone") };
    assert!(frees(Cluster::new().judge(&own, &Switches::default())));
    let lives = Entry { owner: Some(Owner::Node { name: "down".into() }), ..own.clone() };
    assert!(!frees(Cluster::new().judge(&lives, &Switches::default())));

    let mut block = AddressBlock::around("default", own.address);
    block.spec.node = Some("gone".into());
    block.put(own);
    let pods = Entry { address: "10.0.0.6".parse().unwrap(), ..entry("a", "gone") };
    block.put(pods.clone());
    let mut view = View::new("default", [block]);
    assert_eq!(
        plan_node_gone(&mut view, "gone", NOW),
        ["10.0.0.5".parse::<std::net::IpAddr>().unwrap()]
    );
    let written = view.writes().next().unwrap();
    assert_eq!(written.spec.node, None);
    assert_eq!(written.entry(pods.address), Some(&pods), "pods are judged one by one");
    assert!(!written.entry("10.0.0.5".parse().unwrap()).unwrap().state.is_held());
}

#[test]
fn what_nobody_holds_is_left_alone() {
    let released = Entry { state: EntryState::Released, ..entry("a", "up") };
    assert!(!frees(Cluster::new().judge(&released, &Switches::default())));
}
