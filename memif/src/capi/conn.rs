//! Interfaces of the C interface: made, connected, lost, deleted.

use super::events::{External, Inside, Kind, Socket, Watch, offer};
use super::socket::default_socket;
use super::types::{
    AddExternalRegion, ConnArgs, ConnectionUpdate, DelExternalRegion, Error, OnInterrupt, text_of,
};
use crate::client::Hooks;
use crate::region::Lent;
use crate::ring::Ring;
use crate::{
    Address, ClientConfig, ClientEvent, CloseReason, Connection, Connector, Mode, Offer, RxQueue,
    Status, TxQueue,
};
use std::cell::UnsafeCell;
use std::ffi::{c_int, c_void};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::time::Instant;

/// What an application sees as `memif_conn_handle_t`.
pub(super) struct Conn {
    pub(super) socket: *mut Socket,
    pub(super) args: ConnArgs,
    mode: Mode,
    on_connect: ConnectionUpdate,
    on_disconnect: ConnectionUpdate,
    on_interrupt: Option<OnInterrupt>,
    pub(super) ctx: *mut c_void,
    connector: Option<Connector>,
    attempt_watch: *mut Watch,
    pub(super) live: Option<Live>,
    /// The application is being told that the connection ends.
    leaving: bool,
    /// The application has deleted it, and may be told of that yet.
    deleted: bool,
    /// Why it was disconnected last.
    pub(super) error: String,
}

/// A connected interface. Each queue is in a cell of its own, because each may be used by a thread
/// of its own.
pub(super) struct Live {
    pub(super) connection: Connection,
    control_watch: *mut Watch,
    interrupt_watches: Vec<*mut Watch>,
    pub(super) rx: Box<[UnsafeCell<RxQueue>]>,
    pub(super) tx: Box<[UnsafeCell<TxQueue>]>,
}

impl Conn {
    fn is_server(&self) -> bool {
        self.args.is_master != 0
    }

    pub(super) fn serves(&self, id: u32) -> bool {
        self.is_server() && self.args.interface_id == id
    }

    pub(super) fn is_connected(&self) -> bool {
        self.live.is_some()
    }

    /// Connected or on its way.
    fn is_busy(&self) -> bool {
        self.live.is_some() || self.connector.is_some()
    }

    pub(super) fn offer(&self) -> Offer {
        offer(&self.args, self.mode)
    }

    pub(super) fn attempt_deadline(&self) -> Option<Instant> {
        self.connector.as_ref().and_then(Connector::deadline)
    }

    pub(super) fn attempt_due(&self, now: Instant) -> bool {
        self.attempt_deadline().is_some_and(|t| t <= now)
    }

    /// A client that is neither connected nor on its way asks for a connection.
    ///
    /// # Safety
    /// `this` is live and nobody has a reference to it or its socket: the application is called.
    pub(super) unsafe fn request(this: *mut Self) -> Error {
        // SAFETY: by this function's contract.
        unsafe {
            if (*this).is_server() || (*this).is_busy() {
                return Error::Success;
            }
            let socket = (*this).socket;
            let args = (*this).args;
            let config = ClientConfig {
                mode: (*this).mode,
                secret: text_of(&args.secret),
                name: text_of(&args.interface_name),
                s2m_rings: args.num_s2m_rings.into(),
                m2s_rings: args.num_m2s_rings.into(),
                log2_ring_size: args.log2_ring_size,
                buffer_bytes: args.buffer_size.into(),
                max_frame_bytes: u32::MAX,
                ..ClientConfig::new(
                    Address::parse(&text_of(&(*socket).args.path)),
                    args.interface_id,
                )
            };
            let mut hooks = Hooks { as_libmemif: true, external: None };
            if let External { add: Some(add), delete, .. } = (*socket).external {
                let ctx = Foreign((*this).ctx);
                hooks.external = Some(Box::new(move |b| ask_for_memory(add, delete, ctx, b)));
            }
            (*this).connector = Some(Connector::with_hooks(config, hooks));
            Self::advance(this)
        }
    }

