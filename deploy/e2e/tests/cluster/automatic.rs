//! Automatic pools of every kind of application that Kubernetes has.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, ensure};
use bowline_e2e::{Cluster, eventually, text};
use serde_json::Value;

use crate::documents::delete_when_free;
use crate::workloads::SLEEPER;

const MINUTE: Duration = Duration::from_secs(60);
const KINDS: [&str; 6] = ["Deployment", "ReplicaSet", "StatefulSet", "DaemonSet", "Job", "CronJob"];
const SUBNET: &str = "
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderSubnet
metadata: {name: auto, labels: {bowline.dev/network: default}}
spec: {subnet: 10.246.0.0/24, gateway: 10.246.0.1, ips: [10.246.0.10-10.246.0.99]}
";

/// An application of this kind, whose pods ask for addresses of the subnet.
fn application(kind: &str) -> String {
    let name = format!("auto-{}", kind.to_lowercase());
    let annotations = "annotations: {ipam.spidernet.io/subnet: '{\"ipv4\": [\"auto\"]}'}";
    let labels = format!("labels: {{app: auto, of: {kind}}}");
    let finite = SLEEPER.replacen('{', "{restartPolicy: Never, ", 1);
    let body = if kind.ends_with("Job") { &finite } else { SLEEPER };
    let template = format!("template: {{metadata: {{{labels}, {annotations}}}, spec: {body}}}");
    let selector = format!("selector: {{matchLabels: {{of: {kind}}}}}");
    let (version, spec) = match kind {
        "Job" => ("batch", template),
        // It is started by hand.
        "CronJob" => {
            ("batch", format!("schedule: 0 0 1 1 *, jobTemplate: {{spec: {{{template}}}}}"))
        }
        "StatefulSet" => ("apps", format!("serviceName: auto, {selector}, {template}")),
        _ => ("apps", format!("{selector}, {template}")),
    };
    format!(
        "{{apiVersion: {version}/v1, kind: {kind}, metadata: {{name: {name}}}, spec: {{{spec}}}}}\n"
    )
}

/// Whether an address is one of a pool's, each a single one or a range.
fn lies_in(ips: &Value, address: &str) -> anyhow::Result<bool> {
    let address: Ipv4Addr = address.parse()?;
    for item in ips.as_array().context("no addresses")? {
        let text = item.as_str().context("no text")?;
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        if (first.parse::<Ipv4Addr>()?..=last.parse()?).contains(&address) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Each application has a pool of its own, which serves its pods and goes with it.
pub(crate) fn every_kind_has_its_pool(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.apply(SUBNET)?;
    for kind in KINDS {
        cluster.apply(&application(kind)).context(kind)?;
    }
    cluster.kubectl("create job auto-by-hand --from=cronjob/auto-cronjob")?;
    // One pod each, and the DaemonSet's on the second node.
    eventually("all pods are there", MINUTE, || {
        let pods = cluster.get("pods -l app=auto")?;
        Ok(pods["items"].as_array().is_some_and(|all| all.len() == KINDS.len() + 1))
    })?;
    cluster.ready("pod -l app=auto")?;
    for kind in KINDS {
        let label = format!("-l ipam.spidernet.io/owner-application-kind={kind}");
        let pools = cluster.get(&format!("spiderippools {label}"))?;
        let pools = pools["items"].as_array().context("no list")?;
        ensure!(pools.len() == 1, "{kind} has not one pool of its own: {pools:?}");
        let pods = cluster.get(&format!("pods -l of={kind}"))?;
        for pod in pods["items"].as_array().filter(|all| !all.is_empty()).context("no pods")? {
            let address = text(pod, "/status/podIP")?;
            let ips = &pools[0]["spec"]["ips"];
            ensure!(lies_in(ips, address)?, "{kind}: {address} is not of its pool {ips}");
        }
    }
    let first = cluster.kubectl("get pods -l of=Deployment -o name")?;
    let far = cluster.kubectl("get pods -l of=DaemonSet -o jsonpath={.items[*].status.podIP}")?;
    for address in far.split(' ') {
        cluster.exec(first.trim(), &format!("ping -c 1 -W 2 {address}"))?;
    }
    for kind in KINDS {
        let name = format!("{kind}/auto-{}", kind.to_lowercase()).to_lowercase();
        cluster.kubectl(&format!("delete {name} --timeout=60s"))?;
    }
    eventually("the pools go with their applications", MINUTE, || {
        let label = "-l ipam.spidernet.io/owner-application-uid";
        Ok(cluster.kubectl(&format!("get spiderippools {label} -o name"))?.is_empty())
    })?;
    delete_when_free(cluster, "spidersubnet auto")
}
