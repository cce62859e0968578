//! Who has to signal whom: a signal is a system call of the sender's, for every burst.

use std::time::{Duration, Instant};

use dataplane::path::testing::{frames, gateway_mac, pod_mac, tables};
use dataplane::port::memif::{MemifRx, MemifTx};
use dataplane::port::{Rx, Tx};
use dataplane::table::IfaceId;
use dataplane::worker::{Command, Handle, Polling, Worker, setup};
use memif::{Connection, RxQueue, TxQueue};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pair::pair;

#[path = "common/pair.rs"]
mod pair;

const PATIENCE: Duration = Duration::from_secs(20);
const FROM: u16 = 11;
const TO: u16 = 10;

/// A worker between two pods: `tx` sends to `rx` through it.
struct Lab {
    worker: Option<Worker>,
    handles: Vec<Handle>,
    tx: TxQueue,
    rx: RxQueue,
    _connections: [Connection; 4],
}

fn lab(name: &str, polling: Polling) -> Lab {
    let name = format!("signals-{name}-{}", std::process::id());
    let (mut pod_a, mut server_a) = pair(&format!("{name}-a"));
    let (mut pod_b, mut server_b) = pair(&format!("{name}-b"));
    let mut made = setup(1, polling, tables()).expect("workers");
    let rx = Rx::Memif(MemifRx::new(server_a.take_queues().0.remove(0)));
    made.handles[0].send(0, Command::AddRx { iface: IfaceId(FROM), rx }).expect("room");
    let tx = Tx::Memif(MemifTx::new(server_b.take_queues().1.remove(0)));
    made.handles[0].send(0, Command::AddTx { iface: IfaceId(TO), queue: 0, tx }).expect("room");
    Lab {
        worker: Some(made.workers.remove(0)),
        handles: made.handles,
        tx: pod_a.take_queues().1.remove(0),
        rx: pod_b.take_queues().0.remove(0),
        _connections: [pod_a, server_a, pod_b, server_b],
    }
}

impl Lab {
    /// One frame from pod to pod.
    fn send(&mut self) {
        let udp = frames::udp_unsummed(4000, 5000, &[7; 40]);
        let (src, dst) = (frames::v4("10.1.0.3"), frames::v4("10.1.0.2"));
        let packet = frames::ip4(src, dst, 17, 64, &udp);
        let frame = frames::ethernet(gateway_mac(1), pod_mac(FROM), 0x0800, &packet);
        if self.tx.send(&frame).expect("honest") {
            self.tx.publish();
        }
    }

    fn receive(&mut self) -> usize {
        let mut buffer = vec![0; 4096];
        let mut count = 0;
        while self.rx.recv(&mut buffer).expect("honest").is_some() {
            count += 1;
        }
        count
    }
}

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "waited {PATIENCE:?} for: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_worker_that_spins_wants_no_signals() {
    let mut lab = lab("busy", Polling::Busy);
    assert!(lab.tx.needs_wakeup(), "nobody polls yet");
    let mut worker = lab.worker.take().expect("a worker");
    for _ in 0..3 {
        worker.turn();
        assert!(!lab.tx.needs_wakeup());
        lab.send();
    }
    assert_eq!(lab.receive(), 2);
}

#[test]
fn a_worker_that_sleeps_is_woken_and_then_wants_no_more() {
    let mut lab = lab("adaptive", Polling::Adaptive);
    let mut worker = lab.worker.take().expect("a worker");
    // From here on only a sleep makes it ask for signals.
    worker.turn();
    assert!(!lab.tx.needs_wakeup());
    let thread = std::thread::spawn(move || worker.run());
    wait("the worker to sleep", || lab.tx.needs_wakeup());
    wait("the worker to spin under load", || {
        lab.send();
        lab.receive();
        !lab.tx.needs_wakeup()
    });
    wait("the worker to sleep again", || lab.tx.needs_wakeup());
    lab.handles[0].send(0, Command::Stop).expect("room");
    thread.join().expect("the worker ends");
}

#[test]
fn a_pod_that_sleeps_is_signalled() {
    let mut lab = lab("pod", Polling::Busy);
    let worker = lab.worker.take().expect("a worker");
    let thread = std::thread::spawn(move || worker.run());
    for round in 0..200 {
        assert!(!lab.rx.set_polling(false).expect("honest"), "round {round}: nothing was sent");
        lab.send();
        let mut fds = [PollFd::new(lab.rx.eventfd(), PollFlags::POLLIN)];
        let patience = PollTimeout::try_from(PATIENCE).expect("in range");
        assert_eq!(poll(&mut fds, patience), Ok(1), "round {round}: no signal");
        let mut counter = [0; 8];
        nix::unistd::read(lab.rx.eventfd(), &mut counter).expect("it was readable");
        wait("the frame", || lab.receive() == 1);
        let _ = lab.rx.set_polling(true).expect("honest");
    }
    lab.handles[0].send(0, Command::Stop).expect("room");
    thread.join().expect("the worker ends");
}
