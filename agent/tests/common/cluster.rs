//! A cluster without kubelets: a real API server, and nodes that are network namespaces with a stand-in
//! for the data plane. Only the tests that need it build it: it is not a part of `common`.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use cni::rpc::{Command, Request};
use kube::api::{Api, DynamicObject, ListParams, PostParams};
use kube::core::GroupVersionKind;
use multinet::store::Store;
use multinet::types::block::{AddressBlock, EntryState, NETWORK_LABEL, Owner};
use multinet::types::meta::LabelSelector;
use serde::Deserialize;
use testapi::TestApi;

use crate::common::dataplane::FakeDataplane;
use crate::common::{Agent, DEADLINE, Netns, Pod, TWO_NETWORKS, run};

pub(crate) const DEFAULT_NETWORK: &str = r#"
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
pub(crate) struct Cluster {
    pub(crate) runtime: tokio::runtime::Runtime,
    pub(crate) api: TestApi,
    pub(crate) store: bowline_kube::ApiStore,
}

impl Cluster {
    pub(crate) fn start() -> Self {
        let cluster = Self::empty();
        cluster.apply(DEFAULT_NETWORK);
        cluster.apply(TWO_NETWORKS);
        cluster
    }

    /// With definitions only.
    pub(crate) fn empty() -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (api, store) = runtime.block_on(async {
            let api = TestApi::start(&[]).await;
            api.install_crds().await;
            let store = bowline_kube::ApiStore::new(api.client("admin").await);
            (api, store)
        });
        Self { runtime, api, store }
    }

    /// Creates the objects of a text.
    pub(crate) fn apply(&self, text: &str) {
        for document in serde_yaml_ng::Deserializer::from_str(text) {
            let object = DynamicObject::deserialize(document).unwrap();
            self.runtime.block_on(self.create(object));
        }
    }

    pub(crate) async fn create(&self, object: DynamicObject) -> DynamicObject {
        self.try_create(object).await.unwrap_or_else(|e| panic!("{e}"))
    }

    async fn try_create(&self, object: DynamicObject) -> Result<DynamicObject, kube::Error> {
        let client = self.store.client().clone();
        let types = object.types.clone().unwrap();
        let kind = GroupVersionKind::try_from(&types).unwrap();
        let (resource, _) = kube::discovery::pinned_kind(&client, &kind).await?;
        let api: Api<DynamicObject> = match object.metadata.namespace.clone() {
            Some(namespace) => Api::namespaced_with(client, &namespace, &resource),
            None => Api::all_with(client, &resource),
        };
        api.create(&PostParams::default(), &object).await
    }

    /// The same of what may be refused.
    pub(crate) fn try_made(&self, object: serde_json::Value) -> Result<String, kube::Error> {
        let object = serde_json::from_value(object).unwrap();
        let made = self.runtime.block_on(self.try_create(object))?;
        Ok(made.metadata.uid.unwrap())
    }

    /// A pod's object; its UID.
    pub(crate) fn pod(&self, name: &str, annotations: &serde_json::Value) -> String {
        let metadata =
            serde_json::json!({"name": name, "namespace": "test", "annotations": annotations});
        self.create_pod(&metadata)
    }

    pub(crate) fn create_pod(&self, metadata: &serde_json::Value) -> String {
        self.made(serde_json::json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
            "spec": {"containers": [{"name": "c", "image": "localhost/none"}],
                     "automountServiceAccountToken": false},
        }))
    }

    /// Creates an object; its UID.
    pub(crate) fn made(&self, object: serde_json::Value) -> String {
        let object = serde_json::from_value(object).unwrap();
        self.runtime.block_on(self.create(object)).metadata.uid.unwrap()
    }

    pub(crate) fn blocks(&self, network: &str) -> Vec<AddressBlock> {
        let selector = LabelSelector::label(NETWORK_LABEL, network);
        self.runtime.block_on(self.store.list(&selector)).unwrap()
    }

    /// Who holds what in a Network: owner, interface, state.
    pub(crate) fn held(&self, network: &str) -> Vec<(String, String, EntryState)> {
        let blocks = self.blocks(network);
        let held = blocks.iter().flat_map(AddressBlock::held);
        let key = |owner: &Option<Owner>| owner.as_ref().map(Owner::key).unwrap_or_default();
        held.map(|e| (key(&e.owner), e.interface.clone(), e.state)).collect()
    }

    pub(crate) fn events(&self) -> Vec<String> {
        use k8s_openapi::api::events::v1::Event;
        let api: Api<Event> = Api::namespaced(self.store.client().clone(), "test");
        let list = self.runtime.block_on(api.list(&ListParams::default())).unwrap();
        list.items.into_iter().filter_map(|e| e.note).collect()
    }
}

