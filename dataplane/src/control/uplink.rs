//! Opens uplinks as the command line names them, and gives them back at the end.
//!
//! | `--uplink` | what happens |
//! |---|---|
//! | `eth0=packet`, `packet:eth0` | the NIC is taken over; packet sockets; the kernel's driver stays; any MTU |
//! | `eth0=net_af_packet` | the same under DPDK's driver; MTU up to 1900 |
//! | `eth0=net_af_xdp` | the same under DPDK's driver; MTU up to 3000 |
//! | `eth0=0000:3b:00.0` | the NIC is taken over: it leaves the kernel's driver for vfio-pci and DPDK |
//! | `eth0=memif,socket=PATH,role=client,…` | our own memif, copied once; a host tap is made |
//! | `eth0=net_null0,…` | any DPDK device; a host tap is made |
//!
//! A name may be followed by `,physical-network=NAME`; further arguments go to the driver.

use std::os::fd::AsFd;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use wire::Mac;

use super::memif_uplink;
use super::start::{UplinkInfo, UplinkPort};
use crate::port::{Rx, Tx, packet};
use crate::takeover::{self, Moved, PciAddress, Spec, Taken, Use};

/// An uplink as the command line names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The interface's name, which the node's stack keeps.
    pub name: String,
    /// "packet", or the first part of DPDK's device arguments.
    pub driver: String,
    /// What follows it.
    pub arguments: Vec<String>,
    /// "" = the main one.
    pub physical_network: String,
    /// The arguments of the driver "memif".
    pub memif: Option<memif_uplink::Wanted>,
}

impl FromStr for Request {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let usage = "write NAME=DRIVER[,argument…][,physical-network=NAME], for instance \
                     eth0=net_af_xdp";
        if let Some(name) = text.strip_prefix("packet:") {
            return format!("{name}=packet").parse();
        }
        let (name, rest) = text.split_once('=').ok_or(usage)?;
        if name.is_empty() || name.len() > 15 {
            return Err(format!("\"{name}\" is no interface name of 1..=15 bytes; {usage}"));
        }
        let mut parts = rest.split(',').map(str::to_owned);
        let driver = parts.next().filter(|driver| !driver.is_empty()).ok_or(usage)?;
        let (networks, arguments): (Vec<_>, Vec<_>) =
            parts.partition(|part| part.starts_with("physical-network="));
        let physical_network = networks
            .last()
            .and_then(|part| part.split_once('='))
            .map_or_else(String::new, |(_, name)| name.into());
        let memif = (driver == "memif").then(|| memif_uplink::Wanted::parse(&arguments));
        let memif = memif.transpose()?;
        Ok(Self { name: name.into(), driver, arguments, physical_network, memif })
    }
}

#[cfg(feature = "dpdk")]
impl Request {
    /// As DPDK wants them.
    fn device_arguments(&self) -> String {
        let arguments = std::iter::once(&self.driver).chain(&self.arguments);
        arguments.map(String::as_str).collect::<Vec<_>>().join(",")
    }

    /// Hardware, as opposed to a driver over something of the kernel's.
    fn is_pci(&self) -> bool {
        self.driver.parse::<PciAddress>().is_ok()
    }
}

/// What must be given back when the workers have ended.
#[derive(Debug, Default)]
pub struct Opened {
    #[cfg(feature = "dpdk")]
    device: Option<dpdk::EthDev>,
    taken: Option<Taken>,
    /// The tap behind a device that the kernel never had.
    host_tap: Option<String>,
}

impl Opened {
    /// Gives the interface back to the node.
    ///
    /// # Errors
    /// The node's interface is not as it was; the message says what to do.
    pub fn close(mut self) -> Result<(), Error> {
        // Before the NIC moves back.
        #[cfg(feature = "dpdk")]
        drop(self.device.take());
        if let Some(name) = self.host_tap.take() {
            takeover::remove_tap(&name)?;
        }
        self.taken.take().map_or(Ok(()), Taken::restore).map_err(Error::Takeover)
    }
}

