//! Attacks through the shared memory, against the server's queues: indexes, descriptors, chains,
//! vanishing pages, eventfds.

mod common;

use common::rogue::{BUFFERS_AT, M2S_AT, REGION_BYTES, Rogue, S2M_AT, memory, ring};
use common::{listener, offer, unique_name, wait_for};
use memif::wire::Message;
use memif::{
    Answer, CloseReason, Limits, MAX_RX_SEGS, Notifier, Offer, RegionError, Reserved, RxBurst,
    RxQueue, TxQueue, TxSegs, Violation,
};
use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

const LOG2: u8 = 6;
const SLOTS: u16 = 1 << LOG2;

/// A rogue client with one ring each way, and the server's queues.
fn rogue(offer: Offer, sealable: bool) -> (Rogue, RxQueue, TxQueue) {
    let name = unique_name();
    let mut listener = listener(&name);
    let file = memory(REGION_BYTES, sealable);
    let answer = Answer::Accept(offer);
    let (rogue, mut connection) = Rogue::establish(&name, &mut listener, &answer, file, LOG2);
    let (mut rx, mut tx) = connection.take_queues();
    (rogue, rx.remove(0), tx.remove(0))
}

/// Takes memory that stays writable through its file, as these tests write.
fn lenient() -> Offer {
    Offer { require_sealed: false, ..offer() }
}

fn claim(rx: &mut RxQueue) -> Result<usize, Violation> {
    let mut burst = RxBurst::new(64);
    let result = rx.claim(64, &mut burst);
    assert_eq!(burst.len(), result.unwrap_or(0), "nothing is handed out after a violation");
    result
}

/// The S2M descriptor must be refused with this violation.
fn receive_refused(descriptor: (u16, u16, u32, u32), expected: Violation) {
    let (rogue, mut rx, tx) = rogue(lenient(), true);
    rogue.set_descriptor(S2M_AT, 0, (0, 0, 60, BUFFERS_AT));
    rogue.set_descriptor(S2M_AT, 1, descriptor);
    rogue.set_head(S2M_AT, 2);
    assert_eq!(claim(&mut rx), Err(expected));
    assert!(rx.poisoned() && tx.poisoned(), "every queue of the connection knows");
    assert_eq!((rx.cause(), tx.cause()), (Some(expected), Some(expected)));
}

/// The M2S descriptor must be refused with this violation.
fn send_refused(descriptor: (u16, u16, u32, u32), expected: Violation) {
    let (rogue, rx, mut tx) = rogue(lenient(), true);
    rogue.set_descriptor(M2S_AT, 0, descriptor);
    rogue.set_head(M2S_AT, 1);
    assert_eq!(tx.send(&[0xAA; 60]), Err(expected));
    assert!(rx.poisoned() && tx.poisoned());
    assert_eq!((rx.cause(), tx.cause()), (Some(expected), Some(expected)));
}

/// Pages that we touch first count as ours, for as long as the peer has the file.
#[test]
fn memory_that_is_kept_counts_until_it_is_gone() {
    let name = unique_name();
    let mut listener = listener(&name);
    let limits = Limits { mapped_bytes: 4 << 20, ..Limits::default() };
    for require_sealed in [true, false] {
        let answer = Answer::Accept(Offer { limits, require_sealed, ..offer() });
        let mut come = |file: &File| {
            let file = file.try_clone().unwrap();
            Rogue::try_establish(&name, &mut listener, &answer, file, LOG2).map(drop)
        };
        let mut kept: Vec<_> = (0..4).map(|_| memory(REGION_BYTES, true)).collect();
        for file in &kept {
            assert_eq!(come(file), Ok(()));
        }
        let error = RegionError::Kept { total_bytes: 10 << 20, max_bytes: 8 << 20 };
        let refused = Err(CloseReason::Region { index: 0, error });
        assert_eq!(come(&memory(REGION_BYTES, true)), refused);
        if !require_sealed {
            assert_eq!(come(&kept[3]), Ok(()), "the same memory again");
        }
        kept.pop();
        let another = memory(REGION_BYTES, true);
        wait_for("the last mapping to go", || come(&another).ok());
    }
}

