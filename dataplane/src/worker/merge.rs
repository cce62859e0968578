//! Segments on their way to taps, held until the end of the burst to be merged.

use super::emit::{Sender, send_now};
use crate::copy::{Seg, owned_seg, partial_sum};
use crate::path::coalesce::Merge;
use crate::path::{Checksum, HEAD_MAX_BYTES, HEADROOM_BYTES, Meta, Slot};
use crate::port::BURST_PKTS;
use crate::table::{Iface, IfaceId};
use wire::{Header, Ipv4, Ipv6};

/// Flows that are merged at a time.
const FLOWS: usize = 8;
/// Most body pieces of a super-frame.
const SEGS: usize = 250;

/// One super-frame in the making.
#[derive(Debug)]
struct Pending {
    out: IfaceId,
    queue: u16,
    slot: Slot,
    meta: Meta,
    merge: Merge,
    segs: Vec<Seg>,
    /// Payload bytes that lay in the private heads of appended segments.
    spill: Box<[u8]>,
    spilled: usize,
    used: bool,
}

/// See the module. Everything in it refers to the current burst only.
#[derive(Debug)]
pub(super) struct Coalescer {
    pending: Vec<Pending>,
    used: usize,
    /// Where the next flow goes when all places are taken.
    next: usize,
}

impl Default for Coalescer {
    fn default() -> Self {
        Self { pending: Vec::with_capacity(FLOWS), used: 0, next: 0 }
    }
}

impl Coalescer {
    /// Whether nothing is held.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.used == 0
    }
}

/// Offers a packet for a tap. `true`: it was taken in and leaves later (within this burst).
pub(super) fn offer(
    sender: &mut Sender<'_>,
    out: &Iface,
    queue: u16,
    head: &[u8],
    meta: &Meta,
    body: &[Seg],
) -> bool {
    let found = sender.coalescer.pending.iter().position(|p| {
        p.used
            && p.out == out.id
            && p.queue == queue
            && Merge::same_flow(head_of(p), &p.meta, head, meta)
    });
    let Some(merge) = Merge::begin(head, meta) else {
        // Not data: it must not overtake what its flow has waiting.
        if let Some(at) = found {
            flush_one(sender, out, at);
        }
        return false;
    };
    let good = checksum_is_right(head, meta, body);
    if let Some(at) = found {
        let pending = &mut sender.coalescer.pending[at];
        if good && append(pending, head, meta, body) {
            sender.counters.coalesced.add(1);
            if pending.merge.is_closed() {
                flush_one(sender, out, at);
            }
            return true;
        }
        flush_one(sender, out, at);
    }
    if !good || merge.is_closed() {
        return false;
    }
    hold(sender, out, queue, head, meta, body, merge)
}

/// Sends what is held at place `at`; `out` is its interface.
pub(super) fn flush_one(sender: &mut Sender<'_>, out: &Iface, at: usize) {
    let Some(pending) = sender.coalescer.pending.get_mut(at) else { return };
    if !std::mem::take(&mut pending.used) {
        return;
    }
    sender.coalescer.used -= 1;
    // Taken out while it is sent, put back for its buffers.
    let mut pending = sender.coalescer.pending.swap_remove(at);
    let mut meta = pending.meta;
    let head = &mut pending.slot.0[usize::from(meta.start)..usize::from(meta.end)];
    if pending.merge.segments() > 1 {
        // The lengths were checked when the segments were appended.
        let _ = pending.merge.finish(head, &mut meta);
    }
    send_now(sender, out, pending.queue, head, &meta, &pending.segs);
    sender.coalescer.pending.push(pending);
}

/// The next packet that is held: its place and its interface.
pub(super) fn first_held(coalescer: &Coalescer) -> Option<(usize, IfaceId)> {
    let at = coalescer.pending.iter().position(|p| p.used)?;
    Some((at, coalescer.pending[at].out))
}

fn head_of(pending: &Pending) -> &[u8] {
    &pending.slot.0[usize::from(pending.meta.start)..usize::from(pending.meta.end)]
}

fn append(pending: &mut Pending, head: &[u8], meta: &Meta, body: &[Seg]) -> bool {
    let header_bytes = pending.merge.header_bytes();
    let payload = head.get(header_bytes..).unwrap_or(&[]);
    let room = pending.spill.len() - pending.spilled;
    if pending.segs.len() + body.len() + 1 > SEGS || payload.len() > room {
        return false;
    }
    let first = &pending.slot.0[usize::from(pending.meta.start)..usize::from(pending.meta.end)];
    if !pending.merge.append(first, head, meta) {
        return false;
    }
    if !payload.is_empty() {
        let at = pending.spilled;
        pending.spill[at..at + payload.len()].copy_from_slice(payload);
        pending.spilled += payload.len();
        pending.segs.push(owned_seg(&pending.spill, at, payload.len()));
    }
    pending.segs.extend_from_slice(body);
    true
}

/// Takes a first segment in. `false`: no place is free, send it at once.
fn hold(
    sender: &mut Sender<'_>,
    out: &Iface,
    queue: u16,
    head: &[u8],
    meta: &Meta,
    body: &[Seg],
    merge: Merge,
) -> bool {
    let at = match sender.coalescer.pending.iter().position(|p| !p.used) {
        Some(free) => free,
        None if sender.coalescer.pending.len() < FLOWS => {
            sender.coalescer.pending.push(Pending {
                out: out.id,
                queue,
                slot: Slot::default(),
                meta: *meta,
                merge,
                segs: Vec::with_capacity(SEGS),
                spill: vec![0; BURST_PKTS * HEAD_MAX_BYTES].into_boxed_slice(),
                spilled: 0,
                used: false,
            });
            sender.coalescer.pending.len() - 1
        }
        None => {
            // All places are taken: the one whose turn it is leaves, if it goes the same way.
            sender.coalescer.next = (sender.coalescer.next + 1) % FLOWS;
            let at = sender.coalescer.next;
            if sender.coalescer.pending[at].out != out.id {
                return false;
            }
            flush_one(sender, out, at);
            sender.coalescer.pending.iter().position(|p| !p.used).unwrap_or(at)
        }
    };
    let pending = &mut sender.coalescer.pending[at];
    pending.out = out.id;
    pending.queue = queue;
    pending.meta = *meta;
    pending.meta.start = HEADROOM_BYTES as u16;
    pending.meta.end = (HEADROOM_BYTES + head.len()) as u16;
    pending.slot.0[HEADROOM_BYTES..HEADROOM_BYTES + head.len()].copy_from_slice(head);
    pending.merge = merge;
    pending.segs.clear();
    pending.segs.extend_from_slice(body);
    pending.spilled = 0;
    pending.used = true;
    sender.coalescer.used += 1;
    true
}

/// Whether the segment's checksum is right, or will be made so.
fn checksum_is_right(head: &[u8], meta: &Meta, body: &[Seg]) -> bool {
    if meta.checksum != Checksum::Unknown {
        return true;
    }
    let (l3, l4) = (usize::from(meta.l3), usize::from(meta.l4));
    let Some(covered) = head.get(l4..) else { return false };
    let l4_bytes = covered.len() + meta.body_bytes as usize;
    let pseudo = match meta.ip_version {
        4 => Ipv4::at(head, l3).map(|ip| ip.pseudo(l4_bytes)),
        _ => Ipv6::at(head, l3).map(|ip| ip.pseudo(meta.protocol, l4_bytes)),
    };
    pseudo.is_some_and(|pseudo| partial_sum(covered, body).plus(pseudo).fold() == 0xffff)
}
