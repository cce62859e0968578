//! What the C interface tells about itself: versions, errors, interfaces, rings.

use super::conn::{Conn, Live};
use super::types::{
    DescDetails, Details, Error, QueueDetails, RegionDetails, RingDetails, strerror,
};
use crate::ring::Ring;
use crate::wire::RING_FLAG_MASK_INT;
use std::ffi::{c_char, c_int, c_void};

/// 2.0 as a number.
#[unsafe(no_mangle)]
pub extern "C" fn memif_get_version() -> u16 {
    crate::wire::VERSION
}

/// 2.0 as text.
#[unsafe(no_mangle)]
pub extern "C" fn memif_get_version_str() -> *const c_char {
    c"2.0".as_ptr()
}

/// A sentence for an error number.
#[unsafe(no_mangle)]
pub extern "C" fn memif_strerror(err_code: c_int) -> *const c_char {
    strerror(err_code)
}

/// Cuts pieces off the application's buffer.
struct Arena {
    at: *mut u8,
    left: usize,
    full: bool,
}

impl Arena {
    /// Room for `count` values, or null.
    fn take<T>(&mut self, count: usize) -> *mut T {
        let skip = self.at.align_offset(align_of::<T>());
        let bytes = skip.saturating_add(count * size_of::<T>());
        if bytes > self.left {
            self.full = true;
            return std::ptr::null_mut();
        }
        let place = self.at.wrapping_add(skip);
        self.at = self.at.wrapping_add(bytes);
        self.left -= bytes;
        place.cast()
    }

    /// A copy, with a final NUL, or null.
    fn text(&mut self, text: &[u8]) -> *mut u8 {
        let end = text.iter().position(|&b| b == 0).unwrap_or(text.len());
        let place: *mut u8 = self.take(end + 1);
        if !place.is_null() {
            // SAFETY: `take` gave room for that many bytes.
            unsafe {
                place.copy_from_nonoverlapping(text.as_ptr(), end);
                place.add(end).write(0);
            }
        }
        place
    }

    fn list<T: Copy>(&mut self, items: &[T]) -> *mut T {
        let place: *mut T = self.take(items.len());
        if !place.is_null() {
            // SAFETY: `take` gave room for that many values.
            unsafe { place.copy_from_nonoverlapping(items.as_ptr(), items.len()) };
        }
        place
    }
}

/// Describes an interface; texts and lists go to `buf`.
///
/// # Safety
/// `conn` is an interface, `md` is valid, `buf` has `buflen` bytes; no thread uses its queues.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memif_get_details(
    conn: *mut c_void,
    md: *mut Details,
    buf: *mut c_char,
    buflen: isize,
) -> c_int {
    let this: *const Conn = conn.cast();
    if this.is_null() {
        return Error::Noconn as c_int;
    }
    if md.is_null() || buf.is_null() {
        return Error::InvalArg as c_int;
    }
    let left = usize::try_from(buflen).unwrap_or(0);
    let mut arena = Arena { at: buf.cast(), left, full: false };
    // SAFETY: by this function's contract.
    let (conn, socket) = unsafe { (&*this, &*(*this).socket) };
    let info = conn.live.as_ref().map(|live| live.connection.info());
    let remote = |pick: fn(&crate::Info) -> &str| info.map_or("", pick).as_bytes();
    let mut details = Details {
        if_name: arena.text(&conn.args.interface_name),
        inst_name: arena.text(&socket.args.app_name),
        remote_if_name: arena.text(remote(|i| &i.peer_interface)),
        remote_inst_name: arena.text(remote(|i| &i.peer_name)),
        id: conn.args.interface_id,
        secret: std::ptr::null_mut(),
        role: u8::from(conn.args.is_master == 0),
        mode: conn.args.mode,
        socket_path: arena.list(&socket.args.path),
        regions_num: 0,
        regions: std::ptr::null_mut(),
        rx_queues_num: 0,
        tx_queues_num: 0,
        rx_queues: std::ptr::null_mut(),
        tx_queues: std::ptr::null_mut(),
        error: arena.text(conn.error.as_bytes()),
        link_up_down: u8::from(conn.live.is_some()),
    };
    if conn.args.secret[0] != 0 {
        details.secret = arena.text(&conn.args.secret);
    }
    if let Some(live) = &conn.live {
        describe_live(live, conn.args.buffer_size, &mut details, &mut arena);
    }
    // SAFETY: by this function's contract.
    unsafe { md.write(details) };
    if arena.full { Error::NobufDet as c_int } else { Error::Success as c_int }
}

