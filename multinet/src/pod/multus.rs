//! The annotation `k8s.v1.cni.cncf.io/networks` of Multus (NetworkAttachmentDefinition specification
//! 1.3): a JSON list, or names separated by commas, `[namespace/]name[@interface]`.
//!
//! Multus itself turns each element into a CNI call; what is read here are the wishes that the call
//! does not carry, and the numbers of interfaces without name.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::Value;

use super::interfaces::{Fields, is_interface_name};
use crate::rules::Problem;
use crate::types::block::Entry;
use crate::types::mac::Mac;
use crate::types::meta::ObjectMeta;

/// The annotation's key.
pub const NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";
/// The interface that every pod has.
pub const MAIN_INTERFACE: &str = "eth0";
/// Longest text that is read.
const MAX_TEXT_BYTES: usize = 64 << 10;

/// One element.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkSelection {
    /// Where it is written, for messages.
    pub at: String,
    /// Namespace of the NetworkAttachmentDefinition.
    pub namespace: String,
    /// Name of the NetworkAttachmentDefinition.
    pub name: String,
    /// Name in the pod; `net1`, `net2` … by position where none is given.
    pub interface: String,
    /// These addresses and no others.
    pub ips: Vec<IpAddr>,
    /// This Ethernet address.
    pub mac: Option<Mac>,
    /// The pod's default route leads through this interface, by these gateways.
    pub default_route: Option<Vec<IpAddr>>,
    /// Keys that Bowline does not honour: refused for its own interfaces, by [`Self::check`].
    pub unsupported: Vec<String>,
}

impl NetworkSelection {
    /// Whether every key can be honoured.
    ///
    /// # Errors
    /// The first that cannot.
    pub fn check(&self) -> Result<(), Problem> {
        match self.unsupported.first() {
            None => Ok(()),
            Some(key) => Err(Problem::error(
                format!("{}.{key}", self.at),
                "",
                "is not honoured by Bowline; remove it, so that nobody relies on it",
            )),
        }
    }
}

/// Multus' annotation that replaces the definition of `eth0`; without a namespace it is looked for in
/// Multus' own, which is `kube-system`.
const DEFAULT_NETWORK_DEFINITION: &str = "v1.multus-cni.io/default-network";

/// The element that asks for an interface, and its place in the list.
///
/// # Errors
/// The first thing that is wrong with the annotation.
pub fn network_selection(
    pod: &ObjectMeta,
    interface: &str,
) -> Result<Option<(usize, NetworkSelection)>, Problem> {
    let Some(text) = pod.annotations.get(NETWORKS) else { return Ok(None) };
    let selections = parse_networks(text, pod.namespace.as_deref().unwrap_or_default())?;
    Ok(selections.into_iter().enumerate().find(|(_, s)| s.interface == interface))
}

/// An interface's place among the pod's, where its annotations tell it: `eth0` is the first, then come those
/// that Multus is asked for.
///
/// # Errors
/// The first thing that is wrong with the annotation.
pub fn place_of(pod: &ObjectMeta, interface: &str) -> Result<Option<usize>, Problem> {
    if interface == MAIN_INTERFACE {
        return Ok(Some(0));
    }
    Ok(network_selection(pod, interface)?.map(|(place, _)| place + 1))
}

/// The place of an interface that the pod's annotations do not name: after `eth0` and whatever of the pod has
/// asked before. `held` is what the pod holds.
pub fn place_by_arrival<'a>(held: impl Iterator<Item = &'a Entry>, interface: &str) -> usize {
    let held: Vec<&Entry> = held.filter(|e| e.interface != MAIN_INTERFACE).collect();
    // The same call again: only what was there before it counts.
    let own = held.iter().filter(|e| e.interface == interface).map(|e| e.since_ms).min();
    let others = held.iter().filter(|e| e.interface != interface);
    let earlier = others.filter(|e| own.is_none_or(|own| e.since_ms < own));
    1 + earlier.map(|e| &e.interface).collect::<BTreeSet<_>>().len()
}

