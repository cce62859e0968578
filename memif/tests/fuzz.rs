//! Random peers: the corpus and a short random run with every `cargo test`. `make fuzz` goes on for as long
//! as wanted, guided by coverage; what it finds goes to `__fuzz__`, with which every later run begins.

mod common;

use bolero::{TypeGenerator, check};
use common::rogue::{REGION_BYTES, Rogue, answers, eventfd, memory, raw_connect};
use common::{accept, connect, listener, offer, unique_name, wait_for};
use memif::wire::{AddRing, Init, MESSAGE_BYTES, Message, Name, Reason, Secret};
use memif::{
    Address, Answer, ClientConfig, Connector, Offer, Progress, Reserved, RxBurst, RxQueue, TxQueue,
    TxSegs,
};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

/// Values that rules are made of, more often than chance would bring them.
#[derive(Debug, Clone, Copy, TypeGenerator)]
enum Number {
    Small(u8),
    Any(u64),
    Power(u8),
    BelowPower(u8),
    Region,
}

impl Number {
    fn get(self) -> u64 {
        match self {
            Self::Small(n) => n.into(),
            Self::Any(n) => n,
            Self::Power(n) => 1 << (n % 64),
            Self::BelowPower(n) => (1u64 << (n % 64)).wrapping_sub(1),
            Self::Region => REGION_BYTES,
        }
    }
}

/// What a fuzzed client sends.
#[derive(Debug, Clone, TypeGenerator)]
enum Say {
    Raw(Vec<u8>, u8),
    Ack,
    Hello,
    Init { version: u8, id: u8, mode: u8, secret: bool },
    AddRegion { index: Number, size: Number, fd: u8 },
    AddRing { flags: Number, index: Number, region: Number, offset: Number, log2: u8, fd: u8 },
    Connect,
    Disconnect,
}

impl Say {
    fn send(&self, rogue: &Rogue) {
        let event = eventfd();
        let disk = File::open("/proc/self/exe").unwrap();
        let fds = |kind: u8| match kind % 6 {
            0..3 => vec![rogue.file.as_fd()],
            3 => vec![event.as_fd()],
            4 => vec![disk.as_fd()],
            _ => vec![event.as_fd(); 5],
        };
        let message = match self {
            Self::Raw(bytes, count) => {
                let fds = vec![event.as_fd(); usize::from(count % 8)];
                let bytes = if bytes.is_empty() { &[0][..] } else { bytes };
                return rogue.send_bytes(bytes, &fds);
            }
            Self::Ack => Message::Ack,
            Self::Hello => {
                let mut bytes = [0; MESSAGE_BYTES];
                bytes[0] = 2;
                return rogue.send_bytes(&bytes, &[]);
            }
            Self::Init { version, id, mode, secret } => Message::Init(Init {
                version: if *version == 0 { 0x0300 } else { 0x0200 },
                id: u32::from(id % 5),
                mode: mode % 3 / 2,
                secret: Secret::truncated(if *secret { "abc" } else { "" }),
                name: Name::truncated("fuzz"),
            }),
            Self::AddRegion { index, size, fd } => {
                let message = Message::AddRegion { index: index.get() as u16, size: size.get() };
                return rogue.send(&message, &fds(*fd));
            }
            Self::AddRing { flags, index, region, offset, log2, fd } => {
                let message = Message::AddRing(AddRing {
                    flags: flags.get() as u16,
                    index: index.get() as u16,
                    region: region.get() as u16,
                    offset: offset.get() as u32,
                    log2_ring_size: *log2,
                    private_hdr_size: 0,
                });
                return rogue.send(&message, &fds(fd.wrapping_add(3)));
            }
            Self::Connect => Message::Connect(Name::truncated("fuzz0")),
            Self::Disconnect => {
                Message::Disconnect { code: 0, reason: Reason::truncated("\u{1b}bye") }
            }
        };
        rogue.send(&message, &[]);
    }
}

