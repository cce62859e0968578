//! What the agent's tests share: a pod's namespace, a stand-in for the data plane, an agent process
//! with its directories, and CNI calls.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub(crate) mod chain;
pub(crate) mod dataplane;
pub(crate) mod real;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use cni::netconf::{NetConf, RuntimeConfig, ValidAttachment};
use cni::result::CniResult;
use cni::rpc::{self, CallMode, Outcome, PodArgs, Request, Response};

/// Everything in the tests that takes longer has failed.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A name that no other test uses.
pub(crate) fn unique(prefix: &str) -> String {
    format!("{prefix}{}x{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// Waits until `probe` gives something.
pub(crate) fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "it did not come to be: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a command that must succeed, and returns its output.
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let output =
        Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A network namespace, removed at the end.
#[derive(Debug)]
pub(crate) struct Netns {
    pub name: String,
}

impl Netns {
    pub(crate) fn new() -> Self {
        let name = unique("bwa");
        run("ip", &["netns", "add", &name]);
        let netns = Self { name };
        netns.ip(&["link", "set", "lo", "up"]);
        netns
    }

    pub(crate) fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// `ip` inside the namespace.
    pub(crate) fn ip(&self, args: &[&str]) -> String {
        let mut all = vec!["-n", self.name.as_str()];
        all.extend(args);
        run("ip", &all)
    }

    /// Names of the devices other than `lo`.
    pub(crate) fn devices(&self) -> Vec<String> {
        let text = self.ip(&["-j", "link"]);
        let links: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        let names = links.iter().map(|l| l["ifname"].as_str().unwrap().to_owned());
        names.filter(|n| n != "lo").collect()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// The agent's binary.
fn program() -> std::ffi::OsString {
    let named = std::env::var_os("BOWLINE_AGENT");
    named.unwrap_or_else(|| env!("CARGO_BIN_EXE_bowline-agent").into())
}

/// An agent process with directories of its own; the catalog may be another's.
#[derive(Debug)]
pub(crate) struct Agent {
    pub dir: PathBuf,
    pub catalog: PathBuf,
    pub node: String,
    /// The namespace that it runs in; none: the test's.
    pub netns: Option<String>,
    child: Option<Child>,
}

impl Agent {
    /// Directories, no process yet.
    pub(crate) fn prepare(dir: &Path, node: &str, catalog: &Path) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        std::fs::create_dir_all(catalog).unwrap();
        Self {
            dir: dir.to_owned(),
            catalog: catalog.to_owned(),
            node: node.to_owned(),
            netns: None,
            child: None,
        }
    }

    pub(crate) fn dataplane_socket(&self) -> PathBuf {
        self.dir.join("dataplane.sock")
    }

    pub(crate) fn cni_socket(&self) -> PathBuf {
        self.dir.join("cni.sock")
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// Starts the process and waits until it serves. `BOWLINE_AGENT` names another binary than the
    /// one just built, for instance an optimised one.
    pub(crate) fn start(&mut self, more: &[&str]) {
        let mut command = match &self.netns {
            None => Command::new(program()),
            // With a /sys that shows this namespace: there the kernel takes the options of bonds.
            Some(netns) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", netns]).arg(program());
                command
            }
        };
        command.arg("--catalog").arg(&self.catalog);
        self.start_as(command, more);
    }

    /// The same with the Kubernetes API as catalog, in a namespace that plays the node.
    pub(crate) fn start_on_kubernetes(&mut self, node: &Netns, kubeconfig: &Path, more: &[&str]) {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", node.path().display())).arg("--").arg(program());
        command.arg("--kubernetes").env("KUBECONFIG", kubeconfig);
        self.start_as(command, more);
    }

    fn start_as(&mut self, mut command: Command, more: &[&str]) {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.join("log"))
            .unwrap();
        let child = command
            .args(["--node", &self.node])
            .arg("--dataplane")
            .arg(self.dataplane_socket())
            .arg("--cni-socket")
            .arg(self.cni_socket())
            .arg("--state-dir")
            .arg(self.dir.join("state"))
            .arg("--cni-state-dir")
            .arg(self.dir.join("cni"))
            .args(more)
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
        eventually("the agent serves", || {
            let died = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(died.is_none(), "the agent died: {}", self.log());
            std::os::unix::net::UnixStream::connect(self.cni_socket()).ok()
        });
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            child.wait().unwrap();
        }
    }

    /// Waits for the process to die by itself.
    pub(crate) fn wait_for_death(&mut self) {
        let mut child = self.child.take().unwrap();
        eventually("the agent dies", || child.try_wait().unwrap());
    }

    /// Entries of the journal.
    pub(crate) fn journal(&self) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(self.dir.join("state/attachments")) else {
            return Vec::new();
        };
        entries.map(|e| e.unwrap().path()).collect()
    }

    pub(crate) fn call(&self, request: &Request) -> Response {
        cni::client::ask(&self.cni_socket(), request, DEADLINE)
            .unwrap_or_else(|e| panic!("{e}: {}", self.log()))
    }

    /// An ADD that must succeed.
    pub(crate) fn add(&self, pod: &Pod) -> CniResult {
        match self.call(&pod.request(rpc::Command::Add)).outcome {
            Outcome::Result(result) => result,
            other => panic!("{other:?}: {}", self.log()),
        }
    }

    /// An ADD that must fail; the sentence.
    pub(crate) fn add_refused(&self, pod: &Pod) -> cni::error::CniError {
        match self.call(&pod.request(rpc::Command::Add)).outcome {
            Outcome::Error(error) => error,
            other => panic!("{other:?} where a refusal was due"),
        }
    }

    pub(crate) fn del(&self, pod: &Pod) {
        let response = self.call(&pod.request(rpc::Command::Del));
        assert_eq!(response.outcome, Outcome::Done);
    }

    pub(crate) fn check(&self, pod: &Pod, told: &CniResult) -> Outcome {
        let mut request = pod.request(rpc::Command::Check);
        request.prev_result = Some(told.clone());
        self.call(&request).outcome
    }

    pub(crate) fn gc(&self, pod: &Pod, valid: &[&Pod]) {
        let mut request = pod.request(rpc::Command::Gc);
        request.container_id = String::new();
        request.ifname = String::new();
        let valid = valid.iter().map(|p| ValidAttachment {
            container_id: p.container_id.clone(),
            ifname: p.ifname.clone(),
        });
        request.config.valid_attachments = Some(valid.collect());
        assert_eq!(self.call(&request).outcome, Outcome::Done);
    }

    /// All addresses that the catalog says are held, with interface and state.
    pub(crate) fn held(&self) -> Vec<(String, String, String)> {
        held(&self.catalog)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.kill();
    }
}

