//! Every rule: a good object passes, and one with a single fault is refused with its sentence.
#![allow(missing_docs, reason = "a test has no users")]

mod common;

use std::net::Ipv4Addr;

use common::{catalog, parse};
use ipnet::Ipv4Net;
use multinet::rules::{
    Catalog, Checked, Home, Problem, taken_by, validate_block, validate_network,
    validate_network_update, validate_node_state, validate_pool, validate_pool_update,
};
use multinet::types::block::AddressBlock;
use multinet::types::core::ServiceCIDR;
use multinet::types::meta::Resource;
use multinet::types::network::{Network, NetworkStatus};
use multinet::types::node::NodeState;
use multinet::types::pool::{SpiderIPPool, annotation};
use serde_yaml_ng::Value;

fn object<R: Resource>(name: &str, spec: &str) -> R {
    let text = format!(
        "apiVersion: {}\nkind: {}\nmetadata: {{name: {name}}}\nspec: {spec}",
        R::API_VERSION,
        R::KIND
    );
    parse(serde_yaml_ng::from_str::<Value>(&text).unwrap())
}

fn texts(problems: &[Problem]) -> Vec<String> {
    problems.iter().map(ToString::to_string).collect()
}

fn network(spec: &str) -> Vec<String> {
    texts(&validate_network(&object::<Network>("blue", spec)))
}

#[test]
fn networks() {
    let good = "{vni: 56, mtu: 1400, ipPools: {ipv4: [a], ipv6: [b]}, physicalNetwork: storage, \
                peers: [{vtep: 192.0.2.1, mac: '0e:00:00:00:00:01', prefixes: [10.9.0.0/16]}], \
                interface: {type: memif, rxQueues: 8, ringSize: 4096}, \
                namespaceSelector: {matchExpressions: [{key: team, operator: In, values: [a]}]}}";
    assert_eq!(network(good), Vec::<String>::new());
    assert_eq!(network("{encapsulation: VLAN, vlanID: 100}"), Vec::<String>::new());
    assert_eq!(network("{encapsulation: None}"), Vec::<String>::new());
    let cases = [
        (
            "{vni: 0}",
            "spec.vni: \"0\": must be 1 to 16777215; leave it out to have a free one chosen",
        ),
        ("{vni: 16777216}", "spec.vni: \"16777216\": must be 1 to 16777215"),
        ("{encapsulation: None, vni: 5}", "spec.vni: \"5\": belongs to encapsulation VXLAN only"),
        ("{encapsulation: VLAN}", "spec.vlanID: is missing"),
        (
            "{encapsulation: VLAN, vlanID: 4095}",
            "spec.vlanID: \"4095\": must be 0 (untagged) to 4094",
        ),
        ("{vni: 1, vlanID: 7}", "spec.vlanID: \"7\": belongs to encapsulation VLAN only"),
        ("{vni: 1, mtu: 67}", "spec.mtu: \"67\": must be 68 to 9216"),
        ("{vni: 1, mtu: 9217}", "spec.mtu: \"9217\""),
        ("{vni: 1, mtu: 1279, ipPools: {ipv6: [b]}}", "spec.mtu: \"1279\": must be 1280 to 9216"),
        ("{vni: 1, physicalNetwork: 'A b'}", "spec.physicalNetwork: \"A b\""),
        ("{vni: 1, ipPools: {ipv4: [a, a]}}", "spec.ipPools.ipv4[1]: \"a\": is named twice"),
        ("{vni: 1, ipPools: {ipv6: ['a/b']}}", "spec.ipPools.ipv6[0]: \"a/b\": is not the name"),
        (
            "{encapsulation: None, peers: [{vtep: 192.0.2.1, mac: '0e:00:00:00:00:01'}]}",
            "spec.peers: \"1\": belong to encapsulation VXLAN only",
        ),
        (
            "{vni: 1, peers: [{vtep: 224.0.0.1, mac: '0e:00:00:00:00:01'}]}",
            "spec.peers[0].vtep: \"224.0.0.1\": is not the address of one host",
        ),
        (
            "{vni: 1, peers: [{vtep: 192.0.2.1, mac: '01:00:5e:00:00:01'}]}",
            "spec.peers[0].mac: \"01:00:5e:00:00:01\": is not the address of one interface",
        ),
        (
            "{vni: 1, peers: [{vtep: 192.0.2.1, mac: '0e:00:00:00:00:01', prefixes: [10.0.0.1/8]}]}",
            "spec.peers[0].prefixes[0]: \"10.0.0.1/8\": has host bits set; write 10.0.0.0/8",
        ),
        (
            "{vni: 1, interface: {rxQueues: 9}}",
            "spec.interface.rxQueues: \"9\": must be 1 to 8 (spec",
        ),
        ("{vni: 1, interface: {txQueues: 0}}", "spec.interface.txQueues: \"0\": must be 1 to 8"),
        ("{vni: 1, interface: {maxQueues: 129}}", "spec.interface.maxQueues: \"129\""),
        (
            "{vni: 1, interface: {ringSize: 1000}}",
            "spec.interface.ringSize: \"1000\": must be a power",
        ),
        (
            "{vni: 1, interface: {ringSize: 8192}}",
            "spec.interface.ringSize: \"8192\": must be 32 to 4096",
        ),
        (
            "{vni: 1, namespaceSelector: {matchExpressions: [{key: a, operator: Like}]}}",
            "spec.namespaceSelector.matchExpressions[0].operator: \"Like\": is not In, NotIn",
        ),
        (
            "{vni: 1, namespaceSelector: {matchExpressions: [{key: a, operator: In}]}}",
            "spec.namespaceSelector.matchExpressions[0].values: is empty",
        ),
    ];
    for (spec, sentence) in cases {
        let found = network(spec);
        assert_eq!(found.len(), 1, "{spec}: {found:?}");
        assert!(found[0].starts_with(sentence), "{}\n{sentence}", found[0]);
    }
    let name = validate_network(&object::<Network>("blue.green", "{vni: 1}"));
    assert!(texts(&name)[0].starts_with("metadata.name: \"blue.green\""));
}

