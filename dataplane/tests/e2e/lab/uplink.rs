//! Underlays: a node's uplink on a veth pair, and a far end that nobody here wrote: the kernel.

use std::net::IpAddr;

use super::node::message;
use super::{Netns, Node, RawSocket, Realm, netns};

/// The node's tunnel ends.
pub const NODE4: &str = "192.0.2.1";
/// The same.
pub const NODE6: &str = "2001:db8::1";
/// The far end's.
pub const FAR4: &str = "192.0.2.2";
/// The same.
pub const FAR6: &str = "2001:db8::2";
/// The far end's device on the underlay.
pub const DEVICE: &str = "wire";
/// Its VXLAN device.
pub const VXLAN: &str = "vx";

/// A NIC to be taken over.
pub struct Uplink {
    /// Unique on this machine, because its namespace is named after it.
    pub name: String,
    /// `packet`, `net_af_packet` …
    pub driver: &'static str,
}

impl Uplink {
    /// A veth end in `node` whose other end is `device` in `far`; both have addresses of number
    /// `n` and `m`. Offloads stay on where the driver understands them.
    pub fn between(node: &Netns, far: &Netns, driver: &'static str, mtu: u32) -> Self {
        let name = format!("u{}n{}", std::process::id(), Netns::number());
        node.veth(&name, far, DEVICE, mtu);
        node.ip(&format!("addr add {NODE4}/24 dev {name}"));
        node.ip(&format!("addr add {NODE6}/64 dev {name} nodad"));
        far.ip(&format!("addr add {FAR4}/24 dev {DEVICE}"));
        far.ip(&format!("addr add {FAR6}/64 dev {DEVICE} nodad"));
        if driver.starts_with("net_") {
            for (netns, device) in [(node, &name[..]), (far, DEVICE)] {
                netns.tool("ethtool", &format!("-K {device} tx off tso off gso off"));
            }
        }
        Self { name, driver }
    }

    /// Two nodes' uplinks, connected to each other; `a` has the node's addresses, `b` the far end's.
    pub fn pair(a: &Netns, b: &Netns, driver: &'static str, mtu: u32) -> [Self; 2] {
        let names = [0; 2].map(|_| format!("u{}n{}", std::process::id(), Netns::number()));
        a.veth(&names[0], b, &names[1], mtu);
        for (netns, name, v4, v6) in [(a, &names[0], NODE4, NODE6), (b, &names[1], FAR4, FAR6)] {
            netns.ip(&format!("addr add {v4}/24 dev {name}"));
            netns.ip(&format!("addr add {v6}/64 dev {name} nodad"));
            if driver.starts_with("net_") {
                netns.tool("ethtool", &format!("-K {name} tx off tso off gso off"));
            }
        }
        names.map(|name| Self { name, driver })
    }

    /// For the command line.
    pub fn argument(&self) -> String {
        format!("{}={}", self.name, self.driver)
    }
}

impl Drop for Uplink {
    fn drop(&mut self) {
        netns::remove_all(&format!("bowline-{}-", self.name));
    }
}

/// A far tunnel end: the kernel's VXLAN device.
pub struct Far {
    /// Where it is.
    pub netns: Netns,
    /// Of the VXLAN device.
    pub mac: [u8; 6],
    /// Its end of the tunnel.
    pub vtep: IpAddr,
}

impl Far {
    /// Hosts of the realm behind the far end: numbers from here on.
    pub const FIRST: u16 = 0x700;
    /// The far stack's own.
    pub const NUMBER: u16 = 0x702;

    /// A VXLAN device in `netns` towards the node, over IPv4 or IPv6.
    pub fn kernel(netns: Netns, node: &mut Node, realm: &Realm, v6: bool) -> Self {
        let (local, remote) = if v6 { (FAR6, NODE6) } else { (FAR4, NODE4) };
        let mtu = realm.mtu;
        netns.ip(&format!(
            "link add {VXLAN} mtu {mtu} type vxlan id {} dstport 4789 local {local} remote {remote} \
             dev {DEVICE}{}",
            realm.vni,
            if v6 { " udp6zerocsumrx" } else { "" }
        ));
        netns.ip(&format!("addr add {}/16 dev {VXLAN}", Realm::ip4(Self::NUMBER)));
        netns.ip(&format!("addr add {}/64 dev {VXLAN} nodad", Realm::ip6(Self::NUMBER)));
        let mac = netns.mac(VXLAN);
        let vtep: IpAddr = local.parse().expect("an address");
        node.lead_to_far(realm.name, vtep, mac);
        netns.ip(&format!("link set {VXLAN} up"));
        Self { netns, mac, vtep }
    }

