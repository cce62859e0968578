//! All that a connection shares with its peer, given up in one go.

use super::Region;
use crate::sys::given::{Count, close_elsewhere};
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
    /// Counts what is being given up. None: it is done here, as programs of the C interface expect.
    open: Option<Count>,
}

impl Shared {
    pub(crate) fn new(open: Option<Count>) -> Self {
        let (files, eventfds) = Default::default();
        Self { regions: Vec::new(), files, eventfds, open }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let Some(open) = self.open.take() else { return };
        let regions = std::mem::take(&mut self.regions);
        let files = std::mem::take(&mut self.files);
        let eventfds = std::mem::take(&mut self.eventfds);
        if !(regions.is_empty() && files.is_empty() && eventfds.is_empty()) {
            close_elsewhere((regions, files, eventfds), &open);
        }
    }
}
