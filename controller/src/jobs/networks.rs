//! VNIs, status and finalizer of Networks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use bowline_kube::Severity;
use multinet::realm::network_mtu;
use multinet::rules::{Catalog, Checked, Problem};
use multinet::store::{Store, StoreError};
use multinet::types::block::{AddressBlock, Owner};
use multinet::types::meta::{Condition, Resource};
use multinet::types::network::{Encapsulation, Network, NetworkStatus};
use multinet::types::node::NodeState;

use super::finalizers::{NETWORK_FINALIZER, settle, waiting};
use super::{Job, Tools};

/// Numbers are for people: a Network's status is written for them alone at most this often.
const COUNTS_EVERY: Duration = Duration::from_secs(5);

/// The job.
#[derive(Default)]
pub(super) struct Networks {
    /// When numbers were written last.
    counted: BTreeMap<String, Instant>,
}

impl Job for Networks {
    const NAME: &'static str = "networks";
    const PAUSE: Duration = Duration::from_millis(300);
    const EVERY: Duration = Duration::from_secs(5);
    // VNIs are Bowline's own; that addresses are withheld is said in the condition.
    const WITHHELD: bool = false;

    async fn pass(&mut self, tools: &Tools) -> Result<(), StoreError> {
        let mut catalog = tools.world.catalog();
        let nodes = tools.world.node_states.all();
        let uses = uses(tools.world.blocks.read().values());
        let withheld = tools.other.at_work();
        let numbered = allocate(&mut catalog, &uses);
        let checked = Checked::new(&catalog);
        self.counted.retain(|name, _| catalog.networks.contains_key(name));
        for (name, network) in &catalog.networks {
            let used = uses.get(name.as_str());
            let mut settled = network.clone();
            let held = used.is_some_and(|u| !u.holders.is_empty());
            if settle(&mut settled.metadata, NETWORK_FINALIZER, held) {
                tools.written(Self::NAME, tools.store.update(&settled).await)?;
                // The status is written on the version that comes back with the change.
                continue;
            }
            let facts = Facts { checked: &checked, nodes: &nodes, used, withheld: &withheld };
            let Some(stored) = tools.world.networks.get("", name) else { continue };
            let status = status(network, stored.status.as_ref(), &facts);
            let urgent = numbered.contains(name) || differs(stored.status.as_ref(), &status);
            if urgent || self.counts_are_due(name, stored.status.as_ref(), &status) {
                self.counted.insert(name.clone(), Instant::now());
                write(tools, &stored, status).await?;
            }
        }
        Ok(())
    }
}

impl Networks {
    fn counts_are_due(&self, name: &str, had: Option<&NetworkStatus>, now: &NetworkStatus) -> bool {
        let counts = |s: &NetworkStatus| (s.attachments, s.nodes);
        had.map(counts) != Some(counts(now))
            && self.counted.get(name).is_none_or(|at| at.elapsed() >= COUNTS_EVERY)
    }
}

async fn write(tools: &Tools, stored: &Network, status: NetworkStatus) -> Result<(), StoreError> {
    let ready = |s: &NetworkStatus| s.conditions.iter().find(|c| c.kind == "Ready").cloned();
    let news = ready(&status).filter(|now| {
        let had = stored.status.as_ref().and_then(ready);
        had.is_none_or(|had| had.status != now.status || had.message != now.message)
    });
    let changed = Network { status: Some(status), ..stored.clone() };
    let written = tools.store.update_status(&changed).await;
    if tools.written(Networks::NAME, written)?.is_some()
        && let Some(ready) = news
    {
        let bad = ready.status != "True";
        let severity = if bad { Severity::Warning } else { Severity::Normal };
        tools.events.say(stored, severity, &ready.reason, "Reconcile", &ready.message).await;
    }
    Ok(())
}

/// What of a status is more than numbers.
fn differs(had: Option<&NetworkStatus>, now: &NetworkStatus) -> bool {
    let Some(had) = had else { return true };
    (had.vni, had.mtu) != (now.vni, now.mtu) || had.conditions != now.conditions
}

/// Who uses Networks, by name.
type Uses = BTreeMap<String, Use>;

/// Who uses a Network.
#[derive(Default)]
struct Use {
    holders: Vec<(IpAddr, String)>,
    interfaces: BTreeSet<(String, String)>,
}

