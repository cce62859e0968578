//! Rules of Spiderpool's kinds (catalogue of the reference, section 1): a good object passes, and one
//! with a single fault is refused with its sentence.
#![allow(missing_docs, reason = "a test has no users")]

mod common;

use common::{catalog, parse};
use multinet::rules::{
    Checked, Pool, Problem, fill_coordinator, fill_multus_config, fill_pool, fill_reserved,
    fill_subnet, validate_auto_pool_update, validate_coordinator, validate_delete,
    validate_multus_config, validate_multus_config_update, validate_pool, validate_reserved,
    validate_reserved_update, validate_subnet, validate_subnet_update,
};
use multinet::types::coordinator::SpiderCoordinator;
use multinet::types::meta::Resource;
use multinet::types::multus::SpiderMultusConfig;
use multinet::types::pool::{SpiderIPPool, SpiderReservedIP};
use multinet::types::subnet::SpiderSubnet;
use serde_yaml_ng::Value;

fn object<R: Resource>(metadata: &str, spec: &str) -> R {
    let text = format!(
        "apiVersion: {}\nkind: {}\nmetadata: {metadata}\nspec: {spec}",
        R::API_VERSION,
        R::KIND
    );
    parse(serde_yaml_ng::from_str::<Value>(&text).unwrap())
}

fn texts(problems: &[Problem]) -> Vec<String> {
    problems.iter().map(ToString::to_string).collect()
}

/// Each text has exactly one problem, which begins as said; an empty beginning: none.
fn table(check: impl Fn(&str) -> Vec<Problem>, cases: &[(&str, &str)]) {
    for (text, expected) in cases {
        let found = texts(&check(text));
        if expected.is_empty() {
            assert_eq!(found, Vec::<String>::new(), "{text}");
        } else {
            assert_eq!(found.len(), 1, "{text}: {found:?}");
            assert!(found[0].starts_with(expected), "{text}: {found:?}");
        }
    }
}

#[test]
fn subnets() {
    table(
        |spec| validate_subnet(&object("{name: s}", spec)),
        &[
            (
                "{subnet: 10.0.0.0/16, ips: [10.0.1.1-10.0.1.9], excludeIPs: [10.0.1.4], \
                 gateway: 10.0.0.1, routes: [{dst: 10.9.0.0/16, gw: 10.0.0.2}]}",
                "",
            ),
            ("{subnet: fd00::/64, ipVersion: 6, ips: ['fd00::1-fd00::ff']}", ""),
            ("{subnet: 10.0.0.1/16}", "spec.subnet: \"10.0.0.1/16\": is not in its plain form"),
            ("{subnet: x}", "spec.subnet: \"x\": is not a prefix"),
            ("{subnet: 10.0.0.0/16, ipVersion: 6}", "spec.ipVersion: \"6\": spec.subnet is IPv4"),
            ("{subnet: 10.0.0.0/16, ips: [10.1.0.1]}", "spec.ips: \"10.1.0.1\": is outside"),
            ("{subnet: 10.0.0.0/16, excludeIPs: [b]}", "spec.excludeIPs: \"b\": is neither"),
            (
                "{subnet: 10.0.0.0/16, ips: [10.0.0.1], gateway: 10.0.0.1}",
                "spec.gateway: \"10.0.0.1\": is in spec.ips",
            ),
            ("{subnet: 10.0.0.0/16, gateway: 10.1.0.1}", "spec.gateway: \"10.1.0.1\": is outside"),
            (
                "{subnet: 10.0.0.0/16, routes: [{dst: 0.0.0.0/0, gw: 10.0.0.1}]}",
                "spec.routes[0].dst: \"0.0.0.0/0\": is the default route",
            ),
            (
                "{subnet: 10.0.0.0/16, routes: [{dst: 10.9.0.0/16, gw: 10.1.0.1}]}",
                "spec.routes[0].gw: \"10.1.0.1\": is not an address of spec.subnet",
            ),
        ],
    );
}

const SUBNET: &str = "{subnet: 10.0.0.0/16, ips: [10.0.1.1-10.0.1.9]}";

