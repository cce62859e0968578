//! The Kubernetes API as the agent's store: what claims need of the AddressBlocks of watched Networks is
//! read from memory, everything else and every write goes to the API server.
//!
//! Blocks in which this node has nothing and takes nothing are in memory in outline only: with 100,000
//! pods in a Network they would be most of the agent.
//!
//! A block in memory may be old. Then the compare-and-swap fails, and the next reading fetches that
//! block from the API server.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bowline_kube::ApiStore;
use multinet::rules::validate_block;
use multinet::store::{Store, StoreError};
use multinet::types::block::{AddressBlock, NETWORK_LABEL};
use multinet::types::meta::{LabelSelector, Resource};

use super::objects::Objects;
use super::turns::{Turns, pause_after};

/// The API with a memory. Clones share it.
#[derive(Clone, Debug)]
pub struct CachedStore {
    api: ApiStore,
    node: Arc<str>,
    pub(super) objects: Arc<Objects>,
    pub(super) turns: Arc<Turns>,
    /// Networks whose blocks are watched.
    watched: Arc<Mutex<BTreeMap<String, Known>>>,
}

/// What is known of a Network's blocks in memory.
#[derive(Debug, Default)]
struct Known {
    /// They are those of the API server, as far as is known.
    trusted: bool,
    /// But for these, by name: a write of them failed.
    doubtful: BTreeSet<String>,
    /// So many writes in a row failed.
    failed: u32,
}

impl CachedStore {
    pub(super) fn new(api: ApiStore, objects: Arc<Objects>, node: &str) -> Self {
        Self { api, node: node.into(), objects, turns: Arc::default(), watched: Arc::default() }
    }

    /// As much of a block as this node needs. A damaged one stays as it is, to be told of.
    pub(super) fn reduce(&self, block: AddressBlock) -> AddressBlock {
        if block.concerns(&self.node) || !validate_block(&block).is_empty() {
            block
        } else {
            block.outline()
        }
    }

    /// The store without memory.
    pub fn api(&self) -> &ApiStore {
        &self.api
    }

    /// A watch on a Network's blocks begins.
    pub(super) fn watch_begins(&self, network: &str) {
        self.watched().insert(network.to_owned(), Known::default());
    }

    /// And it has ended: what is in memory is nobody's truth.
    pub(super) fn watch_ends(&self, network: &str) {
        self.watched().remove(network);
        self.objects.replace(Vec::<AddressBlock>::new(), |block| block.spec.network == network);
    }

    /// Whether the blocks in memory are those of the API server, as far as is known.
    pub(super) fn trust(&self, network: &str, trusted: bool) {
        if let Some(known) = self.watched().get_mut(network) {
            known.trusted = trusted;
        }
    }

    fn is_trusted(&self, network: &str) -> bool {
        self.watched().get(network).is_some_and(|known| known.trusted)
    }

    fn is_watched(&self, network: &str) -> bool {
        self.watched().contains_key(network)
    }

    fn watched(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn doubt(&self, block: &AddressBlock) {
        if let Some(known) = self.watched().get_mut(&block.spec.network) {
            known.doubtful.insert(block.name().to_owned());
            known.failed = known.failed.saturating_add(1);
        }
    }

    fn failed_in_a_row(&self, network: &str) -> u32 {
        self.watched().get(network).map_or(0, |known| known.failed)
    }

    fn doubtful(&self, network: &str) -> Vec<String> {
        let watched = self.watched();
        watched.get(network).into_iter().flat_map(|known| known.doubtful.iter().cloned()).collect()
    }

    /// Fetches the blocks that others were faster to write, or of which nobody knows.
    async fn settle_doubts(&self, network: &str) -> Result<(), StoreError> {
        let doubtful = self.doubtful(network);
        if !doubtful.is_empty() {
            tokio::time::sleep(pause_after(self.failed_in_a_row(network))).await;
        }
        for name in doubtful {
            match self.api.find::<AddressBlock>(&name).await? {
                // Whole: who has just tried to write it tries again.
                Some(block) => self.objects.set(block),
                // It was there: what else has gone?
                None => self.trust(network, false),
            }
            if let Some(known) = self.watched().get_mut(network) {
                known.doubtful.remove(&name);
            }
        }
        Ok(())
    }

    /// What a write brought, or that it is not known what the block is now.
    fn note<R: Resource>(&self, tried: &R, written: &Result<R, StoreError>) {
        let Some(tried) = as_block(tried) else { return };
        match written.as_ref().map(as_block) {
            Ok(Some(block)) => {
                self.objects.set(self.reduce(block.clone()));
                if let Some(known) = self.watched().get_mut(&block.spec.network) {
                    known.failed = 0;
                }
            }
            Ok(None) => {}
            Err(_) => self.doubt(tried),
        }
    }
}

fn as_block<R: Resource>(object: &R) -> Option<&AddressBlock> {
    (object as &dyn std::any::Any).downcast_ref()
}

impl Store for CachedStore {
    async fn get<R: Resource>(
        &self,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Option<R>, StoreError> {
        if R::KIND == AddressBlock::KIND {
            // Agents have no other right to read blocks.
            return self.api.find(name).await;
        }
        self.api.get(namespace, name).await
    }

    async fn list<R: Resource>(&self, selector: &LabelSelector) -> Result<Vec<R>, StoreError> {
        self.api.list::<R>(selector).await
    }

    async fn blocks(&self, network: &str) -> Result<Vec<Arc<AddressBlock>>, StoreError> {
        let belongs = |block: &AddressBlock| block.spec.network == network;
        self.settle_doubts(network).await?;
        if !self.is_trusted(network) {
            let selector = LabelSelector::label(NETWORK_LABEL, network);
            let reduce = |block| Some(self.reduce(block));
            let listed = self.api.list_reduced(&selector, reduce).await?;
            if !self.is_watched(network) {
                return Ok(listed.into_iter().map(Arc::new).collect());
            }
            self.objects.replace(listed, belongs);
            self.trust(network, true);
        }
        Ok(self.objects.of_kind(belongs))
    }

    async fn create<R: Resource>(&self, object: &R) -> Result<R, StoreError> {
        let created = self.api.create(object).await;
        self.note(object, &created);
        created
    }

    async fn update<R: Resource>(&self, object: &R) -> Result<R, StoreError> {
        let updated = self.api.update(object).await;
        self.note(object, &updated);
        updated
    }

    async fn delete<R: Resource>(&self, object: &R) -> Result<(), StoreError> {
        let deleted = self.api.delete(object).await;
        match (as_block(object), &deleted) {
            (Some(_), Ok(())) => self.objects.gone(object),
            (Some(block), Err(_)) => self.doubt(block),
            (None, _) => {}
        }
        deleted
    }
}
