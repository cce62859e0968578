//! The Kubernetes API as the agent's catalog: a few watches whose size does not depend on the pods of
//! other nodes.
//!
//! Watched are Networks, pools (their metadata; specs are fetched when they change), subnets, reservations,
//! NodeStates, ServiceCIDRs, this node's Node, and the AddressBlocks of the Networks in local use. The pod of an
//! ADD and its namespace are fetched by name.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bowline_kube::{
    ApiStore, Change, Events, OtherAllocator, Selection, Severity, follow, follow_reduced,
    follow_specs,
};
use futures::{Stream, StreamExt};
use kube::Client;
use multinet::store::{Store, StoreError};
use multinet::types::block::NETWORK_LABEL;
use multinet::types::coordinator::SpiderCoordinator;
use multinet::types::core::{Namespace, Node, Pod, PodSpec, ServiceCIDR};
use multinet::types::meta::{ObjectMeta, Resource};
use multinet::types::network::Network;
use multinet::types::node::{NodeState, Versions};
use multinet::types::pool::{SpiderIPPool, SpiderReservedIP};
use multinet::types::subnet::SpiderSubnet;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::Snapshot;
use super::cached::CachedStore;
use super::objects::Objects;
use super::source::PodObjects;

/// After a change, so long is waited for more of it.
const GATHER: Duration = Duration::from_millis(5);
/// While the first lists do not come, this is said at this interval.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);
/// A Network that nobody has used for so long is watched no more.
const UNUSED_AFTER: Duration = Duration::from_secs(120);

/// The API's objects as this node needs them.
#[derive(Debug)]
pub struct ApiCatalog {
    store: CachedStore,
    events: Events,
    other: OtherAllocator,
    node: String,
    current: watch::Sender<Arc<Snapshot>>,
    networks: Mutex<BTreeMap<String, NetworkWatch>>,
    /// Watches of what does not depend on the Networks in use.
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

/// The watch on one Network's blocks.
#[derive(Debug)]
struct NetworkWatch {
    task: JoinHandle<()>,
    told: watch::Receiver<bool>,
    wanted_at: Instant,
}

impl ApiCatalog {
    /// Starts the watches, and returns when each has told what there is: before that nothing could be
    /// decided. An API server that is away is waited for.
    pub async fn open(client: Client, node: &str) -> Arc<Self> {
        let objects = Arc::new(Objects::default());
        let catalog = Arc::new(Self {
            store: CachedStore::new(ApiStore::new(client.clone()), objects, node),
            events: Events::new(client.clone(), "bowline-agent", node),
            other: OtherAllocator::watch(client.clone()),
            node: node.to_owned(),
            current: watch::Sender::new(Arc::default()),
            networks: Mutex::default(),
            tasks: Mutex::default(),
        });
        let everything = Selection::default();
        let own = node.to_owned();
        let states = follow_reduced::<NodeState, _>(&client, &everything, move |state| {
            if state.name() == own { state } else { seen_from_afar(state) }
        });
        let first = [
            catalog.start(follow::<Network>(&client, &everything)),
            catalog.start(follow_specs::<SpiderIPPool>(&client, &everything, without_status)),
            catalog.start(follow::<SpiderSubnet>(&client, &everything)),
            catalog.start(follow::<SpiderReservedIP>(&client, &everything)),
            catalog.start(follow::<SpiderCoordinator>(&client, &everything)),
            catalog.start(states),
            catalog.start(follow::<Node>(&client, &Selection::named(node))),
        ];
        // Kubernetes before 1.33 has none: they are not waited for.
        catalog.start(follow::<ServiceCIDR>(&client, &everything));
        for told in first {
            wait_until_told(told).await;
        }
        catalog.publish();
        let publisher = tokio::spawn(catalog.clone().keep_publishing());
        lock(&catalog.tasks).push(publisher);
        catalog
    }

    /// The store.
    pub fn store(&self) -> &CachedStore {
        &self.store
    }

    /// What is in force now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.borrow().clone()
    }

