//! Waiting for automatic pools: an application's first pod may be faster than the controller.

use std::sync::Arc;
use std::time::Duration;

use multinet::auto::pool_for;
use multinet::pod::parse_subnets;
use multinet::rules::{Checked, Home};

use super::ask::Asker;
use super::server::CniServer;
use crate::catalog::Snapshot;

/// The controller looks every second. A runtime gives up after minutes, and tries again.
const WITHIN: Duration = Duration::from_secs(30);

/// The catalog once it holds every automatic pool that the interfaces need, or as it is when the time
/// is over: the choice of pools then says what is missing.
pub(super) async fn await_pools(
    server: &CniServer,
    mut snapshot: Arc<Snapshot>,
    asker: &Asker,
    interfaces: &[(Home, &str)],
) -> Arc<Snapshot> {
    if asker.application.is_none() {
        return snapshot;
    }
    let catalog = &server.core.catalog;
    let mut changes = catalog.subscribe();
    // What changed before the subscription counts as well.
    changes.mark_changed();
    let deadline = tokio::time::Instant::now() + WITHIN;
    let mut told = false;
    while is_missing(&server.core.checked(&snapshot), asker, interfaces) {
        if !std::mem::replace(&mut told, true) {
            tracing::info!(pod = asker.pod.name, "waits for its application's automatic pools");
        }
        match tokio::time::timeout_at(deadline, changes.changed()).await {
            Ok(Ok(())) => snapshot = catalog.snapshot(),
            Ok(Err(_)) | Err(_) => break,
        }
    }
    snapshot
}

fn is_missing(checked: &Checked, asker: &Asker, interfaces: &[(Home, &str)]) -> bool {
    let (Some(app), Ok(choices)) = (&asker.application, parse_subnets(&asker.pod.annotations))
    else {
        return false; // what cannot be read does not come by waiting
    };
    interfaces.iter().any(|(home, interface)| {
        let mut own = choices.iter().filter(|choice| choice.interface == *interface);
        own.any(|choice| {
            let mut families = choice.families();
            families.any(|(family, _)| pool_for(checked, home, app, interface, family).is_none())
        })
    })
}
