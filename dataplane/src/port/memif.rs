//! Memif rings. The `memif` crate checks everything that the peer writes; here its frames become
//! packets of a burst, and packets become frames.

use std::ops::Range;
use std::os::fd::BorrowedFd;

use memif::{Notifier, Reserved, RxQueue, TxQueue, TxSegs, Violation};

use super::{Burst, Health, Outgoing};
use crate::copy::{self, CopyList, SegMut};
use crate::path::{Meta, TxDropReason};
use crate::table::IfaceId;

/// Set on a claim that was released while an older one is still held.
const DONE: u16 = 1 << 15;

/// So many slots ahead the first line of a buffer is fetched to be written: the receiver has read
/// it, and taking it back from its core while we write would cost more than asking in time.
const AHEAD_SLOTS: u16 = 4;

/// A ring that the peer fills.
#[derive(Debug)]
pub struct MemifRx {
    queue: RxQueue,
    /// Slots of each claimed frame, by claim number modulo the ring's size; [`DONE`] marks those
    /// that wait for an older one. A frame takes at least one slot, so they never overlap.
    claims: Box<[u16]>,
    /// The oldest claim that is held.
    oldest: u32,
    /// The next claim.
    next: u32,
    /// Slots to give back to the peer at the next flush.
    to_release: u16,
    violation: Option<Violation>,
}

/// A ring that the peer empties.
#[derive(Debug)]
pub struct MemifTx {
    queue: TxQueue,
    segs: TxSegs,
    violation: Option<Violation>,
}

impl MemifRx {
    /// Receives from this ring.
    pub fn new(queue: RxQueue) -> Self {
        let slots = queue.slots() as usize;
        Self {
            queue,
            claims: vec![0; slots.next_power_of_two()].into_boxed_slice(),
            oldest: 0,
            next: 0,
            to_release: 0,
            violation: None,
        }
    }

    /// The eventfd that the peer signals while the ring is armed.
    pub fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.queue.eventfd())
    }

    /// Claims up to `max_pkts` frames.
    #[inline]
    pub fn poll(&mut self, iface: IfaceId, burst: &mut Burst, max_pkts: usize) -> Health {
        if self.queue.poisoned() {
            let cause = self.queue.cause().unwrap_or(Violation::Sigbus);
            return self.spoilt(cause);
        }
        let max_pkts = max_pkts.min(burst.room());
        let mut claimed = burst.take_memif();
        claimed.clear();
        let result = self.queue.claim(max_pkts, &mut claimed);
        let first = self.next;
        self.next = first.wrapping_add(claimed.len() as u32);
        let mask = self.claims.len() - 1;
        if let Some(frames) = claimed.singles() {
            let at = first as usize & mask;
            let (wrapped, straight) = self.claims.split_at_mut(at);
            let straight_len = frames.len().min(straight.len());
            straight[..straight_len].fill(1);
            wrapped[..frames.len() - straight_len].fill(1);
            burst.push_singles(iface, first, frames, || self.queue.poisoned());
        } else {
            for (frame, i) in claimed.frames().iter().zip(0u32..) {
                let claim = first.wrapping_add(i);
                self.claims[claim as usize & mask] = frame.n_slots;
                push(burst, iface, claim, claimed.segs_of(frame));
            }
        }
        burst.put_memif(claimed);
        if self.queue.poisoned() {
            // Its frames hold zeros, or will: the next poll says why.
            burst.clear();
        }
        match result {
            Ok(_) => Health::Good,
            Err(violation) => self.spoilt(violation),
        }
    }

    /// Gives a claim back; older ones may still be held.
    #[inline]
    pub fn release(&mut self, claim: u32) {
        let mask = self.claims.len() - 1;
        if claim != self.oldest {
            self.claims[claim as usize & mask] |= DONE;
            return;
        }
        self.to_release = self.to_release.wrapping_add(self.claims[claim as usize & mask]);
        self.oldest = claim.wrapping_add(1);
        while self.oldest != self.next {
            let slots = self.claims[self.oldest as usize & mask];
            if slots & DONE == 0 {
                break;
            }
            self.to_release = self.to_release.wrapping_add(slots & !DONE);
            self.oldest = self.oldest.wrapping_add(1);
        }
    }

    /// Gives every claim back.
    #[inline]
    pub fn release_all(&mut self) {
        self.oldest = self.next;
        self.to_release = self.queue.held();
    }

    /// Lets the peer use released slots again.
    #[inline]
    pub fn flush(&mut self) {
        let slots = std::mem::take(&mut self.to_release);
        if slots != 0 {
            self.queue.release(slots);
        }
    }

    /// Asks the peer for wake-ups; whether something is there already.
    pub fn arm(&mut self) -> bool {
        // A violation shows again at the next poll.
        self.queue.set_polling(false).unwrap_or(true)
    }

    /// Tells the peer that we poll.
    pub fn disarm(&mut self) {
        let _ = self.queue.set_polling(true);
    }

    /// Gives up on a peer that leaves a frame unfinished; call every 100 ms or so.
    pub fn check_stall(&mut self, now: std::time::Instant) -> Health {
        match self.queue.check_stall(now) {
            Ok(()) => Health::Good,
            Err(violation) => self.spoilt(violation),
        }
    }

    /// What the peer did, for the event.
    pub fn violation(&self) -> Option<Violation> {
        self.violation
    }

    #[cold]
    fn spoilt(&mut self, violation: Violation) -> Health {
        self.violation = Some(violation);
        Health::Violation(violation_word(violation))
    }
}

