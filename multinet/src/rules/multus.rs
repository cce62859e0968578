//! Rules of one `SpiderMultusConfig`.

use serde_json::{Map, Value};

use super::coordinator::{check_choice, check_coordinator};
use super::{Problem, is_dns_name};
use crate::types::meta::ObjectMeta;
use crate::types::multus::{
    BondConfig, CNI_TYPES, ConfigPools, IbSriovConfig, MultusConfigSpec, OvsConfig,
    SpiderMultusConfig, SriovConfig, VlanConfig, annotation,
};

/// Versions of the CNI specification that a configuration may name.
pub const CNI_VERSIONS: [&str; 4] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0"];

/// Everything that is wrong with a configuration.
#[must_use]
pub fn validate_multus_config(object: &SpiderMultusConfig) -> Vec<Problem> {
    let mut problems = Vec::new();
    let spec = &object.spec;
    let kind = spec.cni_type.as_deref().unwrap_or("custom");
    check_choice("spec.cniType", Some(kind), &CNI_TYPES, &mut problems);
    check_blocks(kind, spec, &mut problems);
    check_masters(spec, &mut problems);
    if let Some(vlan) = &spec.vlan {
        check_vlan(vlan, &mut problems);
    }
    if let Some(sriov) = &spec.sriov {
        check_sriov(sriov, &mut problems);
    }
    if let Some(ib) = &spec.ibsriov {
        check_ib_sriov(ib, &mut problems);
    }
    if let Some(ipoib) = &spec.ipoib
        && ipoib.master.as_deref().unwrap_or("").is_empty()
    {
        let message = "is missing; name the interface of the node";
        problems.push(Problem::error("spec.ipoib.master", "", message));
    }
    if let Some(ovs) = &spec.ovs {
        check_ovs(ovs, &mut problems);
    }
    check_pools(kind, spec, &mut problems);
    if let Some(coordinator) = &spec.coordinator {
        check_coordinator("spec.coordinator", coordinator, &mut problems);
    }
    check_json(spec, &mut problems);
    check_annotations(&object.metadata, kind, spec, &mut problems);
    problems
}

/// Blocks with the `cniType` that they belong to.
fn blocks(spec: &MultusConfigSpec) -> [(&'static str, &'static str, bool); 8] {
    [
        ("macvlan", "macvlan", spec.macvlan.is_some()),
        ("ipvlan", "ipvlan", spec.ipvlan.is_some()),
        ("vlan", "vlan", spec.vlan.is_some()),
        ("sriov", "sriov", spec.sriov.is_some()),
        ("ovs", "ovs", spec.ovs.is_some()),
        ("ibsriov", "ib-sriov", spec.ibsriov.is_some()),
        ("ipoib", "ipoib", spec.ipoib.is_some()),
        ("customCNI", "custom", spec.custom_cni.is_some()),
    ]
}

/// The block of `cniType` and no other; `customCNI` may be left out.
fn check_blocks(kind: &str, spec: &MultusConfigSpec, problems: &mut Vec<Problem>) {
    for (field, of, present) in blocks(spec) {
        let field = format!("spec.{field}");
        if of == kind && !present && of != "custom" {
            let message = format!("is missing; spec.cniType {kind} needs it");
            problems.push(Problem::error(field, "", message));
        } else if of != kind && present {
            let message = format!("belongs to spec.cniType {of}; remove it, or write that type");
            problems.push(Problem::error(field, "", message));
        }
    }
}

