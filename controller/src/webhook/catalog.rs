//! Networks, pools, subnets, reservations: each in the company of the others.
//!
//! A change is refused only for what it makes worse, so that objects which collide since before can be
//! mended step by step.

use multinet::rules::{
    Checked, Pool, Problem, broken_pools, moved_pools, validate_auto_pool_update, validate_delete,
    validate_network_update, validate_pool_update, validate_reserved, validate_reserved_update,
    validate_subnet_update,
};
use multinet::types::network::{Network, NetworkStatus};
use multinet::types::pool::{SpiderIPPool, SpiderReservedIP};
use multinet::types::subnet::SpiderSubnet;

use super::Objects;
use super::facts::Facts;
use super::verdict::Verdict;

/// Judges a Network.
pub(super) fn network(facts: &Facts, objects: Objects<Network>) -> Verdict {
    match (objects.old, objects.new) {
        (None, Some(new)) => {
            let before = Checked::new(&facts.catalog);
            let (after, problems) = network_problems(facts, &new);
            let mut verdict = Verdict::of(problems);
            verdict.add(moved_pools(&before, &after, |pool| facts.held_of_pool(pool).len()));
            verdict
        }
        (Some(old), Some(new)) => {
            let in_use = !facts.held_of_network(&old.metadata.name).is_empty();
            let (before, had) = network_problems(facts, &old);
            let (after, has) = network_problems(facts, &new);
            let mut verdict = Verdict::of(worse(&had, has));
            verdict.add(validate_network_update(&old, &new, in_use));
            verdict.add(moved_pools(&before, &after, |pool| facts.held_of_pool(pool).len()));
            verdict
        }
        (Some(old), None) => deletion(facts, &facts.held_of_network(&old.metadata.name)),
        (None, None) => Verdict::default(),
    }
}

/// A VNI that is left out will be found: for the rules it is there already.
fn network_problems(facts: &Facts, network: &Network) -> (Checked, Vec<Problem>) {
    let mut network = network.clone();
    if network.vni().is_none() {
        let vni = Checked::free_vni(&facts.catalog);
        network.status = Some(NetworkStatus { vni, ..network.status.unwrap_or_default() });
    }
    facts.problems_with(&network, |catalog| &mut catalog.networks)
}

/// Judges a pool. `ours`: the controller itself asks.
pub(super) fn pool(facts: &Facts, objects: Objects<SpiderIPPool>, ours: bool) -> Verdict {
    match (objects.old, objects.new) {
        (None, Some(new)) => {
            let problems = facts.problems_with(&new, |c| &mut c.pools).1;
            Verdict::of(problems)
        }
        (Some(old), Some(new)) => {
            let held = facts.held_of_pool(&old.metadata.name);
            let (before, had) = facts.problems_with(&old, |c| &mut c.pools);
            let (after, has) = facts.problems_with(&new, |c| &mut c.pools);
            let mut verdict = Verdict::of(worse(&had, has));
            verdict.add(worse(&had, validate_pool_update(&old, &new, &held)));
            if !ours {
                verdict.add(validate_auto_pool_update(&old, &new));
            }
            if verdict.errors.is_empty() {
                verdict.add(moved_pools(&before, &after, |pool| facts.held_of_pool(pool).len()));
            }
            verdict
        }
        (Some(old), None) => deletion(facts, &facts.held_of_pool(&old.metadata.name)),
        (None, None) => Verdict::default(),
    }
}

/// Judges a subnet.
pub(super) fn subnet(facts: &Facts, objects: Objects<SpiderSubnet>) -> Verdict {
    let cut_from = |subnet: &SpiderSubnet| -> Vec<Pool> {
        let checked = Checked::new(&facts.catalog);
        let Some((home, own)) = checked.subnets.get(&subnet.metadata.name) else {
            return Vec::new();
        };
        checked.pools_in(home, &own.subnet).cloned().collect()
    };
    match (objects.old, objects.new) {
        (None, Some(new)) => {
            let (checked, problems) = facts.problems_with(&new, |c| &mut c.subnets);
            let mut verdict = Verdict::of(problems);
            verdict.add(broken_pools(&Checked::new(&facts.catalog), &checked, &new));
            verdict
        }
        (Some(old), Some(new)) => {
            let had = facts.problems_with(&old, |c| &mut c.subnets).1;
            let has = facts.problems_with(&new, |c| &mut c.subnets).1;
            let mut verdict = Verdict::of(worse(&had, has));
            verdict.add(validate_subnet_update(&old, &new, &cut_from(&old)));
            verdict
        }
        (Some(old), None) => {
            let pools = cut_from(&old);
            let held: Vec<_> = pools.iter().flat_map(|p| facts.held_of_pool(&p.name)).collect();
            deletion(facts, &held)
        }
        (None, None) => Verdict::default(),
    }
}

/// Judges a reservation.
pub(super) fn reserved(objects: Objects<SpiderReservedIP>) -> Verdict {
    match (objects.old, objects.new) {
        (None, Some(new)) => Verdict::of(validate_reserved(&new)),
        (Some(old), Some(new)) => Verdict::of(validate_reserved_update(&old, &new)),
        (_, None) => Verdict::default(),
    }
}

fn deletion(facts: &Facts, held: &[(std::net::IpAddr, String)]) -> Verdict {
    let verdict = Verdict::of(validate_delete(held));
    if facts.refuse_deletion { verdict } else { verdict.warn() }
}

/// Errors that were not there before; all warnings. Values may differ: a smaller overlap is no new one.
fn worse(had: &[Problem], has: Vec<Problem>) -> Vec<Problem> {
    let known = |p: &Problem| had.iter().any(|h| h.field == p.field && h.message == p.message);
    let soften = |p: Problem| match p.is_error() && known(&p) {
        true => Problem::warning(p.field, p.value, p.message),
        false => p,
    };
    has.into_iter().map(soften).collect()
}
