//! What the rules need of a store. Two exist: the Kubernetes API and a directory of files; tests use
//! [`crate::memory::MemoryStore`]. All pass the same conformance tests.
//!
//! Every write is a compare-and-swap. A store never merges, never retries, and never reports success
//! for a write that may be lost. `Unavailable` leaves open whether a write took place: the caller
//! reads again.

use std::future::Future;
use std::sync::Arc;

use crate::types::block::{AddressBlock, NETWORK_LABEL};
use crate::types::meta::{LabelSelector, Resource};

/// Why a store refused or failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The object was changed since it was read.
    #[error("{kind} {name} was changed by somebody else since it was read; read it again")]
    Conflict {
        /// Its kind.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// An object of that name exists.
    #[error("{kind} {name} exists already")]
    Exists {
        /// Its kind.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// No object of that name exists.
    #[error("{kind} {name} does not exist")]
    NotFound {
        /// Its kind.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The store did not answer, or answered nonsense. A write may or may not have taken place.
    #[error("the store is not available: {0}")]
    Unavailable(String),
    /// The store has understood the request and will not do it. Nothing was written.
    #[error("the store refuses: {0}")]
    Refused(String),
}

impl StoreError {
    /// Whether reading again and deciding anew may help at once.
    #[must_use]
    pub fn is_race(&self) -> bool {
        !matches!(self, StoreError::Unavailable(_) | StoreError::Refused(_))
    }
}

/// Objects by kind and name, with compare-and-swap.
pub trait Store: Send + Sync {
    /// The object, if it exists. `namespace` is ignored for cluster-scoped kinds.
    fn get<R: Resource>(
        &self,
        namespace: Option<&str>,
        name: &str,
    ) -> impl Future<Output = Result<Option<R>, StoreError>> + Send;

    /// All objects of a kind whose labels match, in any order. What this caller has written is
    /// in it.
    fn list<R: Resource>(
        &self,
        selector: &LabelSelector,
    ) -> impl Future<Output = Result<Vec<R>, StoreError>> + Send;

    /// The blocks of a domain, as claims need them. A store that serves one node may have blocks in
    /// outline in which that node holds nothing; they can be read whole by name.
    fn blocks(
        &self,
        domain: &str,
    ) -> impl Future<Output = Result<Vec<Arc<AddressBlock>>, StoreError>> + Send {
        let selector = LabelSelector::label(NETWORK_LABEL, domain);
        async move {
            let blocks = self.list::<AddressBlock>(&selector).await?;
            Ok(blocks.into_iter().map(Arc::new).collect())
        }
    }

    /// Stores a new object and returns it with version and UID.
    fn create<R: Resource>(&self, object: &R)
    -> impl Future<Output = Result<R, StoreError>> + Send;

    /// Replaces the object if its stored version is `metadata.resourceVersion`; an object without
    /// version is refused as a conflict.
    fn update<R: Resource>(&self, object: &R)
    -> impl Future<Output = Result<R, StoreError>> + Send;

    /// Removes the object if its stored version is `metadata.resourceVersion`; an object without
    /// version is refused as a conflict.
    fn delete<R: Resource>(
        &self,
        object: &R,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// A handle shared between threads is as good as the store.
impl<S: Store> Store for Arc<S> {
    async fn get<R: Resource>(
        &self,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Option<R>, StoreError> {
        (**self).get(namespace, name).await
    }
    async fn list<R: Resource>(&self, selector: &LabelSelector) -> Result<Vec<R>, StoreError> {
        (**self).list(selector).await
    }
    async fn blocks(&self, domain: &str) -> Result<Vec<Arc<AddressBlock>>, StoreError> {
        (**self).blocks(domain).await
    }
    async fn create<R: Resource>(&self, object: &R) -> Result<R, StoreError> {
        (**self).create(object).await
    }
    async fn update<R: Resource>(&self, object: &R) -> Result<R, StoreError> {
        (**self).update(object).await
    }
    async fn delete<R: Resource>(&self, object: &R) -> Result<(), StoreError> {
        (**self).delete(object).await
    }
}
