//! A virtual machine that migrates: two launchers, one address. What KubeVirt would do is done here.

use std::time::Duration;

use anyhow::ensure;
use bowline_e2e::{Cluster, eventually, text};
use serde_json::json;

const MINUTE: Duration = Duration::from_secs(60);

/// Both launchers run at the same time, on two nodes, and have the machine's address. Who asks it, from either
/// node, is answered by the source until that is gone, or KubeVirt says that the machine runs elsewhere; then
/// by the target.
pub(crate) fn machines_migrate(cluster: &Cluster) -> anyhow::Result<()> {
    crate::third_party::definitions(cluster)?;
    cluster.apply("{apiVersion: kubevirt.io/v1, kind: VirtualMachineInstance, metadata: {name: mover, namespace: default}, spec: {}}")?;
    let instance = cluster.get("virtualmachineinstance mover")?;
    let uid = text(&instance, "/metadata/uid")?;
    for node in ["n1", "n2"] {
        cluster.apply(&server(&format!("asker-{node}"), node, &json!({})).to_string())?;
    }
    let launch = |name: &str, node: &str, annotations: serde_json::Value| {
        let owner = json!({"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "name": "mover",
                           "uid": uid, "controller": true});
        let meta = json!({"ownerReferences": [owner], "annotations": annotations});
        cluster.apply(&server(name, node, &meta).to_string())?;
        cluster.ready(&format!("pod/{name}"))?;
        cluster.kubectl(&format!("get pod {name} -o jsonpath={{.status.podIP}}"))
    };
    let migrates = || json!({"kubevirt.io/migrationJobName": "job"});
    let address = launch("launcher-a", "n1", json!({}))?;
    cluster.ready("pod/asker-n1 pod/asker-n2")?;
    let answers = |from: &str, wanted: &str| {
        eventually(&format!("{wanted} answers {from}"), MINUTE, || {
            let said =
                cluster.exec(from, &format!("timeout 2 wget -q -O - http://{address}:8080/"))?;
            ensure!(said.trim() == wanted, "{said} answers");
            Ok(true)
        })
    };
    let both =
        |wanted: &str| answers("asker-n1", wanted).and_then(|()| answers("asker-n2", wanted));
    both("launcher-a")?;
    let target = launch("launcher-b", "n2", migrates())?;
    ensure!(target == address, "the machine had {address}, its target has {target}");
    both("launcher-a")?;
    cluster.kubectl("delete pod launcher-a --timeout=60s")?;
    both("launcher-b")?;

    // And back; this time its source stays, and KubeVirt says where the machine runs.
    launch("launcher-c", "n1", migrates())?;
    both("launcher-b")?;
    let status = "{\"status\":{\"nodeName\":\"n1\"}}";
    cluster.kubectl(&format!("patch virtualmachineinstance mover --type=merge -p {status}"))?;
    answers("asker-n1", "launcher-c")?;
    cluster.kubectl("delete pod launcher-b --timeout=60s")?;
    both("launcher-c")?;
    cluster.kubectl("delete virtualmachineinstance mover --timeout=60s")?;
    cluster.kubectl("delete pod asker-n1 asker-n2 --timeout=60s")?;
    eventually("no address is held without a pod", MINUTE, || {
        crate::power::no_address_leaks(cluster)
    })
}

/// A pod on this node that tells its name to whoever asks.
fn server(name: &str, node: &str, meta: &serde_json::Value) -> serde_json::Value {
    let script =
        format!("mkdir /www; echo {name} > /www/index.html; exec httpd -f -p 8080 -h /www");
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {
        "nodeName": node, "terminationGracePeriodSeconds": 0, "containers": [
            {"name": "c", "image": "localhost/busybox:1", "command": ["sh", "-c", script]}]}});
    pod["metadata"]["name"] = name.into();
    pod["metadata"]["namespace"] = "default".into();
    pod
}
