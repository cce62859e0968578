//! Processes of the nodes: started in a namespace, restarted when they die, stopped by their id.
//!
//! A small supervisor per process, as systemd would be on a real node: it is a thread here, and
//! restarts at once.

use super::netns::Netns;
use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{File, OpenOptions};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Restarts in a row, each within a second of the last, after which a process counts as broken.
const QUICK_DEATHS_MAX: u32 = 5;

/// What to run.
#[derive(Debug, Clone)]
pub struct Program {
    /// For people: `node1 dataplane`.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Additions to the environment.
    pub env: Vec<(String, String)>,
    /// Where it runs.
    pub netns: Netns,
    /// Where stdout and stderr go, appended.
    pub log: PathBuf,
}

impl Program {
    fn spawn(&self) -> anyhow::Result<Child> {
        let log = open_log(&self.log)?;
        let mut command = Command::new(&self.path);
        command.args(&self.args).envs(self.env.iter().cloned());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // In the supervisor's thread, which is in the namespace already.
        command.spawn().with_context(|| format!("starting {} ({})", self.name, self.path.display()))
    }
}

fn open_log(path: &Path) -> anyhow::Result<File> {
    let log = OpenOptions::new().create(true).append(true).open(path);
    log.with_context(|| format!("opening the log {}", path.display()))
}

#[derive(Debug, Default)]
struct State {
    pid: Option<i32>,
    starts: u32,
    stopping: bool,
    broken: Option<String>,
}

/// A process that is restarted when it dies. Dropping it kills the process.
#[derive(Debug)]
pub struct Supervised {
    name: String,
    log: PathBuf,
    state: Arc<Mutex<State>>,
    thread: Option<JoinHandle<()>>,
}

