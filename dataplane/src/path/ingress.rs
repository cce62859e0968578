//! Whether the sender may send this: MACs, and source addresses (anti-spoofing).

use std::ops::ControlFlow::{Break, Continue};

use wire::{Ethernet, Header, Mac, link_local_of};

use super::parse::Ip6;
use super::probe::note;
use super::{Context, DropReason, Origin, Packet, PathEvent, Probe, Step, Verdict};
use crate::table::{Iface, Vrf};

/// What a link header says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    pub ether_type: u16,
    /// The destination is a group address.
    pub group: bool,
}

/// Checks the Ethernet header of a frame from a pod.
#[inline(always)]
pub(super) fn link<P: Probe>(
    cx: &mut Context<'_>,
    iface: &Iface,
    vrf: &Vrf,
    packet: &mut Packet<'_>,
    probe: &mut P,
) -> Step<Link> {
    let Some(eth) = Ethernet::view(packet.head()) else { return Break(packet.more()) };
    if eth.src != iface.mac {
        let claimed = eth.src;
        note!(probe, Ingress, "source MAC {claimed} is not the interface's {}", iface.mac);
        return Break(spoofed_mac(cx, iface, claimed));
    }
    let group = eth.dst.is_group();
    if eth.dst != vrf.gateway_mac && !group {
        note!(
            probe,
            Ingress,
            "destination MAC {} is not the gateway's {}",
            eth.dst,
            vrf.gateway_mac
        );
        return Break(Verdict::Drop(DropReason::NotForRouter));
    }
    Continue(Link { ether_type: eth.ether_type.get(), group })
}

#[cold]
fn spoofed_mac(cx: &mut Context<'_>, iface: &Iface, claimed: Mac) -> Verdict {
    cx.tell(iface.id, PathEvent::SpoofedMac { iface: iface.id, claimed });
    Verdict::Drop(DropReason::SpoofedMac)
}

/// Whether the interface may use the address as its source.
#[inline]
pub(super) fn owns4(iface: &Iface, addr: u32) -> bool {
    iface.addrs4.contains(&addr)
        || iface.allowed4.iter().any(|&(net, mask)| addr & mask == net)
        || iface.any_source
}

/// Whether the interface may use the address as its source.
#[inline]
pub(super) fn owns6(iface: &Iface, addr: u128) -> bool {
    iface.addrs6.contains(&addr)
        || iface.allowed6.iter().any(|&(net, mask)| addr & mask == net)
        || iface.any_source
}

/// Whether the address is the interface's own link-local one: any on its link but the gateway's,
/// since nobody else is there.
pub(super) fn owns_link_local(vrf: &Vrf, addr: u128) -> bool {
    addr >> 118 == 0x3fa && addr != link_local_of(vrf.gateway_mac)
}

/// Checks an IPv4 source address.
#[inline(always)]
pub(super) fn source4<P: Probe>(from: &Origin<'_>, src: u32, probe: &mut P) -> Step<()> {
    // The common case ends here: the interface has one address, and this is it.
    if from.outer.is_none() && from.iface.addrs4.first() == Some(&src) {
        note!(probe, Ingress, "source is the address of {}", from.iface.name);
        return Continue(());
    }
    foreign_source4(from, src, probe)
}

#[inline(never)]
fn foreign_source4<P: Probe>(from: &Origin<'_>, src: u32, probe: &mut P) -> Step<()> {
    if from.outer.is_none() && from.iface.addrs4.contains(&src) {
        note!(probe, Ingress, "source is one of the addresses of {}", from.iface.name);
        return Continue(());
    }
    if is_martian_source4(src) {
        note!(probe, Ingress, "{} can not be a sender's address", v4(src));
        return Break(Verdict::Drop(DropReason::MartianSource));
    }
    if from.outer.is_none() && !owns4(from.iface, src) {
        note!(probe, Ingress, "{} is not an address of {}", v4(src), from.iface.name);
        return Break(Verdict::Drop(DropReason::SpoofedSource));
    }
    note!(probe, Ingress, "{} is allowed here", v4(src));
    Continue(())
}

/// Checks an IPv6 source address. Link-scope control messages have been taken out before.
#[inline(always)]
pub(super) fn source6<P: Probe>(from: &Origin<'_>, ip: Ip6, probe: &mut P) -> Step<()> {
    if from.outer.is_none() && from.iface.addrs6.first() == Some(&ip.src) {
        note!(probe, Ingress, "source is the address of {}", from.iface.name);
        return Continue(());
    }
    foreign_source6(from, ip, probe)
}

fn foreign_source6<P: Probe>(from: &Origin<'_>, ip: Ip6, probe: &mut P) -> Step<()> {
    if from.outer.is_none() && from.iface.addrs6.contains(&ip.src) {
        note!(probe, Ingress, "source is one of the addresses of {}", from.iface.name);
        return Continue(());
    }
    let on_link = ip.dst >> 120 == 0xff || ip.dst == link_local_of(from.vrf.gateway_mac);
    if on_link && owns_link_local(from.vrf, ip.src) && from.outer.is_none() {
        // A ping of the gateway on the link; or to a group, which the lookup refuses by its name.
        return Continue(());
    }
    if is_martian_source6(ip.src) {
        note!(probe, Ingress, "{} can not be a sender's address", v6(ip.src));
        return Break(Verdict::Drop(DropReason::MartianSource));
    }
    if from.outer.is_none() && !owns6(from.iface, ip.src) {
        note!(probe, Ingress, "{} is not an address of {}", v6(ip.src), from.iface.name);
        return Break(Verdict::Drop(DropReason::SpoofedSource));
    }
    note!(probe, Ingress, "{} is allowed here", v6(ip.src));
    Continue(())
}

/// RFC 1812 §5.3.7: this network, loopback, multicast, reserved and broadcast.
#[inline]
pub(super) fn is_martian_source4(addr: u32) -> bool {
    matches!(addr >> 24, 0 | 127 | 224..)
}

/// Unspecified, loopback and embedded IPv4 (RFC 4291 §2.5), multicast, link-local.
#[inline]
pub(super) fn is_martian_source6(addr: u128) -> bool {
    addr >> 48 == 0 || addr >> 120 == 0xff || addr >> 118 == 0x3fa
}

/// For people.
pub(super) fn v4(addr: u32) -> std::net::Ipv4Addr {
    addr.into()
}

/// For people.
pub(super) fn v6(addr: u128) -> std::net::Ipv6Addr {
    addr.into()
}
