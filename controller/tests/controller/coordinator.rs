//! Where the SpiderCoordinator's status comes from.

use kube::Client;
use serde_json::{Value, json};

use crate::common::{
    ACCOUNT, Controller, cluster, create, eventually, get, network, patch, spider,
};

const OBJECT: &str = "/apis/spiderpool.spidernet.io/v2beta1/spidercoordinators/default";

#[tokio::test(flavor = "multi_thread")]
async fn prefixes_come_from_whoever_gives_them() {
    let (api, client) = cluster().await;
    let controller = Controller::without_webhooks(api.client(ACCOUNT).await, "one", &[]).await;
    let namespace =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-system"}});
    // The API server makes it in its own time.
    drop(create(&client, namespace).await);
    let made = spider("SpiderCoordinator", "default", json!({"podCIDRType": "auto"}));
    create(&client, made).await.unwrap();
    // V00002 and V00010: no other CNI, no Network `default`; Services by their ServiceCIDR objects.
    says(&client, "Synced", &[], &["10.96.0.0/16"]).await;
    let more = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
                      "metadata": {"name": "more"}, "spec": {"cidrs": ["10.97.0.0/16"]}});
    create(&client, more).await.unwrap();
    // V00005.
    choose(&client, "none").await;
    says(&client, "Synced", &[], &["10.96.0.0/16", "10.97.0.0/16"]).await;
    // V00006 and V00011: nobody says it, and nothing is shown.
    choose(&client, "cluster").await;
    let reason = says(&client, "NotReady", &[], &[]).await;
    assert!(
        reason.contains("kubeadm-config") && reason.contains("set spec.podCIDRType"),
        "{reason}"
    );
    // V00009: the controller manager's flag, and before it what kubeadm was told.
    manager(&client).await;
    says(&client, "Synced", &["10.1.0.0/16"], &["10.96.0.0/16", "10.97.0.0/16"]).await;
    let told = "kind: ClusterConfiguration\nnetworking:\n  podSubnet: 10.2.0.0/16,fd00:2::/48\n";
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"ClusterConfiguration": told},
                     "metadata": {"name": "kubeadm-config", "namespace": "kube-system"}});
    create(&client, map).await.unwrap();
    // Nothing that is watched has changed.
    patch(&client, OBJECT, json!({"spec": {"hijackCIDR": ["10.8.0.0/16"]}})).await.unwrap();
    says(&client, "Synced", &["10.2.0.0/16", "fd00:2::/48"], &["10.96.0.0/16", "10.97.0.0/16"])
        .await;
    // V00001: where Bowline gives eth0.
    choose(&client, "auto").await;
    let mut pool = spider("SpiderIPPool", "own", json!({"subnet": "10.3.0.0/16", "ipVersion": 4}));
    pool["metadata"]["labels"] = json!({"bowline.dev/network": "default"});
    create(&client, pool).await.unwrap();
    create(&client, network("default", json!({"vni": 1}))).await.unwrap();
    says(&client, "Synced", &["10.3.0.0/16"], &["10.96.0.0/16", "10.97.0.0/16"]).await;
    controller.stop().await;
}

async fn choose(client: &Client, kind: &str) {
    patch(client, OBJECT, json!({"spec": {"podCIDRType": kind}})).await.unwrap();
}

/// A controller manager as kubeadm runs it.
async fn manager(client: &Client) {
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount",
                         "metadata": {"name": "default", "namespace": "kube-system"}});
    create(client, account).await.unwrap();
    let command = ["kube-controller-manager", "--cluster-cidr=10.1.0.0/16"];
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "kcm", "namespace": "kube-system", "labels": {"component": "kube-controller-manager"}},
        "spec": {"containers": [{"name": "c", "image": "i", "command": command}], "automountServiceAccountToken": false},
    });
    create(client, pod).await.unwrap();
}

/// Waits for this status; its reason.
async fn says(client: &Client, phase: &str, pods: &[&str], services: &[&str]) -> String {
    let list = |value: &Value| -> Vec<String> {
        let texts = value.as_array().into_iter().flatten().filter_map(Value::as_str);
        texts.map(str::to_owned).collect()
    };
    let what = format!("{phase}, pods {pods:?}, Services {services:?}");
    eventually(&what, async || {
        let status = get(client, OBJECT).await?["status"].clone();
        let prefixes = (list(&status["overlayPodCIDR"]), list(&status["serviceCIDR"]));
        let same = status["phase"] == phase && prefixes.0 == pods && prefixes.1 == services;
        same.then(|| status["reason"].as_str().unwrap_or_default().to_owned())
    })
    .await
}
