//! The chained plugins `coordinator` and `ifacer` behind and before real plugins: what counts is where
//! packets go.

mod common;

use std::process::Command;

use cni::rpc::{self, CallMode, Outcome};
use common::chain::{ChainPod, Plugins, node_with_lan};
use common::{Agent, Netns, Pod, eventually, run, write};
use serde_json::{Value, json};

const POOL: &str = r#"
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: lan-v4}
spec: {subnet: 10.60.0.0/24, ips: [10.60.0.2-10.60.0.9], gateway: 10.60.0.1, default: true}
"#;

const CLUSTER: &str = r#"
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderCoordinator
metadata: {name: default}
spec: {podCIDRType: none, hijackCIDR: [169.254.0.0/16], podRPFilter: 0}
status: {phase: Synced, overlayPodCIDR: [10.244.0.0/16], serviceCIDR: [10.96.0.0/12]}
"#;

/// A node with two uplinks: `parent` to the LAN, `up0` (192.0.2.1) to the rest of the world.
struct Node {
    agent: Agent,
    plugins: Plugins,
    netns: Netns,
    lan: Netns,
    world: Netns,
    _dir: tempfile::TempDir,
}

fn node() -> Node {
    let dir = tempfile::tempdir().unwrap();
    let (netns, lan) = node_with_lan();
    let world = Netns::new();
    let add = ["link", "add", "up0", "netns", &netns.name, "type", "veth"];
    let peer = ["peer", "name", "far0", "netns", &world.name];
    run("ip", &[add.as_slice(), peer.as_slice()].concat());
    netns.ip(&["address", "add", "192.0.2.1/24", "dev", "up0"]);
    netns.ip(&["link", "set", "up0", "up"]);
    inside(&netns, &["sysctl", "-qw", "net.ipv4.ip_forward=1"]);
    world.ip(&["address", "add", "192.0.2.9/24", "dev", "far0"]);
    world.ip(&["link", "set", "far0", "up"]);
    world.ip(&["route", "add", "10.60.0.0/24", "via", "192.0.2.1"]);
    lan.ip(&["address", "add", "10.60.0.1/24", "dev", "lan0"]);
    lan.ip(&["address", "add", "172.31.0.1/32", "dev", "lo"]);
    let mut agent = Agent::prepare(dir.path(), "n1", &dir.path().join("catalog"));
    agent.netns = Some(netns.name.clone());
    write(&agent.catalog, "pool.yaml", POOL);
    write(&agent.catalog, "coordinator.yaml", CLUSTER);
    agent.start(&[]);
    let plugins = Plugins::new(&agent, &netns);
    Node { agent, plugins, netns, lan, world, _dir: dir }
}

fn inside(netns: &Netns, command: &[&str]) -> String {
    run("ip", &[&["netns", "exec", &netns.name], command].concat())
}

fn pings(netns: &Netns, args: &[&str]) -> bool {
    let all = [&["netns", "exec", &netns.name, "ping", "-c1", "-W2"], args].concat();
    Command::new("ip").args(all).output().unwrap().status.success()
}

fn macvlan() -> Value {
    json!({"type": "macvlan", "master": "parent", "mode": "bridge", "ipam": {"type": "spiderpool"}})
}

fn ptp(node: &Node) -> Value {
    json!({"type": "ptp", "ipam": {
        "type": "host-local", "dataDir": node.agent.dir.join("host-local"),
        "subnet": "10.244.0.0/24", "routes": [{"dst": "0.0.0.0/0"}],
    }})
}

