//! The SpiderCoordinator's status: prefixes of the cluster's pods and Services.
//!
//! Services: ServiceCIDR objects, else what kubeadm or the controller-manager was told. Pods, by
//! `spec.podCIDRType`: where Bowline gives `eth0`, `auto` means the pools of Network `default`; without,
//! Calico or Cilium if one is installed, else none.

use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams};
use kube::{Api, Client};
use multinet::rules::Checked;
use multinet::store::StoreError;
use multinet::types::coordinator::{CoordinatorStatus, DEFAULT_COORDINATOR};
use multinet::types::network::DEFAULT_NETWORK;
use serde_json::Value;

use super::workloads::unavailable;
use super::{Job, Tools};

/// The job.
pub(super) struct Coordinator;

impl Job for Coordinator {
    const NAME: &'static str = "coordinator";
    const PAUSE: Duration = Duration::from_secs(5);
    const EVERY: Duration = Duration::from_secs(30);
    const WITHHELD: bool = true;

    async fn pass(&mut self, tools: &Tools) -> Result<(), StoreError> {
        let Some(stored) = tools.world.coordinators.get("", DEFAULT_COORDINATOR) else {
            return Ok(());
        };
        let kind = stored.spec.pod_cidr_type.as_deref().unwrap_or("auto");
        let client = tools.store.client();
        let own = pools_of_default(&tools.world.checked());
        let pods = pod_cidrs(client, kind, own).await?;
        let services = service_cidrs(client).await?;
        let status = status(pods, services);
        if stored.status.as_ref() != Some(&status) {
            let mut shown = stored.clone();
            shown.status = Some(status);
            tools.written(Self::NAME, tools.store.update_status(&shown).await)?;
        }
        Ok(())
    }
}

/// Prefixes, or why they are not known.
type Found = Result<Vec<IpNet>, String>;

fn status(pods: Found, services: Found) -> CoordinatorStatus {
    match (pods, services) {
        (Ok(pods), Ok(services)) => CoordinatorStatus {
            phase: "Synced".into(),
            reason: String::new(),
            overlay_pod_cidr: texts(pods),
            service_cidr: texts(services),
        },
        (Err(reason), _) | (_, Err(reason)) => {
            CoordinatorStatus { phase: "NotReady".into(), reason, ..CoordinatorStatus::default() }
        }
    }
}

fn texts(mut nets: Vec<IpNet>) -> Vec<String> {
    nets.sort();
    nets.dedup();
    nets.iter().map(ToString::to_string).collect()
}

fn pools_of_default(checked: &Checked) -> Vec<IpNet> {
    checked.pools_of(DEFAULT_NETWORK).map(|p| p.subnet).collect()
}

async fn pod_cidrs(client: &Client, kind: &str, own: Vec<IpNet>) -> Result<Found, StoreError> {
    match kind {
        "none" => Ok(Ok(Vec::new())),
        "auto" if !own.is_empty() => Ok(Ok(own)),
        "auto" => match calico(client).await? {
            Some(found) => Ok(Ok(found)),
            None => Ok(Ok(cilium(client).await?.unwrap_or_default())),
        },
        "calico" => Ok(calico(client).await?.ok_or_else(|| {
            "podCIDRType is calico, and the API server knows no IPPool of Calico".into()
        })),
        "cilium" => Ok(cilium(client).await?.ok_or_else(|| {
            "podCIDRType is cilium, and there is no ConfigMap kube-system/cilium-config".into()
        })),
        _ if !own.is_empty() => Ok(Ok(own)),
        _ => told(client, "podSubnet", "--cluster-cidr=").await,
    }
}

async fn service_cidrs(client: &Client) -> Result<Found, StoreError> {
    let api = Api::<ServiceCIDR>::all(client.clone());
    let found = match api.list(&ListParams::default()).await {
        Ok(list) => list.items,
        // API servers before 1.33 do not know the kind.
        Err(kube::Error::Api(status)) if status.code == 404 => Vec::new(),
        Err(error) => return Err(unavailable("ServiceCIDRs", &error)),
    };
    let specs = found.into_iter().filter_map(|c| c.spec);
    let cidrs: Vec<IpNet> =
        specs.flat_map(|s| s.cidrs.unwrap_or_default()).filter_map(|c| c.parse().ok()).collect();
    if cidrs.is_empty() {
        return told(client, "serviceSubnet", "--service-cluster-ip-range=").await;
    }
    Ok(Ok(cidrs))
}

