//! `bowline doctor`: what the data plane needs of this machine, and whether it is there.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;

use super::client;
use super::out::{self, Row};

/// Arguments of `doctor`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The agent's socket for the CNI plugin.
    #[arg(long, default_value = "/run/bowline/cni.sock")]
    agent_socket: PathBuf,
    /// UDP port of VXLAN.
    #[arg(long, default_value_t = 4789)]
    vxlan_port: u16,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Mark {
    Ok,
    Note,
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    mark: Mark,
    what: &'static str,
    found: String,
    remedy: String,
}

impl Row for Finding {
    const HEAD: &'static [&'static str] = &["", "what", "found", "remedy"];
    fn cells(&self) -> Vec<String> {
        let mark = match self.mark {
            Mark::Ok => "ok",
            Mark::Note => "note",
            Mark::Bad => "BAD",
        };
        vec![mark.into(), self.what.into(), self.found.clone(), self.remedy.clone()]
    }
}

fn ok(what: &'static str, found: impl Into<String>) -> Finding {
    Finding { mark: Mark::Ok, what, found: found.into(), remedy: String::new() }
}

fn note(what: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { mark: Mark::Note, what, found: found.into(), remedy: remedy.into() }
}

fn bad(what: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { mark: Mark::Bad, what, found: found.into(), remedy: remedy.into() }
}

/// Looks at everything. Fails when something is bad.
pub(crate) async fn run(socket: &Path, args: &Args, json: bool) -> anyhow::Result<ExitCode> {
    let mut findings = vec![root(), capabilities(), tun(), hugepages(), cores(), open_files()];
    findings.push(inotify());
    findings.push(kernel_vxlan(args.vxlan_port));
    findings.extend(dataplane(socket).await);
    findings.push(agent(&args.agent_socket));
    out::rows(&findings, json)?;
    let any_bad = findings.iter().any(|finding| finding.mark == Mark::Bad);
    Ok(if any_bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn root() -> Finding {
    match nix::unistd::geteuid().is_root() {
        true => ok("user", "root"),
        false => bad("user", "not root", "run it with sudo: taps, namespaces and NICs need root"),
    }
}

/// Capabilities that the processes use, by their bit (linux/capability.h).
const CAPABILITIES: [(u32, &str); 4] =
    [(12, "CAP_NET_ADMIN"), (13, "CAP_NET_RAW"), (14, "CAP_IPC_LOCK"), (21, "CAP_SYS_ADMIN")];

fn capabilities() -> Finding {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    let missing: Vec<_> = CAPABILITIES
        .iter()
        .filter(|(bit, _)| mask >> bit & 1 == 0)
        .map(|(_, name)| *name)
        .collect();
    if missing.is_empty() {
        return ok("capabilities", "all that are needed");
    }
    let remedy = "give them in the container's securityContext, or the unit's AmbientCapabilities";
    bad("capabilities", format!("missing {}", missing.join(", ")), remedy)
}

fn tun() -> Finding {
    match std::fs::File::options().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => ok("/dev/net/tun", "opens"),
        Err(error) => {
            bad("/dev/net/tun", error.to_string(), "modprobe tun; in a container: mount the device")
        }
    }
}

fn hugepages() -> Finding {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let value = |name: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let free = value("HugePages_Free:").unwrap_or(0);
    let kib = value("Hugepagesize:").unwrap_or(2048);
    let mib = free * kib / 1024;
    if mib >= 128 {
        return ok("hugepages", format!("{mib} MiB free"));
    }
    note(
        "hugepages",
        format!("{mib} MiB free"),
        "DPDK uplinks are faster with 128 MiB: echo 64 > /proc/sys/vm/nr_hugepages",
    )
}

fn cores() -> Finding {
    let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if count >= 2 {
        return ok("cores", format!("{count} may be used"));
    }
    note("cores", "1 may be used", "a busy worker takes a core: use --poll adaptive")
}

fn open_files() -> Finding {
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE);
    let limit = limit.map_or(0, |(soft, _)| soft);
    if limit >= 8192 {
        return ok("open files", format!("{limit} allowed"));
    }
    note(
        "open files",
        format!("{limit} allowed"),
        "a tap takes two descriptors and more: LimitNOFILE=65536 in the unit",
    )
}