#[test]
fn changes_of_networks() {
    let old = object::<Network>("blue", "{vni: 56}");
    let same = object::<Network>("blue", "{vni: 56, mtu: 1400}");
    assert!(validate_network_update(&old, &same, true).is_empty());
    let other = object::<Network>("blue", "{vni: 57}");
    let found = texts(&validate_network_update(&old, &other, false));
    assert_eq!(found, ["spec.vni: \"57\": cannot be changed from 56; make a new Network"]);
    // One that was chosen by the controller is as fixed; so is one that nobody has written down yet.
    let given = |spec: &str, vni: Option<u32>| -> Network {
        let status = Some(NetworkStatus { vni, ..NetworkStatus::default() });
        Network { status, ..object("blue", spec) }
    };
    let change = |old: &Network, new: &Network| texts(&validate_network_update(old, new, false));
    let chosen = given("{}", Some(7));
    assert_eq!(
        change(&chosen, &given("{vni: 8}", Some(7))),
        ["spec.vni: \"8\": cannot be changed from 7; make a new Network"]
    );
    assert!(change(&chosen, &given("{vni: 7}", Some(7))).is_empty());
    assert!(change(&given("{vni: 7}", Some(7)), &chosen).is_empty());
    assert_eq!(
        change(&old, &given("{}", None)),
        ["spec.vni: cannot be changed from 56; make a new Network"]
    );
    let vlan = object::<Network>("blue", "{encapsulation: VLAN, vlanID: 1}");
    assert!(validate_network_update(&old, &vlan, false).is_empty());
    assert!(
        texts(&validate_network_update(&old, &vlan, true))[0].contains("while pods are attached")
    );
    let moved = object::<Network>("blue", "{vni: 56, physicalNetwork: storage}");
    assert_eq!(validate_network_update(&old, &moved, true).len(), 1);
}

