//! A DMA device of DPDK as copy engine: the software one, which is a thread. It has a process of its
//! own because DPDK starts once per process, and here with what `--copy-engine` gives it.
#![cfg(feature = "dpdk")]

use dataplane::copy::{Channel, CopyList, DmaCounts, Seg, SegMut, Thresholds, open_all};
use dataplane::path::testing::{frames, gateway_mac, pod_mac, tables};
use dataplane::port::memif::{MemifRx, MemifTx};
use dataplane::port::{Rx, Tx};
use dataplane::table::IfaceId;
use dataplane::worker::{Command, Polling, setup};
use pair::pair;

#[path = "common/pair.rs"]
mod pair;

const ALL: Thresholds = Thresholds { copy_bytes: 1, burst_copies: 1, burst_bytes: 0 };

fn channel(device: &str) -> Box<dyn Channel> {
    let choices = [format!("dma:{device}").parse().expect("a choice")];
    let channel = open_all(&choices, 1, true).expect("the software device").remove(0);
    assert_eq!(channel.name(), device);
    channel
}

/// Copies pieces of one memory, each `(length, skew)`, one behind the other.
fn carry_out(list: &mut CopyList, plan: &[(usize, usize)]) -> Vec<u8> {
    let from: Vec<u8> =
        (0..20_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mut to = vec![0xee; plan.iter().map(|(len, _)| len + 1).sum()];
    let mut at = 0;
    for &(len, skew) in plan {
        let (piece, room) = (&from[skew..skew + len], &mut to[at..at + len]);
        // SAFETY: both outlive the run below, and nothing else touches them meanwhile.
        let (seg, room) = unsafe {
            (Seg::new(piece.as_ptr(), len as u32), SegMut::new(room.as_mut_ptr(), len as u32))
        };
        list.plan(seg, room);
        at += len + 1;
    }
    list.run();
    to
}

#[test]
fn any_list_gives_the_same_memory_as_on_the_cpu() {
    let mut list = CopyList::default();
    list.attach(channel("dma_skeleton0"), ALL);
    let (mut state, mut copies, mut bytes) = (1u32, 0, 0);
    let mut random = |below: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 8) % below) as usize
    };
    for round in 0..100 {
        let plan: Vec<_> = (0..random(64)).map(|_| (1 + random(9000), random(200))).collect();
        let expected = carry_out(&mut CopyList::default(), &plan);
        assert_eq!(carry_out(&mut list, &plan), expected, "round {round}");
        copies += plan.len() as u64;
        bytes += plan.iter().map(|p| p.0 as u64).sum::<u64>();
    }
    assert_eq!(list.dma_counts(), DmaCounts { copies, bytes, errors: 0 });
    assert_eq!(list.cpu_counts(), (0, 0));
}

#[test]
fn a_device_that_can_not_be_had_says_what_to_do() {
    let open = |choices: &[&str], workers| {
        let choices: Vec<_> = choices.iter().map(|c| c.parse().expect("a choice")).collect();
        open_all(&choices, workers, true).map(|channels| channels.len()).map_err(|e| e.to_string())
    };
    assert_eq!(open(&["cpu"], 1), Ok(0));
    let error = open(&["dma:wq9.9"], 1).expect_err("no such work queue");
    assert!(error.contains("wq9.9"), "{error}");
    let error = open(&["dma:a", "dma:b"], 1).expect_err("one worker");
    assert!(error.contains("2 DMA devices for 1 workers"), "{error}");
}

/// Frames of pods through a whole worker: long bodies by the device, heads and short bodies by the
/// CPU, every byte in its place and in order.
#[test]
fn a_worker_forwards_by_the_device() {
    const FROM: u16 = 11;
    const TO: u16 = 10;
    let name = format!("copy-engine-{}", std::process::id());
    let (mut pod_a, mut server_a) = pair(&format!("{name}-a"));
    let (mut pod_b, mut server_b) = pair(&format!("{name}-b"));
    let mut made = setup(1, Polling::Busy, tables()).expect("workers");
    let rx = Rx::Memif(MemifRx::new(server_a.take_queues().0.remove(0)));
    made.handles[0].send(0, Command::AddRx { iface: IfaceId(FROM), rx }).expect("room");
    let tx = Tx::Memif(MemifTx::new(server_b.take_queues().1.remove(0)));
    made.handles[0].send(0, Command::AddTx { iface: IfaceId(TO), queue: 0, tx }).expect("room");
    let mut worker = made.workers.remove(0);
    worker.use_channel(channel("dma_skeleton1"), Thresholds { copy_bytes: 1000, ..ALL });
    let mut tx = pod_a.take_queues().1.remove(0);
    let mut rx = pod_b.take_queues().0.remove(0);
    let mut received = vec![0; 4096];
    for round in 0..50u8 {
        let sent: Vec<Vec<u8>> = (0..32)
            .map(|n| {
                let len = if n % 4 == 0 { 300 } else { 1200 + n };
                let payload: Vec<u8> = (0..len).map(|at| (at as u8) ^ round ^ n as u8).collect();
                let udp = frames::udp_unsummed(4000, 5000, &payload);
                let (src, dst) = (frames::v4("10.1.0.3"), frames::v4("10.1.0.2"));
                let packet = frames::ip4(src, dst, 17, 64, &udp);
                frames::ethernet(gateway_mac(1), pod_mac(FROM), 0x0800, &packet)
            })
            .collect();
        for frame in &sent {
            assert!(tx.send(frame).expect("honest"));
        }
        tx.publish();
        assert_eq!(worker.turn(), sent.len());
        for frame in &sent {
            let len = rx.recv(&mut received).expect("honest").expect("all are there");
            assert_eq!(len, frame.len());
            assert_eq!(received[34..len], frame[34..], "round {round}");
        }
    }
    let (cpu, dma) = worker.copy_counts();
    assert_eq!((cpu.0, dma.copies, dma.errors), (50 * 8, 50 * 24, 0));
}
