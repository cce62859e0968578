//! Descriptors of a peer's choice, and what closing them may cost.
//!
//! Who closes a socket last waits for its data to be taken, for as long as SO_LINGER says (socket(7)); who
//! closes a file of FUSE waits for the program behind it; who closes a memory file frees its pages, a GiB
//! in some tenths of a second; who closes an eventfd takes it out of each epoll, and waits for those that are
//! locked. A peer can arrange for any of these, and leaves the last close to us by sending a descriptor
//! and closing its own. So whatever is not used is closed on a thread of its own. Such threads count among the
//! handshakes that are open at their listener: a peer that makes them wait keeps nobody out but its own
//! interface's clients.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};

/// How many of something there are.
pub(crate) type Count = Arc<AtomicU32>;

/// One of those that are counted, as long as it lives.
#[derive(Debug)]
pub(crate) struct Counted(Count);

impl Counted {
    pub(crate) fn new(count: &Count) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Descriptors that came along with a message.
#[derive(Debug)]
pub(crate) struct Given {
    fds: Vec<OwnedFd>,
    open: Count,
}

impl Given {
    /// None yet; `open` counts what is being closed.
    pub(crate) fn none(open: &Count) -> Self {
        Self { fds: Vec::new(), open: Arc::clone(open) }
    }

    pub(crate) fn push(&mut self, fd: OwnedFd) {
        self.fds.push(fd);
    }

    pub(crate) fn len(&self) -> usize {
        self.fds.len()
    }

    /// The first, to be looked at.
    pub(crate) fn first(&self) -> Option<&OwnedFd> {
        self.fds.first()
    }

    /// The last, found to be memory or an eventfd.
    pub(crate) fn take(mut self) -> Option<OwnedFd> {
        self.fds.pop()
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        let fds = std::mem::take(&mut self.fds);
        if !fds.is_empty() {
            close_elsewhere(fds, &self.open);
        }
    }
}

/// Drops descriptors on a thread of its own, or here where none can be made.
pub(crate) fn close_elsewhere<T: Send + 'static>(fds: T, open: &Count) -> Option<JoinHandle<()>> {
    let counted = Counted::new(open);
    let close = move || {
        drop(fds);
        drop(counted);
    };
    thread::Builder::new().name("memif-close".to_owned()).spawn(close).ok()
}
