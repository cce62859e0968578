//! Tunnels to the kernel's own VXLAN device, with all offloads left on at its end.

use std::net::IpAddr;

use crate::lab::node::drops;
use crate::lab::uplink::{DEVICE, FAR4, FAR6, NODE4, NODE6};
use crate::lab::{Far, Lab, Netns, Node, Realm, TapPod, Uplink, counts, iperf, iperf_bps, wait};

const BLUE: u32 = 56;

/// A node, a far end, a pod. MTUs as the Network's status would have them.
fn world(driver: &'static str, v6: bool, workers: u32) -> (Node, Far, TapPod) {
    let (here, there) = (Netns::new("node"), Netns::new("far"));
    let uplink = Uplink::between(&here, &there, driver, 1500);
    let mut node = Node::with_uplink(here, uplink, workers);
    let blue = Realm::new("blue", BLUE, if v6 { 1430 } else { 1450 });
    node.add_realm(&blue);
    let pod = TapPod::new(&mut node, &blue, 10);
    let far = Far::kernel(there, &mut node, &blue, v6);
    node.wait_for_tunnels();
    (node, far, pod)
}

fn both_ways(driver: &'static str, v6: bool) {
    let (node, far, pod) = world(driver, v6, 1);
    let mtu = if v6 { 1430 } else { 1450 };
    for (there, here, headers) in [(far.ip4(), pod.ip4(), 28), (far.ip6(), pod.ip6(), 48)] {
        for size in [0, 56, 500, mtu - headers] {
            assert!(pod.pings(there, size), "ping -s {size} {there} ({driver})");
            assert!(far.pings(here, size), "ping -s {size} {here} ({driver})");
        }
        // What does not fit is fragmented by the stacks at both ends.
        assert!(pod.pings(there, 4000) && far.pings(here, 4000), "{there} {here}");
        edges(&node, &pod, there, mtu - headers);
    }
    for (to, reverse) in [(far.ip4(), ""), (far.ip4(), " -R"), (far.ip6(), ""), (far.ip6(), " -R")]
    {
        let words = format!("-c {to} -t 1{reverse}");
        let rate = iperf_bps(&iperf(&far.netns, &pod.netns, &words)) / 1e9;
        println!("TCP {driver} over {}: {to}{reverse} {rate:.2} Gb/s", if v6 { 6 } else { 4 });
        assert!(rate > 0.05, "{rate} Gb/s to {to}{reverse}");
    }
    for (to, reverse) in [(far.ip4(), ""), (far.ip6(), " -R")] {
        let words = format!("-c {to} -u -b 10M -n 1M -l 1200{reverse}");
        let report = iperf(&far.netns, &pod.netns, &words);
        let count = |what: &str| report["end"]["sum"][what].as_u64().expect("a number");
        let (lost, sent) = (count("lost_packets"), count("packets"));
        // The kernel may lose some in its own queues on a busy machine.
        assert!(sent > 800 && lost * 20 <= sent, "{lost} of {sent} lost, {to}{reverse} ({driver})");
    }
    let uplink = node.account_of_kind("uplink");
    for reason in ["vxlan_malformed", "vni_unknown", "vtep_unknown", "vxlan_not_for_router"] {
        assert_eq!(drops(&uplink, reason), 0, "{reason}: {uplink:?}");
    }
}

/// One byte more than the tunnel carries is answered by the gateway, with the right MTU.
fn edges(node: &Node, pod: &TapPod, to: IpAddr, largest: usize) {
    let device = crate::lab::pod::NAME;
    let before = drops(&node.account(&pod.id), "too_big");
    pod.netns.ip(&format!("link set {device} mtu 1500"));
    let (ok, text) = pod.ping(to, &format!("-c 1 -W 2 -M do -s {}", largest + 1));
    let gateway = if to.is_ipv4() { Realm::ip4(1) } else { Realm::ip6(1) };
    let mtu = largest + if to.is_ipv4() { 28 } else { 48 };
    assert!(!ok && text.contains(&format!("From {gateway} ")), "{text}");
    assert!(
        text.contains(&format!("mtu = {mtu}")) || text.contains(&format!("mtu={mtu}")),
        "{text}"
    );
    assert!(pod.ping(to, &format!("-c 1 -W 2 -M do -s {largest}")).0, "the largest that fits");
    counts("too_big", before + 1, || drops(&node.account(&pod.id), "too_big"));
    pod.netns.ip("route flush cache");
    pod.netns.ip(&format!("link set {device} mtu {mtu}"));
}

