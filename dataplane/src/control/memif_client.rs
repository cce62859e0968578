//! One task for each memif that this process connects to: an uplink whose wire is another program's.

use std::sync::Arc;
use std::time::Instant;

use memif::{ClientConfig, ClientEvent, CloseReason, Connection, Connector};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::Ask;
use super::memif_peer::{News, Order, Peer, Teller, watch};
use crate::sys::descriptor::{Watched, watched};

/// Starts the task on the current thread's runtime.
pub(super) fn start(interface: Arc<str>, config: ClientConfig, ask: mpsc::Sender<Ask>) -> Peer {
    Peer::start(interface, ask, |teller, inbox| {
        Task { teller, connector: Connector::new(config), held: false }.run(inbox)
    })
}

struct Task {
    teller: Teller,
    connector: Connector,
    /// The queues of the last connection are still out.
    held: bool,
}

impl Task {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Order>) {
        let mut live: Option<AsyncFd<Watched<Connection>>> = None;
        loop {
            tokio::select! {
                order = inbox.recv() => match order {
                    Some(Order::Ready) => self.held = false,
                    Some(Order::Hold) => self.held = true,
                    Some(Order::Close { .. }) => {
                        if live.take().is_some() {
                            self.connector.lost(Instant::now());
                        }
                    }
                    // Of clients.
                    Some(Order::Caps(_)) => {}
                    None => return,
                },
                end = attempt(&mut self.connector), if live.is_none() && !self.held => match end {
                    Ok(connection) => live = self.connected(connection).await,
                    Err(reason) => self.teller.tell(News::TurnedAway { reason }).await,
                },
                (reason, violation) = watch(live.as_mut()), if live.is_some() => {
                    live = None;
                    self.connector.lost(Instant::now());
                    self.teller.tell(News::Down { reason, violation }).await;
                }
            }
        }
    }

    async fn connected(
        &mut self,
        mut connection: Connection,
    ) -> Option<AsyncFd<Watched<Connection>>> {
        let info = connection.info().clone();
        let (rx, tx) = connection.take_queues();
        match watched(connection) {
            Ok(connection) => {
                self.held = true;
                self.teller.tell(News::Up { info, rx, tx }).await;
                Some(connection)
            }
            Err(error) => {
                tracing::warn!(interface = &*self.teller.interface, %error, "memif: watch");
                self.connector.lost(Instant::now());
                None
            }
        }
    }
}

/// The next connection, or why an attempt failed. Nothing is lost when this is dropped half-way.
async fn attempt(connector: &mut Connector) -> Result<Connection, CloseReason> {
    loop {
        match connector.poll(Instant::now()) {
            ClientEvent::Connected(connection) => return Ok(connection),
            ClientEvent::Failed(reason) => return Err(reason),
            ClientEvent::Pending => {}
        }
        let Some(deadline) = connector.deadline() else { return std::future::pending().await };
        let socket = connector.socket().and_then(|socket| socket.try_clone_to_owned().ok());
        let socket = socket.and_then(|socket| watched(socket).ok());
        let readable = async {
            match &socket {
                Some(socket) => drop(socket.readable().await),
                None => std::future::pending().await,
            }
        };
        // Either is a reason to look again.
        let _ = tokio::time::timeout_at(deadline.into(), readable).await;
    }
}
