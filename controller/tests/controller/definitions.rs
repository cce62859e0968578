//! SpiderMultusConfigs on a real API server: the whole NetworkAttachmentDefinition of each kind, as the
//! schema's defaults and the webhooks leave it, and its life with the configuration.

use kube::Client;
use serde_json::{Value, json};

use crate::common::{Controller, cluster, create, delete, eventually, get, patch, spider};

const DEFINITIONS: &str =
    "/apis/k8s.cni.cncf.io/v1/namespaces/default/network-attachment-definitions";
const CONFIGS: &str =
    "/apis/spiderpool.spidernet.io/v2beta1/namespaces/default/spidermultusconfigs";
const RESOURCE: &str = "k8s.v1.cni.cncf.io/resourceName";

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_configuration_has_its_definition() {
    let (api, client) = cluster().await;
    let controller = Controller::start(&api, "one", &[]).await;
    for case in kinds() {
        is_written(&client, &case).await;
    }
    custom(&client).await;
    names_and_versions(&client).await;
    it_lives_with_its_configuration(&client).await;
    nobodys_is_adopted_and_anothers_is_not(&client).await;
    controller.stop().await;
}

struct Case {
    name: &'static str,
    spec: Value,
    plugins: Value,
    /// Of the device plugin, as an annotation.
    resource: Option<&'static str>,
}

fn config(name: &str, spec: &Value) -> Value {
    let mut config = spider("SpiderMultusConfig", name, spec.clone());
    config["metadata"]["namespace"] = json!("default");
    config
}

async fn definition(client: &Client, name: &str) -> Value {
    let path = format!("{DEFINITIONS}/{name}");
    eventually(&format!("definition {name}"), async || get(client, &path).await).await
}

/// The chain of a definition.
fn chain(definition: &Value) -> Value {
    let text = definition["spec"]["config"].as_str().unwrap();
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"))
}

/// Every field of the definition is the expected one.
async fn is_written(client: &Client, case: &Case) {
    let made = create(client, config(case.name, &case.spec)).await;
    let made = made.unwrap_or_else(|why| panic!("{}: {why}", case.name));
    let found = definition(client, case.name).await;
    let chain = chain(&found);
    let expected = json!({"name": case.name, "cniVersion": "0.3.1", "plugins": case.plugins});
    assert_eq!(chain, expected, "{}", case.name);
    let annotations = case.resource.map(|r| json!({RESOURCE: r}));
    assert_eq!(found["metadata"]["annotations"], json!(annotations), "{}", case.name);
    let owner = json!([{
        "apiVersion": "spiderpool.spidernet.io/v2beta1", "kind": "SpiderMultusConfig",
        "name": case.name, "uid": made["metadata"]["uid"],
        "controller": true, "blockOwnerDeletion": true,
    }]);
    assert_eq!(found["metadata"]["ownerReferences"], owner, "{}", case.name);
    let fields: Vec<&String> = found["spec"].as_object().unwrap().keys().collect();
    assert_eq!(fields, ["config"], "{}", case.name);
}

