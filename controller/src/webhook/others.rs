//! Coordinators, configurations for Multus, pods, NetworkPolicies.

use kube::core::admission::Operation;
use multinet::pod::validate_pod;
use multinet::rules::{
    Problem, validate_coordinator, validate_multus_config, validate_multus_config_update,
};
use multinet::types::coordinator::SpiderCoordinator;
use multinet::types::core::Pod;
use multinet::types::meta::Resource;
use multinet::types::multus::{SpiderMultusConfig, annotation};

use super::Objects;
use super::verdict::Verdict;
use crate::world::World;

/// Judges a coordinator.
pub(super) fn coordinator(objects: Objects<SpiderCoordinator>) -> Verdict {
    objects.new.map_or_else(Verdict::default, |new| Verdict::of(validate_coordinator(&new)))
}

/// Judges a configuration for Multus.
pub(super) fn multus_config(world: &World, objects: Objects<SpiderMultusConfig>) -> Verdict {
    let (old, Some(new)) = (objects.old, objects.new) else { return Verdict::default() };
    if new.metadata.is_terminating() {
        return Verdict::default();
    }
    let mut verdict = match &old {
        Some(old) => Verdict::of(validate_multus_config_update(old, &new)),
        None => Verdict::of(validate_multus_config(&new)),
    };
    verdict.add(definition_of_another(world, &new));
    verdict
}

/// The definition that this configuration would write belongs to another one.
fn definition_of_another(world: &World, new: &SpiderMultusConfig) -> Option<Problem> {
    let meta = &new.metadata;
    let namespace = meta.namespace.as_deref().unwrap_or("default");
    let name = meta.annotations.get(annotation::CR_NAME).unwrap_or(&meta.name);
    let definition = world.definitions.get(namespace, name)?;
    let owner = definition.metadata.owner_references.iter().find(|o| {
        o.controller == Some(true) && !(o.kind == SpiderMultusConfig::KIND && o.name == meta.name)
    })?;
    let message = format!(
        "is the name of a NetworkAttachmentDefinition of {} {}; choose another by {}",
        owner.kind,
        owner.name,
        annotation::CR_NAME
    );
    Some(Problem::error("metadata.name", name, message))
}

/// A pod's namespace is not in the object at creation.
pub(super) fn settle_namespace(pod: &mut Option<Pod>, namespace: Option<&str>) {
    if let Some(pod) = pod {
        pod.metadata.namespace = pod.metadata.namespace.take().or(namespace.map(Into::into));
    }
}

/// Judges a pod at its creation.
pub(super) fn pod(world: &World, objects: Objects<Pod>) -> Verdict {
    let (None, Some(pod)) = (objects.old, objects.new) else { return Verdict::default() };
    let checked = world.checked();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let namespace = world.namespaces.get("", namespace);
    Verdict::of(validate_pod(&checked, &pod, namespace.as_ref()))
}

/// Nobody must believe in a policy that nothing enforces.
pub(super) fn network_policy(operation: &Operation) -> Verdict {
    let mut verdict = Verdict::default();
    if *operation == Operation::Create {
        verdict.warnings.push(
            "Bowline does not enforce NetworkPolicy: this object changes nothing; separate pods by \
             Networks"
                .into(),
        );
    }
    verdict
}
