//! Rules of Spiderpool's kinds (catalogue of the reference, section 1): a good object passes, and one
//! with a single fault is refused with its sentence.
#![allow(missing_docs, reason = "a test has no users")]

mod common;

use common::{catalog, object, table, texts};
use multinet::rules::{
    Checked, Pool, broken_pools, fill_coordinator, fill_multus_config, fill_pool, fill_reserved,
    fill_subnet, moved_pools, validate_auto_pool_update, validate_coordinator, validate_delete,
    validate_pool, validate_reserved, validate_reserved_update, validate_subnet,
    validate_subnet_update,
};
use multinet::types::coordinator::SpiderCoordinator;
use multinet::types::multus::SpiderMultusConfig;
use multinet::types::pool::{SpiderIPPool, SpiderReservedIP};
use multinet::types::subnet::SpiderSubnet;

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
    let four: SpiderSubnet = object("{name: s}", "{ipVersion: 4, subnet: 10.0.0.0/16}");
    let six = object("{name: s}", "{ipVersion: 6, subnet: 10.0.0.0/16}");
    let found = texts(&validate_subnet_update(&four, &six, &[]));
    assert_eq!(found[1], "spec.ipVersion: \"6\": cannot be changed from 4; make a new one");
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
fn a_new_subnet_breaks_no_pool() {
    let own = pool("p", "", "{subnet: 10.0.0.0/16, ips: [10.0.2.1]}");
    let before = Checked::new(&catalog(&own));
    let broken = |spec: &str| {
        let text = [subnet("a", "", spec), own.clone()].concat();
        let after = Checked::new(&catalog(&text));
        texts(&broken_pools(&before, &after, &catalog(&text).subnets["a"]))
    };
    assert!(broken("{subnet: 10.0.0.0/16, ips: [10.0.2.0-10.0.2.9]}").is_empty());
    assert_eq!(
        broken("{subnet: 10.0.0.0/16, ips: [10.0.1.1]}"),
        ["spec.subnet: \"10.0.0.0/16\": breaks the existing SpiderIPPool p: its spec.ips: \
             \"10.0.2.1\": is not among the addresses of SpiderSubnet a; add it there, or remove it here"]
    );
    let wider = broken("{subnet: 10.0.0.0/8, ips: [10.0.2.1]}");
    assert!(
        wider[0].contains("p: its spec.subnet: \"10.0.0.0/16\": is not 10.0.0.0/8"),
        "{wider:?}"
    );
}

#[test]
fn a_pool_in_use_stays_in_its_network() {
    let listing = |name: &str, pool: &str| {
        format!(
            "---\n{{kind: Network, apiVersion: v, metadata: {{name: {name}}}, \
             spec: {{vni: {}, ipPools: {{ipv4: [{pool}]}}}}}}\n",
            name.len()
        )
    };
    let own = pool("p", "", "{subnet: 10.0.0.0/24}");
    let checked =
        |networks: &[String]| Checked::new(&catalog(&[networks.concat(), own.clone()].concat()));
    let before = checked(&[listing("blue", "p"), listing("red", "")]);
    let moved = |networks: &[String], held: usize| {
        let count = |pool: &str| if pool == "p" { held } else { 0 };
        texts(&moved_pools(&before, &checked(networks), count))
    };
    let (lan, disputed) =
        ([listing("blue", ""), listing("red", "")], [listing("blue", "p"), listing("red", "p")]);
    for (after, to) in [(lan, "the LAN domain"), (disputed, "nobody")] {
        let sentence = format!(
            "spec.ipPools: \"p\": would move from Network blue to {to} while 2 of its addresses are in \
             use; label the pool or release them first"
        );
        assert_eq!(moved(&after, 2), [sentence]);
        assert!(moved(&after, 0).is_empty());
    }
    assert!(moved(&[listing("blue", "p"), listing("red", "q")], 2).is_empty());
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
