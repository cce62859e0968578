//! Two Networks with the same addresses, MACs included: nothing crosses, and whoever pretends to
//! be somebody else is found out. Every negative has its positive control.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::lab::frame::{self, Mac};
use crate::lab::node::drops;
use crate::lab::pod::mac;
use crate::lab::{End, Lab, MemifPod, Node, Realm, TapPod, counts};

const TAP: u16 = 10;
const MEMIF: u16 = 20;
const KINDS: [u16; 2] = [TAP, MEMIF];

/// A Network with one tap and one memif that send, and one of each that receive.
struct Side {
    realm: Realm,
    ends: Vec<(u16, String, Box<dyn End>)>,
    _taps: Vec<TapPod>,
}

/// Receivers have the sender's number and one more.
fn side(node: &mut Node, realm: Realm) -> Side {
    node.add_realm(&realm);
    let mut ends: Vec<(u16, String, Box<dyn End>)> = Vec::new();
    let mut taps = Vec::new();
    for n in [TAP, TAP + 1] {
        let pod = TapPod::new(node, &realm, n);
        ends.push((n, pod.id.clone(), Box::new(pod.raw())));
        taps.push(pod);
    }
    for n in [MEMIF, MEMIF + 1] {
        let pod = MemifPod::new(node, &realm, n);
        ends.push((n, pod.at.id.clone(), Box::new(pod)));
    }
    Side { realm, ends, _taps: taps }
}

impl Side {
    fn end(&mut self, n: u16) -> &mut dyn End {
        &mut *self.ends.iter_mut().find(|(number, ..)| *number == n).expect("a pod").2
    }

    fn id(&self, n: u16) -> &str {
        &self.ends.iter().find(|(number, ..)| *number == n).expect("a pod").1
    }

    fn packet(&self, from: u16, to: u16, v6: bool, mark: &str) -> Vec<u8> {
        let ip = |n| if v6 { Realm::ip6(n) } else { Realm::ip4(n) };
        let packet = frame::udp((ip(from), 4000), (ip(to), 5000), mark.as_bytes());
        self.frame(from, frame::ether_type(ip(from)), &packet)
    }

    fn frame(&self, from: u16, kind: u16, payload: &[u8]) -> Vec<u8> {
        frame::ethernet(self.realm.gateway_mac(), mac(from), kind, payload)
    }
}

fn two_sides(node: &mut Node) -> (Side, Side) {
    let blue = side(node, Realm::new("blue", 56, 1500));
    let red = side(node, Realm::new("red", 57, 1500));
    (blue, red)
}

/// For every ordered pair of {tap, memif} × {blue, red}: who sends to an address reaches the one in
/// its own Network, and its twin never sees it.
#[test]
fn twins_never_see_each_others_packets() {
    let _lab = Lab::new();
    [1, 2].into_iter().for_each(twins);
}

fn twins(workers: u32) {
    let mut node = Node::local(workers);
    let (mut blue, mut red) = two_sides(&mut node);
    for v6 in [false, true] {
        for (from, to) in KINDS.iter().flat_map(|&f| KINDS.map(|t| (f, t + 1))) {
            let family = if v6 { 6 } else { 4 };
            let blue_mark = format!("blue {from}>{to} v{family}");
            let red_mark = format!("red {from}>{to} v{family}");
            for (side, mark) in [(&mut blue, &blue_mark), (&mut red, &red_mark)] {
                let packet = side.packet(from, to, v6, mark);
                for _ in 0..10 {
                    side.end(from).inject(&packet);
                }
            }
            for (side, mark, foreign) in
                [(&mut blue, &blue_mark, b"red "), (&mut red, &red_mark, b"blue")]
            {
                // Each sees its own ten, which came later than the other's ten would have.
                let (own, mut others) = side.end(to).gather(mark.as_bytes(), 10);
                assert_eq!(own.len(), 10);
                others.extend(side.ends.iter_mut().flat_map(|(.., end)| end.take()));
                let leaked = others.iter().filter(|f| frame::contains(f, foreign)).count();
                assert_eq!(leaked, 0, "{mark} with {workers} workers");
            }
        }
    }
}

