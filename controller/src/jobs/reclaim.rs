//! Addresses that nobody gave back. What is watched names suspects; each suspect's pod is read again
//! from the API server, judged again, and freed by comparing the very record that was judged.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use bowline_kube::Severity;
use k8s_openapi::jiff::Timestamp;
use multinet::ipam::{
    self, Key, MachineFact, StatefulSetFact, Switches, Verdict, judge, may_have_moved, modify,
    plan_detach_record, plan_free_record,
};
use multinet::pod::{Stickiness, machine_of};
use multinet::store::{Store, StoreError};
use multinet::types::block::{Entry, Owner};
use multinet::types::core::{Node, Pod};
use multinet::types::meta::Resource;

use super::workloads;
use super::{Job, Tools};
use crate::options;

/// A ready node's own DEL goes before: both would write the block, and one of them in vain.
const DEL_WITHIN: Duration = Duration::from_secs(3);

/// The job.
pub(super) struct Reclaim {
    switches: Switches,
    interval: Duration,
    fencing: Duration,
    /// Since when records are suspect, by Network and address.
    suspected: BTreeMap<(String, IpAddr), Instant>,
    /// Some are too young to be freed.
    unripe: bool,
    /// Since when nodes are missed.
    missed: BTreeMap<String, Instant>,
}

impl Reclaim {
    pub(super) fn new(options: &options::Reclaim) -> Self {
        let switches = Switches {
            enabled: options.enabled,
            on_ready_node: options.on_ready_nodes,
            on_lost_node: options.on_not_ready_nodes,
            running_without_addresses: options.running_without_address,
            additional_grace_ms: u64::try_from(options.extra_grace.as_millis()).unwrap_or(u64::MAX),
            stickiness: Stickiness {
                stateful_sets: options.keep_stateful_sets,
                machines: options.keep_virtual_machines,
            },
        };
        let (interval, fencing) = (options.interval, options.node_fencing);
        let (suspected, missed) = (BTreeMap::new(), BTreeMap::new());
        Reclaim { switches, interval, fencing, suspected, unripe: false, missed }
    }

    /// Whether the node is there, or has been away for long enough: its pods may still run, and its
    /// data plane still send, until then.
    fn is_fenced(&mut self, nodes: &BTreeMap<String, Node>, node: &str) -> bool {
        if node.is_empty() || nodes.contains_key(node) {
            self.missed.remove(node);
            return true;
        }
        let since = *self.missed.entry(node.to_owned()).or_insert_with(Instant::now);
        since.elapsed() >= self.fencing
    }

    fn suspects(&mut self, tools: &Tools, facts: &Facts, now_ms: u64) -> Vec<(String, Entry)> {
        let mut suspects = Vec::new();
        let (blocks, pods) = (tools.world.blocks.read(), tools.world.pods.read());
        for block in blocks.values() {
            for entry in block.held() {
                let verdict = judge(entry, facts.with(&pods), &self.switches, now_ms);
                // Where machines run is not known at first.
                let suspect =
                    changes(verdict) || facts.machines.is_empty() && may_have_moved(entry, &pods);
                if suspect && self.is_fenced(&facts.nodes, &entry.node) {
                    suspects.push((block.spec.network.clone(), entry.clone()));
                }
            }
        }
        suspects
    }
}

impl Reclaim {
    /// Notes since when records are suspect; whether nobody else will free some of them.
    fn note(&mut self, suspects: &[(String, Entry)], nodes: &BTreeMap<String, Node>) -> bool {
        let before = std::mem::take(&mut self.suspected);
        for (network, entry) in suspects {
            let key = (network.clone(), entry.address);
            let since = before.get(&key).copied().unwrap_or_else(Instant::now);
            self.suspected.insert(key, since);
        }
        let ripe = suspects.iter().filter(|suspect| self.is_ripe(suspect, nodes)).count();
        self.unripe = ripe < suspects.len();
        ripe > 0
    }

    /// Suspect for a while, or on a node that takes nothing down.
    fn is_ripe(&self, (network, entry): &(String, Entry), nodes: &BTreeMap<String, Node>) -> bool {
        let since = self.suspected.get(&(network.clone(), entry.address));
        let takes_down = nodes.get(&entry.node).is_some_and(Node::is_ready);
        !takes_down || since.is_some_and(|since| since.elapsed() >= DEL_WITHIN)
    }
}

impl Job for Reclaim {
    const NAME: &'static str = "reclaim";
    const PAUSE: Duration = Duration::from_secs(1);
    // As upstream's trace: grace periods that end, StatefulSets that shrink and machines that go are no
    // change of anything that is watched.
    const EVERY: Duration = Duration::from_secs(5);
    const WITHHELD: bool = true;

    fn every(&self) -> Duration {
        if self.unripe { DEL_WITHIN.min(self.interval) } else { self.interval }
    }

