//! Making, reopening and removing one interface of a pod.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::link::{add_address, add_route, configure, create_dummy, delete, find, kind_of, open};
use super::netlink::Netlink;
use super::policy::put_own_table;
use super::{Device, MEMIF_ALIAS, PodError, PodRoute, TAP_ALIAS, listen_abstract};
use crate::sys;

/// One interface, decided completely before anything is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfacePlan {
    /// Its name in the pod, and a memif's socket.
    pub name: String,
    /// What it is.
    pub device: Device,
    /// Hardware address.
    pub mac: [u8; 6],
    /// MTU in bytes.
    pub mtu: u32,
    /// Addresses with the prefix length of their pool.
    pub addresses: Vec<IpNet>,
    /// Routes; for a memif they are told in the result and written nowhere.
    pub routes: Vec<PodRoute>,
    /// Routes of what is sent from its addresses; none: those of all. Not for a memif.
    #[serde(default)]
    pub own_table: Vec<PodRoute>,
}

/// What [`make`] leaves behind: descriptors for the data plane.
#[derive(Debug)]
pub struct MadeInterface {
    /// The interface's name.
    pub name: String,
    /// Tap queues in order, or the one listening socket.
    pub descriptors: Vec<OwnedFd>,
    /// `tap`, or what stands beside a memif: `dummy`, or `tap` where the kernel has no dummy.
    pub kernel_device: &'static str,
}

/// Makes the interface in the calling thread's namespace.
pub fn make(plan: &InterfacePlan) -> Result<MadeInterface, PodError> {
    let mut netlink = open()?;
    match plan.device {
        Device::Tap { queues } => {
            let descriptors = open_queues(&plan.name, queues)?;
            set_up_device(&mut netlink, plan, TAP_ALIAS, true)?;
            for route in &plan.routes {
                let index = index_of(&mut netlink, &plan.name)?;
                add_route(&mut netlink, index, route)?;
            }
            if !plan.own_table.is_empty() {
                put_own_table(&plan.name, &plan.addresses, &plan.own_table)?;
                accept_local_sources(&plan.name)?;
            }
            Ok(MadeInterface { name: plan.name.clone(), descriptors, kernel_device: "tap" })
        }
        Device::Memif => {
            let listener = listen_abstract(&plan.name)?;
            let kernel_device = make_companion(&mut netlink, &plan.name)?;
            set_up_device(&mut netlink, plan, MEMIF_ALIAS, false)?;
            Ok(MadeInterface {
                name: plan.name.clone(),
                descriptors: vec![listener],
                kernel_device,
            })
        }
    }
}

/// Networks may have the same addresses: a peer on this one may have an address that the pod itself has
/// on another, and the kernel takes packets from an own address for forged unless it is told.
fn accept_local_sources(name: &str) -> Result<(), PodError> {
    let path = format!("/proc/sys/net/ipv4/conf/{name}/accept_local");
    fs::write(&path, "1").map_err(|e| PodError::new(format!("write 1 to {path}"), e))
}

/// Opens the descriptors of an interface that exists: after a restart of the agent, when the data
/// plane that held them is gone as well.
pub fn reopen(plan: &InterfacePlan) -> Result<MadeInterface, PodError> {
    let descriptors = match plan.device {
        Device::Tap { queues } => open_queues(&plan.name, queues)?,
        Device::Memif => vec![listen_abstract(&plan.name)?],
    };
    Ok(MadeInterface { name: plan.name.clone(), descriptors, kernel_device: "tap" })
}

/// Removes the device of that name if it is of a kind that Bowline makes. Absent is fine.
pub fn remove(name: &str) -> Result<(), PodError> {
    let mut netlink = open()?;
    let Some(link) = find(&mut netlink, name)? else { return Ok(()) };
    if !matches!(kind_of(&link).as_str(), "tun" | "dummy") {
        return Ok(());
    }
    match delete(&mut netlink, link.header.index) {
        Err(e) if e.raw_os_error() != Some(libc::ENODEV) => {
            Err(PodError::new(format!("remove the interface {name}"), e))
        }
        _ => Ok(()),
    }
}

fn open_queues(name: &str, queues: u32) -> Result<Vec<OwnedFd>, PodError> {
    let doing = |e| PodError::new(format!("open {queues} queues of the tap {name}"), e);
    let open = |_| {
        let queue = sys::open_tap_queue(name, queues > 1)?;
        sys::set_tap_persistent(&queue)?;
        // Kernels before 6.2 do not know UDP segmentation.
        sys::set_tap_offloads(&queue, sys::OFFLOADS_ALL)
            .or_else(|_| sys::set_tap_offloads(&queue, sys::OFFLOADS_WITHOUT_USO))?;
        Ok(queue)
    };
    (0..queues).map(open).collect::<io::Result<_>>().map_err(doing)
}

fn make_companion(netlink: &mut Netlink, name: &str) -> Result<&'static str, PodError> {
    match create_dummy(netlink, name) {
        Ok(()) => return Ok("dummy"),
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
        Err(e) => return Err(PodError::new(format!("make the dummy device {name}"), e)),
    }
    let queue = sys::open_tap_queue(name, false).and_then(|queue| {
        sys::set_tap_persistent(&queue)?;
        Ok(queue)
    });
    // The queue is closed again: nobody reads it, and the device has no carrier.
    queue.map(|_| "tap").map_err(|e| {
        PodError::new(format!("make the tap {name} that stands for a dummy device"), e)
    })
}

fn set_up_device(
    netlink: &mut Netlink,
    plan: &InterfacePlan,
    alias: &str,
    carries: bool,
) -> Result<(), PodError> {
    let index = index_of(netlink, &plan.name)?;
    quiet_ipv6(&plan.name)?;
    configure(netlink, index, plan.mac, plan.mtu, alias)
        .map_err(|e| PodError::new(format!("set MAC, MTU and state of {}", plan.name), e))?;
    for address in &plan.addresses {
        let address = if carries { *address } else { IpNet::from(address.addr()) };
        add_address(netlink, index, address, carries)?;
    }
    Ok(())
}

fn index_of(netlink: &mut Netlink, name: &str) -> Result<u32, PodError> {
    find(netlink, name)?.map(|link| link.header.index).ok_or_else(|| {
        PodError::new(
            format!("find the interface {name} that was just made"),
            io::Error::from_raw_os_error(libc::ENODEV),
        )
    })
}

/// No router advertisements, no address of its own making, no duplicate detection: addresses come
/// from the catalog and must work at once.
fn quiet_ipv6(name: &str) -> Result<(), PodError> {
    let directory = PathBuf::from("/proc/sys/net/ipv6/conf").join(name);
    if !directory.exists() {
        return Ok(()); // the kernel has no IPv6
    }
    for (key, value) in [("accept_ra", "0"), ("autoconf", "0"), ("accept_dad", "0")] {
        let path = directory.join(key);
        fs::write(&path, value)
            .map_err(|e| PodError::new(format!("write {value} to {}", path.display()), e))?;
    }
    Ok(())
}
