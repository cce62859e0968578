//! A port with a host and a tracker on it.

use crate::host::Host;
use crate::now_ns;
use crate::packet;
use crate::port::{Port, PortConfig};
use crate::track::Tracker;
use anyhow::{Context, bail};
use memif::{RxBurst, RxFrame};
use std::net::IpAddr;
use std::time::{Duration, Instant};
use wire::Mac;

/// Most frames that are taken at a stroke.
const BURST_FRAMES: usize = 128;
const FRAME_MAX_BYTES: usize = 65_536;
const LINE_BYTES: usize = 64;
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// One end of the traffic. All is done by [`poll`](Self::poll), on the caller's thread.
#[derive(Debug)]
pub struct Endpoint {
    /// The connection.
    pub port: Port,
    /// Who it is.
    pub host: Host,
    /// What came in.
    pub tracker: Tracker,
    burst: RxBurst,
    buffer: Box<[u8]>,
    /// Where the IP header of what is tracked begins.
    l3: usize,
    /// Frames whose number has one of these bits are believed by their headers.
    believed_mask: u32,
    others: u64,
    replies_lost: u64,
}

impl Endpoint {
    /// Connects; waits for the peer up to `patience`.
    ///
    /// # Errors
    /// The namespace or the socket cannot be reached in time.
    pub fn open(
        config: &PortConfig,
        host: Host,
        latency_every: u32,
        patience: Duration,
    ) -> anyhow::Result<Self> {
        let port = Port::open(config, patience)?;
        Ok(Self::new(port, host, latency_every))
    }

    /// On an open port.
    #[must_use]
    pub fn new(port: Port, host: Host, latency_every: u32) -> Self {
        Self {
            l3: host.l3(),
            believed_mask: 0,
            port,
            host,
            tracker: Tracker::new(latency_every),
            burst: RxBurst::new(BURST_FRAMES),
            buffer: vec![0; FRAME_MAX_BYTES].into_boxed_slice(),
            others: 0,
            replies_lost: 0,
        }
    }

    /// Verifies all bytes only of frames whose number is a multiple of `every` (rounded up to a
    /// power of two). All are copied out of the ring.
    pub fn verify_every(&mut self, every: u32) {
        self.believed_mask = every.max(1).next_power_of_two() - 1;
    }

    /// Tracks what comes inside a tunnel: `outer_bytes` in front of the frames are passed over.
    pub fn unwrap(&mut self, outer_bytes: usize) {
        self.l3 = self.host.l3() + outer_bytes;
    }

    /// Frames that were no generator's.
    #[must_use]
    pub fn others(&self) -> u64 {
        self.others
    }

    /// Takes one burst from each queue, tracks and answers; the number of frames taken.
    ///
    /// # Errors
    /// The peer broke memif's rules, or the connection cannot be made again.
    #[inline]
    pub fn poll(&mut self) -> anyhow::Result<usize> {
        let mut taken = 0;
        for index in 0..self.port.rx_queues() {
            match self.poll_queue(index) {
                Ok(frames) => taken += frames,
                Err(violation) => {
                    let socket = self.port.name();
                    return Err(violation).with_context(|| format!("receiving from {socket}"));
                }
            }
        }
        Ok(taken)
    }

    #[inline]
    fn poll_queue(&mut self, index: usize) -> Result<usize, memif::Violation> {
        let Some(queue) = self.port.rx(index) else { return Ok(0) };
        self.burst.clear();
        let frames = queue.claim(BURST_FRAMES, &mut self.burst)?;
        if frames == 0 {
            return Ok(0);
        }
        let now = now_ns();
        let mut done = 0;
        while done < frames {
            let (tracked, other) = self.track(index, done, now);
            done += tracked;
            if let Some(bytes) = other {
                self.answer(bytes)?;
                done += 1;
            }
        }
        let slots = self.burst.frames().iter().fold(0u16, |sum, f| sum.wrapping_add(f.n_slots));
        if let Some(queue) = self.port.rx(index) {
            queue.release(slots);
        }
        Ok(frames)
    }

