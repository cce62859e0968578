//! An eventfd that cannot be closed: whoever closes it last has to take it out of an epoll, and another thread
//! sleeps with the epoll's lock, because the page for its events is missing (userfaultfd(2)). A pod may have it
//! sleep by punching holes around that page.

#![allow(dead_code, reason = "each test file uses its own part of this module")]

use super::wait_for;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::thread::JoinHandle;

const PAGE_BYTES: usize = 4096;
const UFFD_API: u64 = 0xAA;
const MODE_MISSING: u64 = 1;

#[repr(C)]
struct Api([u64; 3]);
#[repr(C)]
struct Register([u64; 4]);
nix::ioctl_readwrite!(uffdio_api, UFFD_API, 0x3F, Api);
nix::ioctl_readwrite!(uffdio_register, UFFD_API, 0x00, Register);

pub(crate) struct Held {
    eventfd: Option<OwnedFd>,
    epoll: OwnedFd,
    /// Closing it wakes the sleeper.
    sleep: Option<OwnedFd>,
    sleeper: Option<JoinHandle<()>>,
}

impl Held {
    pub(crate) fn new() -> Self {
        let eventfd = EventFd::from_value_and_flags(1, EfdFlags::EFD_NONBLOCK).unwrap();
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        epoll.add(&eventfd, EpollEvent::new(EpollFlags::EPOLLIN, 0)).unwrap();
        let again = epoll.0.try_clone().unwrap();
        let (sleep, page) = missing_page();
        let sleeper = std::thread::spawn(move || {
            let events = page as *mut libc::epoll_event;
            // SAFETY: room for one event, in a page that is mapped for good.
            unsafe { libc::epoll_wait(epoll.0.as_raw_fd(), events, 1, -1) };
        });
        wait_for("a sleeper", || {
            let mut fds = [PollFd::new(sleep.as_fd(), PollFlags::POLLIN)];
            (poll(&mut fds, PollTimeout::ZERO) == Ok(1)).then_some(())
        });
        let (sleep, sleeper) = (Some(sleep), Some(sleeper));
        Self { eventfd: Some(eventfd.into()), epoll: again, sleep, sleeper }
    }

    /// What is locked.
    pub(crate) fn epoll(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    pub(crate) fn eventfd(&self) -> BorrowedFd<'_> {
        self.eventfd.as_ref().unwrap().as_fd()
    }

    /// From now on the last close is somebody else's, to whom it was sent.
    pub(crate) fn give_up(&mut self) {
        self.eventfd = None;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.sleep = None;
        let _ = self.sleeper.take().unwrap().join();
    }
}

/// A page whose first touch waits until the descriptor is closed.
fn missing_page() -> (OwnedFd, usize) {
    let length = NonZeroUsize::new(PAGE_BYTES).unwrap();
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping; system calls with structures of the layouts that the kernel asks for.
    unsafe {
        let page = mmap_anonymous(None, length, access, MapFlags::MAP_PRIVATE).unwrap();
        let page = page.as_ptr() as usize;
        let fd = libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK);
        let fd = OwnedFd::from_raw_fd(Errno::result(fd).unwrap() as i32);
        uffdio_api(fd.as_raw_fd(), &mut Api([UFFD_API, 0, 0])).unwrap();
        let mut register = Register([page as u64, PAGE_BYTES as u64, MODE_MISSING, 0]);
        uffdio_register(fd.as_raw_fd(), &raw mut register).unwrap();
        (fd, page)
    }
}
