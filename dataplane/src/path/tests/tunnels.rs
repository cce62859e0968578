//! Into VXLAN and out of it.

use super::super::testing::frames::*;
use super::super::testing::*;
use super::*;
use wire::Mac;

const HOST_BEHIND_V4: &str = "10.1.1.7";
const HOST_BEHIND_V6: &str = "10.1.2.7";

fn ports(frame: &[u8], udp: usize) -> (u16, u16) {
    let word = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    (word(udp), word(udp + 2))
}

#[test]
fn encapsulation_over_ipv4_field_by_field() {
    let mut world = World::new();
    let packet = tcp4(a4(2), v4(HOST_BEHIND_V4), &[3; 200]);
    let outcome = world.send(10, &from_pod(10, &packet));
    let out = leaves(&outcome, Verdict::Forward, UPLINK);
    assert_eq!(out[..14], ethernet(FABRIC_MAC, NODE_MAC, 0x0800, &[]));
    let (src, dst) = ports(&out, 34);
    assert!(src >= 49152);
    let mut inner = packet.clone();
    inner[8] = 63;
    inner[10] += 1;
    let inner = ethernet(FAR_ROUTER_MAC, ROUTER_MAC, 0x0800, &inner);
    let udp = udp_unsummed(src, dst, &vxlan(56, &inner));
    let mut outer = ip4(OWN_VTEP4.into(), FAR_VTEP4.into(), 17, 64, &udp);
    outer[4..6].copy_from_slice(&out[18..20]);
    assert_eq!(dst, 4789);
    assert_eq!(out[14 + 20..], outer[20..]);
    assert_eq!(out[14 + 6..14 + 10], [0x40, 0, 64, 17], "DF, TTL 64");
    let meta = outcome.meta;
    assert_eq!((meta.l3, meta.l4, meta.outer, meta.ip_version), (64, 84, 4, 4));
}

#[test]
fn any_family_inside_any_family() {
    let mut world = World::new();
    for (packet, outer, family) in [
        (tcp4(a4(2), v4(HOST_BEHIND_V4), &[1; 300]), 4, 0x0800),
        (tcp6(a6(2), v6("fd00:1:0:1::7"), &[1; 300]), 4, 0x86dd),
        (tcp4(a4(2), v4(HOST_BEHIND_V6), &[1; 300]), 6, 0x0800),
        (tcp6(a6(2), v6("fd00:1:0:2::7"), &[1; 300]), 6, 0x86dd),
        (udp6(a6(2), v6("fd00:1:0:2::7"), (7, 8), &[1; 301]), 6, 0x86dd),
        (ping4(a4(2), v4(HOST_BEHIND_V6), &[1; 77]), 6, 0x0800),
        (ping6(a6(2), v6("fd00:1:0:2::7"), &[1; 300]), 6, 0x86dd),
    ] {
        let outcome = world.send(10, &from_pod(10, &packet));
        leaves(&outcome, Verdict::Forward, UPLINK);
        assert_eq!(outcome.meta.outer, outer);
        // The outer checksum came from the inner one: nobody has to read the body.
        assert_eq!(outcome.meta.checksum, Checksum::Unknown);
        let inner = outcome.inner();
        assert_eq!(inner[12..14], u16::to_be_bytes(family));
        assert_eq!(inner[14 + 40..], packet[40..]);
    }
}

/// Where no inner checksum stands in, the port completes the outer one.
#[test]
fn over_ipv6_without_a_usable_inner_checksum() {
    let mut world = World::new();
    let (src, dst) = (a4(2), v4(HOST_BEHIND_V6));
    for packet in [
        ip4(src, dst, 17, 64, &udp_unsummed(1, 2, &[9; 200])),
        ip4_with(src, dst, 17, 64, 0x2000, &[], &[9; 200]),
        ip4_with(src, dst, 17, 64, 0x0010, &[], &[9; 200]),
        ip4(src, dst, 47, 64, &[9; 201]),
        ip6(a6(2), v6("fd00:1:0:2::7"), 132, 64, &[9; 201]),
    ] {
        let outcome = world.send(10, &from_pod(10, &packet));
        assert_eq!(outcome.meta.checksum, Checksum::Partial, "{packet:02x?}");
        assert_eq!((outcome.meta.csum_start, outcome.meta.csum_offset), (54, 6));
        leaves(&outcome, Verdict::Forward, UPLINK);
    }
}

