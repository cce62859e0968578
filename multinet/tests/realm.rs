//! From YAML to the data plane's desired state, and from state to state.
//!
//! A case is a file in `tests/realm`: objects, `Attachment`s of node n1, and last an `Expected` with
//! the state and the notes. `UPDATE=1 cargo test` writes what was found; read it before you commit it.
#![allow(missing_docs, reason = "a test has no users")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use bolero::TypeGenerator;
use common::{catalog, documents, parse};
use multinet::realm::state::{Encapsulation, Interface, Network, Port, State};
use multinet::realm::{Attachment, Input, apply, desired, diff};
use multinet::rules::{Checked, validate_block, validate_node_state};
use multinet::types::block::AddressBlock;
use multinet::types::mac::Mac;
use multinet::types::node::NodeState;
use serde_json::{Value, json};

fn run(text: &str) -> (State, Vec<String>) {
    let mut nodes: BTreeMap<String, Arc<NodeState>> = BTreeMap::new();
    let mut blocks: Vec<Arc<AddressBlock>> = Vec::new();
    let mut attachments: Vec<Attachment> = Vec::new();
    for (kind, value) in documents(text) {
        match kind.as_str() {
            "NodeState" => {
                let node: NodeState = parse(value);
                assert_eq!(validate_node_state(&node), []);
                nodes.insert(node.metadata.name.clone(), node.into());
            }
            "AddressBlock" => {
                let block: AddressBlock = parse(value);
                assert_eq!(validate_block(&block), []);
                blocks.push(block.into());
            }
            "Attachment" => {
                // By way of JSON: YAML's own enums want tags.
                let spec = serde_json::to_value(&value["spec"]).unwrap();
                attachments.push(serde_json::from_value(spec).unwrap());
            }
            _ => {}
        }
    }
    let rest: Vec<&str> = text
        .split("\n---\n")
        .filter(|d| ["Network", "SpiderIPPool"].iter().any(|k| d.contains(&format!("kind: {k}\n"))))
        .collect();
    let checked = Checked::new(&catalog(&rest.join("\n---\n")));
    let input = Input {
        node: "n1",
        checked: &checked,
        nodes: &nodes,
        blocks: &blocks,
        attachments: &attachments,
        vxlan_port: 0,
    };
    let found = desired(&input);
    let outlines: Vec<Arc<AddressBlock>> = blocks.iter().map(|b| b.outline().into()).collect();
    let of_outlines = desired(&Input { blocks: &outlines, ..input });
    assert_eq!(of_outlines, found, "an outline says as much of where addresses are");
    found
}

#[test]
fn golden_cases() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/realm");
    let mut cases = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let (input, _) = text.split_once("\n---\nkind: Expected\n").unwrap_or((&text, ""));
        let (state, notes) = run(input);
        let found = json!({ "kind": "Expected", "notes": notes, "state": state });
        if std::env::var_os("UPDATE").is_some() {
            let yaml = serde_yaml_ng::to_string(&found).unwrap();
            std::fs::write(&path, format!("{}\n---\n{yaml}", input.trim_end())).unwrap();
        } else {
            let (_, expected) = documents(&text).find(|(kind, _)| kind == "Expected").unwrap();
            let expected: Value = serde_json::to_value(expected).unwrap();
            assert_eq!(found, expected, "{}\n{found:#}", path.display());
        }
        cases += 1;
    }
    assert!(cases >= 5, "{cases} cases");
}

/// A small random state: few names, so that states share some and differ in others.
#[derive(Clone, Debug, TypeGenerator)]
struct Sketch {
    networks: Vec<(u8, u16)>,
    interfaces: Vec<(u8, u8, u8)>,
    vteps: Vec<u8>,
    own: bool,
    port: u16,
}

impl Sketch {
    fn state(&self) -> State {
        let networks: BTreeMap<String, u16> =
            self.networks.iter().map(|(name, mtu)| (format!("net{}", name % 8), *mtu)).collect();
        let network = |(name, mtu): (String, u16)| Network {
            name,
            encapsulation: Encapsulation::Vxlan,
            vni: 1,
            vlan_id: 0,
            physical_network: String::new(),
            mtu: mtu.into(),
            gateways: Vec::new(),
            prefixes: Vec::new(),
            routes: Vec::new(),
            peer_vteps: Vec::new(),
        };
        let interfaces: BTreeMap<String, (u8, u8)> =
            self.interfaces.iter().map(|(id, a, b)| (format!("s{}", id % 16), (*a, *b))).collect();
        let interface = |(id, (net, queues)): (String, (u8, u8))| Interface {
            id,
            network: format!("net{}", net % 8),
            name: "eth1".into(),
            mac: Mac::default(),
            addresses: Vec::new(),
            allowed_prefixes: Vec::new(),
            mtu: 0,
            port: Port::Tap { queues: queues.into() },
            pod_namespace: String::new(),
            pod_name: String::new(),
            node_leg: false,
        };
        let vteps: BTreeSet<IpAddr> =
            self.vteps.iter().map(|n| IpAddr::from([192, 0, 2, n % 8])).collect();
        State {
            networks: networks.into_iter().map(network).collect(),
            interfaces: interfaces.into_iter().map(interface).collect(),
            cluster_vteps: vteps.into_iter().collect(),
            local_vteps: if self.own { vec![IpAddr::from([192, 0, 2, 1])] } else { Vec::new() },
            vxlan_port: self.port,
        }
    }
}

#[test]
fn a_difference_applied_gives_the_desired_state_and_changes_nothing_more() {
    bolero::check!().with_type::<(Sketch, Sketch)>().for_each(|(a, b)| {
        let (actual, wanted) = (a.state(), b.state());
        let ops = diff(&wanted, &actual);
        assert_eq!(apply(&actual, &ops), wanted);
        assert!(diff(&wanted, &wanted).is_empty());
        assert_eq!(ops.is_empty(), actual == wanted);
        for network in &ops.put_networks {
            assert!(!actual.networks.contains(network), "unchanged: {network:?}");
        }
        for interface in &ops.put_interfaces {
            assert!(!actual.interfaces.contains(interface), "unchanged: {interface:?}");
        }
    });
}
