//! Which records nobody needs any more: their pod is gone, finished, or will not come back from a lost
//! node. Pure: what is known of pods and nodes comes from the caller, who frees only by compare-and-swap
//! on the record that was judged ([`super::plan_free_record`], [`super::plan_detach_record`]).
//!
//! Pods must be read *after* the records: a pod younger than the list of pods would count as gone.
//! Who reads pods from a cache reads those of [`Verdict::Free`] and [`Verdict::Detach`] once more.
//!
//! Differences from upstream, on purpose: the grace period is counted once (a pod's
//! `deletionTimestamp` includes it), a pod that is terminating *and* pending is reclaimed, and on a node
//! that is ready a terminating pod keeps its address while its kubelet reports a container that runs.

use std::collections::BTreeMap;

use crate::pod::{Stickiness, claim_uid, machine_of, ordinal_of};
use crate::types::block::{Entry, Owner};
use crate::types::core::{Node, Pod};

/// Namespace and name.
pub type Key = (String, String);

/// The switches of Spiderpool's `ipam.gc` and `ipam.enable*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switches {
    /// `gc.enabled`: whether anything is reclaimed.
    pub enabled: bool,
    /// `gc.statelessPod.zombieOnReadyNode`.
    pub on_ready_node: bool,
    /// `gc.statelessPod.zombieOnNotReadyNode`: also of nodes that are gone.
    pub on_lost_node: bool,
    /// `gc.statelessPod.enableGcRunningPodOnEmptyPodStatusIPs`.
    pub running_without_addresses: bool,
    /// `gc.gcDeletingTimeOutPodDelay`: waited beside the pod's own grace period.
    pub additional_grace_ms: u64,
    /// Whether addresses of StatefulSets and virtual machines outlive their pods.
    pub stickiness: Stickiness,
}

impl Default for Switches {
    fn default() -> Self {
        Switches {
            enabled: true,
            on_ready_node: true,
            on_lost_node: true,
            running_without_addresses: false,
            additional_grace_ms: 0,
            stickiness: Stickiness::default(),
        }
    }
}

/// The part of a StatefulSet that decides which ordinals it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatefulSetFact {
    /// `spec.ordinals.start`.
    pub start: u32,
    /// `spec.replicas`.
    pub replicas: u32,
}

/// What is known of a virtual machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineFact {
    /// The VirtualMachineInstance exists and is not being deleted.
    pub instance_lives: bool,
    /// The VirtualMachineInstance is being deleted, and a VirtualMachine owns it.
    pub restarts: bool,
    /// The VirtualMachine exists and is not being deleted.
    pub machine_lives: bool,
    /// The node that the VirtualMachineInstance runs on; empty: none yet. It changes when a migration is
    /// complete.
    pub runs_on: String,
}

/// What is known of the cluster.
#[derive(Clone, Copy, Debug)]
pub struct World<'a> {
    /// Every pod.
    pub pods: &'a BTreeMap<Key, Pod>,
    /// Every node.
    pub nodes: &'a BTreeMap<String, Node>,
    /// Every StatefulSet of apps/v1.
    pub stateful_sets: &'a BTreeMap<Key, StatefulSetFact>,
    /// Every virtual machine.
    pub machines: &'a BTreeMap<Key, MachineFact>,
}

