//! DPDK's memif driver as a pod: Debian's `dpdk-testpmd`, copying and with zero copy.

use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::lab::memif::{Listening, NAME, Shape};
use crate::lab::{End, Lab, MemifPod, Node, Proc, Realm, TapPod, wait};

/// Between two attempts to have a client connect.
const AGAIN: Duration = Duration::from_secs(2);

/// Starts testpmd as the client of the pod's memif; it forwards by itself.
pub(crate) fn testpmd(pod: &Listening, mode: &str, zero_copy: bool) -> Proc {
    let mut command = command(mode, zero_copy);
    // Statistics keep it running without a terminal.
    command.args(["--stats-period=1", "--auto-start"]);
    pod.netns.spawn_command(command)
}

fn command(mode: &str, zero_copy: bool) -> Command {
    let zero = if zero_copy { ",zero-copy=yes" } else { "" };
    let vdev = format!("net_memif0,role=client,id=0,socket={NAME},socket-abstract=yes{zero}");
    let mut command = Command::new("dpdk-testpmd");
    command.args("--lcores 0@0,1@0 --no-pci --no-telemetry --no-huge -m 192".split(' '));
    command.arg(format!("--file-prefix=e2e{}-{}", std::process::id(), crate::lab::Netns::number()));
    if zero_copy {
        command.arg("--single-file-segments");
    }
    command.arg(format!("--vdev={vdev}")).arg("--");
    command.args(["--no-flush-rx", "--total-num-mbufs=8192"]);
    command.arg(format!("--forward-mode={mode}"));
    command
}

fn world(sealed: bool) -> (Node, MemifPod, Listening) {
    let mut node = Node::local(1);
    let blue = Realm::new("blue", 56, 1500);
    node.add_realm(&blue);
    let sender = MemifPod::new(&mut node, &blue, 20);
    let pod = Listening::new(&mut node, &blue, 21, Shape { sealed, ..Shape::default() });
    (node, sender, pod)
}

/// Waits until testpmd is up, has posted its buffers and returns what it gets.
pub(crate) fn ready(node: &Node, sender: &mut MemifPod, pod: &Listening) {
    let probe = sender.datagram(7, (pod.ip4(), 8), b"first echo");
    wait("testpmd's first echo", 20.0, || {
        node.link(&pod.id);
        sender.inject(&probe);
        sender.take().iter().any(|f| crate::lab::frame::contains(f, b"first echo")).then_some(())
    });
    // Echoes of further probes may be under way; they are told apart by their size.
}

/// Sends numbered datagrams that testpmd returns with addresses and ports swapped.
fn echo(sender: &mut MemifPod, pod: &Listening, size: usize, count: u32) {
    let (mut sent, mut got) = (0, 0);
    let mut seen = vec![false; count as usize];
    wait(&format!("{count} echoes of {size} bytes"), 20.0, || {
        while sent < count && sent - got < 64 {
            let mut data = sent.to_be_bytes().to_vec();
            data.resize(size - 42, sent as u8);
            let frame = sender.datagram(7, (pod.ip4(), 8), &data);
            if sender.queue_up(0, [&frame[..]]) == 0 {
                break;
            }
            sent += 1;
        }
        sender.flush(0);
        for frame in sender.take() {
            if frame.len() != size || frame[23] != 17 {
                continue;
            }
            let number = u32::from_be_bytes([frame[42], frame[43], frame[44], frame[45]]);
            assert!(frame[46..].iter().all(|&byte| byte == number as u8), "frame {number}");
            let twice = std::mem::replace(&mut seen[number as usize], true);
            assert!(!twice, "frame {number} came twice");
            got += 1;
        }
        (got == count).then_some(())
    });
}

#[test]
fn testpmd_echoes_what_it_gets() {
    let _lab = Lab::new();
    for zero_copy in [false, true] {
        let (node, mut sender, pod) = world(!zero_copy);
        let _testpmd = testpmd(&pod, "5tswap", zero_copy);
        ready(&node, &mut sender, &pod);
        for size in [64, 512, 1514] {
            echo(&mut sender, &pod, size, 2000);
        }
    }
}