/// All addresses that a catalog says are held: address, interface, sandbox.
pub(crate) fn held(catalog: &Path) -> Vec<(String, String, String)> {
    use multinet::types::block::AddressBlock;
    let Ok(entries) = std::fs::read_dir(catalog.join("AddressBlock")) else { return Vec::new() };
    let mut held = Vec::new();
    for entry in entries {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "yaml") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let block: AddressBlock = serde_yaml_ng::from_str(&text).unwrap();
        held.extend(
            block
                .held()
                .map(|e| (e.address.to_string(), e.interface.clone(), e.sandbox_id.clone())),
        );
    }
    held.sort();
    held
}

/// A pod as a runtime describes it.
#[derive(Debug, Clone)]
pub(crate) struct Pod {
    pub container_id: String,
    pub netns: PathBuf,
    pub ifname: String,
    pub name: String,
    pub network: String,
    pub annotation: Option<String>,
    pub device_info: Option<PathBuf>,
}

impl Pod {
    pub(crate) fn new(name: &str, netns: &Netns, network: &str, ifname: &str) -> Self {
        Self {
            container_id: format!("sandbox-{name}"),
            netns: netns.path(),
            ifname: ifname.into(),
            name: name.into(),
            network: network.into(),
            annotation: None,
            device_info: None,
        }
    }

    /// "Can ADD be served?"
    pub(crate) fn status_request() -> Request {
        let config = NetConf { cni_version: "1.1.0".into(), ..NetConf::default() };
        Request {
            version: rpc::VERSION,
            command: rpc::Command::Status,
            mode: CallMode::Interface,
            container_id: String::new(),
            netns: String::new(),
            ifname: String::new(),
            pod: PodArgs::default(),
            config,
            prev_result: None,
        }
    }

    pub(crate) fn request(&self, command: rpc::Command) -> Request {
        let mut config = NetConf {
            cni_version: "1.1.0".into(),
            name: "bowline".into(),
            kind: "bowline".into(),
            network: self.network.clone(),
            ..NetConf::default()
        };
        if let Some(annotation) = &self.annotation {
            let annotations = serde_json::json!({ "bowline.dev/interfaces": annotation });
            let other = [("io.kubernetes.cri.pod-annotations".to_owned(), annotations)].into();
            config.runtime_config = Some(RuntimeConfig { other, ..RuntimeConfig::default() });
        }
        if let Some(file) = &self.device_info {
            let mut runtime = config.runtime_config.take().unwrap_or_default();
            runtime.device_info_file = Some(file.display().to_string());
            config.runtime_config = Some(runtime);
        }
        Request {
            version: rpc::VERSION,
            command,
            mode: CallMode::Interface,
            container_id: self.container_id.clone(),
            netns: self.netns.display().to_string(),
            ifname: self.ifname.clone(),
            pod: PodArgs {
                namespace: "test".into(),
                name: self.name.clone(),
                uid: format!("uid-{}", self.name),
                infra_container_id: String::new(),
            },
            config,
            prev_result: None,
        }
    }
}

/// Writes a file of people's, whole.
pub(crate) fn write(catalog: &Path, name: &str, text: &str) {
    std::fs::create_dir_all(catalog).unwrap();
    let draft = catalog.join(format!(".{name}.draft"));
    std::fs::write(&draft, text).unwrap();
    std::fs::rename(draft, catalog.join(name)).unwrap();
}

/// Two Networks with the same addresses, both families.
pub(crate) const TWO_NETWORKS: &str = r#"
apiVersion: bowline.dev/v1alpha1
kind: Network
metadata: {name: blue}
spec:
  vni: 56
  namespaceSelector: {}
  ipPools: {ipv4: [blue-v4], ipv6: [blue-v6]}
---
apiVersion: bowline.dev/v1alpha1
kind: Network
metadata: {name: red}
spec:
  vni: 57
  namespaceSelector: {}
  ipPools: {ipv4: [red-v4], ipv6: [red-v6]}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: blue-v4}
spec: {subnet: 10.7.0.0/24, ips: [10.7.0.2-10.7.0.250], gateway: 10.7.0.1}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: blue-v6}
spec: {subnet: "fd07::/64", ips: ["fd07::2-fd07::fa"], gateway: "fd07::1"}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: red-v4}
spec: {subnet: 10.7.0.0/24, ips: [10.7.0.2-10.7.0.250], gateway: 10.7.0.1}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: red-v6}
spec: {subnet: "fd07::/64", ips: ["fd07::2-fd07::fa"], gateway: "fd07::1"}
"#;
