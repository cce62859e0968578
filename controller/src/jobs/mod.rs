//! What the leader keeps in order. A job's pass compares what should be with what is, for all objects at
//! once, and writes the difference; it runs after changes and from time to time. Running it twice, or
//! in two replicas, changes nothing more.
//!
//! | file | keeps |
//! |---|---|
//! | `networks` | VNIs, status and finalizer of Networks |
//! | `definitions` | NetworkAttachmentDefinitions of Networks and SpiderMultusConfigs |
//! | `pools` | what pools and subnets show of their addresses, and their finalizers |
//! | `endpoints` | SpiderEndpoints |
//! | `auto_pools`, `applications` | pools of applications |
//! | `coordinator` | status of the SpiderCoordinator |
//! | `reclaim` | addresses that nobody gave back |
//! | `nodes` | what deleted nodes leave |
//! | `policies` | a count of what is not enforced |
//! | `workloads` | reads StatefulSets and virtual machines for them |
//! | [`finalizers`] | names of finalizers, and when they go |

mod applications;
mod auto_pools;
mod coordinator;
mod definitions;
mod endpoints;
mod networks;
mod nodes;
mod policies;
mod pools;
mod reclaim;
mod workloads;

pub mod finalizers;

use std::future::Future;
use std::time::{Duration, Instant};

use bowline_kube::{ApiStore, Events, OtherAllocator};
use multinet::store::StoreError;
use tokio::task::JoinSet;

use crate::metrics::Metrics;
use crate::options::Options;
use crate::world::World;

/// After a failed pass; changes do not shorten it, so that a sick API server is left alone.
const AFTER_FAILURE: Duration = Duration::from_secs(2);

/// Between two looks whether addresses are still withheld.
const WITHHELD_LOOK: Duration = Duration::from_secs(1);

/// What every job works with. Clones share everything.
#[derive(Clone, Debug)]
pub struct Tools {
    /// The API server.
    pub store: ApiStore,
    /// The objects as watched.
    pub world: World,
    /// Sentences on objects.
    pub events: Events,
    /// Counters.
    pub metrics: Metrics,
    /// Whether a Spiderpool controller is at work.
    pub other: OtherAllocator,
    /// The command line.
    pub options: Options,
}

impl Tools {
    /// Whether a write succeeded. One that lost a race is decided anew in the next pass, which the
    /// change of the faster one brings about.
    ///
    /// # Errors
    /// Every other failure.
    pub fn written<T>(
        &self,
        job: &'static str,
        result: Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.is_race() => {
                self.metrics.conflict(job);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// A kind of work that is repeated.
trait Job: Send + 'static {
    /// Its name, for numbers and logs.
    const NAME: &'static str;
    /// At least so long between two passes.
    const PAUSE: Duration;
    /// At most so long between two passes.
    const EVERY: Duration;
    /// Whether it writes addresses or into Spiderpool's group: it rests while those are withheld.
    const WITHHELD: bool;

    /// The same as far as the command line has a say in it.
    fn every(&self) -> Duration {
        Self::EVERY
    }

    /// Compares everything and writes the difference.
    fn pass(&mut self, tools: &Tools) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// Starts every job on `work`.
pub fn start(tools: &Tools, work: &mut JoinSet<()>) {
    start_one(networks::Networks::default(), tools, work);
    start_one(definitions::Definitions::default(), tools, work);
    start_one(pools::Pools, tools, work);
    start_one(policies::Policies, tools, work);
    start_one(endpoints::Endpoints, tools, work);
    if tools.options.auto_pools {
        start_one(auto_pools::AutoPools::default(), tools, work);
    }
    start_one(coordinator::Coordinator, tools, work);
    start_one(reclaim::Reclaim::new(&tools.options.reclaim), tools, work);
    start_one(nodes::Nodes::new(tools.options.reclaim.node_fencing), tools, work);
}

fn start_one<J: Job>(job: J, tools: &Tools, work: &mut JoinSet<()>) {
    work.spawn(repeat(job, tools.clone()));
}

async fn repeat<J: Job>(mut job: J, tools: Tools) {
    let mut changes = tools.world.changes();
    let mut last_error = String::new();
    loop {
        while !tools.world.is_complete() {
            drop(changes.changed().await);
        }
        if J::WITHHELD && is_withheld(&tools) {
            tokio::time::sleep(WITHHELD_LOOK).await;
            continue;
        }
        changes.mark_unchanged();
        let start = Instant::now();
        let result = job.pass(&tools).await;
        tools.metrics.pass(J::NAME, start.elapsed(), result.is_err());
        let pause = match result {
            Ok(()) => {
                last_error.clear();
                J::PAUSE
            }
            Err(error) => {
                let error = error.to_string();
                if error != last_error {
                    tracing::warn!(job = J::NAME, "a pass failed and is repeated: {error}");
                    last_error = error;
                }
                J::PAUSE.max(AFTER_FAILURE)
            }
        };
        tokio::time::sleep(pause).await;
        drop(tokio::time::timeout(job.every().saturating_sub(pause), changes.changed()).await);
    }
}

/// Two masters of one pool would hand an address out twice. That nothing is written, and why, is said in
/// the condition of every Network.
fn is_withheld(tools: &Tools) -> bool {
    let withheld = tools.other.at_work().is_some();
    tools.metrics.withheld.set(i64::from(withheld));
    withheld
}
