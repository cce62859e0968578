//! The poll loop: burst in, decisions, copies, burst out.
//!
//! A [`Worker`] is one pinned thread. It owns receiving queues and sending queues; nobody else
//! touches them. The control thread talks to it through a ring of [`Command`]s and hears back
//! through [`Report`]s; what the path reads comes as snapshots ([`crate::table::Reader`]).
//!
//! ```text
//! turn: commands → for each ready queue: claim, decide, send, copy, publish, release
//!       → packets handed over by other workers → their completions → idle? park
//! ```

mod command;
mod emit;
mod forward;
mod handover;
mod idle;
mod merge;
mod stages;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

pub use command::{Command, CommandsFull, Handle, Report, Retired, Setup, setup};
pub use idle::Polling;
pub use stages::{StageSums, TurnStage};

use crate::copy::{Channel, CopyList, DmaCounts, Thresholds};
use crate::path::IcmpLimiter;
use crate::port::{BURST_PKTS, BufferPool, Burst, Health, Rx, Tx};
use crate::table::{IfaceId, Reader, Tables};

use handover::Peer;
use idle::Idle;
use stages::StageClock;

/// What a worker tells about itself; written by it alone.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Stats {
    /// Turns of the loop.
    pub turns: AtomicU64,
    /// Turns that found work.
    pub busy_turns: AtomicU64,
    /// Frames received.
    pub packets: AtomicU64,
    /// Nanoseconds spent parked.
    pub parked_ns: AtomicU64,
    /// Bytes copied by the CPU.
    pub cpu_copied_bytes: AtomicU64,
    /// Copies made by the CPU.
    pub cpu_copies: AtomicU64,
    /// Bytes copied by the worker's DMA channel.
    pub dma_copied_bytes: AtomicU64,
    /// Copies made by the worker's DMA channel.
    pub dma_copies: AtomicU64,
    /// Copies that the CPU made because the DMA channel did not.
    pub dma_errors: AtomicU64,
    /// What the parts of a turn cost.
    pub stages: StageSums,
    /// Whether it is parked, so that whoever hands it something must wake it.
    pub parked: AtomicBool,
}

/// Between two rounds of housekeeping.
const HOUSEKEEPING_NS: u64 = 100_000_000;

fn bump(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
}

/// A receiving queue and what the worker knows about it.
#[derive(Debug)]
struct RxEntry {
    iface: IfaceId,
    rx: Rx,
    /// Set by the idle policy: there is something to read (always, for queues that are polled).
    ready: bool,
    /// Claims of this queue that other workers still hold.
    lent: u32,
    /// The queue that took the whole last burst: claim no more than it has room for.
    only_sink: Option<(IfaceId, u16)>,
    /// One turn was skipped because that sink was full.
    waited: bool,
    /// The control thread wants it back.
    leaving: bool,
    /// Misbehaved; not polled any more.
    dead: bool,
}

/// A sending queue.
#[derive(Debug)]
struct TxEntry {
    tx: Tx,
    dirty: bool,
    dead: bool,
}

/// Everything of a worker but its snapshot reader.
#[derive(Debug)]
pub(crate) struct State {
    id: usize,
    rxs: Vec<Option<RxEntry>>,
    /// By interface, then queue.
    txs: Vec<Vec<Option<TxEntry>>>,
    dirty: Vec<(IfaceId, u16)>,
    burst: Burst,
    pool: BufferPool,
    list: CopyList,
    notifier: memif::Notifier,
    limiter: IcmpLimiter,
    peers: Vec<Option<Peer>>,
    handle: command::WorkerEnd,
    idle: Idle,
    now_ns: u64,
    housekept_ns: u64,
    started: Instant,
    scratch: emit::Scratch,
    clock: StageClock,
    observer: crate::observe::Observer,
    stop: bool,
}

/// One worker, before its thread runs.
#[derive(Debug)]
pub struct Worker {
    reader: Reader,
    state: State,
}

impl Worker {
    /// Runs until told to stop. Call on the thread that is pinned.
    pub fn run(mut self) {
        while !self.state.stop {
            let tables = self.reader.take();
            let work = self.state.turn(tables);
            if work == 0 && self.state.idle.may_park() && self.state.nothing_waits() {
                self.reader.park();
                self.state.park();
            }
        }
        self.reader.park();
    }

    /// Lets a DMA channel copy the bursts beyond the thresholds.
    pub fn use_channel(&mut self, channel: Box<dyn Channel>, thresholds: Thresholds) {
        self.state.list.attach(channel, thresholds);
    }

