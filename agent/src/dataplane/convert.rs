//! From `multinet`'s state to the API's messages, field by field.

use std::net::IpAddr;

use api::{interface, route};
use ipnet::IpNet;
use multinet::realm::state;

pub(crate) fn ip(address: IpAddr) -> api::Ip {
    let addr = match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    api::Ip { addr }
}

/// The address in a message; `None` if it has neither 4 nor 16 bytes.
pub(crate) fn from_ip(message: &api::Ip) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(message.addr.as_slice()).map(IpAddr::from);
    let v6 = || <[u8; 16]>::try_from(message.addr.as_slice()).map(IpAddr::from);
    v4.or_else(|_| v6()).ok()
}

fn prefix(prefix: IpNet) -> api::Prefix {
    api::Prefix { addr: ip(prefix.network()).addr, len: prefix.prefix_len().into() }
}

/// A state as the API's message. The revision is the writer's to choose.
pub fn message_of(state: &state::State) -> api::State {
    api::State {
        revision: 0,
        networks: state.networks.iter().map(network).collect(),
        interfaces: state.interfaces.iter().map(interface).collect(),
        cluster_vteps: state.cluster_vteps.iter().copied().map(ip).collect(),
        local_vteps: state.local_vteps.iter().copied().map(ip).collect(),
        vxlan_port: state.vxlan_port.into(),
    }
}

pub(crate) fn network(network: &state::Network) -> api::Network {
    use api::network::Encapsulation;
    let encapsulation = match network.encapsulation {
        state::Encapsulation::Vxlan => Encapsulation::Vxlan,
        state::Encapsulation::Vlan => Encapsulation::Vlan,
        state::Encapsulation::None => Encapsulation::None,
    };
    api::Network {
        name: network.name.clone(),
        encapsulation: encapsulation.into(),
        vni: network.vni,
        vlan_id: network.vlan_id.into(),
        physical_network: network.physical_network.clone(),
        mtu: network.mtu,
        gateways: network.gateways.iter().map(|g| api::Gateway { ip: Some(ip(*g)) }).collect(),
        prefixes: network.prefixes.iter().copied().map(prefix).collect(),
        routes: network.routes.iter().map(route).collect(),
        peer_vteps: network.peer_vteps.iter().copied().map(ip).collect(),
    }
}

fn route(route: &state::Route) -> api::Route {
    let via = match &route.via {
        state::Via::Tunnel { vtep, inner_mac } => route::Via::Tunnel(api::TunnelVia {
            vtep: Some(ip(*vtep)),
            inner_mac: inner_mac.0.to_vec(),
        }),
        state::Via::Interface(id) => route::Via::InterfaceId(id.clone()),
        state::Via::Unreachable => route::Via::Unreachable(true),
    };
    api::Route { prefix: Some(prefix(route.prefix)), via: Some(via) }
}

pub(crate) fn interface(interface: &state::Interface) -> api::Interface {
    let port = match &interface.port {
        state::Port::Tap { queues } => interface::Port::Tap(api::TapPort { queues: *queues }),
        state::Port::Memif(memif) => interface::Port::Memif(memif_port(memif)),
    };
    api::Interface {
        id: interface.id.clone(),
        network: interface.network.clone(),
        name: interface.name.clone(),
        mac: interface.mac.0.to_vec(),
        addresses: interface.addresses.iter().copied().map(ip).collect(),
        allowed_prefixes: interface.allowed_prefixes.iter().copied().map(prefix).collect(),
        mtu: interface.mtu,
        pod_namespace: interface.pod_namespace.clone(),
        pod_name: interface.pod_name.clone(),
        node_leg: interface.node_leg,
        port: Some(port),
    }
}

fn memif_port(memif: &state::MemifPort) -> api::MemifPort {
    let mode = match memif.mode {
        state::MemifMode::Ethernet => api::memif_port::Mode::Ethernet,
        state::MemifMode::Ip => api::memif_port::Mode::Ip,
    };
    api::MemifPort {
        mode: mode.into(),
        rx_queues: memif.rx_queues,
        tx_queues: memif.tx_queues,
        ring_size: memif.ring_size,
        require_sealed_memory: memif.require_sealed_memory,
        secret: memif.secret.clone(),
        id: memif.id,
    }
}
