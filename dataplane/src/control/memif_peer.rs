//! What a task that minds a memif's peer and the control thread say to each other.
//!
//! A task owns the one live connection, and what leads to the next: a listener
//! ([`super::memif_server`]) or a connector ([`super::memif_client`]). Queues go to the control thread,
//! which gives them to workers; the task lets no further peer in until the control thread says that the
//! queues of the last connection are back ([`Order::Ready`]).

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use memif::{CloseReason, Connection, Info, RxQueue, Status, TxQueue};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::Ask;
use super::desired::Memif;
use crate::sys::descriptor::Watched;

/// What the control thread tells a task.
#[derive(Debug)]
pub enum Order {
    /// The queues of the last connection are gone: the next peer is welcome.
    Ready,
    /// The queues of an earlier connection are still out: keep peers waiting until `Ready`.
    Hold,
    /// Disconnect the peer. A client that was `costly` to a worker has the next ones wait, see
    /// `memif_server::Rest`.
    Close {
        /// Whether it was.
        costly: bool,
    },
    /// Other caps, for the next client.
    Caps(Memif),
}

/// What a task tells the control thread.
#[derive(Debug)]
pub enum News {
    /// A peer is connected; these are its rings.
    Up {
        /// What was agreed on.
        info: Info,
        /// From the peer.
        rx: Vec<RxQueue>,
        /// To the peer.
        tx: Vec<TxQueue>,
    },
    /// The connection is over.
    Down {
        /// Why.
        reason: CloseReason,
        /// Whether the peer broke the protocol.
        violation: bool,
    },
    /// A client was turned away, or a server turned us away, before there was a connection.
    TurnedAway {
        /// Why.
        reason: CloseReason,
    },
}

/// The control thread's end of a task. Dropping it ends the task, and with it the listener's duplicate
/// and the connection.
#[derive(Debug)]
pub struct Peer {
    /// Never given twice: news of an earlier task of the same interface are not ours.
    pub serial: u64,
    orders: mpsc::UnboundedSender<Order>,
    task: tokio::task::JoinHandle<()>,
}

static SERIAL: AtomicU64 = AtomicU64::new(1);

impl Peer {
    /// Runs a task on the current thread's runtime.
    pub fn start<T: Future<Output = ()> + 'static>(
        interface: Arc<str>,
        ask: mpsc::Sender<Ask>,
        task: impl FnOnce(Teller, mpsc::UnboundedReceiver<Order>) -> T,
    ) -> Self {
        let (orders, inbox) = mpsc::unbounded_channel();
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let teller = Teller { interface, serial, ask };
        Self { serial, orders, task: tokio::task::spawn_local(task(teller, inbox)) }
    }

    /// Gives an order. A task that has ended needs none.
    pub fn order(&self, order: Order) {
        let _ = self.orders.send(order);
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A task's end.
#[derive(Debug)]
pub struct Teller {
    /// Whose peer it is.
    pub interface: Arc<str>,
    serial: u64,
    ask: mpsc::Sender<Ask>,
}

impl Teller {
    /// Tells the control thread.
    pub async fn tell(&self, news: News) {
        let (interface, serial) = (Arc::clone(&self.interface), self.serial);
        // The control thread is gone only while the process ends.
        let _ = self.ask.send(Ask::Memif { interface, serial, news }).await;
    }
}

/// Waits for the end of the connection: why, and whether the client broke the protocol.
pub(super) async fn watch(
    connection: Option<&mut AsyncFd<Watched<Connection>>>,
) -> (CloseReason, bool) {
    let Some(connection) = connection else { return std::future::pending().await };
    loop {
        let Ok(mut guard) = connection.readable_mut().await else {
            return (CloseReason::PeerClosed, false);
        };
        if let Status::Down(reason) = guard.get_inner_mut().0.on_readable() {
            let polite =
                matches!(reason, CloseReason::PeerClosed | CloseReason::PeerDisconnected(_));
            return (reason, !polite);
        }
        if !is_readable(guard.get_inner()) {
            guard.clear_ready();
        }
    }
}

pub(super) fn is_readable<T: AsFd>(fd: &Watched<T>) -> bool {
    let mut fds = [PollFd::new(fd.0.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).map_or(true, |ready| ready > 0)
}
