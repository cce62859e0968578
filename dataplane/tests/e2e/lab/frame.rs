//! Frames for tests, built by hand and independently of the code under test.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A MAC address.
pub type Mac = [u8; 6];

/// Ethernet header and payload.
pub fn ethernet(to: Mac, from: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), payload].concat()
}

/// The Internet checksum (RFC 1071) over the pieces, each of even length but the last.
pub fn checksum(pieces: &[&[u8]]) -> u16 {
    let mut sum = 0u64;
    for piece in pieces {
        for pair in piece.chunks(2) {
            sum += u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// IP header around a payload; the family follows the addresses. DF is set on IPv4.
pub fn ip(from: IpAddr, to: IpAddr, protocol: u8, ttl: u8, payload: &[u8]) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ip4(from, to, protocol, ttl, 0x4000, payload),
        (IpAddr::V6(from), IpAddr::V6(to)) => ip6(from, to, protocol, ttl, payload),
        _ => panic!("{from} and {to} are of different families"),
    }
}

/// IPv4 header around a payload; `fragment` is flags and offset.
pub fn ip4(
    from: Ipv4Addr,
    to: Ipv4Addr,
    protocol: u8,
    ttl: u8,
    fragment: u16,
    payload: &[u8],
) -> Vec<u8> {
    let mut header = vec![0x45, 0, 0, 0, 0x12, 0x34, 0, 0, ttl, protocol, 0, 0];
    header[2..4].copy_from_slice(&((20 + payload.len()) as u16).to_be_bytes());
    header[6..8].copy_from_slice(&fragment.to_be_bytes());
    header.extend(from.octets());
    header.extend(to.octets());
    let sum = checksum(&[&header]);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header.extend(payload);
    header
}

/// IPv6 header around a payload.
pub fn ip6(from: Ipv6Addr, to: Ipv6Addr, next: u8, hops: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![0x60, 0, 0, 0, 0, 0, next, hops];
    header[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
    header.extend(from.octets());
    header.extend(to.octets());
    header.extend(payload);
    header
}

fn pseudo(from: IpAddr, to: IpAddr, protocol: u8, length: usize) -> Vec<u8> {
    let mut bytes = octets(from);
    bytes.extend(octets(to));
    bytes.extend((length as u32).to_be_bytes());
    bytes.extend(u32::from(protocol).to_be_bytes());
    bytes
}

/// An address's bytes.
pub fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// The EtherType of an address's family.
pub fn ether_type(ip: IpAddr) -> u16 {
    if ip.is_ipv4() { 0x0800 } else { 0x86dd }
}

/// A UDP datagram in an IP packet.
pub fn udp(from: (IpAddr, u16), to: (IpAddr, u16), payload: &[u8]) -> Vec<u8> {
    let mut datagram = Vec::new();
    datagram.extend(from.1.to_be_bytes());
    datagram.extend(to.1.to_be_bytes());
    datagram.extend(((8 + payload.len()) as u16).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    let sum = checksum(&[&pseudo(from.0, to.0, 17, datagram.len()), &datagram]);
    datagram[6..8].copy_from_slice(&(if sum == 0 { 0xffff } else { sum }).to_be_bytes());
    ip(from.0, to.0, 17, 64, &datagram)
}

/// An ARP packet (RFC 826) for IPv4 over Ethernet; `operation` 1 = request, 2 = reply.
pub fn arp(operation: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let mut bytes = vec![0, 1, 8, 0, 6, 4];
    bytes.extend(operation.to_be_bytes());
    bytes.extend(sender.0);
    bytes.extend(sender.1.octets());
    bytes.extend(target.0);
    bytes.extend(target.1.octets());
    bytes
}

/// An ICMPv6 message in an IPv6 packet with hop limit 255.
pub fn icmp6(from: Ipv6Addr, to: Ipv6Addr, kind: u8, rest: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0];
    message.extend(rest);
    let sum = checksum(&[&pseudo(from.into(), to.into(), 58, message.len()), &message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    ip6(from, to, 58, 255, &message)
}

/// A neighbour solicitation (RFC 4861 §4.3) with its source link-layer address.
pub fn neighbour_solicitation(from: (Mac, Ipv6Addr), target: Ipv6Addr) -> Vec<u8> {
    let mut rest = vec![0; 4];
    rest.extend(target.octets());
    rest.extend([1, 1]);
    rest.extend(from.0);
    let low = target.octets();
    let group = Ipv6Addr::new(
        0xff02,
        0,
        0,
        0,
        0,
        1,
        0xff00 | u16::from(low[13]),
        u16::from(low[14]) << 8 | u16::from(low[15]),
    );
    icmp6(from.1, group, 135, &rest)
}

/// A VXLAN packet (RFC 7348) around an Ethernet frame, from one tunnel end to another.
pub fn vxlan(from: IpAddr, to: IpAddr, port: u16, vni: u32, inner: &[u8]) -> Vec<u8> {
    let mut payload = vec![8, 0, 0, 0];
    payload.extend((vni << 8).to_be_bytes());
    payload.extend(inner);
    udp((from, 50_000), (to, port), &payload)
}

/// Whether the frame contains the bytes: for payloads that mark a packet.
pub fn contains(frame: &[u8], mark: &[u8]) -> bool {
    frame.windows(mark.len()).any(|window| window == mark)
}
