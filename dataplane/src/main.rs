//! `bowline-dataplane`: arguments → configuration → run.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, bail, ensure};
use clap::Parser;
use dataplane::control::uplink::{self, Request};
use dataplane::control::{self, Config, UplinkPort};
use dataplane::copy::{self, Choice, Thresholds};
use dataplane::takeover;
use dataplane::worker::Polling;
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;
use wire::Mac;

/// The node's data plane: takes frames from pods, NICs and the node's stack, and hands them on.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// A NIC and how it is driven: NAME=packet, net_af_xdp, net_af_packet, a PCI address, memif or
    /// any DPDK device[,argument…][,physical-network=NAME]. Repeatable; none: one node only.
    #[arg(long = "uplink", value_name = "NAME=DRIVER")]
    uplinks: Vec<Request>,
    /// Give the uplinks back that a killed data plane left taken over, and end.
    #[arg(long, requires = "uplinks")]
    give_back: bool,
    /// Do not use hugepages even if some are free.
    #[arg(long)]
    no_huge: bool,
    /// Worker threads; each takes a core.
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// Cores of the workers, e.g. 2,3. Default: the last ones that this process may use.
    #[arg(long, value_delimiter = ',')]
    cpus: Vec<usize>,
    /// How idle workers wait: spin, or sleep up to a millisecond.
    #[arg(long, value_enum, default_value_t = Polling::Adaptive)]
    poll: Polling,
    /// What copies packets: cpu, or dma:DEVICE[,argument…] for one worker (repeat it for more).
    #[arg(long = "copy-engine", value_name = "ENGINE", default_value = "cpu")]
    copy_engines: Vec<Choice>,
    /// Shorter copies are never given to a DMA device.
    #[arg(long, default_value_t = Thresholds::default().copy_bytes)]
    dma_min_copy_bytes: u32,
    /// Bursts with fewer long copies are not given to a DMA device.
    #[arg(long, default_value_t = Thresholds::default().burst_copies)]
    dma_min_burst_copies: usize,
    /// Bursts with fewer bytes of long copies are not given to a DMA device.
    #[arg(long, default_value_t = Thresholds::default().burst_bytes)]
    dma_min_burst_bytes: u64,
    /// Where the API listens.
    #[arg(long, default_value = "/run/bowline/dataplane.sock")]
    socket: PathBuf,
    /// What must survive a restart. Default: the socket's folder.
    #[arg(long)]
    state_dir: Option<PathBuf>,
    /// Serve Prometheus metrics here, e.g. 127.0.0.1:9471.
    #[arg(long)]
    metrics: Option<SocketAddr>,
    /// UDP port of VXLAN, where the state does not say another.
    #[arg(long, default_value_t = control::desired::VXLAN_PORT)]
    vxlan_port: u16,
    /// What is logged, e.g. info or dataplane=debug. Default: $BOWLINE_LOG, or info.
    #[arg(long)]
    log: Option<String>,
    /// Form of the log. Default: text on a terminal, JSON otherwise.
    #[arg(long, value_enum, value_name = "FORM")]
    log_format: Option<LogFormat>,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// One object per line.
    Json,
}

fn start_log(args: &Args) -> anyhow::Result<()> {
    let log = args.log.clone().or_else(|| std::env::var("BOWLINE_LOG").ok());
    let log = log.unwrap_or_else(|| "info".into());
    let filter = EnvFilter::try_new(&log)
        .with_context(|| format!("--log {log}: not a filter; try info or dataplane=debug"))?;
    let terminal = std::io::stderr().is_terminal();
    let format =
        args.log_format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json });
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.with_ansi(terminal).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    start_log(&args)?;
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the data plane must run as root: it opens taps and NICs (try sudo)"
    );
    let cpus = cpus(&args)?;
    if let Some(folder) = args.socket.parent() {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("--socket: can not make {}", folder.display()))?;
    }
    let state_dir = match (&args.state_dir, args.socket.parent()) {
        (Some(folder), _) => folder.clone(),
        (None, Some(folder)) => folder.to_owned(),
        (None, None) => PathBuf::from("."),
    };
    if args.give_back {
        let given = uplink::give_back_all(&args.uplinks, &state_dir)?;
        if given.is_empty() {
            tracing::info!("nothing to give back: no journal in {}", state_dir.display());
        } else {
            tracing::info!("given back: {}", given.join(", "));
        }
        return Ok(());
    }
    if let Err(error) = dataplane::sys::priority::urgent() {
        tracing::debug!(%error, "starting without precedence");
    }
    if let Err(error) = dataplane::sys::memory::stay_local() {
        tracing::debug!(%error, "no memory policy");
    }
    // Signals are held back from here on, so that what was taken is given back.
    let stop = stop_on_signal()?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "starting");
    control::start::nobody_serves(&args.socket)?;
    let (uplinks, opened) =
        uplink::open_all(&args.uplinks, cpus.len() as u16, &state_dir, args.no_huge)?;
    let unreachable = prove(&opened)?;
    let result = copy::open_all(&args.copy_engines, cpus.len(), args.no_huge)
        .map_err(anyhow::Error::from)
        .and_then(|channels| run(args, cpus, channels, uplinks, &state_dir, stop));
    for uplink in opened {
        if let Err(error) = uplink.close() {
            tracing::error!(%error, "giving an uplink back; the next start continues");
        }
    }
    if let Some(error) = unreachable.lock().unwrap_or_else(PoisonError::into_inner).take() {
        eprintln!("Error: {error}");
        std::process::exit(EXIT_UNREACHABLE);
    }
    result
}

