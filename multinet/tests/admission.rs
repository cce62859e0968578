//! Pods at their creation: refused is what no later object can cure; the rest warns.
#![allow(missing_docs, reason = "a test has no users")]

mod common;

use common::checked;
use multinet::pod::validate_pod;
use multinet::rules::{Checked, Problem};
use multinet::types::core::{Namespace, Pod};
use serde_json::json;

fn world() -> Checked {
    checked(
        "kind: Network
apiVersion: bowline.dev/v1alpha1
metadata: {name: blue}
spec: {vni: 5, ipPools: {ipv4: [blue-v4]}, namespaceSelector: {matchLabels: {team: a}}, interface: {maxQueues: 4}}
---
kind: SpiderIPPool
apiVersion: spiderpool.spidernet.io/v2beta1
metadata: {name: blue-v4}
spec: {subnet: 10.0.0.0/24, ips: [10.0.0.10-10.0.0.20]}
---
kind: SpiderSubnet
apiVersion: spiderpool.spidernet.io/v2beta1
metadata: {name: s4}
spec: {subnet: 10.6.0.0/16, ips: [10.6.0.10-10.6.0.20]}
",
    )
}

fn pod(annotations: &[(&str, &str)], controlled: bool) -> Pod {
    let notes: std::collections::BTreeMap<_, _> = annotations.iter().copied().collect();
    let owners = if controlled {
        json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "u", "controller": true}])
    } else {
        json!([])
    };
    let metadata =
        json!({"name": "p", "namespace": "shop", "annotations": notes, "ownerReferences": owners});
    serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata}))
        .unwrap()
}

fn namespace(team: &str) -> Namespace {
    let metadata = json!({"name": "shop", "labels": {"team": team}});
    let value = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata});
    serde_json::from_value(value).unwrap()
}

fn check(annotations: &[(&str, &str)]) -> Vec<Problem> {
    validate_pod(&world(), &pod(annotations, true), Some(&namespace("a")))
}

