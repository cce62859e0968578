//! The API server and the agents, as far as they claim addresses: catalog with its watches, store with its
//! memory, queue of claims.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use agent::catalog::{AnyStore, ApiCatalog, Source};
use agent::cni_server::queue::{Held, WriteQueue};
use bowline_kube::ApiStore;
use futures::StreamExt;
use futures::future::join_all;
use judge::{Event, Judge, Told, Version};
use kube::Client;
use multinet::ipam::{self, Candidate, Holder, Request};
use multinet::range::{AddressSet, Family};
use multinet::rules::{ReuseDelay, Strategy};
use multinet::store::Store;
use multinet::types::block::{AddressBlock, Entry, EntryState, Owner};
use multinet::types::mac::Mac;
use multinet::types::meta::LabelSelector;
use multinet::types::network::{Network, NetworkSpec, PoolLists};
use multinet::types::node::{NodeState, NodeStateSpec, NodeUplink};
use multinet::types::pool::{IPPoolSpec, SpiderIPPool};
use serde_json::json;
use testapi::{History, TestApi, User};
use tokio::task::JoinSet;

use crate::Spec;
use crate::observer::{self, Awaited, Observer};

/// What the API server does not answer is tried so often, each try as long as it may take.
const TRIES: u32 = 10;
/// The Network of all pods.
pub(crate) const NETWORK: &str = "bench";
/// Of every pod.
const INTERFACE: &str = "eth0";
/// Whom the role of the agents is bound to: not masters, whom the API server never makes wait.
const GROUP: &str = "bowline:agents";
/// The pool begins here; addresses that others hold come first.
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 0);
/// As in the agent: an address is marked as in use when no other has come for so long.
const CONFIRM_AFTER: Duration = Duration::from_millis(300);
/// The API server has listed the blocks by then.
const LISTED_WITHIN: Duration = Duration::from_secs(60);

/// A pod that is up.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    agent: usize,
    owner: Owner,
    sandbox: String,
    address: IpAddr,
    /// How often its claim was tried again.
    pub(crate) refused: usize,
}

/// An agent.
#[derive(Debug)]
struct Agent {
    name: String,
    tunnel_end: IpAddr,
    store: AnyStore,
    queue: WriteQueue,
    _source: Source,
}

/// Everything that runs.
pub(crate) struct Fleet {
    agents: Vec<Arc<Agent>>,
    /// What the agents do in the background.
    confirming: Mutex<JoinSet<()>>,
    observer: Observer,
    awaited: Arc<Awaited>,
    candidate: Candidate,
    pods_each: u32,
    history: History,
    judge: Judge,
    admin: Client,
    // Last: the others end before.
    _api: TestApi,
}

impl Fleet {
    /// Starts it all, and waits until every agent knows everything.
    pub(crate) async fn start(spec: &Spec) -> Self {
        let names: Vec<String> = (0..spec.agents).map(|n| format!("agent-{n}")).collect();
        let user = |name: &str| User { name: name.into(), groups: vec![GROUP.into()] };
        let users: Vec<User> =
            names.iter().map(String::as_str).chain([observer::NAME]).map(user).collect();
        let api = TestApi::start_with(&users, spec.fsync).await;
        api.install_crds().await;
        let admin = api.client("admin").await;
        let addresses = fill(&admin, spec).await;
        let history = History::follow(admin.clone()).await;
        let mut agents = Vec::new();
        for (n, name) in names.into_iter().enumerate() {
            let source = open(&api, &name).await;
            let (store, queue) = (source.store(), WriteQueue::default());
            let tunnel_end = tunnel_end(n);
            agents.push(Arc::new(Agent { name, tunnel_end, store, queue, _source: source }));
        }
        let awaited = Arc::new(Awaited::default());
        let observer = Observer::new(open(&api, observer::NAME).await, awaited.clone());
        let candidate = Candidate {
            pool: NETWORK.into(),
            addresses: AddressSet::parse(Family::V4, &[addresses]).expect("a range"),
            strategy: Strategy::Lowest,
            reuse_delay: ReuseDelay::default(),
            binding: spec.binding,
        };
        let (judge, pods_each) = (Judge::default(), spec.pods_each);
        let confirming = Mutex::default();
        Self {
            agents,
            confirming,
            observer,
            awaited,
            candidate,
            pods_each,
            history,
            judge,
            admin,
            _api: api,
        }
    }

    pub(crate) fn admin(&self) -> &Client {
        &self.admin
    }