#[test]
fn receive_descriptors_outside_the_regions() {
    let bounds = |offset, len_bytes| Violation::Bounds { slot: 1, region: 0, offset, len_bytes };
    receive_refused((0, 200, 60, 0), Violation::Region { slot: 1, region: 200 });
    receive_refused((0, 60000, 60, 0), Violation::Region { slot: 1, region: 60000 });
    receive_refused((0, 1, 60, 0), Violation::Region { slot: 1, region: 1 });
    receive_refused((0, 15, 60, 0), Violation::Region { slot: 1, region: 15 });
    receive_refused((0, 16, 60, 0), Violation::Region { slot: 1, region: 16 });
    receive_refused((0, 0, 60, 0xf000_0000), bounds(0xf000_0000, 60));
    receive_refused((0, 0, 64, u32::MAX), bounds(u32::MAX, 64));
    let last = REGION_BYTES as u32 - 60;
    receive_refused((0, 0, 61, last), bounds(last, 61));
    receive_refused((0, 0, u32::MAX, 1), bounds(1, u32::MAX));
    let zero = Violation::Length { slot: 1, len_bytes: 0, min_bytes: 1 };
    receive_refused((0, 0, 0, BUFFERS_AT), zero);
    // The last byte of a region is still inside.
    let (rogue, mut rx, _) = rogue(lenient(), true);
    rogue.set_descriptor(S2M_AT, 0, (0, 0, 60, last));
    rogue.set_head(S2M_AT, 1);
    assert_eq!(claim(&mut rx), Ok(1));
}

#[test]
fn send_descriptors_outside_the_regions() {
    let bounds = |offset, len_bytes| Violation::Bounds { slot: 0, region: 0, offset, len_bytes };
    send_refused((0, 250, 2048, 0), Violation::Region { slot: 0, region: 250 });
    send_refused((0, 3, 2048, 0), Violation::Region { slot: 0, region: 3 });
    send_refused((0, 0, 2048, 0xf000_0000), bounds(0xf000_0000, 2048));
    let last = REGION_BYTES as u32 - 2047;
    send_refused((0, 0, 2048, last), bounds(last, 2048));
    send_refused((0, 0, u32::MAX, u32::MAX), bounds(u32::MAX, u32::MAX));
    let short = |len_bytes| Violation::Length { slot: 0, len_bytes, min_bytes: 64 };
    send_refused((0, 0, 63, BUFFERS_AT), short(63));
    send_refused((0, 0, 0, BUFFERS_AT), short(0));
}

#[test]
fn a_bad_buffer_in_a_chain_is_found_before_a_byte_is_written() {
    let (rogue, _, mut tx) = rogue(lenient(), true);
    rogue.set_descriptor(M2S_AT, 0, (0, 0, 64, BUFFERS_AT));
    rogue.set_descriptor(M2S_AT, 1, (0, 9, 64, BUFFERS_AT));
    rogue.set_head(M2S_AT, 2);
    assert_eq!(tx.send(&[0xAA; 100]), Err(Violation::Region { slot: 1, region: 9 }));
    assert_eq!(rogue.get_u16(BUFFERS_AT), 0);
}

#[test]
fn huge_lengths_are_dropped_frames() {
    let (rogue, mut rx, _) = rogue(lenient(), true);
    rogue.set_descriptor(S2M_AT, 0, (0, 0, 65000, BUFFERS_AT));
    rogue.set_descriptor(S2M_AT, 1, (0, 0, 60, BUFFERS_AT));
    rogue.set_head(S2M_AT, 2);
    let mut burst = RxBurst::new(8);
    assert_eq!(rx.claim(8, &mut burst), Ok(2));
    assert!(burst.frames()[0].is_oversize() && !burst.frames()[1].is_oversize());
    assert_eq!(rx.copy_to(&burst, &burst.frames()[0], &mut [0; 65536]), None);
    rx.release(2);
    assert_eq!(rogue.get_u16(S2M_AT + 64), 2, "both slots are given back");
}

