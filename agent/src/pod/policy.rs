//! Routes in tables of their own and the rules that lead there, in the calling thread's namespace.
//!
//! Everything written carries [`ROUTE_PROTOCOL`], rules too; what others wrote is read, and only the
//! default route of an interface that loses it is replaced.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

use super::link::{addresses, family, ip_of, kind_of, open, route_address, route_of};
use super::netlink::{Netlink, Put};
use super::{PodError, PodRoute, ROUTE_PROTOCOL};

/// The main table.
pub const MAIN_TABLE: u32 = 254;
/// Interfaces' own tables begin here.
const FIRST_TABLE: u32 = 101;
/// The rules that lead to them; what is more particular has a lower one.
pub const SOURCE_PRIORITY: u32 = 999;

/// A route in some table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableRoute {
    /// The table.
    pub table: u32,
    /// Destination.
    pub dst: IpNet,
    /// Next hop; none: on the link.
    pub gw: Option<IpAddr>,
    /// The device's name.
    pub dev: String,
    /// The source of what the pod itself sends; none: the kernel's choice.
    pub src: Option<IpAddr>,
}

/// A rule that leads to a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// 4 or 6.
    pub family: u8,
    /// Packets from this address alone.
    pub from: Option<IpAddr>,
    /// Packets with this mark alone.
    pub mark: Option<u32>,
    /// The table.
    pub table: u32,
    /// Lower ones are asked first.
    pub priority: u32,
}

/// Devices whose addresses are not the node's own.
const OTHERS: [&str; 12] = [
    "docker",
    "cbr",
    "dummy",
    "virbr",
    "lxcbr",
    "veth",
    "cali",
    "flannel",
    "kube-ipvs",
    "cni",
    "vx-submariner",
    "cilium",
];

/// A device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// `veth`, `macvlan`, … ; empty for hardware.
    pub kind: String,
    /// Its Ethernet address.
    pub mac: Vec<u8>,
    /// The device that it is made on or connected to, in whatever namespace.
    pub under: Option<u32>,
    /// Its addresses, without link-local ones.
    pub addresses: Vec<IpNet>,
}

impl Link {
    /// Whether its addresses are the node's own, and not those of pods or of another CNI's devices.
    pub fn is_the_nodes(&self) -> bool {
        self.name != "lo" && !OTHERS.iter().any(|prefix| self.name.starts_with(prefix))
    }
}

/// What routing depends on in a namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct View {
    /// Devices.
    pub links: Vec<Link>,
    /// Default routes of the main table.
    pub defaults: Vec<TableRoute>,
    /// Rules, of whomever.
    pub rules: Vec<Rule>,
    /// Tables that hold routes.
    pub tables: BTreeSet<u32>,
    /// Routes of ours, without default routes of the main table.
    pub ours: Vec<TableRoute>,
}

impl View {
    /// The device of a name.
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }
}

/// Reads the namespace.
pub fn view() -> Result<View, PodError> {
    let mut netlink = open()?;
    read(&mut netlink).map_err(|e| PodError::new("read devices, routes and rules".into(), e))
}

fn read(netlink: &mut Netlink) -> io::Result<View> {
    let mut view = View::default();
    for answer in netlink.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))? {
        let RouteNetlinkMessage::NewLink(message) = answer else { continue };
        view.links.push(link_of(netlink, &message)?);
    }
    for number in [4, 6] {
        let mut query = RouteMessage::default();
        query.header.address_family = family(unspecified(number));
        for answer in netlink.dump(RouteNetlinkMessage::GetRoute(query))? {
            let RouteNetlinkMessage::NewRoute(message) = answer else { continue };
            note_route(&mut view, &message);
        }
        let mut query = RuleMessage::default();
        query.header.family = family(unspecified(number));
        for answer in netlink.dump(RouteNetlinkMessage::GetRule(query))? {
            let RouteNetlinkMessage::NewRule(message) = answer else { continue };
            view.rules.push(rule_of(number, &message));
        }
    }
    Ok(view)
}

