//! What a running Spiderpool has given becomes claims; what cannot be told is left out and said.
#![allow(clippy::needless_pass_by_value, reason = "values are written where they are used")]
#![allow(missing_docs, reason = "a test has no users")]

mod common;

use common::catalog;
use multinet::ipam::{
    Candidate, Living, Pods, Request, Taken, View, is_imported, plan_claim, plan_import, plan_take,
};
use multinet::range::Family;
use multinet::rules::{Checked, Home};
use multinet::types::block::{Entry, Owner};
use multinet::types::endpoint::SpiderEndpoint;
use serde_json::json;

const POOLS: &str = "kind: SpiderIPPool
apiVersion: spiderpool.spidernet.io/v2beta1
metadata: {name: p}
spec: {subnet: 10.0.0.0/24, ips: [10.0.0.2-10.0.0.20]}
---
kind: SpiderIPPool
apiVersion: spiderpool.spidernet.io/v2beta1
metadata: {name: broken}
spec: {subnet: 10.1.0.1/24}
---
kind: SpiderIPPool
apiVersion: spiderpool.spidernet.io/v2beta1
metadata: {name: odd}
spec: {subnet: 10.2.0.0/24}
";

fn endpoint(name: &str, kind: &str, ips: serde_json::Value) -> SpiderEndpoint {
    let current = json!({"uid": format!("uid-{name}"), "node": "n1", "ips": ips});
    serde_json::from_value(json!({
        "apiVersion": "spiderpool.spidernet.io/v2beta1", "kind": "SpiderEndpoint",
        "metadata": {"name": name, "namespace": "shop"},
        "status": {"current": current, "ownerControllerType": kind, "ownerControllerName": "o"},
    }))
    .unwrap()
}

