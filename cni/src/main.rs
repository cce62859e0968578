//! The CNI plugin: forwards the call to the agent and prints the result.
//!
//! Installed as `/opt/cni/bin/bowline`, and as `/opt/cni/bin/bowline-ipam` for the IPAM-only mode.
//! Exit status 0 with the result (or nothing) on stdout, or 1 with a CNI error object there.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::process::ExitCode;
use std::time::Duration;

use cni::call::{Environment, MAX_STDIN_BYTES};
use cni::plugin::{Answer, run};

fn main() -> ExitCode {
    let environment = Environment::of_process();
    let stdin = read_stdin();
    let stdin = stdin.as_deref().map_err(|e| std::io::Error::new(e.kind(), e.to_string()));
    let Answer { stdout, stderr, success } = run(&environment, stdin);
    if !stderr.is_empty() {
        // Without stderr there is nobody to tell.
        let _ = writeln!(std::io::stderr(), "{stderr}");
    }
    let written = stdout.is_empty()
        || std::io::stdout()
            .write_all(stdout.as_bytes())
            .and_then(|()| std::io::stdout().flush())
            .is_ok();
    if success && written { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A runtime writes the configuration at once and closes. One that keeps stdin open gets an error.
fn read_stdin() -> std::io::Result<Vec<u8>> {
    let (done, wait) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut text = Vec::new();
        let limit = MAX_STDIN_BYTES as u64 + 1;
        let read = std::io::stdin().lock().take(limit).read_to_end(&mut text);
        // The receiver is gone when main has given up; then nobody wants to know.
        drop(done.send(read.map(|_| text)));
    });
    let late = || std::io::Error::new(std::io::ErrorKind::TimedOut, "nobody closed it for 10 s");
    wait.recv_timeout(Duration::from_secs(10)).unwrap_or_else(|_| Err(late()))
}
