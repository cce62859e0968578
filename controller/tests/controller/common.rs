//! A real API server, controllers in this process, and conditions that are waited for.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use bowline_kube::ApiStore;
use clap::Parser;
use controller::daemon;
use controller::options::{Command, Line, Options};
use kube::Client;
use multinet::store::Store;
use multinet::types::meta::{LabelSelector, Resource};
use serde::Deserialize;
use serde_json::{Value, json};
use testapi::{TestApi, User};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub(crate) const NAMESPACE: &str = "bowline-system";
/// Whom the API server takes the controllers for.
pub(crate) const ACCOUNT: &str = "system:serviceaccount:bowline-system:bowline-controller";
/// Machines under load take a fraction of it.
pub(crate) const SOON: Duration = Duration::from_secs(40);

/// An API server with Bowline's kinds, and Multus' if asked for.
pub(crate) async fn cluster() -> (TestApi, Client) {
    let api = TestApi::start(&[User::named(ACCOUNT)]).await;
    api.install_crds().await;
    let client = api.client("admin").await;
    create(
        &client,
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}),
    )
    .await
    .unwrap();
    install_rights(&client).await;
    install_multus(&client).await;
    (api, client)
}

/// The rights that an installation grants: what the controller calls beyond them fails here.
async fn install_rights(client: &Client) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/install/bowline.yaml");
    let text = std::fs::read_to_string(path).unwrap();
    let mut bound = 0;
    for document in serde_yaml_ng::Deserializer::from_str(&text) {
        let object = Value::deserialize(document).unwrap();
        let is_right = object["apiVersion"] == "rbac.authorization.k8s.io/v1";
        if is_right {
            bound += i32::from(object["subjects"][0]["name"] == "bowline-controller");
            create(client, object).await.unwrap();
        }
    }
    assert!(bound >= 2, "{path} binds no rights to the controller");
}

async fn install_multus(client: &Client) {
    let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "network-attachment-definitions.k8s.cni.cncf.io"},
        "spec": {
            "group": "k8s.cni.cncf.io", "scope": "Namespaced",
            "names": {"kind": "NetworkAttachmentDefinition", "singular": "network-attachment-definition",
                      "plural": "network-attachment-definitions"},
            "versions": [{"name": "v1", "served": true, "storage": true,
                          "schema": {"openAPIV3Schema": schema}}],
        },
    });
    create(client, definition).await.unwrap();
}

/// A controller that runs in this process.
pub(crate) struct Controller {
    pub(crate) health: SocketAddr,
    pub(crate) webhook: u16,
    stop: oneshot::Sender<()>,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Controller {
    /// Starts one with its webhooks, and waits until they are served.
    pub(crate) async fn start(api: &TestApi, identity: &str, extra: &[&str]) -> Controller {
        let (client, own) = (api.client("admin").await, api.client(ACCOUNT).await);
        let controller = Self::without_webhooks(own, identity, extra).await;
        point_webhooks(&client, controller.webhook).await;
        controller
    }

    /// Starts one that reaches the API server by this client, and waits until it is ready.
    pub(crate) async fn without_webhooks(
        own: Client,
        identity: &str,
        extra: &[&str],
    ) -> Controller {
        show_logs();
        loop {
            let controller = Self::launch(own.clone(), identity, extra);
            let ended = eventually("the controller is ready", async || {
                let ended = controller.task.is_finished();
                (ended || controller.get("/readyz").await == "ok").then_some(ended)
            })
            .await;
            if !ended {
                return controller;
            }
            let why = controller.task.await.unwrap().unwrap_err();
            // Whoever makes a connection may be given a port that was free a moment ago.
            assert!(why.to_string().contains("cannot listen"), "the controller ended: {why:?}");
        }
    }

    fn launch(own: Client, identity: &str, extra: &[&str]) -> Controller {
        let (webhook, health) = (free_port(), free_port());
        let options = options(identity, webhook, health, extra);
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(daemon::run(own, options, async {
            drop(stopped.await);
        }));
        let address = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Controller { health: address(health), webhook, stop, task }
    }

    /// What it answers over HTTP; empty while nobody listens.
    pub(crate) async fn get(&self, path: &str) -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let Ok(mut stream) = tokio::net::TcpStream::connect(self.health).await else {
            return String::new();
        };
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        drop(stream.read_to_string(&mut answer).await);
        answer.split_once("\r\n\r\n").map_or_else(String::new, |(_, body)| body.to_owned())
    }

    /// The value of a metric; 0 while there is none.
    pub(crate) async fn metric(&self, line: &str) -> f64 {
        let text = self.get("/metrics").await;
        let value = text.lines().find_map(|l| l.strip_prefix(line)?.trim().parse().ok());
        value.unwrap_or(0.0)
    }

    /// Stops it and waits for its end.
    pub(crate) async fn stop(self) {
        drop(self.stop);
        self.task.await.unwrap().unwrap();
    }

    /// Ends it without a word, as a crash does.
    pub(crate) async fn crash(self) {
        self.task.abort();
        drop(self.task.await);
    }
}

/// The controllers' log, with the test's output: `BOWLINE_LOG=debug` shows more.
fn show_logs() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("BOWLINE_LOG");
    let filter = filter.unwrap_or_else(|_| "info".into());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer();
    // Another test of this process may have done it.
    drop(log.try_init());
}

