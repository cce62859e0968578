//! From a verdict to a sending queue: choose the queue, finish the frame, send or hand over.

use super::merge::{self, Coalescer};
use super::{State, TurnStage, TxEntry, tx_entry};
use crate::copy::{CopyList, Seg, complete_checksum};
use crate::path::split::Split;
use crate::path::{Checksum, Gso, Meta, Slot, TxDropReason, Verdict};
use crate::port::{BURST_PKTS, Health, Outgoing};

use crate::table::{Counters, Iface, IfaceId, Tables, TxOwner};
use wire::{Header, Tcp};

/// The data offset has four bits, counting words (RFC 9293 §3.1).
const TCP_HEADER_MAX_BYTES: usize = 60;

const _: () = assert!(BURST_PKTS <= 64, "one bit for each packet");

/// Space that is used within one burst.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// Bit `i`: packet `i` of the burst was handed over, so its claim is not ours to release.
    pub(super) lent: u64,
    /// Bit `i`: packet `i` was forwarded as a usual one, and leaves as it is.
    pub(super) usual: u64,
    /// Head of one piece of a frame that is split.
    pub(super) piece: Slot,
    /// Segments that wait to be merged.
    pub(super) coalescer: Coalescer,
}

/// What sending needs of a worker, borrowed apart from its burst.
pub(super) struct Sender<'a> {
    pub(super) txs: &'a mut Vec<Vec<Option<TxEntry>>>,
    pub(super) list: &'a mut CopyList,
    pub(super) dirty: &'a mut Vec<(IfaceId, u16)>,
    pub(super) piece: &'a mut Slot,
    pub(super) coalescer: &'a mut Coalescer,
    /// Of the interface that it leaves by, on this worker.
    pub(super) counters: &'a Counters,
}

impl State {
    /// Does what the verdict says with packet `at`, which came from queue `rx`. Returns the queue
    /// that it was given to, on this worker or another; `None` when it went nowhere.
    #[inline]
    pub(super) fn follow(
        &mut self,
        tables: &Tables,
        at: usize,
        verdict: Verdict,
        rx: usize,
    ) -> Option<(IfaceId, u16)> {
        let generated = match verdict {
            Verdict::Forward | Verdict::Bump => false,
            Verdict::Answer | Verdict::DropAnswer(_) => true,
            Verdict::Consume | Verdict::Drop(_) | Verdict::Refill | Verdict::Sum => return None,
        };
        self.burst.settle(at);
        let out = tables.iface(self.burst.meta(at).out)?;
        if out.offloads {
            self.complete_tcp_header(at);
        }
        let meta = self.burst.meta(at);
        let counters = &out.counters[self.id];
        if generated {
            counters.generated.add(1);
        } else {
            counters.tx_forwarded.add(1);
        }

        let queues = out.workers.len();
        if queues == 0 {
            counters.tx_drops[TxDropReason::PortDown as usize].add(1);
            return Some((out.id, 0));
        }
        let queue = if queues == 1 { 0 } else { meta.flow_hash as usize % queues };
        match out.workers[queue] {
            TxOwner::Worker(owner) if usize::from(owner) != self.id => {
                self.hand_over(at, rx, out, queue as u16, usize::from(owner));
                return Some((out.id, queue as u16));
            }
            TxOwner::Worker(_) | TxOwner::Every => {}
        }
        let (slot, meta, body) = self.burst.slot_mut(at);
        let mut sender = Sender {
            txs: &mut self.txs,
            list: &mut self.list,
            dirty: &mut self.dirty,
            piece: &mut self.scratch.piece,
            coalescer: &mut self.scratch.coalescer,
            counters,
        };
        transmit(&mut sender, out, queue as u16, slot, meta, body);
        Some((out.id, queue as u16))
    }

    /// The head of a segment that came out of a tunnel may end within its TCP options; merging
    /// compares them.
    #[inline]
    fn complete_tcp_header(&mut self, at: usize) {
        let packet = self.burst.packet(at);
        let l4 = usize::from(packet.meta.l4);
        if packet.meta.protocol != wire::protocol::TCP || l4 == 0 || packet.meta.body_bytes == 0 {
            return;
        }
        let need = match Tcp::at(packet.head(), l4) {
            Some(tcp) => l4 + tcp.header_bytes(),
            None => l4 + TCP_HEADER_MAX_BYTES,
        };
        if packet.head().len() < need {
            self.burst.lengthen(at, need);
        }
    }

