//! A memif connection, made in a pod's network namespace, and made again when it breaks.
//!
//! *Invariant*: the calling thread is in its own namespace again when a method returns.

use crate::now_ns;
use anyhow::{Context, ensure};
use memif::{
    Address, ClientConfig, ClientEvent, CloseReason, Connection, Connector, Mode, Notifier,
    RxQueue, Status, TxQueue, Violation,
};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, setns};
use nix::unistd::Pid;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often a standing connection is looked at.
const LOOK_EVERY_NS: u64 = 1_000_000;

/// Where and how to connect.
#[derive(Debug, Clone)]
pub struct PortConfig {
    /// `@name` (abstract) or a path.
    pub socket: String,
    /// A name under /run/netns, or a path.
    pub netns: Option<String>,
    /// The interface's number on the socket.
    pub id: u32,
    /// Frames without Ethernet header.
    pub ip_mode: bool,
    /// Queues to receive from.
    pub rx_queues: u16,
    /// Queues to send to.
    pub tx_queues: u16,
    /// Slots of a ring, a power of two.
    pub ring_slots: u32,
    /// Bytes of a buffer.
    pub buffer_bytes: u32,
}

impl Default for PortConfig {
    fn default() -> Self {
        Self {
            socket: "@memif1".into(),
            netns: None,
            id: 0,
            ip_mode: false,
            rx_queues: 1,
            tx_queues: 1,
            ring_slots: 1024,
            buffer_bytes: 2048,
        }
    }
}

impl PortConfig {
    fn client(&self) -> anyhow::Result<ClientConfig> {
        let slots = self.ring_slots;
        ensure!(
            slots.is_power_of_two() && (2..=32_768).contains(&slots),
            "ring size {slots}: a power of two from 2 to 32768 is possible"
        );
        ensure!(self.rx_queues >= 1 && self.tx_queues >= 1, "each direction needs a queue");
        let mut config = ClientConfig::new(Address::parse(&self.socket), self.id);
        config.mode = if self.ip_mode { Mode::Ip } else { Mode::Ethernet };
        config.name = "bowline-pktgen".into();
        config.s2m_rings = self.tx_queues;
        config.m2s_rings = self.rx_queues;
        config.log2_ring_size = slots.trailing_zeros() as u8;
        config.buffer_bytes = self.buffer_bytes;
        Ok(config)
    }

    /// For messages.
    fn name(&self) -> String {
        match &self.netns {
            Some(netns) => format!("{} in {netns}", self.socket),
            None => self.socket.clone(),
        }
    }
}

/// A network namespace to visit.
#[derive(Debug)]
struct Visit {
    there: File,
    name: String,
}

impl Visit {
    fn open(name: &str) -> anyhow::Result<Self> {
        let path = if name.contains('/') {
            PathBuf::from(name)
        } else {
            Path::new("/run/netns").join(name)
        };
        let there = File::open(&path);
        let there = there.with_context(|| {
            format!("network namespace {}: see 'ip netns' for those that exist", path.display())
        })?;
        Ok(Self { there, name: name.to_owned() })
    }

    fn run<T>(&self, work: impl FnOnce() -> T) -> anyhow::Result<T> {
        let home = File::open("/proc/thread-self/ns/net").context("opening the own namespace")?;
        setns(&self.there, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("entering {} (this needs root)", self.name))?;
        let result = work();
        setns(&home, CloneFlags::CLONE_NEWNET).context("leaving a pod's namespace")?;
        Ok(result)
    }
}

/// A memif interface's client end.
#[derive(Debug)]
pub struct Port {
    name: String,
    visit: Option<Visit>,
    connector: Connector,
    connection: Option<Connection>,
    rx: Vec<RxQueue>,
    tx: Vec<TxQueue>,
    notifier: Notifier,
    next_look_ns: u64,
    connects: u64,
}

impl Port {
    /// Connects, trying again up to `patience`.
    ///
    /// # Errors
    /// Namespace or socket cannot be reached in time.
    pub fn open(config: &PortConfig, patience: Duration) -> anyhow::Result<Self> {
        let visit = config.netns.as_deref().map(Visit::open).transpose()?;
        let mut connector = Connector::new(config.client()?);
        let mut connect = || connector.connect_blocking(patience);
        let connection = match &visit {
            Some(visit) => visit.run(connect)?,
            None => connect(),
        };
        let name = config.name();
        let connection = connection.with_context(|| format!("connecting to {name}"))?;
        let notifier = Notifier::new().context("making an eventfd notifier")?;
        let mut port = Self {
            name,
            visit,
            connector,
            connection: None,
            rx: vec![],
            tx: vec![],
            notifier,
            next_look_ns: 0,
            connects: 0,
        };
        port.take(connection)?;
        Ok(port)
    }

