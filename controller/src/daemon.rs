//! Who starts what, and when it stops.

use std::future::Future;
use std::time::Duration;

use anyhow::Context;
use bowline_kube::{ApiStore, Events, OtherAllocator};
use kube::Client;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::certificate::{Current, Keeper, Listener};
use crate::jobs::{self, Tools};
use crate::lease::Candidate;
use crate::metrics::Metrics;
use crate::options::Options;
use crate::world::World;
use crate::{serve, webhook};

/// Requests that were taken are answered before the process ends.
const DRAIN_WITHIN: Duration = Duration::from_secs(5);
/// The Lease is given back by then, or expires.
const RESIGN_WITHIN: Duration = Duration::from_secs(3);

/// SIGTERM or SIGINT.
///
/// # Errors
/// When signals cannot be had.
pub fn stop_signal() -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("asked to stop");
    })
}

/// Runs the daemon until `stop` is ready.
///
/// # Errors
/// What makes going on senseless: a port that is taken, a part that ended.
pub async fn run(
    client: Client,
    options: Options,
    stop: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let webhooks = bind(options.webhook_listen, "the webhooks").await?;
    let health = bind(options.health_listen, "health and metrics").await?;
    let metrics = Metrics::default();
    let certificate = Current::default();
    let mut tasks = JoinSet::new();
    let world = World::follow(&client, &mut tasks);
    let tools = Tools {
        store: ApiStore::new(client.clone()),
        world: world.clone(),
        events: Events::new(client.clone(), "bowline-controller", &options.identity),
        metrics: metrics.clone(),
        other: OtherAllocator::watch(client.clone()),
        options: options.clone(),
    };
    tasks.spawn(Keeper::new(client.clone(), options.clone(), certificate.clone()).run());
    let (stopping, _) = watch::channel(false);
    let mut servers = JoinSet::new();
    let admission = webhook::router(tools.clone());
    let listener = Listener::start(webhooks, &certificate)?;
    servers.spawn(until(stopping.subscribe(), |stop| {
        axum::serve(listener, admission).with_graceful_shutdown(stop).into_future()
    }));
    let health_router = serve::router(serve::Health { world, certificate, metrics });
    servers.spawn(until(stopping.subscribe(), |stop| {
        axum::serve(health, health_router).with_graceful_shutdown(stop).into_future()
    }));
    let names = &options.names;
    let mut candidate = Candidate::new(
        client.clone(),
        &names.namespace,
        &options.lease,
        &options.identity,
        options.lease_duration,
    );
    tasks.spawn(lead(tools, candidate.leads()));
    tracing::info!(webhooks = %options.webhook_listen, health = %options.health_listen, "started");
    let ended = tokio::select! {
        () = stop => Ok(()),
        () = candidate.run() => Err(anyhow::anyhow!("the election ended")),
        ended = servers.join_next() => Err(anyhow::anyhow!("a server ended: {ended:?}")),
        ended = tasks.join_next() => Err(anyhow::anyhow!("a part ended: {ended:?}")),
    };
    tasks.shutdown().await;
    drop(tokio::time::timeout(RESIGN_WITHIN, candidate.resign()).await);
    stopping.send_replace(true);
    let drained =
        tokio::time::timeout(DRAIN_WITHIN, async { while servers.join_next().await.is_some() {} });
    drop(drained.await);
    ended
}

async fn bind(address: std::net::SocketAddr, what: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address} for {what}; is another controller there?")
    })
}

/// Serves until told to stop.
async fn until<F>(
    mut stopping: watch::Receiver<bool>,
    server: impl FnOnce(std::pin::Pin<Box<dyn Future<Output = ()> + Send>>) -> F,
) where
    F: Future<Output = std::io::Result<()>>,
{
    let stop = async move { drop(stopping.wait_for(|stop| *stop).await) };
    if let Err(error) = server(Box::pin(stop)).await {
        tracing::error!("a server failed: {error}");
    }
}

/// Runs the jobs while this replica leads.
async fn lead(tools: Tools, mut leads: watch::Receiver<bool>) {
    loop {
        if leads.wait_for(|leads| *leads).await.is_err() {
            return;
        }
        tools.metrics.leads.set(1);
        let mut work = JoinSet::new();
        jobs::start(&tools, &mut work);
        let lost = leads.wait_for(|leads| !*leads).await.is_err();
        // Ended between two awaits: a request under way is compared by the API server.
        work.shutdown().await;
        tools.metrics.leads.set(0);
        if lost {
            return;
        }
    }
}
