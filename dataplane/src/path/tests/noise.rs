//! Anything may come in by any interface: nothing panics, and nothing leaves its Network.

use super::super::testing::frames::*;
use super::super::testing::*;
use super::*;
use crate::table::Iface;
use std::sync::{Mutex, PoisonError};

const IFACES: [u16; 10] = [UPLINK, HOST, 10, 11, 12, 20, 21, 22, 30, 31];

/// What went out stayed in the packet's Network, or was not let in.
fn isolated(world: &World, iface: u16, outcome: &Outcome) {
    let vrf_of = |id: IfaceId| world.tables.iface(id).map(|iface| iface.vrf);
    let (from, meta) = (vrf_of(IfaceId(iface)).expect("exists"), outcome.meta);
    match outcome.verdict {
        Verdict::Forward | Verdict::Answer | Verdict::DropAnswer(_) => {
            let vrf = if from == VrfId::UNDERLAY { meta.vrf } else { from };
            assert_ne!(vrf, VrfId::UNDERLAY, "{outcome:x?}");
            let out = vrf_of(meta.out).expect("leaves somewhere");
            let tunnelled = meta.out == IfaceId(UPLINK);
            assert!(out == vrf || tunnelled, "{iface} → {outcome:x?}");
            if tunnelled {
                let at = if meta.outer == 4 { 46 } else { 66 };
                let vni = u32::from_be_bytes(outcome.frame[at..at + 4].try_into().expect("VNI"));
                assert_eq!(vni >> 8, 55 + u32::from(vrf.0), "{outcome:x?}");
            }
        }
        Verdict::Bump => {
            assert_eq!(from, VrfId::UNDERLAY);
            let Iface { peer, .. } = **world.tables.iface(IfaceId(iface)).expect("exists");
            assert_eq!(meta.out, peer);
        }
        Verdict::Consume | Verdict::Drop(_) => (),
        Verdict::Refill | Verdict::Sum => panic!("was to be answered"),
    }
}

fn facts(noise: [u16; 4], checksum: u8) -> Meta {
    Meta {
        checksum: match checksum & 3 {
            0 => Checksum::Verified,
            1 => Checksum::Partial,
            _ => Checksum::Unknown,
        },
        gso: match checksum >> 2 & 7 {
            0 => Gso::Tcp4,
            1 => Gso::Tcp6,
            2 => Gso::Udp,
            _ => Gso::None,
        },
        gso_size: noise[0],
        csum_start: if noise[1] & 1 == 0 { 34 } else { noise[1] >> 6 },
        csum_offset: if noise[2] & 1 == 0 { 16 } else { noise[2] >> 6 },
        l3: noise[3],
        l4: noise[3] >> 1,
        outer: checksum,
        ..Meta::default()
    }
}

#[test]
fn random_bytes_on_every_interface() {
    let world = Mutex::new(World::new());
    let input = bolero::check!().with_type::<(u8, u8, Vec<u8>, [u16; 4], u8)>();
    input.for_each(|(iface, head_bytes, bytes, noise, checksum)| {
        let mut world = world.lock().unwrap_or_else(PoisonError::into_inner);
        world.now_ns += 1_000_000;
        world.head_bytes = usize::from(*head_bytes % 128) + 1;
        let iface = IFACES[usize::from(*iface) % IFACES.len()];
        let mut frame = bytes.clone();
        if let Some(link) = frame.get_mut(..14) {
            // Else nearly all would end at their MACs.
            let gateway = gateway_mac(iface / 10);
            let header = ethernet(gateway, pod_mac(iface), 0, &[]);
            link[..12].copy_from_slice(&header[..12]);
            if iface == UPLINK {
                link[..6].copy_from_slice(&NODE_MAC.0);
            }
        }
        let outcome = world.send_with(iface, &frame, facts(*noise, *checksum));
        isolated(&world, iface, &outcome);
    });
}

/// Good frames of every kind, with some bytes changed: these get deep.
#[test]
fn damaged_frames_on_every_interface() {
    let seeds = seeds();
    let world = Mutex::new(World::new());
    let input = bolero::check!().with_type::<(u8, u8, u8, Vec<(u8, u8)>, u8, [u16; 4], u8)>();
    input.for_each(|(seed, iface, head_bytes, changes, cut, noise, checksum)| {
        let mut world = world.lock().unwrap_or_else(PoisonError::into_inner);
        world.now_ns += 1_000_000;
        world.head_bytes = usize::from(*head_bytes % 128) + 1;
        let (own, frame) = &seeds[usize::from(*seed) % seeds.len()];
        let mut frame = frame.clone();
        for (at, to) in changes.iter().take(3) {
            if let Some(byte) = frame.get_mut(usize::from(*at)) {
                *byte = *to;
            }
        }
        mend(&mut frame, *own);
        if cut & 7 == 0 {
            frame.truncate(usize::from(*cut));
        }
        let iface = if iface % 8 == 0 { IFACES[usize::from(*iface / 8) % 10] } else { *own };
        let facts = if noise[0] & 3 == 0 { facts(*noise, *checksum) } else { Meta::default() };
        let outcome = world.send_with(iface, &frame, facts);
        isolated(&world, iface, &outcome);
    });
    let world = world.into_inner().unwrap_or_else(PoisonError::into_inner);
    assert!(world.fast > 0, "no frame was compared with the fast way");
}

