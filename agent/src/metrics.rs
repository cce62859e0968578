//! The agent's Prometheus metrics, and the few lines of HTTP that serve them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A scraper sends its request at once; who does not is no scraper.
const REQUEST_WITHIN: Duration = Duration::from_secs(2);
/// A request is a line and a few headers.
const REQUEST_BYTES: usize = 8192;

/// Labels of CNI calls.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CallLabels {
    /// `ADD`, `DEL`, …
    pub command: &'static str,
    /// `ok` or `error`.
    pub outcome: &'static str,
}

/// Labels of an ADD's steps.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StepLabels {
    /// `pod`, `claim`, …
    pub step: &'static str,
}

/// Labels of what is counted by Network.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct NetworkLabels {
    /// Its name; empty: the LAN.
    pub network: String,
}

/// Writes of AddressBlocks to the API server. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct BlockWrites {
    /// Those that were taken.
    pub done: Counter,
    /// Those that somebody else was faster than.
    pub conflicts: Counter,
}

/// What is measured.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// CNI calls answered.
    pub calls: Family<CallLabels, Counter>,
    /// Time from request to answer.
    pub call_seconds: Family<CallLabels, Histogram, fn() -> Histogram>,
    /// Where the time of an ADD goes.
    pub step_seconds: Family<StepLabels, Histogram, fn() -> Histogram>,
    /// Attachments of this node.
    pub attachments: Gauge,
    /// Things wrong with the catalog's files.
    pub catalog_problems: Gauge,
    /// 1 while the data plane has its state.
    pub dataplane_up: Gauge,
    /// Releases and removals that wait to be tried again.
    pub pending_removals: Gauge,
    /// Addresses that somebody else on the link had.
    pub address_conflicts: Counter,
    /// Addresses newly claimed for pods.
    pub claimed_addresses: Family<NetworkLabels, Counter>,
}

impl Metrics {
    /// Metrics at zero, and those writes.
    pub fn new(writes: &BlockWrites) -> Arc<Self> {
        let mut metrics = Self {
            registry: Registry::with_prefix("bowline_agent"),
            calls: Family::default(),
            call_seconds: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.001, 2.0, 13))
            }),
            step_seconds: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.000_5, 2.0, 13))
            }),
            attachments: Gauge::default(),
            catalog_problems: Gauge::default(),
            dataplane_up: Gauge::default(),
            pending_removals: Gauge::default(),
            address_conflicts: Counter::default(),
            claimed_addresses: Family::default(),
        };
        let registry = &mut metrics.registry;
        registry.register("cni_calls", "CNI calls answered", metrics.calls.clone());
        registry.register_with_unit(
            "cni_call_duration",
            "Time from a CNI request to its answer",
            Unit::Seconds,
            metrics.call_seconds.clone(),
        );
        registry.register_with_unit(
            "cni_add_step_duration",
            "Time of one step of a CNI ADD",
            Unit::Seconds,
            metrics.step_seconds.clone(),
        );
        registry.register("attachments", "Attachments of this node", metrics.attachments.clone());
        registry.register(
            "catalog_problems",
            "Things wrong with the catalog's files",
            metrics.catalog_problems.clone(),
        );
        registry.register(
            "dataplane_up",
            "1 while the data plane has its state",
            metrics.dataplane_up.clone(),
        );
        registry.register(
            "pending_removals",
            "Removals that wait to be tried again",
            metrics.pending_removals.clone(),
        );
        registry.register(
            "address_conflicts",
            "Addresses that somebody else on the link had",
            metrics.address_conflicts.clone(),
        );
        registry.register(
            "claimed_addresses",
            "Addresses newly claimed for pods",
            metrics.claimed_addresses.clone(),
        );
        registry.register("block_writes", "AddressBlocks written", writes.done.clone());
        registry.register(
            "block_write_conflicts",
            "Writes of AddressBlocks that lost a race",
            writes.conflicts.clone(),
        );
        Arc::new(metrics)
    }

    /// Notes addresses that were claimed anew.
    pub fn claimed(&self, network: &str, count: usize) {
        let labels = NetworkLabels { network: network.to_owned() };
        self.claimed_addresses.get_or_create(&labels).inc_by(count as u64);
    }

    /// The exposition text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

/// Serves `/metrics`, `/healthz` and `/readyz` until the task is aborted.
pub async fn serve(metrics: Arc<Metrics>, address: SocketAddr) -> std::io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    loop {
        let (stream, _) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(e) => {
                tracing::warn!("metrics: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let metrics = metrics.clone();
        tokio::spawn(async move {
            // A scraper that leaves early is its own loss.
            let _ = tokio::time::timeout(REQUEST_WITHIN, answer(stream, &metrics)).await;
        });
    }
}

async fn answer(mut stream: TcpStream, metrics: &Metrics) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|w| w == b"\r\n\r\n") && request.len() < REQUEST_BYTES {
        if stream.read_buf(&mut request).await? == 0 {
            break;
        }
    }
    let first_line = request.split(|b| *b == b'\r').next().unwrap_or_default();
    let (status, body) = match first_line.splitn(3, |b| *b == b' ').nth(1) {
        Some(b"/metrics" | b"/") => ("200 OK", metrics.text()),
        Some(b"/healthz") => ("200 OK", "ok\n".to_owned()),
        Some(b"/readyz") if metrics.dataplane_up.get() == 1 => ("200 OK", "ok\n".to_owned()),
        Some(b"/readyz") => ("503 Service Unavailable", "the data plane is away\n".to_owned()),
        _ => ("404 Not Found", "served are /metrics, /healthz and /readyz\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/openmetrics-text; version=1.0.0; \
         charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}
