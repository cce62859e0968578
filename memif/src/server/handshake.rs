//! The server's handshake: one state at a time, one message at a time.
//!
//! HELLO → INIT → ADD_REGION… → ADD_RING… → CONNECT → CONNECTED. Each message of the client is
//! either the one that is due, with the index that is next and within what the interface grants,
//! or the end. Every reply goes out at once or the client is closed, so nothing is ever queued.

use super::listener::Account;
use crate::connection::{Connection, Info, say_goodbye};
use crate::error::{CloseReason, RegionError, RingError};
use crate::region::account::MemoryAccount;
use crate::region::health::Health;
use crate::region::shared::Shared;
use crate::region::{
    Lent, MAX_REGIONS, Region, RegionRules, Regions, bring_in, seal_against_holes,
};
use crate::ring::own::OwnBuffers;
use crate::ring::rx::RxQueue;
use crate::ring::tx::TxQueue;
use crate::ring::{Direction, Place, Ring, Role};
use crate::sys::given::{Count, Counted, Given};
use crate::sys::socket::{Control, Received, is_eventfd, send, shut_down};
use crate::wire::{AddRing, Hello, Init, Message, Mode, Name, RING_COOKIE, RING_IS_S2M, VERSION};
use nix::errno::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Time from accept to CONNECT.
const DEADLINE: Duration = Duration::from_secs(2);
/// Messages handled per wake-up, so that one client cannot keep the loop to itself.
const MESSAGES_PER_CALL: usize = 4;

/// What a client may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Memory files, at most [`MAX_REGIONS`].
    pub regions: u16,
    /// Rings from the client.
    pub s2m_rings: u16,
    /// Rings to the client.
    pub m2s_rings: u16,
    /// Largest ring, as a power of two, at most 15.
    pub log2_ring_size: u8,
    /// All memory files together; twice as much with those of earlier connections that somebody has still
    /// open.
    pub mapped_bytes: u64,
    /// Largest page of a memory file: the first touch of a page zeroes it, on our time.
    pub page_bytes: u64,
    /// Longest received frame.
    pub frame_bytes: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            regions: 8,
            s2m_rings: 16,
            m2s_rings: 16,
            log2_ring_size: 14,
            mapped_bytes: 512 << 20,
            page_bytes: 2 << 20,
            frame_bytes: 16 << 10,
        }
    }
}

/// What an interface grants to the client that asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// What frames begin with.
    pub mode: Mode,
    /// At most 23 bytes; empty for none.
    pub secret: String,
    /// The interface's name, told to the client.
    pub name: String,
    /// Whether memory must be sealed against shrinking. Zero-copy clients of DPDK 22.11 cannot.
    pub require_sealed: bool,
    /// How much it may ask for.
    pub limits: Limits,
    /// What clients' memory has cost so far. Keep one for each interface, for one client after the
    /// other.
    pub memory: MemoryAccount,
}

impl Default for Offer {
    fn default() -> Self {
        Self {
            mode: Mode::Ethernet,
            secret: String::new(),
            name: String::new(),
            require_sealed: true,
            limits: Limits::default(),
            memory: MemoryAccount::default(),
        }
    }
}

/// What to say to a client that asks for an interface id. Asked at INIT and again at CONNECT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It may have it.
    Accept(Offer),
    /// There is no such interface.
    Unknown,
    /// Another client has it; the live connection is never given up for a new one.
    Busy,
}

impl From<Option<Offer>> for Answer {
    fn from(offer: Option<Offer>) -> Self {
        offer.map_or(Self::Unknown, Self::Accept)
    }
}

/// How far a handshake is.
#[derive(Debug)]
pub enum Progress {
    /// Wait for the socket, until [`Handshake::deadline`].
    Pending,
    /// Done; the handshake is used up.
    Connected(Connection),
    /// Over; the socket is shut down, and closed when the handshake is dropped.
    Closed(CloseReason),
}

/// Asks the application for an interface's mapping of a region: so many bytes of this file.
type MapRegion = Box<dyn FnMut(u32, u64, OwnedFd) -> Option<Lent> + Send>;

