//! `multinet`'s kinds as the client library wants them: one envelope for all.

use std::borrow::Cow;
use std::fmt::Debug;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::DynamicResourceScope;
use kube::{Api, Client};
use multinet::types::meta::{Resource, keep_foreign, keeps_foreign, with_foreign};
use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;

/// An object, and what the client library reads of its metadata.
#[derive(Clone, Debug)]
pub struct Object<R> {
    metadata: ObjectMeta,
    inner: R,
}

impl<R: Resource> Object<R> {
    /// Wraps an object to be sent.
    #[must_use]
    pub fn new(inner: R) -> Self {
        let meta = inner.meta();
        let metadata = ObjectMeta {
            name: Some(meta.name.clone()),
            namespace: meta.namespace.clone(),
            uid: meta.uid.clone(),
            resource_version: meta.resource_version.clone(),
            ..ObjectMeta::default()
        };
        Self { metadata, inner }
    }

    /// The object.
    #[must_use]
    pub fn into_inner(self) -> R {
        self.inner
    }
}

impl<R: Resource> kube::Resource for Object<R> {
    type DynamicType = ();
    type Scope = DynamicResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        R::KIND.into()
    }

    fn group((): &()) -> Cow<'_, str> {
        R::API_VERSION.split_once('/').map_or("", |(group, _)| group).into()
    }

    fn version((): &()) -> Cow<'_, str> {
        R::API_VERSION.split_once('/').map_or(R::API_VERSION, |(_, version)| version).into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        R::PLURAL.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl<R: Resource> Serialize for Object<R> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.inner.meta().foreign {
            None => self.inner.serialize(serializer),
            Some(_) => with_foreign(&self.inner).map_err(S::Error::custom)?.serialize(serializer),
        }
    }
}

impl<'de, R: Resource> Deserialize<'de> for Object<R> {
    /// A watch brings thousands: the text is read a second time only if it says something that the types
    /// do not know. Who owns which field is longer than many an object and nobody here asks for it; the
    /// API server keeps it when an update comes without.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(deserializer)?;
        let mut unknown = false;
        let mut fields = serde_json::Deserializer::from_str(text.get());
        let inner = serde_ignored::deserialize(&mut fields, |_| unknown = true);
        let mut inner: R = inner.map_err(D::Error::custom)?;
        if unknown && keeps_foreign::<R>() {
            let whole: Value = serde_json::from_str(text.get()).map_err(D::Error::custom)?;
            keep_foreign(&mut inner, &whole).map_err(D::Error::custom)?;
        }
        inner.meta_mut().other.remove("managedFields");
        Ok(Self::new(inner))
    }
}

/// The API of a kind: of one namespace, or of all (and of cluster-scoped kinds).
#[must_use]
pub fn api<R: Resource>(client: &Client, namespace: Option<&str>) -> Api<Object<R>> {
    match namespace.filter(|_| R::NAMESPACED) {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &()),
        None => Api::all_with(client.clone(), &()),
    }
}
