//! Routes of running pods follow the catalog: a prefix that a Network, or the cluster's Services, gain
//! or lose is gained or lost in the pods.

use std::sync::Arc;

use cni::error::CniError;

use super::result::result_of;
use super::routes::{RoutesNow, cluster_prefixes, routes_now};
use super::server::{CniServer, io_failure, pod_failure};
use crate::core::same_netns;
use crate::journal::{AttachedInterface, Attachment, AttachmentKey, Phase};
use crate::pod::{self, Device, policy};

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
fn changes(server: &CniServer, attachment: &Attachment) -> Vec<(usize, RoutesNow)> {
    // The node keeps the routes of its own leg itself.
    if attachment.phase != Phase::Ready || attachment.is_node_leg() {
        return Vec::new();
    }
    let snapshot = server.core.catalog.snapshot();
    let checked = server.core.checked(&snapshot);
    let cluster = cluster_prefixes(&snapshot, &server.core.node);
    let now = |interface: &AttachedInterface| {
        let now = routes_now(interface, &checked, &cluster)?;
        (!now.are_in(&interface.plan)).then_some(now)
    };
    let interfaces = attachment.interfaces.iter().enumerate();
    interfaces.filter_map(|(place, interface)| Some((place, now(interface)?))).collect()
}

async fn refresh(server: &CniServer, key: &AttachmentKey) -> Result<(), CniError> {
    let _lock = server.lock(&key.container_id).await;
    let Some(mut attachment) = server.core.attachment(key) else { return Ok(()) };
    for (place, now) in changes(server, &attachment) {
        let plan = &mut attachment.interfaces[place].plan;
        if let Device::Tap { .. } = plan.device {
            let (name, path) = (plan.name.clone(), attachment.netns.clone());
            let (inode, wanted) = (attachment.netns_inode, now.clone());
            let addresses = plan.addresses.clone();
            server
                .blocking(move || {
                    let Ok(netns) = same_netns(&path, inode) else { return Ok(()) };
                    netns.run(|| {
                        pod::replace_routes(&name, &wanted.main)?;
                        if wanted.own_table.is_empty() {
                            return Ok(());
                        }
                        policy::put_own_table(&name, &addresses, &wanted.own_table)
                    })
                })
                .await?
                .map_err(|e| pod_failure(&e))?;
        }
        now.put_into(plan);
    }
    attachment.result = Some(result_of(&attachment));
    server.core.put(attachment).map_err(|e| io_failure("write the journal", &e))
}