#[test]
fn a_partial_checksum_moves_along_and_stands_in_over_ipv6() {
    let mut world = World::new();
    let (src, dst) = (a4(2), v4(HOST_BEHIND_V6));
    let tcp = tcp_unsummed(1, 2, 0x10, &[9; 301]);
    let pseudo = wire::checksum::pseudo4(src, dst, 6, tcp.len());
    let packet = ip4(src, dst, 6, 64, &half_summed(tcp, 16, pseudo));
    let facts =
        Meta { checksum: Checksum::Partial, csum_start: 34, csum_offset: 16, ..Meta::default() };
    let outcome = world.send_with(10, &from_pod(10, &packet), facts);
    assert_eq!((outcome.meta.csum_start, outcome.meta.l4), (104, 104));
    leaves(&outcome, Verdict::Forward, UPLINK);
}

#[test]
fn a_packet_crosses_two_nodes_and_loses_one_hop() {
    for (to, family) in [("10.1.1.7", 4), ("10.1.2.7", 6)] {
        let mut near = World::new();
        let mut packet = tcp4(a4(2), v4(to), &[3; 900]);
        let sent = near.send(10, &from_pod(10, &packet)).completed();
        // The far node has that address; its uplink has the MAC that we send to.
        let mut far = World::new();
        let hop = far.tables.hosts4.lookup(VrfId(1), a4(3));
        far.tables.hosts4.insert(VrfId(1), v4(to), hop);
        let mut frame = sent.clone();
        frame[..6].copy_from_slice(&NODE_MAC.0);
        let at = if family == 4 { 64 - 14 } else { 84 - 14 };
        frame[at..at + 6].copy_from_slice(&ROUTER_MAC.0);
        turn_around(&mut frame, family);
        let out = leaves(&far.send(UPLINK, &frame), Verdict::Forward, 11);
        packet[8] = 63;
        packet[10] += 1;
        assert_eq!(out, ethernet(pod_mac(11), gateway_mac(1), 0x0800, &packet));
    }
}

/// Makes a frame that left this node one that the far node sent to it: swaps the outer addresses,
/// which changes no checksum, and corrects the one over the inner MAC.
fn turn_around(frame: &mut [u8], family: u8) {
    if family == 4 {
        frame[26..34].rotate_left(4);
        return;
    }
    frame[22..54].rotate_left(16);
    frame[60..62].fill(0);
    let l4 = frame[54..].to_vec();
    let pseudo = wire::checksum::pseudo6(FAR_VTEP6.into(), OWN_VTEP6.into(), 17, l4.len());
    let sum = pseudo.plus(wire::checksum::Sum::of(&l4)).complement_udp();
    frame[60..62].copy_from_slice(&sum.to_be_bytes());
}

#[test]
fn decapsulation_byte_by_byte() {
    let mut world = World::new();
    for packet in
        [tcp4(v4(HOST_BEHIND_V4), a4(2), &[3; 900]), tcp6(v6("fd00:1:0:1::7"), a6(2), &[3; 900])]
    {
        for frame in [
            tunnelled4(FAR_VTEP4.into(), 56, &from_node(&packet)),
            tunnelled6(FAR_VTEP6.into(), 56, &from_node(&packet)),
        ] {
            let out = leaves(&world.send(UPLINK, &frame), Verdict::Forward, 10);
            // TTL fell where the packet entered the realm.
            let kind = if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd };
            assert_eq!(out, ethernet(pod_mac(10), gateway_mac(1), kind, &packet));
        }
    }
}

#[test]
fn the_vni_chooses_the_network() {
    let mut world = World::new();
    let packet = udp4(v4(HOST_BEHIND_V4), a4(2), (1, 2), b"x");
    for (vni, out) in [(56, 10), (57, 20), (58, 30)] {
        let frame = tunnelled4(FAR_VTEP4.into(), vni, &from_node(&packet));
        let outcome = world.send(UPLINK, &frame);
        leaves(&outcome, Verdict::Forward, out);
        assert_eq!(outcome.meta.vrf, VrfId(out / 10));
    }
    let frame = tunnelled4(FAR_VTEP4.into(), 59, &from_node(&packet));
    dropped(&world.send(UPLINK, &frame), DropReason::VniUnknown);
}

