//! Two data planes on a cable: TCP, order, isolation across it.

use std::net::IpAddr;

use crate::lab::memif::Shape;
use crate::lab::node::drops;
use crate::lab::{End, Lab, MemifPod, Pair, Pump, Realm, TapPod, counts, frame, iperf, iperf_bps};

fn blue(mtu: u32) -> Realm {
    Realm::new("blue", 56, mtu)
}

/// Taps 10 on the first node and 11 on the second.
fn taps(pair: &mut Pair, realm: &Realm) -> [TapPod; 2] {
    let pods =
        [TapPod::new(&mut pair.nodes[0], realm, 10), TapPod::new(&mut pair.nodes[1], realm, 11)];
    pair.lead(0, realm.name, 11);
    pair.lead(1, realm.name, 10);
    pods
}

fn tcp_across(driver: &'static str, underlay_mtu: u32, v6: bool, workers: u32) {
    let overhead = if v6 { 70 } else { 50 };
    let realm = blue(underlay_mtu - overhead);
    let mut pair = Pair::new(driver, underlay_mtu, v6, workers, std::slice::from_ref(&realm));
    let [a, b] = taps(&mut pair, &realm);
    for (there, back) in [(b.ip4(), a.ip4()), (b.ip6(), a.ip6())] {
        for size in [0, 56, 1000, realm.mtu as usize - 48, 9000] {
            assert!(a.pings(there, size), "ping -s {size} {there}");
            assert!(b.pings(back, size), "ping -s {size} {back}");
        }
        // The gateway's hop: the TTL falls once, at the node where the packet enters.
        assert!(!a.ping(there, "-c 1 -W 1 -t 1").0 && a.ping(there, "-c 1 -W 1 -t 2").0);
    }
    for to in [b.ip4(), b.ip6()] {
        let stream = || {
            let before = pair.nodes[1].account(&b.id);
            let bps = iperf_bps(&iperf(&b.netns, &a.netns, &format!("-c {to} -t 2")));
            let after = pair.nodes[1].account(&b.id);
            let frames = (after.tx_pkts - before.tx_pkts).max(1);
            let merged = after.coalesced - before.coalesced;
            let mean = (frames + merged) as f64 / frames as f64;
            println!(
                "TCP {driver} MTU {underlay_mtu}, {workers} workers, {to}: {:.2} Gb/s, {mean:.1} \
                 segments a frame",
                bps / 1e9
            );
            assert!(bps > 5e7, "{bps} b/s to {to}");
            mean
        };
        // Unmerged it is 1. A jumbo segment is a seventh of the largest frame, another a fortieth; a machine whose
        // cores are taken away, with four workers on two, sends in drops, of which fewer can be merged (7 seen).
        let least = if underlay_mtu > 1500 { 2.0 } else { 4.0 };
        let mut means = std::iter::repeat_with(stream).take(3);
        assert!(means.any(|mean| mean >= least), "less than {least} three times");
    }
}

#[test]
fn tcp_over_the_packet_port() {
    let _lab = Lab::new();
    tcp_across("packet", 1500, false, 1);
    tcp_across("packet", 9000, true, 1);
}

#[test]
fn tcp_over_dpdk_af_packet() {
    let _lab = Lab::new();
    tcp_across("net_af_packet", 1500, false, 1);
}

#[test]
fn tcp_with_two_workers() {
    let _lab = Lab::new();
    tcp_across("packet", 1500, true, 2);
}

