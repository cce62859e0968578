//! What people see of addresses: counts and lists in a pool's status, a subnet's pools, SpiderEndpoints.
//! Made from AddressBlocks alone; no decision reads any of it.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use serde::Serialize;

use crate::pod::machine_of;
use crate::range::{Family, number};
use crate::rules::{AUTO_POOL_LABEL, Checked, Pool};
use crate::types::block::{AddressBlock, BLOCK_SIZE, Entry, Owner};
use crate::types::endpoint::{EndpointStatus, InterfaceAllocation, PodAllocation};
use crate::types::meta::{Condition, ObjectMeta};
use crate::types::pool::{IPPoolStatus, PoolRoute};
use crate::types::subnet::{ControlledPool, ControlledPools, SubnetStatus};

/// Most records that a pool's status lists: an object of etcd holds 1.5 MiB.
pub const LISTED: usize = 5_000;
/// The condition of a pool whose list was cut.
pub const LIST_CUT: &str = "AllocatedIPsCut";

/// A record as upstream lists it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    pod: String,
    pod_uid: String,
}

/// What became of a pool.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolProjection {
    /// Its status.
    pub status: IPPoolStatus,
    /// Where the list is cut; for the annotation `bowline.dev/conditions`.
    pub cut: Option<Condition>,
}

/// A pool's status, from the blocks of its Network. Every held address of the pool's range counts,
/// whichever pool it was claimed from.
#[must_use]
pub fn pool_status(checked: &Checked, pool: &Pool, blocks: &[&AddressBlock]) -> PoolProjection {
    let held: BTreeMap<IpAddr, &Entry> = held_in(pool, blocks).collect();
    let records = held.iter().take(LISTED).map(|(address, entry)| (address, record(entry)));
    let list: BTreeMap<_, _> = records.collect();
    let text = if list.is_empty() { None } else { serde_json::to_string(&list).ok() };
    let home = checked.pools.get(&pool.name).map(|(home, _)| home);
    let total = home.map_or(pool.addresses.len(), |h| checked.allocatable(h, pool).len());
    let status = IPPoolStatus {
        allocated_ips: text,
        total_ip_count: Some(clamp(total)),
        allocated_ip_count: Some(clamp(held.len() as u128)),
    };
    PoolProjection { status, cut: (held.len() > LISTED).then(|| cut(held.len())) }
}

fn clamp(count: u128) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn held_in<'a>(
    pool: &'a Pool,
    blocks: &'a [&AddressBlock],
) -> impl Iterator<Item = (IpAddr, &'a Entry)> {
    let near = blocks.iter().copied().filter(|b| {
        b.family() == pool.family && pool.addresses.window(b.start() & !(BLOCK_SIZE - 1)) != 0
    });
    let held = near.flat_map(AddressBlock::held).map(|e| (e.address, e));
    held.filter(|(address, _)| pool.addresses.contains(*address))
}

fn record(entry: &Entry) -> Record {
    match &entry.owner {
        Some(Owner::Pod { namespace, name, uid }) => {
            let name = machine_of(name).unwrap_or(name);
            Record { pod: format!("{namespace}/{name}"), pod_uid: uid.clone() }
        }
        Some(Owner::Node { name }) => {
            Record { pod: format!("node/{name}"), pod_uid: String::new() }
        }
        None => Record { pod: String::new(), pod_uid: String::new() },
    }
}

fn cut(count: usize) -> Condition {
    Condition {
        kind: LIST_CUT.into(),
        status: "True".into(),
        reason: "TooMany".into(),
        message: format!(
            "status.allocatedIPs lists {LISTED} of {count} addresses; \
             `bowline ipam` and the AddressBlocks show all"
        ),
        ..Condition::default()
    }
}

