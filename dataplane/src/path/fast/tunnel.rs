//! Out of a tunnel over IPv4, from a tunnel end that may send on the VNI, to a pod's interface.

use wire::{Ethernet, Header, Ipv4, Ipv6, Mac, Udp, Vxlan, ether_type, protocol};

use super::super::lookup::Route;
use super::super::{Checksum, HEADROOM_BYTES, Meta, Packet, Slot, decap, ingress, parse, rewrite};
use super::pod::is_plain;
use super::{PACKET, PACKET6, Routes, Usual, Usual6};
use crate::table::{HopKind, Iface, Tables, Vrf};

const UDP_AT: usize = Ethernet::BYTES + Ipv4::BYTES;
/// Where the inner IP header begins.
const INNER: usize = UDP_AT + Udp::BYTES + Vxlan::BYTES + Ethernet::BYTES;
const LOOKED_AT: usize = INNER + PACKET;
const LOOKED_AT6: usize = INNER + PACKET6;

/// See the module.
#[derive(Debug)]
pub struct FromTunnel<'a> {
    tables: &'a Tables,
    iface: &'a Iface,
    router_mac: Mac,
    vxlan_port: u16,
    /// The node's first tunnel end.
    vtep: u32,
    /// Who sent the packet before, on which VNI, and the VRF that it may reach by that.
    last: Option<(u32, u32, &'a Vrf)>,
    routes: Routes<'a, u32>,
    routes6: Routes<'a, u128>,
}

/// What the outer headers say.
struct Outer {
    src: u32,
    vni: u32,
    /// EtherType of the packet inside.
    inner: u16,
}

impl<'a> FromTunnel<'a> {
    #[inline]
    pub(super) fn new(tables: &'a Tables, iface: &'a Iface) -> Option<Self> {
        Some(Self {
            tables,
            iface,
            router_mac: tables.node.router_mac,
            vxlan_port: tables.node.vxlan_port,
            vtep: u32::from(*tables.node.vteps4.first()?),
            last: None,
            routes: Routes::new(tables),
            routes6: Routes::new(tables),
        })
    }

    /// Forwards a packet, if that is sure.
    #[inline(always)]
    pub(super) fn forward(
        &mut self,
        slot: &mut Slot,
        meta: &mut Meta,
        frame_bytes: u32,
    ) -> Option<()> {
        if !is_plain(meta, LOOKED_AT) {
            return None;
        }
        let head = slot.0[HEADROOM_BYTES..].first_chunk::<INNER>()?;
        let outer = self.outer(head, meta, frame_bytes)?;
        let vrf = self.vrf(&outer)?;
        match outer.inner {
            ether_type::IPV4 => self.ip4(slot, meta, vrf, frame_bytes),
            ether_type::IPV6 => self.ip6(slot, meta, vrf, frame_bytes),
            _ => None,
        }
    }

    #[inline(always)]
    fn ip4(&mut self, slot: &mut Slot, meta: &mut Meta, vrf: &Vrf, frame_bytes: u32) -> Option<()> {
        let inner = slot.0[HEADROOM_BYTES + INNER..].first_chunk()?;
        let ip = Usual::of(inner, frame_bytes - INNER as u32)?;
        if ip.ttl == 0 || ingress::is_martian_source4(ip.src) {
            return None;
        }
        let route = self.routes.lookup(vrf, ip.dst).filter(|route| takes(route, ip.bytes))?;
        self.note(meta, vrf, (4, ip.protocol), INNER + Ipv4::BYTES, route);
        meta.flow_hash = parse::flow4(ip.src, ip.dst, ip.ports, ip.protocol);
        rewrite::local(&mut Packet::new(slot, meta), route.1, false)
    }

