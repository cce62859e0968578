//! How tunnel ends are reached, as the node's own kernel sees it.
//!
//! The node's stack lives behind the host tap, which has the uplink's name. For each wanted tunnel
//! end the kernel is asked for the route (a gateway, or the end itself) and its neighbour table
//! gives the MAC. Events of netlink keep both fresh; a neighbour that nobody talks to but us is
//! asked for (`NTF_USE`), so that the kernel resolves it, probes it, and notices a new MAC.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteVia};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::{Handle, MulticastGroup};
use tokio::sync::watch;
use tokio::time::Instant;
use wire::Mac;

use super::rewrite::Way;
use crate::table::IfaceId;

/// Events often come in bursts.
const SETTLE: Duration = Duration::from_millis(5);
/// How often a neighbour that is not known to be reachable is asked for.
const REFRESH: Duration = Duration::from_secs(1);

/// Which ends matter.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Far ends of tunnels.
    pub ends: BTreeSet<IpAddr>,
}

/// What is known.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct View {
    /// How ends are reached; only those that are.
    pub ways: HashMap<IpAddr, Way>,
    /// All wanted ends.
    pub ends: BTreeMap<IpAddr, End>,
    /// Host taps by name.
    pub links: BTreeMap<String, Link>,
}

/// One far end, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Itself, or the gateway towards it.
    pub next_hop: Option<IpAddr>,
    /// Of the next hop.
    pub mac: Option<Mac>,
    /// By which uplink.
    pub uplink: String,
    /// "reachable", "unresolved", "no route".
    pub state: &'static str,
}

/// A host tap, as the kernel sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Kernel's number.
    pub index: u32,
    /// Of the device.
    pub mtu_bytes: u32,
    /// Has a carrier.
    pub up: bool,
    /// Of global scope.
    pub addresses: BTreeSet<IpAddr>,
}

/// An uplink that tunnels can leave by.
#[derive(Debug, Clone)]
pub struct Exit {
    /// Of it and its host tap.
    pub name: String,
    /// Its number in the tables.
    pub iface: IfaceId,
    /// Its MAC.
    pub mac: Mac,
}

/// Follows the kernel until the receiver of views is gone.
#[derive(Debug)]
pub struct Underlay {
    handle: Handle,
    exits: Vec<Exit>,
    links: HashMap<u32, (String, u32, bool)>,
    addresses: BTreeSet<(u32, IpAddr)>,
    neighbours: HashMap<(u32, IpAddr), (Option<Mac>, NeighbourState)>,
    /// What the routing table says of each wanted end: (device, next hop).
    routes: BTreeMap<IpAddr, Option<(u32, IpAddr)>>,
    /// Events were lost: everything must be read again.
    missed: bool,
}

/// Starts following, once the node's links and addresses are known: whoever greets this process is
/// told the node's tunnel ends, and an answer without them would cost the node all its tunnels. The
/// netlink socket belongs to the caller's network namespace.
///
/// # Errors
/// The socket can not be made.
pub async fn start(
    exits: Vec<Exit>,
    wanted: watch::Receiver<Wanted>,
) -> std::io::Result<watch::Receiver<View>> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Neigh,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
    ];
    let (connection, handle, events) = rtnetlink::new_multicast_connection(&groups)?;
    tokio::spawn(connection);
    let mut underlay = Underlay {
        handle,
        exits,
        links: HashMap::new(),
        addresses: BTreeSet::new(),
        neighbours: HashMap::new(),
        routes: BTreeMap::new(),
        missed: false,
    };
    if let Err(error) = underlay.read_all().await {
        tracing::error!(%error, "can not read the node's links and neighbours: no tunnels");
        underlay.missed = true;
    }
    let (publish, views) = watch::channel(underlay.view());
    tokio::spawn(underlay.run(events, wanted, publish));
    Ok(views)
}

type Messages = futures::channel::mpsc::UnboundedReceiver<(
    rtnetlink::packet_core::NetlinkMessage<RouteNetlinkMessage>,
    rtnetlink::sys::SocketAddr,
)>;