/// Sends each frame from the pod, expects the drop reason to grow by exactly their number, and that
/// an honest packet behind them arrives. The answer is what else came there.
fn refused(
    node: &Node,
    side: &mut Side,
    from: u16,
    reason: &str,
    frames: &[Vec<u8>],
) -> Vec<Vec<u8>> {
    let to = from + 1;
    let mut came = Vec::new();
    let id = side.id(from).to_owned();
    let before = drops(&node.account(&id), reason);
    for (n, bad) in frames.iter().enumerate() {
        let mark = format!("honest {reason} {n}");
        let honest = side.packet(from, to, false, &mark);
        side.end(from).inject(bad);
        side.end(from).inject(&honest);
        let (seen, others) = side.end(to).gather(mark.as_bytes(), 1);
        assert_eq!(seen.len(), 1);
        came.extend(others);
        let what = format!("{reason}, frame {n} of {id}");
        counts(&what, before + n as u64 + 1, || drops(&node.account(&id), reason));
    }
    came
}

fn v4(ip: IpAddr) -> Ipv4Addr {
    match ip {
        IpAddr::V4(ip) => ip,
        IpAddr::V6(_) => panic!("{ip} is not IPv4"),
    }
}

fn v6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V6(ip) => ip,
        IpAddr::V4(_) => panic!("{ip} is not IPv6"),
    }
}

#[test]
fn spoofed_sources_are_dropped() {
    let _lab = Lab::new();
    [1, 2].into_iter().for_each(spoofed_sources);
}

fn spoofed_sources(workers: u32) {
    let mut node = Node::local(workers);
    let (mut blue, _red) = two_sides(&mut node);
    let mark = b"spoofed source";
    for from in KINDS {
        let to = from + 1;
        let other = [Realm::ip4(99), Realm::ip4(to), "192.0.2.1".parse().expect("an address")];
        let other6 = [Realm::ip6(99), Realm::ip6(to), "2001:db8::1".parse().expect("an address")];
        let mut bad = Vec::new();
        for ip in other {
            let packet = frame::udp((ip, 1), (Realm::ip4(to), 2), mark);
            bad.push(blue.frame(from, 0x0800, &packet));
        }
        for ip in other6 {
            let packet = frame::udp((ip, 1), (Realm::ip6(to), 2), mark);
            bad.push(blue.frame(from, 0x86dd, &packet));
        }
        let mut came = refused(&node, &mut blue, from, "spoofed_source", &bad);
        came.extend(blue.end(to).take());
        assert!(came.iter().all(|f| !frame::contains(f, mark)));
    }
}

#[test]
fn spoofed_macs_are_dropped() {
    let _lab = Lab::new();
    [1, 2].into_iter().for_each(spoofed_macs);
}

fn spoofed_macs(workers: u32) {
    let mut node = Node::local(workers);
    let (mut blue, _red) = two_sides(&mut node);
    for from in KINDS {
        let gateway = blue.realm.gateway_mac();
        let packet = frame::udp((Realm::ip4(from), 1), (Realm::ip4(from + 1), 2), b"wrong mac");
        let bad: Vec<_> = [mac(99), mac(from + 1), gateway]
            .iter()
            .map(|&from_mac: &Mac| frame::ethernet(gateway, from_mac, 0x0800, &packet))
            .collect();
        let came = refused(&node, &mut blue, from, "spoofed_mac", &bad);
        assert!(came.iter().all(|f| !frame::contains(f, b"wrong mac")));
    }
}

#[test]
fn spoofed_arp_and_nd_are_dropped() {
    let _lab = Lab::new();
    let mut node = Node::local(1);
    let (mut blue, _red) = two_sides(&mut node);
    let broadcast = [0xff; 6];
    for from in KINDS {
        let own = mac(from);
        let (me, victim) = (v4(Realm::ip4(from)), v4(Realm::ip4(from + 1)));
        let gateway = v4(Realm::ip4(1));
        let arps = [
            // A request and a gratuitous reply in another's name, and one with another's MAC.
            frame::arp(1, (own, victim), ([0; 6], gateway)),
            frame::arp(2, (own, gateway), (broadcast, gateway)),
            frame::arp(1, (mac(99), me), ([0; 6], gateway)),
        ];
        let bad: Vec<_> =
            arps.iter().map(|arp| frame::ethernet(broadcast, own, 0x0806, arp)).collect();
        refused(&node, &mut blue, from, "spoofed_neighbour", &bad);
        let victim = v6(Realm::ip6(from + 1));
        let to_all: Mac = [0x33, 0x33, 0xff, 0, 0, 1];
        let ns = frame::neighbour_solicitation((own, victim), v6(Realm::ip6(1)));
        let lying =
            frame::neighbour_solicitation((mac(99), v6(Realm::ip6(from))), v6(Realm::ip6(1)));
        let by_source = [frame::ethernet(to_all, own, 0x86dd, &ns)];
        refused(&node, &mut blue, from, "spoofed_source", &by_source);
        let by_option = [frame::ethernet(to_all, own, 0x86dd, &lying)];
        refused(&node, &mut blue, from, "spoofed_neighbour", &by_option);
        // The control: an honest question is answered with the gateway's MAC.
        let honest = frame::arp(1, (own, me), ([0; 6], gateway));
        let honest = frame::ethernet(broadcast, own, 0x0806, &honest);
        blue.end(from).inject(&honest);
        let answer = blue.end(from).wait_marked(&gateway.octets(), 1);
        assert_eq!(answer[0][6..12], blue.realm.gateway_mac());
    }
}

