//! Addresses that a running Spiderpool has given, as claims: `bowline ipam import` before a switch-over,
//! so that running pods keep theirs.
//!
//! A pool's `status.allocatedIPs` says whose an address is; the SpiderEndpoint of the pod says on which
//! interface. The sandbox is not known to either ([`is_imported`]): the claims are freed by the DEL of the
//! namespace that has the address, or when their pods are gone, or taken along by the next ADD of the same pod.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use serde::Deserialize;

use super::view::View;
use crate::pod::machine_name;
use crate::range::{Family, number};
use crate::rules::{Checked, Home, ObjectProblem, Problem};
use crate::types::block::{Entry, EntryState, Owner};
use crate::types::endpoint::SpiderEndpoint;
use crate::types::meta::Resource;
use crate::types::pool::SpiderIPPool;

/// What is to be imported, and what cannot be, with the reason.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Import {
    /// Records, by the domain whose blocks they go into.
    pub claims: BTreeMap<Home, Vec<Entry>>,
    /// What is left out, or odd; an error where it is not known who has addresses of a pool, so that
    /// nothing should be imported.
    pub notes: Vec<ObjectProblem>,
}

/// The pod that has a name now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Living {
    /// Its UID.
    pub uid: String,
    /// Where it runs.
    pub node: String,
}

/// Pods by namespace and name.
pub type Pods = HashMap<(String, String), Living>;

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
    owner: &'a str,
}

impl Place<'_> {
    fn is_machine(&self) -> bool {
        matches!(self.owner, "VirtualMachineInstance" | "VirtualMachine")
    }
}

/// Plans the import.
#[must_use]
pub fn plan_import(
    checked: &Checked,
    pools: &BTreeMap<String, SpiderIPPool>,
    endpoints: &[SpiderEndpoint],
    pods: &Pods,
    now_ms: u64,
) -> Import {
    let places = places(endpoints);
    let mut import = Import::default();
    let mut given: BTreeMap<(Home, IpAddr), String> = BTreeMap::new();
    for pool in pools.values() {
        let name = &pool.metadata.name;
        let mut note = |problem: Problem| {
            let name = name.clone();
            import.notes.push(ObjectProblem { kind: SpiderIPPool::KIND, name, problem });
        };
        let Some(text) = pool.status.as_ref().and_then(|s| s.allocated_ips.as_deref()) else {
            continue;
        };
        let list: BTreeMap<IpAddr, Allocation> = match serde_json::from_str(text) {
            Ok(list) => list,
            Err(e) => {
                let message = format!("is not read ({e}), so that nobody knows who has what");
                note(Problem::error("status.allocatedIPs", text, message));
                continue;
            }
        };
        let Some((home, _)) = checked.pools.get(name) else {
            if !list.is_empty() {
                let message = format!("is refused, and {} addresses of it are in use", list.len());
                note(Problem::error("metadata.name", name, message));
            }
            continue;
        };
        for (address, allocation) in list {
            let imported = record(address, &allocation, name, &places, pods, now_ms);
            let once = imported.and_then(|entry| {
                match given.insert((home.clone(), address), name.clone()) {
                    Some(other) => Err(format!("is in pool {other} as well; imported once")),
                    None => Ok(entry),
                }
            });
            match once {
                Ok(entry) => import.claims.entry(home.clone()).or_default().push(entry),
                Err(why) => note(Problem::warning("status.allocatedIPs", address, why)),
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
                    owner: &status.owner_controller_type,
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
    pods: &Pods,
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
    let machine = place.is_some_and(Place::is_machine);
    let pod = pods.get(&(namespace.to_string(), name.to_string()));
    let living = pod.filter(|pod| pod.uid == allocation.pod_uid).map(|pod| pod.node.as_str());
    let node = match (place, living) {
        (_, Some(node)) => node,
        // The pods of a machine have names of their own.
        (Some(place), None) if machine => place.node,
        // The next pod of the name takes it over, wherever that is.
        (Some(place), None) if place.owner == "StatefulSet" => "",
        _ => {
            return Err(format!("is of pod {namespace}/{name}, which is gone; it is not imported"));
        }
    };
    let named = [place.map_or("", |p| p.interface), &allocation.interface, "eth0"];
    let interface = named.into_iter().find(|i| !i.is_empty()).unwrap_or_default();
    let name = if machine { machine_name(name) } else { name.into() };
    let uid = allocation.pod_uid.clone();
    Ok(Entry {
        address,
        state: EntryState::Allocated,
        owner: Some(Owner::Pod { namespace: namespace.into(), name, uid }),
        interface: interface.into(),
        pool: pool.into(),
        sandbox_id: String::new(),
        node: node.into(),
        since_ms: now_ms,
        until_ms: None,
        reason: String::new(),
    })
}

/// Whether a record was imported and is in use on a node by the pod of this UID: it knows its node, but no
/// sandbox.
#[must_use]
pub fn is_imported(entry: &Entry, node: &str, pod_uid: &str) -> bool {
    let of_pod = matches!(&entry.owner, Some(Owner::Pod { uid, .. }) if uid == pod_uid);
    of_pod && entry.state.is_held() && entry.sandbox_id.is_empty() && entry.node == node
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
    let family = Family::of(record.address);
    if view.is_broken(family, number(record.address)) {
        return Taken::Held("an AddressBlock that breaks its rules".into());
    }
    let present = view.block_of(record.address).and_then(|b| b.entry(record.address));
    if let Some(entry) = present.filter(|e| e.state.is_held()) {
        let same = entry.owner.as_ref().map(Owner::key) == record.owner.as_ref().map(Owner::key);
        let holder = entry.owner.as_ref().map_or_else(String::new, ToString::to_string);
        return if same { Taken::Already } else { Taken::Held(holder) };
    }
    view.change(record.address).put(record.clone());
    Taken::New
}
