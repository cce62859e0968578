//! Who the generator is on its network: answers ARP, neighbour solicitations and echo requests,
//! reflects UDP when told to, resolves its neighbours and asks for echoes itself.
//!
//! It is the least of a host that a tap pod can ping and that a gateway can resolve. Frames are
//! built in one scratch buffer; nothing is remembered but the neighbours' MACs.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use wire::checksum::Sum;
use wire::{
    Arp, Ethernet, Header, Icmp4, Icmp6, Ipv4, Ipv6, Mac, NdMessage, NdOption, NdOptions, Udp,
    ether_type, link_local_of, protocol, solicited_node_of,
};

/// An address with its prefix, as in `10.0.0.5/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    /// The host's own address.
    pub address: IpAddr,
    /// Length of the prefix.
    pub prefix: u8,
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not ADDRESS/PREFIX, such as 10.0.0.5/24 or fd00::5/64");
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
        let max = if address.is_ipv4() { 32 } else { 128 };
        if prefix > max {
            return Err(wrong());
        }
        Ok(Self { address, prefix })
    }
}

impl Cidr {
    fn contains(self, other: IpAddr) -> bool {
        match (self.address, other) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                let shift = 32 - u32::from(self.prefix);
                (a.to_bits() ^ b.to_bits()).checked_shr(shift).unwrap_or(0) == 0
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                let shift = 128 - u32::from(self.prefix);
                (a.to_bits() ^ b.to_bits()).checked_shr(shift).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

/// Reads a MAC as people write it.
///
/// # Errors
/// The text is not six hexadecimal bytes with colons between them.
pub fn parse_mac(text: &str) -> Result<Mac, String> {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|part| {
            let hex = part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
            u8::from_str_radix(part, 16).ok().filter(|_| hex)
        })
        .collect();
    bytes
        .and_then(|b| Mac::from_slice(&b))
        .ok_or_else(|| format!("`{text}` is not a MAC address, such as 02:00:00:00:00:05"))
}

/// An echo reply that came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pong {
    /// Who answered.
    pub from: IpAddr,
    /// Identifier of the request.
    pub id: u16,
    /// Number of the request.
    pub seq: u16,
    /// Bytes of the frame.
    pub frame_bytes: usize,
}

/// A host at the end of a memif.
#[derive(Debug)]
pub struct Host {
    mac: Option<Mac>,
    addresses: Vec<Cidr>,
    gateways: Vec<IpAddr>,
    reflect: bool,
    neighbours: HashMap<IpAddr, Mac>,
    pongs: Vec<Pong>,
    out: Vec<u8>,
}

/// What a frame carries and between whom, with the replies' headers in mind.
struct Incoming<'a> {
    frame: &'a [u8],
    l3: usize,
    l4: usize,
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
}

impl Host {
    /// A host with this MAC (`None` in IP mode), these addresses and gateways.
    #[must_use]
    pub fn new(mac: Option<Mac>, addresses: Vec<Cidr>, gateways: Vec<IpAddr>) -> Self {
        Self {
            mac,
            addresses,
            gateways,
            reflect: false,
            neighbours: HashMap::new(),
            pongs: Vec::new(),
            out: Vec::with_capacity(65_536),
        }
    }

    /// Whether UDP that is not recognised is sent back to its sender.
    pub fn set_reflect(&mut self, reflect: bool) {
        self.reflect = reflect;
    }

    /// Where the IP header of a frame begins.
    #[inline]
    #[must_use]
    pub fn l3(&self) -> usize {
        if self.mac.is_some() { Ethernet::BYTES } else { 0 }
    }

    /// Its MAC.
    #[must_use]
    pub fn mac(&self) -> Option<Mac> {
        self.mac
    }

    /// Its address of the family of `other`.
    #[must_use]
    pub fn address_for(&self, other: IpAddr) -> Option<IpAddr> {
        let found = self.addresses.iter().find(|c| c.address.is_ipv4() == other.is_ipv4());
        found.map(|c| c.address)
    }

    /// The MAC of the next hop towards `dst`, once it is known.
    #[must_use]
    pub fn resolved(&self, dst: IpAddr) -> Option<Mac> {
        self.neighbours.get(&self.next_hop(dst)).copied()
    }

    /// Notes a neighbour without asking.
    pub fn set_neighbour(&mut self, dst: IpAddr, mac: Mac) {
        self.neighbours.insert(self.next_hop(dst), mac);
    }

    /// Forgets all neighbours.
    pub fn forget_neighbours(&mut self) {
        self.neighbours.clear();
    }