#[test]
fn control_messages() {
    let name = unique_name();
    let listener = std::sync::Mutex::new(listener(&name));
    check!().with_iterations(2000).with_max_len(512).with_type::<Vec<Say>>().for_each(|says| {
        let mut listener = listener.lock().unwrap();
        let rogue = Rogue { socket: raw_connect(&name), file: memory(REGION_BYTES, true) };
        // A cookie wherever a ring may be.
        for at in (0..REGION_BYTES).step_by(8192) {
            rogue.file.write_all_at(&memif::wire::RING_COOKIE.to_le_bytes(), at).unwrap();
        }
        let mut handshake = accept(&mut listener);
        for say in says {
            say.send(&rogue);
            match handshake.on_readable(&answers) {
                Progress::Pending => {}
                Progress::Closed(reason) => {
                    assert!(!reason.to_string().is_empty());
                    return;
                }
                Progress::Connected(mut connection) => {
                    let (rx, tx) = connection.take_queues();
                    assert!(rx.len() + tx.len() > 0);
                    for queue in rx {
                        assert!((64..=1 << 14).contains(&queue.slots()));
                    }
                    return;
                }
            }
        }
    });
}

#[test]
fn any_bytes_decode_or_are_refused() {
    check!().with_iterations(20_000).with_type::<[u8; MESSAGE_BYTES]>().for_each(|bytes| {
        let Ok(message) = Message::decode(bytes) else { return };
        let again = Message::decode(&message.encode()).unwrap();
        assert_eq!(again.encode(), message.encode());
        assert_eq!(again.kind(), message.kind());
    });
}

/// What happens to a connection: the peer writes, or we work.
#[derive(Debug, Clone, TypeGenerator)]
enum Step {
    /// What an honest peer does: a descriptor, and the index behind it.
    Frame {
        ring: bool,
        more: bool,
        length: u16,
        offset: u16,
    },
    /// The same with any descriptor; three in one enum, so that they make up much of a run.
    AnyFrame {
        ring: bool,
        words: (u64, u64),
    },
    NearFrame {
        ring: bool,
        region: u8,
        length: Number,
        offset: Number,
    },
    /// An index of one of the two rings, relative to where it should be.
    Index {
        ring: bool,
        ours: bool,
        ahead: u8,
    },
    /// Some slots back.
    Back {
        ring: bool,
        slots: u8,
    },
    /// Any index.
    AnyIndex {
        ring: bool,
        value: u16,
    },
    /// A decent descriptor.
    Descriptor {
        ring: bool,
        slot: u8,
        more: bool,
        length: u16,
        offset: u16,
    },
    /// Any descriptor.
    AnyDescriptor {
        ring: bool,
        slot: u8,
        words: (u64, u64),
    },
    Flags {
        ring: bool,
        value: u16,
    },
    Claim(u8),
    Release(u8),
    Unclaim(u8),
    Send(u16),
    Publish(u8),
    Polling(bool),
}

const LOG2: u32 = 6;
const SLOTS: u16 = 1 << LOG2;

/// One end under test, and the file through which its peer writes.
struct Bench<'a> {
    file: &'a File,
    rings: [u64; 2],
    /// Where the peer's index of each ring lies.
    peer_index: u64,
    honest: [u16; 2],
    longest_seg: usize,
    rx: RxQueue,
    tx: TxQueue,
    burst: RxBurst,
}

