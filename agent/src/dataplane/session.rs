//! One connection after the other to the data plane.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::dataplane_client::DataplaneClient;
use hyper_util::rt::TokioIo;
use multinet::realm::state::State;
use multinet::realm::{self, Ops};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::diff;
use super::offer::OfferSocket;
use super::{DataplaneError, Held, LOOK_FOR_EVERY, Node, PutInForce};
use crate::fault;

/// Features without which the states that the agent writes would not be honoured.
const NEEDS: [&str; 4] = ["vxlan", "memif", "tap", "anti-spoofing"];
/// A call that takes longer means that a worker hangs.
const CALL_WITHIN: Duration = Duration::from_secs(5);
/// How often the uplinks' addresses and state are asked for: often while they are not complete.
const GREET_AGAIN: Duration = Duration::from_secs(10);
const GREET_SOON: Duration = Duration::from_secs(1);

type Client = DataplaneClient<Channel>;

/// Keeps the connection and the state behind it.
pub(super) struct Keeper {
    socket: PathBuf,
    node: Arc<dyn Node>,
    held: Arc<Held>,
    commands: mpsc::UnboundedReceiver<PutInForce>,
    hello: watch::Sender<Option<api::HelloReply>>,
    revision: u64,
    /// What is in force as far as it was not refused.
    applied: State,
    /// Networks and interfaces that the data plane refuses, and its sentences.
    refused: BTreeMap<String, String>,
    /// Interfaces whose descriptors cannot be opened, and why: their pods are gone.
    unopened: BTreeMap<String, String>,
}

impl Keeper {
    pub(super) fn new(
        socket: PathBuf,
        node: Arc<dyn Node>,
        held: Arc<Held>,
        commands: mpsc::UnboundedReceiver<PutInForce>,
        hello: watch::Sender<Option<api::HelloReply>>,
    ) -> Self {
        Self {
            socket,
            node,
            held,
            commands,
            hello,
            revision: 0,
            applied: State::default(),
            refused: BTreeMap::new(),
            unopened: BTreeMap::new(),
        }
    }

    /// Runs until the last handle is gone.
    pub(super) async fn run(mut self) {
        let mut last_word = String::new();
        while !self.commands.is_closed() {
            let ended = self.session().await;
            self.hello.send_replace(None);
            if let Err(error) = ended {
                let word = error.to_string();
                if word != last_word {
                    tracing::warn!("{word}");
                }
                last_word = word;
            } else {
                last_word.clear();
            }
            tokio::time::sleep(LOOK_FOR_EVERY).await;
        }
    }

    /// From the greeting to the end of the connection. An error means that it did not come to be.
    async fn session(&mut self) -> Result<(), DataplaneError> {
        let mut client = connect(&self.socket).await?;
        let hello = self.greet(&mut client).await?;
        self.revision = self.revision.max(hello.state_revision);
        let boot_id = hello.boot_id.clone();
        // Events first: nothing that happens from here on is missed, and its end is the first sign
        // of the data plane's.
        let events = client.watch(api::WatchRequest {}).await.map_err(|s| self.away(&s))?;
        let mut events = events.into_inner();
        self.offer_missing(&boot_id).await?;
        self.apply_everything(&mut client).await?;
        self.reconcile(&mut client).await?; // what was let go of while nobody listened
        tracing::info!(
            version = hello.version,
            boot_id,
            interfaces = self.applied.interfaces.len(),
            "the data plane has its state"
        );
        let mut greet = next_greeting(&hello);
        self.hello.send_replace(Some(hello));
        loop {
            tokio::select! {
                event = events.message() => match event {
                    Ok(Some(event)) => log_event(&event),
                    Ok(None) | Err(_) => {
                        tracing::warn!("the data plane left; its interfaces wait for its return");
                        return Ok(());
                    }
                },
                command = self.commands.recv() => {
                    let Some(command) = command else { return Ok(()) };
                    self.serve(&mut client, &boot_id, command).await?;
                }
                () = tokio::time::sleep_until(greet) => {
                    let hello = self.greet(&mut client).await?;
                    greet = next_greeting(&hello);
                    self.hello.send_if_modified(|known| {
                        let changed = known.as_ref().map(|h| &h.uplinks) != Some(&hello.uplinks);
                        *known = Some(hello);
                        changed
                    });
                }
            }
        }
    }

    async fn greet(&self, client: &mut Client) -> Result<api::HelloReply, DataplaneError> {
        let request = api::HelloRequest {
            client: format!("bowline-agent {}", env!("CARGO_PKG_VERSION")),
            needs: NEEDS.map(str::to_owned).to_vec(),
        };
        let hello = client.hello(request).await.map_err(|s| self.away(&s))?;
        Ok(hello.into_inner())
    }

