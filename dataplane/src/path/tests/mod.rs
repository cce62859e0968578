//! Bytes in → bytes out and verdict, for every rule of the path.

mod bump;
mod catalogue;
mod forwarding;
mod icmp;
mod neighbours;
mod noise;
mod offloads;
mod refusals;
mod tunnels;

use super::testing::frames::{check, check_ip, ethernet, v4, v6};
use super::testing::{Outcome, World, gateway_mac, pod_mac};
use super::*;
use crate::table::{IfaceId, IfaceKind};

/// A pod's frame to its gateway.
fn from_pod(iface: u16, packet: &[u8]) -> Vec<u8> {
    let kind = if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd };
    ethernet(gateway_mac(iface / 10), pod_mac(iface), kind, packet)
}

/// A node's inner frame to this node's router.
fn from_node(packet: &[u8]) -> Vec<u8> {
    let kind = if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd };
    ethernet(testing::ROUTER_MAC, testing::FAR_ROUTER_MAC, kind, packet)
}

/// The verdict was to send something, by this interface, and all of it is right.
#[track_caller]
fn leaves(outcome: &Outcome, verdict: Verdict, out: u16) -> Vec<u8> {
    assert_eq!((outcome.verdict, outcome.meta.out), (verdict, IfaceId(out)), "{outcome:x?}");
    let frame = outcome.completed();
    let bare = [12, 22].contains(&out);
    let checked = if bare { check_ip(&frame) } else { check(&frame) };
    if let Err(what) = checked {
        panic!("wrong {what}: {frame:02x?}");
    }
    assert_ne!(outcome.meta.flow_hash, 0);
    frame
}

/// The verdict was to drop, for this reason, silently.
#[track_caller]
fn dropped(outcome: &Outcome, reason: DropReason) {
    assert_eq!(outcome.verdict, Verdict::Drop(reason));
}

/// 10.1.0.`host`
fn a4(host: u32) -> u32 {
    v4("10.1.0.0") + host
}

/// fd00:1::`host`
fn a6(host: u128) -> u128 {
    v6("fd00:1::") + host
}

fn kind_of(world: &World, iface: u16) -> IfaceKind {
    world.tables.iface(IfaceId(iface)).expect("exists").kind
}
