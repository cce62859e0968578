//! Engines against each other, and against devices that fail.

use std::collections::VecDeque;
use std::time::Duration;

use super::cpu::Cpu;
use super::dma::Dma;
use super::*;

/// A device of the tests' own: copies when asked for completions, and errs as it is told.
#[derive(Debug, Default)]
struct Mock {
    ring: VecDeque<Op>,
    slots: usize,
    /// Every so many copies fail; 0 = none.
    fail_every: usize,
    seen: usize,
    /// Takes copies and never reports them.
    hangs: bool,
    stopped: std::sync::Arc<std::sync::atomic::AtomicBool>,
}

// SAFETY: it touches memory inside `completed` only.
unsafe impl Send for Mock {}
// SAFETY: as above; the ring is first in, first out.
unsafe impl Channel for Mock {
    fn name(&self) -> &str {
        "mock"
    }

    unsafe fn enqueue(&mut self, ops: &[Op]) -> usize {
        let room = self.slots - self.ring.len();
        self.ring.extend(ops.iter().take(room));
        ops.len().min(room)
    }

    fn submit(&mut self) {}

    fn completed(&mut self, max: usize) -> Completed {
        let mut completed = Completed::default();
        if self.hangs {
            return completed;
        }
        // A few at a time, as a device under load reports them.
        while completed.done < max.min(3) {
            let Some(op) = self.ring.pop_front() else { break };
            self.seen += 1;
            let len = op.len() as usize;
            if self.fail_every > 0 && self.seen.is_multiple_of(self.fail_every) {
                // A failed copy may have written anything to its destination.
                // SAFETY: in flight, so both ends are valid.
                unsafe { op.to().write_bytes(0xdd, len / 2) };
                completed.failed = true;
                break;
            }
            // SAFETY: as above.
            unsafe { std::ptr::copy(op.from(), op.to(), len) };
            completed.done += 1;
        }
        completed
    }

    fn stop(&mut self) -> bool {
        self.ring.clear();
        self.stopped.store(true, std::sync::atomic::Ordering::SeqCst);
        true
    }
}

const ALL: Thresholds = Thresholds { copy_bytes: 1, burst_copies: 1, burst_bytes: 0 };

/// Lengths and skews of copies out of one memory, packed one behind the other.
type Plan = Vec<(u16, u8)>;

