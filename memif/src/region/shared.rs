//! All that a connection shares with its peer, given up in one go.

use super::{Region, SMALL_PAGE_BYTES, system};
use crate::error::RegionError;
use crate::sys::given::{Count, close_elsewhere};
use crate::sys::pins;
use std::os::fd::OwnedFd;

/// Memory, and descriptors that the peer has as well. Who gives the last of them up may have much to do:
/// free all pages of a file, of which only a part may be mapped here, or take an eventfd out of all epolls that
/// wait for it, each of which its owner can keep locked. So a thread of its own does it, as in
/// [`given`](crate::sys::given).
#[derive(Debug)]
pub(crate) struct Shared {
    pub regions: Vec<Region>,
    /// Of the regions, while hands are shaken.
    pub files: Vec<OwnedFd>,
    pub eventfds: Vec<OwnedFd>,
    /// What keeps pages in their places.
    pub pins: Option<OwnedFd>,
    /// Counts what is being given up. None: it is done here, as programs of the C interface expect.
    open: Option<Count>,
}

impl Shared {
    pub(crate) fn new(open: Option<Count>) -> Self {
        let (files, eventfds) = Default::default();
        Self { regions: Vec::new(), files, eventfds, pins: None, open }
    }

    /// Has no worker wait until the peer has moved pages about.
    ///
    /// # Errors
    /// The kernel grants no more pipes.
    pub(crate) fn pin(&mut self) -> Result<(), RegionError> {
        let small = self.regions.iter().filter(|r| r.page_bytes == SMALL_PAGE_BYTES);
        let pinned = pins::pin(small.map(|r| (r.base.as_ptr() as usize, r.mapped_bytes)));
        self.pins = pinned.map_err(system("vmsplice"))?;
        Ok(())
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let Some(open) = self.open.take() else { return };
        let regions = std::mem::take(&mut self.regions);
        let files = std::mem::take(&mut self.files);
        let eventfds = std::mem::take(&mut self.eventfds);
        // They are of the regions: where there is one, there is the other.
        let pins = self.pins.take();
        if !(regions.is_empty() && files.is_empty() && eventfds.is_empty()) {
            close_elsewhere((pins, regions, files, eventfds), &open);
        }
    }
}
