//! Addresses for other plugins' interfaces: the types `bowline-ipam` and `spiderpool` in the `ipam`
//! section of macvlan, ipvlan, SR-IOV and the like. They come from the LAN domain's pools.
//!
//! No claim is journaled: an answer is given after the claims are marked as in use, so that the
//! AddressBlocks alone say what a sandbox has. The same ADD finds the same claims. Only the name of
//! the CNI configuration is noted on the node, for GC.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use cni::error::{CniError, code};
use cni::netconf::Ipam;
use cni::result::{CniResult, IpConfig, Route};
use cni::rpc::{Command, Outcome, Request};
use multinet::ipam::{self, Holder};
use multinet::range::Family;
use multinet::rules::{Checked, Home};
use multinet::store::{Store, StoreError};
use multinet::types::network::PoolLists;

use super::add::PREPARE_WITHIN;
use super::addresses::{self, Claimer, Given, now_ms};
use super::ask::{self, Asked, Asker, refused};
use super::detect::{self, Conflicts, Failed};
use super::routes::default_prefix;
use super::server::{CniServer, io_failure, key_of, pod_failure};
use super::{automatic, imported, master, remove, tombstone};
use crate::catalog::Snapshot;
use crate::journal::AttachmentKey;
use crate::pod::{self, Netns};

/// The domain of pools that belong to no Network.
pub(super) const DOMAIN: &str = "";

/// On a pod: the interface that gets the default route.
pub(super) const DEFAULT_ROUTE_NIC: &str = "ipam.spidernet.io/default-route-nic";

/// Serves a call in IPAM mode.
pub(super) async fn serve(server: &Arc<CniServer>, request: &Request) -> Result<Outcome, CniError> {
    match request.command {
        Command::Add => {
            tombstone::replay(server).await;
            let key = key_of(request)?;
            let _lock = server.lock(&key.container_id).await;
            add(server, request, key).await.map(Outcome::Result)
        }
        Command::Del => {
            let key = key_of(request)?;
            let _lock = server.lock(&key.container_id).await;
            del(server, request, &key).await
        }
        Command::Check => check(server, request, &key_of(request)?).await.map(|()| Outcome::Done),
        Command::Gc => gc(server, request).await.map(|()| Outcome::Done),
        Command::Status => server.look().await.map(|_| Outcome::Done),
    }
}

/// What an ADD works on.
struct Add<'a> {
    server: &'a CniServer,
    ipam: Ipam,
    key: AttachmentKey,
    netns: Arc<Netns>,
    snapshot: Arc<Snapshot>,
    checked: Arc<Checked>,
    asker: Asker,
    asked: Asked,
    master_addresses: Option<Vec<IpAddr>>,
}

async fn add(
    server: &CniServer,
    request: &Request,
    key: AttachmentKey,
) -> Result<CniResult, CniError> {
    let netns = Arc::new(Netns::open(Path::new(&request.netns)).map_err(|e| pod_failure(&e))?);
    let snapshot = server.look().await?;
    let asker = Asker::find(&server.core.catalog, &snapshot, request, &server.core.node).await?;
    let mut asked = ask::lan_interface(request, &asker)?;
    let config = request.config.clone();
    let master_addresses = server.blocking(move || master::addresses(&config)).await??;
    let wanted = [(Home::Lan, key.ifname.as_str())];
    let snapshot = automatic::await_pools(server, snapshot, &asker, &wanted).await;
    let checked = server.core.checked(&snapshot);
    let prepared = server.core.catalog.prepare(&[DOMAIN.to_owned()], PREPARE_WITHIN).await;
    prepared.map_err(|why| CniError::new(code::TRY_AGAIN_LATER, why))?;
    if asked.index.is_none() {
        let store = server.core.catalog.store();
        let place =
            addresses::place_by_arrival(&store, DOMAIN, &key.container_id, &key.ifname).await;
        asked.index = Some(place.map_err(|e| CniError::new(code::TRY_AGAIN_LATER, e.to_string()))?);
    }
    // Before there is a claim, so that whatever is claimed can be collected.
    let noted = server.core.callers.put(&key, &request.config.name);
    noted.map_err(|e| io_failure("note the CNI configuration", &e))?;
    let ipam = request.config.ipam.clone().unwrap_or_default();
    let add = Add { server, ipam, key, netns, snapshot, checked, asker, asked, master_addresses };
    add.run().await
}

