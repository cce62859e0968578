//! What pods ask for: annotations good and bad, grants against caps, and the choice of pools.
#![allow(missing_docs, reason = "a test has no users")]

mod common;

use common::checked;
use multinet::pod::{
    Context, INTERFACES, NETWORKS, RxMode, Selection, Wish, claim_uid, grant, parse_interfaces,
    parse_networks, parse_routes, select,
};
use multinet::realm::state::{MemifMode, Port};
use multinet::rules::{Checked, Home};
use multinet::types::meta::{Labels, ObjectMeta};
use multinet::types::network::{InterfaceType, Network, NetworkSpec, PoolLists};

#[test]
fn the_example_of_the_design_is_read() {
    let text = r#"[{"name": "eth1",   "network": "blue"},
     {"name": "memif1", "network": "red", "type": "memif", "mode": "ethernet",
      "rxQueues": 2, "txQueues": 2, "ringSize": 1024, "rxMode": "polling"}]"#;
    let wishes = parse_interfaces(text, &["lo", "eth0"]).unwrap();
    let first = Wish {
        at: "bowline.dev/interfaces[0]".into(),
        name: "eth1".into(),
        network: "blue".into(),
        ..Wish::default()
    };
    let second = Wish {
        at: "bowline.dev/interfaces[1]".into(),
        name: "memif1".into(),
        network: "red".into(),
        kind: Some(InterfaceType::Memif),
        mode: Some(MemifMode::Ethernet),
        rx_queues: Some(2),
        tx_queues: Some(2),
        ring_size: Some(1024),
        rx_mode: Some(RxMode::Polling),
        ..Wish::default()
    };
    assert_eq!(wishes, [first, second]);
    let exact = r#"[{"interface": "vhost0", "network": "blue", "ips": ["10.0.0.5/24", "fd00::5"],
                     "mac": "0e:00:00:00:00:05", "default-route": ["10.0.0.1"], "mode": null}]"#;
    let wish = &parse_interfaces(exact, &[]).unwrap()[0];
    assert_eq!((wish.name.as_str(), wish.kind), ("vhost0", Some(InterfaceType::VhostUser)));
    assert_eq!(wish.ips.len(), 2);
    assert_eq!(wish.default_route.as_ref().unwrap().len(), 1);
}