/// Gives back what a killed data plane left taken, without starting one. The interfaces that were.
///
/// # Errors
/// The first that can not be given back; the others are all the same.
pub fn give_back_all(requests: &[Request], state_dir: &Path) -> Result<Vec<String>, Error> {
    let mut given = Vec::new();
    let mut first = None;
    for request in requests {
        match takeover::rollback(&request.name, state_dir) {
            Ok(true) => given.push(request.name.clone()),
            Ok(false) => {}
            Err(error) => first = first.or(Some(error)),
        }
    }
    first.map_or(Ok(given), |error| Err(error.into()))
}

/// How long the node's gateways may take to answer through a data plane that has just started.
const PROOF_LIMIT: Duration = Duration::from_secs(10);

/// Proves, beside the running data plane, that the node still reaches its gateways. `failed` is
/// called where an interface that was just taken over must be given back. One that was taken over
/// before, and is only resumed, is left alone: its gateway may be down for another reason.
///
/// # Errors
/// No thread can be made.
pub fn prove_beside(
    opened: &[Opened],
    failed: impl Fn(takeover::Error) + Send + 'static,
) -> std::io::Result<()> {
    let taken = opened.iter().filter_map(|held| held.taken.as_ref());
    let proofs: Vec<_> =
        taken.map(|taken| (taken.name.clone(), taken.gateways(), taken.resumed)).collect();
    let work = move || {
        for (interface, gateways, resumed) in proofs {
            match takeover::prove(&interface, &gateways, PROOF_LIMIT) {
                Ok(()) => tracing::info!(interface, gateways = gateways.len(), "node reachable"),
                Err(error @ takeover::Error::Unreachable { .. }) if !resumed => failed(error),
                Err(error) => tracing::warn!(interface, %error, "not proven"),
            }
        }
    };
    std::thread::Builder::new().name("proof".into()).spawn(work).map(drop)
}

/// Why an uplink can not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The interface can not be taken over, or not be given back.
    #[error(transparent)]
    Takeover(#[from] takeover::Error),
    /// Packet sockets.
    #[error("uplink {name}: packet sockets on it: {source}")]
    Packet {
        /// Which.
        name: String,
        /// Why.
        source: std::io::Error,
    },
    /// The socket of a memif.
    #[error("uplink {name}: its memif socket: {source}")]
    Memif {
        /// Which.
        name: String,
        /// Why.
        source: std::io::Error,
    },
    /// The driver cannot carry frames that large.
    #[error(
        "uplink {name}: MTU {mtu_bytes}, the driver carries {max_bytes}; lower it (`ip link set \
         {name} mtu {max_bytes}`) or use {name}=packet"
    )]
    Mtu {
        /// Which.
        name: String,
        /// The interface's.
        mtu_bytes: u32,
        /// The driver's.
        max_bytes: u16,
    },
    /// The namespace of the NIC.
    #[error("uplink {name}: its namespace can not be entered: {source}")]
    Namespace {
        /// Which.
        name: String,
        /// Why.
        source: std::io::Error,
    },
    /// DPDK.
    #[cfg(feature = "dpdk")]
    #[error("uplink {name}: {source}")]
    Dpdk {
        /// Which.
        name: String,
        /// Why.
        source: dpdk::Error,
    },
    /// XDP sockets, one for each receive queue.
    #[cfg(feature = "dpdk")]
    #[error(
        "uplink {name}: no XDP sockets on its {queues} receive queues: {source}; another program \
         may have one of them, or the NIC's kernel driver no XDP for them (libxdp has said which): \
         end that program, or use {name}=packet"
    )]
    Xdp {
        /// Which.
        name: String,
        /// All of them.
        queues: u16,
        /// Why.
        source: dpdk::Error,
    },
    /// This binary was built without DPDK.
    #[error("uplink {name}: built without DPDK; use {name}=packet")]
    NoDpdk {
        /// Which.
        name: String,
    },
}

