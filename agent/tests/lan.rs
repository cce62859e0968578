//! Addresses for other plugins' interfaces, with the real macvlan plugin over a real link.

mod common;

use cni::rpc::{self, CallMode};
use common::chain::{ChainPod, Plugins, addresses, node_with_lan};
use common::{Agent, Netns, Pod, TWO_NETWORKS, eventually, held, run, write};
use multinet::types::block::{AddressBlock, EntryState};
use serde_json::{Value, json};

const LAN_POOLS: &str = r#"
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: lan-v4}
spec:
  subnet: 10.60.0.0/24
  ips: [10.60.0.2-10.60.0.4]
  gateway: 10.60.0.1
  routes: [{dst: 192.168.0.0/16, gw: 10.60.0.254}]
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: lan-v6}
spec: {subnet: "fd60::/64", ips: ["fd60::2-fd60::4"], gateway: "fd60::1"}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: nad-only}
spec: {subnet: 10.61.0.0/24, ips: [10.61.0.2-10.61.0.9], multusName: [test/macvlan-b]}
"#;

struct Node {
    agent: Agent,
    plugins: Plugins,
    lan: Netns,
    netns: Netns,
    _dir: tempfile::TempDir,
}

fn node() -> Node {
    let dir = tempfile::tempdir().unwrap();
    let (netns, lan) = node_with_lan();
    let mut agent = Agent::prepare(dir.path(), "n1", &dir.path().join("catalog"));
    agent.netns = Some(netns.name.clone());
    write(&agent.catalog, "networks.yaml", TWO_NETWORKS);
    write(&agent.catalog, "lan.yaml", LAN_POOLS);
    agent.start(&[]);
    let plugins = Plugins::new(&agent, &netns);
    Node { agent, plugins, lan, netns, _dir: dir }
}

/// A chain of one: macvlan with both families.
fn macvlan() -> [Value; 1] {
    [json!({"type": "macvlan", "master": "parent", "mode": "bridge", "ipam": {
        "type": "spiderpool",
        "default_ipv4_ippool": ["lan-v4"], "default_ipv6_ippool": ["lan-v6"],
    }})]
}

#[test]
fn macvlan_pods_get_addresses_of_the_lan_and_reach_each_other() {
    let node = node();
    let chain = macvlan();
    let (a, b) = (Netns::new(), Netns::new());
    let pod_a = ChainPod::new("a", &a, "eth0");
    let pod_b = ChainPod::new("b", &b, "eth0");
    let result = node.plugins.add(&pod_a, &chain).result();
    node.plugins.add(&pod_b, &chain).result();

    assert_eq!(addresses(&result), ["10.60.0.2/24", "fd60::2/64"]);
    let ips = result["ips"].as_array().unwrap();
    assert_eq!(ips[0]["gateway"], "10.60.0.1");
    let routes = result["routes"].as_array().unwrap();
    let routes: Vec<_> = routes.iter().map(|r| format!("{} via {}", r["dst"], r["gw"])).collect();
    assert_eq!(
        routes.join(", ").replace('"', ""),
        "0.0.0.0/0 via 10.60.0.1, \
        192.168.0.0/16 via 10.60.0.254, ::/0 via fd60::1"
    );
    let text = b.ip(&["address", "show", "eth0"]);
    assert!(text.contains("10.60.0.3/24") && text.contains("fd60::3/64"), "{text}");
    run("ip", &["netns", "exec", &a.name, "ping", "-c1", "-W5", "10.60.0.3"]);
    eventually("IPv6 answers, duplicate detection over", || {
        let args = ["netns", "exec", &a.name, "ping", "-c1", "-W1", "fd60::3"];
        let output = std::process::Command::new("ip").args(args).output().unwrap();
        output.status.success().then_some(())
    });
    // And somebody of the LAN who knows nothing of Bowline.
    node.lan.ip(&["address", "add", "10.60.0.1/24", "dev", "lan0"]);
    run("ip", &["netns", "exec", &b.name, "ping", "-c1", "-W5", "10.60.0.1"]);

    node.plugins.del(&pod_a, &chain, None);
    let left: Vec<_> = held(&node.agent.catalog).into_iter().map(|(ip, ..)| ip).collect();
    assert_eq!(left, ["10.60.0.3", "fd60::3"]);
    node.plugins.del(&pod_a, &chain, None);
}