#[test]
fn running_pods_keep_their_addresses() {
    let mut catalog = catalog(POOLS);
    let of = |pod: &str, uid: &str| json!({"pod": pod, "podUid": uid});
    let list = json!({
        "10.0.0.2": of("shop/a", "uid-a"),
        "10.0.0.3": of("shop/a", "uid-a"),
        "10.0.0.4": of("shop/vm", "uid-vm"),
        "10.0.0.5": of("shop/alone", "uid-alone"),
        "10.0.0.6": of("shop/lost", "uid-lost"),
        "10.0.0.7": of("shop/b", "uid-of-an-older-life"),
        "10.0.0.8": {"pod": "shop/old", "podUid": "uid-old", "interface": "net1"},
        "10.0.0.9": of("", ""),
        "10.0.0.10": of("shop/db-0", "uid-db-0"),
        "10.0.0.11": of("shop/gone", "uid-gone"),
        "10.0.0.12": of("shop/again", "uid-of-an-older-life"),
    });
    let mut set = |pool: &str, text: String| {
        let status = &mut catalog.pools.get_mut(pool).unwrap().status;
        status.get_or_insert_default().allocated_ips = Some(text);
    };
    set("p", list.to_string());
    set("broken", json!({"10.1.0.5": of("shop/c", "uid-c")}).to_string());
    set("odd", "{".into());
    let endpoints = [
        endpoint(
            "a",
            "Deployment",
            json!([
                {"interface": "eth0", "ipv4": "10.0.0.2/24", "ipv4Pool": "p"},
                {"interface": "net1", "ipv4": "10.0.0.3/24", "ipv4Pool": "p"},
            ]),
        ),
        endpoint(
            "vm",
            "VirtualMachineInstance",
            json!([{"interface": "eth0", "ipv4": "10.0.0.4/24"}]),
        ),
        endpoint("b", "Deployment", json!([{"interface": "eth0", "ipv4": "10.0.0.7/24"}])),
        endpoint("db-0", "StatefulSet", json!([{"interface": "eth0", "ipv4": "10.0.0.10/24"}])),
        endpoint("gone", "Deployment", json!([{"interface": "eth0", "ipv4": "10.0.0.11/24"}])),
    ];
    let living = |name: &str, node: &str| {
        let pod = Living { uid: format!("uid-{name}"), node: node.into() };
        (("shop".to_string(), name.to_string()), pod)
    };
    let pods = Pods::from([
        living("a", "n1"),
        living("b", "n1"),
        living("alone", "n2"),
        living("old", "n3"),
        living("again", "n3"),
    ]);
    let checked = Checked::new(&catalog);
    let import = plan_import(&checked, &catalog.pools, &endpoints, &pods, 7);

    let claims = &import.claims[&Home::Lan];
    assert_eq!(import.claims.len(), 1);
    let line = |e: &Entry| {
        format!("{} {} {} {}", e.address, e.owner.as_ref().unwrap(), e.interface, e.node)
    };
    let seen: Vec<String> = claims.iter().map(line).collect();
    assert_eq!(
        seen,
        [
            "10.0.0.2 pod shop/a eth0 n1",
            "10.0.0.3 pod shop/a net1 n1",
            "10.0.0.4 pod shop/virtualmachineinstance/vm eth0 n1",
            "10.0.0.5 pod shop/alone eth0 n2",
            "10.0.0.8 pod shop/old net1 n3",
            // Its next pod may run anywhere.
            "10.0.0.10 pod shop/db-0 eth0 ",
        ]
    );
    let notes: Vec<String> = import.notes.iter().map(ToString::to_string).collect();
    for (note, expected) in notes.iter().zip([
        "SpiderIPPool broken: metadata.name: \"broken\": is refused, and 1 addresses of it are in use",
        "SpiderIPPool odd: status.allocatedIPs: \"{\": is not read",
        "SpiderIPPool p: status.allocatedIPs: \"10.0.0.6\": is of pod shop/lost, which is gone",
        "SpiderIPPool p: status.allocatedIPs: \"10.0.0.7\": is of another life of the pod",
        "SpiderIPPool p: status.allocatedIPs: \"10.0.0.9\": names no pod",
        "SpiderIPPool p: status.allocatedIPs: \"10.0.0.11\": is of pod shop/gone, which is gone",
        "SpiderIPPool p: status.allocatedIPs: \"10.0.0.12\": is of pod shop/again, which is gone",
    ]) {
        assert!(note.starts_with(expected), "{note}: {notes:?}");
    }
    assert_eq!(notes.len(), 7, "{notes:?}");
    // Where nobody knows who has what, nothing should be imported.
    let errors: Vec<bool> = import.notes.iter().map(|note| note.problem.is_error()).collect();
    assert_eq!(errors, [true, true, false, false, false, false, false]);
    assert!(is_imported(&claims[0], "n1", "uid-a"));
    assert!(!is_imported(&claims[0], "n2", "uid-a") && !is_imported(&claims[0], "n1", "uid-b"));

    // Written once; a second run finds everything in place.
    let mut view = View::new("", []);
    for expected in [Taken::New, Taken::Already] {
        for record in claims {
            assert_eq!(plan_take(&mut view, record), expected);
        }
    }
    let mut theirs = claims[0].clone();
    theirs.owner = Some(Owner::Pod { namespace: "x".into(), name: "y".into(), uid: "z".into() });
    assert_eq!(plan_take(&mut view, &theirs), Taken::Held("pod shop/a".into()));

    // The next ADD of the pod finds its address, and takes it along to its sandbox.
    let (home, p) = &checked.pools["p"];
    let request = Request {
        owner: claims[1].owner.clone().unwrap(),
        interface: "net1".into(),
        family: Family::V4,
        sandbox_id: "new".into(),
        node: "n1".into(),
        candidates: vec![Candidate::new(&checked, home, p)],
        exact: None,
        sticky: false,
        moves: false,
        cluster_nodes: 1,
    };
    let claim = plan_claim(&mut view, &request, 0, 8).unwrap();
    assert_eq!((claim.address.to_string().as_str(), claim.fresh), ("10.0.0.3", false));
}
