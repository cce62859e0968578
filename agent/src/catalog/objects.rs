//! Objects of the API as watches and our own writes have brought them: of two states of one object
//! the newer is kept, in whatever order they come.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use multinet::types::meta::{ObjectMeta, Resource};
use tokio::sync::watch;

use super::file::Key;
use super::snapshot::{ByKey, ByKind};

/// The newest known state of every object that the agent follows.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    by_kind: Mutex<ByKind>,
    changed: watch::Sender<()>,
}

impl Objects {
    /// Everything, as a snapshot wants it.
    pub(crate) fn all(&self) -> ByKind {
        self.lock().clone()
    }

    /// Is told each time that an object changes.
    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Waits for a later state of an object than this version's; of one that has never been there for
    /// any.
    pub(crate) async fn later<R: Resource>(&self, name: &str, version: Option<&str>) {
        let mut changes = self.subscribe();
        let key = Key::new::<R>(None, name);
        loop {
            let known = self.lock().get(R::KIND).and_then(|of_kind| of_kind.get(&key).cloned());
            let known = known.and_then(|known| known.downcast::<R>().ok());
            if known.is_some_and(|k| is_later(k.meta().resource_version.as_deref(), version)) {
                return;
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
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
            self.changed.send_replace(());
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
            self.changed.send_replace(());
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
            self.changed.send_replace(());
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
    is_later(a.resource_version.as_deref(), b.resource_version.as_deref())
}

fn is_later(a: Option<&str>, b: Option<&str>) -> bool {
    let number = |version: Option<&str>| version?.parse::<u64>().ok();
    match (number(a), number(b)) {
        (Some(a), Some(b)) => a > b,
        _ => a != b,
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
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

    #[tokio::test]
    async fn who_waits_for_a_later_state_goes_on_when_it_is_there() {
        let objects = Objects::default();
        let name = block(1, None).name().to_owned();
        let later = |version| objects.later::<AddressBlock>(&name, version);
        assert!(later(None).now_or_never().is_none(), "it has never been there");
        objects.set(block(10, None));
        later(None).await;
        later(Some("9")).await;
        let mut wait = std::pin::pin!(later(Some("10")));
        assert!(wait.as_mut().now_or_never().is_none(), "this very state is there");
        objects.set(block(9, None));
        assert!(wait.as_mut().now_or_never().is_none(), "an older one says nothing");
        objects.set(block(11, None));
        wait.await;
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
