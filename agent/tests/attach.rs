//! ADD, DEL, CHECK and GC in real namespaces, against a stand-in for the data plane.

mod common;

use cni::error::code;
use cni::rpc::Outcome;
use common::dataplane::FakeDataplane;
use common::{Agent, Netns, Pod, TWO_NETWORKS, eventually, held, write};

struct Node {
    agent: Agent,
    dataplane: FakeDataplane,
    _dir: tempfile::TempDir,
}

fn node() -> Node {
    let dir = tempfile::tempdir().unwrap();
    let mut agent = Agent::prepare(dir.path(), "n1", &dir.path().join("catalog"));
    write(&agent.catalog, "networks.yaml", TWO_NETWORKS);
    let dataplane = FakeDataplane::start(&agent.dataplane_socket(), [192, 0, 2, 1]);
    agent.start(&[]);
    Node { agent, dataplane, _dir: dir }
}

#[test]
fn a_tap_and_a_memif_are_made_told_and_removed() {
    let node = node();
    let netns = Netns::new();
    let mut pod = Pod::new("a", &netns, "blue", "eth0");
    pod.annotation =
        Some(r#"[{"name": "memif1", "network": "red", "rxQueues": 2, "txQueues": 2}]"#.to_owned());
    let result = node.agent.add(&pod);

    // The result.
    let names: Vec<_> = result.interfaces.iter().map(|i| i.name.as_str()).collect();
    assert_eq!(names, ["eth0", "memif1"]);
    assert_eq!(result.interfaces[1].socket_path, "@memif1");
    assert_eq!(result.interfaces[0].mtu, Some(1450));
    let ips: Vec<_> = result.ips.iter().map(|ip| (ip.address.as_str(), ip.interface)).collect();
    assert_eq!(
        ips,
        [
            ("10.7.0.2/24", Some(0)),
            ("fd07::2/64", Some(0)),
            ("10.7.0.3/24", Some(1)),
            ("fd07::3/64", Some(1))
        ],
        "an address of a pod is one interface's"
    );
    assert_eq!(result.ips[0].gateway.as_deref(), Some("10.7.0.1"));
    let routes: Vec<_> = result.routes.iter().map(|r| r.dst.as_str()).collect();
    assert_eq!(routes, ["0.0.0.0/0", "::/0"]);

    // The namespace.
    let link = netns.ip(&["-d", "link", "show", "eth0"]);
    assert!(link.contains("mtu 1450") && link.contains(&result.interfaces[0].mac), "{link}");
    assert!(link.contains("LOWER_UP"), "the held queue gives carrier: {link}");
    let addresses = netns.ip(&["address", "show", "eth0"]);
    assert!(addresses.contains("10.7.0.2/24") && addresses.contains("fd07::2/64"), "{addresses}");
    assert!(!addresses.contains("tentative"), "{addresses}");
    assert!(netns.ip(&["route"]).contains("default via 10.7.0.1 dev eth0 proto 176"));
    assert!(netns.ip(&["-6", "route"]).contains("default via fd07::1 dev eth0 proto 176"));
    let companion = netns.ip(&["address", "show", "memif1"]);
    assert!(companion.contains("10.7.0.3/32") && companion.contains("fd07::3/128"), "{companion}");
    assert!(netns.ip(&["link", "show", "memif1"]).contains("alias bowline memif"));
    assert!(!netns.ip(&["route"]).contains("memif1"));

    // The data plane.
    {
        let told = node.dataplane.told.lock().unwrap();
        assert_eq!(told.descriptors["sandbox-a/eth0"].len(), 1);
        assert_eq!(told.descriptors["sandbox-a/memif1"].len(), 1);
        let memif = &told.interfaces["sandbox-a/memif1"];
        assert_eq!(memif.network, "red");
        let Some(api::interface::Port::Memif(port)) = &memif.port else { panic!("{memif:?}") };
        assert_eq!((port.rx_queues, port.tx_queues, port.require_sealed_memory), (2, 2, true));
        assert_eq!(told.networks["blue"].vni, 56);
        assert_eq!(told.networks["blue"].mtu, 1450);
    }

    // CHECK sees it, and sees what is missing.
    assert_eq!(node.agent.check(&pod, &result), Outcome::Done);
    netns.ip(&["address", "del", "10.7.0.2/24", "dev", "eth0"]);
    let Outcome::Error(error) = node.agent.check(&pod, &result) else { panic!("a lost address") };
    assert!(error.msg.contains("10.7.0.2"), "{}", error.msg);

    // DEL leaves nothing, twice.
    node.agent.del(&pod);
    node.agent.del(&pod);
    assert_eq!(netns.devices(), Vec::<String>::new());
    assert_eq!(node.dataplane.interface_ids(), Vec::<String>::new());
    assert_eq!(node.agent.held(), []);
    assert_eq!(node.agent.journal(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn what_a_pod_sends_leaves_by_the_interface_that_has_its_address() {
    let node = node();
    let netns = Netns::new();
    // Two Networks with the same prefix, and the default route by the second.
    let mut pod = Pod::new("a", &netns, "blue", "eth0");
    let second = r#"[{"name": "eth1", "network": "red", "ips": ["10.7.0.9", "fd07::9"],
                      "default-route": ["10.7.0.1", "fd07::1"]}]"#;
    pod.annotation = Some(second.into());
    let result = node.agent.add(&pod);
    let way = |to: &str, from: &str| netns.ip(&["route", "get", to, "from", from]);
    for (own, dev) in
        [("10.7.0.2", "eth0"), ("10.7.0.9", "eth1"), ("fd07::2", "eth0"), ("fd07::9", "eth1")]
    {
        let v4 = own.contains('.');
        let (near, far) = if v4 { ("10.7.0.77", "8.8.8.8") } else { ("fd07::77", "2001:db8::1") };
        let gateway = if v4 { "via 10.7.0.1" } else { "via fd07::1" };
        assert!(way(near, own).contains(&format!("dev {dev}")), "{}", way(near, own));
        assert!(way(far, own).contains(&format!("{gateway} dev {dev}")), "{}", way(far, own));
    }
    assert!(netns.ip(&["route", "get", "8.8.8.8"]).contains("dev eth1"), "the one that is named");
    assert_eq!(node.agent.check(&pod, &result), Outcome::Done);
    node.agent.del(&pod);
    let rules = netns.ip(&["rule"]) + &netns.ip(&["-6", "rule"]);
    assert!(!rules.contains("lookup 10"), "{rules}");

    // One address on two Networks: nothing would tell the interfaces apart, unless one is a memif.
    let twins = |kind: &str| {
        format!(
            r#"[{{"name": "a", "network": "blue", "ips": ["10.7.0.9"]}},
                {{"name": "b", "network": "red", "ips": ["10.7.0.9"], "type": "{kind}"}}]"#
        )
    };
    pod.annotation = Some(twins("tap"));
    let error = node.agent.add_refused(&pod);
    assert_eq!(error.code, code::REFUSED);
    assert!(error.msg.contains("is the address of b on Network red too"), "{}", error.msg);
    assert_eq!((node.agent.held(), netns.devices()), (vec![], vec![]));
    pod.annotation = Some(twins("memif"));
    node.agent.add(&pod);

    // A pod's only interface needs no table.
    let alone = Netns::new();
    node.agent.add(&Pod::new("b", &alone, "blue", "eth0"));
    assert!(!alone.ip(&["rule"]).contains("lookup 10"), "{}", alone.ip(&["rule"]));
}

const DEFAULT_NETWORK: &str = r#"
apiVersion: bowline.dev/v1alpha1
kind: Network
metadata: {name: default}
spec: {vni: 1, ipPools: {ipv4: [default-v4]}}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: default-v4}
spec: {subnet: 10.244.0.0/24, ips: [10.244.0.2-10.244.0.9], gateway: 10.244.0.1}
"#;

