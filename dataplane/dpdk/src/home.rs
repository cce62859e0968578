//! The network namespace that a device was made in.
//!
//! Drivers on top of a kernel interface find it by name or number, with a socket that they make
//! when they need one: every call that controls the device has to run in the right namespace,
//! closing included, which may fall to whichever thread drops the last queue.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use nix::sched::{CloneFlags, setns};

/// Runs calls in the namespace of its maker.
#[derive(Debug)]
pub(crate) struct Home(Option<File>);

impl Home {
    /// The calling thread's namespace.
    pub(crate) fn here() -> Self {
        // Without /proc there is one namespace as far as anybody can tell.
        Self(current())
    }

    /// Runs `call` in the namespace: at once where the thread is in it, else on a thread that goes
    /// there.
    pub(crate) fn run<T: Send>(&self, call: impl FnOnce() -> T + Send) -> T {
        let Some(home) = self.0.as_ref().filter(|home| !is_current(home)) else { return call() };
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                // Refused: the call is still worth a try, and reports what it comes to.
                let _ = setns(home.as_fd(), CloneFlags::CLONE_NEWNET);
                call()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

fn current() -> Option<File> {
    File::open("/proc/thread-self/ns/net").ok()
}

fn is_current(home: &File) -> bool {
    let number = |file: &File| file.metadata().map(|m| (m.dev(), m.ino())).ok();
    current().is_none_or(|here| number(&here) == number(home))
}