#[test]
fn a_pod_on_the_lan_reaches_its_node_and_answers_where_it_was_asked() {
    let node = node();
    let pod_netns = Netns::new();
    let pod = ChainPod::new("a", &pod_netns, "eth0");
    let coordinator = json!({
        "type": "coordinator", "podMACPrefix": "0a:1b", "txQueueLen": 777, "vethMTU": 1400,
        "vethLinkAddress": "169.254.100.1",
        "policyRoutes": [{"dst": "10.99.0.0/16", "gw": "10.60.0.254"}],
    });
    let chain = [macvlan(), coordinator.clone()];
    let result = node.plugins.add(&pod, &chain).result();

    // The node, which a macvlan cannot reach by its parent.
    assert!(pings(&node.netns, &["10.60.0.2"]), "{}", pod_netns.ip(&["route"]));
    assert!(pings(&pod_netns, &["192.0.2.1"]));
    // A client behind the node: the pod's default route would answer it on the LAN.
    assert!(pings(&node.world, &["10.60.0.2"]), "{}", pod_netns.ip(&["rule"]));
    assert!(pings(&node.lan, &["10.60.0.2"]), "the LAN itself");
    let way = |to: &str| pod_netns.ip(&["route", "get", to]);
    for cluster in ["10.96.0.1", "10.244.7.7", "169.254.1.1"] {
        assert!(way(cluster).contains("via 192.0.2.1 dev veth0"), "{}", way(cluster));
    }
    assert!(way("8.8.8.8").contains("via 10.60.0.1 dev eth0"), "{}", way("8.8.8.8"));
    assert!(way("10.99.1.1").contains("via 10.60.0.254 dev eth0"), "{}", way("10.99.1.1"));

    let link = pod_netns.ip(&["link", "show", "eth0"]);
    assert!(link.contains("0a:1b:0a:3c:00:02") && link.contains("qlen 777"), "{link}");
    assert!(result.to_string().contains("0a:1b:0a:3c:00:02"), "{result}");
    let veth = pod_netns.ip(&["address", "show", "veth0"]);
    assert!(veth.contains("mtu 1400") && veth.contains("169.254.100.1/32"), "{veth}");

    // Again, it changes nothing; a CHECK sees what is missing.
    let before = pod_netns.ip(&["rule"]) + &pod_netns.ip(&["route", "show", "table", "all"]);
    let again = node.plugins.call("ADD", &pod, &coordinator, Some(&result)).result();
    assert_eq!(again, result);
    assert_eq!(pod_netns.ip(&["rule"]) + &pod_netns.ip(&["route", "show", "table", "all"]), before);
    assert!(node.plugins.call("CHECK", &pod, &coordinator, Some(&result)).success);
    pod_netns.ip(&["rule", "del", "fwmark", "0x1", "lookup", "100"]);
    let sentence = node.plugins.call("CHECK", &pod, &coordinator, Some(&result)).refusal();
    assert!(sentence.contains("fwmark 0x1 lookup 100"), "{sentence}");

    node.plugins.del(&pod, &chain, Some(&result));
    assert_eq!(node.netns.ip(&["route", "show", "table", "500"]), "");
    assert!(!node.netns.ip(&["rule"]).contains("500"), "{}", node.netns.ip(&["rule"]));
    assert!(!node.netns.devices().iter().any(|name| name.starts_with("veth")));
    node.plugins.del(&pod, &chain, Some(&result));
}

#[test]
fn a_second_interface_answers_on_its_own_link() {
    let node = node();
    let pod_netns = Netns::new();
    let eth0 = ChainPod::new("a", &pod_netns, "eth0");
    let net1 = ChainPod::new("a", &pod_netns, "net1");
    node.plugins.add(&eth0, &[ptp(&node)]).result();
    let chain = [macvlan(), json!({"type": "coordinator"})];
    let result = node.plugins.add(&net1, &chain).result();

    let rules = pod_netns.ip(&["rule"]);
    assert!(rules.contains("from 10.60.0.2 lookup 101"), "{rules}");
    let way = |args: &[&str]| pod_netns.ip(&[&["route", "get"], args].concat());
    assert!(way(&["8.8.8.8"]).contains("dev eth0"), "{}", way(&["8.8.8.8"]));
    assert!(way(&["8.8.8.8", "from", "10.60.0.2"]).contains("via 10.60.0.1 dev net1"));
    // Somebody behind the LAN's gateway: the reply has to go back that way.
    assert!(pings(&node.lan, &["-I", "172.31.0.1", "10.60.0.2"]), "{rules}");
    assert!(pings(&node.netns, &["10.60.0.2"]), "the node, by eth0's link");
    assert!(way(&["10.96.0.1", "from", "10.60.0.2"]).contains("dev eth0"), "{rules}");

    node.plugins.del(&net1, &chain, Some(&result));
    assert_eq!(node.netns.ip(&["route", "show", "table", "500"]), "");
}

