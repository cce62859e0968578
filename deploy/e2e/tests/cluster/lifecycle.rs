//! Install, upgrade, rollback, uninstall.

use std::time::Duration;

use anyhow::ensure;
use bowline_e2e::{Cluster, SYSTEM, eventually};

const MINUTE: Duration = Duration::from_secs(60);

/// Every pod of Bowline is ready, both nodes are, and each NodeState says so.
pub(crate) fn every_part_runs(cluster: &Cluster) -> anyhow::Result<()> {
    for part in ["dataplane", "agent", "controller"] {
        cluster.ready(&format!("-n {SYSTEM} pod -l app.kubernetes.io/component={part}"))?;
    }
    cluster.kubectl("wait --for=condition=Ready node --all --timeout=60s")?;
    cluster.kubectl("wait --for=condition=Ready nodestate --all --timeout=60s").map(drop)
}

fn helm(cluster: &Cluster, words: &str) -> anyhow::Result<String> {
    cluster.run("helm.sh", &words.split_whitespace().collect::<Vec<_>>())
}

/// Another log level rolls through the agents; the rollback takes it back. A running pod notices
/// neither, and its addresses stay.
pub(crate) fn upgrade_and_rollback(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.apply(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: stays}}, spec: {}}}",
        crate::workloads::SLEEPER
    ))?;
    cluster.ready("pod/stays")?;
    let before = cluster.kubectl("get pod stays -o jsonpath={.status.podIPs}")?;
    let scripts = cluster.scripts().display();
    helm(
        cluster,
        &format!(
            "upgrade bowline {scripts}/../chart/bowline -n {SYSTEM} -f {scripts}/values.yaml --set agent.log=debug"
        ),
    )?;
    let level = "get ds bowline-agent -o jsonpath={.spec.template.spec.containers[0].env}";
    rolled(cluster)?;
    ensure!(cluster.kubectl(&format!("-n {SYSTEM} {level}"))?.contains("debug"), "not upgraded");
    helm(cluster, &format!("rollback bowline 1 -n {SYSTEM}"))?;
    rolled(cluster)?;
    ensure!(
        !cluster.kubectl(&format!("-n {SYSTEM} {level}"))?.contains("debug"),
        "not rolled back"
    );
    let after = cluster.kubectl("get pod stays -o jsonpath={.status.podIPs}")?;
    ensure!(before == after, "before {before}, after {after}");
    cluster.exec("stays", "ping -c 2 -W 2 10.244.0.1")?;
    cluster.kubectl("delete pod stays --timeout=60s").map(drop)
}

fn rolled(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.kubectl(&format!("-n {SYSTEM} rollout status ds/bowline-agent --timeout=60s"))?;
    cluster
        .kubectl(&format!("-n {SYSTEM} rollout status deploy/bowline-controller --timeout=60s"))?;
    every_part_runs(cluster)
}

/// Nothing of Bowline is left: no object, no definition, no file, device, table or namespace on the
/// nodes; the NIC is the kernel's again.
pub(crate) fn uninstall(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.kubectl("delete pod --all --timeout=60s")?;
    // One of each kind that waits for its finalizer.
    cluster.apply(
        "apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderSubnet
metadata: {name: last}
spec: {subnet: 10.9.0.0/24, ips: [10.9.0.10-10.9.0.20]}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderReservedIP
metadata: {name: last}
spec: {ips: [10.9.0.15]}
",
    )?;
    leave_nothing(cluster)
}

fn leave_nothing(cluster: &Cluster) -> anyhow::Result<()> {
    helm(cluster, &format!("uninstall bowline -n {SYSTEM} --wait --timeout 120s"))?;
    eventually("Bowline's pods are gone", MINUTE, || {
        Ok(cluster.kubectl(&format!("-n {SYSTEM} get pods -o name"))?.is_empty())
    })?;
    let kinds = "clusterrole,clusterrolebinding,crd,validatingwebhookconfiguration,mutatingwebhookconfiguration,\
                 validatingadmissionpolicy,validatingadmissionpolicybinding";
    eventually("no object is left", MINUTE, || {
        let left = cluster.kubectl(&format!("get {kinds} -o name"))?;
        let ours = |line: &&str| line.contains("bowline") || line.contains("spiderpool");
        let ours: Vec<_> = left.lines().filter(ours).collect();
        ensure!(ours.is_empty(), "left: {ours:?}");
        Ok(true)
    })?;
    for node in [1, 2] {
        let looks = [
            "ls /etc/cni/net.d /opt/cni/bin | grep -E 'bowline|spiderpool|coordinator|ifacer'",
            "ip -o link | grep -E 'bowline|tun type'",
            "nft list tables | grep bowline",
            "ls /run/netns | grep bowline",
            "ip -d -o link show eth0 | grep ' tun '",
        ];
        for look in looks {
            let left = cluster.on_node(node, &format!("{look} || true"))?;
            ensure!(left.trim().is_empty(), "n{node} still has ({look}): {left}");
        }
    }
    Ok(())
}

/// On the same nodes again, as an operator with other wishes: another prefix that needs no more than to be
/// named, a small MTU, one replica, neither webhooks nor policies, and Helm waits until all is ready.
pub(crate) fn other_values(cluster: &Cluster) -> anyhow::Result<()> {
    let scripts = cluster.scripts().display();
    let values = "apiServer.host=10.90.0.1,defaultNetwork.ipv4.subnet=10.50.0.0/20,defaultNetwork.mtu=1400,\
        controller.replicas=1,controller.reclaim.interval=1m,webhooks.enabled=false,admissionPolicies.enabled=false,\
        agent.metricsAddress=127.0.0.1:9999,dataplane.workers=2,dataplane.resources.limits.memory=2Gi"
        .replace(' ', "");
    helm(
        cluster,
        &format!(
            "install bowline {scripts}/../chart/bowline -n {SYSTEM} --wait --timeout 120s --set {values}"
        ),
    )?;
    every_part_runs(cluster)?;
    for (name, node) in [("small", "n1"), ("far", "n2")] {
        let body = crate::workloads::SLEEPER.replacen('{', &format!("{{nodeName: {node}, "), 1);
        cluster.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {body}}}"
        ))?;
    }
    cluster.ready("pod/small pod/far")?;
    let link = cluster.exec("small", "ip link show eth0")?;
    ensure!(link.contains("mtu 1400"), "{link}");
    let address = cluster.kubectl("get pod far -o jsonpath={.status.podIPs[*].ip}")?;
    ensure!(address.starts_with("10.50.") && !address.contains(' '), "one family: {address}");
    cluster.exec("small", &format!("ping -c 1 -W 2 -s 1372 {address}"))?;
    cluster.kubectl("delete pod small far --timeout=60s")?;
    leave_nothing(cluster)
}
