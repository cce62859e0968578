//! Sending: reserve room for a frame, write it, publish.
//!
//! Cursors: `published` is our index as the peer sees it, `cursor` the next slot to reserve,
//! `limit` how far the peer let us go when its index was last read. All private.

use super::burst::{MAX_TX_SEGS, SegMut, TxSegs};
use super::own::OwnBuffers;
use super::{LINE_BYTES, LINE_SLOTS, Ring, Role, Snapshot, prefetch_write};
use crate::error::Violation;
use crate::region::{MAX_REGIONS, Regions, View};
use crate::sys::notify::SignalMeter;
use crate::wire::DESC_FLAG_NEXT;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// The least that an empty buffer must hold: nobody posts less, and a frame must not take
/// hundreds of slots.
const MIN_CAPACITY_BYTES: u32 = 64;
const PREFETCH_SLOTS: u16 = 8;
/// Between two looks of a spinning sender whether its peer sleeps.
const ASK_NS: u64 = 1_000;

/// What became of a reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reserved {
    /// The frame takes this many slots.
    Slots(u16),
    /// The ring has no room for it now.
    Full,
    /// It is empty, or takes more than [`MAX_TX_SEGS`](crate::MAX_TX_SEGS) slots or the whole ring.
    BadLength,
}

/// One transmit ring, owned by one thread at a time.
#[derive(Debug)]
pub struct TxQueue {
    pub(super) ring: Ring,
    pub(super) role: Role,
    /// 16 bits used. Of 32 because it changes with every frame: the compiler would read a `u16`
    /// together with its neighbour, and a load wider than the store before it waits for the cache.
    pub(super) cursor: u32,
    pub(super) published: u16,
    pub(super) limit: u16,
    pub(super) views: [View; MAX_REGIONS],
    pub(super) own: OwnBuffers,
    pub(super) regions: Arc<Regions>,
    meter: SignalMeter,
    /// Whether the peer is still to be asked for certain whether it sleeps, and when it was last asked.
    unasked: bool,
    asked_ns: u64,
}

// SAFETY: as for RxQueue.
unsafe impl Send for TxQueue {}

impl TxQueue {
    pub(crate) fn new(ring: Ring, role: Role, own: OwnBuffers, regions: &Arc<Regions>) -> Self {
        let views = regions.views();
        let regions = Arc::clone(regions);
        Self {
            ring,
            role,
            cursor: 0,
            published: 0,
            limit: 0,
            views,
            own,
            regions,
            meter: SignalMeter::default(),
            unasked: false,
            asked_ns: 0,
        }
    }