#[test]
fn kernel_vxlan_over_ipv4() {
    let _lab = Lab::new();
    both_ways("packet", false);
}

#[test]
fn kernel_vxlan_over_ipv6() {
    let _lab = Lab::new();
    both_ways("packet", true);
}

#[test]
fn kernel_vxlan_by_dpdk_af_packet() {
    let _lab = Lab::new();
    both_ways("net_af_packet", false);
    both_ways("net_af_packet", true);
}

/// The far end gets another NIC: its announcement is enough.
#[test]
fn a_changed_mac_on_the_underlay_heals() {
    let _lab = Lab::new();
    for v6 in [false, true] {
        let (node, far, pod) = world("packet", v6, 1);
        assert!(pod.pings(far.ip4(), 56), "the control");
        far.netns.sysctl(&format!("net.ipv4.conf.{DEVICE}.arp_notify"), 1);
        far.netns.sysctl(&format!("net.ipv6.conf.{DEVICE}.ndisc_notify"), 1);
        let new = "02:cc:00:00:00:07";
        far.netns.ip(&format!("link set {DEVICE} address {new}"));
        wait("traffic to the new MAC", 5.0, || pod.ping(far.ip4(), "-c 1 -W 1").0.then_some(()));
        let neighbours = node.neighbours();
        assert!(neighbours.iter().any(|n| n.mac == [2, 0xcc, 0, 0, 0, 7]), "{neighbours:?}");
    }
}

/// The far end is in another subnet, behind a router; the node's kernel knows the way.
#[test]
fn a_tunnel_end_behind_a_gateway_is_reached() {
    let _lab = Lab::new();
    let (here, router, there) = (Netns::new("node"), Netns::new("router"), Netns::new("far"));
    let uplink = Uplink::between(&here, &router, "packet", 1500);
    // The router has the far end's usual addresses on its device; behind it is another subnet.
    router.veth("inner", &there, DEVICE, 1500);
    router.sysctl("net.ipv4.ip_forward", 1);
    router.sysctl("net.ipv6.conf.all.forwarding", 1);
    router.ip("addr add 198.51.100.1/24 dev inner");
    router.ip("addr add 2001:db8:2::1/64 dev inner nodad");
    there.ip(&format!("addr add 198.51.100.2/24 dev {DEVICE}"));
    there.ip(&format!("addr add 2001:db8:2::2/64 dev {DEVICE} nodad"));
    there.ip("route add default via 198.51.100.1");
    there.ip("-6 route add default via 2001:db8:2::1");
    here.ip(&format!("route add 198.51.100.0/24 via {FAR4}"));
    here.ip(&format!("-6 route add 2001:db8:2::/64 via {FAR6}"));
    let mut node = Node::with_uplink(here, uplink, 1);
    let blue = Realm::new("blue", BLUE, 1430);
    node.add_realm(&blue);
    let pod = TapPod::new(&mut node, &blue, 10);
    for (vtep, local) in [("198.51.100.2", NODE4), ("2001:db8:2::2", NODE6)] {
        let far = Netns::new("stack");
        there.ip(&format!(
            "link add vx netns {} mtu 1430 type vxlan id {BLUE} dstport 4789 local {vtep} \
             remote {local} udp6zerocsumrx",
            far.name()
        ));
        far.ip(&format!("addr add {}/16 dev vx", Realm::ip4(Far::NUMBER)));
        let mac = far.mac("vx");
        node.lead_to_far("blue", vtep.parse().expect("an address"), mac);
        far.ip("link set vx up");
        node.wait_for_tunnels();
        let ping = || pod.pings(Realm::ip4(Far::NUMBER), 1000).then_some(());
        wait(&format!("a ping through {vtep}"), 5.0, ping);
        let hop: IpAddr = if vtep.contains(':') { FAR6 } else { FAR4 }.parse().expect("an address");
        let hop = crate::lab::node::message(hop);
        let neighbours = node.neighbours();
        assert!(neighbours.iter().any(|n| n.next_hop.as_ref() == Some(&hop)), "{neighbours:?}");
    }
}
