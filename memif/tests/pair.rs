//! Our client against our server, in one process.

mod common;

use common::{connect, listener, pair, payload, unique_name, wait_for};
use memif::{
    Address, Answer, ClientConfig, ClientEvent, CloseReason, Connection, Connector, Mode, Notifier,
    Offer, Reserved, RxBurst, RxQueue, Status, TxQueue, TxSegs,
};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// Sends frames one way and checks every byte at the other end.
fn transfer(tx: &mut TxQueue, rx: &mut RxQueue, len: usize, frames: u32) {
    let mut buffer = vec![0; 16 << 10];
    let (mut sent, mut received) = (0, 0);
    wait_for("all frames", || {
        while sent < frames && tx.send(&payload(sent, len)).unwrap() {
            sent += 1;
        }
        tx.publish();
        while let Some(n) = rx.recv(&mut buffer).unwrap() {
            assert!(
                buffer[..n] == payload(received, len),
                "frame {received} of {len} bytes differs"
            );
            received += 1;
        }
        (received == frames).then_some(())
    });
    assert_eq!(rx.recv(&mut buffer).unwrap(), None);
}

fn transfer_both_ways((server, client): &mut (Connection, Connection), len: usize, frames: u32) {
    for (a, b) in server.tx().iter_mut().zip(client.rx()) {
        transfer(a, b, len, frames);
    }
    for (a, b) in client.tx().iter_mut().zip(server.rx()) {
        transfer(a, b, len, frames);
    }
}

#[test]
fn frames_of_every_size_arrive_whole_both_ways() {
    for buffer_bytes in [512, 2048, 9216] {
        let mut pair = pair(|c| c.buffer_bytes = buffer_bytes);
        for len in [1, 64, 511, 512, 513, 1500, 2048, 2049, 8192] {
            transfer_both_ways(&mut pair, len, 300);
        }
    }
}

#[test]
fn jumbo_frames_are_chained() {
    let mut pair = pair(|c| c.buffer_bytes = 2048);
    transfer_both_ways(&mut pair, 9000, 3000);
}

#[test]
fn every_ring_size_wraps() {
    for log2 in 6..=14 {
        let mut pair = pair(|c| {
            c.log2_ring_size = log2;
            c.buffer_bytes = 128;
        });
        assert_eq!(pair.0.rx()[0].slots(), 1 << log2);
        transfer_both_ways(&mut pair, 64, (3 << log2) + 5);
    }
}

#[test]
fn queues_are_independent_and_in_order() {
    let (mut server, mut client) = pair(|c| {
        c.s2m_rings = 4;
        c.m2s_rings = 3;
    });
    assert_eq!((server.rx().len(), server.tx().len()), (4, 3));
    assert_eq!((client.rx().len(), client.tx().len()), (3, 4));
    for (i, tx) in client.tx().iter_mut().enumerate() {
        assert!(tx.send(&[i as u8; 60]).unwrap());
        tx.publish();
    }
    let mut buffer = [0; 64];
    for (i, rx) in server.rx().iter_mut().enumerate() {
        assert_eq!(rx.recv(&mut buffer).unwrap(), Some(60));
        assert_eq!(buffer[0], i as u8);
        assert_eq!(rx.recv(&mut buffer).unwrap(), None);
    }
}

