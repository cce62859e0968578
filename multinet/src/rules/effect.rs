//! What a change of one object does to pools that serve already.

use super::{Checked, Problem};
use crate::types::meta::Resource;
use crate::types::pool::SpiderIPPool;
use crate::types::subnet::SpiderSubnet;

/// Pools that served before and would not any more, because a new subnet lies around them.
#[must_use]
pub fn broken_pools(before: &Checked, after: &Checked, subnet: &SpiderSubnet) -> Vec<Problem> {
    let mut problems = Vec::new();
    for name in before.pools.keys().filter(|name| !after.pools.contains_key(*name)) {
        let why = after.problems_of(SpiderIPPool::KIND, name).find(|p| p.is_error());
        let why = why.map_or_else(String::new, |p| format!(": its {p}"));
        let message = format!("breaks the existing SpiderIPPool {name}{why}");
        problems.push(Problem::error("spec.subnet", &subnet.spec.subnet, message));
    }
    problems
}

/// Pools that another Network would own from now on, while their addresses are in use. `held` counts
/// those of a pool.
#[must_use]
pub fn moved_pools(
    before: &Checked,
    after: &Checked,
    held: impl Fn(&str) -> usize,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (name, (home, _)) in &before.pools {
        let now = after.pools.get(name).map(|(home, _)| home);
        if now == Some(home) {
            continue;
        }
        let held = held(name);
        if held > 0 {
            let to = now.map_or_else(|| "nobody".into(), ToString::to_string);
            let message = format!(
                "would move from {home} to {to} while {held} of its addresses are in use; \
                 label the pool or release them first"
            );
            problems.push(Problem::error("spec.ipPools", name, message));
        }
    }
    problems
}