    /// Copies and bytes by the CPU, and what the DMA channel did.
    pub fn copy_counts(&self) -> ((u64, u64), DmaCounts) {
        (self.state.list.cpu_counts(), self.state.list.dma_counts())
    }

    /// One turn of the loop, without sleeping: for benchmarks, and for tests that want no thread.
    /// Returns how many packets it moved.
    pub fn turn(&mut self) -> usize {
        self.state.turn(self.reader.take())
    }
}

impl State {
    /// One turn of the loop; returns how many packets it moved.
    fn turn(&mut self, tables: &Tables) -> usize {
        self.commands();
        let now = Instant::now();
        self.now_ns = now.duration_since(self.started).as_nanos() as u64;
        self.idle.look(now, &mut self.rxs);
        let mut work = 0;
        for index in 0..self.rxs.len() {
            work += self.serve(tables, index);
        }
        work += self.serve_peers(tables);
        if work == 0 && !self.dirty.is_empty() {
            self.finish_burst(tables);
        }
        self.idle.note(work, now, &mut self.rxs);
        if self.now_ns.wrapping_sub(self.housekept_ns) > HOUSEKEEPING_NS {
            self.housekeep(tables);
        }
        let stats = &self.handle.stats;
        bump(&stats.turns, 1);
        bump(&stats.busy_turns, u64::from(work > 0));
        bump(&stats.packets, work as u64);
        work
    }

    /// What need not be done every turn.
    #[cold]
    fn housekeep(&mut self, tables: &Tables) {
        self.housekept_ns = self.now_ns;
        let now = Instant::now();
        for index in 0..self.rxs.len() {
            let Some(entry) = self.rxs[index].as_mut() else { continue };
            let health = entry.rx.housekeep(now);
            let missed = entry.rx.take_missed();
            if let Some(iface) = tables.iface(entry.iface).filter(|_| missed > 0) {
                iface.counters[self.id].rx_missed.add(missed);
            }
            self.heed(index, health);
        }
        let stats = &self.handle.stats;
        let (copies, bytes) = self.list.cpu_counts();
        stats.cpu_copied_bytes.store(bytes, Ordering::Relaxed);
        stats.cpu_copies.store(copies, Ordering::Relaxed);
        let dma = self.list.dma_counts();
        stats.dma_copied_bytes.store(dma.bytes, Ordering::Relaxed);
        stats.dma_copies.store(dma.copies, Ordering::Relaxed);
        stats.dma_errors.store(dma.errors, Ordering::Relaxed);
        if let Some(disabled) = self.list.take_disabled() {
            self.handle.engine_disabled(self.id, disabled);
        }
    }

    /// Polls one queue and sees its burst through.
    fn serve(&mut self, tables: &Tables, index: usize) -> usize {
        let Some(entry) = self.rxs.get_mut(index).and_then(Option::as_mut) else { return 0 };
        if entry.leaving && entry.lent == 0 {
            self.hand_back(index);
            return 0;
        }
        if !entry.ready || entry.leaving || entry.dead {
            return 0;
        }
        let Some(iface) = tables.iface(entry.iface) else { return 0 };
        let mut budget = BURST_PKTS;
        if let Some((out, queue)) = entry.only_sink {
            let free = match tx_entry(&mut self.txs, out, queue) {
                Some(own) => own.tx.free(budget),
                None => handover::room(&self.peers, tables, out, queue),
            };
            if free == 0 && !entry.waited {
                entry.waited = true;
                return 0;
            }
            entry.waited = false;
            if free > 0 {
                budget = budget.min(free);
            }
        }
        self.clock.start();
        self.burst.clear();
        let health = entry.rx.poll(entry.iface, &mut self.burst, &mut self.pool, budget);
        let count = self.burst.len();
        if count == 0 && entry.rx.poll_is_syscall() {
            entry.ready = false;
        }
        self.clock.lap(TurnStage::Claim);
        if count > 0 {
            self.forward(tables, iface, index);
        }
        self.clock.stop(count, &self.handle.stats.stages);
        self.heed(index, health);
        count
    }

    /// Disconnects a queue that misbehaved, and tells the control thread.
    fn heed(&mut self, index: usize, health: Health) {
        let Some(entry) = self.rxs.get_mut(index).and_then(Option::as_mut) else { return };
        if health == Health::Good || entry.dead {
            return;
        }
        entry.dead = true;
        self.handle.unwell(entry.iface, health);
    }
}

fn tx_entry(txs: &mut [Vec<Option<TxEntry>>], iface: IfaceId, queue: u16) -> Option<&mut TxEntry> {
    txs.get_mut(usize::from(iface.0))?.get_mut(usize::from(queue))?.as_mut()
}
