//! Objects of the API as watches and our own writes have brought them: of two states of one object
//! the newer is kept, in whatever order they come.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use multinet::types::meta::{ObjectMeta, Resource};
use tokio::sync::Notify;

use super::file::Key;
use super::snapshot::{ByKey, ByKind};

/// The newest known state of every object that the agent follows.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    by_kind: Mutex<ByKind>,
    changed: Notify,
}

impl Objects {
    /// Everything, as a snapshot wants it.
    pub(crate) fn all(&self) -> ByKind {
        self.lock().clone()
    }

    /// Waits for a change after the last call.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Objects of a kind that `wanted` names.
    pub(crate) fn of_kind<R: Resource>(&self, wanted: impl Fn(&R) -> bool) -> Vec<Arc<R>> {
        let of_kind = self.lock().get(R::KIND).cloned().unwrap_or_default();
        let typed = of_kind.values().filter_map(|object| object.clone().downcast::<R>().ok());
        typed.filter(|object| wanted(object)).collect()
    }

    /// Takes the state of an object, unless a newer one is known.
    pub(crate) fn set<R: Resource>(&self, object: R) {
        if put(of_kind_mut::<R>(&mut self.lock()), object) {
            self.changed.notify_one();
        }
    }

    /// An object is gone; one of the same name that was made since stays.
    pub(crate) fn gone<R: Resource>(&self, object: &R) {
        let key = Key::of::<R>(object.meta());
        let mut objects = self.lock();
        let of_kind = of_kind_mut::<R>(&mut objects);
        let known = of_kind.get(&key).and_then(|known| known.downcast_ref::<R>());
        if known.is_some_and(|known| !is_newer(known.meta(), object.meta())) {
            of_kind.remove(&key);
            drop(objects);
            self.changed.notify_one();
        }
    }

    /// These are all objects of their kind that `belongs` names: others of it are gone.
    pub(crate) fn replace<R: Resource>(&self, all: Vec<R>, belongs: impl Fn(&R) -> bool) {
        let mut objects = self.lock();
        let present: Vec<Key> = all.iter().map(|object| Key::of::<R>(object.meta())).collect();
        let present: std::collections::BTreeSet<&Key> = present.iter().collect();
        let of_kind = of_kind_mut::<R>(&mut objects);
        let before = of_kind.len();
        of_kind.retain(|key, object| {
            present.contains(key.as_ref()) || !object.downcast_ref::<R>().is_some_and(&belongs)
        });
        let mut changed = of_kind.len() != before;
        for object in all {
            changed |= put(of_kind, object);
        }
        drop(objects);
        if changed {
            self.changed.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, ByKind> {
        // Objects are put and removed whole: what a panicking holder leaves is valid.
        self.by_kind.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Objects of a kind, to be changed: copied if a snapshot has them.
fn of_kind_mut<R: Resource>(objects: &mut ByKind) -> &mut ByKey {
    Arc::make_mut(objects.entry(R::KIND).or_default())
}

fn put<R: Resource>(objects: &mut ByKey, object: R) -> bool {
    let key = Key::of::<R>(object.meta());
    let known = objects.get(&key).and_then(|known| known.downcast_ref::<R>());
    if known.is_some_and(|known| !is_newer(object.meta(), known.meta())) {
        return false;
    }
    objects.insert(key.into(), Arc::new(object));
    true
}

/// Is `a` a later state than `b`? Versions of one cluster grow (Kubernetes 1.35 promises it).
fn is_newer(a: &ObjectMeta, b: &ObjectMeta) -> bool {
    let version = |meta: &ObjectMeta| meta.resource_version.as_ref()?.parse::<u64>().ok();
    match (version(a), version(b)) {
        (Some(a), Some(b)) => a > b,
        _ => a.resource_version != b.resource_version,
    }
}

#[cfg(test)]
mod tests {
    use multinet::types::block::AddressBlock;

    use super::*;

    fn block(version: u64, node: Option<&str>) -> AddressBlock {
        let mut block = AddressBlock::around("blue", [10, 0, 0, 1].into());
        block.metadata.resource_version = Some(version.to_string());
        block.spec.node = node.map(str::to_owned);
        block
    }

    fn node_of(objects: &Objects) -> Vec<Option<String>> {
        objects.of_kind::<AddressBlock>(|_| true).iter().map(|b| b.spec.node.clone()).collect()
    }

    #[test]
    fn the_newer_state_stays_in_whatever_order_they_come() {
        let objects = Objects::default();
        objects.set(block(10, Some("n2")));
        objects.set(block(9, Some("n1")));
        assert_eq!(node_of(&objects), [Some("n2".into())]);
        objects.replace(vec![block(9, None)], |_| true);
        assert_eq!(node_of(&objects), [Some("n2".into())], "an old list says nothing new");
        objects.gone(&block(8, None));
        assert_eq!(node_of(&objects).len(), 1, "what went was an older one of that name");
        objects.gone(&block(11, None));
        assert!(node_of(&objects).is_empty());
    }

    #[test]
    fn a_list_removes_what_belongs_to_it_and_is_not_in_it() {
        let objects = Objects::default();
        objects.set(block(1, None));
        objects.replace(Vec::<AddressBlock>::new(), |b| b.spec.network == "red");
        assert_eq!(node_of(&objects).len(), 1);
        objects.replace(Vec::<AddressBlock>::new(), |b| b.spec.network == "blue");
        assert!(node_of(&objects).is_empty());
    }
}