impl MemifTx {
    /// Sends on this ring.
    pub fn new(queue: TxQueue) -> Self {
        Self { queue, segs: TxSegs::new(), violation: None }
    }

    /// Reserves room, writes the head and plans the body.
    #[inline]
    pub fn send(&mut self, out: &Outgoing<'_>, list: &mut CopyList) -> Result<u32, TxDropReason> {
        let bytes = out.head.len() as u32 + out.meta.body_bytes;
        self.queue.prefetch(AHEAD_SLOTS);
        match self.queue.reserve(bytes, &mut self.segs) {
            Ok(Reserved::Slots(_)) => {}
            Ok(Reserved::Full) => return Err(TxDropReason::RingFull),
            Ok(Reserved::BadLength) => return Err(TxDropReason::FrameTooBig),
            Err(violation) => {
                self.violation = Some(violation);
                return Err(TxDropReason::PeerViolation);
            }
        }
        if let [one] = self.segs.as_slice() {
            let mut to = copy::peer_seg_mut(one).write(out.head);
            for part in out.body {
                to = list.plan(*part, to).1;
            }
        } else {
            self.scatter(out, list);
        }
        Ok(bytes)
    }

    /// Sends packets of a burst, as [`MemifTx::send`] one by one, up to the first that is not done
    /// with one slot. Returns how many, and their bytes.
    #[inline]
    pub fn send_run(
        &mut self,
        burst: &mut Burst,
        run: Range<usize>,
        list: &mut CopyList,
    ) -> (usize, u64) {
        let lengths = burst.metas(run.clone()).iter().map(Meta::frame_bytes);
        // A violation comes again, and is told, when the first packet is sent alone.
        let count = self.queue.reserve_run(lengths, &mut self.segs).unwrap_or(0);
        let places = &self.segs.as_slice()[..count];
        (count, burst.write_run(run, places, list, || self.queue.poisoned()))
    }

    /// A frame over several slots.
    fn scatter(&mut self, out: &Outgoing<'_>, list: &mut CopyList) {
        let mut slots = self.segs.as_slice().iter().map(copy::peer_seg_mut);
        let mut to = slots.next().unwrap_or(SegMut::EMPTY);
        let mut head = &out.head[..];
        while !head.is_empty() {
            let n = head.len().min(to.len());
            to = to.write(&head[..n]);
            head = &head[n..];
            if to.is_empty() {
                let Some(next) = slots.next() else { return };
                to = next;
            }
        }
        for part in out.body {
            let mut part = *part;
            while !part.is_empty() {
                if to.is_empty() {
                    let Some(next) = slots.next() else { return };
                    to = next;
                }
                (part, to) = list.plan(part, to);
            }
        }
    }

    /// Publishes, and wakes the peer if it asked for that.
    #[inline]
    pub fn flush(&mut self, notifier: &mut Notifier, now_ns: u64) -> Health {
        if let Some(violation) = self.violation {
            return Health::Violation(violation_word(violation));
        }
        if self.queue.poisoned() {
            let cause = self.queue.cause().unwrap_or(Violation::Sigbus);
            return Health::Violation(violation_word(cause));
        }
        // Refused: the peer's descriptor is no eventfd any more. It polls or loses.
        let _ = self.queue.flush_spinning(notifier, now_ns);
        Health::Good
    }

    /// Whether it must be flushed again when it gets nothing more to send: the peer may have gone to
    /// sleep just before the last publication.
    #[inline]
    pub fn backlog(&self) -> bool {
        self.queue.unasked()
    }

    /// Slots that are free now, as far as they are `wanted`.
    #[inline]
    pub fn free(&mut self, wanted: usize) -> usize {
        self.queue.free_at_least(wanted as u16).map_or(0, usize::from)
    }
}

/// Takes a frame of no piece (it is oversize) to many into the burst.
fn push(burst: &mut Burst, iface: IfaceId, claim: u32, frame: &[memif::Seg]) {
    match frame {
        [one] => burst.push(iface, claim, copy::peer_seg(one)),
        [] => burst.push(iface, claim, copy::Seg::EMPTY),
        many => {
            let mut pieces = [copy::Seg::EMPTY; memif::MAX_RX_SEGS];
            for (piece, seg) in pieces.iter_mut().zip(many) {
                *piece = copy::peer_seg(seg);
            }
            burst.push_pieces(iface, claim, &pieces[..many.len()])
        }
    };
}

/// Whether a peer that did this has cost the worker time, which a new connection would grant anew.
pub fn costs_time(word: &str) -> bool {
    [Violation::Sigbus, Violation::SlowSignals].map(violation_word).contains(&word)
}

/// A short name of what a peer did, for counters and events.
pub fn violation_word(violation: Violation) -> &'static str {
    match violation {
        Violation::Index { .. } => "ring_index",
        Violation::Region { .. } => "region_unknown",
        Violation::Bounds { .. } => "descriptor_bounds",
        Violation::Length { .. } => "descriptor_length",
        Violation::Overrun { .. } => "descriptor_overrun",
        Violation::EndlessChain { .. } => "endless_chain",
        Violation::Sigbus => "memory_vanished",
        Violation::SlowSignals => "slow_signals",
    }
}
