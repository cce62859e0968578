//! Claims of what a Spiderpool installation has allocated: its record is the status of its pools.
//! Running pods keep their addresses; when they go, reclaim finds their UID gone.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::Context;
use multinet::ipam::{self, Candidate, ClaimError, Request};
use multinet::range::Family;
use multinet::store::Store;
use multinet::types::block::Owner;
use multinet::types::core::Pod;
use serde::Deserialize;

use super::{Objects, now_ms, shown};

/// One value of `status.allocatedIPs`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Allocation {
    #[serde(default)]
    interface: String,
    pod: String,
    pod_uid: String,
}

/// Imports all pools; says what was done, and what could not be.
pub(super) async fn run<S: Store>(
    store: &S,
    objects: &Objects,
    dry_run: bool,
) -> anyhow::Result<()> {
    let (mut imported, mut known, mut failed) = (0, 0, 0);
    for pool in &objects.pools {
        let text = pool.status.as_ref().and_then(|s| s.allocated_ips.as_deref()).unwrap_or("{}");
        let allocations: BTreeMap<IpAddr, Allocation> = serde_json::from_str(text)
            .with_context(|| format!("status.allocatedIPs of pool {}", pool.name()))?;
        for (address, allocation) in allocations {
            let line = format!("{address} of {} in pool {}", allocation.pod, pool.name());
            match one(store, objects, pool.name(), address, &allocation, dry_run).await {
                Ok(true) => {
                    imported += 1;
                    println!("{line}: {}", if dry_run { "would be claimed" } else { "claimed" });
                }
                Ok(false) => known += 1,
                Err(e) => {
                    failed += 1;
                    eprintln!("{line}: {e:#}");
                }
            }
        }
    }
    println!("{imported} new, {known} known, {failed} failed");
    anyhow::ensure!(failed == 0, "{failed} addresses are not claimed; their pods would lose them");
    Ok(())
}

/// `false`: the claim was there already.
async fn one<S: Store>(
    store: &S,
    objects: &Objects,
    pool: &str,
    address: IpAddr,
    allocation: &Allocation,
    dry_run: bool,
) -> anyhow::Result<bool> {
    let (namespace, name) = allocation.pod.split_once('/').context("no NAMESPACE/NAME")?;
    let (home, checked) =
        objects.checked.pools.get(pool).context("the pool serves nothing; see `ipam pools`")?;
    let pod = store.get::<Pod>(Some(namespace), name).await?;
    let node = pod.map(|pod| pod.spec.node_name).unwrap_or_default();
    let interface = match allocation.interface.as_str() {
        "" => "eth0",
        named => named,
    };
    let request = Request {
        owner: Owner::Pod {
            namespace: namespace.into(),
            name: name.into(),
            uid: allocation.pod_uid.clone(),
        },
        interface: interface.into(),
        family: Family::of(address),
        // No sandbox that Bowline will hear of.
        sandbox_id: String::new(),
        node,
        candidates: vec![Candidate::new(&objects.checked, home, checked)],
        exact: Some(address),
        sticky: false,
        cluster_nodes: 1,
    };
    if dry_run {
        let mut view = ipam::load(store, home.domain()).await?;
        let planned = ipam::plan_claim(&mut view, &request, 0, now_ms());
        return Ok(planned.map_err(|why| anyhow::anyhow!("{why}"))?.fresh);
    }
    let requests = [request];
    let claimed = ipam::claim(store, home.domain(), &requests, now_ms()).await;
    let fresh = match claimed {
        Ok(claims) => claims.iter().any(|claim| claim.fresh),
        Err(ClaimError::Rejected(why)) => anyhow::bail!("{why}"),
        Err(error) => return Err(error).context(shown(home.domain()).to_owned()),
    };
    let owner = requests[0].owner.clone();
    let holder = ipam::Holder { owner: Some(&owner), sandbox_id: "", interface: Some(interface) };
    ipam::modify(store, home.domain(), |view| {
        ipam::plan_confirm(view, holder, now_ms());
    })
    .await?;
    Ok(fresh)
}