impl Underlay {
    async fn run(
        mut self,
        mut events: Messages,
        mut wanted: watch::Receiver<Wanted>,
        publish: watch::Sender<View>,
    ) {
        let mut refresh = tokio::time::interval(REFRESH);
        refresh.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut routes_stale = true;
        loop {
            if std::mem::take(&mut self.missed) {
                self.forget();
                if let Err(error) = self.read_all().await {
                    tracing::warn!(%error, "reading the node's links and neighbours again");
                }
                routes_stale = true;
            }
            if std::mem::take(&mut routes_stale) {
                let ends = wanted.borrow_and_update().ends.clone();
                self.read_routes(&ends).await;
                self.ask_for_neighbours().await;
            }
            let view = self.view();
            publish.send_if_modified(|old| {
                let differs = *old != view;
                *old = view;
                differs
            });
            tokio::select! {
                event = events.next() => {
                    let Some((message, _)) = event else { return };
                    routes_stale |= self.note(message.payload);
                    let settled = Instant::now() + SETTLE;
                    while let Ok(Some((message, _))) =
                        tokio::time::timeout_at(settled, events.next()).await
                    {
                        routes_stale |= self.note(message.payload);
                    }
                }
                changed = wanted.changed() => match changed {
                    Ok(()) => routes_stale = true,
                    Err(_) => return,
                },
                _ = refresh.tick() => self.ask_for_neighbours().await,
            }
        }
    }

    fn forget(&mut self) {
        self.links.clear();
        self.addresses.clear();
        self.neighbours.clear();
    }

    async fn read_all(&mut self) -> Result<(), rtnetlink::Error> {
        let mut links = self.handle.link().get().execute();
        while let Some(link) = links.try_next().await? {
            self.note_link(&link);
        }
        let mut addresses = self.handle.address().get().execute();
        while let Some(address) = addresses.try_next().await? {
            self.note_address(&address, true);
        }
        let mut neighbours = self.handle.neighbours().get().execute();
        while let Some(neighbour) = neighbours.try_next().await? {
            self.note_neighbour(&neighbour, true);
        }
        Ok(())
    }

    /// Takes note of an event. Whether routes must be looked up again.
    fn note(&mut self, payload: NetlinkPayload<RouteNetlinkMessage>) -> bool {
        let message = match payload {
            NetlinkPayload::InnerMessage(message) => message,
            NetlinkPayload::Overrun(_) => {
                // The kernel had more to say than the socket holds.
                self.missed = true;
                return false;
            }
            _ => return false,
        };
        match message {
            RouteNetlinkMessage::NewNeighbour(neighbour) => {
                self.note_neighbour(&neighbour, true);
                false
            }
            RouteNetlinkMessage::DelNeighbour(neighbour) => {
                self.note_neighbour(&neighbour, false);
                false
            }
            RouteNetlinkMessage::NewLink(link) => {
                self.note_link(&link);
                true
            }
            RouteNetlinkMessage::DelLink(link) => {
                self.links.remove(&link.header.index);
                true
            }
            RouteNetlinkMessage::NewAddress(address) => {
                self.note_address(&address, true);
                true
            }
            RouteNetlinkMessage::DelAddress(address) => {
                self.note_address(&address, false);
                true
            }
            RouteNetlinkMessage::NewRoute(_) | RouteNetlinkMessage::DelRoute(_) => true,
            _ => false,
        }
    }

