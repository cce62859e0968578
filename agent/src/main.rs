//! The agent process: reads the command line, starts the parts, stops on a signal.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use agent::catalog::{Catalog, Directory};
use agent::cni_server::{CniServer, Settings};
use agent::config::{Config, LogFormat};
use agent::core::Core;
use agent::dataplane::Dataplane;
use agent::journal::Journal;
use agent::metrics::{self, Metrics};
use agent::{fault, nodestate};
use anyhow::Context;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let config = Config::parse();
    start_log(&config);
    if let Some(step) = &config.fault_step {
        fault::die_at(step);
    }
    // Two threads: one can wait in the kernel while the other serves.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let done = runtime
        .context("cannot start the runtime")
        .and_then(|runtime| runtime.block_on(run(config)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start_log(config: &Config) {
    let filter = EnvFilter::try_from_env("BOWLINE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let terminal = std::io::stderr().is_terminal();
    let format =
        config.log_format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json });
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.with_ansi(terminal).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}

async fn run(config: Config) -> anyhow::Result<()> {
    let node = match &config.node {
        Some(name) => name.clone(),
        None => host_name()?,
    };
    let core = open(&config, node)?;
    let follow = core
        .catalog
        .follow()
        .with_context(|| format!("cannot watch the catalog {}", config.catalog.display()))?;
    let metrics = Metrics::new();
    let dataplane = Dataplane::start(config.dataplane.clone(), core.clone());
    let server = CniServer::new(
        core.clone(),
        dataplane.clone(),
        metrics.clone(),
        Settings {
            socket: config.cni_socket.clone(),
            tombstone_dir: config.cni_state_dir.clone(),
            dataplane_socket: config.dataplane.clone(),
            apply_within: Duration::from_millis(config.apply_within_ms),
        },
    );
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move { server.run().await.context("cannot serve the CNI plugin") });
    tasks.spawn(nodestate_task(core.clone(), dataplane.clone(), metrics.clone()));
    tasks.spawn(follow_catalog(core, dataplane, metrics.clone()));
    if let Some(address) = config.metrics {
        tasks.spawn(async move {
            let served = metrics::serve(metrics, address).await;
            served.with_context(|| format!("cannot serve metrics on {address}"))
        });
    }
    let stopped = wait_for_end(&mut tasks).await;
    follow.abort();
    // Connections are answered to the end of their step or not at all: the journal knows either way.
    tasks.shutdown().await;
    // The next agent need not wonder whether anybody listens.
    let _ = std::fs::remove_file(&config.cni_socket);
    stopped
}

fn open(config: &Config, node: String) -> anyhow::Result<Arc<Core>> {
    let place = config.catalog.display();
    let directory = Directory::open(&config.catalog)
        .with_context(|| format!("cannot open the catalog {place}"))?;
    let catalog =
        Catalog::open(directory).with_context(|| format!("cannot read the catalog {place}"))?;
    let journal = Journal::open(&config.state_dir).with_context(|| {
        format!("cannot open the state directory {}", config.state_dir.display())
    })?;
    tracing::info!(node, catalog = %place, "bowline-agent {}", env!("CARGO_PKG_VERSION"));
    let core = Core::open(node, catalog, journal).context("cannot read the journal")?;
    Ok(Arc::new(core))
}

/// Tells the data plane about every change in the catalog.
async fn follow_catalog(
    core: Arc<Core>,
    dataplane: Dataplane,
    metrics: Arc<Metrics>,
) -> anyhow::Result<()> {
    let mut snapshots = core.catalog.subscribe();
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        // Cross-object problems are reported now, not at the next ADD.
        core.checked(&snapshot);
        metrics.catalog_problems.set(snapshot.problems().len().try_into().unwrap_or(i64::MAX));
        dataplane.nudge();
        if snapshots.changed().await.is_err() {
            return Ok(());
        }
    }
}

async fn nodestate_task(
    core: Arc<Core>,
    dataplane: Dataplane,
    metrics: Arc<Metrics>,
) -> anyhow::Result<()> {
    nodestate::keep(core, dataplane, metrics).await;
    Ok(())
}

/// Until a signal, or until a part fails.
async fn wait_for_end(tasks: &mut tokio::task::JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let ended = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
        Some(ended) = tasks.join_next() => {
            return ended.context("a part of the agent panicked")?;
        }
    };
    tracing::info!("stopping on {ended}; traffic goes on without the agent");
    Ok(())
}

fn host_name() -> anyhow::Result<String> {
    let path = "/proc/sys/kernel/hostname";
    let name = std::fs::read_to_string(path).with_context(|| format!("{path}; give --node"))?;
    Some(name.trim().to_owned()).filter(|n| !n.is_empty()).context("no host name; give --node")
}
