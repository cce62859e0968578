//! The client: brings the memory, connects, and connects again when the server comes back.
//!
//! Strict lock-step: one message per message received, because stock servers answer one message
//! per wake-up. Empty receive buffers are posted only after CONNECTED, because stock servers zero
//! both indexes of every ring at CONNECT.

mod memory;

use crate::connection::{Connection, Info, say_goodbye};
use crate::error::CloseReason;
use crate::ring::Role;
use crate::sys::given::Count;
use crate::sys::socket::{Address, Control, Received, connect, peer_credentials, send, shut_down};
use crate::wire::{Hello, Init, Message, Mode, Name, Secret, VERSION};
use memory::{Memory, Shape};

pub(crate) use memory::Hooks;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(2);
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(3);
/// With more descriptors of a server's that take their time to be closed it is not asked again.
const MOST_CLOSING: u32 = 4;

/// What a client wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientConfig {
    /// Where the server listens.
    pub address: Address,
    /// Interface id on that socket.
    pub id: u32,
    /// What frames begin with; the server must agree.
    pub mode: Mode,
    /// At most 23 bytes; empty for none.
    pub secret: String,
    /// Application and interface name, told to the server.
    pub name: String,
    /// Rings to send with; the server may take fewer.
    pub s2m_rings: u16,
    /// Rings to receive from; the server may take fewer.
    pub m2s_rings: u16,
    /// Slots per ring, as a power of two, 1 to 15; the server may take less.
    pub log2_ring_size: u8,
    /// Bytes per buffer, rounded up to a multiple of 64; longer frames take several.
    pub buffer_bytes: u32,
    /// Take the memory from the pool of 2 MiB pages, which must have enough of them.
    pub huge_pages: bool,
    /// Longest received frame.
    pub max_frame_bytes: u32,
}

impl ClientConfig {
    /// One ring of 1,024 slots each way, buffers of 2,048 bytes, Ethernet, no secret.
    #[must_use]
    pub fn new(address: Address, id: u32) -> Self {
        Self {
            address,
            id,
            mode: Mode::Ethernet,
            secret: String::new(),
            name: String::from("memif"),
            s2m_rings: 1,
            m2s_rings: 1,
            log2_ring_size: 10,
            buffer_bytes: 2048,
            huge_pages: false,
            max_frame_bytes: 16 << 10,
        }
    }
}

/// How far the client is.
#[derive(Debug)]
pub enum ClientEvent {
    /// Wait for the socket, if there is one, until [`Connector::deadline`].
    Pending,
    /// Connected. Tell the connector by [`Connector::lost`] when this connection ends.
    Connected(Connection),
    /// It did not work; the next attempt is due at [`Connector::deadline`].
    Failed(CloseReason),
}

#[derive(Debug)]
enum State {
    /// Not connected until this time.
    Waiting(Instant),
    /// HELLO, an ACK or CONNECTED is due.
    Greeted(Box<Attempt>),
    /// A [`Connection`] is out.
    Connected,
}

#[derive(Debug)]
struct Attempt {
    socket: Control,
    deadline: Instant,
    server_name: String,
    memory: Option<Memory>,
    /// CONNECT was sent.
    asked: bool,
}

/// Connects, without blocking, as often as needed.
#[derive(Debug)]
pub struct Connector {
    config: ClientConfig,
    state: State,
    backoff: Duration,
    jitter: u64,
    /// Of the last attempt, shut down: its number means nothing else while the caller stops waiting.
    failed: Option<Control>,
    /// Descriptors that servers gave and that are being closed.
    closing: Count,
    hooks: Hooks,
}

impl Connector {
    /// The first attempt is due at once.
    #[must_use]
    pub fn new(config: ClientConfig) -> Self {
        let now = Instant::now();
        // The process id would not do: in its own namespace every pod's is 1.
        let seed = RandomState::new().build_hasher().finish() | 1;
        Self {
            config,
            state: State::Waiting(now),
            backoff: BACKOFF_MIN,
            jitter: seed,
            failed: None,
            closing: Count::default(),
            hooks: Hooks::default(),
        }
    }