/// What becomes of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It stays, and why.
    Keep(&'static str),
    /// It is looked at again at this unix time.
    Wait(u64),
    /// It stays its owner's, on no node any more, and why: its node will not give it back, and no other
    /// node may take over what is held there.
    Detach(&'static str),
    /// Nobody needs it, and why.
    Free(&'static str),
}

use Verdict::{Detach, Free, Keep, Wait};

/// What becomes of a record.
#[must_use]
pub fn judge(entry: &Entry, world: World<'_>, switches: &Switches, now_ms: u64) -> Verdict {
    if !entry.state.is_held() {
        return Keep("nobody holds it");
    }
    if !switches.enabled {
        return Keep("reclaiming is switched off");
    }
    let case = Case { entry, world, switches, now_ms };
    match &entry.owner {
        None => Keep("it says no owner; mend the AddressBlock"),
        Some(Owner::Node { name }) if world.nodes.contains_key(name) => Keep("its node exists"),
        Some(Owner::Node { .. }) => Free("its node is gone"),
        Some(Owner::Pod { namespace, name, uid }) => match machine_of(name) {
            Some(machine) => case.machine(namespace, machine),
            None => case.pod(namespace, name, uid),
        },
    }
}

/// Whether a record outlives its pod: the StatefulSet has the pod's ordinal, or the machine lives.
/// Asked at DEL as well.
#[must_use]
pub fn outlives_pod(owner: &Owner, world: World<'_>, stickiness: Stickiness) -> bool {
    let Owner::Pod { namespace, name, .. } = owner else { return false };
    if let Some(machine) = machine_of(name) {
        let fact = world.machines.get(&(namespace.clone(), machine.into()));
        let lives = |f: &MachineFact| f.instance_lives || f.restarts || f.machine_lives;
        return stickiness.machines && fact.is_some_and(lives);
    }
    let Some((set, ordinal)) = ordinal_of(name).filter(|_| stickiness.stateful_sets) else {
        return false;
    };
    let fact = world.stateful_sets.get(&(namespace.clone(), set.into()));
    fact.is_some_and(|s| (s.start..s.start.saturating_add(s.replicas)).contains(&ordinal))
}

/// The pods that a virtual machine runs in: one, two while it migrates, none while it restarts.
fn launchers<'a>(
    pods: &'a BTreeMap<Key, Pod>,
    namespace: &str,
    machine: &str,
) -> impl Iterator<Item = &'a Pod> {
    pods.values().filter(move |pod| {
        let mut owners = pod.metadata.owner_references.iter();
        pod.metadata.namespace.as_deref() == Some(namespace)
            && owners.any(|o| o.kind == "VirtualMachineInstance" && o.name == machine)
    })
}

/// Whether a virtual machine's record may be on the wrong node: what is known of the machine decides.
#[must_use]
pub fn may_have_moved(entry: &Entry, pods: &BTreeMap<Key, Pod>) -> bool {
    let Some(Owner::Pod { namespace, name, .. }) = &entry.owner else { return false };
    let Some(machine) = machine_of(name).filter(|_| !entry.node.is_empty()) else { return false };
    launchers(pods, namespace, machine).any(|pod| pod.spec.node_name != entry.node)
}

/// RFC 3339 as unix time.
fn unix_ms(text: &str) -> Option<u64> {
    let time: jiff::Timestamp = text.parse().ok()?;
    u64::try_from(time.as_millisecond()).ok()
}

struct Case<'a> {
    entry: &'a Entry,
    world: World<'a>,
    switches: &'a Switches,
    now_ms: u64,
}

