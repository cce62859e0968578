//! What a receiver makes of the frames: per stream, what came, what is missing, and how late.

use crate::packet::Seen;
use hdrhistogram::Histogram;
use serde::Serialize;
use std::collections::BTreeMap;

/// How far behind the newest frame one can still be told "reordered" from "duplicate". A flow's state
/// is less than a cache line, since with 10,000 flows each frame touches another one.
const WINDOW: u32 = 256;
const WORDS: usize = WINDOW as usize / 64;
/// Latencies above this are counted as this.
const LATENCY_MAX_NS: u64 = 60_000_000_000;

/// One flow's sequence numbers.
#[derive(Debug, Clone)]
struct Flow {
    /// The newest number seen, plus one.
    next: u32,
    /// Bit n mod WINDOW: number n was seen, for the last WINDOW numbers.
    seen: [u64; WORDS],
}

/// What one number means for its flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// Newer than all before; so many were left out.
    Newer(u32),
    /// Older than the newest, and first seen now.
    Late,
    /// Seen before.
    Again,
    /// Too old to tell.
    Ancient,
}

impl Flow {
    fn starting_at(first: u32) -> Self {
        // What lies before the first number is not expected any more.
        Self { next: first, seen: [u64::MAX; WORDS] }
    }

    #[inline]
    fn see(&mut self, seq: u32) -> Order {
        let ahead = seq.wrapping_sub(self.next);
        if ahead < 1 << 31 {
            self.advance(seq, ahead);
            return Order::Newer(ahead);
        }
        let behind = self.next.wrapping_sub(seq);
        if behind > WINDOW {
            return Order::Ancient;
        }
        let (word, bit) = place(seq);
        if self.seen[word] & bit != 0 {
            return Order::Again;
        }
        self.seen[word] |= bit;
        Order::Late
    }

    #[inline]
    fn advance(&mut self, seq: u32, ahead: u32) {
        if ahead >= WINDOW {
            self.seen = [0; WORDS];
        } else {
            for n in 0..ahead {
                let (word, bit) = place(self.next.wrapping_add(n));
                self.seen[word] &= !bit;
            }
        }
        let (word, bit) = place(seq);
        self.seen[word] |= bit;
        self.next = seq.wrapping_add(1);
    }
}

#[inline]
fn place(seq: u32) -> (usize, u64) {
    let at = seq % WINDOW;
    (at as usize / 64, 1 << (at % 64))
}

/// Totals of one stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Frames, duplicates included.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Numbers left out and not seen since.
    pub missing: u64,
    /// Frames older than the newest of their flow.
    pub reordered: u64,
    /// Frames seen before.
    pub duplicates: u64,
}

impl Totals {
    fn add(&mut self, order: Order, bytes: usize) {
        self.frames += 1;
        self.bytes += bytes as u64;
        match order {
            Order::Newer(left_out) => self.missing += u64::from(left_out),
            Order::Late => {
                self.reordered += 1;
                self.missing = self.missing.saturating_sub(1);
            }
            Order::Again => self.duplicates += 1,
            Order::Ancient => self.reordered += 1,
        }
    }
}

/// Percentiles of the latency, in ns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Latency {
    /// How many were measured.
    pub samples: u64,
    /// Least.
    pub min_ns: u64,
    /// Median.
    pub p50_ns: u64,
    /// 90 %.
    pub p90_ns: u64,
    /// 99 %.
    pub p99_ns: u64,
    /// 99.9 %.
    pub p999_ns: u64,
    /// Greatest.
    pub max_ns: u64,
}

#[derive(Debug, Default)]
struct StreamState {
    totals: Totals,
    flows: Vec<Option<Flow>>,
}

/// What came in at one endpoint.
#[derive(Debug)]
pub struct Tracker {
    streams: BTreeMap<u16, StreamState>,
    /// The stream of the last frame, taken out of the map: most frames are of the same one.
    current_id: Option<u16>,
    current: StreamState,
    corrupt: u64,
    latency: Histogram<u64>,
    latency_mask: u32,
}

impl Tracker {
    /// Measures the latency of every frame whose number is a multiple of `latency_every` (rounded
    /// up to a power of two).
    #[must_use]
    pub fn new(latency_every: u32) -> Self {
        let latency = Histogram::new_with_max(LATENCY_MAX_NS, 3)
            .unwrap_or_else(|e| unreachable!("bounds are constant and legal: {e}"));
        let latency_mask = latency_every.max(1).next_power_of_two() - 1;
        Self {
            streams: BTreeMap::new(),
            current_id: None,
            current: StreamState::default(),
            corrupt: 0,
            latency,
            latency_mask,
        }
    }

    /// Takes a frame into account; false when it is not a generator's.
    #[inline]
    pub fn take(&mut self, seen: Seen, frame_bytes: usize, now_ns: u64) -> bool {
        match seen {
            Seen::Other => return false,
            Seen::Corrupt => self.corrupt += 1,
            Seen::Ours { stream, flow, seq, time_ns } => {
                if seq & self.latency_mask == 0 {
                    self.latency.saturating_record(now_ns.saturating_sub(time_ns));
                }
                if self.current_id != Some(stream) {
                    self.change_stream(stream);
                }
                let state = &mut self.current;
                let index = usize::from(flow);
                if index >= state.flows.len() {
                    state.flows.resize(index + 1, None);
                }
                let flow = state.flows[index].get_or_insert_with(|| Flow::starting_at(seq));
                let order = flow.see(seq);
                state.totals.add(order, frame_bytes);
            }
        }
        true
    }

