//! Being scheduled first while the node waits for us.
//!
//! Between the end of a data plane and the readiness of the next one, the node has no network. On a
//! busy machine most of that time is spent waiting for a core, so a start goes before everything
//! else, and becomes ordinary again when it forwards.

use std::io;
use std::sync::atomic::{AtomicI32, Ordering};

const MOST_URGENT: libc::c_int = -20;

/// What this process was started with.
static ORDINARY: AtomicI32 = AtomicI32::new(0);

/// The calling thread, and those that it makes from now on, go first.
///
/// # Errors
/// Without CAP_SYS_NICE; everything works without it, later.
pub fn urgent() -> io::Result<()> {
    // SAFETY: reads a number; 0 means the calling thread. -1 is a valid answer as well as an error,
    // and no worse a guess than another.
    let now = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    ORDINARY.store(now, Ordering::Relaxed);
    set(MOST_URGENT)
}

/// The calling thread goes when it is its turn, as the process was started.
///
/// # Errors
/// None is known: this only gives way.
pub fn ordinary() -> io::Result<()> {
    set(ORDINARY.load(Ordering::Relaxed))
}

fn set(nice: libc::c_int) -> io::Result<()> {
    // SAFETY: takes numbers only; 0 means the calling thread.
    let ret = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_becomes_urgent_and_ordinary_again() {
        // SAFETY: reads a number.
        let nice = || unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
        let before = nice();
        urgent().expect("root");
        assert_eq!(nice(), MOST_URGENT);
        let child = std::thread::spawn(move || {
            let inherited = nice();
            ordinary().expect("gives way");
            (inherited, nice())
        });
        assert_eq!(child.join().expect("no panic"), (MOST_URGENT, before));
        assert_eq!(nice(), MOST_URGENT, "each thread for itself");
        ordinary().expect("gives way");
        assert_eq!(nice(), before);
    }
}
