//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// Per-node daemon of Bowline: turns the catalog into the data plane's state and serves the CNI
/// plugin.
#[derive(Debug, Clone, Parser)]
#[command(name = "bowline-agent", version)]
pub struct Config {
    /// This node's name, as the other nodes know it. Default: the host name.
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    pub node: Option<String>,
    /// Take Networks and pools from the Kubernetes API (in the cluster by the service account, else
    /// by $KUBECONFIG) and claim addresses there, instead of from a directory.
    #[arg(long, conflicts_with = "catalog")]
    pub kubernetes: bool,
    /// Directory of Networks, pools and pods as YAML; agents of several nodes may share it.
    #[arg(long, value_name = "DIR", default_value = "/etc/bowline/catalog")]
    pub catalog: PathBuf,
    /// With --kubernetes: where the node's container runtime looks for plugins, seen from here. The
    /// plugin is installed if the directory exists.
    #[arg(long, value_name = "DIR", default_value = "/host/opt/cni/bin")]
    pub cni_bin_dir: PathBuf,
    /// With --kubernetes: where it looks for configurations. One that makes Bowline the cluster's CNI
    /// is installed if the directory exists.
    #[arg(long, value_name = "DIR", default_value = "/host/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,
    /// With --kubernetes: the plugin that is installed. Default: `bowline-cni` beside the agent.
    #[arg(long, value_name = "FILE")]
    pub cni_plugin: Option<PathBuf>,
    /// Another CNI gives eth0: install no configuration.
    #[arg(long)]
    pub no_cni_conf: bool,
    /// The data plane's API socket; descriptors go to the one beside it, with `.fds` at the end.
    #[arg(long, value_name = "SOCKET", default_value = "/run/bowline/dataplane.sock")]
    pub dataplane: PathBuf,
    /// Where the CNI plugin is served.
    #[arg(long, value_name = "SOCKET", default_value = cni::rpc::DEFAULT_SOCKET)]
    pub cni_socket: PathBuf,
    /// The journal of attachments. It shall be in memory: it must not outlive the pods.
    #[arg(long, value_name = "DIR", default_value = "/run/bowline/agent")]
    pub state_dir: PathBuf,
    /// The plugin's own state: DELs that came while the agent was away.
    #[arg(long, value_name = "DIR", default_value = cni::rpc::DEFAULT_STATE_DIR)]
    pub cni_state_dir: PathBuf,
    /// Address of the Prometheus endpoint, for instance 127.0.0.1:9410. Default: none.
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Option<SocketAddr>,
    /// How long an ADD waits for the data plane, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 5000)]
    pub apply_within_ms: u64,
    /// Form of the log. Default: text on a terminal, JSON otherwise.
    #[arg(long, value_name = "FORM")]
    pub log_format: Option<LogFormat>,
    /// For tests: die, as by SIGKILL, at this step of an ADD.
    #[arg(long, value_name = "STEP", hide = true)]
    pub fault_step: Option<String>,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object per line.
    Json,
}