/// A node: a namespace, a stand-in for its data plane, its agent.
pub(crate) struct Node {
    pub(crate) agent: Agent,
    pub(crate) netns: Netns,
    pub(crate) dataplane: FakeDataplane,
    /// Bytes that the API server has sent it.
    pub(crate) received: Arc<AtomicU64>,
    _dir: tempfile::TempDir,
}

impl Node {
    pub(crate) fn start(cluster: &Cluster, name: &str, vtep: [u8; 4]) -> Self {
        Self::start_with(&cluster.api.kubeconfig("admin"), name, vtep)
    }

    /// With another way to the API server.
    pub(crate) fn start_with(kubeconfig: &Path, name: &str, vtep: [u8; 4]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let netns = Netns::new();
        let received = reach_from(&netns, kubeconfig);
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
        agent.start_on_kubernetes(&netns, kubeconfig, &places);
        let node = Self { agent, netns, dataplane, received, _dir: dir };
        node.wait_until_it_serves();
        node
    }

    /// The runtime's configuration appears when pods can be served.
    pub(crate) fn wait_until_it_serves(&self) {
        let deadline = Instant::now() + DEADLINE;
        while !self.configuration().exists() {
            assert!(Instant::now() < deadline, "no pods can be served: {}", self.agent.log());
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    pub(crate) fn configuration(&self) -> std::path::PathBuf {
        self.agent.dir.join("net.d/05-bowline.conflist")
    }

    pub(crate) fn rules(&self) -> String {
        let netns = format!("--net={}", self.netns.path().display());
        run("nsenter", &[&netns, "nft", "list", "table", "inet", "bowline"])
    }
}

/// Makes the API server's loopback address work inside a namespace as well, and counts the bytes that come
/// from there.
fn reach_from(netns: &Netns, kubeconfig: &Path) -> Arc<AtomicU64> {
    let text = std::fs::read_to_string(kubeconfig).unwrap();
    let config: serde_json::Value = serde_json::from_str(&text).unwrap();
    let server = config["clusters"][0]["cluster"]["server"].as_str().unwrap();
    let address = server.split("//").nth(1).unwrap().to_owned();
    let inside = agent::pod::Netns::open(&netns.path()).unwrap();
    let listen = || {
        TcpListener::bind(&address)
            .map_err(|e| agent::pod::PodError::new("listen in the namespace".into(), e))
    };
    let listener = inside.run(listen).unwrap();
    let received = Arc::new(AtomicU64::new(0));
    let counter = received.clone();
    std::thread::spawn(move || {
        for incoming in listener.incoming().flatten() {
            // A server that was killed refuses, as it would without us.
            let Ok(outgoing) = TcpStream::connect(&address) else { continue };
            join(&incoming, &outgoing, Arc::default());
            join(&outgoing, &incoming, counter.clone());
        }
    });
    received
}

fn join(from: &TcpStream, to: &TcpStream, counter: Arc<AtomicU64>) {
    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            counter.fetch_add(length as u64, Ordering::Relaxed);
            if to.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(std::net::Shutdown::Both);
    });
}

pub(crate) fn request(pod: &Pod, uid: &str, command: Command) -> Request {
    let mut request = pod.request(command);
    uid.clone_into(&mut request.pod.uid);
    request
}
