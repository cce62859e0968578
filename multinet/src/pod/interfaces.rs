//! The annotation `bowline.dev/interfaces`: a JSON list, one object per interface.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::{Map, Value};

use super::grant::RxMode;
use crate::realm::state::MemifMode;
use crate::rules::{Problem, is_dns_label};
use crate::types::mac::Mac;
use crate::types::network::InterfaceType;

/// The annotation's key.
pub const INTERFACES: &str = "bowline.dev/interfaces";
/// Interfaces of one pod.
const MAX_INTERFACES: usize = 32;
/// Longest text that is read.
const MAX_TEXT_BYTES: usize = 64 << 10;

const KEYS: [&str; 12] = [
    "name",
    "network",
    "type",
    "mode",
    "rxQueues",
    "txQueues",
    "ringSize",
    "rxMode",
    "ips",
    "mac",
    "default-route",
    "interface",
];

/// What a pod wishes for one interface. Absent: as the Network says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Where the wish is written, for messages: `bowline.dev/interfaces[0]`.
    pub at: String,
    /// Name in the pod.
    pub name: String,
    /// The Network.
    pub network: String,
    /// tap, memif or vhost-user.
    pub kind: Option<InterfaceType>,
    /// memif: what its frames are.
    pub mode: Option<MemifMode>,
    /// Queues that the pod receives from.
    pub rx_queues: Option<u32>,
    /// Queues that the pod sends to.
    pub tx_queues: Option<u32>,
    /// Slots of a ring.
    pub ring_size: Option<u32>,
    /// memif: how the pod waits.
    pub rx_mode: Option<RxMode>,
    /// These addresses and no others, at most one per family.
    pub ips: Vec<IpAddr>,
    /// This Ethernet address.
    pub mac: Option<Mac>,
    /// The pod's default route leads through this interface, by these gateways.
    pub default_route: Option<Vec<IpAddr>>,
}

/// Whether the kernel takes `name` for a device: 1 to 15 bytes, no `/`, `:`, space or control
/// characters, not `.` or `..`.
#[must_use]
pub fn is_interface_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':')
}

/// Reads the annotation. `taken` are interfaces that the pod has otherwise (`lo`, and `eth0` of the
/// call).
///
/// # Errors
/// The first thing that is wrong: field, value, what is allowed.
pub fn parse_interfaces(text: &str, taken: &[&str]) -> Result<Vec<Wish>, Problem> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(Problem::error(
            INTERFACES,
            "",
            format!("is longer than {MAX_TEXT_BYTES} bytes"),
        ));
    }
    let list: Vec<Value> = serde_json::from_str(text).map_err(|e| {
        Problem::error(INTERFACES, text, format!("is not a JSON list of objects: {e}"))
    })?;
    if list.len() > MAX_INTERFACES {
        let message = format!("lists more than {MAX_INTERFACES} interfaces");
        return Err(Problem::error(INTERFACES, list.len(), message));
    }
    let mut wishes: Vec<Wish> = Vec::with_capacity(list.len());
    for (i, value) in list.iter().enumerate() {
        let at = format!("{INTERFACES}[{i}]");
        let Value::Object(object) = value else {
            return Err(Problem::error(at, value, "is not an object like {\"name\": \"eth1\"}"));
        };
        let wish = parse_one(at, object)?;
        let twice = wishes.iter().any(|w| w.name == wish.name);
        if twice || taken.contains(&wish.name.as_str()) {
            let message = "is the name of another interface of the pod; choose another";
            return Err(Problem::error(format!("{}.name", wish.at), &wish.name, message));
        }
        wishes.push(wish);
    }
    Ok(wishes)
}

fn parse_one(at: String, object: &Map<String, Value>) -> Result<Wish, Problem> {
    if let Some((key, value)) = object.iter().find(|(k, _)| !KEYS.contains(&k.as_str())) {
        let message = format!("is not honoured here; allowed are {}", KEYS.join(", "));
        return Err(Problem::error(format!("{at}.{key}"), value, message));
    }
    let fields = Fields { at: &at, object };
    let name = match (fields.text("name")?, fields.text("interface")?) {
        (Some(name), None) | (None, Some(name)) => name,
        (Some(name), Some(same)) if name == same => name,
        (Some(_), Some(other)) => {
            return Err(fields.wrong("interface", other, "contradicts name; write name alone"));
        }
        (None, None) => return Err(fields.wrong("name", "", "is missing")),
    };
    if !is_interface_name(name) {
        let message = "is not an interface name: 1 to 15 characters, none of them / : or space";
        return Err(fields.wrong("name", name, message));
    }
    let network = fields.text("network")?.unwrap_or("");
    if !is_dns_label(network) {
        let message = "must name a Network, like \"blue\"";
        return Err(fields.wrong("network", network, message));
    }
    Ok(Wish {
        name: name.into(),
        network: network.into(),
        kind: fields
            .choice("type", &InterfaceType::CHOICES)?
            .or_else(|| InterfaceType::of_name(name)),
        mode: fields.choice("mode", &[("ethernet", MemifMode::Ethernet), ("ip", MemifMode::Ip)])?,
        rx_queues: fields.count("rxQueues")?,
        tx_queues: fields.count("txQueues")?,
        ring_size: fields.count("ringSize")?,
        rx_mode: fields
            .choice("rxMode", &[("polling", RxMode::Polling), ("interrupt", RxMode::Interrupt)])?,
        ips: fields.addresses("ips")?.unwrap_or_default(),
        mac: fields.mac("mac")?,
        default_route: fields.gateways("default-route")?,
        at,
    })
}

