//! Devices of the node that pods' interfaces are built on: VLAN devices and bonds, in the calling
//! thread's namespace.

use std::fs;
use std::io;
use std::path::PathBuf;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};

use super::PodError;
use super::link::{find, kind_of, open};
use super::netlink::{Netlink, Put};

/// Several devices as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bond {
    /// Its name.
    pub name: String,
    /// 0 to 6, as the kernel counts them.
    pub mode: u8,
    /// Files of `/sys/class/net/NAME/bonding` and what they shall hold.
    pub options: Vec<(String, String)>,
    /// The devices.
    pub members: Vec<String>,
}

/// Sets a device up.
pub fn set_up(name: &str) -> Result<(), PodError> {
    let mut netlink = open()?;
    let link = existing(&mut netlink, name)?;
    change(&mut netlink, &link, LinkFlags::Up, None)
        .map_err(|e| PodError::new(format!("set {name} up"), e))
}

/// Makes `PARENT.ID` and sets it up. One that is there is kept; the same VLAN on another parent is an
/// error, because both would take the same frames for theirs.
pub fn make_vlan(parent: &str, id: u16) -> Result<(), PodError> {
    let mut netlink = open()?;
    let doing = || format!("make the VLAN device {parent}.{id}");
    let name = format!("{parent}.{id}");
    let under = existing(&mut netlink, parent)?.header.index;
    let dump = netlink.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()));
    for answer in dump.map_err(|e| PodError::new(doing(), e))? {
        let RouteNetlinkMessage::NewLink(link) = answer else { continue };
        let other = name_of(&link);
        if vlan_of(&link) == Some(id) && other != name {
            let message = format!("{other} has VLAN {id} already; remove it, or use it as parent");
            let error = io::Error::new(io::ErrorKind::AlreadyExists, message);
            return Err(PodError::new(doing(), error));
        }
    }
    if find(&mut netlink, &name)?.is_none() {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.clone()),
            LinkAttribute::Link(under),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vlan),
                LinkInfo::Data(InfoData::Vlan(vec![InfoVlan::Id(id)])),
            ]),
        ];
        netlink
            .put(RouteNetlinkMessage::NewLink(message), Put::Create)
            .map_err(|e| PodError::new(doing(), lacking(e, "8021q")))?;
    }
    set_up(&name)
}

/// Makes a bond with its members and sets it up. One that is there keeps its mode and options and
/// gains the members that it lacks.
pub fn make_bond(bond: &Bond) -> Result<(), PodError> {
    let mut netlink = open()?;
    let doing = |e| PodError::new(format!("make the bond {}", bond.name), e);
    for member in &bond.members {
        existing(&mut netlink, member)?;
    }
    match find(&mut netlink, &bond.name)? {
        Some(link) if kind_of(&link) == "bond" => {}
        Some(_) => {
            let message = "the node has another device of that name; choose another name";
            return Err(doing(io::Error::new(io::ErrorKind::AlreadyExists, message)));
        }
        None => {
            let mut message = LinkMessage::default();
            message.attributes = vec![
                LinkAttribute::IfName(bond.name.clone()),
                LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bond)]),
            ];
            netlink
                .put(RouteNetlinkMessage::NewLink(message), Put::Create)
                .map_err(|e| doing(lacking(e, "bonding")))?;
            set_options(bond)?;
        }
    }
    let index = existing(&mut netlink, &bond.name)?.header.index;
    for member in &bond.members {
        let link = existing(&mut netlink, member)?;
        let joined = |a: &LinkAttribute| matches!(a, LinkAttribute::Controller(c) if *c == index);
        if !link.attributes.iter().any(joined) {
            // The kernel takes members that are down alone.
            let joining = change(&mut netlink, &link, LinkFlags::empty(), None)
                .and_then(|()| change(&mut netlink, &link, LinkFlags::empty(), Some(index)));
            joining.map_err(|e| PodError::new(format!("put {member} into {}", bond.name), e))?;
        }
        set_up(member)?;
    }
    set_up(&bond.name)
}

/// Mode first: the others depend on it.
fn set_options(bond: &Bond) -> Result<(), PodError> {
    let folder = PathBuf::from("/sys/class/net").join(&bond.name).join("bonding");
    let mode = ("mode".to_owned(), bond.mode.to_string());
    for (key, value) in std::iter::once(&mode).chain(&bond.options) {
        let path = folder.join(key);
        fs::write(&path, value)
            .map_err(|e| PodError::new(format!("write {value} to {}", path.display()), e))?;
    }
    Ok(())
}

fn existing(netlink: &mut Netlink, name: &str) -> Result<LinkMessage, PodError> {
    find(netlink, name)?.ok_or_else(|| {
        let message = "the node has no interface of that name";
        PodError::new(format!("build on {name}"), io::Error::new(io::ErrorKind::NotFound, message))
    })
}

fn change(
    netlink: &mut Netlink,
    link: &LinkMessage,
    up: LinkFlags,
    controller: Option<u32>,
) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = link.header.index;
    message.header.flags = up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes.extend(controller.map(LinkAttribute::Controller));
    netlink.put(RouteNetlinkMessage::SetLink(message), Put::Change)
}

fn name_of(link: &LinkMessage) -> String {
    let mut names = link.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    });
    names.next().unwrap_or_default()
}

fn vlan_of(link: &LinkMessage) -> Option<u16> {
    let infos = link.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    let data = infos.flatten().filter_map(|info| match info {
        LinkInfo::Data(InfoData::Vlan(vlan)) => Some(vlan),
        _ => None,
    });
    let mut ids = data.flatten().filter_map(|info| match info {
        InfoVlan::Id(id) => Some(*id),
        _ => None,
    });
    ids.next()
}

/// A kind of device that the kernel does not know: which module has it?
fn lacking(error: io::Error, module: &str) -> io::Error {
    if error.raw_os_error() != Some(libc::EOPNOTSUPP) {
        return error;
    }
    let message = format!(
        "the node's kernel lacks it; run `modprobe {module}`, or use a kernel that has the module"
    );
    io::Error::new(io::ErrorKind::Unsupported, message)
}
