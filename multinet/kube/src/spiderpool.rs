//! Is another allocator at work? Two that write addresses of the same pools would give one twice.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};

/// The Lease of upstream's controllers, in whatever namespace they run.
const LEASE: &str = "spiderpool-controller-leases";
/// Upstream renews every two seconds and gives up after 15.
const ALIVE_FOR: Duration = Duration::from_secs(30);

/// Watches for a Spiderpool controller. The watch ends with the runtime.
#[derive(Clone, Debug, Default)]
pub struct OtherAllocator {
    seen: Arc<Mutex<Option<Seen>>>,
}

#[derive(Debug)]
struct Seen {
    namespace: String,
    renewed: Option<Timestamp>,
    /// When we learnt of the last renewal.
    at: Instant,
}

impl OtherAllocator {
    /// Starts to watch.
    #[must_use]
    pub fn watch(client: Client) -> Self {
        let this = Self::default();
        let config = watcher::Config::default().fields(&format!("metadata.name={LEASE}"));
        let mut events = watcher(Api::<Lease>::all(client), config).default_backoff().boxed();
        let seen = this.seen.clone();
        tokio::spawn(async move {
            while let Some(event) = events.next().await {
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                match event {
                    Ok(Event::Apply(lease) | Event::InitApply(lease)) => note(&mut seen, &lease),
                    Ok(Event::Delete(_)) => *seen = None,
                    // Without the right to watch Leases we cannot know; the installer grants it.
                    Ok(Event::Init | Event::InitDone) | Err(_) => {}
                }
            }
        });
        this
    }

    /// A sentence that says who is at work, if anybody is.
    #[must_use]
    pub fn at_work(&self) -> Option<String> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let live = seen.as_ref().filter(|seen| seen.at.elapsed() < ALIVE_FOR)?;
        Some(format!(
            "a Spiderpool controller is at work: it renews the Lease {}/{LEASE}. Import its \
             allocations with `bowline ipam import`, stop it, and Bowline goes on",
            live.namespace
        ))
    }
}

fn note(seen: &mut Option<Seen>, lease: &Lease) {
    let renewed = lease.spec.as_ref().and_then(|spec| spec.renew_time.as_ref()).map(|time| time.0);
    if seen.as_ref().is_some_and(|seen| seen.renewed == renewed) {
        return;
    }
    let namespace = lease.namespace().unwrap_or_default();
    // Of the first sight nothing is known but the time that the other wrote. Later a change says
    // all, whatever the clocks.
    let first = seen.is_none();
    let age = renewed.map(|time| Timestamp::now().duration_since(time).unsigned_abs());
    let stale = age.is_none_or(|age| age > ALIVE_FOR);
    let at = Instant::now();
    let at = if first && stale { at.checked_sub(ALIVE_FOR).unwrap_or(at) } else { at };
    *seen = Some(Seen { namespace, renewed, at });
}
