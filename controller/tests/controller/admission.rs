//! Each rule through a real API server: the good case passes, the bad one is refused with its sentence.

use crate::common::{
    Controller, cluster, create, delete, eventually, get, network, patch, post, spider,
};
use bowline_kube::ApiStore;
use kube::Client;
use multinet::store::Store;
use multinet::types::block::{AddressBlock, Entry, EntryState, Owner};
use serde_json::{Value, json};

const POOLS: &str = "/apis/spiderpool.spidernet.io/v2beta1/spiderippools";
const NETWORKS: &str = "/apis/bowline.dev/v1alpha1/networks";

#[tokio::test(flavor = "multi_thread")]
async fn every_rule_lets_the_good_pass_and_refuses_the_bad() {
    let (api, client) = cluster().await;
    definitions(&client).await;
    let controller = Controller::start(&api, "one", &[]).await;
    networks(&client).await;
    pools(&client).await;
    pools_beside_the_nodes(&client).await;
    a_pool_as_large_as_can_be(&client).await;
    subnets(&client).await;
    other_kinds(&client).await;
    pods(&client).await;
    injection(&client).await;
    in_use(&client).await;
    moved(&client).await;
    on_its_way_out(&client).await;
    defaults(&client).await;
    let refused =
        r#"bowline_controller_admission_reviews_total{kind="SpiderIPPool",verdict="refused"} "#;
    assert!(controller.metric(refused).await >= 5.0, "{}", controller.get("/metrics").await);
    controller.stop().await;
}

async fn good(client: &Client, object: Value) {
    let what = object.to_string();
    create(client, object).await.unwrap_or_else(|why| panic!("{what}: {why}"));
}

async fn bad(client: &Client, object: Value, sentence: &str) {
    let what = object.to_string();
    let why = create(client, object).await.err().unwrap_or_else(|| panic!("not refused: {what}"));
    assert!(why.contains(sentence), "{what}\nis refused by: {why}\nand not by: {sentence}");
}

/// What one object can decide, its definition decides: no webhook is there yet.
async fn definitions(client: &Client) {
    good(client, network("first", json!({"vni": 900}))).await;
    for (spec, sentence) in [
        (json!({"vni": 0}), "spec.vni"),
        (json!({"encapsulation": "VLAN"}), "vlanID belongs to encapsulation VLAN"),
        (json!({"encapsulation": "None", "vni": 5}), "vni belongs to encapsulation VXLAN only"),
        (json!({"encapsulation": "GRE"}), "spec.encapsulation"),
        (json!({"interface": {"rxQueues": 9}}), "must be 1 to maxQueues"),
        (json!({"interface": {"ringSize": 8192}}), "ringSize must be at most maxRingSize"),
    ] {
        bad(client, network("x", spec), sentence).await;
    }
    bad(client, network("a.b", json!({})), "metadata.name must be 1 to 63").await;
    let first = format!("{NETWORKS}/first");
    let changed = patch(client, &first, json!({"spec": {"vni": 901}})).await;
    assert!(changed.unwrap_err().contains("vni cannot be changed"));
    // Nor by taking it out first, when it is allocated.
    patch(client, &format!("{first}/status"), json!({"status": {"vni": 900}})).await.unwrap();
    patch(client, &first, json!({"spec": {"vni": null}})).await.unwrap();
    let changed = patch(client, &first, json!({"spec": {"vni": 901}})).await;
    assert!(changed.unwrap_err().contains("vni cannot be changed"));
    delete(client, &first).await.unwrap();

    let first = json!({"subnet": "10.99.0.0/24", "ipVersion": 4});
    good(client, spider("SpiderIPPool", "first", first)).await;
    let wrong = spider("SpiderIPPool", "x", json!({"subnet": "10.99.0.0"}));
    bad(client, wrong, "subnet is not a prefix").await;
    bad(client, spider("SpiderIPPool", "x", json!({})), "spec.subnet").await;
    bad(client, spider("SpiderSubnet", "x", json!({"subnet": "x"})), "subnet is not a prefix")
        .await;
    let first = format!("{POOLS}/first");
    let moved = patch(client, &first, json!({"spec": {"subnet": "10.98.0.0/24"}})).await;
    assert!(moved.unwrap_err().contains("subnet cannot be changed"));
    let other = patch(client, &first, json!({"spec": {"ipVersion": 6}})).await;
    assert!(other.unwrap_err().contains("ipVersion cannot be changed"));
    delete(client, &first).await.unwrap();
}

