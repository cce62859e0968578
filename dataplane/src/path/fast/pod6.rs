//! IPv6 from a pod, without extension headers.

use wire::{Ethernet, Header, Ipv6};

use super::super::{HEADROOM_BYTES, Meta, Slot, parse};
use super::pod::{LinkWords, Pod, is_plain, link_words, send};
use super::{PACKET6, Routes, Usual6};
use crate::table::Tables;

const LOOKED_AT: usize = Ethernet::BYTES + PACKET6;

/// See the module.
#[derive(Debug)]
pub(super) struct Ip6<'a> {
    pod: Pod<'a>,
    link: LinkWords,
    /// The interface's first address.
    source: u128,
    routes: Routes<'a, u128>,
}

impl<'a> Ip6<'a> {
    #[inline]
    pub(super) fn new(tables: &'a Tables, pod: Pod<'a>) -> Option<Self> {
        let source = *pod.iface.addrs6.first()?;
        Some(Self { pod, link: pod.link(6), source, routes: Routes::new(tables) })
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
        self.pod.note(meta, 6, ip.protocol, Ethernet::BYTES + Ipv6::BYTES);
        meta.flow_hash = parse::flow6(self.source, ip.dst, ip.ports, ip.protocol);
        send::<LOOKED_AT>(slot, meta, route, ip.bytes)
    }

    /// Looks at the headers.
    #[inline(always)]
    fn usual(&self, head: &[u8; LOOKED_AT], meta: &Meta, frame_bytes: u32) -> Option<Usual6> {
        let (link, packet) = head.split_first_chunk::<{ Ethernet::BYTES }>()?;
        if link_words(link) != self.link || !is_plain(meta, LOOKED_AT) {
            return None;
        }
        let ip = Usual6::of(packet.first_chunk()?, frame_bytes - Ethernet::BYTES as u32)?;
        let may =
            ip.hop_limit > 1 && ip.src == self.source && ip.ports as u16 != self.pod.vxlan_port;
        may.then_some(ip)
    }
}
