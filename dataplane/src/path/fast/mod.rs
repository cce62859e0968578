//! The usual packet at one go: IPv4 with TCP or UDP in one piece, from a pod that may send it to
//! another pod or into a tunnel, or out of a tunnel over IPv4 to a pod.
//!
//! What is unusual in any way is left as it came, for [`super::forward`]: there are the rules and
//! their reasons, here is only how to see in a hundred instructions that none of them objects. Every
//! path test runs its frames through both and compares ([`super::testing::World`]).

mod pod;
mod tunnel;

use wire::{Header, Ipv4, Tcp, Udp, protocol};

use super::lookup::{Route, routable4};
use super::{Meta, Slot, rewrite};
use crate::table::{Iface, IfaceKind, Tables, Vrf, VrfId};
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
            Self::Pod(fast) => {
                run(slots, metas, |slot, meta, bytes| fast.forward(slot, meta, bytes))
            }
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
    bytes: u16,
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
        let least = match ip.protocol {
            protocol::TCP => Ipv4::BYTES + Tcp::BYTES,
            protocol::UDP => Ipv4::BYTES + Udp::BYTES,
            _ => return None,
        };
        let usual = ip.version_ihl == 0x45
            && !ip.is_fragment()
            && u32::from(ip.total_len.get()) == bytes
            && bytes >= least as u32
            && ip.verifies();
        usual.then(|| Self {
            src: ip.src.get(),
            dst: ip.dst.get(),
            bytes: ip.total_len.get(),
            ttl: ip.ttl,
            protocol: ip.protocol,
            ports,
        })
    }
}

/// Where packets go, and where the one before went: a burst often goes to few.
#[derive(Debug)]
struct Routes<'a> {
    tables: &'a Tables,
    last: Option<(VrfId, u32, Route<'a>)>,
}

impl<'a> Routes<'a> {
    /// What leads to the address; `None` unless the packet leaves by it.
    #[inline(always)]
    fn lookup(&mut self, vrf: &Vrf, dst: u32) -> Option<Route<'a>> {
        if let Some((last_vrf, last, route)) = self.last
            && last == dst
            && last_vrf == vrf.id
        {
            return Some(route);
        }
        if !routable4(dst) {
            return None;
        }
        let id = self.tables.route4(vrf, dst);
        let hop = self.tables.next_hop(id).filter(|hop| rewrite::is_ready(hop))?;
        self.last = Some((vrf.id, dst, (id, hop)));
        Some((id, hop))
    }
}
