//! What a coordinator's call is told: its configuration over the SpiderCoordinator `default`. Pure.

use std::net::IpAddr;

use cni::error::{CniError, code};
use cni::rpc::Request;
use ipnet::IpNet;
use multinet::rules::{Problem, parse_mac_prefix, validate_coordinator};
use multinet::types::coordinator::{CoordinatorSpec, DEFAULT_COORDINATOR, SpiderCoordinator};
use serde::Deserialize;
use serde_json::Value;

use crate::cni_server::ask::refused;

/// The table of the node's routes to its pods, where none is named.
const HOST_TABLE: u32 = 500;
/// The MTU of the link between pod and node, where none is named.
const VETH_MTU: u32 = 1500;

/// Which interface of the pod leads to the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// By the interfaces that the pod has.
    Auto,
    /// None: a link of its own is made.
    Underlay,
    /// `eth0`.
    Overlay,
    /// Nothing is done.
    Disabled,
}

/// A call's settings, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) mode: Mode,
    /// What is reached through the node: Services, other pods, and what people add.
    pub(super) through_node: Vec<IpNet>,
    /// Routes in the interface's own table.
    pub(super) policy_routes: Vec<(IpNet, IpAddr)>,
    pub(super) mac_prefix: Option<[u8; 2]>,
    pub(super) tune_routes: bool,
    /// Empty: the one that has it keeps it.
    pub(super) default_nic: String,
    pub(super) host_table: u32,
    /// `None`: as it is.
    pub(super) rp_filter: Option<u8>,
    /// `None`: as it is.
    pub(super) queue: Option<u32>,
    pub(super) link_address: Option<IpAddr>,
    pub(super) link_mtu: u32,
    /// The interface's link is asked whether somebody else has its addresses.
    pub(super) detect_conflict: bool,
    /// And whether its gateways are there.
    pub(super) detect_gateway: bool,
}

/// Keys of the configuration that SpiderCoordinator does not have.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Extra {
    /// Upstream writes this key of configurations in another way than that of the object.
    pod_default_route_nic: Option<String>,
    #[serde(rename = "detectIPConflict")]
    detect_ip_conflict: Option<bool>,
    detect_gateway: Option<bool>,
}

/// Reads them.
pub(super) fn read(
    request: &Request,
    cluster: Option<&SpiderCoordinator>,
    named_nic: Option<&str>,
) -> Result<Settings, CniError> {
    let own = Value::Object(request.config.other.clone().into_iter().collect());
    let spec: CoordinatorSpec = decode(&own)?;
    let extra: Extra = decode(&own)?;
    let defaults = cluster.map(|c| c.spec.clone()).unwrap_or_default();
    let spec = over(spec, defaults);
    check(&spec)?;
    let mode = match spec.mode.as_deref() {
        None | Some("auto") => Mode::Auto,
        Some("underlay") => Mode::Underlay,
        Some("overlay") => Mode::Overlay,
        Some(_) => Mode::Disabled,
    };
    let positive = |n: Option<i64>| n.and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0);
    let nic = extra.pod_default_route_nic.or(spec.pod_default_route_nic.clone());
    let nic = nic.unwrap_or_default();
    Ok(Settings {
        mode,
        // Where nothing is done, nothing has to be known.
        through_node: match mode {
            Mode::Disabled => Vec::new(),
            _ => through_node(&spec, cluster)?,
        },
        policy_routes: spec
            .policy_routes
            .iter()
            .filter_map(|r| Some((r.dst.parse().ok()?, r.gw.parse().ok()?)))
            .collect(),
        mac_prefix: spec.pod_mac_prefix.as_deref().and_then(parse_mac_prefix),
        tune_routes: spec.tune_pod_routes.unwrap_or(true),
        default_nic: named_nic.map_or(nic, str::to_owned),
        host_table: positive(spec.host_rule_table).unwrap_or(HOST_TABLE),
        rp_filter: u8::try_from(spec.pod_rp_filter.unwrap_or(0)).ok(),
        queue: positive(spec.tx_queue_len),
        link_address: spec.veth_link_address.as_deref().and_then(|text| text.parse().ok()),
        link_mtu: positive(spec.veth_mtu).unwrap_or(VETH_MTU),
        detect_conflict: extra.detect_ip_conflict == Some(true),
        detect_gateway: extra.detect_gateway == Some(true),
    })
}

