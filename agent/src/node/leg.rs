//! `bowline0`: the node's interface in `default`, with an address that the Node owns.
//!
//! Its address is a single one (/32, /128), so that the kernel asks for no neighbour but the gateway:
//! every pool is a route through that.

use std::path::Path;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use multinet::ipam::{self, Candidate, Claim, Holder, Request};
use multinet::range::Family;
use multinet::realm::network_mtu;
use multinet::realm::state::Port;
use multinet::rules::{Checked, Pool};
use multinet::types::block::Owner;
use multinet::types::mac::Mac;
use multinet::types::network::{DEFAULT_NETWORK, Network};
use multinet::types::node::NodeState;

use super::sysctl;
use crate::core::{self, Core};
use crate::dataplane::Dataplane;
use crate::journal::{AttachedInterface, Attachment, AttachmentKey, Phase};
use crate::pod::{self, Device, InterfacePlan, Netns, OWN_NETNS, PodError, PodRoute, policy};

/// The interface's name.
pub const INTERFACE: &str = "bowline0";
/// The key's place of a sandbox; no runtime calls a container so.
const SANDBOX: &str = "bowline.node";
/// How long the data plane may take.
const APPLY_WITHIN: Duration = Duration::from_secs(5);
/// How long the blocks of `default` may take to be known.
const PREPARE_WITHIN: Duration = Duration::from_secs(10);

fn key() -> AttachmentKey {
    AttachmentKey { container_id: SANDBOX.into(), ifname: INTERFACE.into() }
}

/// Has the node its leg, so that pods of `default` reach more than each other?
pub fn is_up(core: &Core) -> bool {
    core.attachment(&key()).is_some_and(|leg| leg.phase == Phase::Ready)
}

/// Makes the interface if it is not there, and its routes what the pools want.
pub(super) async fn keep_up(
    core: &Core,
    dataplane: &Dataplane,
    checked: &Checked,
    network: &Network,
) -> Result<(), String> {
    let known = core.attachment(&key()).filter(|leg| leg.phase == Phase::Ready);
    if let Some(leg) = known
        && still_there(&leg).await?
    {
        return follow_pools(core, checked, leg).await;
    }
    let named = [DEFAULT_NETWORK.to_owned()];
    core.catalog.prepare(&named, PREPARE_WITHIN).await?;
    let claims = claim(core, checked, network).await?;
    let leg = plan(core, checked, network, &claims)?;
    make(core, dataplane, leg).await
}

/// Removes the interface, and with it its routes.
///
/// # Errors
/// A sentence.
pub async fn remove() -> Result<(), String> {
    here(|| pod::remove(INTERFACE)).await
}

async fn still_there(leg: &Attachment) -> Result<bool, String> {
    let mac = leg.interfaces.first().map(|i| i.plan.mac).unwrap_or_default();
    let found = here(|| pod::inspect(INTERFACE)).await?;
    Ok(found.is_some_and(|found| found.alias == pod::TAP_ALIAS && found.mac == mac && found.up))
}

async fn follow_pools(core: &Core, checked: &Checked, mut leg: Attachment) -> Result<(), String> {
    let Some(interface) = leg.interfaces.first_mut() else { return Ok(()) };
    let wanted = routes(checked);
    let routes = wanted.clone();
    let clash = here(move || put_routes(&routes)).await?;
    if interface.plan.routes != wanted {
        interface.plan.routes = wanted;
        core.put(leg).map_err(|e| format!("the journal cannot be written: {e}"))?;
    }
    clash.map_or(Ok(()), |(route, own)| {
        Err(format!(
            "no route to the pool {route}: it overlaps {own}, this node's own network, which would be cut off; \
             give the pool of Network {DEFAULT_NETWORK} another prefix"
        ))
    })
}

