//! Devices of DPDK.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use dpdk::{Eal, EalOptions, EthConfig, EthDev, Mempool, MempoolConfig};

use super::{Duration, Error, MTU_BYTES, Request};
use super::{Opened, Queues};
use crate::port::eth::{EthRx, EthTx};
use crate::port::{Rx, Tx};
use crate::takeover;

/// Buffers for each queue: descriptors, bursts, frames that other workers still copy. An
/// af_xdp queue takes 2048 for its fill ring, and loses them when it does not come up.
const BUFFERS_PER_QUEUE: u32 = 12_288;
/// An af_packet queue copies to and from its ring, and holds none.
const BUFFERS_PER_COPYING_QUEUE: u32 = 4096;
/// What DPDK puts around the data of a buffer, rounded up: its description, headroom, padding.
const AROUND_DATA_BYTES: u32 = 512;
/// Memory for everything but buffers.
const OTHER_MIB: u32 = 64;
/// How often, and after which pause, an XDP queue is asked for.
const XDP_ATTEMPTS: u32 = 4;
const XDP_PAUSE: Duration = Duration::from_millis(60);
/// What fits the af_packet driver's ring slots of 2048 bytes behind their headers.
const AF_PACKET_MTU: u16 = 1900;
/// A frame and DPDK's headers fit one page (XDP without multi-buffer).
const AF_XDP_MTU: u16 = 3000;
/// Ethernet header, a VLAN tag, and the room that XDP keeps in front of a frame.
const LINK_HEADER_BYTES: u16 = 18 + 256;

/// A device that runs.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) device: EthDev,
    pub(super) rx: Vec<Rx>,
    pub(super) tx: Vec<Tx>,
}

impl Started {
    pub(super) fn into_queues(self) -> Queues {
        let opened = Opened { device: Some(self.device), ..Opened::default() };
        (self.rx, self.tx, opened)
    }
}

pub(super) fn failed(request: &Request) -> impl Fn(dpdk::Error) -> Error {
    let name = request.name.clone();
    move |source| Error::Dpdk { name: name.clone(), source }
}

/// Starts DPDK where an uplink needs it. Before anything is taken over: it takes a while, in
/// which the node's traffic still flows.
pub(super) fn prepare(requests: &[Request], workers: u16, no_huge: bool) -> Result<(), Error> {
    let ours = |r: &&Request| r.driver == "packet" || r.memif.is_some();
    let devices: Vec<_> = requests.iter().filter(|r| !ours(r)).collect();
    let Some(first) = devices.first().filter(|_| Eal::get().is_none()) else { return Ok(()) };
    let mut memory_mib = OTHER_MIB;
    for request in &devices {
        let mtu = takeover::mtu(&request.name)?.and_then(|mtu| mtu.try_into().ok());
        memory_mib += u32::from(workers) * queue_mib(request, mtu.unwrap_or(MTU_BYTES));
    }
    let pci = devices.iter().filter(|r| r.is_pci());
    let options = EalOptions {
        memory_mib,
        pci: pci.map(|request| request.driver.clone()).collect(),
        ordinary_pages: no_huge,
        ..EalOptions::default()
    };
    Eal::init(&options).map_err(failed(first))?;
    tracing::info!(memory = ?Eal::memory(), "DPDK is ready");
    Ok(())
}

/// How many buffers a queue takes, and the bytes of data in each.
fn buffers(request: &Request, mtu: u16) -> (u32, u16) {
    let copies = request.driver == "net_af_packet";
    let count = if copies { BUFFERS_PER_COPYING_QUEUE } else { BUFFERS_PER_QUEUE };
    let data_bytes = mtu.saturating_add(LINK_HEADER_BYTES);
    (count, data_bytes.max(MempoolConfig::default().data_bytes))
}

fn queue_mib(request: &Request, mtu: u16) -> u32 {
    let (count, data_bytes) = buffers(request, mtu);
    (count * (u32::from(data_bytes) + AROUND_DATA_BYTES)).div_ceil(1 << 20)
}

