//! What pods may not do, one test for each reason; the same frame put right is the control.

use super::super::testing::frames::*;
use super::super::testing::{gateway_mac, pod_mac};
use super::*;
use wire::Mac;

fn good() -> Vec<u8> {
    from_pod(10, &udp4(a4(2), a4(3), (1000, 2000), b"hello"))
}

/// The good frame with one byte changed.
#[track_caller]
fn changed(at: usize, to: u8) -> Verdict {
    let mut world = World::new();
    leaves(&world.send(10, &good()), Verdict::Forward, 11);
    let mut frame = good();
    assert_ne!(frame[at], to, "changes nothing");
    frame[at] = to;
    world.send(10, &frame).verdict
}

#[test]
fn runt() {
    let mut world = World::new();
    for bytes in [0, 1, 13, 14, 33, 34, 41, 46] {
        dropped(&world.send(10, &good()[..bytes]), DropReason::Runt);
    }
    let v6 = from_pod(10, &udp6(a6(2), a6(3), (1, 2), b"hello"));
    for bytes in [14, 53, 54, 60] {
        dropped(&world.send(10, &v6[..bytes]), DropReason::Runt);
    }
    for bytes in [0, 1, 19, 28] {
        dropped(&world.send(12, &udp4(a4(4), a4(3), (1, 2), b"hello")[..bytes]), DropReason::Runt);
    }
}

#[test]
fn vlan_tagged() {
    let mut world = World::new();
    for kind in [0x8100, 0x88a8] {
        let frame = ethernet(gateway_mac(1), pod_mac(10), kind, &[0, 5, 8, 0, 0x45]);
        dropped(&world.send(10, &frame), DropReason::VlanTagged);
    }
}

#[test]
fn not_for_router() {
    assert_eq!(changed(5, 9), Verdict::Drop(DropReason::NotForRouter));
}

#[test]
fn spoofed_mac_and_one_event() {
    let mut world = World::new();
    let packet = udp4(a4(2), a4(3), (1000, 2000), b"hello");
    let frame = ethernet(gateway_mac(1), pod_mac(11), 0x0800, &packet);
    for _ in 0..100 {
        dropped(&world.send(10, &frame), DropReason::SpoofedMac);
    }
    let event = PathEvent::SpoofedMac { iface: IfaceId(10), claimed: pod_mac(11) };
    assert_eq!(world.heard.0, [event]);
}

#[test]
fn spoofed_source() {
    let mut world = World::new();
    for (src4, src6) in [(a4(3), a6(3)), (a4(1), a6(1)), (v4("8.8.8.8"), v6("2001:db8::1"))] {
        let frame = from_pod(10, &udp4(src4, a4(4), (1, 2), b"x"));
        dropped(&world.send(10, &frame), DropReason::SpoofedSource);
        let frame = from_pod(10, &udp6(src6, a6(4), (1, 2), b"x"));
        dropped(&world.send(10, &frame), DropReason::SpoofedSource);
    }
    // The bare interface has no MAC, but addresses all the same.
    let frame = udp4(a4(2), a4(3), (1, 2), b"x");
    dropped(&world.send(12, &frame), DropReason::SpoofedSource);
    // Just outside of what 11 may use besides its own.
    let frame = from_pod(11, &udp4(v4("10.10.0.0"), a4(2), (1, 2), b"x"));
    dropped(&world.send(11, &frame), DropReason::SpoofedSource);
}

#[test]
fn martian_source() {
    let mut world = World::new();
    for src in ["0.0.0.0", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"] {
        for iface in [10, 31] {
            let frame = from_pod(iface, &udp4(v4(src), a4(4), (1, 2), b"x"));
            dropped(&world.send(iface, &frame), DropReason::MartianSource);
        }
    }
    for src in ["::", "::1", "::ffff:10.1.0.2", "ff02::1", "fe80::1"] {
        let frame = from_pod(31, &udp6(v6(src), a6(2), (1, 2), b"x"));
        dropped(&world.send(31, &frame), DropReason::MartianSource);
    }
}

