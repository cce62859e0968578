//! An uplink that keeps the kernel's driver: a packet socket per queue on the NIC, which is in a
//! namespace of its own ([`crate::takeover`]).
//!
//! Frames carry a virtio-net header, so that super-frames and partial checksums of the far side (a
//! veth, another namespace's kernel) arrive as they are, and ours leave as they are. The kernel
//! takes VLAN tags out on the way in; they are put back. What it throws away because we are too
//! slow is counted.
//!
//! Reads are batches of `recvmmsg` instead of a ring shared with the kernel: a ring must have room
//! for a super-frame in each slot, or deliver those by another call, while the socket's queue
//! holds thousands of small frames in the same memory.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use wire::VirtioNet;
use zerocopy::IntoBytes;

use super::vnet::{decode, encode};
use super::{BufferPool, Burst, Health, Outgoing};
use crate::path::{Checksum, TxDropReason};
use crate::sys::packet::{self, BATCH, HEADER_BYTES, Received};
use crate::sys::{gather, netns};
use crate::table::IfaceId;

/// Where a read begins in a buffer: a VLAN tag fits in front of the header, which is done with
/// when the tag is put back.
const READ_AT: usize = 4;
const FRAME_AT: usize = READ_AT + HEADER_BYTES;
const TAG_BYTES: usize = 4;
const MACS_BYTES: usize = 12;

/// The receiving side of one queue.
#[derive(Debug)]
pub struct PacketRx {
    fd: OwnedFd,
    /// Lent by the pool for one call.
    buffers: Vec<Box<[u8]>>,
    numbers: Vec<u32>,
    received: Box<[Received; BATCH]>,
    /// How many frames the next call offers room for: twice what the last one used.
    batch: usize,
    /// Frames that were read and are none, or did not fit.
    unusable: u64,
}

/// The sending side. The kernel serialises senders on the device; every worker has one.
#[derive(Debug)]
pub struct PacketTx {
    fd: OwnedFd,
}

/// Opens the NIC `index` of namespace `netns`: `queues` receivers that share its flows, and
/// `workers` senders.
///
/// # Errors
/// `ENODEV` when the NIC is not there, `EPERM` without CAP_NET_RAW.
pub fn open(
    netns: BorrowedFd<'_>,
    index: u32,
    queues: u16,
    workers: u16,
) -> io::Result<(Vec<PacketRx>, Vec<PacketTx>)> {
    let (receivers, senders) = netns::run_in(netns, || {
        let receivers = packet::receivers(index, queues)?;
        let senders: io::Result<Vec<OwnedFd>> =
            (0..workers.max(1)).map(|_| packet::sender(index)).collect();
        Ok::<_, io::Error>((receivers, senders?))
    })??;
    let rx = receivers.into_iter().map(PacketRx::new).collect();
    let tx = senders.into_iter().map(|fd| PacketTx { fd }).collect();
    Ok((rx, tx))
}

impl PacketRx {
    fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            buffers: Vec::with_capacity(BATCH),
            numbers: Vec::with_capacity(BATCH),
            received: Box::new([Received { bytes: 0, truncated: false, vlan: None }; BATCH]),
            batch: 1,
            unusable: 0,
        }
    }

    /// The descriptor to wait on.
    pub fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd.as_fd())
    }

    /// Reads up to `max_pkts` frames.
    pub fn poll(
        &mut self,
        iface: IfaceId,
        burst: &mut Burst,
        pool: &mut BufferPool,
        max_pkts: usize,
    ) -> Health {
        let wanted = self.batch.min(max_pkts).min(burst.room());
        while self.numbers.len() < wanted {
            let Some(number) = pool.take() else { break };
            self.buffers.push(pool.lend(number));
            self.numbers.push(number);
        }
        let result =
            packet::receive(self.fd.as_fd(), &mut self.buffers, READ_AT, &mut self.received);
        for (number, buffer) in self.numbers.iter().zip(self.buffers.drain(..)) {
            pool.return_lent(*number, buffer);
        }
        let (count, health) = match result {
            Ok(count) => (count, Health::Good),
            // The link went down: it may come back, and the socket tells only once.
            Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => (0, Health::Good),
            Err(_) => (0, Health::Gone),
        };
        self.batch = (2 * count).clamp(2, BATCH);
        for (at, number) in self.numbers.drain(..).enumerate() {
            let taken = at < count && push(iface, burst, pool, number, self.received[at]);
            if at < count && !taken {
                self.unusable += 1;
            }
            if !taken {
                pool.put(number);
            }
        }
        health
    }

    /// Frames lost since the last call: thrown away by the kernel because the socket was full, or
    /// read and not usable.
    pub fn take_missed(&mut self) -> u64 {
        let thrown_away = packet::take_drops(self.fd.as_fd()).unwrap_or(0);
        u64::from(thrown_away) + std::mem::take(&mut self.unusable)
    }
}

/// Takes one frame into the burst; `false` when it cannot be one.
fn push(
    iface: IfaceId,
    burst: &mut Burst,
    pool: &mut BufferPool,
    number: u32,
    received: Received,
) -> bool {
    if received.truncated || received.bytes < HEADER_BYTES + MACS_BYTES + 2 {
        return false;
    }
    let buffer = pool.bytes(number);
    let mut header = VirtioNet::default();
    header.as_mut_bytes()[..HEADER_BYTES].copy_from_slice(&buffer[READ_AT..FRAME_AT]);
    let mut from = FRAME_AT;
    if let Some((kind, control)) = received.vlan {
        buffer.copy_within(FRAME_AT..FRAME_AT + MACS_BYTES, FRAME_AT - TAG_BYTES);
        buffer[FRAME_AT + 8..FRAME_AT + 10].copy_from_slice(&kind.to_be_bytes());
        buffer[FRAME_AT + 10..FRAME_AT + 12].copy_from_slice(&control.to_be_bytes());
        from -= TAG_BYTES;
    }
    let frame = pool.seg(number, from, READ_AT + received.bytes - from);
    let Some(meta) = burst.push(iface, number, frame) else { return false };
    decode(&header, meta);
    if received.vlan.is_some() && meta.checksum == Checksum::Partial {
        meta.csum_start = meta.csum_start.saturating_add(TAG_BYTES as u16);
    }
    true
}

impl PacketTx {
    /// Sends the frame at once, gathered from where its pieces lie.
    pub fn send(&mut self, out: &Outgoing<'_>) -> Result<u32, TxDropReason> {
        let header = encode(out.meta, out.head.len());
        match gather::write(self.fd.as_fd(), &header.as_bytes()[..HEADER_BYTES], out.head, out.body)
        {
            Ok(_) => Ok(out.frame_bytes() as u32),
            Err(error) => Err(match error.raw_os_error() {
                Some(libc::EAGAIN | libc::ENOBUFS) => TxDropReason::RingFull,
                Some(libc::ENETDOWN | libc::ENXIO | libc::ENODEV) => TxDropReason::PortDown,
                Some(libc::EMSGSIZE) => TxDropReason::FrameTooBig,
                _ => TxDropReason::KernelRefused,
            }),
        }
    }

    /// Frames were sent at once.
    pub fn flush(&mut self) -> Health {
        Health::Good
    }
}