    /// Copies and tracks the burst's frames from this one on, up to the first that is no generator's:
    /// its length, once it is in the buffer. Returns how many were tracked.
    fn track(&mut self, index: usize, from: usize, now: u64) -> (usize, Option<usize>) {
        let Self { port, burst, buffer, tracker, l3, believed_mask, others, .. } = self;
        let frames = burst.frames().get(from..).unwrap_or(&[]);
        let Some(queue) = port.rx(index) else { return (frames.len(), None) };
        for (n, frame) in frames.iter().enumerate() {
            if let Some(next) = frames.get(n + crate::ahead_frames(frame.len_bytes)) {
                fetch(burst, next);
            }
            let Some(bytes) = queue.copy_to(burst, frame, buffer) else {
                *others += 1;
                continue;
            };
            if !tracker.take(see(&buffer[..bytes], *l3, *believed_mask), bytes, now) {
                return (n, Some(bytes));
            }
        }
        (frames.len(), None)
    }

    #[cold]
    fn answer(&mut self, bytes: usize) -> Result<(), memif::Violation> {
        self.others += 1;
        if let Some(reply) = self.host.handle(&self.buffer[..bytes])
            && !self.port.send_now(reply)?
        {
            self.replies_lost += 1;
        }
        Ok(())
    }

    /// Finds out the MAC of the next hop towards `dst`, polling meanwhile.
    ///
    /// # Errors
    /// Nobody answers in time, or the host has no address of that family.
    pub fn resolve(&mut self, dst: IpAddr, patience: Duration) -> anyhow::Result<Option<Mac>> {
        if self.host.mac().is_none() {
            return Ok(None);
        }
        if self.host.address_for(dst).is_none() {
            bail!("no address of {dst}'s family: give one with --ip");
        }
        let deadline = Instant::now() + patience;
        let mut ask_at = Instant::now();
        loop {
            if let Some(mac) = self.host.resolved(dst) {
                return Ok(Some(mac));
            }
            let now = Instant::now();
            if now >= deadline {
                bail!("nobody answered for the next hop towards {dst} within {patience:?}");
            }
            if now >= ask_at {
                ask_at = now + ASK_AGAIN;
                if let Some(question) = self.host.solicit(dst) {
                    self.port.send_now(question)?;
                }
            }
            self.poll_or_nap()?;
        }
    }

    /// Sends one echo request; false when it could not be sent now (unresolved, ring full, away).
    ///
    /// # Errors
    /// The peer broke memif's rules.
    pub fn send_echo(
        &mut self,
        dst: IpAddr,
        id: u16,
        seq: u16,
        payload_bytes: usize,
    ) -> anyhow::Result<bool> {
        match self.host.echo_request(dst, id, seq, payload_bytes) {
            Some(frame) => Ok(self.port.send_now(frame)?),
            None => Ok(false),
        }
    }

    /// One poll; where there is nothing, a nap of a tenth of a millisecond and a look at the
    /// connection.
    ///
    /// # Errors
    /// As for [`poll`](Self::poll).
    pub fn poll_or_nap(&mut self) -> anyhow::Result<usize> {
        let frames = self.poll()?;
        if frames == 0 {
            self.port.check()?;
            std::thread::sleep(Duration::from_micros(100));
        }
        Ok(frames)
    }
}

/// Fetches the lines of a frame, of which the claim fetched the first two.
#[inline]
fn fetch(burst: &RxBurst, frame: &RxFrame) {
    for seg in burst.segs_of(frame) {
        (2 * LINE_BYTES..seg.len()).step_by(LINE_BYTES).for_each(|at| seg.prefetch(at));
    }
}

/// What a frame is. Those whose number has one of the bits are believed by their headers.
#[inline]
fn see(frame: &[u8], l3: usize, believed_mask: u32) -> packet::Seen {
    match packet::read_header(frame, l3) {
        packet::Seen::Ours { seq, .. } if seq & believed_mask == 0 => packet::read(frame, l3),
        seen => seen,
    }
}
