//! What the agent knows of its node: the catalog in force, what is attached, and what the data plane
//! shall do about it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use multinet::realm::{self, state::State};
use multinet::rules::{self, Checked};
use multinet::types::block::AddressBlock;
use multinet::types::core::ServiceCIDR;
use multinet::types::meta::Resource;
use multinet::types::network::Network;
use multinet::types::node::NodeState;
use multinet::types::pool::{SpiderIPPool, SpiderReservedIP};
use multinet::types::subnet::SpiderSubnet;
use tokio::sync::watch;

use crate::catalog::{Snapshot, Source};
use crate::dataplane::{DescriptorKind, Descriptors, Node};
use crate::journal::{Attachment, AttachmentKey, Journal, Phase};
use crate::notes::{Coordinated, Notes};
use crate::pod::{self, Device, Netns};

/// The age of what nobody uses: younger than anything.
const NOT_IN_USE: &str = "9999-12-31T23:59:59Z";

type NodesByName = BTreeMap<String, Arc<NodeState>>;

/// The agent's state of mind. Shared by all its tasks.
#[derive(Debug)]
pub struct Core {
    /// This node's name.
    pub node: String,
    /// The catalog.
    pub catalog: Source,
    /// Where attachments outlive the agent.
    pub journal: Journal,
    /// The CNI configurations that asked for addresses of other plugins' interfaces: a claim does not name them.
    /// Where they are lost, the controller compares pods.
    pub callers: Notes<String>,
    /// Pods whose routes a chained coordinator wrote.
    pub coordinated: Notes<Coordinated>,
    attachments: Mutex<BTreeMap<AttachmentKey, Attachment>>,
    checked: Mutex<Option<LastCheck>>,
    /// The nodes of the last snapshot that was asked for.
    nodes: Mutex<(Snapshot, Arc<NodesByName>)>,
    /// Counts changes of the attachments.
    changes: watch::Sender<u64>,
    /// Sentences about what had to be left out, as last logged.
    notes: Mutex<Vec<String>>,
}

impl Core {
    /// Reads the journal below the state directory.
    pub fn open(node: String, catalog: Source, state_dir: &Path) -> std::io::Result<Self> {
        let journal = Journal::open(state_dir)?;
        let callers = Notes::open(state_dir, "callers")?;
        let coordinated = Notes::open(state_dir, "coordinated")?;
        let attachments = journal.load()?.into_iter().map(|a| (a.key.clone(), a)).collect();
        Ok(Self {
            node,
            catalog,
            journal,
            callers,
            coordinated,
            attachments: Mutex::new(attachments),
            checked: Mutex::default(),
            nodes: Mutex::default(),
            changes: watch::Sender::new(0),
            notes: Mutex::default(),
        })
    }

    /// Networks and pools of a snapshot, checked against each other; from memory where they are the
    /// same as the last time.
    pub fn checked(&self, snapshot: &Arc<Snapshot>) -> Arc<Checked> {
        // Only files have no age: then who is in use decides.
        let in_use = match self.catalog {
            Source::Files(_) => InUse::of(snapshot),
            Source::Api(_) => InUse::default(),
        };
        let mut cache = lock(&self.checked);
        if let Some(last) = cache.as_ref()
            && last.in_use == in_use
            && same_rules(&last.snapshot, snapshot)
            && last.taken == taken(snapshot)
        {
            return last.checked.clone();
        }
        let catalog = rules::Catalog {
            networks: by_age::<Network>(snapshot, &in_use.networks),
            pools: by_age::<SpiderIPPool>(snapshot, &in_use.pools),
            subnets: by_age::<SpiderSubnet>(snapshot, &BTreeSet::new()),
            reserved: by_age::<SpiderReservedIP>(snapshot, &BTreeSet::new()),
            taken: taken(snapshot),
        };
        let checked = Arc::new(Checked::new(&catalog));
        for problem in &checked.problems {
            if cache.as_ref().is_none_or(|last| !last.checked.problems.contains(problem)) {
                tracing::warn!("{problem}");
            }
        }
        let (snapshot, taken) = (snapshot.only(&RULE_KINDS), catalog.taken);
        *cache = Some(LastCheck { snapshot, in_use, taken, checked: checked.clone() });
        checked
    }

    /// The attachment of a sandbox and interface.
    pub fn attachment(&self, key: &AttachmentKey) -> Option<Attachment> {
        lock(&self.attachments).get(key).cloned()
    }

    /// All attachments.
    pub fn attachments(&self) -> Vec<Attachment> {
        lock(&self.attachments).values().cloned().collect()
    }

