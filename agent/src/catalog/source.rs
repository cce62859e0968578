//! Where the agent's objects come from: a directory of files, or the Kubernetes API. Nothing above
//! this module knows which.

use std::sync::Arc;
use std::time::Duration;

use multinet::store::{Store, StoreError};
use multinet::types::block::AddressBlock;
use multinet::types::core::{Namespace, Pod};
use multinet::types::meta::{Condition, LabelSelector, Resource};
use multinet::types::node::{NodeState, NodeStateSpec, NodeStateStatus};
use tokio::sync::{OwnedMutexGuard, watch};

use super::api::ApiCatalog;
use super::cached::CachedStore;
use super::{Catalog, Directory, Snapshot};
use crate::metrics::BlockWrites;

/// Where the objects come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// Files below a directory.
    Files(Arc<Catalog>),
    /// The Kubernetes API.
    Api(Arc<ApiCatalog>),
}

/// A pod and its namespace, as far as they are known.
#[derive(Debug, Default)]
pub struct PodObjects {
    /// The pod.
    pub pod: Option<Arc<Pod>>,
    /// Its namespace.
    pub namespace: Option<Arc<Namespace>>,
}

impl Source {
    /// What is in force now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        match self {
            Source::Files(catalog) => catalog.snapshot(),
            Source::Api(catalog) => catalog.snapshot(),
        }
    }

    /// Is told each time that something in force changes.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        match self {
            Source::Files(catalog) => catalog.subscribe(),
            Source::Api(catalog) => catalog.subscribe(),
        }
    }

    /// Where claims are written.
    pub fn store(&self) -> AnyStore {
        match self {
            Source::Files(catalog) => AnyStore::Directory(catalog.directory().clone()),
            Source::Api(catalog) => AnyStore::Api(catalog.store().clone()),
        }
    }

    /// The API, where that is the source.
    pub fn api(&self) -> Option<&Arc<ApiCatalog>> {
        match self {
            Source::Files(_) => None,
            Source::Api(catalog) => Some(catalog),
        }
    }

    /// What is in force after a look at whatever may have changed a moment ago.
    ///
    /// # Errors
    /// The catalog's directory cannot be read.
    pub async fn look(&self) -> std::io::Result<Arc<Snapshot>> {
        match self {
            Source::Files(catalog) => {
                let catalog = catalog.clone();
                let looked = tokio::task::spawn_blocking(move || catalog.look_settled()).await;
                looked.unwrap_or_else(|e| Err(std::io::Error::other(e)))
            }
            Source::Api(catalog) => Ok(catalog.snapshot()),
        }
    }

    /// The pod that an ADD is for, and its namespace.
    ///
    /// # Errors
    /// The API server's.
    pub async fn pod(
        &self,
        snapshot: &Snapshot,
        namespace: &str,
        name: &str,
    ) -> Result<PodObjects, StoreError> {
        match self {
            Source::Files(_) => Ok(PodObjects {
                pod: snapshot.get::<Pod>(Some(namespace), name),
                namespace: snapshot.get::<Namespace>(None, namespace),
            }),
            Source::Api(catalog) => catalog.pod(namespace, name).await,
        }
    }

    /// Makes the AddressBlocks of Networks known, and keeps them so while the Networks are in use.
    ///
    /// # Errors
    /// A sentence: the API server did not tell them in time.
    pub async fn prepare(&self, networks: &[String], within: Duration) -> Result<(), String> {
        match self {
            Source::Files(_) => Ok(()),
            Source::Api(catalog) => catalog.prepare(networks, within).await,
        }
    }
}

/// The agent's store.
#[derive(Clone, Debug)]
pub enum AnyStore {
    /// Files below a directory.
    Directory(Directory),
    /// The Kubernetes API.
    Api(CachedStore),
}

impl AnyStore {
    /// Waits for one's turn to change the addresses of a Network.
    pub async fn turn(&self, network: &str) -> OwnedMutexGuard<()> {
        match self {
            AnyStore::Directory(directory) => directory.turns().take(network).await,
            AnyStore::Api(store) => store.turns.take(network).await,
        }
    }

    /// What is written to the API server; of files nothing is counted.
    pub fn writes(&self) -> BlockWrites {
        match self {
            AnyStore::Directory(_) => BlockWrites::default(),
            AnyStore::Api(store) => store.writes.clone(),
        }
    }

