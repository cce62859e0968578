//! What the path reads: interfaces, VRFs, next hops, host routes, VNIs. One immutable snapshot.
//!
//! The control thread alone builds, publishes and drops [`Tables`]; a worker takes the current one
//! once per burst. Everything inside is shared with the previous snapshot where it did not change
//! ([`pvec::PVec`], `Arc`).

pub mod counters;
pub mod fib;
pub mod hosts;
pub mod pvec;
mod snapshot;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use wire::{Mac, Vni};

pub use counters::{Counters, Sums};
pub use snapshot::{Publisher, Reader};

use fib::Fib;
use hosts::Hosts;
use pvec::PVec;

/// Index of an interface. 0 is never given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct IfaceId(pub u16);

impl IfaceId {
    /// No interface.
    pub const NONE: IfaceId = IfaceId(0);
}

/// Index of a VRF. 0 is the underlay: it has no [`Vrf`], only tunnel ends in the host table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct VrfId(pub u16);

impl VrfId {
    /// Where tunnel ends are looked up.
    pub const UNDERLAY: VrfId = VrfId(0);
}

/// Index of a next hop. 0 means "no route".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct NextHopId(pub u32);

impl NextHopId {
    /// No route.
    pub const NONE: NextHopId = NextHopId(0);
    /// In [`VrfId::UNDERLAY`]: a tunnel end of this cluster.
    pub const CLUSTER_VTEP: NextHopId = NextHopId(1);
    /// In [`VrfId::UNDERLAY`]: a foreign tunnel end, welcome only on the VNIs that list it.
    pub const PEER_VTEP: NextHopId = NextHopId(2);
    /// The first that is an index into [`Tables::next_hops`] chosen by the writer.
    pub const FIRST: u32 = 1;
}

/// Largest prebuilt rewrite: Ethernet + IPv6 + UDP + VXLAN + Ethernet = 84, rounded up.
pub const REWRITE_MAX_BYTES: usize = 96;

/// What leads to an address.
#[derive(Debug, Clone)]
pub struct NextHop {
    /// What to do.
    pub kind: HopKind,
    /// Where it leaves; `NONE` unless `kind` is `Local` or `Tunnel`.
    pub out: IfaceId,
    /// Largest IP packet (inner, for a tunnel) that may go this way.
    pub mtu_bytes: u16,
    /// How many bytes of `rewrite` count. 0 for an IP-mode memif.
    pub rewrite_len: u8,
    /// Ethernet (destination, source, EtherType), or for a tunnel the outer Ethernet, IP, UDP,
    /// VXLAN and the inner Ethernet. The last two bytes are the EtherType of the packet, which the
    /// path fills in; lengths, checksum, flow entropy and ECN of the outer headers likewise.
    pub rewrite: [u8; REWRITE_MAX_BYTES],
}

/// See [`NextHop`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HopKind {
    /// A local interface.
    Local,
    /// A tunnel over IPv4.
    Tunnel4,
    /// A tunnel over IPv6.
    Tunnel6,
    /// The node answers itself: a gateway address.
    Gateway,
    /// A tunnel whose next hop on the underlay has no MAC yet: dropped, `neighbour_unresolved`.
    Unresolved,
    /// Answered by ICMP unreachable.
    #[default]
    Unreachable,
}

impl Default for NextHop {
    fn default() -> Self {
        Self {
            kind: HopKind::Unreachable,
            out: IfaceId::NONE,
            mtu_bytes: 0,
            rewrite_len: 0,
            rewrite: [0; REWRITE_MAX_BYTES],
        }
    }
}

/// What an interface is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfaceKind {
    /// A NIC.
    Uplink,
    /// The node's own stack behind an uplink.
    HostTap,
    /// A pod's (or `bowline0`'s) tap.
    Tap,
    /// A memif with Ethernet frames.
    MemifEthernet,
    /// A memif with bare IP packets.
    MemifIp,
}

impl IfaceKind {
    /// The word in the API and the metrics.
    pub fn name(self) -> &'static str {
        match self {
            IfaceKind::Uplink => "uplink",
            IfaceKind::HostTap => "host-tap",
            IfaceKind::Tap => "tap",
            IfaceKind::MemifEthernet | IfaceKind::MemifIp => "memif",
        }
    }
}

/// One interface, as the path sees it.
#[derive(Debug, Clone)]
pub struct Iface {
    /// Its own index.
    pub id: IfaceId,
    /// What it is.
    pub kind: IfaceKind,
    /// The identity that the writer gave it, e.g. `<sandbox>/eth1`; an uplink's name.
    pub name: Box<str>,
    /// Its VRF; [`VrfId::UNDERLAY`] for uplink and host tap.
    pub vrf: VrfId,
    /// The pod's MAC, or the node's for uplink and host tap.
    pub mac: Mac,
    /// MTU of the interface (IP packet).
    pub mtu_bytes: u16,
    /// Its own IPv4 addresses: host order.
    pub addrs4: Box<[u32]>,
    /// Its own IPv6 addresses: host order.
    pub addrs6: Box<[u128]>,
    /// Further prefixes that it may use as source: (address, mask).
    pub allowed4: Box<[(u32, u32)]>,
    /// Further prefixes that it may use as source: (address, mask).
    pub allowed6: Box<[(u128, u128)]>,
    /// May use any source address: the node's own leg.
    pub any_source: bool,
    /// Takes super-frames with a virtio-net header and completes checksums.
    pub offloads: bool,
    /// The other side of the layer-2 bump: the host tap of an uplink and the reverse.
    pub peer: IfaceId,
    /// Next hop of a frame that goes straight here (replies, layer-2 bump): only `out` matters.
    pub workers: Arc<[TxOwner]>,
    /// Of received and sent frames, one per worker.
    pub counters: Arc<[Counters]>,
}

