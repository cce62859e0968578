//! From a change to the next snapshot of the tables.
//!
//! [`Books`] remember which number was given to what. [`Books::plan`] builds the tables that follow
//! the current ones, touching only what the change touches; the books themselves change in
//! [`Books::commit`], after the plan has been published and seen, or not at all
//! ([`Books::abandon`]).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use wire::Mac;

use super::desired::{Change, Desired, Interface, Network, NodeWide, Port, Route, Tunnel, Via};
use super::ids::{Exhausted, Ids};
use super::rewrite::{self, Ends, Outer, Way};
use crate::table::counters::per_worker;
use crate::table::fib::{Fib, Prefix};
use crate::table::{
    Counters, HopKind, Iface, IfaceId, IfaceKind, NextHop, NextHopId, Node, Tables, TxOwner, Vrf,
    VrfId,
};

/// What was given to an interface.
#[derive(Debug, Clone)]
pub struct IfaceBook {
    /// Its number.
    pub id: IfaceId,
    /// What leads to it.
    pub hop: NextHopId,
    /// As it was wanted.
    pub desired: Arc<Interface>,
    /// Who sends on its queues; empty while it has none.
    pub owners: Arc<[TxOwner]>,
    /// Live as long as the interface, whatever else changes.
    pub counters: Arc<[Counters]>,
}

/// What was given to a network.
#[derive(Debug, Clone)]
pub struct VrfBook {
    /// Its number.
    pub id: VrfId,
    /// As it was wanted.
    pub desired: Arc<Network>,
    /// What leads into its tunnels.
    pub tunnels: BTreeMap<Tunnel, NextHopId>,
    /// Of packets out of tunnels.
    pub counters: Arc<[Counters]>,
}

/// The next tables and what the books will say when they are in force.
#[derive(Debug)]
pub struct Plan {
    /// To be published.
    pub tables: Tables,
    /// Interfaces whose entry changes; `None` = gone.
    pub ifaces: HashMap<Arc<str>, Option<IfaceBook>>,
    vrfs: HashMap<Arc<str>, Option<VrfBook>>,
    given: Given,
}

/// Numbers that were taken for a plan.
#[derive(Debug, Default)]
struct Given {
    ifaces: Vec<IfaceId>,
    vrfs: Vec<VrfId>,
    hops: Vec<NextHopId>,
}

/// See the module.
#[derive(Debug)]
pub struct Books {
    workers: usize,
    router_mac: Mac,
    /// By id.
    pub ifaces: HashMap<Arc<str>, IfaceBook>,
    /// By name.
    pub vrfs: HashMap<Arc<str>, VrfBook>,
    /// How tunnel ends are reached now.
    pub ways: HashMap<IpAddr, Way>,
    iface_ids: Ids,
    vrf_ids: Ids,
    hop_ids: Ids,
    gateway: NextHopId,
    unreachable: NextHopId,
}

impl Books {
    /// Empty books, and the tables that go with them.
    pub fn new(workers: usize, router_mac: Mac, vxlan_port: u16) -> (Self, Tables) {
        let gateway = NextHopId(NextHopId::FIRST);
        let unreachable = NextHopId(NextHopId::FIRST + 1);
        let books = Self {
            workers,
            router_mac,
            ifaces: HashMap::new(),
            vrfs: HashMap::new(),
            ways: HashMap::new(),
            iface_ids: Ids::new("interfaces", 1, u32::from(u16::MAX)),
            vrf_ids: Ids::new("networks", 1, u32::from(u16::MAX)),
            hop_ids: Ids::new("next hops", unreachable.0 + 1, (1 << 24) - 1),
            gateway,
            unreachable,
        };
        let mut tables = Tables::default();
        let hop = |kind| NextHop { kind, ..NextHop::default() };
        tables.next_hops.set(gateway.0 as usize, hop(HopKind::Gateway));
        tables.next_hops.set(unreachable.0 as usize, hop(HopKind::Unreachable));
        let node = Node { vxlan_port, router_mac, ..(*tables.node).clone() };
        tables.node = Arc::new(node);
        (books, tables)
    }

