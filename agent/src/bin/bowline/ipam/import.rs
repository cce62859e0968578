//! Claims of what a Spiderpool installation has allocated, before the switch to Bowline. Running pods
//! keep their addresses; when they go, reclaim finds them gone.

use std::collections::HashMap;

use multinet::ipam::{self, Taken};
use multinet::store::Store;
use multinet::types::core::Pod;
use multinet::types::endpoint::SpiderEndpoint;
use multinet::types::meta::LabelSelector;

use super::{Objects, by_name, now_ms, shown};

/// Imports all pools; says what was done, and what could not be.
pub(super) async fn run<S: Store>(
    store: &S,
    objects: &Objects,
    dry_run: bool,
) -> anyhow::Result<()> {
    let endpoints: Vec<SpiderEndpoint> = store.list(&LabelSelector::default()).await?;
    let pods: Vec<Pod> = store.list(&LabelSelector::default()).await?;
    let nodes: HashMap<_, _> = pods.into_iter().map(node_of).collect();
    let pools = by_name(objects.pools.clone());
    let import = ipam::plan_import(&objects.checked, &pools, &endpoints, &nodes, now_ms());
    for note in &import.notes {
        eprintln!("{note}");
    }
    let (mut new, mut known, mut held) = (0, 0, 0);
    for (home, record) in &import.claims {
        let domain = home.domain();
        let taken = if dry_run {
            ipam::plan_take(&mut ipam::load(store, domain).await?, record)
        } else {
            ipam::modify(store, domain, |view| ipam::plan_take(view, record)).await?
        };
        let owner = record.owner.as_ref().map(ToString::to_string).unwrap_or_default();
        let line = format!("{} of {owner} in {}", record.address, shown(domain));
        match taken {
            Taken::New => {
                new += 1;
                println!("{line}: {}", if dry_run { "would be claimed" } else { "claimed" });
            }
            Taken::Already => known += 1,
            Taken::Held(by) => {
                held += 1;
                eprintln!("{line}: {by} holds it; one of the two has to go");
            }
        }
    }
    println!("{new} new, {known} known, {held} held by others");
    anyhow::ensure!(held == 0, "{held} addresses are not claimed for the pods that use them");
    Ok(())
}

/// A pod's names, and where it runs.
fn node_of(pod: Pod) -> ((String, String), String) {
    let namespace = pod.metadata.namespace.unwrap_or_default();
    ((namespace, pod.metadata.name), pod.spec.node_name)
}
