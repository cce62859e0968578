//! What the node's stack has configured on one device, to be put on another: addresses, routes of
//! all tables, neighbours and settings.
//!
//! Kept as the kernel's own messages with the device's number cut out, so that nothing is lost
//! that this code does not know. Putting it on a device is idempotent.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::netlink::{
    APPEND, CREATE, Netlink, REPLACE, RTM_GETADDR, RTM_GETNEIGH, RTM_GETROUTE, RTM_NEWADDR,
    RTM_NEWNEIGH, RTM_NEWROUTE, attributes, find, put, u16_at, u32_at,
};

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NetConfig {
    pub(super) addresses: Vec<Message>,
    pub(super) routes: Vec<Message>,
    pub(super) neighbours: Vec<Message>,
    /// Per-device settings under /proc/sys/net.
    pub(super) settings: Vec<Setting>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Setting {
    /// `ipv4` or `ipv6`.
    family: String,
    name: String,
    value: String,
}

/// The payload of a netlink message; hexadecimal in the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message(Vec<u8>);

impl Serialize for Message {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Message {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits: Option<Vec<u32>> = text.chars().map(|c| c.to_digit(16)).collect();
        match digits {
            Some(digits) if digits.len() % 2 == 0 => {
                Ok(Self(digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()))
            }
            _ => Err(serde::de::Error::custom("a message is an even number of hexadecimal digits")),
        }
    }
}

const ADDRESS_HEADER: usize = 8;
const ROUTE_HEADER: usize = 12;
const NEIGHBOUR_HEADER: usize = 12;
const NEXT_HOP_HEADER: usize = 8;

const IFA_CACHEINFO: u16 = 6;
const IFA_FLAGS: u16 = 8;
const IFA_F_NODAD: u32 = 0x02;
/// What the kernel found out about an address, as opposed to what it was told.
const IFA_F_FOUND: u32 = 0x08 | 0x40;

const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_MULTIPATH: u16 = 9;
const RTA_CACHEINFO: u16 = 12;
const RTA_VIA: u16 = 18;
const RTA_EXPIRES: u16 = 23;
const RTA_NH_ID: u16 = 30;
const RTM_F_CLONED: u32 = 0x200;
const RTNH_F_ONLINK: u32 = 4;
const TABLE_LOCAL: u8 = 255;

const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_CACHEINFO: u16 = 3;
const NDA_PROBES: u16 = 4;
/// Incomplete, failed and "needs none": nothing worth keeping.
const NUD_USELESS: u16 = 0x01 | 0x20 | 0x40;
const NUD_STALE: u16 = 0x04;
const NUD_PERMANENT: u16 = 0x80;

/// Settings that belong to the device (the tap's own are other ones than the NIC's) or are secrets,
/// not configuration.
const NOT_COPIED: &[&str] =
    &["mtu", "stable_secret", "arp_evict_nocarrier", "ndisc_evict_nocarrier"];

impl NetConfig {
    /// Reads what is configured on the device `index`, named `name`, of the thread's namespace.
    pub(super) fn read(netlink: &mut Netlink, index: u32, name: &str) -> io::Result<Self> {
        let addresses = netlink
            .dump(RTM_GETADDR, &[0; ADDRESS_HEADER])?
            .into_iter()
            .filter(|m| u32_at(m, 4) == index)
            .map(|m| Message(address(&m)))
            .collect();
        let mut routes = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let mut ask = [0; ROUTE_HEADER];
            ask[0] = family as u8;
            let dump = netlink.dump(RTM_GETROUTE, &ask)?;
            routes.extend(dump.iter().filter_map(|m| route(m, index)).map(Message));
        }
        // A gateway can only be added when the network that it is in is there.
        routes.sort_by_key(|m: &Message| {
            let has = |kind| find(&m.0, ROUTE_HEADER, kind).is_some();
            has(RTA_GATEWAY) || has(RTA_VIA) || has(RTA_MULTIPATH)
        });
        let mut neighbours = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let mut ask = [0; NEIGHBOUR_HEADER];
            ask[0] = family as u8;
            let dump = netlink.dump(RTM_GETNEIGH, &ask)?;
            neighbours.extend(dump.iter().filter_map(|m| neighbour(m, index)).map(Message));
        }
        Ok(Self { addresses, routes, neighbours, settings: read_settings(name) })
    }

    /// Puts everything on the device `index`, named `name`, which is up. What is there already
    /// stays; what the kernel refuses is returned in words (a route through a device that is
    /// gone, say), because a node without one odd route is better than one without any.
    pub(super) fn apply(&self, netlink: &mut Netlink, index: u32, name: &str) -> Vec<String> {
        let mut refused = Vec::new();
        for message in &self.addresses {
            let mut bytes = message.0.clone();
            set_u32(&mut bytes, 4, index);
            if let Err(error) = netlink.request(RTM_NEWADDR, CREATE | REPLACE, &bytes) {
                refused.push(format!("address {}: {error}", describe_address(&bytes)));
            }
        }
        let mut waiting: Vec<Vec<u8>> =
            self.routes.iter().map(|m| with_device(&m.0, index)).collect();
        let mut errors = Vec::new();
        // Twice, because a route may lean on one that comes later in the list.
        for _ in 0..2 {
            errors.clear();
            waiting.retain(|bytes| match netlink.request(RTM_NEWROUTE, CREATE | APPEND, bytes) {
                Ok(()) => false,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
                Err(error) => {
                    errors.push(format!("route {}: {error}", describe_route(bytes)));
                    true
                }
            });
        }
        refused.append(&mut errors);
        for message in &self.neighbours {
            let mut bytes = message.0.clone();
            set_u32(&mut bytes, 4, index);
            // Lost neighbours are found again by asking, so that a refusal is not worth a word.
            let _ = netlink.request(RTM_NEWNEIGH, CREATE | REPLACE, &bytes);
        }
        self.write_settings(name);
        refused
    }

    fn write_settings(&self, name: &str) {
        for Setting { family, name: setting, value } in &self.settings {
            let path = format!("/proc/sys/net/{family}/conf/{name}/{setting}");
            if fs::read_to_string(&path).is_ok_and(|now| now.trim() != value) {
                // Some are read-only, or refuse what they said: nothing to be done about it.
                let _ = fs::write(&path, value);
            }
        }
    }

    /// Neighbours whose MAC address was known.
    pub(super) fn neighbours(&self) -> Vec<(IpAddr, Vec<u8>)> {
        let known = self.neighbours.iter().filter_map(|Message(m)| {
            let address = ip(find(m, NEIGHBOUR_HEADER, NDA_DST)?)?;
            Some((address, find(m, NEIGHBOUR_HEADER, NDA_LLADDR)?.to_vec()))
        });
        known.collect()
    }

    /// Where the default routes lead.
    pub(super) fn default_gateways(&self) -> Vec<IpAddr> {
        let default = self.routes.iter().filter(|Message(m)| m.get(1) == Some(&0));
        default.filter_map(|Message(m)| ip(find(m, ROUTE_HEADER, RTA_GATEWAY)?)).collect()
    }

    /// The addresses, for people.
    pub(super) fn describe(&self) -> String {
        let list: Vec<String> = self.addresses.iter().map(|m| describe_address(&m.0)).collect();
        if list.is_empty() { "no addresses".to_owned() } else { list.join(", ") }
    }
}