    async fn pass(&mut self, tools: &Tools) -> Result<(), StoreError> {
        if !self.switches.enabled {
            return Ok(());
        }
        let nodes = named(tools.world.nodes.all());
        let mut facts = Facts { nodes, ..Facts::default() };
        let now_ms = now_ms();
        // Without sets and machines more is suspect than should be: these are read when needed.
        let suspects = self.suspects(tools, &facts, now_ms);
        if !self.note(&suspects, &facts.nodes) {
            return Ok(());
        }
        facts.stateful_sets = workloads::stateful_sets(tools.store.client()).await?;
        facts.machines = workloads::machines(tools.store.client()).await?;
        let mut suspects = self.suspects(tools, &facts, now_ms);
        suspects.retain(|suspect| self.is_ripe(suspect, &facts.nodes));
        let mut judged: BTreeMap<String, Vec<(Entry, Verdict)>> = BTreeMap::new();
        for (network, entry) in suspects {
            let verdict = self.confirm(tools, &facts, &entry, now_ms).await?;
            if changes(verdict) {
                judged.entry(network).or_default().push((entry, verdict));
            }
        }
        for (network, entries) in judged {
            carry_out(tools, &network, &entries, now_ms).await?;
        }
        Ok(())
    }
}

impl Reclaim {
    /// Judges again, with the pod as the API server has it now.
    async fn confirm(
        &self,
        tools: &Tools,
        facts: &Facts,
        entry: &Entry,
        now_ms: u64,
    ) -> Result<Verdict, StoreError> {
        let mut pods = BTreeMap::new();
        if let Some(Owner::Pod { namespace, name, .. }) = &entry.owner {
            // A machine is no pod's name: its launcher has one of its own.
            if machine_of(name).is_none() {
                let pod = tools.store.get::<Pod>(Some(namespace), name).await?;
                pods.extend(pod.map(|pod| ((namespace.clone(), name.clone()), pod)));
            }
            let launchers = tools.world.pods.read();
            let owned = launchers.iter().filter(|((at, _), pod)| {
                at == namespace
                    && pod
                        .metadata
                        .owner_references
                        .iter()
                        .any(|o| o.kind == "VirtualMachineInstance")
            });
            pods.extend(owned.map(|(key, pod)| (key.clone(), pod.clone())));
        }
        Ok(judge(entry, facts.with(&pods), &self.switches, now_ms))
    }
}

/// Frees and detaches records of one Network, those that still are what was judged.
async fn carry_out(
    tools: &Tools,
    network: &str,
    entries: &[(Entry, Verdict)],
    now_ms: u64,
) -> Result<(), StoreError> {
    let plan = |view: &mut ipam::View| -> Vec<usize> {
        let mut done = |(entry, verdict): &(Entry, Verdict)| match verdict {
            Verdict::Free(_) => plan_free_record(view, entry, now_ms),
            Verdict::Detach(_) => plan_detach_record(view, entry, now_ms),
            Verdict::Keep(_) | Verdict::Wait(_) => false,
        };
        (0..entries.len()).filter(|index| done(&entries[*index])).collect()
    };
    for index in modify(&tools.store, network, plan).await? {
        let (entry, verdict) = &entries[index];
        let owner = entry.owner.as_ref().map_or_else(String::new, ToString::to_string);
        let (address, interface, node) = (entry.address, &entry.interface, &entry.node);
        match verdict {
            Verdict::Free(why) => {
                tools.metrics.reclaimed(why);
                tracing::info!(%address, network, owner, interface, why, "address freed");
                tell(tools, entry, why).await;
            }
            Verdict::Detach(why) => {
                tracing::info!(%address, network, owner, interface, node, why, "address kept for its owner, on no node");
            }
            Verdict::Keep(_) | Verdict::Wait(_) => {}
        }
    }
    Ok(())
}

/// Whether the record does not stay as it is.
fn changes(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Free(_) | Verdict::Detach(_))
}

/// Says on the pod that its address was freed.
async fn tell(tools: &Tools, entry: &Entry, why: &str) {
    let Some(Owner::Pod { namespace, name, uid }) = &entry.owner else { return };
    let mut pod = Pod::new(name, multinet::types::core::PodSpec::default());
    pod.metadata.namespace = Some(namespace.clone());
    pod.metadata.uid = Some(uid.clone());
    let note = format!("{} of {} was freed: {why}", entry.address, entry.interface);
    tools.events.say(&pod, Severity::Normal, "AddressReclaimed", "Reclaim", &note).await;
}

/// What judging needs besides pods.
#[derive(Default)]
struct Facts {
    nodes: BTreeMap<String, Node>,
    stateful_sets: BTreeMap<Key, StatefulSetFact>,
    machines: BTreeMap<Key, MachineFact>,
}

impl Facts {
    fn with<'a>(&'a self, pods: &'a BTreeMap<Key, Pod>) -> ipam::World<'a> {
        ipam::World {
            pods,
            nodes: &self.nodes,
            stateful_sets: &self.stateful_sets,
            machines: &self.machines,
        }
    }
}

fn named<R: Resource>(all: Vec<R>) -> BTreeMap<String, R> {
    all.into_iter().map(|o| (o.meta().name.clone(), o)).collect()
}

pub(super) fn now_ms() -> u64 {
    u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0)
}