#[test]
fn what_cannot_be_read_is_named() {
    let cases = [
        ("{}", "bowline.dev/interfaces: \"{}\": is not a JSON list"),
        ("[1]", "bowline.dev/interfaces[0]: \"1\": is not an object"),
        (r#"[{"network": "a"}]"#, "bowline.dev/interfaces[0].name: is missing"),
        (r#"[{"name": "eth1"}]"#, "bowline.dev/interfaces[0].network: must name a Network"),
        (
            r#"[{"name": "a b", "network": "a"}]"#,
            "bowline.dev/interfaces[0].name: \"a b\": is not an interface name",
        ),
        (
            r#"[{"name": "eth0", "network": "a"}]"#,
            "bowline.dev/interfaces[0].name: \"eth0\": is the name of another",
        ),
        (
            r#"[{"name": "x", "network": "a"}, {"name": "x", "network": "b"}]"#,
            "bowline.dev/interfaces[1].name: \"x\": is the name",
        ),
        (
            r#"[{"name": "x", "interface": "y", "network": "a"}]"#,
            "bowline.dev/interfaces[0].interface: \"y\": contradicts name",
        ),
        (
            r#"[{"name": "x", "network": "a", "bandwidth": 5}]"#,
            "bowline.dev/interfaces[0].bandwidth: \"5\": is not honoured here; allowed are name, network",
        ),
        (
            r#"[{"name": "x", "network": "a", "type": "veth"}]"#,
            "bowline.dev/interfaces[0].type: \"veth\": must be tap or memif or vhost-user",
        ),
        (
            r#"[{"name": "x", "network": "a", "rxQueues": "2"}]"#,
            "bowline.dev/interfaces[0].rxQueues: \"\"2\"\": is not a whole number",
        ),
        (
            r#"[{"name": "x", "network": "a", "txQueues": 0}]"#,
            "bowline.dev/interfaces[0].txQueues: \"0\": is not a whole number above 0",
        ),
        (
            r#"[{"name": "x", "network": "a", "ringSize": -1}]"#,
            "bowline.dev/interfaces[0].ringSize: \"-1\"",
        ),
        (
            r#"[{"name": "x", "network": "a", "ips": ["10.0.0.1", "10.0.0.2"]}]"#,
            "bowline.dev/interfaces[0].ips: \"10.0.0.2\": is the second address of its family",
        ),
        (
            r#"[{"name": "x", "network": "a", "ips": ["ten"]}]"#,
            "bowline.dev/interfaces[0].ips: \"ten\": is not an address",
        ),
        (
            r#"[{"name": "x", "network": "a", "mac": "ff:ff:ff:ff:ff:ff"}]"#,
            "bowline.dev/interfaces[0].mac: \"ff:ff:ff:ff:ff:ff\": is a multicast",
        ),
        (
            r#"[{"name": "x", "network": "a", "mac": "5"}]"#,
            "bowline.dev/interfaces[0].mac: \"5\": \"5\" is not an Ethernet address",
        ),
        (
            r#"[{"name": "x", "network": "a", "mode": 1}]"#,
            "bowline.dev/interfaces[0].mode: \"1\": is not a text",
        ),
    ];
    for (text, sentence) in cases {
        let problem = parse_interfaces(text, &["lo", "eth0"]).unwrap_err().to_string();
        assert!(problem.starts_with(sentence), "{problem}\n{sentence}");
    }
}

#[test]
fn noise_in_annotations_never_panics() {
    bolero::check!().with_type::<String>().for_each(|text| {
        let _ = parse_interfaces(text, &[]);
        let _ = parse_networks(text, "shop");
        let labels = Labels::from([("ipam.spidernet.io/routes".to_string(), text.clone())]);
        let _ = parse_routes(&labels);
    });
}

#[test]
fn almost_good_annotations_never_panic() {
    let keys = ["name", "network", "type", "ips", "mac", "rxQueues", "default-route", "namespace"];
    bolero::check!().with_type::<Vec<(u8, u8, i64, String)>>().for_each(|fields| {
        let object: serde_json::Map<String, serde_json::Value> = fields
            .iter()
            .map(|(key, kind, n, s)| {
                let value = match kind % 4 {
                    0 => (*n).into(),
                    1 => s.as_str().into(),
                    2 => serde_json::json!([s]),
                    _ => serde_json::Value::Null,
                };
                (keys[usize::from(*key) % keys.len()].to_string(), value)
            })
            .collect();
        let text = serde_json::json!([object]).to_string();
        if let Ok(wishes) = parse_interfaces(&text, &[]) {
            assert!(wishes.iter().all(|w| !w.name.is_empty() && w.name.len() <= 15));
        }
        let _ = parse_networks(&text, "shop");
    });
}

#[test]
fn multus_elements() {
    let list = parse_networks("blue@memif1, storage/red ,green", "shop").unwrap();
    let of: Vec<(&str, &str, &str)> = list
        .iter()
        .map(|s| (s.namespace.as_str(), s.name.as_str(), s.interface.as_str()))
        .collect();
    assert_eq!(
        of,
        [("shop", "blue", "memif1"), ("storage", "red", "net2"), ("shop", "green", "net3")]
    );
    let json = r#"[{"name": "blue", "ips": ["10.0.0.5"], "mac": "0e:00:00:00:00:01",
                    "default-route": ["10.0.0.1"], "interface": "eth9", "bandwidth": {}}]"#;
    let list = parse_networks(json, "shop").unwrap();
    assert_eq!(list[0].interface, "eth9");
    assert_eq!(
        list[0].check().unwrap_err().to_string(),
        format!(
            "{NETWORKS}[0].bandwidth: is not honoured by Bowline; remove it, so that nobody relies on it"
        )
    );
    assert!(parse_networks("blue@", "shop").is_err());
    assert!(parse_networks("/blue", "shop").is_err());
    assert!(
        parse_networks("[{}]", "shop").unwrap_err().to_string().contains("[0].name: is missing")
    );
}

