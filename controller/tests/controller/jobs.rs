//! What the leader keeps in order, on a real API server.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::common::{
    Controller, NAMESPACE, all, cluster, create, delete, eventually, get, network, patch, spider,
};
use bowline_kube::ApiStore;
use controller::options::Names;
use kube::Client;
use multinet::store::Store;
use multinet::types::block::{AddressBlock, Entry, EntryState, Owner};
use multinet::types::network::Network;
use serde_json::{Value, json};

const NETWORKS: &str = "/apis/bowline.dev/v1alpha1/networks";
const SPIDER: &str = "/apis/spiderpool.spidernet.io/v2beta1";
const DEFINITIONS: &str =
    "/apis/k8s.cni.cncf.io/v1/namespaces/default/network-attachment-definitions";

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_keeps_networks_definitions_pools_and_addresses_in_order() {
    let (api, client) = cluster().await;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": "default"}});
    create(&client, account).await.unwrap();
    let controller = Controller::start(&api, "one", &[]).await;
    vnis(&client).await;
    definitions(&client).await;
    projections_and_reclaim(&client, &controller).await;
    spiderpools_endpoints_let_go(&client).await;
    a_deleted_node(&client).await;
    a_finalizer_names_holders(&client).await;
    automatic_pools(&client).await;
    nothing_was_forbidden(&controller).await;
    controller.stop().await;
    uninstalling(&client).await;
}

/// Every job's last pass succeeded with the rights that an installation grants.
async fn nothing_was_forbidden(controller: &Controller) {
    for job in [
        "networks",
        "definitions",
        "pools",
        "endpoints",
        "auto-pools",
        "coordinator",
        "reclaim",
        "nodes",
        "policies",
    ] {
        let label = format!("{{job=\"{job}\"}} ");
        let passes =
            controller.metric(&format!("bowline_controller_job_passes_total{label}")).await;
        let failures =
            controller.metric(&format!("bowline_controller_job_failures_total{label}")).await;
        assert!(
            passes >= 1.0 && failures < 1.0,
            "{job}: {failures} of {passes} passes failed, see the log"
        );
    }
}

/// Afterwards everything can be deleted, and nobody is asked.
async fn uninstalling(client: &Client) {
    let names = Names { namespace: NAMESPACE.into(), webhook_configuration: "bowline".into() };
    let before = get(client, &format!("{SPIDER}/spidersubnets/s1")).await.unwrap();
    assert_eq!(before["metadata"]["finalizers"], json!(["spiderpool.spidernet.io"]));
    controller::uninstall::run(client.clone(), &names).await.unwrap();
    let hook = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/bowline";
    assert_eq!(get(client, hook).await, None);
    for path in
        [format!("{SPIDER}/spidersubnets"), format!("{SPIDER}/spiderippools"), NETWORKS.into()]
    {
        let all = get(client, &path).await.unwrap();
        let items = all["items"].as_array().unwrap();
        assert!(items.iter().all(|o| o["metadata"]["finalizers"].is_null()), "{all}");
        for item in items {
            let name = item["metadata"]["name"].as_str().unwrap();
            delete(client, &format!("{path}/{name}")).await.unwrap();
            assert_eq!(get(client, &format!("{path}/{name}")).await, None, "gone at once");
        }
    }
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == kind)
}

async fn vnis(client: &Client) {
    create(client, network("asked", json!({"vni": 1}))).await.unwrap();
    for name in ["first", "second"] {
        create(client, network(name, json!({}))).await.unwrap();
    }
    let store = ApiStore::new(client.clone());
    let vnis = eventually("both have a VNI", async || {
        let all = all::<Network>(&store).await;
        let vni = |name: &str| all.iter().find(|n| n.name() == name)?.status.as_ref()?.vni;
        Some([vni("first")?, vni("second")?])
    })
    .await;
    let mut sorted = vnis;
    sorted.sort_unstable();
    assert_eq!(sorted, [2, 3], "the lowest that are free");
    // Two leaders gave the same number: a status says anything.
    let taken = json!({"status": {"vni": vnis[0]}});
    patch(client, &format!("{NETWORKS}/second/status"), taken).await.unwrap();
    eventually("the younger gets another", async || {
        let second: Network = store.get(None, "second").await.unwrap()?;
        let status = second.status?;
        (status.vni != Some(vnis[0])).then_some(())
    })
    .await;
    let ready = eventually("it is ready", async || {
        let second = get(client, &format!("{NETWORKS}/second")).await?;
        condition(&second, "Ready").filter(|c| c["status"] == "True").cloned()
    })
    .await;
    assert_eq!(ready["reason"], "Ready");
    assert_eq!(get(client, &format!("{NETWORKS}/first")).await.unwrap()["status"]["mtu"], 1450);
}

