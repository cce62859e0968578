//! What an agent remembers of attachments that it keeps no journal of, over its own restarts: one small file
//! for each sandbox and interface, beside the journal.

use std::fs;
use std::io;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use cni::rpc::Request;
use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::journal::AttachmentKey;

/// A pod's interface whose routes a chained coordinator wrote, so that they can follow the cluster's prefixes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Coordinated {
    /// The ADD.
    pub request: Request,
    /// The pod's namespace, which tells the pod from a later one at the same path.
    pub netns_inode: u64,
    /// What is reached through the node, as it was written last.
    pub through_node: Vec<IpNet>,
}

/// A directory of notes of one kind.
#[derive(Debug, Clone)]
pub struct Notes<T> {
    directory: PathBuf,
    kind: PhantomData<fn() -> T>,
}

impl<T: Serialize + DeserializeOwned> Notes<T> {
    /// Opens the directory of that name below the agent's state directory.
    pub fn open(state_dir: &Path, name: &str) -> io::Result<Self> {
        let directory = state_dir.join(name);
        fs::create_dir_all(&directory)?;
        Ok(Self { directory, kind: PhantomData })
    }

    /// Writes one, in the place of an older one.
    pub fn put(&self, key: &AttachmentKey, note: &T) -> io::Result<()> {
        let path = self.path(key);
        // No reader sees a half of it: a name with a dot before it is no key's.
        let draft = path.with_file_name(format!(".{}:{}", key.container_id, key.ifname));
        fs::write(&draft, serde_json::to_vec(note)?)?;
        fs::rename(draft, path)
    }

    /// Forgets one. Absent is fine.
    pub fn forget(&self, key: &AttachmentKey) -> io::Result<()> {
        match fs::remove_file(self.path(key)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// The one of a sandbox's interface. One that cannot be read says nothing.
    pub fn get(&self, key: &AttachmentKey) -> io::Result<Option<T>> {
        match fs::read(self.path(key)) {
            Ok(text) => Ok(serde_json::from_slice(&text)
                .inspect_err(|e| tracing::warn!("{}: {e}", self.path(key).display()))
                .ok()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Those that `chosen` picks.
    pub fn keys(&self, chosen: impl Fn(&T) -> bool) -> io::Result<Vec<AttachmentKey>> {
        let mut keys = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            // Neither part has a colon.
            let Some((container_id, ifname)) = name.to_str().and_then(|n| n.split_once(':')) else {
                continue;
            };
            let key = AttachmentKey { container_id: container_id.into(), ifname: ifname.into() };
            if key.is_valid() && self.get(&key)?.is_some_and(|note| chosen(&note)) {
                keys.push(key);
            }
        }
        Ok(keys)
    }

    fn path(&self, key: &AttachmentKey) -> PathBuf {
        self.directory.join(format!("{}:{}", key.container_id, key.ifname))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(container_id: &str) -> AttachmentKey {
        AttachmentKey { container_id: container_id.into(), ifname: "net1".into() }
    }

    #[test]
    fn notes_outlive_who_wrote_them_and_a_damaged_one_harms_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let open = || Notes::<String>::open(directory.path(), "callers").unwrap();
        for (container, conf) in [("a", "one"), ("b", "one"), ("c", "two")] {
            open().put(&key(container), &conf.to_owned()).unwrap();
        }
        fs::write(directory.path().join("callers/b:net1"), "half a no").unwrap();
        let of_one = open().keys(|conf| conf == "one").unwrap();
        assert_eq!(of_one, [key("a")]);
        open().forget(&key("a")).unwrap();
        open().forget(&key("a")).unwrap();
        assert_eq!(open().get(&key("a")).unwrap(), None);
        assert_eq!(open().keys(|_| true).unwrap(), [key("c")]);
    }
}
