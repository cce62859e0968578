//! Rules of one `SpiderCoordinator`, and of the same fields inside a SpiderMultusConfig.

use std::net::IpAddr;

use ipnet::IpNet;

use super::Problem;
use crate::range::Family;
use crate::types::coordinator::{
    CoordinatorSpec, DEFAULT_COORDINATOR, MODES, POD_CIDR_TYPES, SpiderCoordinator,
};

/// Everything that is wrong with a coordinator.
#[must_use]
pub fn validate_coordinator(object: &SpiderCoordinator) -> Vec<Problem> {
    let mut problems = Vec::new();
    if object.metadata.name != DEFAULT_COORDINATOR {
        let message = format!("is not read; the one that is read is called {DEFAULT_COORDINATOR}");
        problems.push(Problem::warning("metadata.name", &object.metadata.name, message));
    }
    if object.spec.pod_cidr_type.is_none() {
        let message = format!("is missing; write one of {}", POD_CIDR_TYPES.join(", "));
        problems.push(Problem::error("spec.podCIDRType", "", message));
    }
    check_coordinator("spec", &object.spec, &mut problems);
    problems
}

/// The fields that SpiderCoordinator and SpiderMultusConfig share.
pub(super) fn check_coordinator(at: &str, spec: &CoordinatorSpec, problems: &mut Vec<Problem>) {
    check_choice(&format!("{at}.mode"), spec.mode.as_deref(), &MODES, problems);
    let kind = spec.pod_cidr_type.as_deref();
    check_choice(&format!("{at}.podCIDRType"), kind, &POD_CIDR_TYPES, problems);
    for (i, text) in spec.hijack_cidr.iter().enumerate() {
        if text.parse::<IpNet>().is_err() && text.parse::<IpAddr>().is_err() {
            let field = format!("{at}.hijackCIDR[{i}]");
            let message = "is neither a prefix nor an address; write it like 169.254.0.0/16";
            problems.push(Problem::error(field, text, message));
        }
    }
    check_policy_routes(at, spec, problems);
    check_mac_prefix(at, spec.pod_mac_prefix.as_deref(), problems);
    check_numbers(at, spec, problems);
    if let Some(text) = spec.veth_link_address.as_deref().filter(|t| !t.is_empty())
        && text.parse::<IpAddr>().is_err()
    {
        let message = "is not an address; write it like 169.254.100.1";
        problems.push(Problem::error(format!("{at}.vethLinkAddress"), text, message));
    }
}

/// A text out of a list; absent is allowed.
pub(super) fn check_choice(
    field: &str,
    value: Option<&str>,
    allowed: &[&str],
    problems: &mut Vec<Problem>,
) {
    if let Some(value) = value.filter(|v| !allowed.contains(v)) {
        let message = format!("is not one of {}", allowed.join(", "));
        problems.push(Problem::error(field, value, message));
    }
}

fn check_policy_routes(at: &str, spec: &CoordinatorSpec, problems: &mut Vec<Problem>) {
    for (i, route) in spec.policy_routes.iter().enumerate() {
        let at = format!("{at}.policyRoutes[{i}]");
        let Ok(dst) = route.dst.parse::<IpNet>() else {
            let message = "is not a prefix; write it like 10.1.0.0/16";
            problems.push(Problem::error(format!("{at}.dst"), &route.dst, message));
            continue;
        };
        match route.gw.parse::<IpAddr>() {
            Ok(gw) if Family::of(gw) == Family::of_net(&dst) => {}
            Ok(_) => {
                let message = format!("is not {}, as dst is", Family::of_net(&dst));
                problems.push(Problem::error(format!("{at}.gw"), &route.gw, message));
            }
            Err(_) => {
                problems.push(Problem::error(format!("{at}.gw"), &route.gw, "is not an address"));
            }
        }
    }
}

/// Two bytes, the first one's lowest bit clear: with it an address would be multicast (IEEE 802).
fn check_mac_prefix(at: &str, prefix: Option<&str>, problems: &mut Vec<Problem>) {
    let Some(text) = prefix.filter(|t| !t.is_empty()) else { return };
    let field = format!("{at}.podMACPrefix");
    match parse_mac_prefix(text) {
        Some([first, _]) if first & 1 == 1 => {
            let message = "begins a multicast address; choose an even first byte, like 0a:1b";
            problems.push(Problem::error(field, text, message));
        }
        Some(_) => {}
        None => {
            let message = "is not two bytes in hexadecimal; write it like 0a:1b";
            problems.push(Problem::error(field, text, message));
        }
    }
}

/// Reads `0a:1b`.
#[must_use]
pub fn parse_mac_prefix(text: &str) -> Option<[u8; 2]> {
    let (first, second) = text.split_once([':', '-'])?;
    let byte = |t: &str| {
        let hex = t.len() == 2 && t.bytes().all(|b| b.is_ascii_hexdigit());
        hex.then(|| u8::from_str_radix(t, 16).ok())?
    };
    Some([byte(first)?, byte(second)?])
}

fn check_numbers(at: &str, spec: &CoordinatorSpec, problems: &mut Vec<Problem>) {
    let mut check = |field: &str, value: Option<i64>, good: fn(i64) -> bool, message: &str| {
        if let Some(value) = value.filter(|v| !good(*v)) {
            problems.push(Problem::error(format!("{at}.{field}"), value, message));
        }
    };
    let table = "must be 1 to 252, or 256 and more; 253 to 255 are the kernel's";
    check("hostRuleTable", spec.host_rule_table, |n| (1..=252).contains(&n) || n > 255, table);
    let filter = "must be 0, 1 or 2, or negative to leave it as it is";
    check("podRPFilter", spec.pod_rp_filter, |n| n <= 2, filter);
    let queue = "must be 0 (as it is) or more";
    check("txQueueLen", spec.tx_queue_len, |n| n >= 0, queue);
    check("vethMTU", spec.veth_mtu, |n| n >= 1, "must be 1 or more");
}
