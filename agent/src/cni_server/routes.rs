//! Which routes an interface brings into its pod. Pure.

use std::net::IpAddr;

use ipnet::IpNet;
use multinet::range::Family;
use multinet::rules::{Checked, Pool};
use multinet::types::core::ServiceCIDR;
use multinet::types::network::DEFAULT_NETWORK;
use multinet::types::node::NodeState;

use crate::catalog::Snapshot;
use crate::journal::AttachedInterface;
use crate::pod::{InterfacePlan, PodRoute};

/// Whether an interface gets the default route of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultRoute {
    /// It is asked for by name, or the interface is the pod's first in this family.
    Yes,
    /// Another interface has it.
    No,
}

/// The routes that the address of `pool` brings. `pools` are all pools of the Network.
///
/// The realm answers for every address of its prefixes, so that prefixes of other pools are reached
/// through the gateway, or on the link where the pool has none.
pub fn routes_of<'a>(
    own: &[IpNet],
    pool: &Pool,
    pools: impl Iterator<Item = &'a Pool>,
    default: DefaultRoute,
) -> Vec<PodRoute> {
    let mut routes = Vec::new();
    for other in pools.filter(|p| p.family == pool.family) {
        let covered = own.iter().any(|net| net.contains(&other.subnet.network()));
        let known = routes.iter().any(|r: &PodRoute| r.dst == other.subnet);
        if !covered && !known {
            routes.push(PodRoute { dst: other.subnet, gw: pool.gateway });
        }
    }
    for (dst, gw) in &pool.routes {
        let behind_itself = own.iter().any(|net| net.addr() == *gw);
        if !behind_itself && !routes.iter().any(|r| r.dst == *dst) {
            routes.push(PodRoute { dst: *dst, gw: Some(*gw) });
        }
    }
    if let (DefaultRoute::Yes, Some(gw)) = (default, pool.gateway) {
        routes.push(PodRoute { dst: default_prefix(gw), gw: Some(gw) });
    }
    routes
}

/// What an attached interface brings by the catalog as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RoutesNow {
    /// Routes of everything that the pod sends.
    pub main: Vec<PodRoute>,
    /// Routes of what is sent from the interface's addresses; none: those of everything.
    pub own_table: Vec<PodRoute>,
}

impl RoutesNow {
    /// Are these the routes that the interface has?
    pub fn are_in(&self, plan: &InterfacePlan) -> bool {
        self.main == plan.routes && self.own_table == plan.own_table
    }

    /// From now on they are.
    pub fn put_into(self, plan: &mut InterfacePlan) {
        plan.routes = self.main;
        plan.own_table = self.own_table;
    }
}

/// All routes of an attached interface; `None` where one of its pools is gone, so that nothing can be
/// said. `cluster`: what the pod reaches by `default` wherever its default route leads.
pub fn routes_now(
    interface: &AttachedInterface,
    checked: &Checked,
    cluster: &[IpNet],
) -> Option<RoutesNow> {
    let own = &interface.plan.addresses;
    let mut now = RoutesNow::default();
    for (address, pool) in own.iter().zip(&interface.pools) {
        let (_, pool) = checked.pools.get(pool)?;
        let family = if address.addr().is_ipv4() { 4 } else { 6 };
        let default = if interface.default_in.contains(&family) {
            DefaultRoute::Yes
        } else {
            DefaultRoute::No
        };
        now.main.extend(routes_of(own, pool, checked.pools_of(&interface.network), default));
        if default == DefaultRoute::No && interface.network == DEFAULT_NETWORK {
            now.main.extend(cluster_routes(own, pool, cluster, &now.main));
        }
        now.own_table.push(PodRoute { dst: address.trunc(), gw: None });
        let gateway = pool.gateway.map(|gw| PodRoute { dst: default_prefix(gw), gw: Some(gw) });
        now.own_table.extend(gateway);
    }
    for named in &interface.named_routes {
        now.main.retain(|route| route.dst != named.dst);
        now.main.push(*named);
    }
    if interface.by_source {
        // What is said by name counts: it may be another default route than the pool's.
        now.own_table.retain(|route| now.main.iter().all(|main| main.dst != route.dst));
        now.own_table.extend(&now.main);
    } else {
        now.own_table.clear();
    }
    Some(now)
}

