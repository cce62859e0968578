//! How packets enter and leave: one enum for receiving queues, one for sending queues.
//!
//! A queue is owned by one worker. Receiving claims slots of the source and fills a [`Burst`];
//! the slots stay claimed until the worker releases them. Sending reserves room at the sink and
//! plans copies; [`Tx::flush`] publishes after the copies ran.

pub mod burst;
#[cfg(feature = "dpdk")]
pub mod eth;
pub mod memif;
pub mod packet;
pub mod pool;
#[cfg(test)]
mod uplink_tests;
pub mod vnet;

use std::ops::Range;
use std::os::fd::BorrowedFd;

use ::memif::Notifier;

use crate::copy::{CopyList, Seg};
use crate::path::{Meta, TxDropReason};
use crate::table::IfaceId;

pub use burst::{BURST_PKTS, Burst};
pub use pool::BufferPool;

/// A frame on its way out. Offsets in `meta` are relative to the first byte of `head`.
#[derive(Debug)]
pub struct Outgoing<'a> {
    /// The first bytes, private.
    pub head: &'a mut [u8],
    /// Where the rest lies.
    pub body: &'a [Seg],
    /// Facts; a checksum that is still partial was completed before unless the port takes
    /// offloads.
    pub meta: &'a Meta,
}

impl Outgoing<'_> {
    /// Bytes of the whole frame.
    #[inline]
    pub fn frame_bytes(&self) -> usize {
        self.head.len() + self.meta.body_bytes as usize
    }
}

/// What a queue came to while it was polled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Go on.
    Good,
    /// The peer broke the protocol: disconnect it. The word says how.
    Violation(&'static str),
    /// The descriptor is dead (the device is gone).
    Gone,
}

/// A receiving queue.
#[derive(Debug)]
pub enum Rx {
    /// A tap, or anything else that reads frames behind a virtio-net header.
    Vnet(vnet::VnetRx),
    /// A packet socket on a NIC.
    Packet(packet::PacketRx),
    /// A queue of a DPDK device.
    #[cfg(feature = "dpdk")]
    Eth(eth::EthRx),
    /// A memif ring that the peer fills.
    Memif(memif::MemifRx),
}

/// A sending queue.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "there are few, and a pointer more would cost every packet a cache line"
)]
pub enum Tx {
    /// A tap, or anything else that writes frames behind a virtio-net header.
    Vnet(vnet::VnetTx),
    /// A packet socket on a NIC.
    Packet(packet::PacketTx),
    /// A queue of a DPDK device.
    #[cfg(feature = "dpdk")]
    Eth(eth::EthTx),
    /// A memif ring that the peer empties.
    Memif(memif::MemifTx),
}

macro_rules! each {
    ($on:expr, $kind:ident, $port:ident => $do:expr) => {
        match $on {
            $kind::Vnet($port) => $do,
            $kind::Packet($port) => $do,
            #[cfg(feature = "dpdk")]
            $kind::Eth($port) => $do,
            $kind::Memif($port) => $do,
        }
    };
}

impl Rx {
    /// Claims up to `max_pkts` frames into the burst.
    #[inline]
    pub fn poll(
        &mut self,
        iface: IfaceId,
        burst: &mut Burst,
        pool: &mut BufferPool,
        max_pkts: usize,
    ) -> Health {
        match self {
            Rx::Vnet(rx) => rx.poll(iface, burst, pool, max_pkts),
            Rx::Packet(rx) => rx.poll(iface, burst, pool, max_pkts),
            #[cfg(feature = "dpdk")]
            Rx::Eth(rx) => rx.poll(iface, burst, max_pkts),
            Rx::Memif(rx) => rx.poll(iface, burst, max_pkts),
        }
    }

    /// Gives one claim back, in any order.
    #[inline]
    pub fn release(&mut self, claim: u32, pool: &mut BufferPool) {
        match self {
            Rx::Vnet(_) | Rx::Packet(_) => pool.put(claim),
            #[cfg(feature = "dpdk")]
            Rx::Eth(rx) => rx.release(claim),
            Rx::Memif(rx) => rx.release(claim),
        }
    }

    /// Gives all claims of the burst back; no other claim on this queue is held.
    #[inline]
    pub fn release_all(&mut self, burst: &Burst, pool: &mut BufferPool) {
        match self {
            Rx::Memif(rx) => rx.release_all(),
            #[cfg(feature = "dpdk")]
            Rx::Eth(rx) => rx.release_all(burst),
            other => (0..burst.len()).for_each(|at| other.release(burst.meta(at).claim, pool)),
        }
    }