/// Sixteen flows on two queues of a memif, over the cable, into a memif with one queue.
#[test]
fn flows_keep_their_order_across_nodes() {
    let _lab = Lab::new();
    const FLOWS: u16 = 16;
    const EACH: u32 = 500;
    for workers in [1, 2] {
        let realm = blue(1450);
        let mut pair = Pair::new("packet", 1500, false, workers, std::slice::from_ref(&realm));
        let two = Shape { queues: 2, ..Shape::default() };
        let mut a = MemifPod::with(&mut pair.nodes[0], &realm, 20, two);
        let mut b = MemifPod::new(&mut pair.nodes[1], &realm, 21);
        pair.lead(0, realm.name, 21);
        let mut sent = [0_u32; FLOWS as usize];
        let mut last = [None; FLOWS as usize];
        let (mut got, total) = (0, u32::from(FLOWS) * EACH);
        let mut quiet_since = std::time::Instant::now();
        while got < total && quiet_since.elapsed() < std::time::Duration::from_secs(2) {
            for flow in 0..FLOWS {
                let number = sent[usize::from(flow)];
                let under_way = sent.iter().sum::<u32>() - got;
                if number == EACH || under_way > 128 {
                    continue;
                }
                let data = number.to_be_bytes();
                let datagram = a.datagram(1000 + flow, (b.at.ip4(), 8), &data);
                let queue = usize::from(flow % 2);
                sent[usize::from(flow)] += a.queue_up(queue, [&datagram[..]]) as u32;
            }
            a.flush(0);
            a.flush(1);
            while let Some(frame) = b.recv(0) {
                if frame.len() < 46 || frame[23] != 17 {
                    continue;
                }
                let flow = usize::from(u16::from_be_bytes([frame[34], frame[35]]) - 1000);
                let number = u32::from_be_bytes([frame[42], frame[43], frame[44], frame[45]]);
                assert!(last[flow] < Some(number), "flow {flow}: {number} after {:?}", last[flow]);
                last[flow] = Some(number);
                got += 1;
                quiet_since = std::time::Instant::now();
            }
        }
        assert_eq!(got, total, "with {workers} workers");
    }
}

/// Identical addresses in two Networks on two nodes, all kinds of pods.
#[test]
fn twins_on_two_nodes_never_see_each_others_packets() {
    let _lab = Lab::new();
    [1, 2].into_iter().for_each(twins_on_two_nodes);
}

/// Two Networks with the same addresses on both nodes: taps 10 and 11, memifs 20 and 21 in each.
struct Twins {
    realms: [Realm; 2],
    pair: Pair,
    /// The Network's place in `realms`, the pod's number, the pod.
    ends: Vec<(usize, u16, Box<dyn End>)>,
    _taps: Vec<TapPod>,
}

impl Twins {
    fn new(workers: u32) -> Self {
        let realms = [Realm::new("blue", 56, 1450), Realm::new("red", 57, 1450)];
        let mut pair = Pair::new("packet", 1500, false, workers, &realms);
        let (mut taps, mut ends): (Vec<_>, Vec<(_, _, Box<dyn End>)>) = (vec![], vec![]);
        for (side, realm) in realms.iter().enumerate() {
            for (at, tap, memif) in [(0, 10, 20), (1, 11, 21)] {
                let pod = TapPod::new(&mut pair.nodes[at], realm, tap);
                ends.push((side, tap, Box::new(pod.raw())));
                taps.push(pod);
                let pod = MemifPod::new(&mut pair.nodes[at], realm, memif);
                ends.push((side, memif, Box::new(pod)));
                pair.lead(1 - at, realm.name, tap);
                pair.lead(1 - at, realm.name, memif);
            }
        }
        Self { realms, pair, ends, _taps: taps }
    }

    fn end(&mut self, side: usize, n: u16) -> &mut dyn End {
        &mut *self.ends.iter_mut().find(|(s, m, _)| (*s, *m) == (side, n)).expect("a pod").2
    }

    /// Sends a marked packet from a pod, in the name of `src`.
    fn send(&mut self, side: usize, from: u16, (src, dst): (IpAddr, IpAddr), mark: &str) {
        let packet = frame::udp((src, 1), (dst, 2), mark.as_bytes());
        let (gateway, own) = (self.realms[side].gateway_mac(), crate::lab::pod::mac(from));
        let frame = frame::ethernet(gateway, own, frame::ether_type(src), &packet);
        self.end(side, from).inject(&frame);
    }

