//! The Kubernetes API as the agent's store: AddressBlocks of watched Networks are read from memory,
//! everything else and every write goes to the API server.
//!
//! A block in memory may be old. Then the compare-and-swap fails, and the next reading is from the
//! API server.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bowline_kube::ApiStore;
use multinet::store::{Store, StoreError};
use multinet::types::block::{AddressBlock, NETWORK_LABEL};
use multinet::types::meta::{LabelSelector, Resource};

use super::objects::Objects;
use super::turns::Turns;

/// The API with a memory. Clones share it.
#[derive(Clone, Debug)]
pub struct CachedStore {
    api: ApiStore,
    pub(super) objects: Arc<Objects>,
    pub(super) turns: Arc<Turns>,
    /// Networks whose blocks are watched, and whether those in memory can be trusted.
    watched: Arc<Mutex<BTreeMap<String, bool>>>,
}

impl CachedStore {
    pub(super) fn new(api: ApiStore, objects: Arc<Objects>) -> Self {
        Self { api, objects, turns: Arc::default(), watched: Arc::default() }
    }

    /// The store without memory.
    pub fn api(&self) -> &ApiStore {
        &self.api
    }

    /// A watch on a Network's blocks begins.
    pub(super) fn watch_begins(&self, network: &str) {
        self.watched().insert(network.to_owned(), false);
    }

    /// And it has ended: what is in memory is nobody's truth.
    pub(super) fn watch_ends(&self, network: &str) {
        self.watched().remove(network);
        self.objects.replace(Vec::<AddressBlock>::new(), |block| block.spec.network == network);
    }

    /// Whether the blocks in memory are those of the API server, as far as is known.
    pub(super) fn trust(&self, network: &str, trusted: bool) {
        if let Some(known) = self.watched().get_mut(network) {
            *known = trusted;
        }
    }

    fn is_trusted(&self, network: &str) -> bool {
        self.watched().get(network).copied().unwrap_or_default()
    }

    fn watched(&self) -> MutexGuard<'_, BTreeMap<String, bool>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a write brought, and whether memory is to be trusted after it.
    fn note<R: Resource>(&self, tried: &R, written: &Result<R, StoreError>) {
        let Some(tried) = as_block(tried) else { return };
        match written.as_ref().map(as_block) {
            Ok(Some(block)) => self.objects.set(block.clone()),
            Ok(None) => {}
            Err(_) => self.trust(&tried.spec.network, false),
        }
    }
}

fn as_block<R: Resource>(object: &R) -> Option<&AddressBlock> {
    (object as &dyn std::any::Any).downcast_ref()
}

/// The Network whose blocks, and only those, a selector names.
fn network_of<R: Resource>(selector: &LabelSelector) -> Option<&str> {
    let only = selector.match_labels.len() == 1 && selector.match_expressions.is_empty();
    let network = selector.match_labels.get(NETWORK_LABEL).map(String::as_str);
    network.filter(|_| only && R::KIND == AddressBlock::KIND)
}

impl Store for CachedStore {
    async fn get<R: Resource>(
        &self,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Option<R>, StoreError> {
        self.api.get(namespace, name).await
    }

    async fn list<R: Resource>(&self, selector: &LabelSelector) -> Result<Vec<R>, StoreError> {
        let network = network_of::<R>(selector);
        if network.is_some_and(|network| self.is_trusted(network)) {
            return Ok(self.objects.of_kind::<R>(|object| selector.matches(&object.meta().labels)));
        }
        let listed = self.api.list::<R>(selector).await?;
        if let Some(network) = network {
            self.objects.replace(listed.clone(), |o| selector.matches(&o.meta().labels));
            self.trust(network, true);
        }
        Ok(listed)
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
            (Some(block), Err(_)) => self.trust(&block.spec.network, false),
            (None, _) => {}
        }
        deleted
    }
}
