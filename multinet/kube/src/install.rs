//! Is Bowline still wanted here?

use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use kube::{Api, Client, Error};

/// Whoever is being stopped has a few seconds.
const WITHIN: Duration = Duration::from_secs(3);

/// What the API server says of this process' DaemonSet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It is there.
    There,
    /// It has been deleted.
    Gone,
    /// We may not ask, or not any more: rights are deleted with everything else.
    Refused,
    /// No answer.
    Unknown,
}

/// Asks for the DaemonSet of this name in the process' own namespace.
pub async fn presence(client: &Client, daemonset: &str) -> Presence {
    let api: Api<DaemonSet> = Api::default_namespaced(client.clone());
    match tokio::time::timeout(WITHIN, api.get_opt(daemonset)).await {
        Ok(Ok(Some(found))) if found.metadata.deletion_timestamp.is_none() => Presence::There,
        Ok(Ok(_)) => Presence::Gone,
        Ok(Err(Error::Api(status))) if matches!(status.code, 401 | 403) => Presence::Refused,
        Ok(Err(_)) | Err(_) => Presence::Unknown,
    }
}
