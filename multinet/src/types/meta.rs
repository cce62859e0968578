//! The Kubernetes envelope: metadata, label selectors, conditions, and what every kind has in common.
//!
//! Invariant: what is read is written back. Fields of the metadata that Bowline has no use for are
//! carried in `other`, those of the rest in `foreign`, so that an update never erases somebody else's
//! data.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::foreign::Foreign;

/// Labels or annotations, in a stable order.
pub type Labels = BTreeMap<String, String>;

/// `metadata` of an object.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectMeta {
    /// Unique within kind and namespace.
    #[serde(default)]
    pub name: String,
    /// Absent for cluster-scoped kinds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// What selectors match.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: Labels,
    /// What programs and people note on an object.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: Labels,
    /// Unique over all time; a re-created object of the same name has another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// The store's version, compared and swapped by [`crate::store::Store::update`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
    /// Counts changes of the spec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    /// RFC 3339; decides which of two conflicting objects is the older.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation_timestamp: Option<String>,
    /// RFC 3339; present while the object waits for its finalizers. Includes the grace period.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_timestamp: Option<String>,
    /// How long the deletion was asked to wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_grace_period_seconds: Option<i64>,
    /// Who this object goes away with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub owner_references: Vec<OwnerReference>,
    /// Who must agree before it goes away.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub finalizers: Vec<String>,
    /// Everything else, carried unchanged.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
    /// What the rest of the object holds that its types do not know.
    #[serde(skip)]
    pub foreign: Option<Arc<Foreign>>,
}

impl ObjectMeta {
    /// Metadata with a name and nothing else.
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        ObjectMeta { name: name.into(), ..Default::default() }
    }

    /// Whether the object waits for its end.
    #[must_use]
    pub fn is_terminating(&self) -> bool {
        self.deletion_timestamp.is_some()
    }

    /// Orders objects by age, the oldest first. Those without a timestamp (files of a directory)
    /// count as oldest; names decide between equals so that every node agrees.
    #[must_use]
    pub fn age_key(&self) -> (&str, &str) {
        (self.creation_timestamp.as_deref().unwrap_or(""), &self.name)
    }
}

/// An entry of `metadata.ownerReferences`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OwnerReference {
    /// Group and version of the owner.
    pub api_version: String,
    /// Kind of the owner.
    pub kind: String,
    /// Name of the owner, in the same namespace or cluster-scoped.
    pub name: String,
    /// UID of the owner.
    pub uid: String,
    /// Whether this owner manages the object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub controller: Option<bool>,
    /// Whether the owner waits for this object when it is deleted in the foreground.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_owner_deletion: Option<bool>,
}

/// A Kubernetes object: what stores hold and rules read.
pub trait Resource: Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Group and version.
    const API_VERSION: &'static str;
    /// Kind.
    const KIND: &'static str;
    /// The kind in paths, lower case.
    const PLURAL: &'static str;
    /// Whether names are unique per namespace only.
    const NAMESPACED: bool;
    /// The metadata.
    fn meta(&self) -> &ObjectMeta;
    /// The metadata, to be changed.
    fn meta_mut(&mut self) -> &mut ObjectMeta;
}

/// Groups whose objects Bowline writes. Of others it reads the few fields that it needs.
const WRITTEN_GROUPS: [&str; 3] = ["bowline.dev/", "spiderpool.spidernet.io/", "k8s.cni.cncf.io/"];

/// Whether of a kind also that is kept which its types do not know.
#[must_use]
pub fn keeps_foreign<R: Resource>() -> bool {
    WRITTEN_GROUPS.iter().any(|group| R::API_VERSION.starts_with(group))
}

/// Notes what `raw`, which the object was read from, holds beyond what its types know.
///
/// # Errors
/// The object cannot be written as JSON.
pub fn keep_foreign<R: Resource>(object: &mut R, raw: &Value) -> serde_json::Result<()> {
    if keeps_foreign::<R>() {
        let known = serde_json::to_value(&*object)?;
        object.meta_mut().foreign = Foreign::of(raw, &known).map(Arc::new);
    }
    Ok(())
}

