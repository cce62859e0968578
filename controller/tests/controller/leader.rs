//! Several replicas: one leads, another follows it, and two that both believe they lead do no harm. The
//! certificate is replaced under way.

use crate::common::{Controller, NAMESPACE, all, cluster, create, eventually, get, network, patch};
use bowline_kube::ApiStore;
use kube::Client;
use multinet::types::network::Network;
use serde_json::{Value, json};
use std::collections::BTreeSet;

#[tokio::test(flavor = "multi_thread")]
async fn another_replica_takes_over_and_two_leaders_do_no_harm() {
    let (api, client) = cluster().await;
    let first = Controller::start(&api, "first", &[]).await;
    let second = Controller::start(&api, "second", &[]).await;
    let leads = "bowline_controller_leads ";
    eventually("the first leads", async || (first.metric(leads).await > 0.5).then_some(())).await;
    assert!(second.metric(leads).await < 0.5, "one leads");
    first.crash().await;
    eventually("the second takes over", async || (second.metric(leads).await > 0.5).then_some(()))
        .await;
    // A third that uses another Lease believes that it leads as well.
    let third = Controller::start(&api, "third", &["--lease=another"]).await;
    eventually("so does the third", async || (third.metric(leads).await > 0.5).then_some(())).await;
    both_number_networks(&client).await;
    spiderpool_withholds(&client, &third).await;
    third.stop().await;
    second.stop().await;
    let lease = lease_path("bowline-controller");
    let holder = get(&client, &lease).await.unwrap()["spec"]["holderIdentity"].clone();
    assert!(holder == json!("") || holder.is_null(), "given back at the end: {holder}");
}

fn lease_path(name: &str) -> String {
    format!("/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/{name}")
}

async fn both_number_networks(client: &Client) {
    let store = ApiStore::new(client.clone());
    for i in 0..30 {
        create(client, network(&format!("n{i}"), json!({}))).await.unwrap();
    }
    eventually("each of 30 Networks has a VNI of its own and is ready", async || {
        let networks = all::<Network>(&store).await;
        let ready = networks.iter().filter(|n| {
            let conditions = n.status.as_ref().map_or(&[][..], |s| &s.conditions);
            conditions.iter().any(|c| c.kind == "Ready" && c.status == "True")
        });
        let vnis: BTreeSet<u32> = ready.filter_map(Network::vni).collect();
        (vnis.len() == 30).then_some(())
    })
    .await;
}

/// While upstream's controller lives, Networks say that addresses are not written.
async fn spiderpool_withholds(client: &Client, controller: &Controller) {
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "spiderpool-controller-leases", "namespace": "kube-system"},
        "spec": {"holderIdentity": "spiderpool-controller-0", "leaseDurationSeconds": 15,
                 "renewTime": "2026-01-01T00:00:00.000000Z"},
    });
    let namespace =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-system"}});
    drop(create(client, namespace).await);
    create(client, lease).await.unwrap();
    let path =
        "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/spiderpool-controller-leases";
    let ready = eventually("a Network says why it is not ready", async || {
        let renew = json!({"spec": {"renewTime": bowline_kube::now().replace('Z', ".000000Z")}});
        patch(client, path, renew).await.unwrap();
        let found = get(client, "/apis/bowline.dev/v1alpha1/networks/n1").await?;
        let conditions: Vec<Value> = found["status"]["conditions"].as_array()?.clone();
        conditions.into_iter().find(|c| c["reason"] == "SpiderpoolIsRunning")
    })
    .await;
    assert!(ready["message"].as_str().unwrap().contains("spiderpool-controller-leases"), "{ready}");
    eventually("the metric says it", async || {
        (controller.metric("bowline_controller_writes_withheld ").await > 0.5).then_some(())
    })
    .await;
}
