//! What happens to interfaces: applied, attached, taken down, reconnected, gone.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::descriptors::Offered;
use super::desired::Change;
use super::memif_peer::{News, Order};
use super::ports::Heard;
use super::{ApplyError, Control, Ghost, Plan, Port, desired, memif_server};
use crate::path::PathEvent;
use crate::port::Health;
use crate::port::memif::costs_time;
use crate::sys::descriptor::prepare_tap;
use crate::table::IfaceId;
use crate::worker::Report;

/// How long a call waits for queues to come back. They come back later in any case.
const DETACH_DEADLINE: Duration = Duration::from_secs(2);

impl Control {
    /// Puts a state in force: when this returns, every worker forwards by it, or nothing changed.
    pub(super) async fn apply(
        &mut self,
        request: &api::ApplyRequest,
    ) -> Result<api::ApplyReply, ApplyError> {
        let change = self.desired.change(request)?;
        let named = named(request);
        if change.is_empty() {
            self.desired.revision = change.revision;
            self.settle_offers(request);
            return Ok(self.apply_reply(&named));
        }
        let before = self.workers.tables();
        let mut plan = self.books.plan(&self.desired, &change, &before)?;
        let mut attached = Vec::new();
        let result = match self.attach_taps(&mut plan, &mut attached) {
            Ok(()) => self.workers.publish(plan.tables.clone()).await.map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            self.workers.roll_back(&before);
            for (_, id) in attached {
                // The worker that hangs gets the order when it comes back.
                let _ = self.workers.detach(id);
            }
            self.books.abandon(plan);
            self.events.tell("worker-stuck", "", error.to_string());
            return Err(error.into());
        }
        self.committed(change, plan, attached);
        self.settle_offers(request);
        self.wait_for_queues().await;
        Ok(self.apply_reply(&named))
    }

    /// Gives the queues of new taps out whose descriptors are here already.
    fn attach_taps(
        &mut self,
        plan: &mut Plan,
        attached: &mut Vec<(Arc<str>, IfaceId)>,
    ) -> Result<(), super::PortError> {
        let new: Vec<_> = plan
            .ifaces
            .iter()
            .filter(|(name, book)| book.is_some() && !self.ports.contains_key(*name))
            .map(|(name, _)| Arc::clone(name))
            .collect();
        for name in new {
            let Some(Some(book)) = plan.ifaces.get(&name) else { continue };
            let (id, wanted) = (book.id, Arc::clone(&book.desired));
            let desired::Port::Tap { queues } = wanted.port else { continue };
            let Some(Offered::Tap(fds)) = self.descriptors.get(&name) else { continue };
            if fds.len() != usize::from(queues) {
                continue;
            }
            let owners = self.workers.attach_tap(id, fds)?;
            attached.push((Arc::clone(&name), id));
            self.books.plan_owners(plan, &name, owners);
        }
        Ok(())
    }

    /// The change is in force: books, ports and servers follow.
    fn committed(&mut self, change: Change, plan: Plan, attached: Vec<(Arc<str>, IfaceId)>) {
        for (name, new) in &plan.ifaces {
            match new {
                None => self.let_go(name),
                Some(book) => {
                    self.names.insert(book.id, Arc::clone(name));
                    let wanted = Arc::clone(&book.desired);
                    let port = self
                        .ports
                        .entry(Arc::clone(name))
                        .or_insert_with(|| Port::waiting(book.id, &wanted.port));
                    if let (Some(server), desired::Port::Memif(memif)) = (&port.memif, &wanted.port)
                    {
                        server.order(Order::Caps(memif.clone()));
                    }
                }
            }
        }
        for (name, new) in &change.networks {
            if new.is_none() {
                self.ledger.forget(name);
            }
        }
        let names: Vec<_> = plan.ifaces.keys().cloned().collect();
        self.books.commit(plan);
        self.desired.commit(change);
        for (name, id) in attached {
            self.tap_is_up(&name, id);
        }
        for name in names {
            self.start_server(&name);
        }
        self.want_tunnel_ends();
    }

    /// Descriptors that were offered for interfaces which the request does not want.
    fn settle_offers(&mut self, request: &api::ApplyRequest) {
        let wanted = &self.desired.interfaces;
        for id in request.remove_interfaces.iter().filter(|id| !wanted.contains_key(id.as_str())) {
            self.descriptors.forget(id);
        }
        if !request.partial {
            self.descriptors.wanted_are(|id| wanted.contains_key(id), std::time::Instant::now());
        }
    }