#[test]
fn a_full_ring_refuses_and_recovers() {
    let (mut server, mut client) = pair(|c| c.log2_ring_size = 6);
    let (mut server, mut client) = (server.take_queues(), client.take_queues());
    for (tx, rx) in [(&mut client.1[0], &mut server.0[0]), (&mut server.1[0], &mut client.0[0])] {
        let mut out = TxSegs::new();
        for _ in 0..64 {
            assert_eq!(tx.reserve(60, &mut out).unwrap(), Reserved::Slots(1));
        }
        assert_eq!(tx.reserve(60, &mut out).unwrap(), Reserved::Full);
        assert_eq!(tx.reserve(0, &mut out).unwrap(), Reserved::Full);
        assert_eq!(rx.available().unwrap(), 0, "nothing is visible before it is published");
        tx.publish_slots(10);
        assert_eq!(rx.available().unwrap(), 10);
        tx.publish();
        let mut burst = RxBurst::new(64);
        assert_eq!(rx.claim(64, &mut burst).unwrap(), 64);
        assert_eq!(tx.free().unwrap(), 0);
        rx.release(3);
        assert_eq!(tx.free().unwrap(), 3);
        rx.release(61);
        assert_eq!(tx.free().unwrap(), 64);
        assert_eq!(tx.reserve(64 * 2048 + 1, &mut out).unwrap(), Reserved::BadLength);
        assert_eq!(tx.reserve(0, &mut out).unwrap(), Reserved::BadLength);
    }
}

#[test]
fn claims_can_be_held_back_and_returned() {
    let (mut server, mut client) = pair(|c| c.log2_ring_size = 6);
    let (tx, rx) = (&mut client.tx()[0], &mut server.rx()[0]);
    for i in 0..10 {
        assert!(tx.send(&payload(i, 3000)).unwrap());
    }
    tx.publish();
    let mut burst = RxBurst::new(64);
    assert_eq!(rx.claim(4, &mut burst).unwrap(), 4);
    assert_eq!(rx.claim(4, &mut burst).unwrap(), 4);
    assert_eq!((burst.len(), rx.held(), rx.available().unwrap()), (8, 16, 4));
    rx.unclaim(&mut burst, 5);
    assert_eq!((burst.len(), rx.held(), rx.available().unwrap()), (5, 10, 10));
    let mut again = RxBurst::new(64);
    assert_eq!(rx.claim(64, &mut again).unwrap(), 5);
    let mut buffer = [0; 4096];
    let frame = again.frames()[0];
    assert_eq!((frame.n_segs, frame.n_slots, frame.len_bytes), (2, 2, 3000));
    assert_eq!(rx.copy_to(&again, &frame, &mut buffer), Some(3000));
    assert!(buffer[..3000] == payload(5, 3000));
    assert_eq!(rx.copy_to(&again, &frame, &mut buffer[..2999]), None);
}

#[test]
fn oversize_frames_hold_their_slots_and_nothing_else() {
    let (mut server, mut client) = pair(|c| c.log2_ring_size = 6);
    let (tx, rx) = (&mut client.tx()[0], &mut server.rx()[0]);
    assert!(tx.send(&payload(0, 20_000)).unwrap());
    assert!(tx.send(&payload(1, 100)).unwrap());
    tx.publish();
    let mut burst = RxBurst::new(8);
    assert_eq!(rx.claim(8, &mut burst).unwrap(), 2);
    let [big, small] = burst.frames() else { panic!("two frames") };
    assert!(big.is_oversize());
    assert_eq!((big.n_slots, big.len_bytes), (10, 20_000));
    assert_eq!((small.is_oversize(), small.len_bytes, small.n_slots), (false, 100, 1));
    rx.release(11);
    assert_eq!(tx.free().unwrap(), 64);
}

#[test]
fn a_burst_takes_no_more_than_it_has_room_for() {
    let (mut server, mut client) = pair(|_| {});
    let (tx, rx) = (&mut client.tx()[0], &mut server.rx()[0]);
    for i in 0..40 {
        assert!(tx.send(&payload(i, 9000)).unwrap());
    }
    tx.publish();
    let mut burst = RxBurst::new(16);
    let mut seen = 0;
    let mut buffer = vec![0; 9000];
    while seen < 40 {
        burst.clear();
        assert!(rx.claim(64, &mut burst).unwrap() > 0);
        for frame in burst.frames() {
            assert_eq!(rx.copy_to(&burst, frame, &mut buffer), Some(9000));
            assert!(buffer == payload(seen, 9000));
            rx.release(frame.n_slots);
            seen += 1;
        }
    }
}

