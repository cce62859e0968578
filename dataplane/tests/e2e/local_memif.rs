//! Memif on one node: with another memif, with a tap, with a stack behind it.

use crate::lab::memif::Shape;
use crate::lab::node::drops;
use crate::lab::{End, Lab, MemifPod, Node, Pump, Realm, TapPod, counts, frame, iperf, iperf_bps};

const JUMBO: u32 = 9000;

fn jumbo(node: &mut Node) -> Realm {
    let blue = Realm::new("blue", 56, JUMBO);
    node.add_realm(&blue);
    blue
}

/// A payload that is different at every offset and for every seed.
fn payload(seed: u32, bytes: usize) -> Vec<u8> {
    (0..bytes as u32).map(|n| (n.wrapping_mul(31).wrapping_add(seed) >> 2) as u8).collect()
}

#[test]
fn frames_of_all_sizes_arrive_byte_for_byte() {
    let _lab = Lab::new();
    let mut node = Node::local(1);
    let blue = jumbo(&mut node);
    let mut a = MemifPod::new(&mut node, &blue, 20);
    let mut b = MemifPod::new(&mut node, &blue, 21);
    // Frame sizes around heads, buffers and chains of two to five buffers.
    let sizes = [64, 127, 128, 129, 255, 256, 257, 1514, 2047, 2048, 2049, 4096, 4097, 9014];
    for (seed, size) in sizes.into_iter().enumerate() {
        for v6 in [false, true] {
            let (to, headers) = if v6 { (b.at.ip6(), 62) } else { (b.at.ip4(), 42) };
            let data = payload(seed as u32, size.max(headers + 16) - headers);
            let sent = a.datagram(7, (to, 8), &data);
            a.inject(&sent);
            let got = b.wait_marked(&data, 1).remove(0);
            // Only the MACs, TTL and the IPv4 checksum are others.
            assert_eq!(got.len(), sent.len());
            assert_eq!(got[..6], b.at.mac);
            assert_eq!(got[6..12], b.at.gateway_mac);
            let (ttl, from) = if v6 { (21, 22) } else { (22, 26) };
            assert_eq!(got[ttl], 63, "TTL falls once");
            assert_eq!(got[from..], sent[from..]);
            if !v6 {
                assert_eq!(frame::checksum(&[&got[14..34]]), 0);
            }
        }
    }
}

#[test]
fn bulk_keeps_order_and_loses_nothing_that_fits() {
    let _lab = Lab::new();
    for workers in [1, 2] {
        let mut node = Node::local(workers);
        let blue = jumbo(&mut node);
        let mut a = MemifPod::new(&mut node, &blue, 20);
        let mut b = MemifPod::new(&mut node, &blue, 21);
        for (size, count) in [(64, 20_000_u32), (1500, 10_000), (9000, 3_000)] {
            stream(&mut a, &mut b, size, count);
        }
        counts("forwarded", 33_000, || node.account(&a.at.id).forwarded);
        counts("sent", 33_000, || node.account(&b.at.id).tx_pkts);
    }
}

/// Sends numbered datagrams and reads them meanwhile, never more under way than the ring holds.
fn stream(a: &mut MemifPod, b: &mut MemifPod, size: usize, count: u32) {
    let to = (b.at.ip4(), 8);
    let (mut sent, mut got) = (0, 0);
    // Less than the ring, and than what one worker may have lent to another.
    let window = if size > 2048 { 100 } else { 256 };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while got < count {
        assert!(std::time::Instant::now() < deadline, "{got} of {count} frames of {size} came");
        while sent < count && sent - got < window {
            let mut data = sent.to_be_bytes().to_vec();
            data.resize(size.max(60) - 42, sent as u8);
            let frame = a.datagram(7, to, &data);
            if a.queue_up(0, [&frame[..]]) == 0 {
                break;
            }
            sent += 1;
        }
        a.flush(0);
        while let Some(frame) = b.recv(0) {
            if frame.len() < 46 || frame[23] != 17 {
                continue;
            }
            let number = u32::from_be_bytes([frame[42], frame[43], frame[44], frame[45]]);
            assert_eq!(number, got, "frames of {size} bytes in order");
            assert!(frame[46..].iter().all(|&byte| byte == number as u8));
            got += 1;
        }
    }
}

