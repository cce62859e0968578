//! The agent with the Kubernetes API as its catalog: a real API server, network namespaces for nodes
//! and pods, and a stand-in for the data plane.

#[path = "common/cluster.rs"]
mod cluster;
mod common;

use std::time::{Duration, Instant};

use cluster::{Cluster, Node, request};
use cni::error::code;
use cni::netconf::{PortMapping, RuntimeConfig};
use cni::rpc::{Command, Outcome};
use common::{Netns, Pod, eventually};
use kube::api::Api;
use multinet::store::Store;
use multinet::types::block::{AddressBlock, EntryState};
use multinet::types::node::NodeState;

#[test]
fn a_pod_of_default_gets_its_address_from_the_api() {
    let mut cluster = Cluster::start();
    let one = Node::start(&cluster, "n1", [192, 0, 2, 1]);
    let two = Node::start(&cluster, "n2", [192, 0, 2, 2]);

    // The node's own leg: device, routes, rules, and what it says of itself.
    let address = one.netns.ip(&["address", "show", "bowline0"]);
    assert!(address.contains("/32") && address.contains("/128"), "{address}");
    let routes = one.netns.ip(&["route"]);
    assert!(routes.contains("10.244.0.0/16 via 10.244.0.1 dev bowline0"), "{routes}");
    assert!(one.rules().contains("masquerade"), "{}", one.rules());
    let state = eventually("the NodeState names the leg", || {
        let state = cluster.store.get::<NodeState>(None, "n1");
        let state = cluster.runtime.block_on(state).unwrap()?;
        (state.spec.node_addresses.len() == 2 && state.status.is_some()).then_some(state)
    });
    assert_eq!(state.metadata.owner_references[0].kind, "Node");
    assert!(state.status.unwrap().conditions.iter().any(|c| c.kind == "Ready"));
    assert!(cluster.held("default").iter().any(|h| h.0 == "node/n1" && h.1 == "bowline0"));
    assert!(one.agent.dir.join("bin/bowline").exists());

    // A pod with a second interface by its annotation, and a host port.
    let annotation = serde_json::json!({
        "bowline.dev/interfaces": r#"[{"name": "eth1", "network": "blue"}]"#
    });
    let uid = cluster.pod("a", &annotation);
    let netns = Netns::new();
    let pod = Pod::new("a", &netns, "", "eth0");
    let mut add = request(&pod, &uid, Command::Add);
    let port = PortMapping {
        host_port: 8080,
        container_port: 80,
        protocol: "TCP".into(),
        host_ip: String::new(),
    };
    add.config.runtime_config =
        Some(RuntimeConfig { port_mappings: vec![port], ..RuntimeConfig::default() });
    let Outcome::Result(result) = one.agent.call(&add).outcome else {
        panic!("{}", one.agent.log())
    };
    assert_eq!(result.interfaces.len(), 2);
    let own = result.ips[0].address.split('/').next().unwrap().to_owned();
    assert!(netns.ip(&["route"]).contains("default via 10.244.0.1 dev eth0"));
    let rules = one.rules();
    assert!(rules.contains(&format!("tcp dport 8080 dnat ip to {own}:80")), "{rules}");
    eventually("the claims are confirmed", || {
        let held: Vec<_> = [cluster.held("default"), cluster.held("blue")].concat();
        let confirmed = held.iter().filter(|h| h.0 == uid && h.2 == EntryState::Allocated);
        (confirmed.count() == 4).then_some(())
    });

    // The other node learns the way from blocks and NodeStates; it never saw the pod.
    eventually("node 2 has a tunnel to the pod", || {
        let told = two.dataplane.told.lock().unwrap();
        let routes = &told.networks.get("default")?.routes;
        let tunnels = routes.iter().filter(|r| {
            matches!(&r.via, Some(api::route::Via::Tunnel(t))
                if t.vtep.as_ref().is_some_and(|v| v.addr == [192, 0, 2, 1]))
        });
        (tunnels.count() >= 2).then_some(())
    });
    assert!(!two.dataplane.told.lock().unwrap().networks.contains_key("blue"));

    // The API server away: a DEL succeeds, and its addresses come back later.
    cluster.api.kill_server();
    assert_eq!(one.agent.call(&request(&pod, &uid, Command::Del)).outcome, Outcome::Done);
    assert!(!one.rules().contains("8080"), "{}", one.rules());
    assert!(netns.devices().is_empty());
    let Cluster { runtime, api, .. } = &mut cluster;
    runtime.block_on(api.start_server());
    eventually("the addresses are released", || {
        let held = [cluster.held("default"), cluster.held("blue")].concat();
        (!held.iter().any(|h| h.0 == uid)).then_some(())
    });
}

