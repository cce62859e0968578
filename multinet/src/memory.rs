//! A store in memory, for tests and dry runs. Its futures are ready at the first poll.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use crate::store::{Store, StoreError};
use crate::types::meta::{LabelSelector, Resource};

type Key = (&'static str, String, String);

/// Objects as JSON, as other stores keep them, so that what is lost in writing is seen.
#[derive(Debug, Default)]
pub struct MemoryStore {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    version: u64,
    objects: BTreeMap<Key, Value>,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key<R: Resource>(namespace: Option<&str>, name: &str) -> Key {
    let namespace = if R::NAMESPACED { namespace.unwrap_or("") } else { "" };
    (R::PLURAL, namespace.into(), name.into())
}

fn key_of<R: Resource>(object: &R) -> Key {
    key::<R>(object.meta().namespace.as_deref(), &object.meta().name)
}

fn decode<R: Resource>(value: &Value) -> Result<R, StoreError> {
    R::deserialize(value).map_err(|e| StoreError::Unavailable(e.to_string()))
}

impl Inner {
    fn put<R: Resource>(&mut self, object: &R) -> Result<R, StoreError> {
        self.version += 1;
        let mut object = object.clone();
        object.meta_mut().resource_version = Some(self.version.to_string());
        if object.meta().uid.is_none() {
            object.meta_mut().uid = Some(format!("uid-{}", self.version));
        }
        let value =
            serde_json::to_value(&object).map_err(|e| StoreError::Unavailable(e.to_string()))?;
        self.objects.insert(key_of(&object), value);
        Ok(object)
    }

    fn compare<R: Resource>(&self, object: &R) -> Result<(), StoreError> {
        let name = object.meta().name.clone();
        let Some(stored) = self.objects.get(&key_of(object)) else {
            return Err(StoreError::NotFound { kind: R::KIND, name });
        };
        let stored: R = decode(stored)?;
        let expected = &object.meta().resource_version;
        if expected.is_none() || *expected != stored.meta().resource_version {
            return Err(StoreError::Conflict { kind: R::KIND, name });
        }
        Ok(())
    }
}

impl Store for MemoryStore {
    async fn get<R: Resource>(
        &self,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Option<R>, StoreError> {
        self.lock().objects.get(&key::<R>(namespace, name)).map(decode).transpose()
    }

    async fn list<R: Resource>(&self, selector: &LabelSelector) -> Result<Vec<R>, StoreError> {
        let inner = self.lock();
        let all = inner.objects.iter().filter(|((plural, ..), _)| *plural == R::PLURAL);
        let mut found = Vec::new();
        for (_, value) in all {
            // Most of a large store is somebody else's: labels are looked at before all the rest.
            let labels = value["metadata"].get("labels").cloned().unwrap_or_default();
            let labels = serde_json::from_value(labels).unwrap_or_default();
            if selector.matches(&labels) {
                found.push(decode(value)?);
            }
        }
        Ok(found)
    }

    async fn create<R: Resource>(&self, object: &R) -> Result<R, StoreError> {
        let mut inner = self.lock();
        if inner.objects.contains_key(&key_of(object)) {
            return Err(StoreError::Exists { kind: R::KIND, name: object.meta().name.clone() });
        }
        inner.put(object)
    }

    async fn update<R: Resource>(&self, object: &R) -> Result<R, StoreError> {
        let mut inner = self.lock();
        inner.compare(object)?;
        inner.put(object)
    }

    async fn delete<R: Resource>(&self, object: &R) -> Result<(), StoreError> {
        let mut inner = self.lock();
        inner.compare(object)?;
        inner.objects.remove(&key_of(object));
        Ok(())
    }
}