    /// Slots in the ring.
    #[inline]
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.ring.slots()
    }

    /// Slots reserved and not yet published.
    #[inline]
    #[must_use]
    pub fn reserved(&self) -> u16 {
        self.cursor().wrapping_sub(self.published)
    }

    #[inline]
    pub(super) fn cursor(&self) -> u16 {
        self.cursor as u16
    }

    #[inline]
    pub(super) fn set_cursor(&mut self, cursor: u16) {
        self.cursor = u32::from(cursor);
    }

    /// Slots that can be reserved now: one acquire load.
    ///
    /// # Errors
    /// The peer's index is impossible.
    #[inline]
    pub fn free(&mut self) -> Result<u16, Violation> {
        self.refresh()?;
        Ok(self.limit.wrapping_sub(self.cursor()))
    }

    /// The same, but the peer's index is loaded only when fewer than `wanted` are known to be free:
    /// loading it takes its line from the peer, who writes it next.
    ///
    /// # Errors
    /// The peer's index is impossible.
    #[inline]
    pub fn free_at_least(&mut self, wanted: u16) -> Result<u16, Violation> {
        let known = self.limit.wrapping_sub(self.cursor());
        if known >= wanted { Ok(known) } else { self.free() }
    }

    /// Reads the peer's index and sets `limit`.
    #[inline]
    pub(super) fn refresh(&mut self) -> Result<(), Violation> {
        let (peer, limit) = match self.role {
            // The client's head: it posted buffers up to here.
            Role::Server => {
                let head = self.ring.load_head();
                (head, head)
            }
            // The server's tail: it read up to here, and a whole ring may lie ahead of it.
            Role::Client => {
                let tail = self.ring.load_tail();
                (tail, tail.wrapping_add(self.ring.slots() as u16))
            }
        };
        let ahead = limit.wrapping_sub(self.published);
        if u32::from(ahead) > self.ring.slots() || ahead < self.reserved() {
            return Err(self.index_violation(peer));
        }
        self.limit = limit;
        Ok(())
    }

    #[cold]
    fn index_violation(&self, peer: u16) -> Violation {
        self.blame(Violation::Index {
            peer,
            ours: self.published,
            held: self.reserved(),
            ring_slots: self.ring.slots(),
        })
    }

    #[cold]
    pub(super) fn blame(&self, violation: Violation) -> Violation {
        self.regions.health.poison_violation(violation);
        violation
    }

    /// Reserves room for a frame of `len_bytes` and says in `out` where to write it. Nothing is
    /// visible to the peer before [`publish`](Self::publish).
    ///
    /// # Errors
    /// The peer broke the rules: drop the connection.
    #[inline]
    pub fn reserve(&mut self, len_bytes: u32, out: &mut TxSegs) -> Result<Reserved, Violation> {
        let cursor = self.cursor();
        if cursor == self.limit {
            self.refresh()?;
            if cursor == self.limit {
                return Ok(Reserved::Full);
            }
        }
        let (buffer, region) = self.buffer(cursor)?;
        if len_bytes.wrapping_sub(1) >= buffer.len_bytes {
            return self.reserve_chain(len_bytes, out);
        }
        self.fill(cursor, 0, region, len_bytes);
        self.ring.prefetch_to_write(cursor.wrapping_add(PREFETCH_SLOTS));
        out.set_single(SegMut { pointer: buffer.pointer, len_bytes });
        self.set_cursor(cursor.wrapping_add(1));
        Ok(Reserved::Slots(1))
    }

    /// Reserves one slot for each of several frames of these lengths, in their order, and says in
    /// `out` where to write them. It stops at a frame that needs more than the slot, or when the ring
    /// or `out` is full: that one is for [`reserve`](Self::reserve). Every descriptor is read once
    /// and every buffer's first line fetched to be written.
    ///
    /// # Errors
    /// The peer broke the rules: drop the connection.
    #[inline]
    pub fn reserve_run(
        &mut self,
        frames: impl ExactSizeIterator<Item = u32>,
        out: &mut TxSegs,
    ) -> Result<usize, Violation> {
        let wanted = frames.len().min(MAX_TX_SEGS);
        if usize::from(self.limit.wrapping_sub(self.cursor())) < wanted {
            self.refresh()?;
        }
        let count = match self.role {
            Role::Server => self.reserve_singles::<true>(frames, out),
            Role::Client => self.reserve_singles::<false>(frames, out),
        }?;
        self.set_cursor(self.cursor().wrapping_add(count as u16));
        Ok(count)
    }

    /// The loop of [`reserve_run`](Self::reserve_run): a function of its own, so that what it needs
    /// stays in registers.
    #[inline(never)]
    fn reserve_singles<const SERVER: bool>(
        &self,
        frames: impl ExactSizeIterator<Item = u32>,
        out: &mut TxSegs,
    ) -> Result<usize, Violation> {
        let start = self.cursor();
        let room = self.limit.wrapping_sub(start).min(MAX_TX_SEGS as u16);
        out.fill((0..room).zip(frames), |(i, len_bytes)| {
            let slot = start.wrapping_add(i);
            if i.is_multiple_of(LINE_SLOTS) {
                self.ring.prefetch_to_write(slot.wrapping_add(PREFETCH_SLOTS));
            }
            let (buffer, region) = self.buffer_as::<SERVER>(slot)?;
            if len_bytes.wrapping_sub(1) >= buffer.len_bytes {
                return Ok(None);
            }
            let place = SegMut { pointer: buffer.pointer, len_bytes };
            place.prefetch(0);
            if place.len() > LINE_BYTES {
                place.prefetch(LINE_BYTES);
            }
            self.fill_as::<SERVER>(slot, 0, region, len_bytes);
            Ok(Some(place))
        })
    }

    /// The buffer of a slot, from one snapshot of its descriptor (server) or from what we know
    /// (client), and its region.
    #[inline]
    pub(super) fn buffer(&self, slot: u16) -> Result<(SegMut, u16), Violation> {
        match self.role {
            Role::Server => self.buffer_as::<true>(slot),
            Role::Client => self.buffer_as::<false>(slot),
        }
    }

    #[inline(always)]
    fn buffer_as<const SERVER: bool>(&self, slot: u16) -> Result<(SegMut, u16), Violation> {
        if !SERVER {
            let pointer = self.own.pointer(self.own.slot(slot));
            return Ok((SegMut { pointer, len_bytes: self.own.stride() }, self.own.region()));
        }
        let d = self.ring.snapshot(slot);
        let Some(view) = self.views.get(usize::from(d.region)) else {
            return Err(self.blame(bad_buffer(slot, d, 0)));
        };
        let end = u64::from(d.offset) + u64::from(d.length);
        if d.length < MIN_CAPACITY_BYTES || end > view.size {
            return Err(self.blame(bad_buffer(slot, d, view.size)));
        }
        let pointer = view.base.wrapping_add(d.offset as usize);
        Ok((SegMut { pointer, len_bytes: d.length }, d.region))
    }

    /// Writes the descriptor of a slot: the server only what is its to say, the client all of it,
    /// since the peer may have scribbled over what stood there.
    #[inline]
    pub(super) fn fill(&self, slot: u16, flags: u16, region: u16, length: u32) {
        match self.role {
            Role::Server => self.fill_as::<true>(slot, flags, region, length),
            Role::Client => self.fill_as::<false>(slot, flags, region, length),
        }
    }

    #[inline(always)]
    fn fill_as<const SERVER: bool>(&self, slot: u16, flags: u16, region: u16, length: u32) {
        if SERVER {
            return self.ring.write_length(slot, flags, region, length);
        }
        let empty = self.own.empty(self.own.slot(slot));
        self.ring.write(slot, Snapshot { flags, length, ..empty });
    }

    /// A frame longer than the next buffer: as many slots as it needs, or none.
    #[inline(never)]
    fn reserve_chain(&mut self, len_bytes: u32, out: &mut TxSegs) -> Result<Reserved, Violation> {
        if len_bytes == 0 {
            return Ok(Reserved::BadLength);
        }
        self.refresh()?;
        let (start, mut at, mut left) = (self.cursor(), self.cursor(), len_bytes);
        out.clear();
        let mut regions = [0u16; MAX_TX_SEGS];
        while left > 0 {
            let used = at.wrapping_sub(start);
            if usize::from(used) == MAX_TX_SEGS || u32::from(used) == self.ring.slots() {
                return Ok(Reserved::BadLength);
            }
            if at == self.limit {
                return Ok(Reserved::Full);
            }
            let (buffer, region) = self.buffer(at)?;
            let part = left.min(buffer.len_bytes);
            out.push(SegMut { pointer: buffer.pointer, len_bytes: part });
            regions[usize::from(used)] = region;
            left -= part;
            at = at.wrapping_add(1);
        }
        // Only now, when all slots are known to be there: a buffer that is not used must keep the
        // length that the client gave it.
        let segs = out.as_slice();
        for (i, (seg, region)) in segs.iter().zip(regions).enumerate() {
            let flags = if i + 1 < segs.len() { DESC_FLAG_NEXT } else { 0 };
            self.fill(start.wrapping_add(i as u16), flags, region, seg.len_bytes);
        }
        self.set_cursor(at);
        Ok(Reserved::Slots(at.wrapping_sub(start)))
    }

    /// Fetches the descriptors and the first line of the buffer `ahead` slots on, to be written.
    #[inline]
    pub fn prefetch(&self, ahead: u16) {
        let slot = self.cursor().wrapping_add(ahead);
        if ahead < self.limit.wrapping_sub(self.cursor())
            && let Ok((buffer, _)) = self.buffer(slot)
        {
            prefetch_write(buffer.pointer);
        }
    }

    /// Makes everything reserved visible to the peer: one release store.
    #[inline]
    pub fn publish(&mut self) {
        self.publish_slots(self.reserved());
    }

    /// Makes the oldest `slots` reserved slots visible: for copies that finish in parts.
    #[inline]
    pub fn publish_slots(&mut self, slots: u16) {
        debug_assert!(slots <= self.reserved(), "{slots} of {} published", self.reserved());
        let slots = slots.min(self.reserved());
        if slots == 0 {
            return;
        }
        self.published = self.published.wrapping_add(slots);
        match self.role {
            Role::Server => self.ring.store_tail(self.published),
            Role::Client => self.ring.store_head(self.published),
        }
    }

    /// Whether the peer wants a signal for what was published: ask once per burst. Waits until all
    /// of the caller's stores are visible. [`notify`](Self::notify) asks and signals.
    #[inline]
    #[must_use]
    pub fn needs_wakeup(&self) -> bool {
        self.ring.wants_signal()
    }

    /// Signals the peer if it wants that; a peer that makes its signals slow is poisoned. Once per
    /// burst, after [`publish`](Self::publish).
    ///
    /// # Errors
    /// The signal was refused by the kernel.
    #[inline]
    pub fn notify(&mut self, notifier: &mut crate::Notifier) -> std::io::Result<()> {
        if self.needs_wakeup() { self.signal(notifier) } else { Ok(()) }
    }

    /// Signals the peer; see [`notify`](Self::notify), which asks first.
    ///
    /// # Errors
    /// The signal was refused by the kernel.
    pub fn signal(&mut self, notifier: &mut crate::Notifier) -> std::io::Result<()> {
        let (result, convicted) = self.meter.signal(notifier, self.ring.eventfd());
        if convicted {
            self.regions.health.poison_slow_signals();
        }
        result
    }

    /// The eventfd to signal; only through [`crate::Notifier`], which cannot block.
    #[must_use]
    pub fn eventfd(&self) -> BorrowedFd<'_> {
        self.ring.eventfd()
    }

    /// The simple way: copies a frame into the ring; `false` when there is no room, or when the frame
    /// is longer than the ring can ever carry. It is visible after [`flush`](Self::flush).
    ///
    /// # Errors
    /// The peer broke the rules: drop the connection.
    pub fn send(&mut self, frame: &[u8]) -> Result<bool, Violation> {
        let mut out = TxSegs::new();
        let len = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        if !matches!(self.reserve(len, &mut out)?, Reserved::Slots(_)) {
            return Ok(false);
        }
        let mut rest = frame;
        for seg in out.as_slice() {
            let (part, next) = rest.split_at(seg.len());
            // SAFETY: the destination was checked to lie in a region that this queue keeps mapped;
            // the source is a slice of that length outside of it.
            unsafe { seg.pointer.copy_from_nonoverlapping(part.as_ptr(), part.len()) };
            rest = next;
        }
        Ok(true)
    }

    /// Copies a frame to where [`reserve_run`](Self::reserve_run) said; false when it is not as long
    /// as the place, or the place is not one of this connection.
    #[inline]
    #[must_use]
    pub fn write_to(&self, place: &SegMut, frame: &[u8]) -> bool {
        let fits = frame.len() == place.len() && self.regions.contains(place.pointer, place.len());
        if fits {
            // SAFETY: the place lies in a region that this queue keeps mapped; the source is a slice
            // of that length outside of it.
            unsafe { place.pointer.copy_from_nonoverlapping(frame.as_ptr(), frame.len()) };
        }
        fits
    }

    /// Publishes what was sent and signals the peer if it wants that.
    ///
    /// # Errors
    /// The signal was refused by the kernel; the frames are published nevertheless.
    pub fn flush(&mut self, notifier: &mut crate::Notifier) -> std::io::Result<()> {
        if self.reserved() == 0 {
            return Ok(());
        }
        self.publish();
        self.notify(notifier)
    }

    /// As [`flush`](Self::flush), for a sender that spins and calls this in every turn with the time:
    /// the peer's wish lies in a line that it writes for every burst, and asking for certain waits until
    /// all that was copied has reached its line. So it is looked at once a microsecond, and asked for
    /// certain when there was nothing more to publish.
    ///
    /// # Errors
    /// The signal was refused by the kernel; the frames are published nevertheless.
    #[inline]
    pub fn flush_spinning(
        &mut self,
        notifier: &mut crate::Notifier,
        now_ns: u64,
    ) -> std::io::Result<()> {
        let publishes = self.reserved() > 0;
        self.publish();
        self.unasked |= publishes;
        if !self.unasked || now_ns.wrapping_sub(self.asked_ns) < ASK_NS {
            return Ok(());
        }
        self.asked_ns = now_ns;
        self.unasked = publishes;
        let asks = if publishes { self.ring.unmasked() } else { self.needs_wakeup() };
        if !asks {
            return Ok(());
        }
        self.unasked = false;
        self.signal(notifier)
    }

    /// Whether [`flush_spinning`](Self::flush_spinning) must be called again before the sender sleeps.
    #[inline]
    #[must_use]
    pub fn unasked(&self) -> bool {
        self.unasked
    }

    /// Whether the connection is spoilt, see [`crate::RxQueue::poisoned`].
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
fn bad_buffer(slot: u16, d: Snapshot, region_bytes: u64) -> Violation {
    if region_bytes == 0 {
        Violation::Region { slot, region: d.region }
    } else if d.length < MIN_CAPACITY_BYTES {
        Violation::Length { slot, len_bytes: d.length, min_bytes: MIN_CAPACITY_BYTES }
    } else {
        Violation::Bounds { slot, region: d.region, offset: d.offset, len_bytes: d.length }
    }
}
