//! Running pods follow the cluster's prefixes: when the SpiderCoordinator tells others than before,
//! the routes to them are written and removed in every pod that a coordinator was called for.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cni::error::CniError;
use cni::rpc::Request;
use ipnet::IpNet;
use multinet::types::coordinator::{DEFAULT_COORDINATOR, SpiderCoordinator};
use multinet::types::meta::Resource;

use super::plan::{FIRST, LINK};
use super::{Call, settings};
use crate::catalog::Snapshot;
use crate::cni_server::server::{CniServer, io_failure, pod_failure};
use crate::core::same_netns;
use crate::journal::AttachmentKey;
use crate::notes::Coordinated;
use crate::pod::policy::{self, MAIN_TABLE, TableRoute};

/// A pod that could not be served is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// Follows the SpiderCoordinator until the agent stops. Begins with what changed while it was away.
pub(in crate::cni_server) async fn keep(server: Arc<CniServer>) {
    let mut snapshots = server.core.catalog.subscribe();
    let mut served: Option<Snapshot> = None;
    loop {
        let now = snapshots.borrow_and_update().clone();
        let same = |before: &Snapshot| now.same_of_kind::<SpiderCoordinator>(before);
        if !served.as_ref().is_some_and(same) {
            served = all(&server).await.then(|| now.only(&[SpiderCoordinator::KIND]));
        }
        let pause = if served.is_some() { Duration::MAX } else { TRY_AGAIN };
        if let Ok(Err(_)) = tokio::time::timeout(pause, snapshots.changed()).await {
            return;
        }
    }
}

/// Was every pod served?
async fn all(server: &CniServer) -> bool {
    let keys = match server.core.coordinated.keys(|_| true) {
        Ok(keys) => keys,
        Err(e) => {
            tracing::error!("which pods a coordinator served cannot be read: {e}");
            return false;
        }
    };
    let mut every = true;
    for key in keys {
        match one(server, &key).await {
            Ok(false) => {}
            Ok(true) => tracing::info!(attachment = %key, "the pod's routes follow the cluster"),
            Err(e) => {
                tracing::warn!(attachment = %key, "the pod's routes are old: {}", e.msg);
                every = false;
            }
        }
    }
    every
}

/// Did the pod's routes change?
async fn one(server: &CniServer, key: &AttachmentKey) -> Result<bool, CniError> {
    let _lock = server.lock(&key.container_id).await;
    let remembered = server.core.coordinated.get(key);
    let remembered = remembered.map_err(|e| io_failure("read what a coordinator wrote", &e))?;
    let Some(pod) = remembered else { return Ok(false) }; // its DEL came first
    if same_netns(Path::new(&pod.request.netns), pod.netns_inode).is_err() {
        forget(server, key)?;
        return Ok(false);
    }
    let snapshot = server.core.catalog.snapshot();
    let cluster = snapshot.get::<SpiderCoordinator>(None, DEFAULT_COORDINATOR);
    // While the object tells no prefixes, those that it told last stay.
    let Ok(wanted) = settings::read(&pod.request, cluster.as_deref(), None) else {
        return Ok(false);
    };
    if wanted.through_node == pod.through_node {
        return Ok(false);
    }
    let call = Call::new(server, &pod.request, key.clone()).await?;
    let now = Coordinated { through_node: call.settings.through_node.clone(), ..pod.clone() };
    server.blocking(move || call.follow(&pod.through_node)).await??;
    remember(server, key, &now)?;
    Ok(true)
}

/// From now on the pod follows.
pub(super) fn remember(
    server: &CniServer,
    key: &AttachmentKey,
    pod: &Coordinated,
) -> Result<(), CniError> {
    let done = server.core.coordinated.put(key, pod);
    done.map_err(|e| io_failure("note what the coordinator was called with", &e))
}

/// What the runtime does not know any more is forgotten, as far as this configuration asked for it.
pub(super) async fn gc(server: &CniServer, request: &Request) -> Result<(), CniError> {
    let Some(valid) = &request.config.valid_attachments else {
        return Ok(()); // nothing is said, so nothing is known to be stale
    };
    let asked = server.core.coordinated.keys(|pod| pod.request.config.name == request.config.name);
    for key in asked.map_err(|e| io_failure("read which pods a coordinator served", &e))? {
        if valid.iter().any(|v| v.container_id == key.container_id && v.ifname == key.ifname) {
            continue;
        }
        let _lock = server.lock(&key.container_id).await;
        forget(server, &key)?;
    }
    Ok(())
}

/// The pod is gone.
pub(in crate::cni_server) fn forget(
    server: &CniServer,
    key: &AttachmentKey,
) -> Result<(), CniError> {
    let done = server.core.coordinated.forget(key);
    done.map_err(|e| io_failure("forget what the coordinator was called with", &e))
}

impl Call {
    /// Writes the routes to prefixes that are new since `before`, and removes those to prefixes that are
    /// gone. Nothing else that an ADD decides is touched: the pod may have changed it since.
    fn follow(&self, before: &[IpNet]) -> Result<(), CniError> {
        let Some((plan, view, _)) = self.plan()? else { return Ok(()) };
        let now = &self.settings.through_node;
        let new = plan.routes.iter().filter(|r| now.contains(&r.dst) && !before.contains(&r.dst));
        // Routes of Bowline's own eth0 in the main table follow its pools.
        let own = view.link(FIRST).is_some_and(|link| link.kind == "tun");
        let to_node =
            |r: &TableRoute| r.dev == LINK || (r.dev == FIRST && !(own && r.table == MAIN_TABLE));
        let planned =
            |r: &TableRoute| plan.routes.iter().any(|p| (p.table, p.dst) == (r.table, r.dst));
        let gone = view.ours.iter().filter(|r| {
            before.contains(&r.dst) && !now.contains(&r.dst) && to_node(r) && !planned(r)
        });
        let written = self.netns.run(|| {
            new.cloned().try_for_each(|route| policy::put_route(&route))?;
            gone.cloned().try_for_each(|route| policy::remove_route(&route))
        });
        written.map_err(|e| pod_failure(&e))
    }
}
