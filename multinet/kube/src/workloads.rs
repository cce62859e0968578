//! What outlives its pods: StatefulSets and virtual machines.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::apps::v1::StatefulSet;
use kube::api::{ApiResource, DynamicObject};
use kube::core::GroupVersionKind;
use kube::{Api, Client, Error};
use multinet::ipam::{Key, MachineFact, StatefulSetFact, World, outlives_pod};
use multinet::pod::{Stickiness, machine_of, ordinal_of};
use multinet::types::block::Owner;

/// An API server that has not answered by then is away.
const WITHIN: Duration = Duration::from_secs(5);

/// Whether an owner's addresses are kept although its pod goes.
///
/// # Errors
/// A sentence: the API server did not tell.
pub async fn addresses_outlive_pod(
    client: &Client,
    owner: &Owner,
    stickiness: Stickiness,
) -> Result<bool, String> {
    let Owner::Pod { namespace, name, .. } = owner else { return Ok(false) };
    let (mut sets, mut machines) = (BTreeMap::new(), BTreeMap::new());
    let facts = async {
        if let Some(machine) = machine_of(name) {
            let fact = machine_fact(client, namespace, machine).await?;
            machines.insert((namespace.clone(), machine.to_owned()), fact);
        } else if let Some((set, _)) = ordinal_of(name)
            && let Some(fact) = stateful_set(client, namespace, set).await?
        {
            sets.insert((namespace.clone(), set.to_owned()), fact);
        }
        Ok::<(), Error>(())
    };
    match tokio::time::timeout(WITHIN, facts).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Err(crate::store::chain(&error)),
        Err(_) => return Err("the API server did not answer in time".into()),
    }
    let pods: BTreeMap<Key, _> = BTreeMap::new();
    let world =
        World { pods: &pods, nodes: &BTreeMap::new(), stateful_sets: &sets, machines: &machines };
    Ok(outlives_pod(owner, world, stickiness))
}

async fn stateful_set(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<Option<StatefulSetFact>, Error> {
    let found = Api::<StatefulSet>::namespaced(client.clone(), namespace).get_opt(name).await?;
    let living = found.filter(|set| set.metadata.deletion_timestamp.is_none());
    Ok(living.and_then(|set| set.spec).map(|spec| {
        let start = spec.ordinals.and_then(|o| o.start).unwrap_or(0);
        StatefulSetFact {
            start: start.try_into().unwrap_or(0),
            replicas: spec.replicas.unwrap_or(1).try_into().unwrap_or(0),
        }
    }))
}

async fn machine_fact(client: &Client, namespace: &str, name: &str) -> Result<MachineFact, Error> {
    let instance = kubevirt(client, namespace, name, "VirtualMachineInstance").await?;
    let machine = kubevirt(client, namespace, name, "VirtualMachine").await?;
    let lives = |object: &DynamicObject| object.metadata.deletion_timestamp.is_none();
    let owned = |object: &DynamicObject| {
        let mut owners = object.metadata.owner_references.iter().flatten();
        owners.any(|owner| owner.kind == "VirtualMachine")
    };
    Ok(MachineFact {
        instance_lives: instance.as_ref().is_some_and(lives),
        restarts: instance.as_ref().is_some_and(|i| !lives(i) && owned(i)),
        machine_lives: machine.as_ref().is_some_and(lives),
        // Whoever asks is about to give the record up.
        runs_on: String::new(),
    })
}

/// An object of KubeVirt's; none where KubeVirt is not installed.
async fn kubevirt(
    client: &Client,
    namespace: &str,
    name: &str,
    kind: &str,
) -> Result<Option<DynamicObject>, Error> {
    let plural = format!("{}s", kind.to_lowercase());
    let kind = GroupVersionKind::gvk("kubevirt.io", "v1", kind);
    let resource = ApiResource::from_gvk_with_plural(&kind, &plural);
    match Api::namespaced_with(client.clone(), namespace, &resource).get(name).await {
        Ok(object) => Ok(Some(object)),
        Err(Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(error),
    }
}
