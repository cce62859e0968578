//! Sockets of the C interface: what to wait for, and what to do when it happens.
//!
//! Every descriptor waited for has a [`Watch`], whose address the application (or our own epoll)
//! hands back. Addresses of watches that are gone are told apart, since an application may have
//! fetched several events at once.

use super::conn::{Conn, Foreign, lend};
use super::types::{
    AddExternalRegion, DelExternalRegion, EVENT_DEL, EVENT_READ, Error, FdEvent,
    GetExternalBufferOffset, GetExternalRegionAddr, SocketArgs, text_of,
};
use crate::region::Lent;
use crate::server::handshake::Hooks;
use crate::{Address, Answer, Handshake, Limits, Listener, ListenerLimits, Offer, Progress};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::collections::HashSet;
use std::ffi::{c_int, c_void};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

/// What an application sees as `memif_socket_handle_t`.
pub(super) struct Socket {
    pub(super) args: SocketArgs,
    pub(super) ctx: *mut c_void,
    /// Without a callback for descriptors we wait ourselves.
    pub(super) own: Option<Own>,
    pub(super) listener: Option<Listener>,
    listener_watch: *mut Watch,
    pub(super) conns: Vec<*mut Conn>,
    handshakes: Vec<*mut Watch>,
    /// The application's timer for disconnected clients.
    pub(super) timer: Option<TimerFd>,
    pub(super) timer_watch: *mut Watch,
    /// Ours, for deadlines.
    house: Option<TimerFd>,
    pub(super) house_watch: *mut Watch,
    pub(super) external: External,
    /// The listener came from the application, and stays while no interface uses it.
    lent_listener: bool,
    /// Calls of the library that use this socket, one inside the other.
    inside: u32,
    /// The application has deleted it.
    deleted: bool,
}

/// Keeps a socket that the application deletes when it is called back until the call that did so is over.
pub(super) struct Inside(*mut Socket);

impl Inside {
    /// # Safety
    /// `socket` is live.
    pub(super) unsafe fn enter(socket: *mut Socket) -> Self {
        // SAFETY: by this function's contract.
        unsafe { (*socket).inside += 1 };
        Self(socket)
    }

    /// The application's last use of the socket.
    ///
    /// # Safety
    /// As for [`Socket::watch`].
    pub(super) unsafe fn delete(self) {
        // SAFETY: by this function's contract.
        unsafe {
            Socket::stop_listening(self.0);
            for watch in [&raw mut (*self.0).timer_watch, &raw mut (*self.0).house_watch] {
                Socket::unwatch(self.0, watch.replace(std::ptr::null_mut()));
            }
            (*self.0).deleted = true;
        }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        // SAFETY: live, because this kept it; nobody has references to it.
        unsafe {
            (*self.0).inside -= 1;
            if (*self.0).deleted && (*self.0).inside == 0 {
                drop(Box::from_raw(self.0));
            }
        }
    }
}

pub(super) struct Own {
    pub(super) epoll: Epoll,
    pub(super) cancel: EventFd,
}

/// The application's functions for memory of its own.
#[derive(Clone, Copy, Default)]
pub(super) struct External {
    pub(super) add: Option<AddExternalRegion>,
    pub(super) get_addr: Option<GetExternalRegionAddr>,
    pub(super) delete: Option<DelExternalRegion>,
    pub(super) offset: Option<GetExternalBufferOffset>,
}

/// What a descriptor is for.
pub(super) enum Kind {
    Listener,
    Handshake(Handshake),
    Control(*mut Conn),
    Attempt(*mut Conn),
    Interrupt(*mut Conn, u16),
    Timer,
    House,
}

/// A descriptor that is waited for.
pub(super) struct Watch {
    socket: *mut Socket,
    fd: c_int,
    kind: Kind,
}

/// Addresses of all watches.
fn watches() -> std::sync::MutexGuard<'static, HashSet<usize>> {
    static ALL: OnceLock<Mutex<HashSet<usize>>> = OnceLock::new();
    ALL.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