#[test]
fn impossible_indexes() {
    let index = |peer, ours, held| Violation::Index { peer, ours, held, ring_slots: 64 };
    let (r, mut rx, _) = rogue(lenient(), true);
    r.set_head(S2M_AT, 40000);
    assert_eq!(claim(&mut rx), Err(index(40000, 0, 0)));
    let (r, mut rx, _) = rogue(lenient(), true);
    r.set_head(S2M_AT, SLOTS + 1);
    assert_eq!(claim(&mut rx), Err(index(65, 0, 0)));
    let (r, mut rx, _) = rogue(lenient(), true);
    r.set_descriptor(S2M_AT, 0, (0, 0, 60, BUFFERS_AT));
    r.set_descriptor(S2M_AT, 1, (0, 0, 60, BUFFERS_AT));
    r.set_head(S2M_AT, 2);
    assert_eq!(claim(&mut rx), Ok(2));
    r.set_head(S2M_AT, 1);
    assert_eq!(claim(&mut rx), Err(index(1, 0, 2)), "backwards behind what is claimed");
    let (r, _, mut tx) = rogue(lenient(), true);
    r.set_head(M2S_AT, 30000);
    assert_eq!(tx.free(), Err(index(30000, 0, 0)));
    assert_eq!(tx.reserve(60, &mut TxSegs::new()), Err(index(30000, 0, 0)));
    let (r, _, mut tx) = rogue(lenient(), true);
    for slot in 0..2 {
        r.set_descriptor(M2S_AT, slot, (0, 0, 2048, BUFFERS_AT));
    }
    r.set_head(M2S_AT, 2);
    assert!(tx.send(&[0; 60]).unwrap() && tx.send(&[0; 60]).unwrap());
    r.set_head(M2S_AT, 0);
    assert_eq!(tx.free(), Err(index(0, 0, 2)));
}

#[test]
fn our_own_index_is_never_read_back() {
    let (rogue, mut rx, mut tx) = rogue(lenient(), true);
    for slot in 0..4 {
        rogue.set_descriptor(S2M_AT, slot, (0, 0, 60, BUFFERS_AT));
        rogue.set_descriptor(M2S_AT, slot, (0, 0, 2048, BUFFERS_AT + 4096));
    }
    rogue.set_head(S2M_AT, 4);
    rogue.set_head(M2S_AT, 4);
    rogue.set_u16(S2M_AT + 64, 0x7777);
    rogue.set_u16(M2S_AT + 64, 0x7777);
    assert_eq!(claim(&mut rx), Ok(4));
    rx.release(4);
    assert_eq!(rogue.get_u16(S2M_AT + 64), 4);
    assert!(tx.send(&[1; 60]).unwrap());
    tx.publish();
    assert_eq!(rogue.get_u16(M2S_AT + 64), 1);
    // The rest of the header may hold anything as well.
    rogue.set_u16(S2M_AT, 0xdead);
    rogue.set_u16(S2M_AT + 4, 0xffff);
    rogue.set_head(S2M_AT, 5);
    rogue.set_descriptor(S2M_AT, 4, (0xfffe, 0, 60, BUFFERS_AT));
    assert_eq!(claim(&mut rx), Ok(1), "unknown descriptor flags mean nothing");
}

