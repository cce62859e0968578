//! The choice of pools, rule by rule: each filter alone, and each pair of sources.
#![allow(missing_docs, reason = "a test has no users")]

mod common;

use common::catalog;
use multinet::auto::Application;
use multinet::pod::{Context, Selection, select};
use multinet::rules::{Catalog, Checked, Home, Problem};
use multinet::types::meta::{Labels, ObjectMeta};
use multinet::types::network::PoolLists;

/// `eth1` of pod shop/web-0, which is labelled app=web and of Deployment web, on node n1 in zone z1.
struct Asking {
    catalog: Catalog,
    pod: ObjectMeta,
    namespace: ObjectMeta,
    configured: PoolLists,
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(k, v)| ((*k).to_string(), (*v).to_string())).collect()
}

impl Asking {
    fn new(objects: &str) -> Self {
        let blue = "{kind: Network, apiVersion: v, metadata: {name: blue}, spec: {vni: 1}}\n";
        Asking {
            catalog: catalog(&format!("{blue}{objects}")),
            pod: ObjectMeta {
                namespace: Some("shop".into()),
                labels: labels(&[("app", "web")]),
                ..ObjectMeta::named("web-0")
            },
            namespace: ObjectMeta {
                labels: labels(&[("team", "a"), ("kubernetes.io/metadata.name", "shop")]),
                ..ObjectMeta::named("shop")
            },
            configured: PoolLists::default(),
        }
    }

    fn note(&mut self, key: &str, value: &str) {
        self.pod.annotations.insert(format!("ipam.spidernet.io/{key}"), value.into());
    }

    fn select(&self) -> Selection {
        self.try_select().unwrap()
    }

    fn try_select(&self) -> Result<Selection, Problem> {
        let checked = Checked::new(&self.catalog);
        assert!(checked.problems.is_empty(), "{:?}", checked.problems);
        let application = Application {
            api_version: "apps/v1".into(),
            kind: "Deployment".into(),
            namespace: "shop".into(),
            name: "web".into(),
            uid: "u".into(),
        };
        let context = Context {
            pod: &self.pod,
            namespace: Some(&self.namespace),
            node: "n1",
            node_labels: &labels(&[("zone", "z1")]),
            interface: "eth1",
            index: Some(1),
            home: Home::Network("blue".into()),
            configured: self.configured.clone(),
            attachment_definition: Some(("kube-system", "lan")),
            application: Some(&application),
            master_addresses: None,
        };
        select(&checked, &context)
    }
}

/// The pools that serve, of all families.
fn names(selection: &Selection) -> Vec<&str> {
    selection.families.iter().flat_map(|(_, c)| c.iter().map(|c| c.pool.as_str())).collect()
}

