//! Applications that may ask for pools of their own: the kinds of Kubernetes, and whatever else controls
//! pods.

use std::collections::BTreeMap;

use bowline_kube::applications::controller_of;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job, JobSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::ListParams;
use kube::{Api, Client, Resource};
use multinet::auto::{Application, Wanted};
use multinet::rules::Problem;
use multinet::store::StoreError;
use multinet::types::core::Pod;
use multinet::types::meta::OwnerReference;

use super::workloads::unavailable;

/// An application that is there, and what it asks for.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) app: Application,
    pub(super) wanted: Result<Wanted, Problem>,
}

/// Every application of the kinds of Kubernetes that no other object controls, and the owners of their
/// objects by UID: a pod's ReplicaSet, for instance, leads to its Deployment.
#[derive(Debug, Default)]
pub(super) struct BuiltIn {
    pub(super) found: Vec<Found>,
    /// Every object of these kinds, by UID: itself as an application, and its controller.
    objects: BTreeMap<String, (Application, Option<OwnerReference>)>,
}

impl BuiltIn {
    /// Reads all of them.
    pub(super) async fn read(client: &Client) -> Result<Self, StoreError> {
        let mut all = BuiltIn::default();
        for d in list::<Deployment>(client).await? {
            let spec = d.spec.as_ref();
            let pods = spec.map(|s| s.replicas.unwrap_or(1));
            all.add::<Deployment>(&d.metadata, spec.map(|s| &s.template), pods);
        }
        for s in list::<StatefulSet>(client).await? {
            let spec = s.spec.as_ref();
            let pods = spec.map(|s| s.replicas.unwrap_or(1));
            all.add::<StatefulSet>(&s.metadata, spec.map(|s| &s.template), pods);
        }
        for r in list::<ReplicaSet>(client).await? {
            let spec = r.spec.as_ref();
            let pods = spec.map(|s| s.replicas.unwrap_or(1));
            all.add::<ReplicaSet>(&r.metadata, spec.and_then(|s| s.template.as_ref()), pods);
        }
        for d in list::<DaemonSet>(client).await? {
            let pods = d.status.as_ref().map(|s| s.desired_number_scheduled);
            all.add::<DaemonSet>(&d.metadata, d.spec.as_ref().map(|s| &s.template), pods);
        }
        for j in list::<Job>(client).await? {
            let spec = j.spec.as_ref();
            all.add::<Job>(&j.metadata, spec.map(|s| &s.template), spec.map(pods_of_job));
        }
        for c in list::<CronJob>(client).await? {
            let spec = c.spec.as_ref().and_then(|s| s.job_template.spec.as_ref());
            all.add::<CronJob>(&c.metadata, spec.map(|s| &s.template), spec.map(pods_of_job));
        }
        Ok(all)
    }

    fn add<K: Resource<DynamicType = ()>>(
        &mut self,
        meta: &ObjectMeta,
        template: Option<&PodTemplateSpec>,
        pods: Option<i32>,
    ) {
        let app = Application {
            api_version: K::api_version(&()).into_owned(),
            kind: K::kind(&()).into_owned(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
        };
        let controller = controller_of(meta);
        let host = template.and_then(|t| t.spec.as_ref()?.host_network) == Some(true);
        let annotations = template.and_then(|t| t.metadata.as_ref()?.annotations.as_ref());
        if let Some(annotations) = annotations.filter(|_| controller.is_none() && !host) {
            let pods = pods.and_then(|n| u32::try_from(n).ok());
            self.found.push(Found { app: app.clone(), wanted: Wanted::read(annotations, pods) });
        }
        self.objects.insert(app.uid.clone(), (app, controller));
    }

    /// The outermost owner that a reference leads to, as far as kinds of Kubernetes go: an application
    /// of these kinds, or a reference to another object.
    fn outermost(&self, reference: &OwnerReference) -> Result<&Application, OwnerReference> {
        let mut reference = reference.clone();
        loop {
            match self.objects.get(&reference.uid) {
                Some((app, None)) => return Ok(app),
                Some((_, Some(controller))) => reference = controller.clone(),
                None => return Err(reference),
            }
        }
    }

    /// Whether an application of these kinds lives.
    pub(super) fn lives(&self, uid: &str) -> bool {
        self.objects.contains_key(uid)
    }

    /// Applications of other kinds whose pods ask for automatic pools.
    pub(super) async fn others<'a>(
        &self,
        client: &Client,
        pods: impl Iterator<Item = &'a Pod>,
    ) -> Result<Vec<Found>, StoreError> {
        let mut found: BTreeMap<Application, Found> = BTreeMap::new();
        for pod in pods.filter(|p| !p.spec.host_network && !p.metadata.is_terminating()) {
            let owners = &pod.metadata.owner_references;
            let Some(owner) = owners.iter().find(|o| o.controller == Some(true)) else { continue };
            let Err(other) = self.outermost(owner) else { continue };
            // Made or deleted since the list was read: the next pass sees it.
            if ["apps/v1", "batch/v1"].contains(&other.api_version.as_str()) {
                continue;
            }
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            let kind = other.kind.clone();
            let app = bowline_kube::applications::outermost(client, namespace, other).await;
            let app = app.map_err(|e| unavailable(&kind, &e))?;
            found.entry(app.clone()).or_insert_with(|| Found {
                app,
                wanted: Wanted::read(&pod.metadata.annotations, None),
            });
        }
        Ok(found.into_values().collect())
    }
}

fn pods_of_job(spec: &JobSpec) -> i32 {
    spec.completions.or(spec.parallelism).unwrap_or(1)
}

async fn list<K>(client: &Client) -> Result<Vec<K>, StoreError>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    // From the API server's memory: a pass after the next change sees what this one missed.
    let parameters = ListParams::default().match_any();
    let listed = Api::<K>::all(client.clone()).list(&parameters).await;
    listed.map(|l| l.items).map_err(|e| unavailable(&K::plural(&()), &e))
}

/// Whether an object of another kind is there. One that may not be read counts as living.
pub(super) async fn lives(client: &Client, app: &Application) -> Result<bool, StoreError> {
    bowline_kube::applications::lives(client, app).await.map_err(|e| unavailable(&app.kind, &e))
}