async fn definitions(client: &Client) {
    let selector =
        json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "default"}}});
    create(client, network("green", selector)).await.unwrap();
    let made = eventually("the Network has a definition", async || {
        get(client, &format!("{DEFINITIONS}/green")).await
    })
    .await;
    let config: Value = serde_json::from_str(made["spec"]["config"].as_str().unwrap()).unwrap();
    assert_eq!((&config["network"], &config["type"]), (&json!("green"), &json!("bowline")));
    assert_eq!(made["metadata"]["ownerReferences"][0]["kind"], "Network");
    // Whoever edits or deletes it gets it back.
    patch(client, &format!("{DEFINITIONS}/green"), json!({"spec": {"config": "{}"}}))
        .await
        .unwrap();
    eventually("it is mended", async || {
        let found = get(client, &format!("{DEFINITIONS}/green")).await?;
        (found["spec"] == made["spec"]).then_some(())
    })
    .await;
    delete(client, &format!("{DEFINITIONS}/green")).await.unwrap();
    eventually("it is made again", async || get(client, &format!("{DEFINITIONS}/green")).await)
        .await;
    patch(client, &format!("{NETWORKS}/green"), json!({"spec": {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "other"}}}}))
        .await
        .unwrap();
    eventually("it goes where nobody may attach", async || {
        get(client, &format!("{DEFINITIONS}/green")).await.is_none().then_some(())
    })
    .await;
    let mut config = spider(
        "SpiderMultusConfig",
        "mv",
        json!({"cniType": "macvlan", "macvlan": {"master": ["eth0"]}}),
    );
    config["metadata"]["namespace"] = json!("default");
    create(client, config).await.unwrap();
    let made = eventually("the configuration has one", async || {
        get(client, &format!("{DEFINITIONS}/mv")).await
    })
    .await;
    let config: Value = serde_json::from_str(made["spec"]["config"].as_str().unwrap()).unwrap();
    assert_eq!(config["plugins"][0]["type"], "macvlan");
    assert_eq!(made["metadata"]["ownerReferences"][0]["kind"], "SpiderMultusConfig");
}

fn entry(address: &str, pool: &str, owner: Owner, node: &str) -> Entry {
    Entry {
        address: address.parse().unwrap(),
        state: EntryState::Allocated,
        owner: Some(owner),
        interface: "eth0".into(),
        pool: pool.into(),
        sandbox_id: "sandbox".into(),
        node: node.into(),
        since_ms: 0,
        until_ms: None,
        reason: String::new(),
    }
}

fn owner(name: &str, uid: &str) -> Owner {
    Owner::Pod { namespace: "default".into(), name: name.into(), uid: uid.into() }
}

async fn node(client: &Client, name: &str) {
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
    create(client, node).await.unwrap();
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    patch(client, &format!("/api/v1/nodes/{name}/status"), ready).await.unwrap();
}

async fn pool(client: &Client, name: &str, network: &str, ips: &str) {
    let subnet = multinet::range::Family::V4.address(
        multinet::range::number(ips.split('-').next().unwrap().parse::<IpAddr>().unwrap()) & !0xff,
    );
    let mut pool =
        spider("SpiderIPPool", name, json!({"subnet": format!("{subnet}/24"), "ips": [ips]}));
    pool["metadata"]["labels"] = json!({"bowline.dev/network": network});
    create(client, pool).await.unwrap();
}

