//! Claiming, confirming and releasing the addresses of an attachment, in the catalog's store.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use cni::error::{CniError, code};
use ipnet::IpNet;
use multinet::ipam::{self, Candidate, ClaimError, Holder, Request};
use multinet::pod::{self, Context, Selection};
use multinet::range::{AddressSet, Family};
use multinet::rules::{Checked, Home, Pool, Problem};
use multinet::store::{Store, StoreError};
use multinet::types::block::{Entry, EntryState, Owner};
use multinet::types::network::PoolLists;
use multinet::types::node::NodeState;

use super::ask::{Asked, Asker, refused};
use super::queue::{Held, WriteQueue};
use super::server::io_failure;
use crate::catalog::{AnyStore, Snapshot};
use crate::journal::Journal;
use crate::metrics::Metrics;

/// An intent of this node without an attachment is a crash's remnant after this time, in which an
/// ADD at work has come to its journal.
const INTENT_PATIENCE: Duration = Duration::from_secs(30);

/// What is needed to claim.
#[derive(Debug)]
pub(super) struct Claimer<'a> {
    pub(super) store: &'a AnyStore,
    pub(super) queue: &'a WriteQueue,
    pub(super) journal: &'a Journal,
    pub(super) metrics: &'a Metrics,
    pub(super) snapshot: &'a Snapshot,
    pub(super) checked: &'a Checked,
    pub(super) node: &'a str,
    pub(super) asker: &'a Asker,
    pub(super) owner: &'a Owner,
    pub(super) container_id: &'a str,
    /// Pools that the CNI configuration names, for the call's own interface.
    pub(super) configured: PoolLists,
    /// Where only pools around these may serve: addresses of the device that the interface is made on.
    pub(super) master_addresses: Option<Vec<IpAddr>>,
    /// Addresses of the pod's other interfaces, wherever they are.
    pub(super) others: Vec<IpAddr>,
    /// Who else gives addresses now, so that we must not.
    pub(super) other_allocator: &'a Option<String>,
}

/// An address of an interface, with the pool's prefix length.
#[derive(Debug, Clone)]
pub(super) struct Given {
    pub(super) interface: String,
    pub(super) address: IpNet,
    pub(super) pool: Pool,
    /// To be given back if the ADD fails.
    pub(super) fresh: bool,
    /// The node that a virtual machine comes from holds it still.
    pub(super) elsewhere: bool,
    /// The interface gets no default route.
    pub(super) clean_gateway: bool,
}

