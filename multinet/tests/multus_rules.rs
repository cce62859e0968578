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
            ("{cniType: custom, customCNI: ' '}", ""),
            ("{cniType: custom}", ""),
            (
                "{cniType: ipvlan, ipvlan: {master: [a]}, coordinator: {mode: underlay}, \
                 chainCNIJsonData: ['{\"type\": \"tuning\"}']}",
                "",
            ),
            ("{}", ""),
            ("{cniType: other}", "spec.cniType: \"other\": is not one of macvlan"),
            ("{cniType: vlan, vlan: {master: [a]}}", "spec.vlan.vlanID: is missing"),
            (
                "{cniType: vlan, vlan: {master: [a], vlanID: 4095}}",
                "spec.vlan.vlanID: \"4095\": must",
            ),
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
            ("{cniType: custom, customCNI: '{'}", "spec.customCNI: \"{\": is not JSON"),
            (
                "{cniType: custom, customCNI: '{}'}",
                "spec.customCNI: \"{}\": is no CNI configuration: it has neither type nor plugins",
            ),
            ("{cniType: custom, customCNI: '[]'}", "spec.customCNI: \"[]\": is not a JSON object"),
            (
                "{cniType: macvlan, macvlan: {master: [a]}, chainCNIJsonData: ['{}']}",
                "spec.chainCNIJsonData[0]: \"{}\": is no CNI configuration",
            ),
            (
                "{cniType: macvlan, macvlan: {master: [a]}, chainCNIJsonData: ['{\"plugins\": []}']}",
                "spec.chainCNIJsonData[0]: \"{\"plugins\": []}\": is no CNI configuration: it has no type",
            ),
            (
                "{cniType: macvlan, macvlan: {master: [a]}, chainCNIJsonData: ['{\"type\": \"t\"}', x]}",
                "spec.chainCNIJsonData[1]: \"x\": is not JSON",
            ),
            (
                "{cniType: macvlan, macvlan: {master: [a]}, coordinator: {podMACPrefix: '01:02'}}",
                "spec.coordinator.podMACPrefix",
            ),
        ],
    );
}

/// Each `cniType`, its block, and what the block needs at least.
const BLOCKS: [(&str, &str, &str); 7] = [
    ("macvlan", "macvlan", "master: [a]"),
    ("ipvlan", "ipvlan", "master: [a]"),
    ("vlan", "vlan", "master: [a], vlanID: 7"),
    ("sriov", "sriov", "resourceName: v.com/s"),
    ("ovs", "ovs", "bridge: br0"),
    ("ib-sriov", "ibsriov", "resourceName: v.com/i"),
    ("ipoib", "ipoib", "master: ib0"),
];

fn config(spec: &str) -> SpiderMultusConfig {
    object("{name: c, namespace: n}", spec)
}

#[test]
fn each_type_has_its_block_and_no_other() {
    let check = |spec: &str| validate_multus_config(&config(spec));
    for (kind, block, least) in BLOCKS {
        let own = format!("{{cniType: {kind}, {block}: {{{least}}}");
        let missing = format!("spec.{block}: is missing; spec.cniType {kind} needs it");
        table(check, &[(&format!("{own}}}"), ""), (&format!("{{cniType: {kind}}}"), &missing)]);
        for (other_kind, other, least) in BLOCKS.into_iter().filter(|(k, ..)| *k != kind) {
            let both = format!("{own}, {other}: {{{least}}}}}");
            let foreign = format!("spec.{other}: belongs to spec.cniType {other_kind}; remove it");
            table(check, &[(&both, &foreign)]);
        }
        let custom = format!("{own}, customCNI: '{{\"type\": \"x\"}}'}}");
        table(check, &[(&custom, "spec.customCNI: belongs to spec.cniType custom")]);
    }
}