#[test]
fn changes_of_subnets() {
    let old: SpiderSubnet = object("{name: s}", SUBNET);
    let pool: SpiderIPPool = object("{name: p}", "{subnet: 10.0.0.0/16, ips: [10.0.1.5]}");
    let pools = [Pool::check(&pool, &mut Vec::new()).unwrap()];
    let change = |spec: &str| validate_subnet_update(&old, &object("{name: s}", spec), &pools);
    table(
        change,
        &[
            ("{subnet: 10.0.0.0/16, ips: [10.0.1.1-10.0.1.20]}", ""),
            ("{subnet: 10.0.0.0/16, ips: [10.0.1.5]}", ""),
            (
                "{subnet: 10.0.0.0/16, ips: [10.0.1.1-10.0.1.4]}",
                "spec.ips: \"10.0.1.5\": belongs to pool p; take it out of that pool first",
            ),
            (
                "{subnet: 10.0.0.0/16, ips: [10.0.1.1-10.0.1.9], excludeIPs: [10.0.1.5]}",
                "spec.ips: \"10.0.1.5\": belongs to pool p",
            ),
            (
                "{subnet: 10.0.0.0/15, ips: [10.0.1.1-10.0.1.9]}",
                "spec.subnet: \"10.0.0.0/15\": cannot be changed from 10.0.0.0/16",
            ),
        ],
    );
    let labelled = object("{name: s, labels: {bowline.dev/network: blue}}", SUBNET);
    let found = texts(&validate_subnet_update(&old, &labelled, &pools));
    assert!(found[0].contains("cannot be changed while 1 pools are cut from it"), "{found:?}");
    assert!(validate_subnet_update(&old, &labelled, &[]).is_empty());
    let leaving = "{name: s, deletionTimestamp: '2026-01-01T00:00:00Z', labels: {team: a}}";
    assert!(validate_subnet_update(&old, &object(leaving, SUBNET), &pools).is_empty());
    let more = object(leaving, "{subnet: 10.0.0.0/16, ips: [10.0.1.1-10.0.1.20]}");
    let found = texts(&validate_subnet_update(&old, &more, &pools));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("spec: cannot be changed while the object is being deleted"));
}

fn problems_of(text: &str) -> Vec<String> {
    Checked::new(&catalog(text)).problems.iter().map(ToString::to_string).collect()
}

fn subnet(name: &str, network: &str, spec: &str) -> String {
    let labels =
        if network.is_empty() { "{}" } else { &format!("{{bowline.dev/network: {network}}}") };
    format!(
        "---\nkind: SpiderSubnet\napiVersion: spiderpool.spidernet.io/v2beta1\n\
             metadata: {{name: {name}, labels: {labels}}}\nspec: {spec}\n"
    )
}

fn pool(name: &str, network: &str, spec: &str) -> String {
    subnet(name, network, spec).replace("SpiderSubnet", "SpiderIPPool")
}

const BLUE: &str = "---\nkind: Network\napiVersion: bowline.dev/v1alpha1\nmetadata: {name: blue}\nspec: {vni: 5}\n";