/// How a server of the C interface differs.
#[derive(Default)]
pub(crate) struct Hooks {
    /// As libmemif: modes are not compared, and the application may ask for the files of the regions.
    pub as_libmemif: bool,
    /// Who maps the regions behind the first; else they are mapped here.
    pub map: Option<MapRegion>,
}

impl std::fmt::Debug for Hooks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Hooks {{ as_libmemif: {}, map: {} }}", self.as_libmemif, self.map.is_some())
    }
}

/// What an accepted client has agreed on and brought so far.
#[derive(Debug)]
struct Setup {
    id: u32,
    offer: Offer,
    hooks: Hooks,
    peer_name: String,
    peer_interface: String,
    health: Arc<Health>,
    /// Its files are sealed against holes when the last region is mapped, and closed.
    shared: Shared,
    places: Vec<Place>,
    s2m: Vec<Ring>,
    m2s: Vec<Ring>,
}

#[derive(Debug)]
enum State {
    /// HELLO is sent, INIT is due.
    Accepted,
    /// INIT was accepted: regions, then rings, then CONNECT.
    Setup(Box<Setup>),
    /// Closed or connected.
    Over,
}

impl State {
    fn waiting_for(&self) -> &'static str {
        match self {
            Self::Accepted => "INIT",
            Self::Setup(s) if s.shared.regions.is_empty() => "ADD_REGION",
            Self::Setup(s) if s.places.is_empty() => "ADD_REGION or ADD_RING",
            Self::Setup(_) => "ADD_RING or CONNECT",
            Self::Over => "nothing",
        }
    }
}

/// A client on its way to a connection.
#[derive(Debug)]
pub struct Handshake {
    /// Taken when the handshake ends.
    socket: Option<Control>,
    state: State,
    deadline: Instant,
    peer: (i32, u32),
    _half_open: Counted,
    account: Arc<Account>,
    /// Taken by INIT.
    hooks: Hooks,
}

impl Handshake {
    /// Greets the client; `None` when it is gone already.
    pub(crate) fn begin(
        socket: OwnedFd,
        peer: (i32, u32),
        hello: Limits,
        account: &Arc<Account>,
        now: Instant,
    ) -> Option<Self> {
        let highest_ring = |count: u16| count.saturating_sub(1);
        let message = Message::Hello(Hello {
            name: Name::truncated(concat!("memif ", env!("CARGO_PKG_VERSION"))),
            min_version: VERSION,
            max_version: VERSION,
            max_region: hello.regions.clamp(1, MAX_REGIONS as u16) - 1,
            max_m2s_ring: highest_ring(hello.m2s_rings),
            max_s2m_ring: highest_ring(hello.s2m_rings),
            max_log2_ring_size: hello.log2_ring_size.min(Ring::MAX_LOG2),
        });
        let socket = Control::new(socket, &account.half_open);
        send(socket.as_fd(), &message, None).ok()?;
        Some(Self {
            socket: Some(socket),
            state: State::Accepted,
            deadline: now + DEADLINE,
            peer,
            _half_open: Counted::new(&account.half_open),
            account: Arc::clone(account),
            hooks: Hooks::default(),
        })
    }

    /// One that differs in ways that only the C interface needs.
    #[cfg(feature = "capi")]
    pub(crate) fn with_hooks(self, hooks: Hooks) -> Self {
        Self { hooks, ..self }
    }

    /// The interface that the client asked for, once it has.
    #[cfg(feature = "capi")]
    pub(crate) fn interface(&self) -> Option<u32> {
        match &self.state {
            State::Setup(setup) => Some(setup.id),
            State::Accepted | State::Over => None,
        }
    }

    /// When to give up: call [`on_readable`](Self::on_readable) then, too.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Process and user id of the client, as they were when it connected.
    #[must_use]
    pub fn peer(&self) -> (i32, u32) {
        self.peer
    }