/// What the cluster's installer was told: kubeadm's configuration, else the controller-manager's flags.
async fn told(client: &Client, key: &str, flag: &str) -> Result<Found, StoreError> {
    let maps = Api::<ConfigMap>::namespaced(client.clone(), "kube-system");
    let map = maps.get_opt("kubeadm-config").await.map_err(|e| unavailable("ConfigMaps", &e))?;
    let text = map.and_then(|m| m.data?.remove("ClusterConfiguration"));
    if let Some(value) = text.as_deref().and_then(|t| yaml_value(t, key)) {
        return Ok(parse(value));
    }
    let pods = Api::<Pod>::namespaced(client.clone(), "kube-system");
    let parameters = ListParams::default().labels("component=kube-controller-manager");
    let managers = pods.list(&parameters).await.map_err(|e| unavailable("Pods", &e))?;
    let containers = managers.items.into_iter().filter_map(|p| p.spec).flat_map(|s| s.containers);
    let words = containers
        .flat_map(|c| c.command.unwrap_or_default().into_iter().chain(c.args.unwrap_or_default()));
    let mut values = words.filter_map(|w| w.strip_prefix(flag).map(str::to_owned));
    Ok(values.next().map_or_else(
        || {
            Err(format!(
                "neither the ConfigMap kube-system/kubeadm-config ({key}) nor a \
                 kube-controller-manager's {flag}… says it; set spec.podCIDRType to none"
            ))
        },
        |value| parse(&value),
    ))
}

/// The value of a key of kubeadm's configuration, one scalar on its line.
fn yaml_value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let mut lines = text.lines().filter_map(|l| l.trim().strip_prefix(key)?.strip_prefix(':'));
    lines.next().map(|v| v.trim().trim_matches(['"', '\''])).filter(|v| !v.is_empty())
}

fn parse(list: &str) -> Found {
    let nets = list
        .split(',')
        .map(|c| c.trim().parse::<IpNet>().map_err(|_| format!("{c} in {list} is not a prefix")));
    nets.collect()
}

/// Calico's pools. Disabled ones too: their pods live on.
async fn calico(client: &Client) -> Result<Option<Vec<IpNet>>, StoreError> {
    let pools = dynamic(client, "crd.projectcalico.org", "v1", "IPPool").await?;
    Ok(pools.map(|p| p.iter().filter_map(|o| net(&o.data["spec"]["cidr"])).collect()))
}

/// Cilium's: by its mode of address management.
async fn cilium(client: &Client) -> Result<Option<Vec<IpNet>>, StoreError> {
    let maps = Api::<ConfigMap>::namespaced(client.clone(), "kube-system");
    let map = maps.get_opt("cilium-config").await.map_err(|e| unavailable("ConfigMaps", &e))?;
    let Some(data) = map.map(|m| m.data.unwrap_or_default()) else { return Ok(None) };
    if data.get("ipam").is_some_and(|mode| mode == "multi-pool") {
        let pools = dynamic(client, "cilium.io", "v2alpha1", "CiliumPodIPPool").await?;
        let of = |o: &DynamicObject| -> Vec<IpNet> {
            let families = ["ipv4", "ipv6"].map(|f| o.data["spec"][f]["cidrs"].clone());
            families.iter().filter_map(Value::as_array).flatten().filter_map(net).collect()
        };
        return Ok(Some(pools.unwrap_or_default().iter().flat_map(of).collect()));
    }
    let lists = ["cluster-pool-ipv4-cidr", "cluster-pool-ipv6-cidr"].map(|k| data.get(k));
    let words = lists.into_iter().flatten().flat_map(|l| l.split([',', ' ']));
    Ok(Some(words.filter_map(|w| w.trim().parse().ok()).collect()))
}

fn net(value: &Value) -> Option<IpNet> {
    value.as_str()?.parse().ok()
}

/// Objects of a kind that may not be installed.
async fn dynamic(
    client: &Client,
    group: &str,
    version: &str,
    kind: &str,
) -> Result<Option<Vec<DynamicObject>>, StoreError> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    let api = Api::<DynamicObject>::all_with(client.clone(), &resource);
    match api.list(&ListParams::default()).await {
        Ok(list) => {
            let alive = |o: &DynamicObject| o.metadata.deletion_timestamp.is_none();
            Ok(Some(list.items.into_iter().filter(alive).collect()))
        }
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(unavailable(kind, &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubeadms_configuration_is_read() {
        let text =
            "networking:\n  dnsDomain: cluster.local\n  podSubnet: 10.244.0.0/16,fd00::/48\n";
        let value = yaml_value(text, "podSubnet").unwrap();
        assert_eq!(texts(parse(value).unwrap()), ["10.244.0.0/16", "fd00::/48"]);
        assert_eq!(yaml_value(text, "serviceSubnet"), None);
    }

    #[test]
    fn what_is_not_known_is_said_and_leaves_no_prefix() {
        let shown = status(Err("why".into()), Ok(vec!["10.96.0.0/16".parse().unwrap()]));
        assert_eq!((shown.phase.as_str(), shown.reason.as_str()), ("NotReady", "why"));
        assert!(shown.service_cidr.is_empty());
    }
}
