//! What the node shall do, as the writer of the API said it and as it was found to make sense.
//!
//! A request becomes a [`Change`]: the networks and interfaces that are new, different or gone.
//! A full state is the change from what is in force; so everything behind this file knows only
//! changes, and the same state twice is an empty one.
//!
//! *Invariant*: [`Desired`] holds only what [`Desired::change`] accepted: names, VNIs and addresses
//! are unique, every reference leads somewhere.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use wire::{Mac, Vni};

use super::check;
use super::read::{self, Refused};

/// UDP port of VXLAN (RFC 7348 §5).
pub const VXLAN_PORT: u16 = 4789;

/// An address prefix; host bits are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Net {
    /// First address.
    pub addr: IpAddr,
    /// Bits.
    pub len: u8,
}

impl Net {
    /// Whether the address lies inside.
    pub fn contains(&self, ip: IpAddr) -> bool {
        match (self.addr, ip) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.len)).unwrap_or(0);
                (u32::from(a) ^ u32::from(b)) & mask == 0
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.len)).unwrap_or(0);
                (u128::from(a) ^ u128::from(b)) & mask == 0
            }
            _ => false,
        }
    }
}

impl std::fmt::Display for Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.addr, self.len)
    }
}

/// A realm on this node.
#[derive(Debug)]
pub struct Network {
    /// Unique.
    pub name: Arc<str>,
    /// Unique.
    pub vni: Vni,
    /// Of the pods' interfaces.
    pub mtu_bytes: u16,
    /// Answered by the node itself.
    pub gateways: Vec<IpAddr>,
    /// The realm's own prefixes.
    pub prefixes: Vec<Net>,
    /// Where other addresses are.
    pub routes: Vec<Route>,
    /// Foreign tunnel ends that may send on this VNI.
    pub peers: Vec<IpAddr>,
    /// As it was said, for reading back and for comparing.
    pub said: api::Network,
}

impl Network {
    /// The address that every node answers with for the gateway and for all addresses of the
    /// realm. The scheme is part of the API: see `Network.vni` there.
    pub fn gateway_mac(&self) -> Mac {
        let [_, a, b, c] = self.vni.get().to_be_bytes();
        Mac([0x0a, 0xb0, a, b, c, 0x01])
    }

    /// Whether a route leads behind the interface.
    pub fn leads_behind(&self, interface: &str) -> bool {
        self.routes.iter().any(|r| matches!(&r.via, Via::Interface(id) if **id == *interface))
    }
}

/// A route of a realm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Destination.
    pub prefix: Net,
    /// Where it leads.
    pub via: Via,
}

/// Where a route leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Via {
    /// Through a tunnel.
    Tunnel(Tunnel),
    /// Behind a local interface.
    Interface(Arc<str>),
    /// Answered by ICMP unreachable.
    Unreachable,
}

/// The far end of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tunnel {
    /// Where packets are sent.
    pub vtep: IpAddr,
    /// Destination of the inner Ethernet header.
    pub inner_mac: Mac,
}

/// A pod's interface.
#[derive(Debug)]
pub struct Interface {
    /// Unique.
    pub id: Arc<str>,
    /// Its network's name.
    pub network: Arc<str>,
    /// The pod's.
    pub mac: Mac,
    /// Its own.
    pub addresses: Vec<IpAddr>,
    /// Further source prefixes.
    pub allowed: Vec<Net>,
    /// 0 = the network's.
    pub mtu_bytes: u16,
    /// What it is made of.
    pub port: Port,
    /// As it was said, for reading back and for comparing.
    pub said: api::Interface,
}

/// What an interface is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Port {
    /// A kernel device.
    Tap {
        /// Descriptors that must be offered.
        queues: u16,
    },
    /// Shared memory.
    Memif(Memif),
}

/// A memif interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memif {
    /// Bare IP packets instead of Ethernet frames.
    pub ip_mode: bool,
    /// Rings that the pod may receive on: a cap on what it asks.
    pub rx_queues: u16,
    /// Rings that the pod may send on: a cap on what it asks.
    pub tx_queues: u16,
    /// Largest ring.
    pub log2_ring_size: u8,
    /// Whether memory that its owner can shrink is refused.
    pub require_sealed: bool,
    /// Empty = none.
    pub secret: String,
    /// Interface id that the client names.
    pub id: u32,
}

impl Port {
    /// Whether a live port can become the other without being made anew.
    pub fn fits(&self, other: &Port) -> bool {
        match (self, other) {
            (Port::Tap { queues: a }, Port::Tap { queues: b }) => a == b,
            (Port::Memif(a), Port::Memif(b)) => a.ip_mode == b.ip_mode,
            _ => false,
        }
    }
}