#[test]
fn the_same_call_again_gives_the_same_and_an_old_sandbox_frees_nothing() {
    let node = node();
    let netns = Netns::new();
    let mut pod = ChainPod::new("a", &netns, "net1");
    let ipam = json!({"type": "bowline-ipam", "ipam": {"default_ipv4_ippool": ["lan-v4"]}});
    let first = node.plugins.call("ADD", &pod, &ipam, None).result();
    assert_eq!(node.plugins.call("ADD", &pod, &ipam, None).result(), first);
    assert!(node.plugins.call("CHECK", &pod, &ipam, Some(&first)).success);
    let other = json!({"cniVersion": "1.0.0", "ips": [{"address": "10.60.0.77/24"}]});
    let sentence = node.plugins.call("CHECK", &pod, &ipam, Some(&other)).refusal();
    assert!(sentence.contains("10.60.0.2") && sentence.contains("prevResult"), "{sentence}");

    // The pod's sandbox is made anew; the old one's DEL comes late.
    let old = pod.clone();
    pod.sandbox = "sandbox-2".into();
    let again = node.plugins.call("ADD", &pod, &ipam, None).result();
    assert_eq!(addresses(&again), addresses(&first));
    assert!(node.plugins.call("DEL", &old, &ipam, None).success);
    assert_eq!(held(&node.agent.catalog).len(), 1, "the new sandbox's address stays");
    assert!(node.plugins.call("DEL", &pod, &ipam, None).success);
    assert_eq!(held(&node.agent.catalog), []);
    let sentence = node.plugins.call("CHECK", &pod, &ipam, Some(&first)).refusal();
    assert!(sentence.contains("holds no address"), "{sentence}");
}

#[test]
fn a_full_pool_says_why_and_takes_nothing() {
    let node = node();
    let config = json!({"type": "spiderpool", "ipam": {
        "default_ipv4_ippool": ["lan-v4"], "default_ipv6_ippool": ["blue-v6", "lan-v6"]}});
    let netns = Netns::new();
    for name in ["a", "b", "c"] {
        node.plugins.call("ADD", &ChainPod::new(name, &netns, "net1"), &config, None).result();
    }
    let late = ChainPod::new("d", &netns, "net1");
    let sentence = node.plugins.call("ADD", &late, &config, None).refusal();
    assert!(sentence.contains("pool lan-v4 is used up (3 of 3 held)"), "{sentence}");
    assert_eq!(held(&node.agent.catalog).len(), 6);
    // A pool of a Network is never an answer here.
    let config = json!({"type": "spiderpool", "ipam": {"default_ipv4_ippool": ["blue-v4"]}});
    let sentence = node.plugins.call("ADD", &late, &config, None).refusal();
    assert!(sentence.contains("belongs to Network blue"), "{sentence}");
}

#[test]
fn pods_annotations_name_pools_routes_and_the_definition() {
    let node = node();
    write(
        &node.agent.catalog,
        "pod.yaml",
        r#"
apiVersion: v1
kind: Pod
metadata:
  name: a
  namespace: test
  uid: uid-a
  annotations:
    k8s.v1.cni.cncf.io/networks: macvlan-a, macvlan-b
    ipam.spidernet.io/ippools: '[{"interface": "net1", "ipv4": ["lan-v4"], "cleangateway": true},
      {"interface": "net2", "ipv4": ["nad-only", "lan-v4"]}]'
    ipam.spidernet.io/routes: '[{"dst": "172.16.0.0/12", "gw": "10.61.0.9"}]'
"#,
    );
    let netns = Netns::new();
    let config = json!({"type": "bowline-ipam", "ipam": {}});
    let net1 = node.plugins.call("ADD", &ChainPod::new("a", &netns, "net1"), &config, None);
    let net1 = net1.result();
    assert_eq!(addresses(&net1), ["10.60.0.2/24"]);
    let routes = net1["routes"].to_string();
    assert!(!routes.contains("0.0.0.0/0"), "cleangateway: {routes}");
    // multusName lets the second definition alone have this pool.
    let net2 = node.plugins.call("ADD", &ChainPod::new("a", &netns, "net2"), &config, None);
    let net2 = net2.result();
    assert_eq!(addresses(&net2), ["10.61.0.2/24"]);
    assert!(net2["routes"].to_string().contains("172.16.0.0/12"), "{net2}");
}

