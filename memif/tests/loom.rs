//! The index protocol under every interleaving that a weak memory model allows.
//!
//! loom brings its own atomics, so this is a model of `src/ring`, with the same orderings on the same
//! words; the queues themselves are tested by miri (`src/ring/tests.rs`). Not covered: the peer's lies
//! (no ordering helps against them) and tearing of a descriptor's two words, which are checked as
//! read.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU16, AtomicU64, Ordering, fence};
use loom::thread;

const SLOTS: u16 = 2;

/// One S2M ring: a word stands for a descriptor and its payload.
struct Ring {
    flags: AtomicU16,
    head: AtomicU16,
    tail: AtomicU16,
    slots: [AtomicU64; SLOTS as usize],
    /// The eventfd's counter.
    signals: AtomicU16,
}

impl Ring {
    fn new(masked: u16) -> Arc<Self> {
        Arc::new(Self {
            flags: AtomicU16::new(masked),
            head: AtomicU16::new(0),
            tail: AtomicU16::new(0),
            slots: [AtomicU64::new(0), AtomicU64::new(0)],
            signals: AtomicU16::new(0),
        })
    }

    fn slot(&self, index: u16) -> &AtomicU64 {
        &self.slots[usize::from(index % SLOTS)]
    }

    /// `TxQueue::reserve` and `publish`: false when full.
    fn send(&self, head: &mut u16, value: u64) -> bool {
        if head.wrapping_sub(self.tail.load(Ordering::Acquire)) == SLOTS {
            return false;
        }
        self.slot(*head).store(value, Ordering::Relaxed);
        *head = head.wrapping_add(1);
        self.head.store(*head, Ordering::Release);
        true
    }

    /// `TxQueue::needs_wakeup` and `Notifier::signal`.
    fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.flags.load(Ordering::Relaxed) == 0 {
            self.signals.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// `RxQueue::claim` of one slot and `release`.
    fn receive(&self, tail: &mut u16) -> Option<u64> {
        if self.head.load(Ordering::Acquire) == *tail {
            return None;
        }
        let value = self.slot(*tail).load(Ordering::Relaxed);
        *tail = tail.wrapping_add(1);
        self.tail.store(*tail, Ordering::Release);
        Some(value)
    }

    /// `RxQueue::set_polling(false)`: whether something is there already.
    fn unmask(&self, tail: u16) -> bool {
        self.flags.store(0, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.head.load(Ordering::Acquire) != tail
    }
}

#[test]
fn slots_are_neither_read_early_nor_written_again_early() {
    loom::model(|| {
        let ring = Ring::new(1);
        let sender = {
            let ring = Arc::clone(&ring);
            thread::spawn(move || {
                let (mut head, mut value) = (0, 1);
                while value <= 3 {
                    if ring.send(&mut head, value) {
                        value += 1;
                    } else {
                        thread::yield_now();
                    }
                }
            })
        };
        let (mut tail, mut expected) = (0, 1);
        while expected <= 3 {
            match ring.receive(&mut tail) {
                Some(value) => {
                    assert_eq!(value, expected);
                    expected += 1;
                }
                None => thread::yield_now(),
            }
        }
        sender.join().unwrap();
    });
}

#[test]
fn whoever_parks_is_woken_or_sees_the_frame() {
    loom::model(|| {
        let ring = Ring::new(1);
        let sender = {
            let ring = Arc::clone(&ring);
            thread::spawn(move || {
                assert!(ring.send(&mut 0, 7));
                ring.wake();
            })
        };
        let seen = ring.unmask(0);
        sender.join().unwrap();
        let signalled = ring.signals.load(Ordering::Acquire) > 0;
        assert!(seen || signalled, "the frame is there, nobody looks, and nobody is called");
    });
}