    /// Addresses of a sandbox's attachments.
    pub fn addresses_of(&self, container_id: &str) -> Vec<IpAddr> {
        let attachments = lock(&self.attachments);
        let of_sandbox = attachments.values().filter(|a| a.key.container_id == container_id);
        let interfaces = of_sandbox.flat_map(|a| &a.interfaces);
        interfaces.flat_map(|i| &i.plan.addresses).map(ipnet::IpNet::addr).collect()
    }

    /// Remembers an attachment, on disk first.
    pub fn put(&self, attachment: Attachment) -> std::io::Result<()> {
        // The lock is held over the write, so that memory and journal change in the same order.
        let mut attachments = lock(&self.attachments);
        self.journal.put(&attachment)?;
        attachments.insert(attachment.key.clone(), attachment);
        self.changes.send_modify(|count| *count += 1);
        Ok(())
    }

    /// An attachment's descriptors are at hand: from now on the data plane shall have it.
    pub fn note_held(&self, key: &AttachmentKey) {
        if let Some(attachment) = lock(&self.attachments).get_mut(key) {
            attachment.held = true;
        }
    }

    /// Forgets an attachment.
    pub fn forget(&self, key: &AttachmentKey) -> std::io::Result<()> {
        let mut attachments = lock(&self.attachments);
        self.journal.remove(key)?;
        attachments.remove(key);
        self.changes.send_modify(|count| *count += 1);
        Ok(())
    }