/// The cluster's prefixes change under running pods: `eth0` beside its link to the node, and a second
/// interface's own table. What else the pods have stays.
#[test]
fn running_pods_follow_the_clusters_prefixes() {
    let mut node = node();
    let (lone, paired) = (Netns::new(), Netns::new());
    let eth0 = ChainPod::new("a", &lone, "eth0");
    let first = ChainPod::new("b", &paired, "eth0");
    let net1 = ChainPod::new("b", &paired, "net1");
    let chain = [macvlan(), json!({"type": "coordinator"})];
    let result = node.plugins.add(&eth0, &chain).result();
    node.plugins.add(&first, &[ptp(&node)]).result();
    node.plugins.add(&net1, &chain).result();
    lone.ip(&["route", "add", "10.150.0.0/16", "via", "10.60.0.1", "dev", "eth0"]);
    let tables = || {
        [&lone, &paired]
            .map(|netns| netns.ip(&["-4", "route", "show", "table", "all"]) + &netns.ip(&["rule"]))
    };
    let say = |node: &Node, phase: &str, services: &str| {
        let text = CLUSTER.replace("Synced", phase).replace("10.96.0.0/12", services);
        write(&node.agent.catalog, "coordinator.yaml", &text);
    };
    let before = tables();
    let follow = |services: &str| {
        let expected = before.clone().map(|text| text.replace("10.96.0.0/12", services));
        let sorted = |text: &String| {
            let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
            lines.sort_unstable();
            lines
        };
        eventually(&format!("the pods follow to {services}"), || {
            let now = tables();
            let same = now.iter().map(sorted).eq(expected.iter().map(sorted));
            same.then_some(())
        });
    };
    assert!(before.iter().all(|text| text.contains("10.96.0.0/12 ")), "{before:?}");
    say(&node, "Synced", "10.112.0.0/16");
    follow("10.112.0.0/16");

    // While it does not know, nothing changes; and the agent may be away when it knows again.
    say(&node, "NotReady", "10.113.0.0/16");
    let netns = Netns::new();
    let sentence = node.plugins.add(&ChainPod::new("c", &netns, "eth0"), &chain).refusal();
    assert!(sentence.contains("NotReady"), "{sentence}");
    follow("10.112.0.0/16");
    node.agent.kill();
    say(&node, "Synced", "10.114.0.0/16");
    node.agent.start(&[]);
    follow("10.114.0.0/16");

    // Who is gone is not remembered.
    let remembered =
        || std::fs::read_dir(node.agent.dir.join("state/coordinated")).unwrap().count();
    assert_eq!(remembered(), 2);
    node.plugins.del(&eth0, &chain, Some(&result));
    assert_eq!(remembered(), 1);
    // Of the other the runtime has forgotten the DEL.
    let gc = |conf: &str| {
        let mut request = Pod::new("none", &netns, "", "").request(rpc::Command::Gc);
        request.mode = CallMode::Coordinator;
        request.container_id.clear();
        request.config.name = conf.into();
        request.config.valid_attachments = Some(Vec::new());
        assert_eq!(node.agent.call(&request).outcome, Outcome::Done);
        remembered()
    };
    assert_eq!((gc("another"), gc("lan")), (1, 0));
}