    /// What is in memory of a Network's blocks is not enough for the next decision.
    pub fn read_again(&self, network: &str) {
        if let AnyStore::Api(store) = self {
            store.trust(network, false);
        }
    }

    /// The blocks that this node may have claims in, as they are known without asking everybody:
    /// those of the Networks in local use.
    ///
    /// # Errors
    /// The store's.
    pub async fn near_blocks(&self) -> Result<Vec<Arc<AddressBlock>>, StoreError> {
        match self {
            AnyStore::Directory(directory) => {
                let blocks: Vec<AddressBlock> = directory.list(&LabelSelector::default()).await?;
                Ok(blocks.into_iter().map(Arc::new).collect())
            }
            AnyStore::Api(store) => {
                let whole = |block: &AddressBlock| block.spec.left_out.is_none();
                Ok(store.objects.of_kind(whole))
            }
        }
    }

    /// The blocks in which this node may have claims if it has claimed in these Networks only; of a
    /// directory all.
    ///
    /// # Errors
    /// The store's.
    pub async fn blocks_claimed_in(
        &self,
        networks: &[String],
    ) -> Result<Vec<Arc<AddressBlock>>, StoreError> {
        let AnyStore::Api(store) = self else { return self.near_blocks().await };
        let mut blocks = Vec::new();
        for network in networks {
            blocks.extend(store.blocks(network).await?);
        }
        Ok(blocks)
    }

    /// Writes what this node says of itself.
    ///
    /// # Errors
    /// The store's.
    pub async fn put_node_state(
        &self,
        new: NodeState,
        spec: &NodeStateSpec,
        ready: Condition,
    ) -> Result<(), StoreError> {
        let status = NodeStateStatus { conditions: vec![ready] };
        let stored = match self.get::<NodeState>(None, new.name()).await? {
            Some(stored)
                if stored.spec == *spec
                    && stored.metadata.owner_references == new.metadata.owner_references =>
            {
                stored
            }
            Some(mut stored) => {
                stored.spec = spec.clone();
                stored.metadata.owner_references = new.metadata.owner_references;
                stored.status = Some(status.clone());
                self.update(&stored).await?
            }
            None => self.create(&NodeState { status: Some(status.clone()), ..new }).await?,
        };
        if same_conditions(stored.status.as_ref(), &status) {
            return Ok(());
        }
        let stored = NodeState { status: Some(status), ..stored };
        match self {
            AnyStore::Directory(directory) => directory.update(&stored).await.map(drop),
            // A kind with a status subresource keeps its status over an update.
            AnyStore::Api(store) => store.api().update_status(&stored).await.map(drop),
        }
    }
}

/// Do they say the same, whenever they came to say it?
fn same_conditions(stored: Option<&NodeStateStatus>, wanted: &NodeStateStatus) -> bool {
    let timeless = |status: &NodeStateStatus| {
        let conditions = status.conditions.iter().cloned();
        conditions.map(|c| Condition { last_transition_time: None, ..c }).collect::<Vec<_>>()
    };
    stored.is_some_and(|stored| timeless(stored) == timeless(wanted))
}

/// Every method of the trait, by whichever store it is.
macro_rules! by_store {
    ($self:ident, $store:ident => $call:expr) => {
        match $self {
            AnyStore::Directory($store) => $call,
            AnyStore::Api($store) => $call,
        }
    };
}

impl Store for AnyStore {
    async fn get<R: Resource>(
        &self,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Option<R>, StoreError> {
        by_store!(self, store => store.get(namespace, name).await)
    }
    async fn list<R: Resource>(&self, selector: &LabelSelector) -> Result<Vec<R>, StoreError> {
        by_store!(self, store => store.list(selector).await)
    }
    async fn blocks(&self, domain: &str) -> Result<Vec<Arc<AddressBlock>>, StoreError> {
        by_store!(self, store => store.blocks(domain).await)
    }
    async fn create<R: Resource>(&self, object: &R) -> Result<R, StoreError> {
        by_store!(self, store => store.create(object).await)
    }
    async fn update<R: Resource>(&self, object: &R) -> Result<R, StoreError> {
        by_store!(self, store => store.update(object).await)
    }
    async fn delete<R: Resource>(&self, object: &R) -> Result<(), StoreError> {
        by_store!(self, store => store.delete(object).await)
    }
}
