//! Runs with a duration or a count.

use crate::endpoint::Endpoint;
use crate::now_ns;
use crate::sender::{Pace, Sender, Sent};
use crate::track::{Latency, Totals, Tracker};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// After the last frame was sent, receivers are polled until nothing came for so long.
const QUIET_NS: u64 = 20_000_000;
/// A full ring is emptied sooner than a nap ends: so long both ends stay awake.
const SPIN_NS: u64 = 50_000;
const CHECK_EVERY_NS: u64 = 10_000_000;
const PROGRESS_EVERY_NS: u64 = 1_000_000_000;

/// How long, how fast.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Ends after this time; `None`: when the count is reached or it is told to stop.
    pub duration: Option<Duration>,
    /// Ends after so many frames were sent (or, without a sender, received).
    pub count: Option<u64>,
    /// Frames per second; `None`: as fast as it goes.
    pub rate_pps: Option<u64>,
    /// Frames put into a ring before the next receiver's turn.
    pub burst_frames: usize,
    /// How long to wait for frames under way after the last was sent.
    pub drain: Duration,
    /// Always spin, instead of sleeping a tenth of a millisecond when nothing moves.
    pub busy: bool,
    /// A line per second on standard error.
    pub progress: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            duration: None,
            count: None,
            rate_pps: None,
            burst_frames: 32,
            drain: Duration::from_millis(500),
            busy: false,
            progress: false,
        }
    }
}

/// Rates over the measured time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Rate {
    /// Frames per second.
    pub pps: f64,
    /// Bits per second, frames without preamble and checksum.
    pub bps: f64,
}

/// What came out of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// Time of sending (or receiving, without a sender), without draining.
    pub seconds: f64,
    /// What was sent.
    pub tx: Sent,
    /// How fast.
    pub tx_rate: Rate,
    /// What came in: the sender's own stream, or without a sender all of them.
    pub rx: Totals,
    /// How fast, draining excluded.
    pub rx_rate: Rate,
    /// Sent and not received; only where one process does both.
    pub lost: Option<u64>,
    /// The same, of what was sent.
    pub loss_ratio: Option<f64>,
    /// Generator's frames changed on their way.
    pub corrupt: u64,
    /// Frames that were no generator's: answered where a host would.
    pub others: u64,
    /// One-way, from writing to reading.
    pub latency: Latency,
    /// What came in, by sender's stream number.
    pub streams: BTreeMap<u16, Totals>,
}

struct Run<'a> {
    tx: Option<(&'a mut Endpoint, &'a mut Sender)>,
    rx: Option<&'a mut Endpoint>,
    plan: &'a Plan,
    stop: &'a AtomicBool,
    next_queue: usize,
    next_check_ns: u64,
    next_progress_ns: u64,
    start_ns: u64,
}

/// Sends from `tx` (which is polled as well) and receives at `rx`, on this thread.
///
/// # Errors
/// A peer broke memif's rules.
pub fn run(
    tx: Option<(&mut Endpoint, &mut Sender)>,
    rx: Option<&mut Endpoint>,
    plan: &Plan,
    stop: &AtomicBool,
) -> anyhow::Result<Report> {
    let start_ns = now_ns();
    let both = tx.is_some() && rx.is_some();
    let mut run = Run {
        tx,
        rx,
        plan,
        stop,
        next_queue: 0,
        next_check_ns: start_ns,
        next_progress_ns: start_ns + PROGRESS_EVERY_NS,
        start_ns,
    };
    run.main_phase()?;
    let end_ns = now_ns();
    let during = run.received();
    if run.tx.is_some() {
        run.drain()?;
    }
    Ok(run.report(end_ns, during, both))
}

