//! The agent's side of the data plane's API: one connection, kept up, and one state, kept in force.
//!
//! | module | holds |
//! |---|---|
//! | `diff` | what to tell a data plane that has one state and shall have another; pure |
//! | `convert` | from `multinet`'s state to the API's messages |
//! | `offer` | descriptors over the socket beside the API |
//! | `session` | what is said on one connection, from the greeting to its end |
//!
//! Invariants:
//! - An interface's descriptors are offered before the interface is applied, once for each start of
//!   the data plane.
//! - Duplicates of the descriptors are held here, so that names, carrier and queued frames survive a
//!   restart of the data plane.
//! - One refused network or interface does not keep the others from being applied.

mod convert;
mod diff;
mod offer;
mod session;

use std::collections::{BTreeSet, HashMap};
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use multinet::realm::state::State;
use tokio::sync::{mpsc, oneshot, watch};

pub use api::descriptor_offer::Kind as DescriptorKind;
pub(crate) use convert::from_ip;
pub use convert::message_of;

/// While the data plane is away, it is looked for at this interval.
const LOOK_FOR_EVERY: Duration = Duration::from_millis(25);

/// How long a listener's end is waited for.
const CLOSED_WITHIN: Duration = Duration::from_millis(20);

/// Why the data plane did not do something.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DataplaneError {
    /// It cannot be talked to.
    #[error("the data plane does not answer on {}: {reason}; is bowline-dataplane running?", socket.display())]
    Away {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// It refuses a part of the state.
    #[error("the data plane refuses {what}: {reason}")]
    Refused {
        /// The network or interface.
        what: String,
        /// Its sentence.
        reason: String,
    },
    /// It did not finish in time.
    #[error("the data plane did not put the change in force: {0}")]
    NotInForce(String),
}

/// Descriptors of one interface, held for the data plane's next start.
#[derive(Debug, Clone)]
pub struct Descriptors {
    /// What they are.
    pub kind: DescriptorKind,
    /// Tap queues in order, or one listener.
    pub fds: Arc<HeldFds>,
}

impl Descriptors {
    /// Those of one interface.
    pub fn new(kind: DescriptorKind, fds: Vec<OwnedFd>) -> Self {
        Self { kind, fds: Arc::new(HeldFds { kind, fds }) }
    }
}

/// Descriptors that are closed with the last who holds them.
#[derive(Debug)]
pub struct HeldFds {
    kind: DescriptorKind,
    fds: Vec<OwnedFd>,
}

impl Deref for HeldFds {
    type Target = [OwnedFd];

    fn deref(&self) -> &[OwnedFd] {
        &self.fds
    }
}

impl Drop for HeldFds {
    /// What a pod has sent to a listener before anybody accepted is thrown away with the listener: a
    /// socket with SO_LINGER, for instance, whose last close takes as long as the pod likes. A thread
    /// waits for that. Else the name is free when this returns.
    fn drop(&mut self) {
        if self.kind != DescriptorKind::MemifListener {
            return;
        }
        let fds = std::mem::take(&mut self.fds);
        let Ok(thread) = thread::Builder::new().spawn(move || drop(fds)) else { return };
        let end = Instant::now() + CLOSED_WITHIN;
        while !thread.is_finished() && Instant::now() < end {
            thread::sleep(CLOSED_WITHIN / 100);
        }
    }
}

/// What the connection needs to know of the node. Its calls may block on files.
pub trait Node: Send + Sync + 'static {
    /// The state that shall be in force.
    fn desired(&self) -> State;
    /// The start of the data plane (its boot id) that an interface's descriptors were offered to.
    fn offered_to(&self, interface_id: &str) -> Option<String>;
    /// Remembers that the descriptors were offered.
    fn note_offered(&self, interface_id: &str, boot_id: &str);
    /// Opens the descriptors of an interface that exists again.
    fn reopen(&self, interface_id: &str) -> Result<Descriptors, String>;
}

/// A handle to the connection. Clones share it.
#[derive(Debug, Clone)]
pub struct Dataplane {
    commands: mpsc::UnboundedSender<PutInForce>,
    held: Arc<Held>,
    hello: watch::Receiver<Option<api::HelloReply>>,
}

/// A request to put the desired state in force now.
#[derive(Debug)]
struct PutInForce {
    /// The interface that the caller waits for, whose refusal is his.
    interface_id: Option<String>,
    reply: oneshot::Sender<Result<(), DataplaneError>>,
}

/// Descriptors by interface id.
#[derive(Debug, Default)]
pub(crate) struct Held {
    by_id: Mutex<HashMap<String, Descriptors>>,
    /// Interfaces let go of, until the data plane has been told to close its own descriptors.
    released: Mutex<BTreeSet<String>>,
}

impl Held {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Descriptors>> {
        self.by_id.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn released(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.released.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Dataplane {
    /// Starts to keep the connection to the data plane behind `socket`.
    pub fn start(socket: PathBuf, node: Arc<dyn Node>) -> Self {
        let (commands, receiver) = mpsc::unbounded_channel();
        let (hello_sender, hello) = watch::channel(None);
        let held = Arc::new(Held::default());
        let keeper = session::Keeper::new(socket, node, held.clone(), receiver, hello_sender);
        tokio::spawn(keeper.run());
        Self { commands, held, hello }
    }

    /// Holds an interface's descriptors; they are offered with the next [`Dataplane::sync`].
    pub fn hold(&self, interface_id: &str, descriptors: Descriptors) {
        self.held.lock().insert(interface_id.to_owned(), descriptors);
    }

    /// Lets go of an interface's descriptors; with the next [`Dataplane::sync`] the data plane does
    /// the same, even if the interface never came into force.
    pub fn release(&self, interface_id: &str) {
        self.held.lock().remove(interface_id);
        self.held.released().insert(interface_id.to_owned());
    }

    /// Puts the desired state in force, and returns when every worker forwards by it.
    pub async fn sync(
        &self,
        interface_id: Option<&str>,
        within: Duration,
    ) -> Result<(), DataplaneError> {
        let (reply, answer) = oneshot::channel();
        let command = PutInForce { interface_id: interface_id.map(str::to_owned), reply };
        let gone = || DataplaneError::NotInForce("the agent is stopping".into());
        self.commands.send(command).map_err(|_| gone())?;
        match tokio::time::timeout(within, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(gone()),
            Err(_) => Err(DataplaneError::NotInForce(format!(
                "no answer within {} ms; is bowline-dataplane running?",
                within.as_millis()
            ))),
        }
    }

    /// Says that the desired state changed; it is put in force in the background.
    pub fn nudge(&self) {
        let (reply, _) = oneshot::channel();
        // A closed channel means that the agent is stopping.
        let _ = self.commands.send(PutInForce { interface_id: None, reply });
    }

    /// What the data plane said of itself; `None` while it is away.
    pub fn hello(&self) -> watch::Receiver<Option<api::HelloReply>> {
        self.hello.clone()
    }
}

/// Offers the descriptors of one interface, for whoever drives the data plane by hand. Blocks for
/// two seconds at most.
///
/// # Errors
/// The data plane is away, or refuses.
pub fn offer(
    socket: &std::path::Path,
    interface_id: &str,
    kind: DescriptorKind,
    descriptors: &[OwnedFd],
) -> Result<(), DataplaneError> {
    offer::OfferSocket::connect(socket)?.offer(interface_id, kind, descriptors)
}

/// What the data plane behind `socket` has, asked on a connection of its own.
pub async fn actual_state(socket: &std::path::Path) -> Result<api::ActualState, DataplaneError> {
    session::actual_state(socket).await
}
