//! The socket, and who waits for whom.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use cni::error::{CniError, code};
use cni::result::CniResult;
use cni::rpc::{CallMode, Command, MAX_BYTES, Outcome, Request, Response, VERSION};
use multinet::types::network::DEFAULT_NETWORK;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, OwnedMutexGuard};

use super::addresses::{self, ToConfirm};
use super::ask::Asked;
use super::queue::WriteQueue;
use super::{add, arrive, check, coordinator, ifacer, lan, refresh, remove, tombstone};
use crate::catalog::Snapshot;
use crate::core::Core;
use crate::dataplane::Dataplane;
use crate::journal::{Attachment, AttachmentKey, Phase};
use crate::metrics::{CallLabels, Metrics};
use crate::node::{self, Firewall};
use crate::pod::PodError;

/// A plugin writes its request at once.
const REQUEST_WITHIN: Duration = Duration::from_secs(10);

/// Confirmations gather until no pod has come for so long: an ADD would wait for their write …
const CONFIRM_AFTER: Duration = Duration::from_millis(300);
/// … but no longer than this.
const CONFIRM_WITHIN: Duration = Duration::from_secs(3);

/// What the server is told by the command line.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where it listens.
    pub socket: PathBuf,
    /// The plugin's state directory, which holds the tombstones.
    pub tombstone_dir: PathBuf,
    /// The data plane's socket, for CHECK.
    pub dataplane_socket: PathBuf,
    /// How long an ADD waits for the data plane.
    pub apply_within: Duration,
    /// The runtime's configurations: with one of Multus, that writes the annotation that all CNIs share.
    pub cni_conf_dir: PathBuf,
}

type SandboxLocks = Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>;

/// The server's shared state.
#[derive(Debug)]
pub struct CniServer {
    pub(super) core: Arc<Core>,
    pub(super) dataplane: Dataplane,
    pub(super) metrics: Arc<Metrics>,
    pub(super) settings: Settings,
    /// Where the node is part of `default`: its packet filter.
    firewall: Option<Arc<Firewall>>,
    sandboxes: SandboxLocks,
    /// DELs of unknown attachments whose addresses could not be released.
    forgotten: Mutex<Vec<AttachmentKey>>,
    unconfirmed: Mutex<Vec<ToConfirm>>,
    confirm: Notify,
    pub(super) writes: WriteQueue,
}