#[test]
fn pools() {
    let pool = |spec: &str| texts(&validate_pool(&object::<SpiderIPPool>("p", spec)));
    let good = "{ipVersion: 4, subnet: 10.0.0.0/24, ips: [10.0.0.1-10.0.0.9, 10.0.0.20], \
                excludeIPs: [10.0.0.1], gateway: 10.0.0.1, routes: [{dst: 10.1.0.0/16, gw: 10.0.0.2}], \
                podAffinity: {matchLabels: {a: b}}}";
    assert_eq!(pool(good), Vec::<String>::new());
    assert_eq!(
        pool("{subnet: 'fd00::/64', ips: ['fd00::1-fd00::ff'], gateway: ''}"),
        Vec::<String>::new()
    );
    let cases = [
        ("{}", "spec.subnet: is not a prefix"),
        ("{subnet: 10.0.0.0}", "spec.subnet: \"10.0.0.0\": is not a prefix"),
        (
            "{subnet: 10.0.0.1/24}",
            "spec.subnet: \"10.0.0.1/24\": is not in its plain form; write 10.0.0.0/24",
        ),
        (
            "{subnet: 'fd00:0::/64'}",
            "spec.subnet: \"fd00:0::/64\": is not in its plain form; write fd00::/64",
        ),
        (
            "{ipVersion: 6, subnet: 10.0.0.0/24}",
            "spec.ipVersion: \"6\": spec.subnet is IPv4; write 4",
        ),
        (
            "{subnet: 10.0.0.0/24, ips: [10.0.1.1]}",
            "spec.ips: \"10.0.1.1\": is outside spec.subnet 10.0.0.0/24",
        ),
        ("{subnet: 10.0.0.0/24, ips: [x]}", "spec.ips: \"x\": is neither an address nor a range"),
        ("{subnet: 10.0.0.0/24, ips: ['fd00::1']}", "spec.ips: \"fd00::1\": is not IPv4"),
        (
            "{subnet: 10.0.0.0/24, excludeIPs: [10.0.0.9-10.0.0.1]}",
            "spec.excludeIPs: \"10.0.0.9-10.0.0.1\": ends before",
        ),
        (
            "{subnet: 10.0.0.0/24, excludeIPs: [10.0.1.9]}",
            "spec.excludeIPs: \"10.0.1.9\": is outside",
        ),
        (
            "{subnet: 10.0.0.0/24, gateway: 10.0.1.1}",
            "spec.gateway: \"10.0.1.1\": is outside spec.subnet",
        ),
        ("{subnet: 10.0.0.0/24, gateway: gw}", "spec.gateway: \"gw\": is not an address"),
        (
            "{subnet: 10.0.0.0/24, ips: [10.0.0.1-10.0.0.3], gateway: 10.0.0.1}",
            "spec.gateway: \"10.0.0.1\": is in spec.ips",
        ),
        (
            "{subnet: 10.0.0.0/24, routes: [{dst: 0.0.0.0/0, gw: 10.0.0.1}]}",
            "spec.routes[0].dst: \"0.0.0.0/0\": is the default route; use spec.gateway",
        ),
        (
            "{subnet: 10.0.0.0/24, routes: [{dst: 'fd00::/64', gw: 10.0.0.1}]}",
            "spec.routes[0].dst: \"fd00::/64\": is not IPv4",
        ),
        (
            "{subnet: 10.0.0.0/24, routes: [{dst: x, gw: 10.0.0.1}]}",
            "spec.routes[0].dst: \"x\": is not a prefix",
        ),
        (
            "{subnet: 10.0.0.0/24, routes: [{dst: 10.1.0.0/16, gw: 10.1.0.1}]}",
            "spec.routes[0].gw: \"10.1.0.1\": is not an address of spec.subnet",
        ),
        (
            "{subnet: 10.0.0.0/24, routes: [{dst: 10.1.0.0/16, gw: 10.0.0.1}, {dst: 10.1.0.0/16, gw: 10.0.0.2}]}",
            "spec.routes[1].dst: \"10.1.0.0/16\": is routed twice",
        ),
        ("{subnet: 10.0.0.0/24, podAffinity: {}}", "spec.podAffinity: is empty"),
        (
            "{subnet: 10.0.0.0/24, nodeAffinity: {matchExpressions: [{key: '', operator: Exists}]}}",
            "spec.nodeAffinity.matchExpressions[0].key: is empty",
        ),
        (
            "{subnet: 10.0.0.0/24, namespaceAffinity: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}}",
            "spec.namespaceAffinity.matchExpressions[0].values: \"b\": must be empty with Exists",
        ),
    ];
    for (spec, sentence) in cases {
        let found = pool(spec);
        assert_eq!(found.len(), 1, "{spec}: {found:?}");
        assert!(found[0].starts_with(sentence), "{}\n{sentence}", found[0]);
    }
    for (key, value) in [
        ("allocation-strategy", "highest"),
        ("block-binding", "yes"),
        ("reuse-delay", "30"),
        ("masquerade", "no"),
    ] {
        let mut object = object::<SpiderIPPool>("p", "{subnet: 10.0.0.0/24}");
        object.metadata.annotations.insert(format!("bowline.dev/{key}"), value.into());
        let found = texts(&validate_pool(&object));
        let start = format!("metadata.annotations[bowline.dev/{key}]: \"{value}\": ");
        assert!(found.len() == 1 && found[0].starts_with(&start), "{found:?}");
    }
}