fn eal(request: &Request) -> Result<Eal, Error> {
    Eal::get().map_or_else(|| Eal::init(&EalOptions::default()).map_err(failed(request)), Ok)
}

/// Whether the driver carries the interface's MTU.
pub(super) fn check_mtu(request: &Request, mtu_bytes: u32) -> Result<u16, Error> {
    let max_bytes = if request.driver == "net_af_packet" { AF_PACKET_MTU } else { AF_XDP_MTU };
    u16::try_from(mtu_bytes).ok().filter(|mtu| *mtu <= max_bytes).ok_or_else(|| Error::Mtu {
        name: request.name.clone(),
        mtu_bytes,
        max_bytes,
    })
}

/// Device arguments for a driver on a kernel interface, each time with a name that no device
/// of this process had.
pub(super) fn arguments(request: &Request, queues: u16) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let Request { name: interface, driver, .. } = request;
    let ours = if driver == "net_af_packet" {
        // Its sockets share the NIC's flows, used or not: as many as there are workers.
        format!("qpairs={queues},framecnt=2048,qdisc_bypass=1")
    } else {
        // Busy polling would hold interrupts back that a sleeping worker needs.
        format!("start_queue=0,queue_count={queues},busy_budget=0")
    };
    let mut all = format!("{driver}{number},iface={interface},{ours}");
    for argument in &request.arguments {
        all.push(',');
        all.push_str(argument);
    }
    all
}

/// Brings a device up with as many queues as workers, or as it has.
pub(super) fn start(
    request: &Request,
    arguments: impl Fn() -> String,
    workers: u16,
    mtu: u16,
) -> Result<Started, Error> {
    let eal = eal(request)?;
    let failed = failed(request);
    let (buffers, data_bytes) = buffers(request, mtu);
    let pool = MempoolConfig {
        // One less than a multiple of a power of two wastes least.
        mbufs: buffers * u32::from(workers) - 1,
        data_bytes,
        ..MempoolConfig::default()
    };
    let pool = Arc::new(Mempool::new(eal, &pool).map_err(&failed)?);
    let attempt = || configured(eal, request, &arguments(), workers, mtu, &pool);
    let mut device = attempt();
    for _ in 1..XDP_ATTEMPTS {
        if device.is_ok() || request.driver != "net_af_xdp" {
            break;
        }
        // The kernel takes a moment to release the queue of a process that was killed.
        std::thread::sleep(XDP_PAUSE);
        device = attempt();
    }
    let mut device = device.map_err(|source| match request.driver.as_str() {
        "net_af_xdp" => Error::Xdp { name: request.name.clone(), queues: workers, source },
        _ => failed(source),
    })?;
    let (rx, tx) = device.start().map_err(&failed)?;
    // The node's stack has joined groups on the host tap that the NIC knows nothing of.
    if let Err(error) = device.set_all_multicast()
        && let Err(other) = device.set_promiscuous(true)
    {
        tracing::debug!(%error, %other, "the device does not say which frames it receives");
    }
    let rx = rx.into_iter().map(|queue| Rx::Eth(EthRx::new(queue))).collect();
    let tx =
        tx.into_iter().map(|queue| Tx::Eth(EthTx::new(queue, Arc::clone(&pool), mtu))).collect();
    Ok(Started { device, rx, tx })
}

fn configured(
    eal: Eal,
    request: &Request,
    arguments: &str,
    queues: u16,
    mtu: u16,
    pool: &Arc<Mempool>,
) -> Result<EthDev, dpdk::Error> {
    let mut device = EthDev::probe(eal, arguments, Arc::clone(pool))?;
    let info = device.info()?;
    device.configure(&EthConfig {
        rx_queues: queues.min(info.max_rx_queues),
        tx_queues: queues.min(info.max_tx_queues),
        // The socket drivers have none, but sockets to wait on.
        rx_interrupts: !request.driver.starts_with("net_af_"),
        // The others have the MTU of what is below them.
        mtu: request.is_pci().then_some(mtu),
        ..EthConfig::default()
    })?;
    Ok(device)
}