#[test]
fn a_failed_add_names_every_pool_and_says_so_on_the_pod() {
    let cluster = Cluster::start();
    cluster.apply(
        "
apiVersion: bowline.dev/v1alpha1
kind: Network
metadata: {name: tiny}
spec: {vni: 99, namespaceSelector: {}, ipPools: {ipv4: [tiny-1, tiny-2]}}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: tiny-1}
spec: {subnet: 10.9.0.0/24, ips: [10.9.0.2]}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: tiny-2}
spec: {subnet: 10.9.1.0/24, ips: [10.9.1.2], disable: true}
",
    );
    let node = Node::start(&cluster, "n1", [192, 0, 2, 1]);
    let none = serde_json::json!({});
    let (first, second) = (cluster.pod("first", &none), cluster.pod("second", &none));
    let netns = Netns::new();
    let pod = Pod::new("first", &netns, "tiny", "eth1");
    let added = eventually("the Network is known to the agent", || {
        match node.agent.call(&request(&pod, &first, Command::Add)).outcome {
            Outcome::Result(result) => Some(result),
            _ => None,
        }
    });
    assert_eq!(added.ips[0].address, "10.9.0.2/24");
    let pod = Pod::new("second", &netns, "tiny", "eth2");
    let Outcome::Error(error) = node.agent.call(&request(&pod, &second, Command::Add)).outcome
    else {
        panic!("there is no second address")
    };
    assert_eq!(error.code, code::NO_ADDRESS);
    assert!(error.msg.contains("tiny-1") && error.msg.contains("tiny-2"), "{}", error.msg);
    eventually("the event says the same", || {
        cluster.events().into_iter().find(|note| *note == error.msg)
    });
    // A pod of the same name, but not the one that the runtime means.
    let Outcome::Error(error) = node.agent.call(&request(&pod, "older", Command::Add)).outcome
    else {
        panic!("the pod is another")
    };
    assert!(error.msg.contains("has UID"), "{}", error.msg);
}

/// The webhook only warns: namespaces are labelled later.
#[test]
fn a_namespace_that_a_network_does_not_admit_gets_no_interface() {
    use k8s_openapi::api::core::v1::Namespace;
    use kube::api::{Patch, PatchParams};

    let cluster = Cluster::start();
    cluster.apply(
        "
apiVersion: bowline.dev/v1alpha1
kind: Network
metadata: {name: gated}
spec: {vni: 98, namespaceSelector: {matchLabels: {tenant: a}}, ipPools: {ipv4: [gated]}}
---
apiVersion: bowline.dev/v1alpha1
kind: Network
metadata: {name: closed}
spec: {vni: 97, ipPools: {ipv4: [gated]}}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: gated, labels: {bowline.dev/network: gated}}
spec: {subnet: 10.9.0.0/24, ips: [10.9.0.2-10.9.0.9]}
",
    );
    let node = Node::start(&cluster, "n1", [192, 0, 2, 1]);
    let uid = cluster.pod("guest", &serde_json::json!({}));
    let netns = Netns::new();
    let attach = |network: &str| {
        let pod = Pod::new("guest", &netns, network, "eth1");
        node.agent.call(&request(&pod, &uid, Command::Add)).outcome
    };
    for network in ["gated", "closed"] {
        let why = eventually("the Network is known and refuses", || match attach(network) {
            Outcome::Error(error) => error.msg.contains("does not admit").then_some(error.msg),
            other => panic!("{network}: {other:?}"),
        });
        assert!(why.contains("namespace test") && why.contains("namespaceSelector"), "{why}");
        eventually("the event says the same", || cluster.events().contains(&why).then_some(()));
        assert!(cluster.held(network).is_empty() && node.dataplane.interface_ids().len() == 1);
    }
    let namespaces: Api<Namespace> = Api::all(cluster.store.client().clone());
    let label = Patch::Merge(serde_json::json!({"metadata": {"labels": {"tenant": "a"}}}));
    cluster.runtime.block_on(namespaces.patch("test", &PatchParams::default(), &label)).unwrap();
    let Outcome::Result(result) = attach("gated") else { panic!("{}", node.agent.log()) };
    assert_eq!(result.ips[0].address, "10.9.0.2/24");
    // Programs read the log: a JSON object a line.
    for line in node.agent.log().lines() {
        let event: serde_json::Value = serde_json::from_str(line).expect(line);
        assert!(event["level"].is_string() && event["timestamp"].is_string(), "{line}");
    }
}