/// What becomes of the pool `asked` with these fields of metadata and spec, beside one for all.
fn filter(metadata: &str, spec: &str) -> (Vec<String>, Vec<String>) {
    let pool = |name: &str, octet: u8, metadata: &str, spec: &str| {
        format!(
            "---\n{{kind: SpiderIPPool, apiVersion: v, metadata: {{name: {name}, \
             labels: {{bowline.dev/network: blue}}{metadata}}}, \
             spec: {{subnet: 10.{octet}.0.0/24, ips: [10.{octet}.0.9]{spec}}}}}\n"
        )
    };
    let mut asking =
        Asking::new(&[pool("asked", 1, metadata, spec), pool("all", 2, "", "")].concat());
    asking.note("ippool", r#"{"ipv4": ["asked", "all"]}"#);
    let chosen = asking.select();
    let why = chosen.rejected.iter().map(|r| format!("{} {}", r.pool, r.why)).collect();
    (names(&chosen).into_iter().map(String::from).collect(), why)
}

#[test]
fn each_filter_refuses_with_its_sentence_and_passes_what_it_should() {
    for (spec, sentence) in [
        ("", ""),
        ("disable: false", ""),
        ("disable: true", "is disabled (spec.disable)"),
        ("nodeName: [n2, n1]", ""),
        ("nodeName: [n2, n3]", "serves nodes n2, n3 only"),
        ("nodeAffinity: {matchLabels: {zone: z1}}", ""),
        ("nodeAffinity: {matchLabels: {zone: z2}}", "does not serve node n1 (spec.nodeAffinity)"),
        (
            "nodeAffinity: {matchExpressions: [{key: zone, operator: NotIn, values: [z1]}]}",
            "does not serve node n1 (spec.nodeAffinity)",
        ),
        // The name wins, whatever the affinity says.
        ("nodeName: [n1], nodeAffinity: {matchLabels: {zone: z2}}", ""),
        ("nodeName: [n2], nodeAffinity: {matchLabels: {zone: z1}}", "serves nodes n2 only"),
        ("namespaceName: [bank, shop]", ""),
        ("namespaceName: [bank, post]", "serves namespaces bank, post only"),
        ("namespaceAffinity: {matchLabels: {team: a}}", ""),
        (
            "namespaceAffinity: {matchLabels: {team: b}}",
            "does not serve namespace shop (spec.namespaceAffinity)",
        ),
        ("namespaceAffinity: {matchLabels: {kubernetes.io/metadata.name: shop}}", ""),
        ("namespaceName: [shop], namespaceAffinity: {matchLabels: {team: b}}", ""),
        (
            "namespaceName: [bank], namespaceAffinity: {matchLabels: {team: a}}",
            "serves namespaces bank only",
        ),
        ("podAffinity: {matchLabels: {app: web}}", ""),
        ("podAffinity: {matchLabels: {app: db}}", "does not serve this pod (spec.podAffinity)"),
        ("multusName: [kube-system/lan]", ""),
        ("multusName: [lan]", ""),
        ("multusName: [shop/lan]", "serves network definitions shop/lan only (spec.multusName)"),
    ] {
        let (chosen, why) = filter("", &format!(", {spec}"));
        if sentence.is_empty() {
            assert_eq!((chosen, why), (vec!["asked".into(), "all".into()], vec![]), "{spec}");
        } else {
            assert_eq!((chosen, why), (vec!["all".into()], vec![format!("asked {sentence}")]));
        }
    }
    let (chosen, why) = filter(", deletionTimestamp: '2026-01-01T00:00:00Z'", "");
    assert_eq!((chosen, why), (vec!["all".into()], vec!["asked is being deleted".into()]));
}

/// Of several reasons the first in upstream's order is said.
#[test]
fn filters_are_asked_in_upstreams_order() {
    let faults = [
        ("disable: true", "is disabled"),
        ("nodeName: [n2]", "serves nodes"),
        ("namespaceName: [bank]", "serves namespaces"),
        ("podAffinity: {matchLabels: {app: db}}", "does not serve this pod"),
        ("multusName: [wan]", "serves network definitions"),
    ];
    for (i, (_, sentence)) in faults.iter().enumerate() {
        let specs: Vec<&str> = faults[i..].iter().map(|(spec, _)| *spec).collect();
        let (_, why) = filter("", &format!(", {}", specs.join(", ")));
        assert!(why[0].starts_with(&format!("asked {sentence}")), "{why:?}");
    }
}

/// How a source is set.
type Set = fn(&mut Asking);

/// Sources, the pool that each names alone, and how it is set. In the order of the reference, section 2.3;
/// a Network's own pools are Bowline's and come last.
const SOURCES: [(&str, &str, Set); 8] = [
    ("the application's automatic pools", "auto4", |asking| {
        asking.note("subnets", r#"[{"interface": "eth1", "ipv4": ["s4"]}]"#);
    }),
    // An application has one pool for each interface and family: the family says which annotation won.
    ("the application's automatic pools", "auto6", |asking| {
        asking.note("subnet", r#"{"interface": "eth1", "ipv6": ["s6"]}"#);
    }),
    ("the pod's ippools", "by-ippools", |asking| {
        asking.note("ippools", r#"[{"interface": "eth1", "ipv4": ["by-ippools"]}]"#);
    }),
    ("the pod's ippool", "by-ippool", |asking| {
        asking.note("ippool", r#"{"ipv4": ["by-ippool"]}"#);
    }),
    ("the namespace's pools", "by-namespace", |asking| {
        let key = "ipam.spidernet.io/default-ipv4-ippool";
        asking.namespace.annotations.insert(key.into(), r#"["by-namespace"]"#.into());
    }),
    ("the CNI configuration", "by-configuration", |asking| {
        asking.configured.ipv4 = vec!["by-configuration".into()];
    }),
    ("the default pools", "by-default", |asking| {
        asking.catalog.pools.get_mut("by-default").unwrap().spec.is_default = Some(true);
    }),
    ("the Network's spec.ipPools", "by-network", |asking| {
        let blue = asking.catalog.networks.get_mut("blue").unwrap();
        blue.spec.ip_pools.ipv4 = vec!["by-network".into()];
    }),
];

fn one_pool_for_each_source() -> String {
    let pool = |i: usize, name: &str| {
        let (mut labels, mut affinity) = (String::new(), "");
        if name.starts_with("auto") {
            let owner = "ipam.spidernet.io/owner-application";
            let family = name.replace("auto", "IPv");
            labels = format!(
                ", {owner}-gv: apps_v1, {owner}-kind: Deployment, {owner}-namespace: shop, \
                 {owner}-name: web, {owner}-uid: u, ipam.spidernet.io/interface: eth1, \
                 ipam.spidernet.io/ip-version: {family}"
            );
            affinity = ", podAffinity: {matchLabels: {ipam.spidernet.io/app-api-group: apps, \
                        ipam.spidernet.io/app-api-version: v1, ipam.spidernet.io/app-kind: \
                        Deployment, ipam.spidernet.io/app-namespace: shop, \
                        ipam.spidernet.io/app-name: web}}";
        }
        let subnet = match name {
            "auto6" => "'fd00::/64', ips: ['fd00::9']".into(),
            _ => format!("10.{i}.0.0/24, ips: [10.{i}.0.9]"),
        };
        format!(
            "---\n{{kind: SpiderIPPool, apiVersion: v, metadata: {{name: {name}, \
             labels: {{bowline.dev/network: blue{labels}}}}}, spec: {{subnet: {subnet}{affinity}}}}}\n"
        )
    };
    SOURCES.iter().enumerate().map(|(i, (_, name, _))| pool(i, name)).collect()
}

/// What names nothing for the second family leaves it out: nothing is merged.
#[test]
fn of_two_sources_the_first_wins_whole() {
    let objects = one_pool_for_each_source();
    for (i, (source, pool, set)) in SOURCES.iter().enumerate() {
        let mut alone = Asking::new(&objects);
        set(&mut alone);
        let chosen = alone.select();
        assert_eq!((chosen.source, names(&chosen)), (*source, vec![*pool]));
        for (_, other, set_other) in &SOURCES[i + 1..] {
            let mut both = Asking::new(&objects);
            set(&mut both);
            set_other(&mut both);
            let chosen = both.select();
            assert_eq!((chosen.source, names(&chosen)), (*source, vec![*pool]), "with {other}");
        }
    }
}

/// What is misspelt must not be served by whoever comes next.
#[test]
fn a_pool_that_does_not_exist_lets_no_other_source_serve() {
    let default = "{kind: SpiderIPPool, apiVersion: v, metadata: {name: d, labels: {bowline.dev/network: blue}},
                    spec: {subnet: 10.0.0.0/24, ips: [10.0.0.2], default: true}}
---
{kind: SpiderIPPool, apiVersion: v, metadata: {name: lan}, spec: {subnet: 10.9.0.0/24, ips: [10.9.0.2]}}
";
    let mut asking = Asking::new(&format!("---\n{default}"));
    asking.note("ippool", r#"{"ipv4": ["lan"]}"#);
    assert_eq!(names(&asking.select()), ["d"], "another's pool is not meant for this interface");
    asking.note("ippool", r#"{"ipv4": ["x*"]}"#);
    assert_eq!(names(&asking.select()), ["d"], "nor is a pattern that nothing here matches");
    for pools in [r#"["typo"]"#, r#"["lan", "typo"]"#] {
        asking.note("ippool", &format!(r#"{{"ipv4": {pools}}}"#));
        let why = asking.try_select().unwrap_err().to_string();
        assert!(why.contains("typo does not exist") && why.contains("the pod's ippool"), "{why}");
    }
    asking.note("ippool", r#"{"ipv4": ["typo", "d"]}"#);
    assert_eq!(names(&asking.select()), ["d"], "the next of its list serves");
}
