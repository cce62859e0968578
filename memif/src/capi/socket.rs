//! Functions of the C interface for sockets.

use super::events::{External, Inside, Kind, Socket, drain, handle_address};
use super::types::{
    AddExternalRegion, DelExternalRegion, EVENT_ERROR, EVENT_READ, Error, GetExternalBufferOffset,
    GetExternalRegionAddr, SocketArgs,
};
use crate::Listener;
use nix::sys::epoll::{EpollEvent, EpollTimeout};
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};
use std::ffi::{c_char, c_int, c_void};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

/// Makes a socket.
///
/// # Safety
/// `sock` and `args` are valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memif_create_socket(
    sock: *mut *mut c_void,
    args: *const SocketArgs,
    private_ctx: *mut c_void,
) -> c_int {
    if sock.is_null() || args.is_null() {
        return Error::InvalArg as c_int;
    }
    // SAFETY: by this function's contract.
    let mut args = unsafe { *args };
    if args.path[0] == 0 {
        args.path[..19].copy_from_slice(b"/run/vpp/memif.sock");
    }
    if args.app_name[0] == 0 {
        args.app_name[..12].copy_from_slice(b"libmemif-app");
    }
    let socket = match Socket::new(args, private_ctx) {
        Ok(socket) => Box::into_raw(Box::new(socket)),
        Err(errno) => return Error::from(errno) as c_int,
    };
    let timer = args.connection_request_timer;
    if timer.it_interval.tv_sec != 0 || timer.it_interval.tv_nsec != 0 {
        // SAFETY: made above.
        unsafe { memif_set_connection_request_timer(socket.cast(), timer) };
    }
    // SAFETY: by this function's contract.
    unsafe { *sock = socket.cast() };
    Error::Success as c_int
}

/// The socket of interfaces that are made without one: on the default path, with our own event
/// loop; `memif_get_socket_handle` tells it. It lasts as long as the process. Null when it cannot be
/// made.
pub(super) fn default_socket() -> *mut Socket {
    static DEFAULT: Mutex<usize> = Mutex::new(0);
    let mut address = DEFAULT.lock().unwrap_or_else(PoisonError::into_inner);
    if *address == 0 {
        // SAFETY: arguments of zeros are valid: no callbacks, no timer, empty names.
        let args: SocketArgs = unsafe { std::mem::zeroed() };
        let mut socket = std::ptr::null_mut();
        // SAFETY: both pointers are valid. On failure the handle stays null.
        unsafe { memif_create_socket(&raw mut socket, &raw const args, std::ptr::null_mut()) };
        *address = socket as usize;
    }
    *address as *mut Socket
}

/// Deletes a socket that has no interfaces.
///
/// # Safety
/// `sock` points to a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memif_delete_socket(sock: *mut *mut c_void) -> c_int {
    // SAFETY: by this function's contract; handles are our boxes.
    unsafe {
        if sock.is_null() || (*sock).is_null() {
            return Error::InvalArg as c_int;
        }
        let socket: *mut Socket = (*sock).cast();
        if !(*socket).conns.is_empty() {
            return Error::InvalArg as c_int;
        }
        Inside::enter(socket).delete();
        *sock = std::ptr::null_mut();
    }
    Error::Success as c_int
}

/// Handles an event that the application waited for.
///
/// # Safety
/// `ptr` is the `private_ctx` of a descriptor that the application was told to wait for.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memif_control_fd_handler(ptr: *mut c_void, events: c_int) -> c_int {
    if ptr.is_null() || events & (EVENT_READ | EVENT_ERROR) == 0 {
        return Error::InvalArg as c_int;
    }
    handle_address(ptr as usize) as c_int
}

/// Waits for one event, at most `timeout` milliseconds (-1: for ever), and handles it.
///
/// # Safety
/// `sock` is a socket without a callback for descriptors.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memif_poll_event(sock: *mut c_void, timeout: c_int) -> c_int {
    let socket: *mut Socket = sock.cast();
    if socket.is_null() {
        return Error::InvalArg as c_int;
    }
    let mut events = [EpollEvent::empty()];
    {
        // SAFETY: by this function's contract; the reference ends before anything is called back.
        let Some(own) = (unsafe { &(*socket).own }) else { return Error::InvalArg as c_int };
        let timeout = EpollTimeout::try_from(timeout).unwrap_or(EpollTimeout::NONE);
        match own.epoll.wait(&mut events, timeout) {
            Ok(0) => return Error::Success as c_int,
            Ok(_) => {}
            Err(errno) => return Error::from(errno) as c_int,
        }
        if events[0].data() == 0 {
            drain(own.cancel.as_fd());
            return Error::PollCancel as c_int;
        }
    }
    handle_address(events[0].data() as usize) as c_int
}

