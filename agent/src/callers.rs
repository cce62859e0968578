//! Which CNI configuration asked for addresses of another plugin's interface: what a GC goes by, since
//! a claim does not say. One small file for each sandbox and interface, beside the journal; where they
//! are lost, the controller compares pods.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::journal::AttachmentKey;

/// The directory of callers.
#[derive(Debug, Clone)]
pub struct Callers {
    directory: PathBuf,
}

impl Callers {
    /// Opens the directory below the agent's state directory.
    pub fn open(state_dir: &Path) -> io::Result<Self> {
        let directory = state_dir.join("callers");
        fs::create_dir_all(&directory)?;
        Ok(Self { directory })
    }

    /// Notes whose the addresses are.
    pub fn note(&self, key: &AttachmentKey, conf_name: &str) -> io::Result<()> {
        fs::write(self.path(key), conf_name)
    }

    /// Forgets it. Absent is fine.
    pub fn forget(&self, key: &AttachmentKey) -> io::Result<()> {
        match fs::remove_file(self.path(key)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// Everything that a configuration has asked for.
    pub fn of(&self, conf_name: &str) -> io::Result<Vec<AttachmentKey>> {
        let mut keys = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name();
            // Neither part has a colon.
            let Some((container_id, ifname)) = name.to_str().and_then(|n| n.split_once(':')) else {
                continue;
            };
            let key = AttachmentKey { container_id: container_id.into(), ifname: ifname.into() };
            match fs::read(entry.path()) {
                Ok(text) if text == conf_name.as_bytes() => keys.push(key),
                // Another's, or gone since.
                _ => {}
            }
        }
        Ok(keys)
    }

    fn path(&self, key: &AttachmentKey) -> PathBuf {
        self.directory.join(format!("{}:{}", key.container_id, key.ifname))
    }
}
