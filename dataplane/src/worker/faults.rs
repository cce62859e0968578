//! Whose memory costs page faults.
//!
//! A peer that punches holes into its memory again and again makes every touch of ours zero a fresh
//! page, on our time and on our account; while a hole is punched, whoever touches it sleeps. Each
//! millisecond a worker asks the kernel for its faults. When there were any (memory in use has none),
//! all workers attribute for a while: they touch what a burst brought before they send it (those
//! faults are the source's) and finish each sink before the next (those are the sink's). The memif
//! library keeps the accounts and spoils a connection that has used its own up; the next poll finds
//! that.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use memif::{FaultMeter, Faults};

use super::{State, tx_entry};
use crate::copy::Seg;
use crate::table::{IfaceId, Tables};

/// Between two looks: the system call is 0.1 % of this.
const LOOK_NS: u64 = 1_000_000;
/// How long workers attribute after an alarm.
const ATTRIBUTE_NS: u64 = 20_000_000;

/// See the module.
#[derive(Debug)]
pub(super) struct FaultWatch {
    /// Made on the worker's own thread.
    meter: Option<FaultMeter>,
    /// Whether there were faults since the last look.
    any: bool,
    looked_ns: u64,
    /// Zero while nothing is attributed.
    attribute_until_ns: u64,
    /// Alarms of all workers: one worker's source may fault on another, who copies from it.
    alarms: Arc<AtomicU64>,
    heard: u64,
}

impl FaultWatch {
    pub(super) fn new(alarms: Arc<AtomicU64>) -> Self {
        let (looked_ns, attribute_until_ns, heard) = (0, 0, 0);
        Self { meter: None, any: false, looked_ns, attribute_until_ns, alarms, heard }
    }

    /// Once a turn: raises the alarm, and hears that of others.
    #[inline]
    pub(super) fn look(&mut self, now_ns: u64) {
        if now_ns.wrapping_sub(self.looked_ns) >= LOOK_NS {
            self.count(now_ns);
        }
    }

    #[cold]
    fn count(&mut self, now_ns: u64) {
        self.take();
        self.looked_ns = now_ns;
        if std::mem::take(&mut self.any) {
            self.alarms.fetch_add(1, Ordering::Relaxed);
        }
        let alarms = self.alarms.load(Ordering::Relaxed);
        if std::mem::replace(&mut self.heard, alarms) != alarms {
            self.attribute_until_ns = now_ns + ATTRIBUTE_NS;
        } else if now_ns > self.attribute_until_ns {
            self.attribute_until_ns = 0;
        }
    }

    /// Whether each fault is to be laid at somebody's door.
    #[inline]
    pub(super) fn attributing(&self) -> bool {
        self.attribute_until_ns != 0
    }

    /// From here on faults are the next one's that is charged.
    #[inline]
    pub(super) fn begin(&mut self) {
        if self.attributing() {
            self.take();
        }
    }

    /// Faults since the last call.
    #[cold]
    fn take(&mut self) -> Faults {
        let faults = self.meter.get_or_insert_with(FaultMeter::new).since_last();
        self.any |= !faults.is_none();
        faults
    }
}

impl State {
    /// Charges queue `index` with what its burst has cost, and with what its bodies will.
    #[cold]
    pub(super) fn charge_source(&mut self, index: usize) {
        for at in 0..self.burst.len() {
            self.burst.slot_mut(at).2.iter().for_each(Seg::touch);
        }
        let faults = self.faults.take();
        if let Some(entry) =
            self.rxs.get(index).and_then(Option::as_ref).filter(|_| !faults.is_none())
        {
            entry.rx.charge_faults(faults, Instant::now());
        }
    }

    /// Charges the sink of a train that was sent just now, while faults are attributed.
    #[inline]
    pub(super) fn charge_sink(&mut self, tables: &Tables, sink: Option<(IfaceId, u16)>) {
        if self.faults.attributing()
            && let Some((iface, queue)) = sink
        {
            self.finish_and_charge(tables, iface, queue);
        }
    }

    #[cold]
    fn finish_and_charge(&mut self, tables: &Tables, iface: IfaceId, queue: u16) {
        self.finish_burst(tables);
        let faults = self.faults.take();
        let sink = tx_entry(&mut self.txs, iface, queue);
        if let Some(entry) = sink.filter(|_| !faults.is_none()) {
            entry.tx.charge_faults(faults, Instant::now());
        }
    }
}
