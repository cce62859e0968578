//! Pods of controllers that Kubernetes does not know: OpenKruise's CloneSet, KubeVirt's machines. Their
//! definitions are real objects; what their operators do is done by [`operate`].

use std::time::Duration;

use anyhow::{Context, ensure};
use bowline_e2e::{Cluster, eventually, text};
use serde_json::{Value, json};

use crate::documents::delete_when_free;
use crate::workloads::SLEEPER;

const MINUTE: Duration = Duration::from_secs(60);

pub(crate) fn definitions(cluster: &Cluster) -> anyhow::Result<()> {
    let path = cluster.scripts().join("manifests/third-party-crds.yaml");
    cluster.apply(&std::fs::read_to_string(&path).with_context(|| path.display().to_string())?)?;
    cluster.kubectl("wait --for=condition=Established crd --all --timeout=30s").map(drop)
}

/// What both operators would do next: as many pods as a CloneSet wants, an instance for each machine
/// that shall run, a launcher for each instance.
fn operate(cluster: &Cluster) -> anyhow::Result<()> {
    for set in items(cluster, "clonesets")? {
        let have = owned(cluster, "pods", &set)?.len() as u64;
        for number in have..set["spec"]["replicas"].as_u64().unwrap_or(1) {
            let name = format!("{}-{number}", text(&set, "/metadata/name")?);
            cluster.apply(&pod(&name, &set)?.to_string())?;
        }
    }
    for machine in items(cluster, "virtualmachines")? {
        if owned(cluster, "virtualmachineinstances", &machine)?.is_empty() {
            let mut instance = owned_by(&machine, "kubevirt.io/v1", "VirtualMachineInstance")?;
            instance["metadata"]["name"] = machine["metadata"]["name"].clone();
            instance["spec"] = json!({});
            cluster.apply(&instance.to_string())?;
        }
    }
    for instance in items(cluster, "virtualmachineinstances")? {
        if owned(cluster, "pods", &instance)?.is_empty() {
            // Launchers have names that never come again.
            let uid = text(&instance, "/metadata/uid")?;
            let name =
                format!("virt-launcher-{}-{}", text(&instance, "/metadata/name")?, &uid[..5]);
            cluster.apply(&pod(&name, &instance)?.to_string())?;
        }
    }
    Ok(())
}

fn items(cluster: &Cluster, kind: &str) -> anyhow::Result<Vec<Value>> {
    let list = cluster.get(kind)?;
    let items = list["items"].as_array().context("no list")?.iter();
    Ok(items.filter(|o| o["metadata"]["deletionTimestamp"].is_null()).cloned().collect())
}

/// Objects of a kind that this one controls.
fn owned(cluster: &Cluster, kind: &str, owner: &Value) -> anyhow::Result<Vec<Value>> {
    let uid = &owner["metadata"]["uid"];
    let mut all = items(cluster, kind)?;
    all.retain(|o| o["metadata"]["ownerReferences"][0]["uid"] == *uid);
    Ok(all)
}

fn owned_by(owner: &Value, version: &str, kind: &str) -> anyhow::Result<Value> {
    let reference = json!({"apiVersion": owner["apiVersion"], "kind": owner["kind"], "controller": true, "blockOwnerDeletion": true,
        "name": text(owner, "/metadata/name")?, "uid": text(owner, "/metadata/uid")?});
    Ok(json!({"apiVersion": version, "kind": kind,
              "metadata": {"namespace": "default", "ownerReferences": [reference]}}))
}

fn pod(name: &str, owner: &Value) -> anyhow::Result<Value> {
    let mut pod = owned_by(owner, "v1", "Pod")?;
    pod["metadata"]["name"] = name.into();
    pod["metadata"]["annotations"] = owner["spec"]["template"]["metadata"]["annotations"].clone();
    pod["spec"] = json!({"terminationGracePeriodSeconds": 0, "containers": [
        {"name": "c", "image": "localhost/busybox:1", "command": ["sleep", "infinity"]}]});
    Ok(pod)
}

fn address(cluster: &Cluster, pod: &str) -> anyhow::Result<String> {
    cluster.ready(&format!("pod/{pod}"))?;
    cluster.kubectl(&format!("get pod {pod} -o jsonpath={{.status.podIP}}"))
}

