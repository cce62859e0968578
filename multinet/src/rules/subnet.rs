//! Rules of one `SpiderSubnet`. Its addresses, gateway and routes obey the rules of a pool's, so that
//! the pools cut from it do.

use std::net::IpAddr;

use super::pool::{Pool, validate_pool_update};
use super::{Problem, is_auto_pool};
use crate::range::AddressSet;
use crate::types::pool::{IPPoolSpec, SpiderIPPool};
use crate::types::subnet::SpiderSubnet;

/// The subnet as a pool without affinities.
#[must_use]
pub fn subnet_as_pool(object: &SpiderSubnet) -> SpiderIPPool {
    let spec = object.spec.clone();
    let mut pool = SpiderIPPool::new(
        &object.metadata.name,
        IPPoolSpec {
            ip_version: spec.ip_version,
            subnet: spec.subnet,
            ips: spec.ips,
            exclude_ips: spec.exclude_ips,
            gateway: spec.gateway,
            routes: Some(spec.routes),
            ..IPPoolSpec::default()
        },
    );
    pool.metadata = object.metadata.clone();
    pool
}

/// Checks a subnet; `None` where a problem is an error.
pub fn check_subnet(object: &SpiderSubnet, problems: &mut Vec<Problem>) -> Option<Pool> {
    Pool::check(&subnet_as_pool(object), problems)
}

/// Everything that is wrong with a subnet by itself.
#[must_use]
pub fn validate_subnet(object: &SpiderSubnet) -> Vec<Problem> {
    let mut problems = Vec::new();
    check_subnet(object, &mut problems);
    problems
}

/// What a change of a subnet must not change. `pools` are those cut from it.
#[must_use]
pub fn validate_subnet_update(
    old: &SpiderSubnet,
    new: &SpiderSubnet,
    pools: &[Pool],
) -> Vec<Problem> {
    let mut problems = validate_pool_update(&subnet_as_pool(old), &subnet_as_pool(new), &[]);
    let Some(subnet) = check_subnet(new, &mut Vec::new()) else { return problems };
    for pool in pools {
        problems.extend(outside_of(pool, &subnet).map(|lost| {
            let message = format!("belongs to pool {}; take it out of that pool first", pool.name);
            Problem::error("spec.ips", lost, message)
        }));
    }
    let network =
        |s: &SpiderSubnet| s.metadata.labels.get(crate::types::pool::annotation::NETWORK).cloned();
    if !pools.is_empty() && network(old) != network(new) {
        problems.push(Problem::error(
            format!("metadata.labels[{}]", crate::types::pool::annotation::NETWORK),
            network(new).unwrap_or_default(),
            format!("cannot be changed while {} pools are cut from it", pools.len()),
        ));
    }
    problems
}

/// The pool's addresses that its subnet does not have.
#[must_use]
pub fn outside_of(pool: &Pool, subnet: &Pool) -> Option<AddressSet> {
    let outside = pool.addresses.minus(&subnet.addresses);
    (!outside.is_empty()).then_some(outside)
}

/// An automatic pool's addresses follow its application and its affinity names it: nobody but the
/// controller changes them.
#[must_use]
pub fn validate_auto_pool_update(old: &SpiderIPPool, new: &SpiderIPPool) -> Vec<Problem> {
    let mut problems = Vec::new();
    if !is_auto_pool(old) {
        return problems;
    }
    let (had, has) = (&old.spec, &new.spec);
    if (&had.ips, &had.exclude_ips) != (&has.ips, &has.exclude_ips) {
        let message = "follows the application of this automatic pool; change the annotation \
                       ipam.spidernet.io/ippool-ip-number of the application instead";
        problems.push(Problem::error("spec.ips", has.ips.join(", "), message));
    }
    if had.pod_affinity != has.pod_affinity {
        let message = "names the application of this automatic pool and cannot be changed; leave it \
                       as it was, or make a pool of your own for other pods";
        problems.push(Problem::error("spec.podAffinity", "", message));
    }
    problems
}

/// Whether something may be deleted: not while addresses (or pools) of it are in use.
#[must_use]
pub fn validate_delete(holders: &[(IpAddr, String)]) -> Vec<Problem> {
    let Some((address, holder)) = holders.first() else { return Vec::new() };
    let message = format!(
        "{} addresses are in use, {address} by {holder}; delete their holders first",
        holders.len()
    );
    vec![Problem::error("metadata.name", "", message)]
}