    /// All pods come at once.
    pub(crate) async fn come(&mut self, round: u32) -> Vec<Pod> {
        let agents = self.agents.iter().enumerate();
        let came = agents.map(|(n, agent)| self.come_to(n, agent, round));
        let pods: Vec<Pod> = join_all(came).await.into_iter().flatten().collect();
        for pod in &pods {
            self.judge.note(Event::Told(pod.told()));
        }
        pods
    }

    /// The pods of one agent: their claims share writes, and are confirmed together later.
    async fn come_to(&self, n: usize, agent: &Arc<Agent>, round: u32) -> Vec<Pod> {
        let pods = (0..self.pods_each).map(|pod| async move {
            let mut request = self.request(agent, &format!("{round}-{n}-{pod}"));
            let mut refused = 0;
            loop {
                let claims = agent.queue.claim(&agent.store, NETWORK, vec![request.clone()]).await;
                if let Ok([claim]) = claims.as_deref() {
                    self.awaited.add(claim.address, agent.tunnel_end);
                    let Request { owner, sandbox_id: sandbox, .. } = request;
                    return Pod { agent: n, owner, sandbox, address: claim.address, refused };
                }
                // As the kubelet does: another sandbox.
                refused += 1;
                assert!(refused < 100, "{}: {claims:?}", agent.name);
                request.sandbox_id = format!("{}-{refused}", request.owner.key());
            }
        });
        let pods = join_all(pods).await;
        let mut confirming = self.confirming.lock().expect("nobody panics with it");
        confirming.spawn(agent.clone().confirm_later(pods.clone()));
        drop(confirming);
        pods
    }

    /// Returns when the agents have nothing to do in the background.
    pub(crate) async fn wait_until_confirmed(&mut self) {
        let confirming = self.confirming.get_mut().expect("nobody panics with it");
        while let Some(confirmed) = confirming.join_next().await {
            confirmed.expect("confirm");
        }
    }

    fn request(&self, agent: &Agent, pod: &str) -> Request {
        let owner = Owner::Pod {
            namespace: "bench".into(),
            name: format!("application-6d4cf56db6-{pod}"),
            uid: format!("3f1c2a9e-0b7d-4c55-9e21-{pod}"),
        };
        Request {
            sandbox_id: format!("{}-0", owner.key()),
            owner,
            interface: INTERFACE.into(),
            family: Family::V4,
            node: agent.name.clone(),
            candidates: vec![self.candidate.clone()],
            exact: None,
            sticky: false,
            moves: false,
            cluster_nodes: u32::try_from(self.agents.len()).unwrap_or(u32::MAX),
        }
    }

    /// All pods go at once, each by a DEL of its own.
    pub(crate) async fn go(&mut self, pods: &[Pod]) {
        for pod in pods {
            let (uid, sandbox) = (pod.owner.key(), pod.sandbox.clone());
            self.judge.note(Event::MayRelease { uid, sandbox });
        }
        let gone = pods.iter().map(|pod| async {
            let Agent { store, queue, .. } = self.agents[pod.agent].as_ref();
            let (sandbox_id, interfaces) = (pod.sandbox.clone(), vec![INTERFACE.to_owned()]);
            let held = Held { sandbox_id, interfaces };
            let mut tries = 0..TRIES;
            while let Err(error) = queue.release(store, NETWORK, held.clone()).await {
                assert!(tries.next().is_some(), "release: {error}");
            }
        });
        join_all(gone).await;
    }

    /// Until the second agent has every route.
    pub(crate) async fn wait_for_routes(&self) -> anyhow::Result<()> {
        self.observer.wait_until_routed().await
    }

    /// What has happened was right, and these pods alone hold what they were told.
    pub(crate) async fn judge(&mut self, up: &[Pod]) -> anyhow::Result<()> {
        for line in self.history.take().await {
            if let Some(version) = Version::of_watch(&line) {
                self.judge.note(Event::Seen(version));
            }
        }
        let holders = self.judge.verdict().map_err(anyhow::Error::msg)?;
        let told: Vec<Told> = up.iter().map(Pod::told).collect();
        judge::settled(holders, &told).map_err(anyhow::Error::msg)
    }
}

impl Agent {
    /// Marks the pods' addresses as in use, as the agent does in the background.
    async fn confirm_later(self: Arc<Self>, pods: Vec<Pod>) {
        let mut tries = 0..TRIES;
        loop {
            tokio::time::sleep(CONFIRM_AFTER).await;
            let _turn = self.store.turn(NETWORK).await;
            let confirmed = ipam::modify(&self.store, NETWORK, |view| {
                for pod in &pods {
                    ipam::plan_confirm(view, pod.holder(), now_ms());
                }
            });
            match confirmed.await {
                Ok(()) => return,
                Err(error) => assert!(tries.next().is_some(), "confirm: {error}"),
            }
        }
    }
}

