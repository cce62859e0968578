//! Brings the process up and down: workers on their cores, sockets, the control thread.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::stat::{Mode, umask};
use tokio::sync::{mpsc, watch};
use wire::Mac;

use super::apply::Books;
use super::desired::Desired;
use super::ports::Workers;
use super::{Control, Fixed, descriptors, memif_uplink, server, underlay};
use crate::copy::{Channel, Thresholds};
use crate::port::{Rx, Tx};
use crate::sys::priority;
use crate::table::counters::per_worker;
use crate::table::{Iface, IfaceId, IfaceKind, Tables, TxOwner, VrfId};
use crate::worker::{Polling, Worker, setup};

/// Calls that wait for the control thread.
const ASKS: usize = 1024;

/// What the process is told to be.
#[derive(Debug)]
pub struct Config {
    /// Where the API listens; descriptors come to the same path with `.fds` behind it.
    pub socket: PathBuf,
    /// How workers wait for packets.
    pub polling: Polling,
    /// The core of each worker; as many workers as cores.
    pub cpus: Vec<usize>,
    /// UDP port of VXLAN where a state does not say.
    pub vxlan_port: u16,
    /// Inner destination MAC of what is tunnelled to this node.
    pub router_mac: Mac,
    /// Where Prometheus may ask.
    pub metrics: Option<SocketAddr>,
    /// NICs and the node's stack behind them.
    pub uplinks: Vec<UplinkPort>,
    /// DMA channels for the first workers, one each; the others copy by CPU.
    pub channels: Vec<Box<dyn Channel>>,
    /// Which bursts go to a channel.
    pub thresholds: Thresholds,
}

/// An uplink with its queues, and the host tap behind it.
#[derive(Debug)]
pub struct UplinkPort {
    /// Facts.
    pub info: UplinkInfo,
    /// Whether it takes super-frames and partial checksums.
    pub offloads: bool,
    /// Receiving queues.
    pub rx: Vec<Rx>,
    /// One sending queue for each worker, or as many as the device has.
    pub tx: Vec<Tx>,
    /// Queues of the host tap.
    pub host_tap: Vec<OwnedFd>,
    /// Of an uplink whose queues come and go with its peer.
    pub memif: Option<memif_uplink::Opened>,
}

/// Facts about an uplink.
#[derive(Debug, Clone)]
pub struct UplinkInfo {
    /// The name that the node's stack keeps.
    pub name: String,
    /// "" = the main one.
    pub physical_network: String,
    /// "net_af_xdp", "packet", …
    pub driver: String,
    /// At start.
    pub mtu_bytes: u16,
    /// Of NIC and host tap.
    pub mac: Mac,
}

/// What stays as it was at start.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) boot_id: String,
    pub(super) router_mac: Mac,
    pub(super) polling: &'static str,
    pub(super) cpus: Vec<usize>,
    pub(super) uplinks: Vec<UplinkInfo>,
    /// Names of the workers' DMA channels.
    pub(super) channels: Vec<String>,
}

