//! The way out: agents, webhooks and finalizers go, so that `helm uninstall` and the deletion of the
//! definitions wait for nobody. Objects and their addresses stay as they are.
//!
//! Agents clean their nodes up when they are stopped for good, and ask the API server whether they
//! are: that must happen before the chart takes their rights away.

use std::time::{Duration, Instant};

use anyhow::Context;
use bowline_kube::{ApiStore, remove_taint};
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, Client};
use multinet::store::{Store, StoreError};
use multinet::types::core::{NetworkAttachmentDefinition, Node};
use multinet::types::meta::{LabelSelector, Resource};
use multinet::types::network::Network;
use multinet::types::pool::{SpiderIPPool, SpiderReservedIP};
use multinet::types::subnet::SpiderSubnet;

use crate::jobs::finalizers::FINALIZERS;
use crate::options::Names;

/// The Deployment whose replicas would put finalizers back.
const DEPLOYMENT: &str = "bowline-controller";
/// A taint that only Bowline's agent takes away.
const TAINT: &str = "bowline.dev/not-ready";
/// By then a leader that was stopped has given its Lease back, or lost it.
const STOPPED_WITHIN: Duration = Duration::from_secs(20);
/// Looks at a kind before giving up: nobody else should write any more.
const ATTEMPTS: usize = 20;
/// The agents' DaemonSet, as the chart calls it.
const AGENTS: &str = "bowline-agent";
/// How long agents may take to clean up; one whose node is away never ends.
const AGENTS_WITHIN: Duration = Duration::from_secs(40);
/// Between two looks at their pods.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Deletes the webhook configurations and takes Bowline's finalizers away.
///
/// # Errors
/// The API server's; running it again goes on where it stopped.
pub async fn run(client: Client, names: &Names) -> anyhow::Result<()> {
    // First: a webhook without server refuses every write below.
    let name = &names.webhook_configuration;
    delete::<ValidatingWebhookConfiguration>(&client, name).await?;
    delete::<MutatingWebhookConfiguration>(&client, name).await?;
    stop_leader(&client, &names.namespace).await?;
    stop_agents(&client, &names.namespace).await?;
    let store = ApiStore::new(client.clone());
    release::<Network>(&store).await?;
    release::<SpiderIPPool>(&store).await?;
    release::<SpiderSubnet>(&store).await?;
    release::<SpiderReservedIP>(&store).await?;
    delete_definitions(&store).await?;
    for node in store.list::<Node>(&LabelSelector::default()).await? {
        remove_taint(&client, node.name(), TAINT).await.map_err(anyhow::Error::msg)?;
    }
    Ok(())
}

/// Scales the Deployment to nothing and waits until nobody leads.
async fn stop_leader(client: &Client, namespace: &str) -> anyhow::Result<()> {
    let deployments = Api::<Deployment>::namespaced(client.clone(), namespace);
    let none = Patch::Merge(serde_json::json!({"spec": {"replicas": 0}}));
    match deployments.patch_scale(DEPLOYMENT, &PatchParams::default(), &none).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
        Err(error) => return Err(error).context("scaling the controller to nothing"),
    }
    let leases = Api::<Lease>::namespaced(client.clone(), namespace);
    let deadline = Instant::now() + STOPPED_WITHIN;
    while Instant::now() < deadline {
        match leases.get_opt(DEPLOYMENT).await {
            Ok(Some(lease)) => {
                let holder = lease.spec.and_then(|s| s.holder_identity).unwrap_or_default();
                if holder.is_empty() {
                    break;
                }
            }
            // Not there, or not to be read: the deadline must do.
            Ok(None) => break,
            Err(error) => tracing::debug!("the Lease cannot be read: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

/// Deletes the agents' DaemonSet and waits until its pods have ended.
async fn stop_agents(client: &Client, namespace: &str) -> anyhow::Result<()> {
    let agents = Api::<DaemonSet>::namespaced(client.clone(), namespace);
    match agents.delete(AGENTS, &DeleteParams::background()).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
        Err(error) => return Err(error).context("deleting the agents"),
    }
    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    let theirs = ListParams::default().labels("app.kubernetes.io/component=agent");
    let deadline = Instant::now() + AGENTS_WITHIN;
    while !pods.list(&theirs).await.context("listing the agents' pods")?.items.is_empty() {
        if Instant::now() >= deadline {
            tracing::warn!("agents still run: their nodes may keep the CNI configuration");
            return Ok(());
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(())
}

/// Definitions that Networks own. Their garbage collection would wait for nothing, but the definitions
/// of kinds go next.
async fn delete_definitions(store: &ApiStore) -> anyhow::Result<()> {
    let all = match store.list::<NetworkAttachmentDefinition>(&LabelSelector::default()).await {
        Ok(all) => all,
        Err(StoreError::Unavailable(why)) if why.contains("does not serve") => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let ours = |d: &&NetworkAttachmentDefinition| {
        let owners = &d.metadata.owner_references;
        owners.iter().any(|o| o.kind == Network::KIND && o.api_version == Network::API_VERSION)
    };
    for definition in all.iter().filter(ours) {
        match store.delete(definition).await {
            Err(error) if !error.is_race() => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

async fn delete<K>(client: &Client, name: &str) -> anyhow::Result<()>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::ClusterResourceScope>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
{
    match Api::<K>::all(client.clone()).delete(name, &DeleteParams::default()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error).with_context(|| format!("deleting {} {name}", K::kind(&()))),
    }
}

async fn release<R: Resource>(store: &ApiStore) -> anyhow::Result<()> {
    for _ in 0..ATTEMPTS {
        let all = match store.list::<R>(&LabelSelector::default()).await {
            Ok(all) => all,
            // The definition may be gone already.
            Err(StoreError::Unavailable(why)) if why.contains("does not serve") => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let held: Vec<R> = all.into_iter().filter(has_finalizer).collect();
        if held.is_empty() {
            return Ok(());
        }
        tracing::info!(kind = R::KIND, count = held.len(), "finalizers are taken away");
        for object in held {
            release_one(store, object).await?;
        }
    }
    anyhow::bail!("a {} is written by others all the time; stop them and try again", R::KIND)
}

fn has_finalizer<R: Resource>(object: &R) -> bool {
    object.meta().finalizers.iter().any(|f| FINALIZERS.contains(&f.as_str()))
}

/// A lost race is seen by the next list.
async fn release_one<R: Resource>(store: &ApiStore, mut object: R) -> anyhow::Result<()> {
    object.meta_mut().finalizers.retain(|f| !FINALIZERS.contains(&f.as_str()));
    match store.update(&object).await {
        Err(error) if !error.is_race() && !matches!(error, StoreError::NotFound { .. }) => {
            Err(error.into())
        }
        _ => Ok(()),
    }
}
