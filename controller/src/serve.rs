//! Health, readiness and numbers over plain HTTP.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::certificate::Current;
use crate::metrics::Metrics;
use crate::world::World;

/// What the answers depend on.
#[derive(Debug)]
pub struct Health {
    /// The objects.
    pub world: World,
    /// The webhooks' certificate.
    pub certificate: Current,
    /// The numbers.
    pub metrics: Metrics,
}

impl Health {
    fn missing(&self) -> Option<&'static str> {
        if !self.world.is_complete() {
            return Some("not every kind of object has been read yet");
        }
        (!self.certificate.is_set()).then_some("the webhooks have no certificate yet")
    }
}

/// `/healthz`, `/readyz` and `/metrics`.
pub fn router(health: Health) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(Arc::new(health))
}

async fn ready(State(health): State<Arc<Health>>) -> Response {
    match health.missing() {
        None => "ok".into_response(),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, why).into_response(),
    }
}

async fn metrics(State(health): State<Arc<Health>>) -> Response {
    const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match health.metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, TEXT)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