/// Why the process could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process serves the socket.
    #[error(
        "{path}: another data plane listens there; stop it, or choose another place with --socket"
    )]
    SocketTaken {
        /// Where.
        path: PathBuf,
    },
    /// The socket can not be made.
    #[error("{path}: {source}; its folder must exist and be writable (are you root?)")]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The metrics address can not be used.
    #[error("--metrics {address}: {source}")]
    Metrics {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The kernel refuses something that every Linux gives.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// A core does not exist or may not be used.
    #[error("worker {worker} can not run on CPU {cpu}: {source}; see --cpus and `nproc`")]
    Pin {
        /// Its number.
        worker: usize,
        /// Which.
        cpu: usize,
        /// Why.
        source: nix::Error,
    },
    /// Queues could not be given to the workers.
    #[error(transparent)]
    Port(#[from] super::PortError),
    /// The node is full.
    #[error(transparent)]
    Exhausted(#[from] super::ids::Exhausted),
}

fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::System { what, source }
}

/// Runs until `stop` turns true. Workers have ended when this returns.
///
/// # Errors
/// See [`Error`]; nothing runs any more then.
pub fn run(config: Config, stop: watch::Receiver<bool>) -> Result<(), Error> {
    // A peer that truncates its memory must not end the process.
    memif::sigbus::install().map_err(system("SIGBUS handler"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(system("event loop"))?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, serve(config, stop))
}

async fn serve(config: Config, stop: watch::Receiver<bool>) -> Result<(), Error> {
    let api_listener = bind_api(&config.socket)?;
    let fds_path = fds_path(&config.socket);
    let fds_listener = bind(&fds_path, descriptors::bind_at)?;
    let (ask, asks) = mpsc::channel(ASKS);
    if let Some(address) = config.metrics {
        let listener = tokio::net::TcpListener::bind(address)
            .await
            .map_err(|source| Error::Metrics { address, source })?;
        tokio::spawn(crate::observe::metrics::serve(listener, ask.clone()));
    }
    let (socket, polling) = (config.socket.clone(), config.polling);
    let (control, threads) = build(config, ask.clone(), asks, stop).await?;
    tokio::spawn(async move {
        if let Err(error) = descriptors::serve(fds_listener, ask).await {
            tracing::error!(%error, "the descriptor socket is no longer served");
        }
    });
    let server = server::serve(api_listener, control.ask.clone());
    tokio::spawn(async move {
        if let Err(error) = server.await {
            tracing::error!(%error, "the API is no longer served");
        }
    });
    tracing::info!(socket = %socket.display(), ?polling, "the data plane is ready");
    control.run().await;
    for thread in threads {
        if thread.join().is_err() {
            tracing::error!("a worker had ended before");
        }
    }
    for path in [&socket, &fds_path] {
        // Somebody may have tidied up already.
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}

/// Tables with the uplinks, workers with their queues, and the actor above them.
async fn build(
    config: Config,
    ask: mpsc::Sender<super::Ask>,
    asks: mpsc::Receiver<super::Ask>,
    stop: watch::Receiver<bool>,
) -> Result<(Control, Vec<std::thread::JoinHandle<()>>), Error> {
    let count = config.cpus.len();
    let (mut books, mut tables) = Books::new(count, config.router_mac, config.vxlan_port);
    let mut fixed = Vec::new();
    let mut exits = Vec::new();
    let mut queues = Vec::new();
    let mut infos = Vec::new();
    for mut uplink in config.uplinks {
        let ids = (books.take_iface_id()?, books.take_iface_id()?);
        let [mut nic, host] = add_uplink(&mut tables, &uplink, ids, count);
        if let Some(memif) = uplink.memif.take() {
            let name = nic.name.as_str().into();
            let wire = memif.start(name, count as u16, ask.clone());
            nic.wire = Some(wire.map_err(system("memif socket"))?);
        }
        fixed.extend([nic, host]);
        exits.push(underlay::Exit {
            name: uplink.info.name.clone(),
            iface: ids.0,
            mac: uplink.info.mac,
        });
        infos.push(uplink.info);
        queues.push((ids, uplink.rx, uplink.tx, uplink.host_tap));
    }
    let mut made = setup(count, config.polling, tables).map_err(system("worker wake-ups"))?;
    let mut workers = Workers::new(made.handles, made.publisher);
    for ((uplink, host), rx, tx, host_tap) in queues {
        workers.attach_shared(uplink, rx, tx)?;
        workers.attach_tap(host, &host_tap)?;
    }
    let channels = config.channels.iter().map(|channel| channel.name().to_owned()).collect();
    for (worker, channel) in made.workers.iter_mut().zip(config.channels) {
        worker.use_channel(channel, config.thresholds);
    }
    let threads = spawn_workers(made.workers, &config.cpus)?;
    // The node has its network: the rest is not urgent.
    let _ = priority::ordinary();
    let (tunnel_ends, wanted) = watch::channel(underlay::Wanted::default());
    let underlay = underlay::start(exits, wanted).await.map_err(system("netlink socket"))?;
    let facts = Facts {
        boot_id: boot_id(),
        router_mac: config.router_mac,
        polling: match config.polling {
            Polling::Busy => "busy",
            Polling::Adaptive => "adaptive",
        },
        cpus: config.cpus,
        uplinks: infos,
        channels,
    };
    let control = Control {
        facts,
        desired: Desired::new(config.vxlan_port),
        books,
        workers,
        reports: made.reports,
        backlog: VecDeque::new(),
        asks,
        ask,
        ports: std::collections::BTreeMap::new(),
        names: HashMap::new(),
        ghosts: HashMap::new(),
        fixed,
        descriptors: descriptors::Descriptors::default(),
        ledger: super::Ledger::default(),
        events: super::Events::default(),
        observing: super::observing::Observing::default(),
        underlay,
        tunnel_ends,
        stop,
    };
    Ok((control, threads))
}

/// Writes an uplink and its host tap into the tables.
fn add_uplink(
    tables: &mut Tables,
    uplink: &UplinkPort,
    (nic, host): (IfaceId, IfaceId),
    workers: usize,
) -> [Fixed; 2] {
    let info = &uplink.info;
    let every: Arc<[TxOwner]> = Arc::from([TxOwner::Every]);
    let owners = super::ports::tx_owners(uplink.tx.len(), workers);
    let mut add = |id, kind, name: String, peer, offloads, queues: usize| {
        let owners = if kind == IfaceKind::Uplink { &owners } else { &every };
        let counters = per_worker(workers);
        let iface = Iface {
            id,
            kind,
            name: name.into(),
            vrf: VrfId::UNDERLAY,
            mac: info.mac,
            mtu_bytes: info.mtu_bytes,
            addrs4: Box::new([]),
            addrs6: Box::new([]),
            allowed4: Box::new([]),
            allowed6: Box::new([]),
            any_source: false,
            offloads,
            peer,
            workers: Arc::clone(owners),
            counters: Arc::clone(&counters),
        };
        tables.ifaces.set(usize::from(id.0), Some(Arc::new(iface)));
        Fixed {
            id,
            name: info.name.clone(),
            kind,
            mac: info.mac,
            queues: queues as u32,
            counters,
            wire: None,
        }
    };
    [
        add(
            nic,
            IfaceKind::Uplink,
            format!("uplink/{}", info.name),
            host,
            uplink.offloads,
            uplink.rx.len(),
        ),
        add(
            host,
            IfaceKind::HostTap,
            format!("host/{}", info.name),
            nic,
            true,
            uplink.host_tap.len(),
        ),
    ]
}

/// One pinned thread for each worker.
fn spawn_workers(
    workers: Vec<Worker>,
    cpus: &[usize],
) -> Result<Vec<std::thread::JoinHandle<()>>, Error> {
    let mut threads = Vec::new();
    for (id, (worker, &cpu)) in workers.into_iter().zip(cpus).enumerate() {
        let (pinned, answer) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new()
            .name(format!("worker{id}"))
            .spawn(move || {
                let result = pin(cpu);
                // Others on this core have their turns, too. Giving way is never refused.
                let _ = priority::ordinary();
                let works = result.is_ok();
                // The receiver waits for it.
                let _ = pinned.send(result);
                if works {
                    // Its own cache of packet buffers, where DPDK is in use.
                    #[cfg(feature = "dpdk")]
                    let _registered = dpdk::Eal::get().map(dpdk::Eal::register_thread);
                    worker.run();
                }
            })
            .map_err(system("worker thread"))?;
        threads.push(thread);
        match answer.recv() {
            Ok(Ok(())) => {}
            Ok(Err(source)) => return Err(Error::Pin { worker: id, cpu, source }),
            Err(_) => return Err(Error::Pin { worker: id, cpu, source: nix::Error::ESRCH }),
        }
    }
    Ok(threads)
}

fn pin(cpu: usize) -> nix::Result<()> {
    let mut set = nix::sched::CpuSet::new();
    set.set(cpu)?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)
}

/// Where descriptors are offered.
pub fn fds_path(socket: &Path) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(".fds");
    path.into()
}

/// Refuses to go on where another data plane serves: before anything is taken from the node.
///
/// # Errors
/// [`Error::SocketTaken`].
pub fn nobody_serves(socket: &Path) -> Result<(), Error> {
    match UnixStream::connect(socket) {
        Ok(_) => Err(Error::SocketTaken { path: socket.into() }),
        Err(_) => Ok(()),
    }
}

fn bind_api(path: &Path) -> Result<tokio::net::UnixListener, Error> {
    let listener = bind(path, |path| std::os::unix::net::UnixListener::bind(path))?;
    let failed = |source| Error::Socket { path: path.into(), source };
    listener.set_nonblocking(true).map_err(failed)?;
    tokio::net::UnixListener::from_std(listener)
        .map_err(|source| Error::Socket { path: path.into(), source })
}

/// Binds a socket that only its owner may use. What a dead process left there is removed.
fn bind<T>(path: &Path, bind: impl FnOnce(&Path) -> std::io::Result<T>) -> Result<T, Error> {
    match UnixStream::connect(path) {
        // A SEQPACKET socket answers a stream with EPROTOTYPE: somebody is there.
        Ok(_) => return Err(Error::SocketTaken { path: path.into() }),
        Err(error) if error.raw_os_error() == Some(libc::EPROTOTYPE) => {
            if seqpacket_answers(path) {
                return Err(Error::SocketTaken { path: path.into() });
            }
            remove(path)?;
        }
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => remove(path)?,
        Err(_) => {}
    }
    let old = umask(Mode::from_bits_truncate(0o177));
    let result = bind(path);
    umask(old);
    result.map_err(|source| Error::Socket { path: path.into(), source })
}

fn remove(path: &Path) -> Result<(), Error> {
    std::fs::remove_file(path).map_err(|source| Error::Socket { path: path.into(), source })
}

fn seqpacket_answers(path: &Path) -> bool {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
    use std::os::fd::AsRawFd;
    let flags = SockFlag::SOCK_CLOEXEC;
    let Ok(probe) = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None) else {
        return false;
    };
    UnixAddr::new(path).is_ok_and(|address| connect(probe.as_raw_fd(), &address).is_ok())
}

/// New for every start.
fn boot_id() -> String {
    let random = std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
    match random.trim() {
        "" => format!("{}-{}", std::process::id(), super::events::now_ns()),
        uuid => uuid.into(),
    }
}
