//! Memory shared with a peer: checked, mapped once, unmapped when its last user is gone.
//!
//! [`Region`] is the only place where pointers into foreign memory come from. It never becomes a
//! `&[u8]`: the peer writes to it at any moment. [`Regions`] is what a connection's queues hold
//! together; dropping the last of them unmaps.

pub(crate) mod account;
pub(crate) mod health;
mod lent;
pub(crate) mod shared;

use crate::error::RegionError;
use crate::sys::holes;
use crate::sys::sigbus::{self, Listed};
use account::MemoryAccount;
use health::Health;
pub(crate) use lent::Lent;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};
use nix::sys::stat::{SFlag, fstat};
use nix::sys::statfs::{HUGETLBFS_MAGIC, TMPFS_MAGIC, fstatfs};
use nix::time::{ClockId, clock_gettime};
use shared::Shared;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
#[cfg(feature = "capi")]
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Most regions that a connection can have; a descriptor's region number is checked against this
/// alone, places without a region have size zero.
pub const MAX_REGIONS: usize = 16;

const SMALL_PAGE_BYTES: usize = 4096;

/// What a peer's memory file must fulfil.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RegionRules {
    pub require_sealed: bool,
    pub max_page_bytes: u64,
    pub max_mapped_bytes: u64,
}

/// One mapped memory file.
#[derive(Debug)]
pub(crate) struct Region {
    base: NonNull<u8>,
    mapped_bytes: usize,
    size: u64,
    page_bytes: usize,
    /// Dropped before the mapping goes, see `Drop`.
    listed: Option<Listed>,
    source: Source,
    /// Kept alive for the entry in the SIGBUS table.
    _health: Arc<Health>,
}

/// Whose the mapping is.
#[derive(Debug)]
#[cfg_attr(not(feature = "capi"), expect(dead_code, reason = "only C programs ask for files"))]
enum Source {
    /// Ours to remove.
    Ours,
    /// Ours, and the file was kept for an application that asks for it.
    Kept(OwnedFd),
    /// An application's.
    Lent(Lent),
}

// SAFETY: a Region is an address range; whoever touches it uses atomics or raw copies.
unsafe impl Send for Region {}
// SAFETY: as above; the methods only compute addresses.
unsafe impl Sync for Region {}