async fn networks(client: &Client) {
    good(client, network("blue", json!({"vni": 56}))).await;
    bad(client, network("twin", json!({"vni": 56})), "belongs to the older Network blue").await;
    good(client, network("red", json!({}))).await;
    bad(client, network("lan", json!({"encapsulation": "VLAN"})), "vlanID").await;
    let changed = patch(client, &format!("{NETWORKS}/blue"), json!({"spec": {"vni": 57}})).await;
    assert!(changed.unwrap_err().contains("cannot be changed"));
    let more = json!({"spec": {"namespaceSelector": {"matchLabels": {"team": "blue"}}}});
    patch(client, &format!("{NETWORKS}/blue"), more).await.unwrap();
}

fn pool(name: &str, network: &str, spec: Value) -> Value {
    let mut pool = spider("SpiderIPPool", name, spec);
    pool["metadata"]["labels"] = json!({"bowline.dev/network": network});
    pool
}

async fn pools(client: &Client) {
    let own =
        json!({"subnet": "10.1.0.0/24", "ips": ["10.1.0.10-10.1.0.20"], "gateway": "10.1.0.1"});
    good(client, pool("p1", "blue", own)).await;
    // Overlap: within a Network only.
    let same = json!({"subnet": "10.1.0.0/24", "ips": ["10.1.0.15"]});
    bad(client, pool("p2", "blue", same.clone()), "is also in the older pool p1").await;
    good(client, pool("p3", "red", same)).await;
    let around = json!({"subnet": "10.1.0.0/16", "ips": ["10.1.9.1"]});
    bad(client, pool("p4", "blue", around), "overlaps 10.1.0.0/24 of the older pool p1").await;
    let cases = [
        (json!({"subnet": "10.2.0.7/24"}), "is not in its plain form; write 10.2.0.0/24"),
        (json!({"subnet": "10.2.0.0/24", "ipVersion": 6}), "spec.subnet is IPv4"),
        (json!({"subnet": "10.2.0.0/24", "ips": ["10.3.0.1"]}), "is outside spec.subnet"),
        (json!({"subnet": "10.2.0.0/24", "excludeIPs": ["10.3.0.1"]}), "is outside spec.subnet"),
        (json!({"subnet": "10.2.0.0/24", "gateway": "10.3.0.1"}), "is outside spec.subnet"),
        (
            json!({"subnet": "10.2.0.0/24", "ips": ["10.2.0.1"], "gateway": "10.2.0.1"}),
            "spec.excludeIPs",
        ),
        (
            json!({"subnet": "10.2.0.0/24", "routes": [{"dst": "0.0.0.0/0", "gw": "10.2.0.1"}]}),
            "use spec.gateway",
        ),
        (
            json!({"subnet": "10.2.0.0/24", "routes": [{"dst": "10.9.0.0/16", "gw": "10.3.0.1"}]}),
            "is not an address of spec.subnet",
        ),
        (
            json!({"subnet": "10.2.0.0/24", "routes": [{"dst": "10.9.0.0/16", "gw": "10.2.0.1"}, {"dst": "10.9.0.0/16", "gw": "10.2.0.2"}]}),
            "is routed twice",
        ),
        (json!({"subnet": "10.2.0.0/24", "podAffinity": {}}), "is empty"),
    ];
    for (spec, sentence) in cases {
        bad(client, pool("bad", "blue", spec), sentence).await;
    }
    let moved =
        patch(client, &format!("{POOLS}/p1"), json!({"spec": {"subnet": "10.4.0.0/24"}})).await;
    assert!(moved.unwrap_err().contains("cannot be changed"));
    good(client, spider("SpiderReservedIP", "r1", json!({"ips": ["10.1.0.12"]}))).await;
    let mixed = json!({"ips": ["10.1.0.12", "fd00::1"]});
    bad(client, spider("SpiderReservedIP", "r2", mixed), "is not IPv4").await;
}

