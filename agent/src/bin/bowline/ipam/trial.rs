//! A pod's allocation as an ADD would decide it now, without writing anything.

use anyhow::{Context, anyhow, bail};
use bowline_kube::applications;
use multinet::ipam::{self, Request};
use multinet::pod::{self, Context as Selecting};
use multinet::rules::Home;
use multinet::store::Store;
use multinet::types::block::Owner;
use multinet::types::core::{Namespace, Node, Pod};
use multinet::types::meta::LabelSelector;
use multinet::types::network::{DEFAULT_NETWORK, PoolLists};

use super::{Objects, now_ms};

/// For whom to try.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The pod: `NAMESPACE/NAME`.
    pod: String,
    /// Its interface.
    #[arg(long, default_value = "eth0")]
    interface: String,
    /// The Network; `-` is the LAN.
    #[arg(long, default_value = DEFAULT_NETWORK)]
    network: String,
    /// The node; by default the pod's.
    #[arg(long)]
    node: Option<String>,
}

/// Says what would be given, or why nothing would.
pub(super) async fn run<S: Store>(
    store: &S,
    client: Option<&kube::Client>,
    objects: &Objects,
    args: &Args,
) -> anyhow::Result<()> {
    let (namespace, name) = args.pod.split_once('/').context("name the pod as NAMESPACE/NAME")?;
    let found = store.get::<Pod>(Some(namespace), name).await?;
    let pod = found.with_context(|| format!("there is no pod {}", args.pod))?;
    let space = store.get::<Namespace>(None, namespace).await?;
    let node = args.node.clone().unwrap_or_else(|| pod.spec.node_name.clone());
    if node.is_empty() {
        bail!("the pod has no node yet; say for which to try by --node");
    }
    let node_object = store.get::<Node>(None, &node).await?;
    let node_labels = node_object.map(|n| n.metadata.labels).unwrap_or_default();
    let home = match args.network.as_str() {
        "-" => Home::Lan,
        network => Home::Network(network.to_owned()),
    };
    let mut owners = pod.metadata.owner_references.iter();
    let application = match (owners.find(|o| o.controller == Some(true)).cloned(), client) {
        (Some(owner), Some(client)) => {
            Some(applications::outermost(client, namespace, owner).await?)
        }
        (Some(owner), None) => Some(applications::application(namespace, owner)),
        (None, _) => None,
    };
    let selection = pod::select(
        &objects.checked,
        &Selecting {
            pod: &pod.metadata,
            namespace: space.as_ref().map(|n| &n.metadata),
            node: &node,
            node_labels: &node_labels,
            interface: &args.interface,
            index: (args.interface == "eth0").then_some(0),
            home: home.clone(),
            configured: PoolLists::default(),
            attachment_definition: None,
            application: application.as_ref(),
            master_addresses: None,
        },
    );
    let selection = selection.map_err(|problem| anyhow!("{problem}"))?;
    println!("pools by {}", selection.source);
    for rejection in &selection.rejected {
        println!("  {} no: it {}", rejection.pool, rejection.why);
    }
    let nodes = store.list::<multinet::types::node::NodeState>(&LabelSelector::default()).await?;
    let mut view = ipam::load(store, home.domain()).await?;
    let mut served = true;
    for (family, candidates) in selection.families {
        let request = Request {
            owner: Owner::Pod {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                uid: pod.metadata.uid.clone().unwrap_or_default(),
            },
            interface: args.interface.clone(),
            family,
            sandbox_id: "trial".into(),
            node: node.clone(),
            candidates,
            exact: None,
            sticky: pod.metadata.owner_references.iter().any(|o| o.kind == "StatefulSet"),
            cluster_nodes: u32::try_from(nodes.len().max(1)).unwrap_or(u32::MAX),
        };
        match ipam::plan_claim(&mut view, &request, 0, now_ms()) {
            Ok(claim) if claim.fresh => println!("  {} gives {}", claim.pool, claim.address),
            Ok(claim) => println!("  {} has given {} already", claim.pool, claim.address),
            Err(rejections) => {
                served = false;
                println!("  {rejections}");
            }
        }
    }
    if served { Ok(()) } else { bail!("the pod would not start") }
}
