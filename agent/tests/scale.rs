//! What a large cluster costs one agent: memory, processor time, bytes of its watches, and how long a route
//! takes from the API server to the data plane. AddressBlocks and NodeStates are
//! made directly through the API, so that no pod and no node need run. `BOWLINE_STORE_FULL=1`: 100,000 pods
//! on 5,000 nodes; `BOWLINE_AGENT` names an optimised agent; `BOWLINE_BENCH_OUT` a folder for the figures.

#[path = "common/cluster.rs"]
mod cluster;
mod common;

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cluster::{Cluster, Node, request};
use cni::rpc::{Command, Outcome};
use common::{Netns, Pod};
use futures::StreamExt;
use multinet::store::{Store, StoreError};
use multinet::types::block::{AddressBlock, Entry, EntryState, NETWORK_LABEL, Owner};
use multinet::types::mac::Mac;
use multinet::types::meta::{LabelSelector, Resource};
use multinet::types::network::{Network, NetworkSpec, PoolLists};
use multinet::types::node::{NodeState, NodeStateSpec, NodeUplink};
use multinet::types::pool::{IPPoolSpec, SpiderIPPool};
use serde_json::{Value, json};

/// What an agent may take, whatever the size of the cluster.
const MOST_MIB: f64 = 100.0;
/// Objects that are written at the same time.
const WRITERS: usize = 32;
/// The agent has taken in everything by then.
const KNOWN_WITHIN: Duration = Duration::from_secs(120);

/// How large the cluster is.
#[derive(Clone, Copy)]
struct Size {
    nodes: u32,
    pods: u32,
    /// Blocks that change while the agent is watched.
    changes: usize,
}

/// Blocks of other nodes that come one by one, to see how fast their routes are there.
const ROUTES_TIMED: u32 = 5;

fn size() -> Size {
    if std::env::var_os("BOWLINE_STORE_FULL").is_some() {
        Size { nodes: 5_000, pods: 100_000, changes: 1_000 }
    } else {
        Size { nodes: 100, pods: 2_000, changes: 50 }
    }
}

const NODE: &str = "
apiVersion: v1
kind: Node
metadata: {name: n1}
---
apiVersion: v1
kind: Namespace
metadata: {name: test}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: default, namespace: test}
";

/// A Network with a pool of its own, open to all.
fn network(name: &str, vni: u32, subnet: [u8; 4], length: u8) -> (Network, SpiderIPPool) {
    let spec = NetworkSpec {
        vni: Some(vni),
        namespace_selector: Some(LabelSelector::default()),
        ip_pools: PoolLists { ipv4: vec![name.to_owned()], ipv6: Vec::new() },
        ..NetworkSpec::default()
    };
    let first = u32::from(Ipv4Addr::from(subnet));
    let last = first + (1 << (32 - u32::from(length))) - 2;
    let text = |address: u32| Ipv4Addr::from(address).to_string();
    let pool = IPPoolSpec {
        subnet: format!("{}/{length}", text(first)),
        ips: vec![format!("{}-{}", text(first + 2), text(last))],
        gateway: Some(text(first + 1)),
        ..IPPoolSpec::default()
    };
    (Network::new(name, spec), SpiderIPPool::new(name, pool))
}

fn node_name(n: u32) -> String {
    format!("node-{n:04}")
}

/// Of another node, as its agent writes it.
fn node_state(n: u32) -> NodeState {
    let [_, b, c, d] = n.to_be_bytes();
    let uplink = NodeUplink {
        name: "eth0".into(),
        ipv4: Some(Ipv4Addr::from([172, 16 + b, c, d])),
        mtu: 1500,
        ..NodeUplink::default()
    };
    let spec = NodeStateSpec {
        uplinks: vec![uplink],
        router_mac: Mac([2, 0, 0, b, c, d]),
        node_addresses: vec![IpAddr::from([10, 128, c, d])],
        networks: vec!["default".into()],
        ..NodeStateSpec::default()
    };
    NodeState::new(node_name(n), spec)
}

