//! The life of queues: given to workers, taken back, dropped.
//!
//! A port is taken away in this order: tables without it are published and seen; every worker is
//! told to let its queues go; when the last worker has said so, the queues that came back are
//! dropped here, which unmaps and closes off the packet path. Only then may the port's number or
//! its peer's memory be used again.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::observe::Observe;
use crate::port::memif::{MemifRx, MemifTx};
use crate::port::vnet::{VnetRx, VnetTx};
use crate::port::{Rx, Tx};
use crate::table::{IfaceId, Publisher, Tables, TxOwner};
use crate::worker::{Command, CommandsFull, Handle, Report, Retired, StageSums, Stats, TurnStage};

/// How long a worker may take to see a snapshot before it counts as hanging.
pub const WORKER_DEADLINE: Duration = Duration::from_secs(2);
/// For so long a publish is waited for without letting other calls run.
const SPIN: Duration = Duration::from_micros(500);

/// Why a port could not be given to the workers, or tables could not be put in force.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// A worker is not alive.
    #[error(transparent)]
    CommandsFull(#[from] CommandsFull),
    /// A worker does not take the tables.
    #[error(
        "worker {worker} has not taken generation {generation} of the tables within {waited_ms} ms: \
         it hangs; nothing was changed. See `bowline get workers`, and restart the data plane"
    )]
    Stuck {
        /// Its number.
        worker: usize,
        /// What it should have taken.
        generation: u64,
        /// How long it had.
        waited_ms: u64,
    },
    /// A descriptor could not be duplicated or prepared.
    #[error(
        "descriptor of a tap queue: {0}; raise the limit of open files (ulimit -n) if it is that"
    )]
    Descriptor(#[from] nix::Error),
}

/// What is known of a port that is on its way out.
#[derive(Debug)]
struct Leaving {
    /// (worker, receiving?) that have not answered yet.
    left: Vec<(usize, bool)>,
    queues: Vec<Retired>,
}

/// The control thread's end of all workers.
#[derive(Debug)]
pub struct Workers {
    handles: Vec<Handle>,
    publisher: Publisher,
    leaving: HashMap<IfaceId, Leaving>,
    samples: Vec<Sample>,
}

/// A worker's counts at the last tick, and its load since the one before.
#[derive(Debug, Clone, Copy, Default)]
struct Sample {
    turns: u64,
    busy: u64,
    parked_ns: u64,
    at: Option<Instant>,
    load: f64,
    stages: StageSample,
}

/// Sums of the bursts that a worker measured, and what they say of the last second with traffic.
#[derive(Debug, Clone, Copy, Default)]
struct StageSample {
    packets: u64,
    cycles: [u64; TurnStage::ALL.len()],
    per_packet: Option<[f64; TurnStage::ALL.len()]>,
}

impl StageSample {
    fn next(&self, sums: &StageSums) -> Self {
        let (packets, cycles) = sums.read();
        let count = packets.wrapping_sub(self.packets);
        let cost = |at: usize| cycles[at].wrapping_sub(self.cycles[at]) as f64 / count as f64;
        let fresh = (count > 0).then(|| std::array::from_fn(cost));
        Self { packets, cycles, per_packet: fresh.or(self.per_packet) }
    }
}

impl Workers {
    /// Takes the ends that `worker::setup` made.
    pub fn new(handles: Vec<Handle>, publisher: Publisher) -> Self {
        let samples = vec![Sample::default(); handles.len()];
        Self { handles, publisher, leaving: HashMap::new(), samples }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.handles.len()
    }

    /// The tables in force.
    pub fn tables(&self) -> Arc<Tables> {
        self.publisher.current()
    }

    /// What each worker tells about itself, and its load.
    pub fn stats(&self) -> impl Iterator<Item = (&Stats, f64)> {
        self.handles.iter().zip(&self.samples).map(|(h, sample)| (&*h.stats, sample.load))
    }

    /// Of each stage of a worker's turn, by its measured bursts: cycles per packet lately, and the
    /// cycles of all since the start.
    pub fn stages(&self, worker: usize) -> impl Iterator<Item = (TurnStage, f64, u64)> {
        let lately = self.samples.get(worker).and_then(|sample| sample.stages.per_packet);
        let sums = self.handles.get(worker).map(|handle| handle.stats.stages.read().1);
        let both = lately.zip(sums).into_iter();
        both.flat_map(|(lately, sums)| {
            let costs = lately.into_iter().zip(sums);
            TurnStage::ALL.into_iter().zip(costs).map(|(stage, (cost, sum))| (stage, cost, sum))
        })
    }

