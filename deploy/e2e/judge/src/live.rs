//! What a pod's network namespace has, as `ip -j address` says it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::Value;

use crate::Told;

/// A namespace has the addresses that its ADDs returned, and no other but the kernel's own.
///
/// # Errors
/// What is missing, and what nobody gave.
pub fn namespace(ip_json: &str, told: &[Told]) -> Result<(), String> {
    let links: Vec<Value> =
        serde_json::from_str(ip_json).map_err(|e| format!("judge: `ip -j address`: {e}"))?;
    let infos = links.iter().flat_map(|link| link["addr_info"].as_array().into_iter().flatten());
    let local = infos.filter_map(|info| info["local"].as_str()?.parse::<IpAddr>().ok());
    let has: BTreeSet<IpAddr> = local.filter(|address| !is_the_kernels(address)).collect();
    let given: BTreeSet<IpAddr> = told.iter().filter_map(|t| t.address.parse().ok()).collect();
    let pod = told.first().map_or("a pod that is gone", |t| t.uid.as_str());
    if let Some(missing) = given.difference(&has).next() {
        return Err(format!("judge: {pod} was given {missing}, and its namespace lacks it"));
    }
    match has.difference(&given).next() {
        Some(foreign) => Err(format!("judge: {foreign} is in the namespace of {pod} unasked")),
        None => Ok(()),
    }
}

fn is_the_kernels(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_loopback(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local(),
    }
}