impl InterfaceType {
    /// As they are written.
    pub const CHOICES: [(&'static str, InterfaceType); 3] = [
        ("tap", InterfaceType::Tap),
        ("memif", InterfaceType::Memif),
        ("vhost-user", InterfaceType::VhostUser),
    ];

    /// What an interface's name says of its type: `memif*` and `vhost*`.
    #[must_use]
    pub fn of_name(name: &str) -> Option<InterfaceType> {
        if name.starts_with("memif") {
            Some(InterfaceType::Memif)
        } else {
            name.starts_with("vhost").then_some(InterfaceType::VhostUser)
        }
    }
}

/// Fields of one JSON object, read with messages that name them.
pub(super) struct Fields<'a> {
    pub(super) at: &'a str,
    pub(super) object: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub(super) fn wrong(&self, key: &str, value: impl std::fmt::Display, message: &str) -> Problem {
        Problem::error(format!("{}.{key}", self.at), value, message)
    }

    /// Absent and `null` are the same.
    fn value(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|v| !v.is_null())
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, Problem> {
        let Some(value) = self.value(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.wrong(key, value, "is not a text in quotes"))
    }

    fn count(&self, key: &str) -> Result<Option<u32>, Problem> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let count = value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0);
        let message = "is not a whole number above 0, written without quotes";
        count.map(Some).ok_or_else(|| self.wrong(key, value, message))
    }

    fn choice<T: Copy>(&self, key: &str, choices: &[(&str, T)]) -> Result<Option<T>, Problem> {
        let Some(text) = self.text(key)? else { return Ok(None) };
        let found = choices.iter().find(|(name, _)| *name == text).map(|(_, choice)| *choice);
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        let message = format!("must be {}", names.join(" or "));
        found.map(Some).ok_or_else(|| self.wrong(key, text, &message))
    }

    pub(super) fn mac(&self, key: &str) -> Result<Option<Mac>, Problem> {
        let Some(text) = self.text(key)? else { return Ok(None) };
        match text.parse::<Mac>() {
            Ok(mac) if mac.is_unicast() => Ok(Some(mac)),
            Ok(_) => Err(self.wrong(key, text, "is a multicast address or zero; choose another")),
            Err(e) => Err(self.wrong(key, text, &e.to_string())),
        }
    }

    fn list(&self, key: &str) -> Result<Option<Vec<&'a str>>, Problem> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let texts = value.as_array().map(|a| a.iter().map(Value::as_str).collect());
        match texts {
            Some(Some(texts)) => Ok(Some(texts)),
            _ => Err(self.wrong(key, value, "is not a list of texts")),
        }
    }

    pub(super) fn gateways(&self, key: &str) -> Result<Option<Vec<IpAddr>>, Problem> {
        let Some(texts) = self.list(key)? else { return Ok(None) };
        let parse =
            |text: &str| text.parse().map_err(|_| self.wrong(key, text, "is not an address"));
        texts.into_iter().map(parse).collect::<Result<_, _>>().map(Some)
    }

    /// Exact addresses, with or without a prefix length (the pool decides it); one per family.
    pub(super) fn addresses(&self, key: &str) -> Result<Option<Vec<IpAddr>>, Problem> {
        let Some(texts) = self.list(key)? else { return Ok(None) };
        let mut families = BTreeSet::new();
        let mut addresses = Vec::with_capacity(texts.len());
        for text in texts {
            let host = text.split('/').next().unwrap_or("");
            let Ok(address) = host.parse::<IpAddr>() else {
                return Err(self.wrong(key, text, "is not an address"));
            };
            if !families.insert(address.is_ipv4()) {
                let message = "is the second address of its family; one per interface is possible";
                return Err(self.wrong(key, text, message));
            }
            addresses.push(address);
        }
        Ok(Some(addresses))
    }
}
