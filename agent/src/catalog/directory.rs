//! The store: files below one directory, changed by compare-and-swap.
//!
//! An object's resource version is a hash of its file's bytes, so that a person's edit counts as a
//! change like any other. A write takes a lock, reads the file again, compares, writes a temporary
//! file, flushes it and renames it over the old one: a process that dies leaves the old version or
//! the new one, and a full disk leaves the old one and an error.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use multinet::store::{Store, StoreError};
use multinet::types::block::{AddressBlock, NETWORK_LABEL};
use multinet::types::meta::{LabelSelector, Resource, with_foreign};
use nix::fcntl::{Flock, FlockArg};

use super::file::{END, FileContent, Key, parse};
use super::turns::{Turns, pause_after};

/// Locks are files that stay; so many of them keep writers of different objects apart.
const LOCK_SHARDS: u64 = 32;
/// A temporary file of this age was left by a writer that died.
const STALE_TEMPORARY: Duration = Duration::from_secs(60);
/// Largest file that is read: a catalog object is a few kilobytes.
const MAX_FILE_BYTES: u64 = 8 << 20;

/// Where the kernel gives a new UUID at each reading.
const RANDOM_UUID: &str = "/proc/sys/kernel/random/uuid";

/// What tells two states of a file apart without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    inode: u64,
    size: u64,
    modified_ns: (i64, i64),
    changed_ns: (i64, i64),
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            size: metadata.size(),
            modified_ns: (metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Time since the last write to the file; nothing when the clock went back.
    pub(crate) fn age(&self) -> Option<Duration> {
        let (seconds, nanoseconds) = self.modified_ns;
        let modified = Duration::new(seconds.try_into().ok()?, nanoseconds.try_into().ok()?);
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + modified).ok()
    }
}

/// A directory that holds a catalog. Clones share one cache.
#[derive(Debug, Clone)]
pub struct Directory {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    /// Files as last read, by path.
    cache: Mutex<HashMap<PathBuf, (Stamp, Arc<FileContent>)>>,
    turns: Turns,
    /// Races lost in a row.
    lost: AtomicU32,
    /// Numbers temporary files …
    temporary: AtomicU64,
    /// … of this writer: agents of several machines may share the directory.
    writer: String,
}

impl Directory {
    /// Opens the catalog below `root`, which is made if it does not exist.
    pub fn open(root: &Path) -> io::Result<Self> {
        fs::create_dir_all(root.join(".locks"))?;
        let inner = Inner {
            root: root.to_owned(),
            cache: Mutex::default(),
            turns: Turns::default(),
            lost: AtomicU32::new(0),
            temporary: AtomicU64::new(0),
            writer: new_uid()?,
        };
        let directory = Self { inner: Arc::new(inner) };
        directory.remove_stale_temporaries()?;
        Ok(directory)
    }

    /// The catalog's directory.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// See [`Turns`].
    pub(super) fn turns(&self) -> &Turns {
        &self.inner.turns
    }

