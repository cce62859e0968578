//! The queues over plain memory and between threads: what miri can look at. Frames cross with real
//! atomics and real copies; miri's weak memory model would show an index published too early.

use super::own::OwnBuffers;
use super::rx::RxQueue;
use super::tx::TxQueue;
use super::{Direction, Place, Ring, Role};
use crate::region::health::Health;
use crate::region::shared::Shared;
use crate::region::{Lent, Region, Regions};
use nix::sys::eventfd::EventFd;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::Arc;

const LOG2: u8 = 2;
const SLOTS: u32 = 1 << LOG2;
const STRIDE: u32 = 64;
const RING_BYTES: u32 = 128 + 16 * SLOTS;
const BYTES: usize = 4096;
/// Several turns of the ring; miri needs about a second per hundred.
const FRAMES: u8 = if cfg!(miri) { 40 } else { 250 };

/// Zeroed memory on a cache line, freed when dropped.
struct Memory(NonNull<u8>);

impl Memory {
    fn new() -> Self {
        // SAFETY: the layout is not of size zero.
        Self(NonNull::new(unsafe { alloc_zeroed(Self::layout()) }).unwrap())
    }

    fn layout() -> Layout {
        Layout::from_size_align(BYTES, 64).unwrap()
    }

    /// The regions and one ring of an end, as each end maps them for itself.
    fn end(&self, direction: Direction) -> (Arc<Regions>, Ring) {
        let health: Arc<Health> = Arc::default();
        let lent = Lent::new(self.0, -1, || ());
        let region = Region::lent(lent, BYTES as u64, 4096, &health).unwrap();
        let place = Place { region: 0, offset: 0, log2_size: LOG2 };
        let eventfd = EventFd::new().unwrap();
        let ring = Ring::new(place, &region, direction, eventfd.as_fd()).unwrap();
        let mut shared = Shared::new(None);
        shared.regions.push(region);
        shared.eventfds.push(eventfd.into());
        (Regions::new(shared, health), ring)
    }

    fn own(&self) -> OwnBuffers {
        OwnBuffers::new(self.0.as_ptr(), 0, RING_BYTES, STRIDE, SLOTS)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout; the queues were dropped before.
        unsafe { dealloc(self.0.as_ptr(), Memory::layout()) };
    }
}

/// Both ends of one ring: sender and receiver.
fn ends(memory: &Memory, direction: Direction) -> (TxQueue, RxQueue) {
    let (client, client_ring) = memory.end(direction);
    let (server, server_ring) = memory.end(direction);
    client_ring.initialise();
    let none = OwnBuffers::none();
    match direction {
        Direction::S2m => (
            TxQueue::new(client_ring, Role::Client, memory.own(), &client),
            RxQueue::new(server_ring, Role::Server, none, &server, 1 << 14),
        ),
        Direction::M2s => {
            let own = memory.own();
            let mut rx = RxQueue::new(client_ring, Role::Client, own, &client, 1 << 14);
            rx.post_all();
            (TxQueue::new(server_ring, Role::Server, none, &server), rx)
        }
    }
}

fn exchange(direction: Direction, len: usize) {
    let memory = Memory::new();
    let (mut tx, mut rx) = ends(&memory, direction);
    let sender = std::thread::spawn(move || {
        for number in 0..FRAMES {
            while !tx.send(&vec![number; len]).unwrap() {
                std::thread::yield_now();
            }
            tx.publish();
        }
    });
    let mut buffer = vec![0xff; len];
    for number in 0..FRAMES {
        while rx.recv(&mut buffer).unwrap().is_none() {
            std::thread::yield_now();
        }
        assert!(buffer.iter().all(|&b| b == number), "frame {number} is torn: {buffer:?}");
    }
    sender.join().unwrap();
}

#[test]
fn frames_cross_threads_whole_from_client_to_server() {
    exchange(Direction::S2m, 60);
}

#[test]
fn frames_cross_threads_whole_from_server_to_client() {
    exchange(Direction::M2s, 60);
}

#[test]
fn chains_cross_threads_whole() {
    exchange(Direction::S2m, 150);
    exchange(Direction::M2s, 150);
}

/// Both indexes go through 2^16 without a stumble.
#[test]
#[cfg_attr(miri, ignore = "200,000 frames take miri an hour")]
fn indexes_wrap() {
    for direction in [Direction::S2m, Direction::M2s] {
        let memory = Memory::new();
        let (mut tx, mut rx) = ends(&memory, direction);
        let mut buffer = [0; 64];
        for number in 0..200_000u32 {
            assert!(tx.send(&number.to_le_bytes()).unwrap());
            tx.publish();
            assert_eq!(rx.recv(&mut buffer), Ok(Some(4)));
            assert_eq!(buffer[..4], number.to_le_bytes());
        }
    }
}