impl Socket {
    /// A socket that waits for nothing yet.
    pub(super) fn new(args: SocketArgs, ctx: *mut c_void) -> nix::Result<Self> {
        let own = if args.on_control_fd_update.is_some() { None } else { Some(own_epoll()?) };
        let null = std::ptr::null_mut();
        Ok(Self {
            args,
            ctx,
            own,
            listener: None,
            listener_watch: null,
            conns: Vec::new(),
            handshakes: Vec::new(),
            timer: None,
            timer_watch: null,
            house: None,
            house_watch: null,
            external: External::default(),
            lent_listener: false,
            inside: 0,
            deleted: false,
        })
    }

    /// Starts waiting for a descriptor; null when that fails.
    ///
    /// # Safety
    /// `this` is a live socket, and nobody has a reference to it: the application is called.
    pub(super) unsafe fn watch(this: *mut Self, fd: BorrowedFd<'_>, kind: Kind) -> *mut Watch {
        let watch = Box::into_raw(Box::new(Watch { socket: this, fd: fd.as_raw_fd(), kind }));
        watches().insert(watch as usize);
        // SAFETY: by this function's contract.
        if unsafe { Self::update(this, watch, EVENT_READ) } {
            return watch;
        }
        // SAFETY: made above.
        unsafe { forget(watch) };
        std::ptr::null_mut()
    }

    /// Stops waiting, before the descriptor is closed. Null is fine.
    ///
    /// # Safety
    /// As for [`watch`](Self::watch); `watch` came from there and is not used again.
    pub(super) unsafe fn unwatch(this: *mut Self, watch: *mut Watch) -> Option<Kind> {
        if watch.is_null() {
            return None;
        }
        // SAFETY: by this function's contract.
        unsafe {
            Self::update(this, watch, EVENT_DEL);
            Some(forget(watch))
        }
    }

