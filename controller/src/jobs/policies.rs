//! Counts NetworkPolicies: none of them is enforced, and somebody should know how many there are.

use std::time::Duration;

use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::Api;
use kube::api::ListParams;
use multinet::store::StoreError;

use super::workloads::unavailable;
use super::{Job, Tools};

/// The job.
pub(super) struct Policies;

impl Job for Policies {
    const NAME: &'static str = "policies";
    const PAUSE: Duration = Duration::from_secs(30);
    const EVERY: Duration = Duration::from_secs(60);
    const WITHHELD: bool = false;

    async fn pass(&mut self, tools: &Tools) -> Result<(), StoreError> {
        let api = Api::<NetworkPolicy>::all(tools.store.client().clone());
        let policies = api.list_metadata(&ListParams::default().match_any()).await;
        let count = policies.map_err(|e| unavailable("NetworkPolicies", &e))?.items.len();
        tools.metrics.unenforced_policies.set(i64::try_from(count).unwrap_or(i64::MAX));
        Ok(())
    }
}
