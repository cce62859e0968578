//! Device information of a memif, where the caller (Multus) asks for it: a file that Multus copies into
//! the pod's `network-status` (Device Information Specification 1.1.0).

use std::fs;
use std::io;
use std::path::Path;

use multinet::realm::state::{MemifMode, Port};
use serde_json::{Value, json};

use crate::journal::AttachedInterface;

/// What the file says; `None` for an interface that needs no explanation.
pub(super) fn describe(interface: &AttachedInterface) -> Option<Value> {
    let Port::Memif(memif) = &interface.port else { return None };
    let mode = match memif.mode {
        MemifMode::Ethernet => "ethernet",
        MemifMode::Ip => "ip",
    };
    Some(json!({
        "type": "memif",
        "version": "1.1.0",
        "memif": {
            // What the pod's program has to be: the client, in the specification's word.
            "role": "slave",
            "path": format!("@{}", interface.plan.name),
            "mode": mode,
        },
    }))
}

/// Writes the file for the call's interface.
pub(super) fn write(path: &Path, interface: &AttachedInterface) -> io::Result<()> {
    let Some(text) = describe(interface) else { return Ok(()) };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let draft = path.with_extension("bowline");
    fs::write(&draft, serde_json::to_vec(&text)?)?;
    fs::rename(draft, path)
}
