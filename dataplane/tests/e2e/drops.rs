//! Why packets that were handed to an interface did not leave: each reason is caused by a test.
//! Those of received packets are caused in `src/path/tests/catalogue.rs`.

use dataplane::path::TxDropReason;

use crate::lab::memif::{Listening, Shape};
use crate::lab::node::{drops, tx_drops};
use crate::lab::rogue::{Descriptor, M2S_AT, Rogue};
use crate::lab::{End, Lab, MemifPod, Node, Proc, Realm, wait};

/// The test that causes a reason: its file and name. A new reason does not compile until it has one.
fn cause_of(reason: TxDropReason) -> (&'static str, &'static str) {
    match reason {
        TxDropReason::RingFull => {
            ("tests/e2e/stall.rs", "a_stalled_receiver_costs_the_others_nothing")
        }
        TxDropReason::PortDown => ("tests/e2e/drops.rs", "nobody_there_is_counted"),
        TxDropReason::NoBuffer => ("src/port/eth.rs", "a_frame_without_a_buffer_is_counted"),
        TxDropReason::FrameTooBig => ("tests/e2e/drops.rs", "more_than_a_ring_is_counted"),
        TxDropReason::KernelRefused => ("src/port/vnet.rs", "the_kernels_refusals_have_reasons"),
        TxDropReason::HandoverFull => ("tests/e2e/drops.rs", "more_than_workers_lend_is_counted"),
        TxDropReason::PeerViolation => ("tests/e2e/drops.rs", "a_broken_ring_is_counted"),
        TxDropReason::SplitImpossible => {
            ("src/path/split.rs", "what_contradicts_itself_is_not_cut")
        }
    }
}

#[test]
fn every_reason_has_a_test() {
    for &reason in TxDropReason::ALL {
        let (file, name) = cause_of(reason);
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        let text = std::fs::read_to_string(&path).expect(file);
        let at = text.find(&format!("fn {name}()"));
        let at = at.unwrap_or_else(|| panic!("{reason:?}: {file} has no {name}"));
        assert!(text[..at].trim_end().ends_with("#[test]"), "{name} is no test");
    }
}

fn node_with_blue(workers: u32) -> (Node, Realm) {
    let mut node = Node::local(workers);
    let blue = Realm::new("blue", 56, 9000);
    node.add_realm(&blue);
    (node, blue)
}

/// A memif whose client has not come, or has left.
#[test]
fn nobody_there_is_counted() {
    let _lab = Lab::new();
    let (mut node, blue) = node_with_blue(1);
    let mut a = MemifPod::new(&mut node, &blue, 20);
    let b = Listening::new(&mut node, &blue, 21, Shape::default());
    let datagram = a.datagram(1, (Realm::ip4(21), 2), b"anybody there?");
    a.inject(&datagram);
    wait("the drop", 5.0, || (tx_drops(&node.account(&b.id), "port_down") == 1).then_some(()));
    let mut b = b.connect();
    node.wait_up(&b.at.id);
    a.inject(&datagram);
    b.wait_marked(b"anybody there?", 1);
    assert_eq!(tx_drops(&node.account(&b.at.id), "port_down"), 1);
}

/// A ring of 64 buffers of 64 bytes holds no frame of 8,042.
#[test]
fn more_than_a_ring_is_counted() {
    let _lab = Lab::new();
    let (mut node, blue) = node_with_blue(1);
    let mut a = MemifPod::new(&mut node, &blue, 20);
    let small = Shape { log2_ring: 6, buffer_bytes: 64, ..Shape::default() };
    let mut b = MemifPod::with(&mut node, &blue, 21, small);
    let large = a.datagram(1, (b.at.ip4(), 2), &[7; 8000]);
    a.inject(&large);
    wait("the drop", 5.0, || {
        (tx_drops(&node.account(&b.at.id), "frame_too_big") == 1).then_some(())
    });
    let little = a.datagram(1, (b.at.ip4(), 2), b"small enough");
    a.inject(&little);
    b.wait_marked(b"small enough", 1);
}

/// A worker that does not get its core lets the other's packets for its queues pile up.
#[test]
fn more_than_workers_lend_is_counted() {
    let _lab = Lab::new();
    let (mut node, blue) = node_with_blue(2);
    let two = Shape { queues: 2, ..Shape::default() };
    let mut a = MemifPod::with(&mut node, &blue, 20, two);
    let sinks = [21, 22, 23, 24].map(|n| MemifPod::new(&mut node, &blue, n));
    // To two sinks of that worker in turn: a burst with one sink alone would wait.
    let actual = node.actual();
    let is_its =
        |sink: &&MemifPod| actual.interfaces.iter().any(|i| i.id == sink.at.id && i.workers == [1]);
    let frames: Vec<_> = sinks
        .iter()
        .filter(is_its)
        .map(|sink| a.datagram(1, (sink.at.ip4(), 2), &[0; 1000]))
        .collect();
    assert_eq!(frames.len(), 2, "{actual:?}");
    let (thread, others_work) = starve_worker(&node, 1);
    wait("a handover ring that is full", 20.0, || {
        for queue in [0, 1] {
            a.queue_up(queue, frames.iter().cycle().take(64).map(|frame| &frame[..]));
            a.flush(queue);
        }
        let mut accounts = sinks.iter().map(|sink| node.account(&sink.at.id));
        accounts.any(|account| tx_drops(&account, "handover_full") > 0).then_some(())
    });
    drop(others_work);
    node.netns.tool("chrt", &format!("--other --pid 0 {thread}"));
    assert_eq!(drops(&node.account(&a.at.id), "no_route"), 0);
}

/// The worker runs only when its core has nothing else to do, and the core has. The thread, and
/// what else there is to do.
fn starve_worker(node: &Node, worker: u32) -> (String, Proc) {
    let found = node.actual().workers.into_iter().find(|w| w.id == worker);
    let cpu = found.expect("a worker of that number").cpu;
    let tasks = format!("/proc/{}/task", node.process.borrow().pid());
    let name = format!("worker{worker}\n");
    let mut tids = std::fs::read_dir(tasks).expect("it runs").filter_map(|task| {
        let task = task.ok()?;
        let comm = std::fs::read_to_string(task.path().join("comm")).ok()?;
        (comm == name).then(|| task.file_name().to_string_lossy().into_owned())
    });
    let tid = tids.next().expect("a thread of that name");
    node.netns.tool("chrt", &format!("--idle --pid 0 {tid}"));
    let busy = node.netns.spawn("taskset", &format!("--cpu-list {cpu} sha1sum /dev/zero"));
    (tid, busy)
}

/// A receiver whose buffers lie outside its memory.
#[test]
fn a_broken_ring_is_counted() {
    let _lab = Lab::new();
    let (mut node, blue) = node_with_blue(1);
    let mut a = MemifPod::new(&mut node, &blue, 20);
    let b = Listening::new(&mut node, &blue, 21, Shape::default());
    let rogue = Rogue::shaken(&b.netns, true);
    node.wait_up(&b.id);
    let outside = Descriptor { offset: u32::MAX - 4096, ..Descriptor::GOOD };
    rogue.describe(M2S_AT, &[outside; 4]);
    rogue.head(M2S_AT, 4);
    let datagram = a.datagram(1, (Realm::ip4(21), 2), b"into nowhere");
    wait("the drop", 5.0, || {
        a.inject(&datagram);
        (tx_drops(&node.account(&b.id), "peer_violation") > 0).then_some(())
    });
    rogue.closed();
}
