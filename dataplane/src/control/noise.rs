//! Whatever a writer of the API says: a change that holds together, or a refusal that names a field.

use std::net::IpAddr;
use std::sync::Arc;

use prost::Message;

use super::desired::{Desired, Network};
use super::read::said_ip;

fn ip(text: &str) -> api::Ip {
    said_ip(text.parse::<IpAddr>().expect("an address"))
}

fn prefix(address: &str, len: u32) -> Option<api::Prefix> {
    Some(api::Prefix { addr: ip(address).addr, len })
}

fn network(name: &str, vni: u32) -> api::Network {
    let tunnel = api::TunnelVia { vtep: Some(ip("192.0.2.2")), inner_mac: vec![6, 0, 0, 0, 0, 1] };
    let gateway = |text: &str| api::Gateway { ip: Some(ip(text)) };
    let route = |prefix, via| api::Route { prefix, via: Some(via) };
    api::Network {
        name: name.into(),
        vni,
        mtu: 1400,
        gateways: vec![gateway("10.0.0.1"), gateway("fd00::1")],
        prefixes: [prefix("10.0.0.0", 16), prefix("fd00::", 64)].into_iter().flatten().collect(),
        routes: vec![
            route(prefix("10.1.0.0", 16), api::route::Via::Tunnel(tunnel)),
            route(prefix("fd00:1::", 32), api::route::Via::Unreachable(true)),
        ],
        peer_vteps: vec![ip("192.0.2.9")],
        ..api::Network::default()
    }
}

fn interface(id: &str, network: &str, n: u8, port: api::interface::Port) -> api::Interface {
    api::Interface {
        id: id.into(),
        network: network.into(),
        name: "eth1".into(),
        mac: vec![0x0e, 0, 0, 0, 0, n],
        addresses: vec![ip(&format!("10.0.0.{n}")), ip(&format!("fd00::{n:x}"))],
        allowed_prefixes: prefix("10.77.0.0", 16).into_iter().collect(),
        port: Some(port),
        ..api::Interface::default()
    }
}

/// A node with two Networks and a pod of each kind.
fn good() -> api::ApplyRequest {
    let memif = api::MemifPort {
        rx_queues: 2,
        tx_queues: 2,
        ring_size: 1024,
        secret: "s".into(),
        ..api::MemifPort::default()
    };
    let state = api::State {
        revision: 1,
        networks: vec![network("blue", 56), network("red", 57)],
        interfaces: vec![
            interface("a", "blue", 10, api::interface::Port::Tap(api::TapPort { queues: 1 })),
            interface("b", "red", 10, api::interface::Port::Memif(memif)),
        ],
        cluster_vteps: vec![ip("192.0.2.2")],
        local_vteps: vec![ip("192.0.2.1")],
        vxlan_port: 4789,
    };
    api::ApplyRequest { state: Some(state), ..api::ApplyRequest::default() }
}

/// What was accepted keeps the rules that everything behind it relies on.
fn judge(desired: &Desired, request: &api::ApplyRequest) {
    let change = match desired.change(request) {
        Ok(change) => change,
        Err(refused) => {
            assert!(!refused.field.is_empty() && !refused.sentence.is_empty(), "{refused:?}");
            return;
        }
    };
    for interface in change.interfaces.values().flatten() {
        let network = desired.network_after(&change, &interface.network);
        assert!(network.is_some(), "{} is on no Network", interface.id);
    }
    let named = |network: &Arc<Network>| (network.vni.get(), Arc::clone(&network.name));
    let names: Vec<_> = change.networks.values().flatten().map(named).collect();
    for (at, (vni, name)) in names.iter().enumerate() {
        assert!((1..1 << 24).contains(vni), "{name} has VNI {vni}");
        assert!(names[..at].iter().all(|(other, _)| other != vni), "two Networks have VNI {vni}");
    }
}

#[test]
fn any_bytes_as_a_state() {
    bolero::check!().with_iterations(2000).with_type::<Vec<u8>>().for_each(|bytes| {
        if let Ok(request) = api::ApplyRequest::decode(&bytes[..]) {
            judge(&Desired::new(4789), &request);
        }
    });
}

/// A good state with some bytes changed reaches deeper, before and after that state is in force.
#[test]
fn almost_good_states() {
    let good = good();
    let mut in_force = Desired::new(4789);
    in_force.commit(in_force.change(&good).expect("a good state"));
    let bytes = good.encode_to_vec();
    bolero::check!().with_iterations(5000).with_type::<(bool, Vec<(u16, u8)>)>().for_each(
        |(partial, changes)| {
            let mut bytes = bytes.clone();
            for (at, to) in changes.iter().take(4) {
                let at = usize::from(*at) % bytes.len();
                bytes[at] = *to;
            }
            let Ok(request) = api::ApplyRequest::decode(&bytes[..]) else { return };
            let request = api::ApplyRequest { partial: *partial, ..request };
            judge(&Desired::new(4789), &request);
            judge(&in_force, &request);
        },
    );
}