    /// A number for an uplink or a host tap.
    pub fn take_iface_id(&mut self) -> Result<IfaceId, Exhausted> {
        self.iface_ids.take().map(|id| IfaceId(id as u16))
    }

    /// The interface's queues are back: its number may be given again.
    pub fn iface_is_gone(&mut self, id: IfaceId) {
        self.iface_ids.give_back(u32::from(id.0));
    }

    /// The tables that follow `current` by the change.
    pub fn plan(
        &mut self,
        desired: &Desired,
        change: &Change,
        current: &Tables,
    ) -> Result<Plan, Exhausted> {
        let mut plan = Plan {
            tables: current.clone(),
            ifaces: HashMap::new(),
            vrfs: HashMap::new(),
            given: Given::default(),
        };
        match self.fill(desired, change, &mut plan) {
            Ok(()) => Ok(plan),
            Err(error) => {
                self.abandon(plan);
                Err(error)
            }
        }
    }

    fn fill(
        &mut self,
        desired: &Desired,
        change: &Change,
        plan: &mut Plan,
    ) -> Result<(), Exhausted> {
        let node = change.node.as_ref().unwrap_or(&desired.node);
        // What goes makes room first: an address may move between interfaces.
        for id in change.interfaces.keys() {
            self.unlink_iface(plan, id);
        }
        for (name, new) in &change.networks {
            if new.is_none() {
                self.remove_vrf(plan, name);
            }
        }
        for new in change.networks.values().flatten() {
            self.prepare_vrf(plan, new)?;
        }
        for new in change.interfaces.values().flatten() {
            self.put_iface(plan, desired, change, new)?;
        }
        for new in change.networks.values().flatten() {
            self.put_vrf(plan, desired, change, new, node)?;
        }
        if change.node.is_some() {
            self.rewrite_tunnels(plan, node);
        }
        self.put_node(plan, desired, change, node);
        Ok(())
    }

    /// The plan is in force.
    pub fn commit(&mut self, plan: Plan) {
        for (name, new) in plan.vrfs {
            let old = match new {
                Some(book) => {
                    let kept: BTreeSet<_> = book.tunnels.values().copied().collect();
                    let old = self.vrfs.insert(name, book);
                    for hop in old.iter().flat_map(|old| old.tunnels.values()) {
                        if !kept.contains(hop) {
                            self.hop_ids.give_back(hop.0);
                        }
                    }
                    continue;
                }
                None => self.vrfs.remove(&name),
            };
            let Some(old) = old else { continue };
            self.vrf_ids.give_back(u32::from(old.id.0));
            for hop in old.tunnels.values() {
                self.hop_ids.give_back(hop.0);
            }
        }
        for (id, new) in plan.ifaces {
            match new {
                Some(book) => drop(self.ifaces.insert(id, book)),
                None => {
                    if let Some(old) = self.ifaces.remove(&id) {
                        self.hop_ids.give_back(old.hop.0);
                    }
                }
            }
        }
    }

    /// The plan was not published, or taken back.
    pub fn abandon(&mut self, plan: Plan) {
        for id in plan.given.ifaces {
            self.iface_ids.give_back(u32::from(id.0));
        }
        for id in plan.given.vrfs {
            self.vrf_ids.give_back(u32::from(id.0));
        }
        for id in plan.given.hops {
            self.hop_ids.give_back(id.0);
        }
    }

    /// The same tables with other owners of an interface's queues.
    pub fn with_owners(&mut self, tables: &mut Tables, id: &str, owners: Arc<[TxOwner]>) {
        let Some(book) = self.ifaces.get_mut(id) else { return };
        book.owners = owners;
        let Some(vrf) = self.vrfs.get(&book.desired.network) else { return };
        let iface = Self::iface(book, vrf.id, vrf.desired.mtu_bytes);
        tables.ifaces.set(usize::from(book.id.0), Some(Arc::new(iface)));
    }

