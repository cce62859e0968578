//! `bowline-dataplane`: arguments → configuration → run.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use clap::Parser;
use dataplane::control::{self, Config};
use dataplane::worker::Polling;
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;
use wire::Mac;

/// The node's data plane: takes frames from pods, NICs and the node's stack, and hands them on.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Worker threads; each takes a core.
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// Cores of the workers, e.g. 2,3. Default: the last ones that this process may use.
    #[arg(long, value_delimiter = ',')]
    cpus: Vec<usize>,
    /// How idle workers wait: spin, or sleep up to a millisecond.
    #[arg(long, value_enum, default_value_t = Polling::Adaptive)]
    poll: Polling,
    /// Where the API listens.
    #[arg(long, default_value = "/run/bowline/dataplane.sock")]
    socket: PathBuf,
    /// What must survive a restart.
    #[arg(long, default_value = "/var/lib/bowline/dataplane")]
    state_dir: PathBuf,
    /// Serve Prometheus metrics here, e.g. 127.0.0.1:9471.
    #[arg(long)]
    metrics: Option<SocketAddr>,
    /// UDP port of VXLAN, where the state does not say another.
    #[arg(long, default_value_t = control::desired::VXLAN_PORT)]
    vxlan_port: u16,
    /// What is logged, e.g. info or dataplane=debug.
    #[arg(long, default_value = "info")]
    log: String,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let filter = EnvFilter::try_new(&args.log).with_context(|| {
        format!("--log {}: not a filter; try info or dataplane=debug", args.log)
    })?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the data plane must run as root: it opens taps and NICs (try sudo)"
    );
    let cpus = cpus(&args)?;
    if let Some(folder) = args.socket.parent() {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("--socket: can not make {}", folder.display()))?;
    }
    let config = Config {
        router_mac: router_mac(&args.state_dir)?,
        socket: args.socket,
        polling: args.poll,
        cpus,
        vxlan_port: args.vxlan_port,
        metrics: args.metrics,
        uplinks: Vec::new(),
    };
    control::run(config, stop_on_signal()?)?;
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

/// The node's router MAC: made once, then kept, because other nodes write it into their packets.
fn router_mac(state_dir: &std::path::Path) -> anyhow::Result<Mac> {
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
    let mut mac = [0u8; 6];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut mac)?;
    // 06: locally administered, unicast, and none of the schemes for gateways and pods.
    mac[0] = 0x06;
    std::fs::create_dir_all(state_dir)
        .with_context(|| format!("--state-dir: can not make {}", state_dir.display()))?;
    let new = path.with_extension("new");
    std::fs::write(&new, mac).with_context(made)?;
    std::fs::rename(&new, &path).with_context(made)?;
    Ok(Mac(mac))
}
