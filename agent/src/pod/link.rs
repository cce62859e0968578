//! Links, addresses and routes of a namespace, read and written through netlink.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::netlink::{Netlink, Put};
use super::{PodError, PodRoute, ROUTE_PROTOCOL};

/// What the kernel says about one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Interface index.
    pub index: u32,
    /// `tun`, `dummy`, … ; empty for devices without a kind.
    pub kind: String,
    /// Hardware address, empty when it has none.
    pub mac: Vec<u8>,
    /// MTU in bytes.
    pub mtu: u32,
    /// `IFLA_IFALIAS`.
    pub alias: String,
    /// Is it administratively up?
    pub up: bool,
    /// Addresses other than link-local ones.
    pub addresses: Vec<IpNet>,
    /// Routes that Bowline wrote through this device.
    pub routes: Vec<PodRoute>,
    /// Families (4, 6) in which this namespace has a default route through any device.
    pub default_routes: Vec<u8>,
}

/// Fails if a device of one of the names exists already.
pub fn free_names(names: &[String]) -> Result<(), PodError> {
    let mut netlink = open()?;
    for name in names {
        if let Some(link) = find(&mut netlink, name)? {
            let kind = kind_of(&link);
            let kind = if kind.is_empty() { "device" } else { &kind };
            return Err(PodError::new(
                format!("make the interface {name}"),
                io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    format!("the pod has a {kind} of that name already; choose another name"),
                ),
            ));
        }
    }
    Ok(())
}

/// Reads a device with its addresses and Bowline's routes; `None` if there is none.
pub fn inspect(name: &str) -> Result<Option<Found>, PodError> {
    let mut netlink = open()?;
    let Some(link) = find(&mut netlink, name)? else { return Ok(None) };
    let mut found = found_from(&link);
    let doing = |e| PodError::new(format!("read the addresses and routes of {name}"), e);
    found.addresses = addresses(&mut netlink, found.index).map_err(doing)?;
    let routes = all_routes(&mut netlink).map_err(doing)?;
    for (message, route) in routes {
        if route.dst.prefix_len() == 0 {
            found.default_routes.push(family_number(route.dst));
        }
        let ours = u8::from(message.header.protocol) == ROUTE_PROTOCOL;
        if ours && message.attributes.contains(&RouteAttribute::Oif(found.index)) {
            found.routes.push(route);
        }
    }
    Ok(Some(found))
}

/// The families (4, 6) in which the namespace has a default route.
pub fn default_route_families() -> Result<Vec<u8>, PodError> {
    default_families(&mut open()?, None)
}

/// The same through any device but `name`, which need not exist.
pub fn default_route_families_beside(name: &str) -> Result<Vec<u8>, PodError> {
    let mut netlink = open()?;
    let index = find(&mut netlink, name)?.map(|link| link.header.index);
    default_families(&mut netlink, index)
}

fn default_families(netlink: &mut Netlink, beside: Option<u32>) -> Result<Vec<u8>, PodError> {
    let routes =
        all_routes(netlink).map_err(|e| PodError::new("read the pod's routes".into(), e))?;
    let through = |m: &RouteMessage| {
        beside.is_some_and(|index| m.attributes.contains(&RouteAttribute::Oif(index)))
    };
    let defaults = routes.iter().filter(|(m, r)| r.dst.prefix_len() == 0 && !through(m));
    Ok(defaults.map(|(_, r)| family_number(r.dst)).collect())
}

/// Makes Bowline's routes through `name` equal to `wanted`; routes of others are left alone.
pub fn replace_routes(name: &str, wanted: &[PodRoute]) -> Result<(), PodError> {
    let Some(found) = inspect(name)? else {
        return Err(PodError::new(
            format!("write routes through {name}"),
            io::Error::from_raw_os_error(libc::ENODEV),
        ));
    };
    let mut netlink = open()?;
    for route in found.routes.iter().filter(|r| !wanted.contains(r)) {
        let message = RouteNetlinkMessage::DelRoute(route_message(found.index, route));
        netlink.put(message, Put::Change).map_err(|e| route_error("remove", route, e))?;
    }
    for route in wanted.iter().filter(|r| !found.routes.contains(r)) {
        add_route(&mut netlink, found.index, route)?;
    }
    Ok(())
}

pub(super) fn open() -> Result<Netlink, PodError> {
    Netlink::open().map_err(|e| PodError::new("open a netlink socket".into(), e))
}

pub(super) fn find(netlink: &mut Netlink, name: &str) -> Result<Option<LinkMessage>, PodError> {
    let mut query = LinkMessage::default();
    query.attributes.push(LinkAttribute::IfName(name.to_owned()));
    match netlink.get(RouteNetlinkMessage::GetLink(query)) {
        Ok(answers) => Ok(answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) => Some(link),
            _ => None,
        })),
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(e) => Err(PodError::new(format!("look for the interface {name}"), e)),
    }
}

pub(super) fn kind_of(link: &LinkMessage) -> String {
    let infos = link.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    let mut kinds = infos.flatten().filter_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind.to_string()),
        _ => None,
    });
    kinds.next().unwrap_or_default()
}

