//! What the kernel counts of a worker's thread.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A worker that never sleeps by itself (`--poll busy`), watched from outside.
pub struct Watch {
    task: PathBuf,
}

/// What it went through between two looks.
#[derive(Debug, Clone, Copy, Default)]
pub struct Strain {
    /// Pages that were not there when it touched them.
    pub faults: u64,
    /// Times that it gave its core up: in a worker that spins, only a fault or a lock of the kernel
    /// makes it.
    pub sleeps: u64,
    /// How long it lay asleep.
    pub asleep: Duration,
    /// How long others had its core, which is this machine's doing.
    pub displaced: Duration,
}

/// Sums since the thread's start.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    at: Instant,
    faults: u64,
    sleeps: u64,
    ran: Duration,
    displaced: Duration,
}

impl Watch {
    /// Finds the process's first worker.
    pub fn worker(pid: i32) -> Self {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("a process");
        let named = |task: &Path| fs::read_to_string(task.join("comm")).unwrap_or_default();
        let mut tasks = tasks.flatten().map(|entry| entry.path());
        let task = tasks.find(|task| named(task).starts_with("worker")).expect("a worker");
        Self { task }
    }

    /// The sums now.
    pub fn look(&self) -> Look {
        let read = |file: &str| fs::read_to_string(self.task.join(file)).expect("a living thread");
        let (stat, status, times) = (read("stat"), read("status"), read("schedstat"));
        // Behind the name, which may hold anything: state is field 3, minor faults field 10 (proc(5)).
        let fields = stat.rsplit_once(") ").expect("a name").1;
        let faults = number(fields.split(' ').nth(10 - 3));
        let sleeps = status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"));
        let mut times = times.split_whitespace().map(|n| Duration::from_nanos(number(Some(n))));
        let mut next = || times.next().expect("two times");
        let (ran, displaced) = (next(), next());
        Look { at: Instant::now(), faults, sleeps: number(sleeps), ran, displaced }
    }
}

impl Look {
    /// What has happened since an earlier look.
    pub fn since(&self, before: &Look) -> Strain {
        let (ran, displaced) = (self.ran - before.ran, self.displaced - before.displaced);
        Strain {
            faults: self.faults - before.faults,
            sleeps: self.sleeps - before.sleeps,
            asleep: (self.at - before.at).saturating_sub(ran + displaced),
            displaced,
        }
    }
}

impl std::ops::AddAssign for Strain {
    fn add_assign(&mut self, other: Self) {
        self.faults += other.faults;
        self.sleeps += other.sleeps;
        self.asleep += other.asleep;
        self.displaced += other.displaced;
    }
}

fn number(text: Option<&str>) -> u64 {
    text.and_then(|text| text.trim().parse().ok()).expect("a number")
}