#[test]
fn changes_of_pools() {
    let pool = |spec: &str| object::<SpiderIPPool>("p", spec);
    let old = pool("{subnet: 10.0.0.0/24, ips: [10.0.0.1-10.0.0.9]}");
    let held = [("10.0.0.5".parse().unwrap(), "pod shop/a".to_string())];
    let smaller = pool("{subnet: 10.0.0.0/24, ips: [10.0.0.5]}");
    assert!(validate_pool_update(&old, &smaller, &held).is_empty());
    let excluded = pool("{subnet: 10.0.0.0/24, ips: [10.0.0.1-10.0.0.9], excludeIPs: [10.0.0.5]}");
    assert_eq!(
        texts(&validate_pool_update(&old, &excluded, &held)),
        ["spec.ips: \"10.0.0.5\": is held by pod shop/a and cannot be taken out of the pool"]
    );
    assert!(validate_pool_update(&old, &excluded, &[]).is_empty());
    let moved = pool("{subnet: 10.1.0.0/24}");
    assert_eq!(
        texts(&validate_pool_update(&old, &moved, &[])),
        ["spec.subnet: \"10.1.0.0/24\": cannot be changed from 10.0.0.0/24; make a new one"]
    );
    let (four, six) =
        (pool("{ipVersion: 4, subnet: 10.0.0.0/24}"), pool("{ipVersion: 6, subnet: 10.0.0.0/24}"));
    assert_eq!(
        texts(&validate_pool_update(&four, &six, &[])),
        [
            "spec.ipVersion: \"6\": spec.subnet is IPv4; write 4 or leave it out",
            "spec.ipVersion: \"6\": cannot be changed from 4; make a new one"
        ]
    );
    let mut elsewhere = old.clone();
    elsewhere.metadata.labels.insert("bowline.dev/network".into(), "red".into());
    assert!(validate_pool_update(&old, &elsewhere, &[]).is_empty());
    assert_eq!(
        texts(&validate_pool_update(&old, &elsewhere, &held)),
        [
            "metadata.labels[bowline.dev/network]: \"red\": cannot be changed while 1 addresses are in use"
        ]
    );
}

/// A finalizer holds a pool until its last address is free; until then it stays what it was.
#[test]
fn a_pool_on_its_way_out_keeps_its_spec() {
    let old = object::<SpiderIPPool>("p", "{subnet: 10.0.0.0/24, ips: [10.0.0.1-10.0.0.9]}");
    let mut more = object::<SpiderIPPool>("p", "{subnet: 10.0.0.0/24, ips: [10.0.0.1-10.0.0.20]}");
    assert_eq!(validate_pool_update(&old, &more, &[]), []);
    more.metadata.deletion_timestamp = Some("2026-01-01T00:00:00Z".into());
    assert_eq!(
        texts(&validate_pool_update(&old, &more, &[])),
        [
            "spec: cannot be changed while the object is being deleted; wait until it is gone and make a new one"
        ]
    );
    more.spec = old.spec.clone();
    more.metadata.labels.insert("team".into(), "a".into());
    more.metadata.finalizers.clear();
    assert_eq!(validate_pool_update(&old, &more, &[]), []);
}

