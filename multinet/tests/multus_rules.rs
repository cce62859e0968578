//! Rules of SpiderMultusConfigs (reference, section 1.6): a good one passes, and one with a single fault
//! is refused with its sentence.
#![allow(missing_docs, reason = "a test has no users")]

mod common;

use common::{object, table, texts};
use multinet::rules::{validate_multus_config, validate_multus_config_update};
use multinet::types::multus::SpiderMultusConfig;

#[test]
fn multus_configurations() {
    table(
        |spec| validate_multus_config(&object("{name: c, namespace: n}", spec)),
        &[
            (
                "{cniType: macvlan, macvlan: {master: [eth0], vlanID: 100, ippools: {ipv4: [p]}}}",
                "",
            ),
            (
                "{cniType: ipvlan, ipvlan: {master: [a, b], bond: {name: bond0, mode: 6, \
                 options: 'miimon=100;primary=a'}}}",
                "",
            ),
            ("{cniType: vlan, vlan: {master: [eth0], vlanID: 7}}", ""),
            ("{cniType: vlan, vlan: {master: [eth0], vlanMode: auto}}", ""),
            (
                "{cniType: sriov, sriov: {resourceName: v.com/s, minTxRateMbps: 1, \
                 maxTxRateMbps: 2, ippools: {ipv4: [p], matchMasterSubnet: true}}}",
                "",
            ),
            ("{cniType: ib-sriov, ibsriov: {resourceName: v.com/i, linkState: auto}}", ""),
            ("{cniType: ipoib, ipoib: {master: ib0}}", ""),
            ("{cniType: ovs, ovs: {bridge: br0, trunk: [{id: 5}, {minID: 6, maxID: 9}]}}", ""),
            ("{cniType: custom, customCNI: '{\"type\": \"x\"}'}", ""),
            ("{cniType: custom, customCNI: '{\"plugins\": [{\"type\": \"x\"}]}'}", ""),
            ("{cniType: custom}", ""),
            ("{}", ""),
            ("{cniType: other}", "spec.cniType: \"other\": is not one of macvlan"),
            ("{cniType: macvlan}", "spec.macvlan: is missing; spec.cniType macvlan needs it"),
            (
                "{cniType: macvlan, macvlan: {master: [a]}, ipvlan: {master: [a]}}",
                "spec.ipvlan: belongs to spec.cniType ipvlan",
            ),
            (
                "{cniType: ib-sriov, ibsriov: {resourceName: r}, customCNI: '{\"type\": \"x\"}'}",
                "spec.customCNI: belongs to spec.cniType custom",
            ),
            (
                "{cniType: macvlan, macvlan: {master: []}}",
                "spec.macvlan.master: is missing or empty",
            ),
            ("{cniType: macvlan, macvlan: {master: [a, b]}}", "spec.macvlan.bond: is missing"),
            (
                "{cniType: macvlan, macvlan: {master: [a, b], bond: {name: b, mode: 7}}}",
                "spec.macvlan.bond.mode: \"7\": must be 0 to 6",
            ),
            (
                "{cniType: macvlan, macvlan: {master: [a, b], bond: {name: '', mode: 1}}}",
                "spec.macvlan.bond.name: is missing",
            ),
            (
                "{cniType: macvlan, macvlan: {master: [a, b], bond: {name: b, mode: 1, options: x}}}",
                "spec.macvlan.bond.options: \"x\": is not a list",
            ),
            (
                "{cniType: macvlan, macvlan: {master: [a], vlanID: 4095}}",
                "spec.macvlan.vlanID: \"4095\": must be 0 (untagged) to 4094",
            ),
            ("{cniType: ipvlan, ipvlan: {master: [a], mtu: -1}}", "spec.ipvlan.mtu: \"-1\""),
            ("{cniType: vlan, vlan: {master: [a]}}", "spec.vlan.vlanID: is missing"),
            (
                "{cniType: vlan, vlan: {master: [a], vlanMode: auto, vlanID: 3}}",
                "spec.vlan.vlanID: \"3\": cannot be set with spec.vlan.vlanMode auto",
            ),
            ("{cniType: vlan, vlan: {master: [a], vlanMode: x}}", "spec.vlan.vlanMode: \"x\""),
            ("{cniType: sriov, sriov: {}}", "spec.sriov.resourceName: is missing"),
            (
                "{cniType: sriov, sriov: {resourceName: r, minTxRateMbps: 3, maxTxRateMbps: 2}}",
                "spec.sriov.minTxRateMbps: \"3\": is above spec.sriov.maxTxRateMbps, 2",
            ),
            ("{cniType: ib-sriov, ibsriov: {}}", "spec.ibsriov.resourceName: is missing"),
            (
                "{cniType: ib-sriov, ibsriov: {resourceName: r, linkState: up}}",
                "spec.ibsriov.linkState: \"up\": is not one of",
            ),
            ("{cniType: ipoib, ipoib: {}}", "spec.ipoib.master: is missing"),
            ("{cniType: ovs, ovs: {bridge: ''}}", "spec.ovs.bridge: is missing"),
            (
                "{cniType: ovs, ovs: {bridge: b, trunk: [{minID: 6, maxID: 5}]}}",
                "spec.ovs.trunk[0].minID: \"6\": is above maxID, 5",
            ),
            ("{cniType: ovs, ovs: {bridge: b, trunk: [{}]}}", "spec.ovs.trunk[0]: is empty"),
            (
                "{cniType: ovs, ovs: {bridge: b, trunk: [{minID: 6}]}}",
                "spec.ovs.trunk[0]: needs both",
            ),
            (
                "{cniType: ovs, ovs: {bridge: b, vlan: 1, trunk: [{id: 6}]}}",
                "spec.ovs.trunk: cannot be",
            ),
            (
                "{cniType: macvlan, macvlan: {master: [a], ippools: {matchMasterSubnet: true}}}",
                "spec.macvlan.ippools.matchMasterSubnet: \"true\": belongs to spec.cniType sriov",
            ),
            ("{cniType: custom, customCNI: '{'}", "spec.customCNI: \"{\": is not JSON"),
            ("{cniType: custom, customCNI: '[]'}", "spec.customCNI: \"[]\": is not a JSON object"),
            (
                "{cniType: macvlan, macvlan: {master: [a]}, chainCNIJsonData: ['{}']}",
                "spec.chainCNIJsonData[0]: \"{}\": is no CNI configuration",
            ),
            (
                "{cniType: macvlan, macvlan: {master: [a]}, coordinator: {podMACPrefix: '01:02'}}",
                "spec.coordinator.podMACPrefix",
            ),
        ],
    );
}

