//! The YAML of Spiderpool's public documents (manifests/documents): applied as it is, with the result
//! that the document promises.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bowline_e2e::{Cluster, eventually, refused, text};
use serde_json::Value;

use crate::services::{drop_multus, use_multus};

const MINUTE: Duration = Duration::from_secs(60);
/// What the documents count on beside their own objects: prefixes for the coordinator, labels of the
/// nodes, and what the article's DaemonSet names.
const COMPANIONS: &str = r#"
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderCoordinator
metadata: {name: default}
spec: {podCIDRType: none}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderSubnet
metadata: {name: default-v4-subnet}
spec: {subnet: 10.8.0.0/16, gateway: 10.8.0.1, ips: [10.8.0.10-10.8.0.99]}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderMultusConfig
metadata: {name: macvlan-standalone-vlan0, namespace: kube-system}
spec: {cniType: macvlan, macvlan: {master: [ens192]}}
"#;

/// A line of manifests/documents/list.
struct Listed {
    file: String,
    /// Words of the refusal; `None`: the object is applied.
    refusal: Option<String>,
}

fn listed(cluster: &Cluster) -> anyhow::Result<Vec<Listed>> {
    let path = cluster.scripts().join("manifests/documents/list");
    let list = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let lines = list.lines().filter(|l| !l.starts_with('#'));
    lines.map(|line| read(line).with_context(|| format!("{}: {line}", path.display()))).collect()
}

fn read(line: &str) -> anyhow::Result<Listed> {
    let (said, reason) = line.split_once(" | ").unwrap_or((line, ""));
    let (file, fate) = said.split_once(' ').context("no fate")?;
    let refusal = match fate.split_once(' ') {
        None if fate == "applied" => None,
        Some(("refused", words)) if !reason.is_empty() => Some(words.to_owned()),
        _ => bail!("is neither \"applied\" nor \"refused WORDS | REASON\""),
    };
    Ok(Listed { file: file.into(), refusal })
}

fn apply(cluster: &Cluster, file: &str) -> anyhow::Result<String> {
    cluster.run("manifests/documents/apply.sh", &[file])
}

/// Every object is applied or refused as the list says, and every file is in the list.
pub(crate) fn are_applied_as_they_are(cluster: &Cluster) -> anyhow::Result<()> {
    prepare(cluster)?;
    let listed = listed(cluster)?;
    let folder = cluster.scripts().join("manifests/documents");
    let files: BTreeSet<String> = std::fs::read_dir(folder)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.ends_with(".yaml"))
        .collect();
    let known: BTreeSet<String> = listed.iter().map(|l| l.file.clone()).collect();
    ensure!(files == known, "files {files:?}\nlist {known:?}");
    for Listed { file, refusal } in &listed {
        let applied = apply(cluster, file);
        match refusal {
            None => drop(applied.with_context(|| file.clone())?),
            Some(words) => refused(applied, words).with_context(|| file.clone())?,
        }
    }
    Ok(())
}

/// Multus, a LAN with the NIC that the documents name, labelled nodes, companions.
fn prepare(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.run("lan.sh", &["on"])?;
    use_multus(cluster)?;
    cluster.kubectl("label node n1 node-subnet=subnet-6")?;
    cluster.kubectl("label node n2 node-subnet=subnet-7")?;
    cluster.apply(COMPANIONS)?;
    eventually("the coordinator knows the cluster's prefixes", MINUTE, || {
        let phase = cluster.kubectl("get spidercoordinator default -o jsonpath={.status.phase}")?;
        Ok(phase == "Synced")
    })
}

/// Takes back what [`prepare`] and the documents made.
pub(crate) fn go_without_a_trace(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.kubectl("delete daemonset ipvlan test-app --cascade=foreground --timeout=60s")?;
    cluster.kubectl("delete service ipvlan --ignore-not-found")?;
    drop_multus(cluster)?;
    let configs = "macvlan-ens192 macvlan-standalone-vlan0";
    cluster
        .kubectl(&format!("-n kube-system delete spidermultusconfig {configs} --timeout=60s"))?;
    cluster.kubectl("-n kube-system delete network-attachment-definition macvlan-conf")?;
    eventually("definitions go with their configurations", MINUTE, || {
        let left = cluster.kubectl("-n kube-system get network-attachment-definition -o name")?;
        Ok(!left.contains("macvlan"))
    })?;
    delete_when_free(cluster, "spiderippool v4-pool test-ippool-6 test-ippool-7")?;
    delete_when_free(cluster, "spidersubnet default-v4-subnet")?;
    cluster.kubectl("delete spidercoordinator default --timeout=60s")?;
    cluster.kubectl("label node n1 n2 node-subnet-")?;
    cluster.run("lan.sh", &["off"]).map(drop)
}

