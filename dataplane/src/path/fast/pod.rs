//! From a pod: the source is the interface's first address, and the next hop whatever leads on.

use wire::{Ethernet, Header, Ipv4};

use super::super::{
    Checksum, Gso, HEADROOM_BYTES, Meta, NoProbe, Packet, Slot, gateway, parse, rewrite,
};
use super::{PACKET, Routes, Usual};
use crate::table::{HopKind, Iface, NextHop, NextHopId, Tables, Vrf};

const LOOKED_AT: usize = Ethernet::BYTES + PACKET;
const L4: u16 = (Ethernet::BYTES + Ipv4::BYTES) as u16;

/// See the module.
#[derive(Debug)]
pub struct FromPod<'a> {
    iface: &'a Iface,
    vrf: &'a Vrf,
    vxlan_port: u16,
    /// The one link header of packets that the interface may have routed.
    link: [u8; Ethernet::BYTES],
    /// The interface's first address.
    source: u32,
    routes: Routes<'a>,
}

impl<'a> FromPod<'a> {
    #[inline]
    pub(super) fn new(tables: &'a Tables, iface: &'a Iface) -> Option<Self> {
        let vrf = tables.vrf(iface.vrf)?;
        Some(Self {
            iface,
            vrf,
            vxlan_port: tables.node.vxlan_port,
            link: gateway::link_header(vrf.gateway_mac, iface.mac, rewrite::ether_type(4)),
            source: *iface.addrs4.first()?,
            routes: Routes { tables, last: None },
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
        let head = slot.0[HEADROOM_BYTES..].first_chunk_mut::<LOOKED_AT>()?;
        let ip = self.usual(head, meta, frame_bytes)?;
        let (id, hop) = self.routes.lookup(self.vrf, ip.dst)?;
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
        meta.flow_hash = parse::flow4(ip.src, ip.dst, ip.ports, ip.protocol);
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
        Some(())
    }

    /// Looks at the headers.
    #[inline(always)]
    fn usual(&self, head: &[u8; LOOKED_AT], meta: &Meta, frame_bytes: u32) -> Option<Usual> {
        let (link, packet) = head.split_first_chunk::<{ Ethernet::BYTES }>()?;
        let usual = *link == self.link
            && usize::from(meta.start) == HEADROOM_BYTES
            && usize::from(meta.end) >= HEADROOM_BYTES + LOOKED_AT
            && meta.gso == Gso::None
            && meta.checksum != Checksum::Partial;
        if !usual {
            return None;
        }
        let ip = Usual::of(packet.first_chunk()?, frame_bytes - Ethernet::BYTES as u32)?;
        let may = ip.ttl > 1 && ip.src == self.source && ip.ports as u16 != self.vxlan_port;
        may.then_some(ip)
    }
}

/// Gives the packet headers of another length: those of a tunnel, or none.
#[inline(never)]
fn resize(packet: &mut Packet<'_>, id: NextHopId, hop: &NextHop, ip_bytes: u16) {
    rewrite::send(packet, id, hop, u32::from(ip_bytes), true, &mut NoProbe);
}