impl Bench<'_> {
    fn write(&self, at: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, at).unwrap();
    }

    /// A descriptor at the peer's index, and the index behind it.
    fn produce(&mut self, ring: bool, words: (u64, u64)) {
        let at = self.rings[usize::from(ring)];
        let index = &mut self.honest[usize::from(ring)];
        let slot_at = at + 128 + u64::from(*index % SLOTS) * 16;
        *index = index.wrapping_add(1);
        let index = *index;
        self.write(slot_at, &words.0.to_le_bytes());
        self.write(slot_at + 8, &words.1.to_le_bytes());
        self.write(at + self.peer_index, &index.to_le_bytes());
    }

    /// False when the connection is over.
    fn step(&mut self, step: &Step) -> bool {
        let at = |ring: bool| self.rings[usize::from(ring)];
        let slot_at = |ring, slot: u8| at(ring) + 128 + u64::from(u16::from(slot) % SLOTS) * 16;
        match *step {
            Step::Index { ring, ours, ahead } => {
                let index = &mut self.honest[usize::from(ring)];
                *index = index.wrapping_add(u16::from(ahead) % (SLOTS / 4));
                let offset = if ours { 70 - self.peer_index } else { self.peer_index };
                let bytes = index.to_le_bytes();
                self.write(at(ring) + offset, &bytes);
            }
            Step::Back { ring, slots } => {
                let index = self.honest[usize::from(ring)].wrapping_sub(u16::from(slots % 16));
                self.write(at(ring) + self.peer_index, &index.to_le_bytes());
            }
            Step::Frame { ring, more, length, offset } => {
                let word = u64::from(more) | (u64::from(length % 4096) + 64) << 32;
                self.produce(ring, (word, 0x2_0000 + u64::from(offset)));
            }
            Step::AnyFrame { ring, words } => self.produce(ring, words),
            Step::NearFrame { ring, region, length, offset } => {
                let word = u64::from(region % 3) << 16 | length.get() << 32;
                self.produce(ring, (word, offset.get() & 0xffff_ffff));
            }
            Step::AnyIndex { ring, value } => {
                self.write(at(ring) + self.peer_index, &value.to_le_bytes());
            }
            Step::Descriptor { ring, slot, more, length, offset } => {
                let word = u64::from(more) | (u64::from(length % 4096) + 64) << 32;
                self.write(slot_at(ring, slot), &word.to_le_bytes());
                let offset = 0x2_0000 + u64::from(offset);
                self.write(slot_at(ring, slot) + 8, &offset.to_le_bytes());
            }
            Step::AnyDescriptor { ring, slot, words } => {
                self.write(slot_at(ring, slot), &words.0.to_le_bytes());
                self.write(slot_at(ring, slot) + 8, &words.1.to_le_bytes());
            }
            Step::Flags { ring, value } => self.write(at(ring) + 4, &value.to_le_bytes()),
            Step::Claim(max) => return self.claim(usize::from(max)),
            Step::Release(slots) => {
                self.rx.release(u16::from(slots).min(self.rx.held()));
                self.burst.clear();
            }
            Step::Unclaim(keep) => {
                self.rx.unclaim(&mut self.burst, usize::from(keep));
            }
            Step::Send(length) => return self.send(u32::from(length)),
            Step::Publish(slots) => {
                self.tx.publish_slots(u16::from(slots).min(self.tx.reserved()));
                let _ = self.tx.needs_wakeup();
            }
            Step::Polling(polling) => return self.rx.set_polling(polling).is_ok(),
        }
        true
    }

    fn claim(&mut self, max: usize) -> bool {
        if self.burst.len() == 16 {
            // The slots stay claimed.
            self.burst.clear();
        }
        let before = self.burst.len();
        let Ok(n) = self.rx.claim(max, &mut self.burst) else {
            assert!(self.rx.poisoned() && self.tx.poisoned());
            assert_eq!(self.burst.len(), before);
            return false;
        };
        assert_eq!(self.burst.len(), before + n);
        assert!(n <= max);
        let waiting = self.rx.available().unwrap_or(0);
        assert!(waiting <= SLOTS && self.rx.held() <= SLOTS - waiting);
        assert!(self.burst.segs().iter().all(|seg| seg.len() <= self.longest_seg));
        let mut buffer = vec![0; 1 << 16];
        for frame in &self.burst.frames()[before..] {
            let copied = self.rx.copy_to(&self.burst, frame, &mut buffer);
            let whole = Some(frame.len_bytes as usize);
            assert!(if frame.is_oversize() { copied.is_none() } else { copied == whole });
        }
        true
    }

    fn send(&mut self, length: u32) -> bool {
        let mut segs = TxSegs::new();
        match self.tx.reserve(length, &mut segs) {
            Ok(Reserved::Slots(n)) => {
                assert_eq!(segs.as_slice().len(), usize::from(n));
                let total: usize = segs.as_slice().iter().map(memif::SegMut::len).sum();
                assert_eq!(total, length as usize);
                for seg in segs.as_slice() {
                    // SAFETY: reserved just now in a queue that is alive; the test's own memory.
                    unsafe { seg.as_ptr().write_bytes(0xAA, seg.len()) };
                }
                assert!(self.tx.reserved() <= SLOTS);
                true
            }
            Ok(Reserved::Full | Reserved::BadLength) => true,
            Err(_) => {
                assert!(self.rx.poisoned() && self.tx.poisoned());
                false
            }
        }
    }
}

