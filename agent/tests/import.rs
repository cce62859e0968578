//! `bowline ipam import` over what a Spiderpool installation leaves behind in a real API server, and what
//! becomes of the imported addresses when Bowline's agent serves.

#[path = "common/cluster.rs"]
mod cluster;
mod common;

use std::collections::BTreeMap;
use std::process::{Command, Output};

use cluster::{Cluster, Node};
use common::Netns;
use common::chain::{ChainPod, Plugins, addresses};
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use multinet::store::Store;
use multinet::types::block::{AddressBlock, Entry, EntryState, Owner};
use serde_json::json;

/// Names, labels and finalizers as upstream's webhooks and controllers set them.
const SPIDERPOOL: &str = r#"
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderCoordinator
metadata: {name: default, finalizers: [spiderpool.spidernet.io]}
spec: {mode: auto, podCIDRType: cluster, hijackCIDR: [169.254.0.0/16], detectGateway: false, detectIPConflict: false}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderReservedIP
metadata: {name: router}
spec: {ipVersion: 4, ips: [10.60.0.7]}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderSubnet
metadata:
  name: subnet-6
  finalizers: [spiderpool.spidernet.io]
  labels: {ipam.spidernet.io/subnet-cidr: fd60---64}
spec: {ipVersion: 6, subnet: "fd60::/64", ips: ["fd60::2-fd60::9"], gateway: "fd60::1"}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata:
  name: lan-v4
  finalizers: [spiderpool.spidernet.io]
  labels: {ipam.spidernet.io/ippool-cidr: 10-60-0-0-24}
spec: {ipVersion: 4, subnet: 10.60.0.0/24, ips: [10.60.0.2-10.60.0.9], gateway: 10.60.0.1, default: true, disable: false, vlan: 0}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata:
  name: lan-v6
  finalizers: [spiderpool.spidernet.io]
  labels: {ipam.spidernet.io/ippool-cidr: fd60---64, ipam.spidernet.io/owner-spider-subnet: subnet-6}
spec: {ipVersion: 6, subnet: "fd60::/64", ips: ["fd60::2-fd60::9"], gateway: "fd60::1", default: true, disable: false}
---
apiVersion: coordination.k8s.io/v1
kind: Lease
metadata: {name: spiderpool-controller-leases, namespace: test}
spec: {holderIdentity: spiderpool-controller-0, leaseDurationSeconds: 15}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, namespace: test}
spec:
  replicas: 2
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec: {containers: [{name: c, image: localhost/none}]}
"#;

/// A Spiderpool installation, and the UIDs of its pods.
struct Site {
    cluster: Cluster,
    web: String,
    db: String,
}

impl Site {
    fn new() -> Self {
        let cluster = Cluster::start();
        cluster.apply(SPIDERPOOL);
        let site = Self { web: running(&cluster, "web-1"), db: running(&cluster, "db-0"), cluster };
        site.endpoint("web-1", "Deployment", &site.web, "10.60.0.2", Some("fd60::2"));
        site.endpoint("db-0", "StatefulSet", &site.db, "10.60.0.3", None);
        // Its pod is being made anew, who knows where.
        site.endpoint("db-1", "StatefulSet", "uid-db-1", "10.60.0.5", None);
        site.status("SpiderIPPool", "lan-v4", &site.v4());
        let list = json!({"fd60::2": {"pod": "test/web-1", "podUid": site.web}}).to_string();
        site.status("SpiderIPPool", "lan-v6", &list);
        site
    }

    /// Whom Spiderpool has given addresses of `lan-v4`.
    fn v4(&self) -> String {
        let of = |pod: &str, uid: &str| json!({"pod": format!("test/{pod}"), "podUid": uid});
        let list = json!({
            "10.60.0.2": of("web-1", &self.web),
            "10.60.0.3": of("db-0", &self.db),
            "10.60.0.5": of("db-1", "uid-db-1"),
            "10.60.0.6": of("gone", "uid-gone"),
        });
        list.to_string()
    }

    fn endpoint(&self, pod: &str, owner: &str, uid: &str, v4: &str, v6: Option<&str>) {
        let mut of_interface = json!({"interface": "net1", "ipv4": format!("{v4}/24"), "ipv4Pool": "lan-v4", "vlan": 0});
        if let Some(v6) = v6 {
            of_interface["ipv6"] = format!("{v6}/64").into();
            of_interface["ipv6Pool"] = "lan-v6".into();
        }
        self.cluster.made(json!({
            "apiVersion": "spiderpool.spidernet.io/v2beta1", "kind": "SpiderEndpoint",
            "metadata": {"name": pod, "namespace": "test", "finalizers": ["spiderpool.spidernet.io"]},
            "status": {"current": {"uid": uid, "node": "n1", "ips": [of_interface]},
                       "ownerControllerType": owner, "ownerControllerName": "owner"},
        }));
    }

