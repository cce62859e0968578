//! SpiderEndpoints: who has which addresses, for people. No finalizer: a dead controller must not keep
//! a namespace from ending, nor Spiderpool's after a switch-over.

use std::collections::BTreeMap;
use std::time::Duration;

use multinet::pod::{machine_of, ordinal_of};
use multinet::project::{by_pod, endpoint_status};
use multinet::store::{Store, StoreError};
use multinet::types::core::{Empty, Pod};
use multinet::types::endpoint::SpiderEndpoint;
use multinet::types::meta::{LabelSelector, OwnerReference, Resource};

use super::finalizers::{SPIDERPOOL_FINALIZER, let_go};
use super::{Job, Tools};
use crate::world::Key;

/// The job.
pub(super) struct Endpoints;

impl Job for Endpoints {
    const NAME: &'static str = "endpoints";
    const PAUSE: Duration = Duration::from_secs(5);
    const EVERY: Duration = Duration::from_secs(60);
    const WITHHELD: bool = true;

    async fn pass(&mut self, tools: &Tools) -> Result<(), StoreError> {
        let wanted = wanted(tools);
        let mut existing: BTreeMap<Key, SpiderEndpoint> = BTreeMap::new();
        for endpoint in tools.store.list::<SpiderEndpoint>(&LabelSelector::default()).await? {
            let namespace = endpoint.metadata.namespace.clone().unwrap_or_default();
            existing.insert((namespace, endpoint.name().to_owned()), endpoint);
        }
        for (key, endpoint) in &wanted {
            write(tools, endpoint, existing.remove(key)).await?;
        }
        for stale in existing.into_values() {
            remove(tools, stale).await?;
        }
        Ok(())
    }
}

/// One endpoint for each pod or machine that holds addresses.
fn wanted(tools: &Tools) -> BTreeMap<Key, SpiderEndpoint> {
    let checked = tools.world.checked();
    let (blocks, pods) = (tools.world.blocks.read(), tools.world.pods.read());
    let mut wanted = BTreeMap::new();
    for ((namespace, name), entries) in by_pod(blocks.values()) {
        let pod = pods.get(&(namespace.clone(), name.clone()));
        let owner = controller(pod, &name);
        let status = endpoint_status(&checked, &entries, (&owner.0, &owner.1));
        let mut endpoint = SpiderEndpoint::new(&name, Empty {});
        endpoint.metadata.namespace = Some(namespace.clone());
        // Those of StatefulSets and machines outlive the pod.
        let stays =
            ordinal_of(&name).is_some() && owner.0 == "StatefulSet" || machine_of(&name).is_some();
        if let Some(pod) = pod.filter(|_| !stays) {
            endpoint.metadata.owner_references.extend(reference(pod));
        }
        endpoint.status = status;
        wanted.insert((namespace, name), endpoint);
    }
    wanted
}

/// Kind and name of the pod's controller; the pod itself without one. A Deployment's ReplicaSet is named
/// after it, with a hash behind the last dash.
fn controller(pod: Option<&Pod>, name: &str) -> (String, String) {
    let owners = pod.map_or(&[][..], |p| &p.metadata.owner_references);
    let Some(owner) = owners.iter().find(|o| o.controller == Some(true)) else {
        return ("Pod".into(), name.into());
    };
    let hash = pod.and_then(|p| p.metadata.labels.get("pod-template-hash"));
    let deployment = hash
        .filter(|_| owner.kind == "ReplicaSet")
        .and_then(|hash| owner.name.strip_suffix(hash.as_str())?.strip_suffix('-'));
    match deployment {
        Some(deployment) => ("Deployment".into(), deployment.into()),
        None => (owner.kind.clone(), owner.name.clone()),
    }
}

fn reference(pod: &Pod) -> Option<OwnerReference> {
    Some(OwnerReference {
        api_version: Pod::API_VERSION.into(),
        kind: Pod::KIND.into(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone()?,
        controller: None,
        block_owner_deletion: None,
    })
}

async fn remove(tools: &Tools, mut stale: SpiderEndpoint) -> Result<(), StoreError> {
    let terminating = stale.metadata.is_terminating();
    if let_go(&mut stale.metadata, SPIDERPOOL_FINALIZER) {
        match tools.written(Endpoints::NAME, tools.store.update(&stale).await)? {
            Some(written) if !terminating => stale = written,
            // It went with its finalizer, or somebody was faster.
            _ => return Ok(()),
        }
    }
    tools.written(Endpoints::NAME, tools.store.delete(&stale).await).map(drop)
}

async fn write(
    tools: &Tools,
    wanted: &SpiderEndpoint,
    existing: Option<SpiderEndpoint>,
) -> Result<(), StoreError> {
    let Some(mut existing) = existing else {
        return match tools.written(Endpoints::NAME, tools.store.create(wanted).await) {
            // A namespace that ends takes no new objects.
            Err(error) if error.to_string().contains("being terminated") => Ok(()),
            other => other.map(drop),
        };
    };
    let owners = &wanted.metadata.owner_references;
    let same = existing.status == wanted.status && existing.metadata.owner_references == *owners;
    if !let_go(&mut existing.metadata, SPIDERPOOL_FINALIZER) && same {
        return Ok(());
    }
    existing.status.clone_from(&wanted.status);
    existing.metadata.owner_references.clone_from(owners);
    tools.written(Endpoints::NAME, tools.store.update(&existing).await).map(drop)
}

#[cfg(test)]
mod tests {
    use multinet::types::core::PodSpec;

    use super::*;

    fn pod(kind: &str, owner: &str, hash: Option<&str>) -> Pod {
        let mut pod = Pod::new("p", PodSpec::default());
        pod.metadata.owner_references.push(OwnerReference {
            kind: kind.into(),
            name: owner.into(),
            controller: Some(true),
            ..OwnerReference::default()
        });
        if let Some(hash) = hash {
            pod.metadata.labels.insert("pod-template-hash".into(), hash.into());
        }
        pod
    }

    #[test]
    fn the_outermost_owner_is_named() {
        let name = |pod: Option<&Pod>| controller(pod, "p");
        assert_eq!(name(None), ("Pod".into(), "p".into()));
        let of_deployment = pod("ReplicaSet", "web-7d9f", Some("7d9f"));
        assert_eq!(name(Some(&of_deployment)), ("Deployment".into(), "web".into()));
        let alone = pod("ReplicaSet", "web-7d9f", None);
        assert_eq!(name(Some(&alone)), ("ReplicaSet".into(), "web-7d9f".into()));
        assert_eq!(name(Some(&pod("Job", "j", None))), ("Job".into(), "j".into()));
    }
}