    fn away(&self, status: &Status) -> DataplaneError {
        away(&self.socket, status)
    }

    /// Answers one request, and all others that wait behind it, with one change.
    async fn serve(
        &mut self,
        client: &mut Client,
        boot_id: &str,
        first: PutInForce,
    ) -> Result<(), DataplaneError> {
        let mut waiting = vec![first];
        while let Ok(next) = self.commands.try_recv() {
            waiting.push(next);
        }
        let done = async {
            self.offer_missing(boot_id).await?;
            self.reconcile(client).await
        }
        .await;
        for sync in waiting {
            let refusal = sync.interface_id.as_ref().and_then(|id| {
                let reason = self.refused.get(id).or_else(|| self.unopened.get(id))?.clone();
                Some(DataplaneError::Refused { what: id.clone(), reason })
            });
            let answer = match (&done, refusal) {
                (Err(error), _) => Err(error.clone()),
                (Ok(()), Some(refusal)) => Err(refusal),
                (Ok(()), None) => Ok(()),
            };
            // Who gave up waiting has no use for the answer.
            let _ = sync.reply.send(answer);
        }
        done
    }

    /// Offers what this start of the data plane has not been offered yet.
    async fn offer_missing(&mut self, boot_id: &str) -> Result<(), DataplaneError> {
        let (node, held) = (self.node.clone(), self.held.clone());
        let (socket, boot_id) = (self.socket.clone(), boot_id.to_owned());
        let unopened =
            tokio::task::spawn_blocking(move || offer_all(node.as_ref(), &held, &socket, &boot_id))
                .await
                .map_err(|e| DataplaneError::NotInForce(e.to_string()))??;
        for (id, reason) in &unopened {
            if self.unopened.get(id) != Some(reason) {
                tracing::error!(interface = id, "{reason}");
            }
        }
        self.unopened = unopened;
        Ok(())
    }

    /// What shall be in force, without the interfaces whose descriptors nobody can open.
    fn desired(&self) -> State {
        let mut desired = self.node.desired();
        desired.interfaces.retain(|i| !self.unopened.contains_key(&i.id));
        desired
    }

    /// After a greeting: the whole state, whatever the data plane has.
    async fn apply_everything(&mut self, client: &mut Client) -> Result<(), DataplaneError> {
        let desired = self.desired();
        let request = diff::full(&desired, self.next_revision());
        match client.apply(request).await {
            Ok(_) => {
                self.refused.clear();
                self.applied = desired;
                Ok(())
            }
            Err(status) if is_refusal(&status) => {
                let actual = client.get_state(api::GetStateRequest {}).await;
                let actual = actual.map_err(|s| self.away(&s))?.into_inner();
                let actual = actual.desired.unwrap_or_default();
                let mut ops = realm::diff(&desired, &State::default());
                let named = |name: &String| desired.networks.iter().any(|n| n.name == *name);
                let names = actual.networks.into_iter().map(|n| n.name);
                ops.remove_networks = names.filter(|name| !named(name)).collect();
                let known = |id: &String| desired.interfaces.iter().any(|i| i.id == *id);
                let ids = actual.interfaces.into_iter().map(|i| i.id);
                ops.remove_interfaces = ids.filter(|id| !known(id)).collect();
                self.apply_piecewise(client, ops, desired).await
            }
            Err(status) => Err(self.away(&status)),
        }
    }

    /// What changed since the last time.
    async fn reconcile(&mut self, client: &mut Client) -> Result<(), DataplaneError> {
        let desired = self.desired();
        let mut ops = realm::diff(&desired, &self.applied);
        self.give_up_descriptors(&desired, &mut ops);
        if ops.is_empty() {
            self.refused.clear();
            return Ok(());
        }
        if ops.needs_full() {
            return self.apply_everything(client).await;
        }
        let request = diff::partial(&ops, self.next_revision());
        match client.apply(request).await {
            Ok(_) => {
                self.refused.clear();
                self.note_given_up(&ops);
                self.applied = desired;
                Ok(())
            }
            Err(status) if is_refusal(&status) => self.apply_piecewise(client, ops, desired).await,
            Err(status) => Err(self.away(&status)),
        }
    }

    /// An interface that was offered and never came into force is no part of any state: removing it
    /// is what makes the data plane close its descriptors.
    fn give_up_descriptors(&self, desired: &State, ops: &mut Ops) {
        for id in self.held.released().iter() {
            let wanted = desired.interfaces.iter().any(|i| i.id == *id);
            if !wanted && !ops.remove_interfaces.contains(id) {
                ops.remove_interfaces.push(id.clone());
            }
        }
    }