fn read_settings(name: &str) -> Vec<Setting> {
    let mut settings = Vec::new();
    for family in ["ipv4", "ipv6"] {
        let folder = format!("/proc/sys/net/{family}/conf/{name}");
        for entry in fs::read_dir(Path::new(&folder)).into_iter().flatten().flatten() {
            let setting = entry.file_name().to_string_lossy().into_owned();
            if NOT_COPIED.contains(&setting.as_str()) {
                continue;
            }
            if let Ok(value) = fs::read_to_string(entry.path()) {
                let value = value.trim().to_owned();
                settings.push(Setting { family: family.to_owned(), name: setting, value });
            }
        }
    }
    settings
}

fn set_u32(bytes: &mut [u8], at: usize, value: u32) {
    if let Some(place) = bytes.get_mut(at..at + 4) {
        place.copy_from_slice(&value.to_ne_bytes());
    }
}

/// An address as it is to be added: without duplicate address detection (RFC 4862 §5.4), because
/// the node owned it a moment ago.
fn address(message: &[u8]) -> Vec<u8> {
    let mut out = message[..ADDRESS_HEADER].to_vec();
    let v6 = i32::from(message[0]) == libc::AF_INET6;
    let keep = |flags: u32| flags & !IFA_F_FOUND | if v6 { IFA_F_NODAD } else { 0 };
    out[2] = keep(u32::from(out[2])) as u8;
    for attribute in attributes(message, ADDRESS_HEADER) {
        match attribute.kind {
            IFA_FLAGS => {
                put(&mut out, IFA_FLAGS, &keep(u32_at(attribute.value, 0)).to_ne_bytes());
            }
            // Lifetimes count on from where they are; the two time stamps behind are the kernel's.
            IFA_CACHEINFO if u32_at(attribute.value, 4) == u32::MAX => {}
            _ => copy(&mut out, attribute.raw),
        }
    }
    out
}

