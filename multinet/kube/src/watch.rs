//! What changes, as it changes: one stream for each kind and selection.
//!
//! A stream never ends and never fails: what the API server says of a failure is logged once, and the
//! watch is taken up again, with growing pauses. After a gap everything is told anew.

use std::collections::{HashMap, HashSet};
use std::future::ready;

use futures::future::join_all;
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

/// Objects in one answer to the first list: while it is read, it is in memory as text and as objects.
const PAGE: u32 = 100;
/// Objects that are fetched at the same time.
const FETCHED_AT_ONCE: usize = 8;

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
        let mut config = watcher::Config::default().page_size(PAGE);
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
    follow_reduced(client, selection, |object| object)
}

/// Follows the objects of a kind. What `reduce` takes away of each is not kept, not even while a list
/// comes in.
pub fn follow_reduced<R: Resource, F: Fn(R) -> R + Send>(
    client: &Client,
    selection: &Selection,
    reduce: F,
) -> impl Stream<Item = Change<R>> + Send + use<R, F> {
    let events = watcher(api::<R>(client, None), selection.config()).default_backoff();
    changes(events, R::KIND, move |object: Object<R>| reduce(object.into_inner()))
}

/// Follows the specs of a kind whose status is large and changes often: only metadata is watched, and
/// an object is fetched when its generation, labels or annotations are new. `reduce` as in
/// [`follow_reduced`].
pub fn follow_specs<R: Resource>(
    client: &Client,
    selection: &Selection,
    reduce: fn(R) -> R,
) -> impl Stream<Item = Change<R>> + Send + use<R> {
    // The library asks for metadata alone where this type is asked for.
    let metadata = Api::<Meta<R>>::all_with(client.clone(), &());
    let events = watcher(metadata, selection.config()).default_backoff();
    let specs = Specs { store: ApiStore::new(client.clone()), known: HashMap::new(), reduce };
    let changes = Box::pin(changes(events, R::KIND, |meta: Meta<R>| meta));
    futures::stream::unfold((changes, specs), |(mut changes, mut specs)| async move {
        loop {
            let change = changes.next().await?;
            if let Some(told) = specs.fetch(change).await {
                return Some((told, (changes, specs)));
            }
        }
    })
}

/// Events of the client library as changes; failures are logged when they are new.
fn changes<K, T>(
    events: impl Stream<Item = watcher::Result<Event<K>>>,
    kind: &'static str,
    to: impl Fn(K) -> T,
) -> impl Stream<Item = Change<T>> {
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
                gathered.push(to(object));
                None
            }
            Ok(Event::InitDone) => Some(Change::All(std::mem::take(&mut gathered))),
            Ok(Event::Apply(object)) => Some(Change::Set(to(object))),
            Ok(Event::Delete(object)) => Some(Change::Gone(to(object))),
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
    reduce: fn(R) -> R,
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

impl Edition {
    fn of<R: Resource>(meta: &Meta<R>) -> Self {
        Self {
            uid: meta.uid(),
            generation: meta.metadata.generation,
            labels: meta.labels().clone(),
            annotations: meta.annotations().clone(),
            terminating: meta.metadata.deletion_timestamp.is_some(),
        }
    }
}

type Meta<R> = PartialObjectMeta<Object<R>>;

impl<R: Resource> Specs<R> {
    /// The change with whole objects; nothing if it is none for the spec.
    async fn fetch(&mut self, change: Change<Meta<R>>) -> Option<Change<R>> {
        match change {
            Change::All(all) => {
                let names: HashSet<String> = all.iter().map(ResourceExt::name_any).collect();
                self.known.retain(|name, _| names.contains(name));
                self.refresh(&all).await;
                Some(Change::All(self.known.values().map(|(_, object)| object.clone()).collect()))
            }
            Change::Set(meta) => {
                let fresh = self.refresh(std::slice::from_ref(&meta)).await;
                let (_, object) = self.known.get(&meta.name_any()).filter(|_| fresh)?;
                Some(Change::Set(object.clone()))
            }
            Change::Gone(meta) => {
                let (_, object) = self.known.remove(&meta.name_any())?;
                Some(Change::Gone(object))
            }
        }
    }

    /// Fetches the objects of which there is a new edition. `false`: there was none.
    async fn refresh(&mut self, metas: &[Meta<R>]) -> bool {
        let outdated = metas.iter().filter(|meta| {
            let known = self.known.get(&meta.name_any());
            known.is_none_or(|(known, _)| *known != Edition::of(meta))
        });
        let outdated: Vec<&Meta<R>> = outdated.collect();
        let mut new = false;
        for some in outdated.chunks(FETCHED_AT_ONCE) {
            let fetches: Vec<_> = some.iter().map(|meta| self.fetch_one(meta)).collect();
            for (name, known) in join_all(fetches).await.into_iter().flatten() {
                self.known.insert(name, known);
                new = true;
            }
        }
        new
    }

    /// Nothing if it went meanwhile; the watch says so next.
    async fn fetch_one(&self, meta: &Meta<R>) -> Option<(String, (Edition, R))> {
        let name = meta.name_any();
        let object = self.get(meta.namespace().as_deref(), &name).await?;
        Some((name, (Edition::of(meta), (self.reduce)(object))))
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
