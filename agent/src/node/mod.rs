//! The node's own place in the Network `default`: its interface `bowline0`, and the rules of its
//! packet filter for what passes there.
//!
//! | module | holds |
//! |---|---|
//! | `leg` | the interface: address, device, routes |
//! | [`rules`] | the rules as text; pure |
//! | `firewall` | puts them in force |
//! | `sysctl` | the kernel's settings |
//!
//! Invariants: one nftables table is ours and is replaced whole; routes carry our protocol number;
//! nothing else of the node is changed.

mod firewall;
mod leg;
pub mod rules;
mod sysctl;

use std::sync::Arc;
use std::time::Duration;

use multinet::types::network::DEFAULT_NETWORK;

use crate::core::Core;
use crate::dataplane::Dataplane;

pub use firewall::Firewall;
pub use leg::{INTERFACE, is_up, remove};

/// Somebody may have changed the device, its routes or our table.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// After a failure.
const AGAIN: Duration = Duration::from_secs(1);

/// Keeps interface, routes, settings and rules until the task is aborted.
pub async fn keep(core: Arc<Core>, dataplane: Dataplane, firewall: Arc<Firewall>) {
    let mut snapshots = core.catalog.subscribe();
    let mut attachments = core.attachments_changed();
    let mut hello = dataplane.hello();
    let mut last_error = String::new();
    loop {
        snapshots.mark_unchanged();
        attachments.mark_unchanged();
        let up = hello.borrow_and_update().is_some();
        let done = if up { once(&core, &dataplane, &firewall).await } else { Ok(()) };
        let pause = if done.is_ok() { LOOK_EVERY } else { AGAIN };
        let error = done.err().unwrap_or_default();
        if error != last_error && !error.is_empty() {
            tracing::warn!("{INTERFACE}: {error}");
        }
        last_error = error;
        tokio::select! {
            _ = snapshots.changed() => {}
            _ = attachments.changed() => {}
            _ = hello.changed() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn once(core: &Core, dataplane: &Dataplane, firewall: &Firewall) -> Result<(), String> {
    let checked = core.checked(&core.catalog.snapshot());
    let Some(network) = checked.networks.get(DEFAULT_NETWORK) else {
        return Ok(()); // another CNI gives eth0
    };
    leg::keep_up(core, dataplane, &checked, network).await?;
    firewall.put_in_force(core).await
}
