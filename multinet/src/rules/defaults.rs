//! What an object says once the gaps in it are filled, as upstream's mutating webhooks fill them. All
//! of it can be read from the object and the subnet that it belongs to; running twice changes nothing.

use super::pool::Pool;
use super::{AUTO_POOL_LABEL, Checked};
use crate::range::{AddressSet, Family};
use crate::types::coordinator::SpiderCoordinator;
use crate::types::meta::{OwnerReference, Resource};
use crate::types::multus::SpiderMultusConfig;
use crate::types::pool::{PoolRoute, SpiderIPPool, SpiderReservedIP, annotation};
use crate::types::subnet::SpiderSubnet;

/// Label: a pool's prefix in dashes.
pub const POOL_CIDR_LABEL: &str = "ipam.spidernet.io/ippool-cidr";
/// Label: a subnet's prefix in dashes.
pub const SUBNET_CIDR_LABEL: &str = "ipam.spidernet.io/subnet-cidr";
/// Label: the subnet that a pool is cut from.
pub const OWNER_SUBNET_LABEL: &str = "ipam.spidernet.io/owner-spider-subnet";
/// Upstream's default of `vethMTU`.
const VETH_MTU: i64 = 1500;

/// The prefix as upstream's labels write it: `10-6-0-0-16`.
#[must_use]
pub fn cidr_label(cidr: &str) -> String {
    cidr.replace(['.', ':', '/'], "-")
}

fn version_of(subnet: &str) -> Option<i64> {
    subnet.parse().ok().map(|net| Family::of_net(&net).number())
}

/// Ranges merged and sorted where there are several. What cannot be read stays for validation.
fn merge(ips: &mut Vec<String>, version: Option<i64>) {
    let family = if version == Some(4) { Family::V4 } else { Family::V6 };
    if ips.len() > 1
        && let Ok(set) = AddressSet::parse(family, ips)
    {
        *ips = set.to_texts().collect();
    }
}

/// Fills a pool: IP version, merged ranges, labels, and what it inherits from its subnet.
pub fn fill_pool(pool: &mut SpiderIPPool, checked: &Checked) {
    let spec = &mut pool.spec;
    spec.ip_version = spec.ip_version.or_else(|| version_of(&spec.subnet));
    merge(&mut spec.ips, spec.ip_version);
    merge(&mut spec.exclude_ips, spec.ip_version);
    let label = cidr_label(&spec.subnet);
    pool.metadata.labels.insert(POOL_CIDR_LABEL.into(), label);
    if let Some(subnet) = subnet_for(pool, checked) {
        inherit(pool, subnet);
    }
}

/// The subnet with the pool's prefix, in the Network that the pool's label names (or, without label,
/// anywhere if there is but one).
fn subnet_for<'a>(pool: &SpiderIPPool, checked: &'a Checked) -> Option<&'a Pool> {
    let label = pool.metadata.labels.get(annotation::NETWORK);
    let mut found = checked.subnets.values().filter(|(home, subnet)| {
        subnet.subnet.to_string() == pool.spec.subnet && label.is_none_or(|l| home.domain() == l)
    });
    let one = found.next();
    if found.next().is_some() { None } else { one.map(|(_, subnet)| subnet) }
}

fn inherit(pool: &mut SpiderIPPool, subnet: &Pool) {
    let labels = &mut pool.metadata.labels;
    labels.insert(OWNER_SUBNET_LABEL.into(), subnet.name.clone());
    if let Some(network) = subnet.meta.labels.get(annotation::NETWORK) {
        labels.entry(annotation::NETWORK.into()).or_insert_with(|| network.clone());
    }
    if pool.spec.gateway.is_none() {
        pool.spec.gateway = subnet.gateway.map(|g| g.to_string());
    }
    // An explicit empty list blocks the inheritance.
    if pool.spec.routes.is_none() && !subnet.routes.is_empty() {
        let route = |(dst, gw): &(ipnet::IpNet, std::net::IpAddr)| PoolRoute {
            dst: dst.to_string(),
            gw: gw.to_string(),
        };
        pool.spec.routes = Some(subnet.routes.iter().map(route).collect());
    }
    if let Some(uid) = &subnet.meta.uid
        && !pool.metadata.owner_references.iter().any(|o| o.uid == *uid)
    {
        pool.metadata.owner_references.push(subnet_reference(&subnet.name, uid));
    }
}

/// The owner reference from a pool to its subnet.
pub(crate) fn subnet_reference(name: &str, uid: &str) -> OwnerReference {
    OwnerReference {
        api_version: SpiderSubnet::API_VERSION.into(),
        kind: SpiderSubnet::KIND.into(),
        name: name.into(),
        uid: uid.into(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Whether a pool was made for an application.
#[must_use]
pub fn is_auto_pool(pool: &SpiderIPPool) -> bool {
    pool.metadata.labels.contains_key(AUTO_POOL_LABEL)
}

/// Fills a subnet: IP version, merged ranges, label.
pub fn fill_subnet(subnet: &mut SpiderSubnet) {
    let spec = &mut subnet.spec;
    spec.ip_version = spec.ip_version.or_else(|| version_of(&spec.subnet));
    merge(&mut spec.ips, spec.ip_version);
    merge(&mut spec.exclude_ips, spec.ip_version);
    let label = cidr_label(&spec.subnet);
    subnet.metadata.labels.insert(SUBNET_CIDR_LABEL.into(), label);
}

/// Fills a reservation: IP version of its first address.
pub fn fill_reserved(reserved: &mut SpiderReservedIP) {
    let spec = &mut reserved.spec;
    let first = spec.ips.first().and_then(|t| t.split('-').next()?.trim().parse().ok());
    spec.ip_version = spec.ip_version.or_else(|| first.map(|a| Family::of(a).number()));
}

/// Fills a coordinator: the MTU of the link between pod and node.
pub fn fill_coordinator(coordinator: &mut SpiderCoordinator) {
    coordinator.spec.veth_mtu.get_or_insert(VETH_MTU);
}

/// Fills a configuration: a custom one has no coordinator, any other has one unless it says no.
pub fn fill_multus_config(config: &mut SpiderMultusConfig) {
    let spec = &mut config.spec;
    let kind = spec.cni_type.get_or_insert_with(|| "custom".into());
    if kind == "custom" {
        spec.enable_coordinator = Some(false);
    }
    spec.enable_coordinator.get_or_insert(true);
    spec.disable_ipam.get_or_insert(false);
}