    /// Handles what the client sent. `offers` says what interface ids are worth. Level-triggered
    /// waiting is assumed: a few messages are handled per call.
    pub fn on_readable(&mut self, offers: &dyn Fn(u32) -> Answer) -> Progress {
        let Some(socket) = self.socket.take_if(|_| !matches!(self.state, State::Over)) else {
            return Progress::Closed(CloseReason::PeerClosed);
        };
        match self.advance(&socket, offers) {
            Ok(false) => {
                self.socket = Some(socket);
                Progress::Pending
            }
            Ok(true) => self.connected(socket),
            Err(reason) => {
                say_goodbye(socket.as_fd(), &reason);
                shut_down(socket.as_fd());
                // What was mapped goes now, whenever the caller drops the rest. The descriptor stays,
                // so that its number means nothing else while the caller stops waiting for it.
                self.state = State::Over;
                self.socket = Some(socket);
                Progress::Closed(reason)
            }
        }
    }

    /// True when CONNECTED was sent.
    fn advance(
        &mut self,
        socket: &Control,
        offers: &dyn Fn(u32) -> Answer,
    ) -> Result<bool, CloseReason> {
        for _ in 0..MESSAGES_PER_CALL {
            match socket.receive()? {
                Received::Nothing if Instant::now() >= self.deadline => {
                    let limit_ms = DEADLINE.as_millis() as u64;
                    let waiting_for = self.state.waiting_for();
                    return Err(CloseReason::Deadline { limit_ms, waiting_for });
                }
                Received::Nothing => return Ok(false),
                Received::Message(message, given) => {
                    if self.handle(socket.as_fd(), message, given, offers)? {
                        return Ok(true);
                    }
                }
            }
        }
        Ok(false)
    }

    fn handle(
        &mut self,
        socket: BorrowedFd<'_>,
        message: Message,
        given: Given,
        offers: &dyn Fn(u32) -> Answer,
    ) -> Result<bool, CloseReason> {
        let waiting_for = self.state.waiting_for();
        let reply = match (&mut self.state, message, given) {
            (_, Message::Disconnect { reason, .. }, _) => {
                return Err(CloseReason::PeerDisconnected(reason.to_printable()));
            }
            (State::Accepted, Message::Init(init), _) => {
                let hooks = std::mem::take(&mut self.hooks);
                let closing = (!hooks.as_libmemif).then(|| Count::clone(&self.account.half_open));
                let setup = Setup::begin(&init, offers, hooks, Shared::new(closing))?;
                self.state = State::Setup(Box::new(setup));
                Message::Ack
            }
            (State::Setup(setup), Message::AddRegion { index, size }, file)
                if setup.places.is_empty() =>
            {
                setup.add_region(index, size, file)?;
                Message::Ack
            }
            (State::Setup(setup), Message::AddRing(ring), eventfd)
                if !setup.shared.regions.is_empty() =>
            {
                setup.add_ring(ring, eventfd)?;
                Message::Ack
            }
            (State::Setup(setup), Message::Connect(name), _)
                if !setup.shared.regions.is_empty() =>
            {
                setup.connect(&name, offers)?;
                Message::Connected(Name::truncated(&setup.offer.name))
            }
            (_, message, _) => {
                return Err(CloseReason::UnexpectedMessage { kind: message.kind(), waiting_for });
            }
        };
        send(socket, &reply, None)?;
        Ok(matches!(reply, Message::Connected(_)))
    }

    fn connected(&mut self, socket: Control) -> Progress {
        let State::Setup(setup) = std::mem::replace(&mut self.state, State::Over) else {
            return Progress::Closed(CloseReason::NoRings);
        };
        self.account.established.fetch_add(1, Ordering::Relaxed);
        Progress::Connected(setup.finish(socket, self.peer))
    }
}

impl AsFd for Handshake {
    /// The socket, to wait for.
    ///
    /// # Panics
    /// It must not be used after [`Progress::Connected`].
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket
            .as_ref()
            .expect("a handshake that has led to a connection has no socket")
            .as_fd()
    }
}