impl Region {
    /// Checks a peer's memory file and says how large its pages are.
    pub(crate) fn check_peer(
        file: &OwnedFd,
        claimed_bytes: u64,
        mapped_before_bytes: u64,
        rules: &RegionRules,
    ) -> Result<u64, RegionError> {
        // Seals first: every file system that could stall us in fstat fails here.
        let seals = seal(file)?;
        if rules.require_sealed && !seals.contains(SealFlag::F_SEAL_SHRINK) {
            return Err(RegionError::Unsealed(seals.bits()));
        }
        let stat = fstat(file).map_err(system("fstat"))?;
        if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
            return Err(RegionError::NotRegular);
        }
        let page_bytes = page_bytes(file)?;
        if page_bytes > rules.max_page_bytes {
            return Err(RegionError::PageSize { page_bytes, max_bytes: rules.max_page_bytes });
        }
        let file_bytes = u64::try_from(stat.st_size).unwrap_or(0);
        if claimed_bytes == 0 || claimed_bytes > file_bytes {
            return Err(RegionError::Size { claimed_bytes, file_bytes });
        }
        let total_bytes = claimed_bytes
            .checked_next_multiple_of(page_bytes)
            .and_then(|b| b.checked_add(mapped_before_bytes))
            .unwrap_or(u64::MAX);
        if total_bytes > rules.max_mapped_bytes {
            return Err(RegionError::TooLarge { total_bytes, max_bytes: rules.max_mapped_bytes });
        }
        Ok(page_bytes)
    }

    /// Maps a file of known size and page size, readable and writable, shared, not populated.
    pub(crate) fn map(
        file: &OwnedFd,
        size: u64,
        page_bytes: u64,
        health: &Arc<Health>,
    ) -> Result<Self, RegionError> {
        let page = usize::try_from(page_bytes).unwrap_or(4096);
        let mapped = usize::try_from(size).ok().and_then(|s| s.checked_next_multiple_of(page));
        let length = mapped
            .and_then(NonZeroUsize::new)
            .ok_or(RegionError::System { call: "mmap", errno: Errno::ENOMEM })?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, file, 0) }
            .map_err(system("mmap"))?;
        let start = base.as_ptr() as usize;
        let listed = Listed::new(start, start + length.get(), page, Arc::as_ptr(health));
        let none_free = listed.is_none();
        let region = Self {
            base: base.cast(),
            mapped_bytes: length.get(),
            size,
            page_bytes: page,
            listed,
            source: Source::Ours,
            _health: Arc::clone(health),
        };
        if none_free {
            return Err(RegionError::TableFull(sigbus::CAPACITY));
        }
        for advice in [MmapAdvise::MADV_DONTDUMP, MmapAdvise::MADV_DONTFORK] {
            // SAFETY: the range was mapped just now; neither advice changes its contents.
            unsafe { madvise(base, length.get(), advice) }.map_err(system("madvise"))?;
        }
        Ok(region)
    }

    /// Memory that an application has mapped; it gets it back with the last queue.
    pub(crate) fn lent(
        lent: Lent,
        size: u64,
        page_bytes: u64,
        health: &Arc<Health>,
    ) -> Result<Self, RegionError> {
        let page_bytes = usize::try_from(page_bytes).unwrap_or(4096);
        let bytes = usize::try_from(size).unwrap_or(usize::MAX);
        let start = lent.base.as_ptr() as usize;
        let end = start.saturating_add(bytes).next_multiple_of(page_bytes);
        let listed = Listed::new(start, end, page_bytes, Arc::as_ptr(health));
        if listed.is_none() {
            return Err(RegionError::TableFull(sigbus::CAPACITY));
        }
        Ok(Self {
            base: lent.base,
            mapped_bytes: bytes,
            size,
            page_bytes,
            listed,
            source: Source::Lent(lent),
            _health: Arc::clone(health),
        })
    }

    /// Keeps the file that was mapped open, for an application that asks for it.
    pub(crate) fn keep(mut self, file: OwnedFd) -> Self {
        if matches!(self.source, Source::Ours) {
            self.source = Source::Kept(file);
        }
        self
    }

    /// The file, where it was kept.
    #[cfg(feature = "capi")]
    pub(crate) fn fd(&self) -> RawFd {
        match &self.source {
            Source::Ours => -1,
            Source::Kept(file) => file.as_raw_fd(),
            Source::Lent(lent) => lent.fd,
        }
    }

    /// Address of the first byte.
    pub(crate) fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Bytes that descriptors may name.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Whether it is an application's own.
    #[cfg(feature = "capi")]
    pub(crate) fn is_external(&self) -> bool {
        matches!(self.source, Source::Lent(_))
    }

    /// Bytes of address space.
    pub(crate) fn mapped_bytes(&self) -> usize {
        self.mapped_bytes
    }

    /// Has the kernel bring all pages in now, on the thread that shakes hands: a worker would zero
    /// a huge one for a tenth of a millisecond at its first touch.
    fn populate(&self) -> Result<(), RegionError> {
        let advice = MmapAdvise::MADV_POPULATE_WRITE;
        // SAFETY: the range is mapped while self lives; the advice leaves its contents alone.
        unsafe { madvise(self.base.cast(), self.mapped_bytes, advice) }
            .map_err(system("madvise(MADV_POPULATE_WRITE)"))
    }

    /// Has pages that are taken out from now on noticed at the next touch.
    fn watch(&self) -> Result<(), RegionError> {
        holes::watch(self.base.as_ptr() as usize, self.mapped_bytes).map_err(RegionError::Unwatched)
    }

    /// Address of `bytes` bytes at `offset`, if the region holds them.
    pub(crate) fn at(&self, offset: u64, bytes: u64) -> Option<NonNull<u8>> {
        let end = offset.checked_add(bytes)?;
        if end > self.size {
            return None;
        }
        // SAFETY: offset ≤ size ≤ mapped bytes of this mapping.
        Some(unsafe { self.base.add(usize::try_from(offset).ok()?) })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        self.listed = None;
        if matches!(self.source, Source::Lent(_)) {
            return;
        }
        // SAFETY: mapped by us with this length; the last holder of the region is gone, so nobody
        // has pointers into it (queues and holds keep the Arc). Failure would only leak.
        let _ = unsafe { munmap(self.base.cast(), self.mapped_bytes) };
    }
}