/// Carries a plan out and returns the destination.
fn carry_out(list: &mut CopyList, plan: &Plan) -> Vec<u8> {
    let from: Vec<u8> =
        (0..70_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let total: usize = plan.iter().map(|&(len, _)| usize::from(len) + 1).sum();
    let mut to = vec![0xee; total];
    let mut at = 0;
    for &(len, skew) in plan {
        let len = usize::from(len);
        let seg = tests_seg(&from[usize::from(skew)..usize::from(skew) + len]);
        // SAFETY: inside `to`, which outlives the run below.
        let room = unsafe { SegMut::new(to[at..].as_mut_ptr(), len as u32) };
        list.plan(seg, room);
        at += len + 1;
    }
    list.run();
    to
}

fn list_with(channel: Mock, thresholds: Thresholds) -> CopyList {
    let mut list = CopyList::default();
    list.attach(Box::new(channel), thresholds);
    list
}

#[test]
fn any_list_gives_the_same_memory_on_a_device_that_fails_now_and_then() {
    bolero::check!().with_type::<(Plan, u8, u8, u16)>().for_each(|(plan, slots, fail, least)| {
        let expected = carry_out(&mut CopyList::default(), plan);
        let mock =
            Mock { slots: usize::from(*slots), fail_every: usize::from(*fail), ..Mock::default() };
        let thresholds = Thresholds { copy_bytes: u32::from(*least), ..ALL };
        let mut list = list_with(mock, thresholds);
        assert_eq!(carry_out(&mut list, plan), expected);
        let ((copies, bytes), dma) = (list.cpu_counts(), list.dma_counts());
        let planned = plan.iter().filter(|p| p.0 > 0).count();
        assert_eq!(copies + dma.copies, planned as u64, "each copy is somebody's");
        assert_eq!(bytes + dma.bytes, plan.iter().map(|p| u64::from(p.0)).sum::<u64>());
    });
}

#[test]
fn small_bursts_and_short_copies_stay_with_the_cpu() {
    let thresholds = Thresholds { copy_bytes: 1000, burst_copies: 4, burst_bytes: 5000 };
    let mut list = list_with(Mock { slots: 64, ..Mock::default() }, thresholds);
    let cases = [
        (vec![(999, 0); 50], 0),
        (vec![(9000, 0); 3], 0),
        (vec![(1000, 0); 4], 0),
        (vec![(1250, 0); 4], 4),
        ([vec![(64, 1); 20], vec![(2000, 5); 10]].concat(), 10),
    ];
    let mut before = 0;
    for (plan, expected) in cases {
        carry_out(&mut list, &plan);
        let copies = list.dma_counts().copies;
        assert_eq!(copies - before, expected, "{plan:?}");
        before = copies;
    }
    assert_eq!(list.dma_counts().errors, 0);
}

#[test]
fn a_full_ring_and_failed_copies_are_errors_that_the_cpu_makes_good() {
    let mut list = list_with(Mock { slots: 5, fail_every: 2, ..Mock::default() }, ALL);
    let plan = vec![(1500, 3); 8];
    assert_eq!(carry_out(&mut list, &plan), carry_out(&mut CopyList::default(), &plan));
    // 3 did not fit, copies 2 and 4 of 5 failed.
    assert_eq!(list.dma_counts(), DmaCounts { copies: 3, bytes: 4500, errors: 5 });
    assert_eq!(list.cpu_counts(), (5, 7500));
    assert_eq!(list.take_disabled(), None);
}

#[test]
fn a_device_that_only_fails_is_given_up_with_a_reason() {
    let mut list = list_with(Mock { slots: 64, fail_every: 1, ..Mock::default() }, ALL);
    let plan = vec![(100, 0); 40];
    let expected = carry_out(&mut CopyList::default(), &plan);
    for _ in 0..4 {
        assert_eq!(carry_out(&mut list, &plan), expected);
    }
    // The second burst was under way when the 64th error came.
    assert_eq!(list.dma_counts().errors, 80);
    let disabled = list.take_disabled().expect("told once");
    assert_eq!(disabled.device, "mock");
    assert!(disabled.reason.contains("64 in a row"), "{}", disabled.reason);
    assert_eq!(list.take_disabled(), None);
}

#[test]
fn a_device_that_hangs_is_stopped_before_the_cpu_copies() {
    let mock = Mock { slots: 64, hangs: true, ..Mock::default() };
    let stopped = std::sync::Arc::clone(&mock.stopped);
    let mut dma = Dma::new(Box::new(mock), ALL).with_deadline(Duration::from_millis(5));
    let (from, mut to) = (vec![7u8; 300], vec![0u8; 300]);
    let op = Op { from: from.as_ptr(), to: to.as_mut_ptr(), len: 300 };
    let mut cpu = Cpu::default();
    // SAFETY: both outlive the call.
    unsafe { dma.run(&[op], &mut cpu) };
    assert_eq!(to, from);
    assert!(stopped.load(std::sync::atomic::Ordering::SeqCst));
    assert!(dma.take_disabled().is_some_and(|d| d.reason.contains("within 5 ms")));
    // Later bursts do not ask it any more.
    to.fill(0);
    // SAFETY: as above.
    unsafe { dma.run(&[op], &mut cpu) };
    assert_eq!((to, dma.counts().errors, cpu.copies), (from, 1, 2));
}

/// A pod that rewrites its buffer while it is copied: what arrives is some mixture of what it
/// wrote, in its place and nowhere else.
#[test]
fn a_source_that_changes_meanwhile_changes_its_own_bytes_only() {
    use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
    let from: Vec<AtomicU8> = (0..9000).map(|_| AtomicU8::new(1)).collect();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut value = 1;
            while !stop.load(Ordering::Relaxed) {
                value = 3 - value;
                from.iter().for_each(|byte| byte.store(value, Ordering::Relaxed));
            }
        });
        let mut list = CopyList::default();
        for round in 0..200 {
            let mut to = vec![0xee; 9200];
            // SAFETY: `from` and `to` outlive the run; the writer stores to `from` by atomics.
            let (seg, room) = unsafe {
                (Seg::new(from.as_ptr().cast(), 9000), SegMut::new(to[100..].as_mut_ptr(), 9000))
            };
            list.plan(seg, room);
            list.run();
            assert!(to[100..9100].iter().all(|&b| b == 1 || b == 2), "round {round}");
            assert!(to[..100].iter().chain(&to[9100..]).all(|&b| b == 0xee));
        }
        stop.store(true, Ordering::Relaxed);
    });
}