#[test]
fn annotations_of_multus_configurations() {
    let rdma = "cni.spidernet.io/rdma-resource-inject";
    let network = "cni.spidernet.io/network-resource-inject";
    let plain = "{cniType: macvlan, macvlan: {master: [a]}}";
    let resource = "{cniType: macvlan, macvlan: {master: [a], rdmaResourceName: r}}";
    let full =
        "{cniType: macvlan, macvlan: {master: [a], rdmaResourceName: r, ippools: {ipv4: [p]}}}";
    let custom = "{cniType: custom}";
    for (key, value, spec, expected) in [
        ("multus.spidernet.io/cr-name", "other", plain, ""),
        ("multus.spidernet.io/cr-name", "No", plain, "must be 1 to 253 of"),
        ("multus.spidernet.io/cni-version", "1.0.0", plain, ""),
        ("multus.spidernet.io/cni-version", "0.2.0", plain, "is not one of 0.3.0, 0.3.1"),
        (rdma, "gpu", full, ""),
        (rdma, "gpu", plain, "needs a resource"),
        (rdma, "gpu", resource, "needs pools"),
        (network, "gpu", full, ""),
        (network, "gpu", plain, ""),
        (network, "gpu", resource, "needs pools"),
        (rdma, "gpu", custom, "is not possible with spec.cniType ovs or custom"),
    ] {
        let metadata = format!("{{name: c, annotations: {{{key}: {value}}}}}");
        let found = texts(&validate_multus_config(&object(&metadata, spec)));
        assert_eq!(found.is_empty(), expected.is_empty(), "{key} {spec}: {found:?}");
        assert!(found.iter().all(|f| f.contains(expected)), "{found:?}");
    }
    let named = |name: &str| -> SpiderMultusConfig {
        let metadata = format!("{{name: c, annotations: {{multus.spidernet.io/cr-name: {name}}}}}");
        object(&metadata, plain)
    };
    assert!(validate_multus_config_update(&named("a"), &named("a")).is_empty());
    let found = texts(&validate_multus_config_update(&named("a"), &named("b")));
    assert!(found[0].contains("cannot be changed from a"), "{found:?}");
    let without = object("{name: c}", plain);
    assert_eq!(validate_multus_config_update(&named("a"), &without).len(), 1);
    assert!(validate_multus_config_update(&without, &named("b")).is_empty());
}
