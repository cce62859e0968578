//! Compare-and-swap on the Kubernetes API.
//!
//! An update carries `metadata.resourceVersion`, a deletion has UID and version as preconditions, so
//! that the API server compares. Whatever is not a clear answer (a timeout, a broken connection, an
//! overloaded server) is `Unavailable`: the write may have taken place.

use std::future::Future;
use std::time::Duration;

use kube::api::{DeleteParams, ListParams, PostParams, Preconditions};
use kube::core::Status;
use kube::{Client, Error};
use multinet::store::{Store, StoreError};
use multinet::types::meta::{LabelSelector, Resource};

use crate::object::{Object, api};
use crate::watch::selector_text;

/// An API server that has not answered by then is treated as gone; the kubelet gives a pod's
/// sandbox four minutes.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Objects in one answer to a list.
const PAGE: u32 = 200;

/// A store in the Kubernetes API.
#[derive(Clone)]
pub struct ApiStore {
    client: Client,
}

impl std::fmt::Debug for ApiStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiStore").finish_non_exhaustive()
    }
}

impl ApiStore {
    /// A store behind a client.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// The client.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// What `keep` leaves of the objects of a kind whose labels match. All of them are in memory only a
    /// page at a time.
    ///
    /// # Errors
    /// As [`Store::list`].
    pub async fn list_reduced<R: Resource>(
        &self,
        selector: &LabelSelector,
        mut keep: impl FnMut(R) -> Option<R> + Send,
    ) -> Result<Vec<R>, StoreError> {
        let target = Target { kind: R::KIND, name: "", doing: "list" };
        let api = api::<R>(&self.client, None);
        let mut parameters = ListParams::default().limit(PAGE);
        if !selector.is_empty() {
            parameters = parameters.labels(&selector_text(selector));
        }
        let mut found = Vec::new();
        loop {
            let page = target.ask(api.list(&parameters)).await?;
            found.extend(page.items.into_iter().map(Object::into_inner).filter_map(&mut keep));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => parameters = parameters.continue_token(&token),
                None => return Ok(found),
            }
        }
    }

    /// The object of a cluster-scoped kind, read with the right to list the kind.
    ///
    /// # Errors
    /// As [`Store::list`].
    pub async fn find<R: Resource>(&self, name: &str) -> Result<Option<R>, StoreError> {
        let target = Target { kind: R::KIND, name, doing: "read" };
        let parameters = ListParams::default().fields(&format!("metadata.name={name}"));
        let found = target.ask(api::<R>(&self.client, None).list(&parameters)).await?;
        Ok(found.items.into_iter().next().map(Object::into_inner))
    }

    /// Replaces the status of an object, if its stored version is `metadata.resourceVersion`; an
    /// update leaves the status of kinds with a status subresource alone.
    ///
    /// # Errors
    /// As [`Store::update`].
    pub async fn update_status<R: Resource>(&self, object: &R) -> Result<R, StoreError> {
        let (meta, target) = (object.meta(), Target::of(object, "update the status of"));
        let api = api::<R>(&self.client, meta.namespace.as_deref());
        let (parameters, body) = (PostParams::default(), Object::new(object.clone()));
        let replaced = target.ask(api.replace_status(&meta.name, &parameters, &body)).await?;
        Ok(replaced.into_inner())
    }
}

impl Store for ApiStore {
    async fn get<R: Resource>(
        &self,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Option<R>, StoreError> {
        let target = Target { kind: R::KIND, name, doing: "get" };
        let api = api::<R>(&self.client, namespace);
        match target.ask(api.get(name)).await {
            Ok(object) => Ok(Some(object.into_inner())),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn list<R: Resource>(&self, selector: &LabelSelector) -> Result<Vec<R>, StoreError> {
        self.list_reduced(selector, Some).await
    }

    async fn create<R: Resource>(&self, object: &R) -> Result<R, StoreError> {
        let target = Target::of(object, "create");
        let api = api::<R>(&self.client, object.meta().namespace.as_deref());
        let body = Object::new(object.clone());
        let created = target.ask(api.create(&PostParams::default(), &body)).await?;
        Ok(created.into_inner())
    }

    async fn update<R: Resource>(&self, object: &R) -> Result<R, StoreError> {
        let (meta, target) = (object.meta(), Target::of(object, "update"));
        if meta.resource_version.is_none() {
            return Err(target.conflict());
        }
        let api = api::<R>(&self.client, meta.namespace.as_deref());
        let body = Object::new(object.clone());
        let replaced = target.ask(api.replace(&meta.name, &PostParams::default(), &body)).await?;
        Ok(replaced.into_inner())
    }

    async fn delete<R: Resource>(&self, object: &R) -> Result<(), StoreError> {
        let (meta, target) = (object.meta(), Target::of(object, "delete"));
        if meta.resource_version.is_none() {
            return Err(target.conflict());
        }
        let api = api::<R>(&self.client, meta.namespace.as_deref());
        let preconditions = Preconditions {
            resource_version: meta.resource_version.clone(),
            uid: meta.uid.clone(),
        };
        let parameters =
            DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        target.ask(api.delete(&meta.name, &parameters)).await.map(drop)
    }
}

/// What a request is about, for its errors.
#[derive(Clone, Copy)]
struct Target<'a> {
    kind: &'static str,
    name: &'a str,
    doing: &'static str,
}

impl<'a> Target<'a> {
    fn of<R: Resource>(object: &'a R, doing: &'static str) -> Self {
        Self { kind: R::KIND, name: &object.meta().name, doing }
    }

    async fn ask<T>(
        self,
        request: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, StoreError> {
        match tokio::time::timeout(ANSWER_WITHIN, request).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(Error::Api(status))) => Err(self.refusal(&status)),
            Ok(Err(error)) => Err(self.unavailable(&chain(&error))),
            Err(_) => Err(self.unavailable(&format!(
                "the API server did not answer within {} s",
                ANSWER_WITHIN.as_secs()
            ))),
        }
    }

    fn refusal(self, status: &Status) -> StoreError {
        let name = || self.name.to_owned();
        match (status.code, status.reason.as_str()) {
            (409, "AlreadyExists") => StoreError::Exists { kind: self.kind, name: name() },
            (409, _) => self.conflict(),
            // A kind that is not served is not found either, but has no details.
            (404, "NotFound") if status.details.as_ref().is_some_and(|d| d.name == self.name) => {
                StoreError::NotFound { kind: self.kind, name: name() }
            }
            (404, _) => self.unavailable(&format!(
                "the API server does not serve {}; install Bowline's resource definitions \
                 (deploy/crds)",
                self.kind
            )),
            // No right to it, an admission policy or webhook that says no, an object against its schema.
            (400 | 403 | 422, _) => StoreError::Refused(self.sentence(&status.message)),
            (code, _) => self.unavailable(&format!("{} ({code})", status.message)),
        }
    }

    fn conflict(self) -> StoreError {
        StoreError::Conflict { kind: self.kind, name: self.name.to_owned() }
    }

    fn unavailable(self, why: &str) -> StoreError {
        StoreError::Unavailable(self.sentence(why))
    }

    fn sentence(self, why: &str) -> String {
        let space = if self.name.is_empty() { "" } else { " " };
        format!("cannot {} {}{space}{}: {why}", self.doing, self.kind, self.name)
    }
}

/// An error with its causes: the client library's outermost sentence alone says little.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        source = cause.source();
    }
    text
}
