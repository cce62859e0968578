//! SIGBUS containment: a peer that takes its memory away hurts only itself.
//!
//! Every mapped region is listed in a fixed table that the handler reads without locks. A fault
//! inside a listed region marks the owner as poisoned, puts a page of zeros where one is missing and
//! returns: the interrupted copy goes on with zeros, the worker notices the mark at its next burst
//! and drops the peer. Any other fault goes to the handler that was there before.
//!
//! The handler is installed by [`install`] alone, never by itself: a library must not change a
//! process's signals unasked. Without it a vanishing page kills the process, as it does for
//! every other user of shared memory.
//!
//! Invariant: a thread that touches a region holds (through its queue) the `Arc` that keeps the
//! region listed, so the entry which the handler needs cannot change while the handler runs.

use super::holes;
use crate::region::health::Health;
use nix::errno::Errno;
use std::cell::UnsafeCell;
use std::io;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, Once, PoisonError};

/// Regions that one process can have mapped at a time.
pub(crate) const CAPACITY: usize = 8192;

struct Entry {
    /// Odd while the entry is being written.
    version: AtomicU32,
    page_shift: AtomicU32,
    /// Zero when free.
    start: AtomicUsize,
    end: AtomicUsize,
    health: AtomicPtr<Health>,
}

impl Entry {
    const fn new() -> Self {
        Self {
            version: AtomicU32::new(0),
            page_shift: AtomicU32::new(0),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            health: AtomicPtr::new(std::ptr::null_mut()),
        }
    }

