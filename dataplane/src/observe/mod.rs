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
    pub fn entered(&mut self, packet: &Packet<'_>) {
        self.head.clear();
        self.head.extend_from_slice(packet.head());
        self.length_bytes = packet.frame_bytes() as u32;
        self.steps.clear();
    }

    /// The path has decided about it; what leaves is rewritten completely.
    pub fn decided(
        &mut self,
        tables: &Tables,
        iface: &Iface,
        packet: &Packet<'_>,
        verdict: Verdict,
    ) {
        let sessions = std::mem::take(&mut self.sessions);
        let facts = Facts::of(&self.head);
        let meta = &*packet.meta;
        let out = match verdict {
            Verdict::Drop(_) | Verdict::Consume | Verdict::Refill | Verdict::Sum => None,
            _ => tables.iface(meta.out),
        };
        for session in &sessions {
            if !session.filter.matches(iface, meta, verdict, &facts) {
                continue;
            }
            if session.filter.is_at(iface) {
                let head = (&self.head[..], self.length_bytes);
                self.tell(session, iface, false, head, || describe(tables, meta, verdict));
            }
            if let Some(out) = out.filter(|out| !session.trace && session.filter.is_at(out)) {
                let head = (packet.head(), packet.frame_bytes() as u32);
                self.tell(session, out, true, head, String::new);
            }
        }
        self.sessions = sessions;
    }

    /// Sends one record, unless there were enough or the channel is full.
    fn tell(
        &self,
        session: &Session,
        at: &Iface,
        outbound: bool,
        (head, length_bytes): (&[u8], u32),
        verdict: impl FnOnce() -> String,
    ) {
        if session.left.fetch_sub(1, Ordering::Relaxed) <= 0 {
            return;
        }
        let record = Record {
            time_ns: crate::control::events::now_ns(),
            iface: at.name.clone(),
            outbound,
            head: head[..head.len().min(session.snap_bytes)].to_vec(),
            length_bytes,
            steps: if session.trace { self.steps.clone() } else { Vec::new() },
            verdict: verdict(),
        };
        if session.sink.try_send(record).is_err() {
            session.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Filter {
    /// Whether the session wants to know of packets at this interface.
    fn is_at(&self, iface: &Iface) -> bool {
        self.iface.is_none_or(|id| id == iface.id)
    }

    /// Everything but the interface.
    fn matches(&self, iface: &Iface, meta: &Meta, verdict: Verdict, facts: &Facts) -> bool {
        let drops = matches!(verdict, Verdict::Drop(_) | Verdict::DropAnswer(_));
        self.vrf.is_none_or(|vrf| vrf == meta.vrf || vrf == iface.vrf)
            && self.host.is_none_or(|ip| facts.has(ip))
            && self.protocol.is_none_or(|p| facts.layers.iter().any(|l| l.protocol == p))
            && self.port.is_none_or(|p| facts.layers.iter().any(|l| l.ports.contains(&p)))
            && (!self.drops_only || drops)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::testing::{self, frames};
    use wire::Mac;

    /// A session with room for `room` records, of which `left` are wanted.
    fn session(
        filter: Filter,
        trace: bool,
        room: usize,
        left: i64,
    ) -> (Arc<Session>, mpsc::Receiver<Record>) {
        let (sink, records) = mpsc::channel(room);
        let session = Session {
            id: 1,
            filter,
            trace,
            snap_bytes: 64,
            left: AtomicI64::new(left),
            lost: AtomicU64::new(0),
            sink,
        };
        (Arc::new(session), records)
    }

    #[test]
    fn facts_are_found_in_tunnels_and_in_rubbish() {
        let inner = [192, 0, 2, 1];
        let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0];
        packet.extend(inner);
        packet.extend([192, 0, 2, 2, 0x12, 0x34, 0, 53, 0, 8, 0, 0]);
        let facts = Facts::of(&packet);
        assert!(facts.has(IpAddr::from(inner)));
        assert_eq!(facts.layers[0].ports, [0x1234, 53]);
        for cut in 0..packet.len() {
            Facts::of(&packet[..cut]);
        }
        assert!(Facts::of(&[0xff; 200]).layers.is_empty());
    }

    #[test]
    fn a_full_channel_costs_records_not_the_worker() {
        let tables = testing::tables();
        let iface = Arc::clone(tables.iface(IfaceId(testing::HOST)).expect("in the tables"));
        let (one, mut records) = session(Filter::default(), false, 1, 3);
        let mut observer = Observer::default();
        observer.observe(Observe::Start(Arc::clone(&one)));
        let mut meta = Meta::default();
        let mut slot = crate::path::Slot::default();
        let mut packet = Packet::new(&mut slot, &mut meta);
        assert!(packet.replace(&frames::ethernet(Mac([2; 6]), Mac([4; 6]), 0x0806, &[0; 28])));
        for _ in 0..5 {
            observer.entered(&packet);
            observer.decided(&tables, &iface, &packet, Verdict::Consume);
        }
        // Three were wanted; one had room.
        assert_eq!(one.lost.load(Ordering::Relaxed), 2);
        let record = records.try_recv().expect("one");
        assert_eq!((record.outbound, record.verdict.as_str()), (false, "consumed by the node"));
        observer.observe(Observe::Stop(1));
        assert!(!observer.active());
    }
}
