//! NetworkAttachmentDefinitions made from Networks and SpiderMultusConfigs.
#![allow(missing_docs, reason = "a test has no users")]

mod common;

use common::parse;
use multinet::definition::{check_adoption, injection, multus_definition, network_definition};
use multinet::rules::validate_multus_config;
use multinet::types::meta::Resource;
use multinet::types::multus::SpiderMultusConfig;
use multinet::types::network::Network;
use serde_json::{Value, json};

fn object<R: Resource>(metadata: &str, spec: &str) -> R {
    let text = format!(
        "apiVersion: {}\nkind: {}\nmetadata: {metadata}\nspec: {spec}",
        R::API_VERSION,
        R::KIND
    );
    parse(serde_yaml_ng::from_str(&text).unwrap())
}

fn config(spec: &str) -> SpiderMultusConfig {
    let config: SpiderMultusConfig = object("{name: c, namespace: n, uid: u}", spec);
    assert_eq!(validate_multus_config(&config), Vec::new(), "{spec}");
    config
}

/// The chain of a configuration.
fn plugins(spec: &str) -> Value {
    let text = multus_definition(&config(spec)).spec.config.unwrap();
    let value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&value["name"], &value["cniVersion"]), (&json!("c"), &json!("0.3.1")));
    value["plugins"].clone()
}

#[test]
fn networks() {
    let network: Network = object("{name: blue, uid: u}", "{vni: 5}");
    let definition = network_definition(&network, "shop");
    assert_eq!(definition.metadata.name, "blue");
    assert_eq!(definition.metadata.namespace.as_deref(), Some("shop"));
    assert_eq!(definition.metadata.owner_references[0].kind, "Network");
    assert_eq!(definition.metadata.labels["bowline.dev/network"], "blue");
    let config: Value = serde_json::from_str(&definition.spec.config.unwrap()).unwrap();
    let expected =
        json!({"cniVersion": "1.0.0", "name": "blue", "type": "bowline", "network": "blue"});
    assert_eq!(config, expected);
}