    /// Runs the planned copies, then makes everything sent visible.
    #[inline]
    pub(super) fn finish_burst(&mut self, tables: &Tables) {
        if !self.scratch.coalescer.is_empty() {
            self.flush_merged(tables);
        }
        self.list.run();
        self.clock.lap(TurnStage::Copy);
        let Self { dirty, txs, notifier, handle, now_ns, .. } = self;
        dirty.retain(|&(iface, queue)| {
            let Some(entry) = tx_entry(txs, iface, queue) else { return false };
            let health = entry.tx.flush(notifier, *now_ns);
            if health != Health::Good && !entry.dead {
                entry.dead = true;
                handle.unwell(iface, health);
            }
            // What a full device ring did not take is offered again in the next turn.
            entry.dirty = !entry.dead && entry.tx.backlog();
            entry.dirty
        });
        self.nudge_peers();
        self.clock.lap(TurnStage::Publish);
    }

    fn flush_merged(&mut self, tables: &Tables) {
        while let Some((at, iface)) = merge::first_held(&self.scratch.coalescer) {
            // It was found in the same snapshot when the packet was taken in.
            let Some(out) = tables.iface(iface) else { return };
            let mut sender = Sender {
                txs: &mut self.txs,
                list: &mut self.list,
                dirty: &mut self.dirty,
                piece: &mut self.scratch.piece,
                coalescer: &mut self.scratch.coalescer,
                counters: &out.counters[self.id],
            };
            merge::flush_one(&mut sender, out, at);
        }
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
    // An encapsulated super-frame is never described by a virtio-net header.
    let whole = meta.gso == Gso::None || (out.offloads && meta.outer == 0);
    if meta.fragment_mtu != 0 || !whole {
        transmit_pieces(sender, out, queue, slot, meta, body);
        return;
    }
    let head = &mut slot.0[usize::from(meta.start)..usize::from(meta.end)];
    let merges = out.offloads && meta.protocol == wire::protocol::TCP && meta.gso == Gso::None;
    if merges && merge::offer(sender, out, queue, head, meta, body) {
        return;
    }
    send_now(sender, out, queue, head, meta, body);
}

/// Cuts the frame and sends the pieces.
fn transmit_pieces(
    sender: &mut Sender<'_>,
    out: &Iface,
    queue: u16,
    slot: &mut Slot,
    meta: &mut Meta,
    body: &[Seg],
) {
    let head = &mut slot.0[usize::from(meta.start)..usize::from(meta.end)];
    let impossible = TxDropReason::SplitImpossible as usize;
    // A fragment's checksum covers the whole datagram: it is completed before the cut.
    if meta.gso == Gso::None && meta.checksum == Checksum::Partial {
        let (start, offset) = (usize::from(meta.csum_start), usize::from(meta.csum_offset));
        if !complete_checksum(head, start, offset, body) {
            sender.counters.tx_drops[impossible].add(1);
            return;
        }
        meta.checksum = Checksum::Verified;
    }
    let Some(split) = Split::plan(head, meta) else {
        sender.counters.tx_drops[impossible].add(1);
        return;
    };
    sender.counters.split_extra.add(u64::from(split.count() - 1));
    let mut cursor = Cursor::default();
    let mut piece = std::mem::take(sender.piece);
    for index in 0..split.count() {
        let Some((facts, part)) = split.piece(index, head, meta, &mut piece) else {
            sender.counters.tx_drops[impossible].add(1);
            continue;
        };
        let mut parts = [Seg::EMPTY; PIECE_SEGS];
        let Some(count) = cursor.cut(body, part.skip_bytes, part.len_bytes, &mut parts) else {
            sender.counters.tx_drops[impossible].add(1);
            continue;
        };
        let head = &mut piece.0[usize::from(facts.start)..usize::from(facts.end)];
        send_now(sender, out, queue, head, &facts, &parts[..count]);
    }
    *sender.piece = piece;
}

/// Segments that one piece of a split frame may touch.
const PIECE_SEGS: usize = 20;

/// Walks a body once, piece by piece.
#[derive(Debug, Default)]
struct Cursor {
    seg: usize,
    /// Body bytes before `seg`.
    before: usize,
}

impl Cursor {
    /// The part of `body` from `skip` on, `len` bytes long. Pieces are asked for in order.
    fn cut(
        &mut self,
        body: &[Seg],
        skip: usize,
        len: usize,
        to: &mut [Seg; PIECE_SEGS],
    ) -> Option<usize> {
        let (mut left, mut at, mut count) = (len, skip, 0);
        while left > 0 {
            let seg = body.get(self.seg)?;
            if at >= self.before + seg.len() {
                self.before += seg.len();
                self.seg += 1;
                continue;
            }
            let part = seg.part(at - self.before, left);
            *to.get_mut(count)? = part;
            count += 1;
            at += part.len();
            left -= part.len();
        }
        Some(count)
    }
}

/// Sends a frame that is whole: completes its checksums unless the port does, and reserves room.
pub(super) fn send_now(
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
    match entry.tx.send(&Outgoing { head, body, meta }, sender.list) {
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