/// Who sends on a tx queue of an interface: element `q` of [`Iface::workers`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TxOwner {
    /// Only this worker.
    Worker(u8),
    /// Every worker sends on its own (DPDK queue, kernel descriptor).
    Every,
}

/// A Network on this node.
#[derive(Debug)]
pub struct Vrf {
    /// Its own index.
    pub id: VrfId,
    /// The Network's name.
    pub name: Box<str>,
    /// Its VNI, if it is a VXLAN Network.
    pub vni: Option<Vni>,
    /// MAC of the gateway and of every address of the realm; the same on all nodes.
    pub gateway_mac: Mac,
    /// The node's own addresses in the realm. The first of a family sends ICMP errors.
    pub gateways4: Box<[Ipv4Addr]>,
    /// The node's own addresses in the realm.
    pub gateways6: Box<[Ipv6Addr]>,
    /// The realm's IPv4 prefixes: (address, mask). ARP is answered inside them.
    pub prefixes4: Box<[(u32, u32)]>,
    /// The realm's IPv6 prefixes: (address, mask). ND is answered inside them.
    pub prefixes6: Box<[(u128, u128)]>,
    /// Foreign tunnel ends that may send on this VNI.
    pub peers: Box<[IpAddr]>,
    /// Prefix routes.
    pub fib4: Fib<u32>,
    /// Prefix routes.
    pub fib6: Fib<u128>,
    /// Of packets that came out of tunnels: one per worker. (Packets from pods are counted at
    /// their interfaces.)
    pub counters: Arc<[Counters]>,
}

/// One snapshot.
#[derive(Debug, Clone)]
pub struct Tables {
    /// Of the publish that made it.
    pub generation: u64,
    /// By [`IfaceId`].
    pub ifaces: PVec<Option<Arc<Iface>>>,
    /// By [`VrfId`].
    pub vrfs: PVec<Option<Arc<Vrf>>>,
    /// By [`NextHopId`].
    pub next_hops: PVec<NextHop>,
    /// IPv4 host routes of all VRFs; tunnel ends under [`VrfId::UNDERLAY`].
    pub hosts4: Hosts<u32>,
    /// IPv6 host routes of all VRFs; tunnel ends under [`VrfId::UNDERLAY`].
    pub hosts6: Hosts<u128>,
    /// VNI → VRF index (as a host route of the underlay's VRF whose "hop" is the VRF).
    pub vnis: Hosts<u32>,
    /// What is node-wide.
    pub node: Arc<Node>,
}

/// Node-wide facts.
#[derive(Debug, Clone)]
pub struct Node {
    /// UDP port of VXLAN.
    pub vxlan_port: u16,
    /// Inner destination MAC of packets that are tunnelled to this node.
    pub router_mac: Mac,
    /// This node's tunnel ends.
    pub vteps4: Box<[Ipv4Addr]>,
    /// This node's tunnel ends.
    pub vteps6: Box<[Ipv6Addr]>,
}

impl Default for Tables {
    fn default() -> Self {
        Self {
            generation: 0,
            ifaces: PVec::new(),
            vrfs: PVec::new(),
            next_hops: PVec::new(),
            hosts4: Hosts::default(),
            hosts6: Hosts::default(),
            vnis: Hosts::default(),
            node: Arc::new(Node {
                vxlan_port: 4789,
                router_mac: Mac::default(),
                vteps4: Box::new([]),
                vteps6: Box::new([]),
            }),
        }
    }
}

impl Tables {
    /// The interface, if it exists.
    #[inline]
    pub fn iface(&self, id: IfaceId) -> Option<&Arc<Iface>> {
        self.ifaces.get(usize::from(id.0))?.as_ref()
    }

    /// The VRF, if it exists.
    #[inline]
    pub fn vrf(&self, id: VrfId) -> Option<&Arc<Vrf>> {
        self.vrfs.get(usize::from(id.0))?.as_ref()
    }

    /// The next hop, if it exists.
    #[inline]
    pub fn next_hop(&self, id: NextHopId) -> Option<&NextHop> {
        self.next_hops.get(id.0 as usize)
    }

    /// The VRF that a VNI belongs to on this node.
    #[inline]
    pub fn vrf_of_vni(&self, vni: u32) -> Option<VrfId> {
        match self.vnis.lookup(VrfId::UNDERLAY, vni) {
            NextHopId::NONE => None,
            found => Some(VrfId(found.0 as u16)),
        }
    }

    /// Where an IPv4 address leads: a host route, else the longest prefix.
    #[inline]
    pub fn route4(&self, vrf: &Vrf, addr: u32) -> NextHopId {
        match self.hosts4.lookup(vrf.id, addr) {
            NextHopId::NONE => vrf.fib4.lookup(addr),
            hop => hop,
        }
    }

    /// Where an IPv6 address leads: a host route, else the longest prefix.
    #[inline]
    pub fn route6(&self, vrf: &Vrf, addr: u128) -> NextHopId {
        match self.hosts6.lookup(vrf.id, addr) {
            NextHopId::NONE => vrf.fib6.lookup(addr),
            hop => hop,
        }
    }
}
