//! Taking the node's interface over, as a transaction.
//!
//! A persistent tap takes the NIC's place in the node (name, MAC, MTU, addresses, routes, neighbours,
//! settings), so that the node's sockets notice nothing. A NIC that keeps the kernel's driver moves
//! into a persistent namespace of its own; one on the PCI bus changes its driver to vfio-pci.
//!
//! ```text
//! journal → tap under another name → namespace → NIC moves → NIC prepared ┐
//!                                 └→ NIC changes its driver ──────────────┴→ tap takes the name
//!         → tap takes the configuration → commit
//! ```
//!
//! Invariants: the journal is on disk before the first change and until the last; every step may be
//! repeated; whoever finds the journal (the next [`begin`], or [`rollback`]) looks at what is there
//! and finishes. After a `kill -9` tap and namespace are still there, and [`begin`] resumes without
//! touching an address. One process at a time: a lock beside the journal.
//!
//! All functions work on the network namespace of the calling thread: the node's.

mod config;
mod journal;
mod link;
mod netlink;
mod pci;
mod prove;
mod steps;
#[cfg(test)]
mod tests;

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use journal::{Journal, Phase, Store};
use netlink::Netlink;

pub use pci::PciAddress;
pub use prove::Gateway;

use crate::sys::netns;

/// How the data plane will use the NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// DPDK's af_packet driver: frames one by one, checksums complete.
    AfPacket,
    /// DPDK's af_xdp driver: as af_packet.
    AfXdp,
    /// Our own packet socket: super-frames and partial checksums are welcome.
    Packet,
    /// DPDK's driver for the hardware at this address: no kernel driver is left on it.
    Pci(PciAddress),
}

/// What to take over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// The interface of the node.
    pub interface: String,
    /// How it will be used.
    pub purpose: Use,
    /// Queues of the host tap.
    pub queues: u16,
}

/// A NIC that is taken. Dropping it leaves everything as it is, as a crash does.
#[derive(Debug)]
pub struct Taken {
    /// The host tap's queues: virtio-net headers of 12 bytes, not blocking. To be handed on.
    pub host_tap: Vec<OwnedFd>,
    /// The name of the host tap: the interface's.
    pub name: String,
    /// Where the NIC is, if the kernel still drives it.
    pub moved: Option<Moved>,
    /// The MAC address of both.
    pub mac: [u8; 6],
    /// The MTU of both.
    pub mtu: u32,
    /// Whether an earlier takeover was found and continued without any change to the node.
    pub resumed: bool,
    journal: Journal,
    store: Store,
}

/// A NIC that the kernel drives, in a namespace of its own, under its old name.
#[derive(Debug)]
pub struct Moved {
    /// The namespace.
    pub netns: OwnedFd,
    /// The NIC's number in there.
    pub ifindex: u32,
    /// Its receive queues. Each is to have a socket of its own where it is used by XDP.
    pub rx_queues: u32,
}

/// Why a takeover failed, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process has the interface.
    #[error("another data plane has {interface} (it holds {lock}); stop it first")]
    Running {
        /// The interface.
        interface: String,
        /// The lock file.
        lock: PathBuf,
    },
    /// The journal cannot be read or written.
    #[error("takeover journal {path}: {source}")]
    Journal {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The journal is another node's.
    #[error(
        "takeover journal {path} belongs to another network namespace; give each node its own state \
         folder, or delete the file if that node is gone"
    )]
    ForeignJournal {
        /// The file.
        path: PathBuf,
    },
    /// The interface must not be taken.
    #[error("interface {interface} cannot be taken over: {reason}")]
    Refused {
        /// The interface.
        interface: String,
        /// Why, and what to do.
        reason: String,
    },
    /// The NIC is neither where it was nor where it was moved to.
    #[error(
        "interface {interface} is neither in the node nor {place}: the device is gone; its place in \
         the node was cleaned up"
    )]
    NicLost {
        /// The interface.
        interface: String,
        /// Where it was put.
        place: String,
    },
    /// The node does not reach what it reached before.
    #[error(
        "since {interface} was taken over, {} does not answer any more; the interface is given back",
        .gateways.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    )]
    Unreachable {
        /// The interface.
        interface: String,
        /// Gateways of the node.
        gateways: Vec<IpAddr>,
    },
    /// The kernel refused a step.
    #[error("{step} of interface {interface}: {source}")]
    Step {
        /// What was tried.
        step: &'static str,
        /// The interface.
        interface: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Where a crash is simulated in tests; each comes after something was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    JournalWritten,
    TapMade,
    NamespaceMade,
    NicMoved,
    NicPrepared,
    TapNamed,
    TapConfigured,
    Committed,
    GivingBack,
    TapDeleted,
    NicReturned,
    NicConfigured,
    NamespaceRemoved,
    JournalRemoved,
}

/// Called after each step; an error ends everything on the spot, as a crash would.
pub(crate) type Hook<'a> = &'a mut dyn FnMut(Step) -> Result<(), Error>;

/// Takes the interface over, or resumes a takeover that was interrupted at any point.
///
/// # Errors
/// See [`Error`]. Where the failure comes after a change, the takeover is undone first.
pub fn begin(spec: &Spec, state_dir: &Path) -> Result<Taken, Error> {
    let result = begin_with(spec, state_dir, &mut |_| Ok(()));
    if let Err(error @ Error::Step { .. }) = result {
        match rollback(&spec.interface, state_dir) {
            Ok(true) => tracing::warn!(interface = spec.interface, "takeover undone"),
            Ok(false) => {}
            Err(undo) => tracing::error!(interface = spec.interface, %undo, "undo failed as well"),
        }
        return Err(error);
    }
    result
}