    /// Goes on with a connection attempt.
    ///
    /// # Safety
    /// As for [`request`](Self::request).
    pub(super) unsafe fn advance(this: *mut Self) -> Error {
        // SAFETY: by this function's contract; references end before the application is called.
        unsafe {
            let Some(connector) = &mut (*this).connector else { return Error::Success };
            let event = connector.poll(Instant::now());
            let fd = connector.socket().map(|fd| fd.as_raw_fd());
            match event {
                ClientEvent::Pending => {
                    if let Some(fd) = fd
                        && (*this).attempt_watch.is_null()
                    {
                        let fd = BorrowedFd::borrow_raw(fd);
                        (*this).attempt_watch =
                            Socket::watch((*this).socket, fd, Kind::Attempt(this));
                    }
                    Error::Success
                }
                ClientEvent::Failed(reason) => {
                    Self::stop_attempt(this);
                    let error = Error::from(&reason);
                    (*this).error = reason.to_string();
                    error
                }
                ClientEvent::Connected(connection) => {
                    Self::stop_attempt(this);
                    Self::connected(this, connection);
                    Error::Success
                }
            }
        }
    }

    /// # Safety
    /// As for [`request`](Self::request).
    unsafe fn stop_attempt(this: *mut Self) {
        // SAFETY: by this function's contract; the attempt's descriptor is closed only afterwards.
        unsafe {
            let watch = std::mem::replace(&mut (*this).attempt_watch, std::ptr::null_mut());
            Socket::unwatch((*this).socket, watch);
            (*this).connector = None;
        }
    }

    /// Takes a fresh connection over and tells the application.
    ///
    /// # Safety
    /// As for [`request`](Self::request).
    pub(super) unsafe fn connected(this: *mut Self, mut connection: Connection) {
        let (rx, tx) = connection.take_queues();
        // SAFETY: by this function's contract; borrowed descriptors stay open while watched.
        unsafe {
            let fd = BorrowedFd::borrow_raw(connection.as_fd().as_raw_fd());
            let control_watch = Socket::watch((*this).socket, fd, Kind::Control(this));
            let mut interrupt_watches = Vec::new();
            if (*this).on_interrupt.is_some() {
                for (i, queue) in rx.iter().enumerate() {
                    let fd = BorrowedFd::borrow_raw(queue.eventfd().as_raw_fd());
                    let kind = Kind::Interrupt(this, i as u16);
                    interrupt_watches.push(Socket::watch((*this).socket, fd, kind));
                }
            }
            (*this).error.clear();
            (*this).live = Some(Live {
                connection,
                control_watch,
                interrupt_watches,
                rx: rx.into_iter().map(UnsafeCell::new).collect(),
                tx: tx.into_iter().map(UnsafeCell::new).collect(),
            });
            let (callback, ctx) = ((*this).on_connect, (*this).ctx);
            callback(this.cast(), ctx);
        }
    }

    /// Looks at the control socket of a connected interface.
    ///
    /// # Safety
    /// As for [`request`](Self::request).
    pub(super) unsafe fn on_control(this: *mut Self) -> Error {
        // SAFETY: by this function's contract; the reference ends before the application is called.
        unsafe {
            let Some(live) = &mut (*this).live else { return Error::Success };
            if let Status::Down(reason) = live.connection.on_readable() {
                Self::down(this, &reason);
            }
        }
        Error::Success
    }

    /// # Safety
    /// As for [`request`](Self::request).
    pub(super) unsafe fn on_interrupt(this: *mut Self, queue: u16) -> Error {
        // SAFETY: by this function's contract.
        let (callback, ctx) = unsafe { ((*this).on_interrupt, (*this).ctx) };
        if let Some(callback) = callback {
            callback(this.cast(), ctx, queue);
        }
        Error::Success
    }