/// What is node-wide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeWide {
    /// Tunnel ends of the cluster.
    pub cluster_vteps: BTreeSet<IpAddr>,
    /// Our tunnel ends, at most one per family.
    pub local_vteps: BTreeSet<IpAddr>,
    /// UDP port of VXLAN.
    pub vxlan_port: u16,
}

impl Default for NodeWide {
    fn default() -> Self {
        Self {
            cluster_vteps: BTreeSet::new(),
            local_vteps: BTreeSet::new(),
            vxlan_port: VXLAN_PORT,
        }
    }
}

/// New value of what changes; `None` = gone.
pub type Changes<T> = BTreeMap<Arc<str>, Option<Arc<T>>>;

/// The way from one [`Desired`] to the next. Accepted, not yet in force.
#[derive(Debug, Default)]
pub struct Change {
    /// By name.
    pub networks: Changes<Network>,
    /// By id.
    pub interfaces: Changes<Interface>,
    /// If it changes.
    pub node: Option<NodeWide>,
    /// Of the writer.
    pub revision: u64,
}

impl Change {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.networks.is_empty() && self.interfaces.is_empty() && self.node.is_none()
    }
}

/// The state in force.
#[derive(Debug, Default)]
pub struct Desired {
    /// Of the writer; 0 = nothing was said yet.
    pub revision: u64,
    /// By name.
    pub networks: BTreeMap<Arc<str>, Arc<Network>>,
    /// By id.
    pub interfaces: BTreeMap<Arc<str>, Arc<Interface>>,
    /// What is node-wide.
    pub node: NodeWide,
    /// Default of `node.vxlan_port` on this node.
    default_port: Option<u16>,
    /// Which network has a VNI.
    vnis: HashMap<u32, Arc<str>>,
    /// Which interface has an address of a network.
    owners: HashMap<(Arc<str>, IpAddr), Arc<str>>,
}

impl Desired {
    /// Nothing; VXLAN is on `vxlan_port` unless a state says otherwise.
    pub fn new(vxlan_port: u16) -> Self {
        let node = NodeWide { vxlan_port, ..NodeWide::default() };
        Self { node, default_port: Some(vxlan_port), ..Self::default() }
    }

    /// Reads and checks a request against what is in force.
    pub fn change(&self, request: &api::ApplyRequest) -> Result<Change, Refused> {
        let empty = api::State::default();
        let state = request.state.as_ref().unwrap_or(&empty);
        let mut change =
            Change { revision: self.revision_of(request, state)?, ..Change::default() };
        let mut seen = BTreeSet::new();
        for (i, said) in state.networks.iter().enumerate() {
            let known = self.networks.get(said.name.as_str());
            if !seen.insert(said.name.as_str()) {
                let sentence = format!("\"{}\" is in the list twice", said.name);
                return Err(Refused::new(format!("networks[{i}].name"), sentence));
            }
            if known.is_none_or(|known| known.said != *said) {
                let network = read::network(&format!("networks[{i}]"), said)?;
                change.networks.insert(Arc::clone(&network.name), Some(Arc::new(network)));
            }
        }
        let mut seen_ids = BTreeSet::new();
        for (i, said) in state.interfaces.iter().enumerate() {
            let known = self.interfaces.get(said.id.as_str());
            if !seen_ids.insert(said.id.as_str()) {
                let sentence = format!("\"{}\" is in the list twice", said.id);
                return Err(Refused::new(format!("interfaces[{i}].id"), sentence));
            }
            if known.is_none_or(|known| known.said != *said) {
                let interface = read::interface(&format!("interfaces[{i}]"), said)?;
                change.interfaces.insert(Arc::clone(&interface.id), Some(Arc::new(interface)));
            }
        }
        if request.partial {
            self.removals(request, &seen, &seen_ids, &mut change)?;
        } else {
            let gone = self.networks.keys().filter(|name| !seen.contains(&***name));
            change.networks.extend(gone.map(|name| (Arc::clone(name), None)));
            let gone = self.interfaces.keys().filter(|id| !seen_ids.contains(&***id));
            change.interfaces.extend(gone.map(|id| (Arc::clone(id), None)));
        }
        let node = read::node(
            state,
            &self.node,
            self.default_port.unwrap_or(VXLAN_PORT),
            request.partial,
        )?;
        change.node = (node != self.node).then_some(node);
        check::change(self, &change, state)?;
        Ok(change)
    }