fn work(file: &File, peer_index: u64, rings: [u64; 2], rx: RxQueue, tx: TxQueue, steps: &[Step]) {
    let burst = RxBurst::new(16);
    // A client knows how long its buffers are; a server only where the region ends.
    let longest_seg = if peer_index == 64 { 2048 } else { 1 << 14 };
    let mut bench = Bench { file, rings, peer_index, honest: [0; 2], longest_seg, rx, tx, burst };
    for step in steps {
        if !bench.step(step) {
            break;
        }
    }
}

#[test]
fn memory_of_a_hostile_client() {
    let name = unique_name();
    let listener = std::sync::Mutex::new(listener(&name));
    check!().with_iterations(3000).with_max_len(2048).with_type::<Vec<Step>>().for_each(|steps| {
        let mut listener = listener.lock().unwrap();
        // Else the file could not be written.
        let answer = Answer::Accept(Offer { require_sealed: false, ..offer() });
        let file = memory(REGION_BYTES, true);
        let (rogue, mut connection) =
            Rogue::establish(&name, &mut listener, &answer, file, LOG2 as u8);
        let (mut rx, mut tx) = connection.take_queues();
        for slot in 0..u32::from(SLOTS) {
            for ring in [0, 0x1_0000] {
                rogue.set_descriptor(ring, slot, (0, 0, 2048, 0x2_0000 + slot * 2048));
            }
        }
        work(&rogue.file, 6, [0, 0x1_0000], rx.remove(0), tx.remove(0), steps);
    });
}

#[test]
fn memory_of_a_hostile_server() {
    let name = unique_name();
    let listener = std::sync::Mutex::new(listener(&name));
    check!().with_iterations(2000).with_max_len(2048).with_type::<Vec<Step>>().for_each(|steps| {
        let mut listener = listener.lock().unwrap();
        let mut config = ClientConfig::new(Address::Abstract(name.clone()), 0);
        config.log2_ring_size = LOG2 as u8;
        let answer = Answer::Accept(Offer { require_sealed: false, ..offer() });
        // Another thread unmaps what the input before has left.
        wait_for("the end of the last client's memory", || {
            client_memory().is_empty().then_some(())
        });
        let (server, mut client) = connect(&mut listener, &mut Connector::new(config), &answer);
        let (mut rx, mut tx) = client.take_queues();
        // Once the client has sealed its memory it can be written only where it is mapped.
        let base = client_memory().pop().unwrap();
        let process = File::options().write(true).open("/proc/self/mem").unwrap();
        // The client's S2M ring lies first, its M2S ring behind it.
        let rings = [base, base + 128 + 16 * u64::from(SLOTS)];
        work(&process, 64, [rings[1], rings[0]], rx.remove(0), tx.remove(0), steps);
        drop(server);
    });
}

/// Where memory that clients of this process made is mapped.
fn client_memory() -> Vec<u64> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let lines = maps.lines().filter(|line| line.contains("/memfd:memif"));
    let start = |line: &str| u64::from_str_radix(line.split('-').next()?, 16).ok();
    lines.filter_map(start).collect()
}
