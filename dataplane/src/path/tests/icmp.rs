//! Pings of the gateway, and errors.

use super::super::testing::frames::*;
use super::super::testing::*;
use super::*;
use wire::Mac;

const REMOTE4: &str = "10.1.1.7";
const REMOTE6: &str = "fd00:1:0:1::7";

/// The ICMP error that came back to the pod: (source, destination, type, code, rest, quote).
fn error4(frame: &[u8]) -> (u32, u32, u8, u8, u32, &[u8]) {
    let word = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().expect("four"));
    assert_eq!((frame[12], frame[13], frame[14], frame[23]), (8, 0, 0x45, 1));
    (word(26), word(30), frame[34], frame[35], word(38), &frame[42..])
}

fn error6(frame: &[u8]) -> (u128, u128, u8, u8, u32, &[u8]) {
    let addr = |at: usize| u128::from_be_bytes(frame[at..at + 16].try_into().expect("sixteen"));
    assert_eq!((frame[12], frame[13], frame[20]), (0x86, 0xdd, 58));
    let rest = u32::from_be_bytes(frame[58..62].try_into().expect("four"));
    (addr(22), addr(38), frame[54], frame[55], rest, &frame[62..])
}

#[test]
fn the_gateway_answers_pings_of_any_size() {
    let mut world = World::new();
    for size in [0, 1, 56, 86, 87, 1000, 1401] {
        let payload: Vec<u8> = (0..size).map(|i| i as u8).collect();
        let request = ping4(a4(2), a4(1), &payload);
        let out = leaves(&world.send(10, &from_pod(10, &request)), Verdict::Answer, 10);
        let reply = ip4(a4(1), a4(2), 1, 64, &icmp4(0, 0, 0x0007_0001, &payload));
        assert_eq!(out, ethernet(pod_mac(10), gateway_mac(1), 0x0800, &reply));

        let request = ping6(a6(2), a6(1), &payload);
        let out = leaves(&world.send(10, &from_pod(10, &request)), Verdict::Answer, 10);
        let message = icmp6(a6(1), a6(2), 129, 0x0007_0001, &payload);
        let reply = ip6(a6(1), a6(2), 58, 64, &message);
        assert_eq!(out, ethernet(pod_mac(10), gateway_mac(1), 0x86dd, &reply));
    }
    // A TTL of one is enough for the gateway itself.
    let last = ip4(a4(2), a4(1), 1, 1, &icmp4(8, 0, 0, b""));
    leaves(&world.send(10, &from_pod(10, &last)), Verdict::Answer, 10);
}

#[test]
fn the_gateway_answers_on_its_link_local_address() {
    let mut world = World::new();
    let gateway = wire::link_local_of(gateway_mac(1));
    for src in [v6("fe80::1234"), a6(2)] {
        let out = world.send(10, &from_pod(10, &ping6(src, gateway, b"x")));
        leaves(&out, Verdict::Answer, 10);
    }
    // Not as itself, and not from a link-local address to anywhere else.
    let frame = from_pod(10, &ping6(gateway, gateway, b"x"));
    dropped(&world.send(10, &frame), DropReason::MartianSource);
    let frame = from_pod(10, &ping6(v6("fe80::1234"), a6(3), b"x"));
    dropped(&world.send(10, &frame), DropReason::MartianSource);
}

#[test]
fn a_bare_interface_gets_bare_answers() {
    let mut world = World::new();
    let out = leaves(&world.send(12, &ping4(a4(4), a4(1), b"x")), Verdict::Answer, 12);
    assert_eq!(out, ip4(a4(1), a4(4), 1, 64, &icmp4(0, 0, 0x0007_0001, b"x")));
    let outcome = world.send(12, &udp4(a4(4), a4(99), (1, 2), b"x"));
    leaves(&outcome, Verdict::DropAnswer(DropReason::NoRoute), 12);
}

#[test]
fn a_ping_out_of_a_tunnel_is_answered_through_it() {
    let mut world = World::new();
    for (request, family) in [
        (ping4(v4(REMOTE4), a4(1), &[5; 300]), 4),
        (ping6(v6(REMOTE6), a6(1), &[5; 300]), 4),
        (ping4(v4("10.1.2.7"), a4(1), &[5; 300]), 6),
    ] {
        let frame = tunnelled4(FAR_VTEP4.into(), 56, &from_node(&request));
        let outcome = world.send(UPLINK, &frame);
        leaves(&outcome, Verdict::Answer, UPLINK);
        assert_eq!(outcome.meta.outer, family);
    }
    // No way back: a source that no route leads to.
    let stranger = ping4(v4("203.0.113.5"), a4(1), b"x");
    let frame = tunnelled4(FAR_VTEP4.into(), 56, &from_node(&stranger));
    dropped(&world.send(UPLINK, &frame), DropReason::NoRoute);
}