/// Whoever restarts us should not do it again by itself: the node would be cut off again and again.
const EXIT_UNREACHABLE: i32 = 3;

/// Stops the process, as a signal would, if the node does not reach its gateways any more.
fn prove(opened: &[uplink::Opened]) -> anyhow::Result<Arc<Mutex<Option<takeover::Error>>>> {
    let found: Arc<Mutex<Option<takeover::Error>>> = Arc::default();
    let place = Arc::clone(&found);
    uplink::prove_beside(opened, move |error| {
        tracing::error!(%error, "undoing the takeover");
        *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        // Blocked everywhere but in the thread that waits for it.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::SIGTERM);
    })?;
    Ok(found)
}

fn run(
    args: Args,
    cpus: Vec<usize>,
    channels: Vec<Box<dyn copy::Channel>>,
    uplinks: Vec<UplinkPort>,
    state_dir: &std::path::Path,
    stop: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let config = Config {
        router_mac: router_mac(state_dir, &uplinks)?,
        socket: args.socket,
        polling: args.poll,
        cpus,
        vxlan_port: args.vxlan_port,
        metrics: args.metrics,
        uplinks,
        channels,
        thresholds: Thresholds {
            copy_bytes: args.dma_min_copy_bytes,
            burst_copies: args.dma_min_burst_copies,
            burst_bytes: args.dma_min_burst_bytes,
        },
    };
    control::run(config, stop)?;
    Ok(())
}

/// Turns true at SIGTERM or SIGINT.
fn stop_on_signal() -> anyhow::Result<watch::Receiver<bool>> {
    use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set.add(Signal::SIGINT);
    // Blocked here, before any other thread is made, so that only the thread below gets them.
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&set), None).context("signal mask")?;
    let (send, receive) = watch::channel(false);
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        if let Ok(signal) = set.wait() {
            tracing::info!(%signal, "stopping");
            // Nobody listens: the process is ending already.
            let _ = send.send(true);
        }
    })?;
    Ok(receive)
}

/// The cores that were asked for, or the last ones that this process may use.
fn cpus(args: &Args) -> anyhow::Result<Vec<usize>> {
    ensure!((1..=64).contains(&args.workers), "--workers {}: 1..=64 is allowed", args.workers);
    if !args.cpus.is_empty() {
        ensure!(
            args.cpus.len() == args.workers,
            "--cpus names {} cores for {} workers",
            args.cpus.len(),
            args.workers
        );
        return Ok(args.cpus.clone());
    }
    let set = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).context("affinity")?;
    let mut usable: Vec<_> =
        (0..nix::sched::CpuSet::count()).filter(|&cpu| set.is_set(cpu) == Ok(true)).collect();
    if usable.len() < args.workers {
        bail!(
            "--workers {}: only {} cores may be used (nproc); a worker needs its own",
            args.workers,
            usable.len()
        );
    }
    Ok(usable.split_off(usable.len() - args.workers))
}

/// The node's router MAC: of the main uplink's MAC, or made once, then kept, because other nodes
/// write it into their packets. 06: locally administered, unicast, and none of the schemes for
/// gateways and pods.
fn router_mac(state_dir: &std::path::Path, uplinks: &[UplinkPort]) -> anyhow::Result<Mac> {
    if let Some(uplink) = uplinks.first() {
        let Mac([_, rest @ ..]) = uplink.info.mac;
        let [a, b, c, d, e] = rest;
        return Ok(Mac([0x06, a, b, c, d, e]));
    }
    let path = state_dir.join("router-mac");
    let made = || path.display().to_string();
    match std::fs::read(&path) {
        Ok(bytes) => {
            let mac = Mac::from_slice(&bytes).filter(|mac| !mac.is_group());
            return mac.with_context(|| {
                format!("{}: not a MAC of six bytes; remove the file to make a new one", made())
            });
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(made),
    }
    let mac = uplink::random_mac(0x06)?;
    std::fs::create_dir_all(state_dir)
        .with_context(|| format!("--state-dir: can not make {}", state_dir.display()))?;
    let new = path.with_extension("new");
    std::fs::write(&new, mac.0).with_context(made)?;
    std::fs::rename(&new, &path).with_context(made)?;
    Ok(mac)
}