    /// The echo replies that came in since the last call.
    pub fn take_pongs(&mut self) -> Vec<Pong> {
        std::mem::take(&mut self.pongs)
    }

    fn next_hop(&self, dst: IpAddr) -> IpAddr {
        if self.addresses.iter().any(|c| c.contains(dst)) {
            return dst;
        }
        self.gateways.iter().copied().find(|g| g.is_ipv4() == dst.is_ipv4()).unwrap_or(dst)
    }

    fn owns(&self, address: IpAddr) -> bool {
        let link_local = self.mac.map(|m| IpAddr::V6(Ipv6Addr::from_bits(link_local_of(m))));
        link_local == Some(address) || self.addresses.iter().any(|c| c.address == address)
    }

    /// Looks at a frame that is not a generator's; the answer is a frame to send.
    pub fn handle(&mut self, frame: &[u8]) -> Option<&[u8]> {
        let l3 = self.l3();
        if self.mac.is_some() && Ethernet::view(frame)?.ether_type.get() == ether_type::ARP {
            return self.handle_arp(frame);
        }
        let packet = frame.get(l3..)?;
        let incoming = match packet.first()? >> 4 {
            4 => {
                let ip = Ipv4::view(packet)?;
                Incoming {
                    frame: frame.get(..l3 + usize::from(ip.total_len.get()))?,
                    l3,
                    l4: l3 + ip.header_bytes(),
                    src: IpAddr::V4(Ipv4Addr::from_bits(ip.src.get())),
                    dst: IpAddr::V4(Ipv4Addr::from_bits(ip.dst.get())),
                    protocol: if ip.is_fragment() { protocol::NONE } else { ip.protocol },
                }
            }
            6 => {
                let ip = Ipv6::view(packet)?;
                Incoming {
                    frame: frame.get(..l3 + Ipv6::BYTES + usize::from(ip.payload_len.get()))?,
                    l3,
                    l4: l3 + Ipv6::BYTES,
                    src: IpAddr::V6(Ipv6Addr::from_bits(ip.src.get())),
                    dst: IpAddr::V6(Ipv6Addr::from_bits(ip.dst.get())),
                    protocol: ip.next_header,
                }
            }
            _ => return None,
        };
        match incoming.protocol {
            protocol::ICMP4 => self.handle_icmp4(&incoming),
            protocol::ICMP6 => self.handle_icmp6(&incoming),
            protocol::UDP if self.reflect => self.handle_udp(&incoming),
            _ => None,
        }
    }

    fn handle_arp(&mut self, frame: &[u8]) -> Option<&[u8]> {
        let arp = Arp::at(frame, Ethernet::BYTES).filter(|a| a.is_valid())?;
        let sender = IpAddr::V4(Ipv4Addr::from_bits(arp.sender_ip.get()));
        let target = IpAddr::V4(Ipv4Addr::from_bits(arp.target_ip.get()));
        if arp.operation.get() == Arp::REPLY {
            self.neighbours.insert(sender, arp.sender_mac);
            return None;
        }
        if !self.owns(target) {
            return None;
        }
        let mac = self.mac?;
        let answer = Arp {
            operation: Arp::REPLY.into(),
            sender_mac: mac,
            sender_ip: arp.target_ip,
            target_mac: arp.sender_mac,
            target_ip: arp.sender_ip,
            ..*arp
        };
        self.begin(arp.sender_mac, ether_type::ARP);
        Some(self.finish(answer))
    }

    fn handle_icmp4(&mut self, p: &Incoming<'_>) -> Option<&[u8]> {
        let icmp = Icmp4::at(p.frame, p.l4)?;
        match icmp.kind {
            Icmp4::ECHO_REPLY => {
                self.note_pong(p, icmp.rest.get());
                None
            }
            Icmp4::ECHO_REQUEST if self.owns(p.dst) => {
                self.swap_ends(p);
                let icmp = Icmp4::at_mut(&mut self.out, p.l4)?;
                icmp.kind = Icmp4::ECHO_REPLY;
                icmp.checksum.set(0);
                let sum = Sum::of(&self.out[p.l4..]).complement();
                Icmp4::at_mut(&mut self.out, p.l4)?.checksum.set(sum);
                Some(&self.out)
            }
            _ => None,
        }
    }

