//! Attacks on the server's control socket. Each must end with its own reason, told to the peer
//! where that still listens, and must leave the server ready for the next client.

mod common;

use common::rogue::{ATTACKS, Rogue, answers, eventfd, memory, raw_connect, ring, run};
use common::{accept, listener, offer, unique_name, wait_for};
use memif::wire::Message;
use memif::{
    Answer, CloseReason, Limits, Listener, ListenerLimits, Offer, Progress, RegionError, Status,
};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::os::fd::AsFd;
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
