//! What a tap's virtio-net header may claim.

use super::super::testing::frames::*;
use super::super::testing::*;
use super::*;
use crate::path::split::Split;

/// A TCP super-frame of pod 10, and honest facts about it.
fn super4(dst: u32, payload: usize, df: u16) -> (Vec<u8>, Meta) {
    let tcp = tcp_unsummed(1, 2, 0x10, &vec![9; payload]);
    let pseudo = wire::checksum::pseudo4(a4(2), dst, 6, tcp.len());
    let packet = ip4_with(a4(2), dst, 6, 64, df, &[], &half_summed(tcp, 16, pseudo));
    (from_pod(10, &packet), facts(Gso::Tcp4, 34, 16))
}

fn super6(dst: u128, payload: usize) -> (Vec<u8>, Meta) {
    let tcp = tcp_unsummed(1, 2, 0x10, &vec![9; payload]);
    let pseudo = wire::checksum::pseudo6(a6(2), dst, 6, tcp.len());
    let packet = ip6(a6(2), dst, 6, 64, &half_summed(tcp, 16, pseudo));
    (from_pod(10, &packet), facts(Gso::Tcp6, 54, 16))
}

fn super_udp(dst: u32, payload: usize) -> (Vec<u8>, Meta) {
    let udp = udp_unsummed(1, 2, &vec![9; payload]);
    let pseudo = wire::checksum::pseudo4(a4(2), dst, 17, udp.len());
    let packet = ip4(a4(2), dst, 17, 64, &half_summed(udp, 6, pseudo));
    (from_pod(10, &packet), facts(Gso::Udp, 34, 6))
}

fn facts(gso: Gso, csum_start: u16, csum_offset: u16) -> Meta {
    let checksum = Checksum::Partial;
    Meta { gso, gso_size: 1390, checksum, csum_start, csum_offset, ..Meta::default() }
}

#[test]
fn super_frames_stay_whole() {
    let mut world = World::new();
    for (frame, facts) in
        [super4(a4(3), 60_000, 0x4000), super6(a6(3), 60_000), super_udp(a4(3), 60_000)]
    {
        let outcome = world.send_with(10, &frame, facts);
        leaves(&outcome, Verdict::Forward, 11);
        let meta = outcome.meta;
        assert_eq!((meta.gso, meta.gso_size), (facts.gso, 1390));
        assert_eq!((meta.checksum, meta.csum_start), (Checksum::Partial, meta.l4));
    }
    // Through a tunnel they are described from its first byte.
    let (frame, facts) = super4(v4("10.1.1.7"), 60_000, 0x4000);
    let outcome = world.send_with(10, &frame, facts);
    assert_eq!((outcome.verdict, outcome.meta.csum_start), (Verdict::Forward, 84));
    // The largest of all does not overflow the outer length.
    let (frame, facts) = super4(v4("10.1.1.7"), 65_495, 0x4000);
    assert_eq!(world.send_with(10, &frame, facts).verdict, Verdict::Forward);
}

#[test]
fn one_piece_is_no_super_frame() {
    let mut world = World::new();
    let (frame, facts) = super4(a4(3), 1390, 0x4000);
    let outcome = world.send_with(10, &frame, facts);
    leaves(&outcome, Verdict::Forward, 11);
    assert_eq!(outcome.meta.gso, Gso::None);
}

