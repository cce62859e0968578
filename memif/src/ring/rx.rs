//! Receiving: claim frames, copy what is needed, release their slots in order.
//!
//! Cursors: `released` is our published index, `cursor` the next slot to claim; slots between them
//! are held by the caller. Both are private. The peer's index is believed only where it lies
//! between `cursor` and `released + ring size`; anything else ends the connection.

use super::burst::{MAX_RX_SEGS, RxBurst, RxFrame, Seg};
use super::own::{OwnBuffers, Slot};
use super::{LINE_BYTES, LINE_SLOTS, Ring, Role, Snapshot, prefetch_read};
use crate::error::Violation;
use crate::region::{MAX_REGIONS, Regions, View};
use crate::wire::DESC_FLAG_NEXT;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a chain may stay unfinished: an honest peer publishes whole chains only.
const CHAIN_PATIENCE: Duration = Duration::from_secs(1);
/// Descriptors to fetch ahead: two cache lines.
const PREFETCH_SLOTS: u16 = 8;

/// One receive ring, owned by one thread at a time.
#[derive(Debug)]
pub struct RxQueue {
    pub(super) ring: Ring,
    pub(super) role: Role,
    pub(super) cursor: u16,
    pub(super) released: u16,
    /// Slots that the peer can have filled: all, but those that a client has not posted yet.
    pub(super) posted: u32,
    max_frame_bytes: u32,
    pub(super) views: [View; MAX_REGIONS],
    pub(super) own: OwnBuffers,
    pub(super) regions: Arc<Regions>,
    /// A chain seen unfinished: its first slot, and since when.
    unfinished: Option<(u16, Option<Instant>)>,
    scratch: Option<Box<RxBurst>>,
}

// SAFETY: views and own buffers are addresses in regions that this queue keeps mapped; nothing in
// here is tied to a thread.
unsafe impl Send for RxQueue {}

enum Next {
    Frame,
    Unfinished,
    BurstFull,
}

impl RxQueue {
    pub(crate) fn new(
        ring: Ring,
        role: Role,
        own: OwnBuffers,
        regions: &Arc<Regions>,
        max_frame_bytes: u32,
    ) -> Self {
        let views = regions.views();
        let posted = if role == Role::Server { ring.slots() } else { 0 };
        Self {
            ring,
            role,
            cursor: 0,
            released: 0,
            posted,
            max_frame_bytes,
            views,
            own,
            regions: Arc::clone(regions),
            unfinished: None,
            scratch: None,
        }
    }

    /// Client: hands every buffer to the server. Only after CONNECTED, since servers zero both
    /// indexes at CONNECT.
    pub(crate) fn post_all(&mut self) {
        self.post(self.ring.slots() as u16, 0);
    }

    /// Client: hands up to `slots` buffers to the server, those that it never had first, then the
    /// oldest released by this. Each gets `headroom` free bytes in front.
    pub(crate) fn post(&mut self, slots: u16, headroom: u32) {
        let fresh = (self.ring.slots() - self.posted).min(u32::from(slots)) as u16;
        let again = (slots - fresh).min(self.held());
        let head = self.released.wrapping_add(self.posted as u16);
        for i in 0..fresh + again {
            let slot = head.wrapping_add(i);
            let buffer = Slot { headroom, ..self.own.slot(slot) };
            self.own.set(slot, buffer);
            self.ring.write(slot, self.own.empty(buffer));
        }
        self.posted += u32::from(fresh);
        self.released = self.released.wrapping_add(again);
        self.ring.store_head(self.released.wrapping_add(self.posted as u16));
    }

