//! Puts our table in force: one call of `nft` replaces it whole, or leaves it as it was.

use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::Mutex;

use super::rules;
use crate::core::Core;

/// `nft` takes milliseconds.
const WITHIN: Duration = Duration::from_secs(10);
/// Somebody may have flushed all tables.
const TRUST: Duration = Duration::from_secs(30);

/// What is in force.
#[derive(Debug, Default)]
pub struct Firewall {
    applied: Mutex<Option<(String, Instant)>>,
}

impl Firewall {
    /// Makes the table what node, pools and attachments want.
    ///
    /// # Errors
    /// A sentence; what was in force stays.
    pub async fn put_in_force(&self, core: &Core) -> Result<(), String> {
        let mut applied = self.applied.lock().await;
        let wanted = rules::text(&rules::Input::of(core));
        let known =
            applied.as_ref().is_some_and(|(text, at)| *text == wanted && at.elapsed() < TRUST);
        if known {
            return Ok(());
        }
        nft(&wanted).await?;
        *applied = Some((wanted, Instant::now()));
        Ok(())
    }

    /// Removes the table.
    ///
    /// # Errors
    /// A sentence.
    pub async fn remove(&self) -> Result<(), String> {
        let mut applied = self.applied.lock().await;
        *applied = None;
        nft(rules::NOTHING).await
    }
}

async fn nft(script: &str) -> Result<(), String> {
    let mut command = Command::new("nft");
    command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.kill_on_drop(true).spawn().map_err(|e| {
        format!("cannot run nft ({e}); install the package nftables in the agent's image")
    })?;
    if let Some(mut stdin) = child.stdin.take() {
        let written = stdin.write_all(script.as_bytes()).await;
        written.map_err(|e| format!("cannot write to nft: {e}"))?;
    }
    let ended = tokio::time::timeout(WITHIN, child.wait_with_output()).await;
    let output = ended
        .map_err(|_| format!("nft did not end within {} s", WITHIN.as_secs()))?
        .map_err(|e| format!("cannot wait for nft: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said: Vec<&str> = said.lines().take(3).collect();
    Err(format!("nft refuses the rules: {}", said.join(" / ")))
}