fn uses<'a>(blocks: impl Iterator<Item = &'a AddressBlock>) -> Uses {
    let mut uses = Uses::new();
    for block in blocks {
        for entry in block.held() {
            let Some(owner @ Owner::Pod { uid, .. }) = &entry.owner else { continue };
            if !uses.contains_key(&block.spec.network) {
                uses.insert(block.spec.network.clone(), Use::default());
            }
            let Some(used) = uses.get_mut(&block.spec.network) else { continue };
            used.holders.push((entry.address, owner.to_string()));
            used.interfaces.insert((uid.clone(), entry.interface.clone()));
        }
    }
    uses
}

/// Gives a VNI to every Network that needs one, in the catalog: those without, and those whose number,
/// not asked for, an older one has (two leaders chose the same) while nobody is attached. Their
/// names.
fn allocate(catalog: &mut Catalog, uses: &Uses) -> BTreeSet<String> {
    let mut by_age: Vec<(String, String)> = catalog.networks.values().map(age).collect();
    by_age.sort();
    let mut taken: BTreeMap<u32, String> = BTreeMap::new();
    for network in catalog.networks.values() {
        // Those asked for cannot be cured here and come first.
        if let Some(vni) = network.spec.vni {
            taken.entry(vni).or_insert_with(|| network.metadata.name.clone());
        }
    }
    let mut numbered = BTreeSet::new();
    for (_, name) in by_age {
        let Some(network) = catalog.networks.get(&name) else { continue };
        let asks = network.spec.encapsulation == Encapsulation::Vxlan && network.spec.vni.is_none();
        if !asks || network.metadata.is_terminating() {
            continue;
        }
        let had = network.status.as_ref().and_then(|s| s.vni);
        let attached = uses.get(name.as_str()).is_some_and(|u| !u.holders.is_empty());
        let lost = had.is_some_and(|vni| taken.contains_key(&vni)) && !attached;
        if let Some(vni) = had.filter(|_| !lost) {
            taken.entry(vni).or_insert(name);
            continue;
        }
        let Some(vni) = Checked::free_vni(catalog) else { continue };
        if let Some(network) = catalog.networks.get_mut(&name) {
            network.status.get_or_insert_default().vni = Some(vni);
        }
        taken.insert(vni, name.clone());
        numbered.insert(name);
    }
    numbered
}

fn age(network: &Network) -> (String, String) {
    let (time, name) = network.metadata.age_key();
    (time.to_owned(), name.to_owned())
}

struct Facts<'a> {
    checked: &'a Checked,
    nodes: &'a [NodeState],
    used: Option<&'a Use>,
    withheld: &'a Option<String>,
}

/// What the status should be. Conditions that say the same keep their time.
fn status(network: &Network, had: Option<&NetworkStatus>, facts: &Facts<'_>) -> NetworkStatus {
    let name = &network.metadata.name;
    let carriers = facts.nodes.iter().filter(|n| n.spec.networks.contains(name)).count();
    let mut conditions = vec![ready(network, facts)];
    if network.metadata.is_terminating()
        && let Some(used) = facts.used.filter(|u| !u.holders.is_empty())
    {
        conditions.push(waiting(&used.holders));
    }
    let before = had.map_or(&[][..], |s| &s.conditions);
    for condition in &mut conditions {
        condition.observed_generation = network.metadata.generation;
        date(condition, before);
    }
    let vxlan = network.spec.encapsulation == Encapsulation::Vxlan;
    NetworkStatus {
        vni: network.vni().filter(|_| vxlan),
        mtu: Some(network_mtu(network, facts.nodes.iter())),
        attachments: count(facts.used.map_or(0, |u| u.interfaces.len())),
        nodes: count(carriers),
        conditions,
    }
}

