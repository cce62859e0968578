//! Virtual machines that migrate to this node. Until a migration is complete the machine runs at its source,
//! which holds its addresses. When that node has given them up they are claimed here, and only then does the
//! realm send here what is meant for the machine.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use multinet::ipam::{Candidate, Request};
use multinet::range::{AddressSet, Family};
use multinet::rules::{Binding, ReuseDelay, Strategy};

use super::server::CniServer;
use crate::journal::{AttachedInterface, Attachment, AttachmentKey, Phase};

/// A machine that has moved is out of reach for so long at most, besides the write.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Follows migrations until the agent stops.
pub(super) async fn keep(server: Arc<CniServer>) {
    let mut changes = server.core.attachments_changed();
    loop {
        changes.mark_unchanged();
        let mut arriving = server.core.attachments();
        arriving.retain(is_arriving);
        for attachment in &arriving {
            arrive(&server, &attachment.key).await;
        }
        if arriving.is_empty() {
            if changes.changed().await.is_err() {
                return;
            }
        } else {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

fn is_arriving(attachment: &Attachment) -> bool {
    attachment.arriving && attachment.phase == Phase::Ready
}

/// Claims what the source has given up; with the last of its addresses the machine is here.
async fn arrive(server: &CniServer, key: &AttachmentKey) {
    let _lock = server.lock(&key.container_id).await;
    let Some(mut attachment) = server.core.attachment(key).filter(is_arriving) else { return };
    let store = server.core.catalog.store();
    for network in attachment.networks() {
        let of_network = attachment.interfaces.iter().filter(|i| i.network == network);
        let requests = of_network.flat_map(|i| requests(server, &attachment, i)).collect();
        match server.writes.claim(&store, &network, requests).await {
            Ok(claims) if claims.iter().any(|claim| claim.elsewhere) => return,
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(attachment = %key, network, "a machine that migrates here has no addresses yet: {error}");
                return;
            }
        }
    }
    attachment.arriving = false;
    match server.core.put(attachment.clone()) {
        Ok(()) => {
            tracing::info!(attachment = %key, "its virtual machine has moved here");
            server.confirm_later(&attachment);
        }
        Err(error) => tracing::error!("the journal cannot be written: {error}"),
    }
}

/// A claim of each address that the ADD was given.
fn requests(
    server: &CniServer,
    attachment: &Attachment,
    interface: &AttachedInterface,
) -> Vec<Request> {
    let request = |address: IpAddr, pool: &String| Request {
        owner: attachment.owner.clone(),
        interface: interface.plan.name.clone(),
        family: Family::of(address),
        sandbox_id: attachment.key.container_id.clone(),
        node: server.core.node.clone(),
        candidates: vec![Candidate {
            pool: pool.clone(),
            addresses: AddressSet::from_addresses(Family::of(address), [address]),
            strategy: Strategy::default(),
            reuse_delay: ReuseDelay::default(),
            binding: Binding::Never,
        }],
        exact: Some(address),
        sticky: true,
        moves: true,
        cluster_nodes: 1,
    };
    let addresses = interface.plan.addresses.iter().map(ipnet::IpNet::addr);
    addresses.zip(&interface.pools).map(|(address, pool)| request(address, pool)).collect()
}