/// A pod that lives keeps its address, one that never was loses it.
async fn projections_and_reclaim(client: &Client, controller: &Controller) {
    node(client, "n1").await;
    pool(client, "p-first", "first", "10.1.0.10-10.1.0.19").await;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "alive", "namespace": "default"},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}], "automountServiceAccountToken": false},
    });
    let alive = create(client, pod).await.unwrap();
    let uid = alive["metadata"]["uid"].as_str().unwrap();
    let store = ApiStore::new(client.clone());
    let mut block = AddressBlock::around("first", "10.1.0.10".parse().unwrap());
    block.put(entry("10.1.0.10", "p-first", owner("alive", uid), "n1"));
    block.put(entry("10.1.0.11", "p-first", owner("zombie", "nobody"), "n1"));
    // The successor of the same name has another UID.
    block.put(entry("10.1.0.12", "p-first", owner("alive", "before"), "n1"));
    let name = store.create(&block).await.unwrap().metadata.name;
    eventually("addresses of nobody are free", async || {
        let block: AddressBlock = store.get(None, &name).await.unwrap()?;
        let held: Vec<String> = block.held().map(|e| e.address.to_string()).collect();
        (held == ["10.1.0.10"]).then_some(())
    })
    .await;
    let shown = eventually("the pool counts", async || {
        let pool = get(client, &format!("{SPIDER}/spiderippools/p-first")).await?;
        (pool["status"]["allocatedIPCount"] == 1).then_some(pool)
    })
    .await;
    assert_eq!(shown["status"]["totalIPCount"], 10);
    let list: Value =
        serde_json::from_str(shown["status"]["allocatedIPs"].as_str().unwrap()).unwrap();
    assert_eq!(list, json!({"10.1.0.10": {"pod": "default/alive", "podUid": uid}}));
    // It may have been written while the record of the pod's predecessor was still there.
    let endpoint = eventually("the pod has an endpoint with its own address", async || {
        let path = format!("{SPIDER}/namespaces/default/spiderendpoints/alive");
        let endpoint = get(client, &path).await?;
        let shown = &endpoint["status"]["current"]["ips"][0]["ipv4"];
        (shown == "10.1.0.10/24").then_some(endpoint)
    })
    .await;
    assert_eq!(endpoint["metadata"]["ownerReferences"][0]["uid"], uid);
    let free = r#"bowline_controller_pool_free_addresses{pool="p-first",network="first"} "#;
    assert!(
        (controller.metric(free).await - 9.0).abs() < 0.1,
        "{}",
        controller.get("/metrics").await
    );
    eventually("the Network counts", async || {
        let first = get(client, &format!("{NETWORKS}/first")).await?;
        (first["status"]["attachments"] == 1).then_some(())
    })
    .await;
}

/// After a switch-over nobody takes Spiderpool's finalizers away, for which namespaces would wait.
async fn spiderpools_endpoints_let_go(client: &Client) {
    let endpoints = format!("{SPIDER}/namespaces/default/spiderendpoints");
    let finalizers = json!(["spiderpool.spidernet.io"]);
    let current = json!({"uid": "gone", "node": "n1", "ips": []});
    let left = json!({
        "apiVersion": "spiderpool.spidernet.io/v2beta1", "kind": "SpiderEndpoint",
        "metadata": {"name": "left", "namespace": "default", "finalizers": finalizers.clone()},
        "status": {"current": current, "ownerControllerType": "Pod", "ownerControllerName": "left"},
    });
    create(client, left).await.unwrap();
    let held = json!({"metadata": {"finalizers": finalizers}});
    patch(client, &format!("{endpoints}/alive"), held).await.unwrap();
    let seen = json!({"metadata": {"labels": {"seen": "again"}}});
    patch(client, "/api/v1/namespaces/default/pods/alive", seen).await.unwrap();
    eventually("the one of a pod that is gone goes", async || {
        get(client, &format!("{endpoints}/left")).await.is_none().then_some(())
    })
    .await;
    eventually("the one of a pod that runs stays, without finalizer", async || {
        let alive = get(client, &format!("{endpoints}/alive")).await?;
        alive["metadata"]["finalizers"].is_null().then_some(())
    })
    .await;
}

async fn a_deleted_node(client: &Client) {
    let store = ApiStore::new(client.clone());
    let mut block = AddressBlock::around("first", "10.1.0.64".parse().unwrap());
    block.spec.node = Some("gone".into());
    block.put(entry("10.1.0.70", "p-first", Owner::Node { name: "gone".into() }, "gone"));
    let name = store.create(&block).await.unwrap().metadata.name;
    eventually("what a deleted node held is free", async || {
        let block: AddressBlock = store.get(None, &name).await.unwrap()?;
        (block.spec.node.is_none() && block.is_idle()).then_some(())
    })
    .await;
}

