//! Traffic between two honest pods at a chosen rate, with every frame accounted for and timed.

use std::time::{Duration, Instant};

use super::MemifPod;

/// Frames that are sent together.
const BURST: u64 = 128;
/// Under way at most: less than the receiver's ring, so that a late reader loses nothing.
const WINDOW: u64 = 512;
/// Send times are kept for so many frames.
const TIMES: usize = 4096;
/// Where a frame's number stands: behind Ethernet, IPv4 and UDP.
const NUMBER_AT: usize = 42;
/// Latencies are counted by the microsecond; the last count is for all longer ones.
const MICROSECONDS: usize = 20_000;
/// Others need this core as well: so long they have it, after so long that they had not.
const REST: Duration = Duration::from_micros(500);
const AT_WORK: Duration = Duration::from_millis(1);
/// After so long without a rest there is one although frames are under way: whoever the worker waits for
/// may need this core, and a thread that goes before all others would keep it from him.
const STALLED: Duration = Duration::from_millis(3);
/// How long a frame may be under way before it counts as lost; what only comes late shows as latency.
const PATIENCE: Duration = Duration::from_secs(3);

/// Two pods and what has passed between them.
pub struct Load {
    from: MemifPod,
    to: MemifPod,
    frame: Vec<u8>,
    sent: u64,
    received: u64,
    sent_at: Box<[Instant]>,
    latencies: Vec<u32>,
    longest: Duration,
}

/// What one slice of time came to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Slice {
    /// Frames received.
    pub frames: u64,
    /// Frames that never came.
    pub lost: u64,
    /// 99 of 100 frames took no longer.
    pub p99_us: u32,
    /// The slowest frame's time.
    pub longest_us: u32,
    /// Frames per second.
    pub rate: f64,
}

impl Load {
    /// Frames of 64 bytes from one pod to the other.
    pub fn new(from: MemifPod, to: MemifPod) -> Self {
        let mut frame = from.datagram(1, (to.at.ip4(), 2), &[0; 22]);
        // No UDP checksum (RFC 768): the number changes with every frame.
        frame[40..NUMBER_AT].fill(0);
        let sent_at = vec![Instant::now(); TIMES].into_boxed_slice();
        let latencies = vec![0; MICROSECONDS + 1];
        let longest = Duration::ZERO;
        Self { from, to, frame, sent: 0, received: 0, sent_at, latencies, longest }
    }

    /// The ids of the two pods' interfaces.
    pub fn ids(&self) -> [String; 2] {
        [self.from.at.id.clone(), self.to.at.id.clone()]
    }

    /// Frames per second that the worker carries at most.
    pub fn capacity(&mut self, time: Duration) -> f64 {
        self.run(f64::INFINITY, time).rate
    }

    /// Sends at a rate for a time, and waits for what is under way.
    pub fn run(&mut self, rate: f64, time: Duration) -> Slice {
        self.latencies.fill(0);
        self.longest = Duration::ZERO;
        let (start, sent, received) = (Instant::now(), self.sent, self.received);
        let (mut last, mut rested) = (start, start);
        loop {
            let now = Instant::now();
            let elapsed = now - start;
            let tired = now - rested > AT_WORK;
            let over = elapsed >= time;
            let due = if tired || over { 0.0 } else { elapsed.as_secs_f64() * rate };
            if self.sent - sent + BURST <= due as u64 {
                self.send(now);
            }
            let idle = self.sent == self.received;
            if self.receive() > 0 {
                last = now;
            } else if (over && idle) || (!idle && last.elapsed() > PATIENCE) {
                break;
            } else if tired && (idle || now - rested > STALLED) {
                std::thread::sleep(REST);
                rested = Instant::now();
            }
        }
        let (frames, seconds) = (self.received - received, start.elapsed().as_secs_f64());
        let lost = self.sent - sent - frames;
        // What is lost is no longer waited for.
        self.received = self.sent;
        let rate = frames as f64 / seconds.min(time.as_secs_f64());
        let longest_us = self.longest.as_micros() as u32;
        Slice { frames, lost, p99_us: self.percentile(0.99), longest_us, rate }
    }

    fn send(&mut self, now: Instant) {
        for _ in 0..BURST.min(WINDOW - (self.sent - self.received).min(WINDOW)) {
            self.frame[NUMBER_AT..NUMBER_AT + 8].copy_from_slice(&self.sent.to_be_bytes());
            if self.from.queue_up(0, [&self.frame[..]]) == 0 {
                break;
            }
            self.sent_at[self.sent as usize % TIMES] = now;
            self.sent += 1;
        }
        self.from.flush(0);
    }

    fn receive(&mut self) -> u64 {
        let before = self.received;
        let now = Instant::now();
        while let Some(frame) = self.to.recv(0) {
            if frame.len() < NUMBER_AT + 8 || frame[23] != 17 {
                continue;
            }
            let number = frame[NUMBER_AT..NUMBER_AT + 8].try_into().map(u64::from_be_bytes);
            let number = number.expect("eight bytes");
            assert!(number < self.sent, "frame {number} was never sent");
            let took = now.saturating_duration_since(self.sent_at[number as usize % TIMES]);
            self.latencies[(took.as_micros() as usize).min(MICROSECONDS)] += 1;
            self.longest = self.longest.max(took);
            self.received += 1;
        }
        self.received - before
    }

    fn percentile(&self, share: f64) -> u32 {
        let total: u64 = self.latencies.iter().map(|&n| u64::from(n)).sum();
        let mut left = (total as f64 * share) as u64;
        let at = self.latencies.iter().position(|&n| {
            let here = u64::from(n) > left;
            left = left.saturating_sub(u64::from(n));
            here
        });
        at.unwrap_or(MICROSECONDS) as u32
    }
}

/// The calling thread goes before all others on the first core.
pub fn go_first() {
    stay_on_the_first_core(0);
    super::sys::set_real_time().expect("root may");
}

/// A thread, and those that it makes from now on, leave the workers' cores alone. 0: the caller.
pub fn stay_on_the_first_core(tid: i32) {
    let mut set = nix::sched::CpuSet::new();
    set.set(0).expect("a core");
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(tid), &set).expect("root may");
}

/// Gives the workers of a process their cores, as far as that is up to us: on a node they have them
/// alone.
pub fn favour_workers(pid: i32) {
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).expect("a process").flatten() {
        let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        let tid = task.file_name().to_string_lossy().parse().expect("a number");
        if name.starts_with("worker") {
            super::sys::set_nice(tid, -20).expect("root may");
        } else {
            stay_on_the_first_core(tid);
        }
    }
}