impl Case<'_> {
    fn outlives(&self) -> bool {
        let owner = self.entry.owner.as_ref();
        owner.is_some_and(|o| outlives_pod(o, self.world, self.switches.stickiness))
    }

    fn machine(&self, namespace: &str, machine: &str) -> Verdict {
        let launchers: Vec<&Pod> = launchers(self.world.pods, namespace, machine).collect();
        let on = |node: &str| launchers.iter().find(|pod| pod.spec.node_name == node);
        let here = on(&self.entry.node);
        if !self.outlives() {
            // The launcher may still run: its pod decides, whatever its name.
            return match here.or(launchers.first()) {
                Some(pod) => self.living(pod),
                None => self.gated("its virtual machine is gone"),
            };
        }
        let fact = self.world.machines.get(&(namespace.into(), machine.into()));
        let runs_on = fact.map_or("", |fact| fact.runs_on.as_str());
        if !self.entry.node.is_empty() && runs_on != self.entry.node && on(runs_on).is_some() {
            return Detach("its virtual machine has moved to another node");
        }
        match here {
            Some(_) => Keep("its virtual machine runs"),
            None => self.outliving("its virtual machine exists"),
        }
    }

    fn pod(&self, namespace: &str, name: &str, uid: &str) -> Verdict {
        match self.world.pods.get(&(namespace.into(), name.into())) {
            None if self.outlives() => self.outliving("its StatefulSet has this ordinal"),
            None => self.gated("its pod is gone"),
            Some(pod) if claim_uid(&pod.metadata) == Some(uid) => self.living(pod),
            Some(pod) => self.successor(pod),
        }
    }

    /// Another pod has the name. A stateful one takes the record over at its ADD.
    fn successor(&self, pod: &Pod) -> Verdict {
        let started = pod.status.as_ref().is_some_and(|s| !s.pod_ips.is_empty());
        if self.outlives() && !started {
            return self.outliving("the next pod of its StatefulSet takes it over");
        }
        self.gated("its pod is gone, and another has its name")
    }

    /// Its pod is gone, and it waits for the next. A node that is ready gives it back itself.
    fn outliving(&self, why: &'static str) -> Verdict {
        if self.entry.node.is_empty() || self.node_is_ready() {
            return Keep(why);
        }
        Detach("its pod is gone, and its node is not ready or gone")
    }

    /// The record's own pod exists.
    fn living(&self, pod: &Pod) -> Verdict {
        let status = pod.status.clone().unwrap_or_default();
        let finished = matches!(status.phase.as_str(), "Succeeded" | "Failed");
        if (finished || pod.metadata.is_terminating()) && self.outlives() {
            return Keep("its StatefulSet or virtual machine outlives the pod");
        }
        if finished {
            return self.after(finished_ms(pod), "its pod has finished");
        }
        if let Some(deadline) = &pod.metadata.deletion_timestamp {
            let running = status.container_statuses.iter().any(|c| c.state.running.is_some());
            if running && self.node_is_ready() {
                return Keep("its kubelet reports that a container still runs");
            }
            // The deadline includes the pod's grace period: it is not counted again.
            return self.after(unix_ms(deadline), "its pod is past its grace period");
        }
        match status.phase.as_str() {
            "Running" if !status.pod_ips.is_empty() => Keep("its pod runs"),
            "Running" if self.switches.running_without_addresses => {
                self.gated("its pod runs without addresses")
            }
            "Unknown" if status.pod_ips.is_empty() => self.gated("nobody knows its pod's state"),
            _ => Keep("its pod starts or runs"),
        }
    }

    fn node_is_ready(&self) -> bool {
        self.world.nodes.get(&self.entry.node).is_some_and(Node::is_ready)
    }

    /// Freed once the additional grace is over. A time that cannot be read counts as the record's own.
    fn after(&self, from_ms: Option<u64>, why: &'static str) -> Verdict {
        let from = from_ms.unwrap_or(self.entry.since_ms);
        let stop = from.saturating_add(self.switches.additional_grace_ms);
        if self.now_ms < stop { Wait(stop) } else { self.gated(why) }
    }

    /// Freed, if the switch for its node allows it. What is on no node has outlived its pod before: no node
    /// can be asked for it any more.
    fn gated(&self, why: &'static str) -> Verdict {
        if self.entry.node.is_empty() {
            return Free(why);
        }
        match (self.node_is_ready(), self.switches) {
            (true, Switches { on_ready_node: false, .. }) => {
                Keep("zombieOnReadyNode is off, and its node is ready")
            }
            (false, Switches { on_lost_node: false, .. }) => {
                Keep("zombieOnNotReadyNode is off, and its node is not ready or gone")
            }
            _ => Free(why),
        }
    }
}

/// When the last container ended.
fn finished_ms(pod: &Pod) -> Option<u64> {
    let containers = pod.status.iter().flat_map(|s| &s.container_statuses);
    let ends = containers.filter_map(|c| c.state.terminated.as_ref()?.finished_at.as_deref());
    ends.filter_map(unix_ms).max()
}
