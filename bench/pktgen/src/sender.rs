//! Flows, sizes and rate of what is sent.

use crate::packet::{Mark, Stream, Template};
use memif::{MAX_TX_SEGS, TxQueue, TxSegs, Violation};
use serde::Serialize;

/// What to send.
#[derive(Debug, Clone)]
pub struct Traffic {
    /// What all frames have in common.
    pub stream: Stream,
    /// Frame sizes, used in turn.
    pub sizes: Vec<usize>,
    /// Flows; each has its own source port.
    pub flows: u16,
    /// Destination addresses, counted up from the stream's; flow n goes to address n modulo this.
    pub dst_count: u16,
    /// Transmit queues to spread the flows over.
    pub queues: usize,
}

/// What was sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Sent {
    /// Frames.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Times that a ring was full.
    pub ring_full: u64,
}

/// The flows of one queue.
#[derive(Debug)]
struct Lane {
    /// Next number of each flow.
    seqs: Vec<u32>,
    /// Whose turn it is.
    turn: usize,
    /// Its number, and how far the next one of this queue is from it.
    flow: u16,
    step: u16,
    first: u16,
}

impl Lane {
    /// The next frame's mark.
    #[inline]
    fn next(&mut self, dst_count: u16, time_ns: u64) -> Mark {
        let flow = self.flow;
        let seq = self.seqs[self.turn];
        self.seqs[self.turn] = seq.wrapping_add(1);
        self.turn += 1;
        self.flow = flow.wrapping_add(self.step);
        if self.turn == self.seqs.len() {
            (self.turn, self.flow) = (0, self.first);
        }
        let dst_offset = if dst_count == 1 { 0 } else { flow % dst_count };
        Mark { flow, seq, time_ns, port_offset: flow, dst_offset }
    }

    /// As if [`Lane::next`] had not been called.
    fn back(&mut self) {
        self.turn = self.turn.checked_sub(1).unwrap_or(self.seqs.len() - 1);
        self.flow = self.first.wrapping_add(self.step.wrapping_mul(self.turn as u16));
        self.seqs[self.turn] = self.seqs[self.turn].wrapping_sub(1);
    }
}

/// Bytes that the copies of the templates may take: part of a first-level cache.
const COPIES_BYTES: usize = 16 * 1024;
const LINE_BYTES: usize = 64;
/// Most copies of a template.
const COPIES: usize = 16;

/// Sends a stream.
#[derive(Debug)]
pub struct Sender {
    /// Sets of templates, one of each size. A frame is marked in one set while others wait to be
    /// copied out: reading in wide pieces what was just written in narrow ones stalls a CPU.
    sets: Vec<Vec<Template>>,
    next_template: usize,
    lanes: Vec<Lane>,
    dst_count: u16,
    stream_id: u16,
    /// The body is tagged in frames whose number has none of these bits.
    untagged_mask: u32,
    places: TxSegs,
    sent: Sent,
}

impl Sender {
    /// Builds the frames beforehand.
    ///
    /// # Errors
    /// A size is impossible, or there are fewer flows than queues.
    pub fn new(traffic: &Traffic) -> anyhow::Result<Self> {
        let queues = traffic.queues;
        anyhow::ensure!(
            queues >= 1 && usize::from(traffic.flows) >= queues,
            "{} flow(s) over {queues} queue(s): give each queue at least one flow (--flows)",
            traffic.flows
        );
        anyhow::ensure!(!traffic.sizes.is_empty(), "no size given");
        let sizes = traffic.sizes.iter();
        let templates = sizes.map(|size| Template::new(&traffic.stream, *size));
        let lanes = (0..queues).map(|q| {
            let flows = (usize::from(traffic.flows) - q).div_ceil(queues);
            let (first, step) = (q as u16, queues as u16);
            Lane { seqs: vec![0; flows], turn: 0, flow: first, first, step }
        });
        let templates: Vec<_> = templates.collect::<Result<_, _>>()?;
        let set_bytes: usize = templates.iter().map(Template::frame_bytes).sum();
        Ok(Self {
            sets: vec![templates; 1 << (COPIES_BYTES / set_bytes).clamp(1, COPIES).ilog2()],
            next_template: 0,
            lanes: lanes.collect(),
            dst_count: traffic.dst_count.max(1),
            stream_id: traffic.stream.id,
            untagged_mask: 0,
            places: TxSegs::new(),
            sent: Sent::default(),
        })
    }

    /// Puts these bytes in front of every frame: the headers of a tunnel.
    pub fn wrap(&mut self, outer: &[u8]) {
        self.sets.iter_mut().flatten().for_each(|template| template.wrap(outer));
    }

    /// Tags the bodies only of frames whose number is a multiple of `every` (rounded up to a power
    /// of two), for a receiver that looks at all of those alone.
    pub fn tag_every(&mut self, every: u32) {
        self.untagged_mask = every.max(1).next_power_of_two() - 1;
    }

