//! Manifests that go wrong: refused by a sentence or told on the pod, and nobody else is hurt.

use std::time::Duration;

use anyhow::{Context, ensure};
use bowline_e2e::{Cluster, eventually, refused};

const SOON: Duration = Duration::from_secs(30);

fn pool(network: &str, subnet: &str) -> String {
    format!(
        "{{apiVersion: spiderpool.spidernet.io/v2beta1, kind: SpiderIPPool,
          metadata: {{name: wild, labels: {{bowline.dev/network: {network}}}}}, spec: {{subnet: {subnet}, ips: []}}}}"
    )
}

fn network(name: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: bowline.dev/v1alpha1, kind: Network, metadata: {{name: {name}}}, spec: {spec}}}"
    )
}

/// A pod of node 1 with an annotation, and another annotation perhaps.
fn pod(name: &str, key: &str, value: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, annotations: {{{key}: '{value}'}}}}, spec: {}}}",
        crate::workloads::SLEEPER.replacen('{', "{nodeName: n1, ", 1)
    )
}

const INTERFACES: &str = "bowline.dev/interfaces";

/// Refused at once.
fn hopeless() -> Vec<(String, &'static str)> {
    let asks = |value: &str| pod("wild", INTERFACES, value);
    vec![
        (pool("default", "10.90.0.0/24"), "overlaps 10.90.0.1"),
        (pool("default", "10.96.8.0/24"), "overlaps 10.96.0.0/16 of the Services"),
        (pool("default", "10.244.8.0/24"), "of the older pool default-v4"),
        (pool("blue", "10.0.0.0/16"), "of the older pool blue-v4"),
        (network("wild", "{vni: 56}"), "belongs to the older Network blue"),
        (network("wild", "{vni: 99, encapsulaton: VXLAN}"), "unknown field \"spec.encapsulaton\""),
        (network("wild", "{mtu: 60}"), "must be 68 to 9216"),
        (network("Wild", "{}"), "RFC 1123"),
        (asks(r#"{"name": "eth1", "network": "blue"}"#), "bowline.dev/interfaces"),
        (
            asks(r#"[{"name": "eth1", "network": "blue"}, {"name": "eth1", "network": "red"}]"#),
            "eth1",
        ),
        (asks(r#"[{"name": "a-name-of-sixteen", "network": "blue"}]"#), "a-name-of-sixteen"),
        (asks(r#"[{"name": "../etc", "network": "blue"}]"#), "../etc"),
        (asks(r#"[{"name": "memif1", "network": "blue", "rxQueues": 99}]"#), "rxQueues"),
        (asks(r#"[{"name": "memif1", "network": "blue", "ringSize": 1000}]"#), "ringSize"),
        (asks(r#"[{"name": "eth1", "network": "blue", "mac": "01:00:5e:00:00:01"}]"#), "mac"),
        (asks(r#"[{"name": "eth1", "network": "blue", "ips": ["banana"]}]"#), "banana"),
        (pod("wild", "ipam.spidernet.io/ippool", "blue-v4"), "is not JSON"),
        (
            pod("wild", "ipam.spidernet.io/routes", r#"[{"dst": "10.0.0.0/8", "gw": "fd00::1"}]"#),
            "is not IPv4",
        ),
    ]
}

/// Another object could cure these, so they are created, and wait; an Event of the pod says for what.
fn waiting() -> Vec<(String, &'static str)> {
    let asks = |name: &str, value: &str| pod(name, INTERFACES, value);
    vec![
        (asks("wild-0", r#"[{"name": "eth1", "network": "nowhere"}]"#), "nowhere"),
        (
            asks("wild-1", r#"[{"name": "eth1", "network": "blue", "ips": ["10.0.0.11"]}]"#),
            "10.0.0.11",
        ),
        (
            asks("wild-2", r#"[{"name": "eth1", "network": "blue", "ips": ["10.5.5.5"]}]"#),
            "10.5.5.5",
        ),
    ]
}

/// Each is refused or told, and afterwards nodes are ready and blue pods reach each other.
pub(crate) fn nobody_else_is_hurt(cluster: &Cluster) -> anyhow::Result<()> {
    crate::networks::demo(cluster)?;
    for (object, words) in hopeless() {
        let applied = cluster.apply(&object).map(|()| String::new());
        refused(applied, words).with_context(|| object.clone())?;
    }
    let waiting = waiting();
    for (object, _) in &waiting {
        cluster.apply(object).with_context(|| object.clone())?;
    }
    for (n, (object, words)) in waiting.iter().enumerate() {
        eventually(&format!("an Event on wild-{n} names {words}"), SOON, || {
            let about = format!("get events --field-selector involvedObject.name=wild-{n}");
            let said = cluster.kubectl(&about)?;
            ensure!(said.contains(words), "{object}: {said}");
            Ok(true)
        })?;
    }
    // As many interfaces as anybody wants, four of them on each Network.
    let many: Vec<String> = (1..=8)
        .map(|n| {
            let network = if n % 2 == 0 { "blue" } else { "red" };
            format!(r#"{{"name": "net{n}", "network": "{network}"}}"#)
        })
        .collect();
    cluster.apply(&pod("many", INTERFACES, &format!("[{}]", many.join(","))))?;
    cluster.ready("pod/many")?;
    let devices = cluster.exec("many", "ls /sys/class/net")?;
    let made = devices.split_whitespace().filter(|name| name.starts_with("net")).count();
    ensure!(made == 8, "{devices}");
    for n in 1..=8 {
        // The other node, where these are, hears of the new addresses a moment after the ADD.
        let to = if n % 2 == 0 { "10.0.0.12" } else { "10.0.0.13" };
        let ping = format!("ping -c 1 -W 1 -I net{n} {to}");
        eventually(&ping, SOON, || cluster.exec("many", &ping).map(|_| true))?;
    }
    cluster.kubectl("delete pod many wild-0 wild-1 wild-2 --timeout=60s")?;
    cluster.kubectl("wait --for=condition=Ready node --all --timeout=5s")?;
    cluster.exec("blue-1", "ping -c 1 -W 2 10.0.0.12").map(drop)
}