/// Networks and pools wait for the last address, and say for whose.
async fn a_finalizer_names_holders(client: &Client) {
    let path = format!("{NETWORKS}/first");
    let refused = delete(client, &path).await.unwrap_err();
    assert!(refused.contains("pod default/alive"), "{refused}");
    // The webhook's message is not the safety: the finalizer holds without it.
    let hook = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/bowline";
    delete(client, hook).await.unwrap();
    eventually("the deletion is asked for", async || delete(client, &path).await.ok()).await;
    let waiting = eventually("the Network says whom it waits for", async || {
        let first = get(client, &path).await?;
        condition(&first, "Terminating").cloned()
    })
    .await;
    assert!(
        waiting["message"].as_str().unwrap().contains("pod default/alive (10.1.0.10)"),
        "{waiting}"
    );
    delete(client, "/api/v1/namespaces/default/pods/alive?gracePeriodSeconds=0").await.unwrap();
    eventually("it goes with the last holder", async || {
        get(client, &path).await.is_none().then_some(())
    })
    .await;
}

fn deployment(replicas: u32) -> Value {
    let annotation = r#"{"ipv4": ["s1"]}"#;
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}, "annotations": {
                    "ipam.spidernet.io/subnet": annotation, "ipam.spidernet.io/ippool-ip-number": "+1"}},
                "spec": {"containers": [{"name": "c", "image": "i"}]},
            },
        },
    })
}

async fn automatic_pools(client: &Client) {
    let subnet = json!({"subnet": "10.7.0.0/24", "ips": ["10.7.0.10-10.7.0.40"]});
    create(client, spider("SpiderSubnet", "s1", subnet)).await.unwrap();
    create(client, deployment(2)).await.unwrap();
    let pools = format!(
        "{SPIDER}/spiderippools?labelSelector=ipam.spidernet.io/owner-application-name=web"
    );
    let ips = async |wanted: Option<Value>| {
        let found = get(client, &pools).await?;
        let ips = found["items"].as_array()?.first().map(|p| p["spec"]["ips"].clone());
        (ips == wanted).then_some(())
    };
    eventually("the application has a pool", async || {
        ips(Some(json!(["10.7.0.10-10.7.0.12"]))).await
    })
    .await;
    let path = "/apis/apps/v1/namespaces/default/deployments/web";
    patch(client, path, json!({"spec": {"replicas": 4}})).await.unwrap();
    eventually("it grows", async || ips(Some(json!(["10.7.0.10-10.7.0.14"]))).await).await;
    let pool = get(client, &pools).await.unwrap()["items"][0]["metadata"]["name"].clone();
    let pool = format!("{SPIDER}/spiderippools/{}", pool.as_str().unwrap());
    // Nobody but the controller may; who is taken for it here.
    let others =
        json!({"spec": {"podAffinity": {"matchLabels": {"ipam.spidernet.io/app-name": "db"}}}});
    patch(client, &pool, others).await.unwrap();
    eventually("it is the application's again", async || {
        let pool = get(client, &pool).await?;
        let labels = &pool["spec"]["podAffinity"]["matchLabels"];
        (labels["ipam.spidernet.io/app-name"] == "web").then_some(())
    })
    .await;
    patch(client, path, json!({"spec": {"replicas": 40}})).await.unwrap();
    eventually("the application and the subnet are told what is missing", async || {
        let events = get(client, "/apis/events.k8s.io/v1/namespaces/default/events").await?;
        let missing = |e: &&Value| {
            let note = e["note"].as_str().unwrap_or_default();
            e["reason"] == "NoAutomaticPool" && note.contains("26 free addresses, 36 more")
        };
        let told = events["items"].as_array()?.iter().filter(missing);
        let kinds: BTreeSet<_> = told.filter_map(|e| e["regarding"]["kind"].as_str()).collect();
        (kinds == ["Deployment", "SpiderSubnet"].into()).then_some(())
    })
    .await;
    patch(client, path, json!({"spec": {"replicas": 1}})).await.unwrap();
    eventually("it shrinks", async || ips(Some(json!(["10.7.0.10-10.7.0.11"]))).await).await;
    let shown = eventually("the subnet shows it", async || {
        let subnet = get(client, &format!("{SPIDER}/spidersubnets/s1")).await?;
        (subnet["status"]["allocatedIPCount"] == 2).then(|| subnet["status"].clone())
    })
    .await;
    assert!(
        shown["controlledIPPools"].as_str().unwrap().contains("apps_v1_Deployment_default_web")
    );
    delete(client, path).await.unwrap();
    eventually("it goes with the application", async || ips(None).await).await;
}
