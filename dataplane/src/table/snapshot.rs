//! From control to workers: one immutable snapshot, published by pointer.
//!
//! Each worker reports the generation that it has seen; a parked worker counts as having seen,
//! because it takes the newest snapshot before its first packet after waking.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use arc_swap::cache::Cache;

use super::Tables;

/// `generation_seen` of a worker that is parked.
const PARKED: u64 = u64::MAX;

/// `generation_seen` of a worker that woke and has not chosen a snapshot yet.
const WAKING: u64 = 0;

#[derive(Debug)]
struct Shared {
    current: ArcSwap<Tables>,
    seen: Box<[Seen]>,
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Seen(AtomicU64);

/// The writer's end. There is one.
#[derive(Debug)]
pub struct Publisher {
    shared: Arc<Shared>,
    /// Older snapshots that a worker may still hold; dropped here, never by a worker.
    retired: Vec<Arc<Tables>>,
}

/// A worker's end.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    cache: Cache<ArcSwapRef, Arc<Tables>>,
    worker: usize,
    parked: bool,
}

/// Makes the cache own its way to the shared pointer.
#[derive(Debug)]
struct ArcSwapRef(Arc<Shared>);

impl std::ops::Deref for ArcSwapRef {
    type Target = ArcSwap<Tables>;
    fn deref(&self) -> &ArcSwap<Tables> {
        &self.0.current
    }
}

/// A worker that did not take the snapshot in time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("worker {worker} has not taken generation {generation} within {waited_ms} ms")]
pub struct WorkerStuck {
    /// Its number.
    pub worker: usize,
    /// What it should have taken.
    pub generation: u64,
    /// How long the writer waited.
    pub waited_ms: u64,
}

impl Publisher {
    /// A publisher of `tables`, and a reader for each worker.
    pub fn new(tables: Tables, workers: usize) -> (Self, Vec<Reader>) {
        let shared = Arc::new(Shared {
            current: ArcSwap::from_pointee(tables),
            seen: (0..workers).map(|_| Seen(AtomicU64::new(PARKED))).collect(),
        });
        let reader = |worker| Reader {
            cache: Cache::new(ArcSwapRef(Arc::clone(&shared))),
            shared: Arc::clone(&shared),
            worker,
            parked: true,
        };
        let readers = (0..workers).map(reader).collect();
        (Self { shared, retired: Vec::new() }, readers)
    }

    /// The snapshot in force.
    pub fn current(&self) -> Arc<Tables> {
        self.shared.current.load_full()
    }

    /// Publishes; the generation is set here. Returns it.
    pub fn publish(&mut self, mut tables: Tables) -> u64 {
        let generation = self.shared.current.load().generation + 1;
        tables.generation = generation;
        let old = self.shared.current.swap(Arc::new(tables));
        self.retired.push(old);
        self.retired.retain_mut(|tables| Arc::get_mut(tables).is_none());
        generation
    }

    /// Whether every worker forwards by `generation` or a later one.
    pub fn seen_by_all(&self, generation: u64) -> Result<(), usize> {
        // Pairs with the fence in `Reader::take`: either the worker's WAKING is seen here, or the
        // worker sees the snapshot that was published before.
        fence(Ordering::SeqCst);
        let behind = |seen: &Seen| seen.0.load(Ordering::Acquire) < generation;
        self.shared.seen.iter().position(behind).map_or(Ok(()), Err)
    }

    /// Waits until every worker forwards by `generation`.
    pub fn wait(&self, generation: u64, deadline: Duration) -> Result<(), WorkerStuck> {
        let start = Instant::now();
        loop {
            match self.seen_by_all(generation) {
                Ok(()) => return Ok(()),
                Err(worker) if start.elapsed() > deadline => {
                    let waited_ms = start.elapsed().as_millis() as u64;
                    return Err(WorkerStuck { worker, generation, waited_ms });
                }
                Err(_) => std::thread::sleep(Duration::from_micros(20)),
            }
        }
    }

    /// The generation that each worker has seen; `None` for a parked one.
    pub fn seen(&self) -> Vec<Option<u64>> {
        let value = |seen: &Seen| seen.0.load(Ordering::Acquire);
        self.shared.seen.iter().map(value).map(|v| (v != PARKED).then_some(v)).collect()
    }

    /// How many snapshots a worker may still hold beside the current one.
    pub fn retired(&mut self) -> usize {
        self.retired.retain_mut(|tables| Arc::get_mut(tables).is_none());
        self.retired.len()
    }
}

impl Reader {
    /// The newest snapshot; call once per burst. Reports the *previous* one as finished: whoever
    /// waits for a generation knows that no burst by an older one is under way.
    #[inline]
    pub fn take(&mut self) -> &Arc<Tables> {
        let seen = &self.shared.seen[self.worker].0;
        if self.parked {
            self.parked = false;
            seen.store(WAKING, Ordering::Relaxed);
            fence(Ordering::SeqCst);
        }
        let tables = self.cache.load();
        if seen.load(Ordering::Relaxed) != tables.generation {
            seen.store(tables.generation, Ordering::Release);
        }
        tables
    }

    /// The worker stops looking until [`Reader::take`]: nobody needs to wait for it.
    pub fn park(&mut self) {
        self.parked = true;
        self.shared.seen[self.worker].0.store(PARKED, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    /// Under load no reader sees a torn or an older snapshot after `wait` returned.
    #[test]
    fn what_was_waited_for_is_in_force() {
        let mut first = Tables::default();
        first.node = Arc::new(with_port(&first, 0));
        let (mut publisher, readers) = Publisher::new(first, 2);
        let stop = Arc::new(AtomicBool::new(false));
        let threads: Vec<_> = readers
            .into_iter()
            .map(|mut reader| {
                let stop = Arc::clone(&stop);
                std::thread::spawn(move || {
                    let mut last = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let tables = reader.take();
                        assert!(tables.generation >= last);
                        assert_eq!(u64::from(tables.node.vxlan_port), tables.generation % 50_000);
                        last = tables.generation;
                        if last % 7 == 0 {
                            reader.park();
                        }
                    }
                    reader.park();
                })
            })
            .collect();
        for generation in 1..=2_000u64 {
            let mut tables = (*publisher.current()).clone();
            tables.node = Arc::new(with_port(&tables, (generation % 50_000) as u16));
            assert_eq!(publisher.publish(tables), generation);
            publisher.wait(generation, Duration::from_secs(20)).expect("readers are alive");
        }
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().expect("no torn snapshot");
        }
        assert_eq!(publisher.retired(), 0, "a snapshot outlived its readers");
    }

    fn with_port(tables: &Tables, vxlan_port: u16) -> crate::table::Node {
        crate::table::Node { vxlan_port, ..(*tables.node).clone() }
    }

    #[test]
    fn a_stuck_worker_is_named() {
        let (mut publisher, mut readers) = Publisher::new(Tables::default(), 2);
        readers[1].take();
        let generation = publisher.publish(Tables::default());
        let stuck = publisher.wait(generation, Duration::from_millis(5)).unwrap_err();
        assert_eq!((stuck.worker, stuck.generation), (1, 1));
        readers[1].park();
        assert_eq!(publisher.wait(generation, Duration::from_millis(5)), Ok(()));
    }
}