    /// The same with the plan's interface, which is not in the books yet.
    pub fn plan_owners(&self, plan: &mut Plan, id: &str, owners: Arc<[TxOwner]>) {
        let Some(Some(book)) = plan.ifaces.get_mut(id) else { return };
        book.owners = owners;
        let vrf = plan.vrfs.get(&book.desired.network).and_then(Option::as_ref);
        let Some(vrf) = vrf.or_else(|| self.vrfs.get(&book.desired.network)) else { return };
        let iface = Self::iface(book, vrf.id, vrf.desired.mtu_bytes);
        plan.tables.ifaces.set(usize::from(book.id.0), Some(Arc::new(iface)));
    }

    /// Sets the ways to tunnel ends and rewrites the next hops of those that changed. Whether any
    /// did.
    pub fn set_ways(
        &mut self,
        tables: &mut Tables,
        ways: HashMap<IpAddr, Way>,
        node: &NodeWide,
    ) -> bool {
        let old = std::mem::replace(&mut self.ways, ways);
        let changed = |vtep: &IpAddr| old.get(vtep) != self.ways.get(vtep);
        let mut any = false;
        for book in self.vrfs.values() {
            for (tunnel, hop) in &book.tunnels {
                if changed(&tunnel.vtep) {
                    let new = self.tunnel_hop(&book.desired, tunnel, node);
                    tables.next_hops.set(hop.0 as usize, new);
                    any = true;
                }
            }
        }
        any
    }

    /// All far ends that tunnels lead to.
    pub fn tunnel_ends(&self) -> BTreeSet<IpAddr> {
        self.vrfs.values().flat_map(|book| book.tunnels.keys().map(|t| t.vtep)).collect()
    }

    fn vrf_in<'a>(&'a self, plan: &'a Plan, name: &str) -> Option<&'a VrfBook> {
        match plan.vrfs.get(name) {
            Some(new) => new.as_ref(),
            None => self.vrfs.get(name),
        }
    }

    fn take_hop(&mut self, plan: &mut Plan) -> Result<NextHopId, Exhausted> {
        let hop = NextHopId(self.hop_ids.take()?);
        plan.given.hops.push(hop);
        Ok(hop)
    }

    /// Takes an interface out of the plan's tables. If it comes again, [`Books::put_iface`] puts it
    /// back under the same number.
    fn unlink_iface(&self, plan: &mut Plan, id: &Arc<str>) {
        let Some(book) = self.ifaces.get(id) else { return };
        if let Some(vrf) = self.vrfs.get(&book.desired.network) {
            for &ip in &book.desired.addresses {
                remove_host(&mut plan.tables, vrf.id, ip);
            }
        }
        plan.tables.ifaces.set(usize::from(book.id.0), None);
        plan.ifaces.insert(Arc::clone(id), None);
    }

    fn remove_vrf(&self, plan: &mut Plan, name: &Arc<str>) {
        let Some(book) = self.vrfs.get(name) else { return };
        for &ip in &book.desired.gateways {
            remove_host(&mut plan.tables, book.id, ip);
        }
        plan.tables.vnis.remove(VrfId::UNDERLAY, book.desired.vni.get());
        plan.tables.vrfs.set(usize::from(book.id.0), None);
        plan.vrfs.insert(Arc::clone(name), None);
    }

    /// Gives a network its number, so that interfaces can be put into it.
    fn prepare_vrf(&mut self, plan: &mut Plan, new: &Arc<Network>) -> Result<(), Exhausted> {
        let book = match self.vrfs.get(&new.name) {
            Some(old) => {
                for &ip in &old.desired.gateways {
                    remove_host(&mut plan.tables, old.id, ip);
                }
                VrfBook { desired: Arc::clone(new), ..old.clone() }
            }
            None => {
                let id = VrfId(self.vrf_ids.take()? as u16);
                plan.given.vrfs.push(id);
                let counters = per_worker(self.workers);
                VrfBook { id, desired: Arc::clone(new), tunnels: BTreeMap::new(), counters }
            }
        };
        plan.vrfs.insert(Arc::clone(&new.name), Some(book));
        Ok(())
    }

