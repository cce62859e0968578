//! An uplink that is a memif: the wire is another program's, a switch for instance, a second data plane
//! or a generator. Its frames are copied once, as those of pods are. The peer may come and go; the node's
//! stack keeps its tap meanwhile.

use std::sync::Arc;

use memif::{Address, ClientConfig, Listener};
use tokio::sync::mpsc;
use wire::Mac;

use super::memif_peer::{News, Order, Peer};
use super::{Ask, Control, PortError, desired, memif_client, memif_server};
use crate::port::Health;
use crate::port::memif::costs_time;
use crate::table::{Iface, IfaceId, TxOwner};

/// What `--uplink NAME=memif,…` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Where the two meet.
    pub address: Address,
    /// Who listens there.
    pub serves: bool,
    /// Interface id on that socket.
    pub id: u32,
    /// Empty = none.
    pub secret: String,
    /// Slots of a ring, as a power of two.
    pub log2_ring_size: u8,
    /// Bytes of a buffer; only a client makes them.
    pub buffer_bytes: u32,
    /// Of IP packets.
    pub mtu_bytes: u16,
    /// Of uplink and host tap; a new one for each start where none is given.
    pub mac: Option<Mac>,
}

const USAGE: &str = "write memif,socket=PATH (or @NAME)[,role=server|client][,id=0][,secret=TEXT]\
                     [,rsize=10][,bsize=2048][,mtu=1500][,mac=02:…]";

impl Wanted {
    /// Reads the arguments. Their names and defaults are those of DPDK's driver.
    ///
    /// # Errors
    /// The first that is wrong, and what is allowed.
    pub fn parse(arguments: &[String]) -> Result<Self, String> {
        let mut wanted = Self {
            address: Address::Path("".into()),
            serves: false,
            id: 0,
            secret: String::new(),
            log2_ring_size: 10,
            buffer_bytes: 2048,
            mtu_bytes: 1500,
            mac: None,
        };
        for argument in arguments {
            let (key, value) = argument.split_once('=').unwrap_or((argument, ""));
            match key {
                "socket" if !value.is_empty() => wanted.address = Address::parse(value),
                "role" if value == "server" => wanted.serves = true,
                "role" if value == "client" => wanted.serves = false,
                "role" => return Err(format!("role={value}: server or client is allowed")),
                "id" => wanted.id = number(key, value, 0, u32::MAX)?,
                "secret" if value.len() <= 23 => wanted.secret = value.into(),
                "secret" => {
                    return Err(format!("secret: {} bytes, at most 23 are allowed", value.len()));
                }
                "rsize" => wanted.log2_ring_size = number(key, value, 6, 14)?,
                "bsize" => wanted.buffer_bytes = number(key, value, 512, 65_536)?,
                "mtu" => wanted.mtu_bytes = number(key, value, 1280, 9216)?,
                "mac" => wanted.mac = Some(mac(value)?),
                _ => return Err(format!("memif does not know \"{argument}\"; {USAGE}")),
            }
        }
        match wanted.address {
            Address::Path(path) if path.as_os_str().is_empty() => {
                Err(format!("no socket; {USAGE}"))
            }
            _ => Ok(wanted),
        }
    }

    /// Listens, if this is the side that does.
    ///
    /// # Errors
    /// The socket's.
    pub fn open(self) -> std::io::Result<Opened> {
        let listener = self.serves.then(|| Listener::bind(&self.address)).transpose()?;
        Ok(Opened { wanted: self, listener })
    }

    fn offer(&self, rings: u16) -> desired::Memif {
        desired::Memif {
            ip_mode: false,
            rx_queues: rings,
            tx_queues: rings,
            log2_ring_size: self.log2_ring_size,
            // What carries the node's own traffic may as well be its memory.
            require_sealed: false,
            secret: self.secret.clone(),
            id: self.id,
        }
    }

    fn config(&self, rings: u16) -> ClientConfig {
        ClientConfig {
            secret: self.secret.clone(),
            name: "bowline".into(),
            s2m_rings: rings,
            m2s_rings: rings,
            log2_ring_size: self.log2_ring_size,
            buffer_bytes: self.buffer_bytes,
            ..ClientConfig::new(self.address.clone(), self.id)
        }
    }
}

/// Ready to meet the peer.
#[derive(Debug)]
pub struct Opened {
    wanted: Wanted,
    listener: Option<Listener>,
}