#[test]
fn chains_end() {
    let chain = |rogue: &Rogue, slots: u32| {
        for slot in 0..slots {
            rogue.set_descriptor(S2M_AT, slot, (1, 0, 64, BUFFERS_AT));
        }
        rogue.set_head(S2M_AT, slots as u16);
    };
    // A ring that is one chain.
    let (r, mut rx, _) = rogue(lenient(), true);
    chain(&r, u32::from(SLOTS));
    let endless = |slots| Err(Violation::EndlessChain { slot: 0, slots });
    assert_eq!(claim(&mut rx), endless(SLOTS));
    // Longer than any frame and still not ended: looking again would only cost time.
    let (r, mut rx, _) = rogue(lenient(), true);
    chain(&r, MAX_RX_SEGS as u32 + 1);
    assert_eq!(claim(&mut rx), endless(MAX_RX_SEGS as u16 + 1));
    // The same length with an end is a frame, but oversize.
    let (r, mut rx, _) = rogue(lenient(), true);
    chain(&r, MAX_RX_SEGS as u32 + 1);
    r.set_descriptor(S2M_AT, MAX_RX_SEGS as u32, (0, 0, 64, BUFFERS_AT));
    let mut burst = RxBurst::new(8);
    assert_eq!(rx.claim(8, &mut burst), Ok(1));
    let frame = burst.frames()[0];
    assert_eq!((frame.is_oversize(), frame.n_slots), (true, MAX_RX_SEGS as u16 + 1));
    // Sixteen are fine.
    let (r, mut rx, _) = rogue(lenient(), true);
    chain(&r, MAX_RX_SEGS as u32);
    r.set_descriptor(S2M_AT, MAX_RX_SEGS as u32 - 1, (0, 0, 64, BUFFERS_AT));
    assert_eq!(rx.claim(8, &mut burst), Ok(1));
    assert_eq!(burst.segs_of(&burst.frames()[1]).len(), MAX_RX_SEGS);
}

#[test]
fn an_unfinished_chain_waits_but_not_for_ever() {
    let (rogue, mut rx, _) = rogue(lenient(), true);
    rogue.set_descriptor(S2M_AT, 0, (0, 0, 60, BUFFERS_AT));
    rogue.set_descriptor(S2M_AT, 1, (1, 0, 60, BUFFERS_AT));
    rogue.set_head(S2M_AT, 2);
    let start = Instant::now();
    assert_eq!(claim(&mut rx), Ok(1), "the frame before it is delivered");
    assert_eq!(claim(&mut rx), Ok(0));
    assert_eq!(rx.set_polling(false), Ok(false), "half a frame is no reason to stay awake");
    assert_eq!(rx.check_stall(start), Ok(()));
    assert_eq!(rx.check_stall(start + Duration::from_millis(900)), Ok(()));
    // Its end comes, and another one begins.
    rogue.set_descriptor(S2M_AT, 2, (0, 0, 60, BUFFERS_AT));
    rogue.set_descriptor(S2M_AT, 3, (1, 0, 60, BUFFERS_AT));
    rogue.set_head(S2M_AT, 4);
    assert_eq!(claim(&mut rx), Ok(1));
    assert_eq!(rx.check_stall(start + Duration::from_secs(2)), Ok(()));
    let late = rx.check_stall(start + Duration::from_secs(4));
    assert_eq!(late, Err(Violation::EndlessChain { slot: 3, slots: 1 }));
    assert!(rx.poisoned());
}

#[test]
fn truncated_memory_is_contained() {
    memif::sigbus::install().unwrap();
    let (rogue, mut rx, mut tx) = rogue(lenient(), false);
    rogue.set_descriptor(S2M_AT, 0, (0, 0, 1500, BUFFERS_AT));
    rogue.set_head(S2M_AT, 1);
    let mut burst = RxBurst::new(8);
    assert_eq!(rx.claim(8, &mut burst), Ok(1));
    rogue.file.set_len(0).unwrap();
    assert!(!rx.poisoned());
    let mut buffer = [0xAA; 2048];
    let frame = burst.frames()[0];
    assert_eq!(rx.copy_to(&burst, &frame, &mut buffer), Some(1500), "of zeros");
    assert!(buffer[..1500].iter().all(|&b| b == 0));
    assert!(rx.poisoned() && tx.poisoned());
    // The rings' own pages are gone as well; using them is harmless.
    rx.release(1);
    assert_eq!(rx.claim(8, &mut burst).unwrap_or(0), 0);
    assert!(!tx.send(&[0; 60]).unwrap_or(false));
    tx.publish();
}