#[test]
fn chains() {
    let ipam = json!({"type": "spiderpool"});
    for (spec, expected) in [
        // M00001 to M00003, M00017: plain types; without the coordinator, without IPAM.
        (
            "{cniType: macvlan, macvlan: {master: [ens1], ippools: {ipv4: [a, b], ipv6: [c]}}}",
            json!([
                {"type": "macvlan", "master": "ens1", "mode": "bridge", "ipam": {"type": "spiderpool",
                 "default_ipv4_ippool": ["a", "b"], "default_ipv6_ippool": ["c"]}},
                {"type": "coordinator"}
            ]),
        ),
        (
            "{cniType: ipvlan, enableCoordinator: false, ipvlan: {master: [ens1], mtu: 1400}}",
            json!([{"type": "ipvlan", "master": "ens1", "mtu": 1400, "ipam": ipam}]),
        ),
        (
            "{cniType: macvlan, disableIPAM: true, enableCoordinator: false, macvlan: {master: [e]}}",
            json!([{"type": "macvlan", "master": "e", "mode": "bridge"}]),
        ),
        // M00006: a VLAN on a bond of two.
        (
            "{cniType: macvlan, enableCoordinator: false, macvlan: {master: [a, b], vlanID: 100, \
              bond: {name: bond0, mode: 1, options: 'miimon=100'}}}",
            json!([
                {"type": "ifacer", "interfaces": ["a", "b"], "vlanID": 100,
                 "bond": {"name": "bond0", "mode": 1, "options": "miimon=100"}},
                {"type": "macvlan", "master": "bond0.100", "mode": "bridge", "ipam": ipam}
            ]),
        ),
        (
            "{cniType: ipvlan, enableCoordinator: false, ipvlan: {master: [a], vlanID: 5}}",
            json!([
                {"type": "ifacer", "interfaces": ["a"], "vlanID": 5},
                {"type": "ipvlan", "master": "a.5", "ipam": ipam}
            ]),
        ),
        // M00038 to M00040: the VLAN device itself.
        (
            "{cniType: vlan, enableCoordinator: false, vlan: {master: [a], vlanID: 5}}",
            json!([{"type": "vlan", "master": "a", "vlanId": 5, "ipam": ipam}]),
        ),
        (
            "{cniType: vlan, enableCoordinator: false, vlan: {master: [a], vlanMode: auto}}",
            json!([{"type": "vlan", "master": "a", "vlanMode": "auto", "ipam": ipam}]),
        ),
        (
            "{cniType: vlan, enableCoordinator: false, vlan: {master: [a, b], vlanID: 0, \
              bond: {name: bond0, mode: 0}}}",
            json!([
                {"type": "ifacer", "interfaces": ["a", "b"], "bond": {"name": "bond0", "mode": 0}},
                {"type": "vlan", "master": "bond0", "vlanId": 0, "ipam": ipam}
            ]),
        ),
        // SR-IOV: RDMA after the function, the user's plugin, the coordinator, the MTU last.
        (
            "{cniType: sriov, chainCNIJsonData: ['{\"type\": \"mine\"}'], sriov: {resourceName: v/r, \
              vlanID: 7, minTxRateMbps: 1, maxTxRateMbps: 2, rdmaIsolation: true, mtu: 9000, \
              ippools: {matchMasterSubnet: true}}}",
            json!([
                {"type": "sriov", "vlan": 7, "min_tx_rate": 1, "max_tx_rate": 2,
                 "ipam": {"type": "spiderpool", "match_master_subnet": true}},
                {"type": "rdma"}, {"type": "mine"}, {"type": "coordinator"},
                {"type": "tuning", "mtu": 9000}
            ]),
        ),
        (
            "{cniType: ib-sriov, enableCoordinator: false, ibsriov: {resourceName: v/r, pkey: '1'}}",
            json!([{"type": "ib-sriov", "pkey": "1", "link_state": "enable", "rdmaIsolation": true,
                    "ibKubernetesEnabled": false, "ipam": ipam}]),
        ),
        (
            "{cniType: ipoib, enableCoordinator: false, ipoib: {master: ib0}}",
            json!([{"type": "ipoib", "master": "ib0", "ipam": ipam}]),
        ),
        (
            "{cniType: ovs, enableCoordinator: false, ovs: {bridge: br0, \
              trunk: [{id: 5}, {minID: 6, maxID: 9}], deviceID: '0000:01:00.1'}}",
            json!([{"type": "ovs", "bridge": "br0", "trunk": [{"id": 5}, {"minID": 6, "maxID": 9}],
                    "deviceID": "0000:01:00.1", "ipam": ipam}]),
        ),
    ] {
        assert_eq!(plugins(spec), expected, "{spec}");
    }
}

/// M00022 to M00026: every field reaches the plugin, podRPFilter and hostRuleTable too.
#[test]
fn coordinators_in_chains() {
    let spec = "{cniType: macvlan, macvlan: {master: [e]}, coordinator: {mode: overlay, \
                hijackCIDR: [10.0.0.0/8], policyRoutes: [{dst: 10.1.0.0/16, gw: 10.0.0.1}], \
                podMACPrefix: '0a:1b', podDefaultRouteNIC: net1, vethLinkAddress: 169.254.100.1, \
                vethMTU: 1400, tunePodRoutes: false, txQueueLen: 1000, podRPFilter: 1, \
                hostRuleTable: 600}}";
    let expected = json!({
        "type": "coordinator", "mode": "overlay", "hijackCIDR": ["10.0.0.0/8"],
        "policyRoutes": [{"dst": "10.1.0.0/16", "gw": "10.0.0.1"}], "podMACPrefix": "0a:1b",
        "podDefaultRouteNic": "net1", "vethLinkAddress": "169.254.100.1", "vethMTU": 1400,
        "tunePodRoutes": false, "txQueueLen": 1000, "podRPFilter": 1, "hostRuleTable": 600,
    });
    assert_eq!(plugins(spec)[1], expected);
}

