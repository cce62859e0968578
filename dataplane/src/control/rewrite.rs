//! Prebuilt headers of next hops.
//!
//! Left zero, because the path fills them in for each packet: lengths, the outer IPv4 header's
//! checksum, the outer UDP source port, the EtherType in the last two bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use wire::{Mac, Vni};

use crate::table::{HopKind, IfaceId, NextHop, REWRITE_MAX_BYTES};

const ETHERTYPE_IP4: u16 = 0x0800;
const ETHERTYPE_IP6: u16 = 0x86dd;
const UDP: u8 = 17;
const TTL: u8 = 64;
/// RFC 7348 §5: the I flag; all other bits are reserved and zero.
const VXLAN_FLAGS: u32 = 0x0800_0000;

/// Bytes that a tunnel adds to an IP packet: outer IP, UDP, VXLAN, inner Ethernet.
pub const OVERHEAD4_BYTES: u16 = 20 + 8 + 8 + 14;
/// The same over IPv6.
pub const OVERHEAD6_BYTES: u16 = 40 + 8 + 8 + 14;

/// Bytes one after the other.
struct Template {
    bytes: [u8; REWRITE_MAX_BYTES],
    len: usize,
}

impl Template {
    fn new() -> Self {
        Self { bytes: [0; REWRITE_MAX_BYTES], len: 0 }
    }

    fn put(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
        self
    }

    fn ethernet(&mut self, to: Mac, from: Mac, ethertype: u16) -> &mut Self {
        self.put(&to.0).put(&from.0).put(&ethertype.to_be_bytes())
    }
}

/// To a local interface. `macs` = (the pod's, the gateway's); `None` for bare IP packets.
pub fn local(out: IfaceId, mtu_bytes: u16, macs: Option<(Mac, Mac)>) -> NextHop {
    let mut template = Template::new();
    if let Some((pod, gateway)) = macs {
        template.ethernet(pod, gateway, 0);
    }
    NextHop {
        kind: HopKind::Local,
        out,
        mtu_bytes,
        rewrite_len: template.len as u8,
        rewrite: template.bytes,
    }
}

/// How the far end of a tunnel is reached on the underlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// The uplink.
    pub out: IfaceId,
    /// Its MAC.
    pub from: Mac,
    /// Of the next hop: the far end itself, or a gateway.
    pub to: Mac,
    /// MTU of the uplink.
    pub mtu_bytes: u16,
}

/// What is written into a tunnel's headers.
#[derive(Debug, Clone, Copy)]
pub struct Ends {
    /// Ours and theirs.
    pub outer: Outer,
    /// UDP port of VXLAN.
    pub port: u16,
    /// Of the network.
    pub vni: Vni,
    /// Inner source: our router MAC.
    pub inner_from: Mac,
    /// Inner destination.
    pub inner_to: Mac,
}

/// A pair of tunnel ends of one family.
#[derive(Debug, Clone, Copy)]
pub enum Outer {
    /// Source, destination.
    V4(Ipv4Addr, Ipv4Addr),
    /// Source, destination.
    V6(Ipv6Addr, Ipv6Addr),
}

impl Outer {
    /// From the one of our ends that has the family of theirs.
    pub fn to<'a>(vtep: IpAddr, mut local: impl Iterator<Item = &'a IpAddr>) -> Option<Outer> {
        local.find_map(|local| match (local, vtep) {
            (IpAddr::V4(from), IpAddr::V4(to)) => Some(Outer::V4(*from, to)),
            (IpAddr::V6(from), IpAddr::V6(to)) => Some(Outer::V6(*from, to)),
            _ => None,
        })
    }
}

/// Through a tunnel.
pub fn tunnel(way: &Way, ends: &Ends, mtu_bytes: u16) -> NextHop {
    let mut template = Template::new();
    let (kind, overhead) = match ends.outer {
        Outer::V4(from, to) => {
            template.ethernet(way.to, way.from, ETHERTYPE_IP4);
            // Version and IHL, TOS, length, identification; DF; TTL, protocol, checksum.
            template.put(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, TTL, UDP, 0, 0]);
            template.put(&from.octets()).put(&to.octets());
            (HopKind::Tunnel4, OVERHEAD4_BYTES)
        }
        Outer::V6(from, to) => {
            template.ethernet(way.to, way.from, ETHERTYPE_IP6);
            template.put(&[0x60, 0, 0, 0, 0, 0, UDP, TTL]);
            template.put(&from.octets()).put(&to.octets());
            (HopKind::Tunnel6, OVERHEAD6_BYTES)
        }
    };
    template.put(&[0, 0]).put(&ends.port.to_be_bytes()).put(&[0; 4]);
    template.put(&VXLAN_FLAGS.to_be_bytes()).put(&(ends.vni.get() << 8).to_be_bytes());
    template.ethernet(ends.inner_to, ends.inner_from, 0);
    NextHop {
        kind,
        out: way.out,
        mtu_bytes: mtu_bytes.min(way.mtu_bytes.saturating_sub(overhead)),
        rewrite_len: template.len as u8,
        rewrite: template.bytes,
    }
}

/// A tunnel whose way is not known.
pub fn unresolved(mtu_bytes: u16) -> NextHop {
    NextHop { kind: HopKind::Unresolved, mtu_bytes, ..NextHop::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAY: Way = Way { out: IfaceId(1), from: Mac([2; 6]), to: Mac([4; 6]), mtu_bytes: 1500 };

    fn ends(outer: Outer) -> Ends {
        Ends {
            outer,
            port: 4789,
            vni: Vni::new(0x0001_0203).expect("a legal VNI"),
            inner_from: Mac([6; 6]),
            inner_to: Mac([8; 6]),
        }
    }

    /// Golden: written from RFC 791, 768 and 7348, not from this code.
    #[test]
    fn a_tunnel_over_ip4() {
        let outer = Outer::V4([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let hop = tunnel(&WAY, &ends(outer), 9000);
        let want = [
            &[4u8; 6][..],
            &[2; 6],
            &[8, 0],
            &[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2],
            &[0, 0, 0x12, 0xb5, 0, 0, 0, 0],
            &[8, 0, 0, 0, 1, 2, 3, 0],
            &[8; 6],
            &[6; 6],
            &[0, 0],
        ]
        .concat();
        assert_eq!(&hop.rewrite[..usize::from(hop.rewrite_len)], want);
        assert_eq!((hop.kind, hop.mtu_bytes), (HopKind::Tunnel4, 1450));
    }

    #[test]
    fn a_tunnel_over_ip6_fits() {
        let outer = Outer::V6(Ipv6Addr::LOCALHOST, Ipv6Addr::LOCALHOST);
        let hop = tunnel(&WAY, &ends(outer), 1400);
        assert_eq!((hop.kind, hop.rewrite_len, hop.mtu_bytes), (HopKind::Tunnel6, 84, 1400));
        assert_eq!(hop.rewrite[14..22], [0x60, 0, 0, 0, 0, 0, 17, 64]);
        assert_eq!(tunnel(&WAY, &ends(outer), 1500).mtu_bytes, 1430);
    }
}
