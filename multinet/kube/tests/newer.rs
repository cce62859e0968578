//! An API server whose definitions know more fields than this version.

use std::net::IpAddr;

use bowline_kube::ApiStore;
use multinet::store::Store;
use multinet::types::block::NETWORK_LABEL;
use testapi::TestApi;

/// A cluster whose definitions are of a newer version, and objects that it has written.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_newer_version_wrote_survives_our_updates() {
    use kube::api::{Api, DynamicObject, PostParams};
    use kube::core::{ApiResource, GroupVersionKind};
    use multinet::ipam::{self, View, plan_free_record};
    use multinet::types::network::Network;
    use serde_json::{Value, json};

    let api = TestApi::start(&[]).await;
    api.install_crds().await;
    let client = api.client("admin").await;
    accept_newer_fields(&client).await;
    let raw = |kind: &str, plural: &str| {
        let kind = GroupVersionKind::gvk("bowline.dev", "v1alpha1", kind);
        let resource = ApiResource::from_gvk_with_plural(&kind, plural);
        Api::<DynamicObject>::all_with(client.clone(), &resource)
    };
    let (networks, blocks) = (raw("Network", "networks"), raw("AddressBlock", "addressblocks"));
    let make = |object: Value| serde_json::from_value::<DynamicObject>(object).unwrap();
    let network = json!({
        "apiVersion": "bowline.dev/v1alpha1", "kind": "Network", "metadata": {"name": "new"},
        "spec": {"vni": 7, "newer": {"a": [1]}, "interface": {"maxQueues": 4, "newer": true},
                 "peers": [{"vtep": "192.0.2.9", "mac": "02:00:00:00:00:09", "prefixes": [],
                            "newer": "p"}]},
    });
    networks.create(&PostParams::default(), &make(network)).await.unwrap();
    let owner = json!({"kind": "Pod", "namespace": "n", "name": "p", "uid": "u"});
    let entry = |address: &str| {
        json!({
        "address": address, "state": "Allocated", "owner": owner, "interface": "eth0",
        "sandboxID": "s", "node": "n1", "sinceMs": 5, "newer": address})
    };
    let block = json!({
        "apiVersion": "bowline.dev/v1alpha1", "kind": "AddressBlock",
        "metadata": {"name": "new.10-0-0-0", "labels": {NETWORK_LABEL: "new"}},
        "spec": {"network": "new", "cidr": "10.0.0.0/26", "newer": 1,
                 "entries": [entry("10.0.0.2"), entry("10.0.0.3")]},
    });
    blocks.create(&PostParams::default(), &make(block)).await.unwrap();

    let store = ApiStore::new(client.clone());
    let mut network = store.get::<Network>(None, "new").await.unwrap().unwrap();
    network.metadata.finalizers.push("bowline.dev/in-use".into());
    let network = store.update(&network).await.unwrap();
    let mut shown = network.clone();
    shown.status.get_or_insert_default().vni = Some(7);
    store.update_status(&shown).await.unwrap();
    let stored = networks.get("new").await.unwrap().data;
    assert_eq!(stored["spec"]["newer"], json!({"a": [1]}), "{stored}");
    assert_eq!(stored["spec"]["interface"]["newer"], true, "{stored}");
    assert_eq!(stored["spec"]["peers"][0]["newer"], "p", "{stored}");
    assert_eq!(stored["status"]["vni"], 7, "{stored}");

    let freed: IpAddr = "10.0.0.2".parse().unwrap();
    ipam::modify(&store, "new", |view: &mut View| {
        let found = view.entries(|e| e.address == freed).next().map(|(_, e)| e.clone());
        assert!(plan_free_record(view, &found.unwrap(), 9));
    })
    .await
    .unwrap();
    let stored = blocks.get("new.10-0-0-0").await.unwrap().data;
    assert_eq!(stored["spec"]["newer"], 1, "{stored}");
    let entries = stored["spec"]["entries"].as_array().unwrap();
    let states: Vec<_> = entries.iter().map(|e| (&e["state"], &e["newer"])).collect();
    assert_eq!(
        states,
        [(&json!("Released"), &json!("10.0.0.2")), (&json!("Allocated"), &json!("10.0.0.3"))]
    );
}

/// Bowline's definitions as a version would install them that knows more fields.
async fn accept_newer_fields(client: &kube::Client) {
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as definitions;
    use kube::api::{Api, PostParams};
    let api = Api::<definitions::CustomResourceDefinition>::all(client.clone());
    for name in ["networks.bowline.dev", "addressblocks.bowline.dev"] {
        let mut definition = api.get(name).await.unwrap();
        let schema = definition.spec.versions[0].schema.as_mut().unwrap();
        let mut value = serde_json::to_value(&*schema).unwrap();
        open(&mut value["openAPIV3Schema"]["properties"]["spec"]);
        *schema = serde_json::from_value(value).unwrap();
        api.replace(name, &PostParams::default(), &definition).await.unwrap();
    }
    // The API server follows its own definitions a moment later.
    let known = Api::<kube::api::DynamicObject>::all_with(
        client.clone(),
        &kube::core::ApiResource::from_gvk_with_plural(
            &kube::core::GroupVersionKind::gvk("bowline.dev", "v1alpha1", "AddressBlock"),
            "addressblocks",
        ),
    );
    let probe = serde_json::json!({
        "apiVersion": "bowline.dev/v1alpha1", "kind": "AddressBlock",
        "metadata": {"name": "probe.10-9-0-0"},
        "spec": {"network": "probe", "cidr": "10.9.0.0/26", "newer": 1},
    });
    let probe: kube::api::DynamicObject = serde_json::from_value(probe).unwrap();
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while known.create(&dry, &probe).await.unwrap().data["spec"]["newer"] != 1 {
        assert!(std::time::Instant::now() < deadline, "the definitions stay as they were");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// Every object of a schema takes unknown fields.
fn open(schema: &mut serde_json::Value) {
    match schema {
        serde_json::Value::Object(fields) => {
            fields.values_mut().for_each(open);
            if fields.get("type").is_some_and(|t| t == "object")
                && !fields.contains_key("additionalProperties")
            {
                fields.insert("x-kubernetes-preserve-unknown-fields".into(), true.into());
            }
        }
        serde_json::Value::Array(list) => list.iter_mut().for_each(open),
        _ => {}
    }
}
