//! From the API's messages to values: what one message can tell by itself.
//!
//! Every refusal names the field by its path and says in a sentence what is wrong with which
//! value and what is allowed.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use wire::{Mac, Vni};

use super::desired::{Interface, Memif, Net, Network, NodeWide, Port, Route, Tunnel, Via};

/// A request that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {sentence}")]
pub struct Refused {
    /// Path of the field, e.g. `networks[2].vni`.
    pub field: String,
    /// Which value, and what is allowed.
    pub sentence: String,
}

impl Refused {
    /// A refusal of `field`.
    pub fn new(field: impl Into<String>, sentence: impl Into<String>) -> Self {
        Self { field: field.into(), sentence: sentence.into() }
    }
}

type Result<T> = std::result::Result<T, Refused>;

/// Most queues of a port in each direction.
const QUEUES_MAX: u32 = 16;
/// RFC 8200 §5: an IPv6 link carries at least this.
const MTU_MIN_IP6: u32 = 1280;
/// RFC 791: every module must be able to forward a datagram of 68 octets.
const MTU_MIN_IP4: u32 = 68;
const MTU_MAX: u32 = 9216;
/// Bytes of a memif secret on the wire, less the terminator.
const SECRET_MAX_BYTES: usize = 23;

/// An address in the API's form.
pub fn said_ip(ip: IpAddr) -> api::Ip {
    let addr = match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    api::Ip { addr }
}

fn address(field: &str, bytes: &[u8]) -> Result<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(IpAddr::from(v4));
    }
    if let Ok(v6) = <[u8; 16]>::try_from(bytes) {
        return Ok(IpAddr::from(v6));
    }
    let sentence = format!("{} bytes are no address: 4 or 16 are", bytes.len());
    Err(Refused::new(field, sentence))
}

/// An address that one interface can have.
pub fn unicast(field: &str, ip: &api::Ip) -> Result<IpAddr> {
    let ip = address(field, &ip.addr)?;
    let broadcast = ip == IpAddr::from([255; 4]);
    if ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() || broadcast {
        let sentence = format!("{ip} is not an address that an interface can have");
        return Err(Refused::new(field, sentence));
    }
    Ok(ip)
}

fn unicasts(field: &str, ips: &[api::Ip]) -> Result<Vec<IpAddr>> {
    let mut seen = BTreeSet::new();
    ips.iter()
        .enumerate()
        .map(|(i, ip)| {
            let field = format!("{field}[{i}]");
            let ip = unicast(&field, ip)?;
            if !seen.insert(ip) {
                return Err(Refused::new(field, format!("{ip} is in the list twice")));
            }
            Ok(ip)
        })
        .collect()
}

/// A prefix without host bits.
pub fn prefix(field: &str, said: &api::Prefix) -> Result<Net> {
    let addr = address(&format!("{field}.addr"), &said.addr)?;
    let bits = if addr.is_ipv4() { 32 } else { 128 };
    if said.len > bits {
        let sentence = format!("{} is too long for {addr}: 0..={bits} is allowed", said.len);
        return Err(Refused::new(format!("{field}.len"), sentence));
    }
    let net = Net { addr, len: said.len as u8 };
    let host_bits = match addr {
        IpAddr::V4(a) => u32::from(a) & !u32::MAX.checked_shl(32 - said.len).unwrap_or(0) != 0,
        IpAddr::V6(a) => u128::from(a) & !u128::MAX.checked_shl(128 - said.len).unwrap_or(0) != 0,
    };
    if host_bits {
        let sentence = format!("{net} has bits set behind the first {}", said.len);
        return Err(Refused::new(field, sentence));
    }
    Ok(net)
}

fn prefixes(field: &str, said: &[api::Prefix]) -> Result<Vec<Net>> {
    let mut seen = BTreeSet::new();
    said.iter()
        .enumerate()
        .map(|(i, said)| {
            let field = format!("{field}[{i}]");
            let net = prefix(&field, said)?;
            if !seen.insert(net) {
                return Err(Refused::new(field, format!("{net} is in the list twice")));
            }
            Ok(net)
        })
        .collect()
}

fn mac(field: &str, bytes: &[u8]) -> Result<Mac> {
    let Some(mac) = Mac::from_slice(bytes) else {
        let sentence = format!("{} bytes are no Ethernet address: 6 are", bytes.len());
        return Err(Refused::new(field, sentence));
    };
    if mac.is_group() || mac == Mac::default() {
        let sentence = format!("{mac} is not an address that one interface can have");
        return Err(Refused::new(field, sentence));
    }
    Ok(mac)
}

