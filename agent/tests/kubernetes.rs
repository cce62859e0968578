//! The agent with the Kubernetes API as its catalog: a real API server, network namespaces for nodes
//! and pods, and a stand-in for the data plane.

mod common;

use std::io;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::Instant;

use cni::error::code;
use cni::netconf::{PortMapping, RuntimeConfig};
use cni::rpc::{Command, Outcome, Request};
use common::dataplane::FakeDataplane;
use common::{Agent, DEADLINE, Netns, Pod, TWO_NETWORKS, eventually, run};
use kube::api::{Api, DynamicObject, ListParams, PostParams};
use kube::core::GroupVersionKind;
use multinet::store::Store;
use multinet::types::block::{AddressBlock, EntryState, NETWORK_LABEL, Owner};
use multinet::types::meta::LabelSelector;
use multinet::types::node::NodeState;
use serde::Deserialize;
use testapi::TestApi;

const DEFAULT_NETWORK: &str = r#"
apiVersion: bowline.dev/v1alpha1
kind: Network
metadata: {name: default}
spec:
  vni: 1
  ipPools: {ipv4: [default-v4], ipv6: [default-v6]}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: default-v4}
spec: {subnet: 10.244.0.0/16, ips: [10.244.0.2-10.244.255.254], gateway: 10.244.0.1}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: default-v6}
spec: {subnet: "fd44::/64", ips: ["fd44::2-fd44::ffff"], gateway: "fd44::1"}
---
apiVersion: v1
kind: Node
metadata: {name: n1}
---
apiVersion: v1
kind: Node
metadata: {name: n2}
---
apiVersion: v1
kind: Namespace
metadata: {name: test}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: default, namespace: test}
"#;

/// A cluster without kubelets: the API server and what the test applies.
struct Cluster {
    runtime: tokio::runtime::Runtime,
    api: TestApi,
    store: bowline_kube::ApiStore,
}

impl Cluster {
    fn start() -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (api, store) = runtime.block_on(async {
            let api = TestApi::start(&[]).await;
            api.install_crds().await;
            let store = bowline_kube::ApiStore::new(api.client("admin").await);
            (api, store)
        });
        let cluster = Self { runtime, api, store };
        cluster.apply(DEFAULT_NETWORK);
        cluster.apply(TWO_NETWORKS);
        cluster
    }

    /// Creates the objects of a text.
    fn apply(&self, text: &str) {
        for document in serde_yaml_ng::Deserializer::from_str(text) {
            let object = DynamicObject::deserialize(document).unwrap();
            self.runtime.block_on(self.create(object));
        }
    }

    async fn create(&self, object: DynamicObject) -> DynamicObject {
        let client = self.store.client().clone();
        let types = object.types.clone().unwrap();
        let kind = GroupVersionKind::try_from(&types).unwrap();
        let (resource, _) = kube::discovery::pinned_kind(&client, &kind).await.unwrap();
        let api: Api<DynamicObject> = match object.metadata.namespace.clone() {
            Some(namespace) => Api::namespaced_with(client, &namespace, &resource),
            None => Api::all_with(client, &resource),
        };
        api.create(&PostParams::default(), &object).await.unwrap_or_else(|e| panic!("{e}"))
    }

    /// A pod's object; its UID.
    fn pod(&self, name: &str, annotations: &serde_json::Value) -> String {
        let metadata =
            serde_json::json!({"name": name, "namespace": "test", "annotations": annotations});
        self.create_pod(&metadata)
    }

    fn create_pod(&self, metadata: &serde_json::Value) -> String {
        self.made(serde_json::json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
            "spec": {"containers": [{"name": "c", "image": "localhost/none"}],
                     "automountServiceAccountToken": false},
        }))
    }

    /// Creates an object; its UID.
    fn made(&self, object: serde_json::Value) -> String {
        let object = serde_json::from_value(object).unwrap();
        self.runtime.block_on(self.create(object)).metadata.uid.unwrap()
    }

    fn blocks(&self, network: &str) -> Vec<AddressBlock> {
        let selector = LabelSelector::label(NETWORK_LABEL, network);
        self.runtime.block_on(self.store.list(&selector)).unwrap()
    }

    /// Who holds what in a Network: owner, interface, state.
    fn held(&self, network: &str) -> Vec<(String, String, EntryState)> {
        let blocks = self.blocks(network);
        let held = blocks.iter().flat_map(AddressBlock::held);
        let key = |owner: &Option<Owner>| owner.as_ref().map(Owner::key).unwrap_or_default();
        held.map(|e| (key(&e.owner), e.interface.clone(), e.state)).collect()
    }

    fn events(&self) -> Vec<String> {
        use k8s_openapi::api::events::v1::Event;
        let api: Api<Event> = Api::namespaced(self.store.client().clone(), "test");
        let list = self.runtime.block_on(api.list(&ListParams::default())).unwrap();
        list.items.into_iter().filter_map(|e| e.note).collect()
    }
}

