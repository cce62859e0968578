//! Traces and captures: sessions at the workers, streams to the callers.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64};

use tokio::sync::mpsc;

use super::Control;
use super::read;
use crate::observe::{Filter, Observe, Record, Session};

/// Records that a caller may lag behind.
const BACKLOG: usize = 4096;
/// Sessions at a time: each costs the workers a comparison per packet.
const SESSIONS: usize = 16;

/// What a caller wants.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Which packets.
    pub filter: api::PacketFilter,
    /// How many; 0 = without end.
    pub count: u32,
    /// Stages instead of frames.
    pub trace: bool,
    /// Bytes of each frame that are kept.
    pub snap_bytes: usize,
}

/// A session that has begun. Ask for `Unobserve` when it is no longer read.
#[derive(Debug)]
pub struct Started {
    /// Its number.
    pub id: u64,
    /// How many are wanted; 0 = without end.
    pub count: u32,
    /// Where its records come.
    pub records: mpsc::Receiver<Record>,
}

/// Sessions under way.
#[derive(Debug, Default)]
pub struct Observing {
    last: u64,
    sessions: HashMap<u64, Arc<Session>>,
}

impl Control {
    pub(super) fn observe(&mut self, wanted: &Wanted) -> Result<Started, tonic::Status> {
        if self.observing.sessions.len() >= SESSIONS {
            let message = format!("{SESSIONS} traces and captures are under way: end one first");
            return Err(tonic::Status::resource_exhausted(message));
        }
        let filter = self.filter(&wanted.filter)?;
        let (sink, records) = mpsc::channel(BACKLOG);
        self.observing.last += 1;
        let id = self.observing.last;
        let left = if wanted.count == 0 { i64::MAX } else { i64::from(wanted.count) };
        let session = Arc::new(Session {
            id,
            filter,
            trace: wanted.trace,
            snap_bytes: wanted.snap_bytes,
            left: AtomicI64::new(left),
            lost: AtomicU64::new(0),
            sink,
        });
        self.workers
            .observe(&Observe::Start(Arc::clone(&session)))
            .map_err(|error| tonic::Status::unavailable(error.to_string()))?;
        self.observing.sessions.insert(id, session);
        Ok(Started { id, count: wanted.count, records })
    }

    pub(super) fn unobserve(&mut self, id: u64) {
        let Some(session) = self.observing.sessions.remove(&id) else { return };
        let lost = session.lost.load(std::sync::atomic::Ordering::Relaxed);
        if lost > 0 {
            let message = format!("{lost} packets matched faster than they could be sent");
            self.events.tell("capture-lost", "", message);
        }
        if let Err(error) = self.workers.observe(&Observe::Stop(id)) {
            self.events.tell("worker-stuck", "", error.to_string());
        }
    }

    fn filter(&self, said: &api::PacketFilter) -> Result<Filter, tonic::Status> {
        let refuse = |field: &str, sentence: String| {
            tonic::Status::invalid_argument(format!("filter.{field}: {sentence}"))
        };
        let vrf =
            match said.network.as_str() {
                "" => None,
                name => {
                    Some(self.books.vrfs.get(name).map(|book| book.id).ok_or_else(|| {
                        refuse("network", format!("there is no network \"{name}\""))
                    })?)
                }
            };
        let iface = match said.interface_id.as_str() {
            "" => None,
            id => Some(self.iface_named(id).ok_or_else(|| {
                refuse("interface_id", format!("there is no interface \"{id}\""))
            })?),
        };
        let host = said.host.as_ref().map(|ip| read::unicast("filter.host", ip)).transpose();
        let host = host.map_err(|refused| tonic::Status::invalid_argument(refused.to_string()))?;
        let protocol = u8::try_from(said.ip_protocol).map_err(|_| {
            refuse("ip_protocol", format!("{}: 0..=255 is allowed", said.ip_protocol))
        })?;
        let port = u16::try_from(said.port)
            .map_err(|_| refuse("port", format!("{}: 0..=65535 is allowed", said.port)))?;
        Ok(Filter {
            vrf,
            iface,
            host,
            protocol: (protocol != 0).then_some(protocol),
            port: (port != 0).then_some(port),
            drops_only: said.drops_only,
        })
    }

    fn iface_named(&self, id: &str) -> Option<crate::table::IfaceId> {
        let fixed = || {
            let tables = self.workers.tables();
            let named = |f: &&super::Fixed| {
                tables.iface(f.id).is_some_and(|iface| *iface.name == *id) || f.name == id
            };
            self.fixed.iter().find(named).map(|f| f.id)
        };
        self.ports.get(id).map(|port| port.id).or_else(fixed)
    }
}
