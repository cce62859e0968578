//! Queues of a DPDK device. Frames are read in place; what is sent is copied once into buffers of
//! the device's pool.

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use arrayvec::ArrayVec;
use dpdk::{Mbuf, Mempool, RxQueue, TxQueue};

use super::{BURST_PKTS, Burst, Health, Outgoing};
use crate::copy::{self, CopyList, Seg};
use crate::path::{Checksum, TxDropReason};
use crate::table::IfaceId;

const RX_PKTS: usize = BURST_PKTS;
/// Frames of one burst and the pieces of a few super-frames.
const TX_PKTS: usize = 256;
const SPARE_MBUFS: usize = 32;
/// Most buffers of one received frame.
const RX_SEGS: usize = 16;
/// Claims that other workers may hold before the table grows.
const CLAIMS: usize = 1024;

/// A queue that the device fills.
#[derive(Debug)]
pub struct EthRx {
    queue: RxQueue,
    /// Received, not yet in a burst.
    pending: ArrayVec<Mbuf, RX_PKTS>,
    /// Buffers in use, by claim.
    held: Vec<Option<Mbuf>>,
    free: Vec<u32>,
    /// What the device had missed at the last look.
    missed: u64,
}

/// A queue that the device empties.
#[derive(Debug)]
pub struct EthTx {
    queue: TxQueue,
    pool: Arc<Mempool>,
    /// Taken from the pool, not used yet: it is asked once per so many frames.
    spare: ArrayVec<Mbuf, SPARE_MBUFS>,
    pending: Box<ArrayVec<Mbuf, TX_PKTS>>,
    max_frame_bytes: usize,
}

impl EthRx {
    /// Receives from this queue.
    pub fn new(queue: RxQueue) -> Self {
        Self {
            queue,
            pending: ArrayVec::new(),
            held: (0..CLAIMS).map(|_| None).collect(),
            free: (0..CLAIMS as u32).rev().collect(),
            missed: 0,
        }
    }

    /// The descriptor to wait on, where the driver has one.
    pub fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        self.queue.wake_fd()
    }

    /// Claims up to `max_pkts` frames.
    #[inline]
    pub fn poll(&mut self, iface: IfaceId, burst: &mut Burst, max_pkts: usize) -> Health {
        if self.pending.is_empty() && self.queue.burst(&mut self.pending) == 0 {
            return Health::Good;
        }
        let count = max_pkts.min(self.pending.len()).min(burst.room());
        for mbuf in &self.pending[..count] {
            // Both lines of the headers: what comes out of a tunnel has its own beyond the first.
            let first = mbuf.data().as_ptr();
            copy::prefetch_read(first);
            copy::prefetch_read(first.wrapping_add(64));
        }
        let Self { pending, held, free, .. } = self;
        for mbuf in pending.drain(..count) {
            let claim = free.pop().unwrap_or_else(|| {
                held.push(None);
                held.len() as u32 - 1
            });
            if take_in(iface, burst, claim, &mbuf) {
                held[claim as usize] = Some(mbuf);
            } else {
                free.push(claim);
            }
        }
        Health::Good
    }

    /// Gives a buffer back to its pool.
    #[inline]
    pub fn release(&mut self, claim: u32) {
        if let Some(place) = self.held.get_mut(claim as usize) {
            *place = None;
            self.free.push(claim);
        }
    }

    /// Gives the buffers of a whole burst back.
    #[inline]
    pub fn release_all(&mut self, burst: &Burst) {
        let mut done = ArrayVec::<Mbuf, BURST_PKTS>::new();
        for meta in burst.metas(0..burst.len()) {
            if let Some(mbuf) = self.held.get_mut(meta.claim as usize).and_then(Option::take) {
                self.free.push(meta.claim);
                done.push(mbuf);
            }
        }
        Mbuf::free_all(&mut done);
    }

    /// Frames that the device lost since the last call. It counts for all its queues together, and
    /// the first of them reports.
    pub fn take_missed(&mut self) -> u64 {
        if self.queue.index() != 0 {
            return 0;
        }
        let missed = self.queue.device_missed();
        missed.saturating_sub(std::mem::replace(&mut self.missed, missed))
    }

    /// Switches the queue's interrupt on where it has one; whether frames are there already.
    pub fn arm(&mut self) -> bool {
        if self.queue.needs_arming() {
            self.queue.arm();
            // A frame may have come before the interrupt was on.
            self.queue.burst(&mut self.pending);
        }
        !self.pending.is_empty()
    }

    /// Switches the queue's interrupt off.
    pub fn disarm(&mut self) {
        self.queue.disarm();
    }
}

/// Reads a frame into the burst; false when there is no room.
#[inline(always)]
fn take_in(iface: IfaceId, burst: &mut Burst, claim: u32, mbuf: &Mbuf) -> bool {
    let meta = if mbuf.segment_count() == 1 {
        let data = mbuf.data();
        burst.push(iface, claim, copy::owned_seg(data, 0, data.len()))
    } else {
        let mut pieces = [Seg::EMPTY; RX_SEGS];
        let mut count = 0;
        for (piece, data) in pieces.iter_mut().zip(mbuf.segments()) {
            *piece = copy::owned_seg(data, 0, data.len());
            count += 1;
        }
        burst.push_pieces(iface, claim, &pieces[..count])
    };
    let Some(meta) = meta else { return false };
    if mbuf.rx_checksum().l4 == dpdk::Checksum::Good {
        meta.checksum = Checksum::Verified;
    }
    true
}

