//! Every attack of the threat model, again and again, against the data plane itself, while two
//! honest pods on the same worker exchange frames at half of what that worker carries.
//!
//! They lose no frame, and their latency stays within twice of what it is without the attack. The
//! attacks run with sealed memory required and not required. `make attacks` runs each for ten
//! million frames; without that, a run is short and says so.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::lab::attack::{ATTACKS, Attack, Attacker, Memory};
use crate::lab::load::{Load, Slice, favour_workers, go_first, stay_on_the_first_core};
use crate::lab::memif::{Listening, Shape};
use crate::lab::netns::Netns;
use crate::lab::node::Start;
use crate::lab::pages::HugePages;
use crate::lab::strain::{Strain, Watch};
use crate::lab::{Footprint, Lab, MemifPod, Node, Realm, wait};

/// Frames of the bystanders during each attack.
const FRAMES: &str = "BOWLINE_ATTACK_FRAMES";
const SHORT: u64 = 30_000;
/// What was measured, beside the table that is printed.
const REPORT: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/../attacks.json");
/// Only attacks with this in their name.
const ONLY: &str = "BOWLINE_ATTACK";
/// Slices of either kind that are measured at least, and how many before a slow one is believed:
/// noise only adds to a latency.
const LEAST_SLICES: usize = 3;
const MOST_SLICES: usize = 24;
/// Between two pods of a convict, who would have to wait longer each time.
const NEXT_POD_AFTER: Duration = Duration::from_secs(1);
/// Slices altogether, for each that is measured: after some attacks the next needs another pod.
const WAITS: usize = 40;

fn wanted_frames() -> u64 {
    let Some(frames) = std::env::var(FRAMES).ok().and_then(|n| n.parse().ok()) else {
        // Not by eprintln!, which the test harness keeps to itself.
        let _ = writeln!(
            std::io::stderr(),
            "SHORT RUN: {SHORT} bystander frames for each attack; `make attacks` sends 10000000"
        );
        return SHORT;
    };
    frames
}

/// The bystanders, on a thread that goes before all others.
struct Bystanders {
    orders: Sender<(f64, Duration)>,
    slices: Receiver<Slice>,
    ids: [String; 2],
    half: f64,
}

impl Bystanders {
    fn start(mut load: Load) -> Self {
        let (orders, inbox) = channel();
        let (outbox, slices) = channel();
        let ids = load.ids();
        std::thread::spawn(move || {
            go_first();
            let best = (0..5).map(|_| load.capacity(Duration::from_millis(100)));
            let capacity = best.fold(0.0, f64::max);
            let _ = outbox.send(Slice { rate: capacity, ..Slice::default() });
            while let Ok((rate, time)) = inbox.recv() {
                let _ = outbox.send(load.run(rate, time));
            }
        });
        let capacity = slices.recv().expect("the bystanders' capacity").rate;
        println!("one worker carries {:.2} Mpps; half of that goes on", capacity / 1e6);
        Self { orders, slices, ids, half: capacity / 2.0 }
    }

    /// A slice of traffic, and what is done meanwhile.
    fn slice(&self, time: Duration, mut meanwhile: impl FnMut()) -> Slice {
        self.orders.send((self.half, time)).expect("the bystanders' thread");
        loop {
            match self.slices.try_recv() {
                Ok(slice) => return slice,
                Err(std::sync::mpsc::TryRecvError::Empty) => meanwhile(),
                Err(error) => panic!("the bystanders' thread: {error}"),
            }
        }
    }
}

fn world(sealed: bool) -> (Node, Realm, Attacker, Bystanders) {
    let start = Start { workers: 1, more: ["--poll", "busy"].map(Into::into).into(), uplink: None };
    let mut node = Node::start(Netns::new("node"), start);
    favour_workers(node.process.borrow().pid());
    stay_on_the_first_core(0);
    let blue = Realm::new("blue", 56, 9000);
    node.add_realm(&blue);
    let a = MemifPod::new(&mut node, &blue, 20);
    let b = MemifPod::new(&mut node, &blue, 21);
    let honest = MemifPod::new(&mut node, &blue, 22);
    let shape = Shape { sealed, ..Shape::default() };
    let victim = Listening::new(&mut node, &blue, 30, shape);
    (node, blue, Attacker::new(victim, honest, sealed), Bystanders::start(Load::new(a, b)))
}