#[test]
fn a_del_without_agent_is_done_when_it_is_back() {
    let mut node = node();
    let netns = Netns::new();
    let pod = ChainPod::new("a", &netns, "eth0");
    let chain = macvlan();
    node.plugins.add(&pod, &chain).result();
    node.agent.kill();
    node.plugins.del(&pod, &chain, None);
    assert_eq!(held(&node.agent.catalog).len(), 2, "nobody is there to free them");
    node.agent.start(&[]);
    eventually("the addresses are free", || held(&node.agent.catalog).is_empty().then_some(()));
}

/// A pool whose pods ask their link, with macvlan over it.
fn careful(extra: &str) -> (String, [Value; 1]) {
    let pool = format!(
        r#"
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata:
  name: careful-v4
  annotations: {{bowline.dev/detect-ip-conflict: "true", {extra}}}
spec: {{subnet: 10.62.0.0/24, ips: [10.62.0.2-10.62.0.5], gateway: 10.62.0.1}}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata:
  name: careful-v6
  annotations: {{bowline.dev/detect-ip-conflict: "true", {extra}}}
spec: {{subnet: "fd62::/64", ips: ["fd62::2-fd62::5"], gateway: "fd62::1"}}
"#
    );
    let macvlan = json!({"type": "macvlan", "master": "parent", "mode": "bridge", "ipam": {
        "type": "spiderpool",
        "default_ipv4_ippool": ["careful-v4"], "default_ipv6_ippool": ["careful-v6"],
    }});
    (pool, [macvlan])
}

/// Addresses of the LAN that nobody has told Bowline of.
fn squat(lan: &Netns, addresses: &[&str]) {
    for address in addresses {
        let v6: &[&str] = if address.contains(':') { &["nodad"] } else { &[] };
        lan.ip(&[&["address", "add", address, "dev", "lan0"], v6].concat());
    }
}

fn quarantined(node: &Node) -> Vec<(String, String)> {
    let files = std::fs::read_dir(node.agent.catalog.join("AddressBlock")).unwrap();
    let text = files.map(|f| std::fs::read_to_string(f.unwrap().path()).unwrap());
    let blocks = text.map(|t| serde_yaml_ng::from_str::<AddressBlock>(&t).unwrap());
    let entries = blocks.flat_map(|b| b.spec.entries);
    let bad = entries.filter(|e| e.state == EntryState::Quarantined);
    let mut bad: Vec<_> = bad.map(|e| (e.address.to_string(), e.reason)).collect();
    bad.sort();
    bad
}

#[test]
fn an_address_that_somebody_on_the_lan_has_is_set_aside_and_another_one_taken() {
    let node = node();
    let (pool, chain) = careful("");
    write(&node.agent.catalog, "careful.yaml", &pool);
    squat(&node.lan, &["10.62.0.2/24", "10.62.0.3/24", "fd62::2/64"]);
    let netns = Netns::new();
    let result = node.plugins.add(&ChainPod::new("a", &netns, "eth0"), &chain).result();
    assert_eq!(addresses(&result), ["10.62.0.4/24", "fd62::3/64"]);
    let bad = quarantined(&node);
    let ips: Vec<_> = bad.iter().map(|(ip, _)| ip.as_str()).collect();
    assert_eq!(ips, ["10.62.0.2", "10.62.0.3", "fd62::2"]);
    let mac = node.lan.ip(&["-br", "link", "show", "lan0"]);
    let mac = mac.split_whitespace().nth(2).unwrap();
    assert!(bad.iter().all(|(_, why)| why.contains(mac)), "{mac}: {bad:?}");
    assert_eq!(held(&node.agent.catalog).len(), 2);

    // A StatefulSet's pod does not change its address: whoever has it must go.
    let other = Netns::new();
    write(
        &node.agent.catalog,
        "pod.yaml",
        r#"
apiVersion: v1
kind: Pod
metadata:
  name: db-0
  namespace: test
  uid: uid-db-0
  ownerReferences: [{apiVersion: apps/v1, kind: StatefulSet, name: db, uid: u, controller: true}]
"#,
    );
    squat(&node.lan, &["10.62.0.5/24"]);
    let stateful = ChainPod::new("db-0", &other, "eth0");
    let sentence = node.plugins.add(&stateful, &chain).refusal();
    assert!(sentence.contains("10.62.0.5") && sentence.contains("StatefulSet"), "{sentence}");
    assert_eq!(quarantined(&node).len(), 3, "it is not set aside");
    node.plugins.del(&stateful, &chain, None);
    node.lan.ip(&["address", "del", "10.62.0.5/24", "dev", "lan0"]);
    let result = node.plugins.add(&stateful, &chain).result();
    assert_eq!(addresses(&result)[0], "10.62.0.5/24");

    // Nothing is left: the sentence says how many are in quarantine, and nothing stays claimed.
    let third = Netns::new();
    let late = ChainPod::new("c", &third, "eth0");
    let before = held(&node.agent.catalog);
    let sentence = node.plugins.add(&late, &chain).refusal();
    assert!(sentence.contains("2 in quarantine"), "{sentence}");
    assert_eq!(held(&node.agent.catalog), before);
}

