//! An agent that is stopped because Bowline goes, and not to be started again, takes its things
//! along. It tells one from the other by its DaemonSet.

use bowline_kube::is_gone;
use kube::Client;

use crate::core::Core;
use crate::install::{self, Places};
use crate::node::{self, Firewall};

/// The name of the agents' DaemonSet.
const DAEMONSET: &str = "bowline-agent";

/// Removes what the node has of Bowline, if Bowline is being uninstalled.
pub async fn if_uninstalled(core: &Core, places: &Places, firewall: &Firewall) {
    let Some(api) = core.catalog.api() else { return };
    let client: &Client = api.store().api().client();
    if !is_gone(client, DAEMONSET).await {
        return;
    }
    tracing::info!("Bowline is uninstalled: configuration, interface and rules are removed");
    if let Err(e) = install::withdraw(places) {
        tracing::error!("{e}");
    }
    if let Err(why) = firewall.remove().await {
        tracing::error!("{why}");
    }
    if let Err(why) = node::remove().await {
        tracing::error!("{why}");
    }
}
