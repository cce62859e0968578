//! Drops by reason: none that is not explained, and sums that agree.

use crate::cluster::{Cluster, Node};
use crate::lab::process::wait_for;
use crate::report::Report;
use anyhow::{Context, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

/// Reasons that the demo's own traffic brings about.
const EXPLAINED: [(&str, &str); 6] = [
    ("bum_unsupported", "multicast of the pods' kernels (MLD, router solicitations)"),
    ("no_route", "addresses of another Network alone, asked for on purpose"),
    ("ring_full", "generators send faster than receivers on shared cores take"),
    ("peer_away", "pods whose memif was reconnecting"),
    ("neighbour_unresolved", "the first frames before a neighbour answered"),
    ("port_down", "frames for ports that were restarting"),
];

/// Reads both nodes' counters. `when` ends the checks' names.
///
/// # Errors
/// The command-line tool fails.
pub fn check(cluster: &Cluster, when: &str, report: &mut Report) -> anyhow::Result<()> {
    for node in &cluster.nodes {
        check_accounts(cluster, node, when, report)?;
        let drops = by_reason(cluster, node)?;
        let strange: Vec<String> = drops
            .iter()
            .filter(|(reason, pkts)| **pkts > 0 && explanation(reason).is_none())
            .map(|(reason, pkts)| format!("{reason} {pkts}"))
            .collect();
        let total: u64 = drops.values().sum();
        let found = if strange.is_empty() { "none".into() } else { strange.join(", ") };
        let name = format!("drops: {}, {total}, unexplained{when}", node.name);
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
    let mut drops = BTreeMap::new();
    collect(&get(cluster, node, "drops")?, &mut drops);
    Ok(drops)
}

/// What `bowline get WHAT -o json` prints.
fn get(cluster: &Cluster, node: &Node, what: &str) -> anyhow::Result<Value> {
    let output = Command::new(cluster.binaries.cli())
        .args(["--socket".as_ref(), node.dataplane_socket().as_os_str()])
        .args(["get", what, "-o", "json"])
        .output()
        .context("starting bowline")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "bowline get {what}: {}", complaint.trim());
    serde_json::from_slice(&output.stdout).with_context(|| format!("reading {what}"))
}

/// Every frame that came in has one fate, every frame that went out one origin. Counters of one
/// snapshot may be a burst apart, so a difference counts when it stays.
fn check_accounts(
    cluster: &Cluster,
    node: &Node,
    when: &str,
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut found = String::new();
    let agree = wait_for("accounts", Duration::from_secs(2), || {
        let rows = get(cluster, node, "counters")?;
        let rows = rows.as_array().context("counters are no list")?;
        let strange: Vec<String> = rows.iter().filter_map(unbalanced).collect();
        found = if strange.is_empty() {
            format!("{} accounts agree", rows.len())
        } else {
            strange.join("; ")
        };
        Ok(strange.is_empty() && !rows.is_empty())
    });
    let name = format!("accounts: {}, both sums{when}", node.name);
    report.check(&name, "all agree", &found, agree.is_ok());
    Ok(())
}

/// What is wrong with an interface's account.
fn unbalanced(row: &Value) -> Option<String> {
    let field = |name: &str| row[name].as_u64().unwrap_or(0);
    let fates = ["forwarded", "consumed", "punted", "rx_drops"].map(field).iter().sum::<u64>();
    let origins = ["tx_forwarded", "generated", "split_extra"].map(field).iter().sum::<u64>();
    let sent = ["tx_pkts", "coalesced", "tx_drops"].map(field).iter().sum::<u64>();
    let rx = field("rx_pkts");
    let wrong = rx != fates || origins != sent;
    let name = row["of"].as_str().unwrap_or("?");
    wrong.then(|| format!("{name}: rx {rx}, fates {fates}, sent {sent}, origins {origins}"))
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
