//! Sentences for people, on the object concerned.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use multinet::types::meta::Resource;

/// The API server takes 1,024 bytes.
const MAX_NOTE_BYTES: usize = 1000;
/// An event is news: it is not worth more.
const WITHIN: Duration = Duration::from_secs(5);
/// What is said again within this time is counted, not written anew; as the [`Recorder`]'s own memory.
const REMEMBERED: Duration = Duration::from_secs(360);

/// How much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Somebody should act.
    Warning,
    /// Good to know.
    Normal,
}

/// Writes events.
#[derive(Clone)]
pub struct Events {
    client: Client,
    reporter: Reporter,
    said: Arc<Mutex<HashMap<Subject, Said>>>,
}

/// What is said about an object for one reason.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Subject {
    namespace: Option<String>,
    name: String,
    uid: Option<String>,
    reason: String,
}

/// The last sentence, and who counts how often it is said. A recorder counts whatever has the same reason, under
/// the first sentence: each sentence has one of its own.
struct Said {
    sentence: String,
    recorder: Recorder,
    last: Instant,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

impl Events {
    /// Events of `component` (for instance `bowline-agent`) on `instance` (a node, a pod).
    #[must_use]
    pub fn new(client: Client, component: &str, instance: &str) -> Self {
        let reporter =
            Reporter { controller: component.to_owned(), instance: Some(instance.to_owned()) };
        Self { client, reporter, said: Arc::default() }
    }

    /// The recorder of a sentence.
    fn recorder(&self, subject: Subject, sentence: &str) -> Recorder {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.retain(|_, said| said.last.elapsed() < REMEMBERED);
        let before = said.remove(&subject).filter(|before| before.sentence == sentence);
        let recorder = before.map_or_else(
            || Recorder::new(self.client.clone(), self.reporter.clone()),
            |before| before.recorder,
        );
        let now = Said {
            sentence: sentence.to_owned(),
            recorder: recorder.clone(),
            last: Instant::now(),
        };
        said.insert(subject, now);
        recorder
    }

    /// Says something about an object of ours. A failure is logged: nothing depends on an event.
    pub async fn say<R: Resource>(
        &self,
        about: &R,
        severity: Severity,
        reason: &str,
        action: &str,
        sentence: &str,
    ) {
        let meta = about.meta();
        let reference = ObjectReference {
            api_version: Some(R::API_VERSION.to_owned()),
            kind: Some(R::KIND.to_owned()),
            name: Some(meta.name.clone()),
            namespace: meta.namespace.clone(),
            uid: meta.uid.clone(),
            ..ObjectReference::default()
        };
        self.say_of(reference, severity, reason, action, sentence).await;
    }

    /// The same about an object of any kind.
    pub async fn say_of(
        &self,
        about: ObjectReference,
        severity: Severity,
        reason: &str,
        action: &str,
        sentence: &str,
    ) {
        let event = Event {
            type_: match severity {
                Severity::Warning => EventType::Warning,
                Severity::Normal => EventType::Normal,
            },
            reason: reason.to_owned(),
            note: Some(cut(sentence)),
            action: action.to_owned(),
            secondary: None,
        };
        let subject = Subject {
            namespace: about.namespace.clone(),
            name: about.name.clone().unwrap_or_default(),
            uid: about.uid.clone(),
            reason: reason.to_owned(),
        };
        let recorder = self.recorder(subject, sentence);
        match tokio::time::timeout(WITHIN, recorder.publish(&event, &about)).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => tracing::warn!("the event \"{sentence}\" cannot be written: {e}"),
            Err(_) => tracing::warn!("the event \"{sentence}\" cannot be written in time"),
        }
    }
}

/// What fits, cut between characters.
fn cut(sentence: &str) -> String {
    if sentence.len() <= MAX_NOTE_BYTES {
        return sentence.to_owned();
    }
    let end = (0..=MAX_NOTE_BYTES - 3).rev().find(|at| sentence.is_char_boundary(*at));
    format!("{}…", &sentence[..end.unwrap_or(0)])
}