/// Slices of one kind.
#[derive(Default)]
struct Seen {
    slices: Vec<Slice>,
    strain: Strain,
}

impl Seen {
    fn add(&mut self, slice: Slice, strain: Strain) {
        self.slices.push(slice);
        self.strain += strain;
    }

    fn frames(&self) -> u64 {
        self.slices.iter().map(|slice| slice.frames).sum()
    }

    /// The median of the slices' 99th percentiles.
    fn p99_us(&self) -> u32 {
        let mut all: Vec<_> = self.slices.iter().map(|slice| slice.p99_us).collect();
        all.sort_unstable();
        all.get(all.len() / 2).copied().unwrap_or(0)
    }

    fn longest_us(&self) -> u32 {
        self.slices.iter().map(|slice| slice.longest_us).max().unwrap_or(0)
    }

    fn report(&self) -> serde_json::Value {
        let us = |time: Duration| time.as_micros() as u64;
        json!({
            "slices": self.slices.len(),
            "frames": self.frames(),
            "lost": self.slices.iter().map(|slice| slice.lost).sum::<u64>(),
            "p99_us": self.p99_us(),
            "longest_us": self.longest_us(),
            "worker_page_faults": self.strain.faults,
            "worker_sleeps": self.strain.sleeps,
            "worker_asleep_us": us(self.strain.asleep),
            "worker_displaced_us": us(self.strain.displaced),
        })
    }
}

/// How one attack was endured.
struct Row {
    name: &'static str,
    sealed: bool,
    rounds: u64,
    calm: Seen,
    attacked: Seen,
    /// What the data plane said of its peer.
    heard: BTreeSet<String>,
}

impl Row {
    fn endured(&self) -> bool {
        self.rounds > 0 && self.attacked.p99_us() <= 2 * self.calm.p99_us()
    }

    fn hear(&mut self, node: &Node, attacker: &Attacker) {
        let status = node.status(&attacker.victim.id).expect("the attacked interface");
        self.heard.extend([status.last_violation, status.last_refusal]);
    }

    fn report(&self) -> serde_json::Value {
        json!({
            "attack": self.name,
            "sealed": self.sealed,
            "rounds": self.rounds,
            "calm": self.calm.report(),
            "attacked": self.attacked.report(),
        })
    }
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, rounds, calm, attacked, .. } = self;
        let strain = attacked.strain;
        write!(
            f,
            "{name:36} {rounds:6} rounds {:9} frames  p99 {:5} → {:5} µs  longest {:6} → {:6} µs  \
             worker: {:6} faults, asleep {:5.1} ms in {:4}, displaced {:5.1} ms",
            attacked.frames(),
            calm.p99_us(),
            attacked.p99_us(),
            calm.longest_us(),
            attacked.longest_us(),
            strain.faults,
            strain.asleep.as_secs_f64() * 1e3,
            strain.sleeps,
            strain.displaced.as_secs_f64() * 1e3,
        )
    }
}

/// All rows of this process, written anew after each: a run that fails leaves what it has measured.
fn keep(row: &Row) {
    static ROWS: Mutex<Vec<serde_json::Value>> = Mutex::new(Vec::new());
    let mut rows = ROWS.lock().unwrap_or_else(PoisonError::into_inner);
    rows.push(row.report());
    let text = serde_json::to_string_pretty(&*rows).expect("JSON");
    std::fs::write(REPORT, text).expect("the target folder");
}