fn describe_live(live: &Live, buffer_size: u16, details: &mut Details, arena: &mut Arena) {
    let queue = |(i, ring): (usize, &Ring)| QueueDetails {
        region: 0,
        qid: i as u16,
        ring_size: ring.slots(),
        flags: ring.load_flags() & RING_FLAG_MASK_INT,
        head: ring.load_head(),
        tail: ring.load_tail(),
        buffer_size,
    };
    // SAFETY: the caller of the C function says that no thread uses the queues.
    let rx = live.rx.iter().map(|q| unsafe { (*q.get()).ring() });
    // SAFETY: as above.
    let tx = live.tx.iter().map(|q| unsafe { (*q.get()).ring() });
    let rx: Vec<_> = rx.enumerate().map(queue).collect();
    let tx: Vec<_> = tx.enumerate().map(queue).collect();
    // SAFETY: as above.
    let regions = live.rx.first().map_or(&[][..], |q| unsafe { (*q.get()).regions() }.all());
    let region = |(i, region): (usize, &crate::region::Region)| RegionDetails {
        index: i as u8,
        addr: region.base().cast(),
        size: u32::try_from(region.size()).unwrap_or(u32::MAX),
        fd: region.fd(),
        is_external: u8::from(region.is_external()),
    };
    let regions: Vec<_> = regions.iter().enumerate().map(region).collect();
    (details.regions_num, details.regions) = (regions.len() as u8, arena.list(&regions));
    (details.rx_queues_num, details.rx_queues) = (rx.len() as u8, arena.list(&rx));
    (details.tx_queues_num, details.tx_queues) = (tx.len() as u8, arena.list(&tx));
}

/// Shows a receive ring as it stands.
///
/// # Safety
/// `conn` is an interface; `rd` is followed by room for `ndesc` descriptors.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memif_get_rx_ring_details(
    conn: *mut c_void,
    rd: *mut RingDetails,
    qid: u16,
    ndesc: u16,
) -> c_int {
    // SAFETY: by this function's contract.
    unsafe { show_ring(conn, rd, qid, ndesc, true) }
}

/// Shows a transmit ring as it stands.
///
/// # Safety
/// As for `memif_get_rx_ring_details`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memif_get_tx_ring_details(
    conn: *mut c_void,
    rd: *mut RingDetails,
    qid: u16,
    ndesc: u16,
) -> c_int {
    // SAFETY: by this function's contract.
    unsafe { show_ring(conn, rd, qid, ndesc, false) }
}

/// # Safety
/// As for `memif_get_rx_ring_details`.
unsafe fn show_ring(
    conn: *mut c_void,
    rd: *mut RingDetails,
    qid: u16,
    ndesc: u16,
    receiving: bool,
) -> c_int {
    let this: *const Conn = conn.cast();
    if this.is_null() {
        return Error::Noconn as c_int;
    }
    // SAFETY: by this function's contract; looking at a ring takes atomics only.
    unsafe {
        let Some(live) = &(*this).live else { return Error::Disconnected as c_int };
        let i = usize::from(qid);
        let ring = if receiving {
            live.rx.get(i).map(|q| (*q.get()).ring())
        } else {
            live.tx.get(i).map(|q| (*q.get()).ring())
        };
        let Some(ring) = ring else { return Error::Qid as c_int };
        if rd.is_null() || u32::from(ndesc) < ring.slots() {
            return Error::InvalArg as c_int;
        }
        (*rd).head = ring.load_head();
        (*rd).tail = ring.load_tail();
        (*rd).flags = ring.load_flags();
        (*rd).offset = ring.address().cast();
        (*rd).ndesc = ring.slots() as u16;
        let descs: *mut DescDetails = (&raw mut (*rd).descs).cast();
        for slot in 0..ring.slots() as u16 {
            let d = ring.snapshot(slot);
            descs.add(usize::from(slot)).write(DescDetails {
                flags: d.flags,
                region: d.region,
                length: d.length,
                offset: d.offset,
                metadata: 0,
            });
        }
    }
    Error::Success as c_int
}
