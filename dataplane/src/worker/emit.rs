//! From a verdict to a sending queue: choose the queue, finish the frame, send or hand over.

use super::{State, TxEntry, tx_entry};
use crate::copy::{CopyList, Seg, complete_checksum};
use crate::path::{Checksum, Gso, Meta, Slot, TxDropReason, Verdict};
use crate::port::{BURST_PKTS, Health, Outgoing};
use crate::table::{Counters, Iface, IfaceId, Tables, TxOwner};

/// Space that is used within one burst.
#[derive(Debug)]
pub(super) struct Scratch {
    /// Packet `i` of the burst was handed over: its claim is not ours to release.
    pub(super) lent: [bool; BURST_PKTS],
    /// Head of one piece of a frame that is split.
    pub(super) piece: Slot,
}

impl Default for Scratch {
    fn default() -> Self {
        Self { lent: [false; BURST_PKTS], piece: Slot::default() }
    }
}

/// What sending needs of a worker, borrowed apart from its burst.
pub(super) struct Sender<'a> {
    pub(super) txs: &'a mut Vec<Vec<Option<TxEntry>>>,
    pub(super) list: &'a mut CopyList,
    pub(super) dirty: &'a mut Vec<(IfaceId, u16)>,
    pub(super) piece: &'a mut Slot,
    /// Of the interface that it leaves by, on this worker.
    pub(super) counters: &'a Counters,
}

impl State {
    /// Does what the verdict says with packet `at`, which came from queue `rx`. Returns the queue
    /// that it went to; `None` when it went nowhere.
    #[inline]
    pub(super) fn follow(
        &mut self,
        tables: &Tables,
        at: usize,
        verdict: Verdict,
        rx: usize,
    ) -> Option<(IfaceId, u16)> {
        self.scratch.lent[at] = false;
        let generated = match verdict {
            Verdict::Forward | Verdict::Bump => false,
            Verdict::Answer | Verdict::DropAnswer(_) => true,
            Verdict::Consume | Verdict::Drop(_) | Verdict::Refill => return None,
        };
        let meta = self.burst.meta(at);
        let out = tables.iface(meta.out)?;
        let counters = &out.counters[self.id];
        if generated { counters.generated.add(1) } else { counters.tx_forwarded.add(1) }

        let queues = out.workers.len();
        if queues == 0 {
            counters.tx_drops[TxDropReason::PortDown as usize].add(1);
            return Some((out.id, 0));
        }
        let queue = if queues == 1 { 0 } else { meta.flow_hash as usize % queues };
        match out.workers[queue] {
            TxOwner::Worker(owner) if usize::from(owner) != self.id => {
                self.hand_over(at, rx, out, queue as u16, usize::from(owner));
                return None;
            }
            TxOwner::Worker(_) | TxOwner::Every => {}
        }
        let (slot, meta, body) = self.burst.slot_mut(at);
        let mut sender = Sender {
            txs: &mut self.txs,
            list: &mut self.list,
            dirty: &mut self.dirty,
            piece: &mut self.scratch.piece,
            counters,
        };
        transmit(&mut sender, out, queue as u16, slot, meta, body);
        Some((out.id, queue as u16))
    }

    /// Runs the planned copies, then makes everything sent visible.
    #[inline]
    pub(super) fn finish_burst(&mut self) {
        self.list.run();
        for (iface, queue) in self.dirty.drain(..) {
            let Some(entry) = tx_entry(&mut self.txs, iface, queue) else { continue };
            entry.dirty = false;
            let health = entry.tx.flush(&mut self.notifier);
            if health != Health::Good && !entry.dead {
                entry.dead = true;
                self.handle.unwell(iface, health);
            }
        }
        self.nudge_peers();
    }
}

/// Sends one packet on a queue that this worker owns: whole where the port takes it so, else in
/// pieces and with its checksums complete.
#[inline]
pub(super) fn transmit(
    sender: &mut Sender<'_>,
    out: &Iface,
    queue: u16,
    slot: &mut Slot,
    meta: &mut Meta,
    body: &[Seg],
) {
    let split = meta.fragment_mtu != 0 || (meta.gso != Gso::None && !takes_whole(out, meta));
    if split {
        transmit_pieces(sender, out, queue, slot, meta, body);
        return;
    }
    let head = &mut slot.0[usize::from(meta.start)..usize::from(meta.end)];
    send(sender, out, queue, head, meta, body);
}

/// Whether the port takes this super-frame as it is. An encapsulated one is never described by a
/// virtio-net header.
#[inline]
fn takes_whole(out: &Iface, meta: &Meta) -> bool {
    out.offloads && meta.outer == 0
}

fn send(
    sender: &mut Sender<'_>,
    out: &Iface,
    queue: u16,
    head: &mut [u8],
    meta: &Meta,
    body: &[Seg],
) {
    let mut finished;
    let mut meta = meta;
    if meta.checksum == Checksum::Partial && !(out.offloads && meta.outer == 0) {
        let (start, offset) = (usize::from(meta.csum_start), usize::from(meta.csum_offset));
        if !complete_checksum(head, start, offset, body) {
            sender.counters.tx_drops[TxDropReason::SplitImpossible as usize].add(1);
            return;
        }
        finished = *meta;
        finished.checksum = Checksum::Verified;
        meta = &finished;
    }
    let Some(entry) = tx_entry(sender.txs, out.id, queue).filter(|entry| !entry.dead) else {
        sender.counters.tx_drops[TxDropReason::PortDown as usize].add(1);
        return;
    };
    match entry.tx.send(Outgoing { head, body, meta }, sender.list) {
        Ok(bytes) => {
            sender.counters.tx_pkts.add(1);
            sender.counters.tx_bytes.add(u64::from(bytes));
            if !std::mem::replace(&mut entry.dirty, true) {
                sender.dirty.push((out.id, queue));
            }
        }
        Err(reason) => sender.counters.tx_drops[reason as usize].add(1),
    }
}