#[test]
fn subnets_are_apart_within_a_network_and_pools_lie_in_theirs() {
    let wide = "{subnet: 10.0.0.0/16, ips: [10.0.1.1-10.0.1.9]}";
    // Equal prefixes in two Networks are nobody's trouble.
    let apart = [BLUE, &subnet("a", "", wide), &subnet("b", "blue", wide)].concat();
    assert_eq!(problems_of(&apart), Vec::<String>::new());
    for other in [wide, "{subnet: 10.0.4.0/24}", "{subnet: 10.0.0.0/8}"] {
        let found = problems_of(&[subnet("a", "", wide), subnet("b", "", other)].concat());
        assert_eq!(found.len(), 1, "{found:?}");
        let sentence = "overlaps 10.0.0.0/16 of the older subnet a in the LAN domain";
        assert!(found[0].contains(sentence), "{found:?}");
    }
    let in_it = "{subnet: 10.0.0.0/16, ips: [10.0.1.2-10.0.1.3]}";
    let good = [subnet("a", "", wide), pool("p", "", in_it)].concat();
    assert_eq!(problems_of(&good), Vec::<String>::new());
    let outside = "{subnet: 10.0.0.0/16, ips: [10.0.2.1]}";
    let found = problems_of(&[subnet("a", "", wide), pool("p", "", outside)].concat());
    assert!(
        found[0].contains("spec.ips: \"10.0.2.1\": is not among the addresses of SpiderSubnet a"),
        "{found:?}"
    );
    let narrower = "{subnet: 10.0.1.0/24, ips: [10.0.1.2]}";
    let found = problems_of(&[subnet("a", "", wide), pool("p", "", narrower)].concat());
    assert!(
        found[0].contains("spec.subnet: \"10.0.1.0/24\": is not 10.0.0.0/16, as SpiderSubnet a"),
        "{found:?}"
    );
    // Another Network's pool is not the subnet's.
    let other = [BLUE, &subnet("a", "", wide), &pool("p", "blue", outside)].concat();
    assert_eq!(problems_of(&other), Vec::<String>::new());
}

#[test]
fn addresses_of_automatic_pools_are_the_controllers() {
    let auto = "{name: auto4-a-eth0-1, labels: {ipam.spidernet.io/owner-application-uid: u}}";
    let old: SpiderIPPool = object(auto, "{subnet: 10.0.0.0/16, ips: [10.0.0.5]}");
    let routes: SpiderIPPool =
        object(auto, "{subnet: 10.0.0.0/16, ips: [10.0.0.5], disable: true}");
    assert!(validate_auto_pool_update(&old, &routes).is_empty());
    let more: SpiderIPPool = object(auto, "{subnet: 10.0.0.0/16, ips: [10.0.0.5-10.0.0.6]}");
    let found = texts(&validate_auto_pool_update(&old, &more));
    assert!(found[0].contains("follows the application of this automatic pool"), "{found:?}");
    let by_hand: SpiderIPPool = object("{name: p}", "{subnet: 10.0.0.0/16}");
    let grown: SpiderIPPool = object("{name: p}", "{subnet: 10.0.0.0/16, ips: [10.0.0.5]}");
    assert!(validate_auto_pool_update(&by_hand, &grown).is_empty());
}

#[test]
fn the_affinity_of_an_automatic_pool_names_its_application() {
    let auto = "{name: auto4-a-eth0-1, labels: {ipam.spidernet.io/owner-application-uid: u}}";
    let named = "matchLabels: {ipam.spidernet.io/app-api-group: apps, \
                 ipam.spidernet.io/app-api-version: v1, ipam.spidernet.io/app-kind: Deployment, \
                 ipam.spidernet.io/app-namespace: shop, ipam.spidernet.io/app-name: web";
    let made = |metadata: &str, affinity: &str| -> SpiderIPPool {
        object(metadata, &format!("{{subnet: 10.0.0.0/16, podAffinity: {{{affinity}}}}}"))
    };
    let other = format!("{named}, app: web}}");
    let chosen = format!("{named}}}, matchExpressions: [{{key: app, operator: Exists}}]");
    table(
        |affinity| validate_pool(&made(auto, affinity)),
        &[
            (&format!("{named}}}"), ""),
            (
                &other,
                "spec.podAffinity.matchLabels: \"app\": does not name the application of this \
                 automatic pool; remove it, allowed are ipam.spidernet.io/app-api-group, ",
            ),
            (
                &chosen,
                "spec.podAffinity.matchExpressions: \"app\": cannot be set on an automatic pool",
            ),
        ],
    );
    // Nobody else's pools are bound to it.
    table(|affinity| validate_pool(&made("{name: p}", affinity)), &[(&other, ""), (&chosen, "")]);

    let old = made(auto, &format!("{named}}}"));
    let change = |affinity: &str| validate_auto_pool_update(&old, &made(auto, affinity));
    let sentence = "spec.podAffinity: names the application of this automatic pool and cannot be";
    table(
        change,
        &[
            (&format!("{named}}}"), ""),
            (&format!("{named}}}").replace("web", "bank"), sentence),
            ("matchLabels: {app: web}", sentence),
        ],
    );
    let without: SpiderIPPool = object(auto, "{subnet: 10.0.0.0/16}");
    assert!(texts(&validate_auto_pool_update(&old, &without))[0].starts_with(sentence));
}