    /// Totals so far.
    #[must_use]
    pub fn sent(&self) -> Sent {
        self.sent
    }

    /// The stream's number.
    #[must_use]
    pub fn stream_id(&self) -> u16 {
        self.stream_id
    }

    /// Number of queues that it sends to.
    #[must_use]
    pub fn queues(&self) -> usize {
        self.lanes.len()
    }

    /// Puts up to `max_frames` into a queue, not yet published; fewer where it is full.
    ///
    /// # Errors
    /// The peer broke memif's rules.
    #[inline]
    pub fn fill(
        &mut self,
        index: usize,
        queue: &mut TxQueue,
        max_frames: usize,
        now_ns: u64,
    ) -> Result<usize, Violation> {
        let mut put = 0;
        while put < max_frames {
            let wanted = (max_frames - put).min(MAX_TX_SEGS);
            let (sizes, next) = (&self.sets[0], self.next_template);
            let lengths = (0..wanted).map(|n| match sizes.as_slice() {
                [one] => one.frame_bytes() as u32,
                all => all[(next + n) % all.len()].frame_bytes() as u32,
            });
            let reserved = queue.reserve_run(lengths, &mut self.places)?;
            self.write(index, queue, reserved, now_ns);
            put += reserved;
            // A frame of several slots, or no room.
            if reserved < wanted {
                if queue.free()? == 0 {
                    self.sent.ring_full += 1;
                    break;
                }
                let at = self.next_template;
                let lane = &mut self.lanes[index];
                let mark = lane.next(self.dst_count, now_ns);
                let template = &mut self.sets[0][at];
                if !queue.send(template.marked(mark, self.untagged_mask))? {
                    lane.back();
                    self.sent.ring_full += 1;
                    break;
                }
                self.sent.frames += 1;
                self.sent.bytes += template.frame_bytes() as u64;
                self.next_template = (at + 1) % self.sets[0].len();
                put += 1;
            }
        }
        Ok(put)
    }

    /// Marks the next frames of a queue and writes them to the places reserved for them.
    fn write(&mut self, index: usize, queue: &TxQueue, count: usize, now_ns: u64) {
        let lane = &mut self.lanes[index];
        let kinds = self.sets[0].len();
        let next = |at: usize| if at + 1 == kinds { 0 } else { at + 1 };
        let places = &self.places.as_slice()[..count];
        // Marking is work for the CPU and copying out is waiting for lines: done in turn they overlap.
        let (mask, mut ahead) = (self.sets.len() - 1, 0);
        let (mut marked, mut copied) = (self.next_template, self.next_template);
        for (n, place) in places.iter().enumerate() {
            while ahead < count && ahead < n + 1 + mask / 2 {
                let mark = lane.next(self.dst_count, now_ns);
                self.sets[ahead & mask][marked].marked(mark, self.untagged_mask);
                (ahead, marked) = (ahead + 1, next(marked));
            }
            if let Some(later) = places.get(n + crate::ahead_frames(place.len() as u32)) {
                (2 * LINE_BYTES..later.len()).step_by(LINE_BYTES).for_each(|at| later.prefetch(at));
            }
            let written = queue.write_to(place, self.sets[n & mask][copied].bytes());
            debug_assert!(written, "reserved for this frame");
            self.sent.bytes += place.len() as u64;
            copied = next(copied);
        }
        self.next_template = copied;
        self.sent.frames += count as u64;
    }
}

/// When how many frames are due.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    start_ns: u64,
    frames_per_s: Option<u64>,
    limit_frames: u64,
}

impl Pace {
    /// From now on, so many frames per second (`None`: as many as go), so many in all.
    #[must_use]
    pub fn new(start_ns: u64, frames_per_s: Option<u64>, limit_frames: Option<u64>) -> Self {
        Self { start_ns, frames_per_s, limit_frames: limit_frames.unwrap_or(u64::MAX) }
    }

    /// How many may be sent now.
    #[inline]
    #[must_use]
    pub fn due(&self, now_ns: u64, sent_frames: u64) -> u64 {
        let total = match self.frames_per_s {
            None => u64::MAX,
            Some(rate) => {
                let elapsed = u128::from(now_ns.saturating_sub(self.start_ns));
                (elapsed * u128::from(rate) / 1_000_000_000) as u64 + 1
            }
        };
        total.min(self.limit_frames).saturating_sub(sent_frames)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_is_kept() {
        let pace = Pace::new(1_000, Some(1_000_000), Some(50));
        assert_eq!(pace.due(1_000, 0), 1);
        assert_eq!(pace.due(11_000, 1), 10);
        assert_eq!(pace.due(11_000, 11), 0);
        assert_eq!(pace.due(1_000_000_000, 11), 39);
        assert_eq!(Pace::new(0, None, None).due(0, 5), u64::MAX - 5);
    }
}