    fn handle_icmp6(&mut self, p: &Incoming<'_>) -> Option<&[u8]> {
        let icmp = Icmp6::at(p.frame, p.l4)?;
        match icmp.kind {
            Icmp6::ECHO_REPLY => {
                self.note_pong(p, icmp.rest.get());
                None
            }
            Icmp6::ECHO_REQUEST if self.owns(p.dst) => {
                self.swap_ends(p);
                Icmp6::at_mut(&mut self.out, p.l4)?.kind = Icmp6::ECHO_REPLY;
                fill_icmp6(&mut self.out, p.l3, p.l4);
                Some(&self.out)
            }
            Icmp6::NEIGHBOUR_SOLICITATION => self.handle_solicitation(p),
            Icmp6::NEIGHBOUR_ADVERTISEMENT => {
                let nd = NdMessage::at(p.frame, p.l4)?;
                let target = IpAddr::V6(Ipv6Addr::from_bits(nd.target.get()));
                let options = NdOptions::new(p.frame.get(p.l4 + NdMessage::BYTES..)?);
                let mac = options.mac(NdOption::TARGET_MAC);
                let mac = mac.or_else(|| Some(Ethernet::view(p.frame)?.src))?;
                self.neighbours.insert(target, mac);
                None
            }
            _ => None,
        }
    }

    fn handle_solicitation(&mut self, p: &Incoming<'_>) -> Option<&[u8]> {
        let mac = self.mac?;
        let target = NdMessage::at(p.frame, p.l4)?.target;
        let asked = Ipv6Addr::from_bits(target.get());
        let IpAddr::V6(asker) = p.src else { return None };
        if !self.owns(IpAddr::V6(asked)) || asker.is_unspecified() {
            return None;
        }
        let back = Ethernet::view(p.frame)?.src;
        let flags = NdMessage::SOLICITED | NdMessage::OVERRIDE;
        self.begin(back, ether_type::IPV6);
        self.push_nd(
            Icmp6::NEIGHBOUR_ADVERTISEMENT,
            flags,
            asked,
            (asked, asker),
            NdOption::TARGET_MAC,
            mac,
        );
        Some(&self.out)
    }

    fn handle_udp(&mut self, p: &Incoming<'_>) -> Option<&[u8]> {
        if !self.owns(p.dst) {
            return None;
        }
        self.swap_ends(p);
        // Swapped ports and addresses add up to the same checksum.
        let udp = Udp::at_mut(&mut self.out, p.l4)?;
        std::mem::swap(&mut udp.src_port, &mut udp.dst_port);
        Some(&self.out)
    }

    fn note_pong(&mut self, p: &Incoming<'_>, rest: u32) {
        let (id, seq) = ((rest >> 16) as u16, rest as u16);
        self.pongs.push(Pong { from: p.src, id, seq, frame_bytes: p.frame.len() });
    }

    /// Copies the frame with MACs and addresses swapped and a fresh TTL.
    fn swap_ends(&mut self, p: &Incoming<'_>) {
        self.out.clear();
        self.out.extend_from_slice(p.frame);
        if let Some(mac) = self.mac
            && let Some(eth) = Ethernet::view_mut(&mut self.out)
        {
            (eth.dst, eth.src) = (eth.src, mac);
        }
        if p.src.is_ipv4() {
            if let Some(ip) = Ipv4::at_mut(&mut self.out, p.l3) {
                std::mem::swap(&mut ip.src, &mut ip.dst);
                ip.ttl = 64;
            }
            Ipv4::fill_checksum(&mut self.out[p.l3..]);
        } else if let Some(ip) = Ipv6::at_mut(&mut self.out, p.l3) {
            std::mem::swap(&mut ip.src, &mut ip.dst);
            ip.hop_limit = 64;
        }
    }

    fn begin(&mut self, dst: Mac, kind: u16) {
        self.out.clear();
        if let Some(src) = self.mac {
            self.push(Ethernet { dst, src, ether_type: kind.into() });
        }
    }

    #[expect(clippy::needless_pass_by_value, reason = "headers are built where they are pushed")]
    fn push<H: Header>(&mut self, header: H) {
        self.out.extend_from_slice(header.as_bytes());
    }

    fn finish<H: Header>(&mut self, header: H) -> &[u8] {
        self.push(header);
        &self.out
    }

