//! Tombstones: what a DEL leaves behind when the agent is not there. The agent replays them before it
//! serves the next ADD.
//!
//! A file per call under `<stateDir>/tombstones`, named after container, interface and (where it is not
//! Bowline's own interface) what the call was for, holding the request. It is written under another name, synced and renamed, so that a reader sees whole files
//! only. Writing it twice is the same as once.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::rpc::{CallMode, Request};

/// Folder below the state directory.
pub const FOLDER: &str = "tombstones";
/// Suffix of whole files.
const SUFFIX: &str = ".json";

/// Where the tombstone of a request lies. Both parts were checked to hold no `/`.
#[must_use]
pub fn path_of(state_dir: &Path, request: &Request) -> PathBuf {
    // Several plugins of a chain may be Bowline: each call has its own file.
    let mode = match request.mode {
        CallMode::Interface => String::new(),
        other => format!(":{}", other.as_str()),
    };
    let name = format!("{}:{}{mode}{SUFFIX}", request.container_id, request.ifname);
    state_dir.join(FOLDER).join(name)
}

/// Leaves a tombstone.
///
/// # Errors
/// The file system's; nothing is left then that [`read_all`] would find.
pub fn write(state_dir: &Path, request: &Request) -> std::io::Result<()> {
    let path = path_of(state_dir, request);
    let folder = state_dir.join(FOLDER);
    fs::create_dir_all(&folder)?;
    let draft = folder.join(format!(".{}.{}", request.container_id, std::process::id()));
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    let written = serde_json::to_vec(request)
        .map_err(std::io::Error::from)
        .and_then(|text| file.write_all(&text))
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&draft, &path))
        .and_then(|()| File::open(&folder)?.sync_all());
    if written.is_err() {
        // The draft's name is never read; that it stays behind hurts nobody.
        let _ = fs::remove_file(&draft);
    }
    written
}

/// All tombstones, with their files, in a stable order. A file that cannot be read as a request is
/// given as an error with its path, so that the agent can report it and go on.
///
/// # Errors
/// That the folder cannot be listed; a missing folder is an empty one.
pub fn read_all(
    state_dir: &Path,
) -> std::io::Result<Vec<(PathBuf, Result<Request, serde_json::Error>)>> {
    let entries = match fs::read_dir(state_dir.join(FOLDER)) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
        if name.ends_with(SUFFIX) && !name.starts_with('.') {
            paths.push(path);
        }
    }
    paths.sort();
    let read = |path: PathBuf| {
        let text = fs::read(&path)?;
        let request = serde_json::from_slice(&text);
        Ok((path, request))
    };
    paths.into_iter().map(read).collect()
}