    /// # Safety
    /// `this` and `watch` are live and nobody has references to them.
    unsafe fn update(this: *mut Self, watch: *mut Watch, kind: c_int) -> bool {
        // SAFETY: by this function's contract; the references end before the application is called.
        let (callback, ctx, fd) =
            unsafe { ((*this).args.on_control_fd_update, (*this).ctx, (*watch).fd) };
        if let Some(callback) = callback {
            return callback(FdEvent { fd, kind, private_ctx: watch.cast() }, ctx) == 0;
        }
        // SAFETY: as above; nothing is called back here.
        let Some(own) = (unsafe { &(*this).own }) else { return false };
        // SAFETY: watches are forgotten before their descriptors are closed.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        if kind == EVENT_DEL {
            return own.epoll.delete(fd).is_ok();
        }
        own.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, watch as u64)).is_ok()
    }

    /// Starts listening, for the first server interface on this socket.
    ///
    /// # Safety
    /// As for [`watch`](Self::watch).
    pub(super) unsafe fn listen(this: *mut Self) -> Result<(), Error> {
        // SAFETY: by this function's contract; the reference ends before `watch`.
        let socket = unsafe { &mut *this };
        if socket.listener.is_some() {
            return Ok(());
        }
        let address = Address::parse(&text_of(&socket.args.path));
        let listener = Listener::bind(&address).map_err(|e| Error::from(&e))?;
        // SAFETY: as above.
        unsafe { Self::set_listener(this, listener, false) }
    }

    /// # Safety
    /// As for [`watch`](Self::watch).
    pub(super) unsafe fn set_listener(
        this: *mut Self,
        listener: Listener,
        lent: bool,
    ) -> Result<(), Error> {
        let limits = Limits { s2m_rings: 255, m2s_rings: 255, ..Limits::default() };
        let limits = ListenerLimits {
            half_open: 64,
            accepts_per_s: 1000,
            accept_burst: 1000,
            hello: limits,
        };
        // SAFETY: by this function's contract; what is borrowed is a descriptor that stays open.
        unsafe {
            Self::unwatch(this, (*this).listener_watch);
            (*this).listener = Some(listener.with_limits(limits));
            (*this).lent_listener = lent;
            Self::resume_listener(this)
        }
    }

    /// # Safety
    /// As for [`watch`](Self::watch).
    unsafe fn resume_listener(this: *mut Self) -> Result<(), Error> {
        // SAFETY: by this function's contract; the descriptor is open as long as the listener.
        unsafe {
            let Some(listener) = &(*this).listener else { return Ok(()) };
            let fd = BorrowedFd::borrow_raw(listener.as_fd().as_raw_fd());
            let watch = Self::watch(this, fd, Kind::Listener);
            (*this).listener_watch = watch;
            if watch.is_null() { Err(Error::CbFdupdate) } else { Ok(()) }
        }
    }

    /// The last server interface is gone: nobody listens any more, but on a socket that the application
    /// has given.
    ///
    /// # Safety
    /// As for [`watch`](Self::watch).
    pub(super) unsafe fn rest(this: *mut Self) {
        // SAFETY: by this function's contract.
        unsafe {
            if !(*this).lent_listener {
                Self::stop_listening(this);
            }
        }
    }

    /// Stops listening and forgets half-open handshakes.
    ///
    /// # Safety
    /// As for [`watch`](Self::watch).
    unsafe fn stop_listening(this: *mut Self) {
        // SAFETY: by this function's contract.
        unsafe {
            for watch in std::mem::take(&mut (*this).handshakes) {
                Self::unwatch(this, watch);
            }
            let watch = std::mem::replace(&mut (*this).listener_watch, std::ptr::null_mut());
            Self::unwatch(this, watch);
            (*this).listener = None;
        }
    }

    /// # Safety
    /// As for [`watch`](Self::watch).
    unsafe fn accept(this: *mut Self) -> Error {
        loop {
            // SAFETY: by this function's contract; the references end before `watch`.
            let accepted = unsafe {
                let Some(listener) = &mut (*this).listener else { return Error::Success };
                let accepted = listener.accept();
                if listener.retry_at().is_some() {
                    // Level-triggered waiting would spin until the ration allows more.
                    let watch =
                        std::mem::replace(&mut (*this).listener_watch, std::ptr::null_mut());
                    Self::unwatch(this, watch);
                }
                accepted
            };
            match accepted {
                Ok(None) => return Error::Success,
                Err(error) => return (&error).into(),
                // SAFETY: as above; the descriptor stays open inside the handshake, which is boxed.
                Ok(Some(handshake)) => unsafe {
                    let handshake = handshake.with_hooks(Self::hooks(this));
                    let fd = BorrowedFd::borrow_raw(handshake.as_fd().as_raw_fd());
                    let watch = Self::watch(this, fd, Kind::Handshake(handshake));
                    if watch.is_null() {
                        return Error::CbFdupdate;
                    }
                    (*this).handshakes.push(watch);
                },
            }
        }
    }

    /// # Safety
    /// `this` is a live socket, and outlives what is returned.
    unsafe fn hooks(this: *mut Self) -> Hooks {
        let socket = Foreign(this.cast());
        // SAFETY: by this function's contract.
        let External { get_addr, delete, .. } = unsafe { (*this).external };
        let map = get_addr.map(|get_addr| {
            let map = move |id, bytes, file| {
                // SAFETY: handshakes go before their socket.
                unsafe {
                    map_by_application(socket.get().cast(), get_addr, delete, id, bytes, file)
                }
            };
            Box::new(map) as Box<_>
        });
        Hooks { as_libmemif: true, map }
    }

    /// Ends handshakes for an interface that goes away: they may hold memory of its application.
    ///
    /// # Safety
    /// As for [`watch`](Self::watch).
    pub(super) unsafe fn forget_handshakes(this: *mut Self, id: u32) {
        // SAFETY: by this function's contract; the references end before `unwatch`.
        unsafe {
            for watch in (*this).handshakes.clone() {
                if matches!(&(*watch).kind, Kind::Handshake(h) if h.interface() == Some(id)) {
                    (*this).handshakes.retain(|&w| w != watch);
                    Self::unwatch(this, watch);
                }
            }
        }
    }

    /// What this socket's server interfaces say to a client.
    fn answer(&self, id: u32) -> Answer {
        // SAFETY: conns holds live interfaces only; handshakes run while nobody else has references.
        let conn = self.conns.iter().map(|&c| unsafe { &*c }).find(|c| c.serves(id));
        match conn {
            None => Answer::Unknown,
            Some(conn) if conn.is_connected() => Answer::Busy,
            Some(conn) => Answer::Accept(conn.offer()),
        }
    }

    /// # Safety
    /// As for [`watch`](Self::watch); `watch` is one of this socket's handshakes.
    unsafe fn advance(this: *mut Self, watch: *mut Watch) -> Error {
        // SAFETY: by this function's contract; nothing is called back while the references live.
        let progress = unsafe {
            let Kind::Handshake(handshake) = &mut (*watch).kind else { return Error::InvalArg };
            handshake.on_readable(&|id| (*this).answer(id))
        };
        let (result, connection) = match progress {
            Progress::Pending => return Error::Success,
            // A client's mistake is not the application's.
            Progress::Closed(_) => (Error::Success, None),
            Progress::Connected(connection) => (Error::Success, Some(connection)),
        };
        // SAFETY: as above. A closed handshake's descriptor is gone from epoll already, and a number
        // reused meanwhile cannot be, since nothing was opened in between.
        unsafe {
            (*this).handshakes.retain(|&w| w != watch);
            Self::unwatch(this, watch);
            if let Some(connection) = connection {
                let id = connection.info().id;
                let found = (*this).conns.iter().copied().find(|&c| (*c).serves(id));
                match found {
                    Some(conn) => Conn::connected(conn, connection),
                    None => drop(connection),
                }
            }
        }
        result
    }

    /// Sets our timer to the next deadline, and does what is due.
    ///
    /// # Safety
    /// As for [`watch`](Self::watch).
    pub(super) unsafe fn keep_house(this: *mut Self) {
        let now = Instant::now();
        // SAFETY: by this function's contract; references end before callbacks run.
        unsafe {
            if (*this).deleted {
                return;
            }
            if (*this).listener.is_some()
                && (*this).listener_watch.is_null()
                && (*this).listener.as_ref().and_then(Listener::retry_at).is_none_or(|t| t <= now)
            {
                let _ = Self::resume_listener(this);
            }
            for watch in (*this).handshakes.clone() {
                if let Kind::Handshake(h) = &(*watch).kind
                    && h.deadline() <= now
                {
                    Self::advance(this, watch);
                }
            }
            for conn in (*this).conns.clone() {
                if (*this).conns.contains(&conn) && (*conn).attempt_due(now) {
                    Conn::advance(conn);
                }
            }
            let mut next = (*this).listener.as_ref().and_then(Listener::retry_at);
            for &watch in &(*this).handshakes {
                if let Kind::Handshake(h) = &(*watch).kind {
                    next = Some(next.map_or(h.deadline(), |t| t.min(h.deadline())));
                }
            }
            for &conn in &(*this).conns {
                next = match ((*conn).attempt_deadline(), next) {
                    (Some(a), Some(b)) => Some(a.min(b)),
                    (a, b) => a.or(b),
                };
            }
            Self::set_house_timer(this, next);
        }
    }

    /// # Safety
    /// As for [`watch`](Self::watch).
    unsafe fn set_house_timer(this: *mut Self, next: Option<Instant>) {
        // SAFETY: by this function's contract.
        unsafe {
            let Some(next) = next else {
                if let Some(timer) = &(*this).house {
                    let _ = timer.unset();
                }
                return;
            };
            if (*this).house.is_none() {
                let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
                let Ok(timer) = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags) else { return };
                let fd = BorrowedFd::borrow_raw(timer.as_fd().as_raw_fd());
                (*this).house = Some(timer);
                (*this).house_watch = Self::watch(this, fd, Kind::House);
            }
            let wait = next.saturating_duration_since(Instant::now());
            // A timer of zero would never fire.
            let wait = wait.max(std::time::Duration::from_millis(1)).into();
            if let Some(timer) = &(*this).house {
                let _ = timer.set(Expiration::OneShot(wait), TimerSetTimeFlags::empty());
            }
        }
    }
}

