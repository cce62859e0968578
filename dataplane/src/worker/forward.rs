//! What becomes of a burst: decide all, send in trains, release.
//!
//! A *train* is a run of packets that leave as they are by one interface, which is the usual burst:
//! interface, queue and counters are looked up once for all of it. Everything else goes packet by
//! packet through [`State::follow`]. Both keep the order of the burst.

use std::ops::Range;
use std::sync::Arc;

use super::{State, TurnStage, tx_entry};
use crate::path::{self, Checksum, DropReason, Gso, Meta, Verdict};
use crate::port::{BURST_PKTS, Burst, Outgoing};
use crate::table::{Iface, IfaceId, IfaceKind, Tables, TxOwner, VrfId};

impl State {
    /// Decides and sends every packet of the burst, which came from queue `index`.
    pub(super) fn forward(&mut self, tables: &Tables, iface: &Arc<Iface>, index: usize) {
        let count = self.burst.len();
        // What the usual packets get is there beforehand.
        let mut verdicts = [Verdict::Forward; BURST_PKTS];
        let verdicts = &mut verdicts[..count];
        let mut account = Account { rx_pkts: count as u64, ..Account::default() };
        account.rx_bytes = self.decide(tables, iface, verdicts);
        self.clock.lap(TurnStage::Decide);
        let mut sinks = Sinks::default();
        self.scratch.lent = 0;
        let mut at = 0;
        while at < count {
            let train = train(&self.burst, verdicts, self.scratch.usual, at);
            if let Some(sink) = self.send_train(tables, train.clone()) {
                account.forwarded += train.len() as u64;
                sinks.note(Some(sink));
                if iface.kind == IfaceKind::Uplink {
                    train.clone().for_each(|at| self.decapsulated(tables, at, Fate::Forwarded));
                }
                at = train.end;
                continue;
            }
            let end = train.end.max(at + 1);
            for (at, &verdict) in (at..end).zip(&verdicts[at..end]) {
                let sent = self.follow(tables, at, verdict, index);
                let fate = Fate::of(verdict, iface.kind, sent.is_some());
                account.count(fate);
                sinks.note(sent);
                if iface.kind == IfaceKind::Uplink {
                    self.decapsulated(tables, at, fate);
                }
            }
            at = end;
        }
        account.flush(&iface.counters[self.id]);
        self.clock.lap(TurnStage::Send);
        self.finish_burst(tables);
        self.release(index, &sinks);
        self.clock.lap(TurnStage::Release);
    }

    /// Gives the burst's claims back, but for those that other workers still copy.
    fn release(&mut self, index: usize, sinks: &Sinks) {
        let Some(entry) = self.rxs[index].as_mut() else { return };
        if entry.lent == 0 {
            entry.rx.release_all(&self.burst, &mut self.pool);
        } else {
            for at in (0..self.burst.len()).filter(|at| self.scratch.lent >> at & 1 == 0) {
                entry.rx.release(self.burst.meta(at).claim, &mut self.pool);
            }
        }
        entry.rx.flush();
        entry.only_sink = sinks.only();
    }

    /// The path's verdicts for the burst, all of which were `Forward`. Returns the bytes that were
    /// received.
    #[inline]
    fn decide(&mut self, tables: &Tables, iface: &Iface, verdicts: &mut [Verdict]) -> u64 {
        self.scratch.usual = 0;
        if self.observer.active() {
            return self.decide_observed(tables, iface, verdicts);
        }
        let mut cx = path::Context {
            tables,
            now_ns: self.now_ns,
            limiter: &mut self.limiter,
            events: &mut self.handle.events,
        };
        let mut fast = path::Fast::new(tables, iface);
        let (mut at, mut bytes) = (0, 0);
        while at < verdicts.len() {
            if let Some(fast) = &mut fast {
                let (slots, metas) = self.burst.rest_mut(at);
                let (sure, sure_bytes) = fast.forward_run(slots, metas);
                self.scratch.usual |= bits(at..at + sure);
                at += sure;
                bytes += sure_bytes;
            }
            if let Some(verdict) = verdicts.get_mut(at) {
                bytes += u64::from(self.burst.meta(at).frame_bytes());
                *verdict = decide_fully(&mut cx, &mut self.burst, iface, at);
                at += 1;
            }
        }
        bytes
    }

    /// The same with a probe that writes down the stages, and a copy for whoever captures.
    #[cold]
    fn decide_observed(&mut self, tables: &Tables, iface: &Iface, verdicts: &mut [Verdict]) -> u64 {
        let mut bytes = 0;
        for (at, verdict) in verdicts.iter_mut().enumerate() {
            bytes += self.burst.packet(at).frame_bytes() as u64;
            *verdict = self.decide_one_observed(tables, iface, at);
        }
        bytes
    }

