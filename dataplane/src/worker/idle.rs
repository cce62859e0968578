//! When a worker sleeps, and what wakes it.
//!
//! `busy` spins. `adaptive` spins for a moment after the last packet, then asks the memif peers
//! for wake-ups and sleeps in epoll, a millisecond at most (two after a second without packets): stock
//! memif peers lose wake-ups.
//! A peer's eventfd is watched edge-triggered and never read or written.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::RxEntry;
use crate::port::Rx;

/// How a worker waits for packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Polling {
    /// Spin: lowest latency, one core.
    Busy,
    /// Sleep when idle.
    Adaptive,
}

/// How long a worker spins after its last packet.
const SPIN: Duration = Duration::from_micros(30);
/// The longest sleep.
const SLEEP_MS: u16 = 1;
/// The longest sleep after a while without any packet: each one costs a look at every queue.
const LONG_SLEEP_MS: u16 = 2;
/// That while.
const LONG_IDLE: Duration = Duration::from_secs(1);
/// The longest sleep while a queue has no descriptor to wait on.
const BLIND_SLEEP: Duration = Duration::from_micros(50);
/// Turns with packets since the last sleep, after which memif peers are told that we poll: each signal
/// is a system call of theirs. Fewer are not worth telling all of them, and asking them again.
const BUSY_TURNS: u32 = 32;
/// Between two looks at the descriptors, each a system call: while turns find packets, and while they
/// do not. A queue that has more to read is read without a look.
const LOOK_BUSY: Duration = Duration::from_micros(20);
const LOOK_SPINNING: Duration = Duration::from_micros(4);
const WAKE: u64 = u64::MAX;

/// See the module.
#[derive(Debug)]
pub(super) struct Idle {
    polling: Polling,
    epoll: Epoll,
    wake: OwnedFd,
    last_work: Instant,
    now: Instant,
    busy_turns: u32,
    /// Whether the last turn found packets.
    found: bool,
    armed: bool,
    /// Queues that must be asked with a system call.
    syscall_queues: usize,
    /// Queues that can not wake us.
    blind_queues: usize,
    looked: Instant,
    events: Box<[EpollEvent]>,
}

impl Idle {
    pub(super) fn new(polling: Polling, wake: BorrowedFd<'_>) -> std::io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        let now = Instant::now();
        Ok(Self {
            polling,
            epoll,
            wake: wake.try_clone_to_owned()?,
            last_work: now,
            now,
            busy_turns: 0,
            found: false,
            armed: false,
            syscall_queues: 0,
            blind_queues: 0,
            looked: now,
            events: vec![EpollEvent::empty(); 64].into_boxed_slice(),
        })
    }

    /// Starts to watch the queue with this index. Its peer need not signal before the worker sleeps.
    pub(super) fn watch(&mut self, index: usize, rx: &mut Rx) {
        rx.disarm();
        // Peers' eventfds edge-triggered, since we never read them.
        let flags = if rx.poll_is_syscall() {
            self.syscall_queues += 1;
            EpollFlags::EPOLLIN
        } else {
            EpollFlags::EPOLLIN | EpollFlags::EPOLLET
        };
        let added = rx
            .wake_fd()
            .is_some_and(|fd| self.epoll.add(fd, EpollEvent::new(flags, index as u64)).is_ok());
        self.blind_queues += usize::from(!added);
        self.armed = false;
    }

    /// Stops watching a queue that is about to leave the worker.
    pub(super) fn forget(&mut self, rx: &Rx) {
        self.syscall_queues -= usize::from(rx.poll_is_syscall());
        let removed = rx.wake_fd().is_some_and(|fd| self.epoll.delete(fd).is_ok());
        self.blind_queues = self.blind_queues.saturating_sub(usize::from(!removed));
    }

    /// Marks the queues that have something to read, in the turn that begins at `now`.
    #[inline]
    pub(super) fn look(&mut self, now: Instant, rxs: &mut [Option<RxEntry>]) {
        let every = if self.found { LOOK_BUSY } else { LOOK_SPINNING };
        if self.syscall_queues == 0 || now - self.looked < every {
            return;
        }
        self.looked = now;
        self.wait(EpollTimeout::ZERO, rxs);
    }

    /// Takes note of what the turn found that began at `now`.
    #[inline]
    pub(super) fn note(&mut self, work: usize, now: Instant, rxs: &mut [Option<RxEntry>]) {
        self.now = now;
        self.found = work > 0;
        if !self.found {
            return;
        }
        self.last_work = self.now;
        self.busy_turns = self.busy_turns.saturating_add(1);
        if self.armed && self.busy_turns > BUSY_TURNS {
            self.armed = false;
            for entry in rxs.iter_mut().flatten() {
                entry.rx.disarm();
            }
        }
    }

    /// Whether it is time to sleep.
    pub(super) fn may_park(&self) -> bool {
        self.polling == Polling::Adaptive && self.now - self.last_work > SPIN
    }

    /// Sleeps. Returns for how many nanoseconds.
    pub(super) fn sleep(&mut self, rxs: &mut [Option<RxEntry>]) -> u64 {
        self.busy_turns = 0;
        if !self.armed {
            self.armed = true;
            let mut frames_there = false;
            for entry in rxs.iter_mut().flatten().filter(|entry| !entry.dead) {
                frames_there |= entry.rx.arm();
            }
            if frames_there {
                return 0;
            }
        }
        let start = Instant::now();
        if self.blind_queues > 0 {
            let mut fds = [PollFd::new(self.epoll.0.as_fd(), PollFlags::POLLIN)];
            // A signal that ends the sleep early is harmless.
            let _ = ppoll(&mut fds, Some(BLIND_SLEEP.into()), None);
            self.wait(EpollTimeout::ZERO, rxs);
        } else {
            let long = start.duration_since(self.last_work) > LONG_IDLE;
            self.wait(EpollTimeout::from(if long { LONG_SLEEP_MS } else { SLEEP_MS }), rxs);
        }
        start.elapsed().as_nanos() as u64
    }

    fn wait(&mut self, timeout: EpollTimeout, rxs: &mut [Option<RxEntry>]) {
        let Ok(count) = self.epoll.wait(&mut self.events, timeout) else { return };
        for event in &self.events[..count] {
            if event.data() == WAKE {
                let mut counter = [0; 8];
                let _ = nix::unistd::read(&self.wake, &mut counter);
            } else if let Some(Some(entry)) = rxs.get_mut(event.data() as usize) {
                entry.ready = true;
            }
        }
    }
}
