//! A small world for tests and benchmarks: two Networks with the same addresses, one that the node
//! has a leg in, an uplink, and other nodes; and a harness that treats a frame as a worker does.
//!
//! | | blue (VRF 1, VNI 56) | red (VRF 2, VNI 57) | default (VRF 3, VNI 58) |
//! |---|---|---|---|
//! | `….0.2` | 10, tap | 20, tap | 30, tap |
//! | `….0.3` | 11, memif | 21, memif | 31, the node's leg (any source, and the default route) |
//! | `….0.4` | 12, memif in IP mode | 22, memif in IP mode | |
//!
//! Addresses are 10.1.0.0/16 and fd00:1::/48. `10.1.1.0/24` and `fd00:1:0:1::/64` are on the node
//! behind the IPv4 tunnel end, `10.1.2.0/24` and `fd00:1:0:2::/64` on the one behind the IPv6
//! tunnel end, `10.1.3.0/24` behind a tunnel end without a neighbour. The rest is unreachable.

pub mod frames;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use wire::checksum::Sum;
use wire::{Ethernet, Header, Ipv4, Ipv6, Mac, Udp, Vni, Vxlan};

use super::{
    Checksum, Context, Events, Fast, HEAD_BYTES, HEAD_MAX_BYTES, HEADROOM_BYTES, IcmpLimiter, Meta,
    NoProbe, Packet, PathEvent, Probe, Slot, Verdict, forward,
};
use crate::table::fib::{Addr, Fib, Prefix};
use crate::table::{
    HopKind, Iface, IfaceId, IfaceKind, NextHop, NextHopId, Node, Tables, TxOwner, Vrf, VrfId,
    counters,
};
use frames::{v4, v6};

/// This node's tunnel ends.
pub const OWN_VTEP4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// This node's tunnel ends.
pub const OWN_VTEP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
/// The other nodes' tunnel ends.
pub const FAR_VTEP4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// The other nodes' tunnel ends.
pub const FAR_VTEP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
/// A foreign tunnel end, welcome on blue's VNI only.
pub const PEER_VTEP4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
/// MAC of the uplink.
pub const NODE_MAC: Mac = Mac([2, 0, 0, 0, 0xaa, 1]);
/// MAC of the neighbour on the fabric.
pub const FABRIC_MAC: Mac = Mac([2, 0, 0, 0, 0xaa, 2]);
/// Inner destination MAC of this node.
pub const ROUTER_MAC: Mac = Mac([2, 0, 0, 0, 0xbb, 1]);
/// Inner destination MAC of the other nodes.
pub const FAR_ROUTER_MAC: Mac = Mac([2, 0, 0, 0, 0xbb, 2]);
/// The uplink.
pub const UPLINK: u16 = 1;
/// The host tap.
pub const HOST: u16 = 2;
/// MTU of pods and tunnels.
pub const MTU: u16 = 1450;

/// The gateway's MAC in a VRF.
pub fn gateway_mac(vrf: u16) -> Mac {
    Mac([2, 0xb0, 0, 0, 0, vrf as u8])
}

/// A pod interface's MAC.
pub fn pod_mac(iface: u16) -> Mac {
    Mac([2, 0, 0, 0, 0xcc, iface as u8])
}

/// The tables described above.
pub fn tables() -> Tables {
    let mut world = Builder::default();
    world.iface(UPLINK, IfaceKind::Uplink, 0, None);
    world.iface(HOST, IfaceKind::HostTap, 0, None);
    for vrf in 1..=3 {
        let tens = vrf * 10;
        world.iface(tens, IfaceKind::Tap, vrf, Some(2));
        world.iface(tens + 1, IfaceKind::MemifEthernet, vrf, Some(3));
        if vrf < 3 {
            world.iface(tens + 2, IfaceKind::MemifIp, vrf, Some(4));
        }
        world.vrf(vrf);
    }
    world.underlay();
    world.tables
}

#[derive(Default)]
struct Builder {
    tables: Tables,
    hops: u32,
}

impl Builder {
    fn hop(&mut self, kind: HopKind, out: u16, rewrite: &[u8]) -> NextHopId {
        self.hops += 1;
        let mut hop = NextHop {
            kind,
            out: IfaceId(out),
            mtu_bytes: MTU,
            rewrite_len: rewrite.len() as u8,
            ..NextHop::default()
        };
        hop.rewrite[..rewrite.len()].copy_from_slice(rewrite);
        self.tables.next_hops.set(self.hops as usize, hop);
        NextHopId(self.hops)
    }

