//! ARP and neighbour discovery.

use super::super::testing::frames::*;
use super::super::testing::*;
use super::*;
use wire::{Mac, link_local_of, solicited_node_of};

const NOBODY: Mac = Mac([0; 6]);
const REQUEST: u16 = 1;
const REPLY: u16 = 2;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

fn arp_from(iface: u16, operation: u16, sender: (Mac, u32), target: u32) -> Vec<u8> {
    let packet = arp(operation, sender, (NOBODY, target));
    ethernet(Mac::BROADCAST, pod_mac(iface), 0x0806, &packet)
}

fn ask4(iface: u16, sender: u32, target: u32) -> Outcome {
    World::new().send(iface, &arp_from(iface, REQUEST, (pod_mac(iface), sender), target))
}

#[test]
fn arp_for_any_address_of_the_realm_is_answered() {
    for target in [a4(1), a4(3), a4(99), v4("10.1.1.7"), v4("10.1.255.254")] {
        let mut frame = arp_from(10, REQUEST, (pod_mac(10), a4(2)), target);
        // As an Ethernet that pads short frames.
        frame.resize(60, 0);
        let out = leaves(&World::new().send(10, &frame), Verdict::Answer, 10);
        let reply = arp(REPLY, (gateway_mac(1), target), (pod_mac(10), a4(2)));
        assert_eq!(out, ethernet(pod_mac(10), gateway_mac(1), 0x0806, &reply));
    }
    assert_eq!(ask4(10, a4(2), v4("8.8.8.8")).verdict, Verdict::Consume, "not of the realm");
    assert_eq!(ask4(10, a4(2), a4(2)).verdict, Verdict::Consume, "gratuitous");
}

#[test]
fn arp_probes_are_answered_for_what_others_own() {
    // RFC 5227: silence means that the address is free.
    for free in [a4(2), a4(77), v4("10.1.1.7")] {
        assert_eq!(ask4(10, 0, free).verdict, Verdict::Consume);
    }
    for taken in [a4(1), a4(3), a4(4)] {
        let mut world = World::new();
        let frame = arp_from(10, REQUEST, (pod_mac(10), 0), taken);
        leaves(&world.send(10, &frame), Verdict::Answer, 10);
        let address = 0xffff_0000_0000 | u128::from(taken);
        assert_eq!(world.heard.0, [PathEvent::AddressConflict { iface: IfaceId(10), address }]);
    }
}

#[test]
fn spoofed_arp() {
    for sender in [(pod_mac(11), a4(2)), (pod_mac(10), a4(3)), (pod_mac(10), a4(1))] {
        for operation in [REQUEST, REPLY] {
            let frame = arp_from(10, operation, sender, a4(4));
            dropped(&World::new().send(10, &frame), DropReason::SpoofedNeighbour);
        }
    }
    let frame = arp_from(10, REPLY, (pod_mac(10), a4(2)), a4(2));
    assert_eq!(World::new().send(10, &frame).verdict, Verdict::Consume);
}

#[test]
fn arp_malformed() {
    let good = arp_from(10, REQUEST, (pod_mac(10), a4(2)), a4(1));
    for at in [15, 16, 18, 19, 21] {
        let mut frame = good.clone();
        frame[at] ^= 0x40;
        dropped(&World::new().send(10, &frame), DropReason::ArpMalformed);
    }
    dropped(&World::new().send(10, &good[..41]), DropReason::Runt);
    leaves(&World::new().send(10, &good), Verdict::Answer, 10);
}

fn solicit(iface: u16, src: u128, target: u128) -> Vec<u8> {
    let option = (src != 0).then_some((1, pod_mac(iface)));
    let packet = nd(src, solicited_node_of(target), SOLICITATION, 0, target, option);
    from_pod_group(iface, &packet)
}

fn from_pod_group(iface: u16, packet: &[u8]) -> Vec<u8> {
    ethernet(Mac([0x33, 0x33, 0xff, 0, 0, 1]), pod_mac(iface), 0x86dd, packet)
}