/// Makes sure that no worker waits for a peer's pages. Where they are sealed against holes, small ones
/// are left alone (each can be touched first but once, in less time than its bytes take to copy), and
/// huge ones are brought in now. Where they are not, all are brought in and watched; but a process that
/// has no handler for SIGBUS trusts its peers.
///
/// # Errors
/// The number of a region, and what is wrong with it.
pub(crate) fn bring_in(
    regions: &[Region],
    sealed: bool,
    account: &MemoryAccount,
) -> Result<(), (usize, RegionError)> {
    if !sealed && !sigbus::installed() {
        return Ok(());
    }
    let waited_for = |r: &Region| !sealed || r.page_bytes > SMALL_PAGE_BYTES;
    let Some(first) = regions.iter().position(waited_for) else { return Ok(()) };
    if let Some(wait) = account.wait(Instant::now()) {
        return Err((first, RegionError::TooOften(wait)));
    }
    for (at, region) in regions.iter().enumerate().filter(|(_, region)| waited_for(region)) {
        let started = thread_time();
        let populated = region.populate();
        account.charge(thread_time().saturating_sub(started), Instant::now());
        let watch = |()| if sealed { Ok(()) } else { region.watch() };
        populated.and_then(watch).map_err(|error| (at, error))?;
    }
    Ok(())
}

/// Base and size of a region, for the queues' private tables.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View {
    pub base: *mut u8,
    pub size: u64,
}

/// All regions of a connection.
#[derive(Debug)]
pub(crate) struct Regions {
    shared: Shared,
    pub health: Arc<Health>,
}

impl Regions {
    pub(crate) fn new(shared: Shared, health: Arc<Health>) -> Arc<Self> {
        Arc::new(Self { shared, health })
    }

    pub(crate) fn views(&self) -> [View; MAX_REGIONS] {
        let mut views = [View { base: std::ptr::null_mut(), size: 0 }; MAX_REGIONS];
        for (view, region) in views.iter_mut().zip(&self.shared.regions) {
            *view = View { base: region.base.as_ptr(), size: region.size };
        }
        views
    }

    /// Whether `bytes` bytes at `pointer` lie in one of the regions.
    #[inline]
    pub(crate) fn contains(&self, pointer: *const u8, bytes: usize) -> bool {
        let start = pointer as usize;
        self.shared.regions.iter().any(|r| {
            let base = r.base.as_ptr() as usize;
            let size = usize::try_from(r.size).unwrap_or(0);
            start >= base && start - base <= size && bytes <= size - (start - base)
        })
    }

    #[cfg(feature = "capi")]
    pub(crate) fn all(&self) -> &[Region] {
        &self.shared.regions
    }

    pub(crate) fn mapped_bytes(&self) -> usize {
        self.shared.regions.iter().map(Region::mapped_bytes).sum()
    }
}

/// Seals that a file has, after we added ours where the peer left that open.
fn seal(file: &OwnedFd) -> Result<SealFlag, RegionError> {
    let get = || fcntl(file, FcntlArg::F_GET_SEALS).map(SealFlag::from_bits_retain);
    let seals = get().map_err(RegionError::NotMemory)?;
    if seals.contains(SealFlag::F_SEAL_SHRINK) || seals.contains(SealFlag::F_SEAL_SEAL) {
        return Ok(seals);
    }
    let wanted = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
    // A refusal is not an error yet: the rules decide whether unsealed memory will do.
    let _ = fcntl(file, FcntlArg::F_ADD_SEALS(wanted));
    get().map_err(RegionError::NotMemory)
}

/// Forbids to take pages out of a memory file, by its owner as well: whoever touches a page while it is
/// taken out sleeps until its owner is done, and finds a fresh one that has to be zeroed. Mappings that
/// exist stay writable, new ones could not be: call it when all are made.
pub(crate) fn seal_against_holes(file: &OwnedFd) -> Result<(), RegionError> {
    let added = fcntl(file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_FUTURE_WRITE));
    if added.is_ok() {
        return Ok(());
    }
    let seals = fcntl(file, FcntlArg::F_GET_SEALS).map_err(RegionError::NotMemory)?;
    Err(RegionError::Holes(seals))
}

/// How large a memory file's pages are.
pub(crate) fn page_bytes(file: &OwnedFd) -> Result<u64, RegionError> {
    let fs = fstatfs(file.as_fd()).map_err(system("fstatfs"))?;
    match fs.filesystem_type() {
        HUGETLBFS_MAGIC => Ok(u64::try_from(fs.block_size()).unwrap_or(u64::MAX)),
        TMPFS_MAGIC => Ok(4096),
        other => Err(RegionError::FileSystem(u64::try_from(other.0).unwrap_or(0))),
    }
}

/// Processor time of this thread: what others take of its core is nobody's debt.
fn thread_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

fn system(call: &'static str) -> impl Fn(Errno) -> RegionError {
    move |errno| RegionError::System { call, errno }
}