#[test]
fn grants_fill_in_defaults_and_keep_the_caps() {
    let network = Network::new("blue", NetworkSpec::default());
    let wish = |name: &str| Wish {
        at: format!("{INTERFACES}[0]"),
        name: name.into(),
        network: "blue".into(),
        ..Wish::default()
    };
    let tap = grant(&wish("eth1"), &network).unwrap();
    assert_eq!(tap.port(), Some(Port::Tap { queues: 1 }));
    let memif = grant(&Wish { rx_queues: Some(8), ..wish("memif1") }, &network).unwrap();
    let Some(Port::Memif(port)) = memif.port() else { panic!("{memif:?}") };
    assert_eq!((port.rx_queues, port.tx_queues, port.ring_size), (8, 1, 1024));
    assert!(port.require_sealed_memory);
    assert_eq!(grant(&wish("vhost1"), &network).unwrap().port(), None);
    let named_otherwise = Wish { kind: Some(InterfaceType::Tap), ..wish("memif1") };
    assert_eq!(grant(&named_otherwise, &network).unwrap().kind, InterfaceType::Tap);
    for (wish, sentence) in [
        (
            Wish { rx_queues: Some(9), ..wish("memif1") },
            "bowline.dev/interfaces[0].rxQueues: \"9\": is more than Network blue allows: \
             spec.interface.maxQueues is 8",
        ),
        (
            Wish { ring_size: Some(8192), ..wish("memif1") },
            "bowline.dev/interfaces[0].ringSize: \"8192\": is more than Network blue allows: \
             spec.interface.maxRingSize is 4096",
        ),
        (
            Wish { ring_size: Some(1000), ..wish("memif1") },
            "bowline.dev/interfaces[0].ringSize: \"1000\": must be a power of two, 32 at least",
        ),
        (
            Wish { mode: Some(MemifMode::Ip), ..wish("eth1") },
            "bowline.dev/interfaces[0].mode: belongs to memif; interface eth1 is tap",
        ),
    ] {
        assert_eq!(grant(&wish, &network).unwrap_err().to_string(), sentence);
    }
}

#[test]
fn who_may_attach() {
    let mut network = Network::new("blue", NetworkSpec::default());
    let labels = Labels::from([("team".to_string(), "a".to_string())]);
    assert!(!network.admits(&labels));
    assert!(Network::new("default", NetworkSpec::default()).admits(&labels));
    network.spec.namespace_selector = Some(serde_json::from_str("{}").unwrap());
    assert!(network.admits(&Labels::new()));
    let selector =
        r#"{"matchExpressions": [{"key": "team", "operator": "NotIn", "values": ["b"]}]}"#;
    network.spec.namespace_selector = Some(serde_json::from_str(selector).unwrap());
    assert!(network.admits(&labels) && network.admits(&Labels::new()));
}

// ---- pools ------------------------------------------------------------------------------------

fn world() -> Checked {
    let mut text = String::from(
        "{kind: Network, apiVersion: v, metadata: {name: blue}, \
          spec: {vni: 1, ipPools: {ipv4: [net4], ipv6: [net6]}}}",
    );
    let mut octet = 0;
    let mut add = |name: &str, network: &str, more: &str| {
        octet += 1;
        let subnet = if name.ends_with('6') {
            format!("'fd00:{octet}::/64', ips: ['fd00:{octet}::9']")
        } else {
            format!("10.{octet}.0.0/24, ips: [10.{octet}.0.9]")
        };
        text.push_str(&format!(
            "\n---\n{{kind: SpiderIPPool, apiVersion: v, metadata: {{name: {name}, \
             labels: {{{network}}}}}, spec: {{subnet: {subnet}{more}}}}}"
        ));
    };
    let blue = "bowline.dev/network: blue";
    add("net4", blue, "");
    add("net6", blue, "");
    add("plain-a", blue, "");
    add("plain-b", blue, "");
    add("zone", blue, ", nodeAffinity: {matchLabels: {zone: z1}}");
    add("node-one", blue, ", nodeName: [n1], nodeAffinity: {matchLabels: {zone: z9}}");
    add("web", blue, ", podAffinity: {matchLabels: {app: web}}");
    add("shop-ns", blue, ", namespaceName: [shop]");
    add("bank-ns", blue, ", namespaceAffinity: {matchLabels: {kubernetes.io/metadata.name: bank}}");
    add("nad", blue, ", multusName: [kube-system/lan]");
    add("off", blue, ", disable: true");
    add("lan4", "", "");
    add("lan-default", "", ", default: true");
    checked(&text)
}

fn meta(annotations: &[(&str, &str)]) -> ObjectMeta {
    let pairs = annotations.iter().map(|(k, v)| (format!("ipam.spidernet.io/{k}"), v.to_string()));
    ObjectMeta {
        name: "web-0".into(),
        namespace: Some("shop".into()),
        labels: Labels::from([("app".to_string(), "web".to_string())]),
        annotations: pairs.collect(),
        ..ObjectMeta::default()
    }
}

