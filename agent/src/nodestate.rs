//! What the other nodes must know of this one: its NodeState, written into the catalog whenever the
//! data plane or the attachments say something new.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use multinet::store::{Store, StoreError};
use multinet::types::mac::Mac;
use multinet::types::meta::Condition;
use multinet::types::node::{NodeState, NodeStateSpec, NodeStateStatus, NodeUplink, Versions};

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
    let store = core.catalog.directory();
    let wanted = spec_of(core, hello);
    let known = core.catalog.snapshot().get::<NodeState>(None, &core.node);
    if known.is_some_and(|known| known.spec == wanted) {
        return Ok(());
    }
    let ready = Condition {
        kind: "Ready".into(),
        status: "True".into(),
        reason: "DataplaneConnected".into(),
        message: "the data plane has its state".into(),
        ..Condition::default()
    };
    match store.get::<NodeState>(None, &core.node).await? {
        Some(stored) if stored.spec == wanted => Ok(()),
        Some(mut stored) => {
            stored.spec = wanted;
            stored.status = Some(NodeStateStatus { conditions: vec![ready] });
            store.update(&stored).await.map(drop)
        }
        None => {
            let mut object = NodeState::new(core.node.clone(), wanted);
            object.status = Some(NodeStateStatus { conditions: vec![ready] });
            store.create(&object).await.map(drop)
        }
    }
}

fn spec_of(core: &Core, hello: &api::HelloReply) -> NodeStateSpec {
    let router_mac = <[u8; 6]>::try_from(hello.router_mac.as_slice()).map(Mac).unwrap_or_default();
    NodeStateSpec {
        uplinks: hello.uplinks.iter().map(uplink).collect(),
        router_mac,
        node_addresses: Vec::new(),
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