/// A block's fields one by one: those that it needs, with one more; empty: nothing is wrong with it.
#[test]
fn each_field_of_a_block_has_its_sentence() {
    let vlan_id = "must be 0 (untagged) to 4094";
    let cases = [
        ("macvlan ipvlan sriov", "vlanID: 0, mtu: 0", "", ""),
        ("macvlan ipvlan sriov", "vlanID: 4094, mtu: 9000", "", ""),
        ("macvlan ipvlan sriov", "vlanID: 4095", "vlanID: \"4095\"", vlan_id),
        ("macvlan ipvlan sriov", "vlanID: -1", "vlanID: \"-1\"", vlan_id),
        ("ovs", "vlan: 4094", "", ""),
        ("ovs", "vlan: 4095", "vlan: \"4095\"", vlan_id),
        ("ovs", "trunk: [{id: 4095}]", "trunk[0].id: \"4095\"", vlan_id),
        ("ovs", "trunk: [{minID: -1, maxID: 5}]", "trunk[0].minID: \"-1\"", vlan_id),
        ("ovs", "trunk: [{minID: 1, maxID: 4095}]", "trunk[0].maxID: \"4095\"", vlan_id),
        ("macvlan ipvlan vlan sriov", "mtu: -1", "mtu: \"-1\"", "must be 0 or more"),
        ("sriov", "minTxRateMbps: 9, maxTxRateMbps: 0", "", ""),
        ("sriov", "minTxRateMbps: -1", "minTxRateMbps: \"-1\"", "must be 0 or more"),
        ("sriov", "maxTxRateMbps: -1", "maxTxRateMbps: \"-1\"", "must be 0 or more"),
        ("ib-sriov", "linkState: disable, pkey: '0x7fff'", "", ""),
        ("macvlan ipvlan vlan", "rdmaResourceName: v.com/r", "", ""),
        ("sriov", "ippools: {matchMasterSubnet: true}", "", ""),
        (
            "macvlan ipvlan vlan ovs ib-sriov ipoib",
            "ippools: {matchMasterSubnet: true}",
            "ippools.matchMasterSubnet: \"true\"",
            "belongs to spec.cniType sriov",
        ),
        (
            "macvlan ipvlan vlan ovs ib-sriov ipoib sriov",
            "ippools: {ipv4: [p], ipv6: [q], matchMasterSubnet: false}",
            "",
            "",
        ),
    ];
    for (kinds, field, at, message) in cases {
        for kind in kinds.split(' ') {
            let (_, block, least) = BLOCKS.into_iter().find(|(k, ..)| *k == kind).unwrap();
            let spec = format!("{{cniType: {kind}, {block}: {{{least}, {field}}}}}");
            let sentence =
                if at.is_empty() { String::new() } else { format!("spec.{block}.{at}: {message}") };
            table(|spec| validate_multus_config(&config(spec)), &[(&spec, &sentence)]);
        }
    }
}

#[test]
fn several_masters_need_a_bond() {
    for (kind, more) in [("macvlan", ""), ("ipvlan", ""), ("vlan", "vlanID: 7, ")] {
        for (fields, sentence) in [
            ("master: [a, b], bond: {name: bond0, mode: 0}", ""),
            ("master: [a, b], bond: {name: bond0, mode: 6, options: 'a=1; b=2'}", ""),
            ("master: [a, b]", "bond: is missing; 2 masters need a bond"),
            ("master: [''], bond: {name: b, mode: 1}", "master: is missing or empty"),
            ("master: []", "master: is missing or empty"),
            ("master: [a, b], bond: {name: '', mode: 0}", "bond.name: is missing"),
            ("master: [a, b], bond: {name: b, mode: 7}", "bond.mode: \"7\": must be 0 to 6"),
            ("master: [a, b], bond: {name: b, mode: -1}", "bond.mode: \"-1\": must be 0 to 6"),
            (
                "master: [a, b], bond: {name: b, mode: 1, options: 'a=1;b='}",
                "bond.options: \"a=1;b=\": is not a list like miimon=100",
            ),
        ] {
            let spec = format!("{{cniType: {kind}, {kind}: {{{more}{fields}}}}}");
            let sentence = match sentence {
                "" => String::new(),
                sentence => format!("spec.{kind}.{sentence}"),
            };
            table(|spec| validate_multus_config(&config(spec)), &[(&spec, &sentence)]);
        }
    }
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
    let ovs = "{cniType: ovs, ovs: {bridge: b, ippools: {ipv4: [p]}}}";
    let sriov = "{cniType: sriov, sriov: {resourceName: r, ippools: {ipv6: [p]}}}";
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
        (network, "gpu", custom, "is not possible with spec.cniType ovs or custom"),
        (network, "gpu", ovs, "is not possible with spec.cniType ovs or custom"),
        (rdma, "gpu", sriov, ""),
        (rdma, "gpu", "{cniType: sriov, sriov: {resourceName: r}}", "needs pools"),
        (rdma, "gpu", "{cniType: ib-sriov, ibsriov: {resourceName: r}}", "needs pools"),
        (rdma, "gpu", "{cniType: ipoib, ipoib: {master: ib0}}", "needs a resource"),
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
