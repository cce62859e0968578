//! Processes that end with their owner.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, ExitStatus, Stdio};

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
    pub fn spawn(mut command: Command) -> Self {
        let what = format!("{command:?}");
        let output = tempfile::tempfile().expect("a file for output");
        let clone = || Stdio::from(output.try_clone().expect("a duplicate"));
        command.stdin(Stdio::null()).stdout(clone()).stderr(clone());
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
