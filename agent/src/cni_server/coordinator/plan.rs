//! Which routes and rules a pod's interface gets. Pure.
//!
//! Two ways lead from a pod to its node: a link of its own (`veth0`, underlay), or `eth0` (overlay).
//! Each interface after the first has a table of its own, and what is sent from its addresses is
//! routed there: a reply leaves by the interface that the request came in by. Table 100 does the same
//! for requests that came in by the link from the node, which are known by a mark.

use std::net::IpAddr;

use ipnet::IpNet;
use multinet::rules::Problem;

use super::settings::{Mode, Settings};
use crate::cni_server::routes::default_prefix;
use crate::pod::policy::{Link, MAIN_TABLE, Rule, SOURCE_PRIORITY, TableRoute, View, source_table};

/// The pod's first interface.
pub(super) const FIRST: &str = "eth0";
/// The pod's end of the link to its node.
pub(super) const LINK: &str = "veth0";
/// The mark of connections that came in by the link.
pub(super) const MARK: u32 = 1;
/// What has the mark is routed by this table.
const MARK_TABLE: u32 = 100;
/// Marked packets and the node's table go before the rules of addresses.
pub(super) const PRIORITY: u32 = 900;

/// What the plan depends on.
#[derive(Debug)]
pub(super) struct Input<'a> {
    pub(super) settings: &'a Settings,
    /// The call's interface.
    pub(super) ifname: &'a str,
    /// The pod's namespace.
    pub(super) view: &'a View,
    /// Gateways of the interface's addresses, as the plugins before said.
    pub(super) gateways: &'a [IpAddr],
    /// Addresses of the node.
    pub(super) node: &'a [IpAddr],
    /// Interfaces that later calls will make.
    pub(super) to_come: &'a [String],
}

/// What is to be written in the pod's namespace.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// A link to the node leads there; else `eth0` does.
    pub(super) link: bool,
    /// Default routes that another interface has.
    pub(super) removed: Vec<TableRoute>,
    pub(super) routes: Vec<TableRoute>,
    pub(super) rules: Vec<Rule>,
}

/// Decides. `None`: nothing is to be done.
pub(super) fn plan(input: &Input<'_>) -> Result<Option<Plan>, Problem> {
    let Some(link) = way(input)? else { return Ok(None) };
    let own = input.view.link(input.ifname).ok_or_else(|| {
        Problem::error("CNI_IFNAME", input.ifname, "the plugins before made no such interface")
    })?;
    let mut planner = Planner { input, own, link, plan: Plan { link, ..Plan::default() } };
    if input.ifname == FIRST {
        planner.first();
    } else {
        planner.further();
    }
    if input.settings.tune_routes {
        planner.choose_default()?;
    }
    Ok(Some(planner.plan))
}

/// Does a link of its own lead to the node?
fn way(input: &Input<'_>) -> Result<Option<bool>, Problem> {
    let (first, linked) = (input.ifname == FIRST, input.view.link(LINK).is_some());
    let refuse = |mode: &str, message: &str| Err(Problem::error("coordinator.mode", mode, message));
    match input.settings.mode {
        Mode::Disabled => Ok(None),
        Mode::Auto => Ok(Some(first || linked)),
        Mode::Underlay if first || linked => Ok(Some(true)),
        Mode::Underlay => {
            refuse("underlay", "eth0 was made in another mode; use auto or overlay for this one")
        }
        Mode::Overlay if first || linked => {
            refuse("overlay", "eth0 is the pod's only way to its node; use auto or underlay")
        }
        Mode::Overlay => Ok(Some(false)),
    }
}

struct Planner<'a> {
    input: &'a Input<'a>,
    own: &'a Link,
    link: bool,
    plan: Plan,
}