    fn iface(&mut self, id: u16, kind: IfaceKind, vrf: u16, host: Option<u8>) {
        let leg = id == 31;
        let fabric = matches!(kind, IfaceKind::Uplink | IfaceKind::HostTap);
        let iface = Iface {
            id: IfaceId(id),
            kind,
            name: format!("if{id}").into(),
            vrf: VrfId(vrf),
            mac: if fabric { NODE_MAC } else { pod_mac(id) },
            mtu_bytes: MTU,
            addrs4: host.map(|h| v4(&format!("10.1.0.{h}"))).into_iter().collect(),
            addrs6: host.map(|h| v6(&format!("fd00:1::{h}"))).into_iter().collect(),
            allowed4: if id == 11 { [(v4("10.9.0.0"), u32::mask(16))].into() } else { [].into() },
            allowed6: if id == 11 { [(v6("fd09::"), u128::mask(64))].into() } else { [].into() },
            any_source: leg,
            offloads: matches!(kind, IfaceKind::Tap | IfaceKind::HostTap),
            peer: match kind {
                IfaceKind::Uplink => IfaceId(HOST),
                IfaceKind::HostTap => IfaceId(UPLINK),
                _ => IfaceId::NONE,
            },
            workers: [TxOwner::Worker(0)].into(),
            counters: counters::per_worker(1),
        };
        if let Some(host) = host {
            let header = frames::ethernet(iface.mac, gateway_mac(vrf), 0, &[]);
            let rewrite = if kind == IfaceKind::MemifIp { &[][..] } else { &header };
            let hop = self.hop(HopKind::Local, id, rewrite);
            self.host(vrf, host.into(), hop);
        }
        self.tables.ifaces.set(usize::from(id), Some(Arc::new(iface)));
    }

    fn host(&mut self, vrf: u16, host: u32, hop: NextHopId) {
        self.tables.hosts4.insert(VrfId(vrf), v4("10.1.0.0") + host, hop);
        self.tables.hosts6.insert(VrfId(vrf), v6("fd00:1::") + u128::from(host), hop);
    }

    fn vrf(&mut self, vrf: u16) {
        let vni = 55 + u32::from(vrf);
        let gateway = self.hop(HopKind::Gateway, 0, &[]);
        self.host(vrf, 1, gateway);
        let over4 = self.hop(HopKind::Tunnel4, UPLINK, &template(FAR_VTEP4.into(), vni));
        let over6 = self.hop(HopKind::Tunnel6, UPLINK, &template(FAR_VTEP6.into(), vni));
        let waiting = self.hop(HopKind::Unresolved, UPLINK, &template(FAR_VTEP4.into(), vni));
        let nowhere = self.hop(HopKind::Unreachable, 0, &[]);
        let mut routes4 = vec![
            Prefix { addr: v4("10.1.0.0"), len: 16, hop: nowhere },
            Prefix { addr: v4("10.1.1.0"), len: 24, hop: over4 },
            Prefix { addr: v4("10.1.2.0"), len: 24, hop: over6 },
            Prefix { addr: v4("10.1.3.0"), len: 24, hop: waiting },
        ];
        let mut routes6 = vec![
            Prefix { addr: v6("fd00:1::"), len: 48, hop: nowhere },
            Prefix { addr: v6("fd00:1:0:1::"), len: 64, hop: over4 },
            Prefix { addr: v6("fd00:1:0:2::"), len: 64, hop: over6 },
            Prefix { addr: v6("fd00:1:0:3::"), len: 64, hop: waiting },
        ];
        if vrf == 3 {
            let leg = self.tables.hosts4.lookup(VrfId(3), v4("10.1.0.3"));
            routes4.push(Prefix { addr: 0, len: 0, hop: leg });
            routes6.push(Prefix { addr: 0, len: 0, hop: leg });
        }
        let made = Vrf {
            id: VrfId(vrf),
            name: ["", "blue", "red", "default"][usize::from(vrf)].into(),
            vni: Vni::new(vni),
            gateway_mac: gateway_mac(vrf),
            gateways4: [Ipv4Addr::new(10, 1, 0, 1)].into(),
            gateways6: [Ipv6Addr::from(v6("fd00:1::1"))].into(),
            prefixes4: [(v4("10.1.0.0"), u32::mask(16))].into(),
            prefixes6: [(v6("fd00:1::"), u128::mask(48))].into(),
            peers: if vrf == 1 { [IpAddr::V4(PEER_VTEP4)].into() } else { [].into() },
            fib4: Fib::build(&routes4),
            fib6: Fib::build(&routes6),
            counters: counters::per_worker(1),
        };
        self.tables.vnis.insert(VrfId::UNDERLAY, vni, NextHopId(u32::from(vrf)));
        self.tables.vrfs.set(usize::from(vrf), Some(Arc::new(made)));
    }

