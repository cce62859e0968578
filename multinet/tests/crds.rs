//! The CustomResourceDefinitions: the files are fresh, and what is in them is what Kubernetes takes.
#![allow(missing_docs, reason = "a test has no users")]

use std::path::Path;

use multinet::crd::definitions;
use serde_json::{Value, json};

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds")
}

#[test]
fn the_files_are_fresh() {
    let mut files = std::fs::read_dir(folder()).unwrap().count();
    for definition in definitions() {
        let name = definition["metadata"]["name"].as_str().unwrap();
        let path = folder().join(format!("{name}.yaml"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
        let written: Value = serde_yaml_ng::from_str(&text).unwrap();
        let stale = "is stale: run `cargo run -p multinet --example crds`";
        assert!(written == definition, "{} {stale}", path.display());
        files -= 1;
    }
    assert_eq!(files, 0, "deploy/crds holds a file that no kind makes");
}

/// Every schema within a definition, with its path.
fn schemas(definition: &Value) -> Vec<(String, Value)> {
    fn walk(path: &str, schema: &Value, found: &mut Vec<(String, Value)>) {
        found.push((path.to_string(), schema.clone()));
        for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
            walk(&format!("{path}.{name}"), inner, found);
        }
        for key in ["items", "additionalProperties"] {
            if schema[key].is_object() {
                walk(&format!("{path}[]"), &schema[key], found);
            }
        }
    }
    let mut found = Vec::new();
    let name = definition["spec"]["names"]["kind"].as_str().unwrap();
    walk(name, &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"], &mut found);
    found
}

#[test]
fn schemas_are_structural() {
    let known = [
        "type",
        "description",
        "properties",
        "required",
        "items",
        "additionalProperties",
        "default",
        "enum",
        "minimum",
        "maximum",
        "maxItems",
        "pattern",
        "format",
        "x-kubernetes-validations",
        "x-kubernetes-map-type",
    ];
    for (path, schema) in definitions().iter().flat_map(schemas) {
        assert!(schema["type"].is_string(), "{path} has no type: {schema}");
        for key in schema.as_object().unwrap().keys() {
            assert!(known.contains(&key.as_str()), "{path} has {key}");
        }
    }
}

fn at<'a>(all: &'a [(String, Value)], path: &str) -> &'a Value {
    &all.iter().find(|(p, _)| p == path).unwrap_or_else(|| panic!("no {path}")).1
}

/// Types and limits of upstream's definitions (v1.2), field by field where users write them.
#[test]
fn spiderpools_fields_have_upstreams_shape() {
    let all: Vec<_> = definitions().iter().flat_map(schemas).collect();
    for (path, key, expected) in [
        ("SpiderIPPool.spec", "required", json!(["subnet"])),
        ("SpiderIPPool.spec.ipVersion", "enum", json!([4, 6])),
        ("SpiderIPPool.spec.default", "default", json!(false)),
        ("SpiderIPPool.spec.routes[]", "required", json!(["dst", "gw"])),
        (
            "SpiderIPPool.spec.podAffinity.matchExpressions[]",
            "required",
            json!(["key", "operator"]),
        ),
        ("SpiderIPPool.status.allocatedIPs", "type", json!("string")),
        ("SpiderIPPool.status.allocatedIPCount", "minimum", json!(0)),
        ("SpiderSubnet.status.controlledIPPools", "type", json!("string")),
        ("SpiderReservedIP.spec.ips", "type", json!("array")),
        ("SpiderEndpoint.status.current.ips[].vlan", "maximum", json!(4094)),
        ("SpiderEndpoint.status.current", "required", json!(["uid", "node", "ips"])),
        ("SpiderCoordinator.spec.mode", "enum", json!(["auto", "underlay", "overlay", "disabled"])),
        ("SpiderCoordinator.spec.hostRuleTable", "default", json!(500)),
        ("SpiderCoordinator.status", "required", json!(["phase"])),
        ("SpiderMultusConfig.spec.cniType", "default", json!("custom")),
        ("SpiderMultusConfig.spec.macvlan", "required", json!(["master"])),
        ("SpiderMultusConfig.spec.macvlan.bond.mode", "maximum", json!(6)),
        ("SpiderMultusConfig.spec.sriov.minTxRateMbps", "type", json!("integer")),
        ("SpiderMultusConfig.spec.ovs.trunk[].minID", "maximum", json!(4094)),
        ("SpiderMultusConfig.spec.enableCoordinator", "default", json!(true)),
        ("SpiderMultusConfig.spec.chainCNIJsonData[]", "type", json!("string")),
        ("Network.spec.encapsulation", "enum", json!(["VXLAN", "VLAN", "None"])),
        ("Network.spec.encapsulation", "default", json!("VXLAN")),
        ("Network.spec.vni", "maximum", json!(16_777_215)),
        ("AddressBlock.spec.entries[].owner.kind", "enum", json!(["Pod", "Node"])),
    ] {
        assert_eq!(at(&all, path)[key], expected, "{path} {key}");
    }
    let scope = |kind: &str| {
        let of = |d: &&Value| d["spec"]["names"]["kind"] == kind;
        definitions().iter().find(of).unwrap()["spec"]["scope"].clone()
    };
    assert_eq!(scope("SpiderIPPool"), "Cluster");
    assert_eq!(scope("SpiderEndpoint"), "Namespaced");
    assert_eq!(scope("SpiderMultusConfig"), "Namespaced");
}