/// Masters, and the bond that several of them need.
fn check_masters(spec: &MultusConfigSpec, problems: &mut Vec<Problem>) {
    let blocks = [
        ("macvlan", spec.macvlan.as_ref().map(|c| (&c.master, &c.bond, c.vlan_id, c.mtu))),
        ("ipvlan", spec.ipvlan.as_ref().map(|c| (&c.master, &c.bond, c.vlan_id, c.mtu))),
        ("vlan", spec.vlan.as_ref().map(|c| (&c.master, &c.bond, c.vlan_id, c.mtu))),
    ];
    for (name, block) in blocks {
        let Some((masters, bond, vlan, mtu)) = block else { continue };
        let at = format!("spec.{name}");
        if masters.is_empty() || masters.iter().any(String::is_empty) {
            let message = "is missing or empty; name at least one interface of the node";
            problems.push(Problem::error(format!("{at}.master"), "", message));
        }
        if masters.len() > 1 && bond.is_none() {
            let message = format!("is missing; {} masters need a bond", masters.len());
            problems.push(Problem::error(format!("{at}.bond"), "", message));
        }
        if let Some(bond) = bond {
            check_bond(&at, bond, problems);
        }
        check_vlan_id(&format!("{at}.vlanID"), vlan, problems);
        check_least(&format!("{at}.mtu"), mtu, problems);
    }
}

fn check_bond(at: &str, bond: &BondConfig, problems: &mut Vec<Problem>) {
    if bond.name.is_empty() {
        let message = "is missing; name the bond, like bond0";
        problems.push(Problem::error(format!("{at}.bond.name"), "", message));
    }
    if !(0..=6).contains(&bond.mode) {
        let message = "must be 0 to 6, the kernel's bonding modes";
        problems.push(Problem::error(format!("{at}.bond.mode"), bond.mode, message));
    }
    let options = bond.options.as_deref().unwrap_or("");
    let pair = |o: &str| o.split_once('=').is_some_and(|(k, v)| !k.is_empty() && !v.is_empty());
    if !options.is_empty() && !options.split(';').all(|o| pair(o.trim())) {
        let message = "is not a list like miimon=100;primary=eth0";
        problems.push(Problem::error(format!("{at}.bond.options"), options, message));
    }
}

fn check_vlan_id(field: &str, id: Option<i64>, problems: &mut Vec<Problem>) {
    if let Some(id) = id.filter(|id| !(0..=4094).contains(id)) {
        let message = "must be 0 (untagged) to 4094 (IEEE 802.1Q reserves 4095)";
        problems.push(Problem::error(field, id, message));
    }
}

fn check_least(field: &str, value: Option<i64>, problems: &mut Vec<Problem>) {
    if let Some(value) = value.filter(|v| *v < 0) {
        problems.push(Problem::error(field, value, "must be 0 or more"));
    }
}

fn check_vlan(vlan: &VlanConfig, problems: &mut Vec<Problem>) {
    let mode = vlan.vlan_mode.as_deref().unwrap_or("manual");
    check_choice("spec.vlan.vlanMode", Some(mode), &["manual", "auto"], problems);
    match (mode, vlan.vlan_id) {
        ("manual", None) => {
            let message = "is missing; spec.vlan.vlanMode manual needs 0 to 4094";
            problems.push(Problem::error("spec.vlan.vlanID", "", message));
        }
        ("auto", Some(id)) => {
            let message = "cannot be set with spec.vlan.vlanMode auto, where a provider chooses";
            problems.push(Problem::error("spec.vlan.vlanID", id, message));
        }
        _ => {}
    }
}

fn check_resource(field: &str, name: Option<&str>, problems: &mut Vec<Problem>) {
    if name.unwrap_or("").is_empty() {
        let message = "is missing; name the device plugin's resource, like vendor.com/sriov";
        problems.push(Problem::error(field, "", message));
    }
}

fn check_sriov(sriov: &SriovConfig, problems: &mut Vec<Problem>) {
    check_resource("spec.sriov.resourceName", sriov.resource_name.as_deref(), problems);
    check_vlan_id("spec.sriov.vlanID", sriov.vlan_id, problems);
    check_least("spec.sriov.mtu", sriov.mtu, problems);
    check_least("spec.sriov.minTxRateMbps", sriov.min_tx_rate_mbps, problems);
    check_least("spec.sriov.maxTxRateMbps", sriov.max_tx_rate_mbps, problems);
    // 0 is no limit: any minimum lies below it.
    if let (Some(least), Some(most @ 1..)) = (sriov.min_tx_rate_mbps, sriov.max_tx_rate_mbps)
        && least > most
    {
        let message = format!("is above spec.sriov.maxTxRateMbps, {most}");
        problems.push(Problem::error("spec.sriov.minTxRateMbps", least, message));
    }
}