fn link_of(netlink: &mut Netlink, message: &LinkMessage) -> io::Result<Link> {
    let index = message.header.index;
    let mut link = Link { index, kind: kind_of(message), ..Link::default() };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(mac) => link.mac.clone_from(mac),
            LinkAttribute::Link(under) => link.under = Some(*under),
            _ => {}
        }
    }
    link.addresses = addresses(netlink, index)?;
    Ok(link)
}

fn note_route(view: &mut View, message: &RouteMessage) {
    let table = table_of(message);
    let Some(route) = route_of(message) else { return };
    view.tables.insert(table);
    let mut found =
        TableRoute { table, dst: route.dst, gw: route.gw, dev: String::new(), src: None };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => {
                let link = view.links.iter().find(|link| link.index == *index);
                found.dev = link.map(|link| link.name.clone()).unwrap_or_default();
            }
            RouteAttribute::PrefSource(address) => found.src = ip_of(address),
            _ => {}
        }
    }
    let ours = u8::from(message.header.protocol) == ROUTE_PROTOCOL;
    let unicast = message.header.kind == RouteType::Unicast && !found.dev.is_empty();
    if table == MAIN_TABLE && found.dst.prefix_len() == 0 && unicast {
        view.defaults.push(found);
    } else if ours {
        view.ours.push(found);
    }
}

fn table_of(message: &RouteMessage) -> u32 {
    let named = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    named.unwrap_or(message.header.table.into())
}

fn rule_of(family: u8, message: &RuleMessage) -> Rule {
    let table = message.header.table.into();
    let mut rule = Rule { family, from: None, mark: None, table, priority: 0 };
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Source(address) => rule.from = Some(*address),
            RuleAttribute::FwMark(mark) => rule.mark = Some(*mark),
            RuleAttribute::Table(table) => rule.table = *table,
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            _ => {}
        }
    }
    rule
}

/// Writes a route, in the place of an equal one.
pub fn put_route(route: &TableRoute) -> Result<(), PodError> {
    let mut netlink = open()?;
    let message = route_message(&mut netlink, route)?;
    netlink
        .put(RouteNetlinkMessage::NewRoute(message), Put::Replace)
        .map_err(|e| PodError::new(format!("write the route {route}"), e))
}

/// Removes a route. Absent is fine.
pub fn remove_route(route: &TableRoute) -> Result<(), PodError> {
    let mut netlink = open()?;
    let mut message = route_message(&mut netlink, route)?;
    // The default route of another interface may be another plugin's.
    message.header.protocol = RouteProtocol::Unspec;
    absent_is_fine(netlink.put(RouteNetlinkMessage::DelRoute(message), Put::Change))
        .map_err(|e| PodError::new(format!("remove the route {route}"), e))
}

/// Writes a rule unless it is there.
pub fn put_rule(rule: &Rule) -> Result<(), PodError> {
    match open()?.put(RouteNetlinkMessage::NewRule(rule_message(rule)), Put::Create) {
        Err(e) if e.raw_os_error() != Some(libc::EEXIST) => {
            Err(PodError::new(format!("write the rule {rule}"), e))
        }
        _ => Ok(()),
    }
}

/// Removes a rule of ours. Absent is fine.
pub fn remove_rule(rule: &Rule) -> Result<(), PodError> {
    absent_is_fine(open()?.put(RouteNetlinkMessage::DelRule(rule_message(rule)), Put::Change))
        .map_err(|e| PodError::new(format!("remove the rule {rule}"), e))
}

/// The table of the device that has these addresses: the one that they lead to already, else the lowest
/// that neither the namespace nor `planned` uses.
pub fn source_table(view: &View, planned: &[Rule], addresses: &[IpNet]) -> u32 {
    let owns = |rule: &&Rule| {
        rule.table >= FIRST_TABLE
            && rule.from.is_some_and(|from| addresses.iter().any(|a| a.addr() == from))
    };
    let rules = view.rules.iter().chain(planned);
    if let Some(rule) = rules.clone().find(owns) {
        return rule.table;
    }
    let used =
        |table: u32| view.tables.contains(&table) || rules.clone().any(|rule| rule.table == table);
    (FIRST_TABLE..).find(|table| !used(*table)).unwrap_or(FIRST_TABLE)
}