#[test]
fn nothing_in_use_is_deleted() {
    assert!(validate_delete(&[]).is_empty());
    let held = [("10.0.0.5".parse().unwrap(), "pod shop/a".to_string())];
    let found = texts(&validate_delete(&held));
    assert!(found[0].contains("1 addresses are in use, 10.0.0.5 by pod shop/a"), "{found:?}");
}

#[test]
fn reservations() {
    table(
        |spec| validate_reserved(&object("{name: r}", spec)),
        &[
            ("{ips: [10.0.0.1-10.0.0.9, 10.1.0.1]}", ""),
            ("{ipVersion: 6, ips: ['fd00::1']}", ""),
            ("{ipVersion: 5, ips: [10.0.0.1]}", "spec.ipVersion: \"5\": must be 4 or 6"),
            ("{ipVersion: 6, ips: [10.0.0.1]}", "spec.ips: \"10.0.0.1\": is not IPv6"),
            ("{ips: [10.0.0.1, 'fd00::1']}", "spec.ips: \"fd00::1\": is not IPv4"),
            ("{ips: [10.0.0.9-10.0.0.1]}", "spec.ips: \"10.0.0.9-10.0.0.1\": ends before"),
        ],
    );
    let old: SpiderReservedIP = object("{name: r}", "{ipVersion: 4, ips: [10.0.0.1]}");
    let more = object("{name: r}", "{ipVersion: 4, ips: [10.0.0.2]}");
    assert!(validate_reserved_update(&old, &more).is_empty());
    let six = object("{name: r}", "{ipVersion: 6, ips: ['fd00::1']}");
    let found = texts(&validate_reserved_update(&old, &six));
    assert!(found[0].starts_with("spec.ipVersion: \"6\": cannot be changed from 4"), "{found:?}");
}

#[test]
fn coordinators() {
    let check = |spec: &str| {
        let spec = spec.replacen('{', "{podCIDRType: auto, ", 1);
        validate_coordinator(&object::<SpiderCoordinator>("{name: default}", &spec))
    };
    table(
        check,
        &[
            (
                "{mode: underlay, hijackCIDR: [169.254.0.0/16, 10.0.0.1, 'fd00::/8'], \
                 podMACPrefix: '0a:1b', hostRuleTable: 500, podRPFilter: -1, txQueueLen: 0, \
                 vethLinkAddress: 169.254.100.1, vethMTU: 1500, tunePodRoutes: false, \
                 policyRoutes: [{dst: 10.1.0.0/16, gw: 10.0.0.1}]}",
                "",
            ),
            ("{mode: disable}", "spec.mode: \"disable\": is not one of auto, underlay, overlay"),
            ("{hijackCIDR: [x]}", "spec.hijackCIDR[0]: \"x\": is neither a prefix nor an address"),
            (
                "{policyRoutes: [{dst: 10.1.0.0/16, gw: 'fd00::1'}]}",
                "spec.policyRoutes[0].gw: \"fd00::1\": is not IPv4, as dst is",
            ),
            (
                "{policyRoutes: [{dst: x, gw: x}]}",
                "spec.policyRoutes[0].dst: \"x\": is not a prefix",
            ),
            ("{podMACPrefix: '0b:1b'}", "spec.podMACPrefix: \"0b:1b\": begins a multicast address"),
            ("{podMACPrefix: '0a'}", "spec.podMACPrefix: \"0a\": is not two bytes"),
            ("{podMACPrefix: '0a:1b:2c'}", "spec.podMACPrefix"),
            ("{hostRuleTable: 254}", "spec.hostRuleTable: \"254\": must be 1 to 252"),
            ("{podRPFilter: 3}", "spec.podRPFilter: \"3\": must be 0, 1 or 2"),
            ("{txQueueLen: -1}", "spec.txQueueLen: \"-1\": must be 0"),
            ("{vethLinkAddress: x}", "spec.vethLinkAddress: \"x\": is not an address"),
            ("{vethMTU: 0}", "spec.vethMTU: \"0\": must be 1 or more"),
        ],
    );
    let missing = validate_coordinator(&object("{name: default}", "{mode: auto}"));
    assert_eq!(texts(&missing).len(), 1);
    assert!(texts(&missing)[0].starts_with("spec.podCIDRType: is missing"), "{missing:?}");
    let odd = validate_coordinator(&object("{name: odd}", "{podCIDRType: other}"));
    assert!(!odd[0].is_error() && odd[1].is_error(), "{odd:?}");
}