    /// Closes offers whose interface never came.
    pub(super) fn expire_offers(&mut self) {
        let wanted = &self.desired.interfaces;
        let now = std::time::Instant::now();
        for id in self.descriptors.expire(|id| wanted.contains_key(id), now) {
            let message = "its descriptors were offered, and the interface never applied: closed";
            self.events.tell("offer-expired", &id, message.into());
        }
    }

    /// An interface is out of the tables: its queues come back, its peer is disconnected.
    fn let_go(&mut self, name: &Arc<str>) {
        let Some(port) = self.ports.remove(name) else { return };
        self.descriptors.forget(name);
        self.names.remove(&port.id);
        let Some(book) = self.books.ifaces.get(name) else { return };
        let network = Arc::clone(&book.desired.network);
        let counters = Arc::clone(&book.counters);
        self.ghosts.insert(port.id, Ghost { network, counters });
        // Even a port that is not live may have a queue on its way back; asking twice is harmless.
        if !self.workers.is_leaving(port.id)
            && let Err(error) = self.workers.detach(port.id)
        {
            self.events.tell("worker-stuck", name, error.to_string());
        }
    }

    /// Waits until all queues are back, so that a caller may take the devices away.
    async fn wait_for_queues(&mut self) {
        let deadline = Instant::now() + DETACH_DEADLINE;
        while self.workers.any_leaving() {
            let Ok(Some(report)) = tokio::time::timeout_at(deadline, self.reports.recv()).await
            else {
                let message = "queues of a removed interface have not come back within 2 s";
                self.events.tell("worker-stuck", "", message.into());
                return;
            };
            match report {
                Report::Unwell(..) | Report::Path(..) | Report::EngineDisabled(..) => {
                    self.backlog.push_back(report);
                }
                Report::Retired(..) | Report::Removed { .. } => self.report(report).await,
            }
        }
    }

    /// Takes a live port out of the tables and asks for its queues; the interface stays.
    async fn take_down(&mut self, name: &Arc<str>, reason: String) {
        let Some(port) = self.ports.get_mut(name) else { return };
        port.reason = reason;
        if !std::mem::take(&mut port.live) {
            return;
        }
        let id = port.id;
        port.workers.clear();
        port.peer.clear();
        (port.rx_queues, port.tx_queues, port.ring_size) = (0, 0, 0);
        let message = port.reason.clone();
        self.events.tell("port-down", name, message);
        let mut tables = (*self.workers.tables()).clone();
        self.books.with_owners(&mut tables, name, Arc::from([]));
        // The queues are taken back by orders that each worker carries out itself; the tables only
        // spare it packets that have nowhere to go.
        if let Err(error) = self.workers.publish(tables).await {
            self.events.tell("worker-stuck", name, error.to_string());
        }
        if let Err(error) = self.workers.detach(id) {
            self.events.tell("worker-stuck", name, error.to_string());
        }
    }

    /// A worker says something.
    pub(super) async fn report(&mut self, report: Report) {
        match self.workers.heard(report) {
            Heard::Nothing => {}
            Heard::Detached(id) => self.detached(id).await,
            Heard::Unwell(id, health) => self.unwell(id, health).await,
            Heard::Path(event) => self.path_event(&event),
            Heard::EngineDisabled(worker, disabled) => {
                let (device, reason) = (disabled.device, disabled.reason);
                let message = format!(
                    "worker {worker} copies by CPU: DMA device {device} is given up: {reason}"
                );
                self.events.tell("copy-engine-disabled", "", message);
            }
        }
    }

    /// The last queue of an interface is back and dropped.
    async fn detached(&mut self, id: IfaceId) {
        if let Some(ghost) = self.ghosts.remove(&id) {
            let known = self.desired.networks.contains_key(&ghost.network);
            self.ledger.close(known.then_some(&ghost.network), &ghost.counters);
            self.books.iface_is_gone(id);
            return;
        }
        let Some(name) = self.names.get(&id).cloned() else { return self.wire_is_free(id) };
        if let Some(server) = self.ports.get(&name).and_then(|port| port.memif.as_ref()) {
            server.order(Order::Ready);
        } else {
            self.attach_tap(&name).await;
        }
    }

    async fn unwell(&mut self, id: IfaceId, health: Health) {
        let Some(name) = self.names.get(&id).cloned() else {
            return self.fixed_unwell(id, health).await;
        };
        let Some(port) = self.ports.get_mut(&name).filter(|port| port.live) else { return };
        let reason = match health {
            Health::Good => return,
            Health::Violation(how) => {
                port.violations += 1;
                let message = format!(
                    "the peer \"{}\" broke the protocol and was disconnected: {how}",
                    port.peer
                );
                self.events.tell("peer-violation", &name, message.clone());
                port.last_violation.clone_from(&message);
                message
            }
            Health::Gone => "the device is gone; offer its descriptors again".into(),
        };
        if let Some(server) = &port.memif {
            let costly = matches!(health, Health::Violation(word) if costs_time(word));
            server.order(Order::Close { costly });
        } else {
            self.descriptors.forget(&name);
        }
        self.take_down(&name, reason).await;
    }

