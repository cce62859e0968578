//! NetworkAttachmentDefinitions: what Multus calls plugins with, made from Networks and from
//! SpiderMultusConfigs (upstream's shape: reference section 7).

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::rules::{Problem, is_auto_coordinated, pools_of, resource_of};
use crate::types::coordinator::CoordinatorSpec;
use crate::types::core::{DefinitionSpec, NetworkAttachmentDefinition};
use crate::types::meta::{Labels, ObjectMeta, OwnerReference, Resource};
use crate::types::multus::{
    BondConfig, IbSriovConfig, IpoibConfig, MasterConfig, MultusConfigSpec, OvsConfig,
    SpiderMultusConfig, SriovConfig, VlanConfig, annotation,
};
use crate::types::network::Network;
use crate::types::pool::annotation::NETWORK;

/// The CNI version of Networks' definitions; the one that every runtime in use knows.
const NETWORK_CNI_VERSION: &str = "1.0.0";
/// Upstream's CNI version where the annotation names none.
const CNI_VERSION: &str = "0.3.1";
/// Multus asks the device plugin of this resource.
const RESOURCE_NAME: &str = "k8s.v1.cni.cncf.io/resourceName";

/// The definition by which pods of a namespace attach to a Network through Multus. It has the
/// Network's name, so that `blue@eth1` means the Network `blue`.
#[must_use]
pub fn network_definition(network: &Network, namespace: &str) -> NetworkAttachmentDefinition {
    let name = &network.metadata.name;
    let config = json!({
        "cniVersion": NETWORK_CNI_VERSION,
        "name": name,
        "type": "bowline",
        "network": name,
    });
    let mut definition = definition(name, namespace, Some(config.to_string()));
    definition.metadata.labels.insert(NETWORK.into(), name.clone());
    definition.metadata.owner_references.extend(owner(network));
    definition
}

fn definition(name: &str, namespace: &str, config: Option<String>) -> NetworkAttachmentDefinition {
    let mut definition = NetworkAttachmentDefinition::new(name, DefinitionSpec { config });
    definition.metadata.namespace = Some(namespace.into());
    definition
}

/// The controller that a definition goes away with; absent for objects that no API server gave a UID.
fn owner<R: Resource>(object: &R) -> Option<OwnerReference> {
    Some(OwnerReference {
        api_version: R::API_VERSION.into(),
        kind: R::KIND.into(),
        name: object.meta().name.clone(),
        uid: object.meta().uid.clone()?,
        controller: Some(true),
        block_owner_deletion: Some(true),
    })
}

/// The name of the definition that a configuration makes.
#[must_use]
pub fn definition_name(config: &SpiderMultusConfig) -> &str {
    let named = config.metadata.annotations.get(annotation::CR_NAME);
    named.map_or(&config.metadata.name, String::as_str)
}

/// Whether a configuration may have a definition that exists: its own, or nobody's.
///
/// # Errors
/// It is another object's.
pub fn check_adoption(
    config: &SpiderMultusConfig,
    existing: Option<&NetworkAttachmentDefinition>,
) -> Result<(), Problem> {
    let owners = existing.iter().flat_map(|d| &d.metadata.owner_references);
    let other = owners
        .filter(|o| o.controller == Some(true) && Some(&o.uid) != config.metadata.uid.as_ref())
        // Before its creation an object has no UID: its name must do.
        .find(|o| o.kind != SpiderMultusConfig::KIND || o.name != config.metadata.name);
    match other {
        None => Ok(()),
        Some(o) => {
            let message = format!(
                "is the NetworkAttachmentDefinition of {} {}; choose another name by {}",
                o.kind,
                o.name,
                annotation::CR_NAME
            );
            Err(Problem::error("metadata.name", definition_name(config), message))
        }
    }
}