#[test]
fn time_exceeded() {
    let mut world = World::new();
    for ttl in [0, 1] {
        let packet = ip4(a4(2), v4(REMOTE4), 17, ttl, &udp_unsummed(1, 2, &[6; 300]));
        let outcome = world.send(10, &from_pod(10, &packet));
        let out = leaves(&outcome, Verdict::DropAnswer(DropReason::TtlExpired), 10);
        assert_eq!(out[..12], ethernet(pod_mac(10), gateway_mac(1), 0, &[])[..12]);
        let (src, dst, kind, code, rest, quote) = error4(&out);
        assert_eq!((src, dst, kind, code, rest), (a4(1), a4(2), 11, 0, 0));
        assert_eq!(quote, &packet[..128 - 14], "the head, and no byte of the body");

        let packet = ip6(a6(2), v6(REMOTE6), 17, ttl, &udp_unsummed(1, 2, &[6; 300]));
        let outcome = world.send(10, &from_pod(10, &packet));
        let out = leaves(&outcome, Verdict::DropAnswer(DropReason::TtlExpired), 10);
        let (src, dst, kind, code, _, quote) = error6(&out);
        assert_eq!((src, dst, kind, code), (a6(1), a6(2), 3, 0));
        assert_eq!(quote, &packet[..128 - 14]);
    }
    // Two is enough, and it falls once: not behind the tunnel.
    let packet = ip4(a4(2), v4(REMOTE4), 17, 2, &udp_unsummed(1, 2, &[6; 300]));
    leaves(&world.send(10, &from_pod(10, &packet)), Verdict::Forward, UPLINK);
    let packet = ip4(v4(REMOTE4), a4(2), 17, 1, &udp_unsummed(1, 2, &[6; 300]));
    let frame = tunnelled4(FAR_VTEP4.into(), 56, &from_node(&packet));
    leaves(&world.send(UPLINK, &frame), Verdict::Forward, 10);
}

#[test]
fn unreachable() {
    let mut world = World::new();
    // Inside the realm: the host does not exist. Outside: no route.
    for (dst, code) in [("10.1.0.99", 1), ("8.8.8.8", 0)] {
        let packet = udp4(a4(2), v4(dst), (1, 2), b"x");
        let outcome = world.send(10, &from_pod(10, &packet));
        let out = leaves(&outcome, Verdict::DropAnswer(DropReason::NoRoute), 10);
        let (_, _, kind, found, _, quote) = error4(&out);
        assert_eq!((kind, found, quote), (3, code, &packet[..]));
    }
    for (dst, code) in [("fd00:1::99", 3), ("2001:db8:9::1", 0)] {
        let packet = udp6(a6(2), v6(dst), (1, 2), b"x");
        let outcome = world.send(10, &from_pod(10, &packet));
        let out = leaves(&outcome, Verdict::DropAnswer(DropReason::NoRoute), 10);
        let (_, _, kind, found, _, quote) = error6(&out);
        assert_eq!((kind, found, quote), (1, code, &packet[..]));
    }
}

#[test]
fn too_big_one_byte_beyond_the_mtu() {
    let mut world = World::new();
    for (dst4, dst6, out) in [(a4(3), a6(3), 11), (v4(REMOTE4), v6(REMOTE6), UPLINK)] {
        for extra in [0u16, 1] {
            let payload = vec![1; usize::from(MTU + extra) - 20];
            let outcome = world.send(10, &from_pod(10, &ip4(a4(2), dst4, 200, 64, &payload)));
            if extra == 0 {
                leaves(&outcome, Verdict::Forward, out);
            } else {
                let frame = leaves(&outcome, Verdict::DropAnswer(DropReason::TooBig), 10);
                let (_, _, kind, code, rest, _) = error4(&frame);
                assert_eq!((kind, code, rest), (3, 4, u32::from(MTU)));
            }
            let payload = vec![1; usize::from(MTU + extra) - 40];
            let outcome = world.send(10, &from_pod(10, &ip6(a6(2), dst6, 200, 64, &payload)));
            if extra == 0 {
                leaves(&outcome, Verdict::Forward, out);
            } else {
                let frame = leaves(&outcome, Verdict::DropAnswer(DropReason::TooBig), 10);
                let (_, _, kind, code, rest, _) = error6(&frame);
                assert_eq!((kind, code, rest), (2, 0, u32::from(MTU)));
            }
        }
    }
}

