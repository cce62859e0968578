//! What the agent makes inside a pod's network namespace: taps, the companions of memif
//! interfaces, listening sockets, addresses and routes.
//!
//! Invariants: every call works on one namespace and touches only the devices that it is given by
//! name; routes carry [`ROUTE_PROTOCOL`] and no other route is touched; nothing here knows
//! networks or the data plane.

mod device;
mod link;
mod listener;
mod netlink;
mod netns;
pub mod parent;
pub mod policy;
mod probe;
mod veth;

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use device::{InterfacePlan, MadeInterface, make, remove, reopen};
pub use link::{
    Found, default_route_families, default_route_families_beside, free_names, inspect,
    replace_routes,
};
pub use listener::listen_abstract;
pub use netns::Netns;
pub(crate) use netns::OWN_NETNS;
pub use probe::{Finding, Question, probe};
pub use veth::{Veth, make_veth, put_address, put_neighbour, remove_veth, tune};

/// `rtm_protocol` of the routes that Bowline writes: a number that iproute2's table leaves free.
pub const ROUTE_PROTOCOL: u8 = 176;

/// The alias of a device that only informs about a memif interface.
pub const MEMIF_ALIAS: &str = "bowline memif";
/// The alias of a tap that carries traffic.
pub const TAP_ALIAS: &str = "bowline tap";

/// A step inside a namespace that failed, with what was being done.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing}: {source}")]
pub struct PodError {
    doing: String,
    source: io::Error,
}

impl PodError {
    /// `doing` completes the sentence "cannot …".
    pub fn new(doing: String, source: io::Error) -> Self {
        Self { doing, source }
    }

    /// Did the kernel say that the thing does not exist?
    pub fn is_not_found(&self) -> bool {
        matches!(self.source.raw_os_error(), Some(libc::ENODEV | libc::ENOENT | libc::ESRCH))
    }
}

/// What an interface is to the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// A kernel device that carries the traffic.
    Tap {
        /// Queues, one descriptor each.
        queues: u32,
    },
    /// A listening socket; the device of the same name only informs.
    Memif,
}

/// A route in the pod's namespace through one of its interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRoute {
    /// Destination.
    pub dst: IpNet,
    /// The gateway; absent: on the link.
    pub gw: Option<IpAddr>,
}