#[test]
fn sealed_memory_cannot_be_truncated() {
    for offer in [offer(), lenient()] {
        let (rogue, rx, _tx) = rogue(offer, true);
        let refused = rogue.file.set_len(0).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EPERM), "we sealed it ourselves");
        assert!(!rx.poisoned());
    }
}

/// Where memory must be sealed its owner cannot take pages out either, in no way that there is.
#[test]
fn sealed_memory_has_no_holes() {
    use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};
    let name = unique_name();
    let mut listener = listener(&name);
    let file = memory(REGION_BYTES, true);
    let bytes = std::num::NonZeroUsize::new(REGION_BYTES as usize).unwrap();
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let own = unsafe { mmap(None, bytes, access, MapFlags::MAP_SHARED, &file, 0) }.unwrap();
    let answer = Answer::Accept(offer());
    let (rogue, connection) = Rogue::establish(&name, &mut listener, &answer, file, LOG2);
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    assert_eq!(fallocate(&rogue.file, hole, 0, 4096), Err(nix::Error::EPERM));
    // SAFETY: the range was mapped above and nothing of ours lies in it.
    let removed = unsafe { madvise(own, bytes.get(), MmapAdvise::MADV_REMOVE) };
    assert_eq!(removed, Err(nix::Error::EPERM));
    // What it has mapped it can still write, as every client does.
    // SAFETY: as above.
    unsafe { own.cast::<u8>().as_ptr().add(BUFFERS_AT as usize).write_volatile(7) };
    assert_eq!(rogue.get_u16(BUFFERS_AT), 7);
    // SAFETY: mapped above, not used again.
    unsafe { munmap(own, bytes.get()) }.unwrap();
    drop(connection);
}

/// Takes one page out.
fn punch(rogue: &Rogue, offset: u32) {
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&rogue.file, hole, i64::from(offset), 4096).unwrap();
}

#[test]
fn a_hole_in_what_it_sends_is_noticed_at_the_first_touch() {
    memif::sigbus::install().unwrap();
    let (other, mut others_rx, _others_tx) = rogue(lenient(), false);
    let (rogue, mut rx, tx) = rogue(lenient(), false);
    for slot in 0..2 {
        rogue.set_descriptor(S2M_AT, slot, (0, 0, 60, BUFFERS_AT + slot * 4096));
    }
    rogue.file.write_all_at(&[7; 60], BUFFERS_AT.into()).unwrap();
    punch(&rogue, BUFFERS_AT + 4096);
    rogue.set_head(S2M_AT, 2);
    let (mut burst, mut buffer) = (RxBurst::new(8), [1; 64]);
    assert_eq!(rx.claim(8, &mut burst), Ok(2));
    assert_eq!(rx.copy_to(&burst, &burst.frames()[0], &mut buffer), Some(60));
    assert!(buffer[..60] == [7; 60] && !rx.poisoned(), "a page that is there is nobody's fault");
    let contained = memif::sigbus::contained();
    assert_eq!(rx.copy_to(&burst, &burst.frames()[1], &mut buffer), Some(60));
    assert!(buffer[..60] == [0; 60] && rx.poisoned() && tx.poisoned());
    assert_eq!(rx.cause(), Some(Violation::Sigbus));
    assert!(memif::sigbus::contained() > contained);
    assert!(memif::sigbus::is_spoilt(burst.segs()[1].as_ptr()));
    // Nobody else's.
    other.set_descriptor(S2M_AT, 0, (0, 0, 60, BUFFERS_AT));
    other.set_head(S2M_AT, 1);
    burst.clear();
    assert_eq!(others_rx.claim(8, &mut burst), Ok(1));
    assert_eq!(others_rx.copy_to(&burst, &burst.frames()[0], &mut buffer), Some(60));
    assert!(!others_rx.poisoned() && !memif::sigbus::is_spoilt(burst.segs()[0].as_ptr()));
}

