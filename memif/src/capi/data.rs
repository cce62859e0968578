//! Buffers of the C interface: one per descriptor, in both directions.

use super::conn::{Conn, Live};
use super::types::{BUFFER_NEXT, Buffer, Error};
use crate::ring::own::Slot;
use crate::{Notifier, Role, RxQueue, TxQueue, Violation};
use std::cell::{RefCell, UnsafeCell};
use std::ffi::{c_int, c_void};
use std::os::fd::{AsRawFd, BorrowedFd};

/// The queue behind a handle and a number, or the error to return.
///
/// # Safety
/// `conn` is an interface, connected or not; no other thread uses this queue.
unsafe fn live<'a>(conn: *mut c_void) -> Result<&'a Live, Error> {
    let this: *const Conn = conn.cast();
    if this.is_null() {
        return Err(Error::Noconn);
    }
    // SAFETY: by this function's contract; queues are behind cells, so that this is shared.
    unsafe { &(*this).live }.as_ref().ok_or(Error::Disconnected)
}

/// # Safety
/// As for [`live`].
unsafe fn rx_queue<'a>(conn: *mut c_void, qid: u16) -> Result<(&'a Live, &'a mut RxQueue), Error> {
    // SAFETY: by this function's contract.
    let live = unsafe { live(conn) }?;
    let queue = live.rx.get(usize::from(qid)).ok_or(Error::Qid)?;
    // SAFETY: one thread per queue.
    Ok((live, unsafe { &mut *queue.get() }))
}

/// # Safety
/// As for [`live`].
unsafe fn tx_queue<'a>(conn: *mut c_void, qid: u16) -> Result<(&'a Live, &'a mut TxQueue), Error> {
    // SAFETY: by this function's contract.
    let live = unsafe { live(conn) }?;
    let queue = live.tx.get(usize::from(qid)).ok_or(Error::Qid)?;
    // SAFETY: one thread per queue.
    Ok((live, unsafe { &mut *queue.get() }))
}

/// A peer that broke the rules is disconnected: the control loop will see its socket at the end.
fn broken(live: &Live, violation: Violation) -> Error {
    live.connection.shut_down();
    violation.into()
}

fn number(result: Result<(), Error>) -> c_int {
    result.map_or_else(|e| e as c_int, |()| Error::Success as c_int)
}

/// Receives up to `count` buffers. They stay the application's until `memif_refill_queue`.
///
/// # Safety
/// `conn` is an interface, `bufs` has room for `count` buffers, `rx` is valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memif_rx_burst(
    conn: *mut c_void,
    qid: u16,
    bufs: *mut Buffer,
    count: u16,
    rx: *mut u16,
) -> c_int {
    if rx.is_null() || (bufs.is_null() && count != 0) {
        return Error::InvalArg as c_int;
    }
    // SAFETY: by this function's contract.
    unsafe {
        *rx = 0;
        number(rx_queue(conn, qid).and_then(|(live, queue)| {
            receive(queue, bufs, count, &mut *rx).map_err(|e| match e {
                Ok(violation) => broken(live, violation),
                Err(error) => error,
            })
        }))
    }
}

/// # Safety
/// `bufs` has room for `count` buffers.
unsafe fn receive(
    queue: &mut RxQueue,
    bufs: *mut Buffer,
    count: u16,
    received: &mut u16,
) -> Result<(), Result<Violation, Error>> {
    loop {
        while *received < count {
            let Some((slot, seg, more)) = queue.claim_slot().map_err(Ok)? else { break };
            let buffer = Buffer {
                desc_index: slot,
                queue: (&raw mut *queue).cast(),
                len: seg.len_bytes,
                flags: if more { BUFFER_NEXT } else { 0 },
                data: seg.as_ptr().cast_mut().cast(),
            };
            // SAFETY: by this function's contract.
            unsafe { bufs.add(usize::from(*received)).write(buffer) };
            *received += 1;
        }
        if queue.available().map_err(Ok)? > 0 {
            return Err(Err(Error::Nobuf));
        }
        consume_signal(queue.eventfd());
        // What came between the look and the consumption must not wait for the next signal.
        if queue.available().map_err(Ok)? == 0 {
            return Ok(());
        }
        if *received == count {
            signal(queue.eventfd()).map_err(Err)?;
            return Err(Err(Error::Nobuf));
        }
    }
}

