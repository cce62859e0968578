//! Interfaces on Networks of people's own.

use std::time::Duration;

use anyhow::{Context, ensure};
use bowline_e2e::{Cluster, SYSTEM, eventually, text};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);

/// Makes `blue` and `red` with the pods of the demo, once.
pub(crate) fn demo(cluster: &Cluster) -> anyhow::Result<()> {
    for file in ["networks.yaml", "pods.yaml"] {
        let path = cluster.scripts().join("manifests").join(file);
        cluster
            .apply(&std::fs::read_to_string(&path).with_context(|| path.display().to_string())?)?;
    }
    cluster.ready("pod/blue-1 pod/blue-2 pod/red-1 pod/red-2 pod/blue-memif")
}

fn answers(cluster: &Cluster, from: &str, to: &str) -> bool {
    cluster.exec(from, &format!("ping -c 2 -W 1 -I eth1 {to}")).is_ok()
}

/// Blue reaches blue and red reaches red across the nodes, in both families; no address of the other
/// Network answers, though blue-1 and red-1 have the same.
pub(crate) fn isolation(cluster: &Cluster) -> anyhow::Result<()> {
    demo(cluster)?;
    for (from, to, expected) in [
        ("blue-1", "10.0.0.12", true),
        ("blue-1", "fd00::12", true),
        ("red-1", "10.0.0.13", true),
        ("red-1", "fd00::13", true),
        ("blue-1", "10.0.0.13", false),
        ("blue-1", "fd00::13", false),
        ("red-1", "10.0.0.12", false),
        ("red-2", "fd00::12", false),
    ] {
        let answered = answers(cluster, from, to);
        ensure!(answered == expected, "{from} to {to}: answered {answered}, not {expected}");
    }
    Ok(())
}

/// A client in the pod takes the queues that the annotation grants, and answers pings from the other
/// node in both families; the pod's status says where its socket is.
pub(crate) fn memif(cluster: &Cluster) -> anyhow::Result<()> {
    demo(cluster)?;
    eventually("the client is connected with two queues each way", SOON, || {
        let ours = interface(cluster, "blue-memif")?;
        ensure!(
            ours["kind"] == "memif" && ours["link"] == "up" && ours["queues"] == "2/2",
            "{ours}"
        );
        Ok(true)
    })?;
    for to in ["10.0.0.21", "fd00::21"] {
        ensure!(
            answers(cluster, "blue-1", to),
            "blue-1 gets no answer of the memif client at {to}"
        );
        ensure!(!answers(cluster, "red-1", to), "red-1 reaches blue's memif at {to}");
    }
    let pod = cluster.get("pod blue-memif")?;
    let status = text(&pod, "/metadata/annotations/bowline.dev~1network-status")?;
    ensure!(status.contains("@memif1") && status.contains("10.0.0.21"), "{status}");
    Ok(())
}

/// What the data plane of node 2 says of the memif of a pod there.
fn interface(cluster: &Cluster, pod: &str) -> anyhow::Result<Value> {
    let part = cluster.part("dataplane", 2)?;
    let shown =
        cluster.kubectl(&format!("-n {SYSTEM} exec {part} -- bowline -o json get interfaces"))?;
    let shown: Value = serde_json::from_str(&shown)?;
    let pod = format!("default/{pod}");
    let is_ours = |i: &&Value| i["pod"] == *pod && i["network"] == "blue";
    let found = shown.as_array().into_iter().flatten().find(is_ours);
    found.cloned().with_context(|| format!("no interface of {pod} on blue: {shown}"))
}

/// Multus' real binary calls Bowline for `blue@memif1`, by the definition that the controller made of
/// the Network; a client connects, and the pod's status tells where. A second interface is called `net2` by Multus
/// alone: its pool is the third that the pod lists.
pub(crate) fn multus(cluster: &Cluster) -> anyhow::Result<()> {
    demo(cluster)?;
    crate::services::use_multus(cluster)?;
    eventually("the controller's definition of blue", SOON, || {
        cluster.kubectl("get network-attachment-definition blue").map(|_| true)
    })?;
    cluster.apply(
        "apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: blue-late, labels: {bowline.dev/network: blue}}
spec: {subnet: 10.0.0.0/24, gateway: 10.0.0.1, ips: [10.0.0.220]}
",
    )?;
    cluster.apply(&client_by_multus(cluster)?)?;
    let served = cluster.ready("pod/by-multus").and_then(|()| {
        eventually("the client answers", SOON, || Ok(answers(cluster, "blue-1", "10.0.0.22")))?;
        cluster.get("pod by-multus")
    });
    let gone = cluster.kubectl("delete pod by-multus --timeout=60s");
    crate::services::drop_multus(cluster)?;
    let pod = served?;
    let own = text(&pod, "/metadata/annotations/bowline.dev~1network-status")?;
    ensure!(
        own.contains("@memif1") && own.contains("10.0.0.22"),
        "nobody tells where it is: {own}"
    );
    let all = text(&pod, "/metadata/annotations/k8s.v1.cni.cncf.io~1network-status")?;
    let all: Value = serde_json::from_str(all).with_context(|| all.to_owned())?;
    let unnamed = all.as_array().into_iter().flatten().find(|i| i["interface"] == "net2");
    let unnamed = unnamed.with_context(|| format!("no net2: {all}"))?;
    ensure!(unnamed["ips"] == serde_json::json!(["10.0.0.220"]), "{unnamed}");
    gone?;
    // The webhook hears of the DEL a moment after the pod is gone.
    eventually("the pool is not in use", SOON, || {
        cluster.kubectl("delete spiderippool blue-late --timeout=60s").map(|_| true)
    })
}