#[test]
fn nd_for_any_address_of_the_realm_is_answered() {
    let link_local = link_local_of(gateway_mac(1));
    for (target, router) in [
        (a6(1), true),
        (link_local, true),
        (a6(3), false),
        (a6(99), false),
        (v6("fd00:1:0:1::7"), false),
    ] {
        for src in [a6(2), v6("fe80::2")] {
            let outcome = World::new().send(10, &solicit(10, src, target));
            let out = leaves(&outcome, Verdict::Answer, 10);
            let flags = 0x6000_0000 | if router { 1 << 31 } else { 0 };
            let option = Some((2, gateway_mac(1)));
            let reply = nd(target, src, ADVERTISEMENT, flags, target, option);
            assert_eq!(out, ethernet(pod_mac(10), gateway_mac(1), 0x86dd, &reply));
        }
    }
    // Unicast, as a kernel asks whether the neighbour is still there; without option as well.
    for option in [None, Some((1, pod_mac(10)))] {
        let packet = nd(a6(2), a6(3), SOLICITATION, 0, a6(3), option);
        leaves(&World::new().send(10, &from_pod(10, &packet)), Verdict::Answer, 10);
    }
    for outside in [v6("2001:db8::5"), v6("fe80::77"), a6(2)] {
        let outcome = World::new().send(10, &solicit(10, a6(2), outside));
        assert_eq!(outcome.verdict, Verdict::Consume);
    }
}

#[test]
fn nd_probes_are_answered_for_what_others_own() {
    for free in [a6(2), a6(77), v6("fe80::2"), v6("fd00:1:0:1::7")] {
        assert_eq!(World::new().send(10, &solicit(10, 0, free)).verdict, Verdict::Consume);
    }
    let gateway = link_local_of(gateway_mac(1));
    for taken in [a6(1), a6(3), a6(4), gateway] {
        let mut world = World::new();
        let out = leaves(&world.send(10, &solicit(10, 0, taken)), Verdict::Answer, 10);
        // RFC 4861 §7.2.4: to all nodes, not solicited.
        let flags = if taken == a6(1) || taken == gateway { 0xa000_0000 } else { 0x2000_0000 };
        let reply =
            nd(taken, v6("ff02::1"), ADVERTISEMENT, flags, taken, Some((2, gateway_mac(1))));
        assert_eq!(out, ethernet(Mac([0x33, 0x33, 0, 0, 0, 1]), gateway_mac(1), 0x86dd, &reply));
        assert_eq!(world.heard.0.len(), 1);
    }
}

#[test]
fn spoofed_nd() {
    let mut world = World::new();
    let group = solicited_node_of(a6(4));
    // Somebody else's MAC, source address, or address announced.
    let packet = nd(a6(2), group, SOLICITATION, 0, a6(4), Some((1, pod_mac(11))));
    dropped(&world.send(10, &from_pod_group(10, &packet)), DropReason::SpoofedNeighbour);
    let packet = nd(a6(3), group, SOLICITATION, 0, a6(4), Some((1, pod_mac(10))));
    dropped(&world.send(10, &from_pod_group(10, &packet)), DropReason::SpoofedSource);
    let gateway = link_local_of(gateway_mac(1));
    let packet = nd(gateway, group, SOLICITATION, 0, a6(4), Some((1, pod_mac(10))));
    dropped(&world.send(10, &from_pod_group(10, &packet)), DropReason::SpoofedSource);
    let all = v6("ff02::1");
    for (target, mac) in [(a6(3), pod_mac(10)), (gateway, pod_mac(10)), (a6(2), pod_mac(11))] {
        let packet = nd(a6(2), all, ADVERTISEMENT, 0, target, Some((2, mac)));
        dropped(&world.send(10, &from_pod_group(10, &packet)), DropReason::SpoofedNeighbour);
    }
    let packet = nd(a6(2), all, ADVERTISEMENT, 0, a6(2), Some((2, pod_mac(10))));
    assert_eq!(world.send(10, &from_pod_group(10, &packet)).verdict, Verdict::Consume);
    // A pod is no router.
    for kind in [134, 137] {
        let packet = ip6(a6(2), all, 58, 255, &icmp6(a6(2), all, kind, 0, &[0; 40]));
        dropped(&world.send(10, &from_pod_group(10, &packet)), DropReason::SpoofedNeighbour);
    }
}

#[test]
fn nd_malformed() {
    let good = nd(a6(2), a6(3), SOLICITATION, 0, a6(3), Some((1, pod_mac(10))));
    leaves(&World::new().send(10, &from_pod(10, &good)), Verdict::Answer, 10);
    // Hop limit; checksum; an option of length zero (with a right checksum).
    let mut cases = Vec::new();
    let mut hop = good.clone();
    hop[7] = 254;
    cases.push(hop);
    let mut sum = good.clone();
    sum[42] ^= 1;
    cases.push(sum);
    let body = |target: u128, tail: &[u8]| [&target.to_be_bytes()[..], tail].concat();
    let message =
        |payload: &[u8]| ip6(a6(2), a6(3), 58, 255, &icmp6(a6(2), a6(3), SOLICITATION, 0, payload));
    cases.push(message(&body(a6(3), &[1, 0, 2, 0, 0, 0, 0, 1])));
    cases.push(message(&body(a6(3), &[1])));
    cases.push(message(&a6(3).to_be_bytes()[..8]));
    cases.push(message(&body(v6("ff02::1"), &[])));
    // A probe with a source option, or not to the group (RFC 4861 §7.1.1).
    let target = a6(3);
    let group = solicited_node_of(target);
    cases.push(nd(0, group, SOLICITATION, 0, target, Some((1, pod_mac(10)))));
    cases.push(nd(0, target, SOLICITATION, 0, target, None));
    // Longer than any that is looked at.
    cases.push(message(&body(a6(3), &[14, 1, 0, 0, 0, 0, 0, 0].repeat(40))));
    for packet in cases {
        let outcome = World::new().send(10, &from_pod(10, &packet));
        dropped(&outcome, DropReason::NdMalformed);
    }
}