#[test]
fn vtep_unknown() {
    let mut world = World::new();
    let packet = udp4(v4(HOST_BEHIND_V4), a4(2), (1, 2), b"x");
    let inner = from_node(&packet);
    // A peer may send on the VNI that lists it, and on no other.
    let frame = tunnelled4(PEER_VTEP4.into(), 56, &inner);
    leaves(&world.send(UPLINK, &frame), Verdict::Forward, 10);
    let frame = tunnelled4(PEER_VTEP4.into(), 57, &inner);
    dropped(&world.send(UPLINK, &frame), DropReason::VtepUnknown);
    // A stranger, and somebody who pretends to be us.
    for from in [v4("192.0.2.77"), OWN_VTEP4.into()] {
        dropped(&world.send(UPLINK, &tunnelled4(from, 56, &inner)), DropReason::VtepUnknown);
    }
    for from in [v6("2001:db8::77"), OWN_VTEP6.into()] {
        dropped(&world.send(UPLINK, &tunnelled6(from, 56, &inner)), DropReason::VtepUnknown);
    }
}

#[test]
fn vxlan_malformed() {
    let mut world = World::new();
    let packet = udp4(v4(HOST_BEHIND_V4), a4(2), (1, 2), &[0; 100]);
    let good = tunnelled4(FAR_VTEP4.into(), 56, &from_node(&packet));
    leaves(&world.send(UPLINK, &good), Verdict::Forward, 10);
    let mut no_flag = good.clone();
    no_flag[42] = 0;
    dropped(&world.send(UPLINK, &no_flag), DropReason::VxlanMalformed);
    for udp_len in [0, 7, 29, 5000] {
        let mut length = good.clone();
        length[38..40].copy_from_slice(&u16::to_be_bytes(udp_len));
        dropped(&world.send(UPLINK, &length), DropReason::VxlanMalformed);
    }
    let mut tagged = from_node(&packet);
    tagged[12..14].copy_from_slice(&[0x81, 0]);
    let frame = tunnelled4(FAR_VTEP4.into(), 56, &tagged);
    dropped(&world.send(UPLINK, &frame), DropReason::VxlanMalformed);
    // Reserved bits are ignored.
    let mut reserved = good.clone();
    for (at, bits) in [(42, 0xff), (43, 0xff), (44, 1), (45, 1), (49, 9)] {
        reserved[at] = bits;
    }
    leaves(&world.send(UPLINK, &reserved), Verdict::Forward, 10);
}

#[test]
fn outer_checksums_are_verified_unless_somebody_did() {
    let mut world = World::new();
    let packet = udp4(v4(HOST_BEHIND_V4), a4(2), (1, 2), &[5; 333]);
    let mut wrong = tunnelled6(FAR_VTEP6.into(), 56, &from_node(&packet));
    let last = wrong.len() - 1;
    let outcome = world.send(UPLINK, &wrong);
    leaves(&outcome, Verdict::Forward, 10);
    assert_eq!(outcome.meta.checksum, Checksum::Unknown, "the inner one is not known by that");
    wrong[last] ^= 1;
    dropped(&world.send(UPLINK, &wrong), DropReason::VxlanMalformed);
    let verified = Meta { checksum: Checksum::Verified, ..Meta::default() };
    assert_eq!(world.send_with(UPLINK, &wrong, verified).verdict, Verdict::Forward);
    // Zero is legal over IPv4 only.
    let mut zero = tunnelled6(FAR_VTEP6.into(), 56, &from_node(&packet));
    zero[60..62].fill(0);
    dropped(&world.send(UPLINK, &zero), DropReason::VxlanMalformed);
    // A sum over IPv4 is not required, but if there is one it has to be right.
    let from = FAR_VTEP4.into();
    let udp = udp4(from, OWN_VTEP4.into(), (1, 4789), &vxlan(56, &from_node(&packet)));
    let mut summed = ethernet(NODE_MAC, FABRIC_MAC, 0x0800, &udp);
    leaves(&world.send(UPLINK, &summed), Verdict::Forward, 10);
    summed[last - 40] ^= 1;
    dropped(&world.send(UPLINK, &summed), DropReason::VxlanMalformed);
}