fn found_from(link: &LinkMessage) -> Found {
    let mut found = Found {
        index: link.header.index,
        kind: kind_of(link),
        mac: Vec::new(),
        mtu: 0,
        alias: String::new(),
        up: link.header.flags.contains(LinkFlags::Up),
        addresses: Vec::new(),
        routes: Vec::new(),
        default_routes: Vec::new(),
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Address(mac) => found.mac.clone_from(mac),
            LinkAttribute::Mtu(mtu) => found.mtu = *mtu,
            LinkAttribute::IfAlias(alias) => found.alias.clone_from(alias),
            _ => {}
        }
    }
    found
}

/// MAC, MTU, alias and "up" of an existing link, in one request.
pub(super) fn configure(
    netlink: &mut Netlink,
    index: u32,
    mac: [u8; 6],
    mtu: u32,
    alias: &str,
) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes = vec![
        LinkAttribute::Address(mac.to_vec()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::IfAlias(alias.to_owned()),
    ];
    netlink.put(RouteNetlinkMessage::SetLink(message), Put::Change)
}

pub(super) fn create_dummy(netlink: &mut Netlink, name: &str) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Dummy)]),
    ];
    netlink.put(RouteNetlinkMessage::NewLink(message), Put::Create)
}

pub(super) fn delete(netlink: &mut Netlink, index: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    netlink.put(RouteNetlinkMessage::DelLink(message), Put::Change)
}

/// An address that works at once: no duplicate detection, which the address store has done better.
pub(super) fn add_address(
    netlink: &mut Netlink,
    index: u32,
    address: IpNet,
    prefix_route: bool,
) -> Result<(), PodError> {
    let mut flags = AddressFlags::Nodad | AddressFlags::Permanent;
    if !prefix_route {
        flags |= AddressFlags::Noprefixroute;
    }
    let mut message = AddressMessage::default();
    message.header.family = family(address.addr());
    message.header.prefix_len = address.prefix_len();
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Local(address.addr()),
        AddressAttribute::Address(address.addr()),
        AddressAttribute::Flags(flags),
    ];
    netlink
        .put(RouteNetlinkMessage::NewAddress(message), Put::Replace)
        .map_err(|e| PodError::new(format!("add the address {address}"), e))
}

pub(super) fn add_route(
    netlink: &mut Netlink,
    index: u32,
    route: &PodRoute,
) -> Result<(), PodError> {
    netlink
        .put(RouteNetlinkMessage::NewRoute(route_message(index, route)), Put::Replace)
        .map_err(|e| route_error("add", route, e))
}

fn route_error(verb: &str, route: &PodRoute, e: io::Error) -> PodError {
    let via = route.gw.map(|gw| format!(" via {gw}")).unwrap_or_default();
    PodError::new(format!("{verb} the route {}{via}", route.dst), e)
}

fn route_message(index: u32, route: &PodRoute) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(route.dst.addr());
    message.header.destination_prefix_length = route.dst.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::from(ROUTE_PROTOCOL);
    message.header.kind = RouteType::Unicast;
    message.header.scope = match route.gw {
        Some(_) => RouteScope::Universe,
        None => RouteScope::Link,
    };
    message.attributes.push(RouteAttribute::Oif(index));
    if route.dst.prefix_len() > 0 {
        message.attributes.push(RouteAttribute::Destination(route_address(route.dst.network())));
    }
    if let Some(gw) = route.gw {
        message.attributes.push(RouteAttribute::Gateway(route_address(gw)));
    }
    message
}

pub(super) fn addresses(netlink: &mut Netlink, index: u32) -> io::Result<Vec<IpNet>> {
    let mut query = AddressMessage::default();
    query.header.index = index;
    let answers = netlink.dump(RouteNetlinkMessage::GetAddress(query))?;
    let messages = answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewAddress(message) if message.header.index == index => Some(message),
        _ => None,
    });
    Ok(messages.filter_map(|message| address_of(&message)).collect())
}

fn address_of(message: &AddressMessage) -> Option<IpNet> {
    // Point-to-point addresses have the peer in Address and their own in Local.
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let other = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    let address = local.or(other)?;
    if matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
        return None;
    }
    IpNet::new(address, message.header.prefix_len).ok()
}

fn all_routes(netlink: &mut Netlink) -> io::Result<Vec<(RouteMessage, PodRoute)>> {
    let mut routes = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut query = RouteMessage::default();
        query.header.address_family = family;
        for answer in netlink.dump(RouteNetlinkMessage::GetRoute(query))? {
            let RouteNetlinkMessage::NewRoute(message) = answer else { continue };
            if message.header.table != RouteHeader::RT_TABLE_MAIN {
                continue;
            }
            if let Some(route) = route_of(&message) {
                routes.push((message, route));
            }
        }
    }
    Ok(routes)
}

pub(super) fn route_of(message: &RouteMessage) -> Option<PodRoute> {
    let mut dst = match message.header.address_family {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        AddressFamily::Inet6 => IpAddr::from([0; 16]),
        _ => return None,
    };
    let mut gw = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => dst = ip_of(address)?,
            RouteAttribute::Gateway(address) => gw = ip_of(address),
            _ => {}
        }
    }
    let dst = IpNet::new(dst, message.header.destination_prefix_length).ok()?;
    Some(PodRoute { dst, gw })
}

pub(super) fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

pub(super) fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    }
}

pub(super) fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn family_number(prefix: IpNet) -> u8 {
    if prefix.addr().is_ipv4() { 4 } else { 6 }
}
