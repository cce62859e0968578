//! Objects against each other. Of two that cannot both be, the older wins and the other serves
//! nothing: every node decides alike, whatever order the objects arrived in.
//!
//! A pool's home (CONTROL: "Spiderpool's group is somebody else's"): the Network that its label
//! names; without label the one Network that lists it; else the LAN domain, which only the IPAM-only
//! plugin uses. A pool listed by two Networks and labelled for none has no home.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ipnet::IpNet;

use super::{Pool, Problem, check_reserved, check_subnet, outside_of, validate_network};
use crate::range::{AddressSet, Family};
use crate::types::core::ServiceCIDR;
use crate::types::meta::Resource;
use crate::types::network::{DEFAULT_NETWORK, Encapsulation, Network};
use crate::types::node::NodeState;
use crate::types::pool::{SpiderIPPool, SpiderReservedIP, annotation};
use crate::types::subnet::SpiderSubnet;

/// Objects as they were read, by name.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// Networks.
    pub networks: BTreeMap<String, Network>,
    /// Pools.
    pub pools: BTreeMap<String, SpiderIPPool>,
    /// Subnets.
    pub subnets: BTreeMap<String, SpiderSubnet>,
    /// Reservations.
    pub reserved: BTreeMap<String, SpiderReservedIP>,
    /// What pools of `default` must leave alone.
    pub taken: Vec<Taken>,
}

/// A prefix that the nodes' own stack needs: pods of `default` are reached through it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The prefix.
    pub prefix: IpNet,
    /// Whose it is, for a sentence.
    pub whose: String,
}

/// Nodes' own addresses and the prefixes of Services.
pub fn taken_by<'a>(
    nodes: impl Iterator<Item = &'a NodeState>,
    services: impl Iterator<Item = &'a ServiceCIDR>,
) -> Vec<Taken> {
    let of_node = |node: &'a NodeState| {
        let whose = format!("node {}", node.metadata.name);
        node.vteps().map(move |a| Taken { prefix: a.into(), whose: whose.clone() })
    };
    let of_service = |service: &'a ServiceCIDR| {
        let prefixes = service.spec.cidrs.iter().filter_map(|c| c.parse().ok());
        prefixes.map(|prefix| Taken { prefix, whose: "the Services".into() })
    };
    nodes.flat_map(of_node).chain(services.flat_map(of_service)).collect()
}

/// Where a pool belongs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Home {
    /// A Network.
    Network(String),
    /// The LAN domain.
    Lan,
}

impl Home {
    /// As [`crate::types::block::AddressBlockSpec::network`] writes it.
    #[must_use]
    pub fn domain(&self) -> &str {
        match self {
            Home::Network(name) => name,
            Home::Lan => "",
        }
    }
}

/// A problem and the object that has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectProblem {
    /// Its kind.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// What is wrong.
    pub problem: Problem,
}

impl fmt::Display for ObjectProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.kind, self.name, self.problem)
    }
}

/// The catalog's usable part.
#[derive(Clone, Debug, Default)]
pub struct Checked {
    /// Networks that may serve, by name.
    pub networks: BTreeMap<String, Network>,
    /// Pools that may serve, by name, with their home.
    pub pools: BTreeMap<String, (Home, Pool)>,
    /// Subnets that pools may be cut from, by name, with their home.
    pub subnets: BTreeMap<String, (Home, Pool)>,
    /// Everything that is wrong, and with what.
    pub problems: Vec<ObjectProblem>,
    reserved: Vec<(Option<String>, AddressSet)>,
    /// What of `pools` and `subnets` has which home, so that nothing is looked for among all.
    domains: BTreeMap<String, Domain>,
}

/// Names of one home's usable pools and subnets, by prefix. The prefixes of each are apart.
#[derive(Clone, Debug, Default)]
struct Domain {
    pools: BTreeSet<String>,
    /// By prefix: the pools, and all of their addresses.
    spaces: BTreeMap<IpNet, (Vec<String>, AddressSet)>,
    subnets: BTreeMap<IpNet, String>,
}

impl Checked {
    /// Checks a catalog.
    #[must_use]
    pub fn new(catalog: &Catalog) -> Self {
        let mut checked = Checked::default();
        checked.take_networks(catalog);
        checked.take_subnets(catalog);
        checked.take_pools(catalog);
        checked.take_reserved(catalog);
        checked
    }