    /// Is told each time that an attachment comes, changes or goes.
    pub fn attachments_changed(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Networks that this node has interfaces of.
    pub fn networks_in_use(&self) -> Vec<String> {
        let attachments = lock(&self.attachments);
        let mut names: Vec<String> = attachments.values().flat_map(Attachment::networks).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The node's own addresses in `default`.
    pub fn node_addresses(&self) -> Vec<IpAddr> {
        let attachments = lock(&self.attachments);
        let legs = attachments.values().filter(|a| a.is_node_leg() && a.phase == Phase::Ready);
        let interfaces = legs.flat_map(|a| &a.interfaces);
        interfaces.flat_map(|i| &i.plan.addresses).map(ipnet::IpNet::addr).collect()
    }

    /// All nodes by name; from memory where they are the same as the last time.
    fn nodes(&self, snapshot: &Snapshot) -> Arc<NodesByName> {
        let mut last = lock(&self.nodes);
        if !last.0.same_of_kind::<NodeState>(snapshot) {
            let by_name = |node: Arc<NodeState>| (node.name().to_owned(), node);
            let nodes = snapshot.list::<NodeState>().map(by_name).collect();
            *last = (snapshot.only(&[NodeState::KIND]), Arc::new(nodes));
        }
        last.1.clone()
    }

    fn find_interface<T>(&self, id: &str, look: impl FnOnce(&mut Attachment) -> T) -> Option<T> {
        let mut attachments = lock(&self.attachments);
        let (sandbox, name) = id.split_once('/')?;
        let mut of_sandbox = attachments
            .iter_mut()
            .filter(|(key, a)| key.container_id == sandbox && a.names().iter().any(|n| n == name));
        of_sandbox.next().map(|(_, attachment)| look(attachment))
    }

    fn log_notes(&self, notes: Vec<String>) {
        let mut last = lock(&self.notes);
        for note in notes.iter().filter(|n| !last.contains(n)) {
            tracing::warn!("{note}");
        }
        *last = notes;
    }
}

impl Node for Core {
    fn desired(&self) -> State {
        let snapshot = self.catalog.snapshot();
        let checked = self.checked(&snapshot);
        let nodes = self.nodes(&snapshot);
        let attachments: Vec<_> = {
            let attachments = lock(&self.attachments);
            let can_be_told = |a: &&Attachment| match a.phase {
                Phase::Making => a.held,
                Phase::Ready => true,
                Phase::Removing => false,
            };
            attachments.values().filter(can_be_told).flat_map(Attachment::realm).collect()
        };
        let in_use =
            |block: &Arc<AddressBlock>| attachments.iter().any(|a| a.network == block.spec.network);
        let blocks: Vec<_> = snapshot.list::<AddressBlock>().filter(in_use).collect();
        let (state, notes) = realm::desired(&realm::Input {
            node: &self.node,
            checked: &checked,
            nodes: &nodes,
            blocks: &blocks,
            attachments: &attachments,
            vxlan_port: 0,
        });
        self.log_notes(notes);
        state
    }

    fn offered_to(&self, interface_id: &str) -> Option<String> {
        self.find_interface(interface_id, |a| a.boot_id.clone()).filter(|boot| !boot.is_empty())
    }

    fn note_offered(&self, interface_id: &str, boot_id: &str) {
        let Some(attachment) = self.find_interface(interface_id, |a| {
            let offered = &mut a.offered;
            if !offered.iter().any(|id| id == interface_id) {
                offered.push(interface_id.to_owned());
            }
            // The attachment counts as offered when the last of its interfaces is.
            if offered.len() < a.interfaces.len() {
                return None;
            }
            a.offered.clear();
            a.boot_id = boot_id.to_owned();
            (a.phase == Phase::Ready).then(|| a.clone())
        }) else {
            return;
        };
        // While an ADD is at work it writes the journal itself, at its end.
        if let Some(Err(e)) = attachment.map(|a| self.journal.put(&a)) {
            tracing::error!("the journal cannot be written: {e}");
        }
    }

    fn reopen(&self, interface_id: &str) -> Result<Descriptors, String> {
        let found = self.find_interface(interface_id, |a| {
            let mut interfaces = a.interfaces.iter();
            let interface = interfaces.find(|i| a.key.interface_id(&i.plan.name) == interface_id);
            interface.map(|i| (i.plan.clone(), a.netns.clone(), a.netns_inode))
        });
        let Some((plan, path, inode)) = found.flatten() else {
            return Err(format!("{interface_id} is not attached"));
        };
        let netns = same_netns(&path, inode)?;
        let made = netns.run(|| pod::reopen(&plan)).map_err(|e| e.to_string())?;
        Ok(descriptors(plan.device, made.descriptors))
    }
}

/// The rules' last verdict, and what it was about.
#[derive(Debug)]
struct LastCheck {
    /// Of [`RULE_KINDS`].
    snapshot: Snapshot,
    in_use: InUse,
    taken: Vec<rules::Taken>,
    checked: Arc<Checked>,
}

/// Networks and pools that somebody holds addresses of.
#[derive(Debug, Default, PartialEq, Eq)]
struct InUse {
    networks: BTreeSet<String>,
    pools: BTreeSet<String>,
}

impl InUse {
    fn of(snapshot: &Snapshot) -> Self {
        let mut in_use = Self::default();
        for block in snapshot.list::<AddressBlock>() {
            for entry in block.held() {
                if !in_use.pools.contains(&entry.pool) {
                    in_use.pools.insert(entry.pool.clone());
                }
                if !in_use.networks.contains(&block.spec.network) {
                    in_use.networks.insert(block.spec.network.clone());
                }
            }
        }
        in_use
    }
}

/// Objects by name. Of two that cannot both be, the older wins; files have no creation time, so that
/// names would decide, and a new file could push aside what runs. Here what is in use counts as
/// older: all nodes see the same claims and thus decide alike.
fn by_age<R: Resource>(snapshot: &Snapshot, in_use: &BTreeSet<String>) -> BTreeMap<String, R> {
    let aged = |object: Arc<R>| {
        let mut object = R::clone(&object);
        let meta = object.meta_mut();
        if meta.creation_timestamp.is_none() && !in_use.contains(&meta.name) {
            meta.creation_timestamp = Some(NOT_IN_USE.to_owned());
        }
        (object.meta().name.clone(), object)
    };
    snapshot.list::<R>().map(aged).collect()
}

/// The namespace at `path`, if it is still the one that it was.
pub(crate) fn same_netns(path: &Path, inode: u64) -> Result<Netns, String> {
    let netns = Netns::open(path).map_err(|e| e.to_string())?;
    if netns.inode() == inode {
        return Ok(netns);
    }
    Err(format!("{} is another namespace than the pod's; the pod is gone", path.display()))
}

/// A device's descriptors as the data plane takes them.
pub(crate) fn descriptors(device: Device, fds: Vec<OwnedFd>) -> Descriptors {
    let kind = match device {
        Device::Tap { .. } => DescriptorKind::TapQueues,
        Device::Memif => DescriptorKind::MemifListener,
    };
    Descriptors::new(kind, fds)
}

/// The kinds that [`Checked`] follows from.
const RULE_KINDS: [&str; 4] =
    [Network::KIND, SpiderIPPool::KIND, SpiderSubnet::KIND, SpiderReservedIP::KIND];

/// What pools of `default` must leave alone.
fn taken(snapshot: &Snapshot) -> Vec<rules::Taken> {
    let nodes: Vec<_> = snapshot.list::<NodeState>().collect();
    let services: Vec<_> = snapshot.list::<ServiceCIDR>().collect();
    rules::taken_by(nodes.iter().map(AsRef::as_ref), services.iter().map(AsRef::as_ref))
}

/// Are the objects that [`Checked`] follows from the same ones?
fn same_rules(a: &Snapshot, b: &Snapshot) -> bool {
    a.same_of_kind::<Network>(b)
        && a.same_of_kind::<SpiderIPPool>(b)
        && a.same_of_kind::<SpiderSubnet>(b)
        && a.same_of_kind::<SpiderReservedIP>(b)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is guarded is replaced whole, so that a panicking holder leaves it valid.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
