//! Is Bowline still wanted here?

use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use kube::{Api, Client};

/// Whoever is being stopped has a few seconds.
const WITHIN: Duration = Duration::from_secs(3);

/// Whether the DaemonSet of this process' namespace has been deleted. No answer is no.
pub async fn is_gone(client: &Client, daemonset: &str) -> bool {
    let api: Api<DaemonSet> = Api::default_namespaced(client.clone());
    match tokio::time::timeout(WITHIN, api.get_opt(daemonset)).await {
        Ok(Ok(found)) => found.is_none_or(|d| d.metadata.deletion_timestamp.is_some()),
        Ok(Err(error)) => {
            tracing::warn!("cannot tell whether Bowline is uninstalled: {error}");
            false
        }
        Err(_) => false,
    }
}
