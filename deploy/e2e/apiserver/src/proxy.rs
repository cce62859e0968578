//! A proxy before the API server that loses one request: before it arrives, or its answer. The client
//! sees a connection that ends without an answer, as from a server that dies. Or it lets something
//! happen just before a request arrives.

use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use http::{Request, Response, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kube::client::Body;
use kube::{Client, Config};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// What happens meanwhile.
type Event = Pin<Box<dyn Future<Output = ()> + Send>>;
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// When the request is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// It never arrives.
    BeforeCommit,
    /// What it asks for is done, and nobody is told.
    AfterCommit,
}

/// The proxy, serving plain HTTP to whoever comes.
#[derive(Debug)]
pub struct LossyProxy {
    address: SocketAddr,
    plan: Arc<Plan>,
    task: JoinHandle<()>,
}

struct Plan {
    /// What happens once, before a request for this path arrives.
    before: Mutex<Option<(String, Event)>>,
    /// Requests until the one that is lost; 0: it was, or none is to be.
    left: AtomicU32,
    /// Of the two kinds of loss, the second.
    after_commit: std::sync::atomic::AtomicBool,
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plan").field("left", &self.left).finish_non_exhaustive()
    }
}

impl LossyProxy {
    /// Starts it; requests go on in the name of the client.
    ///
    /// # Panics
    /// When no port is free.
    pub async fn start(client: Client) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("its address");
        let plan =
            Plan { before: Mutex::new(None), left: AtomicU32::new(0), after_commit: false.into() };
        let plan = Arc::new(plan);
        let task = tokio::spawn(serve(listener, client, plan.clone()));
        Self { address, plan, task }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How to reach it.
    ///
    /// # Panics
    /// Never: the address is one.
    #[must_use]
    pub fn config(&self) -> Config {
        Config::new(format!("http://{}", self.address).parse().expect("an address"))
    }

    /// The n-th request from now on is lost, n = 1, 2, …
    pub fn lose(&self, n: u32, loss: Loss) {
        self.plan.after_commit.store(loss == Loss::AfterCommit, Ordering::SeqCst);
        self.plan.left.store(n, Ordering::SeqCst);
    }

    /// Lets `event` happen once, before the first request for this path arrives.
    pub fn before(&self, path: &str, event: impl Future<Output = ()> + Send + 'static) {
        *self.plan.before() = Some((path.to_owned(), Box::pin(event)));
    }

    /// Whether there was such a request.
    #[must_use]
    pub fn has_happened(&self) -> bool {
        self.plan.before().is_none()
    }

    /// Whether it has come to that.
    #[must_use]
    pub fn has_lost(&self) -> bool {
        self.plan.left.load(Ordering::SeqCst) == 0
    }
}

impl Drop for LossyProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Plan {
    fn before(&self) -> std::sync::MutexGuard<'_, Option<(String, Event)>> {
        self.before.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn happens_before(&self, path: &str) -> Option<Event> {
        self.before().take_if(|(awaited, _)| awaited == path).map(|(_, event)| event)
    }

    fn falls_on_this(&self) -> Option<Loss> {
        let counted = |left: u32| left.checked_sub(1);
        let before = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, counted);
        let after_commit = self.after_commit.load(Ordering::SeqCst);
        let loss = if after_commit { Loss::AfterCommit } else { Loss::BeforeCommit };
        (before == Ok(1)).then_some(loss)
    }
}

async fn serve(listener: TcpListener, client: Client, plan: Arc<Plan>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (client, plan) = (client.clone(), plan.clone());
        let pass = move |request| pass_on(client.clone(), plan.clone(), request);
        // A request that fails ends its connection without an answer.
        tokio::spawn(
            http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(pass)),
        );
    }
}

async fn pass_on(
    client: Client,
    plan: Arc<Plan>,
    request: Request<Incoming>,
) -> Result<Response<Body>, BoxError> {
    if let Some(event) = plan.happens_before(request.uri().path()) {
        event.await;
    }
    let loss = plan.falls_on_this();
    if loss == Some(Loss::BeforeCommit) {
        return Err("lost on the way there".into());
    }
    let (mut head, body) = request.into_parts();
    for own in [header::HOST, header::AUTHORIZATION, header::CONTENT_LENGTH] {
        head.headers.remove(own);
    }
    let body = body.collect().await?.to_bytes();
    let answer = client.send(Request::from_parts(head, Body::from(body.to_vec()))).await?;
    if loss == Some(Loss::AfterCommit) {
        return Err("lost on the way back".into());
    }
    Ok(answer)
}
