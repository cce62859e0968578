//! What the control thread tells a worker, and what it hears back.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::mpsc;

use super::handover::{self, Peer};
use super::idle::{Idle, Polling};
use super::{RxEntry, State, Stats, TxEntry, Worker, emit};
use crate::copy::{CopyList, Disabled};
use crate::observe::{Observe, Observer};
use crate::path::{IcmpLimiter, PathEvent};
use crate::port::{BufferPool, Burst, Health, Rx, Tx};
use crate::table::{IfaceId, Publisher, Tables};

/// Commands that a worker has not looked at yet. More than any one change of state needs.
const COMMANDS: usize = 1024;

/// An order to a worker.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "queues change hands rarely")]
pub enum Command {
    /// Poll this queue. Frames flow once the interface is in the published tables.
    AddRx {
        /// Whose it is.
        iface: IfaceId,
        /// The queue.
        rx: Rx,
    },
    /// Stop polling all queues of the interface and hand them back ([`Report::Retired`]).
    RemoveRx {
        /// Whose.
        iface: IfaceId,
    },
    /// Send on this queue.
    AddTx {
        /// Whose it is.
        iface: IfaceId,
        /// Its number.
        queue: u16,
        /// The queue.
        tx: Tx,
    },
    /// Stop sending on all queues of the interface and hand them back.
    RemoveTx {
        /// Whose.
        iface: IfaceId,
    },
    /// Change what is traced and captured.
    Observe(Observe),
    /// Leave the loop.
    Stop,
}

/// A queue that a worker has let go: dropping it unmaps and closes, off the packet path.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "queues change hands rarely")]
pub enum Retired {
    /// A receiving queue; no claim on it is held any more.
    Rx(Rx),
    /// A sending queue.
    Tx(Tx),
}

/// News from a worker.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "queues change hands rarely")]
pub enum Report {
    /// Answer to `RemoveRx` and `RemoveTx`: one for each queue.
    Retired(IfaceId, Retired),
    /// Answer to `RemoveRx` and `RemoveTx`: all queues of the interface are out.
    Removed {
        /// Which worker.
        worker: usize,
        /// Whose queues.
        iface: IfaceId,
        /// Receiving or sending ones.
        rx: bool,
    },
    /// A queue stopped: disconnect the peer, or take the dead device away.
    Unwell(IfaceId, Health),
    /// Something that the path noticed and a person should know.
    Path(PathEvent),
    /// This worker's DMA channel was given up: the CPU copies.
    EngineDisabled(usize, Disabled),
}

/// The control thread's end of one worker.
#[derive(Debug)]
pub struct Handle {
    commands: rtrb::Producer<Command>,
    wake: Arc<EventFd>,
    /// What the worker tells about itself.
    pub stats: Arc<Stats>,
}

/// The worker has not taken any of its last 1024 commands.
#[derive(Debug, thiserror::Error)]
#[error("worker {worker} does not take commands: it hangs or has died")]
pub struct CommandsFull {
    /// Its number.
    pub worker: usize,
}

impl Handle {
    /// Gives an order; it is carried out within a turn.
    pub fn send(&mut self, worker: usize, command: Command) -> Result<(), CommandsFull> {
        self.commands.push(command).map_err(|_| CommandsFull { worker })?;
        self.wake();
        Ok(())
    }

    /// Ends a park.
    pub fn wake(&self) {
        // Only fails when the counter is about to overflow, and then the worker wakes anyway.
        let _ = self.wake.write(1);
    }
}

/// The worker's end.
#[derive(Debug)]
pub(super) struct WorkerEnd {
    pub(super) commands: rtrb::Consumer<Command>,
    pub(super) reports: mpsc::UnboundedSender<Report>,
    pub(super) stats: Arc<Stats>,
    pub(super) events: EventSink,
}

/// Where the path puts its events: a few a second at most, see [`PathEvent`].
#[derive(Debug)]
pub(super) struct EventSink {
    reports: mpsc::UnboundedSender<Report>,
}

impl crate::path::Events for EventSink {
    #[cold]
    fn event(&mut self, event: PathEvent) {
        // The control thread is gone only while the process ends.
        let _ = self.reports.send(Report::Path(event));
    }
}

impl WorkerEnd {
    #[cold]
    pub(super) fn engine_disabled(&self, worker: usize, disabled: Disabled) {
        let _ = self.reports.send(Report::EngineDisabled(worker, disabled));
    }

    #[cold]
    pub(super) fn unwell(&self, iface: IfaceId, health: Health) {
        let _ = self.reports.send(Report::Unwell(iface, health));
    }
}

/// Workers, and the ends that the control thread keeps.
#[derive(Debug)]
pub struct Setup {
    /// To be moved to their threads.
    pub workers: Vec<Worker>,
    /// In order of the workers' numbers.
    pub handles: Vec<Handle>,
    /// The one writer of the tables.
    pub publisher: Publisher,
    /// News from all workers.
    pub reports: mpsc::UnboundedReceiver<Report>,
}