/// Opens all uplinks for `workers` workers. What was opened before a failure is given back.
///
/// # Errors
/// See [`Error`].
pub fn open_all(
    requests: &[Request],
    workers: u16,
    state_dir: &Path,
    no_huge: bool,
) -> Result<(Vec<UplinkPort>, Vec<Opened>), Error> {
    #[cfg(feature = "dpdk")]
    device::prepare(requests, workers, no_huge)?;
    #[cfg(not(feature = "dpdk"))]
    let _ = no_huge;
    let mut ports = Vec::new();
    let mut opened = Vec::new();
    for request in requests {
        match open(request, workers, state_dir) {
            Ok((port, held)) => {
                tracing::info!(uplink = request.name, driver = request.driver, "uplink ready");
                ports.push(port);
                opened.push(held);
            }
            Err(error) => {
                drop(ports);
                for held in opened {
                    if let Err(error) = held.close() {
                        tracing::error!(%error, "giving an uplink back");
                    }
                }
                return Err(error);
            }
        }
    }
    Ok((ports, opened))
}

fn open(request: &Request, workers: u16, state_dir: &Path) -> Result<(UplinkPort, Opened), Error> {
    if let Some(wanted) = &request.memif {
        return open_memif(request, wanted, workers);
    }
    let purpose = match request.driver.as_str() {
        "packet" => Use::Packet,
        "net_af_packet" => Use::AfPacket,
        "net_af_xdp" => Use::AfXdp,
        driver => match driver.parse::<PciAddress>() {
            Ok(address) if takeover::concerns(&request.name, state_dir)? => Use::Pci(address),
            _ => return open_device(request, workers),
        },
    };
    let spec = Spec { interface: request.name.clone(), purpose, queues: workers };
    let mut taken = takeover::begin(&spec, state_dir)?;
    let queues = match (purpose, &taken.moved) {
        (Use::Packet, Some(moved)) => open_packet(request, moved, workers),
        (_, Some(moved)) => open_moved(request, moved, taken.mtu, workers),
        (_, None) => open_pci(request, taken.mtu, workers),
    };
    let (rx, tx, opened) = match queues {
        Ok(queues) => queues,
        Err(error) => {
            if let Err(undo) = taken.restore() {
                tracing::error!(%undo, "giving {} back", request.name);
            }
            return Err(error);
        }
    };
    let info = info(request, Mac(taken.mac), taken.mtu);
    let host_tap = std::mem::take(&mut taken.host_tap);
    let offloads = purpose == Use::Packet;
    let port = UplinkPort { info, offloads, rx, tx, host_tap, memif: None };
    Ok((port, Opened { taken: Some(taken), ..opened }))
}

/// Five random bytes behind the first, which says what kind of address it is.
///
/// # Errors
/// The kernel's, as good as never.
pub fn random_mac(first: u8) -> std::io::Result<Mac> {
    let mut mac = [0; 6];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut mac)?;
    mac[0] = first;
    Ok(Mac(mac))
}

fn info(request: &Request, mac: Mac, mtu_bytes: u32) -> UplinkInfo {
    UplinkInfo {
        name: request.name.clone(),
        physical_network: request.physical_network.clone(),
        driver: request.driver.clone(),
        mtu_bytes: u16::try_from(mtu_bytes).unwrap_or(u16::MAX),
        mac,
    }
}

/// A memif; the node's stack gets a new tap of the uplink's name behind it.
fn open_memif(
    request: &Request,
    wanted: &memif_uplink::Wanted,
    workers: u16,
) -> Result<(UplinkPort, Opened), Error> {
    let mtu_bytes = wanted.mtu_bytes;
    let failed = |source| Error::Memif { name: request.name.clone(), source };
    let memif = wanted.clone().open().map_err(failed)?;
    let mac = wanted.mac.map_or_else(|| random_mac(0x02), Ok).map_err(failed)?;
    let (host_tap, mac) = takeover::make_tap(&request.name, mac.0, mtu_bytes, workers)?;
    let port = UplinkPort {
        info: info(request, Mac(mac), mtu_bytes.into()),
        offloads: false,
        rx: Vec::new(),
        tx: Vec::new(),
        host_tap,
        memif: Some(memif),
    };
    Ok((port, Opened { host_tap: Some(request.name.clone()), ..Opened::default() }))
}

type Queues = (Vec<Rx>, Vec<Tx>, Opened);

fn open_packet(request: &Request, moved: &Moved, workers: u16) -> Result<Queues, Error> {
    let (rx, tx) = packet::open(moved.netns.as_fd(), moved.ifindex, workers, workers)
        .map_err(|source| Error::Packet { name: request.name.clone(), source })?;
    let rx = rx.into_iter().map(Rx::Packet).collect();
    let tx = tx.into_iter().map(Tx::Packet).collect();
    Ok((rx, tx, Opened::default()))
}

