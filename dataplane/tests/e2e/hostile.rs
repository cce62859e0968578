//! Pods that attack the data plane, with two honest ones beside them on the same worker: these
//! lose nothing, whatever happens.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use memif::wire::{AddRing, Message, Name};
use nix::sys::signal::Signal;

use crate::lab::memif::{Listening, Shape};
use crate::lab::rogue::{
    BUFFERS_AT, Bodies, Descriptor, M2S_AT, REGION_BYTES, Rogue, S2M_AT, eventfd, lingering,
    memory, ring,
};
use crate::lab::{Lab, MemifPod, Node, Realm, TapPod, frame, wait};

/// Two honest pods that exchange numbered frames all the time.
struct Bystanders {
    stop: Arc<AtomicBool>,
    got: Arc<AtomicU64>,
    thread: Option<JoinHandle<(u64, u64)>>,
}

impl Bystanders {
    fn start(mut a: MemifPod, mut b: MemifPod) -> Self {
        let (stop, got) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (told, shared) = (Arc::clone(&stop), Arc::clone(&got));
        let thread = std::thread::spawn(move || {
            let (mut sent, mut received) = (0_u64, 0_u64);
            let mut last = Instant::now();
            // After the word to stop, what is under way may still arrive.
            while !told.load(Ordering::Relaxed)
                || (sent > received && last.elapsed() < Duration::from_secs(1))
            {
                while sent - received < 64 && !told.load(Ordering::Relaxed) {
                    let frame = a.datagram(1, (b.at.ip4(), 2), &sent.to_be_bytes());
                    sent += a.queue_up(0, [&frame[..]]) as u64;
                }
                a.flush(0);
                let mut any = false;
                while let Some(frame) = b.recv(0) {
                    if frame.len() >= 50 && frame[23] == 17 {
                        received += 1;
                        any = true;
                    }
                }
                if any {
                    last = Instant::now();
                    shared.store(received, Ordering::Relaxed);
                } else {
                    std::thread::yield_now();
                }
            }
            (sent, received)
        });
        Self { stop, got, thread: Some(thread) }
    }

    /// Traffic goes on: a thousand more frames arrive.
    fn flow(&self, after: &str) {
        let before = self.got.load(Ordering::Relaxed);
        wait(&format!("the bystanders' traffic after {after}"), 5.0, || {
            (self.got.load(Ordering::Relaxed) > before + 1000).then_some(())
        });
    }

    /// Nothing was lost.
    fn finish(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("not finished before");
        let (sent, received) = thread.join().expect("honest pods");
        assert!(sent > 1000, "{sent}");
        assert_eq!(sent, received, "bystanders lost frames");
    }
}

impl Drop for Bystanders {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its pods' namespaces go with it.
            let _ = thread.join();
        }
    }
}

struct World {
    node: Node,
    sender: MemifPod,
    victim: Option<Listening>,
    bystanders: Bystanders,
}

fn world(sealed: bool) -> World {
    let mut node = Node::local(1);
    let blue = Realm::new("blue", 56, 1500);
    node.add_realm(&blue);
    let a = MemifPod::new(&mut node, &blue, 20);
    let b = MemifPod::new(&mut node, &blue, 21);
    let sender = MemifPod::new(&mut node, &blue, 22);
    let shape = Shape { sealed, ..Shape::default() };
    let victim = Listening::new(&mut node, &blue, 30, shape);
    World { node, sender, victim: Some(victim), bystanders: Bystanders::start(a, b) }
}

impl World {
    fn at(&self) -> &Listening {
        self.victim.as_ref().expect("nobody honest is connected")
    }

    fn status(&self) -> api::InterfaceStatus {
        self.node.status(&self.at().id).expect("the interface")
    }

    /// The listener lets in ten a second, and after some violations none for a second: a refusal is no
    /// answer yet.
    fn shaken(&self, sealed: bool) -> Rogue {
        wait("the last connection is over", 5.0, || {
            (self.status().link() != api::interface_status::Link::Up).then_some(())
        });
        let netns = &self.at().netns;
        let rogue = wait("a rogue is let in", 10.0, || Rogue::try_shaken(netns, sealed));
        self.node.wait_up(&self.at().id);
        rogue
    }

