//! Pods of two nodes over VXLAN, and the nodes' own stacks through the same uplinks.

mod common;

use common::{Netns, Node, TapPod, ip, network, prefix, state, wait_for};

/// Two nodes' namespaces on one wire.
struct Wire {
    a: Netns,
    b: Netns,
}

impl Wire {
    fn new(mtu: u32, offloads: bool) -> Self {
        let (a, b) = (Netns::new("nodeA"), Netns::new("nodeB"));
        common::run(
            "ip",
            &[
                "link", "add", "up0", "netns", &a.name, "type", "veth", "peer", "up0", "netns",
                &b.name,
            ],
        );
        for (netns, n) in [(&a, 1), (&b, 2)] {
            if !offloads {
                let off = netns.exec("ethtool", "-K up0 tx off tso off gso off");
                assert!(off.status.success());
            }
            netns.ip(&format!("link set up0 mtu {mtu} up"));
            netns.ip(&format!("addr add 192.0.2.{n}/24 dev up0"));
            netns.ip(&format!("addr add fd00:99::{n}/64 dev up0 nodad"));
        }
        Self { a, b }
    }
}

fn tunnel(to: &str, vtep: &str, inner_mac: &[u8]) -> api::Route {
    let via = api::TunnelVia { vtep: Some(ip(vtep)), inner_mac: inner_mac.to_vec() };
    api::Route { prefix: Some(prefix(to)), via: Some(api::route::Via::Tunnel(via)) }
}

/// What one node is told: its pod is local, the other's is behind the other's tunnel end.
fn wanted(pod: &TapPod, own_vtep: &str, other: &TapPod, vtep: &str, router: &[u8]) -> api::State {
    let mut blue = network(&pod.network, 56);
    blue.routes = vec![
        tunnel(&format!("{}/32", other.v4()), vtep, router),
        tunnel(&format!("{}/128", other.v6()), vtep, router),
    ];
    api::State {
        cluster_vteps: vec![ip(own_vtep), ip(vtep)],
        local_vteps: vec![ip(own_vtep)],
        ..state(1, vec![blue], vec![pod.interface()])
    }
}

/// The nodes' stacks and their pods reach each other, over one family of the underlay.
fn nodes_and_pods_talk(driver: &str, args: &str, (vtep_a, vtep_b): (&str, &str)) {
    let wire = Wire::new(1520, driver == "packet");
    let args = format!("--uplink up0={driver} {args}");
    let mut a = Node::start_in(Some(&wire.a), &args);
    let mut b = Node::start_in(Some(&wire.b), &args);
    assert!(wire.a.pings("192.0.2.2", ""), "the node's stack through both uplinks");
    assert!(wire.a.pings("fd00:99::2", ""), "the node's stack through both uplinks");
    pods_talk(&a, &b, (vtep_a, vtep_b));

    // A changed MAC heals: the peer's node gets a new one and says so.
    let status = b.stop();
    assert!(status.success());
    assert!(wire.a.pings("192.0.2.2", ""), "the stopped node has its interface back");
    assert!(a.stop().success());
    assert!(wire.b.pings("192.0.2.1", ""), "both have");
    assert!(wire.a.ip("-br link show dev up0").contains("up0@"), "the veth itself is back");
}

/// A pod on each of two nodes that reach each other.
fn pods_talk(a: &Node, b: &Node, (vtep_a, vtep_b): (&str, &str)) {
    let pod_mtu = 1450;
    let (pod_a, pod_b) =
        (TapPod::with_mtu("blue", 10, 1, pod_mtu), TapPod::with_mtu("blue", 11, 1, pod_mtu));
    let (mac_a, mac_b) = (a.hello().router_mac, b.hello().router_mac);
    assert_ne!(mac_a, mac_b);
    pod_a.offer_to(a);
    pod_b.offer_to(b);
    a.apply(wanted(&pod_a, vtep_a, &pod_b, vtep_b, &mac_b)).expect("a good state");
    b.apply(wanted(&pod_b, vtep_b, &pod_a, vtep_a, &mac_a)).expect("a good state");
    for (node, end) in [(a, vtep_b), (b, vtep_a)] {
        wait_for("the tunnel end's neighbour", || {
            let request = api::GetNeighboursRequest {};
            let all = node.call(async |c| c.get_neighbours(request).await).ok()?;
            let found = all.entries.into_iter().find(|e| e.ip == Some(ip(end)))?;
            (found.state == "reachable").then_some(())
        });
    }
    for (from, to) in [(&pod_a, &pod_b), (&pod_b, &pod_a)] {
        assert!(from.netns.pings(&to.v4(), ""), "IPv4 over {vtep_a}");
        assert!(from.netns.pings(&to.v6(), ""), "IPv6 over {vtep_a}");
        assert!(from.netns.pings(&to.v4(), "-s 1422 -M do"), "as large as the MTU");
    }
    a.check_accounts();
    let sums = b.check_accounts();
    let blue = sums.networks.iter().find(|n| n.network == "blue").and_then(|n| n.account.clone());
    assert!(blue.expect("an account").rx_pkts >= 36, "decapsulated packets count for the network");
}