#[test]
fn a_stateful_sets_pod_finds_its_address_on_another_node() {
    use k8s_openapi::api::apps::v1::StatefulSet;
    use k8s_openapi::api::core::v1::Pod as PodObject;
    use kube::api::{DeleteParams, Patch, PatchParams};

    let cluster = Cluster::start();
    let one = Node::start(&cluster, "n1", [192, 0, 2, 1]);
    let two = Node::start(&cluster, "n2", [192, 0, 2, 2]);
    let set = cluster.made(serde_json::json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet",
        "metadata": {"name": "db", "namespace": "test"},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "db"}}, "template": {
            "metadata": {"labels": {"app": "db"}},
            "spec": {"containers": [{"name": "c", "image": "localhost/none"}]}}},
    }));
    let owner = serde_json::json!([{
        "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db", "uid": set,
        "controller": true,
    }]);
    let metadata =
        serde_json::json!({"name": "db-0", "namespace": "test", "ownerReferences": owner});
    let client = cluster.store.client().clone();
    let pods: Api<PodObject> = Api::namespaced(client.clone(), "test");
    let at_once = DeleteParams::default().grace_period(0);
    let netns = Netns::new();
    let addresses = |outcome: Outcome, log: String| match outcome {
        Outcome::Result(result) => result.ips.into_iter().map(|ip| ip.address).collect::<Vec<_>>(),
        other => panic!("{other:?}: {log}"),
    };

    let first = cluster.create_pod(&metadata);
    let pod = Pod::new("db-0", &netns, "", "eth0");
    let added = one.agent.call(&request(&pod, &first, Command::Add)).outcome;
    let had = addresses(added, one.agent.log());
    assert_eq!(one.agent.call(&request(&pod, &first, Command::Del)).outcome, Outcome::Done);
    let kept = cluster.held("default").into_iter().filter(|h| h.0 == first).count();
    assert_eq!(kept, 2, "the ordinal is still wanted");

    cluster.runtime.block_on(pods.delete("db-0", &at_once)).unwrap();
    let second = cluster.create_pod(&metadata);
    let later = Pod { container_id: "sandbox-later".into(), ..pod.clone() };
    let added = two.agent.call(&request(&later, &second, Command::Add)).outcome;
    assert_eq!(addresses(added, two.agent.log()), had);
    // The old sandbox's DEL, late and once more: nothing of the new one's is touched.
    assert_eq!(one.agent.call(&request(&pod, &first, Command::Del)).outcome, Outcome::Done);
    assert_eq!(cluster.held("default").into_iter().filter(|h| h.0 == second).count(), 2);

    let sets: Api<StatefulSet> = Api::namespaced(client, "test");
    let none = Patch::Merge(serde_json::json!({"spec": {"replicas": 0}}));
    cluster.runtime.block_on(sets.patch("db", &PatchParams::default(), &none)).unwrap();
    assert_eq!(two.agent.call(&request(&later, &second, Command::Del)).outcome, Outcome::Done);
    assert_eq!(cluster.held("default").into_iter().filter(|h| h.0 == second).count(), 0);
}

