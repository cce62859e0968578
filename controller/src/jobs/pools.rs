//! What pools and subnets show of their addresses, and their finalizers. Written for people, at most
//! once per object in five seconds: upstream rewrote a growing object for every pod.

use std::net::IpAddr;
use std::time::Duration;

use multinet::project::{pool_status, subnet_status};
use multinet::rules::{Checked, Home};
use multinet::store::{Store, StoreError};
use multinet::types::block::AddressBlock;
use multinet::types::meta::{Condition, ObjectMeta, Resource};
use multinet::types::pool::{IPPoolStatus, SpiderIPPool, annotation};
use multinet::types::subnet::SpiderSubnet;

use super::finalizers::{SPIDERPOOL_FINALIZER, settle, waiting};
use super::networks::date;
use super::{Job, Tools};
use crate::metrics::PoolLabel;

/// The job.
pub(super) struct Pools;

impl Job for Pools {
    const NAME: &'static str = "pools";
    const PAUSE: Duration = Duration::from_secs(5);
    const EVERY: Duration = Duration::from_secs(10);
    const WITHHELD: bool = true;

    async fn pass(&mut self, tools: &Tools) -> Result<(), StoreError> {
        let catalog = tools.world.catalog();
        let checked = Checked::new(&catalog);
        let blocks = tools.world.blocks.all();
        tools.metrics.free.clear();
        tools.metrics.total.clear();
        for pool in catalog.pools.values() {
            let shown = show(tools, &checked, pool, &blocks);
            write(tools, pool, shown.meta, shown.status, |p| &mut p.status).await?;
        }
        for subnet in catalog.subnets.values() {
            let held: Vec<_> =
                pools_of(&checked, subnet).iter().flat_map(|p| holders(p, &blocks)).collect();
            let meta = annotated(&checked, subnet, &held, None);
            let status =
                checked.subnets.get(subnet.name()).map(|(_, s)| subnet_status(&checked, s));
            write(tools, subnet, meta, status, |s| &mut s.status).await?;
        }
        Ok(())
    }
}

/// What a pool should say of itself.
struct Shown {
    meta: ObjectMeta,
    status: Option<IPPoolStatus>,
}

fn show(tools: &Tools, checked: &Checked, pool: &SpiderIPPool, blocks: &[AddressBlock]) -> Shown {
    let held = holders(pool.name(), blocks);
    let Some((home, usable)) = checked.pools.get(pool.name()) else {
        return Shown { meta: annotated(checked, pool, &held, None), status: pool.status.clone() };
    };
    // Pools of different Networks may hold the same addresses.
    let own: Vec<AddressBlock> =
        blocks.iter().filter(|b| b.spec.network == home.domain()).cloned().collect();
    let projection = pool_status(checked, usable, &own);
    count(tools, home, pool.name(), &projection.status);
    let meta = annotated(checked, pool, &held, projection.cut);
    Shown { meta, status: Some(projection.status) }
}

fn count(tools: &Tools, home: &Home, pool: &str, status: &IPPoolStatus) {
    let label = PoolLabel { pool: pool.into(), network: home.domain().into() };
    let total = status.total_ip_count.unwrap_or(0);
    let free = total.saturating_sub(status.allocated_ip_count.unwrap_or(0)).max(0);
    tools.metrics.total.get_or_create(&label).set(total);
    tools.metrics.free.get_or_create(&label).set(free);
}

/// Addresses that were claimed from the pool and are in somebody's hands.
fn holders(pool: &str, blocks: &[AddressBlock]) -> Vec<(IpAddr, String)> {
    let entries = blocks.iter().flat_map(AddressBlock::held).filter(|e| e.pool == pool);
    let who = |o: Option<&multinet::types::block::Owner>| {
        o.map_or_else(|| "somebody".into(), ToString::to_string)
    };
    entries.map(|e| (e.address, who(e.owner.as_ref()))).collect()
}

fn pools_of(checked: &Checked, subnet: &SpiderSubnet) -> Vec<String> {
    let Some((home, own)) = checked.subnets.get(subnet.name()) else { return Vec::new() };
    let pools = checked.pools_of(home.domain()).filter(|p| p.subnet == own.subnet);
    pools.map(|p| p.name.clone()).collect()
}

/// The metadata with finalizer and conditions. Status of these kinds has no room for conditions.
fn annotated<R: Resource>(
    checked: &Checked,
    object: &R,
    held: &[(IpAddr, String)],
    cut: Option<Condition>,
) -> ObjectMeta {
    let mut meta = object.meta().clone();
    settle(&mut meta, SPIDERPOOL_FINALIZER, !held.is_empty());
    let before: Vec<Condition> = meta
        .annotations
        .get(annotation::CONDITIONS)
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default();
    let problem = checked.problems_of(R::KIND, &meta.name).find(|p| p.is_error());
    let mut conditions = vec![match problem {
        Some(problem) => condition("False", "Refused", problem.to_string()),
        None => condition("True", "Ready", "addresses can be claimed".into()),
    }];
    if meta.is_terminating() && !held.is_empty() {
        conditions.push(waiting(held));
    }
    conditions.extend(cut);
    for condition in &mut conditions {
        date(condition, &before);
    }
    if let Ok(text) = serde_json::to_string(&conditions) {
        meta.annotations.insert(annotation::CONDITIONS.into(), text);
    }
    meta
}

fn condition(status: &str, reason: &str, message: String) -> Condition {
    Condition {
        kind: "Ready".into(),
        status: status.into(),
        reason: reason.into(),
        message,
        ..Condition::default()
    }
}

/// Writes what differs: the metadata, then the status.
async fn write<R: Resource + PartialEq, S: PartialEq>(
    tools: &Tools,
    stored: &R,
    meta: ObjectMeta,
    status: Option<S>,
    field: impl Fn(&mut R) -> &mut Option<S>,
) -> Result<(), StoreError> {
    let mut object = stored.clone();
    *object.meta_mut() = meta;
    if object != *stored {
        match tools.written(Pools::NAME, tools.store.update(&object).await)? {
            Some(written)
                if !written.meta().finalizers.is_empty() || !written.meta().is_terminating() =>
            {
                object = written;
            }
            // It went with its finalizer, or somebody was faster.
            _ => return Ok(()),
        }
    }
    let mut shown = object.clone();
    *field(&mut shown) = status;
    if shown != object {
        tools.written(Pools::NAME, tools.store.update_status(&shown).await)?;
    }
    Ok(())
}