#[test]
fn a_hole_in_what_it_receives_is_noticed_at_the_first_touch() {
    memif::sigbus::install().unwrap();
    let (rogue, rx, mut tx) = rogue(lenient(), false);
    rogue.set_descriptor(M2S_AT, 0, (0, 0, 2048, BUFFERS_AT));
    rogue.set_head(M2S_AT, 1);
    punch(&rogue, BUFFERS_AT);
    assert!(!tx.poisoned());
    assert_eq!(tx.send(&[7; 60]), Ok(true));
    assert!(tx.poisoned() && rx.poisoned());
}

/// Else the first touch of each page would look like a hole.
#[test]
fn memory_that_is_watched_was_brought_in() {
    memif::sigbus::install().unwrap();
    let file = File::from(
        nix::sys::memfd::memfd_create(c"sparse", nix::sys::memfd::MFdFlags::empty()).unwrap(),
    );
    file.set_len(REGION_BYTES).unwrap();
    let name = unique_name();
    let mut listener = listener(&name);
    let answer = Answer::Accept(lenient());
    let (rogue, mut connection) = Rogue::establish(&name, &mut listener, &answer, file, LOG2);
    let (mut rx, _tx) = connection.take_queues();
    for slot in 0..64 {
        rogue.set_descriptor(S2M_AT, slot, (0, 0, 60, BUFFERS_AT + slot * 4096));
    }
    rogue.set_head(S2M_AT, 64);
    let (mut burst, mut buffer) = (RxBurst::new(64), [1; 64]);
    assert_eq!(rx[0].claim(64, &mut burst), Ok(64));
    for frame in burst.frames() {
        assert_eq!(rx[0].copy_to(&burst, frame, &mut buffer), Some(60));
    }
    assert!(!rx[0].poisoned());
}

#[test]
fn a_rewritten_descriptor_changes_nothing_after_its_claim() {
    let (rogue, mut rx, mut tx) = rogue(lenient(), true);
    rogue.set_descriptor(S2M_AT, 0, (0, 0, 60, BUFFERS_AT));
    rogue.set_descriptor(M2S_AT, 0, (0, 0, 2048, BUFFERS_AT + 4096));
    rogue.set_head(S2M_AT, 1);
    rogue.set_head(M2S_AT, 1);
    let (mut burst, mut out) = (RxBurst::new(8), TxSegs::new());
    assert_eq!(rx.claim(8, &mut burst), Ok(1));
    assert_eq!(tx.reserve(60, &mut out), Ok(Reserved::Slots(1)));
    let before = (burst.segs()[0], out.as_slice()[0]);
    for at in [S2M_AT, M2S_AT] {
        rogue.set_descriptor(at, 0, (1, 77, u32::MAX, u32::MAX));
    }
    assert_eq!((burst.segs()[0], out.as_slice()[0]), before);
    let frame = burst.frames()[0];
    assert_eq!(rx.copy_to(&burst, &frame, &mut [0; 64]), Some(60));
    rx.release(1);
    tx.publish();
}

