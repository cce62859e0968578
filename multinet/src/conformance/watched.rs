//! A store whose writes are written down for the judge, and which loses what it is told to lose.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::judge::{Event, Holders, judge};
use crate::store::{Store, StoreError};
use crate::types::meta::{LabelSelector, Resource};

/// What happens to one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The request never arrives.
    RequestLost,
    /// It is done, and nobody is told.
    AnswerLost,
    /// The agent dies before it.
    DiesBefore,
    /// The agent dies after it.
    DiesAfter,
}

pub(super) const FAULTS: [Fault; 4] =
    [Fault::RequestLost, Fault::AnswerLost, Fault::DiesBefore, Fault::DiesAfter];

/// What all handles of a run share.
#[derive(Debug, Default)]
pub(super) struct Run {
    events: Mutex<Vec<Event>>,
    writes: AtomicU32,
    fault: Option<(u32, Fault)>,
    struck: AtomicBool,
    dead: AtomicBool,
}

impl Run {
    /// A run whose n-th write goes wrong.
    pub(super) fn failing(n: u32, fault: Fault) -> Self {
        Run { fault: Some((n, fault)), ..Run::default() }
    }

    pub(super) fn note(&self, event: Event) {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }

    /// Whether the fault has come about.
    pub(super) fn struck(&self) -> bool {
        self.struck.load(Ordering::Relaxed)
    }

    /// An agent that died starts again.
    pub(super) fn revive(&self) {
        self.dead.store(false, Ordering::Relaxed);
    }

    /// The holders as the judge sees them.
    ///
    /// # Panics
    /// With what must not happen.
    pub(super) fn holders(&self) -> Holders {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        judge(&events).unwrap_or_else(|wrong| panic!("{wrong}"))
    }

    fn fault_now(&self) -> Option<Fault> {
        let n = self.writes.fetch_add(1, Ordering::Relaxed) + 1;
        let (_, fault) = self.fault.filter(|(at, _)| *at == n)?;
        self.struck.store(true, Ordering::Relaxed);
        if matches!(fault, Fault::DiesBefore | Fault::DiesAfter) {
            self.dead.store(true, Ordering::Relaxed);
        }
        Some(fault)
    }
}

/// A handle.
#[derive(Debug)]
pub(super) struct Watched<S> {
    pub(super) inner: S,
    pub(super) run: Arc<Run>,
}

impl<S: Store> Watched<S> {
    fn alive(&self) -> Result<(), StoreError> {
        let dead = self.run.dead.load(Ordering::Relaxed);
        if dead { Err(StoreError::Unavailable("the agent is dead".into())) } else { Ok(()) }
    }

    async fn write<R: Resource>(
        &self,
        object: &R,
        write: impl Future<Output = Result<R, StoreError>> + Send,
    ) -> Result<R, StoreError> {
        self.alive()?;
        let fault = self.run.fault_now();
        let lost = || StoreError::Unavailable("lost".into());
        if matches!(fault, Some(Fault::RequestLost | Fault::DiesBefore)) {
            return Err(lost());
        }
        let written = write.await?;
        let from = object.meta().resource_version.clone();
        let object = serde_json::to_value(&written).unwrap_or_default();
        self.run.note(Event::Written { from, object });
        if fault.is_some() { Err(lost()) } else { Ok(written) }
    }
}

impl<S: Store> Store for Watched<S> {
    async fn get<R: Resource>(
        &self,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Option<R>, StoreError> {
        self.alive()?;
        self.inner.get(namespace, name).await
    }
    async fn list<R: Resource>(&self, selector: &LabelSelector) -> Result<Vec<R>, StoreError> {
        self.alive()?;
        self.inner.list(selector).await
    }
    async fn create<R: Resource>(&self, object: &R) -> Result<R, StoreError> {
        self.write(object, self.inner.create(object)).await
    }
    async fn update<R: Resource>(&self, object: &R) -> Result<R, StoreError> {
        self.write(object, self.inner.update(object)).await
    }
    async fn delete<R: Resource>(&self, object: &R) -> Result<(), StoreError> {
        self.alive()?;
        self.inner.delete(object).await
    }
}