    /// One that differs in ways that only the C interface needs.
    #[cfg(feature = "capi")]
    pub(crate) fn with_hooks(config: ClientConfig, hooks: Hooks) -> Self {
        Self { hooks, ..Self::new(config) }
    }

    /// The socket to wait for, if an attempt is under way.
    #[must_use]
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        match &self.state {
            State::Greeted(attempt) => Some(attempt.socket.as_fd()),
            _ => None,
        }
    }

    /// When to call [`poll`](Self::poll) even if the socket is quiet; `None` while connected.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Waiting(at) => Some(*at),
            State::Greeted(attempt) => Some(attempt.deadline),
            State::Connected => None,
        }
    }

    /// The connection ended: the next attempt is due soon.
    pub fn lost(&mut self, now: Instant) {
        self.backoff = BACKOFF_MIN;
        self.retry(now);
    }

    /// Does what can be done without waiting.
    pub fn poll(&mut self, now: Instant) -> ClientEvent {
        self.failed = None;
        if let State::Waiting(at) = self.state {
            if now < at {
                return ClientEvent::Pending;
            }
            if self.closing.load(Ordering::Relaxed) >= MOST_CLOSING {
                self.retry(now);
                return ClientEvent::Pending;
            }
            match connect(&self.config.address) {
                Ok(socket) => {
                    let attempt = Attempt {
                        socket: Control::new(socket, &self.closing),
                        deadline: now + DEADLINE,
                        server_name: String::new(),
                        memory: None,
                        asked: false,
                    };
                    self.state = State::Greeted(Box::new(attempt));
                }
                Err(errno) => {
                    self.retry(now);
                    return ClientEvent::Failed(CloseReason::System { call: "connect", errno });
                }
            }
        }
        match std::mem::replace(&mut self.state, State::Connected) {
            State::Greeted(attempt) => self.drive(attempt, now),
            other => {
                self.state = other;
                ClientEvent::Pending
            }
        }
    }

    fn drive(&mut self, mut attempt: Box<Attempt>, now: Instant) -> ClientEvent {
        match attempt.advance(&self.config, &mut self.hooks, now) {
            Ok(None) => {
                self.state = State::Greeted(attempt);
                ClientEvent::Pending
            }
            Ok(Some(server_interface)) => {
                match attempt.finish(&self.config, &self.hooks, server_interface) {
                    Ok(connection) => {
                        self.backoff = BACKOFF_MIN;
                        ClientEvent::Connected(connection)
                    }
                    Err((socket, reason)) => self.fail(socket, reason, now),
                }
            }
            Err(reason) => self.fail(attempt.socket, reason, now),
        }
    }

    fn fail(&mut self, socket: Control, reason: CloseReason, now: Instant) -> ClientEvent {
        say_goodbye(socket.as_fd(), &reason);
        shut_down(socket.as_fd());
        self.failed = Some(socket);
        self.retry(now);
        ClientEvent::Failed(reason)
    }

    /// Waits the back-off, up to a quarter more or less, and doubles it: a node's clients must not
    /// all come back in the same millisecond.
    fn retry(&mut self, now: Instant) {
        // xorshift64 (Marsaglia): good enough to spread clients.
        self.jitter ^= self.jitter << 13;
        self.jitter ^= self.jitter >> 7;
        self.jitter ^= self.jitter << 17;
        let percent = 75 + (self.jitter % 51) as u32;
        self.state = State::Waiting(now + self.backoff * percent / 100);
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
    }

    /// Waits until connected, trying again and again: for programs without an event loop.
    ///
    /// # Errors
    /// Not connected in time; the error says why the last attempt failed.
    pub fn connect_blocking(&mut self, timeout: Duration) -> io::Result<Connection> {
        const FOREVER: Duration = Duration::from_secs(1 << 32);
        let end = Instant::now() + timeout.min(FOREVER);
        let mut last = None;
        loop {
            let now = Instant::now();
            match self.poll(now) {
                ClientEvent::Connected(connection) => return Ok(connection),
                ClientEvent::Failed(reason) => last = Some(reason),
                ClientEvent::Pending => {}
            }
            if now >= end {
                let why = last.map_or_else(|| "no answer".to_owned(), |r| r.to_string());
                let text = format!("memif server at {}: {why}", self.config.address);
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            let wait = self.deadline().unwrap_or(end).min(end).saturating_duration_since(now);
            match self.socket() {
                Some(socket) => {
                    crate::sys::socket::wait_readable(&socket, wait)?;
                }
                None => std::thread::sleep(wait),
            }
        }
    }
}

