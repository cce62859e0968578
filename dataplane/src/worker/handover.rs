//! Packets whose sending queue belongs to another worker.
//!
//! The head is copied along; the body stays in the source's memory, and the source's claim is held
//! until the owner of the queue has copied and says so. Rings are single-producer,
//! single-consumer, one pair for each ordered pair of workers; order within a flow is kept because
//! one queue feeds one ring.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrayvec::ArrayVec;

use super::command::Wake;
use super::emit::{Sender, transmit};
use super::{State, Stats};
use crate::copy::Seg;
use crate::path::{Meta, Slot, TxDropReason};
use crate::table::{Iface, IfaceId, Tables, TxOwner};

/// Packets on their way from one worker to another.
const RING_PKTS: usize = 512;
/// Packets taken from one worker in one turn.
const TURN_PKTS: usize = 64;
/// Pieces of a body that can be handed over.
const SEGS: usize = 17;

/// One packet.
#[derive(Debug)]
struct Handover {
    slot: Slot,
    meta: Meta,
    body: ArrayVec<Seg, SEGS>,
    out: IfaceId,
    queue: u16,
    back: Completion,
}

/// "Copied: release the claim."
#[derive(Debug, Clone, Copy)]
struct Completion {
    rx: u16,
    claim: u32,
}

/// What one worker holds of another.
#[derive(Debug)]
pub(super) struct Peer {
    to: rtrb::Producer<Handover>,
    from: rtrb::Consumer<Handover>,
    done_to: rtrb::Producer<Completion>,
    done_from: rtrb::Consumer<Completion>,
    /// Packets of ours that it has not completed.
    lent: usize,
    stats: Arc<Stats>,
    wake: Wake,
    pushed: bool,
}

impl Peer {
    pub(super) fn is_quiet(&self) -> bool {
        self.from.is_empty() && self.done_from.is_empty()
    }

    /// Wakes it if it sleeps and something was pushed.
    fn nudge(&mut self) {
        if std::mem::take(&mut self.pushed) {
            // Pairs with the store in `State::park`: either it sees the packet, or we see `parked`.
            std::sync::atomic::fence(Ordering::SeqCst);
            if self.stats.parked.load(Ordering::Relaxed) {
                let _ = self.wake.write(1);
            }
        }
    }
}

/// For each worker, its view of all others (`None` for itself).
pub(super) fn mesh(count: usize, stats: &[Arc<Stats>], wakes: &[Wake]) -> Vec<Vec<Option<Peer>>> {
    let mut mesh: Vec<Vec<Option<Peer>>> =
        (0..count).map(|_| (0..count).map(|_| None).collect()).collect();
    let peer = |to, from, done_to, done_from, other: usize| Peer {
        to,
        from,
        done_to,
        done_from,
        lent: 0,
        stats: Arc::clone(&stats[other]),
        wake: Arc::clone(&wakes[other]),
        pushed: false,
    };
    let pairs = (0..count).flat_map(|a| (a + 1..count).map(move |b| (a, b)));
    for (a, b) in pairs {
        let (to_b, from_a) = rtrb::RingBuffer::new(RING_PKTS);
        let (to_a, from_b) = rtrb::RingBuffer::new(RING_PKTS);
        let (done_to_b, done_from_a) = rtrb::RingBuffer::new(RING_PKTS);
        let (done_to_a, done_from_b) = rtrb::RingBuffer::new(RING_PKTS);
        mesh[a][b] = Some(peer(to_b, from_b, done_to_b, done_from_b, b));
        mesh[b][a] = Some(peer(to_a, from_a, done_to_a, done_from_a, a));
    }
    mesh
}

/// How many packets for a queue of another worker can be handed over now; without a limit when
/// nobody owns it.
pub(super) fn room(peers: &[Option<Peer>], tables: &Tables, out: IfaceId, queue: u16) -> usize {
    let owner = tables.iface(out).and_then(|out| out.workers.get(usize::from(queue)));
    let Some(TxOwner::Worker(owner)) = owner else { return usize::MAX };
    let peer = peers.get(usize::from(*owner)).and_then(Option::as_ref);
    peer.map_or(usize::MAX, |peer| RING_PKTS - peer.lent)
}