fn choose(checked: &Checked, pod: &ObjectMeta, home: Home) -> Result<Selection, String> {
    let node_labels = Labels::from([("zone".to_string(), "z1".to_string())]);
    let context = Context {
        pod,
        namespace: None,
        node: "n1",
        node_labels: &node_labels,
        interface: "eth1",
        index: Some(1),
        home,
        configured: PoolLists::default(),
        attachment_definition: None,
        application: None,
        master_addresses: None,
    };
    select(checked, &context).map_err(|p| p.to_string())
}

fn blue() -> Home {
    Home::Network("blue".into())
}

fn names(selection: &Selection) -> Vec<Vec<&str>> {
    let pools = selection.families.iter().map(|(_, c)| c.iter().map(|c| c.pool.as_str()).collect());
    pools.collect()
}

#[test]
fn without_a_word_the_networks_own_pools_serve() {
    let checked = world();
    let chosen = choose(&checked, &meta(&[]), blue()).unwrap();
    assert_eq!(
        (chosen.source, names(&chosen)),
        ("the Network's spec.ipPools", vec![vec!["net4"], vec!["net6"]])
    );
    // The LAN domain has its default pool; an overlay never takes it.
    let chosen = choose(&checked, &meta(&[]), Home::Lan).unwrap();
    assert_eq!((chosen.source, names(&chosen)), ("the default pools", vec![vec!["lan-default"]]));
}