fn services(prefix: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {{name: kubernetes}}\n\
         spec: {{cidrs: [{prefix}]}}\n"
    )
}

#[test]
fn the_cluster_stays_on_eth0_wherever_the_default_route_leads() {
    let node = node();
    write(&node.agent.catalog, "default.yaml", DEFAULT_NETWORK);
    write(&node.agent.catalog, "services.yaml", &services("10.96.0.0/16"));
    let netns = Netns::new();
    let mut pod = Pod::new("a", &netns, "default", "eth0");
    pod.annotation =
        Some(r#"[{"name": "eth1", "network": "red", "default-route": ["10.7.0.1"]}]"#.into());
    node.agent.add(&pod);
    let way = |to: &str| netns.ip(&["route", "get", to]);
    assert!(way("8.8.8.8").contains("dev eth1"), "{}", way("8.8.8.8"));
    // Services, and the node by its tunnel end, which is all that the stand-in says of it.
    for to in ["10.96.0.10", "192.0.2.1"] {
        eventually("the way to the cluster", || {
            way(to).contains("via 10.244.0.1 dev eth0").then_some(())
        });
    }
    // The cluster's prefixes change under the running pod: Services, then pods.
    write(&node.agent.catalog, "services.yaml", &services("10.97.0.0/16"));
    eventually("the new prefix of Services", || {
        let there = way("10.97.0.10").contains("via 10.244.0.1 dev eth0");
        (there && way("10.96.0.10").contains("dev eth1")).then_some(())
    });
    let more = DEFAULT_NETWORK.replace("[default-v4]", "[default-v4, more-v4]")
        + "---\napiVersion: spiderpool.spidernet.io/v2beta1\nkind: SpiderIPPool\n\
           metadata: {name: more-v4}\nspec: {subnet: 10.245.0.0/24, ips: [10.245.0.2]}\n";
    write(&node.agent.catalog, "default.yaml", &more);
    eventually("the new prefix of pods, in the interface's own table too", || {
        let from_eth0 = netns.ip(&["route", "get", "10.245.0.2", "from", "10.244.0.2"]);
        let all = [way("10.245.0.2"), from_eth0];
        all.iter().all(|way| way.contains("via 10.244.0.1 dev eth0")).then_some(())
    });
}

/// Answers on the data plane's side of a tap, as the data plane would: ARP for these addresses.
fn answer_arp(node: &Node, interface: &str, addresses: &'static [[u8; 4]]) {
    let told = node.dataplane.told.clone();
    let interface = interface.to_owned();
    std::thread::spawn(move || {
        let deadline = std::time::Instant::now() + common::DEADLINE;
        while std::time::Instant::now() < deadline {
            let queue = told.lock().unwrap().queue(&interface);
            let mut frame = [0; 2048];
            // A virtio header of 12 bytes comes first.
            let read = queue.as_ref().map(|queue| nix::unistd::read(queue, &mut frame));
            let (Some(Ok(length)), Some(queue)) = (read, queue) else {
                std::thread::sleep(std::time::Duration::from_millis(1));
                continue;
            };
            let asked = length >= 54 && frame[24..26] == [8, 6] && frame[32..34] == [0, 1];
            if !asked || !addresses.contains(&frame[50..54].try_into().unwrap()) {
                continue;
            }
            let (asker, target): ([u8; 10], [u8; 4]) =
                (frame[34..44].try_into().unwrap(), frame[50..54].try_into().unwrap());
            let own = [2, 0xee, 0, 0, 0, 1];
            frame[12..18].copy_from_slice(&asker[..6]);
            frame[18..24].copy_from_slice(&own);
            frame[33] = 2;
            frame[34..40].copy_from_slice(&own);
            frame[40..44].copy_from_slice(&target);
            frame[44..54].copy_from_slice(&asker);
            frame[..12].fill(0);
            let _ = nix::unistd::write(&queue, &frame[..54]);
        }
    });
}

#[test]
fn a_tap_asks_for_its_address_and_gateway_where_the_pool_wants_it() {
    let node = node();
    let careful = TWO_NETWORKS.replace(
        "metadata: {name: blue-v4}",
        "metadata: {name: blue-v4, annotations: {bowline.dev/detect-ip-conflict: 'true', \
         bowline.dev/detect-gateway: 'true'}}",
    );
    write(&node.agent.catalog, "networks.yaml", &careful);
    let netns = Netns::new();
    let pod = Pod::new("a", &netns, "blue", "eth0");
    let error = node.agent.add_refused(&pod);
    assert_eq!(error.code, code::TRY_AGAIN_LATER);
    assert!(error.msg.contains("the gateway 10.7.0.1 does not answer"), "{}", error.msg);
    assert_eq!((node.agent.held(), netns.devices()), (vec![], vec![]));
    assert_eq!(node.dataplane.interface_ids(), Vec::<String>::new());

    // The gateway is there, and so is somebody at the first two addresses.
    answer_arp(&node, "sandbox-a/eth0", &[[10, 7, 0, 1], [10, 7, 0, 2], [10, 7, 0, 3]]);
    let result = node.agent.add(&pod);
    assert_eq!(result.ips[0].address, "10.7.0.4/24");
    let held: Vec<_> = node.agent.held().into_iter().map(|(ip, ..)| ip).collect();
    assert_eq!(held, ["10.7.0.4", "fd07::2"]);
    // A memif has no link to ask by.
    let mut memif = Pod::new("b", &netns, "blue", "memif0");
    memif.container_id = "sandbox-b".into();
    assert_eq!(node.agent.add(&memif).ips[0].address, "10.7.0.5/24");
}

#[test]
fn the_same_add_again_and_two_at_once_give_one_result() {
    let node = node();
    let netns = Netns::new();
    let pod = Pod::new("a", &netns, "blue", "eth0");
    let (first, second) = std::thread::scope(|scope| {
        let one = scope.spawn(|| node.agent.add(&pod));
        let other = scope.spawn(|| node.agent.add(&pod));
        (one.join().unwrap(), other.join().unwrap())
    });
    assert_eq!(first, second);
    assert_eq!(node.agent.add(&pod), first);
    assert_eq!(netns.devices(), ["eth0"]);
    assert_eq!(node.agent.held().len(), 2, "one address of each family");
    assert_eq!(node.dataplane.told.lock().unwrap().offers["sandbox-a/eth0"], 1);
}

#[test]
fn what_fails_leaves_nothing() {
    let node = node();
    let netns = Netns::new();
    // The data plane refuses one of two interfaces.
    let sentence = "memif1 may not be";
    let id = "sandbox-a/memif1".to_owned();
    node.dataplane.told.lock().unwrap().refuse.insert(id, sentence.into());
    let mut pod = Pod::new("a", &netns, "blue", "eth0");
    pod.annotation = Some(r#"[{"name": "memif1", "network": "red"}]"#.into());
    let error = node.agent.add_refused(&pod);
    assert!(error.msg.contains(sentence), "{}", error.msg);
    // A name that is taken.
    netns.ip(&["link", "add", "eth9", "type", "bridge"]);
    let taken = Pod::new("b", &netns, "blue", "eth9");
    let error = node.agent.add_refused(&taken);
    assert!(error.msg.contains("eth9") && error.msg.contains("bridge"), "{}", error.msg);
    // A Network that is not there, and a cap.
    let error = node.agent.add_refused(&Pod::new("c", &netns, "green", "eth0"));
    assert!(error.code == code::REFUSED && error.msg.contains("green"), "{error:?}");
    let mut greedy = Pod::new("d", &netns, "blue", "eth0");
    greedy.annotation = Some(r#"[{"name": "memif1", "network": "red", "rxQueues": 64}]"#.into());
    let error = node.agent.add_refused(&greedy);
    assert!(error.msg.contains("rxQueues") && error.msg.contains("64"), "{}", error.msg);

    // The node itself, which would get the pod's routes.
    let mut itself = Pod::new("itself", &netns, "blue", "eth7");
    itself.netns = "/proc/self/ns/net".into();
    let error = node.agent.add_refused(&itself);
    assert_eq!(error.code, code::INVALID_ENVIRONMENT);
    assert!(error.msg.contains("the node's own network namespace"), "{}", error.msg);

    assert_eq!(netns.devices(), ["eth9"]);
    assert_eq!(node.agent.held(), []);
    assert_eq!(node.dataplane.interface_ids(), Vec::<String>::new());
    assert_eq!(node.agent.journal(), Vec::<std::path::PathBuf>::new());
    // And the good ones are served still.
    node.agent.add(&Pod::new("e", &netns, "blue", "eth0"));
}

#[test]
fn gc_removes_what_the_runtime_does_not_know() {
    let node = node();
    let (one, two) = (Netns::new(), Netns::new());
    let stays = Pod::new("a", &one, "blue", "eth0");
    let goes = Pod::new("b", &two, "blue", "eth0");
    node.agent.add(&stays);
    node.agent.add(&goes);
    node.agent.gc(&stays, &[&stays]);
    assert_eq!(node.dataplane.interface_ids(), ["sandbox-a/eth0"]);
    assert_eq!(two.devices(), Vec::<String>::new());
    assert_eq!(node.agent.held().len(), 2);
}

#[test]
fn an_older_sandbox_cannot_take_the_address_of_a_newer_one() {
    let node = node();
    let (old_netns, new_netns) = (Netns::new(), Netns::new());
    let old = Pod::new("a", &old_netns, "blue", "eth0");
    let new = Pod { container_id: "sandbox-a2".into(), netns: new_netns.path(), ..old.clone() };
    let before = node.agent.add(&old);
    let after = node.agent.add(&new);
    assert_eq!(before.ips, after.ips, "the pod keeps its addresses");
    node.agent.del(&old);
    let mine = node.agent.held();
    assert!(mine.iter().all(|(_, _, sandbox)| sandbox == "sandbox-a2"), "{mine:?}");
    assert_eq!(mine.len(), 2);
}

#[test]
fn the_data_plane_returns_and_has_everything_again() {
    let mut node = node();
    let netns = Netns::new();
    let mut pod = Pod::new("a", &netns, "blue", "eth0");
    pod.annotation = Some(r#"[{"name": "memif1", "network": "red"}]"#.into());
    let result = node.agent.add(&pod);
    let socket = node.agent.dataplane_socket();
    drop(node.dataplane);
    assert!(netns.ip(&["link", "show", "eth0"]).contains("LOWER_UP"), "the agent holds the queue");
    let returned = std::time::Instant::now();
    node.dataplane = FakeDataplane::start(&socket, [192, 0, 2, 1]);
    eventually("the interfaces are back", || {
        (node.dataplane.interface_ids() == ["sandbox-a/eth0", "sandbox-a/memif1"]).then_some(())
    });
    let took = returned.elapsed();
    assert!(took.as_millis() < 1000, "back after {took:?}");
    assert_eq!(node.agent.check(&pod, &result), Outcome::Done);
}

#[test]
fn the_agent_returns_and_leaves_traffic_alone() {
    let mut node = node();
    let netns = Netns::new();
    let mut pod = Pod::new("a", &netns, "blue", "eth0");
    pod.annotation = Some(r#"[{"name": "memif1", "network": "red"}]"#.into());
    let result = node.agent.add(&pod);
    let before = carrier_changes(&netns);
    node.agent.kill();
    assert!(netns.ip(&["link", "show", "eth0"]).contains("LOWER_UP"), "the data plane has it");
    node.agent.start(&[]);
    assert_eq!(node.agent.add(&pod), result, "the journal knows the result");
    assert_eq!(node.dataplane.told.lock().unwrap().offers["sandbox-a/eth0"], 1);
    assert_eq!(carrier_changes(&netns), before);
    // Now the data plane goes as well: the agent opens the devices again.
    let socket = node.agent.dataplane_socket();
    drop(node.dataplane);
    node.dataplane = FakeDataplane::start(&socket, [192, 0, 2, 1]);
    eventually("the interfaces are back", || {
        (node.dataplane.interface_ids() == ["sandbox-a/eth0", "sandbox-a/memif1"]).then_some(())
    });
    node.agent.del(&pod);
    assert_eq!(netns.devices(), Vec::<String>::new());
    assert_eq!(held(&node.agent.catalog), []);
}

fn carrier_changes(netns: &Netns) -> String {
    let args = ["netns", "exec", &netns.name, "cat", "/sys/class/net/eth0/carrier_changes"];
    common::run("ip", &args)
}

#[test]
fn dels_that_came_while_the_agent_was_away_are_served() {
    let mut node = node();
    let netns = Netns::new();
    let pod = Pod::new("a", &netns, "blue", "eth0");
    node.agent.add(&pod);
    node.agent.kill();
    let request = pod.request(cni::rpc::Command::Del);
    cni::tombstone::write(&node.agent.dir.join("cni"), &request).unwrap();
    node.agent.start(&[]);
    eventually("the pod is gone", || node.dataplane.interface_ids().is_empty().then_some(()));
    assert_eq!(netns.devices(), Vec::<String>::new());
    assert_eq!(node.agent.held(), []);
    assert!(cni::tombstone::read_all(&node.agent.dir.join("cni")).unwrap().is_empty());
}

#[test]
fn killed_at_any_step_of_add_nothing_leaks_and_the_next_add_works() {
    for step in agent::fault::ADD_STEPS {
        let mut node = node();
        let netns = Netns::new();
        let mut pod = Pod::new("a", &netns, "blue", "eth0");
        pod.annotation = Some(r#"[{"name": "memif1", "network": "red"}]"#.into());
        node.agent.kill();
        node.agent.start(&["--fault-step", step]);
        let request = pod.request(cni::rpc::Command::Add);
        let asked = cni::client::ask(&node.agent.cni_socket(), &request, common::DEADLINE);
        assert!(asked.is_err(), "{step}: no answer can come from a dead agent");
        node.agent.wait_for_death();
        node.agent.start(&[]);
        if step == "confirmed" {
            // The ADD was complete: only its answer was lost.
            assert_eq!(node.agent.add(&pod).interfaces.len(), 2);
        } else {
            eventually(&format!("{step}: nothing is left"), || {
                let clean = node.agent.held().is_empty()
                    && netns.devices().is_empty()
                    && node.agent.journal().is_empty()
                    && node.dataplane.interface_ids().is_empty();
                clean.then_some(())
            });
        }
        let result = node.agent.add(&pod);
        assert_eq!(result.ips[0].address, "10.7.0.2/24", "{step}: the address is not lost");
        node.agent.del(&pod);
        assert_eq!(node.agent.held(), [], "{step}");
        assert_eq!(netns.devices(), Vec::<String>::new(), "{step}");
    }
}

/// The agent's own work: claim, journal, device, descriptors, a data plane that answers at once. The
/// bound is loose, since this may be an unoptimised build beside others; the figures are printed.
#[test]
fn an_add_takes_little_time() {
    let node = node();
    let mut took_us: Vec<u128> = (0..40)
        .map(|n| {
            let netns = Netns::new();
            let pod = Pod::new(&format!("p{n}"), &netns, "blue", "eth0");
            let started = std::time::Instant::now();
            node.agent.add(&pod);
            let took = started.elapsed().as_micros();
            node.agent.del(&pod);
            took
        })
        .collect();
    took_us.sort_unstable();
    let (median, worst) = (took_us[took_us.len() / 2], took_us[took_us.len() - 1]);
    println!("ADD of a dual-stack tap: p50 {median} µs, max {worst} µs");
    assert!(median < 100_000, "{took_us:?}");
}

#[test]
fn running_pods_follow_their_pools() {
    let node = node();
    let netns = Netns::new();
    let pod = Pod::new("a", &netns, "blue", "eth0");
    node.agent.add(&pod);
    netns.ip(&["route", "add", "198.51.100.0/24", "dev", "eth0"]);
    let second = r#"
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: blue-more, labels: {bowline.dev/network: blue}}
spec: {subnet: 10.8.0.0/24, ips: [10.8.0.2-10.8.0.250], gateway: 10.8.0.1}
"#;
    write(&node.agent.catalog, "more.yaml", second);
    eventually("the new prefix is reached", || {
        netns.ip(&["route"]).contains("10.8.0.0/24 via 10.7.0.1 dev eth0 proto 176").then_some(())
    });
    eventually("the data plane knows it as well", || {
        let told = node.dataplane.told.lock().unwrap();
        (told.networks["blue"].prefixes.len() == 3).then_some(())
    });
    let result = node.agent.add(&pod);
    assert!(result.routes.iter().any(|r| r.dst == "10.8.0.0/24"), "the result tells the truth");
    assert_eq!(node.agent.check(&pod, &result), Outcome::Done);
    std::fs::remove_file(node.agent.catalog.join("more.yaml")).unwrap();
    eventually("the prefix is gone", || {
        (!netns.ip(&["route"]).contains("10.8.0.0/24")).then_some(())
    });
    let routes = netns.ip(&["route"]);
    assert!(routes.contains("198.51.100.0/24") && routes.contains("default via"), "{routes}");
}

#[test]
fn a_new_file_cannot_push_aside_what_runs() {
    let node = node();
    let netns = Netns::new();
    let pod = Pod::new("a", &netns, "blue", "eth0");
    let result = node.agent.add(&pod);
    let served = || {
        let told = node.dataplane.told.lock().unwrap();
        (told.networks["blue"].vni, told.networks["blue"].gateways.len())
    };
    assert_eq!(served(), (56, 2));
    // Both would win by name: a Network with blue's VNI, and a pool over blue's subnet.
    let rivals = r#"
apiVersion: bowline.dev/v1alpha1
kind: Network
metadata: {name: aaa}
spec: {vni: 56, namespaceSelector: {}, ipPools: {ipv4: [aaa-v4]}}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: aaa-v4, labels: {bowline.dev/network: blue}}
spec: {subnet: 10.7.0.0/16, ips: [10.7.0.2-10.7.0.250]}
"#;
    write(&node.agent.catalog, "aaa.yaml", rivals);
    let other = Netns::new();
    let error = node.agent.add_refused(&Pod::new("b", &other, "aaa", "eth0"));
    assert!(error.msg.contains("belongs to the older Network blue"), "{}", error.msg);
    assert_eq!(served(), (56, 2));
    let second = node.agent.add(&Pod::new("b", &other, "blue", "eth0"));
    assert_eq!(second.ips[0].address, "10.7.0.3/24");
    assert_eq!(node.agent.add(&pod), result);
}

#[test]
fn a_memif_is_described_to_who_asks() {
    let node = node();
    let netns = Netns::new();
    let mut pod = Pod::new("a", &netns, "blue", "memif1");
    let file = node.agent.dir.join("info/device.json");
    pod.device_info = Some(file.clone());
    node.agent.add(&pod);
    let info: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    assert_eq!(info["type"], "memif");
    assert_eq!(info["memif"]["path"], "@memif1");
    // A client finds the socket: the data plane would accept it.
    let found = common::run("ip", &["netns", "exec", &netns.name, "cat", "/proc/net/unix"]);
    assert!(found.lines().any(|l| l.ends_with(" @memif1")), "{found}");
}

#[test]
fn pods_that_start_together_all_get_their_own() {
    let node = node();
    let results: Vec<_> = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..24)
            .map(|n| {
                let agent = &node.agent;
                scope.spawn(move || {
                    let netns = Netns::new();
                    let result = agent.add(&Pod::new(&format!("p{n}"), &netns, "blue", "eth0"));
                    (netns, result)
                })
            })
            .collect();
        calls.into_iter().map(|c| c.join().unwrap()).collect()
    });
    let addresses: std::collections::BTreeSet<_> =
        results.iter().map(|(_, r)| r.ips[0].address.clone()).collect();
    assert_eq!(addresses.len(), 24);
    assert_eq!(node.agent.held().len(), 48);
    assert_eq!(node.dataplane.interface_ids().len(), 24);
}

#[test]
fn metrics_count_calls() {
    use std::io::{Read, Write};
    let mut node = node();
    // A port that was free a moment ago.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    node.agent.kill();
    node.agent.start(&["--metrics", &address.to_string()]);
    let netns = Netns::new();
    node.agent.add(&Pod::new("a", &netns, "blue", "eth0"));
    let text = eventually("the endpoint answers", || {
        let mut stream = std::net::TcpStream::connect(address).ok()?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        text.contains("bowline_agent_dataplane_up 1").then_some(text)
    });
    let line = r#"bowline_agent_cni_calls_total{command="ADD",outcome="ok"} 1"#;
    assert!(text.contains(line), "{text}");
    let line = r#"bowline_agent_claimed_addresses_total{network="blue"} 2"#;
    assert!(text.contains(line), "{text}");
    assert!(text.ends_with("# EOF\n"), "{text}");
}