    /// The data plane has noticed, and disconnected.
    fn punished(&self, what: &str, before: u64) {
        wait(&format!("the data plane disconnects after {what}"), 5.0, || {
            (self.status().violations > before).then_some(())
        });
        self.bystanders.flow(what);
    }

    /// An honest client may come to the same interface, and nothing was lost beside it.
    fn finish(mut self) {
        let victim = self.victim.take().expect("nobody honest is connected");
        let (id, to) = (victim.id.clone(), victim.ip4());
        let mut honest = victim.connect();
        self.node.wait_up(&id);
        let datagram = self.sender.datagram(1, (to, 2), b"are you well");
        crate::lab::End::inject(&mut self.sender, &datagram);
        crate::lab::End::wait_marked(&mut honest, b"are you well", 1);
        self.bystanders.finish();
    }

    /// Packets for the attacked interface.
    fn send_to_victim(&mut self, count: usize) {
        let to: IpAddr = self.at().ip4();
        let datagram = self.sender.datagram(1, (to, 2), &[0x55; 600]);
        for _ in 0..count {
            self.sender.try_send(0, &datagram);
        }
    }
}

#[test]
fn nonsense_on_the_control_socket_hurts_nobody() {
    let _lab = Lab::new();
    let world = world(true);
    let netns = &world.at().netns;
    let connect = || Rogue::connect(netns, true);
    // Come and go without a word.
    for _ in 0..8 {
        drop(connect());
    }
    world.bystanders.flow("coming and going");
    let null = std::fs::File::open("/dev/null").expect("/dev/null");
    type Attack<'a> = (&'a str, Box<dyn Fn(&Rogue) + 'a>);
    let hostile_ring = |change: fn(&mut AddRing)| {
        let mut hostile = ring(true);
        change(&mut hostile);
        move |rogue: &Rogue| {
            rogue.up_to_rings();
            rogue.send_ring(&hostile);
        }
    };
    let attacks: Vec<Attack<'_>> = vec![
        ("a short message", Box::new(|r| r.send_bytes(&[1, 0], &[]))),
        ("a long message", Box::new(|r| r.send_bytes(&[0; 4000], &[]))),
        ("an unknown type", Box::new(|r| r.send_bytes(&[0x77; 128], &[]))),
        (
            "descriptors on a message that takes none",
            Box::new(|r| {
                let ack = [&[1, 0][..], &[0; 126]].concat();
                r.send_bytes(&ack, &[null.as_fd(), null.as_fd()]);
            }),
        ),
        (
            "a region that is no memory",
            Box::new(|r| {
                r.up_to_region();
                r.send(&Message::AddRegion { index: 0, size: REGION_BYTES }, &[null.as_fd()]);
            }),
        ),
        (
            "a region beyond its file",
            Box::new(|r| {
                r.up_to_region();
                r.send(
                    &Message::AddRegion { index: 0, size: REGION_BYTES * 64 },
                    &[r.file.as_fd()],
                );
            }),
        ),
        (
            "a region without seals",
            Box::new(|r| {
                r.up_to_region();
                let unsealed = memory(REGION_BYTES);
                let message = Message::AddRegion { index: 0, size: REGION_BYTES };
                r.send(&message, &[unsealed.as_fd()]);
            }),
        ),
        (
            "a region with index 255",
            Box::new(|r| {
                r.up_to_region();
                r.send(&Message::AddRegion { index: 255, size: REGION_BYTES }, &[r.file.as_fd()]);
            }),
        ),
        ("a ring far outside", Box::new(hostile_ring(|r| r.offset = 0xffff_f000))),
        ("a ring in no region", Box::new(hostile_ring(|r| r.region = 7))),
        ("a ring of 2^31 slots", Box::new(hostile_ring(|r| r.log2_ring_size = 31))),
        ("a ring with index 60000", Box::new(hostile_ring(|r| r.index = 60_000))),
        ("a private header", Box::new(hostile_ring(|r| r.private_hdr_size = 64))),
    ];
    for (what, attack) in &attacks {
        let rogue = connect();
        attack(&rogue);
        rogue.closed();
        world.bystanders.flow(what);
    }
    world.finish();
}

