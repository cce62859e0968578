//! DEL, GC, and finishing what a death of the agent cut off.

use std::sync::Arc;
use std::time::Duration;

use cni::error::CniError;
use cni::rpc::Request;
use multinet::pod::Stickiness;
use multinet::store::StoreError;
use multinet::types::block::Owner;

use super::addresses;
use super::server::CniServer;
use crate::core::same_netns;
use crate::dataplane::DataplaneError;
use crate::journal::{Attachment, AttachmentKey, Phase};
use crate::pod::{self, policy};

/// A DEL waits so long for the data plane; an interface whose descriptors are gone forwards nothing
/// anyway.
const FORGET_WITHIN: Duration = Duration::from_millis(1500);
/// Removals that could not finish are tried again at this interval.
const AGAIN: Duration = Duration::from_secs(3);

/// Serves a DEL. It never fails: what cannot be finished now is finished later.
pub(super) async fn del(server: &CniServer, key: &AttachmentKey) {
    let Some(mut attachment) = server.core.attachment(key) else {
        release_unknown(server, key).await;
        return;
    };
    attachment.phase = Phase::Removing;
    if let Err(e) = server.core.put(attachment.clone()) {
        tracing::error!("the journal cannot be written: {e}");
    }
    finish(server, &attachment).await;
}

/// Takes down what is there, gives back the addresses, forgets.
pub(super) async fn finish(server: &CniServer, attachment: &Attachment) {
    server.take_down(attachment).await;
    let store = server.core.catalog.store();
    let sandbox = &attachment.key.container_id;
    let networks = attachment.networks();
    let outlive = match attachment.sticky {
        true => outlive_pod(server, &attachment.owner).await,
        false => Ok(false),
    };
    let given_back = match outlive {
        Ok(true) => addresses::keep(&store, &networks, sandbox, None).await,
        Ok(false) => {
            let names = attachment.names();
            addresses::release(&server.writes, &store, &networks, sandbox, &names).await
        }
        Err(why) => Err(StoreError::Unavailable(why)),
    };
    match given_back {
        Ok(()) => {
            if let Err(e) = server.core.forget(&attachment.key) {
                tracing::error!("the journal cannot be written: {e}");
            }
        }
        Err(e) => tracing::warn!(sandbox, "addresses are released later: {e}"),
    }
}

/// Whether an owner's addresses wait for the next pod of the same name.
pub(super) async fn outlive_pod(server: &CniServer, owner: &Owner) -> Result<bool, String> {
    match server.core.catalog.api() {
        Some(api) => {
            let client = api.store().api().client();
            bowline_kube::addresses_outlive_pod(client, owner, Stickiness::default()).await
        }
        // Files know no StatefulSets: a released address is its last holder's as long as it is free.
        None => Ok(false),
    }
}

/// No attachment is known: an ADD may have died between its claim and its journal.
async fn release_unknown(server: &CniServer, key: &AttachmentKey) {
    let store = server.core.catalog.store();
    let held = addresses::held_by(&store, &key.container_id).await;
    // Other attachments of the sandbox keep theirs.
    let others: Vec<String> = server
        .core
        .attachments()
        .iter()
        .filter(|a| a.key.container_id == key.container_id)
        .flat_map(Attachment::names)
        .collect();
    let released = match held {
        Ok((networks, names)) => {
            let names: Vec<_> = names.into_iter().filter(|n| !others.contains(n)).collect();
            if names.is_empty() {
                return;
            }
            addresses::release(&server.writes, &store, &networks, &key.container_id, &names).await
        }
        Err(e) => Err(e),
    };
    if let Err(e) = released {
        tracing::warn!(attachment = %key, "addresses of an unknown attachment stay until the next try: {e}");
        server.forget_later(key);
    }
}

/// Serves a GC: what the runtime does not know any more is removed.
pub(super) async fn gc(server: &Arc<CniServer>, request: &Request) -> Result<(), CniError> {
    let Some(valid) = &request.config.valid_attachments else {
        return Ok(()); // nothing is said, so nothing is known to be stale
    };
    for attachment in server.core.attachments() {
        let key = &attachment.key;
        let known =
            valid.iter().any(|v| v.container_id == key.container_id && v.ifname == key.ifname);
        if !known && attachment.conf_name == request.config.name {
            tracing::info!(attachment = %key, "removed: the runtime does not know it any more");
            let _lock = server.lock(&key.container_id).await;
            del(server, key).await;
        }
    }
    Ok(())
}