#[test]
fn nonsense_has_its_own_reasons() {
    let _lab = Lab::new();
    let mut node = Node::local(1);
    let (mut blue, _red) = two_sides(&mut node);
    for from in KINDS {
        let gateway = blue.realm.gateway_mac();
        let own = mac(from);
        let (me, to) = (v4(Realm::ip4(from)), v4(Realm::ip4(from + 1)));
        let good = frame::udp((me.into(), 1), (to.into(), 2), b"nonsense");
        let mut bad_sum = good.clone();
        bad_sum[10] ^= 1;
        let mut short_header = good.clone();
        short_header[0] = 0x44;
        let tagged = [&[0, 100, 8, 0][..], &good].concat();
        let unrouted = frame::udp((me.into(), 1), (Realm::ip4(999), 2), b"nonsense");
        let cases: [(&str, Vec<u8>); 8] = [
            ("ip4_bad_checksum", frame::ethernet(gateway, own, 0x0800, &bad_sum)),
            ("ip4_malformed", frame::ethernet(gateway, own, 0x0800, &short_header)),
            ("vlan_tagged", frame::ethernet(gateway, own, 0x8100, &tagged)),
            ("ethertype_unsupported", frame::ethernet(gateway, own, 0x88cc, &good)),
            ("not_for_router", frame::ethernet(mac(77), own, 0x0800, &good)),
            ("no_route", frame::ethernet(gateway, own, 0x0800, &unrouted)),
            ("bum_unsupported", {
                let group = Ipv4Addr::new(239, 1, 1, 1).into();
                let packet = frame::udp((me.into(), 1), (group, 2), b"nonsense");
                frame::ethernet([1, 0, 0x5e, 1, 1, 1], own, 0x0800, &packet)
            }),
            ("ttl_expired", {
                let udp = &good[20..];
                frame::ethernet(gateway, own, 0x0800, &frame::ip4(me, to, 17, 1, 0, udp))
            }),
        ];
        for (reason, bad) in cases {
            refused(&node, &mut blue, from, reason, &[bad]);
        }
    }
}

/// A pod that sends VXLAN to a tunnel end, its own node's or another's, gets nowhere.
#[test]
fn pods_cannot_inject_vxlan() {
    let _lab = Lab::new();
    [1, 2].into_iter().for_each(injected_vxlan);
}

fn injected_vxlan(workers: u32) {
    let mut node = Node::local(workers);
    let (mut blue, mut red) = two_sides(&mut node);
    let (own, other) = ("192.0.2.1", "192.0.2.2");
    let ip = |text: &str| crate::lab::node::message(text.parse().expect("an address"));
    node.state.local_vteps = vec![ip(own)];
    node.state.cluster_vteps = vec![ip(own), ip(other)];
    node.apply().expect("tunnel ends");
    for from in KINDS {
        let inner = red.packet(MEMIF, TAP + 1, false, "injected");
        let bad: Vec<_> = [own, other]
            .iter()
            .map(|vtep| {
                let to = vtep.parse().expect("an address");
                let packet = frame::vxlan(Realm::ip4(from), to, 4789, red.realm.vni, &inner);
                blue.frame(from, 0x0800, &packet)
            })
            .collect();
        refused(&node, &mut blue, from, "vxlan_injection", &bad);
    }
    // The control: the same addresses are reached by an honest red pod.
    let honest = red.packet(MEMIF, TAP + 1, false, "honest red");
    red.end(MEMIF).inject(&honest);
    let (_, mut came) = red.end(TAP + 1).gather(b"honest red", 1);
    came.extend(red.ends.iter_mut().flat_map(|(.., end)| end.take()));
    assert!(came.iter().all(|f| !frame::contains(f, b"injected")));
}