/// Whoever closes such a socket last waits for minutes; the data plane's control thread does not.
#[test]
fn a_socket_that_lingers_stops_nobody() {
    let _lab = Lab::new();
    let world = world(true);
    for live in [false, true] {
        let (socket, neighbour) = lingering();
        let rogue = if live { world.shaken(true) } else { Rogue::connect(&world.at().netns, true) };
        // Stopped, so that the last close is the data plane's.
        let signal = |signal| world.node.process.borrow().signal(signal);
        signal(Signal::SIGSTOP);
        rogue.send_bytes(&Message::Ack.encode(), &[socket.as_fd()]);
        drop(socket);
        signal(Signal::SIGCONT);
        rogue.closed();
        let start = Instant::now();
        world.status();
        assert!(start.elapsed() < Duration::from_secs(5), "live: {live}: {:?}", start.elapsed());
        world.bystanders.flow("a socket that lingers");
        drop(neighbour);
    }
    world.finish();
}

#[test]
fn messages_after_the_handshake_end_the_connection() {
    let _lab = Lab::new();
    let world = world(true);
    for n in 0..3 {
        let rogue = world.shaken(true);
        match n {
            0 => rogue.send_ring(&ring(true)),
            1 => rogue.send(&Message::Connect(Name::truncated("again")), &[]),
            _ => rogue.send_bytes(&[0xff; 128], &[]),
        }
        rogue.closed();
        world.bystanders.flow("a message out of turn");
    }
    world.finish();
}

#[test]
fn idle_half_open_connections_keep_nobody_out() {
    let _lab = Lab::new();
    let world = world(true);
    let idle: Vec<Rogue> = (0..12).map(|_| Rogue::connect(&world.at().netns, true)).collect();
    world.bystanders.flow("twelve idle connections");
    for rogue in &idle {
        rogue.closed();
    }
    world.finish();
}

#[test]
fn hostile_descriptors_and_indexes_are_found_out() {
    let _lab = Lab::new();
    let mut world = world(true);
    let good = Descriptor::GOOD;
    let send: [(&str, Descriptor); 6] = [
        ("region 200", Descriptor { region: 200, ..good }),
        ("region 60000", Descriptor { region: 60_000, ..good }),
        ("an offset beyond the region", Descriptor { offset: 0xf000_0000, ..good }),
        ("a length beyond the region", Descriptor { length: 0x7fff_ffff, ..good }),
        (
            "the region's last byte and one more",
            Descriptor { offset: REGION_BYTES as u32 - 63, length: 64, ..good },
        ),
        ("a chain without an end", Descriptor { flags: 1, length: 64, ..good }),
    ];
    for (what, bad) in send {
        let before = world.status().violations;
        let rogue = world.shaken(true);
        rogue.describe(S2M_AT, &[bad; 256]);
        rogue.head(S2M_AT, 200);
        world.punished(what, before);
        rogue.closed();
    }
    for head in [257, 40_000, 0xffff] {
        let before = world.status().violations;
        let rogue = world.shaken(true);
        rogue.describe(S2M_AT, &[good; 256]);
        rogue.head(S2M_AT, head);
        world.punished("a head beyond the ring", before);
    }
    // The ring that the data plane fills.
    let receive: [(&str, Descriptor); 4] = [
        ("an empty buffer in region 200", Descriptor { region: 200, ..good }),
        ("an empty buffer outside", Descriptor { offset: 0xf000_0000, ..good }),
        ("a buffer that reaches outside", Descriptor { offset: REGION_BYTES as u32 - 8, ..good }),
        ("a buffer of no bytes", Descriptor { length: 0, ..good }),
    ];
    for (what, bad) in receive {
        let before = world.status().violations;
        let rogue = world.shaken(true);
        rogue.describe(M2S_AT, &[bad; 256]);
        rogue.head(M2S_AT, 256);
        world.send_to_victim(8);
        world.punished(what, before);
        drop(rogue);
    }
    world.finish();
}