    fn write(&self, start: usize, end: usize, page_shift: u32, health: *const Health) {
        // Only one writer at a time (FREE's lock): readers see odd, or a version that moved on.
        self.version.fetch_add(1, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        self.start.store(start, Ordering::Relaxed);
        self.end.store(end, Ordering::Relaxed);
        self.page_shift.store(page_shift, Ordering::Relaxed);
        self.health.store(health.cast_mut(), Ordering::Relaxed);
        self.version.fetch_add(1, Ordering::Release);
    }

    /// The page that holds `address`, its size and its owner, if this entry covers it.
    fn find(&self, address: usize) -> Option<(usize, usize, *const Health)> {
        let before = self.version.load(Ordering::Acquire);
        let (start, end) = (self.start.load(Ordering::Relaxed), self.end.load(Ordering::Relaxed));
        let page = 1usize << self.page_shift.load(Ordering::Relaxed);
        let health = self.health.load(Ordering::Relaxed).cast_const();
        fence(Ordering::Acquire);
        if before % 2 == 1 || self.version.load(Ordering::Relaxed) != before {
            return None;
        }
        let hit = start != 0 && (start..end).contains(&address);
        hit.then(|| (address & !(page - 1), page, health))
    }
}

static TABLE: [Entry; CAPACITY] = [const { Entry::new() }; CAPACITY];
/// Entries from here on were never used.
static HIGH_WATER: AtomicUsize = AtomicUsize::new(0);
/// Entries below the high-water mark that are free again.
static FREE: Mutex<Vec<usize>> = Mutex::new(Vec::new());

/// A region's place in the table; leaving the scope gives it back.
#[derive(Debug)]
pub(crate) struct Listed(usize);

impl Listed {
    /// Lists a mapping; `None` when the table is full. `health` must outlive the entry.
    pub(crate) fn new(
        start: usize,
        end: usize,
        page: usize,
        health: *const Health,
    ) -> Option<Self> {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let index = match free.pop() {
            Some(index) => index,
            None => {
                let next = HIGH_WATER.load(Ordering::Relaxed);
                if next == CAPACITY {
                    return None;
                }
                HIGH_WATER.store(next + 1, Ordering::Release);
                next
            }
        };
        TABLE[index].write(start, end, page.trailing_zeros(), health);
        Some(Self(index))
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        TABLE[self.0].write(0, 0, 0, std::ptr::null());
        free.push(self.0);
    }
}

/// Faults contained since start.
static CONTAINED: AtomicU32 = AtomicU32::new(0);

/// How many faults were contained so far. Whoever touches much memory of peers in one go looks now and
/// then: when the number has changed, each further touch of a spoilt peer's memory may take as long.
#[inline]
#[must_use]
pub fn contained() -> u32 {
    CONTAINED.load(Ordering::Relaxed)
}

/// Whether `address` lies in the memory of a peer whose connection is spoilt. A queue of that connection
/// must be alive.
#[must_use]
pub fn is_spoilt(address: *const u8) -> bool {
    // SAFETY: listed regions keep their Health alive until they are taken off the list, and the caller's
    // queue keeps this one listed.
    lookup(address as usize).is_some_and(|(.., health)| unsafe { (*health).poisoned() })
}

/// The handler that was there before ours.
struct Previous(UnsafeCell<MaybeUninit<libc::sigaction>>);
// SAFETY: written once, before our handler can run, and only read afterwards.
unsafe impl Sync for Previous {}
static PREVIOUS: Previous = Previous(UnsafeCell::new(MaybeUninit::zeroed()));
static INSTALL: Once = Once::new();

/// Installs the process-wide SIGBUS handler, and opens the descriptor by which memory that is not sealed
/// is watched. Calling it again does nothing.
///
/// # Errors
/// `sigaction` failed.
pub fn install() -> io::Result<()> {
    let mut result = Ok(());
    INSTALL.call_once(|| {
        holes::prepare();
        // SAFETY: plain queries and one sigaction with a handler that is async-signal-safe; PREVIOUS
        // is written before the handler is installed and this runs once.
        let rc = unsafe {
            let previous = (*PREVIOUS.0.get()).as_mut_ptr();
            if libc::sigaction(libc::SIGBUS, std::ptr::null(), previous) != 0 {
                -1
            } else {
                let mut ours: libc::sigaction = std::mem::zeroed();
                ours.sa_sigaction = on_sigbus as extern "C" fn(_, _, _) as usize;
                ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
                libc::sigaction(libc::SIGBUS, &raw const ours, std::ptr::null_mut())
            }
        };
        if rc != 0 {
            result = Err(io::Error::last_os_error());
        }
    });
    result
}

/// Whether [`install`] was called in this process.
#[must_use]
pub fn installed() -> bool {
    INSTALL.is_completed()
}

extern "C" fn on_sigbus(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    let errno = Errno::last();
    // SAFETY: the kernel passes a valid siginfo; si_addr is meaningful for codes above zero.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    let owner = (code > 0).then(|| lookup(address)).flatten();
    let contained = owner.is_some_and(|(page, bytes, health)| {
        // SAFETY: listed regions keep their Health alive until they are taken off the list.
        unsafe { (*health).poison_sigbus() };
        CONTAINED.fetch_add(1, Ordering::Relaxed);
        holes::fill(page, bytes) || cover(page, bytes)
    });
    if !contained {
        chain(signal, info, context);
    }
    errno.set();
}

/// Puts a private page of zeros over one of a listed region.
fn cover(page: usize, bytes: usize) -> bool {
    // SAFETY: the page lies in a mapping of ours that the faulting thread keeps alive; a private zero
    // page in its place keeps every pointer into it valid.
    let new = unsafe {
        libc::mmap(
            page as *mut libc::c_void,
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    new != libc::MAP_FAILED
}

fn lookup(address: usize) -> Option<(usize, usize, *const Health)> {
    let used = HIGH_WATER.load(Ordering::Acquire);
    TABLE[..used].iter().find_map(|entry| entry.find(address))
}

/// Does what would have happened without us.
fn chain(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: written before our handler was installed, never changed since.
    let previous = unsafe { &*(*PREVIOUS.0.get()).as_ptr() };
    if previous.sa_sigaction == libc::SIG_DFL || previous.sa_sigaction == libc::SIG_IGN {
        // The instruction runs again when we return, faults again, and the default action applies.
        // SAFETY: restoring the default disposition.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    if previous.sa_flags & libc::SA_SIGINFO != 0 {
        type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
        // SAFETY: SA_SIGINFO says that this is a three-argument handler.
        let handler: Handler = unsafe { std::mem::transmute(previous.sa_sigaction) };
        handler(signal, info, context);
    } else {
        // SAFETY: without SA_SIGINFO it is a one-argument handler.
        let handler: extern "C" fn(libc::c_int) =
            unsafe { std::mem::transmute(previous.sa_sigaction) };
        handler(signal);
    }
}
