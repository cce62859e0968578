//! The environment abstraction layer: memory and drivers, once per process.

use std::ffi::CString;
use std::marker::PhantomData;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

use crate::error::{Error, reason};

/// Proof that DPDK runs in this process. Copy it wherever devices or pools are made.
#[derive(Debug, Clone, Copy)]
pub struct Eal(());

/// Where DPDK's memory came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// Hugepages were free.
    Hugepages,
    /// Ordinary pages: slower, but works everywhere.
    OrdinaryPages,
}

/// How to start DPDK.
#[derive(Debug, Clone)]
pub struct EalOptions {
    /// Memory for pools and rings.
    pub memory_mib: u32,
    /// PCI devices that this process may take. Empty: the PCI bus is not even looked at.
    pub pci: Vec<String>,
    /// Leave hugepages alone even if some are free.
    pub ordinary_pages: bool,
    /// Further arguments, passed on as they are.
    pub extra: Vec<String>,
}

impl Default for EalOptions {
    fn default() -> Self {
        Self { memory_mib: 128, pci: Vec::new(), ordinary_pages: false, extra: Vec::new() }
    }
}

static STARTED: Mutex<Option<Memory>> = Mutex::new(None);

/// Held while a device comes or goes: DPDK keeps both in lists that it does not lock, and the last
/// queue of one device may be dropped on another thread while a second one is probed.
pub(crate) fn devices_change() -> MutexGuard<'static, ()> {
    static CHANGING: Mutex<()> = Mutex::new(());
    CHANGING.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Eal {
    /// Starts DPDK in this process, with hugepages if enough are free.
    ///
    /// Nothing is shared with other processes (no files under /run, no hugetlbfs files), so that any number of instances run
    /// on one machine, and the caller's signal handlers and CPU affinity stay as they are.
    ///
    /// # Errors
    /// [`Error::AlreadyInitialised`] the second time; [`Error::Eal`] when DPDK refuses. After a
    /// refusal the process cannot try again: DPDK does not support that.
    pub fn init(options: &EalOptions) -> Result<Self, Error> {
        let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
        if started.is_some() {
            return Err(Error::AlreadyInitialised);
        }
        let memory = match options.ordinary_pages {
            true => Memory::OrdinaryPages,
            false => pick_memory(options.memory_mib),
        };
        let arguments = arguments(options, memory);
        // rte_eal_init binds its caller to one CPU; a thread of its own keeps ours where it is.
        let outcome = std::thread::scope(|scope| {
            std::thread::Builder::new()
                .name("dpdk-init".to_owned())
                .spawn_scoped(scope, || call_init(&arguments))
                .map_err(|e| Error::Eal {
                    arguments: String::new(),
                    reason: format!("no thread: {e}"),
                })?
                .join()
                .expect("call_init does not panic")
        });
        outcome?;
        // DPDK makes the folder although nothing is put into it.
        let _ = std::fs::remove_dir(format!("/var/run/dpdk/{}", file_prefix()));
        *started = Some(memory);
        Ok(Self(()))
    }

    /// The token, if DPDK was started before.
    pub fn get() -> Option<Self> {
        Self::memory().map(|_| Self(()))
    }

    /// Which memory DPDK got; `None` before it was started.
    pub fn memory() -> Option<Memory> {
        *STARTED.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the calling thread DPDK's per-thread buffer caches until the guard is dropped.
    ///
    /// Not needed for correctness: without it every buffer goes through the pool's shared ring.
    /// `None` when DPDK has no slot left.
    pub fn register_thread(self) -> Option<ThreadRegistration> {
        // SAFETY: the EAL is initialised (self); registering twice is refused by DPDK, not harmful.
        let ret = unsafe { dpdk_sys::rte_thread_register() };
        (ret == 0).then_some(ThreadRegistration(PhantomData))
    }
}

/// The calling thread's registration with DPDK; stays on that thread.
#[derive(Debug)]
pub struct ThreadRegistration(PhantomData<*const ()>);

impl Drop for ThreadRegistration {
    fn drop(&mut self) {
        // SAFETY: not Send, so this is the thread that registered.
        unsafe { dpdk_sys::rte_thread_unregister() }
    }
}

fn pick_memory(memory_mib: u32) -> Memory {
    let wanted_bytes = u64::from(memory_mib) << 20;
    let sizes = std::fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
    let enough = sizes.into_iter().any(|entry| {
        let name = entry.file_name();
        let page_kib = name
            .to_str()
            .and_then(|n| n.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<u64>().ok());
        let free = std::fs::read_to_string(entry.path().join("free_hugepages"))
            .ok()
            .and_then(|text| text.trim().parse::<u64>().ok());
        page_kib.zip(free).is_some_and(|(kib, pages)| kib * 1024 * pages >= wanted_bytes)
    });
    if enough { Memory::Hugepages } else { Memory::OrdinaryPages }
}

fn arguments(options: &EalOptions, memory: Memory) -> Vec<String> {
    let mut list = vec![
        "bowline".to_owned(),
        "--no-telemetry".to_owned(),
        "--log-level=error".to_owned(),
        format!("--file-prefix={}", file_prefix()),
        "--lcores".to_owned(),
        format!("0@{}", first_allowed_cpu()),
        "-m".to_owned(),
        options.memory_mib.to_string(),
    ];
    // Both keep everything in this process; DPDK 22.11 refuses --in-memory without hugepages.
    list.extend(match memory {
        Memory::Hugepages => vec!["--in-memory".to_owned()],
        Memory::OrdinaryPages => vec!["--no-huge".to_owned(), "--no-shconf".to_owned()],
    });
    if options.pci.is_empty() {
        // Without a bus there is no device that wants physical addresses.
        list.extend(["--no-pci".to_owned(), "--iova-mode=va".to_owned()]);
    }
    for device in &options.pci {
        list.extend(["-a".to_owned(), device.clone()]);
    }
    list.extend(options.extra.iter().cloned());
    list
}

fn file_prefix() -> String {
    format!("bowline-{}", std::process::id())
}

/// DPDK refuses CPUs outside of the process's cgroup or affinity.
fn first_allowed_cpu() -> usize {
    sched_getaffinity(Pid::from_raw(0))
        .ok()
        .and_then(|set| (0..CpuSet::count()).find(|&cpu| set.is_set(cpu).unwrap_or(false)))
        .unwrap_or(0)
}

fn call_init(arguments: &[String]) -> Result<(), Error> {
    let line = arguments.join(" ");
    // DPDK keeps pointers into its arguments for as long as the process lives.
    let mut pointers = Vec::with_capacity(arguments.len());
    for argument in arguments {
        let text = CString::new(argument.as_str()).map_err(|_| Error::Nul(argument.clone()))?;
        pointers.push(text.into_raw());
    }
    let pointers = pointers.leak();
    let count = i32::try_from(pointers.len()).expect("a handful of arguments");
    // SAFETY: `pointers` are NUL-terminated strings that are never freed; the mutex in `init`
    // keeps this to one call at a time.
    let ret = unsafe { dpdk_sys::rte_eal_init(count, pointers.as_mut_ptr()) };
    if ret < 0 {
        return Err(Error::Eal { arguments: line, reason: reason(ret) });
    }
    Ok(())
}
