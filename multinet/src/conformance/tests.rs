//! The store in memory conforms; a store that forgets to compare does not. `BOWLINE_STORE_FULL=1`: with a
//! thousand pods instead of a hundred.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::*;
use crate::memory::MemoryStore;
use crate::types::meta::Resource;

fn at_once(mut future: Pin<Box<dyn Future<Output = ()> + Send + '_>>) {
    let mut context = Context::from_waker(Waker::noop());
    assert_eq!(future.as_mut().poll(&mut context), Poll::Ready(()));
}

#[test]
fn the_memory_store_conforms() {
    let store = Arc::new(MemoryStore::new());
    check(Ground { open: &|| store.clone(), block_on: &at_once, history: None, step: 1 });
}

/// What `make mutants` runs: of a rule that is off the judge must speak.
#[test]
fn lives_go_on_whatever_goes_wrong() {
    let store = Arc::new(MemoryStore::new());
    life::lost_calls(Ground {
        open: &|| store.clone(),
        block_on: &at_once,
        history: None,
        step: 1,
    });
}

#[test]
fn a_hundred_agents_share_as_many_addresses_as_pods() {
    let full = std::env::var_os("BOWLINE_STORE_FULL").is_some();
    let (pods, interfaces) = if full { (10, 3) } else { (1, 1) };
    for trouble_every in [0, 13] {
        let store = Arc::new(MemoryStore::new());
        let ground = Ground { open: &|| store.clone(), block_on: &at_once, history: None, step: 1 };
        crowd(ground, Crowd { agents: 100, pods, interfaces, trouble_every });
    }
}

/// Writes whatever it is given over whatever is there.
#[derive(Clone)]
struct Careless(Arc<MemoryStore>);

impl Careless {
    async fn current<R: Resource>(&self, object: &R) -> Result<R, StoreError> {
        let meta = object.meta();
        let stored: Option<R> = self.0.get(meta.namespace.as_deref(), &meta.name).await?;
        let mut object = object.clone();
        object.meta_mut().resource_version = stored.and_then(|s| s.meta().resource_version.clone());
        Ok(object)
    }
}

impl Store for Careless {
    async fn get<R: Resource>(
        &self,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Option<R>, StoreError> {
        self.0.get(namespace, name).await
    }
    async fn list<R: Resource>(&self, selector: &LabelSelector) -> Result<Vec<R>, StoreError> {
        self.0.list(selector).await
    }
    async fn create<R: Resource>(&self, object: &R) -> Result<R, StoreError> {
        self.0.create(object).await
    }
    async fn update<R: Resource>(&self, object: &R) -> Result<R, StoreError> {
        self.0.update(&self.current(object).await?).await
    }
    async fn delete<R: Resource>(&self, object: &R) -> Result<(), StoreError> {
        self.0.delete(&self.current(object).await?).await
    }
}

#[test]
#[should_panic] // by an agent, by the count, or by the judge: whoever notices first
fn a_store_that_does_not_compare_is_found_out_by_a_crowd() {
    let store = Careless(Arc::new(MemoryStore::new()));
    let many = Crowd { agents: 16, pods: 16, interfaces: 1, trouble_every: 0 };
    crowd(Ground { open: &|| store.clone(), block_on: &at_once, history: None, step: 1 }, many);
}