/// The database takes 1.5 MiB for an object, and a review of its change holds it twice.
async fn a_pool_as_large_as_can_be(client: &Client) {
    let address = |host: u32| {
        format!(
            "fd00:1111:2222:3333:4444:5555:{:x}:{:x}",
            0x1000 + host / 0x1000,
            0x1000 + host % 0x1000
        )
    };
    let range = |n: u32| format!("{}-{}", address(4 * n), address(4 * n + 2));
    let ips: Vec<String> = (0..16_000).map(range).collect();
    let large = pool("large", "blue", json!({"subnet": "fd00:1111:2222:3333::/64", "ips": ips}));
    let created = create(client, large).await.unwrap();
    let size = created.to_string().len();
    assert!((1_200_000..1_500_000).contains(&size), "{size} bytes");
    let path = format!("{POOLS}/large");
    let gateway = |address: &str| json!({"spec": {"gateway": address}});
    let refused = patch(client, &path, gateway("fd00::1")).await.unwrap_err();
    assert!(refused.contains("is outside spec.subnet"), "the webhook's own sentence: {refused}");
    patch(client, &path, gateway("fd00:1111:2222:3333::1")).await.unwrap();
    delete(client, &path).await.unwrap();
    // The others are not to be judged beside it.
    eventually("it goes", async || get(client, &path).await.is_none().then_some(())).await;
}

/// Pods of `default` share the nodes' own stack: a pool over Services or nodes would cut every node off.
async fn pools_beside_the_nodes(client: &Client) {
    let node = json!({
        "apiVersion": "bowline.dev/v1alpha1", "kind": "NodeState", "metadata": {"name": "n1"},
        "spec": {"uplinks": [{"name": "eth0", "ipv4": "10.90.0.11", "ipv6": "fd00:90::11", "mtu": 1500}]},
    });
    good(client, node).await;
    for (subnet, sentence) in [
        ("10.96.0.0/24", "overlaps 10.96.0.0/16 of the Services"),
        ("10.0.0.0/8", "overlaps 10.90.0.11/32 of node n1"),
        ("10.90.0.0/24", "overlaps 10.90.0.11/32 of node n1"),
        ("fd00:90::/64", "overlaps fd00:90::11/128 of node n1"),
    ] {
        // The replica learns of node and Services by its watches; dry runs change nothing meanwhile.
        let mut wrong = pool("wrong", "default", json!({"subnet": subnet}));
        let path = format!("{POOLS}?dryRun=All");
        let why = eventually(&format!("{subnet} is refused"), async || {
            post(client, &path, wrong.clone()).await.err()
        })
        .await;
        assert!(why.contains(sentence), "{subnet}: {why}");
        // A Network of its own may have any prefix.
        wrong["metadata"]["labels"]["bowline.dev/network"] = json!("later");
        post(client, &path, wrong).await.unwrap();
    }
}

async fn subnets(client: &Client) {
    let subnet = |name, spec| spider("SpiderSubnet", name, spec);
    good(
        client,
        subnet(
            "s1",
            json!({"subnet": "10.7.0.0/24", "ips": ["10.7.0.10-10.7.0.20"], "gateway": "10.7.0.1"}),
        ),
    )
    .await;
    bad(
        client,
        subnet("s2", json!({"subnet": "10.7.0.0/16"})),
        "overlaps 10.7.0.0/24 of the older subnet s1",
    )
    .await;
    bad(
        client,
        subnet("s3", json!({"subnet": "10.8.0.0/24", "ips": ["10.9.0.1"]})),
        "is outside spec.subnet",
    )
    .await;
    let inside = json!({"subnet": "10.7.0.0/24", "ips": ["10.7.0.11"]});
    good(client, spider("SpiderIPPool", "cut", inside)).await;
    let outside = json!({"subnet": "10.7.0.0/24", "ips": ["10.7.0.99"]});
    bad(
        client,
        spider("SpiderIPPool", "out", outside),
        "is not among the addresses of SpiderSubnet s1",
    )
    .await;
    let other = json!({"subnet": "10.7.0.0/25", "ips": ["10.7.0.12"]});
    bad(client, spider("SpiderIPPool", "half", other), "as SpiderSubnet s1 around it").await;
    let path = "/apis/spiderpool.spidernet.io/v2beta1/spidersubnets/s1";
    let taken = patch(client, path, json!({"spec": {"ips": ["10.7.0.15-10.7.0.20"]}})).await;
    assert!(taken.unwrap_err().contains("belongs to pool cut"));
}