    fn revision_of(&self, request: &api::ApplyRequest, state: &api::State) -> Result<u64, Refused> {
        if request.partial && state.revision == 0 {
            return Ok(self.revision);
        }
        if state.revision < self.revision {
            let sentence = format!(
                "{} is older than {}, which is in force; send a newer state, or read GetState first",
                state.revision, self.revision
            );
            return Err(Refused::new("revision", sentence));
        }
        Ok(state.revision)
    }

    /// What a partial request takes away. Removing the unknown is fine: it is gone.
    fn removals(
        &self,
        request: &api::ApplyRequest,
        networks: &BTreeSet<&str>,
        interfaces: &BTreeSet<&str>,
        change: &mut Change,
    ) -> Result<(), Refused> {
        for (i, name) in request.remove_networks.iter().enumerate() {
            if networks.contains(name.as_str()) {
                let sentence = format!("\"{name}\" is also in networks: say one of the two");
                return Err(Refused::new(format!("remove_networks[{i}]"), sentence));
            }
            if let Some((name, _)) = self.networks.get_key_value(name.as_str()) {
                change.networks.insert(Arc::clone(name), None);
            }
        }
        for (i, id) in request.remove_interfaces.iter().enumerate() {
            if interfaces.contains(id.as_str()) {
                let sentence = format!("\"{id}\" is also in interfaces: say one of the two");
                return Err(Refused::new(format!("remove_interfaces[{i}]"), sentence));
            }
            if let Some((id, _)) = self.interfaces.get_key_value(id.as_str()) {
                change.interfaces.insert(Arc::clone(id), None);
            }
        }
        Ok(())
    }

    /// The network as it will be.
    pub fn network_after<'a>(&'a self, change: &'a Change, name: &str) -> Option<&'a Arc<Network>> {
        match change.networks.get(name) {
            Some(new) => new.as_ref(),
            None => self.networks.get(name),
        }
    }

    /// The interface as it will be.
    pub fn interface_after<'a>(
        &'a self,
        change: &'a Change,
        id: &str,
    ) -> Option<&'a Arc<Interface>> {
        match change.interfaces.get(id) {
            Some(new) => new.as_ref(),
            None => self.interfaces.get(id),
        }
    }

    /// Which network has the VNI.
    pub fn network_of_vni(&self, vni: u32) -> Option<&Arc<str>> {
        self.vnis.get(&vni)
    }

    /// Which interface has the address.
    pub fn owner(&self, network: &Arc<str>, ip: IpAddr) -> Option<&Arc<str>> {
        self.owners.get(&(Arc::clone(network), ip))
    }

    /// The change is in force.
    pub fn commit(&mut self, change: Change) {
        self.revision = change.revision;
        // First what goes, then what comes: a VNI or an address may move from one to another.
        for name in change.networks.keys() {
            if let Some(old) = self.networks.remove(name) {
                self.vnis.remove(&old.vni.get());
            }
        }
        for (name, new) in change.networks {
            let Some(new) = new else { continue };
            self.vnis.insert(new.vni.get(), Arc::clone(&name));
            self.networks.insert(name, new);
        }
        for id in change.interfaces.keys() {
            let Some(old) = self.interfaces.remove(id) else { continue };
            for &ip in &old.addresses {
                self.owners.remove(&(Arc::clone(&old.network), ip));
            }
        }
        for (id, new) in change.interfaces {
            let Some(new) = new else { continue };
            for &ip in &new.addresses {
                self.owners.insert((Arc::clone(&new.network), ip), Arc::clone(&id));
            }
            self.interfaces.insert(id, new);
        }
        if let Some(node) = change.node {
            self.node = node;
        }
    }

    /// For reading back.
    pub fn said(&self) -> api::State {
        let ips = |set: &BTreeSet<IpAddr>| set.iter().map(|&ip| read::said_ip(ip)).collect();
        api::State {
            revision: self.revision,
            networks: self.networks.values().map(|n| n.said.clone()).collect(),
            interfaces: self.interfaces.values().map(|i| without_secret(&i.said)).collect(),
            cluster_vteps: ips(&self.node.cluster_vteps),
            local_vteps: ips(&self.node.local_vteps),
            vxlan_port: u32::from(self.node.vxlan_port),
        }
    }
}

/// Secrets are not read back: whoever may look at the state need not be able to connect.
fn without_secret(said: &api::Interface) -> api::Interface {
    let mut said = said.clone();
    if let Some(api::interface::Port::Memif(memif)) = &mut said.port {
        memif.secret.clear();
    }
    said
}
