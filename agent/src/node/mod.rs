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
use multinet::types::node::NodeState;

use crate::core::Core;
use crate::dataplane::Dataplane;

pub use firewall::Firewall;
pub use leg::{INTERFACE, is_up, remove};

/// Somebody may have changed the device, its routes or our table.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Pods that come together share one look, and one run of `nft`.
const GATHER: Duration = Duration::from_millis(100);
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
        tokio::time::sleep(GATHER).await;
    }
}

async fn once(core: &Core, dataplane: &Dataplane, firewall: &Firewall) -> Result<(), String> {
    let checked = core.checked(&core.catalog.snapshot());
    let Some(network) = checked.networks.get(DEFAULT_NETWORK) else {
        return Ok(()); // another CNI gives eth0
    };
    let kept = leg::keep_up(core, dataplane, &checked, network).await;
    if is_up(core) {
        firewall.put_in_force(core).await?;
    }
    kept
}

/// The taint that keeps pods away until the node can serve them.
const NOT_READY: &str = "bowline.dev/not-ready";

/// Lets pods come once the NodeState says Ready, which is what the other nodes see.
pub async fn keep_untainted(core: Arc<Core>) {
    let Some(api) = core.catalog.api() else { return };
    let mut snapshots = core.catalog.subscribe();
    let mut looked_at = None;
    loop {
        let version = api.own_node().and_then(|node| node.metadata.resource_version.clone());
        if is_ready(&core) && version != looked_at {
            match bowline_kube::remove_taint(api.store().api().client(), &core.node, NOT_READY)
                .await
            {
                Ok(had) => {
                    looked_at = version;
                    if had {
                        tracing::info!("the taint {NOT_READY} is removed: the node serves pods");
                    }
                }
                Err(why) => {
                    tracing::warn!("the taint {NOT_READY} stays until the next try: {why}");
                    tokio::time::sleep(AGAIN).await;
                    continue;
                }
            }
        }
        if snapshots.changed().await.is_err() {
            return;
        }
    }
}

fn is_ready(core: &Core) -> bool {
    let snapshot = core.catalog.snapshot();
    let state = snapshot.get::<NodeState>(None, &core.node);
    let status = state.as_ref().and_then(|state| state.status.as_ref());
    status.is_some_and(|s| s.conditions.iter().any(|c| c.kind == "Ready" && c.status == "True"))
}