/// The application's mapping of a region that a client brings to server interface `id`. The file is
/// the application's from then on.
///
/// # Safety
/// `socket` is live.
unsafe fn map_by_application(
    socket: *const Socket,
    get_addr: GetExternalRegionAddr,
    delete: Option<DelExternalRegion>,
    id: u32,
    bytes: u64,
    file: OwnedFd,
) -> Option<Lent> {
    let size = u32::try_from(bytes).ok()?;
    // SAFETY: by this function's contract; a socket's interfaces are live, and no reference is kept.
    let ctx = unsafe {
        let socket = &*socket;
        socket.conns.iter().find(|&&c| (*c).serves(id)).map(|&c| (*c).ctx)
    }?;
    let addr = get_addr(size, file.as_raw_fd(), ctx);
    // Without somebody to close the file, that is done here.
    let fd = if delete.is_some() && !addr.is_null() { file.into_raw_fd() } else { -1 };
    lend(delete, addr, size, fd, Foreign(ctx))
}

/// # Safety
/// `watch` came from [`Socket::watch`] and is not used again.
unsafe fn forget(watch: *mut Watch) -> Kind {
    watches().remove(&(watch as usize));
    // SAFETY: boxed by `Socket::watch`.
    unsafe { Box::from_raw(watch) }.kind
}

