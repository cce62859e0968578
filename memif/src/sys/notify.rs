//! Signalling a peer's eventfd without any call that can block.
//!
//! `write` to an eventfd blocks when its counter is full and O_NONBLOCK is off; counter and flag
//! belong to the peer as much as to us. The kernel's own completion path cannot block: a finished
//! asynchronous request with IOCB_FLAG_RESFD adds one to an eventfd, saturating. So we submit a
//! request that finishes at once (reading nothing from /dev/null) and name the peer's eventfd.

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// Completions that may pile up before they are collected.
const QUEUE: u32 = 64;
const IOCB_CMD_PREAD: u16 = 0;
const IOCB_FLAG_RESFD: u32 = 1;

/// `struct iocb` of the Linux ABI (little-endian layout of the key and flags words).
#[repr(C)]
#[derive(Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    result_fd: u32,
}

#[repr(C)]
#[derive(Default, Clone, Copy)]
struct IoEvent {
    data: u64,
    object: u64,
    result: i64,
    result2: i64,
}

/// Signals eventfds of peers; one per worker thread. About 1 µs per signal: call it at most once
/// per ring and burst, and only when [`crate::TxQueue::needs_wakeup`] says so.
#[derive(Debug)]
pub struct Notifier {
    context: libc::c_ulong,
    null: File,
    /// What nobody waits for, to compare peers' eventfds with.
    nobody: OwnedFd,
    pending: u32,
}

impl Notifier {
    /// Sets the kernel context up.
    ///
    /// # Errors
    /// `io_setup` is refused (seccomp, or `fs.aio-max-nr` used up), or /dev/null is missing.
    pub fn new() -> io::Result<Self> {
        let null = File::open("/dev/null")?;
        let nobody = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?.into();
        let mut context: libc::c_ulong = 0;
        // SAFETY: io_setup writes one word to the place given.
        let rc = unsafe { libc::syscall(libc::SYS_io_setup, QUEUE, &raw mut context) };
        if rc < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut notifier = Self { context, null, nobody, pending: 0 };
        // A descriptor that cannot be signalled would show at every peer: better now.
        notifier.signal_nobody()?;
        Ok(notifier)
    }

    /// Adds one to the eventfd's counter. Never blocks, whatever the peer did to it.
    ///
    /// # Errors
    /// The kernel refused the request, for instance because this is not an eventfd.
    pub fn signal(&mut self, eventfd: BorrowedFd<'_>) -> io::Result<()> {
        self.submit(eventfd.as_raw_fd())
    }

    /// The same without anybody to wake.
    fn signal_nobody(&mut self) -> io::Result<()> {
        self.submit(self.nobody.as_raw_fd())
    }

    fn submit(&mut self, eventfd: RawFd) -> io::Result<()> {
        if self.pending >= QUEUE {
            self.collect();
        }
        let request = Iocb {
            opcode: IOCB_CMD_PREAD,
            fd: self.null.as_raw_fd().cast_unsigned(),
            flags: IOCB_FLAG_RESFD,
            result_fd: eventfd.cast_unsigned(),
            ..Iocb::default()
        };
        let requests = [&raw const request];
        // SAFETY: one valid request, read by the kernel before the call returns; the read has no
        // buffer and no length, so nothing of ours is referred to later.
        let rc = unsafe { libc::syscall(libc::SYS_io_submit, self.context, 1, requests.as_ptr()) };
        if rc == 1 {
            self.pending += 1;
            return Ok(());
        }
        Err(if rc < 0 { io::Error::last_os_error() } else { Errno::EAGAIN.into() })
    }

    /// Takes finished requests from the kernel's queue; all are finished, so this does not wait.
    fn collect(&mut self) {
        let mut events = [IoEvent::default(); QUEUE as usize];
        let no_wait = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: room for QUEUE events is given and a zero timeout makes the call return at once.
        let n = unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.context,
                0,
                libc::c_long::from(QUEUE),
                events.as_mut_ptr(),
                &raw const no_wait,
            )
        };
        self.pending = self.pending.saturating_sub(u32::try_from(n).unwrap_or(0));
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        // SAFETY: the context is ours and no request refers to memory of ours.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }
}

/// Watches how long a peer lets our signals take.
///
/// Whoever waits for an eventfd is woken on the signaller's time, some 60 ns each, and a peer can
/// wait for it thousands of times over. One slow signal makes a peer suspect. Each of its next
/// signals is then compared with one to an eventfd that nobody waits for, both in processor time of
/// this thread: interrupts slow both alike, preemption neither. Only a peer whose signals are slow
/// again and again, while those beside them are not, is convicted. How slow that is goes by the fastest
/// signal to nobody: what a machine needs to wake somebody grows with what it needs for a system call.
#[derive(Debug, Default)]
pub(crate) struct SignalMeter {
    /// Signals to compare yet.
    suspect: u8,
    /// Slow ones less fast ones; the very slow count several times.
    slow: u8,
    /// The least that a signal to nobody took since the peer is suspect.
    nobody: Duration,
}

