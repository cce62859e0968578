//! What changes, as it changes: one stream for each kind and selection.
//!
//! A stream never ends and never fails: what the API server says of a failure is logged once, and the
//! watch is taken up again, with growing pauses. After a gap everything is told anew.

use std::collections::HashMap;
use std::future::ready;

use futures::{Stream, StreamExt};
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use multinet::store::{Store, StoreError};
use multinet::types::meta::{LabelSelector, Labels, Requirement, Resource};

use crate::object::{Object, api};
use crate::store::{ApiStore, chain};

/// Between two attempts to fetch an object that a watch told of.
const FETCH_AGAIN: std::time::Duration = std::time::Duration::from_secs(1);

/// Which objects of a kind are watched. The default is all.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// By their labels.
    pub labels: LabelSelector,
    /// The one of this name.
    pub name: Option<String>,
}

impl Selection {
    /// Objects with this label.
    #[must_use]
    pub fn label(key: &str, value: &str) -> Self {
        Self { labels: LabelSelector::label(key, value), name: None }
    }

    /// The object of this name.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self { labels: LabelSelector::default(), name: Some(name.to_owned()) }
    }

    fn config(&self) -> watcher::Config {
        let mut config = watcher::Config::default();
        if !self.labels.is_empty() {
            config = config.labels(&selector_text(&self.labels));
        }
        match &self.name {
            Some(name) => config.fields(&format!("metadata.name={name}")),
            None => config,
        }
    }
}

/// What a stream tells.
#[derive(Clone, Debug, PartialEq)]
pub enum Change<R> {
    /// These are all that there are.
    All(Vec<R>),
    /// One was made or changed.
    Set(R),
    /// One is gone.
    Gone(R),
}

/// Follows the objects of a kind.
pub fn follow<R: Resource>(
    client: &Client,
    selection: &Selection,
) -> impl Stream<Item = Change<R>> + Send + use<R> {
    let events = watcher(api::<R>(client, None), selection.config()).default_backoff();
    changes::<Object<R>>(events, R::KIND).map(|change| change.map(Object::into_inner))
}

/// Follows the specs of a kind whose status is large and changes often: only metadata is watched, and
/// an object is fetched when its generation, labels or annotations are new.
pub fn follow_specs<R: Resource>(
    client: &Client,
    selection: &Selection,
) -> impl Stream<Item = Change<R>> + Send + use<R> {
    // The library asks for metadata alone where this type is asked for.
    let metadata = Api::<Meta<R>>::all_with(client.clone(), &());
    let events = watcher(metadata, selection.config()).default_backoff();
    let specs = Specs { store: ApiStore::new(client.clone()), known: HashMap::new() };
    let changes = Box::pin(changes::<Meta<R>>(events, R::KIND));
    futures::stream::unfold((changes, specs), |(mut changes, mut specs)| async move {
        loop {
            let change = changes.next().await?;
            if let Some(told) = specs.fetch(change).await {
                return Some((told, (changes, specs)));
            }
        }
    })
}

impl<R> Change<R> {
    fn map<T>(self, mut to: impl FnMut(R) -> T) -> Change<T> {
        match self {
            Change::All(all) => Change::All(all.into_iter().map(to).collect()),
            Change::Set(one) => Change::Set(to(one)),
            Change::Gone(one) => Change::Gone(to(one)),
        }
    }
}

/// Events of the client library as changes; failures are logged when they are new.
fn changes<K>(
    events: impl Stream<Item = watcher::Result<Event<K>>>,
    kind: &'static str,
) -> impl Stream<Item = Change<K>> {
    let mut gathered = Vec::new();
    let mut last_error = String::new();
    events.filter_map(move |event| {
        let failed = event.is_err();
        let change = match event {
            Ok(Event::Init) => {
                gathered.clear();
                None
            }
            Ok(Event::InitApply(object)) => {
                gathered.push(object);
                None
            }
            Ok(Event::InitDone) => Some(Change::All(std::mem::take(&mut gathered))),
            Ok(Event::Apply(object)) => Some(Change::Set(object)),
            Ok(Event::Delete(object)) => Some(Change::Gone(object)),
            Err(error) => {
                let error = chain(&error);
                if error != last_error {
                    tracing::warn!("watching {kind} objects failed and goes on: {error}");
                    last_error = error;
                }
                None
            }
        };
        if !failed && change.is_some() {
            last_error.clear();
        }
        ready(change)
    })
}