#[test]
fn a_blocking_full_eventfd_does_not_stop_a_worker() {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use std::os::fd::AsRawFd;
    let (rogue, rx, mut tx) = rogue(lenient(), true);
    // The file behind the descriptor is shared with the peer, which can do this at any time.
    let path = format!("/proc/self/fd/{}", tx.eventfd().as_raw_fd());
    assert!(std::fs::read_link(path).unwrap().to_string_lossy().contains("eventfd"));
    for eventfd in [tx.eventfd(), rx.eventfd()] {
        fcntl(eventfd, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
        nix::unistd::write(eventfd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    }
    for slot in 0..64 {
        rogue.set_descriptor(M2S_AT, slot, (0, 0, 2048, BUFFERS_AT));
    }
    rogue.set_head(M2S_AT, 64);
    let mut notifier = Notifier::new().unwrap();
    let start = Instant::now();
    for _ in 0..64 {
        assert!(tx.needs_wakeup() && tx.send(&[0; 60]).unwrap());
        tx.flush(&mut notifier).unwrap();
    }
    assert!(start.elapsed() < Duration::from_secs(1));
    wait_for("the frames", || (rogue.get_u16(M2S_AT + 64) == 64).then_some(()));
}

/// Waiting for one's own eventfd a thousand times over makes whoever signals it pay for each.
#[test]
fn an_eventfd_with_a_crowd_of_waiters_is_noticed() {
    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
    let (rogue, rx, mut tx) = rogue(lenient(), true);
    let mut notifier = Notifier::new().unwrap();
    let mut send = |tx: &mut TxQueue, head: u16| {
        let slot = u32::from((head - 1) % SLOTS);
        rogue.set_descriptor(M2S_AT, slot, (0, 0, 2048, BUFFERS_AT));
        rogue.set_head(M2S_AT, head);
        assert!(tx.send(&[0; 60]).unwrap());
        tx.publish();
        tx.notify(&mut notifier).unwrap();
    };
    (1..=200).for_each(|head| send(&mut tx, head));
    assert!(!tx.poisoned(), "an ordinary peer");
    let tx_eventfd = tx.eventfd().try_clone_to_owned().unwrap();
    let edge = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0);
    let waiter = || {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        epoll.add(&tx_eventfd, edge).unwrap();
        epoll
    };
    // How many it takes is the machine's to say.
    let (mut crowd, mut heads) = (Vec::new(), 201..);
    while !tx.poisoned() && crowd.len() < 15_000 {
        crowd.extend((0..3000).map(|_| waiter()));
        heads.by_ref().take(100).for_each(|head| send(&mut tx, head));
    }
    assert_eq!((tx.cause(), rx.poisoned()), (Some(Violation::SlowSignals), true));
    drop(crowd);
}

/// The lines of /proc/self/smaps about the first mapping of a memory file of this name.
fn smaps_of(name: &str) -> Vec<String> {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let lines = smaps.lines().skip_while(|line| !line.contains(name)).map(str::to_owned);
    let mut lines = lines.peekable();
    let first = lines.next().expect("a mapping of that name");
    let is_field = |line: &String| line.split_once(':').is_some_and(|(key, _)| !key.contains(' '));
    std::iter::once(first).chain(std::iter::from_fn(move || lines.next_if(is_field))).collect()
}

/// A region's file whose name shows in /proc.
fn named(name: &std::ffi::CStr) -> File {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let file = memfd_create(name, MFdFlags::MFD_ALLOW_SEALING).unwrap();
    let file = File::from(file);
    file.set_len(REGION_BYTES).unwrap();
    file
}

/// However much a peer claims, its pages are charged to whoever touches them first: not to us, and
/// neither core dumps nor children of ours have them.
#[test]
fn a_region_is_mapped_and_not_touched() {
    let file = named(c"lazily");
    let answer = Answer::Accept(offer());
    let name = unique_name();
    let mut listener = listener(&name);
    let (_rogue, connection) = Rogue::establish(&name, &mut listener, &answer, file, LOG2);
    let smaps = smaps_of("lazily");
    let field = |key: &str| {
        let line = smaps.iter().find_map(|line| line.strip_prefix(key)).expect("a field");
        line.trim().to_owned()
    };
    let resident_kib: u32 = field("Rss:").trim_end_matches(" kB").parse().unwrap();
    assert!(resident_kib <= 16, "{resident_kib} KiB of {} were touched", REGION_BYTES >> 10);
    let flags = field("VmFlags:");
    for flag in ["dd", "dc"] {
        assert!(flags.split(' ').any(|f| f == flag), "{flag} is not among {flags}");
    }
    drop(connection);
}

/// Else a peer's memory would outlive its mapping, and descriptors would run out.
#[test]
fn the_file_of_a_region_is_closed() {
    for (name, offer) in [(c"demanded", offer()), (c"granted", lenient())] {
        let socket = unique_name();
        let mut listener = listener(&socket);
        let answer = Answer::Accept(offer);
        let file = named(name);
        let (_rogue, connection) = Rogue::establish(&socket, &mut listener, &answer, file, LOG2);
        let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let open = open.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        let name = name.to_str().unwrap();
        let files = open.filter(|target| target.to_string_lossy().contains(name)).count();
        assert_eq!(files, 1, "{name}: the rogue's own, and none of ours");
        drop(connection);
    }
}

/// Programs that we start have nothing of what a peer passed along, nor the connection.
#[test]
fn what_a_peer_brings_is_not_inherited() {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    let name = unique_name();
    let mut listener = listener(&name);
    let file = memory(REGION_BYTES, true);
    let answer = Answer::Accept(offer());
    let (_rogue, mut connection) = Rogue::establish(&name, &mut listener, &answer, file, LOG2);
    let (rx, tx) = connection.take_queues();
    for fd in [connection.as_fd(), rx[0].eventfd(), tx[0].eventfd(), listener.as_fd()] {
        let flags = FdFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFD).unwrap());
        assert!(flags.contains(FdFlag::FD_CLOEXEC), "{fd:?} would be inherited");
    }
}

