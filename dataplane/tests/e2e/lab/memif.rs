//! Pods with a memif: the data plane listens in their namespace, our own client connects.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use api::descriptor_offer::Kind;
use memif::{Address, ClientConfig, Connection, Connector, Mode, Notifier, RxQueue, TxQueue};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, setsockopt, socket, sockopt,
};

use super::pod::{self, End};
use super::{Netns, Node, Realm};

/// The interface's and the socket's name in every pod.
pub const NAME: &str = "memif1";

/// What is asked for, on both sides.
#[derive(Clone, Copy)]
pub struct Shape {
    /// Rings each way.
    pub queues: u16,
    /// Slots of a ring, as a power of two.
    pub log2_ring: u8,
    /// Of each buffer.
    pub buffer_bytes: u32,
    /// Bare IP packets.
    pub ip_mode: bool,
    /// Refuse memory that can shrink.
    pub sealed: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Self { queues: 1, log2_ring: 10, buffer_bytes: 2048, ip_mode: false, sealed: true }
    }
}

/// A pod with one memif that nobody has connected to yet.
pub struct Listening {
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
    /// What it offers and asks for.
    pub shape: Shape,
}

/// A pod with one memif, connected.
pub struct MemifPod {
    /// Where and who.
    pub at: Listening,
    /// The connection; dropping it disconnects.
    pub connection: Connection,
    /// Rings from the data plane.
    pub rx: Vec<RxQueue>,
    /// Rings to the data plane.
    pub tx: Vec<TxQueue>,
    notifier: Notifier,
    buffer: Vec<u8>,
}

impl Listening {
    /// Applies the interface; the data plane listens when this returns.
    pub fn new(node: &mut Node, realm: &Realm, n: u16, shape: Shape) -> Self {
        let netns = Netns::new(&format!("{}m{n}", realm.name));
        let id = format!("{}-memif{n}/{NAME}", realm.name);
        let (mac, gateway_mac) = (pod::mac(n), realm.gateway_mac());
        let pod = Self { netns, id, number: n, mac, gateway_mac, shape };
        pod.offer(node, realm);
        pod
    }

    /// Takes the interface away and applies it anew, as for another pod in its place.
    pub fn renew(&self, node: &mut Node, realm: &Realm) {
        node.remove_interface(&self.id);
        self.offer(node, realm);
    }

    fn offer(&self, node: &mut Node, realm: &Realm) {
        let Self { netns, id, number: n, shape, .. } = self;
        let mut interface = pod::interface(realm, id, *n);
        interface.name = NAME.to_owned();
        let mode = if shape.ip_mode { api::memif_port::Mode::Ip } else { Default::default() };
        interface.port = Some(api::interface::Port::Memif(api::MemifPort {
            mode: mode.into(),
            rx_queues: shape.queues.into(),
            tx_queues: shape.queues.into(),
            ring_size: 1 << shape.log2_ring,
            require_sealed_memory: shape.sealed,
            ..api::MemifPort::default()
        }));
        let listener = netns.run(listener);
        node.add_interface(interface, Kind::MemifListener, vec![listener]);
    }

    /// Connects our own client.
    pub fn connect(self) -> MemifPod {
        let (connection, rx, tx) = self.dial();
        let notifier = Notifier::new().expect("a notifier");
        MemifPod { at: self, connection, rx, tx, notifier, buffer: vec![0; 70_000] }
    }

    fn dial(&self) -> (Connection, Vec<RxQueue>, Vec<TxQueue>) {
        let mut config = ClientConfig::new(Address::Abstract(NAME.to_owned()), 0);
        config.mode = if self.shape.ip_mode { Mode::Ip } else { Mode::Ethernet };
        config.name = "e2e".to_owned();
        config.s2m_rings = self.shape.queues;
        config.m2s_rings = self.shape.queues;
        config.log2_ring_size = self.shape.log2_ring;
        config.buffer_bytes = self.shape.buffer_bytes;
        let mut connection = self.netns.run(|| {
            let mut connector = Connector::new(config);
            connector.connect_blocking(Duration::from_secs(5)).expect("the data plane listens")
        });
        let (rx, tx) = connection.take_queues();
        (connection, rx, tx)
    }

    /// Its IPv4 address.
    pub fn ip4(&self) -> IpAddr {
        Realm::ip4(self.number)
    }

    /// Its IPv6 address.
    pub fn ip6(&self) -> IpAddr {
        Realm::ip6(self.number)
    }
}

impl MemifPod {
    /// A connected pod on `realm` with host number `n`, one queue each way.
    pub fn new(node: &mut Node, realm: &Realm, n: u16) -> Self {
        Self::with(node, realm, n, Shape::default())
    }

    /// The same, of another shape.
    pub fn with(node: &mut Node, realm: &Realm, n: u16, shape: Shape) -> Self {
        let pod = Listening::new(node, realm, n, shape).connect();
        node.wait_up(&pod.at.id);
        pod
    }

    /// Connects anew, after the data plane went away.
    pub fn reconnect(&mut self) {
        let (connection, rx, tx) = self.at.dial();
        (self.connection, self.rx, self.tx) = (connection, rx, tx);
    }

    /// Sends on one queue; false when the ring is full.
    pub fn try_send(&mut self, queue: usize, frame: &[u8]) -> bool {
        let tx = &mut self.tx[queue];
        let sent = tx.send(frame).expect("an honest data plane");
        tx.flush(&mut self.notifier).expect("a signal");
        sent
    }

    /// Puts frames in the ring without telling; how many fit. [`MemifPod::flush`] tells.
    pub fn queue_up<'a>(
        &mut self,
        queue: usize,
        frames: impl IntoIterator<Item = &'a [u8]>,
    ) -> usize {
        let tx = &mut self.tx[queue];
        frames.into_iter().take_while(|f| tx.send(f).expect("an honest data plane")).count()
    }

    /// See [`MemifPod::queue_up`].
    pub fn flush(&mut self, queue: usize) {
        self.tx[queue].flush(&mut self.notifier).expect("a signal");
    }

    /// The next frame of one queue.
    pub fn recv(&mut self, queue: usize) -> Option<&[u8]> {
        let length = self.rx[queue].recv(&mut self.buffer).expect("an honest data plane")?;
        Some(&self.buffer[..length])
    }

    /// A UDP datagram from this pod in a frame to its gateway.
    pub fn datagram(&self, from_port: u16, to: (IpAddr, u16), payload: &[u8]) -> Vec<u8> {
        let from = if to.0.is_ipv4() { self.at.ip4() } else { self.at.ip6() };
        let packet = super::frame::udp((from, from_port), to, payload);
        if self.at.shape.ip_mode {
            return packet;
        }
        super::frame::ethernet(
            self.at.gateway_mac,
            self.at.mac,
            super::frame::ether_type(to.0),
            &packet,
        )
    }
}

impl End for MemifPod {
    fn inject(&mut self, frame: &[u8]) {
        super::wait("room in the ring", 2.0, || self.try_send(0, frame).then_some(()));
    }

    fn take(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        for queue in 0..self.rx.len() {
            while let Some(frame) = self.recv(queue) {
                frames.push(frame.to_vec());
            }
        }
        frames
    }
}

/// Listens as the agent does, in the thread's namespace.
fn listener() -> OwnedFd {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).expect("a socket");
    setsockopt(&fd, sockopt::PassCred, &true).expect("SO_PASSCRED");
    let address = UnixAddr::new_abstract(NAME.as_bytes()).expect("a short name");
    bind(fd.as_raw_fd(), &address).expect("a free name");
    listen(&fd, Backlog::new(64).expect("small")).expect("a listening socket");
    fd
}