/// Takes the signals of an eventfd, which the peer may have made blocking: RWF_NOWAIT never does.
fn consume_signal(eventfd: BorrowedFd<'_>) {
    let mut value = 0u64;
    let vector = libc::iovec { iov_base: (&raw mut value).cast(), iov_len: 8 };
    // SAFETY: one buffer of eight bytes that outlives the call.
    unsafe { libc::preadv2(eventfd.as_raw_fd(), &raw const vector, 1, -1, libc::RWF_NOWAIT) };
}

/// Signals an eventfd without being able to block.
fn signal(eventfd: BorrowedFd<'_>) -> Result<(), Error> {
    with_notifier(|notifier| notifier.signal(eventfd))
}

/// Each thread has a notifier of its own.
fn with_notifier(f: impl FnOnce(&mut Notifier) -> std::io::Result<()>) -> Result<(), Error> {
    thread_local! {
        static NOTIFIER: RefCell<Option<Notifier>> = const { RefCell::new(None) };
    }
    NOTIFIER.with_borrow_mut(|notifier| {
        if notifier.is_none() {
            *notifier = Notifier::new().ok();
        }
        let sent = notifier.as_mut().map(f);
        if matches!(sent, Some(Ok(()))) { Ok(()) } else { Err(Error::IntWrite) }
    })
}

/// Gives the oldest `count` buffers back; a client leaves `headroom` bytes in front of what comes.
///
/// # Safety
/// `conn` is an interface.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memif_refill_queue(
    conn: *mut c_void,
    qid: u16,
    count: u16,
    headroom: u16,
) -> c_int {
    // SAFETY: by this function's contract.
    number(unsafe { rx_queue(conn, qid) }.and_then(|(live, queue)| {
        // SAFETY: `rx_queue` has found the interface and its socket alive.
        let (offset, ctx) = unsafe { external_offset(conn) };
        let Some(offset) = offset.filter(|_| live.connection.info().role == Role::Client) else {
            queue.refill(count, headroom.into());
            return Ok(());
        };
        for _ in 0..count {
            let Some(slot) = queue.next_post() else { break };
            if !queue.move_buffer(slot, offset(ctx)) {
                return Err(Error::InvalArg);
            }
            queue.refill(1, 0);
        }
        Ok(())
    }))
}

/// The application's say in where buffers lie.
///
/// # Safety
/// `conn` is a live interface.
unsafe fn external_offset(
    conn: *mut c_void,
) -> (Option<super::types::GetExternalBufferOffset>, *mut c_void) {
    let this: *const Conn = conn.cast();
    // SAFETY: by this function's contract.
    unsafe {
        let external = (*(*this).socket).external;
        (external.offset.filter(|_| external.add.is_some()), (*this).ctx)
    }
}

/// Reserves room for `count` frames of `size` bytes; a frame that is longer than a buffer takes several.
///
/// # Safety
/// `conn` is an interface, `bufs` has room for the buffers of `count` frames, `count_out` is valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memif_buffer_alloc(
    conn: *mut c_void,
    qid: u16,
    bufs: *mut Buffer,
    count: u16,
    count_out: *mut u16,
    size: u16,
) -> c_int {
    if count_out.is_null() || (bufs.is_null() && count != 0) || size == 0 {
        return Error::InvalArg as c_int;
    }
    // SAFETY: by this function's contract.
    unsafe {
        *count_out = 0;
        number(tx_queue(conn, qid).and_then(|(live, queue)| {
            let client = live.connection.info().role == Role::Client;
            let (offset, ctx) = external_offset(conn);
            let offset = offset.filter(|_| client);
            for _ in 0..count {
                let at = bufs.add(usize::from(*count_out));
                let move_to = || offset.map(|offset| offset(ctx));
                match alloc_frame(queue, at, size.into(), &move_to) {
                    Ok(Some(used)) => *count_out += used,
                    Ok(None) => return Err(Error::NobufRing),
                    Err(violation) => return Err(broken(live, violation)),
                }
            }
            Ok(())
        }))
    }
}

