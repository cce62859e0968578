//! The Kubernetes API as agents use it, with watches and memory, in the suite's crowd: as many pods as
//! addresses, judged on the raw history of the API server's watch. `BOWLINE_STORE_FULL=1`: a hundred
//! agents with ten pods each, every agent with a connection and a token of its own.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use agent::catalog::{AnyStore, ApiCatalog, Source};
use judge::Version;
use multinet::conformance::{self, Crowd, Ground};
use testapi::{History, TestApi, User};
use tokio::runtime::Runtime;

/// The API server has listed the blocks by then.
const LISTED_WITHIN: Duration = Duration::from_secs(60);

/// An API server with its history, and agents.
struct Fleet {
    runtime: Runtime,
    agents: Vec<Source>,
    next: AtomicUsize,
    history: Mutex<History>,
    // Last: the others end before. It is used by one thread at a time, hence the lock.
    _api: Mutex<TestApi>,
}

impl Fleet {
    fn start(agents: u32, networks: &[String]) -> Self {
        let runtime = Runtime::new().unwrap();
        let groups = vec!["system:masters".to_owned()];
        let user = |n| User { name: format!("agent-{n}"), groups: groups.clone() };
        let users: Vec<User> = (0..agents).map(user).collect();
        let (api, agents, history) = runtime.block_on(async {
            let api = TestApi::start(&users).await;
            api.install_crds().await;
            let mut agents = Vec::new();
            for User { name, .. } in &users {
                let catalog = ApiCatalog::open(api.client(name).await, name).await;
                let source = Source::Api(catalog);
                source.prepare(networks, LISTED_WITHIN).await.expect("the blocks");
                agents.push(source);
            }
            let history = History::follow(api.client("admin").await).await;
            (api, agents, Mutex::new(history))
        });
        Self { runtime, agents, next: AtomicUsize::new(0), history, _api: Mutex::new(api) }
    }

    /// Another agent's store; they take turns.
    fn open(&self) -> AnyStore {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        self.agents[n % self.agents.len()].store()
    }

    /// Every version since the last call.
    fn history(&self) -> Vec<Version> {
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        self.runtime.block_on(history.take()).iter().filter_map(Version::of_watch).collect()
    }
}

#[test]
fn as_many_pods_as_addresses() {
    let full = std::env::var_os("BOWLINE_STORE_FULL").is_some();
    let (agents, pods) = if full { (100, 10) } else { (16, 1) };
    let crowd = Crowd { agents, pods, interfaces: 3, trouble_every: 17 };
    let fleet = Fleet::start(agents, &crowd.networks());
    let handle = fleet.runtime.handle();
    let ground = Ground {
        open: &|| fleet.open(),
        block_on: &|future| handle.block_on(future),
        history: Some(&|| fleet.history()),
        step: 1,
    };
    conformance::crowd(ground, crowd);
}
