//! Receive and transmit queues.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use arrayvec::ArrayVec;

use crate::eth::Port;
use crate::mbuf::Mbuf;

/// One receive queue. Polled by whoever owns it.
#[derive(Debug)]
pub struct RxQueue {
    pub(crate) port: Arc<Port>,
    pub(crate) index: u16,
    pub(crate) wake: Option<OwnedFd>,
    pub(crate) interrupts: bool,
    /// Queues are one thread's at a time: a Cell makes the type !Sync.
    pub(crate) _not_sync: std::marker::PhantomData<std::cell::Cell<()>>,
}

/// One transmit queue. Filled by whoever owns it.
#[derive(Debug)]
pub struct TxQueue {
    pub(crate) port: Arc<Port>,
    pub(crate) index: u16,
    pub(crate) _not_sync: std::marker::PhantomData<std::cell::Cell<()>>,
}

impl RxQueue {
    /// The queue's number on its device.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Appends received packets to `into`, as many as are there and as fit; returns how many.
    pub fn burst<const N: usize>(&mut self, into: &mut ArrayVec<Mbuf, N>) -> usize {
        let len = into.len();
        let room = u16::try_from(into.remaining_capacity()).unwrap_or(u16::MAX);
        // SAFETY: the port is started while a queue exists (see eth.rs); `into` has room for
        // `room` more non-null pointers, of which the driver writes the first `count`.
        unsafe {
            let end = into.as_mut_ptr().add(len).cast::<*mut dpdk_sys::rte_mbuf>();
            let count =
                usize::from(dpdk_sys::bl_eth_rx_burst(self.port.id(), self.index, end, room));
            into.set_len(len + count);
            count
        }
    }

    /// Frames that the device lost on all its queues because no buffer was free in time.
    pub fn device_missed(&self) -> u64 {
        self.port.stats().map_or(0, |stats| stats.rx_missed + stats.rx_no_mbuf)
    }

    /// A descriptor that becomes readable when packets arrive, for use with `epoll` or `poll` only:
    /// level-triggered, readable for as long as packets wait. `None` where the driver has nothing
    /// of that kind; then the queue must be polled.
    ///
    /// Where [`Self::needs_arming`] says so, call [`Self::arm`] before sleeping and
    /// [`Self::disarm`] after.
    pub fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        self.wake.as_ref().map(AsFd::as_fd)
    }

    /// Whether the descriptor signals only while the queue's interrupt is armed.
    pub fn needs_arming(&self) -> bool {
        self.interrupts
    }

    /// Switches the queue's interrupt on. Poll once more afterwards: a packet may have arrived
    /// between the last poll and this call.
    pub fn arm(&mut self) -> bool {
        // SAFETY: the port exists as long as this queue.
        self.interrupts
            && unsafe { dpdk_sys::rte_eth_dev_rx_intr_enable(self.port.id(), self.index) } == 0
    }

    /// Switches the queue's interrupt off.
    pub fn disarm(&mut self) {
        if self.interrupts {
            // SAFETY: the port exists as long as this queue. A refusal changes nothing.
            unsafe { dpdk_sys::rte_eth_dev_rx_intr_disable(self.port.id(), self.index) };
        }
    }
}

impl TxQueue {
    /// The queue's number on its device.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Hands packets to the device, from the front of `from`, as many as it takes without waiting;
    /// returns how many. Those that it did not take stay in `from`.
    pub fn burst<const N: usize>(&mut self, from: &mut ArrayVec<Mbuf, N>) -> usize {
        let len = from.len();
        let offered = u16::try_from(len).unwrap_or(u16::MAX);
        if offered == 0 {
            return 0;
        }
        // SAFETY: the port is started while a queue exists; `from` holds `len` transparent
        // pointers. The driver owns the first `taken` afterwards: they are moved out by closing
        // the gap over them and shortening the list, so that nothing is dropped twice.
        unsafe {
            let start = from.as_mut_ptr();
            let taken = usize::from(dpdk_sys::bl_eth_tx_burst(
                self.port.id(),
                self.index,
                start.cast::<*mut dpdk_sys::rte_mbuf>(),
                offered,
            ));
            from.set_len(0);
            std::ptr::copy(start.add(taken), start, len - taken);
            from.set_len(len - taken);
            taken
        }
    }
}
