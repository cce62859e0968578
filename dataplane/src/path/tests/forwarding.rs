//! From pod to pod on one node.

use super::super::testing::frames::*;
use super::super::testing::{MTU, gateway_mac, pod_mac};
use super::*;

#[test]
fn ipv4_between_pods_byte_by_byte() {
    let mut world = World::new();
    let packet = udp4(a4(2), a4(3), (1000, 2000), b"hello");
    let out = leaves(&world.send(10, &from_pod(10, &packet)), Verdict::Forward, 11);
    let mut expected = ethernet(pod_mac(11), gateway_mac(1), 0x0800, &packet);
    expected[14 + 8] = 63;
    // One less in the upper half of a word: one more in its one's complement.
    expected[14 + 10] += 1;
    assert_eq!(out, expected);
}

#[test]
fn ipv6_between_pods_byte_by_byte() {
    let mut world = World::new();
    let packet = udp6(a6(2), a6(3), (1000, 2000), b"hello");
    let out = leaves(&world.send(10, &from_pod(10, &packet)), Verdict::Forward, 11);
    let mut expected = ethernet(pod_mac(11), gateway_mac(1), 0x86dd, &packet);
    expected[14 + 7] = 63;
    assert_eq!(out, expected);
}

#[test]
fn every_kind_reaches_every_kind_of_its_network_with_either_family() {
    let mut world = World::new();
    for vrf in [1u16, 2] {
        for from in 0..3u16 {
            for to in (0..3u16).filter(|to| *to != from) {
                let (from_if, to_if) = (vrf * 10 + from, vrf * 10 + to);
                let (s, d) = (u32::from(from) + 2, u32::from(to) + 2);
                for packet in [
                    tcp4(a4(s), a4(d), &[7; 300]),
                    tcp6(a6(s.into()), a6(d.into()), &[7; 300]),
                    ping4(a4(s), a4(d), &[8; 500]),
                    ping6(a6(s.into()), a6(d.into()), &[8; 500]),
                ] {
                    let bare = kind_of(&world, from_if) == IfaceKind::MemifIp;
                    let frame = if bare { packet.clone() } else { from_pod(from_if, &packet) };
                    let outcome = world.send(from_if, &frame);
                    let out = leaves(&outcome, Verdict::Forward, to_if);
                    let link = if kind_of(&world, to_if) == IfaceKind::MemifIp { 0 } else { 14 };
                    assert_eq!(out[link + 40..], packet[40..], "{from_if} → {to_if}");
                    assert_eq!(usize::from(outcome.meta.l3), link);
                }
            }
        }
    }
}

#[test]
fn what_leaves_is_described() {
    let mut world = World::new();
    let outcome = world.send(10, &from_pod(10, &tcp4(a4(2), a4(3), b"x")));
    let meta = outcome.meta;
    assert_eq!((meta.l3, meta.l4, meta.protocol, meta.ip_version, meta.outer), (14, 34, 6, 4, 0));
    let outcome = world.send(10, &from_pod(10, &udp6(a6(2), a6(4), (1, 2), b"x")));
    let meta = outcome.meta;
    assert_eq!((meta.l3, meta.l4, meta.protocol, meta.ip_version), (0, 40, 17, 6));
}

#[test]
fn padding_is_cut_off() {
    let mut world = World::new();
    for (packet, padded) in
        [(udp4(a4(2), a4(3), (1, 2), b"x"), 60), (ping4(a4(2), a4(3), &[1; 150]), 400)]
    {
        let mut frame = from_pod(10, &packet);
        frame.resize(padded, 0xee);
        let out = leaves(&world.send(10, &frame), Verdict::Forward, 11);
        assert_eq!(out.len(), 14 + packet.len());
    }
}

#[test]
fn allowed_prefixes_and_the_nodes_leg_may_send() {
    let mut world = World::new();
    let packet = udp4(v4("10.9.1.1"), a4(2), (1, 2), b"x");
    leaves(&world.send(11, &from_pod(11, &packet)), Verdict::Forward, 10);
    let packet = udp6(v6("fd09::5"), a6(2), (1, 2), b"x");
    leaves(&world.send(11, &from_pod(11, &packet)), Verdict::Forward, 10);
    let packet = udp4(v4("203.0.113.7"), a4(2), (1, 2), b"x");
    leaves(&world.send(31, &from_pod(31, &packet)), Verdict::Forward, 30);
    let packet = udp6(v6("2001:db8::7"), a6(2), (1, 2), b"x");
    leaves(&world.send(31, &from_pod(31, &packet)), Verdict::Forward, 30);
}

#[test]
fn options_and_extension_headers_are_carried() {
    let mut world = World::new();
    let udp = summed(udp_unsummed(1, 2, b"x"), 6, wire::checksum::pseudo4(a4(2), a4(3), 17, 9));
    let packet = ip4_with(a4(2), a4(3), 17, 64, 0x4000, &[1, 1, 1, 0], &udp);
    let outcome = world.send(10, &from_pod(10, &packet));
    leaves(&outcome, Verdict::Forward, 11);
    assert_eq!(outcome.meta.l4, 14 + 24);
    let extension = [&[17, 0, 1, 4, 0, 0, 0, 0], &udp[..]].concat();
    let outcome = world.send(10, &from_pod(10, &ip6(a6(2), a6(3), 60, 64, &extension)));
    leaves(&outcome, Verdict::Forward, 11);
    assert_eq!((outcome.meta.l4, outcome.meta.protocol), (14 + 48, 17));
}