impl Pod {
    fn holder(&self) -> Holder<'_> {
        Holder { owner: Some(&self.owner), sandbox_id: &self.sandbox, interface: None }
    }

    fn told(&self) -> Told {
        Told {
            uid: self.owner.key(),
            sandbox: self.sandbox.clone(),
            network: NETWORK.into(),
            address: self.address.to_string(),
        }
    }
}

/// An agent's catalog, with a connection and a token of its own.
async fn open(api: &TestApi, name: &str) -> Source {
    let source = Source::Api(ApiCatalog::open(api.client(name).await, name).await);
    source.prepare(&[NETWORK.into()], LISTED_WITHIN).await.expect("the blocks");
    source
}

fn tunnel_end(agent: usize) -> IpAddr {
    IpAddr::from((u32::from(Ipv4Addr::new(172, 16, 0, 1)) + agent as u32).to_be_bytes())
}

/// What there is before the pods come; the pool's addresses.
async fn fill(admin: &Client, spec: &Spec) -> String {
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "bench-agents"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole",
            "name": "cluster-admin"},
        "subjects": [{"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": GROUP}],
    });
    let path = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    let request = http::Request::post(path).header("content-type", "application/json");
    let request = request.body(role.to_string().into_bytes()).expect("a request");
    let _: serde_json::Value = admin.request(request).await.expect("bind the agents' role");

    let store = ApiStore::new(admin.clone());
    let first = u32::from(FIRST) + 1;
    let held_blocks = spec.held.div_ceil(64);
    let wanted = held_blocks * 64 + spec.agents * spec.pods_each + spec.spare;
    let addresses = format!("{}-{}", Ipv4Addr::from(first), Ipv4Addr::from(first + wanted - 1));
    let pool = IPPoolSpec {
        subnet: "10.64.0.0/10".into(),
        ips: vec![addresses.clone()],
        ..IPPoolSpec::default()
    };
    store.create(&SpiderIPPool::new(NETWORK, pool)).await.expect("make the pool");
    let network = NetworkSpec {
        vni: Some(77),
        namespace_selector: Some(LabelSelector::default()),
        ip_pools: PoolLists { ipv4: vec![NETWORK.into()], ipv6: Vec::new() },
        ..NetworkSpec::default()
    };
    store.create(&Network::new(NETWORK, network)).await.expect("make the Network");
    for n in 0..spec.agents as usize {
        store.create(&node_state(n)).await.expect("make a NodeState");
    }
    let blocks: Vec<AddressBlock> = (0..held_blocks).map(held_block).collect();
    let writes = blocks.iter().map(|block| store.create(block));
    let mut writes = futures::stream::iter(writes).buffer_unordered(32);
    while let Some(written) = writes.next().await {
        written.expect("make a block");
    }
    addresses
}

fn node_state(agent: usize) -> NodeState {
    let IpAddr::V4(end) = tunnel_end(agent) else { unreachable!("made from four bytes") };
    let uplink =
        NodeUplink { name: "eth0".into(), ipv4: Some(end), mtu: 1500, ..NodeUplink::default() };
    let [_, b, c, d] = end.octets();
    let spec = NodeStateSpec {
        uplinks: vec![uplink],
        router_mac: Mac([2, 0, 0, b, c, d]),
        networks: vec![NETWORK.into()],
        ..NodeStateSpec::default()
    };
    NodeState::new(format!("agent-{agent}"), spec)
}

/// A full block of a node that is none of the agents'.
fn held_block(n: u32) -> AddressBlock {
    let start = u32::from(FIRST) + n * 64;
    let mut block = AddressBlock::around(NETWORK, IpAddr::from(start.to_be_bytes()));
    let node = format!("other-{n}");
    block.spec.node = Some(node.clone());
    let entries = (0..64).map(|at| Entry {
        address: IpAddr::from((start + at).to_be_bytes()),
        state: EntryState::Allocated,
        owner: Some(Owner::Pod {
            namespace: "bench".into(),
            name: format!("other-6d4cf56db6-{n}-{at}"),
            uid: format!("5b0c7a11-93aa-4e12-8d2f-{n:08x}{at:04x}"),
        }),
        interface: INTERFACE.into(),
        pool: NETWORK.into(),
        sandbox_id: format!("{n:060x}{at:04x}"),
        node: node.clone(),
        since_ms: 1,
        until_ms: None,
        reason: String::new(),
    });
    block.spec.entries = entries.collect();
    block
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