impl Supervised {
    /// Starts it.
    ///
    /// # Errors
    /// The first start fails.
    pub fn start(program: Program) -> anyhow::Result<Self> {
        let state = Arc::new(Mutex::new(State::default()));
        let (name, log) = (program.name.clone(), program.log.clone());
        // Of an earlier demo; restarts of this one append.
        let _ = std::fs::remove_file(&log);
        let shared = Arc::clone(&state);
        let (told, first) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || supervise(&program, &shared, &told));
        first.recv().context("the supervisor died")??;
        Ok(Self { name, log, state, thread: Some(thread) })
    }

    /// The process's id, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        lock(&self.state).pid
    }

    /// How often it was started.
    #[must_use]
    pub fn starts(&self) -> u32 {
        lock(&self.state).starts
    }

    /// Why it is not restarted any more.
    #[must_use]
    pub fn broken(&self) -> Option<String> {
        lock(&self.state).broken.clone()
    }

    /// Fails when the process has given up.
    ///
    /// # Errors
    /// With the log's place.
    pub fn check(&self) -> anyhow::Result<()> {
        match self.broken() {
            Some(why) => anyhow::bail!("{}: {why}; see {}", self.name, self.log.display()),
            None => Ok(()),
        }
    }

    /// Kills it as by `kill -9`; the supervisor restarts it.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&self) -> anyhow::Result<()> {
        self.signal(Signal::SIGKILL)
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        // Under the lock: the supervisor reaps under it too, so the id is still this process's.
        let state = lock(&self.state);
        let pid = state.pid.with_context(|| format!("{} does not run", self.name))?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("{signal} to {}", self.name))
    }

    /// Stops it by SIGTERM and does not restart it; the time that took.
    ///
    /// # Errors
    /// It runs on for ten seconds.
    pub fn stop(&self) -> anyhow::Result<Duration> {
        lock(&self.state).stopping = true;
        let begun = Instant::now();
        if self.pid().is_none() {
            return Ok(Duration::ZERO);
        }
        self.signal(Signal::SIGTERM)?;
        while self.pid().is_some() {
            let patience = Duration::from_secs(10);
            anyhow::ensure!(begun.elapsed() < patience, "{} ignores SIGTERM", self.name);
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(begun.elapsed())
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        lock(&self.state).stopping = true;
        if self.pid().is_some() {
            let _ = self.signal(Signal::SIGKILL);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // The fields are set one by one; a panicking holder leaves them valid.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

type FirstStart = std::sync::mpsc::Sender<anyhow::Result<()>>;

fn supervise(program: &Program, state: &Mutex<State>, told: &FirstStart) {
    if let Err(error) = program.netns.enter() {
        let _ = told.send(Err(error));
        return;
    }
    let mut quick_deaths = 0;
    loop {
        let begun = Instant::now();
        let mut child = match start_once(program, state) {
            Ok(Some(child)) => child,
            Ok(None) => return,
            Err(error) => {
                lock(state).broken = Some(format!("{error:#}"));
                let _ = told.send(Err(error));
                return;
            }
        };
        let _ = told.send(Ok(()));
        let why = wait_for_death(&mut child, state);
        quick_deaths = if begun.elapsed() < Duration::from_secs(1) { quick_deaths + 1 } else { 0 };
        if quick_deaths >= QUICK_DEATHS_MAX {
            lock(state).broken = Some(format!("died {quick_deaths} times in a row, last: {why}"));
            return;
        }
    }
}

/// `None` when it is to stop.
fn start_once(program: &Program, state: &Mutex<State>) -> anyhow::Result<Option<Child>> {
    let mut state = lock(state);
    if state.stopping {
        return Ok(None);
    }
    let child = program.spawn()?;
    state.pid = i32::try_from(child.id()).ok();
    state.starts += 1;
    Ok(Some(child))
}

/// Polls, so that the id can be cleared under the lock before the kernel may give it away.
fn wait_for_death(child: &mut Child, state: &Mutex<State>) -> String {
    loop {
        {
            let mut state = lock(state);
            match child.try_wait() {
                Ok(None) => {}
                Ok(Some(status)) => {
                    state.pid = None;
                    return status
                        .signal()
                        .map_or_else(|| format!("{status}"), |signal| format!("signal {signal}"));
                }
                Err(error) => {
                    state.pid = None;
                    return error.to_string();
                }
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until `condition` holds.
///
/// # Errors
/// It does not within `patience`; the message says for what.
pub fn wait_for(
    what: &str,
    patience: Duration,
    mut condition: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    loop {
        if condition()? {
            return Ok(begun.elapsed());
        }
        anyhow::ensure!(begun.elapsed() < patience, "{what}: not within {patience:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(netns: &Netns, log: &Path, args: &[&str]) -> Program {
        Program {
            name: "test".into(),
            path: "/bin/sleep".into(),
            args: args.iter().map(ToString::to_string).collect(),
            env: vec![],
            netns: netns.clone(),
            log: log.to_owned(),
        }
    }

    #[test]
    fn the_dead_are_restarted_until_stopped() {
        let name = format!("bwdtest-s{}", std::process::id());
        let netns = Netns::create(&name).unwrap();
        // A file of its own: the log of an earlier start is removed.
        let log = std::env::temp_dir().join(format!("{name}.log"));
        let process = Supervised::start(program(&netns, &log, &["1000"])).unwrap();
        let first = process.pid().unwrap();
        process.kill().unwrap();
        let patience = Duration::from_secs(5);
        wait_for("restart", patience, || Ok(process.pid().is_some_and(|p| p != first))).unwrap();
        assert_eq!(process.starts(), 2);
        process.stop().unwrap();
        assert_eq!((process.pid(), process.starts()), (None, 2));
        drop(process);
        let broken = Supervised::start(program(&netns, &log, &["not-a-number"])).unwrap();
        wait_for("broken", patience, || Ok(broken.broken().is_some())).unwrap();
        assert!(broken.check().is_err());
        std::fs::remove_file(&log).unwrap();
        netns.destroy().unwrap();
    }
}
