//! What a hostile pod does: one step of each attack of the threat model (docs/memif.md).
//!
//! A step returns whether one more round of the attack is over: the data plane has given the
//! answer that it should. Steps do not wait longer than that answer takes.

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use memif::wire::{AddRing, MESSAGE_BYTES, Message, Name};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::memif::Listening;
use super::rogue::{
    Bodies, Descriptor, M2S_AT, REGION_BYTES, Rogue, S2M_AT, eventfd, lingering, ring,
};
use super::{End, MemifPod, Node, Realm};
use holes::Puncher;

mod holes;

/// The pod that attacks, and an honest one that sends to it and hears from it.
pub struct Attacker {
    /// Whose interface is misused.
    pub victim: Listening,
    /// On the same Network.
    pub honest: MemifPod,
    /// Whether the memory is sealed against shrinking.
    pub sealed: bool,
    live: Option<Live>,
    idle: Vec<Rogue>,
    /// Memory of connections that are over.
    kept: Vec<Bodies>,
    /// Whether the data plane had anything to do with it since its last rest.
    acted: Cell<bool>,
}

/// A connection that lasts for several steps.
struct Live {
    rogue: Rogue,
    head: u16,
    /// Kept alive with it.
    _crowd: Vec<Epoll>,
    puncher: Option<Puncher>,
    punched: Instant,
}

/// One attack.
#[derive(Clone, Copy)]
pub struct Attack {
    /// For messages.
    pub name: &'static str,
    /// See the module.
    pub step: fn(&mut Attacker) -> bool,
    /// What the data plane says of the peer that it disconnects.
    pub verdict: Option<&'static str>,
    /// Which memory it works on.
    pub on: Memory,
}

/// Of attackers.
#[derive(Clone, Copy, PartialEq)]
pub enum Memory {
    /// Whatever is required.
    Any,
    /// Sealed by the data plane.
    Sealed,
    /// Not sealed.
    Unsealed,
}

impl Memory {
    /// Whether memory is of this kind.
    pub fn is(self, sealed: bool) -> bool {
        self == Self::Any || (self == Self::Sealed) == sealed
    }
}

const fn attack(name: &'static str, step: fn(&mut Attacker) -> bool) -> Attack {
    Attack { name, step, verdict: None, on: Memory::Any }
}

const fn convicted(
    name: &'static str,
    verdict: &'static str,
    step: fn(&mut Attacker) -> bool,
) -> Attack {
    Attack { verdict: Some(verdict), ..attack(name, step) }
}

/// Pages can only be taken out of memory that is not sealed.
const fn holes(name: &'static str, step: fn(&mut Attacker) -> bool) -> Attack {
    Attack { on: Memory::Unsealed, ..convicted(name, "memory_vanished", step) }
}

