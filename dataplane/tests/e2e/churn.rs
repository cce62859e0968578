//! Thousands of comings and goings leave nothing behind in the data plane.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::lab::memif::{Listening, Shape};
use crate::lab::rogue::Rogue;
use crate::lab::{End, Footprint, Lab, MemifPod, Node, Realm, wait};

/// Interfaces that are attacked at once: each listener lets in ten strangers a second.
const LISTENERS: u16 = 20;
const EACH: usize = 50;

fn world() -> (Node, Realm) {
    let mut node = Node::local(1);
    let blue = Realm::new("blue", 56, 1500);
    node.add_realm(&blue);
    (node, blue)
}

/// Comes, says something or nothing, and goes or is thrown out.
fn pester(pod: &Listening, times: usize) {
    for n in 0..times {
        let rogue = Rogue::connect(&pod.netns, true);
        match n % 3 {
            0 => {}
            1 => {
                rogue.heard();
                rogue.init();
            }
            _ => {
                rogue.heard();
                rogue.send_bytes(&[0x77; 128], &[]);
                rogue.closed();
            }
        }
    }
}

#[test]
fn a_thousand_hostile_connects_leave_nothing_behind() {
    let _lab = Lab::new();
    let (mut node, blue) = world();
    let pods: Vec<_> = (0..LISTENERS)
        .map(|n| Listening::new(&mut node, &blue, 30 + n, Shape::default()))
        .collect();
    pester(&pods[0], 6);
    let before = Footprint::of(node.process.borrow().pid());
    std::thread::scope(|scope| {
        for pod in &pods {
            scope.spawn(|| pester(pod, EACH));
        }
    });
    before.is_kept();
}

#[test]
fn a_thousand_reconnects_leave_nothing_behind() {
    let _lab = Lab::new();
    let (mut node, blue) = world();
    let mut sender = MemifPod::new(&mut node, &blue, 20);
    let pod = Listening::new(&mut node, &blue, 21, Shape::default());
    let reconnect = |times: usize| {
        for _ in 0..times {
            // Busy until the worker has given the last connection's queues back.
            wait("the interface is free again", 5.0, || Rogue::try_shaken(&pod.netns, true));
        }
    };
    reconnect(10);
    let gone = || {
        wait("the last connection is over", 5.0, || {
            (node.link(&pod.id) != api::interface_status::Link::Up).then_some(())
        });
    };
    gone();
    let before = Footprint::of(node.process.borrow().pid());
    reconnect(1000);
    gone();
    before.is_kept();
    let id = pod.id.clone();
    let mut honest = pod.connect();
    node.wait_up(&id);
    let datagram = sender.datagram(1, (honest.at.ip4(), 2), b"still there");
    sender.inject(&datagram);
    honest.wait_marked(b"still there", 1);
}

/// A peer that stands still costs its own frames, and nothing piles up.
#[test]
fn a_peer_that_is_stopped_for_ten_seconds_costs_nothing() {
    let _lab = Lab::new();
    let (mut node, blue) = world();
    let mut sender = MemifPod::new(&mut node, &blue, 20);
    let pod = Listening::new(&mut node, &blue, 21, Shape::default());
    let testpmd = crate::testpmd::testpmd(&pod, "5tswap", false);
    crate::testpmd::ready(&node, &mut sender, &pod);
    let before = Footprint::of(node.process.borrow().pid());
    testpmd.signal(Signal::SIGSTOP);
    let stopped = Instant::now();
    let datagram = sender.datagram(7, (pod.ip4(), 8), &[9; 500]);
    let mut sent = 0_u64;
    while stopped.elapsed() < Duration::from_secs(10) {
        sent += u64::from(sender.try_send(0, &datagram));
        sender.take();
        std::thread::sleep(Duration::from_micros(200));
    }
    before.is_kept();
    assert_eq!(node.link(&pod.id), api::interface_status::Link::Up);
    let full = crate::lab::node::tx_drops(&node.account(&pod.id), "ring_full");
    assert!(sent > 5000 && full > sent - 5000, "{full} of {sent} frames dropped");
    testpmd.signal(Signal::SIGCONT);
    crate::testpmd::ready(&node, &mut sender, &pod);
}