#[test]
fn blocks_and_nodes() {
    let held = "{address: 10.0.0.65, state: Allocated, node: n1, owner: {kind: Node, name: n1}}";
    let block = |name: &str, cidr: &str, entries: &str| {
        let spec = format!("{{network: blue, cidr: {cidr}, entries: [{entries}]}}");
        let mut block = object::<AddressBlock>(name, &spec);
        block.metadata.labels.insert("bowline.dev/network".into(), "blue".into());
        texts(&validate_block(&block))
    };
    assert_eq!(block("blue.10-0-0-64", "10.0.0.64/26", held), Vec::<String>::new());
    assert_eq!(block("blue.fd00-0-0-0-0-0-0-40", "fd00::40/122", ""), Vec::<String>::new());
    for (name, cidr, entries, sentence) in [
        ("x", "10.0.0.64/25", "", "spec.cidr: \"10.0.0.64/25\": is not 64 aligned addresses"),
        ("x", "10.0.0.64/26", "", "metadata.name: \"x\": does not follow"),
        (
            "blue.10-0-0-64",
            "10.0.0.64/26",
            "{address: 10.0.0.1, state: Released}",
            "spec.entries[0].address: \"10.0.0.1\": is outside",
        ),
        (
            "blue.10-0-0-64",
            "10.0.0.64/26",
            "{address: 10.0.0.65, state: Released}, {address: 10.0.0.65, state: Released}",
            "spec.entries[1].address",
        ),
        (
            "blue.10-0-0-64",
            "10.0.0.64/26",
            "{address: 10.0.0.65, state: Intent}",
            "spec.entries[0].owner: is missing",
        ),
        (
            "blue.10-0-0-64",
            "10.0.0.64/26",
            "{address: 10.0.0.65, state: Quarantined}",
            "spec.entries[0].untilMs: is missing",
        ),
    ] {
        let found = block(name, cidr, entries);
        assert!(found.len() == 1 && found[0].starts_with(sentence), "{found:?}\n{sentence}");
    }
    let node = |spec: &str| texts(&validate_node_state(&object::<NodeState>("n1", spec)));
    let good = "{routerMAC: '0e:00:00:00:00:01', uplinks: [{ipv4: 192.0.2.1, ipv6: '2001:db8::1', mtu: 1500}]}";
    assert_eq!(node(good), Vec::<String>::new());
    assert!(node("{uplinks: []}")[0].starts_with("spec.routerMAC: \"00:00:00:00:00:00\""));
    let bad =
        node("{routerMAC: '0e:00:00:00:00:01', uplinks: [{ipv4: 127.0.0.1, mtu: 0}, {mtu: 1500}]}");
    assert_eq!(bad.len(), 3, "{bad:?}");
}

fn problems(text: &str) -> (Checked, Vec<String>) {
    let checked = Checked::new(&catalog(text));
    let texts = checked.problems.iter().map(ToString::to_string).collect();
    (checked, texts)
}

#[test]
fn of_two_vnis_the_older_wins() {
    let (checked, texts) = problems(
        "
{kind: Network, apiVersion: v, metadata: {name: a, creationTimestamp: '2026-02-01T00:00:00Z'}, spec: {vni: 5}}
---
{kind: Network, apiVersion: v, metadata: {name: b, creationTimestamp: '2026-01-01T00:00:00Z'}, spec: {vni: 5}}
---
{kind: Network, apiVersion: v, metadata: {name: c}, spec: {vni: 0}}
---
{kind: Network, apiVersion: v, metadata: {name: d}, spec: {}}
---
{kind: Network, apiVersion: v, metadata: {name: e}, spec: {}, status: {vni: 7}}
",
    );
    assert_eq!(checked.networks.keys().collect::<Vec<_>>(), ["b", "e"]);
    assert_eq!(
        texts,
        [
            "Network c: spec.vni: \"0\": must be 1 to 16777215; leave it out to have a free one chosen",
            "Network d: spec.vni: none is allocated yet; the controller chooses one, or write one",
            "Network a: spec.vni: \"5\": belongs to the older Network b; choose another",
        ]
    );
}

#[test]
fn the_lowest_free_vni_is_free_of_what_is_asked_for_and_of_what_was_given() {
    let catalog = catalog(
        "
{kind: Network, apiVersion: v, metadata: {name: a}, spec: {vni: 1}}
---
{kind: Network, apiVersion: v, metadata: {name: b}, spec: {}, status: {vni: 2}}
---
{kind: Network, apiVersion: v, metadata: {name: c}, spec: {vni: 4}, status: {vni: 4}}
",
    );
    assert_eq!(Checked::free_vni(&catalog), Some(3));
}

fn pool_text(name: &str, network: &str, spec: &str) -> String {
    let label =
        if network.is_empty() { String::new() } else { format!("bowline.dev/network: {network}") };
    format!(
        "\n---\n{{kind: SpiderIPPool, apiVersion: v, metadata: {{name: {name}, labels: {{{label}}}}}, spec: {spec}}}"
    )
}

