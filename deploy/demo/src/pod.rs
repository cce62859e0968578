//! Pods: namespaces attached through the CNI plugin, as a runtime would do it.
//!
//! A memif pod has a [`Station`]: an endpoint of the traffic generator on a thread of its own that
//! answers pings, and that a check may borrow to send or count.

use crate::PREFIX;
use crate::binaries::Binaries;
use crate::catalog::Network;
use crate::cluster::{Cluster, Node};
use crate::lab::netns::Netns;
use anyhow::{Context, bail, ensure};
use bowline_pktgen::endpoint::Endpoint;
use bowline_pktgen::host::{Cidr, Host, parse_mac};
use bowline_pktgen::port::PortConfig;
use serde_json::{Value, json};
use std::io::Write;
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// What a pod shall have.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Its name.
    pub name: &'static str,
    /// Index of its node.
    pub node: usize,
    /// Its Network.
    pub network: Network,
    /// Queues of its memif; 0 for a tap.
    pub memif_queues: u16,
    /// Bytes of a buffer of its memif.
    pub buffer_bytes: u32,
    /// The last part of its addresses.
    pub address: u8,
}

/// The demo's pods. A red one with a blue one's address is its twin.
pub const PLANS: [Plan; 13] = {
    const fn plan(
        name: &'static str,
        node: usize,
        network: Network,
        memif_queues: u16,
        address: u8,
    ) -> Plan {
        Plan { name, node, network, memif_queues, buffer_bytes: 2048, address }
    }
    use Network::{Blue, Jumbo, Red};
    [
        plan("blue-tap-1a", 0, Blue, 0, 11),
        plan("blue-tap-1b", 0, Blue, 0, 12),
        plan("blue-tap-2", 1, Blue, 0, 13),
        plan("blue-mem-1", 0, Blue, 1, 21),
        plan("blue-mem-1q2", 0, Blue, 2, 22),
        plan("blue-mem-2", 1, Blue, 2, 23),
        plan("red-tap-1", 0, Red, 0, 11),
        plan("red-tap-2", 1, Red, 0, 13),
        plan("red-tap-1m", 0, Red, 0, 23),
        plan("red-tap-2m", 1, Red, 0, 21),
        plan("red-tap-2x", 1, Red, 0, 99),
        plan("jumbo-mem-1", 0, Jumbo, 1, 21),
        plan("jumbo-mem-1q2", 0, Jumbo, 2, 22),
    ]
};

/// A pod of the demo.
#[derive(Debug)]
pub struct Pod {
    /// What was planned.
    pub plan: Plan,
    /// Its network namespace.
    pub netns: Netns,
    /// Its addresses, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// Its interface's MTU.
    pub mtu: usize,
    /// A memif pod's application.
    pub station: Option<Station>,
}

impl Pod {
    /// Its interface.
    #[must_use]
    pub fn interface(plan: &Plan) -> &'static str {
        if plan.memif_queues == 0 { "eth1" } else { "memif1" }
    }

    /// Its address of a family.
    ///
    /// # Errors
    /// It was given none.
    pub fn address(&self, ipv4: bool) -> anyhow::Result<IpAddr> {
        let found = self.addresses.iter().copied().find(|a| a.is_ipv4() == ipv4);
        found.with_context(|| format!("{} has no address of that family", self.plan.name))
    }
}

/// Makes these pods.
///
/// # Errors
/// A pod cannot be made; the message holds what the plugin said.
pub fn create_all(cluster: &Cluster, plans: &[Plan]) -> anyhow::Result<Vec<Pod>> {
    plans
        .iter()
        .map(|plan| create(cluster, plan).with_context(|| format!("making pod {}", plan.name)))
        .collect()
}

fn create(cluster: &Cluster, plan: &Plan) -> anyhow::Result<Pod> {
    let netns = Netns::create(&format!("{PREFIX}{}", plan.name))?;
    let result = call_cni(&cluster.binaries, &cluster.nodes[plan.node], plan, "ADD")?;
    let interface = &result["interfaces"][0];
    let cidrs = cidrs(&result)?;
    let mtu = interface["mtu"].as_u64().context("no mtu in the result")?;
    let mtu = usize::try_from(mtu)?;
    let addresses: Vec<IpAddr> = cidrs.iter().map(|c| c.address).collect();
    for address in wanted_addresses(plan) {
        let parsed: IpAddr = address.parse()?;
        ensure!(addresses.contains(&parsed), "asked for {address}, was given {addresses:?}");
    }
    let station = if plan.memif_queues == 0 {
        None
    } else {
        let mac = parse_mac(interface["mac"].as_str().unwrap_or_default());
        let mac = mac.map_err(anyhow::Error::msg)?;
        let host = Host::new(Some(mac), cidrs, gateways(&result));
        Some(Station::start(&netns, plan, host)?)
    };
    Ok(Pod { plan: *plan, netns, addresses, mtu, station })
}

