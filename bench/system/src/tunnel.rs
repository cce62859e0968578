//! One data plane whose uplink is a memif that ends at the generator: what a tunnel costs one way.

use crate::OURS;
use crate::candidate::MemifDevice;
use crate::dataplane::Dataplane;
use crate::ours::{Lab, plan};
use anyhow::Context;
use bowline_demo::RUN_DIR;
use bowline_demo::binaries::Uplink;
use bowline_demo::lab::shell;
use bowline_pktgen::endpoint::Endpoint;
use bowline_pktgen::host::Host;
use bowline_pktgen::port::PortConfig;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;
use wire::{Ethernet, Header, Ipv4, Mac, Udp, Vxlan, ether_type, ports, protocol};

/// The generator as a node.
const FAR_VTEP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
const FAR_MAC: Mac = Mac([2, 0, 0, 0, 0, 9]);
/// An address behind it.
const FAR_POD: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 9);
const NODE_VTEP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const VNI: u32 = 56;
const OUTER_BYTES: usize = Ethernet::BYTES + Ipv4::BYTES + Udp::BYTES + Vxlan::BYTES;

/// A node, the generator's ends at its pod and at its uplink, and its API.
struct Wired {
    lab: Lab,
    pod: Endpoint,
    far: Endpoint,
    api: Dataplane,
}

fn wired(logs: &Path) -> anyhow::Result<Wired> {
    let mut lab = Lab::start(&[plan("bench-w", 0, 1, 31)], Uplink::Memif, logs)?;
    let config = PortConfig {
        socket: Path::new(RUN_DIR).join("wire.sock").display().to_string(),
        ..PortConfig::default()
    };
    let addresses = vec![format!("{FAR_VTEP}/24").parse().map_err(anyhow::Error::msg)?];
    let host = Host::new(Some(FAR_MAC), addresses, vec![]);
    let far = Endpoint::open(&config, host, 64, Duration::from_secs(20))?;
    let station = lab.pods[0].station.take().context("not a memif pod")?;
    let pod = station.into_endpoint()?;
    let node = &lab.cluster.nodes[0];
    let (ns, dev) = (node.netns.name(), &node.uplink);
    shell::run(&format!(
        "ip -n {ns} neigh replace {FAR_VTEP} lladdr {FAR_MAC} dev {dev} nud permanent"
    ))?;
    let api = Dataplane::connect(&node.dataplane_socket())?;
    let prefix = (Ipv4Addr::new(10, 0, 9, 0), 24);
    api.route_into_tunnel("blue", prefix, IpAddr::V4(FAR_VTEP), FAR_MAC)?;
    Ok(Wired { lab, pod, far, api })
}

/// From a pod into a tunnel.
///
/// # Errors
/// See [`Lab::start`].
pub fn encap(logs: &Path) -> anyhow::Result<MemifDevice> {
    let Wired { lab, pod: mut tx, far: mut rx, api } = wired(logs)?;
    let dst = IpAddr::V4(FAR_POD);
    let next_hop = tx.resolve(dst, Duration::from_secs(2))?.context("no MAC")?;
    rx.unwrap(OUTER_BYTES);
    let pids = lab.pids()?;
    Ok(MemifDevice {
        name: OURS.into(),
        pids,
        tx,
        rx,
        dst,
        dst_count: 1,
        next_hop,
        outer: Box::new(|_| vec![]),
        ask_spent: Box::new(move || api.spent()),
        keep: Box::new(lab),
    })
}

/// Out of a tunnel to a pod.
///
/// # Errors
/// See [`Lab::start`].
pub fn decap(logs: &Path) -> anyhow::Result<MemifDevice> {
    let Wired { lab, pod: rx, far: tx, api } = wired(logs)?;
    let dst = lab.pods[0].address(true)?;
    let (next_hop, node) = (api.router_mac()?, api.uplink_mac()?);
    let pids = lab.pids()?;
    Ok(MemifDevice {
        name: OURS.into(),
        pids,
        tx: as_far_pod(tx)?,
        rx,
        dst,
        dst_count: 1,
        next_hop,
        outer: Box::new(move |inner| outer(node, inner)),
        ask_spent: Box::new(move || api.spent()),
        keep: Box::new(lab),
    })
}

/// The generator's inner frames come from the pod behind it.
fn as_far_pod(mut far: Endpoint) -> anyhow::Result<Endpoint> {
    let addresses = vec![format!("{FAR_POD}/24").parse().map_err(anyhow::Error::msg)?];
    far.host = Host::new(Some(FAR_MAC), addresses, vec![]);
    Ok(far)
}

/// The headers in front of an inner frame of so many bytes.
fn outer(node: Mac, inner_bytes: usize) -> Vec<u8> {
    let mut bytes = vec![0; OUTER_BYTES];
    let udp_bytes = (Udp::BYTES + Vxlan::BYTES + inner_bytes) as u16;
    let l4 = Ethernet::BYTES + Ipv4::BYTES;
    let link = Ethernet { dst: node, src: FAR_MAC, ether_type: ether_type::IPV4.into() };
    let ip = Ipv4 {
        version_ihl: 0x45,
        tos: 0,
        total_len: (udp_bytes + Ipv4::BYTES as u16).into(),
        id: 0.into(),
        flags_offset: Ipv4::DF.into(),
        ttl: 64,
        protocol: protocol::UDP,
        checksum: 0.into(),
        src: FAR_VTEP.to_bits().into(),
        dst: NODE_VTEP.to_bits().into(),
    };
    let udp = Udp {
        src_port: 50_000.into(),
        dst_port: ports::VXLAN.into(),
        len: udp_bytes.into(),
        checksum: 0.into(),
    };
    if let Some(place) = Ethernet::at_mut(&mut bytes, 0) {
        *place = link;
    }
    if let Some(place) = Ipv4::at_mut(&mut bytes, Ethernet::BYTES) {
        *place = ip;
    }
    if let Some(place) = Udp::at_mut(&mut bytes, l4) {
        *place = udp;
    }
    Ipv4::fill_checksum(&mut bytes[Ethernet::BYTES..]);
    if let Some(place) = Vxlan::at_mut(&mut bytes, l4 + Udp::BYTES) {
        *place = Vxlan::new(VNI);
    }
    bytes
}