    /// Problems of one object.
    pub fn problems_of<'a>(
        &'a self,
        kind: &'a str,
        name: &'a str,
    ) -> impl Iterator<Item = &'a Problem> {
        self.problems.iter().filter(move |p| p.kind == kind && p.name == name).map(|p| &p.problem)
    }

    /// Pools of a Network ("" = the LAN domain), by name.
    pub fn pools_of<'a, 'd>(
        &'a self,
        domain: &'d str,
    ) -> impl Iterator<Item = &'a Pool> + use<'a, 'd> {
        let names = self.domains.get(domain).into_iter().flat_map(|d| &d.pools);
        names.filter_map(|name| self.pools.get(name)).map(|(_, pool)| pool)
    }

    /// Pools of one prefix among them, oldest first.
    pub fn pools_in<'a>(&'a self, home: &Home, subnet: &IpNet) -> impl Iterator<Item = &'a Pool> {
        let space = self.domains.get(home.domain()).and_then(|d| d.spaces.get(subnet));
        let names = space.into_iter().flat_map(|(names, _)| names);
        names.filter_map(|name| self.pools.get(name)).map(|(_, pool)| pool)
    }

    /// The subnet of this home that the prefix lies in, or that lies in the prefix.
    fn subnet_around(&self, home: &Home, prefix: &IpNet) -> Option<&Pool> {
        let (_, name) = find_nested(&self.domains.get(home.domain())?.subnets, prefix)?;
        self.subnets.get(name).map(|(_, subnet)| subnet)
    }

    /// What may be handed out of a pool: its addresses without reserved ones and without the
    /// gateways of its Network's other pools.
    #[must_use]
    pub fn allocatable(&self, home: &Home, pool: &Pool) -> AddressSet {
        let mut set = pool.addresses.clone();
        for (domain, reserved) in &self.reserved {
            if domain.as_deref().is_none_or(|d| d == home.domain()) {
                set = set.minus(reserved);
            }
        }
        let gateways = self.pools_of(home.domain()).filter_map(|p| p.gateway);
        set.minus(&AddressSet::from_addresses(pool.family, gateways))
    }

    /// The lowest VNI that no Network of the catalog asks for or has, for one that leaves it out.
    #[must_use]
    pub fn free_vni(catalog: &Catalog) -> Option<u32> {
        let both = |n: &Network| [n.spec.vni, n.status.as_ref().and_then(|s| s.vni)];
        let taken: BTreeSet<u32> = catalog.networks.values().flat_map(both).flatten().collect();
        super::VNI_RANGE.into_iter().find(|vni| !taken.contains(vni))
    }

    fn add<R: Resource>(&mut self, object: &R, problem: Problem) {
        self.problems.push(ObjectProblem {
            kind: R::KIND,
            name: object.meta().name.clone(),
            problem,
        });
    }

    fn take_networks(&mut self, catalog: &Catalog) {
        let mut by_age: Vec<&Network> = catalog.networks.values().collect();
        by_age.sort_by_key(|n| n.metadata.age_key());
        let mut vnis: BTreeMap<u32, &str> = BTreeMap::new();
        let mut vlans: BTreeMap<(&str, u16), &str> = BTreeMap::new();
        for network in by_age {
            let mut problems = validate_network(network);
            // An invalid Network claims nothing, so that it cannot push a valid one aside.
            if !problems.iter().any(Problem::is_error) {
                problems.extend(claim_tag(network, &mut vnis, &mut vlans));
            }
            let usable = !problems.iter().any(Problem::is_error);
            for problem in problems {
                self.add(network, problem);
            }
            if usable {
                self.networks.insert(network.metadata.name.clone(), network.clone());
            }
        }
    }

    /// Within a Network, subnets are apart. A subnet belongs where its label says, else to the LAN
    /// domain.
    fn take_subnets(&mut self, catalog: &Catalog) {
        let mut by_age: Vec<&SpiderSubnet> = catalog.subnets.values().collect();
        by_age.sort_by_key(|s| s.metadata.age_key());
        for object in by_age {
            let mut problems = Vec::new();
            let label = object.metadata.labels.get(annotation::NETWORK).filter(|l| !l.is_empty());
            let home = label.map_or(Home::Lan, |l| Home::Network(l.clone()));
            let subnet = check_subnet(object, &mut problems);
            if let Some(subnet) = &subnet {
                let other = self.subnet_around(&home, &subnet.subnet);
                problems.extend(other.map(|other| {
                    let message = format!(
                        "overlaps {} of the older subnet {} in {home}; \
                         choose a separate prefix, or another Network",
                        other.subnet, other.name
                    );
                    Problem::error("spec.subnet", subnet.subnet, message)
                }));
            }
            let usable = !problems.iter().any(Problem::is_error);
            for problem in problems {
                self.add(object, problem);
            }
            if let (true, Some(subnet)) = (usable, subnet) {
                let domain = self.domains.entry(home.domain().to_owned()).or_default();
                domain.subnets.insert(subnet.subnet, subnet.name.clone());
                self.subnets.insert(subnet.name.clone(), (home, subnet));
            }
        }
    }

    /// A pool that lies in a subnet has the subnet's prefix, and addresses of the subnet only.
    fn within_subnet(&self, home: &Home, pool: &Pool) -> Option<Problem> {
        let subnet = self.subnet_around(home, &pool.subnet)?;
        if subnet.subnet != pool.subnet {
            let message = format!(
                "is not {}, as SpiderSubnet {} around it; write that prefix",
                subnet.subnet, subnet.name
            );
            return Some(Problem::error("spec.subnet", pool.subnet, message));
        }
        let outside = outside_of(pool, subnet)?;
        let message = format!(
            "is not among the addresses of SpiderSubnet {}; add it there, or remove it here",
            subnet.name
        );
        Some(Problem::error("spec.ips", outside, message))
    }

    fn take_pools(&mut self, catalog: &Catalog) {
        let mut by_age: Vec<&SpiderIPPool> = catalog.pools.values().collect();
        by_age.sort_by_key(|p| p.metadata.age_key());
        let listing = listing(catalog);
        for object in by_age {
            let mut problems = Vec::new();
            let home = home_of(object, catalog, &listing, &mut problems);
            let pool = Pool::check(object, &mut problems);
            if let (Some(home), Some(pool)) = (&home, &pool) {
                problems.extend(taken(catalog, home, pool));
                problems.extend(self.overlap(home, pool));
                problems.extend(self.within_subnet(home, pool));
            }
            let usable = !problems.iter().any(Problem::is_error);
            for problem in problems {
                self.add(object, problem);
            }
            if let (true, Some(home), Some(pool)) = (usable, home, pool) {
                self.domains.entry(home.domain().to_owned()).or_default().add(&pool);
                self.pools.insert(pool.name.clone(), (home, pool));
            }
        }
        self.check_listed(catalog);
    }

    /// Within a Network, subnets are equal or apart, and no address is in two pools.
    fn overlap(&self, home: &Home, pool: &Pool) -> Option<Problem> {
        let spaces = &self.domains.get(home.domain())?.spaces;
        let (subnet, (names, addresses)) = find_nested(spaces, &pool.subnet)?;
        if *subnet != pool.subnet {
            let message = format!(
                "overlaps {subnet} of the older pool {} of the same Network; \
                 use an equal or a separate subnet, or another Network",
                names.first()?
            );
            return Some(Problem::error("spec.subnet", pool.subnet, message));
        }
        if addresses.and(&pool.addresses).is_empty() {
            return None;
        }
        let in_both = |other: &&Pool| !other.addresses.and(&pool.addresses).is_empty();
        let other = self.pools_in(home, subnet).find(in_both)?;
        let message = format!(
            "is also in the older pool {} of the same Network; exclude it here or there",
            other.name
        );
        Some(Problem::error("spec.ips", other.addresses.and(&pool.addresses), message))
    }

    /// Pools that a Network lists but cannot use. They may come later: warnings.
    fn check_listed(&mut self, catalog: &Catalog) {
        for network in catalog.networks.values() {
            let lists = [
                ("ipv4", Family::V4, &network.spec.ip_pools.ipv4),
                ("ipv6", Family::V6, &network.spec.ip_pools.ipv6),
            ];
            for (field, family, names) in lists {
                for (i, name) in names.iter().enumerate() {
                    let at = format!("spec.ipPools.{field}[{i}]");
                    if let Some(why) = self.why_unusable(catalog, network, family, name) {
                        self.add(network, Problem::warning(at, name, why));
                    }
                }
            }
        }
    }

    fn why_unusable(
        &self,
        catalog: &Catalog,
        network: &Network,
        family: Family,
        pool: &str,
    ) -> Option<String> {
        match self.pools.get(pool) {
            Some((home, _)) if home.domain() != network.metadata.name => {
                Some(format!("belongs to {home} by its label {}", annotation::NETWORK))
            }
            Some((_, pool)) if pool.family != family => Some(format!("is an {} pool", pool.family)),
            Some(_) => None,
            None if catalog.pools.contains_key(pool) => Some("is refused, see the pool".into()),
            None => Some("does not exist; create the SpiderIPPool".into()),
        }
    }

    fn take_reserved(&mut self, catalog: &Catalog) {
        for object in catalog.reserved.values() {
            let mut problems = Vec::new();
            if let Some(set) = check_reserved(object, &mut problems) {
                let network = object.metadata.labels.get(annotation::NETWORK).cloned();
                self.reserved.push((network, set));
            }
            for problem in problems {
                self.add(object, problem);
            }
        }
    }
}

