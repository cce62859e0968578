//! NetworkAttachmentDefinitions, where Multus is installed: of every Network in the namespaces that may
//! attach to it, and of every SpiderMultusConfig beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bowline_kube::Severity;
use multinet::definition::{check_adoption, multus_definition, network_definition};
use multinet::rules::{Checked, validate_multus_config};
use multinet::store::{Store, StoreError};
use multinet::types::core::{Namespace, NetworkAttachmentDefinition};
use multinet::types::meta::{Labels, Resource};
use multinet::types::multus::SpiderMultusConfig;
use multinet::types::network::{DEFAULT_NETWORK, Network};

use super::{Job, Tools};
use crate::world::Key;

/// The job.
#[derive(Default)]
pub(super) struct Definitions {
    /// What was said already about configurations that cannot be written.
    said: BTreeMap<Key, String>,
}

impl Job for Definitions {
    const NAME: &'static str = "definitions";
    const PAUSE: Duration = Duration::from_millis(500);
    const EVERY: Duration = Duration::from_secs(60);
    // Definitions name no address.
    const WITHHELD: bool = false;

    async fn pass(&mut self, tools: &Tools) -> Result<(), StoreError> {
        if !tools.world.definitions.is_complete() {
            return Ok(());
        }
        let checked = tools.world.checked();
        let mut wanted = of_networks(&checked, &tools.world.namespaces.read());
        let existing = tools.world.definitions.read().clone();
        for config in tools.world.multus_configs.all() {
            self.add_config(tools, &config, &existing, &mut wanted).await;
        }
        for (key, definition) in &wanted {
            write(tools, definition, existing.get(key)).await?;
        }
        remove_stale(tools, &existing, &wanted).await
    }
}

impl Definitions {
    async fn add_config(
        &mut self,
        tools: &Tools,
        config: &SpiderMultusConfig,
        existing: &BTreeMap<Key, NetworkAttachmentDefinition>,
        wanted: &mut BTreeMap<Key, NetworkAttachmentDefinition>,
    ) {
        if config.metadata.is_terminating() {
            return;
        }
        let definition = multus_definition(config);
        let key = key(&definition);
        let problem = validate_multus_config(config)
            .into_iter()
            .find(multinet::rules::Problem::is_error)
            .or_else(|| check_adoption(config, existing.get(&key)).err());
        let own = (config.metadata.namespace.clone().unwrap_or_default(), config.name().to_owned());
        let Some(problem) = problem else {
            self.said.remove(&own);
            wanted.insert(key, definition);
            return;
        };
        let note = format!("no NetworkAttachmentDefinition is written: {problem}");
        if self.said.insert(own, note.clone()).as_ref() != Some(&note) {
            tools.events.say(config, Severity::Warning, "Invalid", "WriteDefinition", &note).await;
        }
    }
}

/// Definitions of Networks, except `default`, which every pod has as eth0.
fn of_networks(
    checked: &Checked,
    namespaces: &BTreeMap<Key, Namespace>,
) -> BTreeMap<Key, NetworkAttachmentDefinition> {
    let mut wanted = BTreeMap::new();
    let networks = checked.networks.values().filter(|n| n.name() != DEFAULT_NETWORK);
    for network in networks.filter(|n| !n.metadata.is_terminating()) {
        let admitted = namespaces.values().filter(|n| !n.metadata.is_terminating());
        for namespace in admitted.filter(|n| network.admits(&n.metadata.labels)) {
            let definition = network_definition(network, &namespace.metadata.name);
            wanted.insert(key(&definition), definition);
        }
    }
    wanted
}

fn key(definition: &NetworkAttachmentDefinition) -> Key {
    let meta = &definition.metadata;
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone())
}

/// Creates the definition, or mends what differs. One that people made under a Network's name is left
/// alone.
async fn write(
    tools: &Tools,
    wanted: &NetworkAttachmentDefinition,
    existing: Option<&NetworkAttachmentDefinition>,
) -> Result<(), StoreError> {
    let Some(existing) = existing else {
        return match tools.written(Definitions::NAME, tools.store.create(wanted).await) {
            // A namespace that ends takes no new objects, and its definitions end with it.
            Err(error) if error.to_string().contains("being terminated") => Ok(()),
            other => other.map(drop),
        };
    };
    let owner = wanted.metadata.owner_references.first();
    let is_network = owner.is_some_and(|o| o.kind == Network::KIND);
    if is_network && !is_ours(existing) {
        return Ok(());
    }
    let mended = mended(wanted, existing);
    if mended != *existing {
        tools.written(Definitions::NAME, tools.store.update(&mended).await)?;
    }
    Ok(())
}

/// The existing definition with everything that is wanted of it; labels and annotations of others stay.
fn mended(
    wanted: &NetworkAttachmentDefinition,
    existing: &NetworkAttachmentDefinition,
) -> NetworkAttachmentDefinition {
    let mut mended = existing.clone();
    mended.spec = wanted.spec.clone();
    let merge = |into: &mut Labels, from: &Labels| {
        into.extend(from.iter().map(|(k, v)| (k.clone(), v.clone())));
    };
    merge(&mut mended.metadata.labels, &wanted.metadata.labels);
    merge(&mut mended.metadata.annotations, &wanted.metadata.annotations);
    for owner in &wanted.metadata.owner_references {
        let owners = &mut mended.metadata.owner_references;
        // A re-created owner has another UID.
        owners.retain(|o| o.kind != owner.kind || o.name != owner.name || o.uid == owner.uid);
        if !owners.contains(owner) {
            owners.push(owner.clone());
        }
    }
    mended
}

/// Whether a Network's definition was made here.
fn is_ours(definition: &NetworkAttachmentDefinition) -> bool {
    let owners = &definition.metadata.owner_references;
    owners.iter().any(|o| o.kind == Network::KIND && o.api_version == Network::API_VERSION)
}

/// Definitions of Networks in namespaces that may not attach any more. Those of deleted owners go with
/// them.
async fn remove_stale(
    tools: &Tools,
    existing: &BTreeMap<Key, NetworkAttachmentDefinition>,
    wanted: &BTreeMap<Key, NetworkAttachmentDefinition>,
) -> Result<(), StoreError> {
    let networks: BTreeSet<String> =
        tools.world.networks.read().values().map(|n| n.name().to_owned()).collect();
    let stale = existing
        .iter()
        .filter(|(key, d)| is_ours(d) && !wanted.contains_key(*key) && networks.contains(d.name()));
    for (_, definition) in stale {
        tools.written(Definitions::NAME, tools.store.delete(definition).await)?;
    }
    Ok(())
}
