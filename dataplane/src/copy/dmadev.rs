//! A DPDK DMA device as a copy channel.

use dpdk::{DmaCopy, DmaDev, Eal, Error};

use super::dma::{Channel, Completed};
use super::list::Op;

/// Descriptors of a channel: more than the long copies of a burst.
const DESCRIPTORS: u16 = 1024;

/// Opens a device for one worker.
///
/// # Errors
/// It is not there, can not copy memory, or can not take addresses of this process (shared virtual
/// memory), without which peers' memory would have to be pinned and mapped for it.
pub fn open(eal: Eal, arguments: &str) -> Result<Box<dyn Channel>, Error> {
    let device = DmaDev::probe(eal, arguments, DESCRIPTORS)?;
    Ok(Box::new(DmaChannel { device, copies: Vec::with_capacity(256) }))
}

#[derive(Debug)]
struct DmaChannel {
    device: DmaDev,
    copies: Vec<DmaCopy>,
}

// SAFETY: DmaDev reports in order, and a copy only when the device is through with it; `stop` says
// whether the driver waits for its engine.
unsafe impl Channel for DmaChannel {
    fn name(&self) -> &str {
        self.device.name()
    }

    unsafe fn enqueue(&mut self, ops: &[Op]) -> usize {
        self.copies.clear();
        let copies = ops.iter().map(|op| DmaCopy::new(op.from(), op.to(), op.len()));
        self.copies.extend(copies);
        // SAFETY: by the caller; nobody relies on the destination before it is reported.
        unsafe { self.device.enqueue(&self.copies) }
    }

    fn submit(&mut self) {
        self.device.submit();
    }

    fn completed(&mut self, max: usize) -> Completed {
        let completed = self.device.completed(u16::try_from(max).unwrap_or(u16::MAX));
        Completed { done: usize::from(completed.count), failed: completed.failed }
    }

    fn stop(&mut self) -> bool {
        self.device.stop()
    }
}
