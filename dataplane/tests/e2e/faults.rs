//! kill -9 of the data plane under load: pods keep their interfaces and traffic is back within a
//! second.

use std::time::Instant;

use crate::lab::node::{Start, drops};
use crate::lab::pages::{self, HugePages};
use crate::lab::{End, Lab, MemifPod, Netns, Node, Pair, Realm, TapPod, Uplink, wait};

/// An unoptimised data plane on a busy machine is given more time.
fn limit_s() -> f64 {
    let optimised = std::env::var("BOWLINE_DATAPLANE").is_ok_and(|path| path.contains("release"));
    if optimised { 1.0 } else { 5.0 }
}

#[test]
fn local_traffic_is_back_after_a_kill() {
    let _lab = Lab::new();
    let mut node = Node::local(1);
    let blue = Realm::new("blue", 56, 1500);
    node.add_realm(&blue);
    let (a, b) = (TapPod::new(&mut node, &blue, 10), TapPod::new(&mut node, &blue, 11));
    let mut m = MemifPod::new(&mut node, &blue, 20);
    let mut n = MemifPod::new(&mut node, &blue, 21);
    // Load that goes on: a TCP stream that must survive.
    let mut server = b.netns.spawn("iperf3", "-s -1 --forceflush");
    server.wait_for("Server listening", 5.0);
    let stream = a.netns.spawn("iperf3", &format!("-c {} -t 4 -J", b.ip4()));
    wait("the stream", 5.0, || (node.account(&b.id).tx_bytes > 1_000_000).then_some(()));
    let device_before = a.netns.tool("ip", &format!("-o link show {}", crate::lab::pod::NAME));
    for round in 0..2 {
        let start = Instant::now();
        node.kill_and_restart();
        m.reconnect();
        n.reconnect();
        let mark = format!("round {round}");
        let datagram = m.datagram(1, (n.at.ip4(), 2), mark.as_bytes());
        wait("memif traffic", 5.0, || {
            m.try_send(0, &datagram);
            n.take().iter().any(|f| crate::lab::frame::contains(f, mark.as_bytes())).then_some(())
        });
        let memif_s = start.elapsed().as_secs_f64();
        wait("tap traffic", 5.0, || a.ping(b.ip4(), "-c 1 -W 0.2").0.then_some(()));
        let tap_s = start.elapsed().as_secs_f64();
        println!("kill -9 → memif traffic {memif_s:.2} s, tap traffic {tap_s:.2} s");
        assert!(memif_s < limit_s() && tap_s < limit_s() + 0.2, "{memif_s:.2} s, {tap_s:.2} s");
    }
    let device_after = a.netns.tool("ip", &format!("-o link show {}", crate::lab::pod::NAME));
    assert_eq!(device_before, device_after, "the pod kept its device");
    let report: serde_json::Value = serde_json::from_str(&stream.finish(15.0)).expect("JSON");
    assert!(crate::lab::iperf_bps(&report) > 1e7, "the stream survived: {report}");
}

#[test]
fn tunnelled_traffic_is_back_after_a_kill() {
    let _lab = Lab::new();
    let realm = Realm::new("blue", 56, 1450);
    let mut pair = Pair::new("packet", 1500, false, 1, std::slice::from_ref(&realm));
    let a = TapPod::new(&mut pair.nodes[0], &realm, 10);
    let b = TapPod::new(&mut pair.nodes[1], &realm, 11);
    pair.lead(0, realm.name, 11);
    pair.lead(1, realm.name, 10);
    assert!(a.pings(b.ip4(), 1000));
    for at in [0, 1] {
        let start = Instant::now();
        pair.nodes[at].kill_and_restart();
        wait("traffic", 10.0, || a.ping(b.ip4(), "-c 1 -W 0.2").0.then_some(()));
        let seconds = start.elapsed().as_secs_f64();
        println!("kill -9 of node {at} → traffic through the tunnel {seconds:.2} s");
        assert!(seconds < limit_s() + 0.2, "{seconds:.2} s");
        // The node's own stack lives as well.
        let far = if at == 0 { "192.0.2.2" } else { "192.0.2.1" };
        assert!(pair.nodes[at].netns.try_tool("ping", &format!("-c 1 -W 2 {far}")).0);
    }
    assert_eq!(drops(&pair.nodes[1].account_of_kind("uplink"), "vtep_unknown"), 0);
}

