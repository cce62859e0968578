//! The command line. Every flag has a variable of the environment, for the chart.

use std::net::SocketAddr;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

/// Bowline's controller.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Line {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// How log lines look; by default JSON, and text on a terminal.
    #[arg(long, env = "BOWLINE_LOG_FORMAT", global = true)]
    pub log_format: Option<LogFormat>,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// What the program can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the webhooks, and keep the cluster's objects in order while leading.
    Run(Box<Options>),
    /// Take Bowline's finalizers and webhooks away, so that everything can be deleted.
    Uninstall(Names),
}

/// What the chart calls things.
#[derive(Args, Clone, Debug)]
pub struct Names {
    /// Namespace of this program.
    #[arg(long, env = "POD_NAMESPACE", default_value = "bowline-system")]
    pub namespace: String,
    /// Name of the ValidatingWebhookConfiguration and the MutatingWebhookConfiguration.
    #[arg(long, env = "BOWLINE_WEBHOOK_CONFIGURATION", default_value = "bowline")]
    pub webhook_configuration: String,
}

/// How the daemon runs.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Names of things.
    #[command(flatten)]
    pub names: Names,
    /// Who this replica is in the Lease: the pod's name.
    #[arg(long, env = "POD_NAME", default_value = "bowline-controller")]
    pub identity: String,
    /// Where the API server reaches the webhooks (TLS).
    #[arg(long, env = "BOWLINE_WEBHOOK_LISTEN", default_value = "[::]:9543")]
    pub webhook_listen: SocketAddr,
    /// Where /healthz, /readyz and /metrics are served.
    #[arg(long, env = "BOWLINE_HEALTH_LISTEN", default_value = "[::]:9544")]
    pub health_listen: SocketAddr,
    /// Names in the webhooks' certificate, besides `<service>.<namespace>.svc`.
    #[arg(long, env = "BOWLINE_WEBHOOK_NAMES", value_delimiter = ',')]
    pub webhook_names: Vec<String>,
    /// The Service of the webhooks.
    #[arg(long, env = "BOWLINE_WEBHOOK_SERVICE", default_value = "bowline-controller")]
    pub webhook_service: String,
    /// The Secret that replicas share the webhooks' certificate in.
    #[arg(long, env = "BOWLINE_WEBHOOK_SECRET", default_value = "bowline-webhook")]
    pub webhook_secret: String,
    /// How long a serving certificate is valid; it is replaced when a third is left.
    #[arg(long, env = "BOWLINE_CERTIFICATE_VALIDITY", default_value = "90d", value_parser = duration)]
    pub certificate_validity: Duration,
    /// The Lease of the leader.
    #[arg(long, env = "BOWLINE_LEASE", default_value = "bowline-controller")]
    pub lease: String,
    /// How long a leader that is not heard of stays leader.
    #[arg(long, env = "BOWLINE_LEASE_DURATION", default_value = "15s", value_parser = duration)]
    pub lease_duration: Duration,
    /// Refuse to delete pools and subnets with addresses in use, and Networks with pods attached.
    /// Without it they wait for their finalizer.
    #[arg(long, env = "BOWLINE_REFUSE_DELETION_IN_USE", default_value_t = true, action = ArgAction::Set)]
    pub refuse_deletion_in_use: bool,
    /// Automatic pools for applications that name a SpiderSubnet.
    #[arg(long, env = "BOWLINE_AUTO_POOLS", default_value_t = true, action = ArgAction::Set)]
    pub auto_pools: bool,
    /// Addresses of an automatic pool beyond the replicas, where the application does not say.
    #[arg(long, env = "BOWLINE_AUTO_POOL_SPARE", default_value_t = 1)]
    pub auto_pool_spare: u32,
    /// How addresses of pods that are gone are freed.
    #[command(flatten)]
    pub reclaim: Reclaim,
}

/// When addresses are freed that nobody gave back.
#[derive(Args, Clone, Debug)]
pub struct Reclaim {
    /// Free them at all.
    #[arg(long = "reclaim", env = "BOWLINE_RECLAIM", default_value_t = true, action = ArgAction::Set)]
    pub enabled: bool,
    /// At most so long between two looks at everything; changes of pods, nodes and blocks cause one as well.
    #[arg(long = "reclaim-interval", env = "BOWLINE_RECLAIM_INTERVAL", default_value = "5s", value_parser = duration)]
    pub interval: Duration,
    /// Added to the grace period of pods.
    #[arg(long = "reclaim-extra-grace", env = "BOWLINE_RECLAIM_EXTRA_GRACE", default_value = "0s", value_parser = duration)]
    pub extra_grace: Duration,
    /// Pods that should have ended, on nodes that are Ready.
    #[arg(long = "reclaim-on-ready-nodes", env = "BOWLINE_RECLAIM_ON_READY_NODES", default_value_t = true, action = ArgAction::Set)]
    pub on_ready_nodes: bool,
    /// Pods that should have ended, on nodes that are not Ready.
    #[arg(long = "reclaim-on-not-ready-nodes", env = "BOWLINE_RECLAIM_ON_NOT_READY_NODES", default_value_t = true, action = ArgAction::Set)]
    pub on_not_ready_nodes: bool,
    /// Running pods whose status names no address.
    #[arg(long = "reclaim-running-without-address", env = "BOWLINE_RECLAIM_RUNNING_WITHOUT_ADDRESS", default_value_t = false, action = ArgAction::Set)]
    pub running_without_address: bool,
    /// Pods of StatefulSets keep their addresses over restarts.
    #[arg(long = "keep-stateful-set-addresses", env = "BOWLINE_KEEP_STATEFUL_SET_ADDRESSES", default_value_t = true, action = ArgAction::Set)]
    pub keep_stateful_sets: bool,
    /// Virtual machines of KubeVirt keep their addresses over restarts.
    #[arg(long = "keep-virtual-machine-addresses", env = "BOWLINE_KEEP_VIRTUAL_MACHINE_ADDRESSES", default_value_t = true, action = ArgAction::Set)]
    pub keep_virtual_machines: bool,
    /// After a node's object is deleted, its addresses wait this long: its pods may still run.
    #[arg(long = "node-fencing", env = "BOWLINE_NODE_FENCING", default_value = "60s", value_parser = duration)]
    pub node_fencing: Duration,
}

/// `90d`, or what pools' annotations take: `500ms`, `30s`, `5m`, `1h`.
fn duration(text: &str) -> Result<Duration, String> {
    let days = text.strip_suffix('d').and_then(|d| d.parse::<u64>().ok());
    days.and_then(|d| d.checked_mul(86_400_000))
        .or_else(|| multinet::rules::parse_duration_ms(text))
        .map(Duration::from_millis)
        .ok_or_else(|| "is not a time; write it like 500ms, 30s, 5m, 1h or 90d".into())
}

impl Options {
    /// Every name that the webhooks' certificate is good for.
    #[must_use]
    pub fn certificate_names(&self) -> Vec<String> {
        let service = format!("{}.{}.svc", self.webhook_service, self.names.namespace);
        std::iter::once(service).chain(self.webhook_names.iter().cloned()).collect()
    }
}
