//! An agent that is stopped because Bowline goes, and not to be started again, takes its things
//! along. It tells one from the other by its DaemonSet.

use bowline_kube::{Presence, presence};

use crate::core::Core;
use crate::install::{self, Places};
use crate::node::{self, Firewall};

/// The name of the agents' DaemonSet.
const DAEMONSET: &str = "bowline-agent";

/// Whether this process is of a DaemonSet.
pub async fn is_installed(core: &Core) -> bool {
    asked(core).await == Presence::There
}

/// Removes what the node has of Bowline, if the DaemonSet is there no more. Called of an agent that
/// was of one: rights go together with it, so that a refusal is an answer too.
pub async fn if_uninstalled(core: &Core, places: &Places, firewall: &Firewall) {
    if !matches!(asked(core).await, Presence::Gone | Presence::Refused) {
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

async fn asked(core: &Core) -> Presence {
    match core.catalog.api() {
        Some(api) => presence(api.store().api().client(), DAEMONSET).await,
        None => Presence::Unknown,
    }
}
