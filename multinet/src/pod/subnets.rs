//! Spiderpool's annotations for automatic pools: which subnets, how many addresses, what becomes of the
//! pool when its application goes.

use serde::Deserialize;

use super::spider::{SUBNET, SUBNETS, decode};
use crate::range::Family;
use crate::rules::Problem;
use crate::types::meta::Labels;

/// How many addresses: `"3"` or `"+3"`.
pub const IP_NUMBER: &str = "ipam.spidernet.io/ippool-ip-number";
/// Whether the pool goes with its application: `"true"` (default) or `"false"`.
pub const RECLAIM: &str = "ipam.spidernet.io/ippool-reclaim";

/// Subnets of one interface. Upstream lets one subnet serve a family: the first of each list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct SubnetChoice {
    /// The interface; `eth0` where the annotation names none.
    pub interface: String,
    /// IPv4 subnets.
    pub ipv4: Vec<String>,
    /// IPv6 subnets.
    pub ipv6: Vec<String>,
}

impl SubnetChoice {
    /// The subnet of each family that is asked for.
    pub fn families(&self) -> impl Iterator<Item = (Family, &str)> {
        let both = [(Family::V4, &self.ipv4), (Family::V6, &self.ipv6)];
        both.into_iter().filter_map(|(family, names)| Some((family, names.first()?.as_str())))
    }
}

/// How many addresses an automatic pool holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PoolSize {
    /// So many.
    Fixed(u32),
    /// So many more than the application has pods, for rolling updates.
    Flexible(u32),
}

impl std::fmt::Display for PoolSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            PoolSize::Fixed(n) => write!(f, "{n}"),
            PoolSize::Flexible(n) => write!(f, "+{n}"),
        }
    }
}

/// The subnets that annotations ask for, per interface; `subnets` beats `subnet`. Empty: none.
///
/// # Errors
/// The first thing that is wrong.
pub fn parse_subnets(annotations: &Labels) -> Result<Vec<SubnetChoice>, Problem> {
    let (key, mut list) = if let Some(text) = annotations.get(SUBNETS) {
        let like = r#"[{"interface": "eth0", "ipv4": ["subnet"]}]"#;
        (SUBNETS, decode::<Vec<SubnetChoice>>(SUBNETS, text, like)?)
    } else if let Some(text) = annotations.get(SUBNET) {
        (SUBNET, vec![decode::<SubnetChoice>(SUBNET, text, r#"{"ipv4": ["subnet"]}"#)?])
    } else {
        return Ok(Vec::new());
    };
    if list.is_empty() {
        return Err(Problem::error(key, "[]", "names no interface; remove it, or add an element"));
    }
    for i in 0..list.len() {
        let at = if key == SUBNETS { format!("{key}[{i}]") } else { key.to_string() };
        if list[i].interface.is_empty() {
            if key == SUBNETS {
                let message = "is missing; name the interface of each element";
                return Err(Problem::error(format!("{at}.interface"), "", message));
            }
            list[i].interface = "eth0".into();
        }
        check_choice(&at, &list[i], &list[..i])?;
    }
    Ok(list)
}

fn check_choice(at: &str, choice: &SubnetChoice, before: &[SubnetChoice]) -> Result<(), Problem> {
    if choice.ipv4.is_empty() && choice.ipv6.is_empty() {
        return Err(Problem::error(at, "", "names no subnet; write ipv4 or ipv6"));
    }
    if before.iter().any(|c| c.interface == choice.interface) {
        let message = "is listed twice; put all subnets into one element";
        return Err(Problem::error(format!("{at}.interface"), &choice.interface, message));
    }
    for (_, name) in choice.families() {
        if name.contains(['*', '?', '[']) {
            let message = "is a pattern; an automatic pool needs the name of one subnet";
            return Err(Problem::error(at, name, message));
        }
        if before.iter().any(|c| c.families().any(|(_, n)| n == name)) {
            let message = "serves two interfaces; take another subnet for one of them";
            return Err(Problem::error(at, name, message));
        }
    }
    Ok(())
}

/// The size that annotations ask for.
///
/// # Errors
/// A text that is no number.
pub fn parse_pool_size(annotations: &Labels) -> Result<Option<PoolSize>, Problem> {
    let Some(text) = annotations.get(IP_NUMBER) else { return Ok(None) };
    let (flexible, digits) = text.strip_prefix('+').map_or((false, text.as_str()), |d| (true, d));
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    match digits.parse::<u32>() {
        Ok(n) if plain && flexible => Ok(Some(PoolSize::Flexible(n))),
        Ok(n) if plain && n > 0 => Ok(Some(PoolSize::Fixed(n))),
        _ => {
            let message =
                "is no size; write \"3\" for three addresses, \"+1\" for one more than pods";
            Err(Problem::error(IP_NUMBER, text, message))
        }
    }
}

/// Whether the pool goes with its application.
///
/// # Errors
/// Neither true nor false.
pub fn parse_reclaim(annotations: &Labels) -> Result<bool, Problem> {
    match annotations.get(RECLAIM).map(String::as_str) {
        None | Some("true") => Ok(true),
        Some("false") => Ok(false),
        Some(other) => Err(Problem::error(RECLAIM, other, "must be \"true\" or \"false\"")),
    }
}