const TWO: &str = "
{kind: Network, apiVersion: v, metadata: {name: blue}, spec: {vni: 1, ipPools: {ipv4: [listed]}}}
---
{kind: Network, apiVersion: v, metadata: {name: red}, spec: {vni: 2}}";

#[test]
fn pools_may_overlap_across_networks_and_never_within() {
    let listed = pool_text("listed", "", "{subnet: 10.0.0.0/24, ips: [10.0.0.1-10.0.0.9]}");
    let twin = pool_text("twin", "red", "{subnet: 10.0.0.0/24, ips: [10.0.0.1-10.0.0.9]}");
    let lan = pool_text("lan", "", "{subnet: 10.0.0.0/16, ips: [10.0.0.1-10.0.0.9]}");
    let (checked, texts) = problems(&format!("{TWO}{listed}{twin}{lan}"));
    assert_eq!(texts, Vec::<String>::new());
    let home = |name: &str| checked.pools[name].0.clone();
    assert_eq!(home("listed"), Home::Network("blue".into()));
    assert_eq!(home("twin"), Home::Network("red".into()));
    assert_eq!(home("lan"), Home::Lan);

    let wider = pool_text("wider", "blue", "{subnet: 10.0.0.0/16}");
    let same = pool_text("same", "blue", "{subnet: 10.0.0.0/24, ips: [10.0.0.9-10.0.0.12]}");
    let beside = pool_text("zbeside", "blue", "{subnet: 10.0.0.0/24, ips: [10.0.0.10-10.0.0.12]}");
    let (checked, texts) = problems(&format!("{TWO}{listed}{wider}{same}{beside}"));
    assert_eq!(
        texts,
        [
            "SpiderIPPool same: spec.ips: \"10.0.0.9\": is also in the older pool listed of the same \
             Network; exclude it here or there",
            "SpiderIPPool wider: spec.subnet: \"10.0.0.0/16\": overlaps 10.0.0.0/24 of the older pool \
             listed of the same Network; use an equal or a separate subnet, or another Network",
        ]
    );
    assert_eq!(checked.pools.keys().collect::<Vec<_>>(), ["listed", "zbeside"]);
}

/// Only `default` shares the nodes' own stack.
/// Of pools that collide the older serves. The index of prefixes finds what comparing each with each does.
#[test]
fn collisions_are_found_among_many() {
    bolero::check!().with_type::<Vec<(bool, u8, u8, u8)>>().for_each(|sketches| {
        let mut catalog = Catalog::default();
        let mut kept: Vec<(String, bool, Ipv4Net, Ipv4Addr)> = Vec::new();
        for (age, (is_blue, length, net, host)) in sketches.iter().enumerate() {
            let address = Ipv4Addr::new(10, 0, net % 2, host % 64 + 1);
            let subnet = Ipv4Net::new(address, 24 + length % 5).unwrap().trunc();
            let name = format!("p{age:03}");
            let mut pool: SpiderIPPool =
                object(&name, &format!("{{subnet: {subnet}, ips: [{address}]}}"));
            pool.metadata.creation_timestamp = Some(format!("2026-01-01T00:00:00.{age:06}Z"));
            if *is_blue {
                pool.metadata.labels.insert(annotation::NETWORK.into(), "blue".into());
            }
            let collides = |(_, blue, other, taken): &(String, bool, Ipv4Net, Ipv4Addr)| {
                let nested = other.contains(&subnet) || subnet.contains(other);
                blue == is_blue && nested && (*other != subnet || *taken == address)
            };
            if validate_pool(&pool).is_empty() && !kept.iter().any(collides) {
                kept.push((name.clone(), *is_blue, subnet, address));
            }
            catalog.pools.insert(name, pool);
        }
        let checked = Checked::new(&catalog);
        let serving: Vec<&str> = checked.pools.keys().map(String::as_str).collect();
        let expected: Vec<&str> = kept.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(serving, expected);
    });
}

