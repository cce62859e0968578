//! What the container runtime finds on the node: the plugin's binary, and the configuration that
//! makes Bowline the cluster's CNI.
//!
//! The configuration appears when the node can serve pods, since with it the kubelet reports the node
//! Ready, and goes when Bowline is uninstalled. Files are renamed into place: a runtime that reads
//! meanwhile sees the old one or the new one.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use multinet::types::network::DEFAULT_NETWORK;

use crate::core::Core;
use crate::node;

/// First in the order in which runtimes choose.
const CONFIGURATION: &str = "05-bowline.conflist";
/// Names that the plugin is called by. The last ones stand in configurations that were written for
/// Spiderpool, whose own binaries are left alone.
const NAMES: [&str; 5] = ["bowline", "bowline-ipam", "spiderpool", "coordinator", "ifacer"];
/// How many of [`NAMES`] are nobody else's.
const OURS: usize = 2;
/// Somebody may have removed a file.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Where the runtime looks, seen from here.
#[derive(Debug, Clone)]
pub struct Places {
    /// Binaries.
    pub bin_dir: PathBuf,
    /// The plugin's binary, which is copied.
    pub plugin: PathBuf,
    /// Configurations; `None`: another CNI gives eth0.
    pub conf_dir: Option<PathBuf>,
}

/// Keeps binary and configuration until the task is aborted.
pub async fn keep(core: Arc<Core>, places: Places) {
    let mut attachments = core.attachments_changed();
    let mut last_error = String::new();
    loop {
        attachments.mark_unchanged();
        let done = install_binaries(&places).and_then(|()| configure(&core, &places));
        let error = done.err().map(|e| e.to_string()).unwrap_or_default();
        if error != last_error && !error.is_empty() {
            tracing::error!("{error}; pods of this node cannot be started");
        }
        last_error = error;
        tokio::select! {
            _ = attachments.changed(), if !node::is_up(&core) => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

fn configure(core: &Core, places: &Places) -> io::Result<()> {
    let Some(dir) = &places.conf_dir else { return Ok(()) };
    let checked = core.checked(&core.catalog.snapshot());
    if !checked.networks.contains_key(DEFAULT_NETWORK) || !node::is_up(core) {
        return Ok(());
    }
    let path = dir.join(CONFIGURATION);
    let text = configuration();
    if fs::read_to_string(&path).is_ok_and(|known| known == text) {
        return Ok(());
    }
    replace(&path, text.as_bytes(), 0o644)?;
    tracing::info!("{} is installed: pods can be started", path.display());
    Ok(())
}

/// Debian's containerd 1.6 reads version 1.0.0; the plugin speaks 1.1 to whoever asks in it.
fn configuration() -> String {
    let list = serde_json::json!({
        "cniVersion": "1.0.0",
        "name": "bowline",
        "plugins": [{
            "type": "bowline",
            "capabilities": {"portMappings": true, "io.kubernetes.cri.pod-annotations": true},
        }],
    });
    format!("{list:#}\n")
}

fn install_binaries(places: &Places) -> io::Result<()> {
    let dir = &places.bin_dir;
    let plugin = fs::read(&places.plugin).map_err(|e| named("read", &places.plugin, &e))?;
    let before = fs::read(dir.join(NAMES[0])).unwrap_or_default();
    for (place, name) in NAMES.iter().enumerate() {
        let path = dir.join(name);
        match fs::read(&path) {
            Ok(known) if known == plugin => {}
            // Not the one that an older agent put there.
            Ok(known) if place >= OURS && known != before => {}
            _ => replace(&path, &plugin, 0o755)?,
        }
    }
    Ok(())
}

/// Does Multus call the plugins of this node?
#[must_use]
pub fn is_multus_in(conf_dir: &Path) -> bool {
    let mut names = fs::read_dir(conf_dir).into_iter().flatten().flatten();
    names.any(|entry| entry.file_name().to_string_lossy().contains("multus"))
}

/// Removes what was installed.
///
/// # Errors
/// A file that is there cannot be removed.
pub fn withdraw(places: &Places) -> io::Result<()> {
    if let Some(dir) = &places.conf_dir {
        remove(&dir.join(CONFIGURATION))?;
    }
    let plugin = fs::read(places.bin_dir.join(NAMES[0])).unwrap_or_default();
    for name in NAMES.iter().rev() {
        let path = places.bin_dir.join(name);
        if fs::read(&path).is_ok_and(|known| known == plugin) {
            remove(&path)?;
        }
    }
    Ok(())
}

fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // Runtimes pass over names with other endings.
    let temporary = path.with_file_name(format!(".{name}.new"));
    let written = fs::write(&temporary, bytes)
        .and_then(|()| fs::set_permissions(&temporary, fs::Permissions::from_mode(mode)))
        .and_then(|()| fs::rename(&temporary, path));
    written.map_err(|e| named("write", path, &e))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(named("remove", path, &e)),
        _ => Ok(()),
    }
}

fn named(verb: &str, path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot {verb} {}: {error}", path.display()))
}