#[test]
fn multus_configurations() {
    table(
        |spec| validate_multus_config(&object("{name: c, namespace: n}", spec)),
        &[
            (
                "{cniType: macvlan, macvlan: {master: [eth0], vlanID: 100, ippools: {ipv4: [p]}}}",
                "",
            ),
            (
                "{cniType: ipvlan, ipvlan: {master: [a, b], bond: {name: bond0, mode: 6, \
                 options: 'miimon=100;primary=a'}}}",
                "",
            ),
            ("{cniType: vlan, vlan: {master: [eth0], vlanID: 7}}", ""),
            ("{cniType: vlan, vlan: {master: [eth0], vlanMode: auto}}", ""),
            (
                "{cniType: sriov, sriov: {resourceName: v.com/s, minTxRateMbps: 1, \
                 maxTxRateMbps: 2, ippools: {ipv4: [p], matchMasterSubnet: true}}}",
                "",
            ),
            ("{cniType: ib-sriov, ibsriov: {resourceName: v.com/i, linkState: auto}}", ""),
            ("{cniType: ipoib, ipoib: {master: ib0}}", ""),
            ("{cniType: ovs, ovs: {bridge: br0, trunk: [{id: 5}, {minID: 6, maxID: 9}]}}", ""),
            ("{cniType: custom, customCNI: '{\"type\": \"x\"}'}", ""),
            ("{cniType: custom, customCNI: '{\"plugins\": [{\"type\": \"x\"}]}'}", ""),
            ("{cniType: custom}", ""),
            ("{}", ""),
            ("{cniType: other}", "spec.cniType: \"other\": is not one of macvlan"),
            ("{cniType: macvlan}", "spec.macvlan: is missing; spec.cniType macvlan needs it"),
            (
                "{cniType: macvlan, macvlan: {master: [a]}, ipvlan: {master: [a]}}",
                "spec.ipvlan: belongs to spec.cniType ipvlan",
            ),
            (
                "{cniType: ib-sriov, ibsriov: {resourceName: r}, customCNI: '{\"type\": \"x\"}'}",
                "spec.customCNI: belongs to spec.cniType custom",
            ),
            (
                "{cniType: macvlan, macvlan: {master: []}}",
                "spec.macvlan.master: is missing or empty",
            ),
            ("{cniType: macvlan, macvlan: {master: [a, b]}}", "spec.macvlan.bond: is missing"),
            (
                "{cniType: macvlan, macvlan: {master: [a, b], bond: {name: b, mode: 7}}}",
                "spec.macvlan.bond.mode: \"7\": must be 0 to 6",
            ),
            (
                "{cniType: macvlan, macvlan: {master: [a, b], bond: {name: '', mode: 1}}}",
                "spec.macvlan.bond.name: is missing",
            ),
            (
                "{cniType: macvlan, macvlan: {master: [a, b], bond: {name: b, mode: 1, options: x}}}",
                "spec.macvlan.bond.options: \"x\": is not a list",
            ),
            (
                "{cniType: macvlan, macvlan: {master: [a], vlanID: 4095}}",
                "spec.macvlan.vlanID: \"4095\": must be 0 (untagged) to 4094",
            ),
            ("{cniType: ipvlan, ipvlan: {master: [a], mtu: -1}}", "spec.ipvlan.mtu: \"-1\""),
            ("{cniType: vlan, vlan: {master: [a]}}", "spec.vlan.vlanID: is missing"),
            (
                "{cniType: vlan, vlan: {master: [a], vlanMode: auto, vlanID: 3}}",
                "spec.vlan.vlanID: \"3\": cannot be set with spec.vlan.vlanMode auto",
            ),
            ("{cniType: vlan, vlan: {master: [a], vlanMode: x}}", "spec.vlan.vlanMode: \"x\""),
            ("{cniType: sriov, sriov: {}}", "spec.sriov.resourceName: is missing"),
            (
                "{cniType: sriov, sriov: {resourceName: r, minTxRateMbps: 3, maxTxRateMbps: 2}}",
                "spec.sriov.minTxRateMbps: \"3\": is above spec.sriov.maxTxRateMbps, 2",
            ),
            ("{cniType: ib-sriov, ibsriov: {}}", "spec.ibsriov.resourceName: is missing"),
            (
                "{cniType: ib-sriov, ibsriov: {resourceName: r, linkState: up}}",
                "spec.ibsriov.linkState: \"up\": is not one of",
            ),
            ("{cniType: ipoib, ipoib: {}}", "spec.ipoib.master: is missing"),
            ("{cniType: ovs, ovs: {bridge: ''}}", "spec.ovs.bridge: is missing"),
            (
                "{cniType: ovs, ovs: {bridge: b, trunk: [{minID: 6, maxID: 5}]}}",
                "spec.ovs.trunk[0].minID: \"6\": is above maxID, 5",
            ),
            ("{cniType: ovs, ovs: {bridge: b, trunk: [{}]}}", "spec.ovs.trunk[0]: is empty"),
            (
                "{cniType: ovs, ovs: {bridge: b, trunk: [{minID: 6}]}}",
                "spec.ovs.trunk[0]: needs both",
            ),
            (
                "{cniType: ovs, ovs: {bridge: b, vlan: 1, trunk: [{id: 6}]}}",
                "spec.ovs.trunk: cannot be",
            ),
            (
                "{cniType: macvlan, macvlan: {master: [a], ippools: {matchMasterSubnet: true}}}",
                "spec.macvlan.ippools.matchMasterSubnet: \"true\": belongs to spec.cniType sriov",
            ),
            ("{cniType: custom, customCNI: '{'}", "spec.customCNI: \"{\": is not JSON"),
            ("{cniType: custom, customCNI: '[]'}", "spec.customCNI: \"[]\": is not a JSON object"),
            (
                "{cniType: macvlan, macvlan: {master: [a]}, chainCNIJsonData: ['{}']}",
                "spec.chainCNIJsonData[0]: \"{}\": is no CNI configuration",
            ),
            (
                "{cniType: macvlan, macvlan: {master: [a]}, coordinator: {podMACPrefix: '01:02'}}",
                "spec.coordinator.podMACPrefix",
            ),
        ],
    );
}