#[test]
fn the_default_route_is_where_the_pod_wants_it() {
    let node = node();
    let pod_netns = Netns::new();
    let eth0 = ChainPod::new("a", &pod_netns, "eth0");
    let net1 = ChainPod::new("a", &pod_netns, "net1");
    node.plugins.add(&eth0, &[ptp(&node)]).result();
    let first = pod_netns.ip(&["-4", "address", "show", "eth0"]);
    let first = first.split("inet ").nth(1).unwrap().split('/').next().unwrap().to_owned();
    let missing = [macvlan(), json!({"type": "coordinator", "podDefaultRouteNic": "net7"})];
    let sentence = node.plugins.add(&net1, &missing).refusal();
    assert!(sentence.contains("net7") && sentence.contains("eth0"), "{sentence}");
    node.plugins.del(&net1, &missing, None);

    let chain = [macvlan(), json!({"type": "coordinator", "podDefaultRouteNic": "net1"})];
    node.plugins.add(&net1, &chain).result();
    let way = |args: &[&str]| pod_netns.ip(&[&["route", "get"], args].concat());
    assert!(way(&["8.8.8.8"]).contains("via 10.60.0.1 dev net1"), "{}", way(&["8.8.8.8"]));
    let replies = way(&["8.8.8.8", "from", &first]);
    assert!(replies.contains("dev eth0"), "{replies}");
    for local in ["192.0.2.1", "10.96.0.1"] {
        assert!(way(&[local]).contains("dev eth0"), "{}", way(&[local]));
    }
    assert!(pings(&pod_netns, &["192.0.2.1"]));
}

#[test]
fn two_interfaces_of_the_lan_answer_each_for_itself_whatever_they_are_called() {
    let node = node();
    let second =
        POOL.replace("lan-v4", "lan-b").replace("10.60.", "10.61.").replace(", default: true", "");
    write(&node.agent.catalog, "second.yaml", &second);
    node.lan.ip(&["address", "add", "10.61.0.1/24", "dev", "lan0"]);
    let pod_netns = Netns::new();
    let eth0 = ChainPod::new("a", &pod_netns, "eth0");
    let other = ChainPod::new("a", &pod_netns, "data7x");
    let coordinator = json!({"type": "coordinator"});
    node.plugins.add(&eth0, &[macvlan(), coordinator.clone()]).result();
    let mut lan_b = macvlan();
    lan_b["ipam"]["default_ipv4_ippool"] = json!(["lan-b"]);
    let chain = [lan_b.clone(), coordinator];
    let result = node.plugins.add(&other, &chain).result();

    let way = |args: &[&str]| pod_netns.ip(&[&["route", "get"], args].concat());
    assert!(way(&["8.8.8.8"]).contains("dev eth0"), "{}", way(&["8.8.8.8"]));
    let replies = way(&["8.8.8.8", "from", "10.61.0.2"]);
    assert!(replies.contains("via 10.61.0.1 dev data7x"), "{replies}");
    for address in ["10.60.0.2", "10.61.0.2"] {
        assert!(pings(&node.lan, &["-I", "172.31.0.1", address]), "{}", pod_netns.ip(&["rule"]));
        assert!(pings(&node.netns, &[address]), "the node: {}", pod_netns.ip(&["rule"]));
        let service = way(&["10.96.0.1", "from", address]);
        assert!(service.contains("dev veth0"), "{service}");
    }
    node.plugins.del(&other, &chain, Some(&result));

    let chain = [lan_b, json!({"type": "coordinator", "podDefaultRouteNic": "data7x"})];
    node.plugins.add(&other, &chain).result();
    assert!(way(&["8.8.8.8"]).contains("dev data7x"), "{}", way(&["8.8.8.8"]));
    let replies = way(&["8.8.8.8", "from", "10.60.0.2"]);
    assert!(replies.contains("via 10.60.0.1 dev eth0"), "{replies}");
    assert!(way(&["10.96.0.1"]).contains("dev veth0"), "{}", way(&["10.96.0.1"]));
    assert!(pings(&node.lan, &["-I", "172.31.0.1", "10.60.0.2"]), "{}", pod_netns.ip(&["rule"]));
}