#[test]
fn a_head_that_is_too_short_is_refilled() {
    let mut world = World::new();
    let long = [&[17, 13, 1, 108][..], &[0; 108], &udp_unsummed(1, 2, &[0; 90])].concat();
    let outcome = world.send(10, &from_pod(10, &ip6(a6(2), a6(3), 60, 64, &long)));
    assert_eq!((outcome.verdict, outcome.asked), (Verdict::Forward, 1));
    // Beyond 256 bytes nobody looks.
    let deep = [&[17, 30, 1, 244][..], &[0; 244], &udp_unsummed(1, 2, &[0; 90])].concat();
    let outcome = world.send(10, &from_pod(10, &ip6(a6(2), a6(3), 60, 64, &deep)));
    dropped(&outcome, DropReason::HeadTooDeep);
}

#[test]
fn all_fragments_of_a_packet_have_one_flow() {
    let mut world = World::new();
    let mut hashes = Vec::new();
    for (flags, ports) in [(0x2000, (1, 2)), (0x2010, (9, 9)), (0x0020, (7, 8))] {
        let payload = udp_unsummed(ports.0, ports.1, &[0; 120]);
        let packet = ip4_with(a4(2), a4(3), 17, 64, flags, &[], &payload);
        let outcome = world.send(10, &from_pod(10, &packet));
        leaves(&outcome, Verdict::Forward, 11);
        assert_eq!(outcome.meta.l4, 0);
        hashes.push(outcome.meta.flow_hash);
    }
    hashes.dedup();
    assert_eq!(hashes.len(), 1);
}

#[test]
fn flows_are_told_apart() {
    let mut world = World::new();
    let mut hashes = std::collections::HashSet::new();
    let mut queues = [0; 4];
    for port in 0..1000 {
        let packet = udp4(a4(2), a4(3), (port, 2), b"x");
        let hash = world.send(10, &from_pod(10, &packet)).meta.flow_hash;
        queues[hash as usize % 4] += 1;
        hashes.insert(hash);
    }
    assert!(hashes.len() >= 999);
    assert!(queues.iter().all(|n| (180..320).contains(n)), "{queues:?}");
    let ports: std::collections::HashSet<_> =
        hashes.iter().map(|hash| wire::ports::entropy_port(*hash)).collect();
    assert!(ports.len() > 900, "{}", ports.len());
}

#[test]
fn beyond_the_mtu_without_df_is_fragmented() {
    let mut world = World::new();
    let udp = udp_unsummed(1, 2, &vec![5; 1500]);
    let packet = ip4_with(a4(2), a4(3), 17, 64, 0, &[], &udp);
    let outcome = world.send(10, &from_pod(10, &packet));
    leaves(&outcome, Verdict::Forward, 11);
    assert_eq!(outcome.meta.fragment_mtu, MTU);
    let fits = ip4_with(a4(2), a4(3), 17, 64, 0, &[], &vec![0; usize::from(MTU) - 20]);
    assert_eq!(world.send(10, &from_pod(10, &fits)).meta.fragment_mtu, 0);
}

#[test]
fn a_trace_names_the_rules() {
    let mut world = World::new();
    let mut trace = Recorder::default();
    let frame = from_pod(10, &udp4(a4(2), v4("10.1.1.7"), (1, 2), b"x"));
    world.send_probed(10, &frame, Meta::default(), &mut trace);
    let stages: Vec<_> = trace.notes.iter().map(|(stage, _)| stage.name()).collect();
    assert_eq!(stages, ["parse", "ingress", "lookup", "limits", "rewrite"], "{trace:?}");
    assert!(trace.notes[2].1.contains("10.1.1.7 in blue: Tunnel4"), "{trace:?}");
}

/// A trace ends with the rule that dropped the packet, whatever it was.
#[test]
fn a_trace_ends_with_the_reason() {
    let mut world = World::new();
    for (packet, stage, words) in [
        (udp4(a4(3), a4(4), (1, 2), b"x"), "ingress", "10.1.0.3 is not an address of if10"),
        (udp4(a4(2), a4(99), (1, 2), b"x"), "lookup", "unreachable by route"),
        (ip4(a4(2), a4(3), 17, 1, &udp_unsummed(1, 2, b"x")), "limits", "TTL 1 is used up"),
        (tcp6(a6(2), a6(1), b"x"), "gateway", "protocol 6"),
        (udp6(a6(2), v6("ff02::1"), (1, 2), b"x"), "lookup", "to a group"),
    ] {
        let mut trace = Recorder::default();
        world.send_probed(10, &from_pod(10, &packet), Meta::default(), &mut trace);
        let (last, rule) = trace.notes.last().expect("notes");
        assert!(last.name() == stage && rule.contains(words), "{trace:?}");
    }
}
