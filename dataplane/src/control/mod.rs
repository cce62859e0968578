//! The only writer: takes the desired state, builds tables, puts them in force, minds the ports.
//!
//! One thread, one runtime, one actor. gRPC calls, offered descriptors, news of memif clients, of
//! the underlay and of workers all arrive as [`Ask`]s or reports and are handled one after the
//! other by [`Control`]; so nothing here is locked.
//!
//! ```text
//! server ─┐
//! descriptors ─┤          desired::change ── apply::plan ── ports::publish ── commit
//! memif peers ──┼─ Ask ─► Control            (refused: nothing happened)  (stuck: rolled back)
//! underlay ─┘
//! ```

pub mod accounts;
pub mod apply;
pub mod check;
pub mod descriptors;
pub mod desired;
pub mod events;
pub mod ids;
mod lifecycle;
mod memif_client;
pub mod memif_peer;
pub mod memif_server;
pub mod memif_uplink;
#[cfg(test)]
mod noise;
pub mod observing;
pub mod ports;
pub mod read;
pub mod report;
pub mod rewrite;
pub mod server;
pub mod start;
pub mod underlay;
pub mod uplink;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::sync::{broadcast, mpsc, oneshot, watch};
use wire::Mac;

pub use apply::{Books, Plan};
pub use start::{Config, Error, UplinkPort, run};

use accounts::Ledger;
use descriptors::Descriptors;
use desired::{Desired, Net};
use events::Events;
use ids::Exhausted;
use ports::{PortError, Workers};
use read::Refused;

use crate::table::{Counters, IfaceId, IfaceKind};
use crate::worker::Report;

/// Features that a writer may rely on, see `Hello`.
pub const FEATURES: &[&str] = &[
    "tap",
    "memif",
    "memif-ip-mode",
    "vxlan",
    "vxlan-over-ipv6",
    "ipv4",
    "ipv6",
    "anti-spoofing",
    "icmp-errors",
    "fragmentation",
    "segmentation",
    "trace",
    "capture",
];

/// What the control thread is asked.
#[derive(Debug)]
pub enum Ask {
    /// See the API.
    Hello(api::HelloRequest, oneshot::Sender<Result<api::HelloReply, tonic::Status>>),
    /// See the API.
    Apply(Box<api::ApplyRequest>, oneshot::Sender<Result<api::ApplyReply, tonic::Status>>),
    /// See the API.
    State(oneshot::Sender<api::ActualState>),
    /// See the API.
    Counters(oneshot::Sender<api::Counters>),
    /// See the API.
    Neighbours(oneshot::Sender<api::Neighbours>),
    /// See the API.
    CopyEngines(oneshot::Sender<api::CopyEngines>),
    /// See the API.
    Watch(oneshot::Sender<broadcast::Receiver<api::Event>>),
    /// Starts a trace or a capture.
    Observe(observing::Wanted, oneshot::Sender<Result<observing::Started, tonic::Status>>),
    /// Whoever observed has left.
    Unobserve(u64),
    /// Descriptors came. The answer is why they were refused, or empty.
    Offer {
        /// What for.
        offer: api::DescriptorOffer,
        /// They.
        fds: Vec<OwnedFd>,
        /// The answer.
        reply: oneshot::Sender<String>,
    },
    /// A memif's peer came or went.
    Memif {
        /// Whose.
        interface: Arc<str>,
        /// Of which of its tasks.
        serial: u64,
        /// What.
        news: memif_peer::News,
    },
}

/// Why a state was not put in force.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// It makes no sense.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The node is full.
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
    /// The workers do not follow.
    #[error(transparent)]
    Port(#[from] PortError),
}

/// What became of an interface.
#[derive(Debug)]
struct Port {
    id: IfaceId,
    kind: &'static str,
    /// Its queues are with the workers.
    live: bool,
    reason: String,
    peer: String,
    rx_queues: u32,
    tx_queues: u32,
    ring_size: u32,
    connects: u64,
    violations: u64,
    last_violation: String,
    last_refusal: String,
    workers: Vec<u32>,
    memif: Option<memif_peer::Peer>,
}

/// An interface that is there from start to end: an uplink or a host tap.
#[derive(Debug)]
struct Fixed {
    id: IfaceId,
    name: String,
    kind: IfaceKind,
    mac: Mac,
    queues: u32,
    counters: Arc<[Counters]>,
    /// Of an uplink that is a memif.
    wire: Option<memif_uplink::Wire>,
}

/// An interface that is gone but for its queues.
#[derive(Debug)]
struct Ghost {
    network: Arc<str>,
    counters: Arc<[Counters]>,
}

/// What there is to do.
enum Next {
    Report(Box<Report>),
    Ask(Ask),
    Underlay,
    Second,
}