    #[cold]
    fn change_stream(&mut self, stream: u16) {
        let next = self.streams.remove(&stream).unwrap_or_default();
        let last = std::mem::replace(&mut self.current, next);
        if let Some(id) = self.current_id.replace(stream) {
            self.streams.insert(id, last);
        }
    }

    /// Totals of a stream; zeros for one that was never seen.
    #[must_use]
    pub fn totals(&self, stream: u16) -> Totals {
        match self.current_id {
            Some(id) if id == stream => self.current.totals,
            _ => self.streams.get(&stream).map_or_else(Totals::default, |s| s.totals),
        }
    }

    /// All streams seen.
    #[must_use]
    pub fn streams(&self) -> BTreeMap<u16, Totals> {
        let current = self.current_id.map(|id| (id, self.current.totals));
        self.streams.iter().map(|(id, s)| (*id, s.totals)).chain(current).collect()
    }

    /// The totals of all streams together.
    #[must_use]
    pub fn sum(&self) -> Totals {
        self.streams().values().fold(Totals::default(), |a, b| Totals {
            frames: a.frames + b.frames,
            bytes: a.bytes + b.bytes,
            missing: a.missing + b.missing,
            reordered: a.reordered + b.reordered,
            duplicates: a.duplicates + b.duplicates,
        })
    }

    /// Generator's frames that were changed on their way.
    #[must_use]
    pub fn corrupt(&self) -> u64 {
        self.corrupt
    }

    /// The latency's percentiles.
    #[must_use]
    pub fn latency(&self) -> Latency {
        let h = &self.latency;
        if h.is_empty() {
            return Latency::default();
        }
        Latency {
            samples: h.len(),
            min_ns: h.min(),
            p50_ns: h.value_at_quantile(0.5),
            p90_ns: h.value_at_quantile(0.9),
            p99_ns: h.value_at_quantile(0.99),
            p999_ns: h.value_at_quantile(0.999),
            max_ns: h.max(),
        }
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        self.streams.clear();
        self.current_id = None;
        self.current = StreamState::default();
        self.corrupt = 0;
        self.latency.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(numbers: &[u32]) -> Totals {
        let mut tracker = Tracker::new(1);
        for seq in numbers {
            let seen = Seen::Ours { stream: 3, flow: 9, seq: *seq, time_ns: 100 };
            assert!(tracker.take(seen, 64, 150));
        }
        tracker.totals(3)
    }

    #[test]
    fn order_is_judged() {
        let t = run(&[5, 6, 7, 8]);
        assert_eq!((t.frames, t.bytes, t.missing, t.reordered, t.duplicates), (4, 256, 0, 0, 0));
        assert_eq!(run(&[5, 8]).missing, 2);
        let late = run(&[5, 8, 6]);
        assert_eq!((late.missing, late.reordered, late.duplicates), (1, 1, 0));
        let again = run(&[5, 6, 6, 5]);
        assert_eq!((again.missing, again.reordered, again.duplicates), (0, 0, 2));
        // Before the first number nothing is missing, so an older one is a duplicate.
        assert_eq!(run(&[5, 4]).duplicates, 1);
    }

    #[test]
    fn numbers_wrap_and_leap() {
        let t = run(&[u32::MAX - 1, u32::MAX, 0, 1]);
        assert_eq!((t.missing, t.reordered), (0, 0));
        let t = run(&[0, 5000, 4999, 5001]);
        assert_eq!((t.missing, t.reordered, t.duplicates), (4998, 1, 0));
        assert_eq!(run(&[0, 5000, 0]).reordered, 1);
    }

    #[test]
    fn streams_and_latency_are_apart() {
        let mut tracker = Tracker::new(1);
        for (stream, time_ns) in [(1, 10), (2, 20), (1, 30), (1, 40)] {
            let seen = Seen::Ours { stream, flow: 0, seq: 0, time_ns };
            tracker.take(seen, 100, 1000);
        }
        tracker.take(Seen::Corrupt, 100, 1000);
        assert!(!tracker.take(Seen::Other, 100, 1000));
        assert_eq!(tracker.totals(1).frames, 3);
        assert_eq!(tracker.totals(1).duplicates, 2);
        assert_eq!(tracker.totals(2).frames, 1);
        assert_eq!(tracker.totals(4).frames, 0);
        assert_eq!(tracker.sum().frames, 4);
        assert_eq!(tracker.corrupt(), 1);
        let latency = tracker.latency();
        assert_eq!((latency.samples, latency.min_ns, latency.max_ns), (4, 960, 990));
        tracker.reset();
        assert_eq!((tracker.sum().frames, tracker.latency().samples), (0, 0));
    }
}