impl Attempt {
    /// The server's interface name once CONNECTED has come.
    fn advance(
        &mut self,
        config: &ClientConfig,
        hooks: &mut Hooks,
        now: Instant,
    ) -> Result<Option<String>, CloseReason> {
        loop {
            let waiting_for = self.waiting_for();
            let message = match self.socket.receive()? {
                Received::Message(message, _) => message,
                Received::Nothing if now >= self.deadline => {
                    let limit_ms = DEADLINE.as_millis() as u64;
                    return Err(CloseReason::Deadline { limit_ms, waiting_for });
                }
                Received::Nothing => return Ok(None),
            };
            match (&mut self.memory, message) {
                (_, Message::Disconnect { reason, .. }) => {
                    return Err(CloseReason::PeerDisconnected(reason.to_printable()));
                }
                (None, Message::Hello(hello)) => self.greet(config, hooks, &hello)?,
                (Some(memory), Message::Ack) if !self.asked => match memory.next_message() {
                    Some((message, fd)) => send(self.socket.as_fd(), &message, Some(fd))?,
                    None => {
                        let name = Name::truncated(&config.name);
                        send(self.socket.as_fd(), &Message::Connect(name), None)?;
                        self.asked = true;
                    }
                },
                (Some(_), Message::Connected(name)) if self.asked => {
                    return Ok(Some(name.to_printable()));
                }
                (_, message) => {
                    let kind = message.kind();
                    return Err(CloseReason::UnexpectedMessage { kind, waiting_for });
                }
            }
        }
    }

    fn waiting_for(&self) -> &'static str {
        match (&self.memory, self.asked) {
            (None, _) => "HELLO",
            (Some(_), false) => "ACK",
            (Some(_), true) => "CONNECTED",
        }
    }

    /// Takes as much as the server can, makes the memory for that, and says who we are.
    fn greet(
        &mut self,
        config: &ClientConfig,
        hooks: &mut Hooks,
        hello: &Hello,
    ) -> Result<(), CloseReason> {
        if !(hello.min_version..=hello.max_version).contains(&VERSION) {
            return Err(CloseReason::Version(hello.max_version));
        }
        let wanted = Shape::of(config);
        let shape = Shape {
            s2m_rings: wanted.s2m_rings.min(hello.max_s2m_ring.saturating_add(1)),
            m2s_rings: wanted.m2s_rings.min(hello.max_m2s_ring.saturating_add(1)),
            log2_ring_size: wanted.log2_ring_size.clamp(1, 15).min(hello.max_log2_ring_size),
            ..wanted
        };
        self.memory = Some(Memory::new(shape, hooks, self.socket.closing())?);
        self.server_name = hello.name.to_printable();
        let init = Message::Init(Init {
            version: VERSION,
            id: config.id,
            mode: config.mode.to_wire(),
            secret: Secret::truncated(&config.secret),
            name: Name::truncated(&config.name),
        });
        send(self.socket.as_fd(), &init, None)
    }

    fn finish(
        self,
        config: &ClientConfig,
        hooks: &Hooks,
        server_interface: String,
    ) -> Result<Connection, (Control, CloseReason)> {
        let (peer_pid, peer_uid) = peer_credentials(self.socket.as_fd());
        let Some(memory) = self.memory else { return Err((self.socket, CloseReason::NoRings)) };
        // A program of libmemif's may map the files that it is shown.
        if !hooks.as_libmemif
            && let Err(reason) = memory.seal()
        {
            return Err((self.socket, reason));
        }
        let (regions, rx, tx) = memory.into_queues(config.max_frame_bytes, hooks.as_libmemif);
        let info = Info {
            role: Role::Client,
            id: config.id,
            mode: config.mode,
            peer_name: self.server_name,
            peer_interface: server_interface,
            peer_pid,
            peer_uid,
            mapped_bytes: regions.mapped_bytes(),
        };
        Ok(Connection::new(self.socket, info, regions, rx, tx))
    }
}
