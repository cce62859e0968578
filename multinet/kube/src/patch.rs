//! Small changes of Kubernetes' own objects: an annotation, a taint.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Error};
use serde_json::{Value, json};

/// An API server that has not answered by then is away.
const WITHIN: Duration = Duration::from_secs(5);

/// Writes annotations of a pod. A pod of the name with another UID, or none, is left alone: what was
/// to be told is past.
///
/// # Errors
/// A sentence.
pub async fn annotate_pod(
    client: &Client,
    namespace: &str,
    name: &str,
    uid: &str,
    annotations: Value,
) -> Result<(), String> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let mut patch = json!({"metadata": {"annotations": annotations}});
    if uid.len() == 36 {
        // The API server compares it. Static pods are known by a hash instead.
        patch["metadata"]["uid"] = uid.into();
    }
    let (parameters, patch) = (PatchParams::default(), Patch::Merge(patch));
    let patched = api.patch(name, &parameters, &patch);
    match tokio::time::timeout(WITHIN, patched).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(Error::Api(status))) if matches!(status.code, 404 | 409) => Ok(()),
        Ok(Err(error)) => Err(crate::store::chain(&error)),
        Err(_) => Err("the API server did not answer in time".into()),
    }
}

/// Removes a taint of a node, if it has it. `true`: it had.
///
/// # Errors
/// A sentence.
pub async fn remove_taint(client: &Client, node: &str, key: &str) -> Result<bool, String> {
    let api: Api<Node> = Api::all(client.clone());
    let work = async {
        let known = api.get(node).await?;
        let taints = known.spec.and_then(|spec| spec.taints).unwrap_or_default();
        let kept: Vec<_> = taints.iter().filter(|taint| taint.key != key).collect();
        if kept.len() == taints.len() {
            return Ok(false);
        }
        // With the version: a taint that somebody adds meanwhile is not lost.
        let patch = json!({
            "metadata": {"resourceVersion": known.metadata.resource_version},
            "spec": {"taints": kept},
        });
        api.patch(node, &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok::<bool, Error>(true)
    };
    match tokio::time::timeout(WITHIN, work).await {
        Ok(Ok(had)) => Ok(had),
        Ok(Err(error)) => Err(crate::store::chain(&error)),
        Err(_) => Err("the API server did not answer in time".into()),
    }
}