    /// Tells the application that a connection ends, and ends it: until it was told, threads of its own
    /// may be using the queues.
    ///
    /// # Safety
    /// As for [`request`](Self::request).
    unsafe fn down(this: *mut Self, reason: &CloseReason) {
        // SAFETY: by this function's contract; the socket outlives the callback, see `Inside`.
        unsafe {
            if (*this).live.is_none() || std::mem::replace(&mut (*this).leaving, true) {
                return;
            }
            (*this).error = reason.to_string();
            let (socket, callback, ctx) = ((*this).socket, (*this).on_disconnect, (*this).ctx);
            callback(this.cast(), ctx);
            // The application may have deleted it.
            if (*socket).conns.contains(&this) {
                Self::tear_down(this, reason);
            }
        }
    }

    /// # Safety
    /// As for [`request`](Self::request).
    unsafe fn tear_down(this: *mut Self, reason: &CloseReason) {
        // SAFETY: by this function's contract.
        unsafe {
            (*this).leaving = false;
            let Some(live) = (*this).live.take() else { return };
            let socket = (*this).socket;
            Socket::unwatch(socket, live.control_watch);
            for &watch in &live.interrupt_watches {
                Socket::unwatch(socket, watch);
            }
            live.connection.disconnect(reason);
            // The application's memory goes back with the last queue.
            drop((live.rx, live.tx));
        }
    }
}

/// A pointer of the application's.
#[derive(Clone, Copy)]
pub(super) struct Foreign(pub(super) *mut c_void);

// SAFETY: the pointer is only handed back; the C interface's contract is that the application calls
// it, and is called, on threads of its own choice that it keeps apart.
unsafe impl Send for Foreign {}

impl Foreign {
    /// By a method, so that closures capture the whole.
    pub(super) fn get(self) -> *mut c_void {
        self.0
    }
}

/// An application's mapping, to be given back by `delete`, which closes the file as well.
pub(super) fn lend(
    delete: Option<DelExternalRegion>,
    addr: *mut c_void,
    size: u32,
    fd: c_int,
    ctx: Foreign,
) -> Option<Lent> {
    let base = NonNull::new(addr.cast())?;
    let addr = Foreign(addr);
    Some(Lent::new(base, fd, move || {
        if let Some(delete) = delete {
            delete(addr.get(), size, fd, ctx.get());
        }
    }))
}

fn ask_for_memory(
    add: AddExternalRegion,
    delete: Option<DelExternalRegion>,
    ctx: Foreign,
    bytes: u64,
) -> Option<(Lent, OwnedFd)> {
    let size = u32::try_from(bytes).ok()?;
    let (mut addr, mut fd) = (std::ptr::null_mut(), -1);
    if add(&raw mut addr, size, &raw mut fd, ctx.get()) != 0 || fd < 0 {
        return None;
    }
    let lent = lend(delete, addr, size, fd, ctx)?;
    // SAFETY: the application says that this is its descriptor; it keeps it, we take a duplicate.
    let file = unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned().ok()?;
    Some((lent, file))
}

