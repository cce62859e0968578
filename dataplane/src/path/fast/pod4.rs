//! IPv4 from a pod.

use wire::{Ethernet, Header, Ipv4};

use super::super::{HEADROOM_BYTES, Meta, Slot, parse};
use super::pod::{LinkWords, Pod, is_plain, link_words, send};
use super::{PACKET, Routes, Usual};
use crate::table::Tables;

const LOOKED_AT: usize = Ethernet::BYTES + PACKET;

/// See the module.
#[derive(Debug)]
pub(super) struct Ip4<'a> {
    pod: Pod<'a>,
    link: LinkWords,
    /// The interface's first address.
    source: u32,
    routes: Routes<'a, u32>,
}

impl<'a> Ip4<'a> {
    #[inline]
    pub(super) fn new(tables: &'a Tables, pod: Pod<'a>) -> Option<Self> {
        let source = *pod.iface.addrs4.first()?;
        Some(Self { pod, link: pod.link(4), source, routes: Routes::new(tables) })
    }

    /// Forwards a packet, if that is sure.
    #[inline(always)]
    pub(super) fn forward(
        &mut self,
        slot: &mut Slot,
        meta: &mut Meta,
        frame_bytes: u32,
    ) -> Option<()> {
        let head = slot.0[HEADROOM_BYTES..].first_chunk::<LOOKED_AT>()?;
        let ip = self.usual(head, meta, frame_bytes)?;
        let route = self.routes.lookup(self.pod.vrf, ip.dst)?;
        if ip.bytes > u32::from(route.1.mtu_bytes) {
            return None;
        }
        self.pod.note(meta, 4, ip.protocol, Ethernet::BYTES + Ipv4::BYTES);
        meta.flow_hash = parse::flow4(ip.src, ip.dst, ip.ports, ip.protocol);
        send::<LOOKED_AT>(slot, meta, route, ip.bytes)
    }

    /// Looks at the headers.
    #[inline(always)]
    fn usual(&self, head: &[u8; LOOKED_AT], meta: &Meta, frame_bytes: u32) -> Option<Usual> {
        let (link, packet) = head.split_first_chunk::<{ Ethernet::BYTES }>()?;
        if link_words(link) != self.link || !is_plain(meta, LOOKED_AT) {
            return None;
        }
        let ip = Usual::of(packet.first_chunk()?, frame_bytes - Ethernet::BYTES as u32)?;
        let may = ip.ttl > 1 && ip.src == self.source && ip.ports as u16 != self.pod.vxlan_port;
        may.then_some(ip)
    }
}
