//! Prometheus: counters by network, pod and reason, and the workers' load.
//!
//! Each scrape reads the counters as the API shows them and writes the text; nothing is kept.

use std::fmt::Write as _;
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};

use crate::control::Ask;

/// A scraper that takes longer is let go.
const DEADLINE: Duration = Duration::from_secs(5);
/// Bytes of a request that are looked at.
const REQUEST_BYTES: usize = 4096;

/// Serves scrapes until the runtime ends.
pub async fn serve(listener: TcpListener, ask: mpsc::Sender<Ask>) {
    loop {
        match listener.accept().await {
            Ok((connection, _)) => {
                let ask = ask.clone();
                tokio::spawn(async move {
                    // A scraper that left is not an error here.
                    let _ = tokio::time::timeout(DEADLINE, answer(connection, ask)).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "metrics: accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(mut connection: TcpStream, ask: mpsc::Sender<Ask>) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut chunk = [0; 512];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < REQUEST_BYTES {
        let count = connection.read(&mut chunk).await?;
        if count == 0 {
            break;
        }
        request.extend_from_slice(&chunk[..count]);
    }
    let (status, body) = if request.starts_with(b"GET /metrics ") {
        match scrape(&ask).await {
            Some(text) => ("200 OK", text),
            None => ("503 Service Unavailable", "the data plane is stopping\n".into()),
        }
    } else {
        ("404 Not Found", "ask for /metrics\n".into())
    };
    let head = format!(
        "HTTP/1.1 {status}\r\n\
         Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    connection.write_all(head.as_bytes()).await?;
    connection.write_all(body.as_bytes()).await?;
    connection.shutdown().await
}

async fn scrape(ask: &mpsc::Sender<Ask>) -> Option<String> {
    let (reply, counters) = oneshot::channel();
    ask.send(Ask::Counters(reply)).await.ok()?;
    let (reply, state) = oneshot::channel();
    ask.send(Ask::State(reply)).await.ok()?;
    Some(text(&counters.await.ok()?, &state.await.ok()?))
}

type Labels = Vec<(&'static str, String)>;
type Counts = Family<Labels, Fixed>;

/// A counter whose value is known when it is made.
#[derive(Debug, Default, Clone)]
struct Fixed(std::sync::Arc<std::sync::atomic::AtomicU64>);

impl Fixed {
    fn set(&self, value: u64) {
        self.0.store(value, std::sync::atomic::Ordering::Relaxed);
    }
}

impl prometheus_client::encoding::EncodeMetric for Fixed {
    fn encode(
        &self,
        encoder: prometheus_client::encoding::MetricEncoder<'_>,
    ) -> Result<(), std::fmt::Error> {
        ConstCounter::new(self.0.load(std::sync::atomic::Ordering::Relaxed)).encode(encoder)
    }

    fn metric_type(&self) -> prometheus_client::metrics::MetricType {
        prometheus_client::metrics::MetricType::Counter
    }
}

impl prometheus_client::metrics::TypedMetric for Fixed {
    const TYPE: prometheus_client::metrics::MetricType =
        prometheus_client::metrics::MetricType::Counter;
}

/// All metrics as OpenMetrics text.
fn text(counters: &api::Counters, state: &api::ActualState) -> String {
    let mut registry = Registry::with_prefix("bowline");
    let mut family = |name: &str, help: &str| {
        let family = Counts::default();
        registry.register(name, help, family.clone());
        family
    };
    let packets = family("interface_packets", "Frames by what became of them");
    let bytes = family("interface_bytes", "Bytes received and sent");
    let drops = family("interface_drops", "Frames dropped, by reason");
    let copied = family("copied_bytes", "Bytes copied into an interface's memory");
    let network_drops = family("network_drops", "Frames of a network dropped, by reason");
    let connects = family("interface_connects", "Times that a peer connected");
    let violations = family("interface_violations", "Times that a peer broke the protocol");
    for interface in &counters.interfaces {
        let Some(account) = &interface.account else { continue };
        let labels = labels_of(interface);
        let with = |more: &[(&'static str, &str)]| {
            let more = more.iter().map(|(name, value)| (*name, (*value).to_owned()));
            labels.iter().cloned().chain(more).collect::<Labels>()
        };
        for (fate, count) in fates(account) {
            packets.get_or_create(&with(&[("fate", fate)])).set(count);
        }
        bytes.get_or_create(&with(&[("direction", "rx")])).set(account.rx_bytes);
        bytes.get_or_create(&with(&[("direction", "tx")])).set(account.tx_bytes);
        copied.get_or_create(&labels).set(account.copied_bytes);
        for drop in &account.drops {
            let labels = with(&[("direction", "rx"), ("reason", &drop.reason)]);
            drops.get_or_create(&labels).set(drop.pkts);
        }
        for drop in &account.tx_drops {
            let labels = with(&[("direction", "tx"), ("reason", &drop.reason)]);
            drops.get_or_create(&labels).set(drop.pkts);
        }
    }
    for network in &counters.networks {
        let Some(account) = &network.account else { continue };
        for drop in account.drops.iter().chain(&account.tx_drops) {
            let labels =
                vec![("network", network.network.clone()), ("reason", drop.reason.clone())];
            network_drops.get_or_create(&labels).set(drop.pkts);
        }
    }
    for interface in &state.interfaces {
        let labels =
            vec![("interface", interface.id.clone()), ("network", interface.network.clone())];
        connects.get_or_create(&labels).set(interface.connects);
        violations.get_or_create(&labels).set(interface.violations);
    }
    workers(&mut registry, state);
    let mut text = String::new();
    // A string takes everything.
    let _ = encode(&mut text, &registry);
    if text.is_empty() {
        let _ = writeln!(text, "# EOF");
    }
    text
}

fn workers(registry: &mut Registry, state: &api::ActualState) {
    let load = Family::<Labels, Gauge<f64, std::sync::atomic::AtomicU64>>::default();
    let packets = Counts::default();
    registry.register("worker_load", "Share of polls that found work, 0..1", load.clone());
    registry.register("worker_packets", "Frames that a worker handled", packets.clone());
    for worker in &state.workers {
        let labels = vec![("worker", worker.id.to_string())];
        load.get_or_create(&labels).set(worker.load);
        packets.get_or_create(&labels).set(worker.packets);
    }
}

fn labels_of(interface: &api::InterfaceCounters) -> Labels {
    vec![
        ("interface", interface.id.clone()),
        ("name", interface.name.clone()),
        ("network", interface.network.clone()),
        ("kind", interface.kind.clone()),
        ("namespace", interface.pod_namespace.clone()),
        ("pod", interface.pod_name.clone()),
    ]
}

fn fates(account: &api::Account) -> [(&'static str, u64); 10] {
    [
        ("rx", account.rx_pkts),
        ("rx_missed", account.rx_missed),
        ("forwarded", account.forwarded),
        ("consumed", account.consumed),
        ("punted", account.punted),
        ("tx", account.tx_pkts),
        ("tx_forwarded", account.tx_forwarded),
        ("generated", account.generated),
        ("split_extra", account.split_extra),
        ("coalesced", account.coalesced),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_tell_network_pod_and_reason() {
        let account = api::Account {
            rx_pkts: 3,
            drops: vec![api::Drop { reason: "no_route".into(), pkts: 2 }],
            ..api::Account::default()
        };
        let counters = api::Counters {
            interfaces: vec![api::InterfaceCounters {
                id: "s/eth1".into(),
                network: "blue".into(),
                pod_namespace: "prod".into(),
                pod_name: "web".into(),
                account: Some(account),
                ..api::InterfaceCounters::default()
            }],
            ..api::Counters::default()
        };
        let worker = api::WorkerStatus { id: 1, load: 0.25, ..api::WorkerStatus::default() };
        let state = api::ActualState { workers: vec![worker], ..api::ActualState::default() };
        let text = text(&counters, &state);
        let drops = text.lines().find(|line| line.starts_with("bowline_interface_drops_total{"));
        let drops = drops.expect("a drop is shown");
        for part in
            ["network=\"blue\"", "namespace=\"prod\"", "pod=\"web\"", "reason=\"no_route\"", "} 2"]
        {
            assert!(drops.contains(part), "{part} is missing in {drops}");
        }
        assert!(text.contains("bowline_worker_load{worker=\"1\"} 0.25"), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }
}
