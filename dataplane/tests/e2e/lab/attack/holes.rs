//! Memory whose pages go away: whoever touches them next, the data plane that is, waits and finds none.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::super::frame;
use super::super::rogue::{BUFFERS_AT, Bodies, Descriptor, M2S_AT, Rogue, S2M_AT};
use super::{Attacker, Live, STEP, pause};

/// Frames of two descriptors: the head lasts, the body is two pages or part of a huge one.
const HEAD_BYTES: u32 = 128;
const BODY_BYTES: u32 = 2 * 4096;
/// Zeroing sixteen huge pages takes the worker a few milliseconds.
const BODIES: u32 = 96;
const HUGE_BODIES: u32 = 16;
/// Of 32 MiB: so many of these that the data plane lets an interface with small rings keep 128 MiB, and
/// the next one's rings have a file of their own.
const KEPT_BODIES: u32 = 4096;
const MOST_KEPT: usize = 3;
/// So seldom that a rate would not tell.
const NOW_AND_THEN: Duration = Duration::from_millis(25);

fn bodies(huge: bool) -> fn(bool) -> Option<Bodies> {
    match huge {
        true => |sealed| Some(Bodies::new(HUGE_BODIES, true, sealed)),
        false => |sealed| Some(Bodies::new(BODIES, false, sealed)),
    }
}

/// A thread that punches all bodies out again and again.
pub(super) struct Puncher {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Puncher {
    fn start(rogue: &Rogue) -> Self {
        let memory = rogue.bodies.as_ref().expect("bodies").again();
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                memory.punch().expect("no seal forbids it");
                // The others on this core fill and empty the rings.
                std::thread::yield_now();
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Puncher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Attacker {
    pub(super) fn holes_sent(&mut self, huge: bool) -> bool {
        let Some(mut live) = self.live(bodies(huge), Self::lay_out_jumbos) else { return false };
        live.punch();
        self.send_jumbos(&mut live);
        self.ended(live)
    }

    pub(super) fn holes_received(&mut self, huge: bool) -> bool {
        let Some(mut live) = self.live(bodies(huge), |_, rogue| {
            let room = rogue.bodies.as_ref().expect("bodies");
            let all: Vec<_> = (0..256).map(|slot| room.descriptor(slot, 2048)).collect();
            rogue.describe(M2S_AT, &all);
        }) else {
            return false;
        };
        live.punch();
        live.advance(M2S_AT);
        self.attract(STEP);
        std::thread::yield_now();
        self.ended(live)
    }

    /// Not between two frames, but at any instant.
    pub(super) fn holes_under_the_copy(&mut self, huge: bool) -> bool {
        let Some(mut live) = self.live(bodies(huge), Self::lay_out_jumbos) else { return false };
        if live.puncher.is_none() {
            live.puncher = Some(Puncher::start(&live.rogue));
        }
        self.send_jumbos(&mut live);
        std::thread::yield_now();
        self.ended(live)
    }

    /// In vain: the kernel refuses, and the connection lasts.
    pub(super) fn sealed_holes(&mut self) -> bool {
        let Some(mut live) = self.live(bodies(false), Self::lay_out_jumbos) else { return false };
        for _ in 0..64 {
            let refused = live.rogue.bodies.as_ref().expect("bodies").punch();
            let refused = refused.map_err(|error| error.kind());
            assert_eq!(refused, Err(std::io::ErrorKind::PermissionDenied), "a hole");
        }
        self.send_jumbos(&mut live);
        assert!(!self.ended(live), "nothing was violated");
        true
    }

    /// All at once, and then nothing for a while.
    pub(super) fn holes_now_and_then(&mut self) -> bool {
        let Some(mut live) = self.live(bodies(true), Self::lay_out_jumbos) else { return false };
        if live.punched.elapsed() > NOW_AND_THEN {
            live.punch();
            live.punched = Instant::now();
            self.send_jumbos(&mut live);
        } else {
            pause();
        }
        self.ended(live)
    }

    /// Each connection has what it may touched, and leaves before it is asked to; until its memory is not
    /// brought in any more.
    pub(super) fn fresh_memory(&mut self) -> bool {
        let Some(rogue) = self.shaken_with(bodies(true)(self.sealed)) else { return false };
        self.lay_out_jumbos(&rogue);
        let mut live = Live::new(rogue);
        let start = Instant::now();
        for _ in 0..4 {
            while !live.advance(S2M_AT) {
                if !live.rogue.is_open() {
                    return true;
                }
                assert!(start.elapsed() < Duration::from_secs(6), "neither sent nor disconnected");
                std::thread::yield_now();
            }
        }
        while self.honest.recv(0).is_some() {}
        true
    }

    /// Has the data plane touch each page of its memory first, hangs up and keeps the file; until no more
    /// of it is let in.
    pub(super) fn kept_memory(&mut self) -> bool {
        let bodies = Bodies::new(KEPT_BODIES, false, self.sealed);
        let Some(rogue) = self.shaken_with(Some(bodies)) else {
            // Else the last connection is on its way out.
            let over = self.kept.len() == MOST_KEPT;
            if over {
                self.kept.clear();
            }
            return over;
        };
        assert!(self.kept.len() < MOST_KEPT, "{MOST_KEPT} files are kept, and another is let in");
        self.lay_out_jumbos(&rogue);
        let mut live = Live::new(rogue);
        let start = Instant::now();
        for _ in 0..3 {
            while !live.advance(S2M_AT) {
                assert!(start.elapsed() < Duration::from_secs(6), "the data plane takes nothing");
                std::thread::yield_now();
            }
        }
        while self.honest.recv(0).is_some() {}
        self.kept.extend(live.rogue.bodies);
        false
    }

    fn send_jumbos(&mut self, live: &mut Live) {
        live.advance(S2M_AT);
        while self.honest.recv(0).is_some() {}
    }

    /// Jumbo frames for the honest pod: one head for all, a body for each.
    fn lay_out_jumbos(&self, rogue: &Rogue) {
        let (from, to) = ((self.victim.ip4(), 1), (self.honest.at.ip4(), 2));
        let payload = vec![0; (HEAD_BYTES + BODY_BYTES) as usize - 42];
        let mut packet = frame::udp(from, to, &payload);
        packet[26..28].fill(0);
        let jumbo = frame::ethernet(self.victim.gateway_mac, self.victim.mac, 0x0800, &packet);
        rogue.put(BUFFERS_AT.into(), &jumbo[..HEAD_BYTES as usize]);
        let head = Descriptor { flags: 1, length: HEAD_BYTES, ..Descriptor::GOOD };
        let bodies = rogue.bodies.as_ref().expect("bodies");
        let all: Vec<_> = (0..128).flat_map(|n| [head, bodies.descriptor(n, BODY_BYTES)]).collect();
        rogue.describe(S2M_AT, &all);
    }
}

impl Live {
    fn punch(&self) {
        self.rogue.bodies.as_ref().expect("bodies").punch().expect("no seal forbids it");
    }
}