    fn path_event(&self, event: &PathEvent) {
        let (kind, id, message) = match *event {
            PathEvent::SpoofedMac { iface, claimed } => {
                let message = format!("sends with the MAC {claimed}, which is not its own");
                ("spoofed-mac", iface, message)
            }
            PathEvent::AddressConflict { iface, address } => {
                let address = std::net::Ipv6Addr::from(address).to_canonical();
                let message = format!("claims {address}, which belongs to another interface");
                ("address-conflict", iface, message)
            }
        };
        let name = self.names.get(&id).map_or("", |name| &**name);
        self.events.tell(kind, name, message);
    }

    /// Descriptors came. An error is the answer to whoever offers.
    pub(super) async fn offered(
        &mut self,
        offer: &api::DescriptorOffer,
        fds: Vec<std::os::fd::OwnedFd>,
    ) -> Result<(), String> {
        if offer.kind == api::descriptor_offer::Kind::TapQueues as i32 {
            for (i, fd) in fds.iter().enumerate() {
                prepare_tap(fd).map_err(|error| {
                    format!("descriptor {i} is no queue of a tap with IFF_VNET_HDR: {error}")
                })?;
            }
        }
        self.descriptors.keep(offer, fds)?;
        let Some((name, port)) = self.ports.get_key_value(offer.interface_id.as_str()) else {
            return Ok(());
        };
        let (name, live, id) = (Arc::clone(name), port.live, port.id);
        if let Some(port) = self.ports.get_mut(&name)
            && port.memif.take().is_some()
        {
            self.take_down(&name, "a new listener was offered".into()).await;
            self.start_server(&name);
            return Ok(());
        }
        if live {
            self.take_down(&name, "new descriptors were offered".into()).await;
        } else if !self.workers.is_leaving(id) {
            self.attach_tap(&name).await;
            self.start_server(&name);
        }
        Ok(())
    }

    /// Gives a waiting tap's queues out, if its descriptors are here.
    async fn attach_tap(&mut self, name: &Arc<str>) {
        let Some(book) = self.books.ifaces.get(name) else { return };
        let desired::Port::Tap { queues } = book.desired.port else { return };
        let id = book.id;
        let Some(port) = self.ports.get_mut(name) else { return };
        let fds = match self.descriptors.get(name) {
            Some(Offered::Tap(fds)) if fds.len() == usize::from(queues) => fds,
            Some(Offered::Tap(fds)) => {
                port.reason = format!("{} descriptors were offered for {queues} queues", fds.len());
                return;
            }
            Some(Offered::Listener(_)) => {
                port.reason = "a listener was offered for a tap".into();
                return;
            }
            None => return,
        };
        let result = match self.workers.attach_tap(id, fds) {
            Ok(owners) => {
                let mut tables = (*self.workers.tables()).clone();
                self.books.with_owners(&mut tables, name, owners);
                self.workers.publish(tables).await.map(drop)
            }
            Err(error) => Err(error),
        };
        match result {
            Ok(()) => self.tap_is_up(name, id),
            Err(error) => self.events.tell("worker-stuck", name, error.to_string()),
        }
    }

    fn tap_is_up(&mut self, name: &Arc<str>, id: IfaceId) {
        let queues = match self.desired.interfaces.get(name).map(|i| &i.port) {
            Some(desired::Port::Tap { queues }) => usize::from(*queues),
            _ => 0,
        };
        let mut workers: Vec<_> =
            (0..queues).map(|queue| self.workers.worker_of(id, queue) as u32).collect();
        workers.sort_unstable();
        workers.dedup();
        let Some(port) = self.ports.get_mut(name) else { return };
        port.live = true;
        port.reason.clear();
        port.connects += 1;
        (port.rx_queues, port.tx_queues) = (queues as u32, queues as u32);
        port.workers = workers;
        self.events.tell("port-up", name, format!("a tap of {queues} queues"));
    }