    /// All files of the catalog: `*.yaml`, `*.yml` and `*.json` in the directory and one level below.
    pub(crate) fn files(&self) -> io::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(self.root())? {
            let entry = entry?;
            if is_hidden(&entry.path()) {
                continue;
            }
            if entry.file_type()?.is_dir() {
                files.extend(catalog_files(&entry.path())?);
            } else if is_catalog_file(&entry.path()) {
                files.push(entry.path());
            }
        }
        files.sort();
        Ok(files)
    }

    /// A file's stamp; `None` if it is gone.
    pub(crate) fn stamp(path: &Path) -> io::Result<Option<Stamp>> {
        match fs::metadata(path) {
            Ok(metadata) => Ok(Some(Stamp::of(&metadata))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// A file's content, from memory where the file has not changed; `None` if it is gone.
    pub(crate) fn read(&self, path: &Path) -> io::Result<Option<Arc<FileContent>>> {
        let Some(stamp) = Self::stamp(path)? else {
            self.cache().remove(path);
            return Ok(None);
        };
        if let Some((known, content)) = self.cache().get(path)
            && *known == stamp
        {
            return Ok(Some(content.clone()));
        }
        self.read_again(path)
    }

    /// The same from the file, whatever is in memory.
    fn read_again(&self, path: &Path) -> io::Result<Option<Arc<FileContent>>> {
        let (stamp, bytes) = match read_bytes(path) {
            Ok(read) => read,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.cache().remove(path);
                return Ok(None);
            }
            Err(e) => return Err(e),
        };
        let version = version_of(&bytes);
        let known = self.cache().get(path).map(|(_, content)| content.clone());
        let content = known.filter(|known| known.version == version).unwrap_or_else(|| {
            let text = String::from_utf8_lossy(&bytes);
            let shown = path.strip_prefix(self.root()).unwrap_or(path);
            Arc::new(parse(shown, &text, version))
        });
        self.cache().insert(path.to_owned(), (stamp, content.clone()));
        Ok(Some(content))
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, HashMap<PathBuf, (Stamp, Arc<FileContent>)>> {
        // The map is valid whatever a panicking holder did to it: entries are inserted whole.
        self.inner.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The object from its own file, else from a file of people's that is known to hold it.
    pub(crate) fn find<R: Resource>(&self, key: &Key) -> Result<Option<R>, StoreError> {
        let path = self.root().join(key.file());
        let content = self.read_again(&path).map_err(|e| unavailable("read", &path, &e))?;
        if let Some(content) = content {
            if let Some(object) = object_in(&content, key) {
                return Ok(Some(object));
            }
            if let Some(problem) = content.problems.iter().find(|p| p.refused) {
                return Err(StoreError::Unavailable(problem.to_string()));
            }
        }
        let Some(path) = self.file_of_people(key) else { return Ok(None) };
        let content = self.read(&path).map_err(|e| unavailable("read", &path, &e))?;
        Ok(content.and_then(|content| object_in(&content, key)))
    }

    /// Another file than the object's own that is known to hold it.
    fn file_of_people(&self, key: &Key) -> Option<PathBuf> {
        let own = self.root().join(key.file());
        let cache = self.cache();
        let mut holders = cache.iter().filter(|(path, (_, content))| {
            **path != own && content.documents.iter().any(|d| d.key == *key)
        });
        holders.next().map(|(path, _)| path.clone())
    }

    fn list_now<R: Resource>(&self, selector: &LabelSelector) -> Result<Vec<Arc<R>>, StoreError> {
        let below = self.root().join(R::KIND);
        let mut files = match catalog_files(&below) {
            Ok(files) => files,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(unavailable("list", &below, &e)),
        };
        let elsewhere: Vec<_> =
            self.cache().keys().filter(|path| !path.starts_with(&below)).cloned().collect();
        files.extend(elsewhere);
        let mut found = Vec::new();
        for path in files {
            let content = self.read(&path).map_err(|e| unavailable("read", &path, &e))?;
            let Some(content) = content else { continue };
            // A block that cannot be read would look like 64 free addresses.
            if path.starts_with(&below)
                && let Some(problem) = content.problems.iter().find(|p| p.refused)
            {
                return Err(StoreError::Unavailable(problem.to_string()));
            }
            let objects = content.documents.iter().filter(|d| d.key.kind == R::KIND);
            let objects = objects.filter_map(|d| d.object.clone().downcast::<R>().ok());
            found.extend(objects.filter(|o| selector.matches(&o.meta().labels)));
        }
        Ok(found)
    }

    fn create_now<R: Resource>(&self, object: &R) -> Result<R, StoreError> {
        let key = Key::of::<R>(object.meta());
        let _lock = self.lock(&key)?;
        if self.find::<R>(&key)?.is_some() {
            return Err(StoreError::Exists { kind: R::KIND, name: key.name });
        }
        let mut object = object.clone();
        if object.meta().uid.is_none() {
            object.meta_mut().uid =
                Some(new_uid().map_err(|e| unavailable("read", Path::new(RANDOM_UUID), &e))?);
        }
        self.replace(&key, object)
    }

    fn update_now<R: Resource>(&self, object: &R) -> Result<R, StoreError> {
        let key = Key::of::<R>(object.meta());
        let _lock = self.lock(&key)?;
        self.compare(&key, object)?;
        self.replace(&key, object.clone())
    }

    fn delete_now<R: Resource>(&self, object: &R) -> Result<(), StoreError> {
        let key = Key::of::<R>(object.meta());
        let _lock = self.lock(&key)?;
        self.compare(&key, object)?;
        let path = self.root().join(key.file());
        fs::remove_file(&path).map_err(|e| unavailable("remove", &path, &e))?;
        self.cache().remove(&path);
        Ok(())
    }

    /// Is the stored object the one that the caller read, in a file that the agent may write?
    fn compare<R: Resource>(&self, key: &Key, object: &R) -> Result<(), StoreError> {
        let path = self.root().join(key.file());
        let Some(stored) = self.find::<R>(key)? else {
            return Err(StoreError::NotFound { kind: R::KIND, name: key.name.clone() });
        };
        let version = &object.meta().resource_version;
        if version.is_none() || *version != stored.meta().resource_version {
            return Err(StoreError::Conflict { kind: R::KIND, name: key.name.clone() });
        }
        let content = self.read(&path).map_err(|e| unavailable("read", &path, &e))?;
        if content.is_none_or(|content| content.count != 1) {
            return Err(StoreError::Unavailable(format!(
                "{key} lies in a file of several objects, which the agent does not rewrite; move it \
                 to {}",
                key.file().display()
            )));
        }
        Ok(())
    }

    /// Writes the object's file and returns the object as stored.
    fn replace<R: Resource>(&self, key: &Key, mut object: R) -> Result<R, StoreError> {
        object.meta_mut().resource_version = None;
        let mut text = text_of(&object).map_err(|e| {
            StoreError::Unavailable(format!("{key} cannot be written as text: {e}"))
        })?;
        text.push_str(END);
        let path = self.root().join(key.file());
        self.write_whole(&path, text.as_bytes()).map_err(|e| unavailable("write", &path, &e))?;
        self.cache().remove(&path);
        object.meta_mut().resource_version = Some(version_of(text.as_bytes()));
        Ok(object)
    }

    fn write_whole(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let parent = path.parent().unwrap_or(self.root());
        fs::create_dir_all(parent)?;
        let number = self.inner.temporary.fetch_add(1, Ordering::Relaxed);
        let temporary = parent.join(format!(".tmp-{}-{number}", self.inner.writer));
        let written =
            write_and_flush(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
        if written.is_err() {
            // What is left is hidden from readers and removed at the next start.
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    fn lock(&self, key: &Key) -> Result<Flock<File>, StoreError> {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let path = self.root().join(format!(".locks/{:02}", hasher.finish() % LOCK_SHARDS));
        let open = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = open.map_err(|e| unavailable("open", &path, &e))?;
        Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, e)| unavailable("lock", &path, &e.into()))
    }

    fn remove_stale_temporaries(&self) -> io::Result<()> {
        for directory in fs::read_dir(self.root())? {
            let directory = directory?.path();
            if !directory.is_dir() {
                continue;
            }
            for entry in fs::read_dir(&directory)? {
                let entry = entry?;
                let temporary = entry.file_name().to_string_lossy().starts_with(".tmp-");
                let age = entry.metadata().ok().and_then(|m| m.modified().ok()?.elapsed().ok());
                if temporary && age.is_some_and(|age| age > STALE_TEMPORARY) {
                    fs::remove_file(entry.path())?;
                }
            }
        }
        Ok(())
    }

    /// Who lost a race hears of it after a pause.
    async fn wait_if_lost<T>(&self, written: Result<T, StoreError>) -> Result<T, StoreError> {
        match &written {
            Ok(_) => self.inner.lost.store(0, Ordering::Relaxed),
            Err(error) if error.is_race() => {
                let lost = self.inner.lost.fetch_add(1, Ordering::Relaxed).saturating_add(1);
                tokio::time::sleep(pause_after(lost)).await;
            }
            Err(_) => {}
        }
        written
    }

    /// Runs file work where it may block.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let directory = self.clone();
        tokio::task::spawn_blocking(move || work(&directory))
            .await
            .unwrap_or_else(|e| Err(StoreError::Unavailable(format!("file work failed: {e}"))))
    }
}

impl Store for Directory {
    async fn get<R: Resource>(
        &self,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Option<R>, StoreError> {
        let key = Key::new::<R>(namespace, name);
        self.blocking(move |directory| directory.find(&key)).await
    }

    async fn list<R: Resource>(&self, selector: &LabelSelector) -> Result<Vec<R>, StoreError> {
        let selector = selector.clone();
        let found = self.blocking(move |directory| directory.list_now(&selector)).await?;
        Ok(found.into_iter().map(Arc::unwrap_or_clone).collect())
    }

    async fn blocks(&self, domain: &str) -> Result<Vec<Arc<AddressBlock>>, StoreError> {
        let selector = LabelSelector::label(NETWORK_LABEL, domain);
        self.blocking(move |directory| directory.list_now(&selector)).await
    }

    async fn create<R: Resource>(&self, object: &R) -> Result<R, StoreError> {
        let object = object.clone();
        let created = self.blocking(move |directory| directory.create_now(&object)).await;
        self.wait_if_lost(created).await
    }

    async fn update<R: Resource>(&self, object: &R) -> Result<R, StoreError> {
        let object = object.clone();
        let updated = self.blocking(move |directory| directory.update_now(&object)).await;
        self.wait_if_lost(updated).await
    }

    async fn delete<R: Resource>(&self, object: &R) -> Result<(), StoreError> {
        let object = object.clone();
        self.blocking(move |directory| directory.delete_now(&object)).await
    }
}

fn object_in<R: Resource>(content: &FileContent, key: &Key) -> Option<R> {
    let document = content.documents.iter().find(|d| d.key == *key)?;
    document.object.downcast_ref::<R>().cloned()
}

/// Fields in the types' order, for people; what the types do not know forces them into another. Blocks
/// are written as JSON, which is YAML as well: each claim reads those that other agents wrote since.
fn text_of<R: Resource>(object: &R) -> Result<String, Box<dyn std::error::Error>> {
    let foreign = object.meta().foreign.as_ref().map(|_| with_foreign(object)).transpose()?;
    Ok(match (foreign, R::KIND == AddressBlock::KIND) {
        (None, true) => serde_json::to_string_pretty(object)? + "\n",
        (Some(whole), true) => serde_json::to_string_pretty(&whole)? + "\n",
        (None, false) => serde_yaml_ng::to_string(object)?,
        (Some(whole), false) => serde_yaml_ng::to_string(&whole)?,
    })
}

fn unavailable(verb: &str, path: &Path, error: &io::Error) -> StoreError {
    let hint = match error.kind() {
        io::ErrorKind::StorageFull => {
            "; nothing was changed: free some space on the catalog's disk"
        }
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
            "; nothing was changed: the agent must be able to write the catalog's directory"
        }
        _ => "",
    };
    StoreError::Unavailable(format!("cannot {verb} {}: {error}{hint}", path.display()))
}

fn catalog_files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if is_catalog_file(&path) {
            files.push(path);
        }
    }
    Ok(files)
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'))
}

fn is_catalog_file(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str());
    !is_hidden(path) && matches!(extension, Some("yaml" | "yml" | "json"))
}

fn read_bytes(path: &Path) -> io::Result<(Stamp, Vec<u8>)> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if metadata.len() > MAX_FILE_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("{} bytes are more than {MAX_FILE_BYTES}", metadata.len()),
        ));
    }
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, MAX_FILE_BYTES), &mut bytes)?;
    Ok((Stamp::of(&metadata), bytes))
}

fn write_and_flush(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(bytes)?;
    // Without this a power failure may leave the new name with no content (data after metadata).
    file.sync_data()
}

/// Versions are compared within one process only, so that the hash need not be a stable one.
fn version_of(bytes: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

fn new_uid() -> io::Result<String> {
    Ok(fs::read_to_string(RANDOM_UUID)?.trim().to_owned())
}