impl Domain {
    fn add(&mut self, pool: &Pool) {
        self.pools.insert(pool.name.clone());
        let empty = || (Vec::new(), AddressSet::empty(pool.family));
        let (names, addresses) = self.spaces.entry(pool.subnet).or_insert_with(empty);
        names.push(pool.name.clone());
        *addresses = addresses.or(&pool.addresses);
    }
}

impl fmt::Display for Home {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Home::Network(name) => write!(f, "Network {name}"),
            Home::Lan => f.write_str("the LAN domain"),
        }
    }
}

/// The first of prefixes that are apart which lies in this one, or around it: those are its neighbours,
/// since a prefix comes before all that lie in it.
fn find_nested<'a, V>(
    prefixes: &'a BTreeMap<IpNet, V>,
    prefix: &IpNet,
) -> Option<(&'a IpNet, &'a V)> {
    let before = prefixes.range(..=*prefix).next_back();
    let after = prefixes.range(*prefix..).next();
    before.into_iter().chain(after).find(|(other, _)| nested(other, prefix))
}

/// Whether one prefix lies in the other.
fn nested(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// Nodes would send what is meant for each other, or for a Service, to pods.
fn taken(catalog: &Catalog, home: &Home, pool: &Pool) -> Option<Problem> {
    let mut all = catalog.taken.iter().filter(|_| home.domain() == DEFAULT_NETWORK);
    let Taken { prefix, whose } = all.find(|t| nested(&t.prefix, &pool.subnet))?;
    let message = format!(
        "overlaps {prefix} of {whose}; pods of Network {DEFAULT_NETWORK} need a prefix of their own"
    );
    Some(Problem::error("spec.subnet", pool.subnet, message))
}

/// Takes the Network's VNI or VLAN, unless an older one has it.
fn claim_tag<'a>(
    network: &'a Network,
    vnis: &mut BTreeMap<u32, &'a str>,
    vlans: &mut BTreeMap<(&'a str, u16), &'a str>,
) -> Option<Problem> {
    let name = network.metadata.name.as_str();
    let physical = network.spec.physical_network.as_str();
    let (field, value, other) = match network.spec.encapsulation {
        Encapsulation::Vxlan => {
            let Some(vni) = network.vni() else {
                let message = "none is allocated yet; the controller chooses one, or write one";
                return Some(Problem::error("spec.vni", "", message));
            };
            ("spec.vni", vni, take(vnis, vni, name))
        }
        Encapsulation::Vlan | Encapsulation::None => {
            let id = network.spec.vlan_id.unwrap_or(0);
            let key = (physical, id);
            let other = take(vlans, key, name);
            ("spec.vlanID", u32::from(id), other)
        }
    };
    other.map(|other| {
        let message = format!("belongs to the older Network {other}; choose another");
        Problem::error(field, value, message)
    })
}

/// The Networks that list each pool.
fn listing(catalog: &Catalog) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut listing: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for network in catalog.networks.values() {
        for pool in network.spec.ip_pools.names() {
            listing.entry(pool).or_default().insert(&network.metadata.name);
        }
    }
    listing
}

