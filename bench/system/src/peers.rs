//! The others: testpmd and OVS-DPDK, each with two memif ports on one core.

use crate::DEVICE_CPU;
use crate::candidate::{MemifDevice, Spent, plain_end};
use anyhow::Context;
use bowline_demo::lab::netns::Netns;
use bowline_demo::lab::shell;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use wire::Mac;

const DST: &str = "10.0.0.2";
const NEXT_HOP: Mac = Mac([2, 0, 0, 0, 0, 2]);

/// A process that is killed when dropped.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    fn spawn(command: &mut Command, log: &Path) -> anyhow::Result<Self> {
        let file = std::fs::File::create(log).with_context(|| format!("{}", log.display()))?;
        // testpmd takes commands there, and ends when it ends.
        command.stdin(Stdio::piped()).stdout(file.try_clone()?).stderr(file);
        let what = command.get_program().to_string_lossy().into_owned();
        Ok(Self(command.spawn().with_context(|| format!("starting {what}"))?))
    }

    fn pid(&self) -> anyhow::Result<i32> {
        Ok(i32::try_from(self.0.id())?)
    }

    fn command(&mut self, line: &str) -> anyhow::Result<()> {
        let stdin = self.0.stdin.as_mut().context("no standard input")?;
        writeln!(stdin, "{line}").with_context(|| format!("telling it {line:?}"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Where DPDK's memory comes from: hugepages if enough are free.
#[must_use]
pub fn memory_arguments(hugepages_free: u64) -> Vec<String> {
    let words: &[&str] = if hugepages_free >= HUGEPAGES - 100 {
        &["--in-memory", "-m", "512"]
    } else {
        &["--no-huge", "-m", "512"]
    };
    words.iter().map(ToString::to_string).collect()
}

/// testpmd in this forwarding mode, with frames up to `buffer_bytes` in one piece: its driver spoils
/// longer ones (DPDK bug 1609).
///
/// # Errors
/// It does not start or serve.
pub fn testpmd(
    mode: &str,
    buffer_bytes: u32,
    memory: &[String],
    logs: &Path,
) -> anyhow::Result<MemifDevice> {
    let socket = |end: &str| format!("bowline-bench-{mode}-{end}");
    let vdev = |number: usize, end: &str| {
        let socket = socket(end);
        format!("--vdev=net_memif{number},role=server,id=0,socket={socket},rsize=10,bsize=2048")
    };
    // By the line: what it prints is waited for.
    let mut command = Command::new("stdbuf");
    command
        .args(["--output=L", "dpdk-testpmd"])
        .args(["-l", &format!("0,{DEVICE_CPU}"), "--main-lcore", "0", "--no-pci", "--no-telemetry"])
        .args(memory)
        .arg(format!("--file-prefix=bowline-bench-{mode}"))
        .args([vdev(0, "a"), vdev(1, "b"), "--".into()])
        .args([&format!("--forward-mode={mode}"), "--nb-cores=1", "--total-num-mbufs=8192"])
        .arg(format!("--mbuf-size={}", buffer_bytes + 128))
        .args(["--no-flush-rx", "--disable-link-check"])
        .args(["--interactive", "--auto-start", "--record-core-cycles"]);
    let log = logs.join(format!("testpmd-{mode}.log"));
    let mut process = Process::spawn(&mut command, &log)?;
    Ok(MemifDevice {
        name: format!("testpmd-{mode}"),
        pids: vec![process.pid()?],
        tx: plain_end(&format!("@{}", socket("a")), 1, 1, buffer_bytes)?,
        rx: plain_end(&format!("@{}", socket("b")), 2, 1, buffer_bytes)?,
        dst: DST.parse()?,
        dst_count: 1,
        next_hop: NEXT_HOP,
        outer: Box::new(|_| vec![]),
        ask_spent: Box::new(move || testpmd_spent(&mut process, &log)),
        keep: Box::new(()),
    })
}

/// Of its turns with packets, all of which it counts.
fn testpmd_spent(process: &mut Process, log: &Path) -> anyhow::Result<Spent> {
    let read = || std::fs::read_to_string(log).with_context(|| format!("{}", log.display()));
    let seen = read()?.len();
    process.command("show fwd stats all")?;
    let mut spent = None;
    wait_for("testpmd's statistics", || {
        // The log is cut at a character: testpmd writes ASCII.
        spent = read().ok().and_then(|text| testpmd_cycles(text.get(seen..)?));
        spent.is_some()
    })?;
    spent.context("it told nothing")
}

/// Of "CPU cycles/packet=67.25 (total cycles=5812492 / total io packets=86431) at 2000 MHz Clock",
/// which is missing as long as there were no packets; `None` before it asks for the next command.
fn testpmd_cycles(text: &str) -> Option<Spent> {
    let (_, sums) = text.split_once("Accumulated forward statistics")?;
    let (sums, _) = sums.split_once("testpmd> ")?;
    let Some((_, line)) = sums.split_once("(total cycles=") else { return Some(Spent::default()) };
    let mut numbers = line.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok());
    let cycles = busy(numbers.next()?);
    Some(Spent { packets: numbers.next()?, cycles })
}

fn busy(cycles: u64) -> BTreeMap<String, u64> {
    BTreeMap::from([("busy".to_owned(), cycles)])
}

/// Where OVS runs: it makes taps of its bridges, which the machine's own network shall not get.
const OVS_NETNS: &str = "bwb-ovs";

/// The home of one OVS, and its processes, which end before it goes.
#[derive(Debug)]
struct Ovs {
    processes: Vec<Process>,
    folder: PathBuf,
}

impl Ovs {
    fn home() -> anyhow::Result<Self> {
        // Of a benchmark that was killed.
        Netns::named(OVS_NETNS).destroy()?;
        Netns::create(OVS_NETNS)?;
        let folder = std::env::temp_dir().join(format!("bowline-bench-ovs-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        Ok(Self { processes: vec![], folder })
    }

    /// Starts a program in the namespace; `ip` becomes it, so that the process id is its own.
    fn start(&mut self, program: &str, args: &[String], log: &Path) -> anyhow::Result<i32> {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", OVS_NETNS, program]).args(args);
        command.env("OVS_RUNDIR", &self.folder).env("OVS_DBDIR", &self.folder);
        let process = Process::spawn(&mut command, log)?;
        let pid = process.pid()?;
        // The last started ends first.
        self.processes.insert(0, process);
        Ok(pid)
    }
}

impl Drop for Ovs {
    fn drop(&mut self) {
        self.processes.clear();
        if let Err(error) = Netns::named(OVS_NETNS).destroy() {
            eprintln!("bowline-bench: {error:#}");
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// OVS-DPDK with one rule from port to port, and buffers of so many bytes.
///
/// # Errors
/// It does not start or serve.
pub fn ovs(buffer_bytes: u32, memory: &[String], logs: &Path) -> anyhow::Result<MemifDevice> {
    let mut ovs = Ovs::home()?;
    let folder = ovs.folder.clone();
    let at = |name: &str| folder.join(name).display().to_string();
    let schema = "/usr/share/openvswitch/vswitch.ovsschema";
    shell::run(&format!("ovsdb-tool create {} {schema}", at("conf.db")))?;
    let remote = format!("--remote=punix:{}", at("db.sock"));
    let args = [at("conf.db"), remote, format!("--unixctl={}", at("db.ctl"))];
    ovs.start("ovsdb-server", &args, &logs.join("ovsdb.log"))?;
    wait_for_file(&folder.join("db.sock"))?;
    let vsctl = format!("ovs-vsctl --db=unix:{} --timeout=20", at("db.sock"));
    shell::run(&format!("{vsctl} --no-wait init"))?;
    set_dpdk(&vsctl, memory)?;
    let program = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
    let control = at("sw.ctl");
    let args = [format!("unix:{}", at("db.sock")), format!("--unixctl={control}")];
    let pid = ovs.start(program, &args, &logs.join("ovs.log"))?;
    add_ports(&vsctl, &folder, buffer_bytes)?;
    // OVS wants two rings from a port to the generator, one for each of its threads.
    let tx = plain_end(&at("a.sock"), 1, 2, buffer_bytes)?;
    let rx = plain_end(&at("b.sock"), 2, 2, buffer_bytes)?;
    Ok(MemifDevice {
        name: "ovs-dpdk".into(),
        pids: vec![pid],
        tx,
        rx,
        dst: DST.parse()?,
        dst_count: 1,
        next_hop: NEXT_HOP,
        outer: Box::new(|_| vec![]),
        ask_spent: Box::new(move || ovs_spent(&control)),
        keep: Box::new(ovs),
    })
}

/// Of the iterations of its forwarding thread that had packets.
fn ovs_spent(control: &str) -> anyhow::Result<Spent> {
    let text = shell::run(&format!("ovs-appctl --target={control} dpif-netdev/pmd-stats-show"))?;
    ovs_cycles(&text).context("OVS tells no cycles of a forwarding thread")
}

fn ovs_cycles(text: &str) -> Option<Spent> {
    let thread = text.split("pmd thread").nth(1)?;
    let number = |word: &str| {
        let rest = thread.split_once(word)?.1.trim_start();
        rest.split_whitespace().next()?.parse().ok()
    };
    let packets = number("packets received:")?;
    Some(Spent { packets, cycles: busy(number("processing cycles:").unwrap_or(0)) })
}

fn set_dpdk(vsctl: &str, memory: &[String]) -> anyhow::Result<()> {
    // OVS adds --in-memory, which ordinary pages do not go with, unless it is told this.
    let legacy = if memory.iter().any(|m| m == "--no-huge") { " --legacy-mem" } else { "" };
    let extra = memory.join(" ") + legacy;
    let mut command = Command::new("ovs-vsctl");
    command.args(vsctl.split_whitespace().skip(1)).args(["--no-wait", "set", "Open_vSwitch", "."]);
    command.args(["other_config:dpdk-init=true", "other_config:dpdk-lcore-mask=0x1"]);
    command.arg(format!("other_config:pmd-cpu-mask={:#x}", 1 << DEVICE_CPU));
    command.arg(format!("other_config:dpdk-extra=\"{extra} --no-pci --no-telemetry\""));
    let status = command.status().context("starting ovs-vsctl")?;
    anyhow::ensure!(status.success(), "ovs-vsctl refuses DPDK's settings");
    Ok(())
}

fn add_ports(vsctl: &str, folder: &Path, buffer_bytes: u32) -> anyhow::Result<()> {
    // It forwards no longer frames than its MTU says; that makes its own buffers larger, too.
    let mtu = if buffer_bytes > 9000 { 9000 } else { 1500 };
    shell::run(&format!("{vsctl} add-br br0 -- set bridge br0 datapath_type=netdev"))?;
    for (number, end) in ["a", "b"].iter().enumerate() {
        let socket = folder.join(format!("{end}.sock"));
        let args = format!(
            "net_memif{number},role=server,id=0,socket={},socket-abstract=no,rsize=10,bsize={buffer_bytes}",
            socket.display()
        );
        shell::run(&format!(
            "{vsctl} add-port br0 m{number} -- set Interface m{number} type=dpdk \
             options:dpdk-devargs={args} mtu_request={mtu} ofport_request={}",
            number + 1
        ))?;
        wait_for_file(&socket)?;
    }
    let management = folder.join("br0.mgmt");
    let rule =
        |words: &str| shell::run(&format!("ovs-ofctl {words} unix:{}", management.display()));
    rule("del-flows")?;
    shell::run(&format!(
        "ovs-ofctl add-flow unix:{} in_port=1,actions=output:2",
        management.display()
    ))
    .map(drop)
}

fn wait_for_file(path: &Path) -> anyhow::Result<()> {
    wait_for(&path.display().to_string(), || path.exists())
}

fn wait_for(what: &str, mut there: impl FnMut() -> bool) -> anyhow::Result<()> {
    let end = Instant::now() + Duration::from_secs(10);
    while !there() {
        anyhow::ensure!(Instant::now() < end, "{what} does not appear");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Hugepages reserved for a benchmark; given back when dropped.
#[derive(Debug)]
pub struct Hugepages {
    before: String,
}

const HUGEPAGES: u64 = 900;
const HUGEPAGES_FILE: &str = "/proc/sys/vm/nr_hugepages";

impl Hugepages {
    /// Reserves as many as all candidates of a case need, if the machine has the memory.
    ///
    /// # Errors
    /// The kernel's setting cannot be read or written.
    pub fn reserve() -> anyhow::Result<Self> {
        let before = std::fs::read_to_string(HUGEPAGES_FILE).context(HUGEPAGES_FILE)?;
        if before.trim().parse::<u64>().unwrap_or(0) < HUGEPAGES {
            std::fs::write(HUGEPAGES_FILE, HUGEPAGES.to_string()).context(HUGEPAGES_FILE)?;
        }
        Ok(Self { before })
    }
}

impl Drop for Hugepages {
    fn drop(&mut self) {
        // The machine is as usable with them as without.
        let _ = std::fs::write(HUGEPAGES_FILE, self.before.trim());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn testpmd_tells_its_cycles_when_it_is_done() {
        let sums =
            "+++ Accumulated forward statistics for all ports+++\n  RX-packets: 86431\n  ++++\n";
        let line = "\n  CPU cycles/packet=67.25 (total cycles=5812492 / total io packets=86431) at 2000 MHz Clock\n";
        assert_eq!(testpmd_cycles(&format!("{sums}{line}")), None);
        let spent = Spent { packets: 86_431, cycles: busy(5_812_492) };
        assert_eq!(testpmd_cycles(&format!("{sums}{line}testpmd> ")), Some(spent));
        assert_eq!(testpmd_cycles(&format!("{sums}testpmd> ")), Some(Spent::default()));
    }

    #[test]
    fn ovs_tells_those_of_its_forwarding_thread() {
        let text = "pmd thread numa_id 0 core_id 1:\n  packets received: 1200\n  idle cycles: 99 (1.00%)\n  \
                    processing cycles: 240000 (99.00%)\nmain thread:\n  packets received: 7\n";
        let spent = Spent { packets: 1200, cycles: busy(240_000) };
        assert_eq!(ovs_cycles(text), Some(spent));
        assert_eq!(ovs_cycles("main thread:\n  packets received: 7\n"), None);
    }
}