/// Namespace and name of the NetworkAttachmentDefinition that an interface comes from.
#[must_use]
pub fn definition_of(pod: &ObjectMeta, interface: &str) -> Option<(String, String)> {
    if interface == MAIN_INTERFACE {
        let text = pod.annotations.get(DEFAULT_NETWORK_DEFINITION)?;
        let (namespace, name) = text.split_once('/').unwrap_or(("kube-system", text));
        return Some((namespace.to_owned(), name.to_owned()));
    }
    let selection = network_selection(pod, interface).ok().flatten();
    selection.map(|(_, selection)| (selection.namespace, selection.name))
}

/// Reads the annotation.
///
/// # Errors
/// The first thing that is wrong.
pub fn parse_networks(text: &str, pod_namespace: &str) -> Result<Vec<NetworkSelection>, Problem> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(Problem::error(NETWORKS, "", format!("is longer than {MAX_TEXT_BYTES} bytes")));
    }
    let mut list = if text.trim_start().starts_with('[') {
        parse_json(text, pod_namespace)?
    } else {
        let names = text.split(',').map(str::trim).filter(|n| !n.is_empty()).enumerate();
        names.map(|(i, n)| parse_name(i, n, pod_namespace)).collect::<Result<Vec<_>, _>>()?
    };
    for (i, selection) in list.iter_mut().enumerate() {
        if selection.interface.is_empty() {
            selection.interface = format!("net{}", i + 1);
        }
    }
    Ok(list)
}

fn parse_name(i: usize, text: &str, pod_namespace: &str) -> Result<NetworkSelection, Problem> {
    let at = format!("{NETWORKS}[{i}]");
    let (path, interface) = text.split_once('@').unwrap_or((text, ""));
    let (namespace, name) = path.split_once('/').unwrap_or((pod_namespace, path));
    let named = text.contains('@');
    if name.is_empty() || namespace.is_empty() || (named && !is_interface_name(interface)) {
        let message = "is not [namespace/]name[@interface]";
        return Err(Problem::error(at, text, message));
    }
    Ok(NetworkSelection {
        at,
        namespace: namespace.into(),
        name: name.into(),
        interface: interface.into(),
        ..NetworkSelection::default()
    })
}

fn parse_json(text: &str, pod_namespace: &str) -> Result<Vec<NetworkSelection>, Problem> {
    let list: Vec<Value> = serde_json::from_str(text)
        .map_err(|e| Problem::error(NETWORKS, text, format!("is not a JSON list: {e}")))?;
    let mut selections = Vec::with_capacity(list.len());
    for (i, value) in list.iter().enumerate() {
        let at = format!("{NETWORKS}[{i}]");
        let Value::Object(object) = value else {
            return Err(Problem::error(at, value, "is not an object like {\"name\": \"blue\"}"));
        };
        let fields = Fields { at: &at, object };
        let Some(name) = fields.text("name")? else {
            return Err(fields.wrong("name", "", "is missing"));
        };
        let interface = fields.text("interface")?.unwrap_or("");
        if !interface.is_empty() && !is_interface_name(interface) {
            return Err(fields.wrong("interface", interface, "is not an interface name"));
        }
        let honoured = ["name", "namespace", "interface", "ips", "mac", "default-route"];
        // `cni-args` and `portMappings` reach the plugin with the call.
        let passed = ["cni-args", "portMappings", "deviceID", "ipam-claim-reference"];
        let other = object.keys().map(String::as_str);
        let unsupported = other.filter(|k| !honoured.contains(k) && !passed.contains(k));
        selections.push(NetworkSelection {
            namespace: fields.text("namespace")?.unwrap_or(pod_namespace).into(),
            name: name.into(),
            interface: interface.into(),
            ips: fields.addresses("ips")?.unwrap_or_default(),
            mac: fields.mac("mac")?,
            default_route: fields.gateways("default-route")?,
            unsupported: unsupported.map(Into::into).collect(),
            at: at.clone(),
        });
    }
    Ok(selections)
}