impl Claimer<'_> {
    /// Claims the addresses of all interfaces in one Network: all or none.
    pub(super) async fn claim(
        &self,
        network: &str,
        asked: &[&Asked],
    ) -> Result<Vec<Given>, CniError> {
        let mut requests = Vec::new();
        let mut clean = Vec::new();
        let mut passed_over = Vec::new();
        for asked in asked {
            let wish = &asked.wish;
            let selection = self.select(network, asked)?;
            passed_over.extend(selection.rejected.iter().cloned());
            for (family, candidates) in &selection.families {
                let exact = wish.ips.iter().find(|ip| Family::of(**ip) == *family).copied();
                // Whoever names an address gets that one.
                let candidates =
                    if exact.is_some() { candidates.clone() } else { self.apart(candidates) };
                requests.push(self.request(&wish.name, *family, candidates, exact));
                clean.push(selection.clean_gateway);
            }
            let served =
                |ip: &&IpAddr| selection.families.iter().any(|(f, _)| *f == Family::of(**ip));
            if let Some(ip) = wish.ips.iter().find(|ip| !served(ip)) {
                let message =
                    format!("is in no pool of {} that serves {}", home_of(network), wish.name);
                return Err(refused(Problem::error(format!("{}.ips", wish.at), ip, message)));
            }
        }
        if let Some(why) = self.other_allocator {
            return Err(CniError::new(code::TRY_AGAIN_LATER, why.clone()));
        }
        if self.asker.is_sticky() {
            // Its address lies in another node's block, of which the watch tells a moment later.
            self.store.read_again(network);
        }
        let noted = self.journal.note_network(network);
        noted.map_err(|e| io_failure("note that addresses are claimed", &e))?;
        let claims = self.queue.claim(self.store, network, requests.clone()).await;
        let claims = claims.map_err(|error| match error {
            // Pools that could not serve at all are named beside those that are used up.
            ClaimError::Rejected(mut refused) => {
                refused.pools.extend(passed_over);
                CniError::new(code::NO_ADDRESS, refused.to_string())
            }
            _ => CniError::new(code::TRY_AGAIN_LATER, error.to_string()),
        })?;
        self.metrics.claimed(network, claims.iter().filter(|claim| claim.fresh).count());
        let given =
            requests.iter().zip(claims).zip(clean).map(|((request, claim), clean_gateway)| {
                let Some((_, pool)) = self.checked.pools.get(&claim.pool) else {
                    let gone = format!("the pool {} of {} is gone", claim.pool, claim.address);
                    return Err(CniError::new(code::TRY_AGAIN_LATER, gone));
                };
                let address = IpNet::new(claim.address, pool.subnet.prefix_len())
                    .map_err(|e| CniError::new(code::INTERNAL, e.to_string()))?;
                Ok(Given {
                    interface: request.interface.clone(),
                    address,
                    pool: pool.clone(),
                    fresh: claim.fresh,
                    elsewhere: claim.elsewhere,
                    clean_gateway,
                })
            });
        given.collect()
    }

    fn select(&self, network: &str, asked: &Asked) -> Result<Selection, CniError> {
        let name = &asked.wish.name;
        let definition = asked.own.then(|| self.asker.definition(name)).flatten();
        let context = Context {
            pod: &self.asker.pod,
            namespace: self.asker.namespace.as_ref(),
            node: self.node,
            node_labels: &self.asker.node_labels,
            interface: name,
            index: asked.index,
            home: home_of(network),
            configured: if asked.own { self.configured.clone() } else { PoolLists::default() },
            attachment_definition: definition.as_ref().map(|(ns, n)| (ns.as_str(), n.as_str())),
            application: self.asker.application.as_ref(),
            master_addresses: self.master_addresses.as_deref(),
        };
        pod::select(self.checked, &context)
            .map_err(|problem| CniError::new(code::NO_ADDRESS, problem.to_string()))
    }

    /// Networks may have the same addresses. A pod on two of them is given different ones: its kernel
    /// goes by a reply's source to find the interface that the request came in by.
    fn apart(&self, candidates: &[Candidate]) -> Vec<Candidate> {
        let mut apart = candidates.to_vec();
        for Candidate { addresses, .. } in &mut apart {
            let family = addresses.family();
            let others = self.others.iter().copied().filter(|a| Family::of(*a) == family);
            *addresses = addresses.minus(&AddressSet::from_addresses(family, others));
        }
        apart
    }

    fn request(
        &self,
        interface: &str,
        family: Family,
        candidates: Vec<Candidate>,
        exact: Option<IpAddr>,
    ) -> Request {
        let nodes = self.snapshot.count::<NodeState>().max(1);
        Request {
            owner: self.owner.clone(),
            interface: interface.to_owned(),
            family,
            sandbox_id: self.container_id.to_owned(),
            node: self.node.to_owned(),
            candidates,
            exact,
            sticky: self.asker.is_sticky(),
            moves: self.asker.moves(),
            cluster_nodes: u32::try_from(nodes).unwrap_or(u32::MAX),
        }
    }
}

/// A domain is a Network's name, or empty for the LAN.
fn home_of(domain: &str) -> Home {
    if domain.is_empty() { Home::Lan } else { Home::Network(domain.to_owned()) }
}

/// Gives back what an ADD that failed had claimed anew.
pub(super) async fn give_back(
    store: &AnyStore,
    container_id: &str,
    fresh: &[(String, IpAddr)],
) -> Result<(), StoreError> {
    let mut by_network: BTreeMap<&str, Vec<IpAddr>> = BTreeMap::new();
    for (network, address) in fresh {
        by_network.entry(network).or_default().push(*address);
    }
    for (network, addresses) in by_network {
        let _turn = store.turn(network).await;
        ipam::modify(store, network, |view| {
            let ours = view.entries(|e| {
                e.state.is_held() && e.sandbox_id == container_id && addresses.contains(&e.address)
            });
            let entries: Vec<_> = ours.map(|(_, entry)| entry.clone()).collect();
            for entry in entries {
                ipam::plan_free_record(view, &entry, now_ms());
            }
        })
        .await?;
    }
    Ok(())
}

/// A claim that is in use and shall be marked so.
#[derive(Debug, Clone)]
pub(super) struct ToConfirm {
    pub(super) network: String,
    pub(super) owner: Owner,
    pub(super) sandbox_id: String,
}

/// Marks claims in one Network as in use, all with one write for each block.
pub(super) async fn confirm(
    store: &AnyStore,
    network: &str,
    claims: &[&ToConfirm],
) -> Result<(), StoreError> {
    let _turn = store.turn(network).await;
    ipam::modify(store, network, |view| {
        for claim in claims {
            let holder = Holder {
                owner: Some(&claim.owner),
                sandbox_id: &claim.sandbox_id,
                interface: None,
            };
            ipam::plan_confirm(view, holder, now_ms());
        }
    })
    .await
}

