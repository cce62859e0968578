//! Addresses that `bowline ipam import` has claimed for pods which got them from Spiderpool: no sandbox
//! is known for them.
//!
//! A runtime may send DELs of a pod's older sandboxes while the pod runs on. So an imported address goes
//! with the DEL of that namespace which has it; else it is reclaimed when its pod is gone.

use std::net::IpAddr;
use std::path::Path;

use cni::rpc::Request;
use multinet::ipam::{self, Holder};
use multinet::store::{Store, StoreError};
use multinet::types::block::Entry;

use super::addresses::now_ms;
use super::lan::DOMAIN;
use super::remove;
use super::server::CniServer;
use crate::journal::AttachmentKey;
use crate::pod::{self, Netns};

/// Gives back, or leaves to the next pod of the same name, what was imported for the interface that a DEL
/// takes down.
pub(super) async fn release(
    server: &CniServer,
    request: &Request,
    key: &AttachmentKey,
) -> Result<(), StoreError> {
    let store = server.core.catalog.store();
    let blocks = store.blocks(DOMAIN).await?;
    let its_own = |entry: &&Entry| {
        ipam::is_imported(entry, &server.core.node, &request.pod.uid)
            && entry.interface == key.ifname
    };
    let records: Vec<Entry> =
        blocks.iter().flat_map(|block| block.held()).filter(its_own).cloned().collect();
    let Some(owner) = records.first().and_then(|record| record.owner.clone()) else {
        return Ok(());
    };
    let there = addresses_there(server, request, key).await;
    if !records.iter().any(|record| there.contains(&record.address)) {
        return Ok(());
    }
    let outlives = remove::outlive_pod(server, &owner).await.map_err(StoreError::Unavailable)?;
    let holder = Holder { owner: Some(&owner), sandbox_id: "", interface: Some(&key.ifname) };
    let _turn = store.turn(DOMAIN).await;
    ipam::modify(&store, DOMAIN, |view| {
        if outlives {
            ipam::plan_keep(view, holder, now_ms());
        } else {
            ipam::plan_release(view, holder, now_ms());
        }
    })
    .await
}

/// What the interface has in the namespace that the DEL names; nothing where it is gone.
async fn addresses_there(
    server: &CniServer,
    request: &Request,
    key: &AttachmentKey,
) -> Vec<IpAddr> {
    let (path, name) = (request.netns.clone(), key.ifname.clone());
    let read = move || {
        let netns = Netns::open(Path::new(&path)).ok()?;
        netns.run(|| pod::inspect(&name)).ok()?
    };
    let found = server.blocking(read).await.ok().flatten();
    found.into_iter().flat_map(|found| found.addresses).map(|net| net.addr()).collect()
}