/// The definition that a configuration makes. It must have passed
/// [`crate::rules::validate_multus_config`]; what is missing in one that has not is left out.
#[must_use]
pub fn multus_definition(config: &SpiderMultusConfig) -> NetworkAttachmentDefinition {
    let ObjectMeta { annotations, namespace, .. } = &config.metadata;
    let spec = &config.spec;
    let name = definition_name(config);
    let text = match spec.cni_type.as_deref().unwrap_or("custom") {
        "custom" => spec.custom_cni.clone().filter(|t| !t.trim().is_empty()),
        kind => {
            let chain = json!({
                "name": annotations.get(annotation::CONFIG_NAME).map_or(name, String::as_str),
                "cniVersion":
                    annotations.get(annotation::CNI_VERSION).map_or(CNI_VERSION, String::as_str),
                "plugins": plugins(kind, spec),
            });
            Some(chain.to_string())
        }
    };
    let mut definition = definition(name, namespace.as_deref().unwrap_or("default"), text);
    definition.metadata.annotations = definition_annotations(config);
    definition.metadata.owner_references.extend(owner(config));
    definition
}

/// The configuration's annotations, and for device plugins the resource.
fn definition_annotations(config: &SpiderMultusConfig) -> Labels {
    let mut annotations = config.metadata.annotations.clone();
    // What `kubectl apply` noted speaks of the other object.
    annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    let spec = &config.spec;
    let device = if spec.sriov.is_some() || spec.ibsriov.is_some() {
        resource_of(spec).map(Into::into)
    } else {
        let offloaded = spec.ovs.as_ref().filter(|o| o.device_id.is_some());
        offloaded.map(|o| format!("ovs-cni.network.kubevirt.io/{}", o.bridge))
    };
    if let Some(device) = device {
        annotations.insert(RESOURCE_NAME.into(), device);
    }
    annotations
}

/// The chain: interface maker, main plugin, RDMA, the user's own, coordinator, MTU.
fn plugins(kind: &str, spec: &MultusConfigSpec) -> Vec<Value> {
    let ipam = ipam(spec);
    let mut chain = Vec::new();
    match kind {
        "macvlan" => chain.extend(spec.macvlan.iter().flat_map(|c| master_chain(kind, c, &ipam))),
        "ipvlan" => chain.extend(spec.ipvlan.iter().flat_map(|c| master_chain(kind, c, &ipam))),
        "vlan" => chain.extend(spec.vlan.iter().flat_map(|c| vlan_chain(c, &ipam))),
        "sriov" => chain.extend(spec.sriov.iter().flat_map(|c| sriov_chain(c, &ipam))),
        "ib-sriov" => chain.extend(spec.ibsriov.iter().map(|c| ib_sriov(c, &ipam))),
        "ipoib" => chain.extend(spec.ipoib.iter().map(|c| ipoib(c, &ipam))),
        _ => chain.extend(spec.ovs.iter().map(|c| ovs(c, &ipam))),
    }
    chain.extend(spec.chain_cni_json_data.iter().filter_map(|t| serde_json::from_str(t).ok()));
    if is_auto_coordinated(spec) {
        chain.push(coordinator(spec.coordinator.as_ref()));
    }
    if let Some(mtu @ 1..) = spec.sriov.as_ref().and_then(|c| c.mtu) {
        chain.push(json!({"type": "tuning", "mtu": mtu}));
    }
    chain
}

/// A JSON object of what is there.
struct Plugin(Map<String, Value>);

impl Plugin {
    fn new(kind: &str) -> Self {
        Plugin([("type".into(), kind.into())].into_iter().collect())
    }

    fn set<T: Into<Value>>(mut self, key: &str, value: Option<T>) -> Self {
        if let Some(value) = value {
            self.0.insert(key.into(), value.into());
        }
        self
    }

    fn done(self) -> Value {
        Value::Object(self.0)
    }
}

fn some_list(list: &[String]) -> Option<Vec<String>> {
    (!list.is_empty()).then(|| list.to_vec())
}

fn ipam(spec: &MultusConfigSpec) -> Option<Value> {
    if spec.disable_ipam == Some(true) {
        return None;
    }
    let pools = pools_of(spec).cloned().unwrap_or_default();
    let matches = pools.match_master_subnet.filter(|m| *m);
    let ipam = Plugin::new("spiderpool")
        .set("default_ipv4_ippool", some_list(&pools.ipv4))
        .set("default_ipv6_ippool", some_list(&pools.ipv6))
        .set("match_master_subnet", matches);
    Some(ipam.done())
}

