//! Memory that an application has mapped by itself, as the C interface lets it.

use std::os::fd::RawFd;
use std::ptr::NonNull;

/// A mapping of an application's. Dropping it says that nobody uses it any more.
pub(crate) struct Lent {
    pub(super) base: NonNull<u8>,
    /// The memory's file: a number to be shown, the application's to close.
    pub(super) fd: RawFd,
    give_back: Option<Box<dyn FnOnce() + Send>>,
}

impl Lent {
    #[cfg(any(feature = "capi", test))]
    pub(crate) fn new(
        base: NonNull<u8>,
        fd: RawFd,
        give_back: impl FnOnce() + Send + 'static,
    ) -> Self {
        Self { base, fd, give_back: Some(Box::new(give_back)) }
    }
}

// SAFETY: an address, which is not touched here, and a closure that may be called anywhere.
unsafe impl Send for Lent {}

impl std::fmt::Debug for Lent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lent").field("base", &self.base).field("fd", &self.fd).finish()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(give_back) = self.give_back.take() {
            give_back();
        }
    }
}
