//! What happened, for whoever watches: one sentence for a person, one line in the log.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::broadcast;

/// Events that a slow watcher may lag behind before it misses some.
const BACKLOG: usize = 1024;
/// So many events of one kind at one interface are told at once …
const AT_ONCE: u32 = 32;
/// … and then one in this time: a pod can come and go as often as it likes, and each line is written by us
/// and by the agent. What is not told is counted, and shows in counters and states.
const EVERY: Duration = Duration::from_secs(1);
/// Beyond so many quotas those that nobody uses are forgotten.
const MANY: usize = 1024;

/// Unix time.
pub fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// Where events go.
#[derive(Debug)]
pub struct Events {
    watchers: broadcast::Sender<api::Event>,
    /// By kind and interface.
    quotas: Mutex<HashMap<(&'static str, String), Quota>>,
}

impl Default for Events {
    fn default() -> Self {
        Self { watchers: broadcast::channel(BACKLOG).0, quotas: Mutex::default() }
    }
}

/// How many events may be told.
#[derive(Debug, Clone, Copy)]
struct Quota {
    left: u32,
    since: Instant,
    untold: u32,
}

impl Quota {
    fn new(now: Instant) -> Self {
        Self { left: AT_ONCE, since: now, untold: 0 }
    }

    fn refill(&mut self, now: Instant) {
        let more = now.saturating_duration_since(self.since).as_secs() / EVERY.as_secs();
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        self.since += EVERY.saturating_mul(more);
        self.left = self.left.saturating_add(more).min(AT_ONCE);
    }

    /// Whether one may be told, and how many before it were not.
    fn take(&mut self, now: Instant) -> Option<u32> {
        self.refill(now);
        let Some(left) = self.left.checked_sub(1) else {
            self.untold = self.untold.saturating_add(1);
            return None;
        };
        self.left = left;
        Some(std::mem::take(&mut self.untold))
    }
}

impl Events {
    /// Tells everybody.
    pub fn tell(&self, kind: &'static str, interface: &str, message: String) {
        let message = match self.take(kind, interface, Instant::now()) {
            None => return,
            Some(0) => message,
            Some(untold) => format!("{message} (before it, {untold} like this were not told)"),
        };
        tracing::info!(kind, interface, "{message}");
        let event = api::Event {
            time_ns: now_ns(),
            kind: kind.into(),
            interface_id: interface.into(),
            message,
        };
        // Nobody watches: fine.
        let _ = self.watchers.send(event);
    }

    fn take(&self, kind: &'static str, interface: &str, now: Instant) -> Option<u32> {
        let mut quotas = self.quotas.lock().unwrap_or_else(PoisonError::into_inner);
        if quotas.len() > MANY {
            quotas.retain(|_, quota| {
                quota.refill(now);
                quota.left < AT_ONCE
            });
        }
        let quota = quotas.entry((kind, interface.to_owned())).or_insert_with(|| Quota::new(now));
        quota.take(now)
    }

    /// Everything from now on.
    pub fn watch(&self) -> broadcast::Receiver<api::Event> {
        self.watchers.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_comes_and_goes_all_the_time_is_told_of_once_a_second() {
        let (events, start) = (Events::default(), Instant::now());
        let told = |at_ms| events.take("port-up", "pod", start + Duration::from_millis(at_ms));
        let first: Vec<_> = (0..2_000).filter_map(|_| told(0)).collect();
        assert_eq!(first, [0; AT_ONCE as usize]);
        assert_eq!((told(999), told(1_000), told(1_001)), (None, Some(1_969), None));
        assert_eq!((1..20).filter_map(|n| told(1_000 + n * 500)).count(), 9);
        assert_eq!(events.take("port-up", "other", start), Some(0), "the others are told of");
        assert_eq!(events.take("worker-stuck", "pod", start), Some(0), "and everything else");
    }

    #[test]
    fn quotas_of_pods_that_are_gone_are_forgotten() {
        let (events, start) = (Events::default(), Instant::now());
        for n in 0..=MANY {
            events.take("port-up", &format!("pod-{n}"), start);
        }
        events.take("port-up", "pod-0", start + EVERY);
        assert_eq!(events.quotas.lock().unwrap().len(), 1);
    }

    #[test]
    fn a_watcher_hears_how_many_it_missed() {
        let events = Events::default();
        let mut watcher = events.watch();
        for _ in 0..AT_ONCE + 5 {
            events.tell("port-up", "pod", "up".into());
        }
        let quota = |events: &Events| events.quotas.lock().unwrap()[&("port-up", "pod".into())];
        assert_eq!(quota(&events).untold, 5);
        let later = quota(&events).since - EVERY;
        events.quotas.lock().unwrap().get_mut(&("port-up", "pod".into())).unwrap().since = later;
        events.tell("port-up", "pod", "up".into());
        let heard: Vec<_> = std::iter::from_fn(|| watcher.try_recv().ok()).collect();
        assert_eq!(heard.len(), AT_ONCE as usize + 1);
        assert_eq!(heard[32].message, "up (before it, 5 like this were not told)");
    }
}
