//! Processes die one by one while pods come and go.

use std::time::Duration;

use anyhow::Context;
use bowline_e2e::{Cluster, SYSTEM, eventually, text};

const PATIENCE: Duration = Duration::from_secs(90);

/// Whom it hits, and how.
type Blow = (&'static str, fn(&Cluster) -> anyhow::Result<()>);

const BLOWS: &[Blow] = &[
    ("agent", |c| c.kill_on_node(1, "bowline-agent")),
    ("data plane", |c| c.kill_on_node(1, "bowline-dataplane")),
    ("leading controller", |c| c.kill_on_node(leader(c)?, "bowline-controller")),
    ("API server", |c| {
        c.kill_control_plane("apiserver")?;
        c.run("up.sh", &["apiserver"]).map(drop)
    }),
    ("etcd", |c| {
        c.kill_control_plane("etcd")?;
        c.run("up.sh", &["etcd"]).map(drop)
    }),
];

/// The node of the replica that leads.
fn leader(cluster: &Cluster) -> anyhow::Result<u8> {
    let lease = cluster.get(&format!("-n {SYSTEM} lease bowline-controller"))?;
    let pod = text(&lease, "/spec/holderIdentity")?;
    let pod = cluster.get(&format!("-n {SYSTEM} pod {pod}"))?;
    let node = text(&pod, "/spec/nodeName")?;
    node.trim_start_matches('n').parse().with_context(|| format!("{node} has no number"))
}

/// Each blow falls while a Deployment is scaled between 2 and 8; afterwards all its pods are ready,
/// a pod that was there all the time still answers, and no address leaks.
pub(crate) fn one_by_one(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.apply(&format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: churn}}
spec:
  replicas: 2
  selector: {{matchLabels: {{app: churn}}}}
  template: {{metadata: {{labels: {{app: churn}}}}, spec: {0}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: witness}}
spec: {0}
",
        crate::workloads::SLEEPER
    ))?;
    cluster.ready("pod/witness")?;
    for (name, blow) in BLOWS {
        hit(cluster, *blow).with_context(|| format!("while the {name} was killed"))?;
    }
    cluster.kubectl("delete deployment/churn pod/witness --timeout=60s")?;
    eventually("no address is held without a pod", PATIENCE, || {
        crate::power::no_address_leaks(cluster)
    })
}

fn hit(cluster: &Cluster, blow: fn(&Cluster) -> anyhow::Result<()>) -> anyhow::Result<()> {
    cluster.kubectl("scale deployment/churn --replicas=8")?;
    blow(cluster)?;
    // The API server may have been away.
    let scale = |to: u8| {
        eventually("scaling", PATIENCE, || {
            cluster.kubectl(&format!("scale deployment/churn --replicas={to}")).map(|_| true)
        })
    };
    scale(2)?;
    scale(8)?;
    eventually("eight ready pods", PATIENCE, || {
        let ready = cluster.kubectl("get deployment churn -o jsonpath={.status.readyReplicas}")?;
        Ok(ready == "8")
    })?;
    cluster.exec("witness", "ping -c 1 -W 2 10.244.0.1")?;
    scale(2)
}