/// What is sent from these addresses is routed by a table of the device's own, so that a reply leaves
/// where the request came in. The same call again with other routes replaces them.
pub fn put_own_table(name: &str, addresses: &[IpNet], routes: &[PodRoute]) -> Result<(), PodError> {
    let view = view()?;
    let table = source_table(&view, &[], addresses);
    let route =
        |r: &PodRoute| TableRoute { table, dst: r.dst, gw: r.gw, dev: name.to_owned(), src: None };
    let wanted: Vec<TableRoute> = routes.iter().map(route).collect();
    wanted.iter().try_for_each(put_route)?;
    let old =
        view.ours.iter().filter(|r| r.table == table && !wanted.iter().any(|w| w.dst == r.dst));
    old.into_iter().try_for_each(remove_route)?;
    let rule = |address: &IpNet| Rule {
        family: if address.addr().is_ipv4() { 4 } else { 6 },
        from: Some(address.addr()),
        mark: None,
        table,
        priority: SOURCE_PRIORITY,
    };
    addresses.iter().map(rule).try_for_each(|rule| put_rule(&rule))
}

/// Removes the rules that lead what these addresses send to a table; its routes go with the device.
pub fn remove_source_rules(addresses: &[IpNet]) -> Result<(), PodError> {
    let view = view()?;
    let of_these = |rule: &&Rule| {
        rule.priority == SOURCE_PRIORITY
            && rule.from.is_some_and(|from| addresses.iter().any(|a| a.addr() == from))
    };
    view.rules.iter().filter(of_these).try_for_each(remove_rule)
}

fn absent_is_fine(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ESRCH | libc::ENOENT | libc::ENODEV)) => {
            Ok(())
        }
        other => other,
    }
}

fn route_message(netlink: &mut Netlink, route: &TableRoute) -> Result<RouteMessage, PodError> {
    let link = super::link::find(netlink, &route.dev)?;
    let index = link.map(|link| link.header.index).ok_or_else(|| {
        let gone = io::Error::from_raw_os_error(libc::ENODEV);
        PodError::new(format!("write the route {route}"), gone)
    })?;
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = family(route.dst.addr());
    header.destination_prefix_length = route.dst.prefix_len();
    header.table = u8::try_from(route.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    header.protocol = RouteProtocol::from(ROUTE_PROTOCOL);
    header.kind = RouteType::Unicast;
    header.scope = RouteScope::Link;
    message.attributes.push(RouteAttribute::Table(route.table));
    message.attributes.push(RouteAttribute::Oif(index));
    if route.dst.prefix_len() > 0 {
        message.attributes.push(RouteAttribute::Destination(route_address(route.dst.network())));
    }
    if let Some(gw) = route.gw {
        message.header.scope = RouteScope::Universe;
        // The table need not know the link that the gateway is on.
        message.header.flags |= RouteFlags::Onlink;
        message.attributes.push(RouteAttribute::Gateway(route_address(gw)));
    }
    if let Some(src) = route.src {
        message.attributes.push(RouteAttribute::PrefSource(route_address(src)));
    }
    Ok(message)
}

fn rule_message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family(unspecified(rule.family));
    message.header.action = RuleAction::ToTable;
    message.header.table = u8::try_from(rule.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    message.attributes = vec![
        RuleAttribute::Table(rule.table),
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::Protocol(RouteProtocol::from(ROUTE_PROTOCOL)),
    ];
    if let Some(from) = rule.from {
        message.header.src_len = if from.is_ipv4() { 32 } else { 128 };
        message.attributes.push(RuleAttribute::Source(from));
    }
    if let Some(mark) = rule.mark {
        message.attributes.push(RuleAttribute::FwMark(mark));
    }
    message
}

fn unspecified(family: u8) -> IpAddr {
    if family == 4 { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) }
}

impl std::fmt::Display for TableRoute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.dst)?;
        if let Some(gw) = self.gw {
            write!(f, " via {gw}")?;
        }
        write!(f, " dev {} table {}", self.dev, self.table)
    }
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: ", self.priority)?;
        match (self.from, self.mark) {
            (Some(from), _) => write!(f, "from {from}")?,
            (None, Some(mark)) => write!(f, "fwmark {mark:#x}")?,
            (None, None) => write!(f, "from all")?,
        }
        write!(f, " lookup {}", self.table)
    }
}