#[test]
fn a_pod_whose_gateway_is_away_is_not_started() {
    let node = node();
    let (pool, chain) = careful("bowline.dev/detect-gateway: \"true\"");
    write(&node.agent.catalog, "careful.yaml", &pool);
    squat(&node.lan, &["10.62.0.1/24"]);
    let netns = Netns::new();
    let pod = ChainPod::new("a", &netns, "eth0");
    let sentence = node.plugins.add(&pod, &chain).refusal();
    assert!(sentence.contains("the gateway fd62::1 does not answer"), "{sentence}");
    assert_eq!(held(&node.agent.catalog), []);
    assert_eq!(quarantined(&node), []);
    node.plugins.del(&pod, &chain, None);
    squat(&node.lan, &["fd62::1/64"]);
    let result = node.plugins.add(&pod, &chain).result();
    assert_eq!(addresses(&result), ["10.62.0.2/24", "fd62::2/64"]);
}

#[test]
fn a_pool_asks_only_where_there_is_an_interface_to_ask_by() {
    let node = node();
    let (pool, _) = careful("");
    write(&node.agent.catalog, "careful.yaml", &pool);
    let netns = Netns::new();
    let config = json!({"type": "spiderpool", "ipam": {"default_ipv4_ippool": ["careful-v4"]}});
    let early = node.plugins.call("ADD", &ChainPod::new("a", &netns, "net1"), &config, None);
    let sentence = early.refusal();
    assert!(sentence.contains("before it makes the interface"), "{sentence}");
    assert_eq!(held(&node.agent.catalog), []);
}

#[test]
fn only_pools_around_the_masters_addresses_serve_where_that_is_wanted() {
    let node = node();
    let pools = ["10.63.0", "10.64.0"].map(|net| {
        format!(
            "apiVersion: spiderpool.spidernet.io/v2beta1\nkind: SpiderIPPool\n\
             metadata: {{name: net-{}}}\nspec: {{subnet: {net}.0/24, ips: [{net}.2-{net}.9]}}\n",
            &net[3..5]
        )
    });
    write(&node.agent.catalog, "two.yaml", &pools.join("---\n"));
    node.netns.ip(&["address", "add", "10.64.0.200/24", "dev", "parent"]);
    let netns = Netns::new();
    let config = json!({"type": "spiderpool", "master": "parent", "ipam": {
        "match_master_subnet": true, "default_ipv4_ippool": ["net-63", "net-64"]}});
    let pod = ChainPod::new("a", &netns, "net1");
    let result = node.plugins.call("ADD", &pod, &config, None).result();
    assert_eq!(addresses(&result), ["10.64.0.2/24"]);
    node.netns.ip(&["address", "del", "10.64.0.200/24", "dev", "parent"]);
    let late = ChainPod::new("b", &netns, "net1");
    let sentence = node.plugins.call("ADD", &late, &config, None).refusal();
    for pool in ["pool net-63 holds no address", "pool net-64 holds no address"] {
        assert!(sentence.contains(pool), "{sentence}");
    }
}

