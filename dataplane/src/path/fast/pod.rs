//! From a pod: the source is the interface's first address, and the next hop whatever leads on.

use wire::{Ethernet, Header};

use super::super::lookup::Route;
use super::super::{Checksum, Gso, HEADROOM_BYTES, Meta, NoProbe, Packet, Slot, gateway, rewrite};
use super::pod4::Ip4;
use super::pod6::Ip6;
use super::run;
use crate::table::{HopKind, Iface, NextHop, NextHopId, Tables, Vrf};

/// See the module.
#[derive(Debug)]
pub struct FromPod<'a> {
    ip4: Option<Ip4<'a>>,
    ip6: Option<Ip6<'a>>,
}

impl<'a> FromPod<'a> {
    #[inline]
    pub(super) fn new(tables: &'a Tables, iface: &'a Iface) -> Option<Self> {
        let pod = Pod { iface, vrf: tables.vrf(iface.vrf)?, vxlan_port: tables.node.vxlan_port };
        Some(Self { ip4: Ip4::new(tables, pod), ip6: Ip6::new(tables, pod) })
    }

    /// See [`super::Fast::forward_run`]. Each family has a loop of its own; packets of both in turn go
    /// from one to the other.
    #[inline]
    pub(super) fn forward_run(&mut self, slots: &mut [Slot], metas: &mut [Meta]) -> (usize, u64) {
        let (mut count, mut bytes) = (0, 0);
        loop {
            let before = count;
            if let Some(ip4) = &mut self.ip4 {
                let done = run(&mut slots[count..], &mut metas[count..], |slot, meta, bytes| {
                    ip4.forward(slot, meta, bytes)
                });
                (count, bytes) = (count + done.0, bytes + done.1);
            }
            if let Some(ip6) = &mut self.ip6
                && count < slots.len()
            {
                let done = run(&mut slots[count..], &mut metas[count..], |slot, meta, bytes| {
                    ip6.forward(slot, meta, bytes)
                });
                (count, bytes) = (count + done.0, bytes + done.1);
            }
            if count == before || count == slots.len() {
                return (count, bytes);
            }
        }
    }
}

/// The sender.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pod<'a> {
    pub(super) iface: &'a Iface,
    pub(super) vrf: &'a Vrf,
    pub(super) vxlan_port: u16,
}

impl Pod<'_> {
    /// The one link header of packets of this IP version that the interface may have routed.
    pub(super) fn link(&self, ip_version: u8) -> LinkWords {
        let ether_type = rewrite::ether_type(ip_version);
        link_words(&gateway::link_header(self.vrf.gateway_mac, self.iface.mac, ether_type))
    }

    /// Notes what is the same for both families.
    #[inline(always)]
    pub(super) fn note(&self, meta: &mut Meta, ip_version: u8, protocol: u8, l4: usize) {
        meta.iface = self.iface.id;
        meta.vrf = self.vrf.id;
        meta.outer = 0;
        meta.fragment_mtu = 0;
        meta.ip_version = ip_version;
        meta.protocol = protocol;
        meta.l3 = Ethernet::BYTES as u16;
        meta.l4 = l4 as u16;
    }
}

/// A link header to compare: two words that overlap, in half the instructions that the bytes take.
pub(super) type LinkWords = (u64, u64);

#[inline(always)]
pub(super) fn link_words(header: &[u8; Ethernet::BYTES]) -> LinkWords {
    let word = |bytes: Option<&[u8; 8]>| bytes.map_or(0, |bytes| u64::from_ne_bytes(*bytes));
    (word(header.first_chunk()), word(header.last_chunk()))
}

/// Whether the frame is as its sender made it, with at least `looked_at` bytes in the head.
#[inline(always)]
pub(super) fn is_plain(meta: &Meta, looked_at: usize) -> bool {
    usize::from(meta.start) == HEADROOM_BYTES
        && usize::from(meta.end) >= HEADROOM_BYTES + looked_at
        && meta.gso == Gso::None
        && meta.checksum != Checksum::Partial
}

/// Sends the packet by the route, as [`rewrite::send`] does it. `LOOKED_AT` bytes are in the head.
#[inline(always)]
pub(super) fn send<const LOOKED_AT: usize>(
    slot: &mut Slot,
    meta: &mut Meta,
    (id, hop): Route<'_>,
    ip_bytes: u32,
) -> Option<()> {
    if hop.kind != HopKind::Local || usize::from(hop.rewrite_len) != Ethernet::BYTES {
        resize(&mut Packet::new(slot, meta), id, hop, ip_bytes);
        return Some(());
    }
    // The link header is as long as it was.
    meta.next_hop = id;
    meta.out = hop.out;
    let head = slot.0[HEADROOM_BYTES..].first_chunk_mut::<LOOKED_AT>()?;
    let (link, ip) = head.split_first_chunk_mut::<{ Ethernet::BYTES }>()?;
    *link = *hop.rewrite.first_chunk()?;
    [link[12], link[13]] = rewrite::ether_type(meta.ip_version);
    rewrite::age(ip, meta.ip_version, true)
}

/// Gives the packet headers of another length: those of a tunnel, or none.
#[inline(never)]
fn resize(packet: &mut Packet<'_>, id: NextHopId, hop: &NextHop, ip_bytes: u32) {
    rewrite::send(packet, id, hop, ip_bytes, true, &mut NoProbe);
}