/// One annotation, and how its one problem begins: `!` an error, `?` a warning, empty: none.
#[test]
fn every_annotation_has_its_sentence() {
    let ippools = "ipam.spidernet.io/ippools";
    let subnets = "ipam.spidernet.io/subnets";
    let number = "ipam.spidernet.io/ippool-ip-number";
    let networks = "k8s.v1.cni.cncf.io/networks";
    let interfaces = "bowline.dev/interfaces";
    for (key, value, expected) in [
        (interfaces, r#"[{"name": "eth1", "network": "blue", "ips": ["10.0.0.12"]}]"#, ""),
        (interfaces, r#"[{"name": "eth1"}]"#, "!bowline.dev/interfaces[0].network: must name"),
        (interfaces, r#"[{"name": "eth0", "network": "blue"}]"#, "!bowline.dev/interfaces[0].name"),
        (
            interfaces,
            r#"[{"name": "eth1", "network": "blue", "rxQueues": 5}]"#,
            "!bowline.dev/interfaces[0].rxQueues: \"5\": is more than Network blue allows",
        ),
        (
            interfaces,
            r#"[{"name": "eth1", "network": "red"}]"#,
            "?bowline.dev/interfaces[0].network: \"red\": does not exist",
        ),
        (
            interfaces,
            r#"[{"name": "eth1", "network": "blue", "ips": ["10.0.0.99"]}]"#,
            "?bowline.dev/interfaces[0].ips: \"10.0.0.99\": is in no pool of Network blue",
        ),
        (
            interfaces,
            r#"[{"name": "eth1", "network": "blue", "bandwidth": 5}]"#,
            "!bowline.dev/interfaces[0].bandwidth: \"5\": is not honoured here",
        ),
        (networks, "blue@memif1, kube-system/macvlan", ""),
        (networks, "blue@eth0", "!k8s.v1.cni.cncf.io/networks[0].interface: \"eth0\": is the name"),
        (networks, "blue@a,blue@a", "!k8s.v1.cni.cncf.io/networks[1].interface: \"a\""),
        (networks, "[{", "!k8s.v1.cni.cncf.io/networks: \"[{\": is not a JSON list"),
        (
            networks,
            r#"[{"name": "blue", "bandwidth": {}}]"#,
            "!k8s.v1.cni.cncf.io/networks[0].bandwidth: is not honoured by Bowline",
        ),
        (networks, r#"[{"name": "macvlan", "bandwidth": {}}]"#, ""),
        (ippools, r#"[{"interface": "eth0", "ipv4": ["blue-v4", "x*"]}]"#, ""),
        (ippools, r#"[{"ipv4": ["blue-v4"]}, {"ipv4": ["blue-v4"]}]"#, ""),
        (ippools, "[]", "!ipam.spidernet.io/ippools: \"[]\": must name the interface of every"),
        (
            ippools,
            r#"[{"interface": "eth0", "ipv4": ["blue-v4"]}, {"ipv4": ["blue-v4"]}]"#,
            "!ipam.spidernet.io/ippools",
        ),
        (
            ippools,
            r#"[{"interface": "eth0"}, {"interface": "eth0"}]"#,
            "!ipam.spidernet.io/ippools[1].interface: \"eth0\": is listed twice",
        ),
        (
            ippools,
            r#"[{"interface": "net9", "ipv4": ["blue-v4"]}]"#,
            "?ipam.spidernet.io/ippools.interface: \"net9\": is no interface",
        ),
        (
            ippools,
            r#"[{"interface": "eth0", "ipv4": ["none"]}]"#,
            "?ipam.spidernet.io/ippools: \"none\": does not exist",
        ),
        ("ipam.spidernet.io/ippool", r#"{"ipv4": ["blue-v4"]}"#, ""),
        (
            "ipam.spidernet.io/ippool",
            "blue-v4",
            "!ipam.spidernet.io/ippool: \"blue-v4\": is not JSON",
        ),
        ("ipam.spidernet.io/subnet", r#"{"ipv4": ["s4"]}"#, ""),
        ("ipam.spidernet.io/subnet", "{}", "!ipam.spidernet.io/subnet: names no subnet"),
        (
            "ipam.spidernet.io/subnet",
            r#"{"ipv4": ["none"]}"#,
            "?ipam.spidernet.io/subnets: \"none\"",
        ),
        (
            "ipam.spidernet.io/subnet",
            r#"{"ipv4": ["s*"]}"#,
            "!ipam.spidernet.io/subnet: \"s*\": is a pattern",
        ),
        (subnets, r#"[{"ipv4": ["s4"]}]"#, "!ipam.spidernet.io/subnets[0].interface: is missing"),
        (
            subnets,
            r#"[{"interface": "eth0", "ipv4": ["s4"]}, {"interface": "net1", "ipv4": ["s4"]}]"#,
            "!ipam.spidernet.io/subnets[1]: \"s4\": serves two interfaces",
        ),
        (
            subnets,
            r#"[{"interface": "eth0", "ipv4": ["s4"]}, {"interface": "eth0", "ipv4": ["s5"]}]"#,
            "!ipam.spidernet.io/subnets[1].interface: \"eth0\": is listed twice",
        ),
        (number, "2", ""),
        (number, "+0", ""),
        (number, "-1", "!ipam.spidernet.io/ippool-ip-number: \"-1\": is no size"),
        (number, "0", "!ipam.spidernet.io/ippool-ip-number: \"0\""),
        (number, "++1", "!ipam.spidernet.io/ippool-ip-number: \"++1\""),
        ("ipam.spidernet.io/ippool-reclaim", "false", ""),
        ("ipam.spidernet.io/ippool-reclaim", "no", "!ipam.spidernet.io/ippool-reclaim: \"no\""),
        ("ipam.spidernet.io/routes", r#"[{"dst": "10.0.0.0/16", "gw": "192.168.1.1"}]"#, ""),
        (
            "ipam.spidernet.io/routes",
            r#"[{"dst": "10.0.0.0/16", "gw": "fd00::1"}]"#,
            "!ipam.spidernet.io/routes[0].gw: \"fd00::1\": is not IPv4",
        ),
        ("ipam.spidernet.io/default-route-nic", "eth0", ""),
        (
            "ipam.spidernet.io/default-route-nic",
            "net1",
            "!ipam.spidernet.io/default-route-nic: \"net1\": is no interface of the pod; it has eth0",
        ),
        (
            "bowline.dev/interface",
            "[]",
            "?bowline.dev/interface: \"[]\": is read by nobody on a pod; known are bowline.dev/interfaces",
        ),
        ("ipam.spidernet.io/ipool", "{}", "?ipam.spidernet.io/ipool: \"{}\": is read by nobody"),
        ("somebody.example/else", "x", ""),
    ] {
        let found = check(&[(key, value)]);
        let written: Vec<String> =
            found.iter().map(|p| format!("{}{p}", if p.is_error() { '!' } else { '?' })).collect();
        assert_eq!(written.len(), usize::from(!expected.is_empty()), "{key} {value}: {written:?}");
        assert!(written.iter().all(|w| w.starts_with(expected)), "{key} {value}: {written:?}");
    }
}

#[test]
fn a_pod_without_controller_has_no_automatic_pool() {
    let orphan = pod(&[("ipam.spidernet.io/subnet", r#"{"ipv4": ["s4"]}"#)], false);
    let found = validate_pod(&world(), &orphan, Some(&namespace("a")));
    assert!(
        found[0].is_error() && found[0].message.contains("this pod has no controller"),
        "{found:?}"
    );
}

#[test]
fn a_namespace_that_a_network_does_not_admit_is_warned_since_a_label_cures_it() {
    for annotation in [
        ("bowline.dev/interfaces", r#"[{"name": "eth1", "network": "blue"}]"#),
        ("k8s.v1.cni.cncf.io/networks", "blue"),
    ] {
        let asking = pod(&[annotation], true);
        let found = validate_pod(&world(), &asking, Some(&namespace("b")));
        assert!(
            !found[0].is_error() && found[0].message.contains("does not admit namespace shop"),
            "{found:?}"
        );
    }
}

#[test]
fn named_pools_cover_every_interface_of_bowline() {
    let found = check(&[
        ("bowline.dev/interfaces", r#"[{"name": "eth1", "network": "blue"}]"#),
        ("ipam.spidernet.io/ippools", r#"[{"interface": "eth0", "ipv4": ["blue-v4"]}]"#),
    ]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].is_error() && found[0].message.contains("lists no pools for eth1"),
        "{found:?}"
    );
}

#[test]
fn two_annotations_do_not_name_one_interface() {
    let found = check(&[
        ("bowline.dev/interfaces", r#"[{"name": "net1", "network": "blue"}]"#),
        ("k8s.v1.cni.cncf.io/networks", "blue"),
    ]);
    assert!(
        found[0].is_error() && found[0].message.contains("k8s.v1.cni.cncf.io/networks as well"),
        "{found:?}"
    );
}

#[test]
fn pods_of_the_nodes_network_are_only_told() {
    let mut pod = pod(&[("ipam.spidernet.io/ippool", "x"), ("other", "y")], true);
    pod.spec.host_network = true;
    let found = validate_pod(&world(), &pod, None);
    assert_eq!(found.len(), 1);
    assert!(!found[0].is_error());
}