fn decode<T: for<'de> Deserialize<'de>>(value: &Value) -> Result<T, CniError> {
    T::deserialize(value).map_err(|e| {
        let message = format!("the coordinator's configuration cannot be read: {e}");
        CniError::new(code::INVALID_CONFIG, message)
    })
}

/// The configuration's word goes before the cluster's, where it says something.
fn over(own: CoordinatorSpec, cluster: CoordinatorSpec) -> CoordinatorSpec {
    let said = |own: Option<String>, other| own.filter(|t| !t.is_empty()).or(other);
    let list = |own: Vec<_>, other| if own.is_empty() { other } else { own };
    CoordinatorSpec {
        mode: said(own.mode, cluster.mode),
        pod_cidr_type: said(own.pod_cidr_type, cluster.pod_cidr_type),
        hijack_cidr: list(own.hijack_cidr, cluster.hijack_cidr),
        policy_routes: if own.policy_routes.is_empty() {
            cluster.policy_routes
        } else {
            own.policy_routes
        },
        pod_mac_prefix: said(own.pod_mac_prefix, cluster.pod_mac_prefix),
        tune_pod_routes: own.tune_pod_routes.or(cluster.tune_pod_routes),
        pod_default_route_nic: said(own.pod_default_route_nic, cluster.pod_default_route_nic),
        host_rule_table: own.host_rule_table.or(cluster.host_rule_table),
        pod_rp_filter: own.pod_rp_filter.or(cluster.pod_rp_filter),
        tx_queue_len: own.tx_queue_len.or(cluster.tx_queue_len),
        veth_link_address: said(own.veth_link_address, cluster.veth_link_address),
        veth_mtu: own.veth_mtu.or(cluster.veth_mtu),
    }
}

/// The rules of the object hold for the configuration as well.
fn check(spec: &CoordinatorSpec) -> Result<(), CniError> {
    let mut spec = spec.clone();
    spec.pod_cidr_type.get_or_insert_with(|| "none".into());
    let object = SpiderCoordinator::new(DEFAULT_COORDINATOR, spec);
    match validate_coordinator(&object).into_iter().find(Problem::is_error) {
        None => Ok(()),
        Some(mut problem) => {
            problem.field = problem.field.replacen("spec.", "coordinator.", 1);
            Err(refused(problem))
        }
    }
}

fn not_yet(why: &str) -> CniError {
    let message = format!(
        "the SpiderCoordinator {DEFAULT_COORDINATOR} does not tell the cluster's prefixes yet \
         ({why}); routes without them would be wrong"
    );
    CniError::new(code::TRY_AGAIN_LATER, message)
}

/// Prefixes that the pod reaches through its node.
fn through_node(
    spec: &CoordinatorSpec,
    cluster: Option<&SpiderCoordinator>,
) -> Result<Vec<IpNet>, CniError> {
    let mut texts: Vec<&String> = spec.hijack_cidr.iter().collect();
    if let Some(cluster) = cluster {
        let status = cluster.status.as_ref().ok_or_else(|| {
            not_yet("it has no status; bowline-controller writes it: is it running?")
        })?;
        if status.phase != "Synced" {
            return Err(not_yet(&format!("phase {}: {}", status.phase, status.reason)));
        }
        texts.extend(status.overlay_pod_cidr.iter().chain(&status.service_cidr));
    }
    let prefix = |text: &String| -> Option<IpNet> {
        let host = || text.parse::<IpAddr>().ok().map(IpNet::from);
        text.parse::<IpNet>().ok().or_else(host).map(|net| net.trunc())
    };
    let mut prefixes: Vec<IpNet> = texts.into_iter().filter_map(prefix).collect();
    prefixes.sort_unstable();
    prefixes.dedup();
    Ok(prefixes)
}