    fn put_iface(
        &mut self,
        plan: &mut Plan,
        desired: &Desired,
        change: &Change,
        new: &Arc<Interface>,
    ) -> Result<(), Exhausted> {
        let Some(network) = desired.network_after(change, &new.network) else { return Ok(()) };
        let Some(vrf) = self.vrf_in(plan, &new.network).map(|book| book.id) else { return Ok(()) };
        let book = match self.ifaces.get(&new.id) {
            Some(old) => IfaceBook { desired: Arc::clone(new), ..old.clone() },
            None => {
                let id = self.take_iface_id()?;
                plan.given.ifaces.push(id);
                let hop = self.take_hop(plan)?;
                let counters = per_worker(self.workers);
                IfaceBook { id, hop, desired: Arc::clone(new), owners: Arc::from([]), counters }
            }
        };
        Self::link_iface(plan, &book, vrf, network);
        plan.ifaces.insert(Arc::clone(&new.id), Some(book));
        Ok(())
    }

    /// Writes an interface into the tables: itself, its next hop, its host routes.
    fn link_iface(plan: &mut Plan, book: &IfaceBook, vrf: VrfId, network: &Network) {
        let tables = &mut plan.tables;
        let iface = Self::iface(book, vrf, network.mtu_bytes);
        let macs = (iface.kind != IfaceKind::MemifIp).then(|| (iface.mac, network.gateway_mac()));
        let hop = rewrite::local(book.id, iface.mtu_bytes, macs);
        tables.next_hops.set(book.hop.0 as usize, hop);
        tables.ifaces.set(usize::from(book.id.0), Some(Arc::new(iface)));
        for &ip in &book.desired.addresses {
            insert_host(tables, vrf, ip, book.hop);
        }
    }

    fn iface(book: &IfaceBook, vrf: VrfId, network_mtu: u16) -> Iface {
        let wanted = &book.desired;
        let kind = match &wanted.port {
            Port::Tap { .. } => IfaceKind::Tap,
            Port::Memif(memif) if memif.ip_mode => IfaceKind::MemifIp,
            Port::Memif(_) => IfaceKind::MemifEthernet,
        };
        let (addrs4, addrs6) = super::split(wanted.addresses.iter().copied());
        let (allowed4, allowed6) = super::split_nets(&wanted.allowed);
        Iface {
            id: book.id,
            kind,
            name: Box::from(&*wanted.id),
            vrf,
            mac: wanted.mac,
            mtu_bytes: if wanted.mtu_bytes == 0 { network_mtu } else { wanted.mtu_bytes },
            addrs4: addrs4.into_iter().map(u32::from).collect(),
            addrs6: addrs6.into_iter().map(u128::from).collect(),
            allowed4,
            allowed6,
            any_source: wanted.said.node_leg,
            offloads: kind == IfaceKind::Tap,
            peer: IfaceId::NONE,
            workers: Arc::clone(&book.owners),
            counters: Arc::clone(&book.counters),
        }
    }