    /// A question for the next hop's MAC; `None` where there is nothing to ask (IP mode, known, or
    /// no address of the family).
    pub fn solicit(&mut self, dst: IpAddr) -> Option<&[u8]> {
        let mac = self.mac?;
        let hop = self.next_hop(dst);
        if self.neighbours.contains_key(&hop) {
            return None;
        }
        match (hop, self.address_for(hop)?) {
            (IpAddr::V4(hop), IpAddr::V4(own)) => {
                self.begin(Mac::BROADCAST, ether_type::ARP);
                Some(self.finish(Arp {
                    hardware: 1.into(),
                    protocol: ether_type::IPV4.into(),
                    hardware_bytes: 6,
                    protocol_bytes: 4,
                    operation: Arp::REQUEST.into(),
                    sender_mac: mac,
                    sender_ip: own.to_bits().into(),
                    target_mac: Mac::default(),
                    target_ip: hop.to_bits().into(),
                }))
            }
            (IpAddr::V6(hop), IpAddr::V6(own)) => {
                let group = solicited_node_of(hop.to_bits());
                let [.., a, b, c, d] = group.to_be_bytes();
                self.begin(Mac([0x33, 0x33, a, b, c, d]), ether_type::IPV6);
                let ends = (own, Ipv6Addr::from_bits(group));
                let kind = Icmp6::NEIGHBOUR_SOLICITATION;
                self.push_nd(kind, 0, hop, ends, NdOption::SOURCE_MAC, mac);
                Some(&self.out)
            }
            _ => None,
        }
    }

    fn push_nd(
        &mut self,
        kind: u8,
        flags: u32,
        target: Ipv6Addr,
        (src, dst): (Ipv6Addr, Ipv6Addr),
        option: u8,
        mac: Mac,
    ) {
        let l3 = self.out.len();
        self.push_ipv6(src, dst, protocol::ICMP6, NdMessage::BYTES + NdOption::BYTES, 255);
        let icmp = Icmp6 { kind, code: 0, checksum: 0.into(), rest: flags.into() };
        self.push(NdMessage { icmp, target: target.to_bits().into() });
        self.push(NdOption { kind: option, units: 1, mac });
        fill_icmp6(&mut self.out, l3, l3 + Ipv6::BYTES);
    }

    fn push_ipv6(&mut self, src: Ipv6Addr, dst: Ipv6Addr, next: u8, bytes: usize, hop_limit: u8) {
        self.push(Ipv6 {
            version_class_flow: (6u32 << 28).into(),
            payload_len: (bytes as u16).into(),
            next_header: next,
            hop_limit,
            src: src.to_bits().into(),
            dst: dst.to_bits().into(),
        });
    }

    /// An echo request of `payload_bytes`, once the next hop is resolved.
    pub fn echo_request(
        &mut self,
        dst: IpAddr,
        id: u16,
        seq: u16,
        payload_bytes: usize,
    ) -> Option<&[u8]> {
        let hop_mac = if self.mac.is_some() { self.resolved(dst)? } else { Mac::default() };
        let rest = (u32::from(id) << 16 | u32::from(seq)).into();
        let l3 = self.l3();
        match (self.address_for(dst)?, dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                self.begin(hop_mac, ether_type::IPV4);
                self.push_ipv4(src, dst, Icmp4::BYTES + payload_bytes);
                let kind = Icmp4::ECHO_REQUEST;
                self.push(Icmp4 { kind, code: 0, checksum: 0.into(), rest });
                self.push_pattern(payload_bytes);
                let l4 = l3 + Ipv4::BYTES;
                let sum = Sum::of(&self.out[l4..]).complement();
                Icmp4::at_mut(&mut self.out, l4)?.checksum.set(sum);
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                self.begin(hop_mac, ether_type::IPV6);
                self.push_ipv6(src, dst, protocol::ICMP6, Icmp6::BYTES + payload_bytes, 64);
                let kind = Icmp6::ECHO_REQUEST;
                self.push(Icmp6 { kind, code: 0, checksum: 0.into(), rest });
                self.push_pattern(payload_bytes);
                fill_icmp6(&mut self.out, l3, l3 + Ipv6::BYTES);
            }
            _ => return None,
        }
        Some(&self.out)
    }

    fn push_ipv4(&mut self, src: Ipv4Addr, dst: Ipv4Addr, bytes: usize) {
        let at = self.out.len();
        self.push(Ipv4 {
            version_ihl: 0x45,
            tos: 0,
            total_len: ((Ipv4::BYTES + bytes) as u16).into(),
            id: 0.into(),
            flags_offset: Ipv4::DF.into(),
            ttl: 64,
            protocol: protocol::ICMP4,
            checksum: 0.into(),
            src: src.to_bits().into(),
            dst: dst.to_bits().into(),
        });
        Ipv4::fill_checksum(&mut self.out[at..]);
    }

    fn push_pattern(&mut self, bytes: usize) {
        self.out.extend((0..bytes).map(|i| i as u8));
    }
}