impl CniServer {
    /// A server that does not listen yet.
    pub fn new(
        core: Arc<Core>,
        dataplane: Dataplane,
        metrics: Arc<Metrics>,
        settings: Settings,
        firewall: Option<Arc<Firewall>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            core,
            dataplane,
            metrics,
            settings,
            firewall,
            sandboxes: Mutex::default(),
            forgotten: Mutex::default(),
            unconfirmed: Mutex::default(),
            confirm: Notify::new(),
            writes: WriteQueue::default(),
        })
    }

    /// Finishes what was cut off, then listens and serves until the task is aborted.
    pub async fn run(self: Arc<Self>) -> io::Result<()> {
        remove::clean_up(&self).await;
        tombstone::replay(&self).await;
        let listener = listen(&self.settings.socket)?;
        tokio::spawn(remove::keep_trying(self.clone()));
        tokio::spawn(self.clone().keep_confirming());
        tokio::spawn(refresh::keep(self.clone()));
        tokio::spawn(arrive::keep(self.clone()));
        tokio::spawn(coordinator::follow::keep(self.clone()));
        tracing::info!(socket = %self.settings.socket.display(), "serving the CNI plugin");
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(self.clone().answer(stream))),
                Err(e) => {
                    tracing::warn!("accepting a CNI call failed: {e}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    async fn answer(self: Arc<Self>, mut stream: UnixStream) {
        let started = Instant::now();
        let response = match read_request(&mut stream).await {
            Ok(request) => {
                let command = request.command;
                let outcome = self.serve(&request).await;
                self.note(command, &outcome, &request, started.elapsed());
                if let (Command::Add, Err(error)) = (command, &outcome) {
                    self.tell_pod(&request, error);
                }
                Response::new(outcome.unwrap_or_else(Outcome::Error))
            }
            Err(error) => Response::from(error),
        };
        let text = serde_json::to_vec(&response).unwrap_or_default();
        // A plugin that was killed meanwhile gets no answer; the runtime calls DEL for it.
        let _ = stream.write_all(&text).await;
        let _ = stream.shutdown().await;
    }

    /// An ADD that failed is an event on its pod; the runtime does not wait for it.
    fn tell_pod(&self, request: &Request, error: &CniError) {
        let Some(api) = self.core.catalog.api().filter(|_| !request.pod.name.is_empty()) else {
            return;
        };
        let (api, pod, why) = (api.clone(), request.pod.clone(), error.msg.clone());
        tokio::spawn(async move {
            api.say_why_not(&pod.namespace, &pod.name, &pod.uid, &why).await;
        });
    }

    fn note(
        &self,
        command: Command,
        outcome: &Result<Outcome, CniError>,
        request: &Request,
        took: Duration,
    ) {
        let labels = CallLabels {
            command: command.as_str(),
            outcome: if outcome.is_ok() { "ok" } else { "error" },
        };
        self.metrics.calls.get_or_create(&labels).inc();
        self.metrics.call_seconds.get_or_create(&labels).observe(took.as_secs_f64());
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let pod = format!("{}/{}", request.pod.namespace, request.pod.name);
        let (sandbox, interface) = (&request.container_id, &request.ifname);
        match outcome {
            Ok(_) => tracing::info!(
                command = command.as_str(),
                pod,
                sandbox,
                interface,
                took_us,
                "served"
            ),
            Err(e) => tracing::warn!(
                command = command.as_str(),
                pod,
                sandbox,
                interface,
                took_us,
                code = e.code,
                "{} {}",
                e.msg,
                e.details
            ),
        }
    }

    async fn serve(self: &Arc<Self>, request: &Request) -> Result<Outcome, CniError> {
        if request.version > VERSION {
            return Err(CniError::new(
                code::INCOMPATIBLE_VERSION,
                format!(
                    "the plugin speaks version {} of the agent's protocol, the agent {VERSION}; \
                     upgrade the agent",
                    request.version
                ),
            ));
        }
        match request.mode {
            CallMode::Interface => self.serve_interface(request).await,
            CallMode::Ipam => lan::serve(self, request).await,
            CallMode::Coordinator => coordinator::serve(self, request).await,
            CallMode::Ifacer => ifacer::serve(self, request).await,
        }
    }

    async fn serve_interface(self: &Arc<Self>, request: &Request) -> Result<Outcome, CniError> {
        match request.command {
            Command::Add => {
                tombstone::replay(self).await;
                let key = key_of(request)?;
                let _lock = self.lock(&key.container_id).await;
                add::add(self, request, key).await.map(Outcome::Result)
            }
            Command::Del => {
                let key = key_of(request)?;
                let _lock = self.lock(&key.container_id).await;
                remove::del(self, &key).await;
                Ok(Outcome::Done)
            }
            Command::Check => {
                let key = key_of(request)?;
                let _lock = self.lock(&key.container_id).await;
                check::check(self, request, &key).await.map(|()| Outcome::Done)
            }
            Command::Gc => remove::gc(self, request).await.map(|()| Outcome::Done),
            Command::Status => check::status(self).await.map(|()| Outcome::Done),
        }
    }

    /// Waits until no other call works on the sandbox.
    pub(super) async fn lock(&self, container_id: &str) -> OwnedMutexGuard<()> {
        let mutex = {
            let mut sandboxes = self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner);
            sandboxes.retain(|_, weak| weak.strong_count() > 0);
            let known = sandboxes.get(container_id).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let mutex = Arc::new(tokio::sync::Mutex::new(()));
                sandboxes.insert(container_id.to_owned(), Arc::downgrade(&mutex));
                mutex
            })
        };
        mutex.lock_owned().await
    }

    /// The result of the same ADD, if it was served before; what an earlier one left half done is
    /// taken back.
    pub(super) async fn answered_before(
        &self,
        key: &AttachmentKey,
        netns_inode: u64,
    ) -> Result<Option<CniResult>, CniError> {
        let Some(attachment) = self.core.attachment(key) else { return Ok(None) };
        let same_pod = attachment.netns_inode == netns_inode;
        if let (Phase::Ready, true, Some(result)) =
            (attachment.phase, same_pod, attachment.result.clone())
        {
            let within = self.settings.apply_within;
            let applied = self.dataplane.sync(None, within).await;
            applied.map_err(|e| CniError::new(code::TRY_AGAIN_LATER, e.to_string()))?;
            return Ok(Some(result));
        }
        remove::del(self, key).await;
        match self.core.attachment(key) {
            None => Ok(None),
            Some(_) => Err(CniError::new(
                code::TRY_AGAIN_LATER,
                format!(
                    "what an earlier ADD of {key} left cannot be removed yet; see the agent's log"
                ),
            )),
        }
    }

    /// Looks at the catalog now: the pod's file may have been written a moment ago.
    pub(super) async fn look(&self) -> Result<Arc<Snapshot>, CniError> {
        let looked = self.core.catalog.look().await;
        looked.map_err(|e| io_failure("read the catalog", &e))
    }

    /// Interfaces in `default` come after the node's own leg, through which they reach everything
    /// else.
    pub(super) fn has_leg(&self, asked: &[Asked]) -> Result<(), CniError> {
        let wanted = asked.iter().any(|a| a.wish.network == DEFAULT_NETWORK);
        if !wanted || self.firewall.is_none() || node::is_up(&self.core) {
            return Ok(());
        }
        let message = format!("the node's own interface {} is not up yet", node::INTERFACE);
        Err(CniError::new(code::TRY_AGAIN_LATER, message))
    }

    /// Before an ADD is answered, its host ports are in force.
    pub(super) async fn follow_attachment(&self, attachment: &Attachment) -> Result<(), CniError> {
        let Some(firewall) = self.firewall.as_ref().filter(|_| !attachment.host_ports.is_empty())
        else {
            return match attachment.host_ports.first() {
                None => Ok(()),
                Some(_) => Err(CniError::new(
                    code::REFUSED,
                    "host ports are carried on Kubernetes only; remove hostPort from the pod",
                )),
            };
        };
        let done = firewall.put_in_force(&self.core).await;
        done.map_err(|why| CniError::new(code::TRY_AGAIN_LATER, why))
    }

    /// Host ports of an attachment that goes are closed.
    pub(super) async fn close_ports(&self, attachment: &Attachment) {
        let Some(firewall) = self.firewall.as_ref().filter(|_| !attachment.host_ports.is_empty())
        else {
            return;
        };
        if let Err(why) = firewall.put_in_force(&self.core).await {
            tracing::warn!(attachment = %attachment.key, "its host ports stay until the next try: {why}");
        }
    }

    /// Runs work that may block.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, CniError> {
        tokio::task::spawn_blocking(work).await.map_err(|e| {
            CniError::new(code::INTERNAL, format!("a thread of the agent failed: {e}"))
        })
    }

    /// Marks the addresses as in use, in the background: the journal stands for them until then.
    pub(super) fn confirm_later(&self, attachment: &Attachment) {
        let claims = attachment.networks().into_iter().map(|network| ToConfirm {
            network,
            owner: attachment.owner.clone(),
            sandbox_id: attachment.key.container_id.clone(),
        });
        self.unconfirmed().extend(claims);
        self.confirm.notify_one();
    }

    fn unconfirmed(&self) -> std::sync::MutexGuard<'_, Vec<ToConfirm>> {
        self.unconfirmed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn gather_confirmations(&self) {
        let begun = Instant::now();
        while begun.elapsed() < CONFIRM_WITHIN {
            let next = self.confirm.notified();
            if tokio::time::timeout(CONFIRM_AFTER, next).await.is_err() {
                return;
            }
        }
    }

    /// Confirms what has gathered, in one write for each block; what fails is tried again.
    async fn keep_confirming(self: Arc<Self>) {
        loop {
            self.confirm.notified().await;
            self.gather_confirmations().await;
            let mut by_network: BTreeMap<String, Vec<ToConfirm>> = BTreeMap::new();
            for claim in std::mem::take(&mut *self.unconfirmed()) {
                by_network.entry(claim.network.clone()).or_default().push(claim);
            }
            for (network, claims) in by_network {
                let store = self.core.catalog.store();
                let these: Vec<_> = claims.iter().collect();
                if let Err(e) = addresses::confirm(&store, &network, &these).await {
                    tracing::warn!(network, "addresses stay intents until the next try: {e}");
                    self.unconfirmed().extend(claims);
                }
            }
        }
    }

    /// Time to try again what could not be confirmed.
    pub(super) fn confirm_again(&self) {
        if !self.unconfirmed().is_empty() {
            self.confirm.notify_one();
        }
    }

    pub(super) fn forget_later(&self, key: &AttachmentKey) {
        let mut forgotten = self.forgotten.lock().unwrap_or_else(PoisonError::into_inner);
        if !forgotten.contains(key) {
            forgotten.push(key.clone());
        }
    }

    pub(super) fn take_forgotten(&self) -> Vec<AttachmentKey> {
        std::mem::take(&mut self.forgotten.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

pub(super) fn key_of(request: &Request) -> Result<AttachmentKey, CniError> {
    let key = AttachmentKey {
        container_id: request.container_id.clone(),
        ifname: request.ifname.clone(),
    };
    if key.is_valid() {
        return Ok(key);
    }
    Err(CniError::new(
        code::INVALID_ENVIRONMENT,
        format!(
            "CNI_CONTAINERID \"{}\" or CNI_IFNAME \"{}\" is not valid",
            key.container_id, key.ifname
        ),
    ))
}

async fn read_request(stream: &mut UnixStream) -> Result<Request, CniError> {
    let mut text = Vec::new();
    let limit = MAX_BYTES as u64 + 1;
    let mut limited = stream.take(limit);
    let read = tokio::time::timeout(REQUEST_WITHIN, limited.read_to_end(&mut text)).await;
    match read {
        Ok(Ok(length)) if length <= MAX_BYTES => {}
        Ok(Ok(_)) => {
            let message = format!("the request is longer than {MAX_BYTES} bytes");
            return Err(CniError::new(code::DECODING_FAILURE, message));
        }
        Ok(Err(e)) => return Err(io_failure("read the request", &e)),
        Err(_) => return Err(CniError::new(code::IO_FAILURE, "the request did not come in time")),
    }
    serde_json::from_slice(&text).map_err(|e| {
        CniError::new(code::DECODING_FAILURE, format!("the request cannot be decoded: {e}"))
    })
}

/// Listens on a path that a dead agent may have left behind.
fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            format!("another agent serves {}; stop it first", path.display()),
        ));
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    // Whoever may call attaches pods to any Network: root alone.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

pub(super) fn io_failure(doing: &str, error: &io::Error) -> CniError {
    CniError::new(code::IO_FAILURE, format!("cannot {doing}: {error}"))
}

pub(super) fn pod_failure(error: &PodError) -> CniError {
    let code = if error.is_not_found() { code::UNKNOWN_CONTAINER } else { code::IO_FAILURE };
    CniError::new(code, error.to_string())
}