/// The demo's memif client, with both interfaces on blue by Multus' annotation and a list of pools that names none
/// of them.
fn client_by_multus(cluster: &Cluster) -> anyhow::Result<String> {
    let pods = cluster.scripts().join("manifests/pods.yaml");
    let pods = std::fs::read_to_string(&pods).with_context(|| pods.display().to_string())?;
    let client = pods.split("---").last().context("no pod with a memif")?;
    let begin = client.find("    bowline.dev/interfaces").context("no annotation")?;
    let end = client.find("spec:").context("no spec")?;
    let annotations = r#"    k8s.v1.cni.cncf.io/networks: |
      [{"name": "blue", "interface": "memif1", "ips": ["10.0.0.22", "fd00::22"]}, {"name": "blue"}]
    ipam.spidernet.io/ippools: |
      [{"ipv4": ["default-v4"]}, {"ipv4": ["blue-v4"], "ipv6": ["blue-v6"]}, {"ipv4": ["blue-late"]}]
"#;
    Ok(format!("{}{annotations}{}", &client[..begin], &client[end..])
        .replace("blue-memif", "by-multus")
        .replace("10.0.0.21", "10.0.0.22")
        .replace("fd00::21", "fd00::22")
        .replace("-queues 2", "-queues 1"))
}

/// The reference macvlan plugin with Bowline as its IPAM plugin, called as a runtime calls it.
pub(crate) fn macvlan(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.apply(
        "apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: lan}
spec: {subnet: 172.20.0.0/24, gateway: 172.20.0.1, ips: [172.20.0.10-172.20.0.19]}
",
    )?;
    let uids = [unscheduled_pod(cluster, "lan-a")?, unscheduled_pod(cluster, "lan-b")?];
    let config = r#"{"cniVersion":"1.0.0","name":"lan","type":"macvlan","master":"lan0","mode":"bridge",
        "ipam":{"type":"bowline-ipam","default_ipv4_ippool":["lan"]}}"#;
    let call = |verb: &str, netns: &str| {
        let uid = &uids[usize::from(netns == "lan-b")];
        format!(
            "CNI_COMMAND={verb} CNI_CONTAINERID=test-{netns} CNI_NETNS=/run/netns/{netns} CNI_IFNAME=net1 \
             CNI_PATH=/opt/cni/bin CNI_ARGS='IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={netns};K8S_POD_UID={uid}' \
             /opt/cni/bin/macvlan <<'J'\n{config}\nJ"
        )
    };
    let prepare =
        "ip link add lan0 type veth peer name lan1 && ip link set lan0 up && ip link set lan1 up
        ip netns add lan-a && ip netns add lan-b";
    let clean = "ip netns del lan-a; ip netns del lan-b; ip link del lan0; true";
    let ping = "ip netns exec lan-a ping -c 1 -W 2 172.20.0.11 || ip netns exec lan-a ping -c 1 -W 2 172.20.0.10";
    let whole = [
        prepare.to_owned(),
        call("ADD", "lan-a"),
        call("ADD", "lan-b"),
        "ip -n lan-a -4 addr show net1".to_owned(),
        ping.to_owned(),
        call("DEL", "lan-a"),
        call("DEL", "lan-b"),
    ];
    let done = cluster.on_node(1, &format!("set -e\n{}", whole.join("\n")));
    cluster.on_node(1, clean)?;
    let done = done?;
    ensure!(done.contains("172.20.0.1"), "{done}");
    cluster.kubectl("delete pod lan-a lan-b --force")?;
    cluster.kubectl("delete spiderippool lan --timeout=60s").map(drop)
}

/// A pod that no kubelet takes, so that the test alone calls the plugins for it. Returns its UID.
fn unscheduled_pod(cluster: &Cluster, name: &str) -> anyhow::Result<String> {
    cluster.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  schedulerName: nobody
  containers: [{{name: c, image: localhost/busybox:1}}]
"
    ))?;
    cluster.kubectl(&format!("get pod {name} -o jsonpath={{.metadata.uid}}"))
}