    fn decide_one_observed(&mut self, tables: &Tables, iface: &Iface, at: usize) -> Verdict {
        self.burst.refill(at);
        self.burst.sum(at);
        self.observer.entered(&self.burst.packet(at));
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
        self.observer.decided(tables, iface, &self.burst.packet(at), verdict);
        verdict
    }

    /// Sends a train. Returns the queue that it went to; `None` when it needs [`State::follow`]: the
    /// interface merges segments, has several queues, or is another worker's or nobody's.
    #[inline]
    fn send_train(&mut self, tables: &Tables, train: Range<usize>) -> Option<(IfaceId, u16)> {
        if train.is_empty() {
            return None;
        }
        let out = tables.iface(self.burst.meta(train.start).out)?;
        match out.workers[..] {
            _ if out.offloads => return None,
            [TxOwner::Worker(owner)] if usize::from(owner) == self.id => {}
            [TxOwner::Every] => {}
            _ => return None,
        }
        let entry = tx_entry(&mut self.txs, out.id, 0).filter(|entry| !entry.dead)?;
        let counters = &out.counters[self.id];
        counters.tx_forwarded.add(train.len() as u64);
        let (mut pkts, mut bytes) = (0, 0);
        let mut left = train;
        while !left.is_empty() {
            let (count, run_bytes) =
                entry.tx.send_run(&mut self.burst, left.clone(), &mut self.list);
            pkts += count as u64;
            bytes += run_bytes;
            left.start += count;
            let Some(at) = left.next() else { break };
            self.burst.settle(at);
            let (slot, meta, body) = self.burst.slot_mut(at);
            let head = &mut slot.0[usize::from(meta.start)..usize::from(meta.end)];
            match entry.tx.send(&Outgoing { head, body, meta }, &mut self.list) {
                Ok(sent_bytes) => {
                    pkts += 1;
                    bytes += u64::from(sent_bytes);
                }
                Err(reason) => counters.tx_drops[reason as usize].add(1),
            }
        }
        counters.tx_pkts.add(pkts);
        counters.tx_bytes.add(bytes);
        if pkts > 0 && !std::mem::replace(&mut entry.dirty, true) {
            self.dirty.push((out.id, 0));
        }
        Some((out.id, 0))
    }

    /// The Network's own account of a packet that came out of a tunnel.
    fn decapsulated(&self, tables: &Tables, at: usize, fate: Fate) {
        let meta = self.burst.meta(at);
        if meta.vrf == VrfId::UNDERLAY {
            return;
        }
        let Some(vrf) = tables.vrf(meta.vrf) else { return };
        let counters = &vrf.counters[self.id];
        counters.rx_pkts.add(1);
        counters.rx_bytes.add(u64::from(meta.end - meta.start) + u64::from(meta.body_bytes));
        match fate {
            Fate::Forwarded => counters.forwarded.add(1),
            Fate::Consumed => counters.consumed.add(1),
            Fate::Punted => counters.punted.add(1),
            Fate::Dropped(reason) => counters.drops[reason as usize].add(1),
        }
    }
}

/// A bit for each packet of the range.
#[inline]
fn bits(packets: Range<usize>) -> u64 {
    let below = |end: usize| 1u64.checked_shl(end as u32).unwrap_or(0).wrapping_sub(1);
    below(packets.end) & !below(packets.start)
}

/// The packets from `at` on that leave as they are by one interface, as `usual` ones do anyway.
#[inline]
fn train(burst: &Burst, verdicts: &[Verdict], usual: u64, at: usize) -> Range<usize> {
    let out = burst.meta(at).out;
    let known = at + (usual >> at).trailing_ones() as usize;
    let same = burst.metas(at..known).iter().take_while(|meta| meta.out == out).count();
    if at + same < known {
        return at..at + same;
    }
    let rest = verdicts[known..].iter().zip(burst.metas(known..verdicts.len()));
    let fits = |&(&verdict, meta): &(&Verdict, &Meta)| {
        verdict == Verdict::Forward && meta.out == out && is_plain(meta)
    };
    at..known + rest.take_while(fits).count()
}

/// Neither to be split, nor to be summed.
#[inline]
fn is_plain(meta: &Meta) -> bool {
    meta.fragment_mtu == 0 && meta.gso == Gso::None && meta.checksum != Checksum::Partial
}

/// Asks the path, and gives it more of the packet when it says so: a longer head, and the sum of
/// the body, each once.
#[inline(never)]
fn decide_fully(
    cx: &mut path::Context<'_>,
    burst: &mut Burst,
    iface: &Iface,
    at: usize,
) -> Verdict {
    for _ in 0..4 {
        match path::forward(cx, iface, &mut burst.packet(at), &mut path::NoProbe) {
            Verdict::Refill => burst.refill(at),
            Verdict::Sum => burst.sum(at),
            verdict => return verdict,
        }
    }
    Verdict::Drop(DropReason::HeadTooDeep)
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
