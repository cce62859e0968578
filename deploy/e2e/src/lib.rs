//! A handle on the cluster that the scripts of this folder run: what a person would type, with
//! deadlines and answers as JSON.
#![forbid(unsafe_code)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

/// The namespace that Bowline is installed in.
pub const SYSTEM: &str = "bowline-system";

/// Two nodes, `n1` and `n2`, and their control plane.
#[derive(Debug)]
pub struct Cluster {
    name: String,
    scripts: PathBuf,
}

impl Cluster {
    /// The cluster of this name, whether it runs or not.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self { name: name.into(), scripts: PathBuf::from(env!("CARGO_MANIFEST_DIR")) }
    }

    /// The folder of the scripts.
    #[must_use]
    pub fn scripts(&self) -> &Path {
        &self.scripts
    }

    /// One of the scripts, ready to be given arguments.
    #[must_use]
    pub fn script(&self, name: &str) -> Command {
        let mut command = Command::new(self.scripts.join(name));
        command.env("BOWLINE_CLUSTER", &self.name).stdin(Stdio::null());
        command
    }

    /// Runs a script; what it printed.
    ///
    /// # Errors
    /// It failed; the message holds what it said.
    pub fn run(&self, script: &str, args: &[&str]) -> anyhow::Result<String> {
        output(self.script(script).args(args), &format!("{script} {}", args.join(" ")))
    }

    /// `kubectl`, with words separated by blanks.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn kubectl(&self, words: &str) -> anyhow::Result<String> {
        self.run("kubectl.sh", &words.split_whitespace().collect::<Vec<_>>())
    }

    /// An object or a list of them.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn get(&self, words: &str) -> anyhow::Result<Value> {
        let text = self.kubectl(&format!("get -o json {words}"))?;
        serde_json::from_str(&text).with_context(|| format!("kubectl get {words} printed {text}"))
    }

    /// Puts objects in force that are written as YAML or JSON.
    ///
    /// # Errors
    /// One is refused; the message says why.
    pub fn apply(&self, text: &str) -> anyhow::Result<()> {
        self.hand_in("apply", text)
    }

    /// Creates objects that are written as YAML or JSON, and notes nothing in them.
    ///
    /// # Errors
    /// One is refused, or exists.
    pub fn create(&self, text: &str) -> anyhow::Result<()> {
        self.hand_in("create", text)
    }

    fn hand_in(&self, verb: &str, text: &str) -> anyhow::Result<()> {
        let mut command = self.script("kubectl.sh");
        command.args([verb, "-f", "-"]).stdin(Stdio::piped());
        let mut kubectl = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut stdin = kubectl.stdin.take().context("kubectl has no standard input")?;
        // What it says when it does not read to the end is told below.
        drop(stdin.write_all(text.as_bytes()));
        drop(stdin);
        printed(&kubectl.wait_with_output()?, &format!("kubectl {verb}")).map(drop)
    }

    /// A shell command in a pod's first container.
    ///
    /// # Errors
    /// It failed.
    pub fn exec(&self, pod: &str, command: &str) -> anyhow::Result<String> {
        self.run("kubectl.sh", &["exec", pod, "--", "sh", "-c", command])
    }

    /// A shell command on a node, as root.
    ///
    /// # Errors
    /// It failed.
    pub fn on_node(&self, node: u8, command: &str) -> anyhow::Result<String> {
        self.run("in-node.sh", &[&node.to_string(), "sh", "-c", command])
    }

    /// A shell command of the node's own programs in the network of a pod there, which is known by
    /// its address.
    ///
    /// # Errors
    /// No pod there has the address, or the command failed.
    pub fn in_pod_network(&self, node: u8, address: &str, command: &str) -> anyhow::Result<String> {
        let find = format!(
            "for ns in $(ls /run/netns | grep ^cni-); do
                ip -n $ns -o address | grep -qwF {address} && exec nsenter --net=/run/netns/$ns sh -c \"$1\"
            done; echo no pod of this node has {address} >&2; exit 1"
        );
        self.run("in-node.sh", &[&node.to_string(), "sh", "-c", &find, "sh", command])
    }

    /// A shell command beside the nodes, in the world outside.
    ///
    /// # Errors
    /// It failed.
    pub fn outside(&self, command: &str) -> anyhow::Result<String> {
        self.run("in-cp.sh", &["sh", "-c", command])
    }

    /// Waits until this pod is ready.
    ///
    /// # Errors
    /// It is not in time; the message holds its events.
    pub fn ready(&self, selector: &str) -> anyhow::Result<()> {
        let waited = self.kubectl(&format!("wait --for=condition=Ready {selector} --timeout=60s"));
        waited.map(drop).map_err(|error| {
            let events = self.kubectl("get events -A --field-selector type=Warning");
            error.context(format!("warnings:\n{}", events.unwrap_or_default()))
        })
    }

    /// The name of Bowline's pod of a component on a node.
    ///
    /// # Errors
    /// There is none.
    pub fn part(&self, component: &str, node: u8) -> anyhow::Result<String> {
        let found = self.get(&format!(
            "-n {SYSTEM} pods -l app.kubernetes.io/component={component} --field-selector spec.nodeName=n{node}"
        ))?;
        let names = found["items"].as_array().into_iter().flatten();
        let alive = names.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        let name = alive.filter_map(|pod| pod["metadata"]["name"].as_str()).next();
        Ok(name.with_context(|| format!("no {component} on n{node}"))?.to_owned())
    }

    /// Kills a process of Bowline on a node, as by `kill -9`. The name is the program's.
    ///
    /// # Errors
    /// It does not run there.
    pub fn kill_on_node(&self, node: u8, program: &str) -> anyhow::Result<()> {
        // The kernel knows the first 15 characters of a name.
        let short = &program[..program.len().min(15)];
        let kill = format!("grep -lx {short} /proc/[0-9]*/comm | cut -d/ -f3 | xargs -r kill -9");
        self.on_node(node, &kill).map(drop)
    }

    /// Kills a process of the control plane: `etcd`, `apiserver`, `kcm`, `sched`.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill_control_plane(&self, part: &str) -> anyhow::Result<()> {
        let pid = format!(". {}/env.sh; kill -9 $(cat $R/{part}.pid)", self.scripts.display());
        let mut shell = Command::new("bash");
        output(shell.args(["-c", &pid]).env("BOWLINE_CLUSTER", &self.name), &pid).map(drop)
    }
}

