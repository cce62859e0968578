//! What happened, for whoever watches: one sentence for a person, one line in the log.

use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::broadcast;

/// Events that a slow watcher may lag behind before it misses some.
const BACKLOG: usize = 1024;

/// Unix time.
pub fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// Where events go.
#[derive(Debug)]
pub struct Events(broadcast::Sender<api::Event>);

impl Default for Events {
    fn default() -> Self {
        Self(broadcast::channel(BACKLOG).0)
    }
}

impl Events {
    /// Tells everybody.
    pub fn tell(&self, kind: &'static str, interface: &str, message: String) {
        tracing::info!(kind, interface, "{message}");
        let event = api::Event {
            time_ns: now_ns(),
            kind: kind.into(),
            interface_id: interface.into(),
            message,
        };
        // Nobody watches: fine.
        let _ = self.0.send(event);
    }

    /// Everything from now on.
    pub fn watch(&self) -> broadcast::Receiver<api::Event> {
        self.0.subscribe()
    }
}
