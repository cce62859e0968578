//! The agent process: reads the command line, starts the parts, stops on a signal.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use agent::catalog::{ApiCatalog, Catalog, Directory, Source};
use agent::cni_server::{CniServer, Settings};
use agent::config::{Config, LogFormat};
use agent::core::Core;
use agent::dataplane::Dataplane;
use agent::install::{self, Places};
use agent::metrics::{self, Metrics};
use agent::node::{self, Firewall};
use agent::{fault, nodestate, uninstall};
use anyhow::Context;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// How often it is looked which watches are needed.
const WATCHES_EVERY: Duration = Duration::from_secs(20);
/// How long the start waits for the blocks of Networks in use.
const CATALOG_WITHIN: Duration = Duration::from_secs(30);

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
    let (source, follow) = open_source(&config, &node).await?;
    let core = open(&config, node, source)?;
    // What other nodes have is known before the data plane is told anything: a restart changes no
    // route.
    if core.catalog.prepare(&core.networks_in_use(), CATALOG_WITHIN).await.is_err() {
        tracing::warn!("the API server does not tell the blocks of Networks in use; going on");
    }
    let metrics = Metrics::new(&core.catalog.store().writes());
    let dataplane = Dataplane::start(config.dataplane.clone(), core.clone());
    let firewall = config.kubernetes.then(|| Arc::new(Firewall::default()));
    let server = CniServer::new(
        core.clone(),
        dataplane.clone(),
        metrics.clone(),
        Settings {
            socket: config.cni_socket.clone(),
            tombstone_dir: config.cni_state_dir.clone(),
            dataplane_socket: config.dataplane.clone(),
            apply_within: Duration::from_millis(config.apply_within_ms),
            cni_conf_dir: config.cni_conf_dir.clone(),
        },
        firewall.clone(),
    );
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move { server.run().await.context("cannot serve the CNI plugin") });
    tasks.spawn(nodestate_task(core.clone(), dataplane.clone(), metrics.clone()));
    if let Some(firewall) = firewall.clone() {
        tasks.spawn(node_task(core.clone(), dataplane.clone(), firewall));
    }
    tasks.spawn(follow_catalog(core.clone(), dataplane, metrics.clone()));
    if let Some(address) = config.metrics {
        tasks.spawn(async move {
            let served = metrics::serve(metrics, address).await;
            served.with_context(|| format!("cannot serve metrics on {address}"))
        });
    }
    let places = config.kubernetes.then(|| places(&config)).flatten();
    if let Some(places) = places.clone() {
        tasks.spawn(install_task(core.clone(), places));
    }
    let installed = uninstall::is_installed(&core).await;
    let stopped = wait_for_end(&mut tasks).await;
    // Connections are answered to the end of their step or not at all: the journal knows either way. Before
    // anything is removed: these tasks would put it back.
    tasks.shutdown().await;
    if let (Some(places), Some(firewall), true) = (&places, &firewall, installed) {
        uninstall::if_uninstalled(&core, places, firewall).await;
    }
    if let Some(follow) = follow {
        follow.abort();
    }
    // The next agent need not wonder whether anybody listens.
    let _ = std::fs::remove_file(&config.cni_socket);
    stopped
}

/// The catalog in force, and the task that follows a directory's files.
async fn open_source(
    config: &Config,
    node: &str,
) -> anyhow::Result<(Source, Option<tokio::task::JoinHandle<()>>)> {
    if config.kubernetes {
        let settings = kube::Config::infer().await.context(
            "no way to the Kubernetes API: run in a pod with a service account, or set KUBECONFIG",
        )?;
        tracing::info!(node, api = %settings.cluster_url, "bowline-agent {VERSION}");
        let client = kube::Client::try_from(settings).context("cannot make a Kubernetes client")?;
        return Ok((Source::Api(ApiCatalog::open(client, node).await), None));
    }
    let place = config.catalog.display();
    tracing::info!(node, catalog = %place, "bowline-agent {VERSION}");
    let directory = Directory::open(&config.catalog)
        .with_context(|| format!("cannot open the catalog {place}"))?;
    let catalog =
        Catalog::open(directory).with_context(|| format!("cannot read the catalog {place}"))?;
    let follow = catalog.follow().with_context(|| format!("cannot watch the catalog {place}"))?;
    Ok((Source::Files(catalog), Some(follow)))
}

fn open(config: &Config, node: String, source: Source) -> anyhow::Result<Arc<Core>> {
    let core = Core::open(node, source, &config.state_dir).with_context(|| {
        format!("cannot read the journal in the state directory {}", config.state_dir.display())
    })?;
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

/// What only an agent of a Kubernetes node does: the node's own leg, and the choice of watches.
async fn node_task(
    core: Arc<Core>,
    dataplane: Dataplane,
    firewall: Arc<Firewall>,
) -> anyhow::Result<()> {
    let watches = async {
        loop {
            tokio::time::sleep(WATCHES_EVERY).await;
            let in_use = core.networks_in_use();
            if let Some(api) = core.catalog.api() {
                api.keep_watching(&in_use);
            }
        }
    };
    tokio::select! {
        () = node::keep(core.clone(), dataplane, firewall) => Ok(()),
        () = watches => Ok(()),
        () = node::keep_untainted(core.clone()) => Ok(()),
    }
}

/// Where the node's runtime looks, if this process was given to see it.
fn places(config: &Config) -> Option<Places> {
    let conf_dir = Some(config.cni_conf_dir.clone()).filter(|d| d.is_dir() && !config.no_cni_conf);
    let beside = || std::env::current_exe().unwrap_or_default().with_file_name("bowline-cni");
    config.cni_bin_dir.is_dir().then(|| Places {
        bin_dir: config.cni_bin_dir.clone(),
        plugin: config.cni_plugin.clone().unwrap_or_else(beside),
        conf_dir,
    })
}

async fn install_task(core: Arc<Core>, places: Places) -> anyhow::Result<()> {
    install::keep(core, places).await;
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
