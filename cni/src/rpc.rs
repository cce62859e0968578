//! What the plugin and the agent say to each other: one JSON request, one JSON response.
//!
//! On a unix stream socket. The plugin writes the request and shuts down its writing half; the agent
//! reads to the end, answers and closes. Neither side reads more than [`MAX_BYTES`]. `version` is
//! [`VERSION`]; the agent refuses a newer one and keeps understanding older ones, because binaries on
//! the node outlive upgrades of the agent for a while.

use serde::{Deserialize, Serialize};

use crate::error::CniError;
use crate::netconf::NetConf;
use crate::result::CniResult;

/// Version of this exchange.
pub const VERSION: u32 = 1;
/// Where the agent listens.
pub const DEFAULT_SOCKET: &str = "/run/bowline/cni.sock";
/// Where tombstones are kept, in the folder `tombstones`.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/bowline";
/// Largest request or response.
pub const MAX_BYTES: usize = 4 << 20;

/// One call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// [`VERSION`] of the writer.
    pub version: u32,
    /// What is asked.
    pub command: Command,
    /// Whether interfaces are wanted, or addresses alone.
    pub mode: CallMode,
    /// The sandbox; empty for GC and STATUS.
    #[serde(default, rename = "containerID")]
    pub container_id: String,
    /// Path of the network namespace; may be empty for DEL.
    #[serde(default)]
    pub netns: String,
    /// The interface of the call.
    #[serde(default)]
    pub ifname: String,
    /// The pod, from CNI_ARGS.
    #[serde(default)]
    pub pod: PodArgs,
    /// The configuration on stdin.
    pub config: NetConf,
    /// `config.prevResult` in the form of 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prev_result: Option<CniResult>,
}

/// CNI_COMMAND, without VERSION, which the plugin answers alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Command {
    /// Attach.
    Add,
    /// Detach; always succeeds.
    Del,
    /// Compare what is there with `prevResult`.
    Check,
    /// Remove what is not in `cni.dev/valid-attachments`.
    Gc,
    /// Can ADD be served?
    Status,
}

impl Command {
    /// As the runtime writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Command::Add => "ADD",
            Command::Del => "DEL",
            Command::Check => "CHECK",
            Command::Gc => "GC",
            Command::Status => "STATUS",
        }
    }
}

/// What a call is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CallMode {
    /// Bowline's own interfaces.
    #[default]
    Interface,
    /// Addresses for another plugin's interface.
    Ipam,
    /// Routes of a pod, behind the plugin that made its interface.
    Coordinator,
    /// Devices of the node, before the plugin that builds on them.
    Ifacer,
}

impl CallMode {
    /// As files on the node name it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            CallMode::Interface => "interface",
            CallMode::Ipam => "ipam",
            CallMode::Coordinator => "coordinator",
            CallMode::Ifacer => "ifacer",
        }
    }
}

/// The pod, as CNI_ARGS name it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodArgs {
    /// K8S_POD_NAMESPACE.
    pub namespace: String,
    /// K8S_POD_NAME.
    pub name: String,
    /// K8S_POD_UID.
    pub uid: String,
    /// K8S_POD_INFRA_CONTAINER_ID.
    pub infra_container_id: String,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    /// [`VERSION`] of the writer.
    pub version: u32,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// ADD: the result in the form of 1.1.0; the plugin converts it.
    Result(CniResult),
    /// Everything else that succeeded: nothing is printed.
    Done,
    /// The CNI error to print.
    Error(CniError),
}

impl Response {
    /// An answer of this version.
    #[must_use]
    pub fn new(outcome: Outcome) -> Self {
        Response { version: VERSION, outcome }
    }
}

impl From<CniError> for Response {
    fn from(error: CniError) -> Self {
        Response::new(Outcome::Error(error))
    }
}