    fn status(&self, kind: &str, name: &str, allocated: &str) {
        let status = json!({"allocatedIPs": allocated, "allocatedIPCount": 1, "totalIPCount": 8});
        let kind = GroupVersionKind::gvk("spiderpool.spidernet.io", "v2beta1", kind);
        let resource = ApiResource::from_gvk(&kind);
        let api: Api<DynamicObject> = Api::all_with(self.cluster.store.client().clone(), &resource);
        let patch = Patch::Merge(json!({"status": status}));
        let written = async { api.patch_status(name, &PatchParams::default(), &patch).await };
        self.cluster.runtime.block_on(written).unwrap();
    }

    fn ipam(&self, words: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bowline"));
        command.env("KUBECONFIG", self.cluster.api.kubeconfig("admin"));
        command.arg("ipam").args(words.split(' ')).output().unwrap()
    }

    /// What it prints when all is well.
    fn says(&self, words: &str) -> String {
        let output = self.ipam(words);
        assert!(output.status.success(), "{words}: {}", texts(&output));
        texts(&output)
    }

    /// What it prints when something is wrong.
    fn fails(&self, words: &str) -> String {
        let output = self.ipam(words);
        assert!(!output.status.success(), "{words}: {}", texts(&output));
        texts(&output)
    }

    fn blocks(&self) -> Vec<AddressBlock> {
        self.cluster.blocks("")
    }

    /// Held addresses of the LAN, with pod, interface, pool and node.
    fn held(&self) -> Vec<String> {
        let line = |e: &Entry| {
            let owner = e.owner.as_ref().map(ToString::to_string).unwrap_or_default();
            format!("{} {owner} {} {} on \"{}\"", e.address, e.interface, e.pool, e.node)
        };
        self.blocks().iter().flat_map(AddressBlock::held).map(line).collect()
    }
}

fn texts(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text)).concat()
}