/// All of them.
pub const ATTACKS: &[Attack] = &[
    attack("connect and close", |a| {
        drop(Rogue::connect(&a.victim.netns, a.sealed));
        a.acted.set(true);
        true
    }),
    attack("unasked descriptors on an ACK", |a| {
        a.told(|r| r.send_bytes(&ack(), &[r.file.as_fd(); 2]))
    }),
    attack("a socket that lingers", |a| {
        let (socket, neighbour) = lingering();
        let mut socket = Some(socket);
        let over = a.told(|r| {
            if let Some(socket) = socket.take() {
                r.send_bytes(&ack(), &[socket.as_fd()]);
                // Whoever closes it last waits: the data plane, if it is slower than this thread.
                std::thread::spawn(move || drop(socket));
            }
        });
        drop(neighbour);
        over
    }),
    attack("idle connections", Attacker::idle),
    attack("a short message", |a| a.told(|r| r.send_bytes(&[1, 0], &[]))),
    attack("HELLO to a server", |a| a.told(|r| r.send_bytes(&hello(), &[]))),
    attack("a ring far outside", |a| a.ring(|r| r.offset = 0xffff_f000)),
    attack("a ring in no region", |a| a.ring(|r| r.region = 7)),
    attack("a ring of 2^31 slots", |a| a.ring(|r| r.log2_ring_size = 31)),
    attack("region 255 first", |a| a.region(255, REGION_BYTES)),
    attack("a region beyond its file", |a| a.region(0, REGION_BYTES * 64)),
    attack("gigantic pages", Attacker::gigantic),
    attack("ADD_RING after CONNECTED", |a| a.afterwards(|r| r.send_ring(&ring(true)))),
    attack("a second CONNECT", |a| {
        a.afterwards(|r| r.send(&Message::Connect(Name::truncated("again")), &[]))
    }),
    convicted("descriptor in region 200", "region_unknown", |a| {
        a.sends(Descriptor { region: 200, ..Descriptor::GOOD }, 200)
    }),
    convicted("descriptor in region 60000", "region_unknown", |a| {
        a.sends(Descriptor { region: 60_000, ..Descriptor::GOOD }, 1)
    }),
    convicted("descriptor at 0xf0000000", "descriptor_bounds", |a| {
        a.sends(Descriptor { offset: 0xf000_0000, ..Descriptor::GOOD }, 200)
    }),
    convicted("descriptor of 2 GiB", "descriptor_bounds", |a| {
        a.sends(Descriptor { length: 0x7fff_ffff, ..Descriptor::GOOD }, 200)
    }),
    convicted("a chain without an end", "endless_chain", |a| {
        a.sends(Descriptor { flags: 1, length: 64, ..Descriptor::GOOD }, 200)
    }),
    convicted("40000 slots at once", "ring_index", |a| a.sends(Descriptor::GOOD, 40_000)),
    attack("descriptors of 65000 bytes", Attacker::oversize),
    convicted("an empty buffer in region 200", "region_unknown", |a| {
        a.receives(Descriptor { region: 200, ..Descriptor::GOOD })
    }),
    convicted("an empty buffer at 0xf0000000", "descriptor_bounds", |a| {
        a.receives(Descriptor { offset: 0xf000_0000, ..Descriptor::GOOD })
    }),
    attack("a full eventfd that blocks", Attacker::blocking_eventfd),
    convicted("a crowd that waits for its signals", "slow_signals", Attacker::crowd),
    holes("holes in what it sends", |a| a.holes_sent(false)),
    holes("huge holes in what it sends", |a| a.holes_sent(true)),
    holes("holes in what it receives", |a| a.holes_received(false)),
    holes("huge holes in what it receives", |a| a.holes_received(true)),
    holes("holes under the copy", |a| a.holes_under_the_copy(false)),
    holes("huge holes under the copy", |a| a.holes_under_the_copy(true)),
    holes("huge holes now and then", Attacker::holes_now_and_then),
    attack("fresh huge pages with each connection", Attacker::fresh_memory),
    Attack { on: Memory::Sealed, ..attack("holes in sealed memory", Attacker::sealed_holes) },
    Attack {
        on: Memory::Sealed,
        ..convicted("memory that is kept", "somebody has still open", Attacker::kept_memory)
    },
    Attack {
        on: Memory::Unsealed,
        ..convicted("memory that vanishes", "memory_vanished", Attacker::vanish)
    },
];

/// Wakers that each signal has to go through.
const CROWD: usize = 3000;
const STEP: u16 = 64;

fn ack() -> [u8; MESSAGE_BYTES] {
    Message::Ack.encode()
}

fn hello() -> [u8; MESSAGE_BYTES] {
    let mut bytes = [0; MESSAGE_BYTES];
    bytes[0] = 2;
    bytes
}

impl Attacker {
    /// Nothing has been done yet.
    pub fn new(victim: Listening, honest: MemifPod, sealed: bool) -> Self {
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
        setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("our own limit");
        Self {
            victim,
            honest,
            sealed,
            live: None,
            idle: Vec::new(),
            kept: Vec::new(),
            acted: Cell::new(false),
        }
    }

    /// Whether it was connected since its last rest. After some attacks the data plane lets it wait,
    /// and what is measured meanwhile says nothing.
    pub fn has_acted(&self) -> bool {
        self.live.is_some() || self.acted.get()
    }

