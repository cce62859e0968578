//! Attacks on the server's control socket. Each must end with its own reason, told to the peer
//! where that still listens, and must leave the server ready for the next client.

mod common;

use common::held::Held;
use common::rogue::{ATTACKS, Rogue, answers, eventfd, memory, raw_connect, ring, run};
use common::{accept, listener, offer, unique_name, wait_for};
use memif::wire::Message;
use memif::{
    Answer, CloseReason, Limits, Listener, ListenerLimits, Offer, Progress, RegionError, Status,
};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{setsockopt, sockopt};
use std::fs::File;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

#[test]
fn every_attack_is_closed_for_its_own_reason() {
    let name = unique_name();
    let mut listener = listener(&name);
    for attack in ATTACKS {
        let reason = run(attack, &name, &mut listener).to_string();
        assert!(reason.starts_with(attack.expect), "{}: {reason}", attack.name);
        let file = memory(common::rogue::REGION_BYTES, true);
        let (_, connection) =
            Rogue::establish(&name, &mut listener, &Answer::Accept(offer()), file, 10);
        assert!(!connection.poisoned(), "after {}", attack.name);
    }
}

#[test]
fn the_reason_is_told_to_the_peer() {
    let name = unique_name();
    let mut listener = listener(&name);
    let (rogue, mut handshake) = Rogue::connect(&name, &mut listener);
    rogue.send_region();
    assert!(matches!(handshake.on_readable(&answers), Progress::Closed(_)));
    let mut bytes = [0; 128];
    let mut last = None;
    while let Ok(128) = nix::unistd::read(&rogue.socket, &mut bytes) {
        last = Message::decode(&bytes).ok();
    }
    let Some(Message::Disconnect { reason, .. }) = last else { panic!("{last:?}") };
    let told = reason.to_printable();
    assert_eq!(told, "Unexpected message ADD_REGION, waiting for INIT");
}

#[test]
fn after_connected_only_a_goodbye_is_legal() {
    let name = unique_name();
    let mut listener = listener(&name);
    let connect = Message::Connect(memif::wire::Name::truncated("again"));
    let cases = [
        ("ADD_RING", Message::AddRing(ring(true, 6))),
        ("CONNECT", connect),
        ("ACK", Message::Ack),
        ("INIT", Message::Init(common::rogue::init())),
    ];
    for (kind, message) in cases {
        let file = memory(common::rogue::REGION_BYTES, true);
        let answer = Answer::Accept(offer());
        let (rogue, mut connection) = Rogue::establish(&name, &mut listener, &answer, file, 10);
        let fd = eventfd();
        let fds = if message.fds() == 1 { vec![fd.as_fd()] } else { vec![] };
        rogue.send(&message, &fds);
        let expected = CloseReason::UnexpectedMessage { kind, waiting_for: "DISCONNECT" };
        assert_eq!(connection.on_readable(), Status::Down(expected));
    }
}

#[test]
fn idle_clients_are_few_and_do_not_last() {
    let name = unique_name();
    let mut listener = Listener::bind_abstract(&name).unwrap();
    let idle: Vec<_> = (0..10).map(|_| raw_connect(&name)).collect();
    let mut open = Vec::new();
    while let Some(handshake) = listener.accept().unwrap() {
        open.push(handshake);
    }
    assert_eq!(open.len(), 4, "half-open handshakes per listener");
    assert!(listener.retry_at().is_some());
    let start = Instant::now();
    let first = open.remove(0);
    let mut handshake = first;
    assert!(matches!(handshake.on_readable(&answers), Progress::Pending));
    let reason = wait_for("the deadline", || match handshake.on_readable(&answers) {
        Progress::Closed(reason) => Some(reason),
        _ => None,
    });
    assert_eq!(reason, CloseReason::Deadline { limit_ms: 2000, waiting_for: "INIT" });
    assert!(start.elapsed() > Duration::from_millis(1500), "{:?}", start.elapsed());
    drop(handshake);
    assert!(listener.accept().unwrap().is_some(), "room for the next one");
    drop(idle);
}

#[test]
fn a_flood_of_connections_is_rationed() {
    let name = unique_name();
    let limits = ListenerLimits { accept_burst: 5, ..ListenerLimits::default() };
    let mut listener = Listener::bind_abstract(&name).unwrap().with_limits(limits);
    let start = Instant::now();
    let mut accepted = 0;
    for _ in 0..12 {
        let client = raw_connect(&name);
        accepted += u32::from(listener.accept().unwrap().is_some());
        drop(client);
    }
    let earned = start.elapsed().as_secs_f64() * 10.0;
    assert!(f64::from(accepted) <= 5.0 + earned, "{accepted} accepted");
    assert!(accepted >= 5);
    let retry = listener.retry_at().expect("a time to come back");
    assert!(retry <= Instant::now() + Duration::from_millis(101));
}

