//! Addresses of pods that end in every way come back.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, ensure};
use bowline_e2e::{Cluster, eventually};
use serde_json::Value;

use crate::power::no_address_leaks;
use crate::workloads::SLEEPER;

const MINUTE: Duration = Duration::from_secs(60);
const PLUGIN: &str = "/opt/cni/bin/bowline";

/// A Job's pod that has finished and still exists, all pods of a namespace that is deleted, pods that are
/// deleted while no plugin is there to be called: nobody keeps an address, and a pod of the same name in
/// another namespace keeps its own.
pub(crate) fn addresses_come_back(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.apply(&objects())?;
    cluster.ready("pod/twin -n default")?;
    cluster.ready("pod/twin -n short")?;
    cluster.kubectl("-n short rollout status deployment/many --timeout=60s")?;
    cluster.kubectl("-n short wait --for=condition=Complete job/finite --timeout=60s")?;
    eventually("a finished Job holds no address", MINUTE, || {
        Ok(!holders(cluster)?.iter().any(|name| name.starts_with("short/finite-")))
    })?;
    ensure!(holders(cluster)?.iter().filter(|n| n.starts_with("short/")).count() == 4);
    without_plugin(cluster)?;
    cluster.kubectl("delete namespace short --timeout=60s")?;
    eventually("nothing of the namespace is held", MINUTE, || {
        let held = holders(cluster)?;
        ensure!(!held.iter().any(|name| name.starts_with("short/")), "{held:?}");
        Ok(true)
    })?;
    ensure!(holders(cluster)?.contains("default/twin"), "the other twin lost its address");
    cluster.exec("twin", "ping -c 1 -W 2 10.244.0.1")?;
    cluster.kubectl("delete pod twin --timeout=60s")?;
    eventually("no address is held without a pod", MINUTE, || no_address_leaks(cluster))
}

fn objects() -> String {
    let twin = |namespace: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: twin, namespace: {namespace}}}, spec: {SLEEPER}}}\n"
        )
    };
    format!(
        "apiVersion: v1
kind: Namespace
metadata: {{name: short}}
---
{}---
{}---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: many, namespace: short}}
spec:
  replicas: 3
  selector: {{matchLabels: {{app: many}}}}
  template: {{metadata: {{labels: {{app: many}}}}, spec: {SLEEPER}}}
---
apiVersion: batch/v1
kind: Job
metadata: {{name: finite, namespace: short}}
spec:
  completions: 2
  parallelism: 2
  template:
    spec: {{restartPolicy: Never, containers: [{{name: c, image: localhost/busybox:1, command: [\"true\"]}}]}}
",
        twin("default"),
        twin("short")
    )
}

/// Pods that hold addresses, as namespace/name.
fn holders(cluster: &Cluster) -> anyhow::Result<BTreeSet<String>> {
    let blocks = cluster.get("addressblocks")?;
    let blocks = blocks["items"].as_array().context("no list")?;
    let entries = blocks.iter().filter_map(|b| b["spec"]["entries"].as_array()).flatten();
    let held = entries.filter(|e| e["state"] == "Allocated" || e["state"] == "Intent");
    let name = |owner: &Value| {
        Some(format!("{}/{}", owner["namespace"].as_str()?, owner["name"].as_str()?))
    };
    Ok(held.filter_map(|e| name(&e["owner"])).collect())
}

/// On node 2 nobody can call the plugin while all pods of the Deployment are deleted with grace 0: the
/// controller frees what they had.
fn without_plugin(cluster: &Cluster) -> anyhow::Result<()> {
    let own = cluster.kubectl("-n short get pods -l app=many -o name")?;
    let gone: Vec<String> = own.lines().map(|l| l.replace("pod/", "short/")).collect();
    for node in [1, 2] {
        cluster.on_node(node, &format!("mv {PLUGIN} {PLUGIN}.away"))?;
    }
    let freed = cluster
        .kubectl("-n short scale deployment/many --replicas=0")
        .and_then(|_| cluster.kubectl("-n short delete pod -l app=many --grace-period=0 --force"))
        .and_then(|_| {
            eventually("what deleted pods had is free", MINUTE, || {
                let held = holders(cluster)?;
                ensure!(!gone.iter().any(|name| held.contains(name)), "{held:?} of {gone:?}");
                Ok(true)
            })
        });
    for node in [1, 2] {
        cluster.on_node(node, &format!("mv {PLUGIN}.away {PLUGIN}"))?;
    }
    freed
}
