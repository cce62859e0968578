//! Reading and writing the Secret, and the authority in the webhook configurations.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};

use super::{Current, Material};
use crate::options::Options;

/// Replicas read the Secret this often; so soon is a deleted authority back in place.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// API servers watch their webhook configurations.
const HEARD_WITHIN: Duration = Duration::from_secs(5);

/// Annotation of a webhook configuration: names of its webhooks, with commas between.
const FAIL_ONCE_SERVED: &str = "bowline.dev/fail-once-served";

/// Keeps the certificate of one replica in step with the Secret and both ahead of their end.
#[derive(Clone)]
pub struct Keeper {
    client: Client,
    options: Options,
    current: Current,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper").finish_non_exhaustive()
    }
}

impl Keeper {
    /// A keeper of `current`.
    #[must_use]
    pub fn new(client: Client, options: Options, current: Current) -> Self {
        Keeper { client, options, current }
    }

    /// Runs until it is dropped.
    pub async fn run(self) {
        let mut ticks =
            tokio::time::interval(LOOK_EVERY.min(self.options.certificate_validity / 10));
        let mut in_use = None;
        loop {
            ticks.tick().await;
            match self.pass(&mut in_use).await {
                Ok(()) => {}
                Err(error) => tracing::warn!("the webhooks' certificate: {error:#}; tried again"),
            }
        }
    }

    async fn pass(&self, in_use: &mut Option<Material>) -> anyhow::Result<()> {
        let material = self.shared().await?;
        self.publish(&trusted(in_use.as_ref(), &material)).await?;
        if in_use.as_ref() != Some(&material) {
            if in_use.as_ref().is_some_and(|old| old.authorities != material.authorities) {
                // API servers hear of a new authority a moment later; the old certificate is still good.
                tokio::time::sleep(HEARD_WITHIN.min(self.options.certificate_validity / 10)).await;
            }
            self.current.set(&material).map_err(anyhow::Error::msg)?;
            let until = material.validity.serving_until;
            tracing::info!(until, "the webhooks' certificate is in use");
            *in_use = Some(material);
        }
        Ok(())
    }

    /// What the Secret holds, replaced if due. Of two replicas that replace it one wins, and the other
    /// reads its work at the next look.
    async fn shared(&self) -> anyhow::Result<Material> {
        let name = &self.options.webhook_secret;
        let api = Api::<Secret>::namespaced(self.client.clone(), &self.options.names.namespace);
        let found = api.get_opt(name).await.context("reading the Secret")?;
        let old = found.as_ref().and_then(|s| Material::from_data(s.data.as_ref()?));
        let names = self.options.certificate_names();
        let now = Timestamp::now().as_second();
        let validity = self.options.certificate_validity;
        let Some(new) = Material::renewed(old.as_ref(), &names, validity, now)? else {
            return old.context("nothing to replace and nothing there");
        };
        let parameters = PostParams::default();
        match found {
            Some(mut secret) => {
                secret.data = Some(new.to_data());
                api.replace(name, &parameters, &secret).await.context("replacing the Secret")?;
            }
            None => {
                let mut secret = Secret { data: Some(new.to_data()), ..Secret::default() };
                secret.metadata.name = Some(name.clone());
                let created = api.create(&parameters, &secret).await;
                created.context("creating the Secret")?;
            }
        }
        Ok(new)
    }

    /// Names the authorities in the configurations that the chart installs, and makes the API server
    /// insist on the webhooks that are marked so: from now on somebody answers. A configuration that
    /// is not there (yet) is no failure.
    async fn publish(&self, authorities: &str) -> anyhow::Result<()> {
        let name = &self.options.names.webhook_configuration;
        let bundle = ByteString(authorities.as_bytes().to_vec());
        let api = Api::<ValidatingWebhookConfiguration>::all(self.client.clone());
        if let Some(mut found) = api.get_opt(name).await? {
            let strict = strict(found.annotations());
            let hooks = found.webhooks.iter_mut().flatten().map(|w| Hook {
                strict: strict.contains(&w.name),
                bundle: &mut w.client_config.ca_bundle,
                policy: &mut w.failure_policy,
            });
            if settle(hooks, &bundle) {
                replace(&api, &found).await?;
            }
        }
        let api = Api::<MutatingWebhookConfiguration>::all(self.client.clone());
        if let Some(mut found) = api.get_opt(name).await? {
            let strict = strict(found.annotations());
            let hooks = found.webhooks.iter_mut().flatten().map(|w| Hook {
                strict: strict.contains(&w.name),
                bundle: &mut w.client_config.ca_bundle,
                policy: &mut w.failure_policy,
            });
            if settle(hooks, &bundle) {
                replace(&api, &found).await?;
            }
        }
        Ok(())
    }
}

/// The authorities of a certificate, and of the one that is still in use: a Secret that was deleted has forgotten it.
fn trusted(in_use: Option<&Material>, next: &Material) -> String {
    match in_use {
        Some(old) if !next.authorities.contains(&old.authorities) => {
            format!("{}{}", next.authorities, old.authorities)
        }
        _ => next.authorities.clone(),
    }
}

/// The part of a webhook that is written here.
struct Hook<'a> {
    strict: bool,
    bundle: &'a mut Option<ByteString>,
    policy: &'a mut Option<String>,
}

/// Webhooks that the chart marks: `Ignore` until they are served, `Fail` from then on.
fn strict(annotations: &BTreeMap<String, String>) -> Vec<String> {
    let names = annotations.get(FAIL_ONCE_SERVED).map_or("", String::as_str);
    names.split(',').map(|n| n.trim().to_owned()).filter(|n| !n.is_empty()).collect()
}

/// Whether anything changed.
fn settle<'a>(hooks: impl Iterator<Item = Hook<'a>>, bundle: &ByteString) -> bool {
    let mut changed = false;
    for hook in hooks {
        if hook.bundle.as_ref() != Some(bundle) {
            *hook.bundle = Some(bundle.clone());
            changed = true;
        }
        if hook.strict && hook.policy.as_deref() != Some("Fail") {
            *hook.policy = Some("Fail".into());
            changed = true;
        }
    }
    changed
}

async fn replace<K>(api: &Api<K>, object: &K) -> anyhow::Result<()>
where
    K: kube::Resource + Clone + serde::Serialize + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let replaced = api.replace(&object.name_any(), &PostParams::default(), object).await;
    replaced.context("naming the authority in the webhook configuration").map(drop)
}