/// A node: a namespace, a stand-in for its data plane, its agent.
struct Node {
    agent: Agent,
    netns: Netns,
    dataplane: FakeDataplane,
    _dir: tempfile::TempDir,
}

impl Node {
    fn start(cluster: &Cluster, name: &str, vtep: [u8; 4]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let netns = Netns::new();
        let kubeconfig = cluster.api.kubeconfig("admin");
        reach_from(&netns, &kubeconfig);
        let mut agent = Agent::prepare(dir.path(), name, &dir.path().join("none"));
        let dataplane = FakeDataplane::start(&agent.dataplane_socket(), vtep);
        for place in ["bin", "net.d"] {
            std::fs::create_dir_all(dir.path().join(place)).unwrap();
        }
        std::fs::write(dir.path().join("plugin"), "a plugin").unwrap();
        let place = |option: &str, name: &str| format!("{option}={}/{name}", dir.path().display());
        let places = [
            place("--cni-bin-dir", "bin"),
            place("--cni-conf-dir", "net.d"),
            place("--cni-plugin", "plugin"),
        ];
        let places: Vec<&str> = places.iter().map(String::as_str).collect();
        agent.start_on_kubernetes(&netns, &kubeconfig, &places);
        let node = Self { agent, netns, dataplane, _dir: dir };
        node.wait_until_it_serves();
        node
    }

    /// The runtime's configuration appears when pods can be served.
    fn wait_until_it_serves(&self) {
        let deadline = Instant::now() + DEADLINE;
        while !self.configuration().exists() {
            assert!(Instant::now() < deadline, "no pods can be served: {}", self.agent.log());
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    fn configuration(&self) -> std::path::PathBuf {
        self.agent.dir.join("net.d/05-bowline.conflist")
    }

    fn rules(&self) -> String {
        let netns = format!("--net={}", self.netns.path().display());
        run("nsenter", &[&netns, "nft", "list", "table", "inet", "bowline"])
    }
}

/// Makes the API server's loopback address work inside a namespace as well.
fn reach_from(netns: &Netns, kubeconfig: &Path) {
    let text = std::fs::read_to_string(kubeconfig).unwrap();
    let config: serde_json::Value = serde_json::from_str(&text).unwrap();
    let server = config["clusters"][0]["cluster"]["server"].as_str().unwrap();
    let address = server.strip_prefix("https://").unwrap().to_owned();
    let inside = agent::pod::Netns::open(&netns.path()).unwrap();
    let listen = || {
        TcpListener::bind(&address)
            .map_err(|e| agent::pod::PodError::new("listen in the namespace".into(), e))
    };
    let listener = inside.run(listen).unwrap();
    std::thread::spawn(move || {
        for incoming in listener.incoming().flatten() {
            // A server that was killed refuses, as it would without us.
            let Ok(outgoing) = TcpStream::connect(&address) else { continue };
            join(&incoming, &outgoing);
            join(&outgoing, &incoming);
        }
    });
}

fn join(from: &TcpStream, to: &TcpStream) {
    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
    std::thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(std::net::Shutdown::Both);
    });
}

fn request(pod: &Pod, uid: &str, command: Command) -> Request {
    let mut request = pod.request(command);
    uid.clone_into(&mut request.pod.uid);
    request
}

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