    /// The data plane was told so.
    fn note_given_up(&self, ops: &Ops) {
        self.held.released().retain(|id| !ops.remove_interfaces.contains(id));
    }

    /// Each part by itself, so that a refused one stops no other.
    async fn apply_piecewise(
        &mut self,
        client: &mut Client,
        ops: Ops,
        desired: State,
    ) -> Result<(), DataplaneError> {
        let before = std::mem::take(&mut self.refused);
        for (what, piece) in diff::pieces(ops) {
            let request = diff::partial(&piece, self.next_revision());
            match client.apply(request).await {
                Ok(_) => self.note_given_up(&piece),
                Err(status) if is_refusal(&status) => {
                    let reason = status.message().to_owned();
                    if before.get(&what) != Some(&reason) {
                        tracing::error!("the data plane refuses {what}: {reason}");
                    }
                    self.refused.insert(what, reason);
                }
                Err(status) => return Err(self.away(&status)),
            }
        }
        self.applied = desired;
        self.applied.networks.retain(|n| !self.refused.contains_key(&n.name));
        self.applied.interfaces.retain(|i| !self.refused.contains_key(&i.id));
        Ok(())
    }

    fn next_revision(&mut self) -> u64 {
        self.revision += 1;
        self.revision
    }
}

/// An uplink without a tunnel end may get its address any moment.
fn next_greeting(hello: &api::HelloReply) -> Instant {
    let complete = hello.uplinks.iter().all(|u| u.link_up && !u.vteps.is_empty());
    Instant::now() + if complete { GREET_AGAIN } else { GREET_SOON }
}

async fn connect(socket: &Path) -> Result<Client, DataplaneError> {
    let path = socket.to_owned();
    // The URI is required and unused: the connector knows where to go.
    let endpoint = Endpoint::from_static("http://dataplane").timeout(CALL_WITHIN);
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    match endpoint.connect_with_connector(connector).await {
        Ok(channel) => Ok(DataplaneClient::new(channel)),
        Err(error) => {
            Err(DataplaneError::Away { socket: socket.to_owned(), reason: root_cause(&error) })
        }
    }
}

fn away(socket: &Path, status: &Status) -> DataplaneError {
    DataplaneError::Away {
        socket: socket.to_owned(),
        reason: match std::error::Error::source(status) {
            Some(cause) => root_cause(cause),
            None => format!("{:?}: {}", status.code(), status.message()),
        },
    }
}

pub(super) async fn actual_state(socket: &Path) -> Result<api::ActualState, DataplaneError> {
    let mut client = connect(socket).await?;
    let reply = client.get_state(api::GetStateRequest {}).await.map_err(|s| away(socket, &s))?;
    Ok(reply.into_inner())
}

/// Offers every interface's descriptors that this start has not seen. What cannot be opened is
/// returned with the reason, and the others go on.
fn offer_all(
    node: &dyn Node,
    held: &Held,
    socket: &Path,
    boot_id: &str,
) -> Result<BTreeMap<String, String>, DataplaneError> {
    let mut connection = None;
    let mut failed = BTreeMap::new();
    for interface in node.desired().interfaces {
        let id = interface.id;
        if node.offered_to(&id).as_deref() == Some(boot_id) {
            continue;
        }
        let known = held.lock().get(&id).cloned();
        let descriptors = match known.map_or_else(|| node.reopen(&id), Ok) {
            Ok(descriptors) => descriptors,
            Err(reason) => {
                failed.insert(id, reason);
                continue;
            }
        };
        if connection.is_none() {
            connection = Some(OfferSocket::connect(socket)?);
        }
        let Some(open) = &connection else { continue };
        match open.offer(&id, descriptors.kind, &descriptors.fds) {
            Ok(()) => {
                held.lock().insert(id.clone(), descriptors);
                node.note_offered(&id, boot_id);
                fault::reached("offered");
            }
            Err(DataplaneError::Refused { reason, .. }) => drop(failed.insert(id, reason)),
            Err(error) => return Err(error),
        }
    }
    Ok(failed)
}

/// Does the status blame the request, rather than the connection or the process?
fn is_refusal(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::AlreadyExists
            | Code::NotFound
            | Code::OutOfRange
            | Code::ResourceExhausted
            | Code::Unimplemented
    )
}

fn log_event(event: &api::Event) {
    match event.kind.as_str() {
        "port-up" | "port-down" => {
            tracing::info!(kind = event.kind, interface = event.interface_id, "{}", event.message);
        }
        _ => tracing::warn!(kind = event.kind, interface = event.interface_id, "{}", event.message),
    }
}

fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