/// Routes to the cluster for a pod whose default route is another interface's.
fn cluster_routes(
    own: &[IpNet],
    pool: &Pool,
    cluster: &[IpNet],
    known: &[PodRoute],
) -> Vec<PodRoute> {
    let Some(gw) = pool.gateway else { return Vec::new() };
    let same = |dst: &&IpNet| Family::of_net(dst) == pool.family;
    let new = |dst: &&IpNet| {
        !own.iter().any(|net| net.contains(*dst)) && !known.iter().any(|r| r.dst == **dst)
    };
    let wanted = cluster.iter().filter(same).filter(new);
    wanted.map(|dst| PodRoute { dst: *dst, gw: Some(gw) }).collect()
}

/// The prefixes of Services, and the node's own addresses. Pods' prefixes are pools of `default`.
pub fn cluster_prefixes(snapshot: &Snapshot, node: &str) -> Vec<IpNet> {
    let services = snapshot.list::<ServiceCIDR>();
    let services = services.flat_map(|s| s.spec.cidrs.clone());
    let mut prefixes: Vec<IpNet> = services.filter_map(|text| text.parse().ok()).collect();
    if let Some(node) = snapshot.get::<NodeState>(None, node) {
        prefixes.extend(node.vteps().chain(node.spec.node_addresses.clone()).map(IpNet::from));
    }
    prefixes.sort_unstable();
    prefixes.dedup();
    prefixes
}

/// `0.0.0.0/0` or `::/0`, by the family of `address`.
pub fn default_prefix(address: IpAddr) -> IpNet {
    match Family::of(address) {
        Family::V4 => IpNet::V4(ipnet::Ipv4Net::default()),
        Family::V6 => IpNet::V6(ipnet::Ipv6Net::default()),
    }
}

#[cfg(test)]
mod tests {
    use multinet::rules::Pool;
    use multinet::types::pool::{IPPoolSpec, PoolRoute, SpiderIPPool};

    use super::*;

    fn pool(name: &str, subnet: &str, gateway: Option<&str>, routes: &[(&str, &str)]) -> Pool {
        let route = |(dst, gw): &(&str, &str)| PoolRoute { dst: (*dst).into(), gw: (*gw).into() };
        let spec = IPPoolSpec {
            subnet: subnet.into(),
            gateway: gateway.map(str::to_owned),
            routes: Some(routes.iter().map(route).collect()),
            ..IPPoolSpec::default()
        };
        let mut problems = Vec::new();
        let pool = Pool::check(&SpiderIPPool::new(name, spec), &mut problems);
        pool.unwrap_or_else(|| panic!("{problems:?}"))
    }

    fn text(routes: &[PodRoute]) -> Vec<String> {
        let one = |r: &PodRoute| match r.gw {
            Some(gw) => format!("{} via {gw}", r.dst),
            None => format!("{}", r.dst),
        };
        routes.iter().map(one).collect()
    }

    #[test]
    fn other_pools_pool_routes_and_the_default_route() {
        let mine = pool(
            "a",
            "10.0.0.0/24",
            Some("10.0.0.1"),
            &[("192.168.0.0/16", "10.0.0.9"), ("172.16.0.0/12", "10.0.0.5")],
        );
        let other = pool("b", "10.0.1.0/24", None, &[]);
        let v6 = pool("c", "fd00::/64", None, &[]);
        let own = ["10.0.0.5/24".parse().unwrap()];
        let all = [mine.clone(), other, v6];
        let routes = routes_of(&own, &mine, all.iter(), DefaultRoute::Yes);
        assert_eq!(
            text(&routes),
            ["10.0.1.0/24 via 10.0.0.1", "192.168.0.0/16 via 10.0.0.9", "0.0.0.0/0 via 10.0.0.1"],
            "the route whose next hop is the pod itself is left out"
        );
        let routes = routes_of(&own, &mine, all.iter(), DefaultRoute::No);
        assert!(!text(&routes).iter().any(|r| r.starts_with("0.0.0.0/0")));
    }

    #[test]
    fn without_a_gateway_other_pools_are_on_the_link() {
        let mine = pool("a", "10.0.0.0/24", None, &[]);
        let other = pool("b", "10.0.1.0/24", None, &[]);
        let own = ["10.0.0.5/24".parse().unwrap()];
        let all = [mine.clone(), other];
        assert_eq!(text(&routes_of(&own, &mine, all.iter(), DefaultRoute::Yes)), ["10.0.1.0/24"]);
    }
}
