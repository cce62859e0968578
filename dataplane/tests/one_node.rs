//! Tap pods on one node, through the real process: they reach each other, and nobody else's.

mod common;

use common::{Node, TapPod, network, state, wait_for};

fn two_pods_talk(args: &str, queues: u16) {
    let node = Node::start(args);
    let (a, b) = (TapPod::new("blue", 10, queues), TapPod::new("blue", 11, queues));
    a.offer_to(&node);
    b.offer_to(&node);
    let interfaces = vec![a.interface(), b.interface()];
    let reply = node.apply(state(1, vec![network("blue", 56)], interfaces)).expect("a good state");
    for status in &reply.interfaces {
        assert_eq!(status.link, api::interface_status::Link::Up as i32, "{status:?}");
    }
    for (from, to) in [(&a, &b), (&b, &a)] {
        assert!(from.netns.pings(&to.v4(), ""), "IPv4");
        assert!(from.netns.pings(&to.v6(), ""), "IPv6");
        assert!(from.netns.pings(&to.v4(), "-s 1422 -M do"), "as large as the MTU");
        assert!(from.netns.pings("10.1.0.1", ""), "the gateway");
        assert!(from.netns.pings("fd00:1::1", ""), "the gateway");
    }
    let counters = node.check_accounts();
    let sums = counters.node.expect("a sum");
    assert!(sums.forwarded >= 36, "{sums:?}");
    assert_eq!(counters.networks.len(), 1);
}

#[test]
fn two_tap_pods_reach_each_other() {
    two_pods_talk("", 1);
}

#[test]
fn also_with_two_workers_and_two_queues() {
    two_pods_talk("--workers 2", 2);
}

#[test]
fn twins_in_other_networks_hear_nothing() {
    let node = Node::start("");
    let blue = [TapPod::new("blue", 10, 1), TapPod::new("blue", 11, 1)];
    let red = [TapPod::new("red", 10, 1), TapPod::new("red", 11, 1)];
    let all = || blue.iter().chain(&red);
    all().for_each(|pod| pod.offer_to(&node));
    let networks = vec![network("blue", 56), network("red", 57)];
    node.apply(state(1, networks, all().map(TapPod::interface).collect())).expect("a good state");
    let heard = |pod: &TapPod| {
        let counters = node.counters();
        let found = counters.interfaces.into_iter().find(|i| i.id == pod.id);
        found.and_then(|i| i.account).expect("an account").tx_forwarded
    };
    let before = [heard(&red[0]), heard(&red[1])];
    assert!(blue[0].netns.pings("10.1.0.11", ""), "the positive control");
    assert_eq!([heard(&red[0]), heard(&red[1])], before, "red heard blue");
    // With blue's second pod gone, its address leads nowhere: not to red's.
    let request = api::ApplyRequest {
        partial: true,
        remove_interfaces: vec![blue[1].id.clone()],
        ..api::ApplyRequest::default()
    };
    node.apply_part(request).expect("it can go");
    assert!(!blue[0].netns.exec("ping", "-n -c 1 -W 1 10.1.0.11").status.success());
    assert_eq!([heard(&red[0]), heard(&red[1])], before, "red heard blue");
    assert!(red[0].netns.pings("10.1.0.11", ""), "red itself works");
    // What the gone pod counted is still in the sums.
    let sums = node.check_accounts();
    let blue_sum =
        sums.networks.iter().find(|n| n.network == "blue").expect("blue").account.clone();
    let live: u64 = sums
        .interfaces
        .iter()
        .filter(|i| i.network == "blue")
        .map(|i| i.account.as_ref().expect("an account").rx_pkts)
        .sum();
    assert!(blue_sum.expect("an account").rx_pkts > live, "the removed pod's frames vanished");
}

#[test]
fn offered_late_and_restarted() {
    let mut node = Node::start("");
    let (a, b) = (TapPod::new("blue", 10, 1), TapPod::new("blue", 11, 1));
    let wanted = state(7, vec![network("blue", 56)], vec![a.interface(), b.interface()]);
    let reply = node.apply(wanted.clone()).expect("a good state");
    assert!(reply.interfaces[0].reason.contains("not been offered"), "{reply:?}");
    a.offer_to(&node);
    b.offer_to(&node);
    assert!(a.netns.pings("10.1.0.11", ""));
    let boot = node.hello().boot_id;
    node.kill();
    node.restart();
    let hello = node.hello();
    assert_ne!(hello.boot_id, boot);
    assert_eq!(hello.state_revision, 0);
    for pod in [&a, &b] {
        pod.offer_to(&node);
    }
    node.apply(wanted).expect("a good state");
    assert!(a.netns.pings("10.1.0.11", ""), "after kill -9 and restart");
    let status = node.stop();
    assert!(status.success(), "{status}");
    assert!(!node.socket().exists(), "the socket stays behind");
}

#[test]
fn an_offer_for_a_live_tap_replaces_its_queues() {
    let node = Node::start("");
    let (a, b) = (TapPod::new("blue", 10, 1), TapPod::new("blue", 11, 1));
    a.offer_to(&node);
    b.offer_to(&node);
    node.apply(state(1, vec![network("blue", 56)], vec![a.interface(), b.interface()]))
        .expect("a good state");
    a.offer_to(&node);
    wait_for("the tap to be up again", || (node.interface(&a.id).connects == 2).then_some(()));
    assert!(a.netns.pings("10.1.0.11", ""));
    node.check_accounts();
}

/// Whoever opens taps need not know which headers we want.
#[test]
fn taps_opened_by_others_are_prepared() {
    let node = Node::start("");
    let (a, b) = (TapPod::new("blue", 10, 1), TapPod::new("blue", 11, 1));
    for pod in [&a, &b] {
        // TUNSETVNETHDRSZ, 10 bytes: what the kernel gives when nobody says anything.
        let bytes: libc::c_int = 10;
        // SAFETY: the kernel reads one int.
        let ret = unsafe {
            libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&pod.queues[0]), 0x4004_54d8, &bytes)
        };
        assert_eq!(ret, 0);
        pod.offer_to(&node);
    }
    node.apply(state(1, vec![network("blue", 56)], vec![a.interface(), b.interface()]))
        .expect("a good state");
    assert!(a.netns.pings("10.1.0.11", ""));
}
