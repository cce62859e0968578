//! Routes of running pods follow the pools: a prefix that a Network gains or loses is gained or lost
//! in its pods.

use std::sync::Arc;

use cni::error::CniError;

use super::result::result_of;
use super::routes::routes_now;
use super::server::{CniServer, io_failure, pod_failure};
use crate::core::same_netns;
use crate::journal::{Attachment, AttachmentKey, Phase};
use crate::pod::{self, Device, PodRoute};

/// Follows the catalog until the agent stops.
pub(super) async fn keep(server: Arc<CniServer>) {
    let mut snapshots = server.core.catalog.subscribe();
    while snapshots.changed().await.is_ok() {
        snapshots.mark_unchanged();
        for attachment in server.core.attachments() {
            if changes(&server, &attachment).is_empty() {
                continue;
            }
            let key = &attachment.key;
            match refresh(&server, key).await {
                Ok(()) => tracing::info!(attachment = %key, "the pod's routes follow its pools"),
                Err(e) => tracing::warn!(attachment = %key, "the pod's routes are old: {}", e.msg),
            }
        }
    }
}

/// The interfaces, by place, whose routes are not those that the pools want, and what they want.
fn changes(server: &CniServer, attachment: &Attachment) -> Vec<(usize, Vec<PodRoute>)> {
    // The node keeps the routes of its own leg itself.
    if attachment.phase != Phase::Ready || attachment.is_node_leg() {
        return Vec::new();
    }
    let checked = server.core.checked(&server.core.catalog.snapshot());
    let interfaces = attachment.interfaces.iter().enumerate();
    interfaces
        .filter_map(|(place, interface)| Some((place, interface, routes_now(interface, &checked)?)))
        .filter(|(_, interface, routes)| *routes != interface.plan.routes)
        .map(|(place, _, routes)| (place, routes))
        .collect()
}

async fn refresh(server: &CniServer, key: &AttachmentKey) -> Result<(), CniError> {
    let _lock = server.lock(&key.container_id).await;
    let Some(mut attachment) = server.core.attachment(key) else { return Ok(()) };
    for (place, routes) in changes(server, &attachment) {
        let plan = &mut attachment.interfaces[place].plan;
        if let Device::Tap { .. } = plan.device {
            let (name, path) = (plan.name.clone(), attachment.netns.clone());
            let (inode, wanted) = (attachment.netns_inode, routes.clone());
            server
                .blocking(move || {
                    let Ok(netns) = same_netns(&path, inode) else { return Ok(()) };
                    netns.run(|| pod::replace_routes(&name, &wanted))
                })
                .await?
                .map_err(|e| pod_failure(&e))?;
        }
        plan.routes = routes;
    }
    attachment.result = Some(result_of(&attachment));
    server.core.put(attachment).map_err(|e| io_failure("write the journal", &e))
}