#[test]
fn ip_mode_and_secret_must_agree() {
    let ip = pair(|c| c.mode = Mode::Ip);
    assert_eq!(ip.0.info().mode, Mode::Ip);
    let secret = pair(|c| c.secret = "abc".to_owned());
    assert_eq!(secret.1.info().peer_interface, "srv0");
    assert_eq!(secret.0.info().peer_pid, std::process::id() as i32);
    let refused = |offer: Offer, secret: &str| {
        let name = unique_name();
        let mut listener = listener(&name);
        let mut config = ClientConfig::new(Address::Abstract(name), 7);
        config.secret = secret.to_owned();
        let mut connector = Connector::new(config);
        assert!(matches!(connector.poll(Instant::now()), ClientEvent::Pending));
        let mut handshake = common::accept(&mut listener);
        wait_for("a refusal", || {
            if let ClientEvent::Failed(CloseReason::PeerDisconnected(_)) =
                connector.poll(Instant::now())
            {
                panic!("the server has not looked yet");
            }
            match handshake.on_readable(&|_| Answer::Accept(offer.clone())) {
                memif::Progress::Closed(reason) => Some(reason),
                _ => None,
            }
        })
    };
    let with = |secret: &str| Offer { secret: secret.to_owned(), ..Offer::default() };
    assert_eq!(refused(with("abc"), ""), CloseReason::SecretRequired);
    assert_eq!(refused(with("abc"), "abd"), CloseReason::SecretWrong);
    let ip = Offer { mode: Mode::Ip, ..Offer::default() };
    assert_eq!(refused(ip, ""), CloseReason::Mode { got: 0, want: Mode::Ip });
}

#[test]
fn a_client_takes_no_more_than_the_server_announces() {
    let name = unique_name();
    let mut limits = memif::ListenerLimits::default();
    limits.hello.s2m_rings = 2;
    limits.hello.log2_ring_size = 9;
    let mut listener = memif::Listener::bind_abstract(&name).unwrap().with_limits(limits);
    let mut config = ClientConfig::new(Address::Abstract(name), 7);
    (config.s2m_rings, config.m2s_rings, config.log2_ring_size) = (4, 4, 12);
    let mut connector = Connector::new(config);
    let (mut server, _client) =
        connect(&mut listener, &mut connector, &Answer::Accept(common::offer()));
    assert_eq!((server.rx().len(), server.tx().len(), server.rx()[0].slots()), (2, 4, 512));
}

#[test]
fn several_interfaces_share_a_socket() {
    let name = unique_name();
    let mut listener = listener(&name);
    let mut ends = Vec::new();
    for id in [3, 9] {
        let config = ClientConfig::new(Address::Abstract(name.clone()), id);
        let answer = Answer::Accept(common::offer());
        ends.push(connect(&mut listener, &mut Connector::new(config), &answer));
    }
    assert_eq!((ends[0].0.info().id, ends[1].0.info().id), (3, 9));
    for pair in &mut ends {
        transfer_both_ways(pair, 64, 100);
    }
}

#[test]
fn path_sockets_replace_stale_files_but_not_live_ones() {
    let path = std::env::temp_dir().join(unique_name());
    let first = memif::Listener::bind_path(&path).unwrap();
    assert!(memif::Listener::bind_path(&path).is_err(), "somebody listens there");
    drop(first);
    let mut second = memif::Listener::bind_path(&path).unwrap();
    let config = ClientConfig::new(Address::Path(path.clone()), 7);
    let answer = Answer::Accept(common::offer());
    let mut pair = connect(&mut second, &mut Connector::new(config), &answer);
    transfer_both_ways(&mut pair, 64, 10);
    drop(second);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "not a socket").unwrap();
    assert!(memif::Listener::bind_path(&path).is_err());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "not a socket");
    std::fs::remove_file(&path).unwrap();
}

