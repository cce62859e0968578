//! One call of the plugin: environment and stdin in, an exit status and a text for stdout out.
//!
//! CNI specification 1.1, section 2 ("Execution Protocol"). Everything that comes from outside is
//! bounded and checked before the agent sees it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::error::{CniError, code};
use crate::netconf::NetConf;
use crate::result::{CniResult, SUPPORTED_VERSIONS};
use crate::rpc::{self, CallMode, Command, PodArgs, Request};

/// Longest configuration on stdin.
pub const MAX_STDIN_BYTES: usize = 1 << 20;
/// Longest environment variable.
const MAX_VARIABLE_BYTES: usize = 16 << 10;

/// What the runtime passes besides stdin.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// `CNI_*` variables that are set and valid UTF-8.
    pub variables: BTreeMap<String, String>,
    /// The name that the binary was called by.
    pub program: String,
}

impl Environment {
    /// The variables of this process.
    #[must_use]
    pub fn of_process() -> Self {
        let program = std::env::args_os().next().map(PathBuf::from);
        let program = program.as_deref().and_then(|p| p.file_name()).map(|n| n.to_string_lossy());
        let variables = std::env::vars_os()
            .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
            .filter(|(k, _)| k.starts_with("CNI_"));
        Environment {
            variables: variables.collect(),
            program: program.unwrap_or_default().into_owned(),
        }
    }

    fn get(&self, name: &str) -> &str {
        self.variables.get(name).map_or("", String::as_str)
    }
}

/// What to do about a call.
#[derive(Debug)]
pub enum Step {
    /// Print this and leave with success.
    Print(Value),
    /// There is nothing to do: leave with success.
    Nothing,
    /// Ask the agent.
    Ask(Box<Ask>),
}

/// A call that the agent answers.
#[derive(Debug)]
pub struct Ask {
    /// What to send.
    pub request: Request,
    /// Where to.
    pub socket: PathBuf,
    /// Where tombstones are kept.
    pub state_dir: PathBuf,
}

/// Decides what to do about a call.
///
/// # Errors
/// The CNI error to print.
pub fn prepare(environment: &Environment, stdin: &[u8]) -> Result<Step, CniError> {
    if let Some((name, _)) =
        environment.variables.iter().find(|(_, v)| v.len() > MAX_VARIABLE_BYTES)
    {
        let msg = format!("{name} is longer than {MAX_VARIABLE_BYTES} bytes");
        return Err(CniError::new(code::INVALID_ENVIRONMENT, msg));
    }
    let command = match environment.get("CNI_COMMAND") {
        "ADD" => Command::Add,
        "DEL" => Command::Del,
        "CHECK" => Command::Check,
        "GC" => Command::Gc,
        "STATUS" => Command::Status,
        "VERSION" => return Ok(Step::Print(version(stdin))),
        "" => {
            let msg = "CNI_COMMAND is not set; this program is called by a container runtime. \
                       To see what runs here use `bowline get interfaces`";
            return Err(CniError::new(code::INVALID_ENVIRONMENT, msg));
        }
        other => {
            let msg = format!(
                "CNI_COMMAND \"{}\" is not ADD, DEL, CHECK, GC, STATUS or VERSION",
                cut(other)
            );
            return Err(CniError::new(code::INVALID_ENVIRONMENT, msg));
        }
    };
    let config = read_config(stdin)?;
    check_environment(environment, command)?;
    let mode = mode(environment, &config);
    // Devices of the node stay for the next pod: only ADD has something to do.
    if mode == CallMode::Ifacer && command != Command::Add {
        return Ok(Step::Nothing);
    }
    let ask = Ask {
        socket: path_or(&config.agent_socket, rpc::DEFAULT_SOCKET, "agentSocket")?,
        state_dir: path_or(&config.state_dir, rpc::DEFAULT_STATE_DIR, "stateDir")?,
        request: Request {
            version: rpc::VERSION,
            command,
            mode,
            container_id: environment.get("CNI_CONTAINERID").into(),
            netns: environment.get("CNI_NETNS").into(),
            ifname: environment.get("CNI_IFNAME").into(),
            pod: pod_args(environment.get("CNI_ARGS"), command)?,
            prev_result: prev_result(&config, command)?,
            config,
        },
    };
    Ok(Step::Ask(Box::new(ask)))
}

/// By the name that the program is called under, else by the configuration's type. An IPAM plugin is
/// called with its caller's configuration, so that the program's name goes first.
fn mode(environment: &Environment, config: &NetConf) -> CallMode {
    let by_name = |name: &str| match name {
        "bowline-ipam" | "spiderpool" => Some(CallMode::Ipam),
        "coordinator" => Some(CallMode::Coordinator),
        "ifacer" => Some(CallMode::Ifacer),
        _ => None,
    };
    by_name(&environment.program).or_else(|| by_name(&config.kind)).unwrap_or_default()
}

/// VERSION: no call of the agent, so that it works before one runs.
fn version(stdin: &[u8]) -> Value {
    let asked: Option<Value> = serde_json::from_slice(stdin).ok();
    let asked = asked.as_ref().and_then(|v| v.get("cniVersion")).and_then(Value::as_str);
    let newest = SUPPORTED_VERSIONS[SUPPORTED_VERSIONS.len() - 1];
    let version = asked.filter(|v| SUPPORTED_VERSIONS.contains(v)).unwrap_or(newest);
    json!({ "cniVersion": version, "supportedVersions": SUPPORTED_VERSIONS })
}