#[test]
fn offload_malformed() {
    let mut world = World::new();
    let (frame, good) = super4(a4(3), 20_000, 0x4000);
    assert_eq!(world.send_with(10, &frame, good).verdict, Verdict::Forward);
    let wrong = [
        Meta { checksum: Checksum::Unknown, ..good },
        Meta { checksum: Checksum::Verified, ..good },
        Meta { csum_start: 35, ..good },
        Meta { csum_start: 14, ..good },
        Meta { csum_start: 65_000, ..good },
        Meta { csum_offset: 6, ..good },
        Meta { csum_offset: 65_535, ..good },
        Meta { gso: Gso::Tcp6, ..good },
        Meta { gso: Gso::Udp, ..good },
        Meta { gso_size: 0, ..good },
        Meta { gso_size: 495, ..good },
        Meta { gso: Gso::None, csum_start: 0, ..good },
    ];
    for facts in wrong {
        let outcome = world.send_with(10, &frame, facts);
        dropped(&outcome, DropReason::OffloadMalformed);
    }
    // More pieces than one frame may cost.
    let (frame, facts) = super4(a4(3), 128 * 496, 0x4000);
    let facts = Meta { gso_size: 496, ..facts };
    assert_eq!(world.send_with(10, &frame, facts).verdict, Verdict::Forward);
    let (frame, _) = super4(a4(3), 128 * 496 + 1, 0x4000);
    dropped(&world.send_with(10, &frame, facts), DropReason::OffloadMalformed);
    // A TCP header that is longer than the packet, or shorter than one.
    for offset in [0x40, 0xf0] {
        let (mut frame, facts) = super4(a4(3), 10, 0x4000);
        frame[46] = offset;
        dropped(&world.send_with(10, &frame, facts), DropReason::OffloadMalformed);
    }
    // Neither fragments nor other protocols have such checksums.
    let fragment = from_pod(10, &ip4_with(a4(2), a4(3), 6, 64, 0x2000, &[], &[0x50; 64]));
    let none = Meta { gso: Gso::None, ..good };
    dropped(&world.send_with(10, &fragment, none), DropReason::OffloadMalformed);
    let ping = from_pod(10, &ping4(a4(2), a4(3), &[0; 64]));
    dropped(&world.send_with(10, &ping, none), DropReason::OffloadMalformed);
}

#[test]
fn arp_answers_carry_no_claims() {
    let mut world = World::new();
    let question = arp(1, (pod_mac(10), a4(2)), (wire::Mac::default(), a4(1)));
    let frame = ethernet(wire::Mac::BROADCAST, pod_mac(10), 0x0806, &question);
    let outcome = world.send_with(10, &frame, facts(Gso::Tcp4, 9999, 9999));
    leaves(&outcome, Verdict::Answer, 10);
    assert_eq!((outcome.meta.gso, outcome.meta.checksum), (Gso::None, Checksum::Unknown));
}

#[test]
fn the_mtu_is_that_of_a_piece() {
    let mut world = World::new();
    // 40 bytes of headers and 1410 of payload fill it.
    for (size, fits) in [(1410, true), (1411, false)] {
        let (frame, facts) = super4(a4(3), 20_000, 0x4000);
        let outcome = world.send_with(10, &frame, Meta { gso_size: size, ..facts });
        if fits {
            leaves(&outcome, Verdict::Forward, 11);
        } else {
            leaves(&outcome, Verdict::DropAnswer(DropReason::TooBig), 10);
        }
    }
    for (size, fits) in [(1390, true), (1391, false)] {
        let (frame, facts) = super6(a6(3), 20_000);
        let outcome = world.send_with(10, &frame, Meta { gso_size: size, ..facts });
        assert_eq!(outcome.verdict == Verdict::Forward, fits, "{size}");
    }
    // Without DF the pieces get smaller; datagrams keep their size.
    let (frame, facts) = super4(a4(3), 20_000, 0);
    let outcome = world.send_with(10, &frame, Meta { gso_size: 9000, ..facts });
    leaves(&outcome, Verdict::Forward, 11);
    assert_eq!((outcome.meta.gso_size, outcome.meta.fragment_mtu), (1410, 0));
    let (frame, facts) = super_udp(a4(3), 20_000);
    let outcome = world.send_with(10, &frame, Meta { gso_size: 1423, ..facts });
    leaves(&outcome, Verdict::DropAnswer(DropReason::TooBig), 10);
}

