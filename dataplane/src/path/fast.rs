//! The usual packet at one go: IPv4 with TCP or UDP in one piece, from a pod that may send it, to
//! another pod or into a tunnel.
//!
//! What is unusual in any way is left as it came, for [`super::forward`]: there are the rules and
//! their reasons, here is only how to see in a hundred instructions that none of them objects. Every
//! path test runs its frames through both and compares ([`super::testing::World`]).

use wire::{Ethernet, Header, Ipv4, Tcp, Udp, protocol};

use super::lookup::{NOWHERE, Route, leads_on, routable4};
use super::{Checksum, Gso, NoProbe, Packet, Verdict, gateway, parse, rewrite};
use crate::table::{Iface, IfaceKind, NextHopId, Tables, Vrf};

/// Link header, IP header without options, ports.
const LOOKED_AT: usize = Ethernet::BYTES + Ipv4::BYTES + PORTS;
const PORTS: usize = 4;
const L4: u16 = (Ethernet::BYTES + Ipv4::BYTES) as u16;

/// What the packets of a burst have in common, as they came in by one interface.
#[derive(Debug)]
pub struct Fast<'a> {
    tables: &'a Tables,
    iface: &'a Iface,
    vrf: &'a Vrf,
    vxlan_port: u16,
    /// The one link header of packets that the interface may have routed.
    link: [u8; Ethernet::BYTES],
    /// The interface's first address.
    source: u32,
    /// Where the packet before went: a burst often goes to few.
    last: (u32, Route<'a>),
}

/// What the headers of a usual packet say.
struct Usual {
    dst: u32,
    bytes: u16,
    protocol: u8,
    ports: u32,
}

impl<'a> Fast<'a> {
    /// For a burst from this interface, if it is one that usual packets come from.
    #[inline]
    pub fn new(tables: &'a Tables, iface: &'a Iface) -> Option<Self> {
        if !matches!(iface.kind, IfaceKind::Tap | IfaceKind::MemifEthernet) {
            return None;
        }
        let vrf = tables.vrf(iface.vrf)?;
        Some(Self {
            tables,
            iface,
            vrf,
            vxlan_port: tables.node.vxlan_port,
            link: gateway::link_header(vrf.gateway_mac, iface.mac, rewrite::ether_type(4)),
            source: *iface.addrs4.first()?,
            last: (0, (NextHopId::NONE, &NOWHERE)),
        })
    }

    /// What [`super::forward`] would do with a packet from this interface, and say; or `None`, and
    /// the packet is as it was.
    #[inline(always)]
    pub fn forward(&mut self, packet: &mut Packet<'_>) -> Option<Verdict> {
        let ip = self.usual(packet)?;
        let (id, hop) = self.lookup(ip.dst)?;
        if ip.bytes > hop.mtu_bytes {
            return None;
        }
        let meta = &mut *packet.meta;
        meta.iface = self.iface.id;
        meta.vrf = self.vrf.id;
        meta.outer = 0;
        meta.fragment_mtu = 0;
        meta.ip_version = 4;
        meta.protocol = ip.protocol;
        meta.l3 = Ethernet::BYTES as u16;
        meta.l4 = L4;
        meta.flow_hash = parse::flow4(self.source, ip.dst, ip.ports, ip.protocol);
        Some(rewrite::send(packet, id, hop, u32::from(ip.bytes), true, &mut NoProbe))
    }

    /// Looks at the headers.
    #[inline(always)]
    fn usual(&self, packet: &Packet<'_>) -> Option<Usual> {
        let head = packet.head().first_chunk::<LOOKED_AT>()?;
        let (link, rest) = head.split_first_chunk::<{ Ethernet::BYTES }>()?;
        let (ip, ports) = rest.split_first_chunk::<{ Ipv4::BYTES }>()?;
        let (ip, ports) = (Ipv4::view(ip)?, u32::from_be_bytes(*ports.first_chunk()?));
        let least = match ip.protocol {
            protocol::TCP => Ipv4::BYTES + Tcp::BYTES,
            protocol::UDP => Ipv4::BYTES + Udp::BYTES,
            _ => return None,
        };
        let bytes = usize::from(ip.total_len.get());
        let plain = packet.meta.gso == Gso::None && packet.meta.checksum != Checksum::Partial;
        let usual = *link == self.link
            && ip.version_ihl == 0x45
            && !ip.is_fragment()
            && ip.ttl > 1
            && ip.src.get() == self.source
            && bytes >= least
            && bytes + Ethernet::BYTES == packet.frame_bytes()
            && ports as u16 != self.vxlan_port
            && plain
            && ip.verifies();
        let (dst, bytes) = (ip.dst.get(), bytes as u16);
        usual.then_some(Usual { dst, bytes, protocol: ip.protocol, ports })
    }

    /// What leads to the address; `None` unless the packet leaves by it.
    #[inline(always)]
    fn lookup(&mut self, dst: u32) -> Option<Route<'a>> {
        if self.last.0 != dst {
            if !routable4(dst) {
                return None;
            }
            let id = self.tables.route4(self.vrf, dst);
            self.last = (dst, (id, self.tables.next_hop(id)?));
        }
        let (_, (id, hop)) = self.last;
        leads_on(hop).then_some((id, hop))
    }
}
