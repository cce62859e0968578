//! Processes that end with their owner.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::wait;

/// A running program whose output goes to a file.
pub struct Proc {
    what: String,
    child: Child,
    output: File,
}

impl Proc {
    /// Starts it in the calling thread's namespace.
    pub fn spawn(command: Command) -> Self {
        Self::start(command, Stdio::null())
    }

    /// The same for one that waits for commands.
    pub fn spawn_fed(command: Command) -> (Self, ChildStdin) {
        let mut process = Self::start(command, Stdio::piped());
        let stdin = process.child.stdin.take().expect("asked for");
        (process, stdin)
    }

    fn start(mut command: Command, stdin: Stdio) -> Self {
        let what = format!("{command:?}");
        let output = tempfile::tempfile().expect("a file for output");
        let clone = || Stdio::from(output.try_clone().expect("a duplicate"));
        command.stdin(stdin).stdout(clone()).stderr(clone());
        let child = command.spawn().unwrap_or_else(|e| panic!("{what}: {e}"));
        Self { what, child, output }
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// What it has printed.
    pub fn output(&self) -> String {
        // The program shares the file's position: it must stay where it is.
        let length = self.output.metadata().expect("a file").len();
        let mut text = vec![0; length as usize];
        self.output.read_exact_at(&mut text, 0).expect("no shorter than it was");
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Waits until it has printed `text`.
    pub fn wait_for(&mut self, text: &str, seconds: f64) {
        let what = format!("`{text}` from {}", self.what);
        wait(&what, seconds, || {
            let output = self.output();
            assert!(
                output.contains(text) || !self.ended(),
                "{} ended without printing `{text}`:\n{output}",
                self.what
            );
            output.contains(text).then_some(())
        });
    }

    /// Whether it has ended by itself.
    pub fn ended(&mut self) -> bool {
        self.child.try_wait().expect("our child").is_some()
    }

    /// Waits for its end and returns what it printed; panics if it failed.
    pub fn finish(mut self, seconds: f64) -> String {
        let status = self.wait_end(seconds);
        let output = self.output();
        assert!(status.success(), "{}: {status}:\n{output}", self.what);
        output
    }

    /// Waits for its end.
    pub fn wait_end(&mut self, seconds: f64) -> ExitStatus {
        let what = format!("the end of {}", self.what);
        wait(&what, seconds, || self.child.try_wait().expect("our child"))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("our child");
    }

    /// kill -9, and waits for the end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let output = self.output();
            let from = output.len().saturating_sub(20_000);
            let tail = output.get(from..).unwrap_or(&output);
            eprintln!("--- {}\n{tail}\n---", self.what);
        }
    }
}

/// What a process holds of the kernel.
#[derive(Debug, Clone, Copy)]
pub struct Footprint {
    pid: i32,
    fds: usize,
    /// Mappings of memory files.
    maps: usize,
    rss_kib: u64,
}

/// Allocators keep a little for later.
const RSS_SLACK_KIB: u64 = 16 << 10;

impl Footprint {
    /// As it is now.
    pub fn of(pid: i32) -> Self {
        let read = |name: &str| {
            std::fs::read_to_string(format!("/proc/{pid}/{name}")).expect("a running process")
        };
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("a process").count();
        let maps = read("maps").lines().filter(|line| line.contains("memfd:")).count();
        let status = read("status");
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let rss_kib = rss.and_then(|text| text.trim().split(' ').next()?.parse().ok());
        Self { pid, fds, maps, rss_kib: rss_kib.expect("VmRSS in kB") }
    }

    /// Waits until descriptors and mappings are no more than that, and memory is about the same. They may
    /// be fewer: the last client of the time before may have been on its way out.
    pub fn is_kept(&self) {
        let mut now = *self;
        wait(&format!("{self:?} again"), 10.0, || {
            now = Self::of(self.pid);
            (now.fds <= self.fds && now.maps <= self.maps).then_some(())
        });
        println!("before {self:?}, after {now:?}");
        assert!(now.rss_kib <= self.rss_kib + RSS_SLACK_KIB, "{self:?} became {now:?}");
    }
}
