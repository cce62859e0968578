//! Whose address it is: a pod's own, or that of the StatefulSet's ordinal or virtual machine that the
//! pod stands for, which outlives it.

use crate::pod::claim_uid;
use crate::types::block::Owner;
use crate::types::core::Pod;
use crate::types::meta::OwnerReference;

/// Before the name of a virtual machine, where a pod's name would stand; no pod's name holds a `/`.
const MACHINE: &str = "virtualmachineinstance/";

/// On the target of a virtual machine's migration, which has its source's addresses while both run.
const MIGRATION: &str = "kubevirt.io/migrationJobName";

/// Whether addresses of what outlives its pods are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stickiness {
    /// `ipam.enableStatefulSet`.
    pub stateful_sets: bool,
    /// `ipam.enableKubevirtStaticIP`.
    pub machines: bool,
}

impl Default for Stickiness {
    fn default() -> Self {
        Stickiness { stateful_sets: true, machines: true }
    }
}

/// Who claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The owner that is written into the record.
    pub owner: Owner,
    /// Whether a record of the same name is taken over, whatever its UID.
    pub sticky: bool,
    /// Whether a virtual machine migrates to this pod.
    pub moves: bool,
}

/// Who a pod claims for.
#[must_use]
pub fn identity(pod: &Pod, stickiness: Stickiness) -> Identity {
    let meta = &pod.metadata;
    let controller = meta.owner_references.iter().find(|o| o.controller == Some(true));
    let machine = controller.filter(|o| stickiness.machines && is_machine(o));
    let sticky = controller.is_some_and(|o| stickiness.stateful_sets && is_stateful_set(o));
    let name = machine.map_or(meta.name.clone(), |o| machine_name(&o.name));
    let owner = Owner::Pod {
        namespace: meta.namespace.clone().unwrap_or_default(),
        name,
        uid: claim_uid(meta).unwrap_or_default().into(),
    };
    let moves = machine.is_some() && meta.annotations.contains_key(MIGRATION);
    Identity { owner, sticky: sticky || machine.is_some(), moves }
}

fn is_stateful_set(owner: &OwnerReference) -> bool {
    owner.kind == "StatefulSet" && owner.api_version.starts_with("apps/")
}

fn is_machine(owner: &OwnerReference) -> bool {
    owner.kind == "VirtualMachineInstance" && owner.api_version.starts_with("kubevirt.io/")
}

/// The owner name of a virtual machine's records.
pub(crate) fn machine_name(machine: &str) -> String {
    format!("{MACHINE}{machine}")
}

/// The virtual machine that a record's owner name stands for.
#[must_use]
pub fn machine_of(owner_name: &str) -> Option<&str> {
    owner_name.strip_prefix(MACHINE)
}

/// The StatefulSet and ordinal that a pod's name may be of.
#[must_use]
pub fn ordinal_of(pod_name: &str) -> Option<(&str, u32)> {
    let (set, digits) = pod_name.rsplit_once('-')?;
    let plain = digits == "0" || !digits.starts_with('0');
    let ordinal = digits.parse().ok().filter(|_| plain && !digits.starts_with('+'))?;
    Some((set, ordinal))
}
