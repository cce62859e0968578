//! Whom automatic pools are made for: the outermost of the objects that control a pod. Controller and
//! agent must name the same one, so both ask here.

use kube::api::{Api, DynamicObject, GroupVersionKind};
use kube::core::ObjectMeta;
use kube::{Client, Error, ResourceExt};
use multinet::auto::Application;
use multinet::types::meta::OwnerReference;

/// The reference to an object's controller.
#[must_use]
pub fn controller_of(meta: &ObjectMeta) -> Option<OwnerReference> {
    let owner = meta.owner_references.iter().flatten().find(|o| o.controller == Some(true))?;
    Some(OwnerReference {
        api_version: owner.api_version.clone(),
        kind: owner.kind.clone(),
        name: owner.name.clone(),
        uid: owner.uid.clone(),
        controller: Some(true),
        block_owner_deletion: None,
    })
}

/// Follows controllers outwards, as far as they can be read: one of a kind that may not be read, or
/// that is gone, is the outermost.
///
/// # Errors
/// The API server did not tell.
pub async fn outermost(
    client: &Client,
    namespace: &str,
    mut reference: OwnerReference,
) -> Result<Application, Error> {
    loop {
        let object = match get(client, namespace, &reference).await {
            // Kinds of others need rights that whoever installs them grants.
            Err(Error::Api(status)) if status.code == 403 => None,
            other => other?,
        };
        match object.and_then(|o| controller_of(&o.metadata)) {
            Some(controller) => reference = controller,
            None => return Ok(application(namespace, reference)),
        }
    }
}

/// The application that a reference names.
#[must_use]
pub fn application(namespace: &str, reference: OwnerReference) -> Application {
    Application {
        api_version: reference.api_version,
        kind: reference.kind,
        namespace: namespace.into(),
        name: reference.name,
        uid: reference.uid,
    }
}

/// Whether an application is there. One that may not be read counts as living.
///
/// # Errors
/// The API server did not tell.
pub async fn lives(client: &Client, app: &Application) -> Result<bool, Error> {
    let reference = OwnerReference {
        api_version: app.api_version.clone(),
        kind: app.kind.clone(),
        name: app.name.clone(),
        ..OwnerReference::default()
    };
    match get(client, &app.namespace, &reference).await {
        Ok(object) => Ok(object.is_some_and(|o| o.uid().as_deref() == Some(&app.uid))),
        Err(Error::Api(status)) if status.code == 403 => Ok(true),
        Err(error) => Err(error),
    }
}

async fn get(
    client: &Client,
    namespace: &str,
    reference: &OwnerReference,
) -> Result<Option<DynamicObject>, Error> {
    let (group, version) =
        reference.api_version.split_once('/').unwrap_or(("", &reference.api_version));
    let kind = GroupVersionKind::gvk(group, version, &reference.kind);
    let resource = match kube::discovery::pinned_kind(client, &kind).await {
        Ok((resource, _)) => resource,
        // Its definition is gone, and so is the object.
        Err(Error::Discovery(_)) => return Ok(None),
        Err(Error::Api(status)) if status.code == 404 => return Ok(None),
        Err(error) => return Err(error),
    };
    Api::<DynamicObject>::namespaced_with(client.clone(), namespace, &resource)
        .get_opt(&reference.name)
        .await
}
