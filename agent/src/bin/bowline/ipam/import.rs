//! Claims of what a Spiderpool installation has allocated, before the switch to Bowline. Running pods
//! keep their addresses; when they go, reclaim finds them gone.

use multinet::ipam::{self, Import, Living, Pods, Taken};
use multinet::store::Store;
use multinet::types::block::Entry;
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
    let import = plan(store, objects).await?;
    let mut count = Count::default();
    for (home, records) in &import.claims {
        let domain = home.domain();
        let taken: Vec<Taken> = if dry_run {
            let mut view = ipam::load(store, domain).await?;
            records.iter().map(|record| ipam::plan_take(&mut view, record)).collect()
        } else {
            let plan = |view: &mut _| records.iter().map(|r| ipam::plan_take(view, r)).collect();
            ipam::modify(store, domain, plan).await?
        };
        for (record, taken) in records.iter().zip(taken) {
            count.tell(domain, record, &taken, dry_run);
        }
    }
    let Count { new, known, held } = count;
    println!("{new} new, {known} known, {held} held by others");
    anyhow::ensure!(held == 0, "{held} addresses are not claimed for the pods that use them");
    Ok(())
}

/// What is to be done, unless somebody may have an address that nobody knows of.
async fn plan<S: Store>(store: &S, objects: &Objects) -> anyhow::Result<Import> {
    let endpoints: Vec<SpiderEndpoint> = store.list(&LabelSelector::default()).await?;
    let pods: Vec<Pod> = store.list(&LabelSelector::default()).await?;
    let pods: Pods = pods.into_iter().filter_map(living).collect();
    let pools = by_name(objects.pools.clone());
    let import = ipam::plan_import(&objects.checked, &pools, &endpoints, &pods, now_ms());
    for note in &import.notes {
        eprintln!("{note}");
    }
    let bad = import.notes.iter().filter(|note| note.problem.is_error()).count();
    anyhow::ensure!(bad == 0, "nothing is imported: mend {bad} SpiderIPPools (above) first");
    Ok(import)
}

/// What became of the records.
#[derive(Default)]
struct Count {
    new: usize,
    known: usize,
    held: usize,
}

impl Count {
    /// Counts one, and says what a person should know of it.
    fn tell(&mut self, domain: &str, record: &Entry, taken: &Taken, dry_run: bool) {
        let owner = record.owner.as_ref().map(ToString::to_string).unwrap_or_default();
        let line = format!("{} of {owner} in {}", record.address, shown(domain));
        match taken {
            Taken::New => {
                self.new += 1;
                println!("{line}: {}", if dry_run { "would be claimed" } else { "claimed" });
            }
            Taken::Already => self.known += 1,
            Taken::Held(by) => {
                self.held += 1;
                eprintln!("{line}: {by} holds it; one of the two has to go");
            }
        }
    }
}

/// A pod's names, and who has them.
fn living(pod: Pod) -> Option<((String, String), Living)> {
    let names = (pod.metadata.namespace.unwrap_or_default(), pod.metadata.name);
    Some((names, Living { uid: pod.metadata.uid?, node: pod.spec.node_name }))
}