#[test]
fn two_queues_and_two_workers_into_one_queue_keep_flows_in_order() {
    let _lab = Lab::new();
    let mut node = Node::local(2);
    let blue = jumbo(&mut node);
    let mut a = MemifPod::with(&mut node, &blue, 20, Shape { queues: 2, ..Shape::default() });
    let mut b = MemifPod::new(&mut node, &blue, 21);
    const FLOWS: u16 = 16;
    const EACH: u32 = 1000;
    let mut next = [0_u32; FLOWS as usize];
    let mut expected = [0_u32; FLOWS as usize];
    let total = u32::from(FLOWS) * EACH;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let mut done = 0;
    while done < total {
        assert!(std::time::Instant::now() < deadline, "{done} of {total} came");
        let under_way: u32 = next.iter().zip(&expected).map(|(sent, got)| sent - got).sum();
        for flow in 0..FLOWS {
            let number = next[usize::from(flow)];
            if number == EACH || under_way > 200 {
                continue;
            }
            // Each flow stays on one queue, as an RSS sender would have it.
            let frame = a.datagram(1000 + flow, (b.at.ip4(), 8), &number.to_be_bytes());
            next[usize::from(flow)] += a.queue_up(usize::from(flow % 2), [&frame[..]]) as u32;
        }
        a.flush(0);
        a.flush(1);
        while let Some(frame) = b.recv(0) {
            if frame.len() < 46 || frame[23] != 17 {
                continue;
            }
            let flow = usize::from(u16::from_be_bytes([frame[34], frame[35]]) - 1000);
            let number = u32::from_be_bytes([frame[42], frame[43], frame[44], frame[45]]);
            assert_eq!(number, expected[flow], "flow {flow} in order");
            expected[flow] += 1;
            done += 1;
        }
    }
}

#[test]
fn ip_mode_carries_bare_packets() {
    let _lab = Lab::new();
    let mut node = Node::local(1);
    let blue = jumbo(&mut node);
    let shape = Shape { ip_mode: true, ..Shape::default() };
    let mut a = MemifPod::with(&mut node, &blue, 20, shape);
    let mut b = MemifPod::new(&mut node, &blue, 21);
    for v6 in [false, true] {
        let (to, back) = if v6 { (b.at.ip6(), a.at.ip6()) } else { (b.at.ip4(), a.at.ip4()) };
        let there = a.datagram(7, (to, 8), b"there we go");
        a.inject(&there);
        let got = b.wait_marked(b"there we go", 1).remove(0);
        assert_eq!(got[14 + 20..], there[20..]);
        let here = b.datagram(8, (back, 7), b"here we come");
        b.inject(&here);
        let got = a.wait_marked(b"here we come", 1).remove(0);
        assert_eq!(got[0] >> 4, if v6 { 6 } else { 4 }, "no Ethernet header");
        assert_eq!(got.len(), here.len() - 14);
    }
}

#[test]
fn a_tap_and_a_memif_talk_tcp_and_ping() {
    let _lab = Lab::new();
    let mut node = Node::local(1);
    let blue = Realm::new("blue", 56, 1500);
    node.add_realm(&blue);
    let tap = TapPod::new(&mut node, &blue, 10);
    let memif = Pump::start(MemifPod::new(&mut node, &blue, 20), 1500);
    for to in [memif.ip4(), memif.ip6()] {
        for size in [0, 56, 1400, 4000] {
            assert!(tap.pings(to, size), "ping -s {size} {to}");
        }
    }
    for (to, back) in [(memif.ip4(), ""), (memif.ip6(), ""), (memif.ip4(), " -R")] {
        let bps = iperf_bps(&iperf(&memif.netns, &tap.netns, &format!("-c {to} -t 1{back}")));
        println!("TCP tap ↔ memif {to}{back}: {:.2} Gb/s", bps / 1e9);
        assert!(bps > 3e7, "{bps} b/s");
    }
    // The tap's super-frames were cut for the memif, and the memif's segments merged for the tap.
    let account = node.account(&memif.id);
    assert!(account.split_extra > 1000, "{account:?}");
    let account = node.account(&tap.id);
    assert!(account.coalesced > 1000, "{account:?}");
    assert_eq!(drops(&node.account(&memif.id), "ip4_bad_checksum"), 0);
}