#[test]
fn automatic_pools_serve_their_application_and_are_waited_for() {
    let node = node();
    let pod = r#"
apiVersion: v1
kind: Pod
metadata:
  name: web-1
  namespace: test
  uid: uid-web-1
  annotations: {ipam.spidernet.io/subnet: '{"ipv4": ["lan-subnet"]}'}
  ownerReferences:
    - {apiVersion: apps/v1, kind: Deployment, name: web, uid: 1-2-3-4-55555, controller: true}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderSubnet
metadata: {name: lan-subnet}
spec: {subnet: 10.66.0.0/24, ips: [10.66.0.2-10.66.0.9]}
"#;
    write(&node.agent.catalog, "pod.yaml", pod);
    let netns = Netns::new();
    let config = json!({"type": "spiderpool", "ipam": {"default_ipv4_ippool": ["lan-v4"]}});
    let add =
        |name: &str| node.plugins.call("ADD", &ChainPod::new(name, &netns, "eth0"), &config, None);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| add("web-1").result());
        eventually("the call waits", || {
            node.agent.log().contains("waits for its application's automatic pools").then_some(())
        });
        assert!(!waiting.is_finished());
        // What the controller makes of the subnet.
        let pool = auto_pool();
        write(&node.agent.catalog, "auto.yaml", &serde_yaml_ng::to_string(&pool).unwrap());
        assert_eq!(addresses(&waiting.join().unwrap()), ["10.66.0.2/24"]);
    });
    // Nobody else may use it.
    let greedy =
        json!({"type": "spiderpool", "ipam": {"default_ipv4_ippool": [auto_pool().name()]}});
    let sentence =
        node.plugins.call("ADD", &ChainPod::new("b", &netns, "net1"), &greedy, None).refusal();
    assert!(sentence.contains("automatic pool of another application"), "{sentence}");
}

/// As the controller makes it of `lan-subnet`.
fn auto_pool() -> multinet::types::pool::SpiderIPPool {
    use multinet::auto::{Action, AppPools, Application, Present, Wanted, plan_auto_pools};
    use multinet::rules::{Catalog, Checked};
    let subnet = "apiVersion: spiderpool.spidernet.io/v2beta1\nkind: SpiderSubnet\n\
                  metadata: {name: lan-subnet}\n\
                  spec: {subnet: 10.66.0.0/24, ips: [10.66.0.2-10.66.0.9]}";
    let subnets = [("lan-subnet".to_owned(), serde_yaml_ng::from_str(subnet).unwrap())].into();
    let checked = Checked::new(&Catalog { subnets, ..Catalog::default() });
    let app = Application {
        api_version: "apps/v1".into(),
        kind: "Deployment".into(),
        namespace: "test".into(),
        name: "web".into(),
        uid: "1-2-3-4-55555".into(),
    };
    let asks = ("ipam.spidernet.io/subnet".to_owned(), r#"{"ipv4": ["lan-subnet"]}"#.to_owned());
    let wanted = Wanted::read(&[asks].into(), Some(2)).unwrap();
    let pools = AppPools::default();
    let present = Present { checked: &checked, pools: &pools, is_held: &|_, _| false, spare: 1 };
    match plan_auto_pools(&app, &wanted, present).unwrap().remove(0) {
        Action::Create(pool) => *pool,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_gc_gives_back_what_its_own_configuration_asked_for() {
    let node = node();
    let netns = Netns::new();
    let ipam = json!({"type": "bowline-ipam", "ipam": {"default_ipv4_ippool": ["lan-v4"]}});
    let pods = ["a", "b"].map(|name| ChainPod::new(name, &netns, "net1"));
    for pod in &pods {
        node.plugins.call("ADD", pod, &ipam, None).result();
    }
    let gc = |conf: &str, valid: &[&ChainPod]| {
        let mut request = Pod::new("none", &netns, "", "").request(rpc::Command::Gc);
        request.mode = CallMode::Ipam;
        request.container_id.clear();
        request.config.name = conf.into();
        let valid = valid.iter().map(|pod| cni::netconf::ValidAttachment {
            container_id: pod.sandbox.clone(),
            ifname: pod.ifname.clone(),
        });
        request.config.valid_attachments = Some(valid.collect());
        assert_eq!(node.agent.call(&request).outcome, rpc::Outcome::Done);
        held(&node.agent.catalog).into_iter().map(|(.., sandbox)| sandbox).collect::<Vec<_>>()
    };
    // The tests' configuration is called `lan`.
    assert_eq!(gc("another", &[]), ["sandbox-a", "sandbox-b"]);
    assert_eq!(gc("lan", &[&pods[1]]), ["sandbox-b"]);
    assert_eq!(gc("lan", &[&pods[1]]), ["sandbox-b"]);
    assert!(node.plugins.call("DEL", &pods[1], &ipam, None).success);
    assert_eq!(std::fs::read_dir(node.agent.dir.join("state/callers")).unwrap().count(), 0);
}
