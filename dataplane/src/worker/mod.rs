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
mod handover;
mod idle;
mod merge;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

pub use command::{Command, CommandsFull, Handle, Report, Retired, Setup, setup};
pub use idle::Polling;

use crate::copy::CopyList;
use crate::path::{self, DropReason, IcmpLimiter, Verdict};
use crate::port::{BURST_PKTS, BufferPool, Burst, Health, Rx, Tx};
use crate::table::{Iface, IfaceId, IfaceKind, Reader, Tables, VrfId};

use handover::Peer;
use idle::Idle;

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
}

impl State {
    /// One turn of the loop; returns how many packets it moved.
    fn turn(&mut self, tables: &Tables) -> usize {
        self.commands();
        self.now_ns = self.started.elapsed().as_nanos() as u64;
        self.idle.look(&mut self.rxs);
        let mut work = 0;
        for index in 0..self.rxs.len() {
            work += self.serve(tables, index);
        }
        work += self.serve_peers(tables);
        if work == 0 && !self.dirty.is_empty() {
            self.finish_burst(tables);
        }
        self.idle.note(work, &mut self.rxs);
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
        stats.cpu_copied_bytes.store(self.list.cpu_bytes, Ordering::Relaxed);
        stats.cpu_copies.store(self.list.cpu_copies, Ordering::Relaxed);
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
                Some(own) => own.tx.free(),
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
        self.burst.clear();
        let health = entry.rx.poll(entry.iface, &mut self.burst, &mut self.pool, budget);
        let count = self.burst.len();
        if count == 0 && entry.rx.poll_is_syscall() {
            entry.ready = false;
        }
        if count > 0 {
            self.forward(tables, iface, index);
        }
        self.heed(index, health);
        count
    }

    /// Decides and sends every packet of the burst, which came from queue `index`.
    fn forward(&mut self, tables: &Tables, iface: &Arc<Iface>, index: usize) {
        let mut account = Account::default();
        let mut sinks = Sinks::default();
        for at in 0..self.burst.len() {
            account.rx_bytes += self.burst.packet(at).frame_bytes() as u64;
            let verdict = self.decide(tables, iface, at);
            let (sent, vrf) = (self.follow(tables, at, verdict, index), self.burst.meta(at).vrf);
            let fate = Fate::of(verdict, iface.kind, sent.is_some());
            account.count(fate);
            if iface.kind == IfaceKind::Uplink && vrf != VrfId::UNDERLAY {
                self.count_decapsulated(tables, at, vrf, fate);
            }
            sinks.note(sent);
        }
        account.rx_pkts = self.burst.len() as u64;
        account.flush(&iface.counters[self.id]);
        self.finish_burst(tables);
        let Some(entry) = self.rxs[index].as_mut() else { return };
        for at in 0..self.burst.len() {
            if !self.scratch.lent[at] {
                entry.rx.release(self.burst.meta(at).claim, &mut self.pool);
            }
        }
        entry.rx.flush();
        entry.only_sink = sinks.only();
    }

    /// The path's verdict for packet `at`.
    #[inline]
    fn decide(&mut self, tables: &Tables, iface: &Iface, at: usize) -> Verdict {
        if self.observer.active() {
            return self.decide_observed(tables, iface, at);
        }
        let mut cx = path::Context {
            tables,
            now_ns: self.now_ns,
            limiter: &mut self.limiter,
            events: &mut self.handle.events,
        };
        let verdict = path::forward(&mut cx, iface, &mut self.burst.packet(at), &mut path::NoProbe);
        if !matches!(verdict, Verdict::Refill | Verdict::Sum) {
            return verdict;
        }
        self.decide_with_more(tables, iface, at, verdict)
    }

    /// The path asked for more of the packet: a longer head, or the sum of its body. It asks for
    /// each once.
    #[cold]
    fn decide_with_more(
        &mut self,
        tables: &Tables,
        iface: &Iface,
        at: usize,
        mut verdict: Verdict,
    ) -> Verdict {
        for _ in 0..3 {
            match verdict {
                Verdict::Refill => self.burst.refill(at),
                Verdict::Sum => self.burst.sum(at),
                verdict => return verdict,
            }
            let mut cx = path::Context {
                tables,
                now_ns: self.now_ns,
                limiter: &mut self.limiter,
                events: &mut self.handle.events,
            };
            let mut packet = self.burst.packet(at);
            verdict = path::forward(&mut cx, iface, &mut packet, &mut path::NoProbe);
        }
        Verdict::Drop(DropReason::HeadTooDeep)
    }