/// While a machine migrates both its pods have its address, and its packets go to the source; when the source
/// is taken down they go to the target. Nothing is written of what the other node holds.
#[test]
fn a_migrating_machine_is_at_its_source_until_that_lets_go() {
    let cluster = Cluster::start();
    let path =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/e2e/manifests/third-party-crds.yaml");
    cluster.apply(&std::fs::read_to_string(path).unwrap());
    let source = Node::start(&cluster, "n1", [192, 0, 2, 1]);
    let target = Node::start(&cluster, "n2", [192, 0, 2, 2]);
    let instance = eventually("machines are served", || {
        let vmi = serde_json::json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
            "metadata": {"name": "vm", "namespace": "test"}, "spec": {}});
        cluster.try_made(vmi).ok()
    });
    let launcher = |name: &str, annotations: serde_json::Value| {
        let owner = serde_json::json!([{"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
            "name": "vm", "uid": instance, "controller": true}]);
        cluster.create_pod(&serde_json::json!({"name": name, "namespace": "test",
            "ownerReferences": owner, "annotations": annotations}))
    };
    let netns = [Netns::new(), Netns::new()];
    let call = |node: &Node, name: &str, uid: &str, netns: &Netns, command: Command| {
        let outcome = node.agent.call(&request(&Pod::new(name, netns, "", "eth0"), uid, command));
        match outcome.outcome {
            Outcome::Result(result) => result.ips.into_iter().map(|ip| ip.address).collect(),
            Outcome::Done => Vec::new(),
            Outcome::Error(error) => panic!("{error:?}: {}", node.agent.log()),
        }
    };
    let told = |node: &Node, name: &str| {
        let id = format!("{}/eth0", Pod::new(name, &netns[0], "", "eth0").container_id);
        let told = node.dataplane.told.lock().unwrap();
        told.interfaces.get(&id).map(|interface| interface.addresses.len())
    };
    let nodes = || {
        let blocks = cluster.blocks("default");
        let held = blocks.iter().flat_map(AddressBlock::held);
        let own = held.filter(|e| e.owner.as_ref().is_some_and(|o| o.to_string().contains("vm")));
        own.map(|e| e.node.clone()).collect::<Vec<_>>()
    };
    let first = launcher("virt-launcher-vm-a", serde_json::json!({}));
    let had: Vec<String> = call(&source, "virt-launcher-vm-a", &first, &netns[0], Command::Add);
    assert_eq!((had.len(), nodes()), (2, vec!["n1".to_owned(); 2]));

    let moves = serde_json::json!({"kubevirt.io/migrationJobName": "job"});
    let second = launcher("virt-launcher-vm-b", moves);
    let given = call(&target, "virt-launcher-vm-b", &second, &netns[1], Command::Add);
    assert_eq!(given, had);
    assert_eq!(nodes(), vec!["n1".to_owned(); 2], "the source's records were touched");
    assert_eq!(told(&target, "virt-launcher-vm-b"), Some(0), "the machine is not here yet");
    assert_eq!(told(&source, "virt-launcher-vm-a"), Some(2));

    call(&source, "virt-launcher-vm-a", &first, &netns[0], Command::Del);
    eventually("the machine is at its target", || {
        (nodes() == vec!["n2".to_owned(); 2] && told(&target, "virt-launcher-vm-b") == Some(2))
            .then_some(())
    });
    call(&target, "virt-launcher-vm-b", &second, &netns[1], Command::Del);
    assert_eq!(nodes(), vec![String::new(); 2], "the machine lives, and is nowhere");
}