    fn take(&mut self, mut connection: Connection) -> anyhow::Result<()> {
        (self.rx, self.tx) = connection.take_queues();
        for queue in &mut self.rx {
            // This side polls; no signals wanted.
            queue.set_polling(true).with_context(|| format!("starting on {}", self.name))?;
        }
        self.connection = Some(connection);
        self.connects += 1;
        Ok(())
    }

    /// For messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the peer is there.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.connection.is_some()
    }

    /// How often it connected.
    #[must_use]
    pub fn connects(&self) -> u64 {
        self.connects
    }

    /// Queues to receive from; none while the peer is away.
    #[inline]
    #[must_use]
    pub fn rx_queues(&self) -> usize {
        self.rx.len()
    }

    /// A queue to receive from.
    #[inline]
    pub fn rx(&mut self, index: usize) -> Option<&mut RxQueue> {
        self.rx.get_mut(index)
    }

    /// A queue to send to, and what signals its peer. An index beyond the peer's queues wraps.
    #[inline]
    pub fn tx(&mut self, index: usize) -> Option<(&mut TxQueue, &mut Notifier)> {
        let queues = self.tx.len();
        if queues == 0 {
            return None;
        }
        Some((&mut self.tx[index % queues], &mut self.notifier))
    }

    /// Sends one frame at once; false where there is no room or no peer.
    ///
    /// # Errors
    /// The peer broke memif's rules.
    pub fn send_now(&mut self, frame: &[u8]) -> Result<bool, Violation> {
        let Some((queue, notifier)) = self.tx(0) else { return Ok(false) };
        let sent = queue.send(frame)?;
        // A signal that the kernel refuses costs a park of the peer, no frame.
        let _ = queue.flush(notifier);
        Ok(sent)
    }

    /// Looks at the connection, a thousand times per second at most: notices its end, and connects
    /// again when that is due.
    ///
    /// # Errors
    /// The namespace cannot be entered any more.
    #[inline]
    pub fn check(&mut self) -> anyhow::Result<()> {
        let now = now_ns();
        if now < self.next_look_ns {
            return Ok(());
        }
        self.next_look_ns = now + LOOK_EVERY_NS;
        self.look()
    }

    fn look(&mut self) -> anyhow::Result<()> {
        if let Some(connection) = &mut self.connection {
            if connection.on_readable() == Status::Up && !connection.poisoned() {
                return Ok(());
            }
            self.drop_connection();
        }
        if self.connector.deadline().is_some_and(|d| d > Instant::now())
            && self.connector.socket().is_none()
        {
            return Ok(());
        }
        let connector = &mut self.connector;
        let event = match &self.visit {
            Some(visit) => visit.run(|| connector.poll(Instant::now()))?,
            None => connector.poll(Instant::now()),
        };
        match event {
            ClientEvent::Connected(connection) => self.take(connection),
            // The connector says when to try again.
            ClientEvent::Failed(_) | ClientEvent::Pending => Ok(()),
        }
    }

    fn drop_connection(&mut self) {
        self.rx.clear();
        self.tx.clear();
        self.connection = None;
        self.connector.lost(Instant::now());
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.disconnect(&CloseReason::Local("closing".into()));
        }
    }
}

/// Pins the calling thread to a CPU.
///
/// # Errors
/// There is no such CPU for this process.
pub fn pin(cpu: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu).with_context(|| format!("CPU {cpu}"))?;
    sched_setaffinity(Pid::from_raw(0), &set)
        .with_context(|| format!("CPU {cpu}: not one that this process may run on"))
}

/// Lets the calling thread run on every CPU again.
///
/// # Errors
/// The kernel refuses.
pub fn unpin() -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    for cpu in 0..CpuSet::count() {
        set.set(cpu)?;
    }
    sched_setaffinity(Pid::from_raw(0), &set).context("running on every CPU")
}