/// Buffers for one frame, or none at all.
///
/// # Safety
/// `bufs` has room for the frame's buffers.
unsafe fn alloc_frame(
    queue: &mut TxQueue,
    bufs: *mut Buffer,
    size: u32,
    move_to: &dyn Fn() -> Option<u32>,
) -> Result<Option<u16>, Violation> {
    let (mut used, mut left) = (0, size);
    while left > 0 {
        if let (Some(offset), Some(slot)) = (move_to(), queue.next_reserve()) {
            queue.move_buffer(slot, offset);
        }
        let Some((slot, seg)) = queue.reserve_slot()? else {
            queue.rewind(used);
            return Ok(None);
        };
        let len = left.min(seg.len_bytes);
        left -= len;
        let buffer = Buffer {
            desc_index: slot,
            queue: (&raw mut *queue).cast(),
            len,
            flags: if left > 0 { BUFFER_NEXT } else { 0 },
            data: seg.as_ptr().cast(),
        };
        // SAFETY: by this function's contract.
        unsafe { bufs.add(usize::from(used)).write(buffer) };
        used += 1;
    }
    Ok(Some(used))
}

/// Sends buffers, which must be the oldest ones allocated, in order.
///
/// # Safety
/// `conn` is an interface, `bufs` holds `count` buffers, `tx` is valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memif_tx_burst(
    conn: *mut c_void,
    qid: u16,
    bufs: *mut Buffer,
    count: u16,
    tx: *mut u16,
) -> c_int {
    if tx.is_null() || (bufs.is_null() && count != 0) {
        return Error::InvalArg as c_int;
    }
    // SAFETY: by this function's contract.
    unsafe {
        *tx = 0;
        number(tx_queue(conn, qid).and_then(|(_, queue)| {
            let first = queue.first_reserved();
            let mut result = Ok(());
            while *tx < count {
                let buffer = &*bufs.add(usize::from(*tx));
                let slot = first.wrapping_add(*tx);
                let more = buffer.flags & BUFFER_NEXT != 0;
                if buffer.desc_index != slot
                    || !queue.is_reserved(slot)
                    || !queue.describe(slot, buffer.data.cast(), buffer.len, more)
                {
                    result = Err(Error::InvalArg);
                    break;
                }
                *tx += 1;
            }
            queue.publish_slots(*tx);
            if *tx > 0 {
                with_notifier(|notifier| queue.notify(notifier))?;
            }
            result
        }))
    }
}

/// Moves received buffers to a transmit ring instead of copying them; clients only.
///
/// # Safety
/// `conn` is an interface, `bufs` holds `count` received buffers, `count_out` is valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memif_buffer_enq_tx(
    conn: *mut c_void,
    qid: u16,
    bufs: *mut Buffer,
    count: u16,
    count_out: *mut u16,
) -> c_int {
    if count_out.is_null() || (bufs.is_null() && count != 0) {
        return Error::InvalArg as c_int;
    }
    // SAFETY: by this function's contract; both queues belong to this thread.
    unsafe {
        *count_out = 0;
        number(tx_queue(conn, qid).and_then(|(live, queue)| {
            if live.connection.info().role == Role::Server {
                return Err(Error::InvalArg);
            }
            while *count_out < count {
                let buffer = &mut *bufs.add(usize::from(*count_out));
                let from = End::of(live, buffer).ok_or(Error::InvalArg)?;
                let reserved = queue.reserve_slot().map_err(|v| broken(live, v))?;
                let (slot, _) = reserved.ok_or(Error::NobufRing)?;
                let (theirs, ours) = (from.get(), queue.own_slot(slot));
                from.set(ours);
                queue.set_own_slot(slot, theirs);
                buffer.desc_index = slot;
                buffer.queue = (&raw mut *queue).cast();
                *count_out += 1;
            }
            Ok(())
        }))
    }
}

