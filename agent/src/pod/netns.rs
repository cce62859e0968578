//! Running code inside a pod's network namespace.
//!
//! `setns` changes one thread. The closure runs on a thread of its own that ends afterwards, so
//! that no thread of the runtime is ever left in a pod's namespace.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};

use super::PodError;

/// The network namespace of this process.
pub(crate) const OWN_NETNS: &str = "/proc/self/ns/net";

/// A network namespace, held open: it cannot be replaced by another under the same path.
#[derive(Debug)]
pub struct Netns {
    file: File,
    path: PathBuf,
    inode: u64,
}

impl Netns {
    /// Opens the namespace at `path` (`/proc/PID/ns/net`, or a bind mount of one).
    pub fn open(path: &Path) -> Result<Self, PodError> {
        let doing = || format!("open the network namespace {}", path.display());
        let file = File::open(path).map_err(|e| PodError::new(doing(), e))?;
        let inode = file.metadata().map_err(|e| PodError::new(doing(), e))?.ino();
        Ok(Self { file, path: path.to_owned(), inode })
    }

    /// The namespace's identity: paths are reused, inodes of living namespaces are not.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Is it the namespace of this process, that is the node's?
    pub fn is_own(&self) -> Result<bool, PodError> {
        Ok(Self::open(Path::new(OWN_NETNS))?.inode == self.inode)
    }

    /// For requests that name a namespace by descriptor.
    pub(super) fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Runs `work` inside the namespace and returns what it returns.
    pub fn run<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, PodError> + Send,
    ) -> Result<T, PodError> {
        let enter = || format!("enter the network namespace {}", self.path.display());
        std::thread::scope(|scope| {
            let spawned =
                std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, move || {
                    setns(&self.file, CloneFlags::CLONE_NEWNET)
                        .map_err(|e| PodError::new(enter(), io::Error::from(e)))?;
                    work()
                });
            let thread = spawned.map_err(|e| PodError::new("start a thread".into(), e))?;
            thread.join().unwrap_or_else(|_| {
                Err(PodError::new(
                    format!("work in {}", self.path.display()),
                    io::Error::other("the thread panicked; see the log"),
                ))
            })
        })
    }
}
