//! Who looks at packets: traces and captures.
//!
//! A worker's [`Observer`] compares each packet with the filters of the sessions under way; with
//! none, the path runs without it. Records go through a bounded channel that never blocks the
//! worker: what does not fit is dropped and counted.

pub mod metrics;

use std::fmt::Arguments;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use tokio::sync::mpsc;

use crate::path::{Meta, Packet, Probe, Stage, Verdict};
use crate::table::{Iface, IfaceId, Tables, VrfId};

/// A change of what is observed.
#[derive(Debug, Clone)]
pub enum Observe {
    /// From now on.
    Start(Arc<Session>),
    /// No more.
    Stop(u64),
}

/// What is asked for.
#[derive(Debug)]
pub struct Session {
    /// Unique.
    pub id: u64,
    /// Which packets.
    pub filter: Filter,
    /// Whether the stages are written down; else the frame is.
    pub trace: bool,
    /// Bytes of each frame that are kept.
    pub snap_bytes: usize,
    /// Records still wanted.
    pub left: AtomicI64,
    /// Records that did not fit into the channel.
    pub lost: AtomicU64,
    /// Where records go.
    pub sink: mpsc::Sender<Record>,
}

/// Which packets. Everything that is set must match.
#[derive(Debug, Default)]
pub struct Filter {
    /// Of this network.
    pub vrf: Option<VrfId>,
    /// Entered here, or (captures) leaves here.
    pub iface: Option<IfaceId>,
    /// Source or destination.
    pub host: Option<IpAddr>,
    /// Layer-4 protocol.
    pub protocol: Option<u8>,
    /// Source or destination.
    pub port: Option<u16>,
    /// Dropped ones only.
    pub drops_only: bool,
}

/// One packet.
#[derive(Debug)]
pub struct Record {
    /// Unix time.
    pub time_ns: u64,
    /// Where it entered or left.
    pub iface: Box<str>,
    /// Left, not entered.
    pub outbound: bool,
    /// The first bytes of the frame.
    pub head: Vec<u8>,
    /// Of the whole frame.
    pub length_bytes: u32,
    /// Stage and rule, in order.
    pub steps: Vec<(Stage, String)>,
    /// What became of it.
    pub verdict: String,
}

/// A worker's end.
#[derive(Debug, Default)]
pub struct Observer {
    sessions: Vec<Arc<Session>>,
    /// The packet under way, as it entered.
    head: Vec<u8>,
    length_bytes: u32,
    entered_at: IfaceId,
    steps: Vec<(Stage, String)>,
}

impl Probe for Observer {
    const ON: bool = true;

    fn note(&mut self, stage: Stage, rule: Arguments<'_>) {
        self.steps.push((stage, rule.to_string()));
    }
}

impl Observer {
    /// Whether anybody looks.
    #[inline]
    pub fn active(&self) -> bool {
        !self.sessions.is_empty()
    }

    /// Starts and stops sessions.
    pub fn observe(&mut self, what: Observe) {
        match what {
            Observe::Start(session) => self.sessions.push(session),
            Observe::Stop(id) => self.sessions.retain(|session| session.id != id),
        }
    }

    /// A packet comes: remember it as it is.
    pub fn entered(&mut self, iface: &Iface, packet: &mut Packet<'_>) {
        self.head.clear();
        self.head.extend_from_slice(packet.head());
        self.length_bytes = packet.frame_bytes() as u32;
        self.entered_at = iface.id;
        self.steps.clear();
    }