async fn other_kinds(client: &Client) {
    good(
        client,
        spider("SpiderCoordinator", "default", json!({"mode": "auto", "podCIDRType": "none"})),
    )
    .await;
    let path = "/apis/spiderpool.spidernet.io/v2beta1/spidercoordinators/default";
    let odd = patch(client, path, json!({"spec": {"podMACPrefix": "01:02"}})).await;
    assert!(odd.unwrap_err().contains("podMACPrefix"));
    let config = |name: &str, spec: Value| {
        let mut config = spider("SpiderMultusConfig", name, spec);
        config["metadata"]["namespace"] = json!("default");
        config
    };
    good(client, config("mv", json!({"cniType": "macvlan", "macvlan": {"master": ["eth0"]}})))
        .await;
    bad(
        client,
        config("x", json!({"cniType": "macvlan", "ipvlan": {"master": ["eth0"]}})),
        "ipvlan",
    )
    .await;
    bad(
        client,
        config("y", json!({"cniType": "macvlan", "macvlan": {"master": ["a", "b"]}})),
        "bond",
    )
    .await;
    bad(client, config("z", json!({"cniType": "custom", "customCNI": "{"})), "customCNI").await;
}

fn pod(name: &str, annotations: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "annotations": annotations},
        "spec": {"containers": [{"name": "c", "image": "i"}], "automountServiceAccountToken": false},
    })
}