/// An address that a pod of a node holds.
fn entry(address: u32, pod: u32, node: String, pool: &str) -> Entry {
    Entry {
        address: IpAddr::from(address.to_be_bytes()),
        state: EntryState::Allocated,
        owner: Some(Owner::Pod {
            namespace: format!("team-{}", pod % 200),
            name: format!("application-{}-6d4cf56db6-{pod:05x}", pod % 1000),
            uid: format!("3f1c2a9e-0b7d-4c55-9e21-{pod:012x}"),
        }),
        interface: "eth0".into(),
        pool: pool.into(),
        sandbox_id: format!("{pod:064x}"),
        node,
        since_ms: 1_790_000_000_000,
        until_ms: None,
        reason: String::new(),
    }
}

/// A block with so many pods from its third address on. `node`: of which node the n-th pod is.
fn block(
    network: &str,
    start: u32,
    pods: std::ops::Range<u32>,
    node: impl Fn(u32) -> u32,
) -> AddressBlock {
    let mut block = AddressBlock::around(network, IpAddr::from(start.to_be_bytes()));
    let entries = pods
        .enumerate()
        .map(|(at, pod)| entry(start + 2 + at as u32, pod, node_name(node(pod)), network));
    block.spec.entries = entries.collect();
    block
}

impl Cluster {
    /// Writes many objects at the same time.
    fn create_all<R: Resource>(&self, objects: &[R]) {
        let writes = objects.iter().map(|object| self.create_surely(object));
        let mut writes = futures::stream::iter(writes).buffer_unordered(WRITERS);
        self.runtime.block_on(async { while writes.next().await.is_some() {} });
    }

    /// On a machine that does other things as well an answer may be late.
    async fn create_surely<R: Resource>(&self, object: &R) {
        for _ in 0..10 {
            match self.store.create(object).await {
                Ok(_) | Err(StoreError::Exists { .. }) => return,
                Err(error) => eprintln!("{error}; tried again"),
            }
        }
        panic!("{} {} cannot be made", R::KIND, object.meta().name);
    }

    /// So many blocks of a Network lose a pod, as when it is deleted.
    fn change(&self, network: &str, count: usize) {
        let selector = LabelSelector::label(NETWORK_LABEL, network);
        let mut blocks: Vec<AddressBlock> =
            self.runtime.block_on(self.store.list(&selector)).unwrap();
        blocks.retain(|block| block.spec.entries.len() > 1);
        let blocks: Vec<AddressBlock> = blocks
            .into_iter()
            .take(count)
            .map(|mut block| {
                block.spec.entries.pop();
                block
            })
            .collect();
        let writes = blocks.iter().map(|block| self.store.update(block));
        let mut writes = futures::stream::iter(writes).buffer_unordered(WRITERS);
        self.runtime.block_on(async {
            while let Some(written) = writes.next().await {
                written.unwrap_or_else(|e| panic!("{e}"));
            }
        });
    }
}

/// What the agent takes.
struct Figures {
    rss_mib: f64,
    peak_mib: f64,
    first_lists_mib: f64,
    bytes_per_change: f64,
    /// Processor time: until everything was known, and for the changes.
    start_cpu_s: f64,
    changes_cpu_s: f64,
    route_ms: Vec<f64>,
}