    /// The path has decided about it.
    pub fn decided(&mut self, tables: &Tables, iface: &Iface, meta: &Meta, verdict: Verdict) {
        let sessions = std::mem::take(&mut self.sessions);
        let facts = Facts::of(&self.head);
        for session in &sessions {
            if self.matches(session, iface, meta, verdict, &facts)
                && session.left.fetch_sub(1, Ordering::Relaxed) > 0
            {
                let record = self.record(session, tables, iface, meta, verdict);
                if session.sink.try_send(record).is_err() {
                    session.lost.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        self.sessions = sessions;
    }

    fn matches(
        &self,
        session: &Session,
        iface: &Iface,
        meta: &Meta,
        verdict: Verdict,
        facts: &Facts,
    ) -> bool {
        let filter = &session.filter;
        let drops = matches!(verdict, Verdict::Drop(_) | Verdict::DropAnswer(_));
        let leaves_there = |id| !session.trace && meta.out == id;
        filter.vrf.is_none_or(|vrf| vrf == meta.vrf || vrf == iface.vrf)
            && filter.iface.is_none_or(|id| id == iface.id || leaves_there(id))
            && filter.host.is_none_or(|ip| facts.has(ip))
            && filter.protocol.is_none_or(|p| facts.layers.iter().any(|l| l.protocol == p))
            && filter.port.is_none_or(|p| facts.layers.iter().any(|l| l.ports.contains(&p)))
            && (!filter.drops_only || drops)
    }

    fn record(
        &self,
        session: &Session,
        tables: &Tables,
        iface: &Iface,
        meta: &Meta,
        verdict: Verdict,
    ) -> Record {
        let keep = self.head.len().min(session.snap_bytes);
        Record {
            time_ns: crate::control::events::now_ns(),
            iface: iface.name.clone(),
            outbound: false,
            head: self.head[..keep].to_vec(),
            length_bytes: self.length_bytes,
            steps: if session.trace { self.steps.clone() } else { Vec::new() },
            verdict: describe(tables, meta, verdict),
        }
    }
}

fn describe(tables: &Tables, meta: &Meta, verdict: Verdict) -> String {
    let out = || tables.iface(meta.out).map_or("a removed interface", |iface| &*iface.name);
    match verdict {
        Verdict::Forward => format!("forward to {}", out()),
        Verdict::Bump => format!("pass unchanged to {}", out()),
        Verdict::Answer => format!("answered by the node, to {}", out()),
        Verdict::DropAnswer(reason) => {
            format!(
                "drop {}: {} An ICMP error goes to {}",
                reason.name(),
                reason.help().trim(),
                out()
            )
        }
        Verdict::Consume => "consumed by the node".into(),
        Verdict::Drop(reason) => format!("drop {}: {}", reason.name(), reason.help().trim()),
        Verdict::Refill | Verdict::Sum => "undecided".into(),
    }
}

/// Addresses and ports of a frame, outermost first; looked at by hand because a filter must see
/// even what the path refuses.
#[derive(Debug, Default)]
struct Facts {
    layers: Vec<Layer>,
}

#[derive(Debug)]
struct Layer {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    ports: Vec<u16>,
}

const UDP: u8 = 17;
const TCP: u8 = 6;

impl Facts {
    fn of(frame: &[u8]) -> Facts {
        let mut facts = Facts::default();
        facts.ethernet(frame);
        if facts.layers.is_empty() {
            facts.ip(frame);
        }
        facts
    }

    fn has(&self, ip: IpAddr) -> bool {
        self.layers.iter().any(|layer| layer.source == ip || layer.destination == ip)
    }

    fn ethernet(&mut self, frame: &[u8]) {
        match frame.get(12..14) {
            Some([8, 0] | [0x86, 0xdd]) => self.ip(&frame[14..]),
            Some([8, 6]) => self.arp(&frame[14..]),
            _ => {}
        }
    }

    fn arp(&mut self, bytes: &[u8]) {
        let ip = |at: usize| bytes.get(at..at + 4).and_then(|b| <[u8; 4]>::try_from(b).ok());
        if let (Some(source), Some(target)) = (ip(14), ip(24)) {
            let layer = Layer {
                source: source.into(),
                destination: target.into(),
                protocol: 0,
                ports: Vec::new(),
            };
            self.layers.push(layer);
        }
    }

    fn ip(&mut self, bytes: &[u8]) {
        let (source, destination, protocol, l4) = match bytes.first().map(|b| b >> 4) {
            Some(4) => {
                let Some(header) = bytes.get(..20) else { return };
                let v4 = |at: usize| IpAddr::from([0, 1, 2, 3].map(|i| header[at + i]));
                (v4(12), v4(16), header[9], usize::from(header[0] & 15) * 4)
            }
            Some(6) => {
                let Some(header) = bytes.get(..40) else { return };
                let v6 =
                    |at: usize| IpAddr::from(std::array::from_fn::<u8, 16, _>(|i| header[at + i]));
                (v6(8), v6(24), header[6], 40)
            }
            _ => return,
        };
        let rest = bytes.get(l4..).unwrap_or(&[]);
        let port = |at: usize| rest.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]]));
        let ports = match protocol {
            TCP | UDP => [port(0), port(2)].into_iter().flatten().collect(),
            _ => Vec::new(),
        };
        let tunnel = protocol == UDP && rest.get(8..12) == Some(&[8, 0, 0, 0]);
        self.layers.push(Layer { source, destination, protocol, ports });
        if tunnel && self.layers.len() < 2 {
            self.ethernet(rest.get(16..).unwrap_or(&[]));
        }
    }
}
