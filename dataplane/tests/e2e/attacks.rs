//! Every attack of the threat model, again and again, against the data plane itself, while two
//! honest pods on the same worker exchange frames at half of what that worker carries.
//!
//! They lose no frame, and their latency stays within twice of what it is without the attack. The
//! attacks run with sealed memory required and not required. `make attacks` runs each for ten
//! million frames; without that, a run is short and says so.

use std::io::Write;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use crate::lab::attack::{ATTACKS, Attack, Attacker};
use crate::lab::load::{Load, Slice, favour_workers, go_first, stay_on_the_first_core};
use crate::lab::memif::{Listening, Shape};
use crate::lab::netns::Netns;
use crate::lab::node::Start;
use crate::lab::{Footprint, Lab, MemifPod, Node, Realm, wait};

/// Frames of the bystanders during each attack.
const FRAMES: &str = "BOWLINE_ATTACK_FRAMES";
const SHORT: u64 = 30_000;
/// Only attacks with this in their name.
const ONLY: &str = "BOWLINE_ATTACK";
/// Noise only adds to a latency: so many slices are measured before a slow one is believed.
const MOST_SLICES: usize = 24;

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
            let _ = outbox.send(Slice { frames: 0, lost: 0, p99_us: 0, rate: capacity });
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

fn world(sealed: bool) -> (Node, Attacker, Bystanders) {
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
    (node, Attacker::new(victim, honest, sealed), Bystanders::start(Load::new(a, b)))
}

/// The lower quartile of the slices' 99th percentiles.
fn p99_us(slices: &[Slice]) -> u32 {
    let mut all: Vec<_> = slices.iter().map(|slice| slice.p99_us).collect();
    all.sort_unstable();
    all[all.len() / 4]
}

/// Looking at `calm` and `attacked` slices by turns. Returns the line for the report.
fn endure(
    attack: &Attack,
    attacker: &mut Attacker,
    bystanders: &Bystanders,
    frames: u64,
) -> String {
    let time = Duration::from_millis(if frames > SHORT { 1000 } else { 150 });
    let (mut calm, mut attacked, mut rounds) = (Vec::new(), Vec::new(), 0_u64);
    loop {
        calm.push(bystanders.slice(time, || std::thread::sleep(Duration::from_millis(1))));
        let slice = bystanders.slice(time, || rounds += u64::from((attack.step)(attacker)));
        attacked.push(slice);
        let lost: u64 = calm.iter().chain(&attacked).map(|slice| slice.lost).sum();
        assert_eq!(lost, 0, "bystanders lost frames beside `{}`", attack.name);
        let passed: u64 = attacked.iter().map(|slice| slice.frames).sum();
        let (before, during) = (p99_us(&calm), p99_us(&attacked));
        let enough = passed >= frames && rounds > 0;
        let most = MOST_SLICES.max(frames as usize / 50_000);
        if (enough && during <= 2 * before) || attacked.len() >= most {
            let line = format!(
                "{:36} {rounds:6} rounds, {passed:9} frames beside it, p99 {before} → {during} µs",
                attack.name
            );
            assert!(rounds > 0 && during <= 2 * before, "{line}");
            return line;
        }
    }
}

fn endure_all(sealed: bool) {
    let _lab = Lab::new();
    let frames = wanted_frames();
    let (node, mut attacker, bystanders) = world(sealed);
    let pid = node.process.borrow().pid();
    let mut before = None;
    let only = std::env::var(ONLY).unwrap_or_default();
    let attacks = ATTACKS.iter().filter(|attack| attack.name.contains(&only));
    for attack in attacks.filter(|attack| !(sealed && attack.unsealed_only)) {
        let line = endure(attack, &mut attacker, &bystanders, frames);
        println!("{line}");
        attacker.leave();
        wait("the last connection is over", 10.0, || {
            (node.link(&attacker.victim.id) != api::interface_status::Link::Up).then_some(())
        });
        let said = node.process.borrow().output();
        if let Some(verdict) = attack.verdict {
            assert!(said.contains(verdict), "`{}` is not called {verdict}:\n{said}", attack.name);
        }
        // The first attack has warmed everything up.
        before.get_or_insert_with(|| Footprint::of(pid));
    }
    before.expect("at least one attack").is_kept();
    for honest in bystanders.ids.iter().chain([&attacker.honest.at.id]) {
        let all = node.actual().interfaces;
        let status = all.iter().find(|i| i.id == *honest).expect("an honest pod's interface");
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