    fn note_link(&mut self, link: &LinkMessage) {
        let mut name = None;
        let mut mtu = 0;
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::IfName(value) => name = Some(value.clone()),
                LinkAttribute::Mtu(value) => mtu = *value,
                _ => {}
            }
        }
        let up = link.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp);
        if let Some(name) = name {
            self.links.insert(link.header.index, (name, mtu, up));
        }
    }

    fn note_address(&mut self, message: &AddressMessage, there: bool) {
        if message.header.scope != AddressScope::Universe {
            return;
        }
        let local = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(ip) => Some(*ip),
            _ => None,
        });
        let address = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        });
        let Some(ip) = local.or(address) else { return };
        let key = (message.header.index, ip);
        if there {
            self.addresses.insert(key)
        } else {
            self.addresses.remove(&key)
        };
    }

    fn note_neighbour(&mut self, message: &NeighbourMessage, there: bool) {
        let mut ip = None;
        let mut mac = None;
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                    ip = Some(IpAddr::V4(*v4));
                }
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                    ip = Some(IpAddr::V6(*v6));
                }
                NeighbourAttribute::LinkLayerAddress(bytes) => mac = Mac::from_slice(bytes),
                _ => {}
            }
        }
        let Some(ip) = ip else { return };
        let key = (message.header.ifindex, ip);
        if !there {
            self.neighbours.remove(&key);
            return;
        }
        let state = message.header.state;
        let usable = !matches!(
            state,
            NeighbourState::Failed | NeighbourState::Incomplete | NeighbourState::None
        );
        self.neighbours.insert(key, (mac.filter(|_| usable), state));
    }

    async fn read_routes(&mut self, ends: &BTreeSet<IpAddr>) {
        self.routes.clear();
        for &end in ends {
            let route = self.route(end).await;
            self.routes.insert(end, route);
        }
    }

    /// Device and next hop towards an end.
    async fn route(&self, end: IpAddr) -> Option<(u32, IpAddr)> {
        let mut message = RouteMessage::default();
        message.header.address_family =
            if end.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        message.header.destination_prefix_length = if end.is_ipv4() { 32 } else { 128 };
        message.attributes.push(RouteAttribute::Destination(end.into()));
        let replies = self.handle.route().get(message).execute();
        let mut replies = std::pin::pin!(replies);
        let reply = replies.try_next().await.ok().flatten()?;
        let mut device = None;
        let mut gateway = None;
        for attribute in &reply.attributes {
            match attribute {
                RouteAttribute::Oif(index) => device = Some(*index),
                RouteAttribute::Gateway(RouteAddress::Inet(ip)) => gateway = Some(IpAddr::V4(*ip)),
                RouteAttribute::Gateway(RouteAddress::Inet6(ip))
                | RouteAttribute::Via(RouteVia::Inet6(ip)) => gateway = Some(IpAddr::V6(*ip)),
                RouteAttribute::Via(RouteVia::Inet(ip)) => gateway = Some(IpAddr::V4(*ip)),
                _ => {}
            }
        }
        Some((device?, gateway.unwrap_or(end)))
    }

    fn exit(&self, device: u32) -> Option<(&Exit, u32)> {
        let (name, mtu, _) = self.links.get(&device)?;
        let exit = self.exits.iter().find(|exit| exit.name == *name)?;
        Some((exit, *mtu))
    }

    /// Makes the kernel resolve, or check again, every next hop that it is not sure of.
    async fn ask_for_neighbours(&self) {
        let hops: BTreeSet<_> = self.routes.values().flatten().copied().collect();
        for (device, hop) in hops {
            let sure = self.neighbours.get(&(device, hop)).is_some_and(|(mac, state)| {
                mac.is_some()
                    && matches!(
                        state,
                        NeighbourState::Reachable
                            | NeighbourState::Permanent
                            | NeighbourState::Delay
                            | NeighbourState::Probe
                    )
            });
            if sure || self.exit(device).is_none() {
                continue;
            }
            let request = self.handle.neighbours().add(device, hop);
            let request = request.state(NeighbourState::None).flags(NeighbourFlags::Use);
            if let Err(error) = request.replace().execute().await {
                tracing::debug!(%hop, %error, "the kernel does not ask for this neighbour");
            }
        }
    }

    fn view(&self) -> View {
        let mut view = View::default();
        for (index, (name, mtu, up)) in &self.links {
            if !self.exits.iter().any(|exit| exit.name == *name) {
                continue;
            }
            let addresses =
                self.addresses.iter().filter(|(i, _)| i == index).map(|(_, ip)| *ip).collect();
            let link = Link { index: *index, mtu_bytes: *mtu, up: *up, addresses };
            view.links.insert(name.clone(), link);
        }
        for (&end, route) in &self.routes {
            let (known, way) = self.end(*route);
            view.ends.insert(end, known);
            if let Some(way) = way {
                view.ways.insert(end, way);
            }
        }
        view
    }

    fn end(&self, route: Option<(u32, IpAddr)>) -> (End, Option<Way>) {
        let Some((device, hop)) = route else {
            let uplink = String::new();
            return (End { next_hop: None, mac: None, uplink, state: "no route" }, None);
        };
        let Some((exit, mtu)) = self.exit(device) else {
            let uplink = self.links.get(&device).map_or("", |(name, ..)| name).to_owned();
            return (End { next_hop: Some(hop), mac: None, uplink, state: "no uplink" }, None);
        };
        let mac = self.neighbours.get(&(device, hop)).and_then(|(mac, _)| *mac);
        let state = if mac.is_some() { "reachable" } else { "unresolved" };
        let end = End { next_hop: Some(hop), mac, uplink: exit.name.clone(), state };
        let mtu_bytes = u16::try_from(mtu).unwrap_or(u16::MAX);
        let way = mac.map(|to| Way { out: exit.iface, from: exit.mac, to, mtu_bytes });
        (end, way)
    }
}
