//! What deleted nodes leave: blocks bound to them, and addresses of their own. Freed after a time in which
//! their pods may still run: others stop believing a node when its NodeState goes with it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use multinet::ipam::{modify, plan_node_gone};
use multinet::store::{Store, StoreError};
use multinet::types::block::Owner;
use multinet::types::core::Node;

use super::reclaim::now_ms;
use super::{Job, Tools};

/// The job.
pub(super) struct Nodes {
    fencing: Duration,
    /// Since when nodes are missed.
    missed: BTreeMap<String, Instant>,
}

impl Nodes {
    pub(super) fn new(fencing: Duration) -> Self {
        Nodes { fencing, missed: BTreeMap::new() }
    }

    /// Nodes that have been missed for long enough.
    fn lost<'a>(&mut self, missing: impl Iterator<Item = &'a String>, now: Instant) -> Vec<String> {
        let missing: BTreeSet<&String> = missing.collect();
        self.missed.retain(|node, _| missing.contains(node));
        let mut lost = Vec::new();
        for node in missing {
            let since = *self.missed.entry(node.clone()).or_insert(now);
            if now.duration_since(since) >= self.fencing {
                lost.push(node.clone());
            }
        }
        lost
    }
}

impl Job for Nodes {
    const NAME: &'static str = "nodes";
    const PAUSE: Duration = Duration::from_secs(1);
    const EVERY: Duration = Duration::from_secs(5);
    const WITHHELD: bool = true;

    async fn pass(&mut self, tools: &Tools) -> Result<(), StoreError> {
        let left = left_behind(tools);
        let lost = self.lost(left.keys(), Instant::now());
        for node in lost {
            // It may be back, and the watch late.
            if tools.store.get::<Node>(None, &node).await?.is_some() {
                continue;
            }
            for network in left.get(&node).into_iter().flatten() {
                let plan = |view: &mut _| plan_node_gone(view, &node, now_ms());
                let freed = modify(&tools.store, network, plan).await?;
                tracing::info!(node, network, ?freed, "blocks of a deleted node are nobody's now");
            }
        }
        Ok(())
    }
}

/// Nodes that do not exist and hold blocks or addresses, with the Networks of those.
fn left_behind(tools: &Tools) -> BTreeMap<String, BTreeSet<String>> {
    let (blocks, nodes) = (tools.world.blocks.read(), tools.world.nodes.read());
    let mut left: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for block in blocks.values() {
        let own = block.held().filter_map(|e| match &e.owner {
            Some(Owner::Node { name }) => Some(name),
            _ => None,
        });
        for node in own.chain(&block.spec.node) {
            if !nodes.contains_key(&(String::new(), node.clone())) {
                left.entry(node.clone()).or_default().insert(block.spec.network.clone());
            }
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_lost_after_its_fencing_and_forgotten_when_it_is_back() {
        let mut nodes = Nodes::new(Duration::from_secs(60));
        let (start, name) = (Instant::now(), "n1".to_owned());
        let missing = || std::iter::once(&name);
        assert!(nodes.lost(missing(), start).is_empty());
        let later = start + Duration::from_secs(60);
        assert_eq!(nodes.lost(missing(), later), ["n1"]);
        assert!(nodes.lost(std::iter::empty(), later).is_empty());
        assert!(nodes.lost(missing(), later).is_empty(), "its time starts anew");
    }
}
