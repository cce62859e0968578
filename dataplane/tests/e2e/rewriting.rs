//! A pod rewrites its buffers, headers included, all the time while its frames are forwarded: it
//! changes its own payload and nothing else. Whoever receives finds every header right.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::lab::memif::{Listening, Shape};
use crate::lab::rogue::{BUFFERS_AT, Descriptor, Rogue, S2M_AT};
use crate::lab::{End, Far, Lab, MemifPod, Netns, Node, Realm, Uplink, frame, wait};

const SLOTS: u32 = 256;
const PITCH: u32 = 2048;
const FRAME_BYTES: usize = 1200;
/// Received frames that are enough, and those among them whose payload changed under way.
const ENOUGH: usize = 20_000;
const ENOUGH_TORN: usize = 20;

/// Frames of one length that differ in what a pod may not, or not any more, decide: the numbers of
/// good ones stand in their identification and in every byte of their payload.
fn versions(pod: &Listening, to: Ipv4Addr) -> Vec<Vec<u8>> {
    let good = |number: u8| version(pod, to, number, |_| {});
    let bad = |change: &dyn Fn(&mut [u8])| version(pod, to, 0xee, change);
    let mut versions: Vec<_> = (0..8).map(good).collect();
    versions.push(bad(&|ip| ip[12..16].copy_from_slice(&[10, 56, 0, 77])));
    versions.push(bad(&|ip| ip[16..20].copy_from_slice(&[10, 56, 0, 99])));
    versions.push(bad(&|ip| ip[2..4].copy_from_slice(&1500_u16.to_be_bytes())));
    versions.push(bad(&|ip| ip[2..4].copy_from_slice(&500_u16.to_be_bytes())));
    versions.push(bad(&|ip| ip[0] = 0x4f));
    versions.push(vec![0xff; FRAME_BYTES]);
    versions
}