#[test]
fn established_connections_do_not_use_the_ration_up() {
    let name = unique_name();
    let limits = ListenerLimits { accept_burst: 3, accepts_per_s: 1, ..Default::default() };
    let mut listener = Listener::bind_abstract(&name).unwrap().with_limits(limits);
    for _ in 0..50 {
        let file = memory(common::rogue::REGION_BYTES, true);
        Rogue::establish(&name, &mut listener, &Answer::Accept(offer()), file, 6);
    }
}

#[test]
fn two_clients_race_for_one_interface_and_one_wins() {
    let name = unique_name();
    let mut listener = listener(&name);
    let taken = std::cell::Cell::new(false);
    let answers = |_| if taken.get() { Answer::Busy } else { Answer::Accept(offer()) };
    let mut ends = Vec::new();
    for _ in 0..2 {
        let (rogue, mut handshake) = Rogue::connect(&name, &mut listener);
        rogue.send_init();
        rogue.send_region();
        rogue.send_ring(ring(true, 6));
        assert!(matches!(handshake.on_readable(&answers), Progress::Pending));
        ends.push((rogue, handshake));
    }
    for (i, (rogue, handshake)) in ends.iter_mut().enumerate() {
        rogue.send_connect();
        match handshake.on_readable(&answers) {
            Progress::Connected(_) => assert!(i == 0 && !taken.replace(true)),
            Progress::Closed(reason) => assert_eq!((i, reason), (1, CloseReason::Busy(0))),
            Progress::Pending => panic!("neither"),
        }
    }
}

#[test]
fn large_pages_are_refused_before_they_are_mapped() {
    let name = unique_name();
    let mut listener = listener(&name);
    let refuse = |listener: &mut Listener, flags, bytes: u64, limit: u64| {
        let Ok(file) = memfd_create(c"huge", MFdFlags::MFD_ALLOW_SEALING | flags) else {
            return None;
        };
        let file = File::from(file);
        file.set_len(bytes).unwrap();
        let limits = Limits { page_bytes: limit, mapped_bytes: 4 << 30, ..Limits::default() };
        let answer = Answer::Accept(Offer { limits, ..offer() });
        let rogue = raw_connect(&name);
        let mut handshake = accept(listener);
        let rogue = Rogue { socket: rogue, file };
        rogue.send_init();
        rogue.send(&Message::AddRegion { index: 0, size: bytes }, &[rogue.file.as_fd()]);
        match handshake.on_readable(&|_| answer.clone()) {
            Progress::Closed(reason) => Some(reason),
            other => panic!("{other:?}"),
        }
    };
    let reason = |page_bytes, max_bytes| CloseReason::Region {
        index: 0,
        error: RegionError::PageSize { page_bytes, max_bytes },
    };
    let two_mib = MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB;
    let refused = refuse(&mut listener, two_mib, 2 << 20, 4096);
    assert_eq!(refused, Some(reason(2 << 20, 4096)));
    let one_gib = MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_1GB;
    // Not every CPU has pages of 1 GiB; where memfd_create refuses them, so does the attacker.
    if let Some(refused) = refuse(&mut listener, one_gib, 1 << 30, 2 << 20) {
        assert_eq!(refused, reason(1 << 30, 2 << 20));
    }
}

/// A socket that nobody can close at once: SO_LINGER, and a neighbour who does not read (socket(7)).
fn lingering() -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let linger = libc::linger { l_onoff: 1, l_linger: 30 };
    setsockopt(&sender, sockopt::Linger, &linger).unwrap();
    sender.set_nonblocking(true).unwrap();
    while sender.write(&[0; 1 << 16]).is_ok() {}
    (sender.into(), listener.accept().unwrap().0)
}

