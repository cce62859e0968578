//! Network namespaces: entering them on a thread of their own, and ones that outlive us.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

/// Where iproute2 keeps named namespaces.
const NAMED: &str = "/run/netns";

/// The calling thread's network namespace.
///
/// # Errors
/// Without /proc.
pub fn current() -> io::Result<OwnedFd> {
    Ok(File::open("/proc/thread-self/ns/net")?.into())
}

/// A number for the calling thread's network namespace that is never used again until the next
/// boot (its inode would be). 0 on kernels before 5.14.
pub fn cookie() -> u64 {
    use std::os::fd::AsRawFd;
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let Ok(socket) = super::ethtool::open() else { return 0 };
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `cookie`.
    let ret = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if ret == 0 { cookie } else { 0 }
}

/// Runs `work` on a new thread inside `netns` and waits for it.
///
/// # Errors
/// Without the right to enter the namespace.
///
/// # Panics
/// As `work` does.
pub fn run_in<T: Send>(netns: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    on_thread(|| {
        setns(netns, CloneFlags::CLONE_NEWNET)?;
        Ok(work())
    })
}

/// Makes a namespace that stays until [`remove`], and returns it. `EEXIST` when the name is taken.
///
/// # Errors
/// Without the right to mount, or a taken name.
pub fn create(name: &str) -> io::Result<OwnedFd> {
    on_thread(|| {
        enter_first_mounts()?;
        share_folder()?;
        let path = path_of(name);
        fs::OpenOptions::new().write(true).create_new(true).open(&path)?;
        unshare(CloneFlags::CLONE_NEWNET)?;
        let none: Option<&str> = None;
        let bound = mount(Some("/proc/thread-self/ns/net"), &path, none, MsFlags::MS_BIND, none);
        if let Err(error) = bound {
            let _ = fs::remove_file(&path);
            return Err(error.into());
        }
        Ok(File::open(&path)?.into())
    })
}

/// Opens a named namespace. `ENOENT` when there is none; a file of that name which is no namespace
/// (left by a crash between making the file and mounting on it) is removed and counts as none.
///
/// # Errors
/// As above, or without the right to look.
pub fn open(name: &str) -> io::Result<OwnedFd> {
    on_thread(|| {
        enter_first_mounts()?;
        let path = path_of(name);
        let file = File::open(&path)?;
        if is_namespace(&file)? {
            return Ok(file.into());
        }
        fs::remove_file(&path)?;
        Err(io::ErrorKind::NotFound.into())
    })
}

/// Removes a name; the namespace goes when nobody uses it. Success when there is none.
///
/// # Errors
/// Without the right to unmount.
pub fn remove(name: &str) -> io::Result<()> {
    on_thread(|| {
        enter_first_mounts()?;
        let path = path_of(name);
        match umount2(&path, MntFlags::MNT_DETACH) {
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
            Err(error) => return Err(error.into()),
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    })
}

fn path_of(name: &str) -> PathBuf {
    Path::new(NAMED).join(name)
}

fn is_namespace(file: &File) -> io::Result<bool> {
    const NSFS_MAGIC: libc::__fsword_t = 0x6e73_6673;
    let kind = nix::sys::statfs::fstatfs(file.as_fd())?.filesystem_type();
    Ok(kind.0 == NSFS_MAGIC)
}

fn on_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread =
            std::thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Goes to the machine's view of the file system, unless this thread has it.
///
/// `ip netns exec` (and systemd's PrivateMounts) give a process mounts of its own, which vanish
/// with it; a namespace that is to survive us must not be held by those. The machine's view is the
/// first process's, or, where that one is out of bounds, the oldest ancestor's that is not.
fn enter_first_mounts() -> io::Result<()> {
    let Some(first) = first_mounts() else { return Ok(()) };
    let own = File::open("/proc/thread-self/ns/mnt")?;
    let (a, b) = (first.metadata()?, own.metadata()?);
    if (a.dev(), a.ino()) == (b.dev(), b.ino()) {
        return Ok(());
    }
    // A thread may only change its mounts alone when it shares no working directory.
    unshare(CloneFlags::CLONE_FS)?;
    setns(first, CloneFlags::CLONE_NEWNS)?;
    Ok(())
}

fn first_mounts() -> Option<File> {
    let mut ancestors = vec![std::process::id()];
    while let Some(parent) = ancestors.last().copied().and_then(parent_of) {
        ancestors.push(parent);
    }
    ancestors.iter().rev().find_map(|pid| File::open(format!("/proc/{pid}/ns/mnt")).ok())
}

fn parent_of(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    line.trim().parse().ok().filter(|&parent| parent != 0)
}

/// As iproute2 does it: the folder is a shared mount, so that names appear in all mount namespaces.
fn share_folder() -> io::Result<()> {
    let none: Option<&str> = None;
    fs::create_dir_all(NAMED)?;
    let share = || mount(none, NAMED, none, MsFlags::MS_SHARED | MsFlags::MS_REC, none);
    if share().is_ok() {
        return Ok(());
    }
    mount(Some(NAMED), NAMED, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
    share()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_outlives_mounts_that_vanish_with_their_process() {
        let name = format!("bowline-test-{:x}-{}", cookie(), std::process::id());
        on_thread(|| {
            // As `ip netns exec` does it.
            unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)?;
            let none: Option<&str> = None;
            mount(none, "/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none)?;
            drop(create(&name)?);
            Ok(())
        })
        .expect("made");
        let again = create(&name).expect_err("the name is taken");
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        let opened = open(&name).expect("it is still there");
        let inside = run_in(opened.as_fd(), cookie).expect("entered");
        assert_ne!(inside, cookie());
        remove(&name).expect("removed");
        remove(&name).expect("nothing to remove is fine");
        assert_eq!(open(&name).expect_err("gone").kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_name_without_a_namespace_is_cleared_away() {
        let name = format!("bowline-empty-{:x}-{}", cookie(), std::process::id());
        drop(create(&name).expect("made"));
        umount2(&path_of(&name), MntFlags::MNT_DETACH).expect("unmounted, as if never mounted");
        assert_eq!(open(&name).expect_err("a file").kind(), io::ErrorKind::NotFound);
        drop(create(&name).expect("the name is free"));
        remove(&name).expect("removed");
    }
}
