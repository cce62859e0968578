//! Frames for tests: made from parts with right lengths and checksums, and taken apart again by
//! code that shares nothing with the path but the checksum.

use wire::Mac;
use wire::checksum::{Sum, pseudo4, pseudo6};

/// An IPv4 address in host order.
pub fn v4(text: &str) -> u32 {
    text.parse::<std::net::Ipv4Addr>().expect("an IPv4 address").into()
}

/// An IPv6 address in host order.
pub fn v6(text: &str) -> u128 {
    text.parse::<std::net::Ipv6Addr>().expect("an IPv6 address").into()
}

/// An Ethernet frame.
pub fn ethernet(dst: Mac, src: Mac, ether_type: u16, payload: &[u8]) -> Vec<u8> {
    [&dst.0[..], &src.0, &ether_type.to_be_bytes(), payload].concat()
}

/// An IPv4 packet with DF.
pub fn ip4(src: u32, dst: u32, protocol: u8, ttl: u8, payload: &[u8]) -> Vec<u8> {
    ip4_with(src, dst, protocol, ttl, 0x4000, &[], payload)
}

/// An IPv4 packet with these flags, fragment offset and options.
pub fn ip4_with(
    src: u32,
    dst: u32,
    protocol: u8,
    ttl: u8,
    flags_offset: u16,
    options: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let header_bytes = 20 + options.len();
    let total = (header_bytes + payload.len()) as u16;
    let mut bytes = vec![0x40 | (header_bytes / 4) as u8, 0];
    bytes.extend(total.to_be_bytes());
    bytes.extend([0x12, 0x34]);
    bytes.extend(flags_offset.to_be_bytes());
    bytes.extend([ttl, protocol, 0, 0]);
    bytes.extend(src.to_be_bytes());
    bytes.extend(dst.to_be_bytes());
    bytes.extend(options);
    let sum = Sum::of(&bytes).complement();
    bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// An IPv6 packet.
pub fn ip6(src: u128, dst: u128, next_header: u8, hop_limit: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend((payload.len() as u16).to_be_bytes());
    bytes.extend([next_header, hop_limit]);
    bytes.extend(src.to_be_bytes());
    bytes.extend(dst.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A UDP datagram whose checksum field is 0.
pub fn udp_unsummed(src: u16, dst: u16, payload: &[u8]) -> Vec<u8> {
    let len = (8 + payload.len()) as u16;
    [&src.to_be_bytes()[..], &dst.to_be_bytes(), &len.to_be_bytes(), &[0, 0], payload].concat()
}

/// A TCP segment without options whose checksum field is 0.
pub fn tcp_unsummed(src: u16, dst: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = [src.to_be_bytes(), dst.to_be_bytes()].concat();
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 0x10, 0, 0, 0, 0, 0]);
    bytes.extend(payload);
    bytes
}

/// Fills in the checksum `at` bytes into a layer-4 message.
pub fn summed(mut l4: Vec<u8>, at: usize, pseudo: Sum) -> Vec<u8> {
    let sum = pseudo.plus(Sum::of(&l4)).complement_udp();
    l4[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    l4
}

/// Fills in the pseudo header's sum only, as a kernel does that leaves the rest to the device.
pub fn half_summed(mut l4: Vec<u8>, at: usize, pseudo: Sum) -> Vec<u8> {
    l4[at..at + 2].copy_from_slice(&pseudo.fold().to_be_bytes());
    l4
}

/// An IPv4 packet with UDP.
pub fn udp4(src: u32, dst: u32, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let udp = udp_unsummed(ports.0, ports.1, payload);
    let pseudo = pseudo4(src, dst, 17, udp.len());
    ip4(src, dst, 17, 64, &summed(udp, 6, pseudo))
}

/// An IPv6 packet with UDP.
pub fn udp6(src: u128, dst: u128, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let udp = udp_unsummed(ports.0, ports.1, payload);
    let pseudo = pseudo6(src, dst, 17, udp.len());
    ip6(src, dst, 17, 64, &summed(udp, 6, pseudo))
}

/// An IPv4 packet with a TCP segment.
pub fn tcp4(src: u32, dst: u32, payload: &[u8]) -> Vec<u8> {
    let tcp = tcp_unsummed(1000, 80, 0x10, payload);
    let pseudo = pseudo4(src, dst, 6, tcp.len());
    ip4(src, dst, 6, 64, &summed(tcp, 16, pseudo))
}

/// An IPv6 packet with a TCP segment.
pub fn tcp6(src: u128, dst: u128, payload: &[u8]) -> Vec<u8> {
    let tcp = tcp_unsummed(1000, 80, 0x10, payload);
    let pseudo = pseudo6(src, dst, 6, tcp.len());
    ip6(src, dst, 6, 64, &summed(tcp, 16, pseudo))
}

/// An ICMP message: type, code, the next four bytes, and the rest.
pub fn icmp4(kind: u8, code: u8, rest: u32, payload: &[u8]) -> Vec<u8> {
    let message = [&[kind, code, 0, 0], &rest.to_be_bytes()[..], payload].concat();
    summed(message, 2, Sum::default())
}

/// An ICMPv6 message between two addresses.
pub fn icmp6(src: u128, dst: u128, kind: u8, rest: u32, payload: &[u8]) -> Vec<u8> {
    let message = [&[kind, 0, 0, 0], &rest.to_be_bytes()[..], payload].concat();
    let pseudo = pseudo6(src, dst, 58, message.len());
    summed(message, 2, pseudo)
}

/// An IPv4 echo request.
pub fn ping4(src: u32, dst: u32, payload: &[u8]) -> Vec<u8> {
    ip4(src, dst, 1, 64, &icmp4(8, 0, 0x0007_0001, payload))
}

/// An IPv6 echo request.
pub fn ping6(src: u128, dst: u128, payload: &[u8]) -> Vec<u8> {
    ip6(src, dst, 58, 64, &icmp6(src, dst, 128, 0x0007_0001, payload))
}

/// An ARP packet.
pub fn arp(operation: u16, sender: (Mac, u32), target: (Mac, u32)) -> Vec<u8> {
    let mut bytes = vec![0, 1, 8, 0, 6, 4];
    bytes.extend(operation.to_be_bytes());
    bytes.extend(sender.0.0);
    bytes.extend(sender.1.to_be_bytes());
    bytes.extend(target.0.0);
    bytes.extend(target.1.to_be_bytes());
    bytes
}

/// A neighbour solicitation (135) or advertisement (136) with one option (kind, MAC).
pub fn nd(
    src: u128,
    dst: u128,
    kind: u8,
    flags: u32,
    target: u128,
    option: Option<(u8, Mac)>,
) -> Vec<u8> {
    let mut payload = target.to_be_bytes().to_vec();
    if let Some((kind, mac)) = option {
        payload.extend([kind, 1]);
        payload.extend(mac.0);
    }
    ip6(src, dst, 58, 255, &icmp6(src, dst, kind, flags, &payload))
}

/// A VXLAN header and an inner frame.
pub fn vxlan(vni: u32, inner: &[u8]) -> Vec<u8> {
    [&[8, 0, 0, 0][..], &(vni << 8).to_be_bytes(), inner].concat()
}

/// A tunnelled frame over IPv4, as another node sends it.
pub fn tunnelled4(from: u32, vni: u32, inner: &[u8]) -> Vec<u8> {
    let udp = udp_unsummed(55_555, 4789, &vxlan(vni, inner));
    let packet = ip4(from, super::OWN_VTEP4.into(), 17, 64, &udp);
    ethernet(super::NODE_MAC, super::FABRIC_MAC, 0x0800, &packet)
}

/// A tunnelled frame over IPv6, as another node sends it.
pub fn tunnelled6(from: u128, vni: u32, inner: &[u8]) -> Vec<u8> {
    let to = super::OWN_VTEP6.into();
    let packet = udp6(from, to, (55_555, 4789), &vxlan(vni, inner));
    ethernet(super::NODE_MAC, super::FABRIC_MAC, 0x86dd, &packet)
}

/// Whether every length and checksum of a frame is right, inside tunnels as well. Says what is not.
pub fn check(frame: &[u8]) -> Result<(), String> {
    let payload = frame.get(14..).ok_or("no Ethernet header")?;
    match frame[12..14] {
        [0x08, 0x00] => check_ip(payload),
        [0x86, 0xdd] => check_ip(payload),
        _ => Ok(()),
    }
}

/// The same for a bare IP packet.
pub fn check_ip(packet: &[u8]) -> Result<(), String> {
    let fits = |ok: bool, what: &str| if ok { Ok(()) } else { Err(what.to_owned()) };
    let (protocol, l4, pseudo): (u8, &[u8], Sum) = match packet.first().map(|b| b >> 4) {
        Some(4) => {
            let header = usize::from(packet[0] & 15) * 4;
            fits(Sum::of(&packet[..header]).fold() == 0xffff, "IPv4 header checksum")?;
            let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
            fits(total == packet.len(), "IPv4 total length")?;
            let l4 = &packet[header..];
            if u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff != 0 {
                return Ok(());
            }
            let src = u32::from_be_bytes(packet[12..16].try_into().expect("four bytes"));
            let dst = u32::from_be_bytes(packet[16..20].try_into().expect("four bytes"));
            (packet[9], l4, pseudo4(src, dst, packet[9], l4.len()))
        }
        Some(6) => {
            let payload = usize::from(u16::from_be_bytes([packet[4], packet[5]]));
            fits(payload + 40 == packet.len(), "IPv6 payload length")?;
            let src = u128::from_be_bytes(packet[8..24].try_into().expect("sixteen bytes"));
            let dst = u128::from_be_bytes(packet[24..40].try_into().expect("sixteen bytes"));
            let l4 = &packet[40..];
            (packet[6], l4, pseudo6(src, dst, packet[6], l4.len()))
        }
        _ => return Err("IP version".to_owned()),
    };
    let full = Sum::of(l4);
    match protocol {
        1 => fits(full.fold() == 0xffff, "ICMP checksum"),
        6 | 58 => fits(pseudo.plus(full).fold() == 0xffff, "TCP or ICMPv6 checksum"),
        17 => {
            fits(usize::from(u16::from_be_bytes([l4[4], l4[5]])) == l4.len(), "UDP length")?;
            let none = l4[6..8] == [0, 0] && packet[0] >> 4 == 4;
            fits(none || pseudo.plus(full).fold() == 0xffff, "UDP checksum")?;
            if l4[2..4] == 4789u16.to_be_bytes() {
                fits(l4[8..12] == [8, 0, 0, 0] && l4[15] == 0, "VXLAN header")?;
                return check(&l4[16..]).map_err(|what| format!("inner {what}"));
            }
            Ok(())
        }
        _ => Ok(()),
    }
}
