//! What Kubernetes' own tests leave out: Services of both families, large datagrams, clients' addresses
//! under `externalTrafficPolicy: Local`, and tunnel packets that a pod forges.

use std::time::Duration;

use anyhow::{Context, ensure};
use bowline_e2e::{Cluster, SYSTEM, eventually, text};

use crate::workloads::SLEEPER;

const SOON: Duration = Duration::from_secs(30);
const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: far}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: far}
  ports: [{name: tcp, port: 80, targetPort: 8080}, {name: udp, port: 77, targetPort: 7777, protocol: UDP}]
---
apiVersion: v1
kind: Service
metadata: {name: far-local}
spec:
  type: NodePort
  externalTrafficPolicy: Local
  ipFamilyPolicy: RequireDualStack
  selector: {app: far}
  ports: [{port: 80, targetPort: 8080}]
";

/// `near` on n1, and `far` on n2, which serves TCP and UDP.
fn pods(cluster: &Cluster) -> anyhow::Result<()> {
    for (name, node) in [("near", "n1"), ("far", "n2")] {
        let body = SLEEPER.replacen('{', &format!("{{nodeName: {node}, "), 1);
        cluster.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{app: {name}}}}}, spec: {body}}}"
        ))?;
    }
    cluster.apply(SERVICES)?;
    cluster.ready("pod/near pod/far")?;
    let serve = peer(cluster, "serve > /dev/null 2>&1 &");
    cluster.in_pod_network(2, &address(cluster, "far")?, &serve).map(drop)
}

fn peer(cluster: &Cluster, words: &str) -> String {
    format!("python3 {}/peer.py {words}", cluster.scripts().display())
}

fn address(cluster: &Cluster, pod: &str) -> anyhow::Result<String> {
    cluster.kubectl(&format!("get pod {pod} -o jsonpath={{.status.podIP}}"))
}

/// The addresses in a list of an object: `.status.podIPs[*].ip`, `.spec.clusterIPs[*]`.
fn addresses(cluster: &Cluster, object: &str, path: &str) -> anyhow::Result<Vec<String>> {
    let words = cluster.kubectl(&format!("get {object} -o jsonpath={{{path}}}"))?;
    let all: Vec<String> = words.split(' ').map(str::to_owned).collect();
    ensure!(all.len() == 2, "not one of each family: {all:?}");
    Ok(all)
}

/// A Service has an address of each family, and both lead to the pod on the other node: small and
/// large datagrams of UDP, and TCP. So do the pod's own addresses.
pub(crate) fn both_families_and_large_datagrams(cluster: &Cluster) -> anyhow::Result<()> {
    pods(cluster)?;
    let near = address(cluster, "near")?;
    let own = addresses(cluster, "pod far", ".status.podIPs[*].ip")?;
    let service = addresses(cluster, "service far", ".spec.clusterIPs[*]")?;
    let own = own.iter().map(|a| (a, "8080", "7777"));
    for (to, tcp, udp) in own.chain(service.iter().map(|a| (a, "80", "77"))) {
        for words in [
            format!("tcp {to} {tcp}"),
            format!("udp {to} {udp} 100"),
            format!("udp {to} {udp} 60000"),
        ] {
            eventually(&words, SOON, || {
                cluster.in_pod_network(1, &near, &peer(cluster, &words)).map(|_| true)
            })?;
        }
    }
    Ok(())
}

/// The node with the pod answers at the node port and the pod sees the client's own address; the other
/// node does not answer.
pub(crate) fn local_policy_keeps_the_client(cluster: &Cluster) -> anyhow::Result<()> {
    pods(cluster)?;
    let port = cluster.kubectl("get service far-local -o jsonpath={.spec.ports[0].nodePort}")?;
    for (client, with, without) in
        [("10.90.0.1", "10.90.0.12", "10.90.0.11"), ("fd00:90::1", "fd00:90::12", "fd00:90::11")]
    {
        eventually(&format!("{with} answers at port {port}"), SOON, || {
            let said = cluster.outside(&peer(cluster, &format!("tcp {with} {port}")))?;
            ensure!(said.trim() == client, "the pod took {client} for {said}");
            Ok(true)
        })?;
        let other = cluster.outside(&peer(cluster, &format!("tcp {without} {port}")));
        ensure!(other.is_err(), "{without} has no such pod and answers: {other:?}");
    }
    cluster.kubectl("delete pod/near pod/far service/far service/far-local --timeout=60s").map(drop)
}

/// VXLAN that a pod of `default` sends to another node leaves with its node's address, which is a tunnel
/// end of every Network; it must enter none. The same packets from where nobody checks show that
/// they would have been taken.
pub(crate) fn forged_tunnels_enter_no_network(cluster: &Cluster) -> anyhow::Result<()> {
    crate::networks::demo(cluster)?;
    let mac =
        |node| cluster.kubectl(&format!("get nodestate {node} -o jsonpath={{.spec.routerMAC}}"));
    let macs = format!("{},{}", mac("n1")?, mac("n2")?);
    let forged = |source: &str, text: &str, how: &str| {
        let inner = "10.0.0.11,10.0.0.12";
        peer(cluster, &format!("vxlan {source},10.90.0.12 56 {macs} {inner} 9999 {text} {how}"))
    };
    let file = "/run/forged";
    let collect = peer(cluster, &format!("collect 10.0.0.12 9999 {file} > /dev/null 2>&1 &"));
    cluster.in_pod_network(2, &address(cluster, "blue-2")?, &collect)?;
    let arrived = || cluster.on_node(2, &format!("cat {file}"));
    eventually("the collector is there", SOON, || Ok(arrived()?.contains("ready")))?;
    let before = injections(cluster)?;
    let pod = address(cluster, "red-1")?;
    for _ in 0..5 {
        cluster.in_pod_network(1, &pod, &forged(&pod, "from-a-pod", ""))?;
        cluster.in_pod_network(1, &pod, &forged(&pod, "in-fragments", "fragments"))?;
    }
    eventually("what nobody checks arrives", SOON, || {
        cluster.outside(&forged("10.90.0.11", "from-outside", "raw"))?;
        Ok(arrived()?.contains("from-outside"))
    })?;
    let arrived = arrived()?;
    ensure!(!arrived.contains("from-a-pod") && !arrived.contains("in-fragments"), "{arrived}");
    let after = injections(cluster)?;
    ensure!(after >= before + 5, "node 1 counts {before} forged packets before and {after} after");
    cluster.on_node(2, &format!("rm {file}")).map(drop)
}

/// How many packets the data plane of node 1 has dropped as forged tunnels.
fn injections(cluster: &Cluster) -> anyhow::Result<u64> {
    let part = cluster.part("dataplane", 1)?;
    let shown =
        cluster.kubectl(&format!("-n {SYSTEM} exec {part} -- bowline -o json get drops"))?;
    let rows: serde_json::Value = serde_json::from_str(&shown)?;
    let rows = rows.as_array().context("no list of drops")?;
    let forged =
        rows.iter().filter(|row| text(row, "/reason").is_ok_and(|r| r == "vxlan_injection"));
    Ok(forged.filter_map(|row| row["pkts"].as_u64()).sum())
}