/// Writes the routes, but for those that would take the node's own network away from it; one of these,
/// and what it overlaps.
fn put_routes(routes: &[PodRoute]) -> Result<Option<(IpNet, IpNet)>, PodError> {
    let own = own_networks(&policy::view()?);
    let clash = |route: &PodRoute| {
        let nested = |own: &&IpNet| own.contains(&route.dst) || route.dst.contains(*own);
        own.iter().find(nested).map(|own| (route.dst, *own))
    };
    let kept: Vec<PodRoute> = routes.iter().filter(|r| clash(r).is_none()).copied().collect();
    pod::replace_routes(INTERFACE, &kept)?;
    Ok(routes.iter().find_map(clash))
}

/// What the node reaches by its own interfaces.
fn own_networks(host: &policy::View) -> Vec<IpNet> {
    let own = host.links.iter().filter(|link| link.is_the_nodes() && link.name != INTERFACE);
    own.flat_map(|link| link.addresses.iter().map(IpNet::trunc)).collect()
}

/// An address of each family that `default` has pools of. The same ones as ever, if the node had any.
async fn claim(core: &Core, checked: &Checked, network: &Network) -> Result<Vec<Claim>, String> {
    let candidates = candidates(core, checked, network);
    let of = |family: Family| {
        candidates.iter().filter(move |c| c.addresses.family() == family).cloned().collect()
    };
    let requests: Vec<Request> = [Family::V4, Family::V6]
        .map(|family| request(core, family, of(family)))
        .into_iter()
        .filter(|request| !request.candidates.is_empty())
        .collect();
    if requests.is_empty() {
        return Err(format!("Network {DEFAULT_NETWORK} has no pool; add one to its spec.ipPools"));
    }
    if let Some(why) = core.catalog.api().and_then(|api| api.other_allocator()) {
        return Err(why);
    }
    let store = core.catalog.store();
    let _turn = store.turn(DEFAULT_NETWORK).await;
    let claimed = ipam::claim(&store, DEFAULT_NETWORK, &requests, now_ms()).await;
    let claims = claimed.map_err(|e| e.to_string())?;
    let owner = owner(core);
    let holder = Holder { owner: Some(&owner), sandbox_id: "", interface: Some(INTERFACE) };
    let confirmed = ipam::modify(&store, DEFAULT_NETWORK, |view| {
        ipam::plan_confirm(view, holder, now_ms());
    });
    confirmed.await.map_err(|e| e.to_string())?;
    Ok(claims)
}

fn owner(core: &Core) -> Owner {
    Owner::Node { name: core.node.clone() }
}

fn request(core: &Core, family: Family, candidates: Vec<Candidate>) -> Request {
    let nodes = core.catalog.snapshot().count::<NodeState>().max(1);
    Request {
        owner: owner(core),
        interface: INTERFACE.into(),
        family,
        sandbox_id: String::new(),
        node: core.node.clone(),
        candidates,
        exact: None,
        sticky: false,
        moves: false,
        cluster_nodes: u32::try_from(nodes).unwrap_or(u32::MAX),
    }
}

/// The pools of `default` that this node may use, in the Network's order.
fn candidates(core: &Core, checked: &Checked, network: &Network) -> Vec<Candidate> {
    let listed: Vec<&str> = network.spec.ip_pools.names().collect();
    let place = |pool: &Pool| listed.iter().position(|name| *name == pool.name);
    let for_this_node = |pool: &&Pool| {
        let names = &pool.spec.node_name;
        pool.spec.disable != Some(true) && (names.is_empty() || names.contains(&core.node))
    };
    let mut pools: Vec<&Pool> = checked.pools_of(DEFAULT_NETWORK).filter(for_this_node).collect();
    pools.sort_by_key(|pool| (place(pool).unwrap_or(usize::MAX), pool.name.clone()));
    let candidate = |pool: &Pool| {
        let (home, pool) = checked.pools.get(&pool.name)?;
        Some(Candidate::new(checked, home, pool))
    };
    pools.into_iter().filter_map(candidate).collect()
}