#[test]
fn errors_about_tunnelled_packets_go_back_through_the_tunnel() {
    let mut world = World::new();
    for (packet, reason) in [
        (udp4(v4(REMOTE4), a4(99), (1, 2), b"x"), DropReason::NoRoute),
        (udp6(v6(REMOTE6), a6(99), (1, 2), b"x"), DropReason::NoRoute),
        (ip4(v4(REMOTE4), a4(2), 17, 64, &[0; 1500]), DropReason::TooBig),
        (ip4(v4("10.1.2.7"), a4(2), 17, 0, &udp_unsummed(1, 2, b"x")), DropReason::TtlExpired),
    ] {
        let frame = tunnelled4(FAR_VTEP4.into(), 56, &from_node(&packet));
        let outcome = world.send(UPLINK, &frame);
        leaves(&outcome, Verdict::DropAnswer(reason), UPLINK);
        let inner = outcome.inner();
        assert_eq!(inner[..6], FAR_ROUTER_MAC.0);
    }
}

#[test]
fn without_a_gateway_errors_come_from_the_dummy_address() {
    let mut world = World::new();
    let vrf = world.tables.vrf(VrfId(1)).expect("blue");
    let bare = Vrf {
        gateways4: [].into(),
        gateways6: [].into(),
        prefixes4: vrf.prefixes4.clone(),
        prefixes6: vrf.prefixes6.clone(),
        name: vrf.name.clone(),
        peers: vrf.peers.clone(),
        fib4: vrf.fib4.clone(),
        fib6: vrf.fib6.clone(),
        counters: vrf.counters.clone(),
        ..**vrf
    };
    world.tables.vrfs.set(1, Some(std::sync::Arc::new(bare)));
    let outcome = world.send(10, &from_pod(10, &udp4(a4(2), a4(99), (1, 2), b"x")));
    let out = leaves(&outcome, Verdict::DropAnswer(DropReason::NoRoute), 10);
    assert_eq!(error4(&out).0, v4("192.0.0.8"), "RFC 7600");
    let outcome = world.send(10, &from_pod(10, &udp6(a6(2), a6(99), (1, 2), b"x")));
    let out = leaves(&outcome, Verdict::DropAnswer(DropReason::NoRoute), 10);
    assert_eq!(error6(&out).0, wire::link_local_of(gateway_mac(1)));
}

/// RFC 1812 §4.3.2.7 and RFC 4443 §2.4 e.
#[test]
fn what_no_error_is_sent_about() {
    let mut world = World::new();
    let nowhere = a4(99);
    for packet in [
        ip4(a4(2), nowhere, 1, 64, &icmp4(3, 1, 0, &[0; 28])),
        ip4(a4(2), nowhere, 1, 64, &icmp4(11, 0, 0, &[0; 28])),
        ip4_with(a4(2), nowhere, 17, 64, 0x0010, &[], &[0; 28]),
        ip4_with(a4(2), nowhere, 1, 64, 0x2000, &[], &[0; 28]),
    ] {
        dropped(&world.send(10, &from_pod(10, &packet)), DropReason::NoRoute);
    }
    let nowhere = a6(99);
    for packet in [
        ip6(a6(2), nowhere, 58, 64, &icmp6(a6(2), nowhere, 1, 0, &[0; 48])),
        ip6(a6(2), nowhere, 58, 64, &icmp6(a6(2), nowhere, 127, 0, &[0; 48])),
        ip6(a6(2), nowhere, 44, 64, &[17, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0]),
    ] {
        dropped(&world.send(10, &from_pod(10, &packet)), DropReason::NoRoute);
    }
    // The controls: a first fragment, and an echo request.
    let packet = ip4_with(a4(2), a4(99), 17, 64, 0x2000, &[], &[0; 28]);
    let outcome = world.send(10, &from_pod(10, &packet));
    leaves(&outcome, Verdict::DropAnswer(DropReason::NoRoute), 10);
    let outcome = world.send(10, &from_pod(10, &ping6(a6(2), a6(99), b"x")));
    leaves(&outcome, Verdict::DropAnswer(DropReason::NoRoute), 10);
    // Sent to all on the link.
    let packet = udp4(a4(2), a4(99), (1, 2), b"x");
    let frame = ethernet(Mac::BROADCAST, pod_mac(10), 0x0800, &packet);
    dropped(&world.send(10, &frame), DropReason::BumUnsupported);
}

#[test]
fn errors_are_limited_per_sender() {
    let mut world = World::new();
    let answered = |world: &mut World, iface: u16, src: u32| {
        let frame = from_pod(iface, &udp4(a4(src), a4(99), (1, 2), b"x"));
        (0..500)
            .filter(|_| world.send(iface, &frame).verdict != Verdict::Drop(DropReason::NoRoute))
            .count()
    };
    let first = answered(&mut world, 10, 2);
    assert!((10..=100).contains(&first), "{first}");
    assert_eq!(answered(&mut world, 10, 2), 0);
    assert_eq!(answered(&mut world, 11, 3), first, "others are not affected");
    world.now_ns += 1_000_000_000;
    assert_eq!(answered(&mut world, 10, 2), first);
}
