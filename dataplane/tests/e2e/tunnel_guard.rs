//! What is refused at the tunnel's mouth: unknown VNIs and ends, injection by the node, nonsense.
//! The pods behind it have twins with the same addresses in another Network.

use std::net::{IpAddr, UdpSocket};

use crate::lab::frame::{self, contains};
use crate::lab::node::{drops, message};
use crate::lab::uplink::{DEVICE, FAR4, NODE4, NODE6};
use crate::lab::{
    End, Far, Lab, MemifPod, Netns, Node, RawSocket, Realm, TapPod, Uplink, counts, wait,
};

/// May send on blue's VNI only.
const BLUE_PEER: &str = FAR4;
/// May send on red's VNI only.
const RED_PEER: &str = "192.0.2.3";
const STRANGER: &str = "192.0.2.9";

struct World {
    node: Node,
    wire: RawSocket,
    node_mac: [u8; 6],
    far_mac: [u8; 6],
    far: Netns,
    router_mac: [u8; 6],
    /// Taps and memifs of blue, then of red, numbers 10 and 20 in each.
    twins: [Vec<(u16, Box<dyn End>)>; 2],
    _taps: Vec<TapPod>,
}

fn world() -> World {
    let (here, there) = (Netns::new("node"), Netns::new("far"));
    let uplink = Uplink::between(&here, &there, "packet", 1500);
    let (node_mac, far_mac) = (here.mac(&uplink.name), there.mac(DEVICE));
    let mut node = Node::with_uplink(here, uplink, 1);
    let mut taps = Vec::new();
    let realms = [("blue", 56, BLUE_PEER), ("red", 57, RED_PEER)];
    let twins = realms.map(|(name, vni, peer)| {
        let realm = Realm::new(name, vni, 1450);
        node.add_realm(&realm);
        node.change(name, |network| network.peer_vteps = vec![message(ip(peer))]);
        let tap = TapPod::new(&mut node, &realm, 10);
        let raw = tap.raw();
        taps.push(tap);
        let memif = MemifPod::new(&mut node, &realm, 20);
        let ends: [(u16, Box<dyn End>); 2] = [(10, Box::new(raw)), (20, Box::new(memif))];
        Vec::from(ends)
    });
    let router_mac = node.hello().router_mac.try_into().expect("6 bytes");
    let wire = RawSocket::open(&there, DEVICE);
    World { node, wire, node_mac, far_mac, far: there, router_mac, twins, _taps: taps }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

impl World {
    /// A packet from behind a far end to host `to`, as its inner frame.
    fn inner(&self, to: u16, mark: &str) -> Vec<u8> {
        let packet = frame::udp((Realm::ip4(Far::NUMBER), 1), (Realm::ip4(to), 2), mark.as_bytes());
        frame::ethernet(self.router_mac, self.far_mac, 0x0800, &packet)
    }

    /// Puts a packet on the wire as if `from` had sent it.
    fn send(&self, packet: &[u8]) {
        self.wire.send(&frame::ethernet(self.node_mac, self.far_mac, 0x0800, packet));
    }

    fn tunnelled(&self, from: &str, vni: u32, inner: &[u8]) {
        self.send(&frame::vxlan(ip(from), ip(NODE4), 4789, vni, inner));
    }

    fn dropped(&self, reason: &str) -> u64 {
        drops(&self.node.account_of_kind("uplink"), reason)
    }

    /// Sends what is refused, then what is not; the reason grows by one and only the twin of the
    /// right Network sees the right packet.
    fn refuse(&mut self, reason: &str, bad: impl Fn(&World, u16)) {
        for to in [10, 20] {
            let before = self.dropped(reason);
            bad(self, to);
            self.control(to, reason);
            counts(&format!("{reason}, to host {to}"), before + 1, || self.dropped(reason));
        }
    }

    fn control(&mut self, to: u16, word: &str) {
        for (side, vni, from) in [(0, 56, BLUE_PEER), (1, 57, RED_PEER)] {
            let mark = format!("honest {vni} {word}");
            let inner = self.inner(to, &mark);
            self.tunnelled(from, vni, &inner);
            let (_, end) = self.twins[side].iter_mut().find(|(n, _)| *n == to).expect("a twin");
            let mut seen = Vec::new();
            wait(&format!("`{mark}` at host {to}"), 3.0, || {
                seen.extend(end.take());
                seen.iter().any(|f| contains(f, mark.as_bytes())).then_some(())
            });
            assert!(!seen.iter().any(|f| contains(f, b"forged")), "{word} reached host {to}");
        }
        let foreign = [("honest 57", 0), ("honest 56", 1)];
        for (mark, side) in foreign {
            for (n, end) in &mut self.twins[side] {
                let seen = end.take();
                let leaked = seen.iter().any(|f| contains(f, mark.as_bytes()));
                assert!(!leaked, "`{mark}` reached the twin with number {n}");
                assert!(!seen.iter().any(|f| contains(f, b"forged")), "{word} reached {n}");
            }
        }
    }
}

#[test]
fn foreign_vnis_and_ends_are_refused() {
    let _lab = Lab::new();
    let mut world = world();
    world.refuse("vni_unknown", |w, to| {
        w.tunnelled(BLUE_PEER, 58, &w.inner(to, "forged vni"));
    });
    // A VNI from an end that belongs to the other Network, from nobody's, from our own address.
    for (from, vni) in
        [(BLUE_PEER, 57), (RED_PEER, 56), (STRANGER, 56), (STRANGER, 57), (NODE4, 56)]
    {
        world.refuse("vtep_unknown", |w, to| {
            w.tunnelled(from, vni, &w.inner(to, "forged end"));
        });
    }
}

#[test]
fn malformed_tunnel_packets_are_refused() {
    let _lab = Lab::new();
    let mut world = world();
    world.refuse("vxlan_not_for_router", |w, to| {
        let mut inner = w.inner(to, "forged mac");
        inner[..6].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
        w.tunnelled(BLUE_PEER, 56, &inner);
    });
    world.refuse("vxlan_malformed", |w, to| {
        // Without the I flag the VNI is not valid (RFC 7348 §5).
        let inner = w.inner(to, "forged flag");
        let header = [[0, 0, 0, 0], (56_u32 << 8).to_be_bytes()].concat();
        let payload = [header, inner].concat();
        w.send(&frame::udp((ip(BLUE_PEER), 1), (ip(NODE4), 4789), &payload));
    });
    world.refuse("vxlan_malformed", |w, _| {
        w.send(&frame::udp((ip(BLUE_PEER), 1), (ip(NODE4), 4789), &[8, 0, 0, 0, 0, 0]));
    });
    world.refuse("bum_unsupported", |w, to| {
        let mut inner = w.inner(to, "forged broadcast");
        inner[..6].copy_from_slice(&[0xff; 6]);
        w.tunnelled(BLUE_PEER, 56, &inner);
    });
}

#[test]
fn the_nodes_own_stack_cannot_inject() {
    let _lab = Lab::new();
    let mut world = world();
    for (own, far) in [(NODE4, FAR4), (NODE6, "2001:db8::2")] {
        world.node.state.cluster_vteps.push(message(ip(far)));
        world.node.apply().expect("another tunnel end");
        let dropped = |node: &Node| drops(&node.account_of_kind("host-tap"), "vxlan_injection");
        let before = dropped(&world.node);
        let inner = world.inner(10, "forged by the node");
        let payload = [vec![8, 0, 0, 0, 0, 0, 56, 0], inner].concat();
        world.node.netns.run(|| {
            let socket = UdpSocket::bind((ip(own), 0)).expect("a socket");
            for _ in 0..10 {
                socket.send_to(&payload, (ip(far), 4789)).expect("it leaves the stack");
            }
            // The control: another port is nobody's business.
            socket.send_to(b"honest datagram", (ip(far), 4790)).expect("it leaves the stack");
        });
        let seen = world.wire.expect("the honest datagram", |f| contains(f, b"honest datagram"));
        assert!(!contains(&seen, b"forged"));
        counts(&format!("from {own}"), before + 10, || dropped(&world.node));
        assert!(!world.wire.take().iter().any(|f| contains(f, b"forged by the node")));
    }
    assert!(world.far.try_tool("ping", &format!("-c 1 -W 2 {NODE4}")).0, "the node's stack lives");
}

/// Which ECN marks the tunnel hands on (RFC 6040 §4.2, figure 4).
#[test]
fn congestion_marks_survive_the_tunnel() {
    let _lab = Lab::new();
    let mut world = world();
    let (not_ect, ect1, ect0, ce) = (0, 1, 2, 3);
    for (inner, outer, expected) in [
        (not_ect, not_ect, Some(not_ect)),
        (not_ect, ect0, Some(not_ect)),
        (not_ect, ect1, Some(not_ect)),
        (not_ect, ce, None),
        (ect0, not_ect, Some(ect0)),
        (ect0, ect0, Some(ect0)),
        (ect0, ect1, Some(ect1)),
        (ect0, ce, Some(ce)),
        (ect1, ect0, Some(ect1)),
        (ect1, ce, Some(ce)),
        (ce, not_ect, Some(ce)),
        (ce, ce, Some(ce)),
    ] {
        let mark = format!("marks {inner} {outer}");
        let before = world.dropped("ecn_congested");
        let mut frame = world.inner(10, &mark);
        mark_ip4(&mut frame[14..], inner);
        let mut packet = frame::vxlan(ip(BLUE_PEER), ip(NODE4), 4789, 56, &frame);
        mark_ip4(&mut packet, outer);
        world.send(&packet);
        world.control(10, "ecn");
        match expected {
            None => counts(&mark, before + 1, || world.dropped("ecn_congested")),
            Some(expected) => {
                // `control` waited for a later packet and threw this one away: send it again.
                world.send(&packet);
                let (_, end) = &mut world.twins[0][0];
                let got = end.wait_marked(mark.as_bytes(), 1).remove(0);
                assert_eq!(got[15] & 3, expected, "{mark}");
                assert_eq!(frame::checksum(&[&got[14..34]]), 0, "{mark}");
            }
        }
    }
}

/// Sets the ECN field of an IPv4 packet.
fn mark_ip4(packet: &mut [u8], ecn: u8) {
    packet[1] = ecn;
    packet[10..12].fill(0);
    let sum = frame::checksum(&[&packet[..20]]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}