impl Node {
    fn status_mib(&self, field: &str) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.agent.pid())).unwrap();
        let line = status.lines().find(|l| l.starts_with(field)).unwrap();
        let kib: f64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib / 1024.0
    }

    /// Processor time that the agent has used.
    fn cpu_s(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.agent.pid())).unwrap();
        // After the name in brackets; utime and stime are fields 14 and 15 (proc_pid_stat(5)).
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: f64 = fields[11..13].iter().map(|field| field.parse::<f64>().unwrap()).sum();
        ticks / 100.0
    }

    /// Milliseconds from a block's creation to its route at the data plane.
    fn time_route(&self, cluster: &Cluster, network: &str, start: u32) -> f64 {
        let mut block = AddressBlock::around(network, IpAddr::from(start.to_be_bytes()));
        block.spec.node = Some(node_name(1));
        let before = Instant::now();
        cluster.create_all(&[block]);
        let is_there = |route: &api::Route| {
            route.prefix.as_ref().is_some_and(|prefix| prefix.addr == start.to_be_bytes())
        };
        while !self.dataplane.told.lock().unwrap().networks[network].routes.iter().any(is_there) {
            assert!(before.elapsed() < KNOWN_WITHIN, "no route: {}", self.agent.log());
            std::thread::sleep(Duration::from_millis(1));
        }
        before.elapsed().as_secs_f64() * 1000.0
    }

    fn received_bytes(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Until the data plane has been told so many routes.
    fn wait_for_routes(&self, network: &str, at_least: usize) {
        let deadline = Instant::now() + KNOWN_WITHIN;
        loop {
            let told = self.dataplane.told.lock().unwrap();
            let routes = told.networks.get(network).map_or(0, |n| n.routes.len());
            drop(told);
            if routes >= at_least {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{routes} of {at_least} routes of {network}: {}",
                self.agent.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Until the watches have been still for a second.
    fn wait_until_still(&self) {
        let mut before = self.received_bytes();
        let mut since = Instant::now();
        let deadline = since + KNOWN_WITHIN;
        while since.elapsed() < Duration::from_secs(1) {
            assert!(Instant::now() < deadline, "never still, {before} bytes: {}", self.agent.log());
            std::thread::sleep(Duration::from_millis(50));
            let now = self.received_bytes();
            if now != before {
                (before, since) = (now, Instant::now());
            }
        }
    }

    /// Measures while `networks` change, each by an equal share of the changes. At the places named
    /// by Network and first address there is no block yet.
    fn measure(
        &self,
        cluster: &Cluster,
        networks: &[String],
        changes: usize,
        places: impl Iterator<Item = (String, u32)>,
    ) -> Figures {
        self.wait_until_still();
        let (first, start_cpu_s) = (self.received_bytes(), self.cpu_s());
        for network in networks {
            cluster.change(network, changes / networks.len());
        }
        self.wait_until_still();
        let bytes = (self.received_bytes() - first) as f64;
        let changes_cpu_s = self.cpu_s() - start_cpu_s;
        let route_ms = places.map(|(network, at)| self.time_route(cluster, &network, at)).collect();
        Figures {
            start_cpu_s,
            changes_cpu_s,
            route_ms,
            rss_mib: self.status_mib("VmRSS"),
            peak_mib: self.status_mib("VmHWM"),
            first_lists_mib: first as f64 / f64::from(1 << 20),
            bytes_per_change: bytes / changes as f64,
        }
    }
}

/// Prints, writes and judges the figures.
fn report(case: &str, size: Size, figures: &Figures) {
    let report = json!({
        "case": case, "nodes": size.nodes, "pods": size.pods,
        "rss_mib": figures.rss_mib, "peak_rss_mib": figures.peak_mib,
        "first_lists_mib": figures.first_lists_mib,
        "watch_bytes_per_changed_block": figures.bytes_per_change,
        "start_cpu_s": figures.start_cpu_s,
        "changed_blocks": size.changes,
        "changes_cpu_s": figures.changes_cpu_s,
        "route_after_ms": figures.route_ms,
        "goal_rss_mib": MOST_MIB,
    });
    println!("{report:#}");
    if let Some(folder) = std::env::var_os("BOWLINE_BENCH_OUT") {
        let folder = Path::new(&folder);
        std::fs::create_dir_all(folder).unwrap();
        write_json(&folder.join(format!("agent-memory-{case}.json")), &report);
    }
    assert!(figures.peak_mib <= MOST_MIB, "an agent takes {:.1} MiB", figures.peak_mib);
}

fn write_json(path: &Path, value: &Value) {
    std::fs::write(path, format!("{value:#}\n")).unwrap_or_else(|e| panic!("{path:?}: {e}"));
}

/// Every node holds one block, in which its pods are.
#[test]
fn all_pods_in_default() {
    let size = size();
    let cluster = Cluster::empty();
    cluster.apply(NODE);
    let (network, pool) = network("default", 1, [10, 128, 0, 0], 10);
    cluster.create_all(&[pool]);
    cluster.create_all(&[network]);
    let each = size.pods / size.nodes;
    // The first blocks are left to the node itself.
    let bound = |n: u32| {
        let start = u32::from(Ipv4Addr::new(10, 128, 4, 0)) + n * 64;
        let mut block = block("default", start, n * each..(n + 1) * each, |_| n);
        block.spec.node = Some(node_name(n));
        block
    };
    cluster.create_all(&(0..size.nodes).map(node_state).collect::<Vec<_>>());
    cluster.create_all(&(0..size.nodes).map(bound).collect::<Vec<_>>());
    let node = Node::start(&cluster, "n1", [192, 0, 2, 1]);
    node.wait_for_routes("default", size.nodes as usize);
    let free = u32::from(Ipv4Addr::new(10, 128, 4, 0)) + size.nodes * 64;
    let places = (0..ROUTES_TIMED).map(|n| ("default".to_owned(), free + n * 64));
    let figures = node.measure(&cluster, &["default".into()], size.changes, places);
    report("default", size, &figures);
}

/// Most Networks are none of this node's business.
#[test]
fn a_thousand_networks_of_which_ten_are_local() {
    let size = size();
    let (networks, local) = if size.pods > 10_000 { (1_000, 10) } else { (20, 5) };
    let cluster = Cluster::empty();
    cluster.apply(NODE);
    let name = |n: u32| format!("net-{n:03}");
    let subnet = |n: u32| Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + n * 256).octets();
    let all = (0..networks).map(|n| network(&name(n), 100 + n, subnet(n), 24));
    let (objects, pools): (Vec<_>, Vec<_>) = all.unzip();
    let (own, own_pool) = network("default", 1, [10, 128, 0, 0], 10);
    cluster.create_all(&pools);
    cluster.create_all(&objects);
    cluster.create_all(&[own_pool]);
    cluster.create_all(&[own]);
    // Small pools are not bound: each pod is a route of its own, on another node.
    let each = size.pods / networks;
    let blocks = (0..networks).flat_map(|n| {
        let start = u32::from(Ipv4Addr::from(subnet(n)));
        let name = name(n);
        (0..each.div_ceil(50)).map(move |at| {
            let pods = n * each + at * 50..n * each + each.min((at + 1) * 50);
            block(&name, start + at * 64, pods, |pod| pod % size.nodes)
        })
    });
    cluster.create_all(&(0..size.nodes).map(node_state).collect::<Vec<_>>());
    cluster.create_all(&blocks.collect::<Vec<_>>());
    let node = Node::start(&cluster, "n1", [192, 0, 2, 1]);
    let netns = Netns::new();
    for n in 0..local {
        let uid = cluster.pod(&format!("pod-{n}"), &json!({}));
        let pod = Pod::new(&format!("pod-{n}"), &netns, &name(n), &format!("eth{n}"));
        let outcome = node.agent.call(&request(&pod, &uid, Command::Add)).outcome;
        assert!(matches!(outcome, Outcome::Result(_)), "{outcome:?}: {}", node.agent.log());
    }
    let local: Vec<String> = (0..local).map(name).collect();
    for network in &local {
        node.wait_for_routes(network, each as usize);
    }
    // Of others' changes nothing is heard.
    node.wait_until_still();
    let before = node.received_bytes();
    cluster.change(&name(networks - 1), 2);
    node.wait_until_still();
    let heard = node.received_bytes() - before;
    assert!(heard < 20_000, "{heard} bytes about a Network that nobody here uses");
    // The last quarter of a Network's addresses is free.
    let last_block = |n: u32| u32::from(Ipv4Addr::from(subnet(n))) + 192;
    let places = (0..ROUTES_TIMED).map(|n| (name(n), last_block(n)));
    let size = Size { changes: 2 * local.len(), ..size };
    let figures = node.measure(&cluster, &local, size.changes, places);
    report("networks", size, &figures);
}
