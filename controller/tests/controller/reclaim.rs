//! Addresses that nobody gave back, on a real API server: what each switch changes, what an event and what a
//! look at everything finds, and that only the record is freed that was judged.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bowline_kube::ApiStore;
use kube::Client;
use multinet::store::Store;
use multinet::types::block::{AddressBlock, Entry, EntryState, Owner};
use serde::Deserialize;
use serde_json::{Value, json};
use testapi::{LossyProxy, TestApi};

use crate::common::{ACCOUNT, Controller, cluster, create, delete, eventually, get, patch};

const PODS: &str = "/api/v1/namespaces/default/pods";
const STATEFUL_SETS: &str = "/apis/apps/v1/namespaces/default/statefulsets";

/// Last number of the address that each record has in 10.1.0.0/26.
const ALIVE: u8 = 10;
const NOBODY_UP: u8 = 11;
const NOBODY_DOWN: u8 = 12;
const NOBODY_GONE: u8 = 13;
const PAST_UP: u8 = 14;
const PAST_DOWN: u8 = 15;
const STUCK_UP: u8 = 16;
const FINISHED: u8 = 17;
const NO_ADDRESS: u8 = 18;
const ORDINAL: u8 = 19;
const NO_ORDINAL: u8 = 20;
const MACHINE: u8 = 21;
const OTHER_LIFE: u8 = 22;
const ELSEWHERE: u8 = 23;

/// What is freed without any switch.
const ZOMBIES: [u8; 9] = [
    NOBODY_UP,
    NOBODY_DOWN,
    NOBODY_GONE,
    PAST_UP,
    PAST_DOWN,
    FINISHED,
    NO_ORDINAL,
    OTHER_LIFE,
    ELSEWHERE,
];

#[tokio::test(flavor = "multi_thread")]
async fn every_switch_is_honoured_and_only_what_was_judged_is_freed() {
    let (api, client) = cluster().await;
    let world = World::make(&client).await;
    for (switch, freed) in [
        ("--reclaim-extra-grace=0s", ZOMBIES.to_vec()),
        ("--reclaim=false", vec![]),
        ("--reclaim-on-ready-nodes=false", vec![NOBODY_DOWN, NOBODY_GONE, PAST_DOWN]),
        ("--reclaim-on-not-ready-nodes=false", without(&[NOBODY_DOWN, NOBODY_GONE, PAST_DOWN])),
        ("--reclaim-running-without-address=true", with(NO_ADDRESS)),
        ("--keep-stateful-set-addresses=false", with(ORDINAL)),
        ("--keep-virtual-machine-addresses=false", with(MACHINE)),
        ("--reclaim-extra-grace=1h", without(&[PAST_UP, PAST_DOWN])),
    ] {
        world.reset().await;
        let controller = start(&api, &[switch, "--reclaim-interval=1s"]).await;
        world.loses(&controller, switch, &freed).await;
        controller.stop().await;
    }
    an_event_frees_at_once(&api, &world).await;
    a_look_finds_what_no_event_tells(&api, &world).await;
    what_outlives_its_pod_leaves_a_lost_node(&api, &world).await;
    a_record_that_changed_meanwhile_stays(&api, &world).await;
}

fn with(more: u8) -> Vec<u8> {
    ZOMBIES.into_iter().chain([more]).collect()
}

fn without(kept: &[u8]) -> Vec<u8> {
    ZOMBIES.into_iter().filter(|a| !kept.contains(a)).collect()
}

async fn start(api: &TestApi, extra: &[&str]) -> Controller {
    Controller::without_webhooks(api.client(ACCOUNT).await, "one", extra).await
}

/// Pods, nodes and workloads that do not change, and a block of records of them.
struct World {
    client: Client,
    store: ApiStore,
    block: String,
    records: Vec<Entry>,
}

