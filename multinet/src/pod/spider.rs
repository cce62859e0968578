//! Spiderpool's annotations, as upstream defines them.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;

use crate::range::Family;
use crate::rules::Problem;
use crate::types::meta::Labels;
use crate::types::network::PoolLists;
use crate::types::pool::PoolRoute;

/// Pools per interface.
pub const IPPOOLS: &str = "ipam.spidernet.io/ippools";
/// Pools for whatever interface asks.
pub const IPPOOL: &str = "ipam.spidernet.io/ippool";
/// Subnets per interface (automatic pools).
pub const SUBNETS: &str = "ipam.spidernet.io/subnets";
/// Subnets for one interface (automatic pools).
pub const SUBNET: &str = "ipam.spidernet.io/subnet";
/// The interface of the pod's default route.
pub const DEFAULT_ROUTE_NIC: &str = "ipam.spidernet.io/default-route-nic";
/// Further routes.
pub const ROUTES: &str = "ipam.spidernet.io/routes";
/// On a namespace: IPv4 pools of its pods.
pub const NAMESPACE_IPV4: &str = "ipam.spidernet.io/default-ipv4-ippool";
/// On a namespace: IPv6 pools of its pods.
pub const NAMESPACE_IPV6: &str = "ipam.spidernet.io/default-ipv6-ippool";

/// An element of `ippools`, or the whole of `ippool`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct PoolChoice {
    pub(super) interface: String,
    pub(super) ipv4: Vec<String>,
    pub(super) ipv6: Vec<String>,
    #[serde(alias = "cleanGateway")]
    pub(super) cleangateway: bool,
}

impl PoolChoice {
    pub(super) fn pools(&self) -> PoolLists {
        PoolLists { ipv4: self.ipv4.clone(), ipv6: self.ipv6.clone() }
    }
}

pub(super) fn decode<'a, T: Deserialize<'a>>(
    key: &str,
    text: &'a str,
    like: &str,
) -> Result<T, Problem> {
    serde_json::from_str(text)
        .map_err(|e| Problem::error(key, text, format!("is not JSON like {like}: {e}")))
}

/// The annotation `ippools`. All elements are named or none is.
pub(super) fn ippools(annotations: &Labels) -> Result<Option<Vec<PoolChoice>>, Problem> {
    let Some(text) = annotations.get(IPPOOLS) else { return Ok(None) };
    let like = r#"[{"interface": "eth0", "ipv4": ["pool"]}]"#;
    let list: Vec<PoolChoice> = decode(IPPOOLS, text, like)?;
    let named = list.iter().filter(|c| !c.interface.is_empty()).count();
    if list.is_empty() || (named != 0 && named != list.len()) {
        let message = "must name the interface of every element, or of none";
        return Err(Problem::error(IPPOOLS, text, message));
    }
    for (i, choice) in list.iter().enumerate().filter(|_| named > 0) {
        if list[..i].iter().any(|c| c.interface == choice.interface) {
            let field = format!("{IPPOOLS}[{i}].interface");
            let message = "is listed twice; put all pools into one element";
            return Err(Problem::error(field, &choice.interface, message));
        }
    }
    Ok(Some(list))
}

/// The element of `ippools` for an interface. Without names the first is for `eth0`, and others are
/// taken in order by the interfaces that ask later (`index`).
pub(super) fn ippools_for(
    annotations: &Labels,
    interface: &str,
    index: Option<usize>,
) -> Result<Option<PoolChoice>, Problem> {
    let Some(list) = ippools(annotations)? else { return Ok(None) };
    let found = if list.iter().any(|c| !c.interface.is_empty()) {
        list.iter().find(|c| c.interface == interface)
    } else {
        let index = index.or((interface == "eth0").then_some(0));
        index.and_then(|i| list.get(i))
    };
    match found {
        Some(choice) => Ok(Some(choice.clone())),
        None => {
            let message = format!("lists no pools for {interface}; add an element for it");
            let text = annotations.get(IPPOOLS).map_or("", String::as_str);
            Err(Problem::error(IPPOOLS, text, message))
        }
    }
}

/// The annotation `ippool`.
pub(super) fn ippool(annotations: &Labels) -> Result<Option<PoolChoice>, Problem> {
    let Some(text) = annotations.get(IPPOOL) else { return Ok(None) };
    decode(IPPOOL, text, r#"{"ipv4": ["pool"]}"#).map(Some)
}

/// The pools that a namespace names for its pods.
pub(super) fn namespace_pools(annotations: &Labels) -> Result<PoolLists, Problem> {
    let list = |key: &str| -> Result<Vec<String>, Problem> {
        annotations.get(key).map_or(Ok(Vec::new()), |text| decode(key, text, r#"["pool"]"#))
    };
    Ok(PoolLists { ipv4: list(NAMESPACE_IPV4)?, ipv6: list(NAMESPACE_IPV6)? })
}

/// The annotation `routes`: destination and next hop. The route belongs to the interface whose prefix
/// holds the next hop; the caller says so where there is none.
///
/// # Errors
/// The first thing that is wrong.
pub fn parse_routes(annotations: &Labels) -> Result<Vec<(IpNet, IpAddr)>, Problem> {
    let Some(text) = annotations.get(ROUTES) else { return Ok(Vec::new()) };
    let list: Vec<PoolRoute> =
        decode(ROUTES, text, r#"[{"dst": "10.0.0.0/16", "gw": "192.168.1.1"}]"#)?;
    let mut routes = Vec::with_capacity(list.len());
    for (i, PoolRoute { dst, gw }) in list.iter().enumerate() {
        let Ok(net) = dst.parse::<IpNet>() else {
            return Err(Problem::error(format!("{ROUTES}[{i}].dst"), dst, "is not a prefix"));
        };
        match gw.parse::<IpAddr>() {
            Ok(hop) if Family::of(hop) == Family::of_net(&net) => routes.push((net.trunc(), hop)),
            Ok(_) => {
                let message = format!("is not {}, as dst is", Family::of_net(&net));
                return Err(Problem::error(format!("{ROUTES}[{i}].gw"), gw, message));
            }
            Err(_) => {
                return Err(Problem::error(format!("{ROUTES}[{i}].gw"), gw, "is not an address"));
            }
        }
    }
    Ok(routes)
}