/// A subnet's status: its pools. `auto` are names of pools with the application that they serve.
#[must_use]
pub fn subnet_status(checked: &Checked, subnet: &Pool) -> SubnetStatus {
    let home = checked.subnets.get(&subnet.name).map(|(home, _)| home);
    let pools: Vec<&Pool> =
        home.into_iter().flat_map(|home| checked.pools_in(home, &subnet.subnet)).collect();
    let given = pools.iter().fold(0u128, |sum, p| sum.saturating_add(p.addresses.len()));
    let controlled: ControlledPools = pools
        .iter()
        .map(|pool| {
            let ips = pool.addresses.to_texts().collect();
            let application = application_of(&pool.meta);
            (pool.name.clone(), ControlledPool { ips, application })
        })
        .collect();
    let text = if controlled.is_empty() { None } else { serde_json::to_string(&controlled).ok() };
    SubnetStatus {
        controlled_ip_pools: text,
        total_ip_count: Some(clamp(subnet.addresses.len())),
        allocated_ip_count: Some(clamp(given)),
    }
}

/// `apps_v1_Deployment_<namespace>_<name>` of an automatic pool.
fn application_of(meta: &ObjectMeta) -> Option<String> {
    meta.labels.get(AUTO_POOL_LABEL)?;
    let label =
        |part: &str| meta.labels.get(&format!("ipam.spidernet.io/owner-application-{part}"));
    let parts = [label("gv")?, label("kind")?, label("namespace")?, label("name")?];
    Some(parts.map(String::as_str).join("_"))
}

/// The status of a pod's SpiderEndpoint from the records that it holds: one element per interface.
/// `owner` is kind and name of its outermost controller.
#[must_use]
pub fn endpoint_status(
    checked: &Checked,
    entries: &[Entry],
    owner: (&str, &str),
) -> Option<EndpointStatus> {
    let first = entries.first()?;
    let Some(Owner::Pod { uid, .. }) = &first.owner else { return None };
    let mut interfaces: BTreeMap<&str, InterfaceAllocation> = BTreeMap::new();
    for entry in entries {
        let allocation = interfaces.entry(&entry.interface).or_default();
        allocation.interface.clone_from(&entry.interface);
        describe(allocation, entry, checked.pools.get(&entry.pool).map(|(_, pool)| pool));
    }
    Some(EndpointStatus {
        current: PodAllocation {
            uid: uid.clone(),
            node: first.node.clone(),
            ips: interfaces.into_values().collect(),
        },
        owner_controller_type: owner.0.into(),
        owner_controller_name: owner.1.into(),
    })
}

fn describe(allocation: &mut InterfaceAllocation, entry: &Entry, pool: Option<&Pool>) {
    let length = pool.map_or(Family::of(entry.address).bits(), |p| p.subnet.prefix_len());
    let address = Some(format!("{}/{length}", entry.address));
    let gateway = pool.and_then(|p| p.gateway).map(|g| g.to_string());
    let from = (!entry.pool.is_empty()).then(|| entry.pool.clone());
    if entry.address.is_ipv4() {
        allocation.ipv4 = address;
        allocation.ipv4_pool = from;
        allocation.ipv4_gateway = gateway;
    } else {
        allocation.ipv6 = address;
        allocation.ipv6_pool = from;
        allocation.ipv6_gateway = gateway;
    }
    let routes = pool.map_or(&[][..], |p| &p.routes);
    let route =
        |(dst, gw): &(ipnet::IpNet, IpAddr)| PoolRoute { dst: dst.to_string(), gw: gw.to_string() };
    allocation.routes.extend(routes.iter().map(route));
}

/// Held records by pod (namespace, name of the pod or machine), for [`endpoint_status`].
#[must_use]
pub fn by_pod<'a>(
    blocks: impl IntoIterator<Item = &'a AddressBlock>,
) -> HashMap<(String, String), Vec<Entry>> {
    let mut pods: HashMap<(String, String), Vec<Entry>> = HashMap::new();
    for entry in blocks.into_iter().flat_map(AddressBlock::held) {
        if let Some(Owner::Pod { namespace, name, .. }) = &entry.owner {
            let name = machine_of(name).unwrap_or(name);
            pods.entry((namespace.clone(), name.into())).or_default().push(entry.clone());
        }
    }
    for entries in pods.values_mut() {
        entries.sort_by_key(|e| (e.interface.clone(), number(e.address)));
    }
    pods
}