async fn pods(client: &Client) {
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": "default"}});
    good(client, account).await;
    good(client, pod("plain", json!({}))).await;
    // Later objects can cure these.
    good(client, pod("early", json!({"ipam.spidernet.io/ippool": r#"{"ipv4": ["later"]}"#}))).await;
    good(
        client,
        pod("soon", json!({"bowline.dev/interfaces": r#"[{"name": "eth1", "network": "later"}]"#})),
    )
    .await;
    let cases = [
        (json!({"ipam.spidernet.io/ippool": "{"}), "is not JSON like"),
        (
            json!({"ipam.spidernet.io/ippools": r#"[{"interface": "eth0", "ipv4": ["a"]}, {"interface": "eth0", "ipv4": ["b"]}]"#}),
            "is listed twice",
        ),
        (
            json!({"ipam.spidernet.io/routes": r#"[{"dst": "10.0.0.0/8", "gw": "fd00::1"}]"#}),
            "is not IPv4",
        ),
        (
            json!({"bowline.dev/interfaces": r#"[{"name": "eth0", "network": "red"}]"#}),
            "is the name of another interface",
        ),
        (
            json!({"bowline.dev/interfaces": r#"[{"name": "eth1", "network": "red", "bandwidth": 1}]"#}),
            "is not honoured",
        ),
        (json!({"ipam.spidernet.io/subnet": r#"{"ipv4": ["s1"]}"#}), "this pod has no controller"),
    ];
    for (i, (annotations, sentence)) in cases.into_iter().enumerate() {
        bad(client, pod(&format!("bad{i}"), annotations), sentence).await;
    }
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "np", "namespace": "default"}, "spec": {"podSelector": {}},
    });
    good(client, policy).await;
}

/// A pod is given every configuration with the value of its annotation, and the resources of these.
async fn injection(client: &Client) {
    const KEY: &str = "cni.spidernet.io/rdma-resource-inject";
    let mut config = spider(
        "SpiderMultusConfig",
        "vf",
        json!({"cniType": "sriov", "sriov": {"resourceName": "example.com/vf", "ippools": {"ipv4": ["p1"]}}}),
    );
    config["metadata"]["namespace"] = json!("default");
    config["metadata"]["annotations"] = json!({KEY: "gpu"});
    good(client, config).await;
    let made = eventually("the configuration is known", async || {
        create(client, pod("rdma", json!({KEY: "gpu"}))).await.ok()
    })
    .await;
    assert_eq!(made["metadata"]["annotations"]["k8s.v1.cni.cncf.io/networks"], "default/vf");
    let resources = &made["spec"]["containers"][0]["resources"];
    assert_eq!(resources["requests"]["example.com/vf"], "1", "{made}");
    bad(client, pod("none", json!({KEY: "other"})), "is carried by no SpiderMultusConfig").await;
}

/// Addresses in somebody's hands: what would take them away is refused.
async fn in_use(client: &Client) {
    hold(client, "blue", "p1", "10.1.0.11").await;
    let pool = format!("{POOLS}/p1");
    // The replica learns of the block by its watch; dry runs change nothing meanwhile.
    let why = eventually("the address is known to be in use", async || {
        let cut = json!({"spec": {"ips": ["10.1.0.12-10.1.0.20"]}});
        patch(client, &format!("{pool}?dryRun=All"), cut).await.err()
    })
    .await;
    assert!(why.contains("is held by pod default/plain and cannot be taken out"), "{why}");
    let why = delete(client, &pool).await.unwrap_err();
    assert!(why.contains("1 addresses are in use, 10.1.0.11 by pod default/plain"), "{why}");
    let why = delete(client, &format!("{NETWORKS}/blue")).await.unwrap_err();
    assert!(why.contains("are in use"), "{why}");
    let label = json!({"metadata": {"labels": {"bowline.dev/network": "red"}}});
    let why = patch(client, &pool, label).await.unwrap_err();
    assert!(why.contains("while 1 addresses are in use"), "{why}");
    // Disabling stops new claims and nothing else.
    patch(client, &pool, json!({"spec": {"disable": true}})).await.unwrap();
}

/// The pod "plain" has an address.
async fn hold(client: &Client, domain: &str, pool: &str, address: &str) {
    let address = address.parse().unwrap();
    let mut block = AddressBlock::around(domain, address);
    block.put(Entry {
        address,
        state: EntryState::Allocated,
        owner: Some(Owner::Pod {
            namespace: "default".into(),
            name: "plain".into(),
            uid: "u".into(),
        }),
        interface: "eth0".into(),
        pool: pool.into(),
        sandbox_id: "s".into(),
        node: "n1".into(),
        since_ms: 0,
        until_ms: None,
        reason: String::new(),
    });
    ApiStore::new(client.clone()).create(&block).await.unwrap();
}

/// Nobody takes a pool in use by making a Network that lists it.
async fn moved(client: &Client) {
    let spec = json!({"subnet": "10.77.0.0/24", "ips": ["10.77.0.10-10.77.0.20"]});
    good(client, spider("SpiderIPPool", "lan", spec)).await;
    hold(client, "", "lan", "10.77.0.11").await;
    let taker = || network("taker", json!({"ipPools": {"ipv4": ["lan"]}}));
    let networks = format!("{NETWORKS}?dryRun=All");
    let why = eventually("the address is known to be in use", async || {
        post(client, &networks, taker()).await.err()
    })
    .await;
    assert!(why.contains("while 1 of its addresses are in use"), "{why}");
}

/// What is deleted, and held by a finalizer, is not changed any more.
async fn on_its_way_out(client: &Client) {
    let spec = json!({"subnet": "10.78.0.0/24", "ips": ["10.78.0.10-10.78.0.20"]});
    let mut pool = spider("SpiderIPPool", "dying", spec);
    pool["metadata"]["finalizers"] = json!(["test.example/hold"]);
    good(client, pool).await;
    let path = format!("{POOLS}/dying");
    delete(client, &path).await.unwrap();
    let change = json!({"spec": {"ips": ["10.78.0.10-10.78.0.30"]}});
    let why = patch(client, &path, change).await.unwrap_err();
    assert!(why.contains("while the object is being deleted"), "{why}");
    patch(client, &path, json!({"metadata": {"finalizers": null}})).await.unwrap();
    eventually("it is gone", async || get(client, &path).await.is_none().then_some(())).await;
}

/// What the mutating webhook fills in.
async fn defaults(client: &Client) {
    let spec = json!({"subnet": "10.7.0.0/24", "ips": ["10.7.0.14", "10.7.0.12-10.7.0.13"]});
    let made = create(client, spider("SpiderIPPool", "filled", spec)).await.unwrap();
    assert_eq!(made["spec"]["ipVersion"], 4, "{made}");
    assert_eq!(made["spec"]["ips"], json!(["10.7.0.12-10.7.0.14"]), "merged and sorted");
    assert_eq!(made["spec"]["gateway"], "10.7.0.1", "inherited of the SpiderSubnet");
    assert_eq!(made["metadata"]["labels"]["ipam.spidernet.io/ippool-cidr"], "10-7-0-0-24");
    assert_eq!(made["metadata"]["labels"]["ipam.spidernet.io/owner-spider-subnet"], "s1");
    assert_eq!(made["metadata"]["ownerReferences"][0]["name"], "s1");
    assert_eq!(made["metadata"]["finalizers"], json!(["spiderpool.spidernet.io"]));
    let reserved = spider("SpiderReservedIP", "r6", json!({"ips": ["fd00::1-fd00::5"]}));
    assert_eq!(create(client, reserved).await.unwrap()["spec"]["ipVersion"], 6);
}