/// At the start: what was cut off is taken back, and addresses without attachment are freed.
pub(super) async fn clean_up(server: &CniServer) {
    for attachment in server.core.attachments() {
        match attachment.phase {
            // Made again when its time comes; its address stays the Node's.
            _ if attachment.is_node_leg() => {}
            Phase::Ready => server.confirm_later(&attachment),
            Phase::Making | Phase::Removing => {
                tracing::warn!(attachment = %attachment.key, phase = ?attachment.phase,
                    "was cut off; it is taken back");
                let _lock = server.lock(&attachment.key.container_id).await;
                del(server, &attachment.key).await;
            }
        }
    }
    match server.core.journal.noted_networks() {
        Ok(networks) => free_remnants(server, Some(&networks)).await,
        Err(e) => tracing::warn!("addresses of cut-off ADDs stay until they are reclaimed: {e}"),
    }
}

/// Tries again, until the agent stops, what could not be finished.
pub(super) async fn keep_trying(server: Arc<CniServer>) {
    loop {
        tokio::time::sleep(AGAIN).await;
        let mut pending = 0;
        for attachment in server.core.attachments() {
            if attachment.phase != Phase::Removing {
                continue;
            }
            let _lock = server.lock(&attachment.key.container_id).await;
            // A DEL may have finished it while we waited for the lock.
            if let Some(attachment) =
                server.core.attachment(&attachment.key).filter(|a| a.phase == Phase::Removing)
            {
                finish(&server, &attachment).await;
                pending += i64::from(server.core.attachment(&attachment.key).is_some());
            }
        }
        for key in server.take_forgotten() {
            let _lock = server.lock(&key.container_id).await;
            release_unknown(&server, &key).await;
        }
        free_remnants(&server, None).await;
        server.confirm_again();
        server.metrics.pending_removals.set(pending);
        server.metrics.attachments.set(server.core.attachments().len().try_into().unwrap_or(0));
    }
}

async fn free_remnants(server: &CniServer, claimed_in: Option<&[String]>) {
    let attachments = server.core.attachments();
    let known = |sandbox: &str, interface: &str| {
        attachments.iter().any(|a| {
            a.key.container_id == sandbox && a.names().iter().any(|name| name == interface)
        })
    };
    let store = server.core.catalog.store();
    match addresses::free_remnants(&store, &server.core.node, known, claimed_in).await {
        Ok(0) => {}
        Ok(freed) => tracing::info!(freed, "freed addresses that a cut-off ADD had claimed"),
        Err(e) => tracing::warn!("addresses of cut-off ADDs stay until the next try: {e}"),
    }
}

impl CniServer {
    /// Removes an attachment's interfaces from the data plane and from the pod. What is gone already
    /// is fine.
    pub(super) async fn take_down(&self, attachment: &Attachment) {
        // Out of the desired state first, in memory and on disk.
        let mut removing = attachment.clone();
        removing.phase = Phase::Removing;
        if let Err(e) = self.core.put(removing) {
            tracing::error!("the journal cannot be written: {e}");
        }
        self.close_ports(attachment).await;
        for interface in &attachment.interfaces {
            self.dataplane.release(&attachment.key.interface_id(&interface.plan.name));
        }
        match self.dataplane.sync(None, FORGET_WITHIN).await {
            Ok(()) | Err(DataplaneError::Away { .. }) => {}
            Err(e) => tracing::warn!(attachment = %attachment.key, "{e}"),
        }
        let (names, path) = (attachment.names(), attachment.netns.clone());
        let by_source = attachment.interfaces.iter().filter(|i| i.by_source);
        let addresses: Vec<_> = by_source.flat_map(|i| i.plan.addresses.clone()).collect();
        let inode = attachment.netns_inode;
        let removed = self
            .blocking(move || {
                // With its namespace a pod's devices are gone.
                let Ok(netns) = same_netns(&path, inode) else { return Ok(()) };
                netns.run(|| {
                    names.iter().try_for_each(|name| pod::remove(name))?;
                    policy::remove_source_rules(&addresses)
                })
            })
            .await;
        match removed {
            Ok(Ok(())) => {}
            Ok(Err(e)) => tracing::warn!(attachment = %attachment.key, "{e}"),
            Err(e) => tracing::warn!(attachment = %attachment.key, "{e}"),
        }
    }
}
