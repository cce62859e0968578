//! Kubernetes' own kinds of workload on `default`.

use std::time::Duration;

use anyhow::{Context, ensure};
use bowline_e2e::{Cluster, eventually, text};
use serde_json::Value;

const MINUTE: Duration = Duration::from_secs(60);

/// A pod template's body that sleeps.
pub(crate) const SLEEPER: &str = "{terminationGracePeriodSeconds: 0, containers: [{name: c, image: localhost/busybox:1, command: [sleep, infinity]}]}";

/// Makes a workload of this kind with pods that sleep; `more` is part of its spec.
fn make(cluster: &Cluster, kind: &str, name: &str, more: &str) -> anyhow::Result<()> {
    cluster.apply(&format!(
        "apiVersion: apps/v1
kind: {kind}
metadata: {{name: {name}}}
spec:
  selector: {{matchLabels: {{app: {name}}}}}
  {more}
  template: {{metadata: {{labels: {{app: {name}}}}}, spec: {SLEEPER}}}
"
    ))
}

/// The pods of an application that are not on their way out.
fn pods(cluster: &Cluster, app: &str) -> anyhow::Result<Vec<Value>> {
    let list = cluster.get(&format!("pods -l app={app}"))?;
    let items = list["items"].as_array().context("no list")?.clone();
    Ok(items.into_iter().filter(|p| p["metadata"]["deletionTimestamp"].is_null()).collect())
}

/// Name and IPv4 address of each pod, in order.
fn addresses(pods: &[Value]) -> anyhow::Result<Vec<(String, String)>> {
    let one = |pod: &Value| {
        let (name, address) = (text(pod, "/metadata/name")?, text(pod, "/status/podIP")?);
        Ok((name.to_owned(), address.to_owned()))
    };
    let mut all = pods.iter().map(one).collect::<anyhow::Result<Vec<_>>>()?;
    all.sort();
    Ok(all)
}

fn remove(cluster: &Cluster, what: &str) -> anyhow::Result<()> {
    cluster.kubectl(&format!("delete {what} --wait=true --timeout=60s")).map(drop)
}

/// Every pod has its own address of each family, and pings every other's, on both nodes.
pub(crate) fn deployment(cluster: &Cluster) -> anyhow::Result<()> {
    make(cluster, "Deployment", "web", "replicas: 6")?;
    cluster.kubectl("rollout status deployment/web --timeout=60s")?;
    let pods = pods(cluster, "web")?;
    let mut distinct = std::collections::BTreeSet::new();
    for pod in &pods {
        for ip in pod["status"]["podIPs"].as_array().context("no podIPs")? {
            ensure!(distinct.insert(text(ip, "/ip")?.to_owned()), "{ip} twice");
        }
    }
    ensure!(distinct.len() == 12, "six pods of two families: {distinct:?}");
    let from = text(&pods[0], "/metadata/name")?;
    for address in &distinct {
        cluster.exec(from, &format!("ping -c 1 -W 2 {address}"))?;
    }
    remove(cluster, "deployment/web")
}

/// A pod that is made anew has the address that its name had.
pub(crate) fn stateful_set(cluster: &Cluster) -> anyhow::Result<()> {
    let more = "replicas: 3\n  serviceName: db\n  podManagementPolicy: Parallel";
    make(cluster, "StatefulSet", "db", more)?;
    cluster.kubectl("rollout status statefulset/db --timeout=60s")?;
    let before = addresses(&pods(cluster, "db")?)?;
    remove(cluster, "pod -l app=db")?;
    eventually("three pods again", MINUTE, || Ok(pods(cluster, "db")?.len() == 3))?;
    cluster.ready("pod -l app=db")?;
    let after = addresses(&pods(cluster, "db")?)?;
    ensure!(before == after, "before {before:?}, after {after:?}");
    remove(cluster, "statefulset/db")
}

/// One pod on each node.
pub(crate) fn daemon_set(cluster: &Cluster) -> anyhow::Result<()> {
    make(cluster, "DaemonSet", "every", "")?;
    cluster.kubectl("rollout status daemonset/every --timeout=60s")?;
    let pods = pods(cluster, "every")?;
    let mut nodes =
        pods.iter().map(|p| text(p, "/spec/nodeName")).collect::<Result<Vec<_>, _>>()?;
    nodes.sort_unstable();
    ensure!(nodes == ["n1", "n2"], "{nodes:?}");
    remove(cluster, "daemonset/every")
}

/// The kubelet's probes over HTTP and TCP, `kubectl logs` and `exec`, a pod of the node's own network.
pub(crate) fn node_reaches_pods(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.apply(
        "apiVersion: v1
kind: Pod
metadata: {name: probed}
spec:
  nodeSelector: {kubernetes.io/hostname: n1}
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: localhost/busybox:1
    command: [sh, -c, 'echo hello-from-the-log; mkdir /www; echo found > /www/index.html; exec httpd -f -p 8080 -h /www']
    readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
    livenessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: on-the-host}
spec:
  nodeSelector: {kubernetes.io/hostname: n2}
  hostNetwork: true
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: localhost/busybox:1, command: [sleep, infinity]}]
",
    )?;
    cluster.ready("pod/probed pod/on-the-host")?;
    ensure!(cluster.kubectl("logs probed")?.contains("hello-from-the-log"), "the log is not there");
    let pod = cluster.get("pod probed")?;
    for ip in pod["status"]["podIPs"].as_array().context("no podIPs")? {
        let address = text(ip, "/ip")?;
        let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
        let fetch = format!("wget -q -O - http://{host}:8080/");
        for pod in ["probed", "on-the-host"] {
            let page = cluster.exec(pod, &fetch).with_context(|| format!("from {pod}"))?;
            ensure!(page.trim() == "found", "from {pod}: {page}");
        }
    }
    remove(cluster, "pod/probed pod/on-the-host")
}

/// By the Service `kubernetes`, from an ordinary pod.
pub(crate) fn api_server(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.apply(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: client}}, spec: {SLEEPER}}}"
    ))?;
    cluster.ready("pod/client")?;
    let reach = "nc -w 3 $KUBERNETES_SERVICE_HOST $KUBERNETES_SERVICE_PORT < /dev/null";
    cluster.exec("client", reach)?;
    remove(cluster, "pod/client")
}

/// Everything that Kubernetes admits of a pod's text: annotations of 250,000 bytes, a thousand variables.
pub(crate) fn very_long_yaml(cluster: &Cluster) -> anyhow::Result<()> {
    use std::fmt::Write;

    let mut variables = String::new();
    for n in 0..1000 {
        write!(variables, "{{name: V{n}, value: \"{n:0100}\"}}, ")?;
    }
    let container = format!(
        "[{{name: c, image: localhost/busybox:1, command: [sleep, infinity], env: [{variables}]}}]"
    );
    let pod = format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: long, annotations: {{note: {}}}}}, spec: {{terminationGracePeriodSeconds: 0, containers: {container}}}}}",
        "x".repeat(250_000)
    );
    // `kubectl apply` would note the whole text in one more annotation.
    cluster.create(&pod)?;
    cluster.ready("pod/long")?;
    cluster.exec("long", "ping -c 1 -W 2 10.244.0.1")?;
    remove(cluster, "pod/long")
}
