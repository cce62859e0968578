//! What a takeover was about to do, on disk before it does it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::config::NetConfig;
use super::pci::PciAddress;
use super::{Error, Use};

const VERSION: u32 = 1;

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Phase {
    /// The NIC is being taken: its configuration in the journal is the truth.
    Taking,
    /// The host tap has the configuration, and may have changed it since.
    Taken,
    /// The NIC is being given back: the configuration in the journal is the truth again.
    GivingBack,
}

/// A NIC that changes its driver.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Pci {
    /// As in `0000:3b:00.0`.
    pub(super) address: String,
    /// The driver to give it back to.
    pub(super) driver: String,
}

impl Pci {
    pub(super) fn address(&self) -> io::Result<PciAddress> {
        self.address.parse().map_err(io::Error::other)
    }
}

/// The journal of one uplink.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Journal {
    version: u32,
    pub(super) phase: Phase,
    /// A journal of an earlier boot says nothing: namespaces and taps are gone, the NIC is back.
    pub(super) boot_id: String,
    /// Which network namespace is the node's.
    pub(super) node_cookie: u64,
    pub(super) interface: String,
    /// The persistent namespace in which the NIC is; empty for one that leaves the kernel.
    pub(super) netns: String,
    /// The device that leaves the kernel, and its driver there.
    #[serde(default)]
    pub(super) pci: Option<Pci>,
    /// The host tap's name before it takes the interface's.
    pub(super) tap: String,
    pub(super) mac: [u8; 6],
    pub(super) mtu: u32,
    pub(super) tx_queue_len: u32,
    pub(super) up: bool,
    /// Offloads that were switched off, to be switched on again.
    pub(super) offloads: Vec<String>,
    /// Receive queues that it had, where it says.
    #[serde(default)]
    pub(super) rx_queues: Option<u32>,
    pub(super) config: NetConfig,
}

impl Journal {
    #[expect(clippy::too_many_arguments, reason = "called once, with the facts just read")]
    pub(super) fn new(
        interface: &str,
        (netns, pci): (String, Option<Pci>),
        tap: String,
        link: &super::link::Link,
        (offloads, rx_queues): (Vec<String>, Option<u32>),
        config: NetConfig,
        boot_id: String,
        node_cookie: u64,
    ) -> Self {
        Self {
            version: VERSION,
            phase: Phase::Taking,
            boot_id,
            node_cookie,
            interface: interface.to_owned(),
            netns,
            pci,
            tap,
            mac: link.mac,
            mtu: link.mtu,
            tx_queue_len: link.tx_queue_len,
            up: link.up,
            offloads,
            rx_queues,
            config,
        }
    }
}

impl Journal {
    /// Whether what was begun is what is asked for now: a NIC may be used in another way after a
    /// restart.
    pub(super) fn suits(&self, purpose: Use) -> bool {
        let asked = match purpose {
            Use::Pci(address) => Some(address.to_string()),
            Use::AfPacket | Use::AfXdp | Use::Packet => None,
        };
        self.pci.as_ref().map(|pci| &pci.address) == asked.as_ref()
    }

    /// Where the NIC is while it is taken, in words.
    pub(super) fn place(&self) -> String {
        match &self.pci {
            Some(pci) => format!("PCI device {}", pci.address),
            None => format!("in namespace {}", self.netns),
        }
    }
}

/// The file, held by one process at a time.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    _lock: Flock<File>,
}

impl Store {
    /// Opens the place of one interface's journal.
    pub(super) fn open(state_dir: &Path, interface: &str) -> Result<Self, Error> {
        let path = state_dir.join(format!("takeover-{interface}.json"));
        let failed = |source| Error::Journal { path: path.clone(), source };
        fs::create_dir_all(state_dir).map_err(failed)?;
        let lock_path = path.with_extension("lock");
        let lock = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(failed)?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
            if errno == nix::Error::EWOULDBLOCK {
                return Error::Running { interface: interface.to_owned(), lock: lock_path };
            }
            failed(errno.into())
        })?;
        Ok(Self { path, _lock: lock })
    }

    pub(super) fn load(&self) -> Result<Option<Journal>, Error> {
        let failed = |source| Error::Journal { path: self.path.clone(), source };
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let journal: Journal =
            serde_json::from_slice(&bytes).map_err(|error| failed(io::Error::other(error)))?;
        if journal.version != VERSION {
            let text = format!("version {}, this program knows {VERSION}", journal.version);
            return Err(failed(io::Error::other(text)));
        }
        Ok(Some(journal))
    }

    /// Returns when the journal is on disk, whole.
    pub(super) fn save(&self, journal: &Journal) -> Result<(), Error> {
        let write = || {
            let next = self.path.with_extension("next");
            let mut file = File::create(&next)?;
            file.write_all(&serde_json::to_vec_pretty(journal)?)?;
            file.sync_all()?;
            fs::rename(&next, &self.path)?;
            self.sync_folder()
        };
        write().map_err(|source| Error::Journal { path: self.path.clone(), source })
    }

    pub(super) fn remove(&self) -> Result<(), Error> {
        let remove = || match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => self.sync_folder(),
        };
        remove().map_err(|source| Error::Journal { path: self.path.clone(), source })
    }

    fn sync_folder(&self) -> io::Result<()> {
        self.path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}
