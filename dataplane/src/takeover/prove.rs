//! Whether the node still reaches, through the host tap, what it reached before: its gateways.
//!
//! A gateway counts when the node had a default route through it and knew its MAC address when the
//! interface was taken. The kernel is asked to probe it (RFC 4861 §7.3.3; ARP alike) and says when
//! an answer has come, by way of everything that a packet of the node now crosses.

use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::config::{self, NetConfig};
use super::link::Link;
use super::netlink::{CREATE, Netlink, REPLACE, RTM_GETNEIGH, RTM_NEWNEIGH};

/// A neighbour to prove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gateway {
    /// Its address.
    pub address: IpAddr,
    mac: Vec<u8>,
}

const PAUSE: Duration = Duration::from_millis(20);
const LEARN_LIMIT: Duration = Duration::from_millis(500);
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// The gateways that the node reached with this configuration.
pub(super) fn gateways(config: &NetConfig) -> Vec<Gateway> {
    let known = config.neighbours();
    let mut gateways: Vec<Gateway> = Vec::new();
    for address in config.default_gateways() {
        let found = known.iter().find(|(neighbour, _)| *neighbour == address);
        if let Some((_, mac)) = found.filter(|_| gateways.iter().all(|g| g.address != address)) {
            gateways.push(Gateway { address, mac: mac.clone() });
        }
    }
    gateways
}

/// Asks for the gateways that the node knows no MAC address of, so that they can be proven later.
/// Best effort: one that does not answer now proves nothing later.
pub(super) fn learn(netlink: &mut Netlink, device: u32, config: &NetConfig) -> io::Result<()> {
    let known = gateways(config);
    let mut unknown = config.default_gateways();
    unknown.retain(|address| known.iter().all(|gateway| gateway.address != *address));
    for address in &unknown {
        netlink.request(RTM_NEWNEIGH, CREATE | REPLACE, &config::probe(device, *address, None))?;
    }
    let deadline = Instant::now() + LEARN_LIMIT;
    while !unknown.is_empty() && Instant::now() < deadline {
        std::thread::sleep(PAUSE);
        let answered = config::reachable(&netlink.dump(RTM_GETNEIGH, &[0; 12])?, device);
        unknown.retain(|address| !answered.contains(address));
    }
    Ok(())
}

/// Waits until all answered; the ones that did not within `limit`.
pub(super) fn unreachable(
    interface: &str,
    gateways: &[Gateway],
    limit: Duration,
) -> io::Result<Vec<IpAddr>> {
    let mut netlink = Netlink::open()?;
    let device = Link::by_name(&mut netlink, interface)?.index;
    let deadline = Instant::now() + limit;
    let mut waiting: Vec<&Gateway> = gateways.iter().collect();
    let mut probed: Option<Instant> = None;
    let mut with_mac = true;
    loop {
        if probed.is_none_or(|at| at.elapsed() > PROBE_EVERY) {
            // Again and again: the first probes are lost when the workers are not there yet. In
            // turns by the known MAC and by asking everybody, since a gateway may have failed over.
            for gateway in &waiting {
                let mac = with_mac.then_some(&gateway.mac[..]);
                let message = config::probe(device, gateway.address, mac);
                netlink.request(RTM_NEWNEIGH, CREATE | REPLACE, &message)?;
            }
            probed = Some(Instant::now());
            with_mac = !with_mac;
        }
        std::thread::sleep(PAUSE);
        let answered = config::reachable(&netlink.dump(RTM_GETNEIGH, &[0; 12])?, device);
        waiting.retain(|gateway| !answered.contains(&gateway.address));
        if waiting.is_empty() || Instant::now() > deadline {
            return Ok(waiting.into_iter().map(|gateway| gateway.address).collect());
        }
    }
}
