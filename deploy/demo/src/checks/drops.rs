//! Drops by reason: none that is not explained, and sums that agree.

use crate::cluster::{Cluster, Node};
use crate::report::Report;
use anyhow::{Context, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::Command;

/// Reasons that the demo's own traffic brings about.
const EXPLAINED: [(&str, &str); 6] = [
    ("bum_unsupported", "multicast of the pods' kernels (MLD, router solicitations)"),
    ("no_route", "red's own address, asked for by blue"),
    ("ring_full", "generators send faster than receivers on shared cores take"),
    ("peer_away", "pods whose memif was reconnecting"),
    ("neighbour_unresolved", "the first frames before a neighbour answered"),
    ("port_down", "frames for ports that were restarting"),
];

/// Reads both nodes' counters.
///
/// # Errors
/// The command-line tool fails.
pub fn check(cluster: &Cluster, report: &mut Report) -> anyhow::Result<()> {
    for node in &cluster.nodes {
        let drops = by_reason(cluster, node)?;
        let strange: Vec<String> = drops
            .iter()
            .filter(|(reason, pkts)| **pkts > 0 && explanation(reason).is_none())
            .map(|(reason, pkts)| format!("{reason} {pkts}"))
            .collect();
        let total: u64 = drops.values().sum();
        let found = if strange.is_empty() { "none".into() } else { strange.join(", ") };
        let name = format!("drops: {} without an explanation, of {total}", node.name);
        report.check(&name, "none", &found, strange.is_empty());
        for (reason, pkts) in drops.iter().filter(|(_, pkts)| **pkts > 0) {
            println!("    {pkts:>10} {reason}: {}", explanation(reason).unwrap_or("unexplained"));
        }
    }
    Ok(())
}

fn explanation(reason: &str) -> Option<&'static str> {
    EXPLAINED.iter().find(|(known, _)| *known == reason).map(|(_, why)| *why)
}

fn by_reason(cluster: &Cluster, node: &Node) -> anyhow::Result<BTreeMap<String, u64>> {
    let output = Command::new(cluster.binaries.cli())
        .args(["--socket".as_ref(), node.dataplane_socket().as_os_str()])
        .args(["get", "drops", "-o", "json"])
        .output()
        .context("starting bowline")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "bowline get drops: {}", complaint.trim());
    let printed: Value = serde_json::from_slice(&output.stdout).context("reading drops")?;
    let mut drops = BTreeMap::new();
    collect(&printed, &mut drops);
    Ok(drops)
}

/// Sums objects with `reason` and `pkts`, wherever they are.
fn collect(value: &Value, drops: &mut BTreeMap<String, u64>) {
    match value {
        Value::Array(list) => list.iter().for_each(|v| collect(v, drops)),
        Value::Object(object) => {
            match (
                object.get("reason").and_then(Value::as_str),
                object.get("pkts").and_then(Value::as_u64),
            ) {
                (Some(reason), Some(pkts)) => *drops.entry(reason.into()).or_default() += pkts,
                _ => object.values().for_each(|v| collect(v, drops)),
            }
        }
        _ => {}
    }
}