#[test]
fn martian_destination() {
    let mut world = World::new();
    for dst in ["0.0.0.0", "127.0.0.1", "169.254.169.254", "240.0.0.1", "254.1.1.1"] {
        for (iface, src) in [(10, 2), (30, 2)] {
            let frame = from_pod(iface, &udp4(a4(src), v4(dst), (1, 2), b"x"));
            dropped(&world.send(iface, &frame), DropReason::MartianDestination);
        }
    }
    for dst in ["::", "::1", "::ffff:10.1.0.3", "fe80::1"] {
        let frame = from_pod(30, &udp6(a6(2), v6(dst), (1, 2), b"x"));
        dropped(&world.send(30, &frame), DropReason::MartianDestination);
    }
    // Beside the link-local block.
    let frame = from_pod(30, &udp4(a4(2), v4("169.253.1.1"), (1, 2), b"x"));
    leaves(&world.send(30, &frame), Verdict::Forward, 31);
}

#[test]
fn bum_unsupported() {
    let mut world = World::new();
    let group = Mac([1, 0, 0x5e, 0, 0, 1]);
    for (mac, dst) in
        [(group, "224.0.0.1"), (Mac::BROADCAST, "255.255.255.255"), (Mac::BROADCAST, "10.1.0.3")]
    {
        let packet = udp4(a4(2), v4(dst), (1, 2), b"x");
        let frame = ethernet(mac, pod_mac(10), 0x0800, &packet);
        dropped(&world.send(10, &frame), DropReason::BumUnsupported);
    }
    for dst in ["239.1.1.1", "255.255.255.255"] {
        dropped(&world.send(12, &udp4(a4(4), v4(dst), (1, 2), b"x")), DropReason::BumUnsupported);
    }
    for src in [a6(2), v6("fe80::2")] {
        let packet = udp6(src, v6("ff02::fb"), (5353, 5353), b"x");
        let frame = ethernet(Mac([0x33, 0x33, 0, 0, 0, 0xfb]), pod_mac(10), 0x86dd, &packet);
        dropped(&world.send(10, &frame), DropReason::BumUnsupported);
    }
}

#[test]
fn ethertype_unsupported() {
    let mut world = World::new();
    for kind in [0x0000, 0x05dc, 0x88cc, 0x8847] {
        let frame = ethernet(gateway_mac(1), pod_mac(10), kind, &[0; 50]);
        dropped(&world.send(10, &frame), DropReason::EtherTypeUnsupported);
    }
}

#[test]
fn protocol_unsupported_on_a_bare_interface() {
    let mut world = World::new();
    dropped(&world.send(12, &[0x00; 64]), DropReason::ProtocolUnsupported);
    dropped(&world.send(12, &good()), DropReason::ProtocolUnsupported);
}

#[test]
fn ip4_malformed() {
    assert_eq!(changed(14, 0x65), Verdict::Drop(DropReason::Ip4Malformed), "version");
    assert_eq!(changed(14, 0x44), Verdict::Drop(DropReason::Ip4Malformed), "header length");
    // A total length below the header's, with a right checksum.
    let mut world = World::new();
    let mut packet = ip4(a4(2), a4(3), 17, 64, &[]);
    packet[3] = 19;
    packet[10..12].fill(0);
    let sum = wire::checksum::Sum::of(&packet[..20]).complement();
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    dropped(&world.send(10, &from_pod(10, &packet)), DropReason::Ip4Malformed);
}

#[test]
fn ip4_bad_checksum() {
    for at in 15..34 {
        let to = good()[at] ^ 0x40;
        assert_eq!(changed(at, to), Verdict::Drop(DropReason::Ip4BadChecksum), "byte {at}");
    }
    let mut world = World::new();
    let mut packet = ip4_with(a4(2), a4(3), 17, 64, 0, &[1, 1, 1, 0], &[0; 20]);
    packet[23] = 1;
    dropped(&world.send(10, &from_pod(10, &packet)), DropReason::Ip4BadChecksum);
}