impl Setup {
    fn begin(
        init: &Init,
        offers: &dyn Fn(u32) -> Answer,
        hooks: Hooks,
        shared: Shared,
    ) -> Result<Self, CloseReason> {
        if init.version != VERSION {
            return Err(CloseReason::Version(init.version));
        }
        let offer = ask(offers, init.id)?;
        if init.mode != offer.mode.to_wire() && !hooks.as_libmemif {
            return Err(CloseReason::Mode { got: init.mode, want: offer.mode });
        }
        if !offer.secret.is_empty() {
            let given = init.secret.bytes();
            if given.is_empty() {
                return Err(CloseReason::SecretRequired);
            }
            if !same(given, offer.secret.as_bytes()) {
                return Err(CloseReason::SecretWrong);
            }
        }
        Ok(Self {
            id: init.id,
            peer_name: init.name.to_printable(),
            peer_interface: String::new(),
            health: Arc::default(),
            offer,
            hooks,
            shared,
            places: Vec::new(),
            s2m: Vec::new(),
            m2s: Vec::new(),
        })
    }

    fn add_region(&mut self, index: u16, size: u64, file: Given) -> Result<(), CloseReason> {
        let limits = &self.offer.limits;
        let max = limits.regions.min(MAX_REGIONS as u16);
        next_index("region", index, self.shared.regions.len(), max)?;
        let rules = RegionRules {
            require_sealed: self.offer.require_sealed,
            max_page_bytes: limits.page_bytes,
            max_mapped_bytes: limits.mapped_bytes,
        };
        let region = self.map(size, file, &rules);
        self.shared.regions.push(region.map_err(|error| CloseReason::Region { index, error })?);
        Ok(())
    }

    /// The file is closed at CONNECT, unless an application has use for it.
    fn map(&mut self, size: u64, given: Given, rules: &RegionRules) -> Result<Region, RegionError> {
        let before = self.shared.regions.iter().map(|r| r.mapped_bytes() as u64).sum();
        let none = || RegionError::NotMemory(Errno::EBADF);
        let page = Region::check_peer(given.first().ok_or_else(none)?, size, before, rules)?;
        let file = given.take().ok_or_else(none)?;
        let first = self.shared.regions.is_empty();
        if let Some(map) = self.hooks.map.as_mut().filter(|_| !first) {
            let refused = RegionError::System { call: "external memory", errno: Errno::ENOMEM };
            return Region::lent(
                map(self.id, size, file).ok_or(refused)?,
                size,
                page,
                &self.health,
            );
        }
        if self.hooks.as_libmemif {
            return Ok(Region::map(&file, size, page, &self.health)?.keep(file));
        }
        self.shared.files.push(file);
        let file = &self.shared.files[self.shared.files.len() - 1];
        self.offer.memory.enter(file, size.next_multiple_of(page), rules.max_mapped_bytes)?;
        Region::map(file, size, page, &self.health)
    }

    fn add_ring(&mut self, add: AddRing, eventfd: Given) -> Result<(), CloseReason> {
        let s2m = add.flags & RING_IS_S2M != 0;
        let direction = if s2m { Direction::S2m } else { Direction::M2s };
        let limits = &self.offer.limits;
        let (count, max) = match direction {
            Direction::S2m => (self.s2m.len(), limits.s2m_rings),
            Direction::M2s => (self.m2s.len(), limits.m2s_rings),
        };
        next_index(direction.name(), add.index, count, max)?;
        let ring = self.check_ring(add, direction, eventfd).map_err(|error| CloseReason::Ring {
            what: direction.name(),
            index: add.index,
            error,
        })?;
        match direction {
            Direction::S2m => self.s2m.push(ring),
            Direction::M2s => self.m2s.push(ring),
        }
        Ok(())
    }