impl World {
    async fn make(client: &Client) -> World {
        nodes_and_owners(client).await;
        let mut records = living_and_dying(client).await;
        let alive = records[0].owner.clone();
        let nobody = |address, name: &str, node| record(address, owner(name, "gone"), node);
        records.extend([
            nobody(NOBODY_UP, "nobody-up", "up"),
            nobody(NOBODY_DOWN, "nobody-down", "down"),
            nobody(NOBODY_GONE, "nobody-gone", "gone"),
            nobody(ORDINAL, "web-0", "up"),
            nobody(NO_ORDINAL, "web-1", "up"),
            nobody(MACHINE, "virtualmachineinstance/vm", "up"),
            nobody(OTHER_LIFE, "alive", "up"),
        ]);
        // A pod of the same name in another namespace holds nothing for this one.
        let Some(Owner::Pod { name, uid, .. }) = alive else { panic!("a pod's record") };
        let elsewhere = Owner::Pod { namespace: "elsewhere".into(), name, uid };
        records.push(record(ELSEWHERE, elsewhere, "up"));
        let store = ApiStore::new(client.clone());
        let block = AddressBlock::around("first", address(ALIVE));
        let block = store.create(&block).await.unwrap().metadata.name;
        World { client: client.clone(), store, block, records }
    }

    async fn put(&self, records: &[Entry]) {
        let mut block = self.stored().await;
        block.spec.entries.clear();
        records.iter().for_each(|record| block.put(record.clone()));
        self.store.update(&block).await.unwrap();
    }

    async fn reset(&self) {
        self.put(&self.records).await;
    }

    async fn stored(&self) -> AddressBlock {
        self.store.get(None, &self.block).await.unwrap().unwrap()
    }

    async fn held(&self) -> BTreeSet<u8> {
        self.stored().await.held().map(|e| last(e.address)).collect()
    }

    /// Exactly these are freed, and several looks later the others still stand.
    async fn loses(&self, controller: &Controller, switch: &str, freed: &[u8]) {
        let all: BTreeSet<u8> = self.records.iter().map(|e| last(e.address)).collect();
        let kept = &all - &freed.iter().copied().collect();
        eventually(&format!("{switch} leaves {kept:?}"), async || {
            (self.held().await == kept).then_some(())
        })
        .await;
        // Who was freed has waited for a DEL; where nobody is, the wait is still to come.
        more_looks(controller, if freed.is_empty() { LOOKS_OF_A_WAIT } else { 2.0 }).await;
        assert_eq!(self.held().await, kept, "{switch}");
    }
}

/// Looks at everything, a second apart, in more than the time that a record on a ready node waits for its DEL.
const LOOKS_OF_A_WAIT: f64 = 5.0;

/// Waits for more looks at everything.
async fn more_looks(controller: &Controller, looks: f64) {
    let passes = "bowline_controller_job_passes_total{job=\"reclaim\"} ";
    let before = controller.metric(passes).await;
    eventually("the controller looks again", async || {
        (controller.metric(passes).await >= before + looks).then_some(())
    })
    .await;
}

fn address(last: u8) -> std::net::IpAddr {
    [10, 1, 0, last].into()
}

fn last(address: std::net::IpAddr) -> u8 {
    match address {
        std::net::IpAddr::V4(a) => a.octets()[3],
        std::net::IpAddr::V6(a) => panic!("{a} is no record of this test"),
    }
}

fn owner(name: &str, uid: &str) -> Owner {
    Owner::Pod { namespace: "default".into(), name: name.into(), uid: uid.into() }
}

fn record(last: u8, owner: Owner, node: &str) -> Entry {
    Entry {
        address: address(last),
        state: EntryState::Allocated,
        owner: Some(owner),
        interface: "eth0".into(),
        pool: "p".into(),
        sandbox_id: "sandbox".into(),
        node: node.into(),
        since_ms: 0,
        until_ms: None,
        reason: String::new(),
    }
}

