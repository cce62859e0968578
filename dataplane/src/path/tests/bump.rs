//! Between the node's own stack and the fabric.

use super::super::testing::frames::*;
use super::super::testing::*;
use super::*;

fn from_host(packet: &[u8]) -> Vec<u8> {
    let kind = if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd };
    ethernet(FABRIC_MAC, NODE_MAC, kind, packet)
}

#[track_caller]
fn crosses(frame: &[u8]) {
    let outcome = World::new().send(HOST, frame);
    assert_eq!((outcome.verdict, outcome.meta.out), (Verdict::Bump, IfaceId(UPLINK)));
    assert_eq!(outcome.frame, frame);
    assert_ne!(outcome.meta.flow_hash, 0);
}

#[track_caller]
fn injects(frame: &[u8]) {
    dropped(&World::new().send(HOST, frame), DropReason::VxlanInjection);
}

const VXLAN: (u16, u16) = (50_000, 4789);

#[test]
fn the_nodes_own_frames_cross_unchanged() {
    let own = OWN_VTEP4.into();
    crosses(&from_host(&tcp4(own, FAR_VTEP4.into(), &[1; 1000])));
    crosses(&from_host(&tcp6(OWN_VTEP6.into(), FAR_VTEP6.into(), &[1; 1000])));
    // Another port, another destination.
    crosses(&from_host(&udp4(own, FAR_VTEP4.into(), (4789, 4790), &[0; 50])));
    crosses(&from_host(&udp4(own, v4("192.0.2.200"), VXLAN, &[0; 50])));
    crosses(&from_host(&udp6(OWN_VTEP6.into(), v6("2001:db8::200"), VXLAN, &[0; 50])));
    // ARP, LLDP, rubbish, and padding.
    let mut arp = ethernet(
        wire::Mac::BROADCAST,
        NODE_MAC,
        0x0806,
        &arp(1, (NODE_MAC, own), (wire::Mac::default(), 7)),
    );
    crosses(&arp);
    arp.resize(60, 0);
    crosses(&arp);
    crosses(&ethernet(FABRIC_MAC, NODE_MAC, 0x88cc, &[1; 100]));
    crosses(&ethernet(FABRIC_MAC, NODE_MAC, 0x0800, &[0xff; 40]));
    let mut padded = from_host(&udp4(own, v4("192.0.2.200"), (1, 2), b"x"));
    padded.resize(60, 0xcc);
    crosses(&padded);
    dropped(&World::new().send(HOST, &[0; 13]), DropReason::Runt);
}

#[test]
fn vxlan_to_a_tunnel_end_is_dropped_however_it_is_wrapped() {
    let (own4, far4) = (OWN_VTEP4.into(), FAR_VTEP4.into());
    let (own6, far6) = (OWN_VTEP6.into(), FAR_VTEP6.into());
    let v4_frame = from_host(&udp4(own4, far4, VXLAN, &[0; 300]));
    let v6_frame = from_host(&udp6(own6, far6, VXLAN, &[0; 300]));
    injects(&v4_frame);
    injects(&v6_frame);
    // Peers are tunnel ends as well, and so is whoever we pretend to be.
    injects(&from_host(&udp4(own4, PEER_VTEP4.into(), VXLAN, &[0; 50])));
    injects(&from_host(&udp4(v4("1.2.3.4"), far4, VXLAN, &[0; 50])));
    for frame in [&v4_frame, &v6_frame] {
        let mut tagged = frame.clone();
        tagged.splice(12..12, [0x81, 0, 0, 5]);
        injects(&tagged);
        tagged.splice(12..12, [0x88, 0xa8, 0, 6]);
        injects(&tagged);
    }
    // Options, and extension headers beyond the first head.
    let udp = udp_unsummed(1, 4789, &[0; 200]);
    injects(&from_host(&ip4_with(own4, far4, 17, 64, 0, &[1; 40], &udp)));
    let deep = [&[17, 13, 1, 108][..], &[0; 108], &udp].concat();
    injects(&from_host(&ip6(own6, far6, 60, 64, &deep)));
    // First fragments show the ports; those that hide them are not believed.
    injects(&from_host(&ip4_with(own4, far4, 17, 64, 0x2000, &[], &udp)));
    injects(&from_host(&ip6(own6, far6, 44, 64, &[&[17, 0, 0, 1, 0, 0, 0, 7], &udp[..]].concat())));
    injects(&from_host(&ip6(own6, far6, 44, 64, &[60, 0, 0, 1, 0, 0, 0, 7])));
    injects(&from_host(&ip6(own6, far6, 60, 64, &[60, 0, 1, 4, 0, 0, 0, 0].repeat(30))));
    // Later fragments are nothing without the first.
    crosses(&from_host(&ip4_with(own4, far4, 17, 64, 0x0010, &[], &udp)));
    crosses(&from_host(&ip6(own6, far6, 44, 64, &[&[17, 0, 0, 8, 0, 0, 0, 7], &udp[..]].concat())));
}

#[test]
fn super_frames_of_the_host_are_described_for_the_split() {
    let mut world = World::new();
    let (own, far) = (OWN_VTEP4.into(), v4("192.0.2.200"));
    let tcp = tcp_unsummed(1, 2, 0x10, &[9; 5000]);
    let pseudo = wire::checksum::pseudo4(own, far, 6, tcp.len());
    let packet = ip4(own, far, 6, 64, &half_summed(tcp, 16, pseudo));
    let facts = Meta {
        checksum: Checksum::Partial,
        csum_start: 34,
        csum_offset: 16,
        gso: Gso::Tcp4,
        gso_size: 1448,
        ..Meta::default()
    };
    let outcome = world.send_with(HOST, &from_host(&packet), facts);
    let meta = outcome.meta;
    assert_eq!(outcome.verdict, Verdict::Bump);
    assert_eq!((meta.l3, meta.l4, meta.protocol, meta.ip_version), (14, 34, 6, 4));
    assert_eq!((meta.gso, meta.checksum), (Gso::Tcp4, Checksum::Partial));
    // A peer with small segments: a pod could not send so, the node must be able to.
    let small = Meta { gso_size: 200, ..facts };
    let outcome = world.send_with(HOST, &from_host(&packet), small);
    assert_eq!((outcome.verdict, outcome.meta.l4), (Verdict::Bump, 34));
}

#[test]
fn an_uplink_without_a_host_tap_drops() {
    let mut world = World::new();
    let mut alone = World::new();
    let frame = from_host(&tcp4(v4("192.0.2.200"), OWN_VTEP4.into(), b"x"));
    assert_eq!(world.send(UPLINK, &frame).verdict, Verdict::Bump);
    let iface = alone.tables.iface(IfaceId(UPLINK)).expect("exists");
    let iface = Iface {
        peer: IfaceId::NONE,
        name: iface.name.clone(),
        addrs4: [].into(),
        addrs6: [].into(),
        allowed4: [].into(),
        allowed6: [].into(),
        workers: iface.workers.clone(),
        counters: iface.counters.clone(),
        ..*iface.as_ref()
    };
    alone.tables.ifaces.set(usize::from(UPLINK), Some(std::sync::Arc::new(iface)));
    dropped(&alone.send(UPLINK, &frame), DropReason::IfaceGone);
}
