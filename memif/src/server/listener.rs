//! A listening socket for one or more interfaces.
//!
//! A flood of connections is slowed down, not served: what is beyond the limits stays in the
//! kernel's short backlog, where a well-behaved client waits as well. Interfaces of different
//! tenants must not share a listener.

use super::handshake::{Handshake, Limits};
use crate::sys::given::{Count, close_elsewhere};
use crate::sys::socket::{Address, accept, connect, listen, peer_credentials, wait_readable};
use nix::errno::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How many connections wait in the kernel.
const BACKLOG: i32 = 16;
/// When to look again while too many handshakes are open.
const HALF_OPEN_RETRY: Duration = Duration::from_millis(20);
/// How long a listener that goes waits for what clients in the backlog have sent to be thrown away.
const CLOSED_WITHIN: Duration = Duration::from_millis(20);

/// How much attention a listener's clients can claim.
#[derive(Debug, Clone, Copy)]
pub struct ListenerLimits {
    /// Handshakes open at a time.
    pub half_open: u32,
    /// Connections accepted per second on average. One that gets established does not count.
    pub accepts_per_s: u32,
    /// Connections accepted at once after a quiet time.
    pub accept_burst: u32,
    /// What HELLO announces; single interfaces may grant less.
    pub hello: Limits,
}

impl Default for ListenerLimits {
    fn default() -> Self {
        let hello = Limits::default();
        Self { half_open: 4, accepts_per_s: 10, accept_burst: 16, hello }
    }
}

/// What listeners and their handshakes count together.
#[derive(Debug, Default)]
pub(crate) struct Account {
    /// Handshakes, and descriptors of clients that are being closed.
    pub half_open: Count,
    /// Handshakes that led to a connection since the listener looked last.
    pub established: AtomicU32,
}

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    /// Taken when it is dropped.
    socket: Option<OwnedFd>,
    limits: ListenerLimits,
    account: Arc<Account>,
    tokens: f64,
    refilled: Instant,
    retry_at: Option<Instant>,
}

impl Listener {
    /// Listens on an abstract name in the calling thread's network namespace.
    ///
    /// # Errors
    /// The name is taken or too long.
    pub fn bind_abstract(name: &str) -> io::Result<Self> {
        Self::from_fd(listen(&Address::Abstract(name.to_owned()), BACKLOG)?)
    }

    /// Listens on a path. A socket file that nobody listens on any more is replaced; anything else in
    /// its place is left alone.
    ///
    /// # Errors
    /// Somebody listens there, or the file cannot be made.
    pub fn bind_path(path: &Path) -> io::Result<Self> {
        let address = Address::Path(path.to_owned());
        match listen(&address, BACKLOG) {
            Err(Errno::EADDRINUSE) if is_stale(path) => {
                std::fs::remove_file(path)?;
                Self::from_fd(listen(&address, BACKLOG)?)
            }
            other => Self::from_fd(other?),
        }
    }

    /// Binds either kind of address.
    ///
    /// # Errors
    /// As the function for that kind.
    pub fn bind(address: &Address) -> io::Result<Self> {
        match address {
            Address::Abstract(name) => Self::bind_abstract(name),
            Address::Path(path) => Self::bind_path(path),
        }
    }

    /// Takes over a socket that listens already, for instance one made in a pod's namespace.
    ///
    /// # Errors
    /// It cannot be made non-blocking.
    pub fn from_fd(socket: OwnedFd) -> io::Result<Self> {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let limits = ListenerLimits::default();
        Ok(Self {
            socket: Some(socket),
            limits,
            account: Arc::default(),
            tokens: f64::from(limits.accept_burst),
            refilled: Instant::now(),
            retry_at: None,
        })
    }

    /// Other limits than the default ones.
    #[must_use]
    pub fn with_limits(mut self, limits: ListenerLimits) -> Self {
        self.tokens = f64::from(limits.accept_burst);
        self.limits = limits;
        self
    }

    /// Takes the next connection, if there is one and the limits allow it. Register the socket
    /// edge-triggered and call this until it gives `None`; then, if [`retry_at`](Self::retry_at) gives a
    /// time, again at that time.
    ///
    /// # Errors
    /// This process is out of descriptors or memory; try again later.
    pub fn accept(&mut self) -> io::Result<Option<Handshake>> {
        self.retry_at = None;
        loop {
            let now = Instant::now();
            self.refill(now);
            if self.account.half_open.load(Ordering::Relaxed) >= self.limits.half_open {
                self.retry_at = Some(now + HALF_OPEN_RETRY);
                return Ok(None);
            }
            if self.tokens < 1.0 {
                let seconds = (1.0 - self.tokens) / f64::from(self.limits.accepts_per_s.max(1));
                self.retry_at = Some(now + Duration::from_secs_f64(seconds));
                return Ok(None);
            }
            let socket = match accept(self.as_fd()) {
                Ok(socket) => socket,
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR | Errno::ECONNABORTED | Errno::EPROTO) => continue,
                Err(errno) => return Err(errno.into()),
            };
            self.tokens -= 1.0;
            let peer = peer_credentials(socket.as_fd());
            // A client that hung up already is not worth a word.
            if let Some(h) = Handshake::begin(socket, peer, self.limits.hello, &self.account, now) {
                return Ok(Some(h));
            }
        }
    }

    /// When to call [`accept`](Self::accept) again although the socket will not say so.
    #[must_use]
    pub fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    fn refill(&mut self, now: Instant) {
        let rate = f64::from(self.limits.accepts_per_s);
        let established = self.account.established.swap(0, Ordering::Relaxed);
        let earned = now.duration_since(self.refilled).as_secs_f64() * rate;
        let most = f64::from(self.limits.accept_burst);
        self.tokens = (self.tokens + earned + f64::from(established)).min(most);
        self.refilled = now;
    }
}

impl Drop for Listener {
    /// Clients that wait may have sent something already, which is thrown away with the last descriptor
    /// of the listener: not here. The name is free afterwards, unless that takes its time.
    fn drop(&mut self) {
        let waiting = wait_readable(self, Duration::ZERO).unwrap_or(true);
        if let Some(socket) = self.socket.take()
            && waiting
            && let Some(thread) = close_elsewhere(vec![socket], &self.account.half_open)
        {
            let end = Instant::now() + CLOSED_WITHIN;
            while !thread.is_finished() && Instant::now() < end {
                std::thread::sleep(CLOSED_WITHIN / 20);
            }
        }
    }
}

impl AsFd for Listener {
    /// The socket, to wait for.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_ref().expect("a listener has a socket until it is dropped").as_fd()
    }
}

/// A socket file without a listener behind it.
fn is_stale(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    is_socket && matches!(connect(&Address::Path(path.to_owned())), Err(Errno::ECONNREFUSED))
}