/// Exchanges the slots of two buffers; clients only.
///
/// # Safety
/// `conn` is an interface; both buffers are received or allocated ones of it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memif_buffer_requeue(
    conn: *mut c_void,
    buf_a: *mut Buffer,
    buf_b: *mut Buffer,
) -> c_int {
    if buf_a.is_null() || buf_b.is_null() {
        return Error::InvalArg as c_int;
    }
    // SAFETY: by this function's contract; both queues belong to this thread.
    unsafe {
        number(live(conn).and_then(|live| {
            let (a, b) = (&mut *buf_a, &mut *buf_b);
            if live.connection.info().role == Role::Server {
                return Err(Error::InvalArg);
            }
            let end_a = End::of(live, a).ok_or(Error::InvalArg)?;
            let end_b = End::of(live, b).ok_or(Error::InvalArg)?;
            let (slot_a, slot_b) = (end_a.get(), end_b.get());
            end_a.set(slot_b);
            end_b.set(slot_a);
            std::mem::swap(&mut a.desc_index, &mut b.desc_index);
            std::mem::swap(&mut a.queue, &mut b.queue);
            Ok(())
        }))
    }
}

/// The next allocation on this queue begins with this buffer, which was allocated and not sent.
///
/// # Safety
/// `conn` is an interface, `buf` is valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memif_set_next_free_buffer(
    conn: *mut c_void,
    qid: u16,
    buf: *mut Buffer,
) -> c_int {
    if buf.is_null() {
        return Error::InvalArg as c_int;
    }
    // SAFETY: by this function's contract.
    unsafe {
        number(tx_queue(conn, qid).and_then(|(_, queue)| {
            let slot = (*buf).desc_index;
            if !queue.is_reserved(slot) {
                return Err(Error::InvalArg);
            }
            let kept = slot.wrapping_sub(queue.first_reserved());
            queue.rewind(queue.reserved() - kept);
            Ok(())
        }))
    }
}

/// Where a buffer is: a claimed slot of a receive queue or a reserved one of a transmit queue.
enum End<'a> {
    Rx(&'a UnsafeCell<RxQueue>, u16),
    Tx(&'a UnsafeCell<TxQueue>, u16),
}

impl<'a> End<'a> {
    fn of(live: &'a Live, buffer: &Buffer) -> Option<Self> {
        let (slot, queue) = (buffer.desc_index, buffer.queue);
        // SAFETY: the caller of the C function owns both queues, one look at a time.
        let held = |q: &UnsafeCell<RxQueue>| unsafe { (*q.get()).holds(slot) };
        // SAFETY: as above.
        let reserved = |q: &UnsafeCell<TxQueue>| unsafe { (*q.get()).is_reserved(slot) };
        let rx = live.rx.iter().find(|q| q.get().cast() == queue);
        let tx = live.tx.iter().find(|q| q.get().cast() == queue);
        let rx = rx.filter(|q| held(q)).map(|q| Self::Rx(q, slot));
        rx.or_else(|| tx.filter(|q| reserved(q)).map(|q| Self::Tx(q, slot)))
    }

    fn get(&self) -> Slot {
        // SAFETY: as in `of`.
        unsafe {
            match self {
                Self::Rx(queue, slot) => (*queue.get()).own_slot(*slot),
                Self::Tx(queue, slot) => (*queue.get()).own_slot(*slot),
            }
        }
    }

    fn set(&self, to: Slot) {
        // SAFETY: as in `of`.
        unsafe {
            match self {
                Self::Rx(queue, slot) => (*queue.get()).set_own_slot(*slot, to),
                Self::Tx(queue, slot) => (*queue.get()).set_own_slot(*slot, to),
            }
        }
    }
}

/// Polling (1) or interrupt (0).
///
/// # Safety
/// `conn` is an interface.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memif_set_rx_mode(conn: *mut c_void, rx_mode: c_int, qid: u16) -> c_int {
    // SAFETY: by this function's contract.
    number(unsafe { rx_queue(conn, qid) }.and_then(|(live, queue)| {
        let waiting = queue.set_polling(rx_mode != 0).map_err(|v| broken(live, v))?;
        // Whoever switches to interrupts learns of what is there already by one.
        if rx_mode == 0 && waiting { signal(queue.eventfd()) } else { Ok(()) }
    }))
}

/// The descriptor that tells of received frames.
///
/// # Safety
/// `conn` is an interface, `fd` is valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memif_get_queue_efd(conn: *mut c_void, qid: u16, fd: *mut c_int) -> c_int {
    if fd.is_null() {
        return Error::InvalArg as c_int;
    }
    // SAFETY: by this function's contract.
    unsafe {
        *fd = -1;
        number(rx_queue(conn, qid).map(|(_, queue)| *fd = queue.eventfd().as_raw_fd()))
    }
}
