//! An idle node is idle.

use std::fs;
use std::time::Instant;

use crate::lab::memif::Shape;
use crate::lab::{Lab, MemifPod, Node, Realm, TapPod, wait};

/// User and system time of a process so far, in seconds.
fn cpu_s(pid: i32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a live process");
    // Behind the name, which may have spaces: state is field 3, utime and stime are 14 and 15.
    let rest = stat.rsplit(')').next().expect("a name in parentheses");
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks: f64 = [11, 12].map(|n: usize| fields[n].parse::<f64>().expect("ticks")).iter().sum();
    ticks / 100.0
}

#[test]
fn a_hundred_idle_pods_cost_next_to_nothing() {
    let _lab = Lab::new();
    let mut node = Node::local(1);
    let blue = Realm::new("blue", 56, 1500);
    node.add_realm(&blue);
    let small = Shape { log2_ring: 6, ..Shape::default() };
    let taps: Vec<TapPod> = (100..160).map(|n| TapPod::new(&mut node, &blue, n)).collect();
    let memifs: Vec<MemifPod> =
        (200..240).map(|n| MemifPod::with(&mut node, &blue, n, small)).collect();
    assert_eq!(taps.len() + memifs.len(), 100);
    // The pods' stacks announce themselves for some seconds.
    let mut before = (node.counters().node, Instant::now());
    wait("a second without packets", 30.0, || {
        let now = node.counters().node;
        if now != before.0 {
            before = (now, Instant::now());
        }
        (before.1.elapsed().as_secs_f64() > 1.0).then_some(())
    });
    let pid = node.process.borrow().pid();
    let (cpu, start) = (cpu_s(pid), Instant::now());
    wait("five seconds", 6.0, || (start.elapsed().as_secs_f64() >= 5.0).then_some(()));
    let share = (cpu_s(pid) - cpu) / start.elapsed().as_secs_f64();
    println!("100 idle pods cost {:.1} % of a core", share * 100.0);
    assert!(share <= 0.03, "{:.1} % of a core", share * 100.0);
    assert!(taps[0].pings(taps[59].ip4(), 56), "and it wakes up");
}
