//! Addresses that a running Spiderpool has given, as claims: `bowline ipam import` before a switch-over,
//! so that running pods keep theirs.
//!
//! A pool's `status.allocatedIPs` says whose an address is; the SpiderEndpoint of the pod says on which
//! interface and node. The sandbox is not known to either: the claims are freed when their pods are
//! gone, or taken along by the next ADD of the same pod.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use serde::Deserialize;

use super::view::View;
use crate::pod::machine_name;
use crate::rules::{Checked, Home, ObjectProblem, Problem};
use crate::types::block::{Entry, EntryState, Owner};
use crate::types::endpoint::SpiderEndpoint;
use crate::types::meta::Resource;
use crate::types::pool::SpiderIPPool;

/// What is to be imported, and what cannot be, with the reason.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Import {
    /// Records, with the domain whose blocks they go into.
    pub claims: Vec<(Home, Entry)>,
    /// What is left out, or odd.
    pub notes: Vec<ObjectProblem>,
}

/// An element of `status.allocatedIPs`; versions before 0.9 named the interface.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Allocation {
    pod: String,
    pod_uid: String,
    interface: String,
}

/// Where a SpiderEndpoint has an address.
struct Place<'a> {
    interface: &'a str,
    node: &'a str,
    uid: &'a str,
    machine: bool,
}

/// Plans the import. `nodes` names the node of a pod (namespace, name) that has no SpiderEndpoint.
#[must_use]
pub fn plan_import(
    checked: &Checked,
    pools: &BTreeMap<String, SpiderIPPool>,
    endpoints: &[SpiderEndpoint],
    nodes: &HashMap<(String, String), String>,
    now_ms: u64,
) -> Import {
    let places = places(endpoints);
    let mut import = Import::default();
    let mut given: BTreeMap<(Home, IpAddr), String> = BTreeMap::new();
    for pool in pools.values() {
        let mut note = |field: &str, value: &str, message: String| {
            import.notes.push(ObjectProblem {
                kind: SpiderIPPool::KIND,
                name: pool.metadata.name.clone(),
                problem: Problem::warning(field, value, message),
            });
        };
        let Some(text) = pool.status.as_ref().and_then(|s| s.allocated_ips.as_deref()) else {
            continue;
        };
        let list: BTreeMap<IpAddr, Allocation> = match serde_json::from_str(text) {
            Ok(list) => list,
            Err(e) => {
                note("status.allocatedIPs", text, format!("is not read: {e}"));
                continue;
            }
        };
        let Some((home, _)) = checked.pools.get(&pool.metadata.name) else {
            let message = format!("{} addresses are not imported: the pool is refused", list.len());
            note("metadata.name", &pool.metadata.name, message);
            continue;
        };
        for (address, allocation) in list {
            match record(address, &allocation, &pool.metadata.name, &places, nodes, now_ms) {
                Ok(entry) => {
                    let key = (home.clone(), address);
                    if let Some(other) = given.insert(key, pool.metadata.name.clone()) {
                        let message = format!("is in pool {other} as well; imported once");
                        note("status.allocatedIPs", &address.to_string(), message);
                        continue;
                    }
                    import.claims.push((home.clone(), entry));
                }
                Err(why) => note("status.allocatedIPs", &address.to_string(), why),
            }
        }
    }
    import
}

/// Addresses of endpoints by (namespace, name, address).
fn places(endpoints: &[SpiderEndpoint]) -> HashMap<(&str, &str, IpAddr), Place<'_>> {
    let mut places = HashMap::new();
    for endpoint in endpoints {
        let Some(status) = &endpoint.status else { continue };
        let namespace = endpoint.metadata.namespace.as_deref().unwrap_or("");
        for allocation in &status.current.ips {
            for text in [&allocation.ipv4, &allocation.ipv6].into_iter().flatten() {
                let host = text.split('/').next().unwrap_or_default();
                let Ok(address) = host.parse::<IpAddr>() else { continue };
                let place = Place {
                    interface: &allocation.interface,
                    node: &status.current.node,
                    uid: &status.current.uid,
                    machine: status.owner_controller_type == "VirtualMachineInstance"
                        || status.owner_controller_type == "VirtualMachine",
                };
                places.insert((namespace, endpoint.metadata.name.as_str(), address), place);
            }
        }
    }
    places
}

fn record(
    address: IpAddr,
    allocation: &Allocation,
    pool: &str,
    places: &HashMap<(&str, &str, IpAddr), Place<'_>>,
    nodes: &HashMap<(String, String), String>,
    now_ms: u64,
) -> Result<Entry, String> {
    let Some((namespace, name)) = allocation.pod.split_once('/') else {
        return Err(format!("names no pod (\"{}\"); it is not imported", allocation.pod));
    };
    let place = places.get(&(namespace, name, address));
    if let Some(place) = place.filter(|p| p.uid != allocation.pod_uid) {
        let message = "is of another life of the pod than its SpiderEndpoint says";
        return Err(format!("{message} ({}); it is not imported", place.uid));
    }
    let of_pod = nodes.get(&(namespace.to_string(), name.to_string())).map(String::as_str);
    let Some(node) = place.map(|p| p.node).filter(|n| !n.is_empty()).or(of_pod) else {
        return Err(format!(
            "is of pod {namespace}/{name}, which has neither SpiderEndpoint nor node; \
             it is not imported"
        ));
    };
    let named = [place.map_or("", |p| p.interface), &allocation.interface, "eth0"];
    let interface = named.into_iter().find(|i| !i.is_empty()).unwrap_or_default();
    let machine = place.is_some_and(|p| p.machine);
    let name = if machine { machine_name(name) } else { name.into() };
    Ok(Entry {
        address,
        state: EntryState::Allocated,
        owner: Some(Owner::Pod {
            namespace: namespace.into(),
            name,
            uid: allocation.pod_uid.clone(),
        }),
        interface: interface.into(),
        pool: pool.into(),
        sandbox_id: String::new(),
        node: node.into(),
        since_ms: now_ms,
        until_ms: None,
        reason: String::new(),
    })
}

/// What became of an imported record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is there now.
    New,
    /// It was there already.
    Already,
    /// Somebody else holds the address; nothing is changed.
    Held(String),
}

/// Notes an imported record in its domain. Running it again changes nothing.
pub fn plan_take(view: &mut View, record: &Entry) -> Taken {
    let present = view.block_of(record.address).and_then(|b| b.entry(record.address));
    if let Some(entry) = present.filter(|e| e.state.is_held()) {
        let same = entry.owner.as_ref().map(Owner::key) == record.owner.as_ref().map(Owner::key);
        let holder = entry.owner.as_ref().map_or_else(String::new, ToString::to_string);
        return if same { Taken::Already } else { Taken::Held(holder) };
    }
    view.change(record.address).put(record.clone());
    Taken::New
}
