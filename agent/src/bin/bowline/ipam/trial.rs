//! A pod's allocation as an ADD would decide it now, without writing anything.

use std::net::IpAddr;

use anyhow::{Context as _, anyhow, bail};
use bowline_kube::applications;
use multinet::ipam::{self, Request};
use multinet::pod::{self, Context, MAIN_INTERFACE, Selection, Stickiness};
use multinet::range::Family;
use multinet::rules::{Home, Problem};
use multinet::store::Store;
use multinet::types::block::Entry;
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
    /// The Network; `-` is the LAN. By default what the pod's own annotation names, else `default`.
    #[arg(long)]
    network: Option<String>,
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
    let pod = pod_of(store, args).await?;
    let mut asked = asked(&pod, args)?;
    let mut view = ipam::load(store, asked.home.domain()).await?;
    let identity = pod::identity(&pod, Stickiness::default());
    if asked.place.is_none() {
        let of_pod = |e: &Entry| e.state.is_held() && e.owner.as_ref() == Some(&identity.owner);
        let held = view.entries(of_pod).map(|(_, entry)| entry);
        asked.place = Some(pod::place_by_arrival(held, &args.interface));
    }
    let node = args.node.clone().unwrap_or_else(|| pod.spec.node_name.clone());
    if node.is_empty() {
        bail!("the pod has no node yet; say for which to try by --node");
    }
    let selection = select(store, client, objects, &pod, &node, &asked).await?;
    println!("pools by {}", selection.source);
    for rejection in &selection.rejected {
        println!("  {} no: it {}", rejection.pool, rejection.why);
    }
    let nodes = store.list::<multinet::types::node::NodeState>(&LabelSelector::default()).await?;
    let mut served = true;
    for (family, candidates) in selection.families {
        let request = Request {
            owner: identity.owner.clone(),
            interface: args.interface.clone(),
            family,
            sandbox_id: "trial".into(),
            node: node.clone(),
            candidates,
            exact: asked.ips.iter().find(|ip| Family::of(**ip) == family).copied(),
            sticky: identity.sticky,
            moves: identity.moves,
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

async fn pod_of<S: Store>(store: &S, args: &Args) -> anyhow::Result<Pod> {
    let (namespace, name) = args.pod.split_once('/').context("name the pod as NAMESPACE/NAME")?;
    let found = store.get::<Pod>(Some(namespace), name).await?;
    found.with_context(|| format!("there is no pod {}", args.pod))
}

/// The interface as the pod's annotations ask for it.
struct Asked {
    interface: String,
    home: Home,
    /// Its place among the pod's interfaces, where it is known.
    place: Option<usize>,
    /// These addresses and no others.
    ips: Vec<IpAddr>,
    definition: Option<(String, String)>,
}

fn asked(pod: &Pod, args: &Args) -> anyhow::Result<Asked> {
    let meta = &pod.metadata;
    let why = |problem: Problem| anyhow!("{problem}");
    let own = match meta.annotations.get(pod::INTERFACES) {
        Some(text) => pod::parse_interfaces(text, &["lo", MAIN_INTERFACE]).map_err(why)?,
        None => Vec::new(),
    };
    let own = own.into_iter().enumerate().find(|(_, wish)| wish.name == args.interface);
    let named = match (args.network.as_deref(), &own) {
        (Some(network), _) => network,
        (None, Some((_, wish))) => &wish.network,
        (None, None) => DEFAULT_NETWORK,
    };
    let home = if named == "-" { Home::Lan } else { Home::Network(named.to_owned()) };
    if let Some((place, wish)) = own {
        return Ok(Asked {
            interface: wish.name,
            home,
            place: Some(place + 1),
            ips: wish.ips,
            definition: None,
        });
    }
    let selection = pod::network_selection(meta, &args.interface).map_err(why)?;
    Ok(Asked {
        interface: args.interface.clone(),
        home,
        place: pod::place_of(meta, &args.interface).map_err(why)?,
        ips: selection.map(|(_, selection)| selection.ips).unwrap_or_default(),
        definition: pod::definition_of(meta, &args.interface),
    })
}

/// The pools that serve, by the rules of an ADD.
async fn select<S: Store>(
    store: &S,
    client: Option<&kube::Client>,
    objects: &Objects,
    pod: &Pod,
    node: &str,
    asked: &Asked,
) -> anyhow::Result<Selection> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let space = store.get::<Namespace>(None, namespace).await?;
    let node_labels = store.get::<Node>(None, node).await?.map(|n| n.metadata.labels);
    let mut owners = pod.metadata.owner_references.iter();
    let application = match (owners.find(|o| o.controller == Some(true)).cloned(), client) {
        (Some(owner), Some(client)) => {
            Some(applications::outermost(client, namespace, owner).await?)
        }
        (Some(owner), None) => Some(applications::application(namespace, owner)),
        (None, _) => None,
    };
    let definition = asked.definition.as_ref();
    let context = Context {
        pod: &pod.metadata,
        namespace: space.as_ref().map(|n| &n.metadata),
        node,
        node_labels: &node_labels.unwrap_or_default(),
        interface: &asked.interface,
        index: asked.place,
        home: asked.home.clone(),
        configured: PoolLists::default(),
        attachment_definition: definition.map(|(ns, n)| (ns.as_str(), n.as_str())),
        application: application.as_ref(),
        master_addresses: None,
    };
    pod::select(&objects.checked, &context).map_err(|problem| anyhow!("{problem}"))
}