    /// Does nothing until the next step; what lasts stays connected.
    pub fn rest(&mut self) {
        self.acted.set(false);
        if let Some(live) = &mut self.live {
            live.puncher = None;
        }
    }

    /// Another pod in the victim's place, which begins anew.
    pub fn renew(&mut self, node: &mut Node, realm: &Realm) {
        self.kept.clear();
        self.victim.renew(node, realm);
    }

    /// Ends what lasts.
    pub fn leave(&mut self) {
        self.live = None;
        self.idle.clear();
        self.kept.clear();
        self.honest.take();
    }

    /// Nonsense in answer to HELLO.
    fn told(&self, act: impl FnOnce(&Rogue)) -> bool {
        let rogue = Rogue::connect(&self.victim.netns, self.sealed);
        let greeted = rogue.heard().is_some();
        if greeted {
            self.acted.set(true);
            act(&rogue);
            rogue.closed();
        }
        greeted
    }

    fn region(&self, index: u16, size: u64) -> bool {
        self.told(|r| {
            r.init();
            r.send(&Message::AddRegion { index, size }, &[r.file.as_fd()]);
        })
    }

    fn ring(&self, change: fn(&mut AddRing)) -> bool {
        let mut hostile = ring(true);
        change(&mut hostile);
        self.told(|r| {
            r.init();
            r.send(&Message::AddRegion { index: 0, size: REGION_BYTES }, &[r.file.as_fd()]);
            r.heard();
            r.send_ring(&hostile);
        })
    }

    fn gigantic(&mut self) -> bool {
        let flags = MFdFlags::MFD_ALLOW_SEALING | MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_1GB;
        // Nothing is reserved before the file is mapped, so it costs no memory.
        let file = std::fs::File::from(memfd_create(c"gigantic", flags).expect("1 GiB pages"));
        file.set_len(1 << 30).expect("a length");
        self.told(|r| {
            r.init();
            r.send(&Message::AddRegion { index: 0, size: REGION_BYTES }, &[file.as_fd()]);
        })
    }

    fn idle(&mut self) -> bool {
        let before = self.idle.len();
        self.idle.retain(Rogue::is_open);
        let over = self.idle.len() < before;
        if self.idle.len() < 4 {
            self.idle.push(Rogue::connect(&self.victim.netns, self.sealed));
        }
        self.acted.set(true);
        pause();
        over || before == 3
    }

    fn shaken(&self) -> Option<Rogue> {
        self.shaken_with(None)
    }

    fn shaken_with(&self, bodies: Option<Bodies>) -> Option<Rogue> {
        let rogue = Rogue::try_shaken_with(&self.victim.netns, self.sealed, bodies);
        match &rogue {
            Some(_) => self.acted.set(true),
            None => pause(),
        }
        rogue
    }

    fn afterwards(&self, act: impl Fn(&Rogue)) -> bool {
        let Some(rogue) = self.shaken() else { return false };
        act(&rogue);
        rogue.closed();
        true
    }

    fn sends(&self, descriptor: Descriptor, head: u16) -> bool {
        self.afterwards(|rogue| {
            rogue.describe(S2M_AT, &[descriptor; 256]);
            rogue.head(S2M_AT, head);
        })
    }

    /// Packets of the honest pod for this one.
    fn attract(&mut self, count: u16) {
        let datagram = self.honest.datagram(1, (self.victim.ip4(), 2), &[0x55; 600]);
        let frames = std::iter::repeat_n(&datagram[..], count.into());
        self.honest.queue_up(0, frames);
        self.honest.flush(0);
    }

    fn receives(&mut self, descriptor: Descriptor) -> bool {
        let Some(rogue) = self.shaken() else { return false };
        rogue.describe(M2S_AT, &[descriptor; 256]);
        rogue.head(M2S_AT, 256);
        self.until_closed(&rogue);
        true
    }