    /// Makes released slots visible to the source.
    #[inline]
    pub fn flush(&mut self) {
        match self {
            Rx::Vnet(_) | Rx::Packet(_) => {}
            #[cfg(feature = "dpdk")]
            Rx::Eth(_) => {}
            Rx::Memif(rx) => rx.flush(),
        }
    }

    /// A descriptor that becomes readable when there is something to poll. `None`: the queue must
    /// be polled.
    pub fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        each!(self, Rx, rx => rx.wake_fd())
    }

    /// Whether an empty `poll` costs a system call, so that it is only worth it after `wake_fd`
    /// was seen ready.
    pub fn poll_is_syscall(&self) -> bool {
        matches!(self, Rx::Vnet(_) | Rx::Packet(_))
    }

    /// Asks the source for wake-ups, before parking. Returns whether frames are there already.
    pub fn arm(&mut self) -> bool {
        match self {
            Rx::Vnet(_) | Rx::Packet(_) => false,
            #[cfg(feature = "dpdk")]
            Rx::Eth(rx) => rx.arm(),
            Rx::Memif(rx) => rx.arm(),
        }
    }

    /// Gives up on a source that stalls in the middle of a frame; every 100 ms or so.
    pub fn housekeep(&mut self, now: std::time::Instant) -> Health {
        match self {
            Rx::Vnet(_) | Rx::Packet(_) => Health::Good,
            #[cfg(feature = "dpdk")]
            Rx::Eth(_) => Health::Good,
            Rx::Memif(rx) => rx.check_stall(now),
        }
    }

    /// Frames lost by NIC or kernel since the last call, before they could be polled.
    pub fn take_missed(&mut self) -> u64 {
        match self {
            Rx::Vnet(_) | Rx::Memif(_) => 0,
            Rx::Packet(rx) => rx.take_missed(),
            #[cfg(feature = "dpdk")]
            Rx::Eth(rx) => rx.take_missed(),
        }
    }

    /// Tells the source not to bother with wake-ups: we poll.
    pub fn disarm(&mut self) {
        match self {
            Rx::Vnet(_) | Rx::Packet(_) => {}
            #[cfg(feature = "dpdk")]
            Rx::Eth(rx) => rx.disarm(),
            Rx::Memif(rx) => rx.disarm(),
        }
    }
}

impl Tx {
    /// Sends one frame: reserves room and plans the copy of its body into `list`. Nothing is
    /// visible before [`Tx::flush`].
    #[inline]
    pub fn send(&mut self, out: &Outgoing<'_>, list: &mut CopyList) -> Result<u32, TxDropReason> {
        match self {
            Tx::Vnet(tx) => tx.send(out),
            Tx::Packet(tx) => tx.send(out),
            #[cfg(feature = "dpdk")]
            Tx::Eth(tx) => tx.send(out, list),
            Tx::Memif(tx) => tx.send(out, list),
        }
    }

    /// Sends packets of the burst that leave as they are, as many as go at one stroke: how many, and
    /// their bytes. The next one is for [`Tx::send`].
    #[inline]
    pub fn send_run(
        &mut self,
        burst: &mut Burst,
        run: Range<usize>,
        list: &mut CopyList,
    ) -> (usize, u64) {
        match self {
            Tx::Memif(tx) => tx.send_run(burst, run, list),
            #[cfg(feature = "dpdk")]
            Tx::Eth(tx) => tx.send_run(burst, run, list),
            Tx::Vnet(_) | Tx::Packet(_) => (0, 0),
        }
    }

    /// Publishes what was sent. The copies have run.
    #[inline]
    pub fn flush(&mut self, notifier: &mut Notifier, now_ns: u64) -> Health {
        match self {
            Tx::Vnet(tx) => tx.flush(),
            Tx::Packet(tx) => tx.flush(),
            #[cfg(feature = "dpdk")]
            Tx::Eth(tx) => tx.flush(),
            Tx::Memif(tx) => tx.flush(notifier, now_ns),
        }
    }

    /// How many frames certainly fit now, looked up only as far as `wanted`; `usize::MAX` where the
    /// sink has no visible limit.
    #[inline]
    pub fn free(&mut self, wanted: usize) -> usize {
        match self {
            Tx::Vnet(_) | Tx::Packet(_) => usize::MAX,
            #[cfg(feature = "dpdk")]
            Tx::Eth(tx) => tx.free(),
            Tx::Memif(tx) => tx.free(wanted),
        }
    }

    /// Whether frames wait inside for the sink to take them, or the sink for a signal: flush again
    /// soon.
    #[inline]
    pub fn backlog(&self) -> bool {
        match self {
            Tx::Vnet(_) | Tx::Packet(_) => false,
            Tx::Memif(tx) => tx.backlog(),
            #[cfg(feature = "dpdk")]
            Tx::Eth(tx) => tx.backlog(),
        }
    }
}