/// A client that waits in the backlog is greeted in the turn in which the last one's end is seen.
#[test]
fn the_next_client_is_served_in_the_same_turn() {
    let name = unique_name();
    let mut listener = listener(&name);
    let answer = Answer::Accept(common::offer());
    let config = ClientConfig::new(Address::Abstract(name), 7);
    let first = connect(&mut listener, &mut Connector::new(config.clone()), &answer);
    let (mut server, client) = first;
    let mut next = Connector::new(config);
    assert!(matches!(next.poll(Instant::now()), ClientEvent::Pending));
    drop(client);
    // One turn of a server's loop: what happened to the connection, then who waits.
    assert_eq!(server.on_readable(), Status::Down(CloseReason::PeerClosed));
    let handshake = listener.accept().unwrap().expect("the client in the backlog");
    let client = std::thread::spawn(move || next.connect_blocking(common::PATIENCE).unwrap());
    let server = common::finish(handshake, &answer).unwrap();
    transfer_both_ways(&mut (server, client.join().unwrap()), 64, 10);
}

#[test]
fn goodbyes_and_deaths_are_told_apart() {
    let (mut server, client) = pair(|_| {});
    assert_eq!(server.on_readable(), Status::Up);
    client.disconnect(&CloseReason::Local("lunch".to_owned()));
    let down = wait_for("the goodbye", || match server.on_readable() {
        Status::Up => None,
        Status::Down(reason) => Some(reason),
    });
    assert_eq!(down, CloseReason::PeerDisconnected("closed here: lunch".to_owned()));
    let (server, mut client) = pair(|_| {});
    drop(server);
    let down = client.wait(Duration::from_secs(5)).unwrap();
    assert_eq!(down, Status::Down(CloseReason::PeerClosed));
}

#[test]
fn queues_outlive_their_connection() {
    let (mut server, mut client) = pair(|_| {});
    let (rx, _) = server.take_queues();
    let (_, tx) = client.take_queues();
    drop((server, client));
    let (mut rx, mut tx) = (rx.into_iter().next().unwrap(), tx.into_iter().next().unwrap());
    std::thread::spawn(move || transfer(&mut tx, &mut rx, 700, 5000)).join().unwrap();
}

#[test]
fn sleeping_receivers_are_woken_and_polling_ones_are_not() {
    let (mut server, mut client) = pair(|_| {});
    let mut notifier = Notifier::new().unwrap();
    let (tx, rx) = (&mut client.tx()[0], &mut server.rx()[0]);
    let signals = |queue: &RxQueue| {
        let info =
            format!("/proc/self/fdinfo/{}", std::os::fd::AsRawFd::as_raw_fd(&queue.eventfd()));
        let text = std::fs::read_to_string(info).unwrap();
        let line = text.lines().find_map(|l| l.strip_prefix("eventfd-count:")).unwrap().trim();
        u64::from_str_radix(line, 16).unwrap()
    };
    assert!(!rx.set_polling(true).unwrap());
    assert!(tx.send(&[0; 60]).unwrap());
    tx.flush(&mut notifier).unwrap();
    assert_eq!(signals(rx), 0);
    assert!(rx.set_polling(false).unwrap(), "a frame came before we wanted signals");
    let mut buffer = [0; 64];
    assert_eq!(rx.recv(&mut buffer).unwrap(), Some(60));
    assert!(!rx.set_polling(false).unwrap());
    assert!(tx.send(&[0; 60]).unwrap());
    tx.flush(&mut notifier).unwrap();
    assert_eq!(signals(rx), 1);
    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
    epoll.add(rx.eventfd().as_fd(), EpollEvent::new(flags, 1)).unwrap();
    for round in 0..3 {
        let mut events = [EpollEvent::empty()];
        assert_eq!(epoll.wait(&mut events, EpollTimeout::from(5000u16)).unwrap(), 1, "{round}");
        assert_eq!(rx.recv(&mut buffer).unwrap(), Some(60));
        assert!(!rx.set_polling(false).unwrap());
        assert!(tx.send(&[0; 60]).unwrap());
        tx.flush(&mut notifier).unwrap();
    }
}