/// Node `up` is ready, `down` is not, `gone` does not exist; a StatefulSet of one, a virtual machine.
async fn nodes_and_owners(client: &Client) {
    for (name, ready) in [("up", "True"), ("down", "Unknown")] {
        create(client, json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}))
            .await
            .unwrap();
        let status = json!({"status": {"conditions": [{"type": "Ready", "status": ready}]}});
        patch(client, &format!("/api/v1/nodes/{name}/status"), status).await.unwrap();
    }
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": "default"}});
    create(client, account).await.unwrap();
    let set = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"replicas": 1, "serviceName": "web", "selector": {"matchLabels": {"app": "web"}},
                 "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}},
    });
    create(client, set).await.unwrap();
    let path =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/e2e/manifests/third-party-crds.yaml");
    let text = std::fs::read_to_string(path).unwrap();
    for document in serde_yaml_ng::Deserializer::from_str(&text) {
        create(client, Value::deserialize(document).unwrap()).await.unwrap();
    }
    let machine = json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine",
                         "metadata": {"name": "vm", "namespace": "default"}, "spec": {}});
    eventually("machines are served", async || create(client, machine.clone()).await.ok()).await;
}

/// Pods in every state that counts, and the record of each.
async fn living_and_dying(client: &Client) -> Vec<Entry> {
    let container = |state: Value| json!([{"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": state}]);
    let runs = || container(json!({"running": {}}));
    let ended =
        || container(json!({"terminated": {"exitCode": 0, "finishedAt": "2026-01-01T00:00:00Z"}}));
    let running = |containers: Value| json!({"phase": "Running", "podIPs": [{"ip": "10.1.0.10"}], "podIP": "10.1.0.10", "containerStatuses": containers});
    let mut records = Vec::new();
    for (last, name, node, status, dies) in [
        (ALIVE, "alive", "up", running(runs()), false),
        (PAST_UP, "past-up", "up", running(ended()), true),
        (PAST_DOWN, "past-down", "down", running(runs()), true),
        (STUCK_UP, "stuck-up", "up", running(runs()), true),
        (
            FINISHED,
            "finished",
            "up",
            json!({"phase": "Succeeded", "containerStatuses": ended()}),
            false,
        ),
        (NO_ADDRESS, "no-address", "up", json!({"phase": "Running"}), false),
    ] {
        let made = create(client, pod(name, node)).await.unwrap();
        patch(client, &format!("{PODS}/{name}/status"), json!({"status": status})).await.unwrap();
        if dies {
            // No kubelet confirms it: the pod stays, past its grace period.
            delete(client, &format!("{PODS}/{name}?gracePeriodSeconds=1")).await.unwrap();
        }
        let uid = made["metadata"]["uid"].as_str().unwrap();
        records.push(record(last, owner(name, uid), node));
    }
    records
}

fn pod(name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}], "automountServiceAccountToken": false},
    })
}

/// A pod that is deleted loses its address long before the next look at everything, and an Event tells. Its node's
/// agent is given three seconds to be asked for it by the kubelet.
async fn an_event_frees_at_once(api: &TestApi, world: &World) {
    let client = &world.client;
    let made = create(client, pod("leaves", "up")).await.unwrap();
    let own = owner("leaves", made["metadata"]["uid"].as_str().unwrap());
    world.put(&[record(ALIVE, own, "up")]).await;
    let controller = start(api, &["--reclaim-interval=1h"]).await;
    let passes = "bowline_controller_job_passes_total{job=\"reclaim\"} ";
    eventually("a first look", async || (controller.metric(passes).await >= 1.0).then_some(()))
        .await;
    assert_eq!(world.held().await, [ALIVE].into(), "its pod exists");
    let deleted = Instant::now();
    delete(client, &format!("{PODS}/leaves?gracePeriodSeconds=0")).await.unwrap();
    eventually("the address is free", async || world.held().await.is_empty().then_some(())).await;
    let after = deleted.elapsed();
    assert!(after >= Duration::from_secs(3), "the agent's DEL comes too late after {after:?}");
    eventually("an Event says it", async || {
        let events = get(client, "/apis/events.k8s.io/v1/namespaces/default/events").await?;
        let notes = events["items"].as_array()?.iter().filter_map(|e| e["note"].as_str());
        let mut said = notes.filter(|n| n.contains("10.1.0.10 of eth0 was freed: its pod is gone"));
        said.next().map(drop)
    })
    .await;
    controller.stop().await;
}