fn plan(
    core: &Core,
    checked: &Checked,
    network: &Network,
    claims: &[Claim],
) -> Result<Attachment, String> {
    let netns = Netns::open(Path::new(OWN_NETNS)).map_err(|e| e.to_string())?;
    let nodes: Vec<_> = core.catalog.snapshot().list::<NodeState>().collect();
    let owner = owner(core);
    let interface = AttachedInterface {
        network: DEFAULT_NETWORK.into(),
        plan: InterfacePlan {
            name: INTERFACE.into(),
            device: Device::Tap { queues: 1 },
            mac: Mac::for_interface(&owner.key(), INTERFACE).0,
            mtu: network_mtu(network, nodes.iter().map(AsRef::as_ref)),
            addresses: claims.iter().map(|claim| IpNet::from(claim.address)).collect(),
            routes: routes(checked),
            own_table: Vec::new(),
        },
        port: Port::Tap { queues: 1 },
        pools: claims.iter().map(|claim| claim.pool.clone()).collect(),
        default_in: Vec::new(),
        by_source: false,
        named_routes: Vec::new(),
        gateways: Vec::new(),
        kernel_device: "tap".into(),
    };
    Ok(Attachment {
        key: key(),
        conf_name: String::new(),
        owner,
        netns: OWN_NETNS.into(),
        netns_inode: netns.inode(),
        phase: Phase::Making,
        boot_id: String::new(),
        held: false,
        offered: Vec::new(),
        interfaces: vec![interface],
        result: None,
        sticky: false,
        arriving: false,
        host_ports: Vec::new(),
    })
}

/// Each pool's prefix through its gateway, which is on the link.
fn routes(checked: &Checked) -> Vec<PodRoute> {
    let mut gateways = Vec::new();
    let mut prefixes = Vec::new();
    for pool in checked.pools_of(DEFAULT_NETWORK) {
        if let Some(gateway) = pool.gateway {
            gateways.push(PodRoute { dst: IpNet::from(gateway), gw: None });
        }
        prefixes.push(PodRoute { dst: pool.subnet, gw: pool.gateway });
    }
    // A next hop must be reachable before a route through it is accepted.
    gateways.append(&mut prefixes);
    let mut seen = std::collections::BTreeSet::new();
    gateways.retain(|route| seen.insert(route.dst));
    gateways
}

async fn make(core: &Core, dataplane: &Dataplane, mut leg: Attachment) -> Result<(), String> {
    let journal = |e: std::io::Error| format!("the journal cannot be written: {e}");
    core.put(leg.clone()).map_err(journal)?;
    let plan = leg.interfaces[0].plan.clone();
    let ipv6 = plan.addresses.iter().any(|a| a.addr().is_ipv6());
    let device = plan.device;
    let made = here(move || {
        pod::remove(INTERFACE)?;
        let made = pod::make(&InterfacePlan { routes: Vec::new(), ..plan.clone() })?;
        sysctl::prepare(INTERFACE, ipv6)?;
        // What is left out is told at the next look.
        put_routes(&plan.routes)?;
        Ok(made)
    });
    let made = made.await?;
    let id = key().interface_id(INTERFACE);
    dataplane.hold(&id, core::descriptors(device, made.descriptors));
    core.note_held(&key());
    let applied = dataplane.sync(Some(&id), APPLY_WITHIN).await;
    applied.map_err(|e| e.to_string())?;
    leg.boot_id = core.attachment(&key()).map(|leg| leg.boot_id).unwrap_or_default();
    leg.phase = Phase::Ready;
    let addresses = leg.interfaces[0].plan.addresses.clone();
    core.put(leg).map_err(journal)?;
    tracing::info!(?addresses, "{INTERFACE} is the node's leg in Network {DEFAULT_NETWORK}");
    Ok(())
}

/// Runs work that blocks, in this process' namespace.
async fn here<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PodError> + Send + 'static,
) -> Result<T, String> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
