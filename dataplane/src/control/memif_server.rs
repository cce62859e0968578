//! One task for each memif interface: accepts its clients, sees a handshake through, watches the
//! connection.
//!
//! A task owns the listener and the one live connection. Queues go to the control thread, which
//! gives them to workers; the task answers further clients with "busy" until the control thread
//! says that the queues of the last connection are back ([`Order::Ready`]).

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::stream::{FuturesUnordered, StreamExt};
use memif::{
    Answer, Connection, Handshake, Limits, Listener, MemoryAccount, Mode, Offer, Progress,
};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::Ask;
use super::desired::Memif;
use super::memif_peer::{News, Order, Peer, Teller, is_readable, watch};
use crate::sys::descriptor::{Watched, watched};

/// Starts the task on the current thread's runtime.
///
/// # Errors
/// The listener can not be waited for.
pub fn start(
    interface: Arc<str>,
    listener: Listener,
    wanted: &Memif,
    ask: mpsc::Sender<Ask>,
) -> io::Result<Peer> {
    let listener = watched(listener)?;
    let memory = MemoryAccount::default();
    let offer = (wanted.id, offer(&interface, wanted, memory.clone()));
    Ok(Peer::start(interface, ask, |teller, inbox| {
        let task = Task {
            offer: Rc::new(RefCell::new(offer)),
            memory,
            teller,
            listener,
            busy: Rc::default(),
            rest: Rc::default(),
        };
        task.run(inbox)
    }))
}

/// What is granted. The pod's view and the protocol's: S2M rings are what the pod sends on.
fn offer(interface: &str, wanted: &Memif, memory: MemoryAccount) -> Offer {
    Offer {
        mode: if wanted.ip_mode { Mode::Ip } else { Mode::Ethernet },
        secret: wanted.secret.clone(),
        name: interface.rsplit('/').next().unwrap_or(interface).into(),
        require_sealed: wanted.require_sealed,
        limits: Limits {
            s2m_rings: wanted.tx_queues,
            m2s_rings: wanted.rx_queues,
            log2_ring_size: wanted.log2_ring_size,
            mapped_bytes: mapped_bytes(wanted),
            ..Limits::default()
        },
        memory,
    }
}

/// How much memory a client may bring. Where this process touches a page first, the page counts as its own,
/// so that sealed memory is limited to the longest frame for each slot, with something to spare. What cannot
/// be sealed is a whole heap (DPDK's clients without copies).
fn mapped_bytes(wanted: &Memif) -> u64 {
    const LEAST: u64 = 64 << 20;
    let limits = Limits::default();
    if !wanted.require_sealed {
        return limits.mapped_bytes;
    }
    let rings = u64::from(wanted.tx_queues) + u64::from(wanted.rx_queues);
    let buffers = (rings * u64::from(limits.frame_bytes)) << wanted.log2_ring_size;
    buffers.clamp(LEAST, limits.mapped_bytes)
}

/// How long clients wait after one that has cost a worker time, so that none costs more than a small part
/// of it. An honest one that was convicted by accident is back after a second; who does it again and again
/// waits twice as long each time.
#[derive(Debug, Default)]
struct Rest {
    /// The last conviction, and the wait that followed.
    last: Option<(Instant, Duration)>,
}

impl Rest {
    const FIRST: Duration = Duration::from_secs(1);
    const LONGEST: Duration = Duration::from_secs(64);
    /// Of good conduct, after which the next wait is the first again.
    const FORGIVEN_AFTER: Duration = Duration::from_secs(600);

    fn sentence(&mut self, now: Instant) {
        let again =
            self.last.filter(|(since, _)| now.duration_since(*since) < Self::FORGIVEN_AFTER);
        let wait = again.map_or(Self::FIRST, |(_, wait)| (wait * 2).min(Self::LONGEST));
        self.last = Some((now, wait));
    }

    fn holds(&self, now: Instant) -> bool {
        self.last.is_some_and(|(since, wait)| now.duration_since(since) < wait)
    }
}

struct Task {
    teller: Teller,
    offer: Rc<RefCell<(u32, Offer)>>,
    /// Of all clients that come here: who reconnects has no new account.
    memory: MemoryAccount,
    listener: AsyncFd<Watched<Listener>>,
    busy: Rc<Cell<bool>>,
    rest: Rc<RefCell<Rest>>,
}