/// Each kind, with every field that upstream passes on.
fn kinds() -> Vec<Case> {
    let ipam = json!({"type": "spiderpool"});
    let pools = json!({"ipv4": ["a", "b"], "ipv6": ["c"]});
    let of_pools = json!({"type": "spiderpool", "default_ipv4_ippool": ["a", "b"], "default_ipv6_ippool": ["c"]});
    let coordinator = json!({"type": "coordinator"});
    let bond = json!({"name": "bond0", "mode": 1, "options": "miimon=100"});
    let case = |name, spec, plugins| Case { name, spec, plugins, resource: None };
    let with =
        |name, resource, spec, plugins| Case { name, spec, plugins, resource: Some(resource) };
    vec![
        case(
            "macvlan",
            json!({"cniType": "macvlan", "macvlan": {"master": ["ens1"], "mtu": 1400, "ippools": pools}}),
            json!([{"type": "macvlan", "master": "ens1", "mode": "bridge", "mtu": 1400, "ipam": of_pools}, coordinator]),
        ),
        case(
            "macvlan-bond",
            json!({"cniType": "macvlan", "macvlan": {"master": ["ens1", "ens2"], "vlanID": 100, "bond": bond}}),
            json!([
                {"type": "ifacer", "interfaces": ["ens1", "ens2"], "vlanID": 100, "bond": bond},
                {"type": "macvlan", "master": "bond0.100", "mode": "bridge", "ipam": ipam}, coordinator,
            ]),
        ),
        case(
            "ipvlan",
            json!({"cniType": "ipvlan", "enableCoordinator": false, "ipvlan": {"master": ["ens1"], "vlanID": 5}}),
            json!([
                {"type": "ifacer", "interfaces": ["ens1"], "vlanID": 5},
                {"type": "ipvlan", "master": "ens1.5", "ipam": ipam},
            ]),
        ),
        case(
            "without-ipam",
            json!({"cniType": "macvlan", "disableIPAM": true, "macvlan": {"master": ["ens1"]}}),
            json!([{"type": "macvlan", "master": "ens1", "mode": "bridge"}, coordinator]),
        ),
        case(
            "vlan",
            json!({"cniType": "vlan", "vlan": {"master": ["ens1"], "vlanID": 7, "mtu": 1400}}),
            json!([{"type": "vlan", "master": "ens1", "vlanMode": "manual", "vlanId": 7, "mtu": 1400, "ipam": ipam}, coordinator]),
        ),
        case(
            "vlan-auto",
            json!({"cniType": "vlan", "vlan": {"master": ["ens1"], "vlanMode": "auto"}}),
            json!([{"type": "vlan", "master": "ens1", "vlanMode": "auto", "ipam": ipam}, coordinator]),
        ),
        with(
            "sriov",
            "example.com/vf",
            json!({"cniType": "sriov", "chainCNIJsonData": [r#"{"type": "mine"}"#], "sriov": {
                "resourceName": "example.com/vf", "vlanID": 7, "minTxRateMbps": 10, "maxTxRateMbps": 20,
                "rdmaIsolation": true, "mtu": 9000, "ippools": {"ipv4": ["a"], "matchMasterSubnet": true}}}),
            json!([
                {"type": "sriov", "vlan": 7, "min_tx_rate": 10, "max_tx_rate": 20,
                 "ipam": {"type": "spiderpool", "default_ipv4_ippool": ["a"], "match_master_subnet": true}},
                {"type": "rdma"}, {"type": "mine"}, coordinator, {"type": "tuning", "mtu": 9000},
            ]),
        ),
        with(
            "ib-sriov",
            "example.com/ib",
            json!({"cniType": "ib-sriov", "ibsriov": {"resourceName": "example.com/ib", "pkey": "0x1"}}),
            json!([
                {"type": "ib-sriov", "pkey": "0x1", "link_state": "enable", "rdmaIsolation": true,
                 "ibKubernetesEnabled": false, "ipam": ipam},
                coordinator,
            ]),
        ),
        case(
            "ipoib",
            json!({"cniType": "ipoib", "ipoib": {"master": "ib0"}}),
            json!([{"type": "ipoib", "master": "ib0", "ipam": ipam}, coordinator]),
        ),
        with(
            "ovs",
            "ovs-cni.network.kubevirt.io/br1",
            json!({"cniType": "ovs", "ovs": {"bridge": "br1", "vlan": 3, "deviceID": "0000:01:00.1"}}),
            json!([
                {"type": "ovs", "bridge": "br1", "vlan": 3, "deviceID": "0000:01:00.1", "ipam": ipam},
                coordinator,
            ]),
        ),
        case(
            "ovs-trunk",
            json!({"cniType": "ovs", "ovs": {"bridge": "br1", "trunk": [{"id": 5}, {"minID": 6, "maxID": 9}]}}),
            json!([
                {"type": "ovs", "bridge": "br1", "trunk": [{"id": 5}, {"minID": 6, "maxID": 9}], "ipam": ipam},
                coordinator,
            ]),
        ),
        case(
            "coordinated",
            json!({"cniType": "macvlan", "macvlan": {"master": ["ens1"]}, "coordinator": {
                "mode": "underlay", "hijackCIDR": ["10.0.0.0/8"], "podMACPrefix": "0a:1b", "podDefaultRouteNIC": "net1",
                "policyRoutes": [{"dst": "10.1.0.0/16", "gw": "10.0.0.1"}], "vethLinkAddress": "169.254.100.1",
                "vethMTU": 1400, "tunePodRoutes": false, "txQueueLen": 1000, "podRPFilter": 1, "hostRuleTable": 600}}),
            json!([
                {"type": "macvlan", "master": "ens1", "mode": "bridge", "ipam": ipam},
                {"type": "coordinator", "mode": "underlay", "hijackCIDR": ["10.0.0.0/8"], "podMACPrefix": "0a:1b",
                 "podDefaultRouteNic": "net1", "policyRoutes": [{"dst": "10.1.0.0/16", "gw": "10.0.0.1"}],
                 "vethLinkAddress": "169.254.100.1", "vethMTU": 1400, "tunePodRoutes": false, "txQueueLen": 1000,
                 "podRPFilter": 1, "hostRuleTable": 600},
            ]),
        ),
    ]
}

