//! The plugin `ifacer`: a VLAN device or a bond on the node, made before the plugin that builds on it.
//!
//! Devices stay when pods go: the next pod needs them, and nobody else is asked whether they may go.

use std::sync::Arc;

use cni::error::CniError;
use cni::result::CniResult;
use cni::rpc::{Outcome, Request};
use multinet::pod::is_interface_name;
use multinet::rules::Problem;
use serde::Deserialize;
use serde_json::Value;

use super::ask::refused;
use super::server::{CniServer, pod_failure};
use crate::pod::parent::{self, Bond};

/// A bond's name where none is given.
const DEFAULT_BOND: &str = "spiderbond0";

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Conf {
    interfaces: Vec<String>,
    #[serde(rename = "vlanID")]
    vlan_id: u32,
    bond: Option<BondConf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct BondConf {
    name: String,
    mode: u32,
    options: Option<String>,
}

/// What shall be there.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    parent: String,
    bond: Option<Bond>,
    vlan: Option<u16>,
}

/// Serves an ADD; the plugin itself answers everything else.
pub(super) async fn serve(server: &Arc<CniServer>, request: &Request) -> Result<Outcome, CniError> {
    let wanted = read(request).map_err(refused)?;
    let making = move || {
        if let Some(bond) = &wanted.bond {
            parent::make_bond(bond)?;
        } else {
            parent::set_up(&wanted.parent)?;
        }
        match wanted.vlan {
            Some(id) => parent::make_vlan(&wanted.parent, id),
            None => Ok(()),
        }
    };
    // One call at a time: pods that start together want the same device.
    let _turn = server.lock("ifacer").await;
    server.blocking(making).await?.map_err(|e| pod_failure(&e))?;
    let empty = CniResult { cni_version: "1.1.0".into(), ..CniResult::default() };
    Ok(Outcome::Result(request.prev_result.clone().unwrap_or(empty)))
}

fn read(request: &Request) -> Result<Wanted, Problem> {
    let own = Value::Object(request.config.other.clone().into_iter().collect());
    let conf = Conf::deserialize(own).map_err(|e| {
        Problem::error("ifacer", "", format!("the configuration cannot be read: {e}"))
    })?;
    if let Some(bad) = conf.interfaces.iter().find(|name| !is_interface_name(name)) {
        return Err(Problem::error("ifacer.interfaces", bad, "is not an interface name"));
    }
    let vlan = match conf.vlan_id {
        0 => None,
        id @ 1..=4094 => u16::try_from(id).ok(),
        id => return Err(Problem::error("ifacer.vlanID", id, "must be 0 (none) to 4094")),
    };
    let bond = match (conf.interfaces.as_slice(), conf.bond) {
        ([], _) => {
            let message = "is empty; name the interface that the pods' ones are built on";
            return Err(Problem::error("ifacer.interfaces", "", message));
        }
        ([_], _) => None,
        (members, Some(bond)) => Some(read_bond(members, &bond)?),
        (_, None) => {
            let message = "is missing; several interfaces are joined by a bond";
            return Err(Problem::error("ifacer.bond", "", message));
        }
    };
    let parent = bond.as_ref().map_or(&conf.interfaces[0], |bond| &bond.name).clone();
    if vlan.is_some_and(|id| !is_interface_name(&format!("{parent}.{id}"))) {
        let message = "is too long for the name of a VLAN device on it (15 characters in all)";
        return Err(Problem::error("ifacer.interfaces", parent, message));
    }
    Ok(Wanted { parent, bond, vlan })
}

fn read_bond(members: &[String], conf: &BondConf) -> Result<Bond, Problem> {
    let name = if conf.name.is_empty() { DEFAULT_BOND } else { &conf.name };
    if !is_interface_name(name) {
        return Err(Problem::error("ifacer.bond.name", name, "is not an interface name"));
    }
    let mode = u8::try_from(conf.mode).ok().filter(|mode| *mode <= 6);
    let mode = mode.ok_or_else(|| {
        Problem::error("ifacer.bond.mode", conf.mode, "must be 0 to 6, as the kernel counts them")
    })?;
    let mut options = Vec::new();
    let texts = conf.options.iter().flat_map(|text| text.split([';', ',', ' ']));
    for text in texts.filter(|text| !text.is_empty()) {
        let good = |t: &str| {
            !t.is_empty() && t.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.+:".contains(&b))
        };
        match text.split_once('=') {
            Some((key, value)) if good(key) && good(value) && !key.contains('.') => {
                options.push((key.to_owned(), value.to_owned()));
            }
            _ => {
                let message = "is not key=value; write them like miimon=100;xmit_hash_policy=1";
                return Err(Problem::error("ifacer.bond.options", text, message));
            }
        }
    }
    Ok(Bond { name: name.to_owned(), mode, options, members: members.to_vec() })
}
