//! `AddressBlock` of bowline.dev/v1alpha1: the truth about 64 addresses of a Network.
//!
//! Invariants, kept by [`crate::ipam`] and checked by [`crate::rules::validate_block`]:
//! - `cidr` is aligned: /26 for IPv4, /122 for IPv6; the name follows from Network and `cidr`.
//! - At most one entry per address; entries are sorted by address.
//! - An object is changed by compare-and-swap on its resource version only.
//! - An outline ([`AddressBlockSpec::left_out`]) is never written.

use std::net::IpAddr;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::mac::stable_hash;
use super::meta::{ObjectMeta, resource};
use crate::range::{Family, number};

/// Label of a block: its Network, so that a node watches only those in use there.
pub const NETWORK_LABEL: &str = "bowline.dev/network";

resource! {
    /// The truth about 64 addresses of a Network. Cluster-scoped.
    AddressBlock, AddressBlockSpec, super::core::Empty, "bowline.dev/v1alpha1", "AddressBlock", "addressblocks", namespaced: false
}

/// Addresses in a block.
pub const BLOCK_SIZE: u128 = 64;

/// The prefix of the block that an address lies in: /26 or /122.
#[must_use]
pub fn block_cidr(address: IpAddr) -> IpNet {
    let family = Family::of(address);
    let start = family.address(number(address) & !(BLOCK_SIZE - 1));
    // The length is always within the family's bounds, so that the fallback is never taken.
    IpNet::new(start, family.bits() - 6).unwrap_or_else(|_| start.into())
}

/// The name of a block: its Network and its first address in dashes, every group of an IPv6 address
/// written out: `blue.10-0-0-64`, `blue.fd00-0-0-0-0-0-0-40`. Blocks of the LAN domain are called
/// `lan.domain.…`, which no Network's name (one DNS label) can lead to.
#[must_use]
pub fn block_name(network: &str, address: IpAddr) -> String {
    let domain = if network.is_empty() { "lan.domain" } else { network };
    let groups: Vec<String> = match block_cidr(address).addr() {
        IpAddr::V4(a) => a.octets().iter().map(u8::to_string).collect(),
        IpAddr::V6(a) => a.segments().iter().map(|s| format!("{s:x}")).collect(),
    };
    format!("{domain}.{}", groups.join("-"))
}

impl AddressBlock {
    /// A new, unbound and empty block for the 64 addresses around `address`.
    #[must_use]
    pub fn around(network: &str, address: IpAddr) -> Self {
        let spec = AddressBlockSpec {
            network: network.into(),
            cidr: block_cidr(address),
            node: None,
            entries: Vec::new(),
            left_out: None,
        };
        let mut block = AddressBlock::new(block_name(network, address), spec);
        block.metadata.labels.insert(NETWORK_LABEL.into(), network.into());
        block
    }

    /// The first address as a number.
    #[must_use]
    pub fn start(&self) -> u128 {
        number(self.spec.cidr.network())
    }

    /// IPv4 or IPv6.
    #[must_use]
    pub fn family(&self) -> Family {
        Family::of_net(&self.spec.cidr)
    }

    /// The entry of an address, to be changed.
    pub fn entry_mut(&mut self, address: IpAddr) -> Option<&mut Entry> {
        self.spec.entries.iter_mut().find(|e| e.address == address)
    }

    /// Sets the entry of its address, keeping the order.
    pub fn put(&mut self, entry: Entry) {
        match self.spec.entries.binary_search_by_key(&entry.address, |e| e.address) {
            Ok(at) => self.spec.entries[at] = entry,
            Err(at) => self.spec.entries.insert(at, entry),
        }
    }