fn options(identity: &str, webhook: u16, health: u16, extra: &[&str]) -> Options {
    let own = [
        "bowline-controller".to_owned(),
        "run".to_owned(),
        format!("--identity={identity}"),
        format!("--webhook-listen=127.0.0.1:{webhook}"),
        format!("--health-listen=127.0.0.1:{health}"),
        "--webhook-names=127.0.0.1".to_owned(),
        "--lease-duration=4s".to_owned(),
        "--node-fencing=1s".to_owned(),
    ];
    let line = Line::parse_from(own.into_iter().chain(extra.iter().map(|a| (*a).to_owned())));
    match line.command {
        Command::Run(options) => *options,
        Command::Uninstall(_) => unreachable!("the test says run"),
    }
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// Installs the webhooks as the chart does, but by address, and waits until they are served.
async fn point_webhooks(client: &Client, port: u16) {
    let url = |path: &str| json!({"url": format!("https://127.0.0.1:{port}/{path}")});
    let hook = |name: &str, path: &str, rules: Value| {
        json!({
            "name": name, "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "failurePolicy": "Ignore", "timeoutSeconds": 10, "clientConfig": url(path),
            "rules": rules,
        })
    };
    let rule = |group: &str, resources: &[&str], operations: &[&str]| json!({"apiGroups": [group], "apiVersions": ["*"], "resources": resources, "operations": operations});
    let all = ["CREATE", "UPDATE", "DELETE"];
    let spider = [
        "spiderippools",
        "spidersubnets",
        "spiderreservedips",
        "spidercoordinators",
        "spidermultusconfigs",
    ];
    let objects = json!([
        rule("bowline.dev", &["networks"], &all),
        rule("spiderpool.spidernet.io", &spider, &all),
    ]);
    let validating = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "bowline",
                     "annotations": {"bowline.dev/fail-once-served": "objects.bowline.dev"}},
        "webhooks": [
            hook("objects.bowline.dev", "validate", objects),
            hook("pods.bowline.dev", "validate", json!([rule("", &["pods"], &["CREATE"])])),
            hook("policies.bowline.dev", "validate",
                 json!([rule("networking.k8s.io", &["networkpolicies"], &["CREATE"])])),
        ],
    });
    let mutating = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "bowline",
                     "annotations": {"bowline.dev/fail-once-served": "defaults.bowline.dev"}},
        "webhooks": [
            hook("defaults.bowline.dev", "mutate",
                 json!([rule("spiderpool.spidernet.io", &spider, &["CREATE", "UPDATE"])])),
            hook("injection.bowline.dev", "mutate", json!([rule("", &["pods"], &["CREATE"])])),
        ],
    });
    for (configuration, webhook) in [(validating, "Validating"), (mutating, "Mutating")] {
        apply(client, configuration).await;
        let plural = format!("{}webhookconfigurations", webhook.to_lowercase());
        let path = format!("/apis/admissionregistration.k8s.io/v1/{plural}/bowline");
        eventually("the API server insists on the webhooks", async || {
            let found = get(client, &path).await?;
            (found["webhooks"][0]["failurePolicy"] == "Fail").then_some(())
        })
        .await;
    }
}

/// Creates any object.
pub(crate) async fn create(client: &Client, object: Value) -> Result<Value, String> {
    let path = collection(&object);
    post(client, &path, object).await
}

/// Creates an object at a path, which may hold options.
pub(crate) async fn post(client: &Client, path: &str, object: Value) -> Result<Value, String> {
    let body = serde_json::to_vec(&object).unwrap();
    let request = http::Request::post(path).header("content-type", "application/json");
    send(client, request.body(body).unwrap()).await
}

/// Server-side apply of any object, as kubectl does.
pub(crate) async fn apply(client: &Client, object: Value) -> Value {
    let path = format!(
        "{}/{}?fieldManager=test&force=true",
        collection(&object),
        object["metadata"]["name"].as_str().unwrap()
    );
    let request = http::Request::patch(path).header("content-type", "application/apply-patch+yaml");
    let body = serde_json::to_vec(&object).unwrap();
    send(client, request.body(body).unwrap()).await.unwrap()
}

/// Changes part of an object (JSON merge patch).
pub(crate) async fn patch(client: &Client, path: &str, change: Value) -> Result<Value, String> {
    let request = http::Request::patch(path).header("content-type", "application/merge-patch+json");
    send(client, request.body(serde_json::to_vec(&change).unwrap()).unwrap()).await
}

/// Deletes what is at a path.
pub(crate) async fn delete(client: &Client, path: &str) -> Result<Value, String> {
    send(client, http::Request::delete(path).body(Vec::new()).unwrap()).await
}

/// What is at a path.
pub(crate) async fn get(client: &Client, path: &str) -> Option<Value> {
    send(client, http::Request::get(path).body(Vec::new()).unwrap()).await.ok()
}

async fn send(client: &Client, request: http::Request<Vec<u8>>) -> Result<Value, String> {
    client.request::<Value>(request).await.map_err(|e| match e {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    })
}

/// Where objects of this kind are made.
fn collection(object: &Value) -> String {
    let (version, kind) =
        (object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap());
    let root = if version.contains('/') { format!("/apis/{version}") } else { "/api/v1".into() };
    let lower = kind.to_lowercase();
    let plural = match kind {
        "NetworkPolicy" => "networkpolicies".into(),
        "NetworkAttachmentDefinition" => "network-attachment-definitions".into(),
        _ => format!("{lower}s"),
    };
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("{root}/namespaces/{namespace}/{plural}"),
        None => format!("{root}/{plural}"),
    }
}

/// Waits until something is there.
pub(crate) async fn eventually<T>(what: &str, look: impl AsyncFn() -> Option<T>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {SOON:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// All objects of a kind.
pub(crate) async fn all<R: Resource>(store: &ApiStore) -> Vec<R> {
    store.list(&LabelSelector::default()).await.unwrap()
}

pub(crate) fn network(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "bowline.dev/v1alpha1", "kind": "Network", "metadata": {"name": name}, "spec": spec})
}

pub(crate) fn spider(kind: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "spiderpool.spidernet.io/v2beta1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}