impl EthTx {
    /// Sends on this queue, from buffers of `pool`, frames of at most `mtu` and an Ethernet header
    /// with a VLAN tag.
    pub fn new(queue: TxQueue, pool: Arc<Mempool>, mtu: u16) -> Self {
        let buffer_bytes = usize::from(pool.data_bytes());
        Self {
            queue,
            pool,
            spare: ArrayVec::new(),
            pending: Box::default(),
            max_frame_bytes: buffer_bytes.min(usize::from(mtu) + 18),
        }
    }

    /// Takes a buffer, writes the head and plans the body.
    #[inline]
    pub fn send(&mut self, out: &Outgoing<'_>, list: &mut CopyList) -> Result<u32, TxDropReason> {
        let bytes = out.frame_bytes();
        if bytes > self.max_frame_bytes {
            return Err(TxDropReason::FrameTooBig);
        }
        if self.pending.is_full() {
            // All claims are still held, so that the copies may run now.
            list.run();
            self.push_out();
            if self.pending.is_full() {
                return Err(TxDropReason::RingFull);
            }
        }
        let mut mbuf = self.buffer().ok_or(TxDropReason::NoBuffer)?;
        let room = mbuf.append(bytes).ok_or(TxDropReason::FrameTooBig)?;
        let mut to = copy::owned_seg_mut(room).write(out.head);
        for part in out.body {
            to = list.plan(*part, to).1;
        }
        self.pending.push(mbuf);
        Ok(bytes as u32)
    }

    /// Sends packets of a burst, as [`EthTx::send`] one by one, up to the first that is not sure to go.
    /// Returns how many, and their bytes.
    #[inline(never)]
    pub fn send_run(
        &mut self,
        burst: &mut Burst,
        run: Range<usize>,
        list: &mut CopyList,
    ) -> (usize, u64) {
        let (mut count, mut bytes) = (0, 0);
        for at in run.take(self.pending.remaining_capacity()) {
            burst.settle(at);
            let (head, body, meta) = burst.parts(at);
            let frame_bytes = meta.frame_bytes();
            if frame_bytes as usize > self.max_frame_bytes {
                break;
            }
            let Some(mut mbuf) = self.buffer() else { break };
            let Some(room) = mbuf.append(frame_bytes as usize) else { break };
            let mut to = copy::owned_seg_mut(room).write(head);
            for part in body {
                to = list.plan(*part, to).1;
            }
            self.pending.push(mbuf);
            count += 1;
            bytes += u64::from(frame_bytes);
        }
        (count, bytes)
    }

    #[inline]
    fn buffer(&mut self) -> Option<Mbuf> {
        if self.spare.is_empty() && !self.pool.alloc_bulk(&mut self.spare, SPARE_MBUFS) {
            return self.pool.alloc();
        }
        self.spare.pop()
    }

    /// Hands the frames to the device. Those that it does not take now stay for the next flush.
    #[inline]
    pub fn flush(&mut self) -> Health {
        self.push_out();
        Health::Good
    }

    /// Whether frames wait for the device: flush again.
    #[inline]
    pub fn backlog(&self) -> bool {
        !self.pending.is_empty()
    }

    fn push_out(&mut self) {
        // A driver may take fewer than it could per call; none means that its ring is full.
        while !self.pending.is_empty() && self.queue.burst(&mut self.pending) > 0 {}
    }

    /// Frames that fit without a look at the device.
    #[inline]
    pub fn free(&self) -> usize {
        self.pending.remaining_capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::Meta;
    use dpdk::{Eal, EalOptions, EthConfig, EthDev, MempoolConfig};

    /// The data plane's pool is sized for its queues; a device that keeps buffers can empty it.
    #[test]
    fn a_frame_without_a_buffer_is_counted() {
        let eal = Eal::get()
            .map_or_else(|| Eal::init(&EalOptions::default()), Ok)
            .expect("the environment starts");
        let pool = |mbufs| {
            let config = MempoolConfig { mbufs, cache: 0, ..MempoolConfig::default() };
            Arc::new(Mempool::new(eal, &config).expect("a pool"))
        };
        let mut device = EthDev::probe(eal, "net_null9", pool(1023)).expect("a device");
        device.configure(&EthConfig::default()).expect("one queue");
        let (_rx, mut queues) = device.start().expect("a device");
        let small = pool(63);
        let mut tx = EthTx::new(queues.remove(0), Arc::clone(&small), 1500);
        let (meta, mut head, mut list) = (Meta::default(), [0; 60], CopyList::default());
        let mut send = || tx.send(&Outgoing { head: &mut head, body: &[], meta: &meta }, &mut list);
        assert_eq!(send(), Ok(60), "the control");
        let mut kept = Vec::new();
        while let Some(buffer) = small.alloc() {
            kept.push(buffer);
        }
        // Those that the queue has in its hand are used up before.
        let refused = (0..63).find_map(|_| send().err());
        assert_eq!(refused, Some(TxDropReason::NoBuffer));
        kept.clear();
        assert_eq!(send(), Ok(60), "buffers are back");
    }
}