impl Add<'_> {
    async fn run(&self) -> Result<CniResult, CniError> {
        let mut fresh = Vec::new();
        let done = self.claim_and_answer(&mut fresh).await;
        if done.is_err() {
            let store = self.server.core.catalog.store();
            if let Err(e) = addresses::give_back(&store, &self.key.container_id, &fresh).await {
                tracing::error!(attachment = %self.key, "addresses stay claimed: {e}");
            }
        }
        done
    }

    /// `fresh`: what this call has claimed, to be given back if it fails.
    async fn claim_and_answer(
        &self,
        fresh: &mut Vec<(String, IpAddr)>,
    ) -> Result<CniResult, CniError> {
        let mut conflicts = Conflicts::default();
        loop {
            let given = self.claim().await?;
            let new = given.iter().filter(|g| g.fresh);
            fresh.extend(new.map(|g| (DOMAIN.to_owned(), g.address.addr())));
            let questions = detect::questions(&self.asker, given.iter());
            let (server, name) = (self.server, &self.key.ifname);
            match detect::ask(server, &self.netns, name, questions).await {
                Ok(()) => return self.answer(&given).await,
                Err(Failed::Other(error)) => return Err(error),
                Err(Failed::Taken(taken)) => {
                    let domain = |_: &_| DOMAIN.to_owned();
                    conflicts.set_aside(server, &self.asker, &self.key, domain, &taken).await?;
                }
            }
        }
    }

    async fn claim(&self) -> Result<Vec<Given>, CniError> {
        let catalog = &self.server.core.catalog;
        let (store, owner) = (catalog.store(), self.asker.owner());
        let other_allocator = catalog.api().and_then(|api| api.other_allocator());
        let claimer = Claimer {
            store: &store,
            queue: &self.server.writes,
            journal: &self.server.core.journal,
            metrics: &self.server.metrics,
            other_allocator: &other_allocator,
            snapshot: &self.snapshot,
            checked: &self.checked,
            node: &self.server.core.node,
            asker: &self.asker,
            owner: &owner,
            container_id: &self.key.container_id,
            configured: PoolLists {
                ipv4: self.ipam.default_ipv4_ippool.clone(),
                ipv6: self.ipam.default_ipv6_ippool.clone(),
            },
            master_addresses: self.master_addresses.clone(),
            others: self.server.core.addresses_of(&self.key.container_id),
        };
        let mut given = claimer.claim(DOMAIN, &[&self.asked]).await?;
        for given in &mut given {
            given.clean_gateway |= self.ipam.clean_gateway == Some(true);
        }
        Ok(given)
    }

    /// Marks the claims as in use, and says what the caller shall configure.
    async fn answer(&self, given: &[Given]) -> Result<CniResult, CniError> {
        let (server, key) = (self.server, &self.key);
        let (name, netns) = (key.ifname.clone(), self.netns.clone());
        let elsewhere = server
            .blocking(move || netns.run(|| pod::default_route_families_beside(&name)))
            .await?
            .map_err(|e| pod_failure(&e))?;
        let result = result_of(&self.asker, &key.ifname, given, &elsewhere)?;
        // What a migrating machine's source holds is in use already.
        let own = given.iter().filter(|g| !g.elsewhere);
        let addresses: Vec<IpAddr> = own.map(|g| g.address.addr()).collect();
        let store = server.core.catalog.store();
        let confirmed = confirm(&store, key, &addresses).await;
        if confirmed.map_err(|e| CniError::new(code::TRY_AGAIN_LATER, e.to_string()))? {
            return Ok(result);
        }
        let message = format!("the addresses of {key} were taken back meanwhile; try again");
        Err(CniError::new(code::TRY_AGAIN_LATER, message))
    }
}

/// Does the sandbox hold all of them, from now on in use?
async fn confirm<S: Store>(
    store: &S,
    key: &AttachmentKey,
    addresses: &[IpAddr],
) -> Result<bool, StoreError> {
    ipam::modify(store, DOMAIN, |view| {
        ipam::plan_confirm(view, holder(key), now_ms());
        let held = view.entries(|e| {
            e.state.is_held() && e.sandbox_id == key.container_id && e.interface == key.ifname
        });
        let held: Vec<IpAddr> = held.map(|(_, e)| e.address).collect();
        addresses.iter().all(|address| held.contains(address))
    })
    .await
}

/// Addresses with the pool's prefix, and routes. The default route is told where the pod has none by
/// another interface, or where the pod names this one.
fn result_of(
    asker: &Asker,
    ifname: &str,
    given: &[Given],
    defaults_elsewhere: &[u8],
) -> Result<CniResult, CniError> {
    let named = asker.pod.annotations.get(DEFAULT_ROUTE_NIC).filter(|name| !name.is_empty());
    let annotated = multinet::pod::parse_routes(&asker.pod.annotations).map_err(refused)?;
    let mut result = CniResult { cni_version: "1.1.0".into(), ..CniResult::default() };
    for given in given {
        let gateway = given.pool.gateway;
        result.ips.push(IpConfig {
            address: given.address.to_string(),
            gateway: gateway.map(|gw| gw.to_string()),
            interface: None,
        });
        let family = if given.address.addr().is_ipv4() { 4 } else { 6 };
        let wanted = named.map_or(!defaults_elsewhere.contains(&family), |name| name == ifname);
        let default = gateway.filter(|_| wanted && !given.clean_gateway);
        let mut routes: Vec<_> = default.map(|gw| (default_prefix(gw), gw)).into_iter().collect();
        routes.extend(&given.pool.routes);
        for (dst, gw) in annotated.iter().filter(|(_, gw)| given.address.contains(gw)) {
            // The pod's word goes before its pool's.
            routes.retain(|(other, _)| other != dst);
            routes.push((*dst, *gw));
        }
        result.routes.extend(routes.iter().map(|(dst, gw)| Route {
            dst: dst.to_string(),
            gw: Some(gw.to_string()),
            ..Route::default()
        }));
    }
    Ok(result)
}

