//! StatefulSets and virtual machines, read when a record's fate depends on them.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::StatefulSet;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams};
use kube::{Api, Client, ResourceExt};
use multinet::ipam::{Key, MachineFact, StatefulSetFact};
use multinet::store::StoreError;

/// Every StatefulSet that is not on its way out.
pub(super) async fn stateful_sets(
    client: &Client,
) -> Result<BTreeMap<Key, StatefulSetFact>, StoreError> {
    let api = Api::<StatefulSet>::all(client.clone());
    let sets =
        api.list(&ListParams::default()).await.map_err(|e| unavailable("StatefulSets", &e))?;
    let alive = sets.items.into_iter().filter(|s| s.metadata.deletion_timestamp.is_none());
    Ok(alive.map(|s| (key(&s), fact(&s))).collect())
}

fn fact(set: &StatefulSet) -> StatefulSetFact {
    let spec = set.spec.as_ref();
    let number =
        |n: Option<i32>, otherwise| n.and_then(|n| u32::try_from(n).ok()).unwrap_or(otherwise);
    let start = spec.and_then(|s| s.ordinals.as_ref()?.start);
    StatefulSetFact { start: number(start, 0), replicas: number(spec.and_then(|s| s.replicas), 1) }
}

/// Every virtual machine of KubeVirt; none where KubeVirt is not installed.
pub(super) async fn machines(client: &Client) -> Result<BTreeMap<Key, MachineFact>, StoreError> {
    let mut machines: BTreeMap<Key, MachineFact> = BTreeMap::new();
    for machine in list(client, "VirtualMachine").await? {
        let fact = machines.entry(key(&machine)).or_default();
        fact.machine_lives = machine.metadata.deletion_timestamp.is_none();
    }
    for instance in list(client, "VirtualMachineInstance").await? {
        let lives = instance.metadata.deletion_timestamp.is_none();
        let owned = instance.owner_references().iter().any(|o| o.kind == "VirtualMachine");
        let fact = machines.entry(key(&instance)).or_default();
        fact.instance_lives = lives;
        fact.restarts = !lives && owned;
        let node = instance.data.pointer("/status/nodeName").and_then(|name| name.as_str());
        fact.runs_on = node.unwrap_or_default().to_owned();
    }
    Ok(machines)
}

async fn list(client: &Client, kind: &str) -> Result<Vec<DynamicObject>, StoreError> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("kubevirt.io", "v1", kind));
    let api = Api::<DynamicObject>::all_with(client.clone(), &resource);
    match api.list(&ListParams::default()).await {
        Ok(list) => Ok(list.items),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Vec::new()),
        Err(error) => Err(unavailable(kind, &error)),
    }
}

fn key<K: ResourceExt>(object: &K) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

/// What is not known frees nothing: the pass ends and is repeated.
pub(super) fn unavailable(what: &str, error: &kube::Error) -> StoreError {
    StoreError::Unavailable(format!("cannot list {what}: {error}"))
}
