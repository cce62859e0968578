//! A node that loses its power.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use bowline_e2e::{Cluster, eventually, text};

const PATIENCE: Duration = Duration::from_secs(240);

/// One pod, on node 2 as long as that is there.
const KEEPER: &str = "
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: keeper}
spec:
  replicas: 1
  selector: {matchLabels: {app: keeper}}
  template:
    metadata: {labels: {app: keeper}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: c, image: localhost/busybox:1, command: [sleep, infinity]}]
      affinity:
        nodeAffinity:
          preferredDuringSchedulingIgnoredDuringExecution:
            - weight: 100
              preference: {matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [n2]}]}
";

/// After power cut and reboot the node's pods run again, no two of them share an address, and every
/// address that is held has its pod. A StatefulSet's pod need not wait for the reboot.
pub(crate) fn cut_and_reboot(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.apply(KEEPER)?;
    let place = || cluster.kubectl("get pod keeper-0 -o jsonpath={.spec.nodeName}_{.status.podIP}");
    cluster.kubectl("rollout status statefulset/keeper --timeout=60s")?;
    let before = place()?;
    ensure!(before.starts_with("n2_10."), "keeper-0 is at {before}");
    start_again(cluster, &["2"], || {
        cluster.kubectl("wait --for=condition=Ready=Unknown node/n2 --timeout=60s")?;
        // Somebody has to say that it will not come back.
        cluster.kubectl("delete pod keeper-0 --grace-period=0 --force")?;
        eventually("its next pod has the address on the other node", PATIENCE, || {
            let now = place()?;
            ensure!(now == before.replace("n2_", "n1_"), "keeper-0 was at {before}, is at {now}");
            Ok(true)
        })?;
        cluster.exec("keeper-0", "ping -c 1 -W 2 10.244.0.1").map(drop)
    })?;
    ensure!(place()? == before.replace("n2_", "n1_"), "the reboot has moved keeper-0");
    cluster.kubectl("delete statefulset/keeper --timeout=60s")?;
    eventually("no address is held without a pod", PATIENCE, || no_address_leaks(cluster))
}

/// The same when all processes die and the kernel lives on, with networks and mounts of what is dead: the
/// NIC is still taken over, and a kubelet that knows nothing starts no data plane without it. The
/// administrator gives it back, as docs/uplinks.md says.
pub(crate) fn crash_of_all_but_the_kernel(cluster: &Cluster) -> anyhow::Result<()> {
    start_again(cluster, &["2", "keep"], || Ok(()))
}

fn start_again(
    cluster: &Cluster,
    node: &[&str],
    meanwhile: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    cluster.apply(&format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: power}}
spec:
  replicas: 6
  selector: {{matchLabels: {{app: power}}}}
  template: {{metadata: {{labels: {{app: power}}}}, spec: {}}}
",
        crate::workloads::SLEEPER
    ))?;
    cluster.kubectl("rollout status deployment/power --timeout=60s")?;
    let before = sandboxes(cluster)?;
    cluster.run("power-cut.sh", &["2"])?;
    meanwhile()?;
    cluster.run("node.sh", node)?;
    if node.contains(&"keep") {
        let built = cluster.scripts().join("../../target/release");
        let binaries = std::env::var_os("BOWLINE_BINARIES").map_or(built, PathBuf::from);
        let program = binaries.join("bowline-dataplane");
        let give_back = "--uplink eth0=packet --state-dir /run/bowline --give-back";
        cluster.on_node(2, &format!("env -u LD_LIBRARY_PATH {} {give_back}", program.display()))?;
    }
    // The kubelet says what its pods are only when it is back: until then the old status stands.
    eventually("every pod's sandbox is a new one", PATIENCE, || {
        let running = sandboxes(cluster)?;
        let old: Vec<_> = running.intersection(&before).collect();
        // Who has ended, a Job's pod, has no sandbox.
        let of_node_2 = "spec.nodeName=n2,spec.hostNetwork=false";
        let alive = "status.phase!=Succeeded,status.phase!=Failed";
        let pods = cluster.get(&format!("pods -A --field-selector {of_node_2},{alive}"))?;
        let pods: Vec<_> = pods["items"].as_array().into_iter().flatten().collect();
        let names: Vec<_> = pods.iter().map(|pod| &pod["metadata"]["name"]).collect();
        ensure!(old.is_empty(), "{old:?} are still there");
        ensure!(running.len() == names.len(), "{names:?} have {running:?}");
        Ok(true)
    })?;
    cluster.kubectl("wait --for=condition=Ready node/n2 --timeout=60s")?;
    cluster.ready("pod -l app=power")?;
    let pods = cluster.get("pods -l app=power")?;
    let first = text(&pods, "/items/0/metadata/name")?;
    for pod in pods["items"].as_array().context("no pods")? {
        let address = text(pod, "/status/podIP")?;
        cluster.exec(first, &format!("ping -c 1 -W 2 {address}"))?;
    }
    cluster.kubectl("delete deployment/power --timeout=60s")?;
    eventually("no address is held without a pod", PATIENCE, || no_address_leaks(cluster))
}

/// The networks of node 2's pods.
fn sandboxes(cluster: &Cluster) -> anyhow::Result<BTreeSet<String>> {
    let list = cluster.on_node(2, "ls /run/netns | grep '^cni-' || true")?;
    Ok(list.lines().map(str::to_owned).collect())
}

/// Each held address is a pod's that exists, under its UID, and one pod's only.
pub(crate) fn no_address_leaks(cluster: &Cluster) -> anyhow::Result<bool> {
    let pods = cluster.get("pods -A")?;
    let uid = |pod: &serde_json::Value| pod["metadata"]["uid"].as_str().map(str::to_owned);
    let alive: Vec<String> =
        pods["items"].as_array().into_iter().flatten().filter_map(uid).collect();
    let blocks = cluster.get("addressblocks")?;
    let mut holders = BTreeMap::new();
    for block in blocks["items"].as_array().into_iter().flatten() {
        let network = block["spec"]["network"].as_str().unwrap_or_default();
        for entry in block["spec"]["entries"].as_array().into_iter().flatten() {
            let held = ["Intent", "Allocated"].contains(&text(entry, "/state")?);
            if !held || entry["owner"]["kind"] == "Node" {
                continue;
            }
            let (address, owner) = (text(entry, "/address")?, text(entry, "/owner/uid")?);
            ensure!(
                alive.iter().any(|u| u == owner),
                "{network} {address} is held by {}",
                entry["owner"]
            );
            let other = holders.insert((network.to_owned(), address.to_owned()), owner.to_owned());
            ensure!(other.is_none(), "{network} {address} is held twice");
        }
    }
    Ok(true)
}
