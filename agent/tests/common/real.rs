//! The data plane itself, built from this workspace.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::{Agent, eventually};

/// Builds the data plane beside the agent under test, once for each test process; without DPDK where
/// the machine has none, since these tests have no uplink.
fn program() -> PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        if let Some(given) = std::env::var_os("BOWLINE_DATAPLANE") {
            return given.into();
        }
        let folder = Path::new(env!("CARGO_BIN_EXE_bowline-agent")).parent().unwrap();
        // `cargo test --workspace` has built it; building it again from here would resolve other
        // features and compile half of the dependencies a second time.
        let built = folder.join("bowline-dataplane");
        if built.exists() {
            return built;
        }
        let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "-q", "-p", "bowline-dataplane", "--bin", "bowline-dataplane"]);
        cargo.args(["--manifest-path", manifest]).arg("--target-dir").arg(folder.parent().unwrap());
        let dpdk = Command::new("pkg-config").args(["--exists", "libdpdk"]).status();
        if !dpdk.is_ok_and(|status| status.success()) {
            cargo.arg("--no-default-features");
        }
        if folder.ends_with("release") {
            cargo.arg("--release");
        }
        assert!(cargo.status().unwrap().success(), "the data plane does not build");
        folder.join("bowline-dataplane")
    };
    PROGRAM.get_or_init(build).clone()
}

/// A running data plane without uplink.
#[derive(Debug)]
pub(crate) struct RealDataplane {
    child: Child,
}

impl RealDataplane {
    /// Starts behind the agent's socket and waits until it answers.
    pub(crate) fn start(agent: &Agent) -> Self {
        Self::start_by(agent, Command::new(program()))
    }

    /// The same in a namespace, which has the device `uplink`.
    pub(crate) fn start_in(agent: &Agent, netns: &super::Netns, uplink: &str) -> Self {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &netns.name]).arg(program());
        command.args(["--uplink", &format!("{uplink}=packet")]);
        Self::start_by(agent, command)
    }

    fn start_by(agent: &Agent, mut command: Command) -> Self {
        let state = agent.dir.join("dataplane");
        std::fs::create_dir_all(&state).unwrap();
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(agent.dir.join("dataplane.log"))
            .unwrap();
        let child = command
            .arg("--socket")
            .arg(agent.dataplane_socket())
            .arg("--state-dir")
            .arg(state)
            .arg("--no-huge")
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self { child }
    }

    /// Descriptors that the process holds.
    pub(crate) fn descriptors(&self) -> Vec<String> {
        descriptors(self.child.id())
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for RealDataplane {
    fn drop(&mut self) {
        // One that is killed leaves the namespace of its uplink behind.
        if matches!(self.child.try_wait(), Ok(None)) {
            let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        }
        let over = Instant::now() + super::DEADLINE;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < over {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a process's descriptors lead to.
pub(crate) fn descriptors(pid: u32) -> Vec<String> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let links = entries.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    links.map(|link| link.display().to_string()).collect()
}

/// Waits until the agent has told the data plane everything.
pub(crate) fn wait_until_told(agent: &Agent) {
    eventually("the data plane has its state", || {
        let request = super::Pod::status_request();
        let response = cni::client::ask(&agent.cni_socket(), &request, super::DEADLINE).ok()?;
        (response.outcome == cni::rpc::Outcome::Done).then_some(())
    });
}
