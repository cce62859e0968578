//! The Kubernetes API as the agent's store: what claims need of the AddressBlocks of watched Networks is
//! read from memory, everything else and every write goes to the API server.
//!
//! Blocks in which this node has nothing and takes nothing are in memory in outline only: with 100,000
//! pods in a Network they would be most of the agent.
//!
//! A block in memory may be old. Then the compare-and-swap fails, and the next reading waits until the watch
//! has told of the newer one, as it does in a moment; if it does not, that block is fetched from the API
//! server.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bowline_kube::ApiStore;
use multinet::rules::validate_block;
use multinet::store::{Store, StoreError};
use multinet::types::block::{AddressBlock, NETWORK_LABEL};
use multinet::types::meta::{LabelSelector, Resource};

use super::objects::Objects;
use super::turns::{Turns, pause_after};
use crate::metrics::BlockWrites;

/// A Network of up to so many blocks is in memory whole: where a pool is as small as that, nodes that all
/// need its last addresses would fetch each other's blocks again and again.
const SMALL: usize = 32;
/// After a lost race the watch tells within this time who has won it.
const TOLD_WITHIN: Duration = Duration::from_millis(200);

/// The API with a memory. Clones share it.
#[derive(Clone, Debug)]
pub struct CachedStore {
    api: ApiStore,
    node: Arc<str>,
    pub(super) objects: Arc<Objects>,
    pub(super) turns: Arc<Turns>,
    pub(super) writes: BlockWrites,
    /// Networks whose blocks are watched.
    watched: Arc<Mutex<BTreeMap<String, Known>>>,
}

/// What is known of a Network's blocks in memory.
#[derive(Debug, Default)]
struct Known {
    /// They are those of the API server, as far as is known.
    trusted: bool,
    /// But for these, by name: a write of them failed.
    doubtful: BTreeMap<String, Doubt>,
    /// Names of its blocks, as long as there are few.
    few: BTreeSet<String>,
    /// So many writes in a row failed.
    failed: u32,
}

/// Why a block in memory may be old.
#[derive(Clone, Debug)]
enum Doubt {
    /// Somebody was faster: there is a later version than this.
    Outrun(Option<String>),
    /// Nobody knows.
    Unknown,
}

impl Doubt {
    fn after(tried: &AddressBlock, error: &StoreError) -> Self {
        match error {
            StoreError::Conflict { .. } | StoreError::Exists { .. } => {
                Doubt::Outrun(tried.metadata.resource_version.clone())
            }
            _ => Doubt::Unknown,
        }
    }
}

impl CachedStore {
    pub(super) fn new(api: ApiStore, objects: Arc<Objects>, node: &str) -> Self {
        let (turns, writes, watched) = Default::default();
        Self { api, node: node.into(), objects, turns, writes, watched }
    }

    /// As much of a block as this node needs. A damaged one stays as it is, to be told of.
    pub(super) fn reduce(&self, block: AddressBlock) -> AddressBlock {
        let whole = block.concerns(&self.node)
            || self.is_one_of_few(&block)
            || !validate_block(&block).is_empty();
        if whole { block } else { block.outline() }
    }

    fn is_one_of_few(&self, block: &AddressBlock) -> bool {
        let mut watched = self.watched();
        let Some(known) = watched.get_mut(&block.spec.network) else { return false };
        if known.few.len() <= SMALL && !known.few.contains(block.name()) {
            known.few.insert(block.name().to_owned());
        }
        known.few.len() <= SMALL
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

    fn doubt(&self, block: &AddressBlock, error: &StoreError) {
        if let Some(known) = self.watched().get_mut(&block.spec.network) {
            known.doubtful.insert(block.name().to_owned(), Doubt::after(block, error));
            known.failed = known.failed.saturating_add(1);
        }
    }

    fn failed_in_a_row(&self, network: &str) -> u32 {
        self.watched().get(network).map_or(0, |known| known.failed)
    }

    fn doubtful(&self, network: &str) -> BTreeMap<String, Doubt> {
        self.watched().get(network).map(|known| known.doubtful.clone()).unwrap_or_default()
    }

    /// Waits for the blocks that others were faster to write, and fetches those of which nobody knows.
    async fn settle_doubts(&self, network: &str) -> Result<(), StoreError> {
        let doubtful = self.doubtful(network);
        let is_lost = !doubtful.is_empty();
        let deadline = tokio::time::Instant::now() + TOLD_WITHIN;
        for (name, doubt) in doubtful {
            if !self.is_told(&name, &doubt, deadline).await {
                match self.api.find::<AddressBlock>(&name).await? {
                    // Whole: who has just tried to write it tries again.
                    Some(block) => self.objects.set(block),
                    // It was there: what else has gone?
                    None => self.trust(network, false),
                }
            }
            if let Some(known) = self.watched().get_mut(network) {
                known.doubtful.remove(&name);
            }
        }
        if is_lost {
            // Everybody has been told at the same time: some go first, and the others hear of it.
            tokio::time::sleep(pause_after(self.failed_in_a_row(network))).await;
        }
        Ok(())
    }

    /// Whether the watch tells of a block what was in doubt.
    async fn is_told(&self, name: &str, doubt: &Doubt, deadline: tokio::time::Instant) -> bool {
        let Doubt::Outrun(version) = doubt else { return false };
        let later = self.objects.later::<AddressBlock>(name, version.as_deref());
        tokio::time::timeout_at(deadline, later).await.is_ok()
    }

    /// What a write brought, or that it is not known what the block is now.
    fn note<R: Resource>(&self, tried: &R, written: &Result<R, StoreError>) {
        let Some(tried) = as_block(tried) else { return };
        match written.as_ref().map(as_block) {
            Ok(Some(block)) => {
                self.writes.done.inc();
                self.objects.set(self.reduce(block.clone()));
                if let Some(known) = self.watched().get_mut(&block.spec.network) {
                    known.failed = 0;
                }
            }
            Ok(None) => {}
            Err(error) => {
                if let StoreError::Conflict { .. } | StoreError::Exists { .. } = error {
                    self.writes.conflicts.inc();
                }
                self.doubt(tried, error);
            }
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
            (Some(block), Err(error)) => self.doubt(block, error),
            (None, _) => {}
        }
        deleted
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn block(n: usize) -> AddressBlock {
        let start = u32::from(Ipv4Addr::new(10, 0, 0, 0)) + 64 * u32::try_from(n).unwrap();
        let mut block = AddressBlock::around("blue", Ipv4Addr::from(start).into());
        block.spec.node = Some("n2".into());
        block
    }

    #[tokio::test]
    async fn blocks_of_others_are_kept_whole_in_a_small_network_only() {
        let server = "http://127.0.0.1:9".parse().unwrap();
        let client = kube::Client::try_from(kube::Config::new(server)).unwrap();
        let store = CachedStore::new(ApiStore::new(client), Arc::default(), "n1");
        let is_whole = |n| store.reduce(block(n)).spec.left_out.is_none();
        assert!(!is_whole(0), "of a Network that is not watched nothing is known");
        store.watch_begins("blue");
        assert!((0..SMALL).all(is_whole) && is_whole(0), "{SMALL} blocks are few");
        assert!(!is_whole(SMALL) && !is_whole(0), "and one more makes many");
    }
}
