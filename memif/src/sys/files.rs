//! Which memory files of peers still exist.
//!
//! The kernel does not say who else has a file open, but a watch of inotify(7) leaves its list when the
//! file does, and does not keep it. The list is read from /proc/self/fdinfo; events, of which some may be lost,
//! are of no use.

use nix::errno::Errno;
use std::collections::HashSet;
use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The number of a watch; no other has it later.
pub(crate) type Watched = i32;

/// One for the process, made when it is needed first.
static LIST: Mutex<Option<OwnedFd>> = Mutex::new(None);

/// Puts a file on the list, unless it is there.
///
/// # Errors
/// The kernel grants no more lists or watches.
pub(crate) fn watch(file: &OwnedFd) -> Result<Watched, Errno> {
    let mut list = lock();
    let list = match &mut *list {
        Some(list) => list,
        none => none.insert(open()?),
    };
    let path = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let path = path.map_err(|_| Errno::EINVAL)?;
    // SAFETY: a path that ends with its zero; nothing is kept of it.
    let watched =
        unsafe { libc::inotify_add_watch(list.as_raw_fd(), path.as_ptr(), libc::IN_DELETE_SELF) };
    Errno::result(watched)
}

/// The watches whose files exist.
///
/// # Errors
/// /proc is not there.
pub(crate) fn existing() -> Result<HashSet<Watched>, Errno> {
    let list = lock();
    let Some(list) = &*list else { return Ok(HashSet::new()) };
    let mut events = [0; 4096];
    while nix::unistd::read(list, &mut events).is_ok_and(|bytes| bytes > 0) {}
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", list.as_raw_fd()));
    let text = text.map_err(|error| Errno::try_from(error).unwrap_or(Errno::EIO))?;
    let watches = text.lines().filter_map(|line| line.strip_prefix("inotify wd:"));
    let numbers = watches.filter_map(|rest| rest.split(' ').next());
    Ok(numbers.filter_map(|hex| Watched::from_str_radix(hex, 16).ok()).collect())
}

fn lock() -> MutexGuard<'static, Option<OwnedFd>> {
    LIST.lock().unwrap_or_else(PoisonError::into_inner)
}

fn open() -> Result<OwnedFd, Errno> {
    // SAFETY: no pointers; a descriptor that is returned is ours.
    unsafe {
        let list = libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK);
        Ok(OwnedFd::from_raw_fd(Errno::result(list)?))
    }
}