/// Splits what leaves as a worker does, and completes the pieces.
fn pieces(outcome: &Outcome) -> Vec<Vec<u8>> {
    let head_bytes = usize::from(outcome.meta.end - outcome.meta.start);
    let (head, body) = outcome.frame.split_at(head_bytes);
    let split = Split::plan(head, &outcome.meta).expect("can be cut");
    let piece = |index| {
        let mut slot = Slot::default();
        let (meta, part) = split.piece(index, head, &outcome.meta, &mut slot).expect("a piece");
        let mut frame = slot.0[usize::from(meta.start)..usize::from(meta.end)].to_vec();
        frame.extend(&body[part.skip_bytes..part.skip_bytes + part.len_bytes]);
        Outcome { verdict: Verdict::Forward, meta, frame, asked: 0 }.completed()
    };
    (0..split.count()).map(piece).collect()
}

#[test]
fn pieces_are_right_in_every_tunnel() {
    let mut world = World::new();
    for (frame, facts, outer) in [
        (super4(v4("10.1.1.7"), 20_001, 0x4000), 4),
        (super4(v4("10.1.2.7"), 20_001, 0x4000), 6),
        (super6(v6("fd00:1:0:1::7"), 20_001), 4),
        (super6(v6("fd00:1:0:2::7"), 20_001), 6),
        (super_udp(v4("10.1.1.7"), 20_001), 4),
        (super_udp(v4("10.1.2.7"), 20_001), 6),
        (super4(a4(3), 20_001, 0x4000), 0),
    ]
    .map(|((frame, facts), outer)| (frame, facts, outer))
    {
        let outcome = world.send_with(10, &frame, facts);
        assert_eq!((outcome.verdict, outcome.meta.outer), (Verdict::Forward, outer));
        let pieces = pieces(&outcome);
        assert_eq!(pieces.len(), 15);
        let headers = outcome.frame.len() - 20_001;
        for piece in &pieces {
            check(piece).unwrap_or_else(|what| panic!("wrong {what}: {piece:02x?}"));
            assert!(piece.len() <= headers + 1390);
        }
        let payload: usize = pieces.iter().map(|piece| piece.len() - headers).sum();
        assert_eq!(payload, 20_001);
    }
}

#[test]
fn fragments_are_right_in_every_tunnel() {
    let mut world = World::new();
    for (dst, outer) in [(a4(3), 0), (v4("10.1.1.7"), 4), (v4("10.1.2.7"), 6)] {
        let udp = udp_unsummed(1, 2, &vec![7; 5000]);
        let pseudo = wire::checksum::pseudo4(a4(2), dst, 17, udp.len());
        let packet = ip4_with(a4(2), dst, 17, 64, 0, &[], &summed(udp, 6, pseudo));
        let outcome = world.send(10, &from_pod(10, &packet));
        assert_eq!((outcome.verdict, outcome.meta.outer), (Verdict::Forward, outer));
        let pieces = pieces(&outcome);
        assert_eq!(pieces.len(), 4);
        let l3 = usize::from(outcome.meta.l3);
        let mut whole: Vec<u8> = Vec::new();
        for piece in &pieces {
            check(piece).unwrap_or_else(|what| panic!("wrong {what}: {piece:02x?}"));
            assert!(piece.len() - l3 <= usize::from(MTU));
            whole.extend(&piece[l3 + 20..]);
        }
        assert_eq!(whole, packet[20..]);
    }
}

/// Options of 40 bytes behind 60 bytes of extension headers: the head had to be refilled.
#[test]
fn a_refilled_head_can_be_split() {
    let mut world = World::new();
    let dst = v6("fd00:1:0:2::7");
    let mut tcp = tcp_unsummed(1, 2, 0x10, &[9; 20_000]);
    tcp[12] = 0xf0;
    let pseudo = wire::checksum::pseudo6(a6(2), dst, 6, tcp.len());
    let extension = [&[6, 7, 1, 60][..], &[0; 60]].concat();
    let payload = [extension, half_summed(tcp, 16, pseudo)].concat();
    let frame = from_pod(10, &ip6(a6(2), dst, 60, 64, &payload));
    let facts = Meta { gso_size: 1200, ..facts(Gso::Tcp6, 54 + 64, 16) };
    let outcome = world.send_with(10, &frame, facts);
    assert_eq!((outcome.verdict, outcome.asked), (Verdict::Forward, 1));
    assert_eq!(pieces(&outcome).len(), 17);
}
