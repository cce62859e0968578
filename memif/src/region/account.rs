//! What the memory of one interface's clients has cost: over all connections, or each new one would begin
//! with a clean sheet.

use crate::error::RegionError;
use crate::sys::files;
use nix::sys::stat::fstat;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What bringing one peer's memory in may cost: this part of the time …
const SHARE: u32 = 20;
/// … and so much at once, before the next has to wait.
const CREDIT: Duration = Duration::from_millis(50);
/// A file counts as so many bytes at least, so that a peer keeps few of them.
const LEAST_BYTES: u64 = 2 << 20;

/// The time that went into bringing clients' memory in, and the files of theirs that still exist. Clones are
/// one account. A server keeps one for each interface ([`Offer::memory`](crate::Offer::memory)): a client
/// that comes again and again with memory that nobody has touched would have us zero pages all day, and if
/// it kept the files, would have us pay for all that memory.
#[derive(Debug, Clone, Default)]
pub struct MemoryAccount(Arc<Mutex<Sheet>>);

impl PartialEq for MemoryAccount {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for MemoryAccount {}

#[derive(Debug, Default)]
struct Sheet {
    debt: Debt,
    files: Vec<Kept>,
}

/// Time owed at an instant; it is paid back with time.
#[derive(Debug, Default)]
struct Debt {
    owed: Duration,
    at: Option<Instant>,
}

/// A memory file that somebody may still have open.
#[derive(Debug)]
struct Kept {
    /// Device and number: of no other file as long as it exists.
    identity: (u64, u64),
    watched: files::Watched,
    bytes: u64,
}

impl Debt {
    fn pay(&mut self, now: Instant) {
        let last = self.at.replace(now).unwrap_or(now);
        self.owed = self.owed.saturating_sub(now.saturating_duration_since(last) / SHARE);
    }
}

impl Sheet {
    /// Bytes of all files but one.
    fn bytes_beside(&self, identity: (u64, u64)) -> u64 {
        self.files.iter().filter(|kept| kept.identity != identity).map(|kept| kept.bytes).sum()
    }

    fn forget_gone(&mut self) -> Result<(), RegionError> {
        let there = files::existing().map_err(RegionError::Unaccounted)?;
        self.files.retain(|kept| there.contains(&kept.watched));
        Ok(())
    }
}

impl MemoryAccount {
    fn sheet(&self) -> MutexGuard<'_, Sheet> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long the peer has to wait until its memory is brought in again, if it has to.
    pub(crate) fn wait(&self, now: Instant) -> Option<Duration> {
        let debt = &mut self.sheet().debt;
        debt.pay(now);
        debt.owed.checked_sub(CREDIT).filter(|over| !over.is_zero()).map(|over| over * SHARE)
    }

    /// Bringing it in took so long.
    pub(crate) fn charge(&self, took: Duration, now: Instant) {
        let debt = &mut self.sheet().debt;
        debt.pay(now);
        debt.owed = debt.owed.saturating_add(took);
    }

    /// Takes note of a file of which so many bytes are about to be mapped. A page that we touch first is
    /// charged to our control group until the file is gone, however long ago its connection ended. At most
    /// twice `connection_bytes` may exist: of the connection to be, and of the last, which may be on its way out.
    pub(crate) fn enter(
        &self,
        file: &OwnedFd,
        bytes: u64,
        connection_bytes: u64,
    ) -> Result<(), RegionError> {
        let max_bytes = connection_bytes.saturating_mul(2);
        let stat = fstat(file).map_err(super::system("fstat"))?;
        let identity = (stat.st_dev, stat.st_ino);
        let bytes = bytes.max(LEAST_BYTES);
        let mut sheet = self.sheet();
        let known = |kept: &Kept| kept.identity == identity;
        // One that is known may be gone, and its number another's.
        if sheet.files.iter().any(known) || sheet.bytes_beside(identity) + bytes > max_bytes {
            sheet.forget_gone()?;
        }
        let total_bytes = sheet.bytes_beside(identity) + bytes;
        if total_bytes > max_bytes {
            return Err(RegionError::Kept { total_bytes, max_bytes });
        }
        if let Some(kept) = sheet.files.iter_mut().find(|kept| known(kept)) {
            kept.bytes = kept.bytes.max(bytes);
            return Ok(());
        }
        let watched = files::watch(file).map_err(RegionError::Unaccounted)?;
        sheet.files.push(Kept { identity, watched, bytes });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::memfd::{MFdFlags, memfd_create};

    const MS: Duration = Duration::from_millis(1);

    /// How much time goes into a peer's memory that takes so long, if it comes that often.
    fn spent(took: Duration, every: Duration, over: Duration) -> Duration {
        let account = MemoryAccount::default();
        let (start, mut spent) = (Instant::now(), Duration::ZERO);
        let mut now = start;
        while now < start + over {
            if account.wait(now).is_none() {
                account.charge(took, now);
                spent += took;
            }
            now += every;
        }
        spent
    }

    #[test]
    fn whoever_brings_fresh_memory_all_the_time_waits() {
        let minute = Duration::from_secs(60);
        for took in [4 * MS, 30 * MS, 300 * MS] {
            let most = minute / SHARE + CREDIT + took;
            let spent = spent(took, 10 * MS, minute);
            assert!((minute / SHARE..=most).contains(&spent), "{took:?} each: {spent:?}");
        }
    }

    #[test]
    fn an_honest_pod_that_restarts_does_not_wait() {
        assert_eq!(spent(5 * MS, 200 * MS, 100 * 200 * MS), 100 * 5 * MS);
        let account = MemoryAccount::default();
        let now = Instant::now();
        account.charge(70 * MS, now);
        assert_eq!(account.wait(now), Some(400 * MS), "with the time that is left");
        assert_eq!(account.wait(now + 400 * MS), None);
    }

    fn file() -> OwnedFd {
        memfd_create(c"account", MFdFlags::empty()).unwrap()
    }

    #[test]
    fn files_count_as_long_as_they_exist() {
        let account = MemoryAccount::default();
        let enter = |file: &OwnedFd, mib: u64| account.enter(file, mib << 20, 8 << 20);
        let refused =
            |mib: u64| Err(RegionError::Kept { total_bytes: mib << 20, max_bytes: 16 << 20 });
        let (first, second, third) = (file(), file(), file());
        assert_eq!(enter(&first, 10), Ok(()));
        assert_eq!(enter(&second, 7), refused(17));
        assert_eq!(enter(&second, 4), Ok(()));
        // The same again costs nothing, and the more that is mapped of it counts.
        assert_eq!(enter(&first, 10), Ok(()));
        assert_eq!(enter(&second, 7), refused(17));
        assert_eq!(enter(&second, 6), Ok(()));
        assert_eq!(enter(&third, 0), refused(18), "even an empty one counts");
        let open_elsewhere = first.try_clone().unwrap();
        drop(first);
        assert_eq!(enter(&third, 1), refused(18), "somebody has it open");
        drop(open_elsewhere);
        assert_eq!(enter(&third, 10), Ok(()));
    }

    #[test]
    fn one_account_does_not_forget_for_another() {
        let (one, other) = (MemoryAccount::default(), MemoryAccount::default());
        let (shared, more) = (file(), file());
        assert_eq!(one.enter(&shared, 4 << 20, 2 << 20), Ok(()));
        other.enter(&shared, 4 << 20, 1 << 20).unwrap_err();
        one.enter(&more, 0, 2 << 20).unwrap_err();
    }
}
