//! The cluster's objects as watched: every replica's memory. It may lag behind; what is written is
//! compared by the API server, and what frees an address is read again before.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use bowline_kube::{Change, Selection, follow};
use futures::StreamExt;
use kube::Client;
use multinet::rules::{Catalog, Checked, Taken, taken_by};
use multinet::types::block::AddressBlock;
use multinet::types::coordinator::SpiderCoordinator;
use multinet::types::core::{Namespace, NetworkAttachmentDefinition, Node, Pod, ServiceCIDR};
use multinet::types::meta::Resource;
use multinet::types::multus::SpiderMultusConfig;
use multinet::types::network::Network;
use multinet::types::node::NodeState;
use multinet::types::pool::{SpiderIPPool, SpiderReservedIP};
use multinet::types::subnet::SpiderSubnet;
use tokio::sync::watch;

/// Namespace (empty for cluster-scoped kinds) and name.
pub type Key = (String, String);

/// Objects of one kind.
#[derive(Debug)]
pub struct Index<R> {
    objects: RwLock<BTreeMap<Key, R>>,
    complete: AtomicBool,
    /// Counts changes of this kind.
    version: AtomicU64,
    changed: watch::Sender<u64>,
}

impl<R: Resource> Index<R> {
    fn new(changed: &watch::Sender<u64>) -> Arc<Self> {
        Arc::new(Index {
            objects: RwLock::default(),
            complete: AtomicBool::new(false),
            version: AtomicU64::new(0),
            changed: changed.clone(),
        })
    }

    /// The objects; nothing is learnt while they are looked at.
    pub fn read(&self) -> RwLockReadGuard<'_, BTreeMap<Key, R>> {
        self.objects.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies of all objects, by namespace and name.
    #[must_use]
    pub fn all(&self) -> Vec<R> {
        self.read().values().cloned().collect()
    }

    /// A copy of one object.
    #[must_use]
    pub fn get(&self, namespace: &str, name: &str) -> Option<R> {
        self.read().get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    /// Whether all objects have been told once.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    fn take(&self, change: Change<R>) {
        let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
        match change {
            Change::All(all) => {
                *objects = all.into_iter().map(|o| (key(&o), lean(o))).collect();
                self.complete.store(true, Ordering::Release);
            }
            Change::Set(one) => drop(objects.insert(key(&one), lean(one))),
            Change::Gone(one) => drop(objects.remove(&key(&one))),
        }
        self.version.fetch_add(1, Ordering::Release);
        drop(objects);
        self.changed.send_modify(|n| *n += 1);
    }

    async fn follow(self: Arc<Self>, client: Client) {
        let mut changes = Box::pin(follow::<R>(&client, &Selection::default()));
        while let Some(change) = changes.next().await {
            self.take(change);
        }
    }
}

/// Without the record of who set which field: it is the larger half of a pod, and the API server keeps
/// it where an update does not bring it.
fn lean<R: Resource>(mut object: R) -> R {
    object.meta_mut().other.remove("managedFields");
    object
}

fn key<R: Resource>(object: &R) -> Key {
    let meta = object.meta();
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone())
}

/// Objects of all kinds that matter here.
#[derive(Clone, Debug)]
pub struct World {
    /// Networks.
    pub networks: Arc<Index<Network>>,
    /// Blocks of addresses.
    pub blocks: Arc<Index<AddressBlock>>,
    /// What nodes say of themselves.
    pub node_states: Arc<Index<NodeState>>,
    /// Pools.
    pub pools: Arc<Index<SpiderIPPool>>,
    /// Subnets.
    pub subnets: Arc<Index<SpiderSubnet>>,
    /// Reservations.
    pub reserved: Arc<Index<SpiderReservedIP>>,
    /// The coordinator.
    pub coordinators: Arc<Index<SpiderCoordinator>>,
    /// Configurations for Multus.
    pub multus_configs: Arc<Index<SpiderMultusConfig>>,
    /// Their results. Complete only where Multus is installed.
    pub definitions: Arc<Index<NetworkAttachmentDefinition>>,
    /// Namespaces.
    pub namespaces: Arc<Index<Namespace>>,
    /// Nodes.
    pub nodes: Arc<Index<Node>>,
    /// Pods.
    pub pods: Arc<Index<Pod>>,
    /// Prefixes of Services. Complete only where the API server knows the kind.
    pub services: Arc<Index<ServiceCIDR>>,
    /// Counts changes of any kind.
    changed: watch::Sender<u64>,
    /// What the rules said last.
    last: Arc<Mutex<Option<Last>>>,
}

/// What the rules said, and of which versions.
#[derive(Debug)]
struct Last {
    of: Versions,
    checked: Arc<Checked>,
}

/// How often each kind that the rules read has changed.
type Versions = [u64; 6];

impl World {
    /// Follows everything, on tasks of `tasks`.
    pub fn follow(client: &Client, tasks: &mut tokio::task::JoinSet<()>) -> World {
        let (changed, _) = watch::channel(0);
        macro_rules! index {
            () => {{
                let index = Index::new(&changed);
                tasks.spawn(index.clone().follow(client.clone()));
                index
            }};
        }
        World {
            networks: index!(),
            blocks: index!(),
            node_states: index!(),
            pools: index!(),
            subnets: index!(),
            reserved: index!(),
            coordinators: index!(),
            multus_configs: index!(),
            definitions: index!(),
            namespaces: index!(),
            nodes: index!(),
            pods: index!(),
            services: index!(),
            changed,
            last: Arc::default(),
        }
    }

    /// Whether every kind has been told once; until then nobody can tell what is missing.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.networks.is_complete()
            && self.blocks.is_complete()
            && self.node_states.is_complete()
            && self.pools.is_complete()
            && self.subnets.is_complete()
            && self.reserved.is_complete()
            && self.coordinators.is_complete()
            && self.multus_configs.is_complete()
            && self.namespaces.is_complete()
            && self.nodes.is_complete()
            && self.pods.is_complete()
    }

    /// Wakes after every change.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Networks, pools, subnets and reservations for the rules.
    #[must_use]
    pub fn catalog(&self) -> Catalog {
        Catalog {
            networks: by_name(self.networks.all()),
            pools: by_name(self.pools.all()),
            subnets: by_name(self.subnets.all()),
            reserved: by_name(self.reserved.all()),
            taken: self.taken(),
        }
    }

    /// What the rules say of the catalog; from memory where nothing of it has changed.
    #[must_use]
    pub fn checked(&self) -> Arc<Checked> {
        // Read before the objects: what comes in between is checked again the next time.
        let of = self.versions();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = last.as_ref().filter(|last| last.of == of) {
            return last.checked.clone();
        }
        let checked = Arc::new(Checked::new(&self.catalog()));
        *last = Some(Last { of, checked: checked.clone() });
        checked
    }

    fn versions(&self) -> Versions {
        [
            self.networks.version(),
            self.pools.version(),
            self.subnets.version(),
            self.reserved.version(),
            self.node_states.version(),
            self.services.version(),
        ]
    }

    /// What pools of `default` must leave alone.
    #[must_use]
    pub fn taken(&self) -> Vec<Taken> {
        taken_by(self.node_states.read().values(), self.services.read().values())
    }
}

fn by_name<R: Resource>(all: Vec<R>) -> BTreeMap<String, R> {
    all.into_iter().map(|o| (o.meta().name.clone(), o)).collect()
}