/// Zero-copy memory cannot be sealed: where sealing is required it is turned away.
#[test]
fn unsealed_zero_copy_is_turned_away_by_default() {
    let _lab = Lab::new();
    let (node, _sender, pod) = world(true);
    let mut testpmd = testpmd(&pod, "5tswap", true);
    wait("the data plane refuses unsealed memory", 20.0, || {
        assert!(!testpmd.ended(), "{}", testpmd.output());
        let said = node.process.borrow_mut().output();
        (said.contains("turned away") && said.contains("sealed")).then_some(())
    });
    assert_ne!(node.link(&pod.id), api::interface_status::Link::Up);
}

#[test]
fn a_tap_pings_testpmd() {
    let _lab = Lab::new();
    let (mut node, _sender, pod) = world(true);
    let tap = TapPod::new(&mut node, &Realm::new("blue", 56, 1500), 10);
    let _testpmd = testpmd(&pod, "icmpecho", false);
    wait("an echo from testpmd", 20.0, || tap.pings(pod.ip4(), 1000).then_some(()));
    assert!(tap.pings(pod.ip4(), 0) && tap.pings(pod.ip4(), 1472));
}

/// The client dies under load; the next one is served at once.
#[test]
fn a_killed_client_is_replaced() {
    let _lab = Lab::new();
    let (node, mut sender, pod) = world(true);
    for _ in 0..2 {
        let mut testpmd = testpmd(&pod, "5tswap", false);
        ready(&node, &mut sender, &pod);
        echo(&mut sender, &pod, 64, 1000);
        let datagram = sender.datagram(7, (pod.ip4(), 8), &[1; 500]);
        for _ in 0..200 {
            sender.try_send(0, &datagram);
        }
        testpmd.signal(Signal::SIGKILL);
        wait("the interface is down", 1.0, || {
            (node.link(&pod.id) != api::interface_status::Link::Up).then_some(())
        });
        testpmd.kill();
    }
    let mut honest = pod.connect();
    let datagram = sender.datagram(7, (honest.at.ip4(), 8), b"after the kill");
    let start = Instant::now();
    sender.inject(&datagram);
    honest.wait_marked(b"after the kill", 1);
    assert!(start.elapsed().as_secs_f64() < 1.0);
}

/// The server dies under load. DPDK's clients do not come back by themselves; told to, they find the next
/// one. (With zero copy DPDK 22.11 closes the file of its own memory with the first connection, and offers
/// whatever has that number then: a process of its own must come, as in the test above.)
#[test]
fn a_killed_data_plane_is_found_again() {
    let _lab = Lab::new();
    let (mut node, mut sender, pod) = world(true);
    let mut command = command("5tswap", false);
    command.arg("--interactive");
    let (_testpmd, mut stdin) = pod.netns.run(|| Proc::spawn_fed(command));
    writeln!(stdin, "start").expect("testpmd listens");
    ready(&node, &mut sender, &pod);
    echo(&mut sender, &pod, 1514, 500);
    let datagram = sender.datagram(7, (pod.ip4(), 8), &[1; 500]);
    for _ in 0..200 {
        sender.try_send(0, &datagram);
    }
    node.kill_and_restart();
    sender.reconnect();
    // It may hear of the first connection's end after this, and take the second one for it: so it is told
    // again until that lasts.
    let mut told: Option<Instant> = None;
    wait("testpmd connects to the next one", 20.0, || {
        if told.is_none_or(|told| told.elapsed() > AGAIN) {
            writeln!(stdin, "stop\nport stop 0\nport start 0\nstart").expect("testpmd listens");
            told = Some(Instant::now());
        }
        (node.link(&pod.id) == api::interface_status::Link::Up).then_some(())
    });
    ready(&node, &mut sender, &pod);
    echo(&mut sender, &pod, 1514, 500);
}