/// Deletes what is refused to go while its addresses are held.
pub(crate) fn delete_when_free(cluster: &Cluster, what: &str) -> anyhow::Result<()> {
    let delete = format!("delete {what} --ignore-not-found --timeout=60s");
    eventually(&delete, MINUTE, || cluster.kubectl(&delete).map(|_| true))
}

/// The pod of a DaemonSet on each node, in order, once both are ready.
fn pods_of(cluster: &Cluster, app: &str) -> anyhow::Result<[Value; 2]> {
    let mut pods = Vec::new();
    eventually(&format!("two ready pods of {app}"), MINUTE, || {
        let list = cluster.get(&format!("pods -l app={app}"))?;
        let all = list["items"].as_array().context("no list")?;
        let ready = |pod: &&Value| {
            let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
            let is_ready = |c: &Value| c["type"] == "Ready" && c["status"] == "True";
            pod["metadata"]["deletionTimestamp"].is_null() && conditions.into_iter().any(is_ready)
        };
        pods = all.iter().filter(ready).cloned().collect();
        ensure!(
            pods.len() == 2,
            "{}",
            cluster.kubectl("get events --field-selector type=Warning")?
        );
        Ok(true)
    })?;
    pods.sort_by_key(|pod| pod["spec"]["nodeName"].as_str().map(str::to_owned));
    pods.try_into().map_err(|_| anyhow::anyhow!("there were two pods"))
}

fn name(pod: &Value) -> anyhow::Result<&str> {
    text(pod, "/metadata/name")
}

fn address(pod: &Value) -> anyhow::Result<&str> {
    text(pod, "/status/podIP")
}

/// "Access to service": macvlan pods on both nodes with addresses of the pool, `veth0` to the node, the
/// routes that the page shows, and a Service that answers.
pub(crate) fn underlay_pods_reach_services(cluster: &Cluster) -> anyhow::Result<()> {
    let chain = definition(cluster, "macvlan-ens192")?;
    let types: Vec<_> =
        chain["plugins"].as_array().context("no chain")?.iter().map(|p| &p["type"]).collect();
    ensure!(types == ["macvlan", "coordinator"], "{chain}");
    let pods = pods_of(cluster, "ipvlan")?;
    for (pod, node) in pods.iter().zip(["10.90.0.11", "10.90.0.12"]) {
        let last: u8 =
            address(pod)?.strip_prefix("172.81.0.").context("another prefix")?.parse()?;
        ensure!((100..=120).contains(&last), "{}", address(pod)?);
        let routes = cluster.exec(name(pod)?, "ip route")?;
        for route in
            ["default via 172.81.0.1 dev eth0", &format!("{node} dev veth0"), "10.96.0.0/16 "]
        {
            ensure!(routes.contains(route), "no route {route} in {routes}");
        }
        ensure!(
            routes.lines().any(|r| r.starts_with("10.96.0.0/16") && r.contains("dev veth0")),
            "{routes}"
        );
    }
    // The document's Service, as it was meant.
    cluster.apply(
        "apiVersion: v1
kind: Service
metadata: {name: ipvlan}
spec: {ports: [{name: http, port: 80, protocol: TCP, targetPort: 80}], selector: {app: ipvlan}, type: ClusterIP}
",
    )?;
    let service = cluster.kubectl("get service ipvlan -o jsonpath={.spec.clusterIP}")?;
    for pod in &pods {
        // Often enough that both pods of the Service are chosen.
        let fetch = format!(
            "for i in 1 2 3 4 5 6; do timeout 5 wget -q -O - http://{service}/ || exit 1; done"
        );
        eventually("the Service answers", MINUTE, || {
            Ok(cluster.exec(name(pod)?, &fetch)?.matches("ok").count() == 6)
        })?;
    }
    Ok(())
}

/// The chain that a definition of kube-system says.
fn definition(cluster: &Cluster, name: &str) -> anyhow::Result<Value> {
    let found = cluster.get(&format!("-n kube-system network-attachment-definition {name}"))?;
    Ok(serde_json::from_str(text(&found, "/spec/config")?)?)
}