#[test]
fn annotations_of_multus_configurations() {
    let rdma = "cni.spidernet.io/rdma-resource-inject";
    let network = "cni.spidernet.io/network-resource-inject";
    let plain = "{cniType: macvlan, macvlan: {master: [a]}}";
    let resource = "{cniType: macvlan, macvlan: {master: [a], rdmaResourceName: r}}";
    let full =
        "{cniType: macvlan, macvlan: {master: [a], rdmaResourceName: r, ippools: {ipv4: [p]}}}";
    let custom = "{cniType: custom}";
    for (key, value, spec, expected) in [
        ("multus.spidernet.io/cr-name", "other", plain, ""),
        ("multus.spidernet.io/cr-name", "No", plain, "must be 1 to 253 of"),
        ("multus.spidernet.io/cni-version", "1.0.0", plain, ""),
        ("multus.spidernet.io/cni-version", "0.2.0", plain, "is not one of 0.3.0, 0.3.1"),
        (rdma, "gpu", full, ""),
        (rdma, "gpu", plain, "needs a resource"),
        (rdma, "gpu", resource, "needs pools"),
        (network, "gpu", full, ""),
        (network, "gpu", plain, ""),
        (network, "gpu", resource, "needs pools"),
        (rdma, "gpu", custom, "is not possible with spec.cniType ovs or custom"),
    ] {
        let metadata = format!("{{name: c, annotations: {{{key}: {value}}}}}");
        let found = texts(&validate_multus_config(&object(&metadata, spec)));
        assert_eq!(found.is_empty(), expected.is_empty(), "{key} {spec}: {found:?}");
        assert!(found.iter().all(|f| f.contains(expected)), "{found:?}");
    }
    let named = |name: &str| -> SpiderMultusConfig {
        let metadata = format!("{{name: c, annotations: {{multus.spidernet.io/cr-name: {name}}}}}");
        object(&metadata, plain)
    };
    assert!(validate_multus_config_update(&named("a"), &named("a")).is_empty());
    let found = texts(&validate_multus_config_update(&named("a"), &named("b")));
    assert!(found[0].contains("cannot be changed from a"), "{found:?}");
    let without = object("{name: c}", plain);
    assert_eq!(validate_multus_config_update(&named("a"), &without).len(), 1);
    assert!(validate_multus_config_update(&without, &named("b")).is_empty());
}

