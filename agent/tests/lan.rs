//! Addresses for other plugins' interfaces, with the real macvlan plugin over a real link.

mod common;

use common::chain::{ChainPod, Plugins, addresses, node_with_lan};
use common::{Agent, Netns, TWO_NETWORKS, eventually, held, run, write};
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
    _netns: Netns,
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
    Node { agent, plugins, lan, _netns: netns, _dir: dir }
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