#[test]
fn an_automatic_pool_is_that_of_the_pods_outermost_controller() {
    use multinet::auto::{Action, AppPools, Application, Present, Wanted, plan_auto_pools};
    use multinet::rules::{Catalog, Checked};
    use multinet::types::subnet::SpiderSubnet;

    let cluster = Cluster::start();
    let node = Node::start(&cluster, "n1", [192, 0, 2, 1]);
    cluster.apply(
        "
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderSubnet
metadata: {name: lan, labels: {bowline.dev/network: blue}}
spec: {subnet: 10.66.0.0/24, ips: [10.66.0.2-10.66.0.9], gateway: 10.66.0.1}
",
    );
    let template = serde_json::json!({
        "metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "image": "localhost/none"}]}});
    let workload = |kind: &str, name: &str, owners: serde_json::Value| {
        cluster.made(serde_json::json!({
            "apiVersion": "apps/v1", "kind": kind,
            "metadata": {"name": name, "namespace": "test", "ownerReferences": owners},
            "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": template},
        }))
    };
    let owner = |kind: &str, name: &str, uid: &str| {
        serde_json::json!([{"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": uid,
                            "controller": true}])
    };
    let deployment = workload("Deployment", "web", serde_json::json!([]));
    let of_deployment = owner("Deployment", "web", &deployment);
    let replica_set = workload("ReplicaSet", "web-1", of_deployment);
    let asks = r#"[{"interface": "eth1", "ipv4": ["lan"]}]"#;
    let uid = cluster.create_pod(&serde_json::json!({
        "name": "web-1-a", "namespace": "test",
        "annotations": {"ipam.spidernet.io/subnets": asks},
        "ownerReferences": owner("ReplicaSet", "web-1", &replica_set),
    }));
    let netns = Netns::new();
    let pod = Pod::new("web-1-a", &netns, "blue", "eth1");
    let add = request(&pod, &uid, Command::Add);
    let outcome = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| node.agent.call(&add).outcome);
        eventually("the call waits", || {
            node.agent.log().contains("waits for its application's automatic pools").then_some(())
        });
        // What the controller makes.
        let store = &cluster.store;
        let subnet = cluster.runtime.block_on(store.get::<SpiderSubnet>(None, "lan")).unwrap();
        let subnets = [("lan".to_owned(), subnet.unwrap())].into();
        let checked = Checked::new(&Catalog { subnets, ..Catalog::default() });
        let app = Application {
            api_version: "apps/v1".into(),
            kind: "Deployment".into(),
            namespace: "test".into(),
            name: "web".into(),
            uid: deployment.clone(),
        };
        let asks = [("ipam.spidernet.io/subnets".to_owned(), asks.to_owned())].into();
        let wanted = Wanted::read(&asks, Some(1)).unwrap();
        let pools = AppPools::default();
        let present =
            Present { checked: &checked, pools: &pools, is_held: &|_, _| false, spare: 1 };
        for action in plan_auto_pools(&app, &wanted, present).unwrap() {
            let Action::Create(pool) = action else { panic!("{action:?}") };
            cluster.runtime.block_on(store.create(&*pool)).unwrap();
        }
        waiting.join().unwrap()
    });
    let Outcome::Result(result) = outcome else { panic!("{outcome:?}: {}", node.agent.log()) };
    assert_eq!(result.ips[0].address, "10.66.0.2/24");
}

