//! Connections that came in by the link from the node are marked, so that replies go back that way:
//! a client behind a NodePort has an address that the pod's default route would answer elsewhere.

use std::io::{self, Write};
use std::process::{Command, Stdio};

use super::plan::{LINK, MARK};
use crate::pod::PodError;

/// Writes the table in the calling thread's namespace, in the place of an older one.
pub(super) fn write() -> Result<(), PodError> {
    let table = "inet bowline_coordinator";
    let script = format!(
        "add table {table}\n\
         delete table {table}\n\
         table {table} {{\n\
           chain from_node {{\n\
             type filter hook prerouting priority mangle;\n\
             iifname \"{LINK}\" ct state new ct mark set {MARK}\n\
           }}\n\
           chain to_node {{\n\
             type route hook output priority mangle;\n\
             ct direction reply ct mark {MARK} meta mark set {MARK}\n\
           }}\n\
         }}\n"
    );
    run(&script).map_err(|e| {
        let doing = "mark the connections from the node with nft (is nftables installed beside \
                     the agent?)";
        PodError::new(doing.into(), e)
    })
}

/// A child has the namespace of the thread that starts it.
fn run(script: &str) -> io::Result<()> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(script.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}
