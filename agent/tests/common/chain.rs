//! Chains of real plugins, Bowline's binary among them under its several names, called as a runtime
//! calls them.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::{Value, json};

use super::{Agent, Netns, run};

/// Where Debian's package containernetworking-plugins puts them.
const FOREIGN: &str = "/usr/lib/cni";

/// The plugin's binary: what BOWLINE_CNI names, or else built beside the agent under test, once for each
/// test process.
fn plugin() -> PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        let folder = Path::new(env!("CARGO_BIN_EXE_bowline-agent")).parent().unwrap();
        let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "-q", "-p", "bowline-cni", "--bin", "bowline-cni"]);
        cargo.args(["--manifest-path", manifest]).arg("--target-dir").arg(folder.parent().unwrap());
        if folder.ends_with("release") {
            cargo.arg("--release");
        }
        assert!(cargo.status().unwrap().success(), "the plugin does not build");
        folder.join("bowline-cni")
    };
    PROGRAM
        .get_or_init(|| std::env::var_os("BOWLINE_CNI").map_or_else(build, PathBuf::from))
        .clone()
}

/// A node's plugins and the namespace that they run in.
#[derive(Debug)]
pub(crate) struct Plugins {
    folder: PathBuf,
    node: String,
    agent_socket: PathBuf,
    state: PathBuf,
}

/// What a call came to.
#[derive(Debug)]
pub(crate) struct Called {
    pub success: bool,
    pub answer: Value,
}

impl Plugins {
    /// Bowline's names and the real plugins, on the node of `agent`.
    pub(crate) fn new(agent: &Agent, node: &Netns) -> Self {
        let folder = agent.dir.join("plugins");
        std::fs::create_dir_all(&folder).unwrap();
        for name in ["bowline", "bowline-ipam", "spiderpool", "coordinator", "ifacer"] {
            std::os::unix::fs::symlink(plugin(), folder.join(name)).unwrap();
        }
        for name in ["macvlan", "ptp", "host-local"] {
            let program = Path::new(FOREIGN).join(name);
            assert!(program.exists(), "{} is missing: run `make deps`", program.display());
            std::os::unix::fs::symlink(program, folder.join(name)).unwrap();
        }
        Self {
            folder,
            node: node.name.clone(),
            agent_socket: agent.cni_socket(),
            state: agent.dir.join("cni"),
        }
    }

    /// One call of one plugin. `config` gets name, version and the agent's paths.
    pub(crate) fn call(
        &self,
        command: &str,
        pod: &ChainPod,
        config: &Value,
        previous: Option<&Value>,
    ) -> Called {
        let mut config = config.clone();
        config["cniVersion"] = "1.0.0".into();
        config["name"] = "lan".into();
        config["agentSocket"] = json!(self.agent_socket);
        config["stateDir"] = json!(self.state);
        if let Some(previous) = previous {
            config["prevResult"] = previous.clone();
        }
        let program = self.folder.join(config["type"].as_str().unwrap());
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=test;K8S_POD_NAME={};K8S_POD_UID={}",
            pod.name, pod.uid
        );
        let mut child = Command::new("ip")
            .args(["netns", "exec", &self.node])
            .arg(program)
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &pod.sandbox)
            .env("CNI_NETNS", &pod.netns)
            .env("CNI_IFNAME", &pod.ifname)
            .env("CNI_PATH", &self.folder)
            .env("CNI_ARGS", args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let answer = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        Called { success: output.status.success(), answer }
    }

    /// ADD of a list of plugins, each told the result of the one before it.
    pub(crate) fn add(&self, pod: &ChainPod, list: &[Value]) -> Called {
        let mut previous: Option<Value> = None;
        for config in list {
            let called = self.call("ADD", pod, config, previous.as_ref());
            if !called.success {
                return called;
            }
            previous = Some(called.answer).filter(|answer| !answer.is_null());
        }
        Called { success: true, answer: previous.unwrap_or(Value::Null) }
    }

    /// DEL in the opposite order, told the result of the ADD; every one must succeed.
    pub(crate) fn del(&self, pod: &ChainPod, list: &[Value], told: Option<&Value>) {
        for config in list.iter().rev() {
            let called = self.call("DEL", pod, config, told);
            assert!(called.success, "{config}: {called:?}");
        }
    }
}

impl Called {
    /// The result of an ADD that must have succeeded.
    pub(crate) fn result(self) -> Value {
        assert!(self.success, "{}", self.answer);
        self.answer
    }

    /// The sentence of a call that must have failed.
    pub(crate) fn refusal(self) -> String {
        assert!(!self.success, "a refusal was due: {}", self.answer);
        self.answer["msg"].as_str().unwrap_or_default().to_owned()
    }
}

/// A pod's interface as a runtime names it.
#[derive(Debug, Clone)]
pub(crate) struct ChainPod {
    pub name: String,
    pub uid: String,
    pub sandbox: String,
    pub netns: PathBuf,
    pub ifname: String,
}

impl ChainPod {
    pub(crate) fn new(name: &str, netns: &Netns, ifname: &str) -> Self {
        Self {
            name: name.into(),
            uid: format!("uid-{name}"),
            sandbox: format!("sandbox-{name}"),
            netns: netns.path(),
            ifname: ifname.into(),
        }
    }
}

/// The addresses of a result.
pub(crate) fn addresses(result: &Value) -> Vec<String> {
    let ips = result["ips"].as_array().cloned().unwrap_or_default();
    ips.iter().map(|ip| ip["address"].as_str().unwrap().to_owned()).collect()
}

/// A node with an uplink `parent` whose far end is `lan0` in a namespace of its own.
pub(crate) fn node_with_lan() -> (Netns, Netns) {
    let (node, lan) = (Netns::new(), Netns::new());
    let add = ["link", "add", "parent", "netns", &node.name, "type", "veth"];
    let peer = ["peer", "name", "lan0", "netns", &lan.name];
    run("ip", &[add.as_slice(), peer.as_slice()].concat());
    node.ip(&["link", "set", "parent", "up"]);
    lan.ip(&["link", "set", "lan0", "up"]);
    (node, lan)
}