    /// Writes a network into the tables: gateways, tunnels, FIBs, itself.
    fn put_vrf(
        &mut self,
        plan: &mut Plan,
        desired: &Desired,
        change: &Change,
        new: &Arc<Network>,
        node: &NodeWide,
    ) -> Result<(), Exhausted> {
        let Some(mut book) = self.vrf_in(plan, &new.name).cloned() else { return Ok(()) };
        for &ip in &new.gateways {
            insert_host(&mut plan.tables, book.id, ip, self.gateway);
        }
        self.put_tunnels(plan, &mut book, new, node)?;
        let old = self.vrfs.get(&new.name);
        if old.is_some_and(|old| old.desired.mtu_bytes != new.mtu_bytes) {
            self.relink_members(plan, desired, change, new, book.id);
        }
        let hop_of = |plan: &Plan, via: &Via| match via {
            Via::Tunnel(tunnel) => book.tunnels.get(tunnel).copied(),
            Via::Unreachable => Some(self.unreachable),
            Via::Interface(id) => match plan.ifaces.get(id) {
                Some(new) => new.as_ref().map(|book| book.hop),
                None => self.ifaces.get(id).map(|book| book.hop),
            },
        };
        let current = plan.tables.vrf(book.id).cloned();
        let same_routes = old.is_some_and(|old| old.desired.routes == new.routes);
        let (fib4, fib6) = match current.filter(|_| same_routes) {
            Some(vrf) => (vrf.fib4.clone(), vrf.fib6.clone()),
            None => build_fibs(&new.routes, |via| hop_of(plan, via)),
        };
        let (gateways4, gateways6) = super::split(new.gateways.iter().copied());
        let (prefixes4, prefixes6) = super::split_nets(&new.prefixes);
        let vrf = Vrf {
            id: book.id,
            name: Box::from(&*new.name),
            vni: Some(new.vni),
            gateway_mac: new.gateway_mac(),
            gateways4: gateways4.into(),
            gateways6: gateways6.into(),
            prefixes4,
            prefixes6,
            peers: new.peers.clone().into(),
            fib4,
            fib6,
            counters: Arc::clone(&book.counters),
        };
        plan.tables.vnis.insert(VrfId::UNDERLAY, new.vni.get(), NextHopId(u32::from(book.id.0)));
        plan.tables.vrfs.set(usize::from(book.id.0), Some(Arc::new(vrf)));
        plan.vrfs.insert(Arc::clone(&new.name), Some(book));
        Ok(())
    }

    fn put_tunnels(
        &mut self,
        plan: &mut Plan,
        book: &mut VrfBook,
        new: &Network,
        node: &NodeWide,
    ) -> Result<(), Exhausted> {
        let wanted: BTreeSet<Tunnel> = new
            .routes
            .iter()
            .filter_map(|route| match &route.via {
                Via::Tunnel(tunnel) => Some(*tunnel),
                Via::Interface(_) | Via::Unreachable => None,
            })
            .collect();
        let mut tunnels = BTreeMap::new();
        for tunnel in wanted {
            let hop = match book.tunnels.get(&tunnel) {
                Some(hop) => *hop,
                None => self.take_hop(plan)?,
            };
            plan.tables.next_hops.set(hop.0 as usize, self.tunnel_hop(new, &tunnel, node));
            tunnels.insert(tunnel, hop);
        }
        book.tunnels = tunnels;
        Ok(())
    }

    fn tunnel_hop(&self, network: &Network, tunnel: &Tunnel, node: &NodeWide) -> NextHop {
        let way = self.ways.get(&tunnel.vtep);
        let outer = Outer::to(tunnel.vtep, node.local_vteps.iter());
        let (Some(way), Some(outer)) = (way, outer) else {
            return rewrite::unresolved(network.mtu_bytes);
        };
        let ends = Ends {
            outer,
            port: node.vxlan_port,
            vni: network.vni,
            inner_from: self.router_mac,
            inner_to: tunnel.inner_mac,
        };
        rewrite::tunnel(way, &ends, network.mtu_bytes)
    }

    /// Our own tunnel ends or the port changed: they are in every tunnel's headers.
    fn rewrite_tunnels(&self, plan: &mut Plan, node: &NodeWide) {
        for (name, book) in &self.vrfs {
            if plan.vrfs.contains_key(name) {
                continue;
            }
            for (tunnel, hop) in &book.tunnels {
                let new = self.tunnel_hop(&book.desired, tunnel, node);
                plan.tables.next_hops.set(hop.0 as usize, new);
            }
        }
    }