fn holder(key: &AttachmentKey) -> Holder<'_> {
    Holder { owner: None, sandbox_id: &key.container_id, interface: Some(&key.ifname) }
}

/// A DEL that cannot be written now is noted like one that came while the agent was away.
async fn del(
    server: &CniServer,
    request: &Request,
    key: &AttachmentKey,
) -> Result<Outcome, CniError> {
    let Err(error) = release(server, request, key).await else { return Ok(Outcome::Done) };
    tracing::warn!(attachment = %key, "addresses are released later: {error}");
    match cni::tombstone::write(&server.settings.tombstone_dir, request) {
        Ok(()) => Ok(Outcome::Done),
        Err(e) => {
            let message = format!("{error}; and the DEL cannot be noted: {e}");
            Err(CniError::new(code::TRY_AGAIN_LATER, message))
        }
    }
}

/// Gives back what a DEL's sandbox has for the interface, imported addresses included.
pub(super) async fn release(
    server: &CniServer,
    request: &Request,
    key: &AttachmentKey,
) -> Result<(), StoreError> {
    imported::release(server, request, key).await?;
    release_of(server, key).await
}

/// Gives back what the sandbox has for the interface, or leaves it to the next pod of the same name.
/// Another sandbox's claims are not its own.
async fn release_of(server: &CniServer, key: &AttachmentKey) -> Result<(), StoreError> {
    let store = server.core.catalog.store();
    let (sandbox, name) = (key.container_id.as_str(), key.ifname.as_str());
    let outlives = match addresses::owner_of(&store, DOMAIN, sandbox, name).await? {
        Some(owner) => remove::outlive_pod(server, &owner).await,
        None => Ok(false),
    };
    let domain = [DOMAIN.to_owned()];
    if outlives.map_err(StoreError::Unavailable)? {
        addresses::keep(&store, &domain, sandbox, Some(name)).await?;
    } else {
        addresses::release(&server.writes, &store, &domain, sandbox, &[name.to_owned()]).await?;
    }
    server.core.callers.forget(key).map_err(|e| StoreError::Unavailable(e.to_string()))
}

/// What the runtime does not know any more is given back, as far as this configuration asked for it.
async fn gc(server: &CniServer, request: &Request) -> Result<(), CniError> {
    let Some(valid) = &request.config.valid_attachments else {
        return Ok(()); // nothing is said, so nothing is known to be stale
    };
    let asked = server.core.callers.keys(|conf_name| *conf_name == request.config.name);
    for key in asked.map_err(|e| io_failure("read which configuration asked for what", &e))? {
        if valid.iter().any(|v| v.container_id == key.container_id && v.ifname == key.ifname) {
            continue;
        }
        tracing::info!(attachment = %key, "given back: the runtime does not know it any more");
        let _lock = server.lock(&key.container_id).await;
        let released = release_of(server, &key).await;
        released.map_err(|e| CniError::new(code::TRY_AGAIN_LATER, e.to_string()))?;
    }
    Ok(())
}

/// Does the sandbox still hold what the runtime was told?
async fn check(server: &CniServer, request: &Request, key: &AttachmentKey) -> Result<(), CniError> {
    let failed = |message: String| Err(CniError::new(code::CHECK_FAILED, message));
    let store = server.core.catalog.store();
    let blocks = store.blocks(DOMAIN).await;
    let blocks = blocks.map_err(|e| CniError::new(code::TRY_AGAIN_LATER, e.to_string()))?;
    let held = blocks.iter().flat_map(|block| block.held());
    let held = held.filter(|e| e.sandbox_id == key.container_id && e.interface == key.ifname);
    let held: Vec<IpAddr> = held.map(|e| e.address).collect();
    if held.is_empty() {
        return failed(format!("{key} holds no address; the pod has to be created anew"));
    }
    let told = request.prev_result.iter().flat_map(|r| &r.ips);
    let told: Vec<IpAddr> =
        told.filter_map(|ip| ip.address.split('/').next()?.parse().ok()).collect();
    match held.iter().find(|address| !told.contains(address)) {
        Some(address) => {
            let family = Family::of(*address);
            failed(format!("{key} holds the {family} address {address}, but prevResult lacks it"))
        }
        None => Ok(()),
    }
}
