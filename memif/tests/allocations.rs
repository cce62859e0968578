//! The burst interface allocates nothing: counted by this program's allocator, thread by thread.

mod common;

use common::pair;
use memif::{Notifier, Reserved, RxBurst, RxQueue, TxQueue, TxSegs};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: by this function's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: by this function's contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// What a forwarder has at hand.
struct Tools {
    segs: TxSegs,
    burst: RxBurst,
    notifier: Notifier,
}

/// A burst from one end to the other, in all its steps.
fn exchange(tx: &mut TxQueue, rx: &mut RxQueue, tools: &mut Tools, len: u32) {
    let mut frames = 0;
    while frames < 32 && matches!(tx.reserve(len, &mut tools.segs), Ok(Reserved::Slots(_))) {
        frames += 1;
    }
    tx.publish();
    tx.notify(&mut tools.notifier).unwrap();
    assert_eq!(rx.claim(32, &mut tools.burst), Ok(frames));
    rx.release(tools.burst.frames().iter().map(|frame| frame.n_slots).sum());
    tools.burst.clear();
    rx.set_polling(frames % 2 == 0).unwrap();
    assert!(rx.set_polling(true).is_ok() && frames > 0);
}

#[test]
fn bursts_allocate_nothing() {
    let (mut server, mut client) = pair(|c| c.log2_ring_size = 8);
    let (mut theirs, mut ours) = (server.take_queues(), client.take_queues());
    let notifier = Notifier::new().unwrap();
    let mut tools = Tools { segs: TxSegs::new(), burst: RxBurst::new(64), notifier };
    let mut round = |len| {
        exchange(&mut ours.1[0], &mut theirs.0[0], &mut tools, len);
        exchange(&mut theirs.1[0], &mut ours.0[0], &mut tools, len);
    };
    // Whatever is set up by first use.
    round(64);
    let before = ALLOCATIONS.get();
    for _ in 0..1000 {
        for len in [64, 1500, 9000] {
            round(len);
        }
    }
    assert_eq!(ALLOCATIONS.get() - before, 0);
    drop(std::hint::black_box(vec![0; 100]));
    assert_eq!(ALLOCATIONS.get() - before, 1, "the count counts");
}
