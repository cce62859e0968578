//! Pods: namespaces with a tap.

use std::net::IpAddr;

use api::descriptor_offer::Kind;

use super::node::message;
use super::{Netns, Node, RawSocket, Realm, sys};

/// A pod with one tap.
pub struct TapPod {
    /// Its namespace.
    pub netns: Netns,
    /// The interface's id at the data plane.
    pub id: String,
    /// Host number of its addresses.
    pub number: u16,
    /// The interface's MAC.
    pub mac: [u8; 6],
    /// MAC of its gateway.
    pub gateway_mac: [u8; 6],
}

/// The interface's name in every pod.
pub const NAME: &str = "eth1";

/// The interface with host number `n` of a realm, but for its port.
pub fn interface(realm: &Realm, id: &str, n: u16) -> api::Interface {
    api::Interface {
        id: id.to_owned(),
        network: realm.name.to_owned(),
        name: NAME.to_owned(),
        mac: mac(n).to_vec(),
        addresses: vec![message(Realm::ip4(n)), message(Realm::ip6(n))],
        pod_namespace: realm.name.to_owned(),
        pod_name: id.to_owned(),
        ..api::Interface::default()
    }
}

/// The MAC of host number `n`, the same in all Networks: addresses overlap in every respect.
pub fn mac(n: u16) -> [u8; 6] {
    let [a, b] = n.to_be_bytes();
    [0x02, 0xaa, 0, 0, a, b]
}

/// One end of a pod's interface, for frames made by hand: the same for taps and memifs.
pub trait End {
    /// Sends a frame as the pod.
    fn inject(&mut self, frame: &[u8]);
    /// What has come to the pod.
    fn take(&mut self) -> Vec<Vec<u8>>;

    /// Waits for frames with the mark in them, until there are `count`.
    fn wait_marked(&mut self, mark: &[u8], count: usize) -> Vec<Vec<u8>> {
        self.gather(mark, count).0
    }

    /// The same, and whatever else came in the meantime: for tests in which it must not have come.
    fn gather(&mut self, mark: &[u8], count: usize) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
        let (mut found, mut others) = (Vec::new(), Vec::new());
        super::wait(&format!("{count} frames marked {mark:?}"), 5.0, || {
            let (marked, rest): (Vec<_>, Vec<_>) =
                self.take().into_iter().partition(|f| super::frame::contains(f, mark));
            found.extend(marked);
            others.extend(rest);
            (found.len() >= count).then_some(())
        });
        (found, others)
    }
}

impl End for RawSocket {
    fn inject(&mut self, frame: &[u8]) {
        self.send(frame);
    }

    fn take(&mut self) -> Vec<Vec<u8>> {
        RawSocket::take(self)
    }
}

impl TapPod {
    /// A pod on `realm` with host number `n`.
    pub fn new(node: &mut Node, realm: &Realm, n: u16) -> Self {
        Self::with(node, realm, n, 1, realm.mtu)
    }

    /// The same with several queues, or another MTU than the Network's.
    pub fn with(node: &mut Node, realm: &Realm, n: u16, queues: u32, mtu: u32) -> Self {
        let netns = Netns::new(&format!("{}{n}", realm.name));
        let id = format!("{}-tap{n}/{NAME}", realm.name);
        let fds = netns.run(|| {
            (0..queues)
                .map(|_| sys::open_tap_queue(NAME, queues > 1).expect("/dev/net/tun"))
                .collect()
        });
        let mut interface = interface(realm, &id, n);
        interface.port = Some(api::interface::Port::Tap(api::TapPort { queues }));
        interface.mtu = mtu;
        set_up(&netns, NAME, n, mtu);
        node.add_interface(interface, Kind::TapQueues, fds);
        node.wait_up(&id);
        super::wait("the pod's IPv6 addresses in use", 5.0, || {
            let words = format!("-6 addr show dev {NAME} tentative");
            netns.tool("ip", &words).is_empty().then_some(())
        });
        Self { netns, id, number: n, mac: mac(n), gateway_mac: realm.gateway_mac() }
    }

    /// Its IPv4 address.
    pub fn ip4(&self) -> IpAddr {
        Realm::ip4(self.number)
    }

    /// Its IPv6 address.
    pub fn ip6(&self) -> IpAddr {
        Realm::ip6(self.number)
    }

    /// Frames as they cross its interface.
    pub fn raw(&self) -> RawSocket {
        RawSocket::open(&self.netns, NAME)
    }

    /// Whether one of `count` pings of `size` payload bytes is answered.
    pub fn pings(&self, to: IpAddr, size: usize) -> bool {
        self.ping(to, &format!("-c 1 -W 2 -s {size}")).0
    }

    /// `ping OPTIONS TO`: success and output.
    pub fn ping(&self, to: IpAddr, options: &str) -> (bool, String) {
        self.netns.try_tool("ping", &format!("{options} {to}"))
    }
}

/// What the agent does to a tap in a pod's namespace.
pub fn set_up(netns: &Netns, device: &str, n: u16, mtu: u32) {
    let [a, b, c, d, e, f] = mac(n);
    netns.sysctl(&format!("net.ipv6.conf.{device}.accept_ra"), 0);
    netns.ip(&format!(
        "link set {device} address {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x} mtu {mtu} up"
    ));
    netns.ip(&format!("addr add {}/16 dev {device}", Realm::ip4(n)));
    netns.ip(&format!("addr add {}/64 dev {device} nodad", Realm::ip6(n)));
    netns.ip(&format!("route add default via {} dev {device}", Realm::ip4(1)));
    netns.ip(&format!("-6 route add default via {} dev {device}", Realm::ip6(1)));
}