/// A route of this device as it is to be added; `None` for others', and for those that the kernel
/// makes by itself with each address.
fn route(message: &[u8], index: u32) -> Option<Vec<u8>> {
    let cloned = u32_at(message, 8) & RTM_F_CLONED != 0;
    let mine = find(message, ROUTE_HEADER, RTA_OIF).is_some_and(|v| u32_at(v, 0) == index)
        || find(message, ROUTE_HEADER, RTA_MULTIPATH)
            .is_some_and(|v| next_hops(v).any(|at| u32_at(v, at + 4) == index));
    if !mine || cloned || message[4] == TABLE_LOCAL {
        return None;
    }
    let mut out = message[..ROUTE_HEADER].to_vec();
    let flags = u32_at(message, 8) & RTNH_F_ONLINK;
    set_u32(&mut out, 8, flags);
    for attribute in attributes(message, ROUTE_HEADER) {
        match attribute.kind {
            RTA_CACHEINFO => {
                // USER_HZ is 100 on all architectures that we run on; RTA_EXPIRES is in seconds.
                let expires = u32_at(attribute.value, 8) as i32 / 100;
                if expires > 0 {
                    put(&mut out, RTA_EXPIRES, &expires.to_ne_bytes());
                }
            }
            // The next hop object went with its device; the message spells it out as well.
            RTA_NH_ID => {}
            RTA_OIF => put(&mut out, RTA_OIF, &[0; 4]),
            RTA_MULTIPATH => {
                let mut hops = attribute.raw.to_vec();
                for at in next_hops(attribute.value) {
                    if u32_at(attribute.value, at + 4) == index {
                        set_u32(&mut hops, 4 + at + 4, 0);
                    }
                }
                copy(&mut out, &hops);
            }
            _ => copy(&mut out, attribute.raw),
        }
    }
    Some(out)
}

/// Puts a device's number where [`route`] left a zero.
fn with_device(route: &[u8], index: u32) -> Vec<u8> {
    let mut out = route[..ROUTE_HEADER].to_vec();
    for attribute in attributes(route, ROUTE_HEADER) {
        match attribute.kind {
            RTA_OIF => put(&mut out, RTA_OIF, &index.to_ne_bytes()),
            RTA_MULTIPATH => {
                let mut hops = attribute.raw.to_vec();
                for at in next_hops(attribute.value) {
                    if u32_at(attribute.value, at + 4) == 0 {
                        set_u32(&mut hops, 4 + at + 4, index);
                    }
                }
                copy(&mut out, &hops);
            }
            _ => copy(&mut out, attribute.raw),
        }
    }
    out
}

/// Where each `struct rtnexthop` of a multipath attribute begins.
fn next_hops(value: &[u8]) -> impl Iterator<Item = usize> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(value, at));
        if length < NEXT_HOP_HEADER || at + length > value.len() {
            return None;
        }
        let this = at;
        at += length.next_multiple_of(4);
        Some(this)
    })
}

/// A neighbour worth keeping: its MAC address is used at once and confirmed by the way (RFC 4861
/// §7.3.2, state STALE).
fn neighbour(message: &[u8], index: u32) -> Option<Vec<u8>> {
    let state = u16_at(message, 8);
    if u32_at(message, 4) != index || state & NUD_USELESS != 0 || state == 0 {
        return None;
    }
    let mut out = message[..NEIGHBOUR_HEADER].to_vec();
    let state = if state & NUD_PERMANENT != 0 { NUD_PERMANENT } else { NUD_STALE };
    out[8..10].copy_from_slice(&state.to_ne_bytes());
    for attribute in attributes(message, NEIGHBOUR_HEADER) {
        if !matches!(attribute.kind, NDA_CACHEINFO | NDA_PROBES) {
            copy(&mut out, attribute.raw);
        }
    }
    Some(out)
}

