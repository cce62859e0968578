//! Pools, free ranges, holders.

use std::collections::BTreeMap;

use anyhow::Context;
use multinet::range::{AddressSet, Family};
use multinet::types::block::{Entry, Owner};
use serde::Serialize;

use super::{Objects, shown};
use crate::out::{self, Row};

#[derive(Serialize)]
struct PoolRow {
    pool: String,
    network: String,
    subnet: String,
    addresses: u128,
    held: usize,
    resting: usize,
    free: u128,
}

impl Row for PoolRow {
    const HEAD: &'static [&'static str] =
        &["pool", "network", "subnet", "addresses", "held", "resting", "free"];
    fn cells(&self) -> Vec<String> {
        let numbers = [self.addresses, self.held as u128, self.resting as u128, self.free];
        let texts = [&self.pool, &self.network, &self.subnet].map(Clone::clone);
        texts.into_iter().chain(numbers.map(|n| n.to_string())).collect()
    }
}

/// Every pool that serves.
pub(super) fn pools(objects: &Objects, json: bool) -> anyhow::Result<()> {
    let mut counts: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for (_, entry) in objects.entries() {
        let (held, resting) = counts.entry(&entry.pool).or_default();
        if entry.state.is_held() { *held += 1 } else { *resting += 1 }
    }
    let row = |(name, (home, pool)): (&String, &(multinet::rules::Home, multinet::rules::Pool))| {
        let addresses = objects.checked.allocatable(home, pool).len();
        let (held, resting) = counts.get(name.as_str()).copied().unwrap_or_default();
        PoolRow {
            pool: name.clone(),
            network: shown(home.domain()).to_owned(),
            subnet: pool.subnet.to_string(),
            addresses,
            held,
            resting,
            free: addresses.saturating_sub(held as u128),
        }
    };
    let rows: Vec<_> = objects.checked.pools.iter().map(row).collect();
    out::rows(&rows, json)?;
    for problem in objects.checked.problems.iter().filter(|p| p.problem.is_error()) {
        eprintln!("{problem}");
    }
    Ok(())
}

#[derive(Serialize)]
struct RangeRow {
    free: String,
}

impl Row for RangeRow {
    const HEAD: &'static [&'static str] = &["free"];
    fn cells(&self) -> Vec<String> {
        vec![self.free.clone()]
    }
}

/// What of a pool nobody holds.
pub(super) fn free(objects: &Objects, name: &str, json: bool) -> anyhow::Result<()> {
    let (home, pool) = objects.checked.pools.get(name).with_context(|| {
        let known: Vec<_> = objects.checked.pools.keys().map(String::as_str).collect();
        format!("no pool {name} serves; these do: {}", known.join(", "))
    })?;
    let family = pool.family;
    let taken = objects.entries().filter(|(domain, entry)| {
        *domain == home.domain() && entry.state.is_held() && Family::of(entry.address) == family
    });
    let taken = AddressSet::from_addresses(family, taken.map(|(_, entry)| entry.address));
    let free = objects.checked.allocatable(home, pool).minus(&taken);
    let rows: Vec<_> = free.to_texts().map(|free| RangeRow { free }).collect();
    out::rows(&rows, json)
}

#[derive(Serialize)]
struct HolderRow {
    address: String,
    network: String,
    pool: String,
    state: String,
    holder: String,
    interface: String,
    node: String,
    sandbox: String,
}

impl Row for HolderRow {
    const HEAD: &'static [&'static str] =
        &["address", "network", "pool", "state", "holder", "interface", "node", "sandbox"];
    fn cells(&self) -> Vec<String> {
        let Self { address, network, pool, state, holder, interface, node, sandbox } = self;
        [address, network, pool, state, holder, interface, node, sandbox].map(Clone::clone).into()
    }
}

/// Records of an address, a pod or a node.
pub(super) fn who(objects: &Objects, whom: &str, json: bool) -> anyhow::Result<()> {
    let meant = |entry: &Entry| match &entry.owner {
        _ if entry.address.to_string() == whom => true,
        Some(Owner::Pod { namespace, name, uid }) => {
            whom == uid || whom.split_once('/') == Some((namespace, name))
        }
        Some(Owner::Node { name }) => name == whom,
        None => false,
    };
    let row = |(domain, entry): (&str, &Entry)| HolderRow {
        address: entry.address.to_string(),
        network: shown(domain).to_owned(),
        pool: entry.pool.clone(),
        state: format!("{:?}", entry.state),
        holder: entry.owner.as_ref().map(ToString::to_string).unwrap_or_default(),
        interface: entry.interface.clone(),
        node: entry.node.clone(),
        sandbox: entry.sandbox_id.clone(),
    };
    let rows: Vec<_> = objects.entries().filter(|(_, e)| meant(e)).map(row).collect();
    if rows.is_empty() && !json {
        println!("no record of {whom}: it is free, or in no pool (see `bowline ipam pools`)");
        return Ok(());
    }
    out::rows(&rows, json)
}