fn check_ib_sriov(ib: &IbSriovConfig, problems: &mut Vec<Problem>) {
    check_resource("spec.ibsriov.resourceName", ib.resource_name.as_deref(), problems);
    let states = ["auto", "enable", "disable"];
    check_choice("spec.ibsriov.linkState", ib.link_state.as_deref(), &states, problems);
}

fn check_ovs(ovs: &OvsConfig, problems: &mut Vec<Problem>) {
    if ovs.bridge.is_empty() {
        let message = "is missing; name the bridge";
        problems.push(Problem::error("spec.ovs.bridge", "", message));
    }
    check_vlan_id("spec.ovs.vlan", ovs.vlan, problems);
    if ovs.vlan.is_some() && !ovs.trunk.is_empty() {
        let message = "cannot be set beside spec.ovs.vlan; a port is an access or a trunk port";
        problems.push(Problem::error("spec.ovs.trunk", "", message));
    }
    for (i, trunk) in ovs.trunk.iter().enumerate() {
        let at = format!("spec.ovs.trunk[{i}]");
        for (name, id) in [("id", trunk.id), ("minID", trunk.min_id), ("maxID", trunk.max_id)] {
            check_vlan_id(&format!("{at}.{name}"), id, problems);
        }
        match (trunk.min_id, trunk.max_id) {
            (Some(least), Some(most)) if least > most => {
                let message = format!("is above maxID, {most}");
                problems.push(Problem::error(format!("{at}.minID"), least, message));
            }
            (Some(_), None) | (None, Some(_)) => {
                let message = "needs both minID and maxID; write id for one VLAN";
                problems.push(Problem::error(at, "", message));
            }
            (None, None) if trunk.id.is_none() => {
                problems.push(Problem::error(at, "", "is empty; write id, or minID and maxID"));
            }
            _ => {}
        }
    }
}

/// The pools that the block of a configuration names.
pub(crate) fn pools_of(spec: &MultusConfigSpec) -> Option<&ConfigPools> {
    let masters = [&spec.macvlan, &spec.ipvlan].into_iter().flatten();
    let mut found = masters.filter_map(|c| c.ippools.as_ref());
    found
        .next()
        .or_else(|| spec.vlan.as_ref()?.ippools.as_ref())
        .or_else(|| spec.sriov.as_ref()?.ippools.as_ref())
        .or_else(|| spec.ibsriov.as_ref()?.ippools.as_ref())
        .or_else(|| spec.ipoib.as_ref()?.ippools.as_ref())
        .or_else(|| spec.ovs.as_ref()?.ippools.as_ref())
}

fn check_pools(kind: &str, spec: &MultusConfigSpec, problems: &mut Vec<Problem>) {
    let matches = pools_of(spec).is_some_and(|p| p.match_master_subnet == Some(true));
    if matches && kind != "sriov" {
        let message = "belongs to spec.cniType sriov, whose function says which device it is of";
        let block = blocks(spec).into_iter().find(|(_, of, _)| *of == kind);
        let field = format!("spec.{}.ippools.matchMasterSubnet", block.map_or(kind, |b| b.0));
        problems.push(Problem::error(field, "true", message));
    }
}

fn is_plugin(object: &Map<String, Value>) -> bool {
    object.get("type").and_then(Value::as_str).is_some_and(|kind| !kind.is_empty())
}