    /// The generation that each has seen; `None` = parked.
    pub fn seen(&self) -> Vec<Option<u64>> {
        self.publisher.seen()
    }

    /// Takes the load since the last tick; call about once a second.
    pub fn tick(&mut self) {
        for (handle, sample) in self.handles.iter().zip(&mut self.samples) {
            let old = *sample;
            let read = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
            let stats = &handle.stats;
            let now = Instant::now();
            *sample = Sample {
                turns: read(&stats.turns),
                busy: read(&stats.busy_turns),
                parked_ns: read(&stats.parked_ns),
                at: Some(now),
                load: 0.0,
                stages: old.stages.next(&stats.stages),
            };
            let Some(since) = old.at else { continue };
            let turns = sample.turns.wrapping_sub(old.turns).max(1) as f64;
            let busy = sample.busy.wrapping_sub(old.busy) as f64;
            let parked = sample.parked_ns.wrapping_sub(old.parked_ns) as f64;
            let awake = 1.0 - parked / (now - since).as_nanos().max(1) as f64;
            sample.load = busy / turns * awake.clamp(0.0, 1.0);
        }
    }

    /// Publishes and waits until every worker forwards by the tables.
    pub async fn publish(&mut self, tables: Tables) -> Result<u64, PortError> {
        let generation = self.publisher.publish(tables);
        let start = Instant::now();
        loop {
            match self.publisher.seen_by_all(generation) {
                Ok(()) => return Ok(generation),
                Err(worker) if start.elapsed() > WORKER_DEADLINE => {
                    let waited_ms = start.elapsed().as_millis() as u64;
                    return Err(PortError::Stuck { worker, generation, waited_ms });
                }
                Err(_) if start.elapsed() < SPIN => std::thread::yield_now(),
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    }

    /// Publishes tables that were in force before, without waiting.
    pub fn roll_back(&mut self, tables: &Tables) {
        self.publisher.publish(tables.clone());
    }

    /// Gives a tap's queues out: receiving spread over the workers, sending by all.
    pub fn attach_tap(
        &mut self,
        iface: IfaceId,
        fds: &[OwnedFd],
    ) -> Result<Arc<[TxOwner]>, PortError> {
        let mut rxs = Vec::new();
        let mut txs = Vec::new();
        for fd in fds {
            rxs.push(Rx::Vnet(VnetRx::new(duplicate(fd)?)));
        }
        for worker in 0..self.count() {
            txs.push(Tx::Vnet(VnetTx::new(duplicate(&fds[worker % fds.len()])?)));
        }
        self.attach_shared(iface, rxs, txs)
    }

    /// Gives a port's queues out. With a sending queue for each worker, every worker sends on its
    /// own; with fewer, each queue has one owner and the others hand over.
    pub fn attach_shared(
        &mut self,
        iface: IfaceId,
        rxs: Vec<Rx>,
        txs: Vec<Tx>,
    ) -> Result<Arc<[TxOwner]>, PortError> {
        let owners = tx_owners(txs.len(), self.count());
        let own_each = owners.contains(&TxOwner::Every);
        for (number, tx) in txs.into_iter().enumerate() {
            let queue = if own_each { 0 } else { number as u16 };
            self.send(number, Command::AddTx { iface, queue, tx })?;
        }
        self.add_rxs(iface, rxs)?;
        Ok(owners)
    }

    /// Gives a memif's rings out: each has one owner.
    pub fn attach_memif(
        &mut self,
        iface: IfaceId,
        rx: Vec<memif::RxQueue>,
        tx: Vec<memif::TxQueue>,
    ) -> Result<Arc<[TxOwner]>, PortError> {
        let mut owners = Vec::new();
        for (queue, tx) in tx.into_iter().enumerate() {
            let worker = self.worker_of(iface, queue);
            let tx = Tx::Memif(MemifTx::new(tx));
            self.send(worker, Command::AddTx { iface, queue: queue as u16, tx })?;
            owners.push(TxOwner::Worker(worker as u8));
        }
        let rxs = rx.into_iter().map(|queue| Rx::Memif(MemifRx::new(queue))).collect();
        self.add_rxs(iface, rxs)?;
        Ok(owners.into())
    }

    /// Which worker serves a queue.
    pub fn worker_of(&self, iface: IfaceId, queue: usize) -> usize {
        (usize::from(iface.0) + queue) % self.count()
    }

    fn add_rxs(&mut self, iface: IfaceId, rxs: Vec<Rx>) -> Result<(), PortError> {
        for (queue, rx) in rxs.into_iter().enumerate() {
            let worker = self.worker_of(iface, queue);
            self.send(worker, Command::AddRx { iface, rx })?;
        }
        Ok(())
    }

    /// Asks for all queues of an interface back; [`Workers::heard`] says when they are.
    pub fn detach(&mut self, iface: IfaceId) -> Result<(), PortError> {
        let all = (0..self.count()).flat_map(|worker| [(worker, true), (worker, false)]).collect();
        self.leaving.insert(iface, Leaving { left: all, queues: Vec::new() });
        for worker in 0..self.count() {
            self.send(worker, Command::RemoveRx { iface })?;
            self.send(worker, Command::RemoveTx { iface })?;
        }
        Ok(())
    }

    /// Whether queues of the interface are still out.
    pub fn is_leaving(&self, iface: IfaceId) -> bool {
        self.leaving.contains_key(&iface)
    }

    /// Whether any interface's queues are still out.
    pub fn any_leaving(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// Takes note of a report about queues. Returns the interface whose last queue this was.
    pub fn heard(&mut self, report: Report) -> Heard {
        match report {
            Report::Retired(iface, queue) => {
                if let Some(leaving) = self.leaving.get_mut(&iface) {
                    leaving.queues.push(queue);
                }
                Heard::Nothing
            }
            Report::Removed { worker, iface, rx } => {
                let Some(leaving) = self.leaving.get_mut(&iface) else { return Heard::Nothing };
                leaving.left.retain(|&left| left != (worker, rx));
                if !leaving.left.is_empty() {
                    return Heard::Nothing;
                }
                // Dropping the queues unmaps and closes.
                self.leaving.remove(&iface);
                Heard::Detached(iface)
            }
            Report::Unwell(iface, health) => Heard::Unwell(iface, health),
            Report::Path(event) => Heard::Path(event),
            Report::EngineDisabled(worker, disabled) => Heard::EngineDisabled(worker, disabled),
        }
    }

    /// Tells all workers to change what they write down.
    pub fn observe(&mut self, what: &Observe) -> Result<(), PortError> {
        for worker in 0..self.count() {
            self.send(worker, Command::Observe(what.clone()))?;
        }
        Ok(())
    }

    /// Tells all workers to leave their loops.
    pub fn stop(&mut self) {
        for worker in 0..self.count() {
            // A worker that does not listen is not waited for either.
            let _ = self.send(worker, Command::Stop);
        }
    }

    fn send(&mut self, worker: usize, command: Command) -> Result<(), PortError> {
        Ok(self.handles[worker].send(worker, command)?)
    }
}

/// Who sends on `queues` queues that are given to workers one by one.
pub fn tx_owners(queues: usize, workers: usize) -> Arc<[TxOwner]> {
    if queues >= workers {
        return Arc::from([TxOwner::Every]);
    }
    (0..queues).map(|queue| TxOwner::Worker(queue as u8)).collect()
}

/// What a report means.
#[derive(Debug)]
pub enum Heard {
    /// Nothing to do.
    Nothing,
    /// All queues of the interface are back and dropped.
    Detached(IfaceId),
    /// A queue stopped.
    Unwell(IfaceId, crate::port::Health),
    /// The path noticed something.
    Path(crate::path::PathEvent),
    /// A worker's DMA channel was given up.
    EngineDisabled(usize, crate::copy::Disabled),
}

fn duplicate(fd: &OwnedFd) -> nix::Result<OwnedFd> {
    fd.as_fd()
        .try_clone_to_owned()
        .map_err(|error| nix::Error::from_raw(error.raw_os_error().unwrap_or(libc::EBADF)))
}