/// A StatefulSet that shrinks is nothing that the controller watches.
async fn a_look_finds_what_no_event_tells(api: &TestApi, world: &World) {
    world.put(&[record(ORDINAL, owner("web-0", "gone"), "up")]).await;
    let controller = start(api, &["--reclaim-interval=1s"]).await;
    more_looks(&controller, LOOKS_OF_A_WAIT).await;
    assert_eq!(world.held().await, [ORDINAL].into(), "the StatefulSet has ordinal 0");
    patch(&world.client, &format!("{STATEFUL_SETS}/web"), json!({"spec": {"replicas": 0}}))
        .await
        .unwrap();
    eventually("the address is free", async || world.held().await.is_empty().then_some(())).await;
    controller.stop().await;
}

/// The ordinal keeps its address, and another node may take it over: no node holds it any more.
async fn what_outlives_its_pod_leaves_a_lost_node(api: &TestApi, world: &World) {
    let replicas = json!({"spec": {"replicas": 1}});
    patch(&world.client, &format!("{STATEFUL_SETS}/web"), replicas).await.unwrap();
    world.put(&[record(ORDINAL, owner("web-0", "gone"), "gone")]).await;
    let controller = start(api, &["--reclaim-interval=1s"]).await;
    eventually("the node is let go", async || {
        let stored = world.stored().await;
        let entry = stored.entry(address(ORDINAL)).unwrap();
        entry.node.is_empty().then_some(())
    })
    .await;
    more_looks(&controller, 2.0).await;
    let stored = world.stored().await;
    let entry = stored.entry(address(ORDINAL)).unwrap();
    assert_eq!((entry.state.is_held(), entry.sandbox_id.as_str()), (true, ""), "{entry:?}");
    assert_eq!(entry.owner, Some(owner("web-0", "gone")));
    controller.stop().await;
}

/// Between the judgement and the write somebody else takes the address.
async fn a_record_that_changed_meanwhile_stays(api: &TestApi, world: &World) {
    let made = create(&world.client, pod("heir", "up")).await.unwrap();
    let heir = owner("heir", made["metadata"]["uid"].as_str().unwrap());
    world.put(&[record(NOBODY_UP, owner("robbed", "gone"), "up")]).await;
    let proxy = LossyProxy::start(api.client(ACCOUNT).await).await;
    let (store, block) = (world.store.clone(), world.block.clone());
    let taken = record(NOBODY_UP, heir.clone(), "up");
    // The controller asks for the pod when it has judged the record.
    proxy.before(&format!("{PODS}/robbed"), async move {
        let mut block: AddressBlock = store.get(None, &block).await.unwrap().unwrap();
        block.put(taken);
        store.update(&block).await.unwrap();
    });
    let through = Client::try_from(proxy.config()).unwrap();
    let controller = Controller::without_webhooks(through, "one", &["--reclaim-interval=1s"]).await;
    eventually("the record is judged", async || proxy.has_happened().then_some(())).await;
    more_looks(&controller, 2.0).await;
    let stored = world.stored().await;
    let entry = stored.entry(address(NOBODY_UP)).unwrap();
    assert_eq!(entry.owner, Some(heir), "the heir's address was freed: {entry:?}");
    assert!(entry.state.is_held(), "{entry:?}");
    controller.stop().await;
}
