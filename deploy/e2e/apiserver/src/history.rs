//! Every version of every object of a kind, as the API server's watch tells it: raw JSON, nothing left
//! out, nothing interpreted.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::io::AsyncBufReadExt;
use futures::stream::StreamExt;
use http::Request;
use kube::Client;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

const KIND: &str = "/apis/bowline.dev/v1alpha1/addressblocks";
/// The object whose change shows how far the watch has come.
const MARK: &str = "mark.10-255-255-0";
/// A watch that is so late has failed.
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(60);

/// The history of the AddressBlocks since [`History::follow`].
#[expect(missing_debug_implementations, reason = "the client has none")]
pub struct History {
    client: Client,
    lines: Arc<Mutex<Vec<Value>>>,
    /// The last mark that the watch told of.
    mark: watch::Receiver<u64>,
    marks: u64,
    task: JoinHandle<()>,
}

impl History {
    /// Begins to follow; the definitions are installed.
    ///
    /// # Panics
    /// When the API server does not serve the kind.
    pub async fn follow(client: Client) -> Self {
        let mark = json!({
            "apiVersion": "bowline.dev/v1alpha1", "kind": "AddressBlock", "metadata": {"name": MARK},
            "spec": {"network": "mark", "cidr": "10.255.255.0/26", "entries": []},
        });
        let request = Request::post(KIND).header("content-type", "application/json");
        let request = request.body(mark.to_string().into_bytes()).expect("a request");
        let made: Value = client.request(request).await.expect("make the mark");
        let from = made["metadata"]["resourceVersion"].as_str().expect("a version").to_owned();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (tell, mark) = watch::channel(0);
        let task = tokio::spawn(read(client.clone(), from, lines.clone(), tell));
        Self { client, lines, mark, marks: 0, task }
    }

    /// Every line since the last call, up to all writes that have been answered by now.
    ///
    /// # Panics
    /// When the watch does not come after.
    pub async fn take(&mut self) -> Vec<Value> {
        self.marks += 1;
        let wanted = self.marks;
        let patch = json!({"metadata": {"annotations": {"mark": wanted.to_string()}}});
        let request = Request::patch(format!("{KIND}/{MARK}"));
        let request = request.header("content-type", "application/merge-patch+json");
        let request = request.body(patch.to_string().into_bytes()).expect("a request");
        let _: Value = self.client.request(request).await.expect("move the mark");
        let caught_up = self.mark.wait_for(|seen| *seen >= wanted);
        let caught_up = tokio::time::timeout(CAUGHT_UP_WITHIN, caught_up).await;
        assert!(matches!(caught_up, Ok(Ok(_))), "the watch does not come after");
        std::mem::take(&mut *self.lines.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for History {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Reads watches, each from where the last one ended.
async fn read(
    client: Client,
    mut from: String,
    lines: Arc<Mutex<Vec<Value>>>,
    tell: watch::Sender<u64>,
) {
    loop {
        let path = format!("{KIND}?watch=true&resourceVersion={from}");
        let request = Request::get(path).body(Vec::new()).expect("a request");
        let stream = client.request_stream(request).await.expect("watch");
        let mut told = Box::pin(stream).lines();
        while let Some(Ok(line)) = told.next().await {
            let line: Value = serde_json::from_str(&line).expect("JSON of the API server");
            assert_ne!(line["type"], "ERROR", "the watch has a gap: {line}");
            let metadata = &line["object"]["metadata"];
            from = metadata["resourceVersion"].as_str().expect("a version").to_owned();
            if metadata["name"] == MARK {
                let mark = metadata["annotations"]["mark"].as_str().and_then(|m| m.parse().ok());
                tell.send_replace(mark.unwrap_or_default());
            } else {
                lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        }
    }
}