    /// Whether a pod of a Network has got such a frame, of those that nobody took yet.
    fn anybody_has(&mut self, side: usize, mark: &str) -> bool {
        let of_side = self.ends.iter_mut().filter(|(s, ..)| *s == side);
        of_side.flat_map(|(.., end)| end.take()).any(|f| frame::contains(&f, mark.as_bytes()))
    }
}

fn twins_on_two_nodes(workers: u32) {
    let mut twins = Twins::new(workers);
    for (from, to) in [10, 20].into_iter().flat_map(|from| [11, 21].map(|to| (from, to))) {
        for (from, to) in [(from, to), (to, from)] {
            let mark = |side: usize| format!("{} {from}>{to}", ["blue", "red"][side]);
            for (side, v6) in [(0, false), (0, true), (1, false), (1, true)] {
                let ip = |n| if v6 { Realm::ip6(n) } else { Realm::ip4(n) };
                for _ in 0..5 {
                    twins.send(side, from, (ip(from), ip(to)), &mark(side));
                }
            }
            for side in [0, 1] {
                let (own, others) = twins.end(side, to).gather(mark(side).as_bytes(), 10);
                assert_eq!(own.len(), 10);
                let foreign = mark(1 - side);
                let leaked = others.iter().any(|f| frame::contains(f, foreign.as_bytes()));
                assert!(!leaked && !twins.anybody_has(side, &foreign), "`{foreign}` in {side}");
            }
        }
    }
}

/// Whoever borrows an address of the other node's pods, or of its tunnel end, gets nowhere.
#[test]
fn spoofed_sources_do_not_cross_nodes() {
    let _lab = Lab::new();
    [1, 2].into_iter().for_each(spoofed_across);
}

fn spoofed_across(workers: u32) {
    let mut twins = Twins::new(workers);
    let far4 = "192.0.2.2".parse().expect("an address");
    for (from, to) in [10, 20].into_iter().flat_map(|from| [11, 21].map(|to| (from, to))) {
        let lies = [
            (Realm::ip4(11), Realm::ip4(to)),
            (Realm::ip4(99), Realm::ip4(to)),
            (far4, Realm::ip4(to)),
            (Realm::ip6(21), Realm::ip6(to)),
            (Realm::ip6(99), Realm::ip6(to)),
        ];
        let dropped = |twins: &Twins| {
            let node = twins.pair.nodes[0].counters().node.expect("an account");
            drops(&node, "spoofed_source")
        };
        let before = dropped(&twins);
        for pair in lies {
            twins.send(0, from, pair, "spoofed");
        }
        // The control, behind them on the same way.
        let honest = format!("honest {from}>{to}");
        twins.send(0, from, (Realm::ip4(from), Realm::ip4(to)), &honest);
        let (_, others) = twins.end(0, to).gather(honest.as_bytes(), 1);
        assert!(others.iter().all(|f| !frame::contains(f, b"spoofed")), "{from}>{to}");
        for side in [0, 1] {
            assert!(!twins.anybody_has(side, "spoofed"), "{from}>{to}");
        }
        counts(&format!("{from}>{to}"), before + lies.len() as u64, || dropped(&twins));
    }
}

/// A TCP stream from a tap on one node to a stack behind a memif on the other.
#[test]
fn tap_and_memif_talk_tcp_across_nodes() {
    let _lab = Lab::new();
    let realm = blue(1450);
    let mut pair = Pair::new("packet", 1500, false, 1, std::slice::from_ref(&realm));
    let a = TapPod::new(&mut pair.nodes[0], &realm, 10);
    let b = Pump::start(MemifPod::new(&mut pair.nodes[1], &realm, 20), 1450);
    pair.lead(0, realm.name, 20);
    pair.lead(1, realm.name, 10);
    for (to, back) in [(b.ip4(), ""), (b.ip6(), " -R")] {
        assert!(a.pings(to, 1000));
        let bps = iperf_bps(&iperf(&b.netns, &a.netns, &format!("-c {to} -t 1{back}")));
        assert!(bps > 5e7, "{bps} b/s to {to}{back}");
    }
}