const V4: (&str, &str) = ("192.0.2.1", "192.0.2.2");
const V6: (&str, &str) = ("fd00:99::1", "fd00:99::2");

#[test]
fn by_packet_sockets_over_ip4() {
    nodes_and_pods_talk("packet", "", V4);
}

#[test]
fn by_packet_sockets_over_ip6_with_two_workers() {
    nodes_and_pods_talk("packet", "--workers 2", V6);
}

#[test]
fn by_dpdk_af_packet_over_ip4() {
    nodes_and_pods_talk("net_af_packet", "", V4);
}

#[test]
fn by_dpdk_af_packet_with_two_workers() {
    nodes_and_pods_talk("net_af_packet", "--workers 2", V4);
}

/// A veth has one queue: one worker owns it, the other hands over.
#[test]
fn by_dpdk_af_xdp_with_two_workers() {
    nodes_and_pods_talk("net_af_xdp", "--workers 2", V6);
}

#[test]
fn by_dpdk_af_xdp_over_ip4() {
    nodes_and_pods_talk("net_af_xdp", "", V4);
}

/// An agent writes down what it is told at once, and an uplink without tunnel ends takes the node's
/// tunnels away from all others until it asks again.
#[test]
fn the_first_greeting_after_a_kill_is_told_the_tunnel_ends() {
    let wire = Wire::new(1520, true);
    let mut a = Node::start_in(Some(&wire.a), "--uplink up0=packet");
    for _ in 0..5 {
        a.kill();
        let uplink = a.restart().uplinks.remove(0);
        let mut ends: Vec<_> = uplink.vteps.iter().map(|end| end.addr.len()).collect();
        ends.sort_unstable();
        assert_eq!(ends, [4, 16], "{uplink:?}");
        assert_eq!(uplink.mtu, 1520);
    }
}

#[test]
fn a_gateway_a_new_mac_and_a_kill() {
    let wire = Wire::new(1520, true);
    let mut a = Node::start_in(Some(&wire.a), "--uplink up0=packet");
    let pod_a = TapPod::new("blue", 10, 1);
    let pod_b = TapPod::new("blue", 11, 1);
    pod_a.offer_to(&a);
    let entry = |node: &Node, end: &str| {
        let request = api::GetNeighboursRequest {};
        let all = node.call(async |c| c.get_neighbours(request).await).expect("an answer");
        all.entries.into_iter().find(|e| e.ip == Some(ip(end)))
    };
    // The tunnel end is not on the wire's subnet: no route, then behind a gateway.
    let remote = "198.51.100.9";
    a.apply(wanted(&pod_a, "192.0.2.1", &pod_b, remote, &[6; 6])).expect("a good state");
    wait_for("the end to be known", || entry(&a, remote).filter(|e| e.state == "no route"));
    wire.a.ip("route add 198.51.100.0/24 via 192.0.2.2");
    let found = wait_for("the gateway", || entry(&a, remote).filter(|e| e.state == "reachable"));
    assert_eq!(found.next_hop, Some(ip("192.0.2.2")));
    let text = wire.b.ip("-br link show dev up0");
    assert!(
        text.contains(&found.mac.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":"))
    );
    // The gateway gets another MAC and says so.
    wire.b.ip("link set up0 address 02:00:00:00:00:77");
    wire.b.exec("arping", "-q -U -c 1 -I up0 192.0.2.2");
    assert!(wire.b.pings("192.0.2.1", ""));
    wait_for("the new MAC", || entry(&a, remote).filter(|e| e.mac == [2, 0, 0, 0, 0, 0x77]));
    wire.a.ip("route del 198.51.100.0/24");
    wait_for("the route to go", || entry(&a, remote).filter(|e| e.state == "no route"));
    // Killed as by a crash, then started again: the node keeps its addresses.
    a.kill();
    a.restart();
    assert!(wire.a.pings("192.0.2.2", ""), "after kill -9 and restart");
    assert!(a.stop().success());
    assert!(wire.a.pings("192.0.2.2", ""), "after the stop");
}

/// Whether the node's interface is a tap (taken over) now.
fn is_taken(node: &Netns) -> bool {
    node.ip("-d link show dev up0").contains("tun type tap")
}

#[test]
fn a_gateway_that_answers_proves_the_takeover() {
    let wire = Wire::new(1500, true);
    wire.a.ip("route add default via 192.0.2.2");
    wire.a.ip("neigh flush dev up0");
    let mut a = Node::start_in(Some(&wire.a), "--uplink up0=packet");
    wait_for("the gateway's answer", || {
        wire.a.ip("neigh show 192.0.2.2 nud reachable").contains("192.0.2.2").then_some(())
    });
    assert!(is_taken(&wire.a));
    assert!(a.stop().success());
    assert!(!is_taken(&wire.a));
}