    fn underlay(&mut self) {
        for (vtep, kind) in [
            (OWN_VTEP4, NextHopId::CLUSTER_VTEP),
            (FAR_VTEP4, NextHopId::CLUSTER_VTEP),
            (PEER_VTEP4, NextHopId::PEER_VTEP),
        ] {
            self.tables.hosts4.insert(VrfId::UNDERLAY, vtep.into(), kind);
        }
        for vtep in [OWN_VTEP6, FAR_VTEP6] {
            self.tables.hosts6.insert(VrfId::UNDERLAY, vtep.into(), NextHopId::CLUSTER_VTEP);
        }
        self.tables.node = Arc::new(Node {
            vxlan_port: 4789,
            router_mac: ROUTER_MAC,
            vteps4: [OWN_VTEP4].into(),
            vteps6: [OWN_VTEP6].into(),
        });
    }
}

/// A tunnel's rewrite, as the control thread prebuilds it.
pub fn template(vtep: IpAddr, vni: u32) -> Vec<u8> {
    let inner = frames::ethernet(FAR_ROUTER_MAC, ROUTER_MAC, 0, &[]);
    let payload = frames::vxlan(vni, &inner);
    let mut frame = match vtep {
        IpAddr::V4(vtep) => {
            let udp = frames::udp_unsummed(0, 4789, &payload);
            frames::ethernet(
                FABRIC_MAC,
                NODE_MAC,
                0x0800,
                &frames::ip4(OWN_VTEP4.into(), vtep.into(), 17, 64, &udp),
            )
        }
        IpAddr::V6(vtep) => {
            let udp = frames::udp_unsummed(0, 4789, &payload);
            frames::ethernet(
                FABRIC_MAC,
                NODE_MAC,
                0x86dd,
                &frames::ip6(OWN_VTEP6.into(), vtep.into(), 17, 64, &udp),
            )
        }
    };
    // What the path fills in is not right beforehand.
    let l3 = Ethernet::BYTES;
    if vtep.is_ipv4() {
        frame[l3 + 2..l3 + 4].fill(0);
        frame[l3 + 10..l3 + 12].fill(0);
    } else {
        frame[l3 + 4..l3 + 6].fill(0);
    }
    frame
}

/// Keeps the path's events.
#[derive(Debug, Default)]
pub struct Heard(pub Vec<PathEvent>);

impl Events for Heard {
    fn event(&mut self, event: PathEvent) {
        self.0.push(event);
    }
}

/// A worker's surroundings of the path.
#[derive(Debug, Default)]
pub struct World {
    /// What the path reads.
    pub tables: Tables,
    /// Monotonic.
    pub now_ns: u64,
    /// What the path told.
    pub heard: Heard,
    limiter: IcmpLimiter,
    /// Bytes that a head gets at first.
    pub head_bytes: usize,
    /// How many packets the fast way decided on, each as the general one did.
    pub fast: usize,
}

/// What became of a frame.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The fate.
    pub verdict: Verdict,
    /// Facts.
    pub meta: Meta,
    /// The whole frame, as it would leave if nothing had to be completed.
    pub frame: Vec<u8>,
    /// How often more of the packet was asked for.
    pub asked: usize,
}

impl World {
    /// The world of [`tables`].
    pub fn new() -> Self {
        let now_ns = 1_000_000_000_000;
        Self { tables: tables(), now_ns, head_bytes: HEAD_BYTES, ..Self::default() }
    }

    /// Sends a frame in by an interface.
    pub fn send(&mut self, iface: u16, frame: &[u8]) -> Outcome {
        self.send_with(iface, frame, Meta::default())
    }

