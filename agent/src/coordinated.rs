//! What chained coordinators were called with, so that the routes of running pods can follow the
//! cluster's prefixes. One small file for each sandbox and interface, beside the journal.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use cni::rpc::Request;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::journal::AttachmentKey;

/// A pod's interface whose routes a coordinator wrote.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Coordinated {
    /// The ADD.
    pub request: Request,
    /// The pod's namespace, which tells the pod from a later one at the same path.
    pub netns_inode: u64,
    /// What is reached through the node, as it was written last.
    pub through_node: Vec<IpNet>,
}

/// The directory of them.
#[derive(Debug, Clone)]
pub struct CoordinatedPods {
    directory: PathBuf,
}

impl CoordinatedPods {
    /// Opens the directory below the agent's state directory.
    pub fn open(state_dir: &Path) -> io::Result<Self> {
        let directory = state_dir.join("coordinated");
        fs::create_dir_all(&directory)?;
        Ok(Self { directory })
    }

    /// Remembers one, in the place of an older one.
    pub fn put(&self, key: &AttachmentKey, pod: &Coordinated) -> io::Result<()> {
        let path = self.path(key);
        // No reader sees a half of it: a name with a dot before it is no key's.
        let draft = path.with_file_name(format!(".{}:{}", key.container_id, key.ifname));
        fs::write(&draft, serde_json::to_vec(pod)?)?;
        fs::rename(draft, path)
    }

    /// Forgets it. Absent is fine.
    pub fn forget(&self, key: &AttachmentKey) -> io::Result<()> {
        match fs::remove_file(self.path(key)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// The one of a sandbox's interface.
    pub fn get(&self, key: &AttachmentKey) -> io::Result<Option<Coordinated>> {
        match fs::read(self.path(key)) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// All that are remembered.
    pub fn keys(&self) -> io::Result<Vec<AttachmentKey>> {
        let mut keys = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            // Neither part has a colon.
            let parts = name.to_str().and_then(|name| name.split_once(':'));
            let key = parts.map(|(container_id, ifname)| AttachmentKey {
                container_id: container_id.into(),
                ifname: ifname.into(),
            });
            keys.extend(key.filter(AttachmentKey::is_valid));
        }
        Ok(keys)
    }

    fn path(&self, key: &AttachmentKey) -> PathBuf {
        self.directory.join(format!("{}:{}", key.container_id, key.ifname))
    }
}