fn check_json(spec: &MultusConfigSpec, problems: &mut Vec<Problem>) {
    let mut check = |field: String, text: &str, accepts: fn(&Map<String, Value>) -> bool, lacks| {
        let message = match serde_json::from_str::<Value>(text) {
            Ok(Value::Object(object)) if accepts(&object) => return,
            Ok(Value::Object(_)) => format!("is no CNI configuration: it has {lacks}"),
            Ok(_) => "is not a JSON object".into(),
            Err(e) => format!("is not JSON: {e}"),
        };
        problems.push(Problem::error(field, text, message));
    };
    // One plugin of a chain; a list in a list is read by nobody.
    for (i, text) in spec.chain_cni_json_data.iter().enumerate() {
        check(format!("spec.chainCNIJsonData[{i}]"), text, is_plugin, "no type");
    }
    if let Some(text) = spec.custom_cni.as_deref().filter(|t| !t.trim().is_empty()) {
        let accepts =
            |o: &Map<String, Value>| is_plugin(o) || o.get("plugins").is_some_and(Value::is_array);
        check("spec.customCNI".into(), text, accepts, "neither type nor plugins");
    }
}

fn check_annotations(
    meta: &ObjectMeta,
    kind: &str,
    spec: &MultusConfigSpec,
    problems: &mut Vec<Problem>,
) {
    let get = |key: &str| meta.annotations.get(key).map(String::as_str);
    let at = |key: &str| format!("metadata.annotations[{key}]");
    if let Some(name) = get(annotation::CR_NAME)
        && !is_dns_name(name)
    {
        let message = "must be 1 to 253 of a-z, 0-9, - and ., like an object's name";
        problems.push(Problem::error(at(annotation::CR_NAME), name, message));
    }
    check_choice(
        &at(annotation::CNI_VERSION),
        get(annotation::CNI_VERSION),
        &CNI_VERSIONS,
        problems,
    );
    let has_pools = pools_of(spec).is_some_and(|p| !p.ipv4.is_empty() || !p.ipv6.is_empty());
    let has_resource = resource_of(spec).is_some();
    for key in [annotation::RDMA_INJECT, annotation::NETWORK_INJECT] {
        let Some(value) = get(key) else { continue };
        let mut refuse = |message: &str| problems.push(Problem::error(at(key), value, message));
        if matches!(kind, "ovs" | "custom") {
            refuse("is not possible with spec.cniType ovs or custom; remove it");
        } else if key == annotation::RDMA_INJECT && !has_resource {
            refuse("needs a resource: set rdmaResourceName or resourceName");
        } else if (key == annotation::RDMA_INJECT || has_resource) && !has_pools {
            refuse("needs pools: set ippools, so that injected interfaces get addresses");
        }
    }
}

/// Whether the coordinator follows in the chain: unless said otherwise, and never after a custom
/// configuration.
pub(crate) fn is_auto_coordinated(spec: &MultusConfigSpec) -> bool {
    let custom = spec.cni_type.as_deref().unwrap_or("custom") == "custom";
    !custom && spec.enable_coordinator != Some(false)
}

/// The resource that pods with an injecting annotation are given.
#[must_use]
pub fn resource_of(spec: &MultusConfigSpec) -> Option<&str> {
    let masters = [&spec.macvlan, &spec.ipvlan].into_iter().flatten();
    let mut names = masters.map(|c| c.rdma_resource_name.as_deref());
    let found = names
        .next()
        .or_else(|| spec.vlan.as_ref().map(|c| c.rdma_resource_name.as_deref()))
        .or_else(|| spec.sriov.as_ref().map(|c| c.resource_name.as_deref()))
        .or_else(|| spec.ibsriov.as_ref().map(|c| c.resource_name.as_deref()));
    found.flatten().filter(|n| !n.is_empty())
}

/// What a change of a configuration must not change.
#[must_use]
pub fn validate_multus_config_update(
    old: &SpiderMultusConfig,
    new: &SpiderMultusConfig,
) -> Vec<Problem> {
    let mut problems = validate_multus_config(new);
    let name = |o: &SpiderMultusConfig| o.metadata.annotations.get(annotation::CR_NAME).cloned();
    if let Some(had) = name(old)
        && name(new).as_ref() != Some(&had)
    {
        let field = format!("metadata.annotations[{}]", annotation::CR_NAME);
        let message = format!("cannot be changed from {had}; make a new SpiderMultusConfig");
        problems.push(Problem::error(field, name(new).unwrap_or_default(), message));
    }
    problems
}