/// What makes a signal worth a closer look.
const SUSPECT_WALL: Duration = Duration::from_micros(25);
/// How many signals are then compared.
const SUSPECT_SIGNALS: u8 = 64;
/// Longer than the signal beside it. To wake an honest sleeper on another virtual core takes up to some
/// 30 microseconds of our time where a signal to nobody takes one or two.
const SLOW: Duration = Duration::from_micros(100);
/// The same in signals to nobody, for slower machines: the larger of the two counts.
const SLOW_SIGNALS: u32 = 50;
/// Times slow.
const VERY_SLOW: u32 = 10;
const VERY_SLOW_WEIGHT: u8 = 4;
/// So many are no accident.
const CONVICTED: u8 = 16;

impl SignalMeter {
    /// Signals, and says whether the peer has made too many signals slow.
    pub(crate) fn signal(
        &mut self,
        notifier: &mut Notifier,
        eventfd: BorrowedFd<'_>,
    ) -> (io::Result<()>, bool) {
        if self.suspect == 0 {
            let start = Instant::now();
            let result = notifier.signal(eventfd);
            self.saw_wall(start.elapsed());
            return (result, false);
        }
        let start = thread_time();
        let result = notifier.signal(eventfd);
        let between = thread_time();
        let _ = notifier.signal_nobody();
        let end = thread_time();
        let (peer, nobody) = (between.saturating_sub(start), end.saturating_sub(between));
        (result, self.compare(peer, nobody))
    }

    fn saw_wall(&mut self, time: Duration) {
        if time >= SUSPECT_WALL {
            *self = Self { suspect: SUSPECT_SIGNALS, slow: 0, nobody: Duration::MAX };
        }
    }

    fn compare(&mut self, peer: Duration, nobody: Duration) -> bool {
        self.suspect -= 1;
        self.nobody = self.nobody.min(nobody);
        let slow = SLOW.max(self.nobody * SLOW_SIGNALS);
        let excess = peer.saturating_sub(nobody);
        self.slow = if excess >= slow * VERY_SLOW {
            self.slow.saturating_add(VERY_SLOW_WEIGHT)
        } else if excess >= slow {
            self.slow.saturating_add(1)
        } else {
            self.slow.saturating_sub(1)
        };
        self.slow >= CONVICTED
    }
}

/// Processor time of the calling thread.
fn thread_time() -> Duration {
    use nix::time::{ClockId, clock_gettime};
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn signals_are_counted() {
        let mut notifier = Notifier::new().unwrap();
        let eventfd = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK).unwrap();
        for _ in 0..1000 {
            notifier.signal(eventfd.as_fd()).unwrap();
        }
        assert_eq!(eventfd.read().unwrap(), 1000);
    }

    #[test]
    fn a_full_blocking_eventfd_does_not_block() {
        let mut notifier = Notifier::new().unwrap();
        let eventfd = EventFd::from_value_and_flags(0, EfdFlags::empty()).unwrap();
        eventfd.write(u64::MAX - 1).unwrap();
        let start = Instant::now();
        for _ in 0..200 {
            notifier.signal(eventfd.as_fd()).unwrap();
        }
        assert!(start.elapsed() < Duration::from_secs(1));
    }

    #[test]
    fn a_peer_is_convicted_by_many_slow_signals_and_not_by_one() {
        let fast = Duration::from_micros(2);
        let mut meter = SignalMeter::default();
        meter.saw_wall(Duration::from_millis(10));
        assert!(!meter.compare(SLOW * VERY_SLOW * 100, fast), "once");
        for _ in 1..SUSPECT_SIGNALS {
            assert!(!meter.compare(fast, fast));
        }
        assert_eq!(meter.suspect, 0);
        meter.saw_wall(SUSPECT_WALL);
        for _ in 1..CONVICTED {
            assert!(!meter.compare(SLOW + fast, fast));
        }
        assert!(meter.compare(SLOW + fast, fast));
    }

    #[test]
    fn a_slow_machine_convicts_nobody() {
        let (mut meter, slow) = (SignalMeter::default(), Duration::from_millis(1));
        meter.saw_wall(slow);
        for _ in 0..SUSPECT_SIGNALS / 2 {
            assert!(!meter.compare(slow, slow), "both are slow");
            assert!(!meter.compare(SLOW, Duration::ZERO), "every other one");
        }
    }

    /// Ten times as slow in everything: waking a sleeper as well.
    #[test]
    fn limits_go_by_what_the_machine_shows() {
        let (nobody, sleeper) = (Duration::from_micros(20), Duration::from_micros(320));
        let mut meter = SignalMeter::default();
        meter.saw_wall(sleeper);
        for _ in 0..SUSPECT_SIGNALS {
            assert!(!meter.compare(sleeper, nobody), "an honest sleeper");
        }
        meter.saw_wall(sleeper);
        // One signal to nobody that an interrupt lengthened does not raise the limit.
        let crowd = nobody * (SLOW_SIGNALS + 1);
        assert!(!meter.compare(crowd, nobody));
        assert!(!meter.compare(crowd, nobody * 40));
        assert!((2..=CONVICTED + 2).any(|_| meter.compare(crowd, nobody)), "a crowd is convicted");
    }

    #[test]
    fn another_file_is_refused() {
        let mut notifier = Notifier::new().unwrap();
        let file = File::open("/dev/null").unwrap();
        assert!(notifier.signal(file.as_fd()).is_err());
    }
}