/// A CloneSet that names a SpiderSubnet has a pool of its own, for as many pods as it says; the pool
/// goes with it.
pub(crate) fn clone_sets_have_pools(cluster: &Cluster) -> anyhow::Result<()> {
    definitions(cluster)?;
    cluster.apply(
        r#"
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderSubnet
metadata: {name: clones, labels: {bowline.dev/network: default}}
spec: {subnet: 10.245.0.0/24, gateway: 10.245.0.1, ips: [10.245.0.10-10.245.0.99]}
---
apiVersion: apps.kruise.io/v1alpha1
kind: CloneSet
metadata: {name: clone, namespace: default}
spec:
  replicas: 2
  template:
    metadata:
      annotations:
        ipam.spidernet.io/subnet: '{"ipv4": ["clones"]}'
        ipam.spidernet.io/ippool-ip-number: "3"
"#,
    )?;
    operate(cluster)?;
    let first = address(cluster, "clone-0")?;
    ensure!(first.starts_with("10.245.0.1"), "not of the application's pool: {first}");
    let second = address(cluster, "clone-1")?;
    cluster.exec("clone-0", &format!("ping -c 1 -W 2 {second}"))?;
    let label = "-l ipam.spidernet.io/owner-application-kind=CloneSet";
    let pools = cluster.get(&format!("spiderippools {label}"))?;
    let ips = &pools["items"][0]["spec"]["ips"];
    ensure!(*ips == json!(["10.245.0.10-10.245.0.12"]), "{pools}");
    cluster.kubectl("patch cloneset clone --type=merge -p {\"spec\":{\"replicas\":3}}")?;
    operate(cluster)?;
    address(cluster, "clone-2")?;
    cluster.kubectl("delete cloneset clone --cascade=foreground --timeout=60s")?;
    eventually("the pool goes with its application", MINUTE, || {
        Ok(cluster.kubectl(&format!("get spiderippools {label} -o name"))?.is_empty())
    })?;
    delete_when_free(cluster, "spidersubnet clones")
}

/// A machine keeps its address when it is started anew, by a launcher of another name; it is free when
/// the machine is gone.
pub(crate) fn machines_keep_their_addresses(cluster: &Cluster) -> anyhow::Result<()> {
    definitions(cluster)?;
    cluster.apply("{apiVersion: kubevirt.io/v1, kind: VirtualMachine, metadata: {name: vm, namespace: default}, spec: {running: true}}")?;
    let launch = || -> anyhow::Result<(String, String)> {
        operate(cluster)?;
        operate(cluster)?;
        let instance = items(cluster, "virtualmachineinstances")?.pop().context("no instance")?;
        let launcher = owned(cluster, "pods", &instance)?.pop().context("no launcher")?;
        let name = text(&launcher, "/metadata/name")?.to_owned();
        let address = address(cluster, &name)?;
        Ok((name, address))
    };
    let (launcher, before) = launch()?;
    cluster.kubectl("delete virtualmachineinstance vm --cascade=foreground --timeout=60s")?;
    // Somebody else comes meanwhile.
    cluster.apply(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: between}}, spec: {SLEEPER}}}"
    ))?;
    ensure!(
        address(cluster, "between")? != before,
        "the machine's address {before} was given away"
    );
    let (again, after) = launch()?;
    ensure!(again != launcher && after == before, "{launcher} had {before}, {again} has {after}");
    cluster.kubectl("delete virtualmachine vm --cascade=foreground --timeout=60s")?;
    cluster.kubectl("delete pod between --timeout=60s")?;
    eventually("no address is held without a pod", MINUTE, || {
        crate::power::no_address_leaks(cluster)
    })
}

/// Prefixes of pods come from whoever gives them, and a missing one is said.
pub(crate) fn other_plugins_tell_their_prefixes(cluster: &Cluster) -> anyhow::Result<()> {
    let choose = |kind: &str| {
        cluster.apply(&format!(
            "apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderCoordinator
metadata: {{name: default}}
spec: {{podCIDRType: {kind}}}
"
        ))
    };
    let status = |field: &str, wanted: &str| {
        eventually(&format!("{field} says {wanted}"), MINUTE, || {
            let said = cluster.kubectl(&format!(
                "get spidercoordinator default -o jsonpath={{.status.{field}}}"
            ))?;
            ensure!(said.contains(wanted), "{field} is {said}");
            Ok(true)
        })
    };
    choose("calico")?;
    status("reason", "knows no IPPool of Calico")?;
    let path = cluster.scripts().join("manifests/other-plugins.yaml");
    let objects = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    // The definitions are served a moment after they are there.
    eventually("objects of Calico and Cilium", MINUTE, || cluster.apply(&objects).map(|()| true))?;
    status("overlayPodCIDR", "[\"192.168.0.0/16\"]")?;
    choose("cilium")?;
    status("overlayPodCIDR", "[\"10.150.0.0/16\",\"fd00:150::/48\"]")?;
    choose("cluster")?;
    status("overlayPodCIDR", "[\"10.244.0.0/16\"")?;
    cluster.kubectl("delete spidercoordinator default --timeout=60s")?;
    cluster
        .kubectl(&format!("delete --ignore-not-found --timeout=60s -f {}", path.display()))
        .map(drop)
}