/// Three macvlans, and a kernel that drops what came in by another interface than the answer would take.
#[test]
fn three_interfaces_pass_strict_reverse_path_filters() {
    let node = node();
    let strict = json!({"type": "coordinator", "podRPFilter": 1});
    let pod_netns = Netns::new();
    let mut addresses = vec!["10.60.0.2".to_owned()];
    let eth0 = ChainPod::new("a", &pod_netns, "eth0");
    node.plugins.add(&eth0, &[macvlan(), strict.clone()]).result();
    for (interface, pool, prefix) in [("net1", "lan-b", "10.61."), ("net2", "lan-c", "10.62.")] {
        let text =
            POOL.replace("lan-v4", pool).replace("10.60.", prefix).replace(", default: true", "");
        write(&node.agent.catalog, &format!("{pool}.yaml"), &text);
        node.lan.ip(&["address", "add", &format!("{prefix}0.1/24"), "dev", "lan0"]);
        let mut plugin = macvlan();
        plugin["ipam"]["default_ipv4_ippool"] = json!([pool]);
        let pod = ChainPod::new("a", &pod_netns, interface);
        node.plugins.add(&pod, &[plugin, strict.clone()]).result();
        addresses.push(format!("{prefix}0.2"));
    }
    for interface in ["all", "eth0", "net1", "net2", "veth0"] {
        let setting = format!("/proc/sys/net/ipv4/conf/{interface}/rp_filter");
        assert_eq!(inside(&pod_netns, &["cat", &setting]).trim(), "1", "{interface}");
    }
    for address in &addresses {
        assert!(pings(&node.lan, &["-I", "172.31.0.1", address]), "{}", pod_netns.ip(&["rule"]));
        assert!(pings(&node.netns, &[address]), "the node: {}", pod_netns.ip(&["rule"]));
    }
}

#[test]
fn untouched_routes_and_refusals() {
    let node = node();
    let pod_netns = Netns::new();
    let eth0 = ChainPod::new("a", &pod_netns, "eth0");
    let net1 = ChainPod::new("a", &pod_netns, "net1");
    node.plugins.add(&eth0, &[ptp(&node)]).result();
    let quiet = json!({"type": "coordinator", "tunePodRoutes": false});
    node.plugins.add(&net1, &[macvlan(), quiet]).result();
    assert!(!pod_netns.ip(&["rule"]).contains("lookup 101"));

    let previous = json!({"cniVersion": "1.0.0", "interfaces": [{"name": "net1"}]});
    let refused =
        |config: Value| node.plugins.call("ADD", &net1, &config, Some(&previous)).refusal();
    let sentence = refused(json!({"type": "coordinator", "podMACPrefix": "0b:1b"}));
    assert!(
        sentence.contains("coordinator.podMACPrefix") && sentence.contains("even"),
        "{sentence}"
    );
    let sentence = refused(json!({"type": "coordinator", "mode": "underlay"}));
    assert!(sentence.contains("coordinator.mode"), "{sentence}");
    let disabled = json!({"type": "coordinator", "mode": "disabled"});
    assert_eq!(node.plugins.call("ADD", &net1, &disabled, Some(&previous)).result(), previous);
    let sentence = node.plugins.call("ADD", &net1, &disabled, None).refusal();
    assert!(sentence.contains("behind the one that makes the interface"), "{sentence}");

    let waiting = CLUSTER.replace("phase: Synced", "phase: NotReady, reason: no CIDRs");
    write(&node.agent.catalog, "coordinator.yaml", &waiting);
    let sentence = refused(json!({"type": "coordinator"}));
    assert!(sentence.contains("NotReady: no CIDRs"), "{sentence}");
    // The controller has not come to it yet: that is not a cluster without prefixes.
    let (young, _) = CLUSTER.split_once("status: {phase: Synced").unwrap();
    write(&node.agent.catalog, "coordinator.yaml", young);
    let sentence = refused(json!({"type": "coordinator"}));
    assert!(sentence.contains("has no status"), "{sentence}");
    assert_eq!(node.plugins.call("ADD", &net1, &disabled, Some(&previous)).result(), previous);
}