    /// Whether nobody holds an address of it.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let out = self.spec.left_out.as_ref();
        !self.spec.entries.iter().any(|e| e.state.is_held()) && out.is_none_or(|out| out.held == 0)
    }

    /// The entry of an address.
    #[must_use]
    pub fn entry(&self, address: IpAddr) -> Option<&Entry> {
        self.spec.entries.iter().find(|e| e.address == address)
    }

    /// Whether a node may take something from the block, or has something in it, so that it needs more
    /// than an outline.
    #[must_use]
    pub fn concerns(&self, node: &str) -> bool {
        let full = || self.held().count() as u128 == BLOCK_SIZE;
        match &self.spec.node {
            Some(bound) if bound == node => true,
            None if !full() => true,
            _ => self.spec.entries.iter().any(|e| e.node == node),
        }
    }

    /// What a node keeps of a block that it takes nothing from: where its addresses are, which are
    /// held, and the hashes of their owners. In a large cluster nearly all blocks are kept so.
    #[must_use]
    pub fn outline(&self) -> Self {
        let bit = |e: &Entry| 1u64 << ((number(e.address) - self.start()) & (BLOCK_SIZE - 1));
        let owner = |e: &Entry| Some(owner_hash(e.owner.as_ref()?, &e.interface));
        let left_out = LeftOut {
            held: self.held().map(bit).fold(0, |held, bit| held | bit),
            owners: self.spec.entries.iter().filter_map(owner).collect(),
        };
        let own_route = |e: &&Entry| self.spec.node.as_ref() != Some(&e.node);
        let entries = self.held().filter(own_route).map(Entry::outline).collect();
        let mut outline = AddressBlock {
            api_version: String::new(),
            kind: String::new(),
            metadata: ObjectMeta {
                uid: self.metadata.uid.clone(),
                resource_version: self.metadata.resource_version.clone(),
                ..ObjectMeta::named(self.name())
            },
            spec: AddressBlockSpec {
                network: self.spec.network.clone(),
                cidr: self.spec.cidr,
                node: self.spec.node.clone(),
                entries,
                left_out: Some(Box::new(left_out)),
            },
            status: None,
        };
        outline.spec.entries.shrink_to_fit();
        outline
    }

    /// The node on which an address of the block is held.
    #[must_use]
    pub fn holder_node(&self, address: IpAddr) -> Option<&str> {
        if let Some(entry) = self.held().find(|e| e.address == address) {
            return Some(&entry.node);
        }
        let out = self.spec.left_out.as_ref().filter(|_| self.spec.cidr.contains(&address))?;
        let at = (number(address) - self.start()) & (BLOCK_SIZE - 1);
        (out.held >> at & 1 == 1).then_some(self.spec.node.as_deref()).flatten()
    }

    /// Entries whose address is in somebody's hands.
    pub fn held(&self) -> impl Iterator<Item = &Entry> {
        self.spec.entries.iter().filter(|e| e.state.is_held())
    }
}

/// What is known about the addresses of a block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "self.network == oldSelf.network && self.cidr == oldSelf.cidr",
     "message": "network and cidr cannot be changed; they make the block's name"}
]))]
pub struct AddressBlockSpec {
    /// The Network; empty = the LAN domain of the IPAM-only plugin.
    pub network: String,
    /// The 64 addresses.
    #[schemars(with = "String")]
    pub cidr: IpNet,
    /// The node that the block is bound to: one route leads there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Addresses that are not plainly free.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub entries: Vec<Entry>,
    /// No part of the object: there in an outline, whose entries are only those that need a route of
    /// their own, without what other nodes need not know.
    #[serde(skip)]
    pub left_out: Option<Box<LeftOut>>,
}

/// What an outline keeps of the entries that it left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Held addresses, bit by bit from the block's first.
    pub held: u64,
    /// Who has, or had last, an address of the block: [`owner_hash`] of each.
    pub owners: Box<[u64]>,
}

impl Default for AddressBlockSpec {
    // Needed by the envelope only: a block without spec is refused by validation.
    fn default() -> Self {
        AddressBlockSpec {
            network: String::new(),
            cidr: IpNet::V4(ipnet::Ipv4Net::default()),
            node: None,
            entries: Vec::new(),
            left_out: None,
        }
    }
}