fn version(pod: &Listening, to: Ipv4Addr, number: u8, change: impl Fn(&mut [u8])) -> Vec<u8> {
    let payload = vec![number; FRAME_BYTES - 42];
    let mut packet = frame::udp((pod.ip4(), 1), (to.into(), 2), &payload);
    packet[4..6].copy_from_slice(&[0, number]);
    // No UDP checksum (RFC 768).
    packet[26..28].fill(0);
    change(&mut packet);
    packet[10..12].fill(0);
    let sum = frame::checksum(&[&packet[..20]]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    frame::ethernet(pod.gateway_mac, pod.mac, 0x0800, &packet)
}

/// Writes one version after the other over all buffers until told to stop.
fn rewrite(rogue: &Rogue, versions: &[Vec<u8>], stop: &AtomicBool) {
    let mut number = 0_u32;
    while !stop.load(Ordering::Relaxed) {
        number = number.wrapping_add(1);
        // Two strides without a common factor: every buffer meets every version.
        let at = BUFFERS_AT + number.wrapping_mul(7) % SLOTS * PITCH;
        let version = &versions[number as usize / 3 % versions.len()];
        rogue.put(at.into(), version);
    }
}

/// Whether the payload is not what the header was sent with. Panics at a header that is wrong. What is
/// behind the IP header is the pod's own, the UDP checksum too: a frame may be sent in the midst of a rewrite.
fn is_torn(ip: &[u8], from: Ipv4Addr, to: Ipv4Addr) -> bool {
    assert_eq!(ip[0], 0x45, "version and header length: {:02x?}", &ip[..28]);
    assert_eq!(frame::checksum(&[&ip[..20]]), 0, "header checksum: {:02x?}", &ip[..28]);
    assert_eq!(u16::from_be_bytes([ip[2], ip[3]]) as usize, ip.len(), "total length");
    assert_eq!((ip[8], ip[9]), (63, 17), "TTL and protocol");
    assert_eq!((&ip[12..16], &ip[16..20]), (&from.octets()[..], &to.octets()[..]), "addresses");
    let udp = (&ip[20..24], &ip[26..28]);
    udp != (&[0, 1, 0, 2], &[0, 0]) || ip[28..].iter().any(|&byte| byte != ip[5])
}

/// The scope waits for the writer, also when a header was wrong.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sends what stands in the buffers while they are rewritten, and looks at what comes.
fn race(pod: &Listening, to: Ipv4Addr, mut take: impl FnMut() -> Vec<Vec<u8>>) {
    let std::net::IpAddr::V4(from) = pod.ip4() else { panic!("an IPv4 address") };
    let rogue = Rogue::shaken(&pod.netns, true);
    let slot = |slot| Descriptor {
        length: FRAME_BYTES as u32,
        offset: BUFFERS_AT + slot * PITCH,
        ..Descriptor::GOOD
    };
    rogue.describe(S2M_AT, &(0..SLOTS).map(slot).collect::<Vec<_>>());
    let (stop, versions) = (AtomicBool::new(false), versions(pod, to));
    std::thread::scope(|scope| {
        scope.spawn(|| rewrite(&rogue, &versions, &stop));
        let _stop = StopAtEnd(&stop);
        let (mut head, mut seen, mut torn) = (0_u16, 0, 0);
        wait("enough frames that were rewritten under way", 60.0, || {
            assert!(rogue.is_open(), "to rewrite one's own payload is no violation");
            if head.wrapping_sub(rogue.tail(S2M_AT)) <= 128 {
                head = head.wrapping_add(64);
                rogue.head(S2M_AT, head);
            }
            for ip in take() {
                seen += 1;
                torn += usize::from(is_torn(&ip, from, to));
            }
            (seen >= ENOUGH && torn >= ENOUGH_TORN).then_some(())
        });
        println!("{seen} frames received, {torn} of them with a payload that changed under way");
    });
}

#[test]
fn a_pod_that_rewrites_its_buffers_changes_only_its_payload() {
    let _lab = Lab::new();
    let mut node = Node::local(1);
    let blue = Realm::new("blue", 56, 1500);
    node.add_realm(&blue);
    let mut receiver = MemifPod::new(&mut node, &blue, 21);
    let pod = Listening::new(&mut node, &blue, 22, Shape::default());
    let std::net::IpAddr::V4(to) = receiver.at.ip4() else { panic!("an IPv4 address") };
    let (mac, gateway) = (receiver.at.mac, receiver.at.gateway_mac);
    race(&pod, to, || {
        let frames = receiver.take().into_iter().filter(|frame| frame[23] == 17 && frame[12] == 8);
        let ip = frames.map(|frame| {
            assert_eq!((&frame[..6], &frame[6..12]), (&mac[..], &gateway[..]), "MACs");
            frame[14..].to_vec()
        });
        ip.collect()
    });
}

/// The same through a tunnel: outer and inner headers are right on the wire.
#[test]
fn a_pod_that_rewrites_its_buffers_changes_only_its_payload_in_a_tunnel() {
    let _lab = Lab::new();
    let (here, there) = (Netns::new("node"), Netns::new("far"));
    let uplink = Uplink::between(&here, &there, "packet", 1500);
    let mut node = Node::with_uplink(here, uplink, 1);
    let blue = Realm::new("blue", 56, 1450);
    node.add_realm(&blue);
    let far = Far::kernel(there, &mut node, &blue, false);
    node.wait_for_tunnels();
    let pod = Listening::new(&mut node, &blue, 22, Shape::default());
    let std::net::IpAddr::V4(to) = far.ip4() else { panic!("an IPv4 address") };
    let wire = far.raw();
    let router: [u8; 6] = node.hello().router_mac.try_into().expect("six bytes");
    race(&pod, to, || {
        let frames = wire.take().into_iter();
        frames
            .filter(|frame| is_vxlan(frame))
            .map(|frame| inner_packet(&frame, far.mac, router))
            .collect()
    });
}

/// UDP to the VXLAN port, with an IPv4 packet in it (ARP comes this way as well).
fn is_vxlan(frame: &[u8]) -> bool {
    let udp = frame.len() > 64 && frame[12..14] == [8, 0] && frame[23] == 17;
    udp && frame[36..38] == [0x12, 0xb5] && frame[62..64] == [8, 0]
}

/// The packet within; panics at an outer header that is wrong.
fn inner_packet(frame: &[u8], far: [u8; 6], router: [u8; 6]) -> Vec<u8> {
    let ip = &frame[14..];
    assert_eq!(frame::checksum(&[&ip[..20]]), 0, "outer checksum: {:02x?}", &ip[..28]);
    assert_eq!(u16::from_be_bytes([ip[2], ip[3]]) as usize, ip.len(), "outer length");
    assert_eq!((&ip[12..16], &ip[16..20]), (&[192, 0, 2, 1][..], &[192, 0, 2, 2][..]));
    assert_eq!(u16::from_be_bytes([ip[24], ip[25]]) as usize, ip.len() - 20, "UDP length");
    assert_eq!(ip[28..36], [8, 0, 0, 0, 0, 0, 56, 0], "VXLAN header");
    assert_eq!((&ip[36..42], &ip[42..48]), (&far[..], &router[..]), "inner MACs");
    ip[50..].to_vec()
}