/// Does what an event on a watched descriptor asks for.
///
/// # Safety
/// No reference to the socket or its interfaces is alive; the application may be called.
unsafe fn handle(watch: *mut Watch) -> Error {
    // SAFETY: the caller found the address among the live watches.
    let (socket, kind) = unsafe { ((*watch).socket, &(*watch).kind) };
    // SAFETY: as above.
    let _inside = unsafe { Inside::enter(socket) };
    // SAFETY: live watches belong to live sockets and interfaces.
    let result = unsafe {
        match *kind {
            Kind::Listener => Socket::accept(socket),
            Kind::Handshake(_) => Socket::advance(socket, watch),
            Kind::Control(conn) => Conn::on_control(conn),
            Kind::Attempt(conn) => {
                // A refusal is the peer's affair; `memif_get_details` tells it.
                Conn::advance(conn);
                Error::Success
            }
            Kind::Interrupt(conn, queue) => return Conn::on_interrupt(conn, queue),
            Kind::Timer => {
                if let Some(timer) = &(*socket).timer {
                    drain(timer.as_fd());
                }
                for conn in (*socket).conns.clone() {
                    if (*socket).conns.contains(&conn) {
                        Conn::request(conn);
                    }
                }
                Error::Success
            }
            Kind::House => {
                if let Some(timer) = &(*socket).house {
                    drain(timer.as_fd());
                }
                Error::Success
            }
        }
    };
    // SAFETY: as above; a socket that was deleted meanwhile is kept until here.
    unsafe { Socket::keep_house(socket) };
    result
}

/// Takes what a descriptor of our own has to say; it does not block.
pub(super) fn drain(fd: BorrowedFd<'_>) {
    let _ = nix::unistd::read(fd, &mut [0; 8]);
}

pub(super) fn handle_address(address: usize) -> Error {
    let known = watches().contains(&address);
    if !known {
        return Error::Success;
    }
    // SAFETY: a live watch; the C interface's contract says that no other thread uses this socket.
    unsafe { handle(address as *mut Watch) }
}

fn own_epoll() -> nix::Result<Own> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let cancel = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
    epoll.add(&cancel, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
    Ok(Own { epoll, cancel })
}

/// What a server interface offers to its client.
pub(super) fn offer(args: &super::types::ConnArgs, mode: crate::Mode) -> Offer {
    // The application is prepared for the queues that it named, as with libmemif; all else is only
    // limited by the format. Buffers reach it one by one, so that no frame is too long.
    let limits = Limits {
        regions: crate::MAX_REGIONS as u16,
        s2m_rings: args.num_s2m_rings.into(),
        m2s_rings: args.num_m2s_rings.into(),
        log2_ring_size: 15,
        mapped_bytes: 8 << 30,
        page_bytes: 1 << 30,
        frame_bytes: u32::MAX,
    };
    Offer {
        mode,
        secret: text_of(&args.secret),
        name: text_of(&args.interface_name),
        require_sealed: false,
        limits,
        ..Offer::default()
    }
}
