//! A client that loses requests, and a judge who reads what is stored.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};

use bowline_kube::ApiStore;
use kube::client::{Body, ClientBuilder};
use kube::{Client, Config};
use multinet::ipam::{Candidate, Request};
use multinet::range::{AddressSet, Family};
use multinet::rules::{Binding, ReuseDelay, Strategy};
use multinet::store::Store;
use multinet::types::block::{AddressBlock, NETWORK_LABEL, Owner};
use multinet::types::meta::LabelSelector;
use tower::{BoxError, Layer, Service};

/// Which request is lost.
#[derive(Clone)]
pub(crate) struct Loss {
    left: Arc<AtomicU32>,
    after_commit: bool,
}

impl Loss {
    pub(crate) fn nth(n: u32, after_commit: bool) -> Self {
        Self { left: Arc::new(AtomicU32::new(n)), after_commit }
    }

    pub(crate) fn happened(&self) -> bool {
        self.left.load(Ordering::SeqCst) == 0
    }

    /// Is it this request's turn?
    fn falls_on_this(&self) -> bool {
        let counted = |left: u32| left.checked_sub(1);
        self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, counted) == Ok(1)
    }
}

impl<S> Layer<S> for Loss {
    type Service = Lossy<S>;

    fn layer(&self, inner: S) -> Lossy<S> {
        Lossy { inner, loss: self.clone() }
    }
}

/// The service that loses one.
#[derive(Clone)]
pub(crate) struct Lossy<S> {
    inner: S,
    loss: Loss,
}

impl<S> Service<http::Request<Body>> for Lossy<S>
where
    S: Service<http::Request<Body>, Error = BoxError>,
    S::Future: Send + 'static,
    S::Response: Send,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if !self.loss.falls_on_this() {
            return Box::pin(self.inner.call(request));
        }
        if !self.loss.after_commit {
            return Box::pin(async { Err("lost on the way there".into()) });
        }
        let answer = self.inner.call(request);
        Box::pin(async move {
            answer.await?;
            Err("lost on the way back".into())
        })
    }
}

pub(crate) fn lossy_client(config: Config, loss: &Loss) -> Client {
    ClientBuilder::try_from(config).expect("a configuration").with_layer(loss).build()
}

/// One pod's request for one of eight addresses.
pub(crate) fn request(pod: usize) -> Request {
    let addresses = ["10.0.0.10-10.0.0.17".to_owned()];
    Request {
        owner: Owner::Pod {
            namespace: "ns".into(),
            name: format!("p{pod}"),
            uid: format!("uid-{pod}"),
        },
        interface: "eth0".into(),
        family: Family::V4,
        sandbox_id: format!("sandbox-{pod}"),
        node: "n1".into(),
        candidates: vec![Candidate {
            pool: "pool".into(),
            addresses: AddressSet::parse(Family::V4, &addresses).expect("a range"),
            strategy: Strategy::Lowest,
            reuse_delay: ReuseDelay::default(),
            binding: Binding::Auto,
        }],
        exact: None,
        sticky: false,
        cluster_nodes: 1,
    }
}

/// Pods 2 and 3 hold one address each, and nobody else holds any.
pub(crate) async fn judge(store: &ApiStore, domain: &str) {
    let selector = LabelSelector::label(NETWORK_LABEL, domain);
    let blocks = store.list::<AddressBlock>(&selector).await.expect("list");
    let held: Vec<_> = blocks.iter().flat_map(AddressBlock::held).collect();
    let addresses: BTreeSet<_> = held.iter().map(|e| e.address).collect();
    let mut owners: Vec<_> = held.iter().filter_map(|e| e.owner.as_ref().map(Owner::key)).collect();
    owners.sort();
    assert_eq!(owners, ["uid-2", "uid-3"], "{domain}");
    assert_eq!(addresses.len(), 2, "{domain}: an address is given twice");
}
