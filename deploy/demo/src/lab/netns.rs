//! Named network namespaces.

use super::shell;
use anyhow::Context;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A named network namespace; not removed when dropped.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// An existing namespace.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned() }
    }

    /// Makes it, with its loopback up.
    ///
    /// # Errors
    /// It exists, or this is not root.
    pub fn create(name: &str) -> anyhow::Result<Self> {
        shell::run_all(&format!("ip netns add {name}\n ip -n {name} link set lo up"))?;
        Ok(Self::named(name))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Runs `work` on a thread of its own inside the namespace and waits for it.
    ///
    /// # Errors
    /// The namespace cannot be entered, or `work` fails.
    pub fn run<T: Send>(
        &self,
        work: impl FnOnce() -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter()?;
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread into the namespace, for good: for threads of one's own.
    ///
    /// # Errors
    /// The namespace does not exist, or this is not root.
    pub fn enter(&self) -> anyhow::Result<()> {
        let path = self.path();
        let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        setns(&file, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("entering namespace {}", self.name))
    }

    /// Kills what runs in it and removes it; nothing to do when it is gone.
    ///
    /// # Errors
    /// A process does not die within five seconds, or the name cannot be removed.
    pub fn destroy(&self) -> anyhow::Result<()> {
        if !self.path().exists() {
            return Ok(());
        }
        self.kill_all()?;
        shell::run(&format!("ip netns del {}", self.name)).map(drop)
    }

    /// Kills the processes whose main thread is in the namespace.
    fn kill_all(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(5);
        let own = i32::try_from(std::process::id()).unwrap_or(0);
        loop {
            // A name without a namespace behind it (its mount is gone) has no processes.
            let list = shell::run(&format!("ip netns pids {}", self.name)).unwrap_or_default();
            let pids: Vec<i32> =
                list.lines().filter_map(|l| l.trim().parse().ok()).filter(|p| *p != own).collect();
            if pids.is_empty() {
                return Ok(());
            }
            anyhow::ensure!(Instant::now() < deadline, "processes {pids:?} in {} stay", self.name);
            for pid in pids {
                // Gone meanwhile is as good.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// All named namespaces whose name begins with `prefix`.
///
/// # Errors
/// The folder of namespaces cannot be read.
pub fn with_prefix(prefix: &str) -> anyhow::Result<Vec<Netns>> {
    let folder = PathBuf::from("/run/netns");
    if !folder.exists() {
        return Ok(vec![]);
    }
    let mut found = vec![];
    for entry in folder.read_dir().context("reading /run/netns")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with(prefix) {
            found.push(Netns { name });
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    /// What runs inside goes with it; a second destroy is no error.
    #[test]
    fn a_namespace_goes_with_its_processes() {
        let name = format!("bwdtest-{}", std::process::id());
        let netns = Netns::create(&name).unwrap();
        assert!(with_prefix("bwdtest-").unwrap().contains(&netns));
        let links = netns.run(|| shell::run("ip -br link")).unwrap();
        assert_eq!(links.lines().count(), 1, "{links}");
        let mut sleeper = netns
            .run(|| Ok(Command::new("sleep").arg("1000").stdout(Stdio::null()).spawn()?))
            .unwrap();
        netns.destroy().unwrap();
        assert!(!sleeper.wait().unwrap().success());
        assert!(!netns.path().exists());
        netns.destroy().unwrap();
        let outside = shell::run("ip -br link").unwrap();
        assert!(outside.lines().count() >= 1, "this thread stayed outside");
    }
}