/// The data plane counts the memory files of memif clients with one list of inotify, and lets none in without.
/// All of a user's programs share what is allowed.
fn inotify() -> Finding {
    let what = "inotify lists";
    let setting = "/proc/sys/fs/inotify/max_user_instances";
    let text = std::fs::read_to_string(setting).unwrap_or_default();
    let Ok(allowed) = text.trim().parse::<usize>() else {
        return bad(what, format!("{setting} is not there"), "memif needs a kernel with inotify");
    };
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let of_root = processes.filter(|process| process.metadata().is_ok_and(|of| of.uid() == 0));
    let files = of_root.filter_map(|process| std::fs::read_dir(process.path().join("fd")).ok());
    let targets = files.flatten().flatten().filter_map(|fd| std::fs::read_link(fd.path()).ok());
    let used = targets.filter(|target| target.as_os_str() == "anon_inode:inotify").count();
    let found = format!("{used} of {allowed} in use by root");
    if used < allowed {
        return ok(what, found);
    }
    // One of them may be the data plane's.
    let remedy =
        "a data plane without one refuses memif: sysctl fs.inotify.max_user_instances=1024";
    note(what, found, remedy)
}

/// The kernel's own VXLAN on our port would take our packets, or we its.
fn kernel_vxlan(port: u16) -> Finding {
    let what = "kernel's VXLAN";
    let hex = format!(":{port:04X} ");
    let bound = ["/proc/net/udp", "/proc/net/udp6"].iter().any(|path| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().skip(1).any(|line| {
            line.split_whitespace().nth(1).is_some_and(|local| format!("{local} ").ends_with(&hex))
        })
    });
    let devices = std::process::Command::new("ip")
        .args(["-d", "-o", "link", "show", "type", "vxlan"])
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    let ours = format!("dstport {port} ");
    let names: Vec<_> = devices
        .lines()
        .filter(|line| line.contains(&ours))
        .filter_map(|line| line.split_whitespace().nth(1))
        .map(|name| name.trim_end_matches(':').to_owned())
        .collect();
    if !bound && names.is_empty() {
        return ok(what, format!("nothing uses UDP port {port}"));
    }
    let found = match names.is_empty() {
        true => format!("a socket has UDP port {port}"),
        false => format!("{} uses UDP port {port}", names.join(", ")),
    };
    bad(what, found, "give Bowline another port on all nodes: bowline-dataplane --vxlan-port 4790")
}

async fn dataplane(socket: &Path) -> Vec<Finding> {
    let what = "data plane";
    let mut client = match client::connect(socket).await {
        Ok(client) => client,
        Err(error) => return vec![bad(what, format!("{error:#}"), "")],
    };
    let hello = match client.hello(api::HelloRequest::default()).await {
        Ok(hello) => hello.into_inner(),
        Err(status) => return vec![bad(what, status.message(), "see its log")],
    };
    let mut findings = vec![ok(
        what,
        format!(
            "version {}, {} workers, state revision {}",
            hello.version, hello.workers, hello.state_revision
        ),
    )];
    if hello.uplinks.is_empty() {
        let remedy = "other nodes are out of reach; start it with --uplink eth0=net_af_xdp";
        findings.push(note("uplink", "none", remedy));
    }
    for uplink in &hello.uplinks {
        let facts = format!("{} by {}, MTU {}", uplink.name, uplink.driver, uplink.mtu);
        findings.push(match (uplink.link_up, uplink.vteps.is_empty()) {
            (false, _) => bad("uplink", facts + ", no carrier", "check the cable or the switch"),
            (true, true) => bad("uplink", facts + ", no address", "give the interface an address"),
            (true, false) => ok("uplink", facts),
        });
    }
    if let Ok(state) = client.get_state(api::GetStateRequest {}).await {
        let state = state.into_inner();
        for status in state.interfaces.iter().filter(|status| status.violations > 0) {
            let found = format!(
                "{} broke the protocol {} times, last so: {}",
                status.id, status.violations, status.last_violation
            );
            findings.push(note("misbehaving peer", found, "see `bowline events` and that pod"));
        }
    }
    findings
}

fn agent(socket: &Path) -> Finding {
    match std::os::unix::net::UnixStream::connect(socket) {
        Ok(_) => ok("agent", format!("{} answers", socket.display())),
        Err(error) => note(
            "agent",
            format!("{}: {error}", socket.display()),
            "pods can not be added without it: start bowline-agent",
        ),
    }
}
