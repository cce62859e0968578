//! Packets that are too big: said where they must not be cut, cut where they may.

use crate::lab::node::drops;
use crate::lab::{Lab, Node, Realm, TapPod, counts, iperf, iperf_bps};

#[test]
fn the_sender_hears_of_a_smaller_mtu_or_is_cut() {
    let _lab = Lab::new();
    let mut node = Node::local(1);
    let blue = Realm::new("blue", 56, 1500);
    node.add_realm(&blue);
    let a = TapPod::new(&mut node, &blue, 10);
    let b = TapPod::with(&mut node, &blue, 11, 1, 1400);
    // The edge: what just fits passes, one byte more does not and says why.
    assert!(a.ping(b.ip4(), "-c 1 -W 2 -M do -s 1372").0);
    let (ok, text) = a.ping(b.ip4(), "-c 1 -W 2 -M do -s 1373");
    assert!(!ok && text.contains(&format!("From {} ", Realm::ip4(1))), "{text}");
    assert!(text.contains("mtu = 1400") || text.contains("mtu=1400"), "{text}");
    assert!(a.ping(b.ip6(), "-c 1 -W 2 -M do -s 1352").0);
    let (ok, text) = a.ping(b.ip6(), "-c 1 -W 2 -M do -s 1353");
    assert!(!ok && text.contains(&format!("From {} ", Realm::ip6(1))), "{text}");
    assert!(text.contains("mtu=1400") || text.contains("mtu = 1400"), "{text}");
    counts("too_big", 2, || drops(&node.account(&a.id), "too_big"));
    // Without DF an IPv4 packet is cut here; the answer's size shows that all of it arrived.
    a.netns.ip("route flush cache");
    let before = node.account(&b.id).split_extra;
    let (ok, text) = a.ping(b.ip4(), "-c 1 -W 2 -M dont -s 1472");
    assert!(ok && text.contains("1480 bytes from"), "{text}");
    counts("split_extra", before + 1, || node.account(&b.id).split_extra);
}

#[test]
fn tcp_finds_the_smaller_mtu() {
    let _lab = Lab::new();
    let mut node = Node::local(1);
    let blue = Realm::new("blue", 56, 9000);
    node.add_realm(&blue);
    let a = TapPod::new(&mut node, &blue, 10);
    let b = TapPod::with(&mut node, &blue, 11, 1, 1400);
    // b announces the segment size of its own MTU; a lie is needed to make path MTU discovery
    // work for its living.
    b.netns.ip(&format!("link set {} mtu 9000", crate::lab::pod::NAME));
    for to in [b.ip4(), b.ip6()] {
        let bps = iperf_bps(&iperf(&b.netns, &a.netns, &format!("-c {to} -t 1")));
        assert!(bps > 3e7, "{bps} b/s to {to}");
    }
    assert!(drops(&node.account(&a.id), "too_big") >= 2);
}