impl Opened {
    /// Starts meeting peers, with so many rings each way at most.
    pub(super) fn start(
        self,
        interface: Arc<str>,
        rings: u16,
        ask: mpsc::Sender<Ask>,
    ) -> std::io::Result<Wire> {
        let Self { wanted, listener } = self;
        let peer = match listener {
            Some(listener) => memif_server::start(interface, listener, &wanted.offer(rings), ask)?,
            None => memif_client::start(interface, wanted.config(rings), ask),
        };
        let reason = "no peer has connected".into();
        Ok(Wire {
            peer,
            live: false,
            reason,
            peer_name: String::new(),
            violations: 0,
            last_violation: String::new(),
        })
    }
}

fn number<N: TryFrom<u32>>(key: &str, value: &str, least: u32, most: u32) -> Result<N, String> {
    let read = value.parse().ok().filter(|read| (least..=most).contains(read));
    let fits = read.and_then(|read: u32| N::try_from(read).ok());
    fits.ok_or_else(|| format!("{key}={value}: {least}..={most} is allowed"))
}

fn mac(value: &str) -> Result<Mac, String> {
    let mut bytes = [0; 6];
    let mut parts = value.split(':');
    for byte in &mut bytes {
        let part = parts.next().and_then(|part| u8::from_str_radix(part, 16).ok());
        *byte =
            part.ok_or_else(|| format!("mac={value}: write six bytes, as 02:00:00:00:00:01"))?;
    }
    match Mac(bytes) {
        mac if parts.next().is_some() || mac.is_group() || mac == Mac::default() => {
            Err(format!("mac={value}: not the address of one interface"))
        }
        mac => Ok(mac),
    }
}

/// An uplink's end of its memif.
#[derive(Debug)]
pub(super) struct Wire {
    peer: Peer,
    /// Its queues are with the workers.
    pub(super) live: bool,
    /// Why not.
    pub(super) reason: String,
    /// What the peer calls itself, while it is connected.
    pub(super) peer_name: String,
    /// How often a peer broke the protocol.
    pub(super) violations: u64,
    pub(super) last_violation: String,
}

impl Control {
    /// The uplink whose task this is.
    pub(super) fn wire_of(&self, serial: u64) -> Option<usize> {
        let same = |wire: &Wire| wire.peer.serial == serial;
        self.fixed.iter().position(|fixed| fixed.wire.as_ref().is_some_and(same))
    }

    /// The peer of an uplink came, went, or turned us away.
    pub(super) async fn wire_news(&mut self, at: usize, news: News) {
        match news {
            News::Up { info, rx, tx } => self.wire_up(at, &info, rx, tx).await,
            News::Down { reason, violation: true } => self.violated(at, reason.to_string()).await,
            News::Down { reason, violation: false } => {
                self.wire_down(at, format!("the peer left: {reason}")).await;
            }
            News::TurnedAway { reason } => {
                let Some(wire) = self.fixed[at].wire.as_mut().filter(|wire| !wire.live) else {
                    return;
                };
                let message = format!("no connection: {reason}");
                // Told once, however often it is tried.
                if message != wire.reason {
                    wire.reason.clone_from(&message);
                    self.events.tell("peer-refused", &self.fixed[at].name, message);
                }
            }
        }
    }

    async fn wire_up(
        &mut self,
        at: usize,
        info: &memif::Info,
        rx: Vec<memif::RxQueue>,
        tx: Vec<memif::TxQueue>,
    ) {
        let fixed = &mut self.fixed[at];
        let Some(wire) = &mut fixed.wire else { return };
        if wire.live || self.workers.is_leaving(fixed.id) {
            wire.peer.order(Order::Close { costly: false });
            return;
        }
        wire.live = true;
        wire.reason.clear();
        wire.peer_name.clone_from(&info.peer_name);
        fixed.queues = rx.len() as u32;
        let (id, name) = (fixed.id, fixed.name.clone());
        let message = format!(
            "memif peer \"{}\": {} rx and {} tx queues",
            info.peer_name,
            rx.len(),
            tx.len()
        );
        let result = match self.workers.attach_memif(id, rx, tx) {
            Ok(owners) => self.publish_owners(id, owners).await,
            Err(error) => Err(error),
        };
        match result {
            Ok(()) => self.events.tell("port-up", &name, message),
            Err(error) => self.events.tell("worker-stuck", &name, error.to_string()),
        }
    }