/// What people wrote is passed on to the letter; nothing at all means the node's own file of that name.
async fn custom(client: &Client) {
    let text = "{\"type\": \"x\", \"odd\":  1}";
    let spec = json!({"cniType": "custom", "customCNI": text});
    create(client, config("custom", &spec)).await.unwrap();
    assert_eq!(definition(client, "custom").await["spec"], json!({"config": text}));
    create(client, config("empty", &json!({}))).await.unwrap();
    let spec = definition(client, "empty").await["spec"].clone();
    assert!(spec.is_null() || spec == json!({}), "{spec}");
}

async fn names_and_versions(client: &Client) {
    let mut named = config("named", &json!({"cniType": "macvlan", "macvlan": {"master": ["e"]}}));
    named["metadata"]["annotations"] = json!({
        "multus.spidernet.io/cr-name": "other", "multus.spidernet.io/cni-version": "1.0.0",
        "cni.spidernet.io/cniconfig-name": "inner", "mine": "kept",
    });
    create(client, named.clone()).await.unwrap();
    let made = definition(client, "other").await;
    let chain = chain(&made);
    assert_eq!((&chain["name"], &chain["cniVersion"]), (&json!("inner"), &json!("1.0.0")));
    assert_eq!(made["metadata"]["annotations"]["mine"], "kept");
    let moved = json!({"metadata": {"annotations": {"multus.spidernet.io/cr-name": "third"}}});
    let refused = patch(client, &format!("{CONFIGS}/named"), moved).await.unwrap_err();
    assert!(refused.contains("cannot be changed"), "{refused}");
    named["metadata"]["name"] = json!("wrong");
    named["metadata"]["annotations"] = json!({"multus.spidernet.io/cni-version": "9.0"});
    let refused = create(client, named).await.unwrap_err();
    assert!(refused.contains("multus.spidernet.io/cni-version"), "{refused}");
}

/// Whoever deletes or edits a definition gets it back, and it follows its configuration.
async fn it_lives_with_its_configuration(client: &Client) {
    let path = format!("{DEFINITIONS}/macvlan");
    let before = definition(client, "macvlan").await;
    delete(client, &path).await.unwrap();
    let again = eventually("it is made again", async || {
        get(client, &path).await.filter(|d| d["metadata"]["uid"] != before["metadata"]["uid"])
    })
    .await;
    assert_eq!(again["spec"], before["spec"]);
    let edit = json!({"spec": {"config": "{}"}, "metadata": {"ownerReferences": null}});
    patch(client, &path, edit).await.unwrap();
    eventually("it is mended", async || {
        let found = get(client, &path).await?;
        let same = |key: &str| found["metadata"][key] == before["metadata"][key];
        (found["spec"] == before["spec"] && same("ownerReferences")).then_some(())
    })
    .await;
    let two = json!({"spec": {"macvlan": {"master": ["ens1", "ens2"], "bond": {"name": "b", "mode": 4}}}});
    patch(client, &format!("{CONFIGS}/macvlan"), two).await.unwrap();
    eventually("the bond is in the chain", async || {
        let found = get(client, &path).await?;
        let chain = chain(&found);
        let bond = json!({"type": "ifacer", "interfaces": ["ens1", "ens2"], "bond": {"name": "b", "mode": 4}});
        (chain["plugins"][0] == bond && chain["plugins"][1]["master"] == "b").then_some(())
    })
    .await;
}

async fn nobodys_is_adopted_and_anothers_is_not(client: &Client) {
    let nobodys = json!({"apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
        "metadata": {"name": "found", "namespace": "default"}, "spec": {"config": "{}"}});
    create(client, nobodys).await.unwrap();
    let spec = json!({"cniType": "macvlan", "macvlan": {"master": ["e"]}});
    create(client, config("found", &spec)).await.unwrap();
    eventually("it is adopted", async || {
        let found = get(client, &format!("{DEFINITIONS}/found")).await?;
        let owner = &found["metadata"]["ownerReferences"][0]["kind"];
        (owner == "SpiderMultusConfig").then_some(())
    })
    .await;
    let mut second = config("second", &spec);
    second["metadata"]["annotations"] = json!({"multus.spidernet.io/cr-name": "ovs"});
    let refused = create(client, second).await.unwrap_err();
    assert!(refused.contains("of SpiderMultusConfig ovs"), "{refused}");
}
