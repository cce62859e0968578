//! The link between a pod and its node, for pods whose own interface does not lead there.

use std::io;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};

use super::link::{add_address, delete, family, find, kind_of, open};
use super::netlink::Put;
use super::{Netns, PodError};

/// Both ends of a link between a pod and its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Veth {
    /// The end on the node.
    pub host: String,
    /// Its Ethernet address, chosen here so that nothing on the node changes it later.
    pub host_mac: [u8; 6],
    /// The end in the pod.
    pub pod: String,
    /// Its Ethernet address.
    pub pod_mac: [u8; 6],
    /// MTU of both.
    pub mtu: u32,
}

/// Makes the link from the calling thread's namespace, which has the node's end. One that is there is
/// kept.
pub fn make_veth(veth: &Veth, pod: &Netns) -> Result<(), PodError> {
    let mut netlink = open()?;
    let doing = |e| PodError::new(format!("make the link {} to the pod", veth.host), e);
    if find(&mut netlink, &veth.host)?.is_some() {
        return Ok(());
    }
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(veth.pod.clone()),
        LinkAttribute::Address(veth.pod_mac.to_vec()),
        LinkAttribute::Mtu(veth.mtu),
        LinkAttribute::NetNsFd(pod.as_raw_fd()),
    ];
    let mut message = LinkMessage::default();
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes = vec![
        LinkAttribute::IfName(veth.host.clone()),
        LinkAttribute::Address(veth.host_mac.to_vec()),
        LinkAttribute::Mtu(veth.mtu),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    netlink.put(RouteNetlinkMessage::NewLink(message), Put::Create).map_err(doing)
}

/// Removes the link by its end in the calling thread's namespace. Absent is fine.
pub fn remove_veth(name: &str) -> Result<(), PodError> {
    let mut netlink = open()?;
    let Some(link) = find(&mut netlink, name)?.filter(|link| kind_of(link) == "veth") else {
        return Ok(());
    };
    match delete(&mut netlink, link.header.index) {
        Err(e) if e.raw_os_error() != Some(libc::ENODEV) => {
            Err(PodError::new(format!("remove the link {name}"), e))
        }
        _ => Ok(()),
    }
}

/// Changes of a device: up, and what is given.
pub fn tune(name: &str, mac: Option<[u8; 6]>, queue: Option<u32>) -> Result<(), PodError> {
    let mut netlink = open()?;
    let doing = |e| PodError::new(format!("set MAC, queue length and state of {name}"), e);
    let link = find(&mut netlink, name)?;
    let link = link.ok_or_else(|| doing(io::Error::from_raw_os_error(libc::ENODEV)))?;
    let mut message = LinkMessage::default();
    message.header.index = link.header.index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes.extend(mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
    message.attributes.extend(queue.map(LinkAttribute::TxQueueLen));
    netlink.put(RouteNetlinkMessage::SetLink(message), Put::Change).map_err(doing)
}

/// Says for good who has an address behind a device, so that nobody asks.
pub fn put_neighbour(name: &str, address: std::net::IpAddr, mac: [u8; 6]) -> Result<(), PodError> {
    let mut netlink = open()?;
    let doing = |e| PodError::new(format!("write the neighbour {address} of {name}"), e);
    let link = find(&mut netlink, name)?;
    let link = link.ok_or_else(|| doing(io::Error::from_raw_os_error(libc::ENODEV)))?;
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = link.header.index;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![
        NeighbourAttribute::Destination(address.into()),
        NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
    ];
    netlink.put(RouteNetlinkMessage::NewNeighbour(message), Put::Replace).map_err(doing)
}

/// Adds an address to a device; one that is there stays.
pub fn put_address(name: &str, address: ipnet::IpNet) -> Result<(), PodError> {
    let mut netlink = open()?;
    let Some(link) = find(&mut netlink, name)? else {
        let gone = io::Error::from_raw_os_error(libc::ENODEV);
        return Err(PodError::new(format!("add the address {address} to {name}"), gone));
    };
    add_address(&mut netlink, link.header.index, address, true)
}
