//! The arrows between the crates are part of the design: this test knows them all, and any other is a
//! defect. What a crate needs in its tests alone is not an arrow.

use std::collections::BTreeSet;
use std::process::Command;

/// `a ← b` of docs/architecture.md, as (b, a): b uses a.
const ARROWS: [(&str, &str); 23] = [
    ("bowline-dataplane", "bowline-wire"),
    ("bowline-dataplane", "bowline-dpdk"),
    ("bowline-dpdk", "bowline-dpdk-sys"),
    ("bowline-dataplane", "memif"),
    ("bowline-dataplane", "bowline-api"),
    ("bowline-agent", "bowline-api"),
    ("bowline-agent", "multinet"),
    ("bowline-agent", "bowline-cni"),
    ("bowline-agent", "bowline-wire"),
    ("bowline-controller", "multinet"),
    ("bowline-kube", "multinet"),
    ("bowline-agent", "bowline-kube"),
    ("bowline-controller", "bowline-kube"),
    // Tools beside the product: they may use libraries, nothing may use them.
    ("bowline-pktgen", "memif"),
    ("bowline-pktgen", "bowline-wire"),
    ("bowline-demo", "bowline-pktgen"),
    ("bowline-demo", "bowline-wire"),
    ("bowline-bench", "bowline-api"),
    ("bowline-bench", "bowline-demo"),
    ("bowline-bench", "bowline-pktgen"),
    ("bowline-bench", "bowline-wire"),
    // With the feature `conformance` alone, which no product has.
    ("multinet", "bowline-judge"),
    // The C ABI of the library.
    ("memif-capi", "memif"),
];

fn workspace() -> serde_json::Value {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let args = ["metadata", "--format-version=1", "--no-deps", "--offline", "--manifest-path"];
    let output = Command::new(env!("CARGO")).args(args).arg(manifest).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn only_the_drawn_arrows_exist() {
    let workspace = workspace();
    let packages = workspace["packages"].as_array().unwrap();
    let ours: BTreeSet<&str> = packages.iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert!(ours.contains("multinet") && ours.contains("bowline-dataplane"), "{ours:?}");
    let mut found = BTreeSet::new();
    for package in packages {
        for dependency in package["dependencies"].as_array().unwrap() {
            let on = dependency["name"].as_str().unwrap();
            if ours.contains(on) && dependency["kind"].as_str() != Some("dev") {
                found.insert((package["name"].as_str().unwrap(), on));
            }
        }
    }
    let drawn: BTreeSet<_> = ARROWS.into_iter().collect();
    let undrawn: Vec<_> = found.difference(&drawn).collect();
    assert!(undrawn.is_empty(), "arrows that are not drawn in docs/architecture.md: {undrawn:?}");
    // The test would say nothing if it found nothing.
    for arrow in [("bowline-dataplane", "memif"), ("bowline-agent", "multinet")] {
        assert!(found.contains(&arrow), "{arrow:?} is missing from {found:?}");
    }
}

#[test]
fn nothing_uses_a_daemon() {
    let daemons = ["bowline-dataplane", "bowline-agent", "bowline-controller"];
    let workspace = workspace();
    for package in workspace["packages"].as_array().unwrap() {
        for dependency in package["dependencies"].as_array().unwrap() {
            let on = dependency["name"].as_str().unwrap();
            let own = package["name"].as_str().unwrap();
            let kind = dependency["kind"].as_str();
            assert!(kind == Some("dev") || !daemons.contains(&on), "{own} uses the daemon {on}");
        }
    }
}