#[test]
fn a_wrong_outer_header_checksum_is_dropped() {
    let mut world = World::new();
    let packet = udp4(v4(HOST_BEHIND_V4), a4(2), (1, 2), b"x");
    let mut frame = tunnelled4(FAR_VTEP4.into(), 56, &from_node(&packet));
    frame[25] ^= 1;
    dropped(&world.send(UPLINK, &frame), DropReason::Ip4BadChecksum);
}

#[test]
fn vxlan_not_for_router() {
    let mut world = World::new();
    let packet = udp4(v4(HOST_BEHIND_V4), a4(2), (1, 2), b"x");
    for mac in [pod_mac(10), gateway_mac(1), FAR_ROUTER_MAC] {
        let inner = ethernet(mac, FAR_ROUTER_MAC, 0x0800, &packet);
        let frame = tunnelled4(FAR_VTEP4.into(), 56, &inner);
        dropped(&world.send(UPLINK, &frame), DropReason::VxlanNotForRouter);
    }
    let inner = ethernet(Mac::BROADCAST, FAR_ROUTER_MAC, 0x0800, &packet);
    let frame = tunnelled4(FAR_VTEP4.into(), 56, &inner);
    dropped(&world.send(UPLINK, &frame), DropReason::BumUnsupported);
}

#[test]
fn tunnel_hairpin() {
    let mut world = World::new();
    for dst in ["10.1.1.9", "10.1.2.9", "10.1.3.9"] {
        let packet = udp4(v4(HOST_BEHIND_V4), v4(dst), (1, 2), b"x");
        let frame = tunnelled4(FAR_VTEP4.into(), 56, &from_node(&packet));
        dropped(&world.send(UPLINK, &frame), DropReason::TunnelHairpin);
    }
}

#[test]
fn ecn_follows_rfc_6040() {
    // Inner, outer → inner afterwards; `None` = dropped. Table of §4.2.
    let table = [
        [Some(0), Some(0), Some(0), None],
        [Some(1), Some(1), Some(1), Some(3)],
        [Some(2), Some(1), Some(2), Some(3)],
        [Some(3), Some(3), Some(3), Some(3)],
    ];
    for (inner, row) in (0u8..).zip(table) {
        for (outer, expected) in (0u8..).zip(row) {
            for v6_inside in [false, true] {
                let mut world = World::new();
                let mut packet = if v6_inside {
                    tcp6(v6("fd00:1:0:1::7"), a6(2), b"x")
                } else {
                    tcp4(v4(HOST_BEHIND_V4), a4(2), b"x")
                };
                set_ecn(&mut packet, inner);
                let mut frame = tunnelled4(FAR_VTEP4.into(), 56, &from_node(&packet));
                set_ecn(&mut frame[14..34], outer);
                let outcome = world.send(UPLINK, &frame);
                match expected {
                    None => dropped(&outcome, DropReason::EcnCongested),
                    Some(ecn) => {
                        let out = leaves(&outcome, Verdict::Forward, 10);
                        assert_eq!(ecn_of(&out[14..]), ecn, "{inner} in {outer}");
                    }
                }
            }
        }
    }
    // And into a tunnel: copied, without DSCP.
    for ecn in 0..4 {
        for dst in [HOST_BEHIND_V4, HOST_BEHIND_V6] {
            let mut world = World::new();
            let mut packet = tcp4(a4(2), v4(dst), b"x");
            set_ecn(&mut packet, 0xb8 | ecn);
            let out = leaves(&world.send(10, &from_pod(10, &packet)), Verdict::Forward, UPLINK);
            assert_eq!(ecn_of(&out[14..]), ecn, "DSCP stays inside");
        }
    }
}