    /// Slots in the ring.
    #[inline]
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.ring.slots()
    }

    /// Slots claimed and not yet released.
    #[inline]
    #[must_use]
    pub fn held(&self) -> u16 {
        self.cursor.wrapping_sub(self.released)
    }

    /// Slots that the peer has filled and that are not claimed: one acquire load.
    ///
    /// # Errors
    /// The peer's index is impossible.
    #[inline]
    pub fn available(&self) -> Result<u16, Violation> {
        let peer = match self.role {
            Role::Server => self.ring.load_head(),
            Role::Client => self.ring.load_tail(),
        };
        let (ahead, held) = (peer.wrapping_sub(self.released), self.held());
        if u32::from(ahead) > self.posted || ahead < held {
            return Err(self.index_violation(peer));
        }
        Ok(ahead - held)
    }

    #[cold]
    fn index_violation(&self, peer: u16) -> Violation {
        self.blame(Violation::Index {
            peer,
            ours: self.released,
            held: self.held(),
            ring_slots: self.ring.slots(),
        })
    }

    #[cold]
    pub(super) fn blame(&self, violation: Violation) -> Violation {
        self.regions.health.poison_violation(violation);
        violation
    }

    /// Appends up to `max_frames` frames to `out` and returns how many. Their slots belong to the
    /// caller until [`release`](Self::release) gives them back, oldest first.
    ///
    /// # Errors
    /// The peer broke the rules: drop the connection. `out` is as it was before.
    #[inline]
    pub fn claim(&mut self, max_frames: usize, out: &mut RxBurst) -> Result<usize, Violation> {
        let available = self.available()?;
        if available == 0 {
            return Ok(0);
        }
        let mark = out.mark();
        let claimed = match self.role {
            Role::Server => self.claim_slots::<true>(available, max_frames, out),
            Role::Client => self.claim_slots::<false>(available, max_frames, out),
        };
        claimed.map_err(|violation| {
            out.reset(mark);
            self.blame(violation)
        })
    }

    #[inline]
    fn claim_slots<const SERVER: bool>(
        &mut self,
        available: u16,
        max_frames: usize,
        out: &mut RxBurst,
    ) -> Result<usize, Violation> {
        let (mut slot, mut claimed) = (self.cursor, 0);
        let end = slot.wrapping_add(available);
        loop {
            let most = max_frames - claimed;
            let (singles, other) = self.claim_singles::<SERVER>(slot, end, most, out)?;
            slot = slot.wrapping_add(singles as u16);
            claimed += singles;
            let Some(first) = other else { break };
            match self.claim_chain::<SERVER>(&mut slot, end, first, out)? {
                Next::Frame => claimed += 1,
                Next::Unfinished | Next::BurstFull => break,
            }
        }
        self.cursor = slot;
        Ok(claimed)
    }

    /// Claims frames of one slot each, which is what most are. Returns how many, and the descriptor
    /// that ended it if that is of another kind. A function of its own, so that what the loop needs
    /// stays in registers.
    #[inline(never)]
    fn claim_singles<const SERVER: bool>(
        &self,
        start: u16,
        end: u16,
        max_frames: usize,
        out: &mut RxBurst,
    ) -> Result<(usize, Option<Snapshot>), Violation> {
        let available = end.wrapping_sub(start);
        // Never beyond what the peer has filled: it is about to write there, and would have to take
        // the line back.
        let fetched = available.saturating_sub(PREFETCH_SLOTS);
        let mut other = None;
        let singles = out.fill_singles(max_frames.min(usize::from(available)), |ahead| {
            let slot = start.wrapping_add(ahead);
            if slot.is_multiple_of(LINE_SLOTS) && ahead < fetched {
                let later = slot.wrapping_add(PREFETCH_SLOTS);
                // A client posts the buffer again, which writes the line that it reads now.
                if SERVER {
                    self.ring.prefetch(later);
                } else {
                    self.ring.prefetch_to_write(later);
                }
            }
            let d = self.ring.snapshot(slot);
            if d.flags & DESC_FLAG_NEXT != 0 || d.length.wrapping_sub(1) >= self.max_frame_bytes {
                other = Some(d);
                return Ok(None);
            }
            let seg = self.resolve::<SERVER>(slot, d)?;
            seg.prefetch(0);
            if seg.len() > LINE_BYTES {
                seg.prefetch(LINE_BYTES);
            }
            Ok(Some(seg))
        })?;
        Ok((singles, other))
    }

    /// Checks a snapshot and turns it into an address.
    #[inline]
    pub(super) fn resolve<const SERVER: bool>(
        &self,
        slot: u16,
        d: Snapshot,
    ) -> Result<Seg, Violation> {
        if SERVER {
            let Some(view) = self.views.get(usize::from(d.region)) else {
                return Err(Violation::Region { slot, region: d.region });
            };
            if d.length == 0 || u64::from(d.offset) + u64::from(d.length) > view.size {
                return Err(bad_descriptor(slot, d, view.size));
            }
            let pointer = view.base.wrapping_add(d.offset as usize);
            return Ok(Seg { pointer, len_bytes: d.length });
        }
        // The buffers are ours: where they lie is known, only the length is the server's to say.
        let own = self.own.slot(slot);
        let capacity_bytes = self.own.stride() - own.headroom;
        if d.length.wrapping_sub(1) >= capacity_bytes {
            return Err(match d.length {
                0 => Violation::Length { slot, len_bytes: 0, min_bytes: 1 },
                len_bytes => Violation::Overrun { slot, len_bytes, capacity_bytes },
            });
        }
        Ok(Seg { pointer: self.own.pointer(own), len_bytes: d.length })
    }

    /// A frame of several descriptors, or one that is too long. Moves `slot` behind it.
    #[inline(never)]
    fn claim_chain<const SERVER: bool>(
        &mut self,
        slot: &mut u16,
        end: u16,
        first: Snapshot,
        out: &mut RxBurst,
    ) -> Result<Next, Violation> {
        let (start, mark) = (*slot, out.mark());
        let (mut at, mut d) = (start, first);
        let (mut total, mut fits) = (0u64, true);
        loop {
            let seg = self.resolve::<SERVER>(at, d)?;
            let n_slots = at.wrapping_sub(start) + 1;
            total += u64::from(d.length);
            fits &= usize::from(n_slots) <= MAX_RX_SEGS && total <= u64::from(self.max_frame_bytes);
            if fits && out.seg_room() == 0 {
                out.reset(mark);
                return Ok(Next::BurstFull);
            }
            if fits {
                prefetch_read(seg.pointer);
                out.push_seg(seg);
            }
            at = at.wrapping_add(1);
            if d.flags & DESC_FLAG_NEXT == 0 {
                break;
            }
            if at == end {
                out.reset(mark);
                return self.unfinished_chain(start, n_slots).map(|()| Next::Unfinished);
            }
            d = self.ring.snapshot(at);
        }
        if !fits {
            out.reset(mark);
        }
        let n_slots = at.wrapping_sub(start);
        out.push_frame(RxFrame {
            first_seg: mark.1 as u16,
            n_segs: if fits { n_slots } else { 0 },
            len_bytes: u32::try_from(total).unwrap_or(u32::MAX),
            n_slots,
        });
        self.unfinished = None;
        *slot = at;
        Ok(Next::Frame)
    }

    /// The peer's index stands inside a chain: wait for the rest, but not for ever, nor when it is too
    /// long already (looking through it again at every poll would cost the worker dearly).
    fn unfinished_chain(&mut self, start: u16, n_slots: u16) -> Result<(), Violation> {
        if usize::from(n_slots) > MAX_RX_SEGS || u32::from(n_slots) == self.ring.slots() {
            return Err(Violation::EndlessChain { slot: start, slots: n_slots });
        }
        if self.unfinished.is_none_or(|(slot, _)| slot != start) {
            self.unfinished = Some((start, None));
        }
        Ok(())
    }

    /// Housekeeping, to be called every now and then (100 ms): gives up on a peer that leaves a chain
    /// unfinished.
    ///
    /// # Errors
    /// The same chain is unfinished for a second.
    pub fn check_stall(&mut self, now: Instant) -> Result<(), Violation> {
        let Some((slot, since)) = self.unfinished else { return Ok(()) };
        let since = since.unwrap_or(now);
        self.unfinished = Some((slot, Some(since)));
        if self.cursor != slot {
            self.unfinished = None;
        } else if now.duration_since(since) >= CHAIN_PATIENCE {
            let slots = self.available()?;
            return Err(self.blame(Violation::EndlessChain { slot, slots }));
        }
        Ok(())
    }

    /// Gives the oldest `slots` claimed slots back to the peer: one release store. More than are
    /// held is cut to what is held.
    #[inline]
    pub fn release(&mut self, slots: u16) {
        debug_assert!(slots <= self.held(), "{slots} slots released, {} held", self.held());
        let slots = slots.min(self.held());
        if slots == 0 {
            return;
        }
        match self.role {
            Role::Server => {
                self.released = self.released.wrapping_add(slots);
                self.ring.store_tail(self.released);
            }
            Role::Client => self.post(slots, 0),
        }
    }

    /// Returns the frames from index `keep` on, the last ones claimed from this queue, as if they had
    /// never been claimed.
    pub fn unclaim(&mut self, burst: &mut RxBurst, keep: usize) {
        let slots = burst.truncate(keep);
        self.cursor = self.cursor.wrapping_sub(slots.min(self.held()));
    }

    /// Copies one frame of a burst into private memory and returns its length; `None` when `buffer`
    /// is too short or the frame is not one of this connection.
    #[inline]
    #[must_use]
    pub fn copy_to(&self, burst: &RxBurst, frame: &RxFrame, buffer: &mut [u8]) -> Option<usize> {
        let mut at = 0;
        for seg in burst.segs_of(frame) {
            let room = buffer.get_mut(at..at + seg.len())?;
            if !self.regions.contains(seg.pointer, seg.len()) {
                return None;
            }
            // SAFETY: the source lies in a region that this queue keeps mapped, the destination is
            // a slice of the same length that is not in it. The peer may write meanwhile: any mixture
            // of old and new bytes is as good as what it could have sent.
            unsafe { seg.pointer.copy_to_nonoverlapping(room.as_mut_ptr(), seg.len()) };
            at += seg.len();
        }
        (at > 0).then_some(at)
    }

    /// The simple way: copies the next frame into `buffer` and releases it. Frames that are oversize
    /// or longer than the buffer are skipped.
    ///
    /// # Errors
    /// The peer broke the rules: drop the connection.
    pub fn recv(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, Violation> {
        let mut burst = self.scratch.take().unwrap_or_else(|| Box::new(RxBurst::new(1)));
        let result = loop {
            burst.clear();
            match self.claim(1, &mut burst) {
                Ok(0) => break Ok(None),
                Err(violation) => break Err(violation),
                Ok(_) => {}
            }
            let frame = burst.frames()[0];
            let copied = self.copy_to(&burst, &frame, buffer);
            self.release(frame.n_slots);
            if copied.is_some() {
                break Ok(copied);
            }
        };
        self.scratch = Some(burst);
        result
    }

    /// Polling (`true`): the peer need not signal. Otherwise it will, by the eventfd, for everything
    /// that it publishes from now on; the answer says whether something is there already, in which
    /// case parking would miss it.
    ///
    /// # Errors
    /// The peer's index is impossible.
    pub fn set_polling(&mut self, polling: bool) -> Result<bool, Violation> {
        self.ring.set_mask_int(polling);
        // An unfinished chain is not work: the rest of it will be signalled.
        let available = self.available()?;
        Ok(available > 0 && self.unfinished.is_none_or(|(slot, _)| slot != self.cursor))
    }

    /// The eventfd that the peer signals. It is shared with the peer: wait for it with an
    /// edge-triggered epoll, never read it.
    #[must_use]
    pub fn eventfd(&self) -> BorrowedFd<'_> {
        self.ring.eventfd()
    }

    /// Whether the connection is spoilt: by SIGBUS, by a violation in any queue, by slow signals.
    #[inline]
    #[must_use]
    pub fn poisoned(&self) -> bool {
        self.regions.health.poisoned()
    }

    /// Why it is spoilt, see [`crate::Connection::cause`].
    #[must_use]
    pub fn cause(&self) -> Option<Violation> {
        self.regions.health.cause()
    }

    /// Keeps the memory mapped beyond the queue's life, for copies that others do.
    #[must_use]
    pub fn hold(&self) -> crate::RegionHold {
        crate::RegionHold::new(&self.regions)
    }
}

#[cold]
fn bad_descriptor(slot: u16, d: Snapshot, region_bytes: u64) -> Violation {
    if region_bytes == 0 {
        Violation::Region { slot, region: d.region }
    } else if d.length == 0 {
        Violation::Length { slot, len_bytes: 0, min_bytes: 1 }
    } else {
        Violation::Bounds { slot, region: d.region, offset: d.offset, len_bytes: d.length }
    }
}
