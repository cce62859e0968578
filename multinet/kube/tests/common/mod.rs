//! What the store's tests share: an API server with agents of their own tokens, and its history.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use bowline_kube::ApiStore;
use judge::Version;
use testapi::{History, TestApi, User};
use tokio::runtime::Runtime;

/// An API server, handles to it, and what it remembers.
pub(crate) struct Server {
    pub(crate) runtime: Runtime,
    stores: Vec<ApiStore>,
    next: AtomicUsize,
    history: Mutex<History>,
    // Last: the others end before. It is used by one thread at a time, hence the lock.
    _api: Mutex<TestApi>,
}

impl Server {
    /// With so many agents, each with a connection and a token of its own.
    pub(crate) fn start(agents: usize) -> Self {
        let runtime = Runtime::new().unwrap();
        let (api, stores, history) = runtime.block_on(async {
            let may_write = vec!["system:masters".to_owned()];
            let agent = |n| User { name: format!("agent-{n}"), groups: may_write.clone() };
            let users: Vec<User> = (0..agents).map(agent).collect();
            let api = TestApi::start(&users).await;
            api.install_crds().await;
            let mut stores = Vec::new();
            for user in &users {
                stores.push(ApiStore::new(api.client(&user.name).await));
            }
            let history = History::follow(api.client("admin").await).await;
            (api, stores, Mutex::new(history))
        });
        Self { runtime, stores, next: AtomicUsize::new(0), history, _api: Mutex::new(api) }
    }

    /// Another handle; the agents take turns.
    pub(crate) fn open(&self) -> ApiStore {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        self.stores[n % self.stores.len()].clone()
    }

    /// Every version since the last call.
    pub(crate) fn history(&self) -> Vec<Version> {
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        // A life asks for it from within the runtime.
        let lines = tokio::task::block_in_place(|| self.runtime.block_on(history.take()));
        lines.iter().filter_map(Version::of_watch).collect()
    }
}