#[test]
fn a_stateful_sets_pod_keeps_its_address_of_the_lan() {
    use multinet::types::pool::SpiderIPPool;

    let cluster = Cluster::start();
    let node = Node::start(&cluster, "n1", [192, 0, 2, 1]);
    cluster.apply(
        "
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: lan-v4}
spec: {subnet: 10.60.0.0/24, ips: [10.60.0.2-10.60.0.9], default: true}
",
    );
    let set = |name: &str, replicas: u32| {
        let template = serde_json::json!({
            "metadata": {"labels": {"app": name}},
            "spec": {"containers": [{"name": "c", "image": "localhost/none"}]}});
        let uid = cluster.made(serde_json::json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet",
            "metadata": {"name": name, "namespace": "test"},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}},
                     "template": template},
        }));
        let owners = serde_json::json!([{"apiVersion": "apps/v1", "kind": "StatefulSet",
                                         "name": name, "uid": uid, "controller": true}]);
        let metadata = serde_json::json!({"name": format!("{name}-0"), "namespace": "test",
                                          "ownerReferences": owners});
        cluster.create_pod(&metadata)
    };
    let netns = Netns::new();
    let ipam = |name: &str, uid: &str, sandbox: &str, command: Command| {
        let pod = Pod { container_id: sandbox.into(), ..Pod::new(name, &netns, "", "net1") };
        let mut request = request(&pod, uid, command);
        request.mode = cni::rpc::CallMode::Ipam;
        node.agent.call(&request).outcome
    };
    eventually("the pool is known to the agent", || {
        let pool = cluster.store.get::<SpiderIPPool>(None, "lan-v4");
        cluster.runtime.block_on(pool).unwrap()
    });
    let (wanted, scaled_down) = (set("db", 1), set("old", 0));
    for (name, uid, kept) in [("db-0", &wanted, 1), ("old-0", &scaled_down, 0)] {
        let added = eventually("an address", || match ipam(name, uid, "s1", Command::Add) {
            Outcome::Result(result) => Some(result),
            _ => None,
        });
        assert_eq!(ipam(name, uid, "s1", Command::Del), Outcome::Done);
        let held = cluster.held("").into_iter().filter(|h| h.0 == *uid).count();
        assert_eq!(held, kept, "{name}");
        if kept == 1 {
            // Somebody else asks meanwhile, then the ordinal's next sandbox.
            let other = cluster.pod("other", &serde_json::json!({}));
            assert!(matches!(ipam("other", &other, "s2", Command::Add), Outcome::Result(_)));
            let Outcome::Result(again) = ipam(name, uid, "s3", Command::Add) else { panic!() };
            assert_eq!(again.ips, added.ips);
        }
    }
}

#[test]
fn multus_is_noticed_when_it_comes() {
    let cluster = Cluster::start();
    let node = Node::start(&cluster, "n1", [192, 0, 2, 1]);
    let netns = Netns::new();
    let annotations_of = |name: &str, interface: &str| {
        let uid = cluster.pod(name, &serde_json::json!({}));
        let pod = Pod::new(name, &netns, "blue", interface);
        let outcome = node.agent.call(&request(&pod, &uid, Command::Add)).outcome;
        assert!(matches!(outcome, Outcome::Result(_)), "{outcome:?}: {}", node.agent.log());
        let pods: Api<k8s_openapi::api::core::v1::Pod> =
            Api::namespaced(cluster.store.client().clone(), "test");
        eventually("the pod tells its interfaces", || {
            let pod = cluster.runtime.block_on(pods.get(name)).unwrap();
            let annotations = pod.metadata.annotations.unwrap_or_default();
            annotations.contains_key("bowline.dev/network-status").then_some(annotations)
        })
    };
    let common = "k8s.v1.cni.cncf.io/network-status";
    assert!(annotations_of("before", "eth1").contains_key(common));
    let multus = node.configuration().with_file_name("00-multus.conf");
    std::fs::write(&multus, "{}").unwrap();
    assert!(!annotations_of("beside", "eth2").contains_key(common), "that one is Multus' own");
    std::fs::remove_file(&multus).unwrap();
    assert!(annotations_of("after", "eth3").contains_key(common));
}