fn set_ecn(packet: &mut [u8], tos: u8) {
    if packet[0] >> 4 == 6 {
        packet[1] = packet[1] & 0x0f | tos << 4;
        return;
    }
    packet[1] = tos;
    packet[10..12].fill(0);
    let sum = wire::checksum::Sum::of(&packet[..20]).complement();
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

fn ecn_of(packet: &[u8]) -> u8 {
    if packet[0] >> 4 == 6 { packet[1] >> 4 | packet[0] << 4 } else { packet[1] }
}

/// The inner packet is not more trusted than any other.
#[test]
fn inner_packets_are_checked() {
    let mut world = World::new();
    let martian = from_node(&udp4(v4("127.0.0.1"), a4(2), (1, 2), b"x"));
    let frame = tunnelled4(FAR_VTEP4.into(), 56, &martian);
    dropped(&world.send(UPLINK, &frame), DropReason::MartianSource);
    let mut short = from_node(&udp4(v4(HOST_BEHIND_V4), a4(2), (1, 2), b"x"));
    short[17] += 1;
    short[24..26].fill(0);
    let sum = wire::checksum::Sum::of(&short[14..34]).complement();
    short[24..26].copy_from_slice(&sum.to_be_bytes());
    let frame = tunnelled4(FAR_VTEP4.into(), 56, &short);
    dropped(&world.send(UPLINK, &frame), DropReason::Runt);
    let other = ethernet(ROUTER_MAC, FAR_ROUTER_MAC, 0x88cc, &[0; 40]);
    let frame = tunnelled4(FAR_VTEP4.into(), 56, &other);
    dropped(&world.send(UPLINK, &frame), DropReason::EtherTypeUnsupported);
}

/// A neighbour on the same machine hands over what its stack left to the device.
#[test]
fn super_frames_and_partial_checksums_out_of_a_tunnel() {
    let mut world = World::new();
    let (src, dst) = (v4(HOST_BEHIND_V4), a4(2));
    let tcp = tcp_unsummed(1, 2, 0x10, &[9; 5000]);
    let pseudo = wire::checksum::pseudo4(src, dst, 6, tcp.len());
    let packet = ip4(src, dst, 6, 64, &half_summed(tcp, 16, pseudo));
    let frame = tunnelled4(FAR_VTEP4.into(), 56, &from_node(&packet));
    let facts = Meta {
        checksum: Checksum::Partial,
        csum_start: 84,
        csum_offset: 16,
        gso: Gso::Tcp4,
        gso_size: 1000,
        ..Meta::default()
    };
    let outcome = world.send_with(UPLINK, &frame, facts);
    leaves(&outcome, Verdict::Forward, 10);
    let meta = outcome.meta;
    assert_eq!((meta.gso, meta.gso_size, meta.csum_start), (Gso::Tcp4, 1000, 34));
    // The outer checksum alone was left to the device.
    let packet = tcp4(src, dst, &[1; 500]);
    let mut frame = tunnelled6(FAR_VTEP6.into(), 56, &from_node(&packet));
    frame[60..62].copy_from_slice(&[0x12, 0x34]);
    let facts =
        Meta { checksum: Checksum::Partial, csum_start: 54, csum_offset: 6, ..Meta::default() };
    let outcome = world.send_with(UPLINK, &frame, facts);
    leaves(&outcome, Verdict::Forward, 10);
    assert_eq!(outcome.meta.checksum, Checksum::Unknown);
}

/// What is not ours crosses to the node's stack, untouched.
#[test]
fn what_is_not_ours_is_bumped() {
    let mut world = World::new();
    let packet = udp4(v4(HOST_BEHIND_V4), a4(2), (1, 2), &[1; 300]);
    let good = tunnelled4(FAR_VTEP4.into(), 56, &from_node(&packet));
    let mut frames = vec![vec![0xff; 60]];
    for (at, to) in [(5, 0x77), (33, 9), (37, 0xb6), (23, 6), (20, 0x20)] {
        let mut other = good.clone();
        other[at] = to;
        frames.push(other);
    }
    let mut tagged = good.clone();
    tagged.splice(12..12, [0x81, 0, 0, 5]);
    frames.push(tagged);
    for frame in frames {
        let outcome = world.send(UPLINK, &frame);
        assert_eq!((outcome.verdict, outcome.meta.out), (Verdict::Bump, IfaceId(HOST)));
        assert_eq!(outcome.frame, frame);
        assert_eq!(outcome.meta.vrf, VrfId::UNDERLAY);
    }
    for bytes in [10, 30, 40] {
        dropped(&world.send(UPLINK, &good[..bytes]), DropReason::Runt);
    }
}