/// "Across network zones": each pod's address is of the pool of its node's zone, and zones reach each
/// other. As written, the article's DaemonSet asks for an automatic pool; with the annotation that
/// its text describes, for the two pools.
pub(crate) fn addresses_follow_the_zone(cluster: &Cluster) -> anyhow::Result<()> {
    for pod in &pods_of(cluster, "test-app")? {
        ensure!(
            address(pod)?.starts_with("10.8.0."),
            "not of default-v4-subnet: {}",
            address(pod)?
        );
    }
    cluster.kubectl("delete daemonset test-app --cascade=foreground --timeout=60s")?;
    let folder = cluster.scripts().join("manifests/documents");
    let written = std::fs::read_to_string(folder.join("zones-daemonset.yaml"))?;
    let described = written
        .replace("ipam.spidernet.io/subnet:", "ipam.spidernet.io/ippool:")
        .replace("\"default-v4-subnet\"", "\"test-ippool-6\", \"test-ippool-7\"");
    cluster.apply(&described)?;
    let pods = pods_of(cluster, "test-app")?;
    for (pod, zone) in pods.iter().zip(["10.6.168.6", "10.7.168.6"]) {
        ensure!(address(pod)?.starts_with(zone), "{} in zone {zone}0", address(pod)?);
    }
    cluster.exec(name(&pods[0])?, &format!("ping -c 2 -W 2 {}", address(&pods[1])?))?;
    let counts = "get spiderippool test-ippool-6 test-ippool-7 -o jsonpath={.items[*].status.allocatedIPCount}/{.items[*].status.totalIPCount}";
    eventually(
        "each pool counts one of ten",
        MINUTE,
        || Ok(cluster.kubectl(counts)? == "1 1/10 10"),
    )
}

/// What the slides promise of their excerpts, once these are objects: the definition of a
/// SpiderMultusConfig with a VLAN, and a pool for pods of one label.
pub(crate) fn excerpts_come_true(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.apply(
        r#"
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderMultusConfig
metadata: {name: macvlan-eno1, namespace: kube-system}
spec: {cniType: macvlan, macvlan: {master: [eno1], vlanID: 100, ippools: {ipv4: ["eno1-net90"]}}}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: fixed-ippool}
spec:
  subnet: 10.6.0.0/16
  ips: [10.6.0.10-10.6.0.15]
  gateway: 10.6.0.1
  podAffinity: {matchLabels: {app: server}}
"#,
    )?;
    let chain = || definition(cluster, "macvlan-eno1");
    eventually("a definition", MINUTE, || chain().map(|_| true))?;
    // Whoever edits it gets it back.
    cluster.kubectl("-n kube-system patch network-attachment-definition macvlan-eno1 --type=merge -p {\"spec\":{\"config\":\"{}\"}}")?;
    eventually("the slide's definition", MINUTE, || {
        let chain = chain()?;
        let plugins = chain["plugins"].as_array().context("no chain")?;
        ensure!(plugins.len() == 3, "{chain}");
        let ifacer = &plugins[0];
        ensure!(ifacer["type"] == "ifacer" && ifacer["vlanID"] == 100, "{ifacer}");
        ensure!(ifacer["interfaces"] == serde_json::json!(["eno1"]), "{ifacer}");
        let macvlan = serde_json::json!({"type": "macvlan", "master": "eno1.100", "mode": "bridge",
            "ipam": {"type": "spiderpool", "default_ipv4_ippool": ["eno1-net90"]}});
        ensure!(plugins[1] == macvlan, "{}", plugins[1]);
        ensure!(plugins[2]["type"] == "coordinator", "{}", plugins[2]);
        Ok(true)
    })?;
    for app in ["server", "client"] {
        cluster.apply(&format!(
            r#"
apiVersion: apps/v1
kind: StatefulSet
metadata: {{name: {app}}}
spec:
  selector: {{matchLabels: {{app: {app}}}}}
  serviceName: {app}
  template:
    metadata:
      labels: {{app: {app}}}
      annotations:
        ipam.spidernet.io/ippool: '{{"ipv4": ["fixed-ippool"]}}'
        v1.multus-cni.io/default-network: kube-system/macvlan-standalone-vlan0
    spec: {}
"#,
            crate::workloads::SLEEPER
        ))?;
    }
    cluster.ready("pod/server-0")?;
    let served = cluster.kubectl("get pod server-0 -o jsonpath={.status.podIP}")?;
    ensure!(served.starts_with("10.6.0.1"), "{served}");
    eventually("the client is told why", MINUTE, || {
        let said = cluster.kubectl("get events --field-selector involvedObject.name=client-0")?;
        ensure!(said.contains("fixed-ippool") && said.contains("podAffinity"), "{said}");
        Ok(true)
    })?;
    cluster.kubectl("delete statefulset server client --cascade=foreground --timeout=60s")?;
    delete_when_free(cluster, "spiderippool fixed-ippool")?;
    cluster.kubectl("-n kube-system delete spidermultusconfig macvlan-eno1 --timeout=60s").map(drop)
}