/// The device that the main plugin works on: the one master or the bond, and the VLAN on it.
fn device(masters: &[String], bond: Option<&BondConfig>, vlan: i64) -> String {
    let base = match (masters, bond) {
        ([one], _) => one.as_str(),
        (_, Some(bond)) => bond.name.as_str(),
        (many, None) => many.first().map_or("", String::as_str),
    };
    if vlan == 0 { base.into() } else { format!("{base}.{vlan}") }
}

/// Makes VLAN and bond devices before the main plugin needs them; nothing where it needs none.
fn ifacer(masters: &[String], bond: Option<&BondConfig>, vlan: i64) -> Option<Value> {
    if masters.len() < 2 && vlan == 0 {
        return None;
    }
    let bond = bond.filter(|_| masters.len() > 1).map(|b| {
        let mut object = json!({"name": b.name, "mode": b.mode});
        if let Some(options) = &b.options {
            object["options"] = options.clone().into();
        }
        object
    });
    let plugin = Plugin::new("ifacer")
        .set("interfaces", Some(masters.to_vec()))
        .set("vlanID", (vlan != 0).then_some(vlan))
        .set("bond", bond);
    Some(plugin.done())
}

fn master_chain(kind: &str, c: &MasterConfig, ipam: &Option<Value>) -> Vec<Value> {
    let vlan = c.vlan_id.unwrap_or(0);
    let main = Plugin::new(kind)
        .set("master", Some(device(&c.master, c.bond.as_ref(), vlan)))
        .set("mode", (kind == "macvlan").then_some("bridge"))
        .set("mtu", c.mtu.filter(|m| *m > 0))
        .set("ipam", ipam.clone());
    let maker = ifacer(&c.master, c.bond.as_ref(), vlan);
    maker.into_iter().chain([main.done()]).collect()
}

/// The VLAN device itself goes into the pod: only a bond is made before.
fn vlan_chain(c: &VlanConfig, ipam: &Option<Value>) -> Vec<Value> {
    let manual = c.vlan_mode.as_deref() != Some("auto");
    let main = Plugin::new("vlan")
        .set("master", Some(device(&c.master, c.bond.as_ref(), 0)))
        .set("vlanMode", c.vlan_mode.clone())
        .set("vlanId", c.vlan_id.filter(|_| manual))
        .set("mtu", c.mtu.filter(|m| *m > 0))
        .set("ipam", ipam.clone());
    let maker = ifacer(&c.master, c.bond.as_ref(), 0);
    maker.into_iter().chain([main.done()]).collect()
}

fn sriov_chain(c: &SriovConfig, ipam: &Option<Value>) -> Vec<Value> {
    let main = Plugin::new("sriov")
        .set("vlan", c.vlan_id.filter(|v| *v > 0))
        .set("min_tx_rate", c.min_tx_rate_mbps)
        .set("max_tx_rate", c.max_tx_rate_mbps)
        .set("ipam", ipam.clone());
    let rdma = (c.rdma_isolation == Some(true)).then(|| json!({"type": "rdma"}));
    [main.done()].into_iter().chain(rdma).collect()
}

fn ib_sriov(c: &IbSriovConfig, ipam: &Option<Value>) -> Value {
    Plugin::new("ib-sriov")
        .set("pkey", c.pkey.clone().filter(|p| !p.is_empty()))
        .set("link_state", Some(c.link_state.as_deref().unwrap_or("enable")))
        .set("rdmaIsolation", Some(c.rdma_isolation.unwrap_or(true)))
        .set("ibKubernetesEnabled", Some(c.enable_ib_kubernetes.unwrap_or(false)))
        .set("ipam", ipam.clone())
        .done()
}

fn ipoib(c: &IpoibConfig, ipam: &Option<Value>) -> Value {
    Plugin::new("ipoib").set("master", c.master.clone()).set("ipam", ipam.clone()).done()
}

