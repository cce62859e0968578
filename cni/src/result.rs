//! Results: kept in the form of 1.1.0, printed in the form that the runtime asked for.
//!
//! | version | differs from 1.1.0 by |
//! |---|---|
//! | 1.0.0 | no `mtu`, `socketPath`, `pciID` of interfaces, no `mtu`, `advmss`, `priority`, `table`, `scope` of routes |
//! | 0.3.1, 0.4.0 | the same, and `version` ("4" or "6") with each address |

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Versions that the plugin speaks, oldest first.
pub const SUPPORTED_VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A result of ADD, in the form of 1.1.0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CniResult {
    /// The version that this is printed in.
    pub cni_version: String,
    /// Interfaces made, in the pod and on the node.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// Addresses given.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpConfig>,
    /// Routes written (or to be written, for an IPAM call).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// Name service; Bowline leaves it to the kubelet.
    #[serde(skip_serializing_if = "Dns::is_empty")]
    pub dns: Dns,
}

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its Ethernet address.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Its MTU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Path of the network namespace; empty = on the node.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// memif and vhost-user: where to connect. An abstract socket is written with a leading `@`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub socket_path: String,
    /// The PCI device behind it.
    #[serde(rename = "pciID", skip_serializing_if = "String::is_empty")]
    pub pci_id: String,
}

/// An address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IpConfig {
    /// Address and prefix length, `10.0.0.5/24`.
    pub address: String,
    /// The gateway of its prefix.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// Index into `interfaces`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
}

/// A route.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Route {
    /// Destination prefix.
    pub dst: String,
    /// Next hop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gw: Option<String>,
    /// Path MTU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Advertised segment size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// Metric.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// Routing table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// Scope.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<u32>,
}

/// Name service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Servers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Search list.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Options.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Dns {
    /// Whether nothing is said.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Dns::default()
    }
}

impl CniResult {
    /// The result as the runtime asked for it. `None` for a version that the plugin does not speak.
    #[must_use]
    pub fn to_version(&self, version: &str) -> Option<Value> {
        if !SUPPORTED_VERSIONS.contains(&version) {
            return None;
        }
        let mut result = self.clone();
        result.cni_version = version.into();
        if version != "1.1.0" {
            for interface in &mut result.interfaces {
                *interface = Interface {
                    mtu: None,
                    socket_path: String::new(),
                    pci_id: String::new(),
                    ..std::mem::take(interface)
                };
            }
            for route in &mut result.routes {
                *route = Route {
                    dst: std::mem::take(&mut route.dst),
                    gw: route.gw.take(),
                    ..Route::default()
                };
            }
        }
        let mut value = serde_json::to_value(&result).ok()?;
        if version.starts_with("0.") {
            for ip in value.get_mut("ips").and_then(Value::as_array_mut).into_iter().flatten() {
                add_version(ip);
            }
        }
        Some(value)
    }

    /// Reads a result of any supported version, for instance `prevResult`.
    ///
    /// # Errors
    /// The sentence of the JSON decoder, or that the version is not supported.
    pub fn from_value(value: &Value) -> Result<Self, String> {
        let result: CniResult = serde_json::from_value(value.clone()).map_err(|e| e.to_string())?;
        if SUPPORTED_VERSIONS.contains(&result.cni_version.as_str()) {
            return Ok(result);
        }
        Err(format!(
            "cniVersion \"{}\" is not one of {}",
            result.cni_version.chars().take(32).collect::<String>(),
            SUPPORTED_VERSIONS.join(", ")
        ))
    }
}

/// Before 1.0.0 each address says its family.
fn add_version(ip: &mut Value) {
    let address = ip.get("address").and_then(Value::as_str).unwrap_or("");
    let host = address.split('/').next().unwrap_or("");
    let version = if host.parse::<IpAddr>().is_ok_and(|a| a.is_ipv6()) { "6" } else { "4" };
    if let Some(object) = ip.as_object_mut() {
        object.insert("version".into(), version.into());
    }
}