impl Run<'_> {
    fn main_phase(&mut self) -> anyhow::Result<()> {
        let pace = Pace::new(self.start_ns, self.plan.rate_pps, self.plan.count);
        let deadline_ns = self.plan.duration.map(|d| self.start_ns + d.as_nanos() as u64);
        let mut moved_ns = self.start_ns;
        loop {
            let now = now_ns();
            if deadline_ns.is_some_and(|d| now >= d) || self.is_done(now)? {
                return Ok(());
            }
            let moved = self.send_burst(&pace, now)? + self.poll()?;
            if moved > 0 {
                moved_ns = now;
            } else if !self.plan.busy && now - moved_ns > SPIN_NS {
                std::thread::sleep(Duration::from_micros(100));
            }
        }
    }

    /// Counts reached, told to stop; looks at the connections now and then.
    #[inline]
    fn is_done(&mut self, now: u64) -> anyhow::Result<bool> {
        if let (Some((_, sender)), Some(count)) = (&self.tx, self.plan.count)
            && sender.sent().frames >= count
        {
            return Ok(true);
        }
        if now < self.next_check_ns {
            return Ok(false);
        }
        self.next_check_ns = now + CHECK_EVERY_NS;
        if let Some((endpoint, _)) = &mut self.tx {
            endpoint.port.check()?;
        }
        if let Some(endpoint) = &mut self.rx {
            endpoint.port.check()?;
        }
        if self.plan.progress && now >= self.next_progress_ns {
            self.next_progress_ns = now + PROGRESS_EVERY_NS;
            self.print_progress(now);
        }
        let enough =
            self.tx.is_none() && self.plan.count.is_some_and(|c| self.received().frames >= c);
        Ok(enough || self.stop.load(Ordering::Relaxed))
    }

    #[inline]
    fn send_burst(&mut self, pace: &Pace, now: u64) -> anyhow::Result<usize> {
        let Some((endpoint, sender)) = &mut self.tx else { return Ok(0) };
        let due = pace.due(now, sender.sent().frames);
        let frames = (self.plan.burst_frames as u64).min(due) as usize;
        if frames == 0 {
            self.flush_all(now)?;
            return Ok(0);
        }
        let index = self.next_queue;
        self.next_queue = if index + 1 == sender.queues() { 0 } else { index + 1 };
        let Some((queue, notifier)) = endpoint.port.tx(index) else { return Ok(0) };
        let put = sender.fill(index, queue, frames, now)?;
        if self.plan.busy {
            queue.flush_spinning(notifier, now)?;
        } else {
            queue.flush(notifier)?;
        }
        Ok(put)
    }

    /// Signals a peer that went to sleep just before the last publication.
    fn flush_all(&mut self, now: u64) -> anyhow::Result<()> {
        let Some((endpoint, sender)) = &mut self.tx else { return Ok(()) };
        for index in 0..sender.queues() {
            if let Some((queue, notifier)) = endpoint.port.tx(index) {
                queue.flush_spinning(notifier, now)?;
            }
        }
        Ok(())
    }

    #[inline]
    fn poll(&mut self) -> anyhow::Result<usize> {
        let mut frames = 0;
        if let Some(endpoint) = &mut self.rx {
            frames += endpoint.poll()?;
        }
        if let Some((endpoint, _)) = &mut self.tx {
            frames += endpoint.poll()?;
        }
        Ok(frames)
    }

    fn drain(&mut self) -> anyhow::Result<()> {
        let deadline = now_ns() + self.plan.drain.as_nanos() as u64;
        let mut quiet_since = now_ns();
        loop {
            let now = now_ns();
            self.flush_all(now)?;
            if now >= deadline || now - quiet_since >= QUIET_NS {
                return Ok(());
            }
            if self.poll()? > 0 {
                quiet_since = now;
            } else if !self.plan.busy {
                std::thread::sleep(Duration::from_micros(100));
            }
        }
    }

    fn receiver(&self) -> Option<&Endpoint> {
        match (&self.rx, &self.tx) {
            (Some(endpoint), _) => Some(endpoint),
            (None, Some((endpoint, _))) => Some(endpoint),
            (None, None) => None,
        }
    }

    /// Of the sender's own stream, where there is one: what an earlier run left under way is not
    /// this run's.
    fn received(&self) -> Totals {
        let Some(receiver) = self.receiver() else { return Totals::default() };
        match &self.tx {
            Some((_, sender)) => receiver.tracker.totals(sender.stream_id()),
            None => receiver.tracker.sum(),
        }
    }

    fn sent(&self) -> Sent {
        self.tx.as_ref().map_or_else(Sent::default, |(_, s)| s.sent())
    }

    fn print_progress(&self, now: u64) {
        let (sent, received) = (self.sent(), self.received());
        let seconds = (now - self.start_ns) as f64 / 1e9;
        eprintln!(
            "{seconds:6.1} s  sent {}  received {}  missing {}  reordered {}  corrupt {}",
            sent.frames,
            received.frames,
            received.missing,
            received.reordered,
            self.receiver().map_or(0, |e| e.tracker.corrupt()),
        );
    }

    fn report(&self, end_ns: u64, during: Totals, both: bool) -> Report {
        let seconds = (end_ns - self.start_ns).max(1) as f64 / 1e9;
        let (tx, rx) = (self.sent(), self.received());
        let rate = |frames: u64, bytes: u64| Rate {
            pps: frames as f64 / seconds,
            bps: bytes as f64 * 8.0 / seconds,
        };
        let lost = both.then(|| tx.frames.saturating_sub(rx.frames - rx.duplicates));
        let tracker = self.receiver().map(|e| &e.tracker);
        Report {
            seconds,
            tx,
            tx_rate: rate(tx.frames, tx.bytes),
            rx,
            rx_rate: rate(during.frames, during.bytes),
            lost,
            loss_ratio: lost.map(|l| l as f64 / tx.frames.max(1) as f64),
            corrupt: tracker.map_or(0, Tracker::corrupt),
            others: self.receiver().map_or(0, Endpoint::others),
            latency: tracker.map(Tracker::latency).unwrap_or_default(),
            streams: tracker.map(Tracker::streams).unwrap_or_default(),
        }
    }
}