#[test]
fn pools_of_default_leave_nodes_and_services_alone() {
    let node: NodeState = object("n1", "{uplinks: [{name: eth0, ipv4: 10.90.0.11}]}");
    let services: ServiceCIDR = object("kubernetes", "{cidrs: [10.96.0.0/16]}");
    let pools = [
        pool_text("nodes", "default", "{subnet: 10.90.0.0/24}"),
        pool_text("services", "default", "{subnet: 10.96.7.0/24}"),
        pool_text("good", "default", "{subnet: 10.244.0.0/16}"),
        pool_text("apart", "red", "{subnet: 10.90.0.0/24}"),
    ];
    let mut catalog = catalog(&format!("{TWO}{}", pools.concat()));
    catalog.taken = taken_by(std::iter::once(&node), std::iter::once(&services));
    let checked = Checked::new(&catalog);
    let why = |name: &str| {
        let problems = checked.problems_of(SpiderIPPool::KIND, name).filter(|p| p.is_error());
        texts(&problems.cloned().collect::<Vec<_>>())
    };
    let rest = "pods of Network default need a prefix of their own";
    assert_eq!(
        why("nodes"),
        [format!("spec.subnet: \"10.90.0.0/24\": overlaps 10.90.0.11/32 of node n1; {rest}")]
    );
    assert_eq!(
        why("services"),
        [format!("spec.subnet: \"10.96.7.0/24\": overlaps 10.96.0.0/16 of the Services; {rest}")]
    );
    assert_eq!(checked.pools.keys().collect::<Vec<_>>(), ["apart", "good"]);
}

#[test]
fn membership_of_pools() {
    let two = TWO
        .replace("{vni: 2}", "{vni: 2, ipPools: {ipv4: [listed, labelled, gone], ipv6: [four]}}");
    let listed = pool_text("listed", "", "{subnet: 10.0.0.0/24}");
    let labelled = pool_text("labelled", "blue", "{subnet: 10.1.0.0/24}");
    let four = pool_text("four", "red", "{subnet: 10.2.0.0/24}");
    let orphan = pool_text("orphan", "green", "{subnet: 10.3.0.0/24}");
    let (checked, texts) = problems(&format!("{two}{listed}{labelled}{four}{orphan}"));
    assert_eq!(
        texts,
        [
            "SpiderIPPool listed: metadata.name: \"listed\": is listed by the Networks blue, red; set \
             the label bowline.dev/network to one of them",
            "SpiderIPPool orphan: metadata.labels[bowline.dev/network]: \"green\": no such Network; the \
             pool serves nobody until it is created",
            "Network blue: spec.ipPools.ipv4[0]: \"listed\": is refused, see the pool",
            "Network red: spec.ipPools.ipv4[0]: \"listed\": is refused, see the pool",
            "Network red: spec.ipPools.ipv4[1]: \"labelled\": belongs to Network blue by its label \
             bowline.dev/network",
            "Network red: spec.ipPools.ipv4[2]: \"gone\": does not exist; create the SpiderIPPool",
            "Network red: spec.ipPools.ipv6[0]: \"four\": is an IPv4 pool",
        ]
    );
    // What may be cured later keeps nobody from serving.
    assert_eq!(checked.networks.len(), 2);
    assert_eq!(checked.pools["labelled"].0, Home::Network("blue".into()));
}

#[test]
fn upstreams_objects_are_read_and_written_back_without_loss() {
    let text = "
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata:
  name: p
  managedFields: [{manager: kubectl, operation: Apply}]
  finalizers: [spiderpool.spidernet.io]
spec:
  ipVersion: 4
  subnet: 10.0.0.0/24
  ips: [10.0.0.1-10.0.0.9]
  excludeIPs: [10.0.0.2]
  gateway: 10.0.0.254
  routes: [{dst: 10.9.0.0/16, gw: 10.0.0.3}]
  podAffinity: {matchLabels: {app: web}}
  namespaceAffinity: {matchExpressions: [{key: a, operator: In, values: [b]}]}
  namespaceName: [shop]
  nodeAffinity: {matchLabels: {zone: z}}
  nodeName: [n1]
  multusName: [kube-system/macvlan]
  default: false
  disable: false
status: {allocatedIPs: '{}', totalIPCount: 9, allocatedIPCount: 0}
";
    let value: serde_json::Value = serde_yaml_ng::from_str(text).unwrap();
    let pool: SpiderIPPool = serde_json::from_value(value.clone()).unwrap();
    assert_eq!(serde_json::to_value(&pool).unwrap(), value);
    assert_eq!(validate_pool(&pool), []);
}
