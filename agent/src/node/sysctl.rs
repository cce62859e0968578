//! The kernel's settings without which packets between `bowline0` and the rest of the node are
//! dropped.

use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::pod::PodError;

const ROOT: &str = "/proc/sys/net";

/// Lets the node forward, and packets of `interface` come and go by different ways.
pub(super) fn prepare(interface: &str, ipv6: bool) -> Result<(), PodError> {
    set("ipv4/ip_forward", "1")?;
    // Answers to host-network pods may come in by the uplink: only sources without any route are
    // forged (RFC 3704 section 2.4).
    set(&format!("ipv4/conf/{interface}/rp_filter"), "2")?;
    // A host port that is called at 127.0.0.1 leaves by this interface.
    set(&format!("ipv4/conf/{interface}/route_localnet"), "1")?;
    // What comes in here and leaves here (a Service's packets) is no mistake of the sender's.
    set(&format!("ipv4/conf/{interface}/send_redirects"), "0")?;
    if ipv6 {
        keep_router_advertisements()?;
        set("ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

/// A host that forwards ignores router advertisements unless `accept_ra` is 2: an uplink that lives
/// by them would lose its default route.
fn keep_router_advertisements() -> Result<(), PodError> {
    let root = Path::new(ROOT).join("ipv6/conf");
    let read = |e| PodError::new(format!("read {}", root.display()), e);
    for entry in fs::read_dir(&root).map_err(read)? {
        let name = entry.map_err(read)?.file_name();
        let key = format!("ipv6/conf/{}/accept_ra", name.to_string_lossy());
        let value = fs::read_to_string(Path::new(ROOT).join(&key)).unwrap_or_default();
        if value.trim() == "1" && !matches!(name.to_str(), Some("all" | "default")) {
            set(&key, "2")?;
        }
    }
    Ok(())
}

/// Writes a setting that is not so yet.
fn set(key: &str, value: &str) -> Result<(), PodError> {
    let path: PathBuf = Path::new(ROOT).join(key);
    if fs::read_to_string(&path).is_ok_and(|known| known.trim() == value) {
        return Ok(());
    }
    let failed = |e: io::Error| PodError::new(format!("write {value} to {}", path.display()), e);
    fs::write(&path, value).map_err(failed)
}