    fn until_closed(&mut self, rogue: &Rogue) {
        let start = Instant::now();
        while rogue.is_open() {
            self.attract(4);
            pause();
            assert!(start.elapsed() < Duration::from_secs(6), "the data plane does not disconnect");
        }
    }

    fn vanish(&mut self) -> bool {
        let Some(rogue) = self.shaken() else { return false };
        rogue.describe(M2S_AT, &[Descriptor::GOOD; 256]);
        rogue.head(M2S_AT, 256);
        rogue.file.set_len(0).expect("no seal forbids it");
        self.until_closed(&rogue);
        true
    }

    /// The connection that lasts, made anew where there is none.
    fn live(
        &mut self,
        bodies: fn(bool) -> Option<Bodies>,
        prepare: impl FnOnce(&Self, &Rogue),
    ) -> Option<Live> {
        if let Some(live) = self.live.take() {
            return Some(live);
        }
        let rogue = self.shaken_with(bodies(self.sealed))?;
        prepare(self, &rogue);
        Some(Live::new(rogue))
    }

    /// Whether the data plane has ended the connection; else it lasts.
    fn ended(&mut self, live: Live) -> bool {
        let over = !live.rogue.is_open();
        if !over {
            self.live = Some(live);
        }
        over
    }

    /// Frames that are too long are dropped, and the connection lasts.
    fn oversize(&mut self) -> bool {
        let long = Descriptor { length: 65_000, ..Descriptor::GOOD };
        let describe = |_: &Self, rogue: &Rogue| rogue.describe(S2M_AT, &[long; 256]);
        let Some(mut live) = self.live(|_| None, describe) else { return false };
        let round = live.advance(S2M_AT);
        assert!(!self.ended(live), "a long frame is no violation");
        round
    }

    fn blocking_eventfd(&mut self) -> bool {
        if self.live.is_none() {
            let blocking = eventfd(true);
            nix::unistd::write(&blocking, &(u64::MAX - 1).to_ne_bytes()).expect("to the brim");
            if !self.connect_with(&blocking, Vec::new()) {
                return false;
            }
        }
        self.be_signalled();
        self.live.as_ref().is_some_and(|live| live.rogue.tail(M2S_AT) > 0)
    }

    fn crowd(&mut self) -> bool {
        if self.live.is_none() {
            let signal = eventfd(false);
            let waiters = (0..CROWD).map(|_| waiter(&signal)).collect();
            if !self.connect_with(&signal, waiters) {
                return false;
            }
        }
        self.be_signalled();
        let Some(live) = self.live.take() else { return false };
        self.ended(live)
    }

    fn connect_with(&mut self, signal: &OwnedFd, crowd: Vec<Epoll>) -> bool {
        let rogue = Rogue::connect(&self.victim.netns, self.sealed);
        if !rogue.try_shake([ring(true), ring(false)], signal) {
            pause();
            return false;
        }
        rogue.describe(M2S_AT, &[Descriptor::GOOD; 256]);
        self.acted.set(true);
        self.live = Some(Live { _crowd: crowd, ..Live::new(rogue) });
        true
    }

    /// One frame at a time, each with a signal.
    fn be_signalled(&mut self) {
        if let Some(live) = self.live.as_mut() {
            live.advance(M2S_AT);
        }
        self.attract(1);
        pause();
    }
}

impl Live {
    fn new(rogue: Rogue) -> Self {
        Self { rogue, head: 0, _crowd: Vec::new(), puncher: None, punched: Instant::now() }
    }

    /// Gives the data plane another few slots, when it has used up the last.
    fn advance(&mut self, ring: u32) -> bool {
        let used = self.rogue.tail(ring) == self.head;
        if used {
            self.head = self.head.wrapping_add(STEP);
            self.rogue.head(ring, self.head);
        }
        used
    }
}

/// Somebody who is woken by every signal.
fn waiter(signal: &OwnedFd) -> Epoll {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("a descriptor");
    epoll.add(signal, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0)).expect("room");
    epoll
}

fn pause() {
    std::thread::sleep(Duration::from_micros(500));
}