#[test]
fn the_first_source_wins_whole() {
    let checked = world();
    let pool = ("ippool", r#"{"ipv4": ["plain-a"]}"#);
    let chosen = choose(&checked, &meta(&[pool]), blue()).unwrap();
    assert_eq!((chosen.source, names(&chosen)), ("the pod's ippool", vec![vec!["plain-a"]]));
    let pools =
        ("ippools", r#"[{"interface": "eth1", "ipv4": ["plain-b"], "cleangateway": true}]"#);
    let chosen = choose(&checked, &meta(&[pool, pools]), blue()).unwrap();
    assert_eq!((chosen.source, names(&chosen)), ("the pod's ippools", vec![vec!["plain-b"]]));
    assert!(chosen.clean_gateway);
    // Elements without names are taken by position.
    let unnamed = ("ippools", r#"[{"ipv4": ["plain-a"]}, {"ipv4": ["net4"]}]"#);
    let chosen = choose(&checked, &meta(&[unnamed]), blue()).unwrap();
    assert_eq!(names(&chosen), [["net4"]]);
    // The namespace's word comes after the pod's and before the Network's.
    let namespace = meta(&[("default-ipv4-ippool", r#"["plain-?"]"#)]);
    let pod = meta(&[]);
    let labels = Labels::new();
    let context = Context {
        pod: &pod,
        namespace: Some(&namespace),
        node: "n1",
        node_labels: &labels,
        interface: "eth1",
        index: None,
        home: blue(),
        configured: PoolLists { ipv4: vec!["net4".into()], ipv6: vec![] },
        attachment_definition: None,
        application: None,
        master_addresses: None,
    };
    let chosen = select(&checked, &context).unwrap();
    assert_eq!(
        (chosen.source, names(&chosen)),
        ("the namespace's pools", vec![vec!["plain-a", "plain-b"]])
    );
    let chosen = select(&checked, &Context { namespace: None, ..context }).unwrap();
    assert_eq!((chosen.source, names(&chosen)), ("the CNI configuration", vec![vec!["net4"]]));
}

#[test]
fn backup_pools_keep_their_order_and_specific_ones_come_first() {
    let checked = world();
    // Upstream tries pools of equal affinity in random order.
    for (written, expected) in [
        (r#"["plain-b", "net4", "plain-a"]"#, vec!["plain-b", "net4", "plain-a"]),
        (r#"["plain-a", "plain-b", "net4"]"#, vec!["plain-a", "plain-b", "net4"]),
        (
            r#"["plain-b", "shop-ns", "zone", "node-one", "web", "plain-a"]"#,
            vec!["web", "node-one", "zone", "shop-ns", "plain-b", "plain-a"],
        ),
        (r#"["plain-b", "plain-*"]"#, vec!["plain-b", "plain-a"]),
    ] {
        let annotation = format!("{{\"ipv4\": {written}}}");
        let chosen = choose(&checked, &meta(&[("ippool", &annotation)]), blue()).unwrap();
        assert_eq!(names(&chosen), [expected]);
    }
}

#[test]
fn every_pool_that_does_not_serve_says_why() {
    let checked = world();
    let list =
        r#"{"ipv4": ["off", "nad", "bank-ns", "lan4", "missing", "net6", "no-*", "plain-a"]}"#;
    let chosen = choose(&checked, &meta(&[("ippool", list)]), blue()).unwrap();
    assert_eq!(names(&chosen), [["plain-a"]]);
    let why: Vec<String> =
        chosen.rejected.iter().map(|r| format!("{} {}", r.pool, r.why)).collect();
    assert_eq!(
        why,
        [
            "lan4 belongs to the LAN domain, not to Network blue",
            "missing does not exist",
            "no-* matches no further IPv4 pool of Network blue",
            "off is disabled (spec.disable)",
            "nad serves network definitions kube-system/lan only (spec.multusName)",
            "bank-ns does not serve namespace shop (spec.namespaceAffinity)",
            "net6 is IPv6, wanted is IPv4",
        ]
    );
    let none = choose(&checked, &meta(&[("ippool", r#"{"ipv4": ["off", "nad"]}"#)]), blue());
    assert_eq!(
        none.unwrap_err(),
        "pools: no address for eth1 of pod shop/web-0 in Network blue (pools from the pod's ippool): \
         pool off is disabled (spec.disable); pool nad serves network definitions kube-system/lan \
         only (spec.multusName)"
    );
}

#[test]
fn pools_of_another_network_are_not_meant_for_this_interface() {
    let checked = world();
    // A pod with an underlay eth0 and a Bowline interface: `ippool` speaks of the former.
    let pod = meta(&[("ippool", r#"{"ipv4": ["lan4"]}"#)]);
    assert_eq!(choose(&checked, &pod, blue()).unwrap().source, "the Network's spec.ipPools");
    assert_eq!(names(&choose(&checked, &pod, Home::Lan).unwrap()), [["lan4"]]);
    let red = choose(&checked, &pod, Home::Network("red".into())).unwrap_err();
    assert!(red.ends_with("pool lan4 belongs to the LAN domain, not to Network red"), "{red}");
}

#[test]
fn annotations_that_cannot_be_read_or_served_are_named() {
    let checked = world();
    for (key, value, sentence) in [
        ("ippool", "x", "ipam.spidernet.io/ippool: \"x\": is not JSON like"),
        ("ippools", "[]", "ipam.spidernet.io/ippools: \"[]\": must name the interface of every"),
        ("ippools", r#"[{"interface": "eth0"}]"#, "ipam.spidernet.io/ippools: "),
        (
            "ippools",
            r#"[{"interface": "eth1"}, {"interface": "eth1"}]"#,
            "ipam.spidernet.io/ippools[1].interface: \"eth1\": is listed twice",
        ),
        ("ippools", r#"[{"interface": "eth1"}, {"ipv4": ["a"]}]"#, "ipam.spidernet.io/ippools: "),
        ("subnet", "{}", "ipam.spidernet.io/subnet: names no subnet"),
        (
            "subnet",
            r#"{"ipv4": ["s"]}"#,
            "ipam.spidernet.io/subnet: \"{\"ipv4\": [\"s\"]}\": makes a pool for an application, and no",
        ),
    ] {
        let found = choose(&checked, &meta(&[(key, value)]), blue()).unwrap_err();
        assert!(found.starts_with(sentence), "{found}\n{sentence}");
    }
    let routes = |text: &str| parse_routes(&meta(&[("routes", text)]).annotations);
    let good = r#"[{"dst": "10.0.0.0/16", "gw": "192.168.1.1"}]"#;
    assert_eq!(routes(good).unwrap().len(), 1);
    for (text, word) in [
        (r#"[{"dst": "10.0.0.0", "gw": "192.168.1.1"}]"#, "routes[0].dst"),
        (r#"[{"dst": "10.0.0.0/16", "gw": "fd00::1"}]"#, "routes[0].gw"),
        (r#"[{"dst": "10.0.0.0/16"}]"#, "routes[0].gw"),
    ] {
        assert!(routes(text).unwrap_err().to_string().contains(word));
    }
}

#[test]
fn static_pods_claim_by_the_uid_that_the_kubelet_passes() {
    let mut pod = ObjectMeta { uid: Some("mirror".into()), ..ObjectMeta::named("etcd") };
    assert_eq!(claim_uid(&pod), Some("mirror"));
    pod.annotations.insert("kubernetes.io/config.hash".into(), "hash".into());
    assert_eq!(claim_uid(&pod), Some("hash"));
}