fn name(field: &str, text: &str, longest: usize) -> Result<Arc<str>> {
    let printable = text.chars().all(|c| !c.is_control());
    if text.is_empty() || text.chars().count() > longest || !printable {
        let short: String = text.escape_debug().take(80).collect();
        let sentence = format!("\"{short}\" must be 1..={longest} printable characters");
        return Err(Refused::new(field, sentence));
    }
    Ok(Arc::from(text))
}

/// A network by itself.
pub fn network(field: &str, said: &api::Network) -> Result<Network> {
    let at = |what: &str| format!("{field}.{what}");
    let name = name(&at("name"), &said.name, 63)?;
    if said.encapsulation != api::network::Encapsulation::Vxlan as i32 {
        let word = api::network::Encapsulation::try_from(said.encapsulation)
            .map_or("unknown", |e| e.as_str_name());
        let sentence = format!(
            "{word} is not carried by this version of the data plane: VXLAN is, and Hello lists \
             the features"
        );
        return Err(Refused::new(at("encapsulation"), sentence));
    }
    if said.vlan_id != 0 {
        let sentence = format!("{} makes no sense for a VXLAN network: leave it 0", said.vlan_id);
        return Err(Refused::new(at("vlan_id"), sentence));
    }
    let Some(vni) = Vni::new(said.vni) else {
        let sentence =
            format!("{} is not a VXLAN network identifier: 1..={} is allowed", said.vni, Vni::MAX);
        return Err(Refused::new(at("vni"), sentence));
    };
    let gateways: Vec<_> = said.gateways.iter().map(|g| g.ip.clone().unwrap_or_default()).collect();
    let network = Network {
        vni,
        mtu_bytes: 0,
        gateways: unicasts(&at("gateways"), &gateways)?,
        prefixes: prefixes(&at("prefixes"), &said.prefixes)?,
        routes: routes(&at("routes"), &said.routes)?,
        peers: unicasts(&at("peer_vteps"), &said.peer_vteps)?,
        name,
        said: said.clone(),
    };
    let is_v6 = |net: &Net| net.addr.is_ipv6();
    let ip6 = network.prefixes.iter().any(is_v6) || network.gateways.iter().any(IpAddr::is_ipv6);
    let mtu_bytes = mtu(&at("mtu"), said.mtu, if ip6 { MTU_MIN_IP6 } else { MTU_MIN_IP4 })?;
    if let Some(i) = network.gateways.iter().position(|ip| {
        !network.prefixes.is_empty() && !network.prefixes.iter().any(|p| p.contains(*ip))
    }) {
        let sentence = format!("{} lies in none of the network's prefixes", network.gateways[i]);
        return Err(Refused::new(at(&format!("gateways[{i}].ip")), sentence));
    }
    Ok(Network { mtu_bytes, ..network })
}

fn mtu(field: &str, bytes: u32, least: u32) -> Result<u16> {
    if !(least..=MTU_MAX).contains(&bytes) {
        let sentence = format!("{bytes} bytes: {least}..={MTU_MAX} is allowed");
        return Err(Refused::new(field, sentence));
    }
    Ok(bytes as u16)
}

fn routes(field: &str, said: &[api::Route]) -> Result<Vec<Route>> {
    let mut seen = BTreeSet::new();
    said.iter()
        .enumerate()
        .map(|(i, said)| {
            let field = format!("{field}[{i}]");
            let none = api::Prefix::default();
            let at = format!("{field}.prefix");
            let prefix = prefix(&at, said.prefix.as_ref().unwrap_or(&none))?;
            if !seen.insert(prefix) {
                return Err(Refused::new(at, format!("{prefix} has two routes")));
            }
            Ok(Route { prefix, via: via(&field, said.via.as_ref())? })
        })
        .collect()
}

fn via(field: &str, said: Option<&api::route::Via>) -> Result<Via> {
    match said {
        Some(api::route::Via::Tunnel(tunnel)) => {
            let none = api::Ip::default();
            let vtep = tunnel.vtep.as_ref().unwrap_or(&none);
            Ok(Via::Tunnel(Tunnel {
                vtep: unicast(&format!("{field}.tunnel.vtep"), vtep)?,
                inner_mac: mac(&format!("{field}.tunnel.inner_mac"), &tunnel.inner_mac)?,
            }))
        }
        Some(api::route::Via::InterfaceId(id)) => {
            Ok(Via::Interface(name(&format!("{field}.interface_id"), id, 255)?))
        }
        Some(api::route::Via::Unreachable(true)) => Ok(Via::Unreachable),
        Some(api::route::Via::Unreachable(false)) => {
            Err(Refused::new(format!("{field}.unreachable"), "false says nothing: leave it out"))
        }
        None => {
            let sentence = "is missing: one of tunnel, interface_id, unreachable is needed";
            Err(Refused::new(format!("{field}.via"), sentence))
        }
    }
}