fn output(command: &mut Command, what: &str) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("starting {what}"))?;
    printed(&output, what)
}

fn printed(output: &Output, what: &str) -> anyhow::Result<String> {
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("{what}: {}\n{}{}", output.status, printed, complaint.trim());
    }
    Ok(printed)
}

/// Waits until `look` says yes. An error of it counts as no, and is told at the deadline.
///
/// # Errors
/// It did not say yes in time.
pub fn eventually(
    what: &str,
    within: Duration,
    mut look: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let end = Instant::now() + within;
    // Each look is a program or more: the longer it takes, the less a moment matters.
    let mut pause = Duration::from_millis(100);
    loop {
        let last = match look() {
            Ok(true) => return Ok(()),
            Ok(false) => None,
            Err(error) => Some(error),
        };
        if Instant::now() >= end {
            let within = within.as_secs();
            let error = last.unwrap_or_else(|| anyhow::anyhow!("the answer stayed no"));
            return Err(error.context(format!("{what}: not within {within} s")));
        }
        std::thread::sleep(pause);
        pause = (pause * 3 / 2).min(Duration::from_secs(1));
    }
}

/// The text at a JSON pointer.
///
/// # Errors
/// There is none.
pub fn text<'a>(value: &'a Value, pointer: &str) -> anyhow::Result<&'a str> {
    let found = value.pointer(pointer).and_then(Value::as_str);
    found.with_context(|| format!("no text at {pointer} of {value}"))
}

/// Fails with a sentence when a command that must be refused was not, or for another reason.
///
/// # Errors
/// As said.
pub fn refused(result: anyhow::Result<String>, reason: &str) -> anyhow::Result<()> {
    match result {
        Ok(printed) => bail!("was not refused: {printed}"),
        Err(error) => {
            let said = format!("{error:#}");
            ensure!(said.contains(reason), "refused, but not because of \"{reason}\": {said}");
            Ok(())
        }
    }
}
