//! Removes all that a demo can leave behind, whatever killed it.

use crate::lab::netns;
use crate::{PREFIX, RUN_DIR};
use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};

/// Where a running demo writes its process id.
fn pid_file() -> PathBuf {
    Path::new(RUN_DIR).join("demo.pid")
}

/// Notes that this process is the running demo.
///
/// # Errors
/// The run directory cannot be written.
pub fn claim() -> anyhow::Result<()> {
    std::fs::create_dir_all(RUN_DIR).with_context(|| format!("making {RUN_DIR}"))?;
    let path = pid_file();
    std::fs::write(&path, std::process::id().to_string())
        .with_context(|| format!("writing {}", path.display()))
}

/// Ends a demo that still runs: it was kept, or its terminal is gone.
fn end_other() -> Option<String> {
    let text = std::fs::read_to_string(pid_file()).ok()?;
    let pid: i32 = text.trim().parse().ok()?;
    // The id may have been given to another program since.
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    if name.trim() != "bowline-demo" || u32::try_from(pid) == Ok(std::process::id()) {
        return None;
    }
    kill(Pid::from_raw(pid), Signal::SIGKILL).ok()?;
    Some(format!("process {pid}"))
}

/// Removes namespaces with their processes and devices, and the run directory. The answer says what
/// was there.
///
/// # Errors
/// Something cannot be removed; the rest was tried all the same.
pub fn clean() -> anyhow::Result<Vec<String>> {
    let mut removed = Vec::from_iter(end_other());
    let mut first_error = None;
    loop {
        let mut found = Vec::new();
        for prefix in [PREFIX, UPLINK_HOME_PREFIX] {
            found.extend(netns::with_prefix(prefix)?);
        }
        // A command that a killed demo had begun may make another one meanwhile.
        if found.is_empty() || first_error.is_some() {
            break;
        }
        for netns in found {
            match netns.destroy() {
                Ok(()) => removed.push(format!("namespace {}", netns.name())),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
    }
    let run_dir = Path::new(RUN_DIR);
    if run_dir.exists() {
        std::fs::remove_dir_all(run_dir).with_context(|| format!("removing {RUN_DIR}"))?;
        removed.push(format!("directory {RUN_DIR}"));
    }
    first_error.map_or(Ok(removed), Err)
}

/// The data plane keeps an uplink of the packet driver in a namespace of this name and the uplink's;
/// the demo's uplinks are named so that no real node's begins with it.
const UPLINK_HOME_PREFIX: &str = "bowline-bwd";
