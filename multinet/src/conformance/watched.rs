//! A store whose writes are told the judge, and which goes wrong where it is told to.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use judge::{Event, Holders, Judge, Version};
use serde_json::Value;

use super::History;
use crate::store::{Store, StoreError};
use crate::types::block::AddressBlock;
use crate::types::meta::{LabelSelector, Resource};

/// What happens to one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// A write's request never arrives.
    RequestLost,
    /// A write is done, and nobody is told.
    AnswerLost,
    /// The agent dies before a write.
    DiesBefore,
    /// The agent dies after a write.
    DiesAfter,
    /// A write is refused although nobody else has written.
    Refused,
    /// A list fails.
    ListLost,
    /// A list lacks what others have written since the last one, as a cache does.
    ListStale,
}

pub(super) const FAULTS: [Fault; 7] = [
    Fault::RequestLost,
    Fault::AnswerLost,
    Fault::DiesBefore,
    Fault::DiesAfter,
    Fault::Refused,
    Fault::ListLost,
    Fault::ListStale,
];

impl Fault {
    fn concerns_lists(self) -> bool {
        matches!(self, Fault::ListLost | Fault::ListStale)
    }

    fn kills(self) -> bool {
        matches!(self, Fault::DiesBefore | Fault::DiesAfter)
    }
}

/// Which calls go wrong.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Trouble {
    /// None.
    #[default]
    None,
    /// The n-th write, or the n-th list.
    Nth(u32, Fault),
    /// About one call in so many, with one fault after the other.
    Every(u32),
}

/// What all handles of a run share.
#[derive(Debug, Default)]
pub(super) struct Run {
    judge: Mutex<Judge>,
    trouble: Trouble,
    writes: AtomicU32,
    lists: AtomicU32,
    struck: AtomicU32,
    clock_ms: AtomicU64,
}

impl Run {
    pub(super) fn with(trouble: Trouble) -> Self {
        Run { trouble, ..Run::default() }
    }

    pub(super) fn note(&self, event: Event) {
        self.judge().note(event);
    }

    /// The time, another one at each reading: two versions of an object are never alike.
    pub(super) fn now_ms(&self) -> u64 {
        self.clock_ms.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// How often something went wrong.
    pub(super) fn struck(&self) -> u32 {
        self.struck.load(Ordering::Relaxed)
    }

    /// The holders as the judge sees them, while nothing goes on.
    ///
    /// # Panics
    /// With what must not happen.
    pub(super) fn holders(&self) -> Holders {
        self.judge().verdict().unwrap_or_else(|wrong| panic!("{wrong}")).clone()
    }

    /// The store's own history says the same as its users.
    ///
    /// # Panics
    /// With what only one of them says.
    pub(super) fn compare(&self, history: Option<History<'_>>) {
        if let Some(history) = history {
            self.judge().same_history(&history()).unwrap_or_else(|wrong| panic!("{wrong}"));
        }
    }

    fn judge(&self) -> MutexGuard<'_, Judge> {
        self.judge.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fault_now(&self, list: bool) -> Option<Fault> {
        let counter = if list { &self.lists } else { &self.writes };
        let n = counter.fetch_add(1, Ordering::Relaxed) + 1;
        let fault = match self.trouble {
            Trouble::None => None,
            Trouble::Nth(at, fault) => (at == n).then_some(fault),
            Trouble::Every(every) => {
                (n.is_multiple_of(every)).then(|| FAULTS[(n / every) as usize % FAULTS.len()])
            }
        };
        let fault = fault.filter(|fault| fault.concerns_lists() == list)?;
        self.struck.fetch_add(1, Ordering::Relaxed);
        Some(fault)
    }
}

/// A handle, of one agent or controller.
#[derive(Debug)]
pub(super) struct Watched<S> {
    inner: S,
    run: Arc<Run>,
    dead: AtomicBool,
    stale_next: AtomicBool,
    /// The blocks of each domain that it has listed, and written since: a stale list shows these.
    memory: Mutex<BTreeMap<String, Blocks>>,
}

type Blocks = Vec<Arc<AddressBlock>>;

impl<S: Store> Watched<S> {
    pub(super) fn new(inner: S, run: &Arc<Run>) -> Self {
        let (dead, stale_next) = (AtomicBool::new(false), AtomicBool::new(false));
        Watched { inner, run: run.clone(), dead, stale_next, memory: Mutex::default() }
    }

    /// An agent that died starts again.
    pub(super) fn revive(&self) {
        if self.dead.swap(false, Ordering::Relaxed) {
            self.memory().clear();
        }
    }

    /// The next list is stale.
    pub(super) fn look_away(&self) {
        self.stale_next.store(true, Ordering::Relaxed);
    }

    /// A list that nothing disturbs.
    pub(super) async fn look(&self, domain: &str) -> Result<Blocks, StoreError> {
        let blocks = self.inner.blocks(domain).await?;
        self.memory().insert(domain.to_owned(), blocks.clone());
        Ok(blocks)
    }

    fn memory(&self) -> MutexGuard<'_, BTreeMap<String, Blocks>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn alive(&self) -> Result<(), StoreError> {
        let dead = self.dead.load(Ordering::Relaxed);
        if dead { Err(StoreError::Unavailable("the agent is dead".into())) } else { Ok(()) }
    }

    async fn write<R: Resource>(
        &self,
        object: &R,
        write: impl Future<Output = Result<R, StoreError>> + Send,
    ) -> Result<R, StoreError> {
        self.alive()?;
        let fault = self.run.fault_now(false);
        if fault.is_some_and(Fault::kills) {
            self.dead.store(true, Ordering::Relaxed);
        }
        let outcome = match fault {
            Some(Fault::RequestLost | Fault::DiesBefore) => Err(lost()),
            Some(Fault::Refused) => {
                Err(StoreError::Conflict { kind: R::KIND, name: object.meta().name.clone() })
            }
            _ => self.commit(object, write).await,
        };
        match outcome {
            Ok(written) if fault.is_none() => {
                self.remember(&written);
                Ok(written)
            }
            // What memory says after this may be older than what this handle wrote.
            outcome => {
                self.memory().clear();
                Err(outcome.err().unwrap_or_else(lost))
            }
        }
    }

    async fn commit<R: Resource>(
        &self,
        object: &R,
        write: impl Future<Output = Result<R, StoreError>> + Send,
    ) -> Result<R, StoreError> {
        let written = write.await?;
        let from = object.meta().resource_version.clone();
        self.run.note(Event::Written { from, version: Version::of(&json(&written)) });
        Ok(written)
    }

    fn remember<R: Resource>(&self, written: &R) {
        let Some(written) = (written as &dyn Any).downcast_ref::<AddressBlock>() else { return };
        if let Some(blocks) = self.memory().get_mut(&written.spec.network) {
            blocks.retain(|block| block.name() != written.name());
            blocks.push(Arc::new(written.clone()));
        }
    }
}

fn json<R: Resource>(object: &R) -> Value {
    serde_json::to_value(object).unwrap_or_default()
}

fn lost() -> StoreError {
    StoreError::Unavailable("lost".into())
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
    async fn blocks(&self, domain: &str) -> Result<Blocks, StoreError> {
        self.alive()?;
        let fault = self.run.fault_now(true);
        let away = self.stale_next.swap(false, Ordering::Relaxed);
        if fault == Some(Fault::ListLost) {
            return Err(lost());
        }
        let stale = if away || fault == Some(Fault::ListStale) {
            self.memory().get(domain).cloned()
        } else {
            None
        };
        match stale {
            Some(stale) => Ok(stale),
            None => self.look(domain).await,
        }
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