    /// Starts listening for a memif's clients, if its listener is here.
    fn start_server(&mut self, name: &Arc<str>) {
        let Some(book) = self.books.ifaces.get(name) else { return };
        let desired::Port::Memif(wanted) = &book.desired.port else { return };
        let Some(port) = self.ports.get_mut(name).filter(|port| port.memif.is_none()) else {
            return;
        };
        match self.descriptors.get(name) {
            Some(Offered::Listener(listener)) => {
                let ask = self.ask.clone();
                let started = listener.as_fd().try_clone_to_owned();
                let started = started.and_then(memif::Listener::from_fd);
                let started =
                    started.and_then(|fd| memif_server::start(Arc::clone(name), fd, wanted, ask));
                match started {
                    Ok(server) => {
                        if self.workers.is_leaving(port.id) {
                            server.order(Order::Hold);
                        }
                        port.memif = Some(server);
                        port.reason = "no client has connected".into();
                    }
                    Err(error) => port.reason = format!("the offered listener: {error}"),
                }
            }
            Some(Offered::Tap(_)) => port.reason = "tap queues were offered for a memif".into(),
            None => {}
        }
    }

    /// A memif client came, went, or was turned away.
    pub(super) async fn memif_news(&mut self, name: &Arc<str>, serial: u64, news: News) {
        if let Some(at) = self.wire_of(serial) {
            return self.wire_news(at, news).await;
        }
        let server = self.ports.get(name).and_then(|port| port.memif.as_ref());
        if server.is_none_or(|server| server.serial != serial) {
            // The interface was removed, or listens elsewhere now: the connection ends with its task.
            return;
        }
        match news {
            News::Up { info, rx, tx } => self.memif_up(name, &info, rx, tx).await,
            News::Down { reason, violation } => {
                if let Some(port) = self.ports.get_mut(name) {
                    if violation {
                        port.violations += 1;
                        port.last_violation = reason.to_string();
                    }
                    let word = if violation { "peer-violation" } else { "peer-left" };
                    self.events.tell(word, name, reason.to_string());
                }
                self.take_down(name, format!("the client left: {reason}")).await;
            }
            News::TurnedAway { reason } => {
                let message = format!("a client was turned away: {reason}");
                if let Some(port) = self.ports.get_mut(name) {
                    port.last_refusal = reason.to_string();
                    if !port.live {
                        port.reason.clone_from(&message);
                    }
                }
                self.events.tell("peer-refused", name, message);
            }
        }
    }

    async fn memif_up(
        &mut self,
        name: &Arc<str>,
        info: &memif::Info,
        rx: Vec<memif::RxQueue>,
        tx: Vec<memif::TxQueue>,
    ) {
        let Some(port) = self.ports.get_mut(name) else { return };
        let id = port.id;
        if port.live || self.workers.is_leaving(id) {
            // An old connection's queues are still out: this client tries again.
            if let Some(server) = &port.memif {
                server.order(Order::Close { costly: false });
            }
            return;
        }
        port.live = true;
        port.connects += 1;
        port.reason.clear();
        port.peer.clone_from(&info.peer_name);
        (port.rx_queues, port.tx_queues) = (tx.len() as u32, rx.len() as u32);
        let from_client = rx.first().map(memif::RxQueue::slots);
        let slots = from_client.or_else(|| tx.first().map(memif::TxQueue::slots));
        port.ring_size = slots.unwrap_or(0);
        let queues = rx.len().max(tx.len());
        let mut workers: Vec<_> =
            (0..queues).map(|queue| self.workers.worker_of(id, queue) as u32).collect();
        workers.sort_unstable();
        workers.dedup();
        port.workers = workers;
        let message = format!(
            "memif client \"{}\": {} rx and {} tx queues of {} slots",
            port.peer, port.rx_queues, port.tx_queues, port.ring_size
        );
        let result = match self.workers.attach_memif(id, rx, tx) {
            Ok(owners) => {
                let mut tables = (*self.workers.tables()).clone();
                self.books.with_owners(&mut tables, name, owners);
                self.workers.publish(tables).await.map(drop)
            }
            Err(error) => Err(error),
        };
        match result {
            Ok(()) => self.events.tell("port-up", name, message),
            Err(error) => self.events.tell("worker-stuck", name, error.to_string()),
        }
    }
}

impl Port {
    fn waiting(id: IfaceId, wanted: &desired::Port) -> Self {
        let (kind, reason) = match wanted {
            desired::Port::Tap { .. } => ("tap", "its descriptors have not been offered"),
            desired::Port::Memif(_) => ("memif", "its listener has not been offered"),
        };
        Self {
            id,
            kind,
            live: false,
            reason: reason.into(),
            peer: String::new(),
            rx_queues: 0,
            tx_queues: 0,
            ring_size: 0,
            connects: 0,
            violations: 0,
            last_violation: String::new(),
            last_refusal: String::new(),
            workers: Vec::new(),
            memif: None,
        }
    }
}

fn named(request: &api::ApplyRequest) -> Vec<String> {
    let state = request.state.as_ref();
    state.map_or_else(Vec::new, |s| s.interfaces.iter().map(|i| i.id.clone()).collect())
}