/// Gives back what a sandbox holds in these Networks for these interfaces.
pub(super) async fn release(
    queue: &WriteQueue,
    store: &AnyStore,
    networks: &[String],
    sandbox_id: &str,
    interfaces: &[String],
) -> Result<(), StoreError> {
    if sandbox_id.is_empty() {
        return Ok(()); // everything of nobody
    }
    for network in networks {
        let held = Held { sandbox_id: sandbox_id.to_owned(), interfaces: interfaces.to_vec() };
        queue.release(store, network, held).await?;
    }
    Ok(())
}

/// Who holds something for a sandbox's interface in a Network.
pub(super) async fn owner_of(
    store: &AnyStore,
    network: &str,
    sandbox_id: &str,
    interface: &str,
) -> Result<Option<Owner>, StoreError> {
    let blocks = store.blocks(network).await?;
    let mut held = blocks.iter().flat_map(|block| block.held());
    let entry = held.find(|e| e.sandbox_id == sandbox_id && e.interface == interface);
    Ok(entry.and_then(|entry| entry.owner.clone()))
}

/// The place of an interface that nothing else gives one.
pub(super) async fn place_by_arrival(
    store: &AnyStore,
    network: &str,
    sandbox_id: &str,
    interface: &str,
) -> Result<usize, StoreError> {
    let blocks = store.blocks(network).await?;
    let held = blocks.iter().flat_map(|b| b.held()).filter(|e| e.sandbox_id == sandbox_id);
    Ok(pod::place_by_arrival(held, interface))
}

/// Leaves what a sandbox holds to the next pod of the same name.
pub(super) async fn keep(
    store: &AnyStore,
    networks: &[String],
    sandbox_id: &str,
    interface: Option<&str>,
) -> Result<(), StoreError> {
    for network in networks {
        let _turn = store.turn(network).await;
        let holder = Holder { owner: None, sandbox_id, interface };
        ipam::modify(store, network, |view| {
            ipam::plan_keep(view, holder, now_ms());
        })
        .await?;
    }
    Ok(())
}

/// The Networks in which a sandbox holds addresses, and the names of the interfaces that they are for.
pub(super) async fn held_by(
    store: &AnyStore,
    sandbox_id: &str,
) -> Result<(Vec<String>, Vec<String>), StoreError> {
    let blocks = store.near_blocks().await?;
    let mut networks = BTreeSet::new();
    let mut names = BTreeSet::new();
    // The LAN's go with the call that asked for them.
    for block in blocks.iter().filter(|b| b.spec.network != super::lan::DOMAIN) {
        for entry in block.held().filter(|e| e.sandbox_id == sandbox_id) {
            networks.insert(block.spec.network.clone());
            names.insert(entry.interface.clone());
        }
    }
    Ok((networks.into_iter().collect(), names.into_iter().collect()))
}

/// Frees intents of this node that no attachment stands behind: an ADD died before its journal.
/// `claimed_in`, at the start: the Networks that were noted; then no ADD is at work.
pub(super) async fn free_remnants(
    store: &AnyStore,
    node: &str,
    known: impl Fn(&str, &str) -> bool + Send + Sync,
    claimed_in: Option<&[String]>,
) -> Result<usize, StoreError> {
    let patience_ms = millis(INTENT_PATIENCE);
    let remnant = |e: &Entry| {
        e.state == EntryState::Intent
            && e.node == node
            && matches!(e.owner, Some(Owner::Pod { .. }))
            && (claimed_in.is_some() || e.is_stale_intent(now_ms(), patience_ms))
            && !known(&e.sandbox_id, &e.interface)
    };
    let blocks = match claimed_in {
        Some(networks) => store.blocks_claimed_in(networks).await?,
        None => store.near_blocks().await?,
    };
    let mut freed = 0;
    for block in blocks.iter().filter(|b| b.held().any(remnant)) {
        let entries: Vec<_> = block.held().filter(|e| remnant(e)).cloned().collect();
        freed += entries.len();
        let _turn = store.turn(&block.spec.network).await;
        ipam::modify(store, &block.spec.network, |view| {
            for entry in &entries {
                ipam::plan_free_record(view, entry, now_ms());
            }
        })
        .await?;
    }
    Ok(freed)
}

/// Unix time.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map(millis).unwrap_or_default()
}

pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