#[test]
fn custom_configurations_are_taken_as_they_are() {
    let text = "{\"type\": \"x\", \"odd\":  1}";
    let custom = config(&format!("{{cniType: custom, customCNI: '{text}'}}"));
    assert_eq!(multus_definition(&custom).spec.config.as_deref(), Some(text));
    // M00019: the file of that name on the node.
    assert_eq!(multus_definition(&config("{}")).spec.config, None);
}

#[test]
fn names_versions_and_resources() {
    let metadata = "{name: c, namespace: n, annotations: {multus.spidernet.io/cr-name: other, \
                    multus.spidernet.io/cni-version: 1.0.0, cni.spidernet.io/cniconfig-name: inner, \
                    mine: kept, kubectl.kubernetes.io/last-applied-configuration: x}}";
    let sriov = "{cniType: sriov, sriov: {resourceName: v/r}}";
    let definition = multus_definition(&object(metadata, sriov));
    assert_eq!(definition.metadata.name, "other");
    let text: Value = serde_json::from_str(&definition.spec.config.unwrap()).unwrap();
    assert_eq!((&text["name"], &text["cniVersion"]), (&json!("inner"), &json!("1.0.0")));
    let annotations = &definition.metadata.annotations;
    assert_eq!(annotations["k8s.v1.cni.cncf.io/resourceName"], "v/r");
    assert_eq!(annotations["mine"], "kept");
    assert!(!annotations.contains_key("kubectl.kubernetes.io/last-applied-configuration"));
    let ovs = multus_definition(&config("{cniType: ovs, ovs: {bridge: br0, deviceID: x}}"));
    let resource = &ovs.metadata.annotations["k8s.v1.cni.cncf.io/resourceName"];
    assert_eq!(resource, "ovs-cni.network.kubevirt.io/br0");
}

/// M00014: what nobody owns is adopted; another's is not.
#[test]
fn adoption() {
    let mine = config("{cniType: macvlan, macvlan: {master: [e]}}");
    assert_eq!(check_adoption(&mine, None), Ok(()));
    let own = multus_definition(&mine);
    assert_eq!(check_adoption(&mine, Some(&own)), Ok(()));
    let mut nobodys = own.clone();
    nobodys.metadata.owner_references.clear();
    assert_eq!(check_adoption(&mine, Some(&nobodys)), Ok(()));
    let mut other = own;
    other.metadata.owner_references[0].name = "d".into();
    other.metadata.owner_references[0].uid = "v".into();
    let problem = check_adoption(&mine, Some(&other)).unwrap_err();
    assert!(problem.to_string().contains("of SpiderMultusConfig d"), "{problem}");
}

/// M00027 to M00032, H00001.
#[test]
fn injection_by_annotation() {
    let key = "cni.spidernet.io/rdma-resource-inject";
    let make = |name: &str, value: &str, master: &str| -> SpiderMultusConfig {
        object(
            &format!("{{name: {name}, namespace: n, annotations: {{{key}: {value}}}}}"),
            &format!(
                "{{cniType: macvlan, macvlan: {{master: [{master}], rdmaResourceName: v/{master}, \
                      ippools: {{ipv4: [p]}}}}}}"
            ),
        )
    };
    let configs = [make("z", "gpu", "eth1"), make("a", "gpu", "eth2"), make("b", "other", "eth3")];
    let notes = |value: &str| [(key.to_string(), value.to_string())].into();
    let none = std::collections::BTreeMap::new();
    let found = injection(&notes("gpu"), &none, configs.iter()).unwrap().unwrap();
    assert_eq!(found.networks, "n/z,n/a", "by master");
    assert_eq!(found.resources, ["v/eth1", "v/eth2"]);
    // The pod's word goes before the namespace's.
    let found = injection(&notes("other"), &notes("gpu"), configs.iter()).unwrap().unwrap();
    assert_eq!(found.networks, "n/b");
    let found = injection(&none, &notes("other"), configs.iter()).unwrap().unwrap();
    assert_eq!(found.networks, "n/b");
    assert_eq!(injection(&none, &none, configs.iter()), Ok(None));
    let problem = injection(&notes("no"), &none, configs.iter()).unwrap_err();
    assert!(problem.message.contains("is carried by no SpiderMultusConfig"), "{problem}");
}