/// The actor.
#[derive(Debug)]
pub struct Control {
    facts: start::Facts,
    desired: Desired,
    books: Books,
    workers: Workers,
    reports: mpsc::UnboundedReceiver<Report>,
    /// Reports that came while something else was waited for.
    backlog: VecDeque<Report>,
    asks: mpsc::Receiver<Ask>,
    ask: mpsc::Sender<Ask>,
    ports: BTreeMap<Arc<str>, Port>,
    names: HashMap<IfaceId, Arc<str>>,
    ghosts: HashMap<IfaceId, Ghost>,
    fixed: Vec<Fixed>,
    descriptors: Descriptors,
    ledger: Ledger,
    events: Events,
    observing: observing::Observing,
    underlay: watch::Receiver<underlay::View>,
    tunnel_ends: watch::Sender<underlay::Wanted>,
    stop: watch::Receiver<bool>,
}

impl Control {
    /// Handles everything until told to stop.
    pub async fn run(mut self) {
        let mut second = tokio::time::interval(std::time::Duration::from_secs(1));
        second.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            while let Some(report) = self.backlog.pop_front() {
                self.report(report).await;
            }
            let next = tokio::select! {
                biased;
                _ = self.stop.wait_for(|stop| *stop) => break,
                Some(report) = self.reports.recv() => Next::Report(Box::new(report)),
                Some(ask) = self.asks.recv() => Next::Ask(ask),
                Ok(()) = self.underlay.changed() => Next::Underlay,
                _ = second.tick() => Next::Second,
            };
            match next {
                Next::Report(report) => self.report(*report).await,
                Next::Ask(ask) => self.answer(ask).await,
                Next::Underlay => self.follow_underlay().await,
                Next::Second => {
                    self.workers.tick();
                    self.expire_offers();
                }
            }
        }
        self.workers.stop();
    }

    async fn answer(&mut self, ask: Ask) {
        // A caller that left does not need the answer.
        match ask {
            Ask::Hello(request, reply) => drop(reply.send(self.hello(&request))),
            Ask::Apply(request, reply) => {
                let result = self.apply(&request).await.map_err(|error| status(&error));
                drop(reply.send(result));
            }
            Ask::State(reply) => drop(reply.send(self.actual_state())),
            Ask::Counters(reply) => drop(reply.send(self.counters())),
            Ask::Neighbours(reply) => drop(reply.send(self.neighbours())),
            Ask::CopyEngines(reply) => drop(reply.send(self.copy_engines())),
            Ask::Watch(reply) => drop(reply.send(self.events.watch())),
            Ask::Observe(wanted, reply) => drop(reply.send(self.observe(&wanted))),
            Ask::Unobserve(id) => self.unobserve(id),
            Ask::Offer { offer, fds, reply } => {
                let error = self.offered(&offer, fds).await.err().unwrap_or_default();
                drop(reply.send(error));
            }
            Ask::Memif { interface, serial, news } => {
                self.memif_news(&interface, serial, news).await;
            }
        }
    }

    /// The underlay changed: gateways, neighbours, links.
    async fn follow_underlay(&mut self) {
        let ways = self.underlay.borrow_and_update().ways.clone();
        let mut tables = (*self.workers.tables()).clone();
        if !self.books.set_ways(&mut tables, ways, &self.desired.node) {
            return;
        }
        if let Err(error) = self.workers.publish(tables).await {
            self.events.tell("worker-stuck", "", error.to_string());
        }
    }

    /// Tells the underlay which ends matter.
    fn want_tunnel_ends(&self) {
        let wanted = underlay::Wanted { ends: self.books.tunnel_ends() };
        self.tunnel_ends.send_if_modified(|old| {
            let differs = *old != wanted;
            *old = wanted;
            differs
        });
    }
}

fn status(error: &ApplyError) -> tonic::Status {
    let message = error.to_string();
    match error {
        ApplyError::Refused(_) => tonic::Status::invalid_argument(message),
        ApplyError::Exhausted(_) => tonic::Status::resource_exhausted(message),
        ApplyError::Port(_) => tonic::Status::deadline_exceeded(message),
    }
}

/// By family.
fn split(ips: impl Iterator<Item = IpAddr>) -> (Vec<Ipv4Addr>, Vec<Ipv6Addr>) {
    let mut v4 = Vec::new();
    let mut v6 = Vec::new();
    for ip in ips {
        match ip {
            IpAddr::V4(ip) => v4.push(ip),
            IpAddr::V6(ip) => v6.push(ip),
        }
    }
    (v4, v6)
}

type Masked<A> = Box<[(A, A)]>;

/// By family, as (address, mask).
fn split_nets(nets: &[Net]) -> (Masked<u32>, Masked<u128>) {
    use crate::table::fib::Addr;
    let mut v4 = Vec::new();
    let mut v6 = Vec::new();
    for net in nets {
        match net.addr {
            IpAddr::V4(ip) => v4.push((u32::from(ip), <u32 as Addr>::mask(net.len))),
            IpAddr::V6(ip) => v6.push((u128::from(ip), <u128 as Addr>::mask(net.len))),
        }
    }
    (v4.into(), v6.into())
}