#[test]
fn what_stays_on_the_link_is_absorbed() {
    let mut world = World::new();
    let (any, routers) = (0, v6("ff02::2"));
    for (src, kind) in [(any, 133), (v6("fe80::2"), 133), (v6("fe80::2"), 131), (any, 143)] {
        let packet = ip6(src, routers, 58, 255, &icmp6(src, routers, kind, 0, &[]));
        assert_eq!(world.send(10, &from_pod_group(10, &packet)).verdict, Verdict::Consume);
    }
    // A listener report comes behind a router alert option (RFC 3810 §5).
    let group = v6("ff02::16");
    let report = icmp6(v6("fe80::2"), group, 143, 0, &[]);
    let behind = [&[58, 0, 5, 2, 0, 0, 1, 0][..], &report].concat();
    let packet = ip6(v6("fe80::2"), group, 0, 1, &behind);
    assert_eq!(world.send(10, &from_pod_group(10, &packet)).verdict, Verdict::Consume);
    // A bare interface has no neighbours.
    let packet = nd(a6(4), a6(3), SOLICITATION, 0, a6(3), None);
    assert_eq!(world.send(12, &packet).verdict, Verdict::Consume);
}

/// A Linux VXLAN device asks where a pod is, and gets told: behind this node's router MAC.
#[test]
fn questions_out_of_a_tunnel_are_answered_through_it() {
    let asker = Mac([2, 0, 0, 0, 0xdd, 1]);
    let from: u32 = PEER_VTEP4.into();
    let request = arp(REQUEST, (asker, v4("10.1.9.9")), (NOBODY, a4(2)));
    let inner = ethernet(Mac::BROADCAST, asker, 0x0806, &request);
    let outcome = World::new().send(UPLINK, &tunnelled4(from, 56, &inner));
    let out = leaves(&outcome, Verdict::Answer, UPLINK);
    assert_eq!(out[..12], [FABRIC_MAC.0, NODE_MAC.0].concat());
    assert_eq!(out[26..34], [OWN_VTEP4.octets(), PEER_VTEP4.octets()].concat());
    let reply = arp(REPLY, (ROUTER_MAC, a4(2)), (asker, v4("10.1.9.9")));
    assert_eq!(outcome.inner(), ethernet(asker, ROUTER_MAC, 0x0806, &reply));

    let src = v6("fe80::99");
    let question = nd(src, solicited_node_of(a6(2)), SOLICITATION, 0, a6(2), Some((1, asker)));
    let inner = ethernet(Mac([0x33, 0x33, 0xff, 0, 0, 2]), asker, 0x86dd, &question);
    let flags = 0x6000_0000;
    let reply = nd(a6(2), src, ADVERTISEMENT, flags, a6(2), Some((2, ROUTER_MAC)));
    let expected = ethernet(asker, ROUTER_MAC, 0x86dd, &reply);
    for frame in [tunnelled4(from, 56, &inner), tunnelled6(FAR_VTEP6.into(), 56, &inner)] {
        let outcome = World::new().send(UPLINK, &frame);
        leaves(&outcome, Verdict::Answer, UPLINK);
        assert_eq!(outcome.inner(), expected);
    }
    // Not for what is elsewhere.
    let request = arp(REQUEST, (asker, v4("10.1.9.9")), (NOBODY, a4(99)));
    let inner = ethernet(Mac::BROADCAST, asker, 0x0806, &request);
    let outcome = World::new().send(UPLINK, &tunnelled4(from, 56, &inner));
    dropped(&outcome, DropReason::BumUnsupported);
    let question = nd(src, solicited_node_of(a6(99)), SOLICITATION, 0, a6(99), Some((1, asker)));
    let inner = ethernet(Mac([0x33, 0x33, 0xff, 0, 0, 2]), asker, 0x86dd, &question);
    let outcome = World::new().send(UPLINK, &tunnelled4(from, 56, &inner));
    dropped(&outcome, DropReason::BumUnsupported);
}
