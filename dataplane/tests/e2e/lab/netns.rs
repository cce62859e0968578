//! Network namespaces that go away with their owner.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sched::{CloneFlags, setns};

use super::Proc;

/// Names begin with this, then the test process's id.
const PREFIX: &str = "bwe2e-";
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// One namespace.
pub struct Netns {
    name: String,
    fd: OwnedFd,
}

impl Netns {
    /// A new one with its loopback up. `role` shows in `ip netns`.
    pub fn new(role: &str) -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}-{role}", std::process::id());
        run(Command::new("ip").args(["netns", "add", &name]));
        let fd = File::open(format!("/run/netns/{name}")).expect("the namespace just made").into();
        let netns = Self { name, fd };
        netns.sysctl("net.ipv6.conf.default.accept_dad", 0);
        netns.sysctl("net.ipv6.conf.default.accept_ra", 0);
        netns.sysctl("net.ipv6.conf.default.router_solicitations", 0);
        netns.ip("link set lo up");
        netns
    }

    /// A number that this process has not used yet, for names.
    pub fn number() -> u32 {
        NUMBER.fetch_add(1, Ordering::Relaxed)
    }

    /// Its name, for `ip … netns NAME`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` inside, on a thread of its own.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.fd, CloneFlags::CLONE_NEWNET).expect("enter the namespace");
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// `ip WORDS` inside.
    pub fn ip(&self, words: &str) {
        self.tool("ip", words);
    }

    /// `PROGRAM WORDS` inside; panics if it fails, returns what it prints.
    pub fn tool(&self, program: &str, words: &str) -> String {
        let words: Vec<_> = words.split_whitespace().collect();
        self.run(|| run(Command::new(program).args(words)))
    }

    /// The same, but failure is an answer as well: (success, output).
    pub fn try_tool(&self, program: &str, words: &str) -> (bool, String) {
        let words: Vec<_> = words.split_whitespace().collect();
        let output = self.run(|| Command::new(program).args(words).output().expect(program));
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        (output.status.success(), text)
    }

    /// Starts a program inside, in the background.
    pub fn spawn(&self, program: &str, words: &str) -> Proc {
        let mut command = Command::new(program);
        command.args(words.split_whitespace());
        self.spawn_command(command)
    }

    /// The same with arguments that have spaces in them.
    pub fn spawn_command(&self, command: Command) -> Proc {
        self.run(|| Proc::spawn(command))
    }

    /// Sets a sysctl of the namespace.
    pub fn sysctl(&self, key: &str, value: u32) {
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        self.run(|| fs::write(&path, value.to_string()).unwrap_or_else(|e| panic!("{path}: {e}")));
    }

    /// Connects two namespaces by a veth pair; both ends are up.
    pub fn veth(&self, name: &str, other: &Netns, other_name: &str, mtu: u32) {
        self.ip(&format!(
            "link add {name} mtu {mtu} type veth peer name {other_name} mtu {mtu} netns {}",
            other.name
        ));
        self.ip(&format!("link set {name} up"));
        other.ip(&format!("link set {other_name} up"));
    }

    /// A device's MAC address.
    pub fn mac(&self, device: &str) -> [u8; 6] {
        // Not from /sys, which shows the namespace that it was mounted in.
        let text = self.tool("ip", &format!("-br link show dev {device}"));
        let word = text.split_whitespace().nth(2).expect("a MAC address");
        let mut mac = [0; 6];
        for (byte, hex) in mac.iter_mut().zip(word.split(':')) {
            *byte = u8::from_str_radix(hex, 16).expect("hexadecimal");
        }
        mac
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Runs a command to its end.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}: {stderr}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Removes all namespaces whose names begin so.
pub fn remove_all(prefix: &str) {
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(prefix) {
            remove(&name);
        }
    }
}

/// Removes a namespace and ends what runs in it.
fn remove(name: &str) {
    // What still runs inside is ours, by the namespace's name.
    if let Ok(output) = Command::new("ip").args(["netns", "pids", name]).output() {
        for pid in String::from_utf8_lossy(&output.stdout).lines() {
            let Ok(pid) = pid.trim().parse() else { continue };
            if pid != std::process::id() as i32 {
                let pid = nix::unistd::Pid::from_raw(pid);
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            }
        }
    }
    let _ = Command::new("ip").args(["netns", "del", name]).output();
}

/// Removes namespaces of test processes that are no more.
pub fn sweep() {
    let Ok(entries) = fs::read_dir("/run/netns") else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let own = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        // Where a data plane kept the NIC of a node.
        let taken = name.strip_prefix("bowline-u").and_then(|rest| rest.split('n').next());
        let Some(pid) = own.or(taken) else { continue };
        if pid.is_empty() || !pid.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        if !fs::exists(format!("/proc/{pid}")).unwrap_or(true) {
            remove(&name);
        }
    }
}
