//! Opens uplinks as the command line names them, and gives them back at the end.
//!
//! | `--uplink` | what happens |
//! |---|---|
//! | `eth0=packet` | the NIC is taken over; packet sockets; the kernel's driver stays |
//! | `eth0=net_af_packet`, `eth0=net_af_xdp` | the same under DPDK's drivers |
//! | `eth0=net_memif0,role=client,…`, `eth0=0000:3b:00.0` | any DPDK device; a host tap is made |
//!
//! A name may be followed by `,physical-network=NAME`; further arguments go to the driver.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::str::FromStr;

use wire::Mac;

use super::start::{UplinkInfo, UplinkPort};
use crate::port::{Rx, Tx, packet};
use crate::sys::tun;
use crate::takeover::{self, Spec, Taken, Use};

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
}

impl FromStr for Request {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let usage = "write NAME=DRIVER[,argument…][,physical-network=NAME], for instance \
                     eth0=net_af_xdp";
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
        Ok(Self { name: name.into(), driver, arguments, physical_network })
    }
}

/// What must be given back when the workers have ended.
#[derive(Debug, Default)]
pub struct Opened {
    #[cfg(feature = "dpdk")]
    device: Option<dpdk::EthDev>,
    taken: Option<Taken>,
}

impl Opened {
    /// Gives the interface back to the node.
    ///
    /// # Errors
    /// The node's interface is not as it was; the message says what to do.
    pub fn close(mut self) -> Result<(), Error> {
        #[cfg(feature = "dpdk")]
        if let Some(device) = self.device.take() {
            // The drivers talk to the kernel about the interface: from inside its namespace.
            let inside = self.taken.as_ref().map(|taken| taken.phys_netns.as_fd());
            match inside {
                Some(netns) => {
                    let name = self.taken.as_ref().map_or("", |taken| &taken.name);
                    crate::sys::netns::run_in(netns, || drop(device))
                        .map_err(|source| Error::Namespace { name: name.into(), source })?;
                }
                None => drop(device),
            }
        }
        self.taken.take().map_or(Ok(()), Taken::restore).map_err(Error::Takeover)
    }
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
    /// The host tap.
    #[error(
        "uplink {name}: a tap of this name for the node's stack: {source} (is /dev/net/tun there?)"
    )]
    HostTap {
        /// Which.
        name: String,
        /// Why.
        source: std::io::Error,
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
    let mut ports = Vec::new();
    let mut opened = Vec::new();
    for (number, request) in requests.iter().enumerate() {
        match open(request, number, workers, state_dir, no_huge) {
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

fn open(
    request: &Request,
    number: usize,
    workers: u16,
    state_dir: &Path,
    no_huge: bool,
) -> Result<(UplinkPort, Opened), Error> {
    let purpose = match request.driver.as_str() {
        "packet" => Use::Packet,
        "net_af_packet" => Use::AfPacket,
        "net_af_xdp" => Use::AfXdp,
        _ => return open_device(request, number, workers, no_huge),
    };
    let spec = Spec { interface: request.name.clone(), purpose, queues: workers };
    let mut taken = takeover::begin(&spec, state_dir)?;
    let queues = match purpose {
        Use::Packet => open_packet(request, &taken, workers),
        Use::AfPacket | Use::AfXdp => open_taken(request, number, &taken, workers, no_huge),
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
    let port = UplinkPort { info, offloads, rx, tx, host_tap };
    Ok((port, Opened { taken: Some(taken), ..opened }))
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

type Queues = (Vec<Rx>, Vec<Tx>, Opened);

fn open_packet(request: &Request, taken: &Taken, workers: u16) -> Result<Queues, Error> {
    let netns = taken.phys_netns.as_fd();
    let (rx, tx, _lost) = packet::open(netns, taken.ifindex, workers, workers)
        .map_err(|source| Error::Packet { name: request.name.clone(), source })?;
    let rx = rx.into_iter().map(Rx::Packet).collect();
    let tx = tx.into_iter().map(Tx::Packet).collect();
    Ok((rx, tx, Opened::default()))
}

#[cfg(not(feature = "dpdk"))]
fn open_taken(request: &Request, _: usize, _: &Taken, _: u16, _: bool) -> Result<Queues, Error> {
    Err(Error::NoDpdk { name: request.name.clone() })
}

#[cfg(not(feature = "dpdk"))]
fn open_device(
    request: &Request,
    _: usize,
    _: u16,
    _: bool,
) -> Result<(UplinkPort, Opened), Error> {
    Err(Error::NoDpdk { name: request.name.clone() })
}

/// DPDK's drivers over a NIC that keeps its kernel driver.
#[cfg(feature = "dpdk")]
fn open_taken(
    request: &Request,
    number: usize,
    taken: &Taken,
    workers: u16,
    no_huge: bool,
) -> Result<Queues, Error> {
    let mut arguments = vec![format!("{}{number}", request.driver)];
    arguments.push(format!("iface={}", taken.phys_ifname));
    arguments.extend(request.arguments.iter().cloned());
    if request.driver == "net_af_packet" && workers > 1 {
        arguments.push(format!("qpairs={workers}"));
    }
    let eal = device::eal(request, no_huge)?;
    let mtu = u16::try_from(taken.mtu).unwrap_or(u16::MAX);
    // The drivers talk to the kernel about the interface: from inside its namespace.
    let netns = taken.phys_netns.as_fd();
    let work = || device::start(request, eal, &arguments.join(","), workers, mtu);
    let entered = crate::sys::netns::run_in(netns, work);
    let started =
        entered.map_err(|source| Error::Namespace { name: request.name.clone(), source })??;
    Ok((started.rx, started.tx, Opened { device: Some(started.device), taken: None }))
}

/// Any other DPDK device; the node's stack gets a new tap of the uplink's name behind it.
#[cfg(feature = "dpdk")]
fn open_device(
    request: &Request,
    number: usize,
    workers: u16,
    no_huge: bool,
) -> Result<(UplinkPort, Opened), Error> {
    let _ = number;
    let eal = device::eal(request, no_huge)?;
    let arguments = std::iter::once(&request.driver).chain(&request.arguments);
    let arguments: Vec<_> = arguments.map(String::as_str).collect();
    let started = device::start(request, eal, &arguments.join(","), workers, 1500)?;
    let mac = started.device.mac().map_err(device::failed(request))?;
    let host_tap = host_tap(request, workers, mac)?;
    let port = UplinkPort {
        info: info(request, Mac(mac), 1500),
        offloads: false,
        rx: started.rx,
        tx: started.tx,
        host_tap,
    };
    Ok((port, Opened { device: Some(started.device), taken: None }))
}

/// A tap of the uplink's name and MAC, up; it goes with the process.
fn host_tap(request: &Request, queues: u16, mac: [u8; 6]) -> Result<Vec<OwnedFd>, Error> {
    let failed = |source| Error::HostTap { name: request.name.clone(), source };
    let fds = tun::open_tap(&request.name, queues).map_err(failed)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let index = nix::net::if_::if_nametoindex(request.name.as_str())
        .map_err(|errno| failed(errno.into()))?;
    let set = runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        let link = rtnetlink::LinkUnspec::new_with_index(index).address(mac.to_vec()).up().build();
        handle.link().set(link).execute().await.map_err(std::io::Error::other)
    });
    set.map_err(failed)?;
    Ok(fds)
}

/// What needs DPDK.
#[cfg(feature = "dpdk")]
mod device {
    use std::sync::Arc;

    use dpdk::{Eal, EalOptions, EthConfig, EthDev, Mempool, MempoolConfig};

    use super::{Error, Request};
    use crate::port::eth::{EthRx, EthTx};
    use crate::port::{Rx, Tx};

    /// Buffers for each queue: descriptors, bursts, frames that other workers still copy.
    const BUFFERS_PER_QUEUE: u32 = 8191;
    /// For a pool of that size and DPDK's own needs, per worker.
    const MEMORY_MIB: u32 = 128;
    /// Ethernet header and a VLAN tag.
    const LINK_HEADER_BYTES: u16 = 18;

    /// A device that runs.
    pub(super) struct Started {
        pub(super) device: EthDev,
        pub(super) rx: Vec<Rx>,
        pub(super) tx: Vec<Tx>,
    }

    pub(super) fn failed(request: &Request) -> impl Fn(dpdk::Error) -> Error {
        let name = request.name.clone();
        move |source| Error::Dpdk { name: name.clone(), source }
    }

    /// DPDK itself, started with the first uplink.
    pub(super) fn eal(request: &Request, no_huge: bool) -> Result<Eal, Error> {
        if let Some(eal) = Eal::get() {
            return Ok(eal);
        }
        let is_pci = request.driver.contains(':');
        let options = EalOptions {
            memory_mib: MEMORY_MIB,
            pci: is_pci.then(|| request.driver.clone()).into_iter().collect(),
            ordinary_pages: no_huge,
            ..EalOptions::default()
        };
        Eal::init(&options).map_err(failed(request))
    }

    /// Brings a device up with as many queues as workers, or as it has.
    pub(super) fn start(
        request: &Request,
        eal: Eal,
        arguments: &str,
        workers: u16,
        mtu: u16,
    ) -> Result<Started, Error> {
        let failed = failed(request);
        let pool = MempoolConfig {
            mbufs: BUFFERS_PER_QUEUE * u32::from(workers),
            data_bytes: MempoolConfig::default().data_bytes.max(mtu + LINK_HEADER_BYTES),
            ..MempoolConfig::default()
        };
        let pool = Arc::new(Mempool::new(eal, &pool).map_err(&failed)?);
        let mut device = EthDev::probe(eal, arguments, Arc::clone(&pool)).map_err(&failed)?;
        let info = device.info().map_err(&failed)?;
        let config = EthConfig {
            rx_queues: workers.min(info.max_rx_queues),
            tx_queues: workers.min(info.max_tx_queues),
            ..EthConfig::default()
        };
        device.configure(&config).map_err(&failed)?;
        let (rx, tx) = device.start().map_err(&failed)?;
        // The node's stack has joined groups on the host tap that the NIC knows nothing of.
        if let Err(error) = device.set_all_multicast()
            && let Err(other) = device.set_promiscuous(true)
        {
            tracing::debug!(%error, %other, "the device does not say which frames it receives");
        }
        let rx = rx.into_iter().map(|queue| Rx::Eth(EthRx::new(queue))).collect();
        let tx = tx
            .into_iter()
            .map(|queue| Tx::Eth(EthTx::new(queue, Arc::clone(&pool), mtu)))
            .collect();
        Ok(Started { device, rx, tx })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read() {
        let read: Request = "eth0=net_memif0,role=client,physical-network=blue".parse().unwrap();
        assert_eq!((read.name.as_str(), read.driver.as_str()), ("eth0", "net_memif0"));
        assert_eq!(
            (read.arguments, read.physical_network),
            (vec!["role=client".into()], "blue".into())
        );
        for bad in ["eth0", "eth0=", "=packet", "a-name-that-is-too-long=packet"] {
            assert!(bad.parse::<Request>().is_err(), "{bad}");
        }
    }
}
