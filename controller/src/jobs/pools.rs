//! What pools and subnets show of their addresses, and their finalizers. Written for people, at most
//! once per object in five seconds: upstream rewrote a growing object for every pod.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use multinet::project::{pool_status, subnet_status};
use multinet::rules::{Checked, Home};
use multinet::store::{Store, StoreError};
use multinet::types::block::{AddressBlock, Entry};
use multinet::types::meta::{Condition, ObjectMeta, Resource};
use multinet::types::pool::{IPPoolStatus, SpiderIPPool, annotation};

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
        let used = Used::of(&blocks);
        tools.metrics.free.clear();
        tools.metrics.total.clear();
        for pool in catalog.pools.values() {
            let shown = show(tools, &checked, pool, &used);
            write(tools, pool, shown.meta, shown.status, |p| &mut p.status).await?;
        }
        for subnet in catalog.subnets.values() {
            let usable = checked.subnets.get(subnet.name());
            let pools = usable.into_iter().flat_map(|(home, s)| checked.pools_in(home, &s.subnet));
            let held: Vec<&Entry> = pools.flat_map(|p| used.held_of(&p.name)).copied().collect();
            let meta = annotated(&checked, subnet, &held, None);
            let status = usable.map(|(_, s)| subnet_status(&checked, s));
            write(tools, subnet, meta, status, |s| &mut s.status).await?;
        }
        Ok(())
    }
}

/// All blocks, as pools look at them.
struct Used<'a> {
    by_network: BTreeMap<&'a str, Vec<&'a AddressBlock>>,
    held_by_pool: BTreeMap<&'a str, Vec<&'a Entry>>,
}

impl<'a> Used<'a> {
    fn of(blocks: &'a [AddressBlock]) -> Self {
        let (mut by_network, mut held_by_pool) = (BTreeMap::new(), BTreeMap::new());
        for block in blocks {
            by_network.entry(&*block.spec.network).or_insert_with(Vec::new).push(block);
            for entry in block.held() {
                held_by_pool.entry(&*entry.pool).or_insert_with(Vec::new).push(entry);
            }
        }
        Used { by_network, held_by_pool }
    }

    /// Addresses that were claimed from the pool and are in somebody's hands.
    fn held_of(&self, pool: &str) -> &[&'a Entry] {
        self.held_by_pool.get(pool).map_or(&[], Vec::as_slice)
    }

    /// Pools of different Networks may hold the same addresses.
    fn blocks_of(&self, home: &Home) -> &[&'a AddressBlock] {
        self.by_network.get(home.domain()).map_or(&[], Vec::as_slice)
    }
}

/// What a pool should say of itself.
struct Shown {
    meta: ObjectMeta,
    status: Option<IPPoolStatus>,
}

fn show(tools: &Tools, checked: &Checked, pool: &SpiderIPPool, used: &Used) -> Shown {
    let held = used.held_of(pool.name());
    let Some((home, usable)) = checked.pools.get(pool.name()) else {
        return Shown { meta: annotated(checked, pool, held, None), status: pool.status.clone() };
    };
    let projection = pool_status(checked, usable, used.blocks_of(home));
    count(tools, home, pool.name(), &projection.status);
    let meta = annotated(checked, pool, held, projection.cut);
    Shown { meta, status: Some(projection.status) }
}

fn count(tools: &Tools, home: &Home, pool: &str, status: &IPPoolStatus) {
    let label = PoolLabel { pool: pool.into(), network: home.domain().into() };
    let total = status.total_ip_count.unwrap_or(0);
    let free = total.saturating_sub(status.allocated_ip_count.unwrap_or(0)).max(0);
    tools.metrics.total.get_or_create(&label).set(total);
    tools.metrics.free.get_or_create(&label).set(free);
}

/// The metadata with finalizer and conditions. Status of these kinds has no room for conditions.
fn annotated<R: Resource>(
    checked: &Checked,
    object: &R,
    held: &[&Entry],
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
        let holders: Vec<(IpAddr, String)> = held.iter().map(|e| (e.address, e.holder())).collect();
        conditions.push(waiting(&holders));
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