    /// Is told each time that something in force changes.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.current.subscribe()
    }

    /// The pod and its namespace as the API server has them now.
    pub(super) async fn pod(&self, namespace: &str, name: &str) -> Result<PodObjects, StoreError> {
        let (pod, namespace) = tokio::join!(
            self.store.get::<Pod>(Some(namespace), name),
            self.store.get::<Namespace>(None, namespace),
        );
        Ok(PodObjects { pod: pod?.map(Arc::new), namespace: namespace?.map(Arc::new) })
    }

    /// Who else gives addresses of the same pools, if anybody does.
    pub fn other_allocator(&self) -> Option<String> {
        self.other.at_work()
    }

    /// Says on a pod why it has no network.
    pub async fn say_why_not(&self, namespace: &str, name: &str, uid: &str, why: &str) {
        let mut pod = Pod::new(name, PodSpec::default());
        pod.metadata.namespace = Some(namespace.to_owned());
        pod.metadata.uid = Some(uid.to_owned()).filter(|uid| !uid.is_empty());
        self.events.say(&pod, Severity::Warning, "NoNetwork", "Attach", why).await;
    }

    /// See [`super::Source::prepare`].
    pub(super) async fn prepare(
        &self,
        networks: &[String],
        within: Duration,
    ) -> Result<(), String> {
        let deadline = tokio::time::Instant::now() + within;
        for network in networks {
            let mut told = self.watch(network);
            let told = tokio::time::timeout_at(deadline, told.wait_for(|told| *told)).await;
            if !matches!(told, Ok(Ok(_))) {
                return Err(format!(
                    "the API server has not told the AddressBlocks of Network {network} within {} s",
                    within.as_secs()
                ));
            }
        }
        // What a watch told just now is in the next snapshot, which shall be this caller's.
        self.publish();
        Ok(())
    }

    /// Watches of Networks that are in use stay; others end after a while.
    pub fn keep_watching(&self, in_use: &[String]) {
        let mut networks = lock(&self.networks);
        for name in in_use {
            if let Some(watched) = networks.get_mut(name) {
                watched.wanted_at = Instant::now();
            }
        }
        let unused: Vec<String> = networks
            .iter()
            .filter(|(_, watched)| watched.wanted_at.elapsed() > UNUSED_AFTER)
            .map(|(name, _)| name.clone())
            .collect();
        for name in unused {
            if let Some(watched) = networks.remove(&name) {
                watched.task.abort();
                self.store.watch_ends(&name);
                tracing::info!(network = name, "is watched no more: nobody here uses it");
            }
        }
    }

    fn watch(&self, network: &str) -> watch::Receiver<bool> {
        let mut networks = lock(&self.networks);
        if let Some(watched) = networks.get_mut(network) {
            watched.wanted_at = Instant::now();
            return watched.told.clone();
        }
        self.store.watch_begins(network);
        let selection = Selection::label(NETWORK_LABEL, network);
        let store = self.store.clone();
        let reduce = move |block| store.reduce(block);
        let blocks = follow_reduced(self.store.api().client(), &selection, reduce);
        let (tell, told) = watch::channel(false);
        let (store, name) = (self.store.clone(), network.to_owned());
        let task = tokio::spawn(async move {
            let mut blocks = Box::pin(blocks);
            while let Some(change) = blocks.next().await {
                let all = matches!(change, Change::All(_));
                apply(&store.objects, change, |block| block.spec.network == name);
                if all {
                    store.trust(&name, true);
                    tell.send_replace(true);
                }
            }
        });
        let watched = NetworkWatch { task, told: told.clone(), wanted_at: Instant::now() };
        networks.insert(network.to_owned(), watched);
        told
    }

    /// Follows all objects of a kind. The receiver is true after the first list.
    fn start<R: Resource>(
        self: &Arc<Self>,
        changes: impl Stream<Item = Change<R>> + Send + 'static,
    ) -> (watch::Receiver<bool>, &'static str) {
        let (tell, told) = watch::channel(false);
        let objects = self.store.objects.clone();
        let task = tokio::spawn(async move {
            let mut changes = Box::pin(changes);
            while let Some(change) = changes.next().await {
                apply(&objects, change, |_| true);
                tell.send_replace(true);
            }
        });
        lock(&self.tasks).push(task);
        (told, R::KIND)
    }

    async fn keep_publishing(self: Arc<Self>) {
        let mut changes = self.store.objects.subscribe();
        // What came before is published already, or it is published twice.
        changes.mark_changed();
        while changes.changed().await.is_ok() {
            tokio::time::sleep(GATHER).await;
            changes.mark_unchanged();
            self.publish();
        }
    }

    fn publish(&self) {
        self.current.send_replace(Arc::new(Snapshot::of(self.store.objects.all())));
    }

    /// Ends all watches.
    pub fn stop(&self) {
        let networks = std::mem::take(&mut *lock(&self.networks));
        let tasks = std::mem::take(&mut *lock(&self.tasks));
        networks.into_values().map(|watched| watched.task).chain(tasks).for_each(|t| t.abort());
    }

    /// This node's Node, which objects about the node belong to.
    pub fn own_node(&self) -> Option<Arc<Node>> {
        self.snapshot().get::<Node>(None, &self.node)
    }
}

/// A pool's status lists who has its addresses, for people.
fn without_status(mut pool: SpiderIPPool) -> SpiderIPPool {
    pool.status = None;
    pool
}

/// What this node needs of another: how to reach it. There are thousands.
fn seen_from_afar(state: NodeState) -> NodeState {
    let NodeState { metadata, mut spec, .. } = state;
    spec.networks = Vec::new();
    spec.features = Vec::new();
    spec.versions = Versions::default();
    spec.uplinks.shrink_to_fit();
    NodeState {
        api_version: String::new(),
        kind: String::new(),
        metadata: ObjectMeta {
            uid: metadata.uid,
            resource_version: metadata.resource_version,
            ..ObjectMeta::named(metadata.name)
        },
        spec,
        status: None,
    }
}

async fn wait_until_told((mut told, kind): (watch::Receiver<bool>, &'static str)) {
    loop {
        match tokio::time::timeout(COMPLAIN_EVERY, told.wait_for(|told| *told)).await {
            Ok(_) => return,
            Err(_) => tracing::warn!("waiting for the API server to list {kind} objects"),
        }
    }
}

fn apply<R: Resource>(objects: &Objects, change: Change<R>, belongs: impl Fn(&R) -> bool) {
    match change {
        Change::All(all) => objects.replace(all, belongs),
        Change::Set(object) => objects.set(object),
        Change::Gone(object) => objects.gone(&object),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is guarded is replaced whole, so that a panicking holder leaves it valid.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