/// Pools are told by position alone, which is the order of asking where Multus' annotation does not
/// name the interface. Both addresses outlive the pod; where the annotation names another pool for one
/// of them, the next pod has that one's address and keeps the other.
#[test]
fn an_ordinals_interfaces_keep_their_addresses_until_their_pool_changes() {
    use k8s_openapi::api::core::v1::Pod as PodObject;
    use kube::api::DeleteParams;

    let cluster = Cluster::start();
    let node = Node::start(&cluster, "n1", [192, 0, 2, 1]);
    for (name, prefix) in [("lan-a", "10.60.0"), ("lan-b", "10.61.0"), ("lan-c", "10.62.0")] {
        cluster.apply(&format!(
            "{{apiVersion: spiderpool.spidernet.io/v2beta1, kind: SpiderIPPool, metadata: {{name: {name}}},
              spec: {{subnet: {prefix}.0/24, ips: [{prefix}.2-{prefix}.9]}}}}"
        ));
    }
    let set = cluster.made(serde_json::json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db", "namespace": "test"},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "db"}},
                 "template": {"metadata": {"labels": {"app": "db"}},
                              "spec": {"containers": [{"name": "c", "image": "localhost/none"}]}}},
    }));
    let pods: Api<PodObject> = Api::namespaced(cluster.store.client().clone(), "test");
    let netns = Netns::new();
    // One life of the ordinal: the addresses of eth0 and net1.
    let life = |second: &str, networks: &str, sandbox: &str| {
        let uid = cluster.create_pod(&serde_json::json!({
            "name": "db-0", "namespace": "test",
            "annotations": {
                "ipam.spidernet.io/ippools":
                    format!(r#"[{{"ipv4": ["lan-a"]}}, {{"ipv4": ["{second}"]}}]"#),
                "k8s.v1.cni.cncf.io/networks": networks,
            },
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db",
                                 "uid": set, "controller": true}],
        }));
        let call = |interface: &str, command: Command| {
            let pod =
                Pod { container_id: sandbox.into(), ..Pod::new("db-0", &netns, "", interface) };
            let mut request = request(&pod, &uid, command);
            request.mode = cni::rpc::CallMode::Ipam;
            node.agent.call(&request).outcome
        };
        let addresses = ["eth0", "net1"].map(|interface| {
            // The agent may not have seen the pools yet.
            let mut outcome = call(interface, Command::Add);
            let deadline = Instant::now() + Duration::from_secs(10);
            while !matches!(outcome, Outcome::Result(_)) && Instant::now() < deadline {
                outcome = call(interface, Command::Add);
            }
            let Outcome::Result(result) = outcome else { panic!("{interface}: {outcome:?}") };
            result.ips[0].address.clone()
        });
        for interface in ["eth0", "net1"] {
            assert_eq!(call(interface, Command::Del), Outcome::Done);
        }
        let at_once = DeleteParams::default().grace_period(0);
        cluster.runtime.block_on(pods.delete("db-0", &at_once)).unwrap();
        addresses
    };
    let first = life("lan-b", "", "s1");
    assert!(first[0].starts_with("10.60.0.") && first[1].starts_with("10.61.0."), "{first:?}");
    assert_eq!(life("lan-b", "", "s2"), first);
    assert_eq!(life("lan-b", "macvlan", "s3"), first);
    let changed = life("lan-c", "", "s4");
    assert_eq!(changed[0], first[0]);
    assert!(changed[1].starts_with("10.62.0."), "{changed:?}");
}

/// Nobody refused the pool: it is there before the node. What is asked for would cut the node off from its own network.
#[test]
fn a_pool_over_the_nodes_own_network_is_not_routed() {
    let cluster = Cluster::start();
    let node = Node::start(&cluster, "n1", [192, 0, 2, 1]);
    node.netns.ip(&["link", "add", "lan0", "type", "veth", "peer", "name", "lan1"]);
    node.netns.ip(&["link", "set", "lan0", "up"]);
    node.netns.ip(&["address", "add", "10.50.0.5/24", "dev", "lan0"]);
    for (name, subnet) in [("same", "10.50.0.0/24"), ("apart", "10.60.0.0/24")] {
        cluster.apply(&format!(
            "{{apiVersion: spiderpool.spidernet.io/v2beta1, kind: SpiderIPPool,
              metadata: {{name: {name}, labels: {{bowline.dev/network: default}}}}, spec: {{subnet: {subnet}}}}}"
        ));
    }
    eventually("the agent says why", || {
        node.agent
            .log()
            .contains("no route to the pool 10.50.0.0/24: it overlaps 10.50.0.0/24")
            .then_some(())
    });
    let routes = eventually("what is apart is routed", || {
        let routes = node.netns.ip(&["route"]);
        routes.contains("10.60.0.0/24 dev bowline0").then_some(routes)
    });
    assert!(routes.contains("10.50.0.0/24 dev lan0 proto kernel"), "{routes}");
    assert_eq!(routes.matches("10.50.0.0/24").count(), 1, "{routes}");
}