    /// Sends a frame in by an interface, with a port's facts about its checksum and segmentation.
    pub fn send_with(&mut self, iface: u16, frame: &[u8], facts: Meta) -> Outcome {
        self.send_probed(iface, frame, facts, &mut NoProbe)
    }

    /// The same, watched.
    pub fn send_probed<P: Probe>(
        &mut self,
        iface: u16,
        frame: &[u8],
        facts: Meta,
        probe: &mut P,
    ) -> Outcome {
        let iface =
            Arc::clone(self.tables.iface(IfaceId(iface)).expect("an interface of tables()"));
        let mut slot = Slot::default();
        let mut meta = facts;
        let mut head = frame.len().min(self.head_bytes);
        let mut asked = 0;
        let load = |slot: &mut Slot, meta: &mut Meta, head: usize| {
            slot.0[HEADROOM_BYTES..HEADROOM_BYTES + head].copy_from_slice(&frame[..head]);
            meta.start = HEADROOM_BYTES as u16;
            meta.end = (HEADROOM_BYTES + head) as u16;
        };
        load(&mut slot, &mut meta, head);
        meta.body_bytes = (frame.len() - head) as u32;
        let verdict = loop {
            let mut cx = Context {
                tables: &self.tables,
                now_ns: self.now_ns,
                limiter: &mut self.limiter,
                events: &mut self.heard,
            };
            let early = sooner(&self.tables, &iface, &slot, &meta);
            let verdict = forward(&mut cx, &iface, &mut Packet::new(&mut slot, &mut meta), probe);
            if let Some(early) = early {
                self.fast += 1;
                let general = (verdict, meta, slot.clone());
                assert_eq!(early, general, "the fast way and the general one differ");
            }
            match verdict {
                Verdict::Refill => {
                    let wanted = (head + meta.body_bytes as usize).min(HEAD_MAX_BYTES);
                    assert!(wanted > head, "asked for more than there is");
                    meta.body_bytes -= (wanted - head) as u32;
                    head = wanted;
                    load(&mut slot, &mut meta, head);
                }
                Verdict::Sum => {
                    assert!(!meta.body_summed, "asked for what is known");
                    let body = &frame[head..head + meta.body_bytes as usize];
                    meta.body_sum = Sum::of(body).fold();
                    meta.body_summed = true;
                }
                verdict => break verdict,
            }
            asked += 1;
            assert!(asked <= 3, "asks for ever");
        };
        let mut out = slot.0[usize::from(meta.start)..usize::from(meta.end)].to_vec();
        out.extend(&frame[head..head + meta.body_bytes as usize]);
        Outcome { verdict, meta, frame: out, asked }
    }
}

/// Verdict, facts and head by the fast way, if it decides; nothing was touched if it does not.
fn sooner(
    tables: &Tables,
    iface: &Iface,
    slot: &Slot,
    meta: &Meta,
) -> Option<(Verdict, Meta, Slot)> {
    let (mut slots, mut metas) = ([slot.clone()], [*meta]);
    let (count, bytes) = Fast::new(tables, iface)?.forward_run(&mut slots, &mut metas);
    let ([new_slot], [new_meta]) = (slots, metas);
    if count == 0 {
        assert_eq!((new_meta, &new_slot), (*meta, slot), "undecided, but not as it was");
        return None;
    }
    assert_eq!(bytes, u64::from(meta.frame_bytes()), "another number of bytes came in");
    Some((Verdict::Forward, new_meta, new_slot))
}

impl Outcome {
    /// The frame with its checksum completed, as it is on the wire.
    pub fn completed(&self) -> Vec<u8> {
        let mut frame = self.frame.clone();
        if self.meta.checksum == Checksum::Partial {
            let start = usize::from(self.meta.csum_start);
            let at = start + usize::from(self.meta.csum_offset);
            let sum = Sum::of(&frame[start..]).complement_udp();
            frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        frame
    }

    /// The inner frame of an encapsulated one.
    pub fn inner(&self) -> Vec<u8> {
        let outer = match self.meta.outer {
            4 => Ipv4::BYTES,
            6 => Ipv6::BYTES,
            _ => panic!("not encapsulated"),
        };
        self.completed()[Ethernet::BYTES + outer + Udp::BYTES + Vxlan::BYTES..].to_vec()
    }
}