impl State {
    /// Hands packet `at` of the burst, which queue `rx` received, to the worker that owns the
    /// sending queue.
    pub(super) fn hand_over(&mut self, at: usize, rx: usize, out: &Iface, queue: u16, to: usize) {
        let counters = &out.counters[self.id];
        let (slot, meta, body) = self.burst.slot_mut(at);
        let Some(peer) = self.peers.get_mut(to).and_then(Option::as_mut) else {
            counters.tx_drops[TxDropReason::PortDown as usize].add(1);
            return;
        };
        let Ok(body) = ArrayVec::try_from(body) else {
            counters.tx_drops[TxDropReason::SplitImpossible as usize].add(1);
            return;
        };
        let back = Completion { rx: rx as u16, claim: meta.claim };
        let packet = Handover { slot: slot.clone(), meta: *meta, body, out: out.id, queue, back };
        // No more than the completion ring holds are ever lent, so a completion always fits.
        if peer.lent >= RING_PKTS || peer.to.push(packet).is_err() {
            counters.tx_drops[TxDropReason::HandoverFull as usize].add(1);
            return;
        }
        peer.lent += 1;
        peer.pushed = true;
        self.scratch.lent |= 1 << at;
        if let Some(entry) = self.rxs.get_mut(rx).and_then(Option::as_mut) {
            entry.lent += 1;
        }
    }

    /// Takes back what others have finished, and sends what they hand over.
    pub(super) fn serve_peers(&mut self, tables: &Tables) -> usize {
        let mut work = 0;
        for other in 0..self.peers.len() {
            work += self.take_back(other) + self.send_for(tables, other);
        }
        work
    }

    /// Wakes the workers that this turn gave work to.
    pub(super) fn nudge_peers(&mut self) {
        for peer in self.peers.iter_mut().flatten() {
            peer.nudge();
        }
    }

    fn take_back(&mut self, other: usize) -> usize {
        let Some(peer) = self.peers[other].as_mut() else { return 0 };
        let mut count = 0;
        while let Ok(done) = peer.done_from.pop() {
            peer.lent -= 1;
            count += 1;
            let Some(entry) = self.rxs.get_mut(usize::from(done.rx)).and_then(Option::as_mut)
            else {
                continue;
            };
            entry.lent -= 1;
            entry.rx.release(done.claim, &mut self.pool);
            entry.rx.flush();
        }
        count
    }

    fn send_for(&mut self, tables: &Tables, other: usize) -> usize {
        let mut done: ArrayVec<Completion, TURN_PKTS> = ArrayVec::new();
        while !done.is_full() {
            let Some(peer) = self.peers[other].as_mut() else { return 0 };
            let Ok(mut packet) = peer.from.pop() else { break };
            done.push(packet.back);
            // The interface went while the packet was under way: its counters went with it.
            let Some(out) = tables.iface(packet.out) else { continue };
            let mut sender = Sender {
                txs: &mut self.txs,
                list: &mut self.list,
                dirty: &mut self.dirty,
                piece: &mut self.scratch.piece,
                coalescer: &mut self.scratch.coalescer,
                counters: &out.counters[self.id],
            };
            let (slot, meta) = (&mut packet.slot, &mut packet.meta);
            transmit(&mut sender, out, packet.queue, slot, meta, &packet.body);
        }
        let count = done.len();
        if count > 0 {
            // The bodies of handed-over packets are still held by their source: copy first.
            self.finish_burst(tables);
            if let Some(peer) = self.peers[other].as_mut() {
                for back in done {
                    let pushed = peer.done_to.push(back);
                    debug_assert!(pushed.is_ok(), "more lent than the completion ring holds");
                }
                peer.pushed = true;
                peer.nudge();
            }
        }
        count
    }
}