fn slice_time(attack: &Attack, frames: u64) -> Duration {
    Duration::from_millis(match frames {
        // Part of the second for which whoever costs time is kept away, after what it may cost before
        // that: one touch of a page, or a few signals.
        frames if frames <= SHORT && attack.on == Memory::Unsealed => 300,
        frames if frames <= SHORT && attack.verdict == Some("slow_signals") => 300,
        frames if frames <= SHORT => 60,
        frames if frames < 1_000_000 => 150,
        _ => 500,
    })
}

/// Looks at calm and attacked slices by turns, until enough frames have passed in the latter.
fn endure(
    attack: &Attack,
    (node, realm): (&mut Node, &Realm),
    attacker: &mut Attacker,
    bystanders: &Bystanders,
    worker: &Watch,
    frames: u64,
) -> Row {
    let (time, most) = (slice_time(attack, frames), MOST_SLICES.max(frames as usize / 50_000));
    let (calm, attacked, heard) = Default::default();
    let (name, sealed) = (attack.name, attacker.sealed);
    let mut row = Row { name, sealed, rounds: 0, calm, attacked, heard };
    let mut renewed = Instant::now();
    for _ in 0..WAITS * most {
        attacker.rest();
        let start = worker.look();
        let before = bystanders.slice(time, || std::thread::sleep(Duration::from_millis(1)));
        let middle = worker.look();
        let during = bystanders.slice(time, || row.rounds += u64::from((attack.step)(attacker)));
        let strains = [middle.since(&start), worker.look().since(&middle)];
        let lost = before.lost + during.lost;
        row.hear(node, attacker);
        assert_eq!(lost, 0, "bystanders lost frames; calm, then attacked: {strains:?}\n{row}");
        if attacker.has_acted() {
            row.calm.add(before, strains[0]);
            row.attacked.add(during, strains[1]);
        } else if renewed.elapsed() >= NEXT_POD_AFTER {
            attacker.renew(node, realm);
            renewed = Instant::now();
        }
        let (slices, passed) = (row.attacked.slices.len(), row.attacked.frames());
        let enough = slices >= LEAST_SLICES && passed >= frames;
        if enough && row.endured() {
            return row;
        }
        assert!(slices < most, "not endured: {row}");
    }
    panic!("too few slices in which it did anything: {row}");
}

fn endure_all(sealed: bool) {
    let _lab = Lab::new();
    // For the attackers' memory, and as many again while one connection follows another.
    let _pages = HugePages::reserve(64);
    let frames = wanted_frames();
    let (mut node, blue, mut attacker, bystanders) = world(sealed);
    let pid = node.process.borrow().pid();
    let worker = Watch::worker(pid);
    let mut footprint = None;
    let only = std::env::var(ONLY).unwrap_or_default();
    let attacks = ATTACKS.iter().filter(|attack| attack.name.contains(&only));
    for attack in attacks.filter(|attack| attack.on.is(sealed)) {
        // A pod that nobody blames yet.
        attacker.renew(&mut node, &blue);
        let place = (&mut node, &blue);
        let mut row = endure(attack, place, &mut attacker, &bystanders, &worker, frames);
        println!("{row}");
        keep(&row);
        attacker.leave();
        wait("the last connection is over", 10.0, || {
            (node.link(&attacker.victim.id) != api::interface_status::Link::Up).then_some(())
        });
        row.hear(&node, &attacker);
        if let Some(verdict) = attack.verdict {
            let heard = row.heard.iter().any(|said| said.contains(verdict));
            assert!(heard, "`{}` is not called {verdict}: {:?}", attack.name, row.heard);
        }
        // The first attack has warmed everything up.
        footprint.get_or_insert_with(|| Footprint::of(pid));
    }
    footprint.expect("at least one attack").is_kept();
    for honest in bystanders.ids.iter().chain([&attacker.honest.at.id]) {
        let status = node.status(honest).expect("an honest pod's interface");
        assert_eq!((status.violations, status.connects), (0, 1), "{honest} was blamed");
    }
}

#[test]
fn bystanders_endure_every_attack_with_sealed_memory() {
    endure_all(true);
}

#[test]
fn bystanders_endure_every_attack_with_unsealed_memory() {
    endure_all(false);
}
