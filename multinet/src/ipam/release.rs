//! What becomes of claims: confirmed, released, quarantined, reclaimed. Each function notes its
//! decision in the view and says what it changed; nothing to change is success.

use std::net::IpAddr;

use super::view::View;
use crate::types::block::{AddressBlock, Entry, EntryState, Owner};

/// Whose claims a call is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder<'a> {
    /// The pod or node; `None`: whoever the sandbox belongs to (a DEL that brings no pod).
    pub owner: Option<&'a Owner>,
    /// The sandbox that the call was made for.
    pub sandbox_id: &'a str,
    /// One interface, or all.
    pub interface: Option<&'a str>,
}

impl Holder<'_> {
    /// A claim of an older or newer sandbox is somebody else's business.
    fn holds(&self, entry: &Entry) -> bool {
        entry.state.is_held()
            && entry.sandbox_id == self.sandbox_id
            && self.interface.is_none_or(|i| i == entry.interface)
            && match self.owner {
                Some(owner) => entry.owner.as_ref().is_some_and(|o| o.key() == owner.key()),
                None => !self.sandbox_id.is_empty(),
            }
    }
}

fn change(
    view: &mut View,
    wanted: impl Fn(&Entry) -> bool,
    apply: impl Fn(&mut Entry),
) -> Vec<IpAddr> {
    let addresses: Vec<IpAddr> = view.entries(wanted).map(|(_, e)| e.address).collect();
    for address in &addresses {
        if let Some(entry) = view.change(*address).entry_mut(*address) {
            apply(entry);
        }
    }
    addresses
}

fn release(entry: &mut Entry, now_ms: u64) {
    entry.state = EntryState::Released;
    entry.since_ms = now_ms;
    entry.sandbox_id.clear();
    entry.node.clear();
}

/// Intents become allocations.
pub fn plan_confirm(view: &mut View, holder: Holder<'_>, now_ms: u64) -> Vec<IpAddr> {
    let intent = |e: &Entry| e.state == EntryState::Intent && holder.holds(e);
    change(view, intent, |e| {
        e.state = EntryState::Allocated;
        e.since_ms = now_ms;
    })
}

/// Claims of this sandbox are given back.
pub fn plan_release(view: &mut View, holder: Holder<'_>, now_ms: u64) -> Vec<IpAddr> {
    change(view, |e| holder.holds(e), |e| release(e, now_ms))
}

/// Claims of this sandbox outlive it (a StatefulSet's ordinal, a virtual machine): they stay held, of
/// no sandbox and on no node, until the next pod of that name takes them over or reclaim finds that
/// none will come.
pub fn plan_keep(view: &mut View, holder: Holder<'_>, now_ms: u64) -> Vec<IpAddr> {
    change(view, |e| holder.holds(e), |e| detach(e, now_ms))
}

fn detach(entry: &mut Entry, now_ms: u64) {
    entry.since_ms = now_ms;
    entry.sandbox_id.clear();
    entry.node.clear();
}

/// Gives back exactly the record that was inspected (reclaim, `bowline ipam release`): if anything in
/// it changed since, nothing happens.
pub fn plan_free_record(view: &mut View, inspected: &Entry, now_ms: u64) -> bool {
    let same = |e: &Entry| e.state.is_held() && e == inspected;
    !change(view, same, |e| release(e, now_ms)).is_empty()
}

/// What [`plan_keep`] does, to exactly the record that was inspected: its node does not do it any more.
pub fn plan_detach_record(view: &mut View, inspected: &Entry, now_ms: u64) -> bool {
    let same = |e: &Entry| e.state.is_held() && e == inspected;
    !change(view, same, |e| detach(e, now_ms)).is_empty()
}

/// Somebody else answers for the address on the wire: it is nobody's until `until_ms`.
pub fn plan_quarantine(
    view: &mut View,
    address: IpAddr,
    holder: Holder<'_>,
    reason: &str,
    now_ms: u64,
    until_ms: u64,
) -> bool {
    let conflicting = |e: &Entry| e.address == address && holder.holds(e);
    let changed = change(view, conflicting, |e| {
        *e = Entry {
            address,
            state: EntryState::Quarantined,
            owner: None,
            interface: String::new(),
            pool: std::mem::take(&mut e.pool),
            sandbox_id: String::new(),
            node: String::new(),
            since_ms: now_ms,
            until_ms: Some(until_ms),
            reason: reason.into(),
        };
    });
    !changed.is_empty()
}

/// Blocks that the node holds and does not use are unbound, except the first `keep`, which the next
/// claim finds without contention. Returns their names.
pub fn plan_return_idle(view: &mut View, node: &str, keep: usize) -> Vec<String> {
    let idle = |b: &&AddressBlock| b.spec.node.as_deref() == Some(node) && b.is_idle();
    let blocks: Vec<IpAddr> =
        view.blocks().filter(idle).skip(keep).map(|b| b.spec.cidr.network()).collect();
    let unbind = |start: IpAddr| {
        let block = view.change(start);
        block.spec.node = None;
        block.metadata.name.clone()
    };
    blocks.into_iter().map(unbind).collect()
}

/// A node is gone for good: its own addresses are given back, and its blocks are anybody's. Returns
/// what was given back. Addresses of its pods are judged one by one ([`super::judge`]).
pub fn plan_node_gone(view: &mut View, node: &str, now_ms: u64) -> Vec<IpAddr> {
    let bound = |b: &&AddressBlock| b.spec.node.as_deref() == Some(node);
    let starts: Vec<IpAddr> = view.blocks().filter(bound).map(|b| b.spec.cidr.network()).collect();
    for start in starts {
        view.change(start).spec.node = None;
    }
    let own = |e: &Entry| {
        e.state.is_held() && matches!(&e.owner, Some(Owner::Node { name }) if name == node)
    };
    change(view, own, |e| release(e, now_ms))
}
