//! The usual packet at one go: TCP or UDP in one piece over IPv4 or IPv6, from a pod that may send it to
//! another pod or into a tunnel, or out of a tunnel over IPv4 to a pod.
//!
//! What is unusual in any way is left as it came, for [`super::forward`]: there are the rules and
//! their reasons, here is only how to see in a hundred instructions that none of them objects. Every
//! path test runs its frames through both and compares ([`super::testing::World`]).

mod pod;
mod pod4;
mod pod6;
mod tunnel;

use wire::{Header, Ipv4, Ipv6, protocol};

use super::lookup::{Route, routable4, routable6};
use super::{Meta, Slot, parse, rewrite};
use crate::table::{Iface, IfaceKind, NextHopId, Tables, Vrf, VrfId};
use pod::FromPod;
use tunnel::FromTunnel;

/// What the packets of a burst have in common, as they came in by one interface.
#[derive(Debug)]
pub enum Fast<'a> {
    /// They come from a pod.
    Pod(FromPod<'a>),
    /// They come from an uplink, and those out of a tunnel are usual.
    Tunnel(FromTunnel<'a>),
}

impl<'a> Fast<'a> {
    /// For a burst from this interface, if it is one that usual packets come from.
    #[inline]
    pub fn new(tables: &'a Tables, iface: &'a Iface) -> Option<Self> {
        match iface.kind {
            IfaceKind::Tap | IfaceKind::MemifEthernet => FromPod::new(tables, iface).map(Self::Pod),
            IfaceKind::Uplink => FromTunnel::new(tables, iface).map(Self::Tunnel),
            IfaceKind::MemifIp | IfaceKind::HostTap => None,
        }
    }

    /// Does with packets from this interface, as they came, what [`super::forward`] would: forwards
    /// them, up to the first with which that is not sure. That one is as it was. Returns how many
    /// are forwarded, and their bytes as they came.
    #[inline]
    pub fn forward_run(&mut self, slots: &mut [Slot], metas: &mut [Meta]) -> (usize, u64) {
        match self {
            Self::Pod(fast) => fast.forward_run(slots, metas),
            Self::Tunnel(fast) => {
                run(slots, metas, |slot, meta, bytes| fast.forward(slot, meta, bytes))
            }
        }
    }
}

/// The packets up to the first that is not forwarded: how many, and their bytes. A function of its own
/// for each way, so that what its loop needs stays in registers.
#[inline(never)]
fn run(
    slots: &mut [Slot],
    metas: &mut [Meta],
    mut forward: impl FnMut(&mut Slot, &mut Meta, u32) -> Option<()>,
) -> (usize, u64) {
    let (mut count, mut bytes) = (0, 0);
    for (slot, meta) in slots.iter_mut().zip(metas) {
        let frame_bytes = meta.frame_bytes();
        if forward(slot, meta, frame_bytes).is_none() {
            break;
        }
        count += 1;
        bytes += u64::from(frame_bytes);
    }
    (count, bytes)
}

const PORTS: usize = 4;
/// IP header without options, and ports.
const PACKET: usize = Ipv4::BYTES + PORTS;

/// What the headers of a usual packet say.
struct Usual {
    src: u32,
    dst: u32,
    bytes: u32,
    ttl: u8,
    protocol: u8,
    ports: u32,
}

impl Usual {
    /// Looks at an IP packet that has `bytes` in all; `None` if it is unusual.
    #[inline(always)]
    fn of(packet: &[u8; PACKET], bytes: u32) -> Option<Self> {
        let (ip, ports) = packet.split_first_chunk::<{ Ipv4::BYTES }>()?;
        let (ip, ports) = (Ipv4::view(ip)?, u32::from_be_bytes(*ports.first_chunk()?));
        let usual = ip.version_ihl == 0x45
            && !ip.is_fragment()
            && u32::from(ip.total_len.get()) == bytes
            && holds_ports(ip.protocol, bytes, Ipv4::BYTES)
            && ip.verifies();
        usual.then(|| Self {
            src: ip.src.get(),
            dst: ip.dst.get(),
            bytes,
            ttl: ip.ttl,
            protocol: ip.protocol,
            ports,
        })
    }
}

/// The same of IPv6.
const PACKET6: usize = Ipv6::BYTES + PORTS;

/// What the headers of a usual IPv6 packet say.
struct Usual6 {
    src: u128,
    dst: u128,
    bytes: u32,
    hop_limit: u8,
    protocol: u8,
    ports: u32,
}

impl Usual6 {
    /// Looks at an IPv6 packet that has `bytes` in all; `None` if it is unusual.
    #[inline(always)]
    fn of(packet: &[u8; PACKET6], bytes: u32) -> Option<Self> {
        let (ip, ports) = packet.split_first_chunk::<{ Ipv6::BYTES }>()?;
        let (ip, ports) = (Ipv6::view(ip)?, u32::from_be_bytes(*ports.first_chunk()?));
        let usual = ip.version() == 6
            && u32::from(ip.payload_len.get()) + Ipv6::BYTES as u32 == bytes
            && holds_ports(ip.next_header, bytes, Ipv6::BYTES);
        usual.then(|| Self {
            src: ip.src.get(),
            dst: ip.dst.get(),
            bytes,
            hop_limit: ip.hop_limit,
            protocol: ip.next_header,
            ports,
        })
    }
}

/// Whether TCP or UDP follows a header of `l3_bytes`, in a packet that holds its header as well.
#[inline(always)]
fn holds_ports(upper: u8, bytes: u32, l3_bytes: usize) -> bool {
    let behind = |protocol| bytes as usize >= l3_bytes + parse::least(protocol);
    match upper {
        protocol::TCP => behind(protocol::TCP),
        protocol::UDP => behind(protocol::UDP),
        _ => false,
    }
}

/// Where packets go, and where the one before went: a burst often goes to few.
#[derive(Debug)]
struct Routes<'a, A> {
    tables: &'a Tables,
    last: Option<(VrfId, A, Route<'a>)>,
}

impl<'a, A: Copy + PartialEq> Routes<'a, A> {
    fn new(tables: &'a Tables) -> Self {
        Self { tables, last: None }
    }

    /// What leads to the address, by `route` if it is another one than before; `None` unless the packet
    /// leaves by it.
    #[inline(always)]
    fn by(
        &mut self,
        vrf: &Vrf,
        dst: A,
        route: impl FnOnce(&Tables) -> Option<NextHopId>,
    ) -> Option<Route<'a>> {
        if let Some((last_vrf, last, route)) = self.last
            && last == dst
            && last_vrf == vrf.id
        {
            return Some(route);
        }
        let id = route(self.tables)?;
        let hop = self.tables.next_hop(id).filter(|hop| rewrite::is_ready(hop))?;
        self.last = Some((vrf.id, dst, (id, hop)));
        Some((id, hop))
    }
}

impl<'a> Routes<'a, u32> {
    #[inline(always)]
    fn lookup(&mut self, vrf: &Vrf, dst: u32) -> Option<Route<'a>> {
        self.by(vrf, dst, |tables| routable4(dst).then(|| tables.route4(vrf, dst)))
    }
}

impl<'a> Routes<'a, u128> {
    #[inline(always)]
    fn lookup(&mut self, vrf: &Vrf, dst: u128) -> Option<Route<'a>> {
        self.by(vrf, dst, |tables| routable6(dst).then(|| tables.route6(vrf, dst)))
    }
}
