//! A program of the cache, running until it is dropped.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;

/// A running program. Its output is in `NAME.log` of its directory.
#[derive(Debug)]
pub(crate) struct Process {
    name: &'static str,
    log: PathBuf,
    ended: mpsc::Receiver<String>,
    end: Option<mpsc::Sender<()>>,
    keeper: Option<JoinHandle<()>>,
}

impl Process {
    /// Starts a program of `$BOWLINE_KUBE_CACHE/bin`.
    pub(crate) fn start(name: &'static str, args: &[String], dir: &Path) -> Self {
        let program = cache().join("bin").join(name);
        assert!(
            program.exists(),
            "{} is missing; run deploy/e2e/build.sh, which builds it, or set BOWLINE_KUBE_CACHE",
            program.display()
        );
        let log = dir.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log).expect("open a log");
        // The kernel kills the program when the thread that started it ends, be it by the death of
        // the whole process: hence a thread that does nothing else.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program).args(args).current_dir(dir);
        command.stdin(Stdio::null()).stdout(file.try_clone().expect("a descriptor")).stderr(file);
        let (end, end_asked) = mpsc::channel();
        let (tell, ended) = mpsc::channel();
        let keeper = std::thread::spawn(move || {
            let child = command.spawn().expect("start setpriv, of Debian's util-linux");
            keep(child, &end_asked, &tell);
        });
        Self { name, log, ended, end: Some(end), keeper: Some(keeper) }
    }

    /// Why the program has ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<String> {
        let status = self.ended.try_recv().ok()?;
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(20)..].join("\n");
        Some(format!("{} has ended with {status}:\n{tail}", self.name))
    }
}

/// Waits until the program ends or shall end.
fn keep(mut child: Child, end_asked: &mpsc::Receiver<()>, tell: &mpsc::Sender<String>) {
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            let _ = tell.send(status.to_string());
            return;
        }
        let waited = end_asked.recv_timeout(std::time::Duration::from_millis(100));
        if !matches!(waited, Err(mpsc::RecvTimeoutError::Timeout)) {
            let _ = child.kill();
            let _ = child.wait();
            return;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end = None;
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
        if std::thread::panicking()
            && let Ok(log) = fs::read_to_string(&self.log)
        {
            let errors: Vec<_> = log.lines().filter(|l| l.starts_with('E')).take(10).collect();
            let _ = writeln!(std::io::stderr(), "{}: {}", self.name, errors.join("\n"));
        }
    }
}

/// Where `deploy/e2e/build.sh` puts what it builds.
fn cache() -> PathBuf {
    if let Some(dir) = std::env::var_os("BOWLINE_KUBE_CACHE") {
        return dir.into();
    }
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache");
    base.unwrap_or_else(home).join("bowline-kube")
}