#[test]
fn a_gateway_that_falls_silent_undoes_the_takeover() {
    let wire = Wire::new(1500, true);
    wire.a.ip("route add default via 192.0.2.2");
    assert!(wire.a.pings("192.0.2.2", ""), "the node knows its gateway");
    wire.b.ip("link set up0 arp off");
    let mut a = Node::start_in(Some(&wire.a), "--uplink up0=packet");
    assert!(is_taken(&wire.a));
    let status = wait_for("the data plane to give up", || a.child.try_wait().expect("a child"));
    assert_eq!(status.code(), Some(3), "as the systemd unit expects");
    assert!(!is_taken(&wire.a), "the node has its interface back");
    wire.b.ip("link set up0 arp on");
    assert!(wire.a.pings("192.0.2.2", ""), "and its way to the gateway");
}

#[test]
fn what_a_killed_data_plane_had_is_given_back_on_request() {
    let wire = Wire::new(1500, true);
    let mut a = Node::start_in(Some(&wire.a), "--uplink up0=packet");
    let (socket, state) = (a.socket(), a.folder.path().join("state"));
    let give_back = format!(
        "--uplink up0=packet --socket {} --state-dir {} --give-back",
        socket.display(),
        state.display()
    );
    let refused = wire.a.exec(env!("CARGO_BIN_EXE_bowline-dataplane"), &give_back);
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && error.contains("another data plane has up0"), "{error}");
    a.kill();
    assert!(is_taken(&wire.a), "the tap and its addresses stay");
    let given = wire.a.exec(env!("CARGO_BIN_EXE_bowline-dataplane"), &give_back);
    assert!(given.status.success(), "{}", String::from_utf8_lossy(&given.stderr));
    assert!(!is_taken(&wire.a));
    assert!(wire.a.pings("192.0.2.2", ""));
}

/// Two nodes on a wire that no kernel has, one of them killed and started again, or each in turn.
fn on_a_wire(killed: &[&str], driver: impl Fn(&str, std::path::Display<'_>) -> String) {
    let (a, b) = (Netns::new("nodeA"), Netns::new("nodeB"));
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("wire.sock");
    let args = |role: &str| format!("--uplink up0={}", driver(role, socket.display()));
    let mut server = Node::start_in(Some(&a), &args("server"));
    let mut client = Node::start_in(Some(&b), &args("client"));
    a.ip("addr add 192.0.2.1/24 dev up0");
    b.ip("addr add 192.0.2.2/24 dev up0");
    let talk = || wait_for("the nodes to talk", || a.pings("192.0.2.2", "").then_some(()));
    talk();
    for role in killed {
        let (node, other, others) = match *role {
            "server" => (&mut server, &client, "client"),
            _ => (&mut client, &server, "server"),
        };
        node.kill();
        if args(others).contains("=memif") {
            wait_for("the other end to notice", || why_down(other).contains("left").then_some(()));
        }
        node.restart();
        talk();
        assert_eq!(why_down(other), "");
    }
    pods_talk(&server, &client, V4);
    assert!(client.stop().success());
    assert!(!b.ip("link show").contains("up0"), "the tap goes with a clean stop");
}

/// Of the uplink; empty while it is up.
fn why_down(node: &Node) -> String {
    let state = node.call(async |c| c.get_state(api::GetStateRequest {}).await).expect("its state");
    let uplink = state.interfaces.into_iter().find(|i| i.id == "uplink/up0").expect("an uplink");
    let up = uplink.link == api::interface_status::Link::Up as i32;
    assert_eq!(up, uplink.reason.is_empty(), "{uplink:?}");
    uplink.reason
}

/// A device that the kernel never had: the node's stack gets a tap, which keeps its addresses when
/// the process is killed.
#[test]
fn a_pure_dpdk_device_carries_the_nodes_too() {
    let driver = |role: &str| format!("net_memif0,role={role},socket-abstract=no");
    on_a_wire(&["client"], |role, socket| format!("{},socket={socket}", driver(role)));
}

#[test]
fn a_memif_carries_the_nodes_and_outlives_its_peer() {
    for more in ["", ",id=7,secret=s,rsize=8,mtu=9000 --workers 2"] {
        on_a_wire(&["client", "server"], |role, socket| {
            format!("memif,role={role},socket={socket}{more}")
        });
    }
}

/// Whoever is at the other end. DPDK's driver outlives a client that is killed, no server.
#[test]
fn a_memif_uplink_talks_to_dpdks_driver() {
    on_a_wire(&["client"], |role, socket| match role {
        "server" => format!("net_memif0,role=server,socket={socket},socket-abstract=no"),
        _ => format!("memif,role=client,socket={socket}"),
    });
    on_a_wire(&["client"], |role, socket| match role {
        "server" => format!("memif,role=server,socket={socket}"),
        _ => format!("net_memif0,role=client,socket={socket},socket-abstract=no"),
    });
}