/// The object as it is to be written: with what [`keep_foreign`] has noted.
///
/// # Errors
/// It cannot be written as JSON.
pub fn with_foreign<R: Resource>(object: &R) -> serde_json::Result<Value> {
    let mut value = serde_json::to_value(object)?;
    if let Some(foreign) = &object.meta().foreign {
        foreign.restore(&mut value);
    }
    Ok(value)
}

/// Defines a kind: a struct of the Kubernetes shape and its [`Resource`] implementation.
macro_rules! resource {
    ($(#[$doc:meta])* $name:ident, $spec:ty, $status:ty, $api:literal, $kind:literal, $plural:literal, namespaced: $ns:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        pub struct $name {
            /// Group and version; the API server leaves it out in lists of its own kinds.
            #[serde(default)]
            pub api_version: String,
            /// Kind; likewise.
            #[serde(default)]
            pub kind: String,
            /// Name, labels, version …
            pub metadata: $crate::types::meta::ObjectMeta,
            /// What is asked for, or held.
            #[serde(default, skip_serializing_if = "crate::types::core::is_empty")]
            pub spec: $spec,
            /// What became of it.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub status: Option<$status>,
        }

        impl $name {
            /// A new object without status.
            #[must_use]
            pub fn new(name: impl Into<String>, spec: $spec) -> Self {
                Self {
                    api_version: $api.into(),
                    kind: $kind.into(),
                    metadata: $crate::types::meta::ObjectMeta::named(name),
                    spec,
                    status: None,
                }
            }

            /// Its name.
            #[must_use]
            pub fn name(&self) -> &str {
                &self.metadata.name
            }
        }

        impl $crate::types::meta::Resource for $name {
            const API_VERSION: &'static str = $api;
            const KIND: &'static str = $kind;
            const PLURAL: &'static str = $plural;
            const NAMESPACED: bool = $ns;
            fn meta(&self) -> &$crate::types::meta::ObjectMeta {
                &self.metadata
            }
            fn meta_mut(&mut self) -> &mut $crate::types::meta::ObjectMeta {
                &mut self.metadata
            }
        }
    };
}
pub(crate) use resource;

/// `status.conditions[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("required" = ["type", "status", "reason", "message"]))]
pub struct Condition {
    /// For instance `Ready`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// One word in CamelCase.
    pub reason: String,
    /// A sentence for a person.
    pub message: String,
    /// The spec's generation that this speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// RFC 3339, when `status` last changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<String>,
}

/// A label selector. The empty selector matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
pub struct LabelSelector {
    /// Labels that must be there with these values.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: Labels,
    /// Further requirements, all of which must hold.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<Requirement>,
}

/// One requirement of a [`LabelSelector`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["key", "operator"]))]
pub struct Requirement {
    /// The label.
    pub key: String,
    /// `In`, `NotIn`, `Exists` or `DoesNotExist`.
    pub operator: String,
    /// For `In` and `NotIn`: at least one value.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

impl LabelSelector {
    /// A selector of one label.
    #[must_use]
    pub fn label(key: impl Into<String>, value: impl Into<String>) -> Self {
        LabelSelector {
            match_labels: [(key.into(), value.into())].into(),
            match_expressions: Vec::new(),
        }
    }

    /// Whether it selects everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.match_labels.is_empty() && self.match_expressions.is_empty()
    }

    /// Whether `labels` satisfy every requirement. An unknown operator matches nothing;
    /// [`crate::rules`] refuses it where it is written.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.match_labels.iter().all(|(k, v)| labels.get(k) == Some(v))
            && self.match_expressions.iter().all(|r| r.matches(labels))
    }
}

impl Requirement {
    fn matches(&self, labels: &Labels) -> bool {
        let value = labels.get(&self.key);
        match self.operator.as_str() {
            "In" => value.is_some_and(|v| self.values.contains(v)),
            // Kubernetes: an absent label is not in any list.
            "NotIn" => value.is_none_or(|v| !self.values.contains(v)),
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            _ => false,
        }
    }
}
