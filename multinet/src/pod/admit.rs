//! A pod at its creation: what no later object can cure is refused with the reason, the rest warns,
//! because people apply objects in any order. ADD repeats every check.

use std::collections::BTreeSet;

use super::interfaces::{INTERFACES, Wish, parse_interfaces};
use super::multus::{NETWORKS, NetworkSelection, parse_networks};
use super::spider::{
    DEFAULT_ROUTE_NIC, IPPOOL, IPPOOLS, ROUTES, SUBNET, SUBNETS, ippool, ippools, namespace_pools,
    parse_routes,
};
use super::subnets::{IP_NUMBER, RECLAIM, parse_pool_size, parse_reclaim, parse_subnets};
use super::{grant, is_interface_name};
use crate::rules::{Checked, Problem};
use crate::types::core::{Namespace, Pod};
use crate::types::meta::Labels;
use crate::types::network::{Network, PoolLists};

/// The interface that every pod has.
const FIRST: &str = "eth0";
/// What Bowline reads on pods.
const PREFIXES: [&str; 2] = ["ipam.spidernet.io/", "bowline.dev/"];

/// What it reads there, and what it writes.
const KEYS: [&str; 10] = [
    INTERFACES,
    "bowline.dev/network-status",
    IPPOOLS,
    IPPOOL,
    SUBNETS,
    SUBNET,
    IP_NUMBER,
    RECLAIM,
    DEFAULT_ROUTE_NIC,
    ROUTES,
];

/// What is wrong with a pod's annotations. Errors can be cured by nothing that comes later.
#[must_use]
pub fn validate_pod(checked: &Checked, pod: &Pod, namespace: Option<&Namespace>) -> Vec<Problem> {
    let mut problems = Vec::new();
    let annotations = &pod.metadata.annotations;
    if pod.spec.host_network {
        let read = |key: &&String| PREFIXES.iter().any(|p| key.starts_with(p));
        for key in annotations.keys().filter(read) {
            let message = "is not read: the pod uses its node's network (spec.hostNetwork)";
            problems.push(Problem::warning(key, "", message));
        }
        return problems;
    }
    let asked = Asked::read(pod, &mut problems);
    asked.check_names(&mut problems);
    asked.check_wishes(checked, namespace, &mut problems);
    asked.check_selections(checked, namespace, &mut problems);
    check_pools(checked, annotations, namespace, &asked, &mut problems);
    check_subnets(checked, pod, &mut problems);
    note(parse_routes(annotations), &mut problems);
    problems.extend(unread(annotations));
    problems
}

/// Annotations that look like ours and mean nothing: misspelt ones, mostly.
fn unread(annotations: &Labels) -> impl Iterator<Item = Problem> {
    let ours = annotations.iter().filter(|(key, _)| PREFIXES.iter().any(|p| key.starts_with(p)));
    ours.filter(|(key, _)| !KEYS.contains(&key.as_str())).map(|(key, value)| {
        let message = format!("is read by nobody on a pod; known are {}", KEYS.join(", "));
        Problem::warning(key, value, message)
    })
}

/// Keeps a value, or the problem that it is not there for.
fn note<T>(read: Result<T, Problem>, problems: &mut Vec<Problem>) -> Option<T> {
    read.map_err(|problem| problems.push(problem)).ok()
}

/// The interfaces that a pod asks for.
struct Asked<'a> {
    pod: &'a Pod,
    wishes: Vec<Wish>,
    selections: Vec<NetworkSelection>,
}

impl<'a> Asked<'a> {
    fn read(pod: &'a Pod, problems: &mut Vec<Problem>) -> Self {
        let get = |key: &str| pod.metadata.annotations.get(key);
        let taken = ["lo", FIRST];
        let wishes = get(INTERFACES).and_then(|t| note(parse_interfaces(t, &taken), problems));
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        let selections = get(NETWORKS).and_then(|t| note(parse_networks(t, namespace), problems));
        Asked {
            pod,
            wishes: wishes.unwrap_or_default(),
            selections: selections.unwrap_or_default(),
        }
    }

    /// Every interface of the pod, by name.
    fn names(&self) -> BTreeSet<&str> {
        let wishes = self.wishes.iter().map(|w| w.name.as_str());
        let selections = self.selections.iter().map(|s| s.interface.as_str());
        wishes.chain(selections).chain([FIRST]).collect()
    }

    fn check_names(&self, problems: &mut Vec<Problem>) {
        let mut seen = BTreeSet::from([FIRST, "lo"]);
        for selection in &self.selections {
            if !seen.insert(&selection.interface) {
                let field = format!("{}.interface", selection.at);
                let message = "is the name of another interface of the pod; choose another";
                problems.push(Problem::error(field, &selection.interface, message));
            }
        }
        for wish in self.wishes.iter().filter(|w| seen.contains(w.name.as_str())) {
            let message = format!("is an interface of {NETWORKS} as well; choose another name");
            problems.push(Problem::error(format!("{}.name", wish.at), &wish.name, message));
        }
        let Some(first) = self.pod.metadata.annotations.get(DEFAULT_ROUTE_NIC) else { return };
        if !is_interface_name(first) || !self.names().contains(first.as_str()) {
            let names: Vec<&str> = self.names().into_iter().collect();
            let message = format!("is no interface of the pod; it has {}", names.join(", "));
            problems.push(Problem::error(DEFAULT_ROUTE_NIC, first, message));
        }
    }

