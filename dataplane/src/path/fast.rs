//! The usual packet at one go: IPv4 with TCP or UDP in one piece, from a pod that may send it, to
//! another pod or into a tunnel.
//!
//! What is unusual in any way is left as it came, for [`super::forward`]: there are the rules and
//! their reasons, here is only how to see in a hundred instructions that none of them objects. Every
//! path test runs its frames through both and compares ([`super::testing::World`]).

use wire::{Ethernet, Header, Ipv4, Tcp, Udp, protocol};

use super::lookup::{Route, routable4};
use super::{Checksum, Gso, HEADROOM_BYTES, Meta, NoProbe, Packet, Slot, gateway, parse, rewrite};
use crate::table::{HopKind, Iface, IfaceKind, NextHop, NextHopId, Tables, Vrf};

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
    last: Option<(u32, Route<'a>)>,
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
            last: None,
        })
    }

    /// Does with packets from this interface, as they came, what [`super::forward`] would: forwards
    /// them, up to the first with which that is not sure. That one is as it was. Returns how many
    /// are forwarded, and their bytes as they came. A function of its own, so that what the loop
    /// needs stays in registers.
    #[inline(never)]
    pub fn forward_run(&mut self, slots: &mut [Slot], metas: &mut [Meta]) -> (usize, u64) {
        let (mut count, mut bytes) = (0, 0);
        for (slot, meta) in slots.iter_mut().zip(metas) {
            let Some(ip_bytes) = self.forward(slot, meta) else { break };
            count += 1;
            bytes += u64::from(ip_bytes) + Ethernet::BYTES as u64;
        }
        (count, bytes)
    }

    /// Forwards a packet, if that is sure. Returns the bytes of its IP packet.
    #[inline(always)]
    fn forward(&mut self, slot: &mut Slot, meta: &mut Meta) -> Option<u16> {
        let head = slot.0[HEADROOM_BYTES..].first_chunk_mut::<LOOKED_AT>()?;
        let ip = self.usual(head, meta)?;
        let (id, hop) = self.lookup(ip.dst)?;
        if ip.bytes > hop.mtu_bytes {
            return None;
        }
        meta.iface = self.iface.id;
        meta.vrf = self.vrf.id;
        meta.outer = 0;
        meta.fragment_mtu = 0;
        meta.ip_version = 4;
        meta.protocol = ip.protocol;
        meta.l3 = Ethernet::BYTES as u16;
        meta.l4 = L4;
        meta.flow_hash = parse::flow4(self.source, ip.dst, ip.ports, ip.protocol);
        if hop.kind == HopKind::Local && usize::from(hop.rewrite_len) == Ethernet::BYTES {
            // As `rewrite::send` does it where the link header is as long as it was.
            meta.next_hop = id;
            meta.out = hop.out;
            let (link, ip) = head.split_first_chunk_mut::<{ Ethernet::BYTES }>()?;
            *link = *hop.rewrite.first_chunk()?;
            [link[12], link[13]] = rewrite::ether_type(4);
            rewrite::age(ip, 4, true)?;
        } else {
            resize(&mut Packet::new(slot, meta), id, hop, ip.bytes);
        }
        Some(ip.bytes)
    }

    /// Looks at the headers.
    #[inline(always)]
    fn usual(&self, head: &[u8; LOOKED_AT], meta: &Meta) -> Option<Usual> {
        let (link, rest) = head.split_first_chunk::<{ Ethernet::BYTES }>()?;
        let (ip, ports) = rest.split_first_chunk::<{ Ipv4::BYTES }>()?;
        let (ip, ports) = (Ipv4::view(ip)?, u32::from_be_bytes(*ports.first_chunk()?));
        let least = match ip.protocol {
            protocol::TCP => Ipv4::BYTES + Tcp::BYTES,
            protocol::UDP => Ipv4::BYTES + Udp::BYTES,
            _ => return None,
        } as u32;
        let bytes = u32::from(ip.total_len.get());
        let plain = meta.gso == Gso::None && meta.checksum != Checksum::Partial;
        let usual = *link == self.link
            && ip.version_ihl == 0x45
            && !ip.is_fragment()
            && ip.ttl > 1
            && ip.src.get() == self.source
            && bytes >= least
            && usize::from(meta.start) == HEADROOM_BYTES
            && usize::from(meta.end) >= HEADROOM_BYTES + LOOKED_AT
            && bytes + Ethernet::BYTES as u32 == meta.frame_bytes()
            && ports as u16 != self.vxlan_port
            && plain
            && ip.verifies();
        let (dst, bytes) = (ip.dst.get(), bytes as u16);
        usual.then_some(Usual { dst, bytes, protocol: ip.protocol, ports })
    }

    /// What leads to the address; `None` unless the packet leaves by it.
    #[inline(always)]
    fn lookup(&mut self, dst: u32) -> Option<Route<'a>> {
        if let Some((last, route)) = self.last
            && last == dst
        {
            return Some(route);
        }
        if !routable4(dst) {
            return None;
        }
        let id = self.tables.route4(self.vrf, dst);
        let hop = self.tables.next_hop(id).filter(|hop| rewrite::is_ready(hop))?;
        self.last = Some((dst, (id, hop)));
        Some((id, hop))
    }
}

/// Gives the packet headers of another length: those of a tunnel, or none.
#[inline(never)]
fn resize(packet: &mut Packet<'_>, id: NextHopId, hop: &NextHop, ip_bytes: u16) {
    rewrite::send(packet, id, hop, u32::from(ip_bytes), true, &mut NoProbe);
}