impl Planner<'_> {
    /// `eth0` with a link beside it.
    fn first(&mut self) {
        self.node_routes(MAIN_TABLE);
        for address in self.families() {
            let Some(node) = self.node_of(address) else { continue };
            let number = family(address);
            self.route(MARK_TABLE, default_prefix(address), Some(node), LINK, None);
            let mark = Some(MARK);
            self.rule(Rule {
                family: number,
                from: None,
                mark,
                table: MARK_TABLE,
                priority: PRIORITY,
            });
        }
        self.policy_routes(MAIN_TABLE);
    }

    /// Any other interface.
    fn further(&mut self) {
        if !self.link {
            // The default route may move away from eth0: the node and the cluster stay there.
            self.node_routes(MAIN_TABLE);
        }
        if !self.input.settings.tune_routes {
            return;
        }
        let table = self.table_of(self.own);
        self.by_source(&self.own.clone(), &self.gateways(), table);
        self.node_routes(table);
        self.policy_routes(table);
    }

    /// What is sent from an interface's addresses goes by its own table.
    fn by_source(&mut self, link: &Link, gateways: &[IpAddr], table: u32) {
        for address in &link.addresses {
            let (number, from) = (family(address.addr()), Some(address.addr()));
            let priority = SOURCE_PRIORITY;
            self.rule(Rule { family: number, from, mark: None, table, priority });
            self.route(table, address.trunc(), None, &link.name, None);
        }
        for gw in gateways {
            self.route(table, default_prefix(*gw), Some(*gw), &link.name, None);
        }
    }

    /// Node, Services and other pods.
    fn node_routes(&mut self, table: u32) {
        let mut addresses = self.families();
        let first = self.input.ifname == FIRST;
        // The kernel cannot choose an IPv6 source by route.
        addresses.sort_unstable();
        for own in addresses {
            let Some((dev, gw)) = self.hop(own) else { continue };
            let src = Some(own).filter(|own| first && own.is_ipv4());
            let same = |a: &&IpAddr| a.is_ipv4() == own.is_ipv4();
            let nodes: Vec<IpAddr> = self.input.node.iter().filter(same).copied().collect();
            for node in nodes {
                let on_link = if self.link { None } else { gw };
                self.route(table, IpNet::from(node), on_link, &dev, src);
            }
            let prefixes = self.input.settings.through_node.clone();
            for prefix in prefixes.into_iter().filter(|p| p.addr().is_ipv4() == own.is_ipv4()) {
                // What the interface is itself in stays on its own link.
                if !self.own.addresses.iter().any(|a| a.trunc() == prefix) {
                    self.route(table, prefix, gw, &dev, src);
                }
            }
        }
    }

    /// The next hop towards the node.
    fn hop(&self, own: IpAddr) -> Option<(String, Option<IpAddr>)> {
        if self.link {
            return Some((LINK.to_owned(), Some(self.node_of(own)?)));
        }
        let view = self.input.view;
        let known = view.defaults.iter().chain(&view.ours);
        let mut known = known.filter(|r| r.dev == FIRST && r.dst == default_prefix(own));
        known.next().map(|route| (FIRST.to_owned(), route.gw))
    }

    fn policy_routes(&mut self, table: u32) {
        let name = self.own.name.clone();
        for (dst, gw) in &self.input.settings.policy_routes {
            self.route(table, dst.trunc(), Some(*gw), &name, None);
        }
    }

    /// One interface has the default route; the others keep theirs in their own tables.
    fn choose_default(&mut self) -> Result<(), Problem> {
        let view = self.input.view;
        let (wanted, ifname) = (self.input.settings.default_nic.as_str(), self.input.ifname);
        let exists = |name: &str| view.link(name).is_some();
        if !wanted.is_empty()
            && !exists(wanted)
            && !self.input.to_come.iter().any(|name| name == wanted)
        {
            let names: Vec<&str> = view.links.iter().map(|link| link.name.as_str()).collect();
            let message = format!("is no interface of the pod; it has {}", names.join(", "));
            return Err(Problem::error("podDefaultRouteNIC", wanted, message));
        }
        if wanted == ifname {
            return self.take_default();
        }
        let elsewhere = |r: &&TableRoute| r.dev != ifname;
        for route in view.defaults.iter().filter(|r| r.dev == ifname) {
            let mut others = view.defaults.iter().filter(elsewhere);
            if others.any(|other| other.dst == route.dst) {
                self.plan.removed.push(route.clone());
            }
        }
        Ok(())
    }

    fn take_default(&mut self) -> Result<(), Problem> {
        let gateways = self.gateways();
        if gateways.is_empty() {
            let message = "has no gateway; set spec.gateway of its pool, or name another interface";
            return Err(Problem::error("podDefaultRouteNIC", self.input.ifname, message));
        }
        let name = self.own.name.clone();
        for gw in gateways {
            let others: Vec<TableRoute> = {
                let defaults = self.input.view.defaults.iter();
                let same = |r: &&TableRoute| r.dev != name && r.dst == default_prefix(gw);
                defaults.filter(same).cloned().collect()
            };
            for other in others {
                let Some(link) = self.input.view.link(&other.dev).cloned() else { continue };
                let table = self.table_of(&link);
                let hops: Vec<IpAddr> = other.gw.into_iter().collect();
                self.by_source(&link, &hops, table);
                self.plan.removed.push(other);
            }
            self.route(MAIN_TABLE, default_prefix(gw), Some(gw), &name, None);
        }
        Ok(())
    }

    /// Gateways of the call's interface, one for each family.
    fn gateways(&self) -> Vec<IpAddr> {
        let mut found: Vec<IpAddr> = Vec::new();
        let defaults = self.input.view.defaults.iter().filter(|r| r.dev == self.input.ifname);
        for gw in self.input.gateways.iter().copied().chain(defaults.filter_map(|r| r.gw)) {
            if !found.iter().any(|f| f.is_ipv4() == gw.is_ipv4()) {
                found.push(gw);
            }
        }
        found
    }

    fn table_of(&self, link: &Link) -> u32 {
        source_table(self.input.view, &self.plan.rules, &link.addresses)
    }

    /// An own address of each family.
    fn families(&self) -> Vec<IpAddr> {
        let mut found: Vec<IpAddr> = Vec::new();
        for address in self.own.addresses.iter().map(IpNet::addr) {
            if !found.iter().any(|f| f.is_ipv4() == address.is_ipv4()) {
                found.push(address);
            }
        }
        found
    }

    fn node_of(&self, own: IpAddr) -> Option<IpAddr> {
        self.input.node.iter().copied().find(|node| node.is_ipv4() == own.is_ipv4())
    }

    fn route(
        &mut self,
        table: u32,
        dst: IpNet,
        gw: Option<IpAddr>,
        dev: &str,
        src: Option<IpAddr>,
    ) {
        let route = TableRoute { table, dst, gw, dev: dev.to_owned(), src };
        if !self.plan.routes.iter().any(|r| r.table == table && r.dst == dst) {
            self.plan.routes.push(route);
        }
    }

    fn rule(&mut self, rule: Rule) {
        if !self.plan.rules.contains(&rule) {
            self.plan.rules.push(rule);
        }
    }
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { 4 } else { 6 }
}