    fn check_wishes(
        &self,
        checked: &Checked,
        namespace: Option<&Namespace>,
        problems: &mut Vec<Problem>,
    ) {
        for wish in &self.wishes {
            let Some(network) = checked.networks.get(&wish.network) else {
                let message = "does not exist or serves nothing; the pod waits for it";
                problems.push(Problem::warning(
                    format!("{}.network", wish.at),
                    &wish.network,
                    message,
                ));
                continue;
            };
            check_admission(&format!("{}.network", wish.at), network, namespace, problems);
            note(grant(wish, network), problems);
            for address in &wish.ips {
                let mut pools = checked.pools_of(&wish.network);
                if !pools.any(|p| p.addresses.contains(*address)) {
                    let message = format!("is in no pool of Network {}", wish.network);
                    problems.push(Problem::warning(format!("{}.ips", wish.at), address, message));
                }
            }
        }
    }

    /// Elements that name a Network's own definition. Others are other plugins' business.
    fn check_selections(
        &self,
        checked: &Checked,
        namespace: Option<&Namespace>,
        problems: &mut Vec<Problem>,
    ) {
        for selection in &self.selections {
            let Some(network) = checked.networks.get(&selection.name) else { continue };
            check_admission(&selection.at, network, namespace, problems);
            note(selection.check(), problems);
        }
    }
}

fn check_admission(
    at: &str,
    network: &Network,
    namespace: Option<&Namespace>,
    problems: &mut Vec<Problem>,
) {
    let Some(namespace) = namespace else { return };
    if !network.admits(&namespace.metadata.labels) {
        let message = format!(
            "does not admit namespace {} (spec.namespaceSelector); \
             label the namespace, or ask the Network's owner; until then the pod does not start",
            namespace.metadata.name
        );
        // A label that comes later cures it: ADD refuses until then.
        problems.push(Problem::warning(at, &network.metadata.name, message));
    }
}

/// `ippools`, `ippool` and the namespace's pools.
fn check_pools(
    checked: &Checked,
    annotations: &Labels,
    namespace: Option<&Namespace>,
    asked: &Asked<'_>,
    problems: &mut Vec<Problem>,
) {
    if let Some(Some(list)) = note(ippools(annotations), problems) {
        let named: Vec<&str> =
            list.iter().map(|c| c.interface.as_str()).filter(|i| !i.is_empty()).collect();
        let missing = asked.wishes.iter().filter(|w| !named.contains(&w.name.as_str()));
        for wish in missing.filter(|_| !named.is_empty()) {
            let message = format!("lists no pools for {}; add an element for it", wish.name);
            problems.push(Problem::error(IPPOOLS, named.join(", "), message));
        }
        for name in named.iter().filter(|n| !asked.names().contains(**n)) {
            let message = "is no interface that the pod asks for; its pools are not used";
            problems.push(Problem::warning(format!("{IPPOOLS}.interface"), name, message));
        }
        for choice in &list {
            warn_of_missing(checked, IPPOOLS, &choice.pools(), problems);
        }
    }
    if let Some(Some(choice)) = note(ippool(annotations), problems) {
        warn_of_missing(checked, IPPOOL, &choice.pools(), problems);
    }
    if let Some(namespace) = namespace
        && let Err(problem) = namespace_pools(&namespace.metadata.annotations)
    {
        // The namespace can still be mended.
        problems.push(Problem::warning(problem.field, problem.value, problem.message));
    }
}

fn warn_of_missing(checked: &Checked, at: &str, pools: &PoolLists, problems: &mut Vec<Problem>) {
    let plain = pools.names().filter(|n| !n.contains(['*', '?', '[']));
    for name in plain.filter(|n| !checked.pools.contains_key(*n)) {
        let message = "does not exist or is refused; it is passed over";
        problems.push(Problem::warning(at, name, message));
    }
}

fn check_subnets(checked: &Checked, pod: &Pod, problems: &mut Vec<Problem>) {
    let annotations = &pod.metadata.annotations;
    let choices = note(parse_subnets(annotations), problems).unwrap_or_default();
    note(parse_pool_size(annotations), problems);
    note(parse_reclaim(annotations), problems);
    if choices.is_empty() {
        return;
    }
    let controlled = pod.metadata.owner_references.iter().any(|o| o.controller == Some(true));
    if !controlled {
        let key = if annotations.contains_key(SUBNETS) { SUBNETS } else { SUBNET };
        let message = "makes a pool for an application, and this pod has no controller; \
                       name pools by ipam.spidernet.io/ippool";
        problems.push(Problem::error(key, "", message));
    }
    for (_, name) in choices.iter().flat_map(super::subnets::SubnetChoice::families) {
        if !checked.subnets.contains_key(name) {
            let message = "does not exist or is refused; the pod waits for it";
            problems.push(Problem::warning(SUBNETS, name, message));
        }
    }
}