#[test]
fn a_lost_client_comes_back_with_backoff() {
    let name = unique_name();
    let mut connector = Connector::new(ClientConfig::new(Address::Abstract(name.clone()), 1));
    let mut now = Instant::now();
    let mut waits = Vec::new();
    for _ in 0..8 {
        assert!(matches!(connector.poll(now), ClientEvent::Failed(CloseReason::System { .. })));
        assert!(matches!(connector.poll(now), ClientEvent::Pending), "not before its time");
        let next = connector.deadline().unwrap();
        waits.push(next.duration_since(now).as_millis());
        now = next;
    }
    assert!((75..=125).contains(&waits[0]), "{waits:?}");
    assert!(waits.iter().all(|&w| w <= 3750), "{waits:?}");
    assert!(waits[7] >= 2250, "{waits:?}");
    let mut listener = listener(&name);
    let mut connector = Connector::new(ClientConfig::new(Address::Abstract(name), 1));
    let answer = Answer::Accept(common::offer());
    for _ in 0..3 {
        let mut pair = connect(&mut listener, &mut connector, &answer);
        transfer_both_ways(&mut pair, 64, 10);
        drop(pair);
        let now = Instant::now();
        connector.lost(now);
        let wait = connector.deadline().unwrap().duration_since(now).as_millis();
        assert!((75..=125).contains(&wait), "{wait} ms");
    }
}

/// Pods are alike: process 1, interface 0, one name. They must not all come back in the same millisecond.
#[test]
fn no_two_clients_wait_for_the_same_times() {
    let waits = |name: &str| {
        let mut connector =
            Connector::new(ClientConfig::new(Address::Abstract(name.to_owned()), 0));
        let start = Instant::now();
        let mut now = start;
        let wait = |_| {
            assert!(matches!(connector.poll(now), ClientEvent::Failed(_)));
            now = connector.deadline().unwrap();
            now.duration_since(start)
        };
        (0..8).map(wait).collect::<Vec<_>>()
    };
    let name = unique_name();
    assert_ne!(waits(&name), waits(&name));
}

/// An abstract name belongs to a network namespace: a listener made there is reached from there alone.
#[test]
fn abstract_names_belong_to_a_network_namespace() {
    use nix::sched::{CloneFlags, unshare};
    let name = unique_name();
    let (send, receive) = std::sync::mpsc::channel();
    let (reply, wait) = std::sync::mpsc::channel::<()>();
    let inside = std::thread::spawn({
        let name = name.clone();
        move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a namespace of one's own needs root");
            let listener = memif::Listener::bind_abstract(&name).unwrap();
            send.send(listener.as_fd().try_clone_to_owned().unwrap()).unwrap();
            let mut connector = Connector::new(ClientConfig::new(Address::Abstract(name), 0));
            let connection = connector.connect_blocking(common::PATIENCE).unwrap();
            wait.recv().unwrap();
            connection
        }
    });
    let fd = receive.recv().unwrap();
    let mut listener = memif::Listener::from_fd(fd).unwrap();
    let mut outside = Connector::new(ClientConfig::new(Address::Abstract(name), 0));
    let ClientEvent::Failed(reason) = outside.poll(Instant::now()) else { panic!("reached") };
    assert!(reason.to_string().contains("ECONNREFUSED"), "{reason}");
    let answer = Answer::Accept(common::offer());
    let server = common::finish(common::accept(&mut listener), &answer).unwrap();
    reply.send(()).unwrap();
    transfer_both_ways(&mut (server, inside.join().unwrap()), 64, 100);
}