fn ready(network: &Network, facts: &Facts<'_>) -> Condition {
    let condition = |status: &str, reason: &str, message: String| Condition {
        kind: "Ready".into(),
        status: status.into(),
        reason: reason.into(),
        message,
        ..Condition::default()
    };
    let problems: Vec<&Problem> =
        facts.checked.problems_of(Network::KIND, &network.metadata.name).collect();
    if let Some(problem) = problems.iter().find(|p| p.is_error()) {
        let taken = problem.message.contains("belongs to the older");
        let reason = if taken { "Conflict" } else { "Invalid" };
        return condition("False", reason, problem.to_string());
    }
    if let Some(why) = facts.withheld {
        return condition("False", "SpiderpoolIsRunning", why.clone());
    }
    if network.spec.encapsulation != Encapsulation::Vxlan {
        let message = "spec.encapsulation: only VXLAN carries packets in this version";
        return condition("False", "NotServed", message.into());
    }
    match problems.first() {
        Some(warning) => condition("True", "ReadyWithWarnings", warning.to_string()),
        None => condition("True", "Ready", "the Network serves pods".into()),
    }
}

/// Sets the time of the last change of `status`: the one before, if it did not change.
pub(super) fn date(condition: &mut Condition, before: &[Condition]) {
    let same = before.iter().find(|c| c.kind == condition.kind && c.status == condition.status);
    condition.last_transition_time =
        same.and_then(|c| c.last_transition_time.clone()).or_else(|| Some(bowline_kube::now()));
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use multinet::types::network::NetworkSpec;

    use super::*;

    fn network(name: &str, created: &str, asked: Option<u32>, has: Option<u32>) -> Network {
        let mut network = Network::new(name, NetworkSpec { vni: asked, ..NetworkSpec::default() });
        network.metadata.creation_timestamp = Some(created.into());
        network.status =
            has.map(|vni| NetworkStatus { vni: Some(vni), ..NetworkStatus::default() });
        network
    }

    fn catalog(networks: impl IntoIterator<Item = Network>) -> Catalog {
        let named = networks.into_iter().map(|n| (n.metadata.name.clone(), n));
        Catalog { networks: named.collect(), ..Catalog::default() }
    }

    fn vni(catalog: &Catalog, name: &str) -> Option<u32> {
        catalog.networks[name].vni()
    }

    #[test]
    fn the_lowest_free_vni_goes_to_the_oldest_first() {
        let mut catalog = catalog([
            network("young", "2026-01-03", None, None),
            network("old", "2026-01-01", None, None),
            network("asked", "2026-01-04", Some(1), None),
        ]);
        let numbered = allocate(&mut catalog, &BTreeMap::new());
        assert_eq!(numbered.len(), 2);
        assert_eq!((vni(&catalog, "old"), vni(&catalog, "young")), (Some(2), Some(3)));
        assert!(allocate(&mut catalog, &BTreeMap::new()).is_empty(), "once is enough");
    }

    #[test]
    fn of_two_that_were_given_the_same_the_younger_gets_another() {
        let mut catalog = catalog([
            network("b", "2026-01-02", None, Some(1)),
            network("a", "2026-01-01", None, Some(1)),
        ]);
        let numbered = allocate(&mut catalog, &BTreeMap::new());
        assert_eq!(numbered.into_iter().collect::<Vec<_>>(), ["b"]);
        assert_eq!((vni(&catalog, "a"), vni(&catalog, "b")), (Some(1), Some(2)));
    }

    #[test]
    fn one_with_pods_attached_keeps_its_number_and_is_not_ready() {
        let mut catalog = catalog([
            network("b", "2026-01-02", None, Some(1)),
            network("a", "2026-01-01", None, Some(1)),
        ]);
        let held = Use {
            holders: vec![(IpAddr::from([10, 0, 0, 1]), "pod x/y".into())],
            ..Use::default()
        };
        let uses = BTreeMap::from([("b".to_owned(), held)]);
        assert!(allocate(&mut catalog, &uses).is_empty());
        let checked = Checked::new(&catalog);
        let facts = Facts { checked: &checked, nodes: &[], used: None, withheld: &None };
        let status = status(&catalog.networks["b"], None, &facts);
        assert_eq!(
            (status.conditions[0].status.as_str(), status.conditions[0].reason.as_str()),
            ("False", "Conflict")
        );
    }

    #[test]
    fn a_condition_that_stays_keeps_its_time() {
        let mut now =
            Condition { kind: "Ready".into(), status: "True".into(), ..Condition::default() };
        let before = Condition { last_transition_time: Some("then".into()), ..now.clone() };
        date(&mut now, &[before]);
        assert_eq!(now.last_transition_time.as_deref(), Some("then"));
        now.status = "False".into();
        date(&mut now, &[]);
        assert_ne!(now.last_transition_time.as_deref(), Some("then"));
    }
}
