//! Pods that ask for every interface of a kind (upstream's `…-resource-inject`): the definitions and
//! the devices' resources are written into them, so that the scheduler finds a node that has them.

use multinet::definition::injection;
use multinet::pod::NETWORKS;
use multinet::types::core::Pod;
use serde_json::{Map, Value, json};

use crate::world::World;

/// The pod with what its annotation asks for.
///
/// # Errors
/// A sentence, where no SpiderMultusConfig carries what the pod asks for.
pub(super) fn inject(world: &World, namespace: &str, pod: Value) -> Result<Value, String> {
    let Ok(typed) = serde_json::from_value::<Pod>(pod.clone()) else { return Ok(pod) };
    let labels = world.namespaces.get("", namespace).map(|n| n.metadata.annotations);
    let configs = world.multus_configs.read();
    let asked =
        injection(&typed.metadata.annotations, &labels.unwrap_or_default(), configs.values());
    let Some(found) = asked.map_err(|problem| problem.to_string())? else { return Ok(pod) };
    let mut pod = pod;
    pod["metadata"]["annotations"][NETWORKS] = found.networks.into();
    for resource in &found.resources {
        add_resource(&mut pod, resource);
    }
    Ok(pod)
}

/// One of the resource for the first container, unless one of them asks for it already.
fn add_resource(pod: &mut Value, resource: &str) {
    let Some(containers) = pod["spec"]["containers"].as_array_mut() else { return };
    if containers.iter().any(|c| c["resources"]["limits"].get(resource).is_some()) {
        return;
    }
    let Some(first) = containers.first_mut() else { return };
    // Extended resources are requested as much as they are limited to.
    for list in ["limits", "requests"] {
        let amounts = &mut first["resources"][list];
        if !amounts.is_object() {
            *amounts = Value::Object(Map::new());
        }
        amounts[resource] = json!("1");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_container_gets_one_unless_another_has_it() {
        let mut pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}});
        add_resource(&mut pod, "example.com/vf");
        let resources = &pod["spec"]["containers"][0]["resources"];
        assert_eq!(resources["limits"]["example.com/vf"], "1");
        assert_eq!(resources["requests"]["example.com/vf"], "1");
        let before = json!({"spec": {"containers": [
            {"name": "a"}, {"name": "b", "resources": {"limits": {"example.com/vf": "2"}}}]}});
        let mut pod = before.clone();
        add_resource(&mut pod, "example.com/vf");
        assert_eq!(pod, before);
    }
}
