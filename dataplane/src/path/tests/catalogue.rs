//! One example for every reason there is: a reason that nothing can cause is a lie in the metrics.

use super::super::testing::frames::*;
use super::super::testing::*;
use super::*;
use wire::Mac;

/// Where it comes in, the frame, and a port's facts.
type Example = (u16, Vec<u8>, Meta);

fn example(reason: DropReason) -> Example {
    let (here, pod, far) = (a4(2), a4(3), v4("10.1.1.7"));
    let good = udp4(here, pod, (1, 2), b"hello");
    let up = |packet: &[u8]| (10, from_pod(10, packet), Meta::default());
    let frame = |frame: Vec<u8>| (10, frame, Meta::default());
    let link = |dst: Mac, src: Mac, kind: u16| frame(ethernet(dst, src, kind, &good));
    let gateway = gateway_mac(1);
    let inner = from_node(&udp4(far, here, (1, 2), b"x"));
    let tunnel =
        |from: u32, vni: u32, inner: &[u8]| (UPLINK, tunnelled4(from, vni, inner), Meta::default());
    let node = FAR_VTEP4.into();
    match reason {
        DropReason::Runt => frame(vec![0; 13]),
        DropReason::HeadTooDeep => up(&ip6(a6(2), a6(3), 60, 64, &[60, 0].repeat(60))),
        DropReason::VlanTagged => link(gateway, pod_mac(10), 0x8100),
        DropReason::NotForRouter => link(pod_mac(11), pod_mac(10), 0x0800),
        DropReason::SpoofedMac => link(gateway, pod_mac(11), 0x0800),
        DropReason::SpoofedSource => up(&udp4(pod, here, (1, 2), b"x")),
        DropReason::SpoofedNeighbour => {
            let claim = arp(1, (pod_mac(10), pod), (Mac::default(), a4(1)));
            frame(ethernet(Mac::BROADCAST, pod_mac(10), 0x0806, &claim))
        }
        DropReason::EtherTypeUnsupported => link(gateway, pod_mac(10), 0x88cc),
        DropReason::Ip4Malformed => link(gateway, pod_mac(10), 0x0800).changed(14, 0x44),
        DropReason::Ip4BadChecksum => link(gateway, pod_mac(10), 0x0800).changed(15, 1),
        DropReason::Ip6Malformed => up(&udp6(a6(2), a6(3), (1, 2), b"x")).changed(14, 0x50),
        DropReason::ArpMalformed => link(gateway, pod_mac(10), 0x0806),
        DropReason::NdMalformed => {
            up(&ip6(a6(2), a6(1), 58, 64, &icmp6(a6(2), a6(1), 135, 0, &[0; 16])))
        }
        DropReason::MartianSource => up(&udp4(v4("127.0.0.1"), pod, (1, 2), b"x")),
        DropReason::MartianDestination => up(&udp4(here, v4("127.0.0.1"), (1, 2), b"x")),
        DropReason::TtlExpired => up(&ip4(here, pod, 17, 1, &[0; 8])),
        DropReason::NoRoute => up(&udp4(here, a4(99), (1, 2), b"x")),
        DropReason::TooBig => up(&ip4(here, pod, 17, 64, &[0; 1500])),
        DropReason::BumUnsupported => up(&udp4(here, v4("224.0.0.251"), (1, 2), b"x")),
        DropReason::NeighbourUnresolved => up(&udp4(here, v4("10.1.3.1"), (1, 2), b"x")),
        DropReason::GatewayUnserved => up(&tcp4(here, a4(1), b"x")),
        DropReason::VxlanInjection => {
            let packet = udp4(OWN_VTEP4.into(), node, (1, 4789), &[0; 50]);
            (HOST, ethernet(FABRIC_MAC, NODE_MAC, 0x0800, &packet), Meta::default())
        }
        DropReason::VxlanMalformed => tunnel(node, 56, &inner).changed(42, 0),
        DropReason::VniUnknown => tunnel(node, 99, &inner),
        DropReason::VtepUnknown => tunnel(v4("192.0.2.66"), 56, &inner),
        DropReason::VxlanNotForRouter => tunnel(node, 56, &inner).changed(55, 0x77),
        DropReason::EcnCongested => {
            let mut frame = tunnelled4(node, 56, &inner);
            frame[15] = 3;
            frame[24..26].fill(0);
            let sum = wire::checksum::Sum::of(&frame[14..34]).complement();
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
            (UPLINK, frame, Meta::default())
        }
        DropReason::TunnelHairpin => {
            tunnel(node, 56, &from_node(&udp4(far, v4("10.1.1.8"), (1, 2), b"x")))
        }
        DropReason::OffloadMalformed => {
            let facts = Meta { gso: Gso::Tcp4, gso_size: 1, ..Meta::default() };
            (10, from_pod(10, &tcp4(here, pod, &[0; 99])), facts)
        }
        DropReason::IfaceGone => (20, from_pod(20, &good), Meta::default()),
        DropReason::ProtocolUnsupported => (12, vec![0; 60], Meta::default()),
    }
}

trait Changed {
    fn changed(self, at: usize, to: u8) -> Self;
}

impl Changed for Example {
    fn changed(mut self, at: usize, to: u8) -> Self {
        self.1[at] = to;
        self
    }
}

#[test]
fn every_reason_has_a_cause() {
    for &reason in DropReason::ALL {
        let mut world = World::new();
        if reason == DropReason::IfaceGone {
            world.tables.vrfs.set(2, None);
        }
        let (iface, frame, facts) = example(reason);
        let found = match world.send_with(iface, &frame, facts).verdict {
            Verdict::Drop(found) | Verdict::DropAnswer(found) => found,
            other => panic!("{reason:?}: {other:?}"),
        };
        assert_eq!(found, reason);
    }
}