#[cfg(not(feature = "dpdk"))]
fn open_moved(request: &Request, _: &Moved, _: u32, _: u16) -> Result<Queues, Error> {
    Err(Error::NoDpdk { name: request.name.clone() })
}

#[cfg(not(feature = "dpdk"))]
fn open_pci(request: &Request, _: u32, _: u16) -> Result<Queues, Error> {
    Err(Error::NoDpdk { name: request.name.clone() })
}

#[cfg(not(feature = "dpdk"))]
fn open_device(request: &Request, _: u16) -> Result<(UplinkPort, Opened), Error> {
    Err(Error::NoDpdk { name: request.name.clone() })
}

/// DPDK's drivers over a NIC that keeps its kernel driver.
#[cfg(feature = "dpdk")]
fn open_moved(
    request: &Request,
    moved: &Moved,
    mtu_bytes: u32,
    workers: u16,
) -> Result<Queues, Error> {
    let mtu = device::check_mtu(request, mtu_bytes)?;
    // Packet sockets share the NIC's frames among them, XDP sockets have a queue each.
    let xdp = request.driver == "net_af_xdp";
    let queues = if xdp { moved.rx_queues.try_into().unwrap_or(workers) } else { workers };
    // The drivers find the interface by its name: from inside its namespace.
    let work = || device::start(request, || device::arguments(request, queues), queues, mtu);
    let started = crate::sys::netns::run_in(moved.netns.as_fd(), work)
        .map_err(|source| Error::Namespace { name: request.name.clone(), source })
        .flatten()?;
    Ok(started.into_queues())
}

/// A NIC that has left the kernel.
#[cfg(feature = "dpdk")]
fn open_pci(request: &Request, mtu_bytes: u32, workers: u16) -> Result<Queues, Error> {
    let mtu = u16::try_from(mtu_bytes).unwrap_or(u16::MAX);
    let started = device::start(request, || request.device_arguments(), workers, mtu)?;
    Ok(started.into_queues())
}

/// Of a device that does not say.
#[cfg(feature = "dpdk")]
const MTU_BYTES: u16 = 1500;

/// Any other DPDK device; the node's stack gets a new tap of the uplink's name behind it.
#[cfg(feature = "dpdk")]
fn open_device(request: &Request, workers: u16) -> Result<(UplinkPort, Opened), Error> {
    let started = device::start(request, || request.device_arguments(), workers, MTU_BYTES)?;
    let mac = started.device.mac().map_err(device::failed(request))?;
    let (host_tap, mac) = takeover::make_tap(&request.name, mac, MTU_BYTES, workers)?;
    let port = UplinkPort {
        info: info(request, Mac(mac), u32::from(MTU_BYTES)),
        offloads: false,
        rx: started.rx,
        tx: started.tx,
        host_tap,
        memif: None,
    };
    let held = Opened {
        device: Some(started.device),
        host_tap: Some(request.name.clone()),
        ..Opened::default()
    };
    Ok((port, held))
}

#[cfg(feature = "dpdk")]
mod device;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read() {
        let read: Request = "eth0=net_memif0,role=client,physical-network=blue".parse().unwrap();
        assert_eq!(read.memif, None, "that is DPDK's");
        assert_eq!((read.name.as_str(), read.driver.as_str()), ("eth0", "net_memif0"));
        assert_eq!(
            (read.arguments, read.physical_network),
            (vec!["role=client".into()], "blue".into())
        );
        let short: Request = "packet:eth0".parse().unwrap();
        assert_eq!((short.name.as_str(), short.driver.as_str()), ("eth0", "packet"));
        let wire: Request = "up0=memif,socket=/x,physical-network=blue".parse().unwrap();
        assert!(wire.memif.is_some() && wire.physical_network == "blue");
        for bad in ["eth0", "eth0=", "=packet", "a-name-that-is-too-long=packet", "eth0=memif"] {
            assert!(bad.parse::<Request>().is_err(), "{bad}");
        }
    }
}