/// Computes ICMPv6's checksum over the packet that ends the buffer.
fn fill_icmp6(out: &mut [u8], l3: usize, l4: usize) {
    let bytes = out.len() - l4;
    if let Some(icmp) = Icmp6::at_mut(out, l4) {
        icmp.checksum.set(0);
    }
    let pseudo = Ipv6::at(out, l3).map(|ip| ip.pseudo(protocol::ICMP6, bytes)).unwrap_or_default();
    let sum = pseudo.plus(Sum::of(&out[l4..])).complement();
    if let Some(icmp) = Icmp6::at_mut(out, l4) {
        icmp.checksum.set(sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(n: u8, ethernet: bool) -> Host {
        let addresses = vec![
            format!("10.0.0.{n}/24").parse().unwrap(),
            format!("fd00::{n}/64").parse().unwrap(),
        ];
        let gateways = vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        Host::new(ethernet.then_some(Mac([2, 0, 0, 0, 0, n])), addresses, gateways)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// Two hosts resolve and ping each other, in both families and modes.
    #[test]
    fn hosts_find_and_answer_each_other() {
        for (ethernet, dst) in [(true, "10.0.0.9"), (true, "fd00::9"), (false, "10.0.0.9")] {
            let (mut a, mut b) = (host(5, ethernet), host(9, ethernet));
            let dst = ip(dst);
            if ethernet {
                assert!(a.echo_request(dst, 1, 1, 56).is_none(), "not resolved yet");
                let question = a.solicit(dst).unwrap().to_vec();
                let answer = b.handle(&question).unwrap().to_vec();
                assert!(a.handle(&answer).is_none());
                assert_eq!(a.resolved(dst), b.mac());
            }
            let request = a.echo_request(dst, 77, 3, 57).unwrap().to_vec();
            let reply = b.handle(&request).unwrap().to_vec();
            assert!(a.handle(&reply).is_none());
            let pong = Pong { from: dst, id: 77, seq: 3, frame_bytes: request.len() };
            assert_eq!(a.take_pongs(), [pong]);
        }
    }

    #[test]
    fn checksums_of_answers_are_right() {
        let (mut a, mut b) = (host(5, false), host(9, false));
        let request = a.echo_request(ip("10.0.0.9"), 77, 3, 57).unwrap().to_vec();
        let reply = b.handle(&request).unwrap();
        assert_eq!(Ipv4::view(reply).unwrap().sum().fold(), 0xffff);
        assert_eq!(Sum::of(&reply[20..]).fold(), 0xffff);
        let request = a.echo_request(ip("fd00::9"), 77, 3, 57).unwrap().to_vec();
        let reply = b.handle(&request).unwrap();
        let pseudo = Ipv6::view(reply).unwrap().pseudo(protocol::ICMP6, reply.len() - 40);
        assert_eq!(pseudo.plus(Sum::of(&reply[40..])).fold(), 0xffff);
    }

    #[test]
    fn strangers_get_no_answer() {
        let (mut a, mut b) = (host(5, true), host(9, true));
        let question = a.solicit(ip("10.0.0.8")).unwrap().to_vec();
        assert!(b.handle(&question).is_none());
        let question = a.solicit(ip("fd00::8")).unwrap().to_vec();
        assert!(b.handle(&question).is_none());
        for len in 0..60 {
            assert!(b.handle(&vec![0x46; len]).is_none());
        }
    }

    #[test]
    fn what_is_not_on_the_link_goes_to_the_gateway() {
        let mut a = host(5, true);
        a.set_neighbour(ip("192.0.2.1"), Mac([2, 9, 9, 9, 9, 9]));
        assert_eq!(a.resolved(ip("10.0.0.1")), Some(Mac([2, 9, 9, 9, 9, 9])));
        assert_eq!(a.resolved(ip("10.0.0.2")), None);
    }

    #[test]
    fn texts_are_read() {
        assert_eq!(parse_mac("02:b0:00:00:00:0a"), Ok(Mac([2, 0xb0, 0, 0, 0, 10])));
        assert!(parse_mac("02:b0:00:00:00").is_err());
        assert!(parse_mac("02:b0:00:00:00:+1").is_err());
        assert!("10.0.0.1/33".parse::<Cidr>().is_err());
        assert!("10.0.0.1".parse::<Cidr>().is_err());
        let all: Cidr = "10.0.0.1/0".parse().unwrap();
        assert!(all.contains(ip("192.0.2.1")));
    }
}
