//! Safe DPDK: the environment (EAL), packet buffers, Ethernet devices with their queues, and DMA
//! devices. The only user of `dpdk-sys`.
//!
//! Invariants that the types carry:
//! - nothing exists before [`Eal::init`] succeeded: every constructor wants the [`Eal`] token;
//! - an [`Mbuf`] is owned by exactly one place, and dropping it gives it back to its pool; a
//!   [`Mempool`] that still has buffers outside when it is dropped is kept alive instead of freed;
//! - a queue is polled by one thread at a time (`Send`, not `Sync`, `&mut self`), and its device is
//!   stopped and closed only when no queue is left.
//!
//! Devices on top of a kernel interface (af_packet, af_xdp) are probed by a thread inside that
//! interface's network namespace; everything later may come from any thread.

mod dma;
mod eal;
mod error;
mod eth;
mod home;
mod mbuf;
mod mempool;
mod queue;
mod wake;

pub use dma::{Completed, DmaCopy, DmaDev};
pub use eal::{Eal, EalOptions, Memory, ThreadRegistration};
pub use error::Error;
pub use eth::{EthConfig, EthDev, EthInfo, Link, Offloads, Stats};
pub use mbuf::{Checksum, L3, L4, Mbuf, RxChecksum, Segments, TxOffload};
pub use mempool::{Mempool, MempoolConfig};
pub use queue::{RxQueue, TxQueue};

/// The DPDK release whose headers this was built against, as `(year, month)`.
pub const DPDK_VERSION: (u32, u32) = (dpdk_sys::BL_VERSION_YEAR, dpdk_sys::BL_VERSION_MONTH);