/// Whether there is anything to take over: the kernel has such an interface, or a takeover of it is
/// on record. A PCI device that was taken from the kernel by hand has neither.
///
/// # Errors
/// See [`Error`].
pub fn concerns(interface: &str, state_dir: &Path) -> Result<bool, Error> {
    let on_record = load(&Store::open(state_dir, interface)?)?.is_some();
    Ok(on_record || steps::nic_in_node(&mut open_netlink(interface)?, interface)?.is_some())
}

/// The MTU of what has the interface's name now, the NIC or its host tap.
///
/// # Errors
/// [`Error::Step`] with the kernel's answer.
pub fn mtu(interface: &str) -> Result<Option<u32>, Error> {
    let found = link::Link::find(&mut open_netlink(interface)?, interface);
    let failed = |source| Error::Step { step: "looking", interface: interface.to_owned(), source };
    Ok(found.map_err(failed)?.map(|link| link.mtu))
}

/// Gives the interface back if a takeover of it is on record; `false` if none is.
///
/// # Errors
/// See [`Error`]; can be called again.
pub fn rollback(interface: &str, state_dir: &Path) -> Result<bool, Error> {
    rollback_with(interface, state_dir, &mut |_| Ok(()))
}

pub(crate) fn begin_with(spec: &Spec, state_dir: &Path, hook: Hook<'_>) -> Result<Taken, Error> {
    let store = Store::open(state_dir, &spec.interface)?;
    let mut netlink = open_netlink(&spec.interface)?;
    let mut found = load(&store)?;
    let undo = |j: &mut Journal| j.phase == Phase::GivingBack || !j.suits(spec.purpose);
    if let Some(mut journal) = found.take_if(undo) {
        steps::give_back(&mut netlink, &store, &mut journal, hook)?;
    }
    let here = steps::nic_in_node(&mut netlink, &spec.interface)?;
    let resumed = found.as_ref().is_some_and(|j| j.phase == Phase::Taken) && here.is_none();
    let journal = match (here, found) {
        // It was not moved yet, so that what it has now is the truth.
        (Some(nic), old) => {
            let journal = steps::plan(&mut netlink, spec, &nic, old.as_ref())?;
            store.save(&journal)?;
            hook(Step::JournalWritten)?;
            journal
        }
        (None, Some(journal)) => journal,
        (None, None) => return Err(steps::nothing_to_take(&mut netlink, spec, &store)),
    };
    steps::take(&mut netlink, spec, store, journal, resumed, hook)
}

pub(crate) fn rollback_with(
    interface: &str,
    state_dir: &Path,
    hook: Hook<'_>,
) -> Result<bool, Error> {
    let store = Store::open(state_dir, interface)?;
    let Some(mut journal) = load(&store)? else { return Ok(false) };
    let mut netlink = open_netlink(interface)?;
    steps::give_back(&mut netlink, &store, &mut journal, hook)?;
    Ok(true)
}

/// Waits until the gateways answer through the host tap, once the data plane forwards.
///
/// # Errors
/// [`Error::Unreachable`] with those that did not within `limit`.
pub fn prove(interface: &str, gateways: &[Gateway], limit: Duration) -> Result<(), Error> {
    let missing = prove::unreachable(interface, gateways, limit).map_err(|source| Error::Step {
        step: "asking for the gateways",
        interface: interface.to_owned(),
        source,
    })?;
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::Unreachable { interface: interface.to_owned(), gateways: missing })
}

impl Taken {
    /// The gateways that the node reached when the interface was taken, for [`prove`].
    pub fn gateways(&self) -> Vec<Gateway> {
        prove::gateways(&self.journal.config)
    }

    /// Gives the interface back: the NIC returns with what the host tap has now.
    ///
    /// # Errors
    /// See [`Error`]; [`rollback`] or the next [`begin`] continues.
    pub fn restore(mut self) -> Result<(), Error> {
        // The tap can only go when nobody has it open.
        self.host_tap.clear();
        let mut netlink = open_netlink(&self.name)?;
        steps::give_back(&mut netlink, &self.store, &mut self.journal, &mut |_| Ok(()))
    }
}

/// Makes a persistent tap for a device that the kernel never had, or attaches to the one that a
/// killed process left, with the addresses and the MAC address it has. It is up then.
///
/// # Errors
/// [`Error::Step`] with the kernel's answer.
pub fn make_tap(
    name: &str,
    mac: [u8; 6],
    mtu: u16,
    queues: u16,
) -> Result<(Vec<OwnedFd>, [u8; 6]), Error> {
    steps::stand_alone_tap(&mut open_netlink(name)?, name, mac, mtu, queues).map_err(|source| {
        Error::Step { step: "making the tap", interface: name.to_owned(), source }
    })
}

/// Deletes a tap of [`make_tap`].
///
/// # Errors
/// [`Error::Step`] with the kernel's answer.
pub fn remove_tap(name: &str) -> Result<(), Error> {
    steps::remove_tap(&mut open_netlink(name)?, name).map_err(|source| Error::Step {
        step: "deleting the tap",
        interface: name.to_owned(),
        source,
    })
}

fn open_netlink(interface: &str) -> Result<Netlink, Error> {
    Netlink::open().map_err(|source| Error::Step {
        step: "opening netlink",
        interface: interface.to_owned(),
        source,
    })
}

/// The journal, if it is about this node since this boot.
fn load(store: &Store) -> Result<Option<Journal>, Error> {
    let Some(journal) = store.load()? else { return Ok(None) };
    if journal.boot_id != boot_id() {
        tracing::info!(path = %store.path().display(), "the journal is from before the last boot");
        store.remove()?;
        return Ok(None);
    }
    if journal.node_cookie != netns::cookie() {
        return Err(Error::ForeignJournal { path: store.path().to_owned() });
    }
    Ok(Some(journal))
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}