fn read_config(stdin: &[u8]) -> Result<NetConf, CniError> {
    if stdin.len() > MAX_STDIN_BYTES {
        let msg = format!("the configuration on stdin is longer than {MAX_STDIN_BYTES} bytes");
        return Err(CniError::new(code::DECODING_FAILURE, msg));
    }
    let config: NetConf = serde_json::from_slice(stdin).map_err(|e| {
        CniError::new(
            code::DECODING_FAILURE,
            format!("the configuration on stdin is not what this plugin reads: {e}"),
        )
    })?;
    if !SUPPORTED_VERSIONS.contains(&config.cni_version.as_str()) {
        let msg = format!(
            "cniVersion \"{}\" is not supported; write one of {}",
            cut(&config.cni_version),
            SUPPORTED_VERSIONS.join(", ")
        );
        return Err(CniError::new(code::INCOMPATIBLE_VERSION, msg));
    }
    if !is_name(&config.name) {
        let msg = format!(
            "name \"{}\" of the configuration must begin with a letter or digit and hold at most 200 \
             letters, digits, _ . -",
            cut(&config.name)
        );
        return Err(CniError::new(code::INVALID_CONFIG, msg));
    }
    Ok(config)
}

/// Names and container ids of the specification: a letter or digit, then also `_`, `.`, `-`. The
/// length leaves room for the file name of a tombstone.
fn is_name(name: &str) -> bool {
    name.len() <= 200
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

/// What the kernel takes for a device, and the specification for CNI_IFNAME.
fn is_interface(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':')
}

fn check_environment(environment: &Environment, command: Command) -> Result<(), CniError> {
    let bad = |name: &str, why: &str| {
        let msg = format!("{name} \"{}\" {why}", cut(environment.get(name)));
        Err(CniError::new(code::INVALID_ENVIRONMENT, msg))
    };
    if matches!(command, Command::Gc | Command::Status) {
        return Ok(());
    }
    if !is_name(environment.get("CNI_CONTAINERID")) {
        let why = "must begin with a letter or digit and hold at most 200 letters, digits, _ . -";
        return bad("CNI_CONTAINERID", why);
    }
    if !is_interface(environment.get("CNI_IFNAME")) {
        return bad("CNI_IFNAME", "must be 1 to 15 characters, none of them / : or space");
    }
    let netns = environment.get("CNI_NETNS");
    // DEL may come without namespace, when it is gone already.
    let missing_is_fine = command == Command::Del;
    if (netns.is_empty() && !missing_is_fine) || (!netns.is_empty() && !netns.starts_with('/')) {
        return bad("CNI_NETNS", "must be the absolute path of a network namespace");
    }
    Ok(())
}

/// CNI_ARGS: `K=V;K=V`. A DEL never fails on them.
fn pod_args(text: &str, command: Command) -> Result<PodArgs, CniError> {
    let mut pod = PodArgs::default();
    for pair in text.split(';').filter(|p| !p.is_empty()) {
        let Some((key, value)) = pair.split_once('=') else {
            if command == Command::Del {
                continue;
            }
            let msg = format!("CNI_ARGS: \"{}\" is not KEY=VALUE", cut(pair));
            return Err(CniError::new(code::INVALID_ENVIRONMENT, msg));
        };
        match key {
            "K8S_POD_NAMESPACE" => pod.namespace = value.into(),
            "K8S_POD_NAME" => pod.name = value.into(),
            "K8S_POD_UID" => pod.uid = value.into(),
            "K8S_POD_INFRA_CONTAINER_ID" => pod.infra_container_id = value.into(),
            // IgnoreUnknown and what other plugins are told: not ours to judge.
            _ => {}
        }
    }
    Ok(pod)
}

fn prev_result(config: &NetConf, command: Command) -> Result<Option<CniResult>, CniError> {
    let Some(value) = &config.prev_result else {
        if command == Command::Check {
            let msg = "CHECK needs prevResult in the configuration";
            return Err(CniError::new(code::INVALID_CONFIG, msg));
        }
        return Ok(None);
    };
    match CniResult::from_value(value) {
        Ok(result) => Ok(Some(result)),
        // A DEL succeeds whatever an older runtime cached.
        Err(_) if command == Command::Del => Ok(None),
        Err(why) => {
            let msg = format!("prevResult cannot be read: {why}");
            Err(CniError::new(code::DECODING_FAILURE, msg))
        }
    }
}

fn path_or(configured: &str, default: &str, field: &str) -> Result<PathBuf, CniError> {
    let path = if configured.is_empty() { default } else { configured };
    if path.starts_with('/') {
        return Ok(path.into());
    }
    let msg = format!("{field} \"{}\" must be an absolute path", cut(path));
    Err(CniError::new(code::INVALID_CONFIG, msg))
}

/// At most 64 characters of what came from outside.
fn cut(text: &str) -> String {
    text.chars().take(64).collect()
}