/// What is known about one address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// The address.
    #[schemars(with = "String")]
    pub address: IpAddr,
    /// Whether it is held, and how.
    pub state: EntryState,
    /// Who holds it; for a released address who had it last, so that a pod whose sandbox is made
    /// anew gets it back; absent in quarantine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "OwnerFields")]
    pub owner: Option<Owner>,
    /// The interface inside the pod (or on the node).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub interface: String,
    /// The pool that it was taken from.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub pool: String,
    /// The sandbox that the claim was made for; an older sandbox cannot release it.
    #[serde(rename = "sandboxID", default, skip_serializing_if = "String::is_empty")]
    pub sandbox_id: String,
    /// Where it is used; another node than the block's makes it a stray with its own route.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// Unix time of the last change of `state`; for a released address the start of its rest.
    #[serde(default)]
    pub since_ms: u64,
    /// Quarantined: the unix time of its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<u64>,
    /// Quarantined: why, for a person.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

impl Entry {
    /// Who holds the address, for a sentence.
    #[must_use]
    pub fn holder(&self) -> String {
        self.owner.as_ref().map_or_else(|| "somebody".into(), ToString::to_string)
    }

    /// Address, state and node.
    fn outline(&self) -> Self {
        Entry {
            address: self.address,
            state: self.state,
            owner: None,
            interface: String::new(),
            pool: String::new(),
            sandbox_id: String::new(),
            node: self.node.clone(),
            since_ms: self.since_ms,
            until_ms: self.until_ms,
            reason: String::new(),
        }
    }
}

/// A number for an owner's interface, the same for every UID of a pod's name, so that sticky owners
/// are found as well. What it finds is compared before it is believed.
#[must_use]
pub fn owner_hash(owner: &Owner, interface: &str) -> u64 {
    match owner {
        Owner::Pod { namespace, name, .. } => stable_hash(&[namespace, name, interface]),
        Owner::Node { name } => stable_hash(&["", name, interface]),
    }
}

/// Whether an address is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum EntryState {
    /// Claimed for an ADD that has not finished.
    Intent,
    /// In use.
    Allocated,
    /// Answered for by somebody else on the wire; rests until `untilMs`.
    Quarantined,
    /// Given back at `sinceMs`.
    Released,
}

impl EntryState {
    /// Whether the address is in somebody's hands.
    #[must_use]
    pub fn is_held(self) -> bool {
        matches!(self, EntryState::Intent | EntryState::Allocated)
    }
}

/// Who holds an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", try_from = "OwnerFields")]
pub enum Owner {
    /// A pod.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Its UID; for static pods the annotation `kubernetes.io/config.hash`.
        uid: String,
    },
    /// A node, for `bowline0`.
    Node {
        /// Its name.
        name: String,
    },
}

/// [`Owner`] as it is written: one object, fields by kind.
#[derive(Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "self.kind == 'Pod' ? has(self.namespace) && has(self.uid) : !has(self.namespace) && !has(self.uid)",
     "message": "a Pod has namespace and uid, a Node has neither"}
]))]
struct OwnerFields {
    /// `Pod` or `Node`.
    #[schemars(extend("enum" = ["Pod", "Node"]))]
    kind: String,
    /// Namespace of a pod.
    namespace: Option<String>,
    /// Name of the pod or node.
    name: String,
    /// UID of a pod; for static pods the annotation `kubernetes.io/config.hash`.
    uid: Option<String>,
}

impl TryFrom<OwnerFields> for Owner {
    type Error = String;

    fn try_from(fields: OwnerFields) -> Result<Self, String> {
        let OwnerFields { kind, namespace, name, uid } = fields;
        match (kind.as_str(), namespace, uid) {
            ("Pod", Some(namespace), Some(uid)) => Ok(Owner::Pod { namespace, name, uid }),
            ("Pod", ..) => Err(format!("the pod {name} needs a namespace and a uid")),
            ("Node", ..) => Ok(Owner::Node { name }),
            _ => Err(format!("an owner is a Pod or a Node, not a {kind}")),
        }
    }
}

impl Owner {
    /// What makes it one and the same over restarts: the pod's UID, or `node/<name>`.
    #[must_use]
    pub fn key(&self) -> String {
        match self {
            Owner::Pod { uid, .. } => uid.clone(),
            Owner::Node { name } => format!("node/{name}"),
        }
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Owner::Pod { namespace, name, .. } => write!(f, "pod {namespace}/{name}"),
            Owner::Node { name } => write!(f, "node {name}"),
        }
    }
}
