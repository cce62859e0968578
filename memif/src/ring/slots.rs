//! Queues slot by slot, for the C interface: its applications see descriptors, not frames, keep
//! chains together themselves, and may exchange the buffers of slots.

use super::burst::{Seg, SegMut};
use super::own::Slot;
use super::rx::RxQueue;
use super::tx::TxQueue;
use super::{Ring, Role, Snapshot};
use crate::error::Violation;
use crate::region::Regions;
use crate::wire::DESC_FLAG_NEXT;

impl RxQueue {
    /// Claims one slot: its number, its bytes, and whether the frame goes on.
    pub(crate) fn claim_slot(&mut self) -> Result<Option<(u16, Seg, bool)>, Violation> {
        if self.available()? == 0 {
            return Ok(None);
        }
        let slot = self.cursor;
        let d = self.ring.snapshot(slot);
        let seg = match self.role {
            Role::Server => self.resolve::<true>(slot, d),
            Role::Client => self.resolve::<false>(slot, d),
        };
        let seg = seg.map_err(|violation| self.blame(violation))?;
        self.cursor = slot.wrapping_add(1);
        Ok(Some((slot, seg, d.flags & DESC_FLAG_NEXT != 0)))
    }

    /// Gives back up to `count` slots, oldest first; a client leaves `headroom` bytes free in each.
    pub(crate) fn refill(&mut self, count: u16, headroom: u32) {
        match self.role {
            Role::Server => self.release(count.min(self.held())),
            Role::Client => self.post(count, headroom.min(self.own.stride() - 64)),
        }
    }

    pub(crate) fn ring(&self) -> &Ring {
        &self.ring
    }

    pub(crate) fn regions(&self) -> &Regions {
        &self.regions
    }

    /// Whether a slot is claimed and not given back.
    pub(crate) fn holds(&self, slot: u16) -> bool {
        slot.wrapping_sub(self.released) < self.held()
    }

    pub(crate) fn own_slot(&self, slot: u16) -> Slot {
        self.own.slot(slot)
    }

    pub(crate) fn set_own_slot(&mut self, slot: u16, to: Slot) {
        self.own.set(slot, to);
    }

    /// The slot whose buffer is posted next, if there is one to post.
    pub(crate) fn next_post(&self) -> Option<u16> {
        let any = self.posted < self.ring.slots() || self.held() > 0;
        any.then(|| self.released.wrapping_add(self.posted as u16))
    }

    /// Another place for a slot's buffer, within the region; false when it does not fit.
    pub(crate) fn move_buffer(&mut self, slot: u16, offset: u32) -> bool {
        let fits = self.own.fits(offset, &self.views);
        if fits {
            self.own.set(slot, Slot { offset, headroom: 0 });
        }
        fits
    }
}

impl TxQueue {
    /// Reserves one slot and gives its whole buffer.
    pub(crate) fn reserve_slot(&mut self) -> Result<Option<(u16, SegMut)>, Violation> {
        let slot = self.cursor();
        if slot == self.limit {
            self.refresh()?;
            if slot == self.limit {
                return Ok(None);
            }
        }
        if self.role == Role::Client {
            let own = self.own.slot(slot);
            self.own.set(slot, Slot { headroom: 0, ..own });
        }
        let (buffer, _) = self.buffer(slot)?;
        self.set_cursor(slot.wrapping_add(1));
        Ok(Some((slot, buffer)))
    }

    /// Gives the last `slots` reservations up. A server's descriptors were not touched before
    /// [`describe`](Self::describe), so that the buffers keep their lengths.
    pub(crate) fn rewind(&mut self, slots: u16) {
        self.set_cursor(self.cursor().wrapping_sub(slots.min(self.reserved())));
    }

    /// The next slot to publish.
    pub(crate) fn first_reserved(&self) -> u16 {
        self.published
    }

    pub(crate) fn is_reserved(&self, slot: u16) -> bool {
        slot.wrapping_sub(self.published) < self.reserved()
    }

    /// Says what a reserved slot holds. The contents begin at `data`, which for a client may lie
    /// behind the buffer's beginning. False when they do not fit into the buffer.
    pub(crate) fn describe(&mut self, slot: u16, data: *const u8, len: u32, more: bool) -> bool {
        let flags = if more { DESC_FLAG_NEXT } else { 0 };
        if self.role == Role::Server {
            let d = self.ring.snapshot(slot);
            self.ring.write_length(slot, flags, d.region, len);
            return true;
        }
        let own = Slot { headroom: 0, ..self.own.slot(slot) };
        let start = (data as usize).checked_sub(self.own.pointer(own) as usize);
        let Some(start) = start.and_then(|s| u32::try_from(s).ok()) else { return false };
        if u64::from(start) + u64::from(len) > u64::from(self.own.stride()) {
            return false;
        }
        self.own.set(slot, Slot { headroom: start, ..own });
        let d = self.own.empty(self.own.slot(slot));
        self.ring.write(slot, Snapshot { flags, length: len, ..d });
        true
    }

    pub(crate) fn ring(&self) -> &Ring {
        &self.ring
    }

    pub(crate) fn own_slot(&self, slot: u16) -> Slot {
        self.own.slot(slot)
    }

    pub(crate) fn set_own_slot(&mut self, slot: u16, to: Slot) {
        self.own.set(slot, to);
    }

    /// The slot that is reserved next, if there is one.
    pub(crate) fn next_reserve(&mut self) -> Option<u16> {
        (self.free().ok()? > 0).then(|| self.cursor())
    }

    /// Another place for a slot's buffer, within the region; false when it does not fit.
    pub(crate) fn move_buffer(&mut self, slot: u16, offset: u32) -> bool {
        let fits = self.own.fits(offset, &self.views);
        if fits {
            self.own.set(slot, Slot { offset, headroom: 0 });
        }
        fits
    }
}