#[test]
fn ip6_malformed() {
    let mut world = World::new();
    let mut packet = udp6(a6(2), a6(3), (1, 2), b"x");
    packet[0] = 0x50;
    let frame = ethernet(gateway_mac(1), pod_mac(10), 0x86dd, &packet);
    dropped(&world.send(10, &frame), DropReason::Ip6Malformed);
    // An extension header that is longer than the packet.
    let packet = ip6(a6(2), a6(3), 60, 64, &[17, 9, 0, 0, 0, 0, 0, 0]);
    dropped(&world.send(10, &from_pod(10, &packet)), DropReason::Ip6Malformed);
    let packet = ip6(a6(2), a6(3), 60, 64, &[]);
    dropped(&world.send(10, &from_pod(10, &packet)), DropReason::Ip6Malformed);
}

#[test]
fn head_too_deep() {
    let mut world = World::new();
    let packet = ip6(a6(2), a6(3), 60, 64, &[60, 0, 1, 4, 0, 0, 0, 0].repeat(10));
    dropped(&world.send(10, &from_pod(10, &packet)), DropReason::HeadTooDeep);
}

#[test]
fn neighbour_unresolved() {
    let mut world = World::new();
    let frame = from_pod(10, &udp4(a4(2), v4("10.1.3.1"), (1, 2), b"x"));
    dropped(&world.send(10, &frame), DropReason::NeighbourUnresolved);
    let frame = from_pod(10, &udp6(a6(2), v6("fd00:1:0:3::1"), (1, 2), b"x"));
    dropped(&world.send(10, &frame), DropReason::NeighbourUnresolved);
}

#[test]
fn gateway_unserved() {
    let mut world = World::new();
    for packet in [
        tcp4(a4(2), a4(1), b""),
        tcp6(a6(2), a6(1), b""),
        ip4(a4(2), a4(1), 1, 64, &icmp4(13, 0, 0, b"")),
        ip4_with(a4(2), a4(1), 1, 64, 0x2000, &[], &icmp4(8, 0, 0, b"")),
    ] {
        dropped(&world.send(10, &from_pod(10, &packet)), DropReason::GatewayUnserved);
    }
}

#[test]
fn iface_gone_with_its_network() {
    let mut world = World::new();
    world.tables.vrfs.set(1, None);
    dropped(&world.send(10, &good()), DropReason::IfaceGone);
    dropped(&world.send(12, &good()), DropReason::IfaceGone);
}

/// A pod makes VXLAN itself: in a Network that leads to the node's own stack it is refused;
/// inside a Network that merely uses the same addresses it is a packet like any other.
#[test]
fn vxlan_injection_by_a_pod() {
    let mut world = World::new();
    let vtep = testing::FAR_VTEP4.into();
    let frame = from_pod(30, &udp4(a4(2), vtep, (1, 4789), &[0; 50]));
    dropped(&world.send(30, &frame), DropReason::VxlanInjection);
    let frame = from_pod(30, &udp6(a6(2), testing::FAR_VTEP6.into(), (1, 4789), &[0; 50]));
    dropped(&world.send(30, &frame), DropReason::VxlanInjection);
    let frame = from_pod(10, &udp4(a4(2), vtep, (1, 4789), &[0; 50]));
    dropped(&world.send(10, &frame), DropReason::VxlanInjection);
    let own = world.tables.node.vteps4[0].into();
    let frame = from_pod(10, &udp4(a4(2), own, (1, 4789), &[0; 50]));
    dropped(&world.send(10, &frame), DropReason::VxlanInjection);
    let frame = from_pod(30, &udp4(a4(2), vtep, (1, 4790), &[0; 50]));
    leaves(&world.send(30, &frame), Verdict::Forward, 31);
    let frame = from_pod(10, &udp4(a4(2), a4(3), (1, 4789), &[0; 50]));
    assert_eq!(world.send(10, &frame).verdict, Verdict::Forward);
}