/// The objects of a metadata watch, as last fetched.
struct Specs<R> {
    store: ApiStore,
    known: HashMap<String, (Edition, R)>,
}

/// What of an object's metadata says that its spec may be another. A re-created object may have the
/// generation of the old one, but has another UID.
#[derive(PartialEq)]
struct Edition {
    uid: Option<String>,
    generation: Option<i64>,
    labels: Labels,
    annotations: Labels,
    terminating: bool,
}

type Meta<R> = PartialObjectMeta<Object<R>>;

impl<R: Resource> Specs<R> {
    /// The change with whole objects; nothing if it is none for the spec.
    async fn fetch(&mut self, change: Change<Meta<R>>) -> Option<Change<R>> {
        match change {
            Change::All(all) => {
                let mut whole = Vec::with_capacity(all.len());
                let mut before = std::mem::take(&mut self.known);
                for meta in all {
                    let name = meta.name_any();
                    if let Some(known) = before.remove(&name) {
                        self.known.insert(name.clone(), known);
                    }
                    self.refresh(&meta).await;
                    whole.extend(self.known.get(&name).map(|(_, object)| object.clone()));
                }
                Some(Change::All(whole))
            }
            Change::Set(meta) => {
                let fresh = self.refresh(&meta).await;
                let (_, object) = self.known.get(&meta.name_any()).filter(|_| fresh)?;
                Some(Change::Set(object.clone()))
            }
            Change::Gone(meta) => {
                let (_, object) = self.known.remove(&meta.name_any())?;
                Some(Change::Gone(object))
            }
        }
    }

    /// Fetches the object if the one at hand is not of this edition. `false`: nothing is new.
    async fn refresh(&mut self, meta: &Meta<R>) -> bool {
        let name = meta.name_any();
        let edition = Edition {
            uid: meta.uid(),
            generation: meta.metadata.generation,
            labels: meta.labels().clone(),
            annotations: meta.annotations().clone(),
            terminating: meta.metadata.deletion_timestamp.is_some(),
        };
        if self.known.get(&name).is_some_and(|(known, _)| *known == edition) {
            return false;
        }
        match self.get(meta.namespace().as_deref(), &name).await {
            Some(object) => {
                self.known.insert(name, (edition, object));
                true
            }
            // It went meanwhile; the watch says so next.
            None => false,
        }
    }

    async fn get(&self, namespace: Option<&str>, name: &str) -> Option<R> {
        loop {
            match self.store.get::<R>(namespace, name).await {
                Ok(object) => return object,
                Err(StoreError::NotFound { .. }) => return None,
                Err(error) => {
                    tracing::warn!("{error}; tried again");
                    tokio::time::sleep(FETCH_AGAIN).await;
                }
            }
        }
    }
}

/// A selector as the API's query parameter.
pub(crate) fn selector_text(selector: &LabelSelector) -> String {
    let labels = selector.match_labels.iter().map(|(key, value)| format!("{key}={value}"));
    let further = selector.match_expressions.iter().map(requirement_text);
    labels.chain(further).collect::<Vec<_>>().join(",")
}

fn requirement_text(requirement: &Requirement) -> String {
    let Requirement { key, operator, values } = requirement;
    match operator.as_str() {
        "Exists" => key.clone(),
        "DoesNotExist" => format!("!{key}"),
        "NotIn" => format!("{key} notin ({})", values.join(",")),
        _ => format!("{key} in ({})", values.join(",")),
    }
}