/// Whatever a client left in its rings before it connected.
#[test]
fn both_indexes_begin_at_zero() {
    let name = unique_name();
    let mut listener = listener(&name);
    let file = memory(REGION_BYTES, true);
    for at in [S2M_AT, M2S_AT] {
        for index in [6, 64] {
            file.write_all_at(&7u16.to_le_bytes(), u64::from(at) + index).unwrap();
        }
    }
    let answer = Answer::Accept(offer());
    let (rogue, mut connection) = Rogue::establish(&name, &mut listener, &answer, file, LOG2);
    let (mut rx, mut tx) = connection.take_queues();
    assert_eq!((claim(&mut rx[0]), tx[0].free()), (Ok(0), Ok(0)));
    assert_eq!((rogue.get_u16(S2M_AT + 64), rogue.get_u16(M2S_AT + 64)), (0, 0));
}

/// A page of 2 MiB is replaced whole: the kernel lets nobody lay a small one over its middle.
#[test]
fn huge_pages_that_vanish_are_contained() {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    memif::sigbus::install().unwrap();
    let _pages = common::HugePages::reserve(1);
    let file = memfd_create(c"huge", MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB).unwrap();
    let file = File::from(file);
    file.set_len(2 << 20).unwrap();
    let name = unique_name();
    let mut listener = listener(&name);
    let answer = Answer::Accept(lenient());
    let (rogue, handshake) = Rogue::connect(&name, &mut listener);
    rogue.send_init();
    rogue.send_region();
    rogue.send(&Message::AddRegion { index: 1, size: 2 << 20 }, &[file.as_fd()]);
    rogue.send_ring(ring(true, LOG2));
    rogue.send_connect();
    let mut connection = common::finish(handshake, &answer).unwrap();
    let (mut rx, _tx) = connection.take_queues();
    rogue.set_descriptor(S2M_AT, 0, (0, 1, 1500, 1 << 20));
    rogue.set_head(S2M_AT, 1);
    let mut burst = RxBurst::new(8);
    assert_eq!(rx[0].claim(8, &mut burst), Ok(1));
    file.set_len(0).unwrap();
    let mut buffer = [0xAA; 2048];
    assert_eq!(rx[0].copy_to(&burst, &burst.frames()[0], &mut buffer), Some(1500));
    assert!(rx[0].poisoned() && buffer[..1500].iter().all(|&b| b == 0));
}
