//! Counters as the API shows them: by interface, by Network, of the node.
//!
//! What a removed interface counted stays in the sums of its Network and of the node, so that both
//! account equations hold at every moment. A Network's account is that of its interfaces and of
//! what came out of its tunnels; the node's is that of all interfaces (a packet out of a tunnel is
//! already in the uplink's).

use std::collections::HashMap;
use std::sync::Arc;

use crate::path::{DropReason, TxDropReason};
use crate::table::{Counters, Sums, counters};

/// What interfaces counted that are no more.
#[derive(Debug, Default)]
pub struct Ledger {
    networks: HashMap<Arc<str>, Sums>,
    node: Sums,
}

impl Ledger {
    /// An interface is gone, and no worker counts for it any more. `network` is `None` when that
    /// is gone as well.
    pub fn close(&mut self, network: Option<&Arc<str>>, counted: &[Counters]) {
        let sums = counters::sum(counted);
        self.node.merge(&sums);
        if let Some(network) = network {
            self.networks.entry(Arc::clone(network)).or_default().merge(&sums);
        }
    }

    /// A network is gone; what its interfaces counted stays with the node.
    pub fn forget(&mut self, network: &str) {
        self.networks.remove(network);
    }

    /// What gone interfaces of the network counted.
    pub fn of_network(&self, network: &str) -> Sums {
        self.networks.get(network).cloned().unwrap_or_default()
    }

    /// What all gone interfaces counted.
    pub fn of_node(&self) -> &Sums {
        &self.node
    }
}

/// In the API's form; reasons that never happened are left out.
pub fn account(sums: &Sums) -> api::Account {
    let drop = |name: &'static str, pkts: u64| api::Drop { reason: name.into(), pkts };
    let rx_drops = DropReason::ALL.iter().zip(&sums.drops).filter(|(_, n)| **n > 0);
    let tx_drops = TxDropReason::ALL.iter().zip(&sums.tx_drops).filter(|(_, n)| **n > 0);
    api::Account {
        rx_pkts: sums.rx_pkts,
        rx_bytes: sums.rx_bytes,
        forwarded: sums.forwarded,
        consumed: sums.consumed,
        punted: sums.punted,
        drops: rx_drops.map(|(reason, n)| drop(reason.name(), *n)).collect(),
        tx_pkts: sums.tx_pkts,
        tx_bytes: sums.tx_bytes,
        tx_forwarded: sums.tx_forwarded,
        generated: sums.generated,
        split_extra: sums.split_extra,
        coalesced: sums.coalesced,
        tx_drops: tx_drops.map(|(reason, n)| drop(reason.name(), *n)).collect(),
        copied_bytes: sums.copied_bytes,
        rx_missed: sums.rx_missed,
    }
}