    /// The network's MTU changed: it is in all interfaces that have none of their own.
    fn relink_members(
        &self,
        plan: &mut Plan,
        desired: &Desired,
        change: &Change,
        network: &Network,
        vrf: VrfId,
    ) {
        let members = desired.interfaces.values().filter(|i| i.network == network.name);
        for member in members.filter(|i| !change.interfaces.contains_key(&i.id)) {
            if let Some(book) = self.ifaces.get(&member.id) {
                Self::link_iface(plan, book, vrf, network);
            }
        }
    }

    /// Node-wide facts, and who may send us tunnelled packets.
    fn put_node(&self, plan: &mut Plan, desired: &Desired, change: &Change, node: &NodeWide) {
        let touches_peers = |name: &Arc<str>, new: &Option<Arc<Network>>| {
            let old = desired.networks.get(name).map_or(&[][..], |n| &n.peers);
            old != new.as_ref().map_or(&[][..], |n| &n.peers[..])
        };
        let peers_change = change.networks.iter().any(|(name, new)| touches_peers(name, new));
        if change.node.is_none() && !peers_change {
            return;
        }
        let old = senders(&desired.node, desired.networks.values());
        let names = desired.networks.keys().chain(change.networks.keys()).collect::<BTreeSet<_>>();
        let after = names.into_iter().filter_map(|name| desired.network_after(change, name));
        let new = senders(node, after);
        for ip in old.keys().filter(|ip| !new.contains_key(ip)) {
            remove_host(&mut plan.tables, VrfId::UNDERLAY, *ip);
        }
        for (ip, what) in new {
            insert_host(&mut plan.tables, VrfId::UNDERLAY, ip, what);
        }
        let (vteps4, vteps6) = super::split(node.local_vteps.iter().copied());
        plan.tables.node = Arc::new(Node {
            vxlan_port: node.vxlan_port,
            router_mac: self.router_mac,
            vteps4: vteps4.into(),
            vteps6: vteps6.into(),
        });
    }
}

/// Who may send us tunnelled packets. We ourselves may not: such a packet on the wire is forged.
fn senders<'a>(
    node: &NodeWide,
    networks: impl Iterator<Item = &'a Arc<Network>>,
) -> BTreeMap<IpAddr, NextHopId> {
    let peers = networks.flat_map(|n| n.peers.iter().map(|&ip| (ip, NextHopId::PEER_VTEP)));
    let mut all: BTreeMap<_, _> = peers.collect();
    all.extend(node.cluster_vteps.iter().map(|&ip| (ip, NextHopId::CLUSTER_VTEP)));
    all.retain(|ip, _| !node.local_vteps.contains(ip));
    all
}

fn build_fibs(
    routes: &[Route],
    hop_of: impl Fn(&Via) -> Option<NextHopId>,
) -> (Fib<u32>, Fib<u128>) {
    let mut rib4 = Vec::new();
    let mut rib6 = Vec::new();
    for route in routes {
        let Some(hop) = hop_of(&route.via) else { continue };
        let len = route.prefix.len;
        match route.prefix.addr {
            IpAddr::V4(addr) => rib4.push(Prefix { addr: u32::from(addr), len, hop }),
            IpAddr::V6(addr) => rib6.push(Prefix { addr: u128::from(addr), len, hop }),
        }
    }
    (Fib::build(&rib4), Fib::build(&rib6))
}

fn insert_host(tables: &mut Tables, vrf: VrfId, ip: IpAddr, hop: NextHopId) {
    match ip {
        IpAddr::V4(ip) => tables.hosts4.insert(vrf, u32::from(ip), hop),
        IpAddr::V6(ip) => tables.hosts6.insert(vrf, u128::from(ip), hop),
    }
}

fn remove_host(tables: &mut Tables, vrf: VrfId, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => tables.hosts4.remove(vrf, u32::from(ip)),
        IpAddr::V6(ip) => tables.hosts6.remove(vrf, u128::from(ip)),
    }
}