impl Task {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Order>) {
        let mut handshakes = FuturesUnordered::new();
        let mut live: Option<AsyncFd<Watched<Connection>>> = None;
        loop {
            tokio::select! {
                order = inbox.recv() => match order {
                    Some(Order::Ready) => self.busy.set(live.is_some()),
                    Some(Order::Caps(wanted)) => {
                        let offer = offer(&self.teller.interface, &wanted, self.memory.clone());
                        *self.offer.borrow_mut() = (wanted.id, offer);
                    }
                    Some(Order::Hold) => self.busy.set(true),
                    Some(Order::Close { costly }) => {
                        drop(live.take());
                        if costly {
                            self.rest.borrow_mut().sentence(Instant::now());
                        }
                    }
                    None => return,
                },
                accepted = accept(&mut self.listener) => match accepted {
                    Ok(handshake) => handshakes.push(self.shake(handshake)),
                    Err(error) => {
                        tracing::warn!(interface = &*self.teller.interface, %error, "memif: accept");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                Some(end) = handshakes.next(), if !handshakes.is_empty() => {
                    if let Some(connection) = self.ended(end).await {
                        live = Some(connection);
                    }
                }
                (reason, violation) = watch(live.as_mut()), if live.is_some() => {
                    live = None;
                    self.teller.tell(News::Down { reason, violation }).await;
                }
            }
        }
    }

    /// Sees one handshake through. Nothing of the client's is trusted before it is over.
    fn shake(&self, handshake: Handshake) -> impl Future<Output = io::Result<Progress>> + use<> {
        let (busy, offer) = (Rc::clone(&self.busy), Rc::clone(&self.offer));
        let rest = Rc::clone(&self.rest);
        async move {
            let deadline = handshake.deadline();
            let mut handshake = watched(handshake)?;
            let answer = |id: u32| {
                let offer = offer.borrow();
                match offer.0 == id {
                    false => Answer::Unknown,
                    true if busy.get() || rest.borrow().holds(Instant::now()) => Answer::Busy,
                    true => Answer::Accept(offer.1.clone()),
                }
            };
            loop {
                let wait = handshake.readable_mut();
                let ready = tokio::time::timeout_at(deadline.into(), wait).await;
                let Ok(guard) = ready else {
                    return Ok(handshake.get_mut().0.on_readable(&answer));
                };
                let mut guard = guard?;
                let progress = guard.get_inner_mut().0.on_readable(&answer);
                if !matches!(progress, Progress::Pending) {
                    if matches!(progress, Progress::Connected(_)) {
                        busy.set(true);
                    }
                    return Ok(progress);
                }
                if !is_readable(guard.get_inner()) {
                    guard.clear_ready();
                }
                tokio::task::yield_now().await;
            }
        }
    }

    async fn ended(&self, end: io::Result<Progress>) -> Option<AsyncFd<Watched<Connection>>> {
        match end {
            Ok(Progress::Connected(mut connection)) => {
                let info = connection.info().clone();
                let (rx, tx) = connection.take_queues();
                let connection = match watched(connection) {
                    Ok(connection) => connection,
                    Err(error) => {
                        tracing::warn!(interface = &*self.teller.interface, %error, "memif: watch");
                        self.busy.set(false);
                        return None;
                    }
                };
                self.teller.tell(News::Up { info, rx, tx }).await;
                Some(connection)
            }
            Ok(Progress::Closed(reason)) => {
                self.teller.tell(News::TurnedAway { reason }).await;
                None
            }
            Ok(Progress::Pending) => None,
            Err(error) => {
                tracing::warn!(interface = &*self.teller.interface, %error, "memif: handshake");
                None
            }
        }
    }
}

/// The next client that the listener lets in.
async fn accept(listener: &mut AsyncFd<Watched<Listener>>) -> io::Result<Handshake> {
    loop {
        if let Some(handshake) = listener.get_mut().0.accept()? {
            return Ok(handshake);
        }
        if let Some(at) = listener.get_ref().0.retry_at() {
            tokio::time::sleep_until(tokio::time::Instant::from_std(at.max(Instant::now()))).await;
            continue;
        }
        let mut guard = listener.readable_mut().await?;
        if !is_readable(guard.get_inner()) {
            guard.clear_ready();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_costs_time_again_waits_twice_as_long_and_is_forgiven_later() {
        let (start, mut rest) = (Instant::now(), Rest::default());
        assert!(!rest.holds(start));
        let mut now = start;
        for wait_s in [1, 2, 4, 8, 16, 32, 64, 64] {
            rest.sentence(now);
            assert!(rest.holds(now + Duration::from_millis(wait_s * 1000 - 1)), "{wait_s} s");
            now += Duration::from_secs(wait_s);
            assert!(!rest.holds(now), "{wait_s} s");
        }
        now += Rest::FORGIVEN_AFTER;
        rest.sentence(now);
        assert!(rest.holds(now) && !rest.holds(now + Rest::FIRST));
    }

    #[test]
    fn memory_is_granted_by_the_size_of_the_rings() {
        let mib = |require_sealed, queues, log2_ring_size| {
            let (rx_queues, tx_queues) = (queues, queues);
            let secret = String::new();
            let (ip_mode, id) = (false, 0);
            let wanted =
                Memif { ip_mode, rx_queues, tx_queues, log2_ring_size, require_sealed, secret, id };
            mapped_bytes(&wanted) >> 20
        };
        assert_eq!(mib(true, 1, 10), 64);
        assert_eq!(mib(true, 4, 10), 128);
        assert_eq!(mib(true, 1, 14), 512);
        assert_eq!(mib(true, 16, 14), 512);
        assert_eq!(mib(false, 1, 10), 512);
    }
}