    #[inline(always)]
    fn ip6(&mut self, slot: &mut Slot, meta: &mut Meta, vrf: &Vrf, frame_bytes: u32) -> Option<()> {
        if !is_plain(meta, LOOKED_AT6) {
            return None;
        }
        let inner = slot.0[HEADROOM_BYTES + INNER..].first_chunk()?;
        let ip = Usual6::of(inner, frame_bytes - INNER as u32)?;
        if ip.hop_limit == 0 || ingress::is_martian_source6(ip.src) {
            return None;
        }
        let route = self.routes6.lookup(vrf, ip.dst).filter(|route| takes(route, ip.bytes))?;
        self.note(meta, vrf, (6, ip.protocol), INNER + Ipv6::BYTES, route);
        meta.flow_hash = parse::flow6(ip.src, ip.dst, ip.ports, ip.protocol);
        rewrite::local(&mut Packet::new(slot, meta), route.1, false)
    }

    /// Notes what is the same for both families.
    #[inline(always)]
    fn note(
        &self,
        meta: &mut Meta,
        vrf: &Vrf,
        (ip_version, protocol): (u8, u8),
        l4: usize,
        (id, hop): Route<'_>,
    ) {
        meta.iface = self.iface.id;
        meta.vrf = vrf.id;
        meta.fragment_mtu = 0;
        meta.ip_version = ip_version;
        meta.protocol = protocol;
        meta.l3 = INNER as u16;
        meta.l4 = l4 as u16;
        // If it was verified, that was the outer one.
        meta.checksum = Checksum::Unknown;
        meta.next_hop = id;
        meta.out = hop.out;
    }

    /// Looks at the outer headers.
    #[inline(always)]
    fn outer(&self, head: &[u8; INNER], meta: &Meta, frame_bytes: u32) -> Option<Outer> {
        let (link, rest) = head.split_first_chunk::<{ Ethernet::BYTES }>()?;
        let (ip, rest) = rest.split_first_chunk::<{ Ipv4::BYTES }>()?;
        let (udp, rest) = rest.split_first_chunk::<{ Udp::BYTES }>()?;
        let (vxlan, inner) = rest.split_first_chunk::<{ Vxlan::BYTES }>()?;
        let (link, ip, udp) = (Ethernet::view(link)?, Ipv4::view(ip)?, Udp::view(udp)?);
        let inner = Ethernet::view(inner)?;
        let usual = link.dst == self.iface.mac
            && link.ether_type.get() == ether_type::IPV4
            && ip.version_ihl == 0x45
            && ip.protocol == protocol::UDP
            && !ip.is_fragment()
            && ip.dst.get() == self.vtep
            // ECT(1) and CE change the inner packet (RFC 6040 §4.2).
            && ip.tos & 1 == 0
            && u32::from(ip.total_len.get()) + Ethernet::BYTES as u32 == frame_bytes
            && udp.dst_port.get() == self.vxlan_port
            && u32::from(udp.len.get()) + UDP_AT as u32 == frame_bytes
            && (udp.checksum.get() == 0 || meta.checksum == Checksum::Verified)
            && inner.dst == self.router_mac
            && ip.verifies();
        let vni = Vxlan::view(vxlan)?.vni()?;
        usual.then(|| Outer { src: ip.src.get(), vni, inner: inner.ether_type.get() })
    }

    /// The VRF of the VNI, if the tunnel end may send on it.
    #[inline(always)]
    fn vrf(&mut self, outer: &Outer) -> Option<&'a Vrf> {
        if let Some((src, vni, vrf)) = self.last
            && src == outer.src
            && vni == outer.vni
        {
            return Some(vrf);
        }
        let vrf = self.tables.vrf(self.tables.vrf_of_vni(outer.vni)?)?;
        if !decap::may_send4(self.tables, vrf, outer.src) {
            return None;
        }
        self.last = Some((outer.src, outer.vni, vrf));
        Some(vrf)
    }
}

/// Whether a packet of so many bytes leaves by the route here: not out of one tunnel into another.
#[inline(always)]
fn takes((_, hop): &Route<'_>, ip_bytes: u32) -> bool {
    hop.kind == HopKind::Local && ip_bytes <= u32::from(hop.mtu_bytes)
}