fn ovs(c: &OvsConfig, ipam: &Option<Value>) -> Value {
    let trunk = |t: &crate::types::multus::Trunk| {
        let keys = [("minID", t.min_id), ("maxID", t.max_id), ("id", t.id)];
        let set = keys.into_iter().filter_map(|(k, v)| Some((k.to_string(), v?.into())));
        Value::Object(set.collect())
    };
    let trunks: Vec<Value> = c.trunk.iter().map(trunk).collect();
    Plugin::new("ovs")
        .set("bridge", Some(c.bridge.clone()))
        .set("vlan", c.vlan)
        .set("trunk", (!trunks.is_empty()).then_some(trunks))
        .set("deviceID", c.device_id.clone().filter(|d| !d.is_empty()))
        .set("ipam", ipam.clone())
        .done()
}

/// What the configuration overrides of the SpiderCoordinator.
fn coordinator(spec: Option<&CoordinatorSpec>) -> Value {
    let c = spec.cloned().unwrap_or_default();
    let routes: Vec<Value> =
        c.policy_routes.iter().map(|r| json!({"dst": r.dst, "gw": r.gw})).collect();
    let text = |t: Option<String>| t.filter(|t| !t.is_empty());
    Plugin::new("coordinator")
        .set("mode", text(c.mode))
        .set("hijackCIDR", some_list(&c.hijack_cidr))
        .set("policyRoutes", (!routes.is_empty()).then_some(routes))
        .set("podMACPrefix", text(c.pod_mac_prefix))
        .set("podDefaultRouteNic", text(c.pod_default_route_nic))
        .set("vethLinkAddress", text(c.veth_link_address))
        .set("vethMTU", c.veth_mtu)
        .set("tunePodRoutes", c.tune_pod_routes)
        .set("txQueueLen", c.tx_queue_len.filter(|q| *q > 0))
        .set("podRPFilter", c.pod_rp_filter)
        .set("hostRuleTable", c.host_rule_table)
        .done()
}

/// What a pod is given for its injecting annotation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Injection {
    /// The value for the annotation `k8s.v1.cni.cncf.io/networks`.
    pub networks: String,
    /// Resources that one of its containers needs one of, each.
    pub resources: Vec<String>,
}

/// The interfaces that the annotations `…-resource-inject` of a pod (or else of its namespace) ask for:
/// every configuration that carries the same value, by master, resource and name.
///
/// # Errors
/// No configuration carries it.
pub fn injection<'a>(
    pod: &Labels,
    namespace: &Labels,
    configs: impl Iterator<Item = &'a SpiderMultusConfig>,
) -> Result<Option<Injection>, Problem> {
    let keys = [annotation::RDMA_INJECT, annotation::NETWORK_INJECT];
    let asked = [pod, namespace]
        .into_iter()
        .flat_map(|labels| keys.into_iter().filter_map(move |key| Some((key, labels.get(key)?))));
    let Some((key, value)) = asked.into_iter().next() else { return Ok(None) };
    let carries = |c: &&SpiderMultusConfig| c.metadata.annotations.get(key) == Some(value);
    let mut found: BTreeMap<(String, String), &SpiderMultusConfig> = BTreeMap::new();
    for config in configs.filter(carries) {
        let namespace = config.metadata.namespace.as_deref().unwrap_or("default");
        let path = format!("{namespace}/{}", definition_name(config));
        found.insert((sort_key(&config.spec), path), config);
    }
    if found.is_empty() {
        let message = "is carried by no SpiderMultusConfig; create one, or correct the value";
        return Err(Problem::error(key, value, message));
    }
    let paths: Vec<&str> = found.keys().map(|(_, path)| path.as_str()).collect();
    let mut resources: Vec<String> =
        found.values().filter_map(|c| resource_of(&c.spec)).map(Into::into).collect();
    resources.sort();
    resources.dedup();
    Ok(Some(Injection { networks: paths.join(","), resources }))
}

/// Interfaces keep the order of the devices below them.
fn sort_key(spec: &MultusConfigSpec) -> String {
    let masters = [&spec.macvlan, &spec.ipvlan].into_iter().flatten();
    let mut devices = masters.map(|c| device(&c.master, c.bond.as_ref(), 0));
    devices
        .next()
        .or_else(|| spec.vlan.as_ref().map(|c| device(&c.master, c.bond.as_ref(), 0)))
        .or_else(|| spec.ipoib.as_ref()?.master.clone())
        .or_else(|| resource_of(spec).map(Into::into))
        .unwrap_or_default()
}