/// Makes `count` workers that know each other.
pub fn setup(count: usize, polling: Polling, tables: Tables) -> std::io::Result<Setup> {
    let (publisher, readers) = Publisher::new(tables, count);
    let (report_tx, reports) = mpsc::unbounded_channel();
    let stats: Vec<Arc<Stats>> = (0..count).map(|_| Arc::default()).collect();
    let wakes: Vec<Arc<EventFd>> = (0..count)
        .map(|_| {
            let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
            EventFd::from_value_and_flags(0, flags).map(Arc::new)
        })
        .collect::<Result<_, _>>()?;
    let mut peers = handover::mesh(count, &stats, &wakes);
    let mut workers = Vec::new();
    let mut handles = Vec::new();
    for (id, reader) in readers.into_iter().enumerate() {
        let (producer, consumer) = rtrb::RingBuffer::new(COMMANDS);
        handles.push(Handle {
            commands: producer,
            wake: Arc::clone(&wakes[id]),
            stats: Arc::clone(&stats[id]),
        });
        let state = State {
            id,
            rxs: Vec::new(),
            txs: Vec::new(),
            dirty: Vec::with_capacity(64),
            burst: Burst::default(),
            pool: BufferPool::default(),
            list: CopyList::default(),
            notifier: memif::Notifier::new()?,
            limiter: IcmpLimiter::default(),
            peers: peers.remove(0),
            handle: WorkerEnd {
                commands: consumer,
                reports: report_tx.clone(),
                stats: Arc::clone(&stats[id]),
                events: EventSink { reports: report_tx.clone() },
            },
            idle: Idle::new(polling, wakes[id].as_fd())?,
            now_ns: 0,
            housekept_ns: 0,
            started: std::time::Instant::now(),
            scratch: emit::Scratch::default(),
            clock: super::StageClock::default(),
            observer: Observer::default(),
            stop: false,
        };
        workers.push(Worker { reader, state });
    }
    Ok(Setup { workers, handles, publisher, reports })
}

impl State {
    /// Carries out waiting commands.
    #[inline]
    pub(super) fn commands(&mut self) {
        while let Ok(command) = self.handle.commands.pop() {
            self.command(command);
        }
    }

    #[cold]
    fn command(&mut self, command: Command) {
        match command {
            Command::AddRx { iface, rx } => self.add_rx(iface, rx),
            Command::RemoveRx { iface } => self.remove_rx(iface),
            Command::AddTx { iface, queue, tx } => self.add_tx(iface, queue, tx),
            Command::RemoveTx { iface } => self.remove_tx(iface),
            Command::Observe(what) => self.observer.observe(what),
            Command::Stop => self.stop = true,
        }
    }

    fn add_rx(&mut self, iface: IfaceId, rx: Rx) {
        let index = match self.rxs.iter().position(Option::is_none) {
            Some(free) => free,
            None => {
                self.rxs.push(None);
                self.rxs.len() - 1
            }
        };
        let ready = !rx.poll_is_syscall();
        let mut entry = RxEntry {
            iface,
            rx,
            ready,
            lent: 0,
            only_sink: None,
            waited: false,
            leaving: false,
            dead: false,
        };
        self.idle.watch(index, &mut entry.rx);
        self.rxs[index] = Some(entry);
    }

    fn remove_rx(&mut self, iface: IfaceId) {
        for index in 0..self.rxs.len() {
            let Some(entry) = self.rxs[index].as_mut() else { continue };
            if entry.iface == iface {
                entry.leaving = true;
                if entry.lent == 0 {
                    self.hand_back(index);
                }
            }
        }
        self.report_if_gone(iface);
    }

    /// Gives a queue back to the control thread; nothing of it is lent.
    pub(super) fn hand_back(&mut self, index: usize) {
        let Some(entry) = self.rxs.get_mut(index).and_then(Option::take) else { return };
        self.idle.forget(&entry.rx);
        let _ = self.handle.reports.send(Report::Retired(entry.iface, Retired::Rx(entry.rx)));
        self.report_if_gone(entry.iface);
    }

    fn report_if_gone(&self, iface: IfaceId) {
        if !self.rxs.iter().flatten().any(|entry| entry.iface == iface) {
            let _ = self.handle.reports.send(Report::Removed { worker: self.id, iface, rx: true });
        }
    }

    fn add_tx(&mut self, iface: IfaceId, queue: u16, tx: Tx) {
        let (iface, queue) = (usize::from(iface.0), usize::from(queue));
        if self.txs.len() <= iface {
            self.txs.resize_with(iface + 1, Vec::new);
        }
        let queues = &mut self.txs[iface];
        if queues.len() <= queue {
            queues.resize_with(queue + 1, || None);
        }
        queues[queue] = Some(TxEntry { tx, dirty: false, dead: false });
    }

    fn remove_tx(&mut self, iface: IfaceId) {
        let queues = self.txs.get_mut(usize::from(iface.0)).map(std::mem::take).unwrap_or_default();
        for entry in queues.into_iter().flatten() {
            let _ = self.handle.reports.send(Report::Retired(iface, Retired::Tx(entry.tx)));
        }
        let _ = self.handle.reports.send(Report::Removed { worker: self.id, iface, rx: false });
    }

    /// Nothing has been handed to this worker since it last looked.
    pub(super) fn nothing_waits(&self) -> bool {
        self.handle.commands.is_empty() && self.peers.iter().flatten().all(Peer::is_quiet)
    }

    /// Sleeps until a descriptor is ready, somebody wakes us, or a millisecond has passed.
    pub(super) fn park(&mut self) {
        let stats = Arc::clone(&self.handle.stats);
        stats.parked.store(true, Ordering::SeqCst);
        // Whoever hands us something looks at `parked` after pushing; we look again after setting.
        if self.nothing_waits() {
            let parked_ns = self.idle.sleep(&mut self.rxs);
            super::bump(&stats.parked_ns, parked_ns);
        }
        stats.parked.store(false, Ordering::SeqCst);
    }
}

/// The wake descriptor of a worker, shared by all that may wake it.
pub(super) type Wake = Arc<EventFd>;