/// Makes a running or the next `memif_poll_event` return; callable from any thread.
///
/// # Safety
/// `sock` is a socket without a callback for descriptors.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memif_cancel_poll_event(sock: *mut c_void) -> c_int {
    let socket: *const Socket = sock.cast();
    if socket.is_null() {
        return Error::InvalArg as c_int;
    }
    // SAFETY: by this function's contract; `own` never changes.
    match unsafe { &(*socket).own } {
        Some(own) if own.cancel.write(1).is_ok() => Error::Success as c_int,
        Some(_) => Error::IntWrite as c_int,
        None => Error::InvalArg as c_int,
    }
}

/// How often disconnected clients on this socket ask for a connection.
///
/// # Safety
/// `sock` is a socket.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memif_set_connection_request_timer(
    sock: *mut c_void,
    timer: libc::itimerspec,
) -> c_int {
    let socket: *mut Socket = sock.cast();
    if socket.is_null() {
        return Error::InvalArg as c_int;
    }
    // SAFETY: by this function's contract.
    unsafe {
        (*socket).args.connection_request_timer = timer;
        if (*socket).timer.is_none() {
            let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
            let new = match TimerFd::new(ClockId::CLOCK_MONOTONIC, flags) {
                Ok(new) => new,
                Err(errno) => return Error::from(errno) as c_int,
            };
            let fd = BorrowedFd::borrow_raw(new.as_fd().as_raw_fd());
            (*socket).timer = Some(new);
            (*socket).timer_watch = Socket::watch(socket, fd, Kind::Timer);
        }
        let fd = (*socket).timer.as_ref().map_or(-1, |t| t.as_fd().as_raw_fd());
        if libc::timerfd_settime(fd, 0, &raw const timer, std::ptr::null_mut()) != 0 {
            return Error::from(nix::errno::Errno::last()) as c_int;
        }
    }
    Error::Success as c_int
}

/// The listening descriptor, or -1.
///
/// # Safety
/// `sock` is a socket.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memif_get_listener_fd(sock: *mut c_void) -> c_int {
    let socket: *const Socket = sock.cast();
    if socket.is_null() {
        return -1;
    }
    // SAFETY: by this function's contract.
    unsafe { &(*socket).listener }.as_ref().map_or(-1, |l| l.as_fd().as_raw_fd())
}

/// Takes a socket over that listens already.
///
/// # Safety
/// `sock` is a socket; `fd` is the application's to give away.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memif_set_listener_fd(sock: *mut c_void, fd: c_int) -> c_int {
    let socket: *mut Socket = sock.cast();
    if socket.is_null() || fd < 0 {
        return Error::InvalArg as c_int;
    }
    // SAFETY: by this function's contract.
    unsafe {
        match Listener::from_fd(OwnedFd::from_raw_fd(fd)) {
            Err(error) => Error::from(&error) as c_int,
            Ok(listener) => Socket::set_listener(socket, listener, true)
                .map_or_else(|e| e as c_int, |()| Error::Success as c_int),
        }
    }
}

/// The socket's path as it was given.
///
/// # Safety
/// `sock` is a socket or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memif_get_socket_path(sock: *mut c_void) -> *const c_char {
    let socket: *const Socket = sock.cast();
    if socket.is_null() {
        return std::ptr::null();
    }
    // SAFETY: by this function's contract.
    unsafe { (&raw const (*socket).args.path).cast() }
}

/// The same under its older name.
///
/// # Safety
/// `sock` is a socket or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memif_get_socket_filename(sock: *mut c_void) -> *const c_char {
    // SAFETY: by this function's contract.
    unsafe { memif_get_socket_path(sock) }
}

/// Sets the functions with which an application provides memory for its clients' buffers, and maps by
/// itself what clients bring to its servers.
///
/// # Safety
/// `sock` is a socket without connected interfaces.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memif_register_external_region(
    sock: *mut c_void,
    add: Option<AddExternalRegion>,
    get_addr: Option<GetExternalRegionAddr>,
    delete: Option<DelExternalRegion>,
    offset: Option<GetExternalBufferOffset>,
) {
    let socket: *mut Socket = sock.cast();
    if !socket.is_null() {
        // SAFETY: by this function's contract.
        unsafe { (*socket).external = External { add, get_addr, delete, offset } };
    }
}

/// Installs the process-wide SIGBUS handler of [`crate::sigbus`]; not part of libmemif.
#[unsafe(no_mangle)]
pub extern "C" fn memif_contain_sigbus() -> c_int {
    crate::sigbus::install().map_or_else(|e| Error::from(&e) as c_int, |()| Error::Success as c_int)
}