    /// The same with a probe that writes down the stages, and a copy for whoever captures.
    #[cold]
    fn decide_observed(&mut self, tables: &Tables, iface: &Iface, at: usize) -> Verdict {
        self.burst.refill(at);
        self.burst.sum(at);
        self.observer.entered(iface, &mut self.burst.packet(at));
        let mut cx = path::Context {
            tables,
            now_ns: self.now_ns,
            limiter: &mut self.limiter,
            events: &mut self.handle.events,
        };
        let mut verdict =
            path::forward(&mut cx, iface, &mut self.burst.packet(at), &mut self.observer);
        if matches!(verdict, Verdict::Refill | Verdict::Sum) {
            verdict = Verdict::Drop(DropReason::HeadTooDeep);
        }
        self.observer.decided(tables, iface, self.burst.meta(at), verdict);
        verdict
    }

    /// The Network's own account of a packet that came out of a tunnel.
    fn count_decapsulated(&self, tables: &Tables, at: usize, vrf: VrfId, fate: Fate) {
        let Some(vrf) = tables.vrf(vrf) else { return };
        let counters = &vrf.counters[self.id];
        let meta = self.burst.meta(at);
        counters.rx_pkts.add(1);
        counters.rx_bytes.add(u64::from(meta.end - meta.start) + u64::from(meta.body_bytes));
        match fate {
            Fate::Forwarded => counters.forwarded.add(1),
            Fate::Consumed => counters.consumed.add(1),
            Fate::Punted => counters.punted.add(1),
            Fate::Dropped(reason) => counters.drops[reason as usize].add(1),
        }
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

/// Each received frame gets exactly one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Forwarded,
    Consumed,
    Punted,
    Dropped(DropReason),
}

impl Fate {
    fn of(verdict: Verdict, from: IfaceKind, out_exists: bool) -> Fate {
        match verdict {
            Verdict::Forward | Verdict::Bump if !out_exists => Fate::Dropped(DropReason::IfaceGone),
            Verdict::Forward => Fate::Forwarded,
            Verdict::Bump if from == IfaceKind::Uplink => Fate::Punted,
            Verdict::Bump => Fate::Forwarded,
            Verdict::Answer | Verdict::Consume => Fate::Consumed,
            Verdict::DropAnswer(reason) | Verdict::Drop(reason) => Fate::Dropped(reason),
            Verdict::Refill | Verdict::Sum => Fate::Dropped(DropReason::HeadTooDeep),
        }
    }
}

/// The receiving interface's account of one burst, added up in registers.
#[derive(Debug, Default)]
struct Account {
    rx_pkts: u64,
    rx_bytes: u64,
    forwarded: u64,
    consumed: u64,
    punted: u64,
    drops: Option<[u16; DropReason::COUNT]>,
}

impl Account {
    #[inline]
    fn count(&mut self, fate: Fate) {
        match fate {
            Fate::Forwarded => self.forwarded += 1,
            Fate::Consumed => self.consumed += 1,
            Fate::Punted => self.punted += 1,
            Fate::Dropped(reason) => {
                self.drops.get_or_insert([0; DropReason::COUNT])[reason as usize] += 1;
            }
        }
    }

    fn flush(&self, counters: &crate::table::Counters) {
        counters.rx_pkts.add(self.rx_pkts);
        counters.rx_bytes.add(self.rx_bytes);
        counters.forwarded.add(self.forwarded);
        counters.consumed.add(self.consumed);
        counters.punted.add(self.punted);
        if let Some(drops) = &self.drops {
            for (count, &n) in counters.drops.iter().zip(drops) {
                count.add(u64::from(n));
            }
        }
    }
}

/// Whether one queue took the whole burst.
#[derive(Debug, Default)]
struct Sinks {
    first: Option<(IfaceId, u16)>,
    mixed: bool,
}

impl Sinks {
    #[inline]
    fn note(&mut self, sent: Option<(IfaceId, u16)>) {
        match (self.first, sent) {
            (None, Some(_)) => self.first = sent,
            (Some(a), Some(b)) if a == b => {}
            _ => self.mixed = true,
        }
    }

    fn only(&self) -> Option<(IfaceId, u16)> {
        if self.mixed { None } else { self.first }
    }
}