/// An interface by itself.
pub fn interface(field: &str, said: &api::Interface) -> Result<Interface> {
    let at = |what: &str| format!("{field}.{what}");
    let id = name(&at("id"), &said.id, 255)?;
    let mtu_bytes = if said.mtu == 0 { 0 } else { mtu(&at("mtu"), said.mtu, MTU_MIN_IP4)? };
    let addresses = unicasts(&at("addresses"), &said.addresses)?;
    if mtu_bytes != 0 && u32::from(mtu_bytes) < MTU_MIN_IP6 && addresses.iter().any(IpAddr::is_ipv6)
    {
        let sentence = format!("{mtu_bytes} bytes: IPv6 needs {MTU_MIN_IP6} (RFC 8200 §5)");
        return Err(Refused::new(at("mtu"), sentence));
    }
    Ok(Interface {
        id,
        network: name(&at("network"), &said.network, 63)?,
        mac: mac(&at("mac"), &said.mac)?,
        addresses,
        allowed: prefixes(&at("allowed_prefixes"), &said.allowed_prefixes)?,
        mtu_bytes,
        port: port(field, said.port.as_ref())?,
        said: said.clone(),
    })
}

fn port(field: &str, said: Option<&api::interface::Port>) -> Result<Port> {
    match said {
        Some(api::interface::Port::Tap(tap)) => {
            Ok(Port::Tap { queues: queues(&format!("{field}.tap.queues"), tap.queues)? })
        }
        Some(api::interface::Port::Memif(said)) => memif(&format!("{field}.memif"), said),
        None => {
            let sentence = "is missing: one of tap, memif is needed";
            Err(Refused::new(format!("{field}.port"), sentence))
        }
    }
}

fn queues(field: &str, count: u32) -> Result<u16> {
    if !(1..=QUEUES_MAX).contains(&count) {
        let sentence = format!("{count} queues: 1..={QUEUES_MAX} is allowed");
        return Err(Refused::new(field, sentence));
    }
    Ok(count as u16)
}

fn memif(field: &str, said: &api::MemifPort) -> Result<Port> {
    let at = |what: &str| format!("{field}.{what}");
    if !said.ring_size.is_power_of_two() || !(64..=32_768).contains(&said.ring_size) {
        let sentence =
            format!("{} slots: a power of two from 64 to 32768 is allowed", said.ring_size);
        return Err(Refused::new(at("ring_size"), sentence));
    }
    let secret = String::from_utf8(said.secret.clone()).ok();
    let Some(secret) = secret.filter(|s| s.len() <= SECRET_MAX_BYTES && !s.contains('\0')) else {
        let sentence = format!(
            "{} bytes: at most {SECRET_MAX_BYTES} bytes of UTF-8 without zeros are allowed",
            said.secret.len()
        );
        return Err(Refused::new(at("secret"), sentence));
    };
    Ok(Port::Memif(Memif {
        ip_mode: said.mode == api::memif_port::Mode::Ip as i32,
        rx_queues: queues(&at("rx_queues"), said.rx_queues)?,
        tx_queues: queues(&at("tx_queues"), said.tx_queues)?,
        log2_ring_size: said.ring_size.ilog2() as u8,
        require_sealed: said.require_sealed_memory,
        secret,
        id: said.id,
    }))
}

/// What is node-wide; in a partial state, what is empty stays as in `old`.
pub fn node(
    state: &api::State,
    old: &NodeWide,
    default_port: u16,
    partial: bool,
) -> Result<NodeWide> {
    let mut cluster: BTreeSet<_> =
        unicasts("cluster_vteps", &state.cluster_vteps)?.into_iter().collect();
    let mut local: BTreeSet<_> = unicasts("local_vteps", &state.local_vteps)?.into_iter().collect();
    if local.iter().filter(|ip| ip.is_ipv4()).count() > 1
        || local.iter().filter(|ip| ip.is_ipv6()).count() > 1
    {
        let sentence = "has two addresses of one family: at most one of each is allowed";
        return Err(Refused::new("local_vteps", sentence));
    }
    let Ok(mut port) = u16::try_from(state.vxlan_port) else {
        let sentence = format!("{} is no UDP port: 0..=65535 is allowed", state.vxlan_port);
        return Err(Refused::new("vxlan_port", sentence));
    };
    if partial {
        if cluster.is_empty() {
            cluster.clone_from(&old.cluster_vteps);
        }
        if local.is_empty() {
            local.clone_from(&old.local_vteps);
        }
        if port == 0 {
            port = old.vxlan_port;
        }
    }
    if port == 0 {
        port = default_port;
    }
    Ok(NodeWide { cluster_vteps: cluster, local_vteps: local, vxlan_port: port })
}