/// Makes an interface: a server listens, a client connects, at once. Defaults are written into `args`.
///
/// # Safety
/// `conn` and `args` are valid, the handle is null; `args.socket` is a socket or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memif_create(
    conn: *mut *mut c_void,
    args: *mut ConnArgs,
    on_connect: Option<ConnectionUpdate>,
    on_disconnect: Option<ConnectionUpdate>,
    on_interrupt: Option<OnInterrupt>,
    private_ctx: *mut c_void,
) -> c_int {
    let (Some(on_connect), Some(on_disconnect)) = (on_connect, on_disconnect) else {
        return Error::InvalArg as c_int;
    };
    if conn.is_null() || args.is_null() {
        return Error::InvalArg as c_int;
    }
    // SAFETY: by this function's contract.
    let args = unsafe {
        if !(*conn).is_null() {
            return Error::Conn as c_int;
        }
        &mut *args
    };
    let socket: *mut Socket = match args.socket.is_null() {
        true => default_socket(),
        false => args.socket.cast(),
    };
    let mode = match args.mode {
        0 => Mode::Ethernet,
        1 => Mode::Ip,
        2 => Mode::PuntInject,
        _ => return Error::Mode as c_int,
    };
    if socket.is_null() {
        return Error::InvalArg as c_int;
    }
    if args.log2_ring_size > Ring::MAX_LOG2 {
        return Error::MaxRing as c_int;
    }
    let default = |value: &mut u8, or: u8| *value = if *value == 0 { or } else { *value };
    default(&mut args.num_s2m_rings, 1);
    default(&mut args.num_m2s_rings, 1);
    default(&mut args.log2_ring_size, 10);
    if args.buffer_size == 0 {
        args.buffer_size = 2048;
    }
    let args = *args;
    // SAFETY: by this function's contract; no references are alive when the application is called.
    unsafe {
        let same = |&c: &*mut Conn| {
            (*c).args.interface_id == args.interface_id
                && ((*c).args.is_master != 0) == (args.is_master != 0)
        };
        if (*socket).conns.iter().any(same) {
            return Error::Id as c_int;
        }
        let new = Box::into_raw(Box::new(Conn {
            socket,
            args,
            mode,
            on_connect,
            on_disconnect,
            on_interrupt,
            ctx: private_ctx,
            connector: None,
            attempt_watch: std::ptr::null_mut(),
            live: None,
            leaving: false,
            deleted: false,
            error: String::new(),
        }));
        (*socket).conns.push(new);
        *conn = new.cast();
        let error = memif_request_connection(new.cast());
        // A server that is not there yet, or has many waiting, is no error: the timer or a request will
        // find it.
        let absent = [Error::Connrefused, Error::NoFile, Error::Again].map(|e| e as c_int);
        let absent = absent.contains(&error);
        if error != Error::Success as c_int && !(absent && args.is_master == 0) {
            memif_delete(conn);
            return error;
        }
    }
    Error::Success as c_int
}

/// A client asks for a connection now; a server listens.
///
/// # Safety
/// `conn` is an interface.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memif_request_connection(conn: *mut c_void) -> c_int {
    let this: *mut Conn = conn.cast();
    if this.is_null() {
        return Error::Noconn as c_int;
    }
    // SAFETY: by this function's contract; no references are alive when the application is called.
    unsafe {
        if (*this).is_busy() {
            return Error::Alrconn as c_int;
        }
        let socket = (*this).socket;
        let _inside = Inside::enter(socket);
        if (*this).is_server() {
            return Socket::listen(socket).map_or_else(|e| e as c_int, |()| 0);
        }
        let result = Conn::request(this);
        Socket::keep_house(socket);
        result as c_int
    }
}

/// Calls on_disconnect, disconnects and forgets an interface, and sets the handle to null.
///
/// # Safety
/// `conn` points to a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memif_delete(conn: *mut *mut c_void) -> c_int {
    // SAFETY: by this function's contract; no references are alive when the application is called.
    unsafe {
        if conn.is_null() || (*conn).is_null() {
            return Error::Noconn as c_int;
        }
        let this: *mut Conn = (*conn).cast();
        let socket = (*this).socket;
        let _inside = Inside::enter(socket);
        // By another handle, in on_disconnect.
        if std::mem::replace(&mut (*this).deleted, true) {
            return Error::Noconn as c_int;
        }
        if !std::mem::replace(&mut (*this).leaving, true) {
            let (callback, ctx) = ((*this).on_disconnect, (*this).ctx);
            callback(this.cast(), ctx);
        }
        Conn::stop_attempt(this);
        if (*this).is_server() {
            Socket::forget_handshakes(socket, (*this).args.interface_id);
        }
        Conn::tear_down(this, &CloseReason::Local("interface deleted".to_owned()));
        (*socket).conns.retain(|&c| c != this);
        let servers = (*socket).conns.iter().any(|&c| (*c).is_server());
        if (*this).is_server() && !servers {
            Socket::rest(socket);
        }
        drop(Box::from_raw(this));
        *conn = std::ptr::null_mut();
    }
    Error::Success as c_int
}

/// The socket of an interface.
///
/// # Safety
/// `conn` is an interface or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memif_get_socket_handle(conn: *mut c_void) -> *mut c_void {
    let this: *const Conn = conn.cast();
    if this.is_null() {
        return std::ptr::null_mut();
    }
    // SAFETY: by this function's contract.
    unsafe { (*this).socket.cast() }
}