/// A pod that runs on node `n1`; its UID.
fn running(cluster: &Cluster, name: &str) -> String {
    let uid = cluster.made(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "test"},
        "spec": {"nodeName": "n1", "automountServiceAccountToken": false,
                 "containers": [{"name": "c", "image": "localhost/none"}]},
    }));
    let api: Api<k8s_openapi::api::core::v1::Pod> =
        Api::namespaced(cluster.store.client().clone(), "test");
    let status =
        Patch::Merge(json!({"status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]}}));
    let written = async { api.patch_status(name, &PatchParams::default(), &status).await };
    cluster.runtime.block_on(written).unwrap();
    uid
}

const IMPORTED: [&str; 4] = [
    "10.60.0.2 pod test/web-1 net1 lan-v4 on \"n1\"",
    "10.60.0.3 pod test/db-0 net1 lan-v4 on \"n1\"",
    "10.60.0.5 pod test/db-1 net1 lan-v4 on \"\"",
    "fd60::2 pod test/web-1 net1 lan-v6 on \"n1\"",
];

#[test]
fn a_running_spiderpools_allocations_become_claims_once() {
    let site = Site::new();
    let planned = site.says("import --dry-run");
    for line in IMPORTED {
        let address = line.split(' ').next().unwrap();
        assert!(planned.contains(&format!("{address} of pod test/")), "{planned}");
    }
    assert!(planned.contains("4 new, 0 known, 0 held by others"), "{planned}");
    assert!(
        planned.contains("10.60.0.6") && planned.contains("test/gone, which is gone"),
        "{planned}"
    );
    assert_eq!(site.blocks(), [], "a dry run writes nothing");

    let done = site.says("import");
    assert!(done.contains("10.60.0.2 of pod test/web-1 in -: claimed"), "{done}");
    assert_eq!(site.held(), IMPORTED);
    let uids: BTreeMap<_, _> = site.cluster.held("").into_iter().map(|h| (h.0, h.2)).collect();
    assert_eq!(uids.get(&site.web), Some(&EntryState::Allocated), "{uids:?}");

    let before = site.blocks();
    let again = site.says("import");
    assert!(again.contains("0 new, 4 known, 0 held by others"), "{again}");
    assert_eq!(site.blocks(), before, "a second run writes nothing");
}

#[test]
fn what_is_broken_or_taken_is_said_and_nothing_is_guessed() {
    let site = Site::new();
    site.status("SpiderIPPool", "lan-v6", "{\"fd60::2\": ");
    let broken = site.fails("import");
    assert!(broken.contains("SpiderIPPool lan-v6: status.allocatedIPs"), "{broken}");
    assert!(broken.contains("nothing is imported"), "{broken}");
    assert_eq!(site.blocks(), [], "not even of the pools that can be read");

    site.status("SpiderIPPool", "lan-v6", "{}");
    let mut block = AddressBlock::around("", "10.60.0.3".parse().unwrap());
    block.put(Entry {
        address: "10.60.0.3".parse().unwrap(),
        state: EntryState::Allocated,
        owner: Some(Owner::Pod { namespace: "test".into(), name: "thief".into(), uid: "u".into() }),
        interface: "net1".into(),
        pool: "lan-v4".into(),
        sandbox_id: "s".into(),
        node: "n2".into(),
        since_ms: 1,
        until_ms: None,
        reason: String::new(),
    });
    site.cluster.runtime.block_on(site.cluster.store.create(&block)).unwrap();
    let taken = site.fails("import");
    assert!(taken.contains("10.60.0.3 of pod test/db-0 in -: pod test/thief holds it"), "{taken}");
    assert!(taken.contains("2 new, 0 known, 1 held by others"), "{taken}");
    let thief = "10.60.0.3 pod test/thief net1 lan-v4 on \"n2\"";
    assert_eq!(site.held(), [IMPORTED[0], thief, IMPORTED[2]]);
    site.says("release 10.60.0.3 --yes");
    assert!(site.says("import").contains("1 new, 2 known"), "the rest follows");
    assert_eq!(site.held(), IMPORTED[..3]);
}

#[test]
fn imported_addresses_are_nobody_elses_until_their_pods_go() {
    let site = Site::new();
    site.says("import");
    let leases: Api<k8s_openapi::api::coordination::v1::Lease> =
        Api::namespaced(site.cluster.store.client().clone(), "test");
    let at_once = DeleteParams::default();
    let stopped = leases.delete("spiderpool-controller-leases", &at_once);
    site.cluster.runtime.block_on(stopped).unwrap();

    let node = Node::start(&site.cluster, "n1", [192, 0, 2, 1]);
    node.netns.ip(&["link", "add", "parent", "type", "veth", "peer", "name", "lan0"]);
    node.netns.ip(&["link", "set", "parent", "up"]);
    let plugins = Plugins::new(&node.agent, &node.netns);
    let chain = [json!({"type": "macvlan", "master": "parent", "mode": "bridge", "ipam": {
        "type": "spiderpool", "default_ipv4_ippool": ["lan-v4"]}})];
    let netns: Vec<Netns> = (0..5).map(|_| Netns::new()).collect();
    let newcomer = |n: usize| {
        let name = format!("new-{n}");
        let uid = site.cluster.pod(&name, &json!({}));
        ChainPod { uid, ..ChainPod::new(&name, &netns[n], "net1") }
    };
    let given = (0..4).map(|n| addresses(&plugins.add(&newcomer(n), &chain).result()).remove(0));
    // One is reserved; 10.60.0.6 is of a pod that is gone.
    let free = ["10.60.0.4/24", "10.60.0.6/24", "10.60.0.8/24", "10.60.0.9/24"];
    assert_eq!(given.collect::<Vec<_>>(), free);
    let last = newcomer(4);
    let refusal = plugins.add(&last, &chain).refusal();
    assert!(refusal.contains("pool lan-v4 is used up (7 of 7 held)"), "{refusal}");

    let (web, db) = (Netns::new(), Netns::new());
    let old = |name: &str, uid: &str, netns: &Netns, address: &str| {
        attach_as_spiderpool_did(&node.netns, netns, address);
        ChainPod { uid: uid.into(), ..ChainPod::new(name, netns, "net1") }
    };
    let web_1 = old("web-1", &site.web, &web, "10.60.0.2/24");
    let db_0 = old("db-0", &site.db, &db, "10.60.0.3/24");
    // A sandbox that the same pod had earlier: the running one keeps its addresses.
    let earlier = ChainPod { netns: netns[4].path(), ..web_1.clone() };
    plugins.del(&earlier, &chain, None);
    assert!(site.held().contains(&IMPORTED[0].to_owned()), "{:?}", site.held());
    plugins.del(&web_1, &chain, None);
    let left = site.held();
    assert!(!left.iter().any(|line| line.contains("web-1")), "{left:?}");
    assert_eq!(addresses(&plugins.add(&last, &chain).result()), ["10.60.0.2/24"]);
    // The ordinal is still wanted: its address waits, on no node.
    plugins.del(&db_0, &chain, None);
    let waits = "10.60.0.3 pod test/db-0 net1 lan-v4 on \"\"".to_owned();
    assert!(site.held().contains(&waits), "{:?}", site.held());
}

/// A macvlan interface `net1` that somebody else's plugins have made.
fn attach_as_spiderpool_did(node: &Netns, pod: &Netns, address: &str) {
    let made = ["link", "add", "link", "parent", "name", "net1", "netns", &pod.name];
    node.ip(&[made.as_slice(), &["type", "macvlan", "mode", "bridge"]].concat());
    pod.ip(&["link", "set", "net1", "up"]);
    pod.ip(&["address", "add", address, "dev", "net1"]);
}
