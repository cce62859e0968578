//! What the other nodes must know of this one: its NodeState, written into the catalog whenever the
//! data plane or the attachments say something new.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use multinet::store::StoreError;
use multinet::types::core::Node;
use multinet::types::mac::Mac;
use multinet::types::meta::{Condition, OwnerReference, Resource};
use multinet::types::node::{NodeState, NodeStateSpec, NodeUplink, Versions};

use crate::catalog::ApiCatalog;
use crate::core::Core;
use crate::dataplane::{Dataplane, from_ip};
use crate::metrics::Metrics;

/// Networks in use change with pods; a write may wait this long for more of them.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Keeps the NodeState true until the task is aborted.
pub async fn keep(core: Arc<Core>, dataplane: Dataplane, metrics: Arc<Metrics>) {
    let mut hello = dataplane.hello();
    let mut last_error = String::new();
    loop {
        let said = hello.borrow_and_update().clone();
        metrics.dataplane_up.set(i64::from(said.is_some()));
        // While the data plane is away what it said last stays true for the others: its interfaces
        // and addresses wait for it.
        if let Some(said) = said {
            let written = write(&core, &said).await;
            let error = written.err().map(|e| e.to_string()).unwrap_or_default();
            if error != last_error && !error.is_empty() {
                tracing::warn!("the NodeState cannot be written: {error}");
            }
            last_error = error;
        }
        tokio::select! {
            changed = hello.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

async fn write(core: &Core, hello: &api::HelloReply) -> Result<(), StoreError> {
    let wanted = spec_of(core, hello);
    let mut object = NodeState::new(core.node.clone(), wanted.clone());
    object.metadata.owner_references =
        core.catalog.api().and_then(|api| owner(api)).into_iter().collect();
    let known = core.catalog.snapshot().get::<NodeState>(None, &core.node);
    let is_known = |known: Arc<NodeState>| {
        known.spec == wanted
            && known.metadata.owner_references == object.metadata.owner_references
            && known.status.as_ref().is_some_and(|s| s.conditions.iter().any(is_ready))
    };
    if known.is_some_and(is_known) {
        return Ok(());
    }
    let ready = Condition {
        kind: "Ready".into(),
        status: "True".into(),
        reason: "DataplaneConnected".into(),
        message: "the data plane has its state".into(),
        last_transition_time: core.catalog.api().map(|_| bowline_kube::now()),
        ..Condition::default()
    };
    core.catalog.store().put_node_state(object, &wanted, ready).await
}

/// The Node, with which the NodeState goes away.
fn owner(api: &ApiCatalog) -> Option<OwnerReference> {
    let node = api.own_node()?;
    Some(OwnerReference {
        api_version: Node::API_VERSION.into(),
        kind: Node::KIND.into(),
        name: node.metadata.name.clone(),
        uid: node.metadata.uid.clone()?,
        ..OwnerReference::default()
    })
}

fn is_ready(condition: &Condition) -> bool {
    condition.kind == "Ready" && condition.status == "True"
}

fn spec_of(core: &Core, hello: &api::HelloReply) -> NodeStateSpec {
    let router_mac = <[u8; 6]>::try_from(hello.router_mac.as_slice()).map(Mac).unwrap_or_default();
    NodeStateSpec {
        uplinks: hello.uplinks.iter().map(uplink).collect(),
        router_mac,
        node_addresses: core.node_addresses(),
        networks: core.networks_in_use(),
        versions: Versions {
            agent: env!("CARGO_PKG_VERSION").into(),
            dataplane: hello.version.clone(),
        },
        features: hello.features.clone(),
    }
}

fn uplink(uplink: &api::Uplink) -> NodeUplink {
    let vteps: Vec<IpAddr> = uplink.vteps.iter().filter_map(from_ip).collect();
    NodeUplink {
        physical_network: uplink.physical_network.clone(),
        name: uplink.name.clone(),
        ipv4: vteps.iter().find_map(|v| if let IpAddr::V4(v4) = v { Some(*v4) } else { None }),
        ipv6: vteps.iter().find_map(|v| if let IpAddr::V6(v6) = v { Some(*v6) } else { None }),
        mtu: uplink.mtu,
    }
}
