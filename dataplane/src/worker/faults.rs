//! Whose memory costs page faults.
//!
//! A peer that punches holes into its memory again and again makes every touch of ours zero a fresh
//! page, on our time and on our account; while a hole is punched, whoever touches it sleeps. Each
//! millisecond a worker asks the kernel for its faults. When there were any (memory in use has none),
//! all workers attribute for a while: they touch what a burst brought before they send it (those
//! faults are the source's), and what a sink will hold before they copy (those are the sink's), and
//! finish each sink before the next. The memif library keeps the accounts and spoils a connection
//! that has used its own up; the next poll finds that.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use memif::{FaultMeter, Faults};

use super::{State, tx_entry};
use crate::copy::Seg;
use crate::table::{IfaceId, Tables};

/// Between two looks: the system call is 0.1 % of this.
const LOOK_NS: u64 = 1_000_000;
/// How long workers attribute after an alarm: at first, and at most.
const ATTRIBUTE_NS: u64 = 20_000_000;
const ATTRIBUTE_MOST_NS: u64 = ATTRIBUTE_NS << 7;
/// After so long a calm the next alarm is like the first.
const FORGET_NS: u64 = 10_000_000_000;

/// See the module.
#[derive(Debug)]
pub(super) struct FaultWatch {
    /// Made on the worker's own thread.
    meter: Option<FaultMeter>,
    /// Whether there were faults since the last look.
    any: bool,
    looked_ns: u64,
    alert: Alert,
    /// Alarms of all workers: one worker's source may fault on another, who copies from it.
    alarms: Arc<AtomicU64>,
    heard: u64,
}

/// How long to attribute. A peer that waits for the end before it makes us fault again would never
/// pay: each alarm that comes soon after the last one lasts twice as long.
#[derive(Debug, Default)]
struct Alert {
    /// Zero while all is calm.
    until_ns: u64,
    length_ns: u64,
    ended_ns: u64,
}

impl Alert {
    fn raise(&mut self, now_ns: u64) {
        if self.until_ns == 0 {
            let soon = self.length_ns > 0 && now_ns.saturating_sub(self.ended_ns) < FORGET_NS;
            let longer = (self.length_ns * 2).min(ATTRIBUTE_MOST_NS);
            self.length_ns = if soon { longer } else { ATTRIBUTE_NS };
        }
        self.until_ns = now_ns + self.length_ns;
    }

    fn pass(&mut self, now_ns: u64) {
        if self.until_ns != 0 && now_ns > self.until_ns {
            (self.until_ns, self.ended_ns) = (0, now_ns);
        }
    }
}

impl FaultWatch {
    pub(super) fn new(alarms: Arc<AtomicU64>) -> Self {
        let alert = Alert::default();
        Self { meter: None, any: false, looked_ns: 0, alert, alarms, heard: 0 }
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
            self.alert.raise(now_ns);
        } else {
            self.alert.pass(now_ns);
        }
    }

    /// Whether each fault is to be laid at somebody's door.
    #[inline]
    pub(super) fn attributing(&self) -> bool {
        self.alert.until_ns != 0
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

    /// Its memory is touched before anything is copied to it. What faults after that may as well be the
    /// source's, punched out since it was touched, and is charged to nobody: the next touch tells.
    #[cold]
    fn finish_and_charge(&mut self, tables: &Tables, iface: IfaceId, queue: u16) {
        let certain = self.list.touch_targets();
        let faults = self.faults.take();
        self.finish_burst(tables);
        self.faults.take();
        let sink = tx_entry(&mut self.txs, iface, queue);
        if let Some(entry) = sink.filter(|_| certain && !faults.is_none()) {
            entry.tx.charge_faults(faults, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// Alarms between which a peer waits until nobody looks, in this many milliseconds.
    fn free_pulses(mut now_ns: u64, for_ms: u64, patience_ms: u64) -> usize {
        let (mut alert, mut free, end_ns) = (Alert::default(), 0, now_ns + for_ms * MS);
        while now_ns < end_ns {
            free += usize::from(alert.until_ns == 0);
            alert.raise(now_ns);
            for _ in 0..patience_ms {
                now_ns += MS;
                alert.pass(now_ns);
            }
        }
        free
    }

    #[test]
    fn whoever_waits_for_the_end_of_an_alert_waits_longer_each_time() {
        assert_eq!(free_pulses(MS, 60_000, 25), 1 + 1);
        assert!(free_pulses(MS, 60_000, 1000) <= 8);
    }

    #[test]
    fn a_lone_alarm_is_short() {
        let mut alert = Alert::default();
        for minute in 1..5 {
            let now_ns = minute * 60_000 * MS;
            alert.raise(now_ns);
            alert.pass(now_ns + 21 * MS);
            assert_eq!(alert.until_ns, 0);
        }
    }
}