#[test]
fn gaps_are_filled_once() {
    let text = [
        BLUE,
        &subnet(
            "s",
            "blue",
            "{subnet: 10.6.0.0/16, ips: [10.6.0.2-10.6.0.99], gateway: 10.6.0.1, \
             routes: [{dst: 10.9.0.0/16, gw: 10.6.0.2}]}",
        ),
    ]
    .concat();
    let checked = Checked::new(&catalog(&text));
    let mut pool: SpiderIPPool =
        object("{name: p}", "{subnet: 10.6.0.0/16, ips: [10.6.0.7, 10.6.0.5-10.6.0.6]}");
    fill_pool(&mut pool, &checked);
    assert_eq!(pool.spec.ip_version, Some(4));
    assert_eq!(pool.spec.ips, ["10.6.0.5-10.6.0.7"]);
    assert_eq!(pool.spec.gateway.as_deref(), Some("10.6.0.1"));
    assert_eq!(pool.spec.routes.as_ref().map(Vec::len), Some(1));
    let labels = &pool.metadata.labels;
    assert_eq!(labels["ipam.spidernet.io/ippool-cidr"], "10-6-0-0-16");
    assert_eq!(labels["ipam.spidernet.io/owner-spider-subnet"], "s");
    assert_eq!(labels["bowline.dev/network"], "blue");
    let once = pool.clone();
    fill_pool(&mut pool, &checked);
    assert_eq!(pool, once);
    // An explicit empty list blocks the inheritance of routes.
    let mut own: SpiderIPPool =
        object("{name: p}", "{subnet: 10.6.0.0/16, gateway: 10.6.0.9, routes: []}");
    fill_pool(&mut own, &checked);
    assert_eq!(own.spec.gateway.as_deref(), Some("10.6.0.9"));
    assert_eq!(own.spec.routes, Some(Vec::new()));

    let mut six: SpiderSubnet = object("{name: s}", "{subnet: 'fd00:6::/64'}");
    fill_subnet(&mut six);
    assert_eq!(six.spec.ip_version, Some(6));
    assert_eq!(six.metadata.labels["ipam.spidernet.io/subnet-cidr"], "fd00-6---64");
    let mut reserved: SpiderReservedIP = object("{name: r}", "{ips: ['fd00::1-fd00::2']}");
    fill_reserved(&mut reserved);
    assert_eq!(reserved.spec.ip_version, Some(6));
    let mut coordinator: SpiderCoordinator = object("{name: default}", "{}");
    fill_coordinator(&mut coordinator);
    assert_eq!(coordinator.spec.veth_mtu, Some(1500));
    let mut custom: SpiderMultusConfig = object("{name: c}", "{enableCoordinator: true}");
    fill_multus_config(&mut custom);
    assert_eq!(custom.spec.enable_coordinator, Some(false));
    let mut macvlan: SpiderMultusConfig = object("{name: c}", "{cniType: macvlan}");
    fill_multus_config(&mut macvlan);
    assert_eq!(macvlan.spec.enable_coordinator, Some(true));
}