fn copy(message: &mut Vec<u8>, raw: &[u8]) {
    message.extend(raw);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// Has the kernel ask a neighbour whether it is there: at a MAC address, or everybody.
pub(super) fn probe(device: u32, address: IpAddr, mac: Option<&[u8]>) -> Vec<u8> {
    const NUD_PROBE: u16 = 0x10;
    const NTF_USE: u8 = 1;
    let mut message = vec![0; NEIGHBOUR_HEADER];
    message[0] = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 } as u8;
    set_u32(&mut message, 4, device);
    match mac {
        Some(_) => message[8..10].copy_from_slice(&NUD_PROBE.to_ne_bytes()),
        None => message[10] = NTF_USE,
    }
    match address {
        IpAddr::V4(v4) => put(&mut message, NDA_DST, &v4.octets()),
        IpAddr::V6(v6) => put(&mut message, NDA_DST, &v6.octets()),
    }
    if let Some(mac) = mac {
        put(&mut message, NDA_LLADDR, mac);
    }
    message
}

/// The neighbours on a device that have just answered.
pub(super) fn reachable(dump: &[Vec<u8>], device: u32) -> Vec<IpAddr> {
    const NUD_REACHABLE: u16 = 0x02;
    let there = dump.iter().filter(|m| u32_at(m, 4) == device && u16_at(m, 8) == NUD_REACHABLE);
    there.filter_map(|m| ip(find(m, NEIGHBOUR_HEADER, NDA_DST)?)).collect()
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

fn ip_text(bytes: &[u8]) -> String {
    ip(bytes).map_or_else(|| "?".to_owned(), |address| address.to_string())
}

fn describe_address(message: &[u8]) -> String {
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    let bytes = find(message, ADDRESS_HEADER, IFA_LOCAL)
        .or_else(|| find(message, ADDRESS_HEADER, IFA_ADDRESS))
        .unwrap_or(&[]);
    format!("{}/{}", ip_text(bytes), message.get(1).copied().unwrap_or(0))
}

fn describe_route(message: &[u8]) -> String {
    const RTA_DST: u16 = 1;
    let to = find(message, ROUTE_HEADER, RTA_DST)
        .map_or_else(|| "default".to_owned(), |dst| format!("{}/{}", ip_text(dst), message[1]));
    find(message, ROUTE_HEADER, RTA_GATEWAY)
        .map_or_else(|| to.clone(), |via| format!("{to} via {}", ip_text(via)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route_message(attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut message = vec![2, 24, 0, 0, 254, 4, 0, 1, 16, 0, 0, 0];
        for (kind, value) in attributes {
            put(&mut message, *kind, value);
        }
        message
    }

    #[test]
    fn a_route_changes_device_and_keeps_the_rest() {
        let old = route_message(&[(1, &[10, 1, 2, 0]), (RTA_OIF, &7_u32.to_ne_bytes()), (6, &[9])]);
        assert!(route(&old, 8).is_none(), "another device's");
        let cut = route(&old, 7).expect("this device's");
        assert_eq!(u32_at(&cut, 8), 0, "the link-down flag is the kernel's, not ours");
        let new = with_device(&cut, 42);
        assert_eq!(find(&new, ROUTE_HEADER, RTA_OIF), Some(&42_u32.to_ne_bytes()[..]));
        assert_eq!(find(&new, ROUTE_HEADER, 6), Some(&[9][..]));
        assert_eq!(describe_route(&new), "10.1.2.0/24");
    }

    #[test]
    fn only_the_own_leg_of_a_multipath_route_changes() {
        let hop = |device: u32| {
            let mut hop = vec![16, 0, 0, 0];
            hop.extend(device.to_ne_bytes());
            put(&mut hop, RTA_GATEWAY, &[10, 0, 0, device as u8]);
            hop
        };
        let old = route_message(&[(RTA_MULTIPATH, &[hop(7), hop(9)].concat())]);
        let new = with_device(&route(&old, 7).expect("has a leg"), 42);
        let legs = find(&new, ROUTE_HEADER, RTA_MULTIPATH).expect("multipath");
        let devices: Vec<u32> = next_hops(legs).map(|at| u32_at(legs, at + 4)).collect();
        assert_eq!(devices, [42, 9]);
    }

    #[test]
    fn the_journal_holds_messages_as_text() {
        let message = Message(vec![0, 0x7f, 0xff]);
        let text = serde_json::to_string(&message).expect("json");
        assert_eq!(text, "\"007fff\"");
        assert_eq!(serde_json::from_str::<Message>(&text).expect("json"), message);
        assert!(serde_json::from_str::<Message>("\"0x\"").is_err());
    }
}
