//! Counters: one writer each (a worker), summed by whoever reads.
//!
//! Two equations hold per interface, Network and node, and tests check them under load:
//! `rx_pkts = forwarded + consumed + punted + Σ drops` and
//! `tx_pkts = tx_forwarded + generated + split_extra − coalesced − Σ tx_drops`.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::path::{DropReason, TxDropReason};

/// One worker's count of one thing. Only that worker writes it.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds. A plain load and store: there is no other writer.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// The value now.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// The counters of one interface or VRF on one worker, in cache lines of their own.
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub struct Counters {
            $($(#[$doc])* pub $name: Count,)*
            /// Received and dropped, by reason.
            pub drops: [Count; DropReason::COUNT],
            /// Handed to this interface and dropped, by reason.
            pub tx_drops: [Count; TxDropReason::COUNT],
        }

        /// A sum of [`Counters`] over workers.
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        pub struct Sums {
            $($(#[$doc])* pub $name: u64,)*
            /// Received and dropped, by reason.
            pub drops: [u64; DropReason::COUNT],
            /// Handed to this interface and dropped, by reason.
            pub tx_drops: [u64; TxDropReason::COUNT],
        }

        impl Sums {
            /// Adds one worker's counters.
            pub fn add(&mut self, from: &Counters) {
                $(self.$name += from.$name.get();)*
                for (sum, count) in self.drops.iter_mut().zip(&from.drops) {
                    *sum += count.get();
                }
                for (sum, count) in self.tx_drops.iter_mut().zip(&from.tx_drops) {
                    *sum += count.get();
                }
            }

            /// Adds another sum.
            pub fn merge(&mut self, from: &Sums) {
                $(self.$name += from.$name;)*
                for (sum, count) in self.drops.iter_mut().zip(&from.drops) {
                    *sum += count;
                }
                for (sum, count) in self.tx_drops.iter_mut().zip(&from.tx_drops) {
                    *sum += count;
                }
            }
        }
    };
}

counters! {
    /// Frames received.
    rx_pkts,
    /// Bytes of frames received, Ethernet header to payload.
    rx_bytes,
    /// Lost by NIC or kernel, which had no room for them, before we received them.
    rx_missed,
    /// Received and handed to an output.
    forwarded,
    /// Received and answered or absorbed here.
    consumed,
    /// Received and given to the node's stack.
    punted,
    /// Frames sent.
    tx_pkts,
    /// Bytes of frames sent.
    tx_bytes,
    /// Frames that were handed to this output.
    tx_forwarded,
    /// Frames made here and handed to this output.
    generated,
    /// Frames beyond the first of a segmented or fragmented one.
    split_extra,
    /// Frames merged into an earlier one.
    coalesced,
    /// Bytes copied into this output's memory.
    copied_bytes,
}

impl Sums {
    /// `rx_pkts − forwarded − consumed − punted − Σ drops`; 0 when the account is right.
    pub fn rx_imbalance(&self) -> i64 {
        let dropped: u64 = self.drops.iter().sum();
        self.rx_pkts.wrapping_sub(self.forwarded + self.consumed + self.punted + dropped) as i64
    }

    /// `tx_pkts − (tx_forwarded + generated + split_extra − coalesced − Σ tx_drops)`.
    pub fn tx_imbalance(&self) -> i64 {
        let dropped: u64 = self.tx_drops.iter().sum();
        let handed = self.tx_forwarded + self.generated + self.split_extra;
        self.tx_pkts.wrapping_add(self.coalesced + dropped).wrapping_sub(handed) as i64
    }
}

/// The sum over workers.
pub fn sum(workers: &[Counters]) -> Sums {
    let mut sums = Sums::default();
    for counters in workers {
        sums.add(counters);
    }
    sums
}

/// Zeroed counters for `workers` workers.
pub fn per_worker(workers: usize) -> std::sync::Arc<[Counters]> {
    (0..workers).map(|_| Counters::default()).collect()
}