#[test]
fn memory_that_goes_away_hurts_only_its_owner() {
    let _lab = Lab::new();
    let mut world = world(false);
    // Once the rings vanish as well: a ring that is written afterwards comes back empty, and may be read
    // before or after that. Twice the buffers alone, which nothing brings back.
    for keep in [0, u64::from(BUFFERS_AT), u64::from(BUFFERS_AT)] {
        let before = world.status().violations;
        let rogue = world.shaken(false);
        let good = Descriptor { length: 1000, ..Descriptor::GOOD };
        rogue.describe(S2M_AT, &[good; 256]);
        rogue.describe(M2S_AT, &[Descriptor::GOOD; 256]);
        rogue.head(M2S_AT, 256);
        rogue.head(S2M_AT, 200);
        rogue.file.set_len(keep).expect("no seal forbids it");
        rogue.head(S2M_AT, 250);
        world.send_to_victim(8);
        world.punished("memory that vanished", before);
    }
    // A second after the first time that memory was missing under the worker, two after the second.
    // Asked every few milliseconds: a client that backs off would hide the difference.
    let again = Instant::now();
    drop(world.shaken(false));
    let waited = again.elapsed();
    let least = Duration::from_millis(1500);
    assert!(waited > least, "the next client had to wait for {waited:?} only");
    world.finish();
}

/// The kernel reads what goes to a tap straight from the sender's memory, and finds holes there.
#[test]
fn holes_under_a_tap_are_the_senders() {
    const HEAD_BYTES: usize = 128;
    let _lab = Lab::new();
    let mut world = world(false);
    let tap = TapPod::new(&mut world.node, &Realm::new("blue", 56, 1500), 40);
    let before = world.status().violations;
    let (at, bodies) = (world.at(), || Some(Bodies::new(64, false, false)));
    let rogue =
        wait("a rogue is let in", 5.0, || Rogue::try_shaken_with(&at.netns, false, bodies()));
    world.node.wait_up(&at.id);
    let mut packet = frame::udp((at.ip4(), 1), (tap.ip4(), 2), &[0; 1000]);
    // Without a sum nobody has to look at the body before the kernel does.
    packet[26..28].fill(0);
    let sent = frame::ethernet(at.gateway_mac, at.mac, 0x0800, &packet);
    rogue.put(BUFFERS_AT.into(), &sent[..HEAD_BYTES]);
    let head = Descriptor { flags: 1, length: HEAD_BYTES as u32, ..Descriptor::GOOD };
    let room = rogue.bodies.as_ref().expect("bodies");
    let body = |n| room.descriptor(n, (sent.len() - HEAD_BYTES) as u32);
    rogue.describe(S2M_AT, &(0..64).flat_map(|n| [head, body(n)]).collect::<Vec<_>>());
    room.punch().expect("no seal forbids it");
    rogue.head(S2M_AT, 128);
    world.punished("holes under a tap", before);
    drop(rogue);
    world.finish();
}

/// A full eventfd that blocks its writers, armed: the worker must neither write nor read it.
#[test]
fn a_blocking_eventfd_blocks_nobody() {
    let _lab = Lab::new();
    let mut world = world(true);
    let rogue = Rogue::connect(&world.at().netns, true);
    rogue.up_to_rings();
    let blocking = eventfd(true);
    nix::unistd::write(&blocking, &(u64::MAX - 1).to_ne_bytes()).expect("filled to the brim");
    for s2m in [true, false] {
        rogue.send(&Message::AddRing(ring(s2m)), &[blocking.as_fd()]);
        rogue.answered();
    }
    rogue.send(&Message::Connect(Name::truncated("rogue")), &[]);
    rogue.answered();
    world.node.wait_up(&world.at().id);
    rogue.describe(M2S_AT, &[Descriptor::GOOD; 256]);
    rogue.head(M2S_AT, 256);
    for _ in 0..10 {
        world.send_to_victim(8);
        world.bystanders.flow("signals to a full eventfd");
    }
    drop(rogue);
    wait("the rogue's connection is over", 5.0, || {
        (world.status().link() != api::interface_status::Link::Up).then_some(())
    });
    world.finish();
}

/// A tap's pod floods with what is to be dropped; the others lose nothing.
#[test]
fn a_flooding_pod_hurts_only_itself() {
    let _lab = Lab::new();
    let mut world = world(true);
    let blue = Realm::new("blue", 56, 1500);
    let pod = TapPod::new(&mut world.node, &blue, 40);
    let raw = pod.raw();
    let packet = frame::udp((Realm::ip4(99), 1), (Realm::ip4(21), 2), &[7; 1000]);
    let spoofed = frame::ethernet(pod.gateway_mac, pod.mac, 0x0800, &packet);
    for _ in 0..5000 {
        raw.send(&spoofed);
    }
    world.bystanders.flow("a flood");
    world.finish();
}
