//! The second agent: an address counts when its route leads to the node that claimed it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agent::catalog::{Snapshot, Source};
use agent::core::Core;
use anyhow::Context;
use multinet::realm::state::{Port, Route, Via};
use multinet::realm::{self, Attachment};
use multinet::types::block::{AddressBlock, block_cidr};
use multinet::types::mac::Mac;
use multinet::types::node::NodeState;
use tempfile::TempDir;
use tokio::sync::Notify;

use crate::fleet::NETWORK;

/// Its node's name.
pub(crate) const NAME: &str = "observer";
/// A route that is so late is lost.
const ROUTED_WITHIN: Duration = Duration::from_secs(60);

/// Addresses whose routes are not there yet, each with the tunnel end that they shall lead to.
#[derive(Debug, Default)]
pub(crate) struct Awaited {
    addresses: Mutex<BTreeMap<IpAddr, IpAddr>>,
    changed: Notify,
}

impl Awaited {
    /// One more.
    pub(crate) fn add(&self, address: IpAddr, tunnel_end: IpAddr) {
        self.lock().insert(address, tunnel_end);
        self.changed.notify_one();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<IpAddr, IpAddr>> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The agent, as far as it makes routes.
#[derive(Debug)]
pub(crate) struct Observer {
    core: Core,
    awaited: Arc<Awaited>,
    _state: TempDir,
}

impl Observer {
    pub(crate) fn new(source: Source, awaited: Arc<Awaited>) -> Self {
        let state = TempDir::with_prefix("bowline-observer-").expect("a temporary directory");
        let core = Core::open(NAME.into(), source, state.path()).expect("an agent");
        Self { core, awaited, _state: state }
    }

    /// Returns when every awaited address has its route.
    pub(crate) async fn wait_until_routed(&self) -> anyhow::Result<()> {
        let mut snapshots = self.core.catalog.subscribe();
        let routed = async {
            loop {
                let snapshot = snapshots.borrow_and_update().clone();
                self.look(&snapshot);
                if self.awaited.lock().is_empty() {
                    return;
                }
                tokio::select! {
                    _ = snapshots.changed() => {}
                    () = self.awaited.changed.notified() => {}
                }
            }
        };
        let routed = tokio::time::timeout(ROUTED_WITHIN, routed).await;
        routed.with_context(|| format!("no routes lead to {:?}", self.awaited.lock()))
    }

    fn look(&self, snapshot: &Arc<Snapshot>) {
        let routes: BTreeMap<_, _> =
            self.routes(snapshot).into_iter().map(|r| (r.prefix, r.via)).collect();
        self.awaited.lock().retain(|address, wanted| {
            let own = routes.get(&(*address).into());
            let via = own.or_else(|| routes.get(&block_cidr(*address)));
            !matches!(via, Some(Via::Tunnel { vtep, .. }) if vtep == wanted)
        });
    }

    /// As the agent decides them after every change.
    fn routes(&self, snapshot: &Arc<Snapshot>) -> Vec<Route> {
        let checked = self.core.checked(snapshot);
        let nodes: BTreeMap<_, _> =
            snapshot.list::<NodeState>().map(|n| (n.name().to_owned(), n)).collect();
        let blocks: Vec<_> = snapshot.list::<AddressBlock>().collect();
        let attachments = [Attachment {
            id: "observer/eth0".into(),
            network: NETWORK.into(),
            name: "eth0".into(),
            mac: Mac([2, 0, 0, 0, 0, 1]),
            addresses: Vec::new(),
            port: Port::Tap { queues: 1 },
            mtu: 0,
            pod_namespace: String::new(),
            pod_name: String::new(),
            node_leg: false,
        }];
        let input = realm::Input {
            node: NAME,
            checked: &checked,
            nodes: &nodes,
            blocks: &blocks,
            attachments: &attachments,
            vxlan_port: 0,
        };
        let (state, _) = realm::desired(&input);
        state.networks.into_iter().flat_map(|network| network.routes).collect()
    }
}