/// Detaches a pod.
///
/// # Errors
/// The plugin fails, which it must not.
pub fn delete(cluster: &Cluster, pod: &Pod) -> anyhow::Result<()> {
    let node = &cluster.nodes[pod.plan.node];
    call_cni(&cluster.binaries, node, &pod.plan, "DEL").map(drop)
}

fn wanted_addresses(plan: &Plan) -> [String; 2] {
    [format!("10.0.0.{}", plan.address), format!("fd00::{}", plan.address)]
}

/// Calls the plugin by environment and standard input.
fn call_cni(binaries: &Binaries, node: &Node, plan: &Plan, verb: &str) -> anyhow::Result<Value> {
    let mut config = json!({
        "cniVersion": "1.1.0",
        "name": "bowline-demo",
        "type": "bowline",
        "agentSocket": node.cni_socket(),
        "stateDir": node.dir.join("cni"),
        "network": plan.network.name(),
        "runtimeConfig": {"ips": wanted_addresses(plan)},
    });
    if plan.memif_queues > 0 {
        let queues = plan.memif_queues;
        config["interface"] = json!({"type": "memif", "rxQueues": queues, "txQueues": queues});
    }
    let mut child = Command::new(binaries.cni())
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", format!("demo-{}", plan.name))
        .env("CNI_NETNS", format!("/run/netns/{PREFIX}{}", plan.name))
        .env("CNI_IFNAME", Pod::interface(plan))
        .env("CNI_PATH", "/opt/cni/bin")
        .env("CNI_ARGS", format!("K8S_POD_NAMESPACE=demo;K8S_POD_NAME={}", plan.name))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting the CNI plugin")?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    stdin.write_all(config.to_string().as_bytes())?;
    drop(stdin);
    let output = child.wait_with_output()?;
    let printed = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("{verb} failed: {} {}", printed.trim(), complaint.trim());
    }
    if printed.trim().is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(&printed).with_context(|| format!("{verb} printed {printed}"))
}

fn cidrs(result: &Value) -> anyhow::Result<Vec<Cidr>> {
    let ips = result["ips"].as_array().context("no ips in the result")?;
    let parse = |ip: &Value| -> anyhow::Result<Cidr> {
        let text = ip["address"].as_str().context("an ip without address")?;
        text.parse().map_err(anyhow::Error::msg)
    };
    let mut cidrs = ips.iter().map(parse).collect::<anyhow::Result<Vec<_>>>()?;
    cidrs.sort_by_key(|c| c.address.is_ipv6());
    Ok(cidrs)
}

fn gateways(result: &Value) -> Vec<IpAddr> {
    let ips = result["ips"].as_array().into_iter().flatten();
    ips.filter_map(|ip| ip["gateway"].as_str()?.parse().ok()).collect()
}

/// A memif pod's application.
#[derive(Debug)]
pub struct Station {
    endpoint: Arc<Mutex<Endpoint>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Station {
    fn start(netns: &Netns, plan: &Plan, host: Host) -> anyhow::Result<Self> {
        let config = PortConfig {
            socket: format!("@{}", Pod::interface(plan)),
            netns: Some(netns.path().display().to_string()),
            rx_queues: plan.memif_queues,
            tx_queues: plan.memif_queues,
            buffer_bytes: plan.buffer_bytes,
            ..PortConfig::default()
        };
        let endpoint = netns.run(|| Endpoint::open(&config, host, 16, Duration::from_secs(10)))?;
        let endpoint = Arc::new(Mutex::new(endpoint));
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, told, netns) = (Arc::clone(&endpoint), Arc::clone(&stop), netns.clone());
        let name = plan.name;
        let thread = std::thread::spawn(move || {
            // It reconnects from this thread, which must therefore be in the pod's namespace.
            let served = netns.enter().and_then(|()| serve(&shared, &told));
            if let Err(error) = served {
                eprintln!("pod {name}: {error:#}");
            }
        });
        Ok(Self { endpoint, stop, thread: Some(thread) })
    }

    /// The endpoint; while it is held, nothing is answered but by its holder.
    pub fn borrow(&self) -> MutexGuard<'_, Endpoint> {
        // A check that panicked leaves the endpoint between two polls, where it is whole.
        self.endpoint.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Station {
    /// Ends the thread; the endpoint goes on living with the caller.
    ///
    /// # Errors
    /// A check still borrows it.
    pub fn into_endpoint(mut self) -> anyhow::Result<Endpoint> {
        self.end();
        let endpoint = Arc::clone(&self.endpoint);
        drop(self);
        let mutex = Arc::into_inner(endpoint).context("the station is in use")?;
        Ok(mutex.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Station {
    fn drop(&mut self) {
        self.end();
    }
}

fn serve(endpoint: &Mutex<Endpoint>, stop: &AtomicBool) -> anyhow::Result<()> {
    while !stop.load(Ordering::Relaxed) {
        let frames = {
            let mut endpoint = endpoint.lock().unwrap_or_else(PoisonError::into_inner);
            endpoint.port.check()?;
            endpoint.poll()?
        };
        if frames == 0 {
            // Outside the lock: others want it.
            std::thread::sleep(Duration::from_micros(200));
        }
    }
    Ok(())
}