    /// Takes the queues back; the node's tap stays as it is.
    async fn wire_down(&mut self, at: usize, reason: String) {
        let fixed = &mut self.fixed[at];
        let Some(wire) = fixed.wire.as_mut().filter(|wire| wire.live) else { return };
        wire.live = false;
        wire.reason.clone_from(&reason);
        wire.peer_name.clear();
        fixed.queues = 0;
        let (id, name) = (fixed.id, fixed.name.clone());
        self.events.tell("port-down", &name, reason);
        let published = self.publish_owners(id, Arc::from([])).await;
        let detached = self.workers.detach(id);
        for error in [published.err(), detached.err()].into_iter().flatten() {
            self.events.tell("worker-stuck", &name, error.to_string());
        }
    }

    /// A queue of an uplink or a host tap stopped.
    pub(super) async fn fixed_unwell(&mut self, id: IfaceId, health: Health) {
        let Some(at) = self.fixed.iter().position(|fixed| fixed.id == id) else { return };
        match (&self.fixed[at].wire, health) {
            (Some(wire), Health::Violation(how)) => {
                wire.peer.order(Order::Close { costly: costs_time(how) });
                self.violated(at, how.into()).await;
            }
            _ => {
                let message = "the device is gone or broken".into();
                self.events.tell("port-down", &self.fixed[at].name, message);
            }
        }
    }

    /// The peer of an uplink broke the protocol, and is disconnected.
    async fn violated(&mut self, at: usize, how: String) {
        let fixed = &mut self.fixed[at];
        // Each of its queues may say so.
        let Some(wire) = fixed.wire.as_mut().filter(|wire| wire.live) else { return };
        wire.violations += 1;
        let message = format!(
            "the peer \"{}\" broke the protocol and was disconnected: {how}",
            wire.peer_name
        );
        wire.last_violation.clone_from(&message);
        self.events.tell("peer-violation", &fixed.name, message.clone());
        self.wire_down(at, message).await;
    }

    /// The queues of an uplink's last peer are dropped: the next is welcome.
    pub(super) fn wire_is_free(&self, id: IfaceId) {
        let fixed = self.fixed.iter().find(|fixed| fixed.id == id);
        if let Some(wire) = fixed.and_then(|fixed| fixed.wire.as_ref()) {
            wire.peer.order(Order::Ready);
        }
    }

    async fn publish_owners(
        &mut self,
        id: IfaceId,
        owners: Arc<[TxOwner]>,
    ) -> Result<(), PortError> {
        let mut tables = (*self.workers.tables()).clone();
        let Some(iface) = tables.iface(id) else { return Ok(()) };
        let iface = Iface { workers: owners, ..Iface::clone(iface) };
        tables.ifaces.set(usize::from(id.0), Some(Arc::new(iface)));
        self.workers.publish(tables).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Wanted, String> {
        Wanted::parse(&text.split(',').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn arguments_are_those_of_dpdks_driver() {
        let all = "role=server,socket=/run/x,id=7,secret=s,rsize=12,bsize=4096,mtu=9000,mac=02:00:00:00:00:0a";
        let wanted = Wanted {
            address: Address::Path("/run/x".into()),
            serves: true,
            id: 7,
            secret: "s".into(),
            log2_ring_size: 12,
            buffer_bytes: 4096,
            mtu_bytes: 9000,
            mac: Some(Mac([2, 0, 0, 0, 0, 10])),
        };
        assert_eq!(parse(all), Ok(wanted));
        let short = parse("socket=@wire").expect("a name is enough");
        assert_eq!((short.address, short.serves), (Address::Abstract("wire".into()), false));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (bad, named) in [
            ("role=client", "no socket"),
            ("socket=", "\"socket=\""),
            ("socket=/x,role=both", "server or client"),
            ("socket=/x,rsize=15", "6..=14"),
            ("socket=/x,id=-1", "id=-1"),
            ("socket=/x,mtu=100", "1280..=9216"),
            ("socket=/x,mac=01:00:00:00:00:00", "not the address of one interface"),
            ("socket=/x,mac=02:00", "six bytes"),
            ("socket=/x,zero-copy=yes", "does not know \"zero-copy=yes\""),
        ] {
            let error = parse(bad).expect_err(bad);
            assert!(error.contains(named), "{bad}: {error}");
        }
    }
}
