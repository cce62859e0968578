//! An established connection: the control socket, and the queues until they are taken.

use crate::Role;
use crate::error::{CloseReason, Violation};
use crate::region::Regions;
use crate::ring::rx::RxQueue;
use crate::ring::tx::TxQueue;
use crate::sys::socket::{Control, Received, send};
use crate::wire::{Message, Mode, Reason};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

/// What was agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// Our end.
    pub role: Role,
    /// Interface id on the socket.
    pub id: u32,
    /// What frames begin with.
    pub mode: Mode,
    /// The peer application's name, as it calls itself.
    pub peer_name: String,
    /// The peer's name for the interface.
    pub peer_interface: String,
    /// Process id of the peer when it connected; 0 in a foreign pid namespace.
    pub peer_pid: i32,
    /// User id of the peer when it connected.
    pub peer_uid: u32,
    /// Bytes of shared memory mapped.
    pub mapped_bytes: usize,
}

/// Whether a connection still stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// It does.
    Up,
    /// It is over; drop it and its queues.
    Down(CloseReason),
}

/// Keeps a connection's memory mapped: for copies that outlive the queue, such as DMA.
#[derive(Debug, Clone)]
pub struct RegionHold {
    #[expect(dead_code, reason = "held, not read")]
    regions: Arc<Regions>,
}

impl RegionHold {
    pub(crate) fn new(regions: &Arc<Regions>) -> Self {
        Self { regions: Arc::clone(regions) }
    }
}

/// An established connection. Dropping it closes the control socket, which tells the peer; the
/// memory goes when the last queue goes.
#[derive(Debug)]
pub struct Connection {
    socket: Control,
    info: Info,
    regions: Arc<Regions>,
    rx: Vec<RxQueue>,
    tx: Vec<TxQueue>,
    down: Option<CloseReason>,
}

impl Connection {
    pub(crate) fn new(
        socket: Control,
        info: Info,
        regions: Arc<Regions>,
        rx: Vec<RxQueue>,
        tx: Vec<TxQueue>,
    ) -> Self {
        Self { socket, info, regions, rx, tx, down: None }
    }

    /// What was agreed on.
    #[must_use]
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// The queues, in the order of their indexes; empty the second time.
    pub fn take_queues(&mut self) -> (Vec<RxQueue>, Vec<TxQueue>) {
        (std::mem::take(&mut self.rx), std::mem::take(&mut self.tx))
    }

    /// The receive queues not yet taken.
    pub fn rx(&mut self) -> &mut [RxQueue] {
        &mut self.rx
    }

    /// The transmit queues not yet taken.
    pub fn tx(&mut self) -> &mut [TxQueue] {
        &mut self.tx
    }

    /// Call when the control socket is readable or hung up: the only thing that a peer may send now
    /// is its goodbye.
    pub fn on_readable(&mut self) -> Status {
        if let Some(reason) = &self.down {
            return Status::Down(reason.clone());
        }
        let reason = match self.socket.receive() {
            Ok(Received::Nothing) => return Status::Up,
            Ok(Received::Message(Message::Disconnect { reason, .. }, _)) => {
                CloseReason::PeerDisconnected(reason.to_printable())
            }
            Ok(Received::Message(message, _)) => {
                let waiting_for = "DISCONNECT";
                let reason = CloseReason::UnexpectedMessage { kind: message.kind(), waiting_for };
                say_goodbye(self.socket.as_fd(), &reason);
                reason
            }
            Err(reason) => {
                if reason != CloseReason::PeerClosed {
                    say_goodbye(self.socket.as_fd(), &reason);
                }
                reason
            }
        };
        self.down = Some(reason.clone());
        Status::Down(reason)
    }

    /// Waits for the control socket and looks at it: for programs without an event loop.
    ///
    /// # Errors
    /// `poll` failed.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<Status> {
        crate::sys::socket::wait_readable(&self.socket, timeout)?;
        Ok(self.on_readable())
    }

    /// Makes the control socket readable, as at the peer's end: for a worker that found a violation
    /// and leaves the rest to the thread that waits for the socket.
    pub fn shut_down(&self) {
        crate::sys::socket::shut_down(self.socket.as_fd());
    }

    /// Tells the peer why, and closes.
    pub fn disconnect(self, reason: &CloseReason) {
        if self.down.is_none() {
            say_goodbye(self.socket.as_fd(), reason);
        }
    }

    /// Whether the connection is spoilt; then [`cause`](Self::cause) says by what.
    #[inline]
    #[must_use]
    pub fn poisoned(&self) -> bool {
        self.regions.health.poisoned()
    }

    /// Why it is spoilt.
    #[must_use]
    pub fn cause(&self) -> Option<Violation> {
        self.regions.health.cause()
    }
}

impl AsFd for Connection {
    /// The control socket, to wait for.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Best effort: a peer that does not read its socket is closed without a word.
pub(crate) fn say_goodbye(socket: BorrowedFd<'_>, reason: &CloseReason) {
    let reason = Reason::truncated(&reason.to_string());
    let _ = send(socket, &Message::Disconnect { code: 0, reason }, None);
}