/// The peer leaves the last close to us.
#[test]
fn descriptors_that_take_their_time_to_be_closed_stop_nobody() {
    type Step = fn(&Rogue, &[BorrowedFd<'_>]);
    let cases: [(&str, Step); 7] = [
        ("with an ACK", |r, fds| r.send(&Message::Ack, fds)),
        ("twenty with an ACK", |r, fds| r.send(&Message::Ack, &[fds[0]; 20])),
        ("as memory", |r, fds| {
            r.send_init();
            r.send(&Message::AddRegion { index: 0, size: 4096 }, fds);
        }),
        ("as an eventfd", |r, fds| {
            r.send_init();
            r.send_region();
            r.send(&Message::AddRing(ring(true, 6)), fds);
        }),
        ("behind a short message", |r, fds| {
            r.send_bytes(b"short", &[]);
            r.send(&Message::Ack, fds);
        }),
        ("behind an empty message", |r, fds| {
            r.send_bytes(b"", &[]);
            r.send(&Message::Ack, fds);
        }),
        ("with an empty message", |r, fds| r.send_bytes(b"", fds)),
    ];
    let name = unique_name();
    let mut listener = listener(&name);
    for (what, send) in cases {
        let (fd, receiver) = lingering();
        let (rogue, mut handshake) = Rogue::connect(&name, &mut listener);
        send(&rogue, &[fd.as_fd()]);
        drop(fd);
        let start = Instant::now();
        assert!(matches!(handshake.on_readable(&answers), Progress::Closed(_)), "{what}");
        drop(handshake);
        assert!(start.elapsed() < Duration::from_secs(5), "{what}: {:?}", start.elapsed());
        drop(receiver);
    }
    let (rogue, mut connection) = Rogue::establish(
        &name,
        &mut listener,
        &Answer::Accept(offer()),
        memory(common::rogue::REGION_BYTES, true),
        6,
    );
    let (fd, receiver) = lingering();
    rogue.send(&Message::Ack, &[fd.as_fd()]);
    drop(fd);
    let start = Instant::now();
    assert!(matches!(connection.on_readable(), Status::Down(_)));
    drop(connection);
    // Sent before anybody accepts, and thrown away with the listener.
    let (fd, other) = lingering();
    let early = Rogue { socket: raw_connect(&name), file: memory(4096, true) };
    early.send(&Message::Ack, &[fd.as_fd()]);
    drop((fd, listener));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    drop((receiver, other));
}

/// What takes long enough to be told from what does not.
const IN_TIME: Duration = Duration::from_secs(2);

/// Does it on a thread that may get stuck.
fn in_time(what: &str, act: impl FnOnce() + Send + 'static) {
    let (done, over) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        act();
        let _ = done.send(());
    });
    over.recv_timeout(IN_TIME).unwrap_or_else(|error| panic!("{what}: {error}"));
}

#[test]
fn eventfds_that_cannot_be_closed_stop_nobody() {
    let name = unique_name();
    let mut listener = listener(&name);
    let mut held = Held::new();
    let (rogue, mut handshake) = Rogue::connect(&name, &mut listener);
    rogue.send(&Message::Ack, &[held.eventfd()]);
    held.give_up();
    in_time("unasked", move || {
        assert!(matches!(handshake.on_readable(&answers), Progress::Closed(_)));
    });
    let steps: [fn(&Rogue); 2] = [Rogue::send_connect, |r| r.send(&Message::Ack, &[])];
    for (step, connected) in steps.into_iter().zip([true, false]) {
        let mut held = Held::new();
        let (rogue, mut handshake) = Rogue::connect(&name, &mut listener);
        rogue.send_init();
        rogue.send_region();
        rogue.send(&Message::AddRing(ring(true, 6)), &[held.eventfd()]);
        assert!(matches!(handshake.on_readable(&answers), Progress::Pending));
        held.give_up();
        step(&rogue);
        in_time("of a ring", move || match handshake.on_readable(&answers) {
            Progress::Connected(connection) if connected => drop(connection),
            Progress::Closed(_) if !connected => {}
            other => panic!("{other:?}"),
        });
    }
}

/// What /proc says of an epoll is written under its lock, and may be long.
#[test]
fn nobody_asks_what_an_epoll_waits_for() {
    let name = unique_name();
    let mut listener = listener(&name);
    let held = Held::new();
    let (rogue, mut handshake) = Rogue::connect(&name, &mut listener);
    rogue.send_init();
    rogue.send_region();
    rogue.send(&Message::AddRing(ring(true, 6)), &[held.epoll()]);
    in_time("for an eventfd", move || {
        assert!(matches!(handshake.on_readable(&answers), Progress::Closed(_)));
    });
}

/// Whoever does so again and again keeps out nobody but clients of the same listener, and is not forgotten.
#[test]
fn what_is_being_closed_counts_as_half_open() {
    let name = unique_name();
    let mut listener = listener(&name);
    let receivers: Vec<_> = (0..4)
        .map(|_| {
            let (fd, receiver) = lingering();
            let (rogue, mut handshake) = Rogue::connect(&name, &mut listener);
            rogue.send(&Message::Ack, &[fd.as_fd()]);
            drop(fd);
            assert!(matches!(handshake.on_readable(&answers), Progress::Closed(_)));
            receiver
        })
        .collect();
    let _waits = raw_connect(&name);
    assert!(listener.accept().unwrap().is_none() && listener.retry_at().is_some());
    drop(receivers);
    wait_for("the next client to be let in", || listener.accept().unwrap());
}
