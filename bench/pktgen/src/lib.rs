//! A traffic generator and sink over a memif client.
//!
//! # Parts
//! - [`packet`]: the frames that are sent: UDP with a sequence number, a time and a checksum that
//!   stays right without being computed again.
//! - [`track`]: what a receiver makes of them: loss, reordering, duplicates, corruption, latency.
//! - [`host`]: who the generator is on its network; answers ARP, ND and echo as a kernel would.
//! - [`port`]: a memif connection, made in a pod's network namespace, restored when it breaks.
//! - [`endpoint`]: a port with a host and a tracker on it; one poll does all that is due.
//! - [`sender`]: flows, sizes and rate.
//! - [`drive`]: runs of the above with a duration or a count; one thread can drive the sending end
//!   and the receiving end, which is the fair arrangement for a benchmark.
//!
//! Every byte of a frame is written when it is sent and read when it is received: a generator that
//! does not touch its payload flatters the device under test.
//!
//! Errors are [`anyhow::Error`]s that name the socket, the option or the address concerned: the
//! callers are programs that print them.
#![forbid(unsafe_code)]

pub mod drive;
pub mod endpoint;
pub mod host;
pub mod packet;
pub mod ping;
pub mod port;
pub mod sender;
pub mod track;

use nix::time::{ClockId, clock_gettime};

/// Lines of bodies, which come from the other core, are fetched so many frames ahead: as many as a
/// first-level cache has room for.
#[inline]
fn ahead_frames(frame_bytes: u32) -> usize {
    if frame_bytes > 2048 { 1 } else { 3 }
}

/// The monotonic clock, which all processes of the machine share.
#[must_use]
pub fn now_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
}