    /// Its inner IPv4 address.
    pub fn ip4(&self) -> IpAddr {
        Realm::ip4(Self::NUMBER)
    }

    /// Its inner IPv6 address.
    pub fn ip6(&self) -> IpAddr {
        Realm::ip6(Self::NUMBER)
    }

    /// The underlay as the far end sees it.
    pub fn raw(&self) -> RawSocket {
        RawSocket::open(&self.netns, DEVICE)
    }

    /// Whether a ping from the far stack is answered.
    pub fn pings(&self, to: IpAddr, size: usize) -> bool {
        self.netns.try_tool("ping", &format!("-c 1 -W 2 -s {size} {to}")).0
    }
}

/// Two data planes on a cable, with the same Networks on both.
pub struct Pair {
    /// The nodes.
    pub nodes: [Node; 2],
    v6: bool,
}

impl Pair {
    /// Both nodes run `workers` workers; tunnels go over IPv4 or IPv6.
    pub fn new(driver: &'static str, mtu: u32, v6: bool, workers: u32, realms: &[Realm]) -> Self {
        let (a, b) = (Netns::new("nodea"), Netns::new("nodeb"));
        let [uplink_a, uplink_b] = Uplink::pair(&a, &b, driver, mtu);
        let mut nodes = [(a, uplink_a), (b, uplink_b)]
            .map(|(netns, uplink)| Node::with_uplink(netns, uplink, workers));
        let ends = [[NODE4, NODE6], [FAR4, FAR6]]
            .map(|ends| ends.map(|ip| message(ip.parse().expect("an address"))).to_vec());
        for (node, own) in nodes.iter_mut().zip(&ends) {
            node.state.local_vteps = own.clone();
            node.state.cluster_vteps = ends.concat();
            for realm in realms {
                node.add_realm(realm);
            }
        }
        Self { nodes, v6 }
    }

    /// Tells node `at` that host `n` of a Network is on the other node.
    pub fn lead(&mut self, at: usize, network: &str, n: u16) {
        let vtep = match (at, self.v6) {
            (0, false) => FAR4,
            (0, true) => FAR6,
            (_, false) => NODE4,
            (_, true) => NODE6,
        };
        let vtep = vtep.parse().expect("an address");
        let inner_mac = self.nodes[1 - at].hello().router_mac;
        let via = api::route::Via::Tunnel(api::TunnelVia { vtep: Some(message(vtep)), inner_mac });
        let prefix = |ip: IpAddr, len| api::Prefix { addr: message(ip).addr, len };
        self.nodes[at].change(network, |network| {
            for prefix in [prefix(Realm::ip4(n), 32), prefix(Realm::ip6(n), 128)] {
                let via = Some(via.clone());
                network.routes.push(api::Route { prefix: Some(prefix), via });
            }
        });
        self.nodes[at].wait_for_tunnels();
    }
}

impl Node {
    /// Waits until all tunnel ends are resolved on the underlay.
    pub fn wait_for_tunnels(&self) {
        super::wait("the far ends' MACs on the underlay", 5.0, || {
            let known = |n: &api::Neighbour| n.state == "reachable" && n.mac.len() == 6;
            let neighbours = self.neighbours();
            (!neighbours.is_empty() && neighbours.iter().all(known)).then_some(())
        });
    }

    /// The far numbers of a Network are reached by way of a tunnel, whose end may send.
    pub fn lead_to_far(&mut self, network: &str, vtep: IpAddr, mac: [u8; 6]) {
        let via = api::TunnelVia { vtep: Some(message(vtep)), inner_mac: mac.to_vec() };
        let via = api::route::Via::Tunnel(via);
        let prefix = |ip: IpAddr, len| api::Prefix { addr: message(ip).addr, len };
        self.change(network, |network| {
            network.peer_vteps = vec![message(vtep)];
            network.routes = vec![
                api::Route {
                    prefix: Some(prefix(Realm::ip4(Far::FIRST), 24)),
                    via: Some(via.clone()),
                },
                api::Route { prefix: Some(prefix(Realm::ip6(Far::FIRST), 120)), via: Some(via) },
            ];
        });
    }
}