#[test]
fn a_conflict_and_a_gateway_that_is_away_are_found_behind_any_plugin() {
    let node = node();
    let netns = Netns::new();
    let pod = ChainPod::new("a", &netns, "eth0");
    let detecting = json!({"type": "coordinator", "detectIPConflict": true, "detectGateway": true});
    let chain = [macvlan(), detecting];
    node.lan.ip(&["address", "add", "10.60.0.2/24", "dev", "lan0"]);
    let sentence = node.plugins.add(&pod, &chain).refusal();
    assert!(sentence.contains("10.60.0.2") && sentence.contains("another address"), "{sentence}");
    node.plugins.del(&pod, &chain, None);
    // The next sandbox.
    let result = node.plugins.add(&pod, &chain).result();
    assert_eq!(common::chain::addresses(&result), ["10.60.0.3/24"]);
    node.plugins.del(&pod, &chain, Some(&result));

    node.lan.ip(&["address", "del", "10.60.0.1/24", "dev", "lan0"]);
    let sentence = node.plugins.add(&pod, &chain).refusal();
    assert!(sentence.contains("the gateway 10.60.0.1 does not answer"), "{sentence}");
    node.plugins.del(&pod, &chain, None);
    assert_eq!(common::held(&node.agent.catalog), []);
}

/// Does the kernel know devices of this kind?
fn knows(netns: &Netns, kind: &[&str]) -> bool {
    let add = [&["-n", &netns.name, "link", "add"], kind].concat();
    let known = Command::new("ip").args(add).output().unwrap().status.success();
    if known {
        netns.ip(&["link", "del", "probe0"]);
    }
    known
}

#[test]
fn ifacer_makes_devices_once_or_says_what_the_kernel_lacks() {
    let node = node();
    let pod_netns = Netns::new();
    let pod = ChainPod::new("a", &pod_netns, "net1");
    let add = |config: &Value| node.plugins.call("ADD", &pod, config, None);

    let vlan = json!({"type": "ifacer", "interfaces": ["parent"], "vlanID": 120});
    if knows(&node.netns, &["link", "parent", "name", "probe0", "type", "vlan", "id", "7"]) {
        // Made, found, set up again, and made again where a reboot took it.
        for before in ["", "", "down", "gone"] {
            match before {
                "down" => drop(node.netns.ip(&["link", "set", "parent.120", "down"])),
                "gone" => drop(node.netns.ip(&["link", "delete", "parent.120"])),
                _ => {}
            }
            add(&vlan).result();
            let link = node.netns.ip(&["-d", "link", "show", "parent.120"]);
            assert!(link.contains(",UP") && link.contains("id 120"), "{before}: {link}");
        }
        let other = json!({"type": "ifacer", "interfaces": ["up0"], "vlanID": 120});
        assert!(add(&other).refusal().contains("parent.120 has VLAN 120 already"));
    } else {
        eprintln!("SKIPPED: making a VLAN device, because this kernel has no 8021q");
        assert!(add(&vlan).refusal().contains("modprobe 8021q"));
    }

    let bond = json!({"type": "ifacer", "interfaces": ["parent", "up0"],
        "bond": {"name": "bond7", "mode": 1, "options": "miimon=100"}});
    if knows(&node.netns, &["name", "probe0", "type", "bond"]) {
        for _ in 0..2 {
            add(&bond).result();
        }
        let link = node.netns.ip(&["-d", "link", "show", "bond7"]);
        assert!(link.contains("active-backup") && link.contains("miimon 100"), "{link}");
        assert!(node.netns.ip(&["link", "show", "up0"]).contains("master bond7"));
    } else {
        eprintln!("SKIPPED: making a bond, because this kernel has no bonding");
        assert!(add(&bond).refusal().contains("modprobe bonding"));
    }

    // What needs no device to be made works everywhere.
    node.netns.ip(&["link", "set", "parent", "down"]);
    add(&json!({"type": "ifacer", "interfaces": ["parent"]})).result();
    assert!(node.netns.ip(&["link", "show", "parent"]).contains("UP"));
    let missing = json!({"type": "ifacer", "interfaces": ["eth77"], "vlanID": 3});
    assert!(add(&missing).refusal().contains("no interface of that name"));
    let several = json!({"type": "ifacer", "interfaces": ["parent", "up0"]});
    assert!(add(&several).refusal().contains("ifacer.bond"));
    let high = json!({"type": "ifacer", "interfaces": ["parent"], "vlanID": 4095});
    assert!(add(&high).refusal().contains("0 (none) to 4094"));
    assert!(node.plugins.call("DEL", &pod, &vlan, None).success);
}