    fn check_ring(
        &mut self,
        add: AddRing,
        direction: Direction,
        given: Given,
    ) -> Result<Ring, RingError> {
        const MIN_LOG2: u8 = 6;
        if add.flags & !RING_IS_S2M != 0 {
            return Err(RingError::Flags(add.flags));
        }
        if add.private_hdr_size != 0 {
            return Err(RingError::PrivateHeader(add.private_hdr_size));
        }
        let max = self.offer.limits.log2_ring_size.min(Ring::MAX_LOG2);
        if !(MIN_LOG2..=max).contains(&add.log2_ring_size) {
            return Err(RingError::Size { got: add.log2_ring_size, min: MIN_LOG2, max });
        }
        let region = self.shared.regions.get(usize::from(add.region));
        let region = region.ok_or(RingError::Region(add.region))?;
        let place = Place { region: add.region, offset: add.offset, log2_size: add.log2_ring_size };
        if self.places.iter().any(|other| other.overlaps(place)) {
            return Err(RingError::Overlap);
        }
        if !given.first().is_some_and(is_eventfd) {
            return Err(RingError::NotEventfd);
        }
        let eventfd = given.take().ok_or(RingError::NotEventfd)?;
        let eventfds = &mut self.shared.eventfds;
        eventfds.push(eventfd);
        let ring = Ring::new(place, region, direction, eventfds[eventfds.len() - 1].as_fd())?;
        let cookie = ring.cookie();
        if cookie != RING_COOKIE {
            return Err(RingError::Cookie(cookie));
        }
        self.places.push(place);
        Ok(ring)
    }

    /// Both indexes of every ring start at zero, before the client hears CONNECTED.
    fn connect(&mut self, name: &Name, offers: &dyn Fn(u32) -> Answer) -> Result<(), CloseReason> {
        if self.places.is_empty() {
            return Err(CloseReason::NoRings);
        }
        // Another client may have been faster since INIT.
        ask(offers, self.id)?;
        let files = std::mem::take(&mut self.shared.files);
        for (index, file) in (0..).zip(files.iter().filter(|_| self.offer.require_sealed)) {
            let sealed = seal_against_holes(file);
            sealed.map_err(|error| CloseReason::Region { index, error })?;
        }
        let there = bring_in(&self.shared.regions, self.offer.require_sealed, &self.offer.memory);
        there.map_err(|(at, error)| CloseReason::Region { index: at as u16, error })?;
        if !self.hooks.as_libmemif {
            self.shared.pin().map_err(|error| CloseReason::Region { index: 0, error })?;
        }
        for ring in self.s2m.iter().chain(&self.m2s) {
            ring.zero_indexes();
        }
        self.peer_interface = name.to_printable();
        Ok(())
    }

    fn finish(self, socket: Control, (peer_pid, peer_uid): (i32, u32)) -> Connection {
        let regions = Regions::new(self.shared, self.health);
        let info = Info {
            role: Role::Server,
            id: self.id,
            mode: self.offer.mode,
            peer_name: self.peer_name,
            peer_interface: self.peer_interface,
            peer_pid,
            peer_uid,
            mapped_bytes: regions.mapped_bytes(),
        };
        let none = OwnBuffers::none;
        let max = self.offer.limits.frame_bytes;
        let rx = self.s2m.into_iter();
        let rx = rx.map(|r| RxQueue::new(r, Role::Server, none(), &regions, max)).collect();
        let tx = self.m2s.into_iter();
        let tx = tx.map(|r| TxQueue::new(r, Role::Server, none(), &regions)).collect();
        Connection::new(socket, info, regions, rx, tx)
    }
}

fn ask(offers: &dyn Fn(u32) -> Answer, id: u32) -> Result<Offer, CloseReason> {
    match offers(id) {
        Answer::Accept(offer) => Ok(offer),
        Answer::Unknown => Err(CloseReason::UnknownId(id)),
        Answer::Busy => Err(CloseReason::Busy(id)),
    }
}

fn next_index(what: &'static str, got: u16, have: usize, max: u16) -> Result<(), CloseReason> {
    let want = u16::try_from(have).unwrap_or(u16::MAX);
    if got != want {
        return Err(CloseReason::NotNext { what, got, want });
    }
    if want >= max {
        return Err(CloseReason::TooMany { what, got, max });
    }
    Ok(())
}

/// Comparison whose time does not tell how much of a guess was right.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |acc, (x, y)| acc | (x ^ y)) == 0
}