/// Makes IPv4 headers' checksums right again, the one behind a tunnel's headers as well, so that the
/// change behind them counts.
fn mend(frame: &mut [u8], iface: u16) {
    let l3 = if [12, 22].contains(&iface) { 0 } else { 14 };
    let inner = l3 + 20 + 8 + 8 + 14;
    for at in [l3, inner].into_iter().take(if iface == UPLINK { 2 } else { 1 }) {
        if let Some(header) = frame.get_mut(at..at + 20)
            && header[0] == 0x45
        {
            header[10..12].fill(0);
            let sum = wire::checksum::Sum::of(header).complement();
            header[10..12].copy_from_slice(&sum.to_be_bytes());
        }
    }
}

fn seeds() -> Vec<(u16, Vec<u8>)> {
    let mut seeds = Vec::new();
    for iface in [10, 20, 11, 31] {
        let (s4, s6) = (a4(u32::from(iface % 10) + 2), a6(u128::from(iface % 10) + 2));
        for packet in [
            udp4(s4, a4(3), (1, 2), &[0; 200]),
            tcp4(s4, v4("10.1.1.7"), &[0; 200]),
            tcp4(s4, v4("10.1.2.7"), &[0; 200]),
            tcp6(s6, v6("fd00:1:0:2::7"), &[0; 200]),
            udp6(s6, v6("fd00:1:0:1::7"), (1, 2), &[0; 20]),
            ping4(s4, a4(1), &[0; 200]),
            ping6(s6, a6(1), &[0; 200]),
            udp4(s4, a4(99), (1, 4789), &[0; 200]),
            ip4_with(s4, a4(2), 17, 2, 0, &[7, 7, 4, 0, 0, 0, 0, 0], &[0; 1600]),
            ip6(s6, a6(2), 0, 64, &[60, 0, 0, 0, 0, 0, 0, 0].repeat(9)),
            nd(s6, a6(3), 135, 0, a6(3), Some((1, pod_mac(iface)))),
            nd(0, wire::solicited_node_of(a6(3)), 135, 0, a6(3), None),
        ] {
            seeds.push((iface, from_pod(iface, &packet)));
        }
        let question = arp(1, (pod_mac(iface), s4), (wire::Mac::default(), a4(1)));
        seeds.push((iface, ethernet(wire::Mac::BROADCAST, pod_mac(iface), 0x0806, &question)));
    }
    for iface in [12, 22] {
        seeds.push((iface, tcp4(a4(4), a4(3), &[0; 200])));
        seeds.push((iface, tcp6(a6(4), v6("fd00:1:0:2::7"), &[0; 200])));
        seeds.push((iface, ping4(a4(4), a4(1), &[0; 200])));
    }
    for vni in 56..60 {
        let asker = ethernet(wire::Mac::BROADCAST, FAR_ROUTER_MAC, 0x0806, &[]);
        let question = arp(1, (FAR_ROUTER_MAC, v4("10.1.1.7")), (wire::Mac::default(), a4(2)));
        for inner in [
            from_node(&tcp4(v4("10.1.1.7"), a4(2), &[0; 100])),
            from_node(&tcp6(v6("fd00:1:0:1::7"), a6(4), &[0; 100])),
            from_node(&ping4(v4("10.1.1.7"), a4(1), &[0; 100])),
            from_node(&udp4(v4("10.1.1.7"), a4(99), (1, 2), &[0; 100])),
            from_node(&nd(v6("fe80::9"), a6(2), 135, 0, a6(2), None)),
            [asker, question].concat(),
        ] {
            seeds.push((UPLINK, tunnelled4(FAR_VTEP4.into(), vni, &inner)));
            seeds.push((UPLINK, tunnelled6(FAR_VTEP6.into(), vni, &inner)));
        }
    }
    let own = OWN_VTEP4.into();
    let host = udp4(own, FAR_VTEP4.into(), (1, 4789), &[0; 200]);
    seeds.push((HOST, ethernet(FABRIC_MAC, NODE_MAC, 0x0800, &host)));
    seeds
}

/// The seeds themselves are good, else the test above would test little.
#[test]
fn undamaged_frames_get_through() {
    let mut world = World::new();
    let mut verdicts = std::collections::HashMap::new();
    let mut fast_from_tunnels = 0;
    for (iface, frame) in seeds() {
        let fast = world.fast;
        let outcome = world.send(iface, &frame);
        fast_from_tunnels += if iface == UPLINK { world.fast - fast } else { 0 };
        isolated(&world, iface, &outcome);
        *verdicts.entry(format!("{:?}", outcome.verdict)).or_insert(0) += 1;
    }
    assert!(verdicts["Forward"] > 20 && verdicts["Answer"] > 10, "{verdicts:?}");
    assert!(world.fast >= 25, "{} of the usual packets went the fast way", world.fast);
    // Of each family one for each VNI that is known here; one of them has no pod with that IPv6 address.
    assert_eq!(fast_from_tunnels, 5, "usual packets out of tunnels over IPv4");
}