/// Where a pool belongs; `None`, with a problem, where Networks dispute it.
fn home_of(
    pool: &SpiderIPPool,
    catalog: &Catalog,
    listing: &BTreeMap<&str, BTreeSet<&str>>,
    problems: &mut Vec<Problem>,
) -> Option<Home> {
    if let Some(label) = pool.metadata.labels.get(annotation::NETWORK).filter(|l| !l.is_empty()) {
        if !catalog.networks.contains_key(label) {
            let field = format!("metadata.labels[{}]", annotation::NETWORK);
            let message = "no such Network; the pool serves nobody until it is created";
            problems.push(Problem::warning(field, label, message));
        }
        return Some(Home::Network(label.clone()));
    }
    let name = pool.metadata.name.as_str();
    let listing = listing.get(name).into_iter().flatten().copied();
    let names: Vec<&str> = listing.collect();
    match names[..] {
        [] => Some(Home::Lan),
        [one] => Some(Home::Network(one.into())),
        _ => {
            let message = format!(
                "is listed by the Networks {}; set the label {} to one of them",
                names.join(", "),
                annotation::NETWORK
            );
            problems.push(Problem::error("metadata.name", name, message));
            None
        }
    }
}

/// Gives `key` to `name`, or names the one that has it.
fn take<'a, K: Ord>(map: &mut BTreeMap<K, &'a str>, key: K, name: &'a str) -> Option<&'a str> {
    match map.entry(key) {
        std::collections::btree_map::Entry::Occupied(other) => Some(other.get()),
        std::collections::btree_map::Entry::Vacant(free) => {
            free.insert(name);
            None
        }
    }
}