/// What DPDK took of the huge pages is back when its process is dead, without anybody cleaning up.
#[test]
fn huge_pages_are_back_after_a_kill() {
    let _lab = Lab::new();
    // DPDK asks for 74 MiB with one worker and one uplink.
    let _pages = HugePages::reserve(64);
    let free = pages::free();
    let left = || {
        let names = |path: &str| std::fs::read_dir(path).into_iter().flatten().flatten().count();
        (names("/dev/hugepages"), names("/run/dpdk"))
    };
    let before = left();
    let (netns, far) = (Netns::new("node"), Netns::new("far"));
    let uplink = Uplink::between(&netns, &far, "net_af_packet", 1500);
    let mut node = Node::with_uplink(netns, uplink, 1);
    for round in 0..3 {
        let used = free - pages::free();
        assert!(used >= 37, "round {round}: {used} huge pages are used");
        assert_eq!(left(), before, "files of DPDK's");
        assert!(node.netns.try_tool("ping", "-c 1 -W 2 192.0.2.2").0);
        if round == 2 {
            node.stop();
        } else {
            node.process.borrow_mut().kill();
        }
        wait("all huge pages", 5.0, || (pages::free() == free).then_some(()));
        assert_eq!(left(), before, "files of DPDK's");
        if round < 2 {
            node.start_again();
        }
    }
}

/// A veth has no XDP while its far end sends by more queues than it receives by, and one socket for
/// two queues would lose what comes by the other.
#[test]
fn an_xdp_queue_without_a_socket_is_refused() {
    let _lab = Lab::new();
    let (netns, far) = (Netns::new("node"), Netns::new("far"));
    let name = format!("u{}n{}", std::process::id(), Netns::number());
    let queues = "numrxqueues 2 numtxqueues 2";
    netns.ip(&format!(
        "link add {name} {queues} type veth peer name wire {queues} netns {}",
        far.name()
    ));
    netns.ip(&format!("link set {name} up"));
    let looks = || {
        (
            netns.tool("ip", &format!("-br link show {name}")),
            netns.tool("ethtool", &format!("-l {name}")),
        )
    };
    let before = looks();
    let start = Start { uplink: Some(format!("{name}=net_af_xdp")), ..Start::default() };
    let said = Node::refused(&netns, &start);
    for part in [
        &format!("uplink {name}: no XDP sockets on its 1 receive queues"),
        &format!("or use {name}=packet")[..],
    ] {
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(looks(), before, "the interface is given back as it was");
}

/// A clean stop gives the interface back: same name, addresses, and the node's stack talks on it.
#[test]
fn a_clean_stop_restores_the_nodes_interface() {
    let _lab = Lab::new();
    let realm = Realm::new("blue", 56, 1450);
    let mut pair = Pair::new("packet", 1500, false, 1, std::slice::from_ref(&realm));
    let name = pair.nodes[0].uplink_name().to_owned();
    let kind = |node: &Node| node.netns.tool("ip", &format!("-d -o link show {name}"));
    assert!(kind(&pair.nodes[0]).contains(" tun "), "the host tap has the interface's name");
    let addresses = |node: &Node| {
        let text = node.netns.tool("ip", &format!("-o addr show {name}"));
        let mut found: Vec<String> = text
            .lines()
            .filter_map(|line| line.split_whitespace().nth(3).map(str::to_owned))
            .collect();
        found.sort();
        found
    };
    let before = addresses(&pair.nodes[0]);
    assert!(before.iter().any(|a| a == "192.0.2.1/24"), "{before:?}");
    pair.nodes[0].stop();
    assert!(kind(&pair.nodes[0]).contains(" veth "), "{}", kind(&pair.nodes[0]));
    assert_eq!(addresses(&pair.nodes[0]), before);
    assert!(pair.nodes[0].netns.try_tool("ping", "-c 1 -W 2 192.0.2.2").0);
}
