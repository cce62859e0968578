//! Admission: early messages to people. Safety does not rest on it, so that a webhook that is away
//! costs a sentence and nothing else.
//!
//! | file | holds |
//! |---|---|
//! | `facts` | what a decision needs besides the object |
//! | `catalog` | Networks, pools, subnets, reservations |
//! | `others` | coordinators, configurations for Multus, pods, NetworkPolicies |
//! | `inject` | what a pod is given for its annotation |
//! | `verdict` | refusals and warnings |

mod catalog;
mod facts;
mod inject;
mod others;
mod verdict;

use axum::extract::{DefaultBodyLimit, State};
use axum::routing::post;
use axum::{Json, Router};
use kube::ResourceExt;
use kube::core::DynamicObject;
use kube::core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview, Operation};
use multinet::rules::{
    Checked, fill_coordinator, fill_multus_config, fill_pool, fill_reserved, fill_subnet,
};
use multinet::types::meta::Resource;
use multinet::types::pool::annotation::CONDITIONS;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::jobs::Tools;
use crate::jobs::finalizers::SPIDERPOOL_FINALIZER;
use facts::Facts;
use verdict::Verdict;

type Review = AdmissionReview<DynamicObject>;
type Request = AdmissionRequest<DynamicObject>;

/// A review of a change holds the object twice; the API server takes 3 MiB from people.
const MOST_BYTES: usize = 8 << 20;

/// `/validate` and `/mutate`.
pub fn router(tools: Tools) -> Router {
    Router::new()
        .route("/validate", post(validate))
        .route("/mutate", post(mutate))
        .layer(DefaultBodyLimit::max(MOST_BYTES))
        .with_state(tools)
}

async fn validate(State(tools): State<Tools>, Json(review): Json<Review>) -> Json<Review> {
    answer(review, async |request: &Request| {
        let verdict = judge(&tools, request).await?;
        tools.metrics.review(&request.kind.kind, verdict.word());
        Ok(verdict.answer(AdmissionResponse::from(request)))
    })
    .await
}

async fn mutate(State(tools): State<Tools>, Json(review): Json<Review>) -> Json<Review> {
    answer(review, async |request: &Request| {
        let before = serde_json::to_value(&request.object).map_err(|e| e.to_string())?;
        let after = fill(&tools, request, before.clone()).await?;
        let patch = json_patch::diff(&before, &after);
        AdmissionResponse::from(request).with_patch(patch).map_err(|e| e.to_string())
    })
    .await
}

/// The review with its answer. Of what cannot be judged the API server decides by its failure policy
/// only when nobody answers, so that it is refused here with the reason.
async fn answer(
    review: Review,
    judge: impl AsyncFnOnce(&Request) -> Result<AdmissionResponse, String>,
) -> Json<Review> {
    let request: Request = match review.try_into() {
        Ok(request) => request,
        Err(error) => return Json(AdmissionResponse::invalid(error).into_review()),
    };
    let answered = judge(&request).await;
    let response = answered.unwrap_or_else(|why| {
        tracing::warn!(kind = request.kind.kind, name = request.name, "not judged: {why}");
        AdmissionResponse::from(&request).deny(why)
    });
    Json(response.into_review())
}

/// The object before and after, as the rules read it. One of them is missing at creation and deletion.
struct Objects<R> {
    old: Option<R>,
    new: Option<R>,
}

fn objects<R: DeserializeOwned>(request: &Request) -> Result<Objects<R>, String> {
    let read = |object: &Option<DynamicObject>| -> Result<Option<R>, String> {
        let value = object.as_ref().map(serde_json::to_value).transpose();
        let read = value.and_then(|v| v.map(serde_json::from_value).transpose());
        read.map_err(|e| format!("{} {}: {e}", request.kind.kind, request.name))
    };
    Ok(Objects { old: read(&request.old_object)?, new: read(&request.object)? })
}

/// Whether an update changes neither spec nor labels nor annotations: status and finalizers are programs'
/// business, and so are the conditions that pools carry in an annotation.
fn is_settled(request: &Request) -> bool {
    let (Some(old), Some(new)) = (&request.old_object, &request.object) else { return false };
    let notes = |object: &DynamicObject| {
        let mut annotations = object.annotations().clone();
        annotations.remove(CONDITIONS);
        annotations
    };
    old.data.get("spec") == new.data.get("spec")
        && old.labels() == new.labels()
        && notes(old) == notes(new)
}

async fn judge(tools: &Tools, request: &Request) -> Result<Verdict, String> {
    if is_settled(request) {
        return Ok(Verdict::default());
    }
    let kind = (request.kind.group.as_str(), request.kind.kind.as_str());
    match kind {
        ("bowline.dev", "Network") => {
            let objects = objects(request)?;
            Ok(catalog::network(&Facts::read(tools).await?, objects))
        }
        ("spiderpool.spidernet.io", "SpiderIPPool") => {
            let objects = objects(request)?;
            let ours = is_ours(tools, request);
            Ok(catalog::pool(&Facts::read(tools).await?, objects, ours))
        }
        ("spiderpool.spidernet.io", "SpiderSubnet") => {
            let objects = objects(request)?;
            Ok(catalog::subnet(&Facts::read(tools).await?, objects))
        }
        ("spiderpool.spidernet.io", "SpiderReservedIP") => Ok(catalog::reserved(objects(request)?)),
        ("spiderpool.spidernet.io", "SpiderCoordinator") => {
            Ok(others::coordinator(objects(request)?))
        }
        ("spiderpool.spidernet.io", "SpiderMultusConfig") => {
            Ok(others::multus_config(&tools.world, objects(request)?))
        }
        ("", "Pod") => {
            let mut objects = objects(request)?;
            others::settle_namespace(&mut objects.new, request.namespace.as_deref());
            Ok(others::pod(&tools.world, objects))
        }
        ("networking.k8s.io", "NetworkPolicy") => Ok(others::network_policy(&request.operation)),
        _ => Ok(Verdict::default()),
    }
}

/// Whether this controller itself asks: people do not change what it keeps in order.
fn is_ours(tools: &Tools, request: &Request) -> bool {
    let namespace = &tools.options.names.namespace;
    let ours = format!("system:serviceaccount:{namespace}:bowline-controller");
    request.user_info.username.as_deref() == Some(&ours)
}

/// The object with its gaps filled.
async fn fill(tools: &Tools, request: &Request, object: Value) -> Result<Value, String> {
    if request.operation == Operation::Delete || object.is_null() || is_settled(request) {
        return Ok(object);
    }
    match request.kind.kind.as_str() {
        "SpiderIPPool" => {
            let facts = Facts::read(tools).await?;
            filled(object, |pool| fill_pool(pool, &Checked::new(&facts.catalog)), true)
        }
        "Pod" => {
            let namespace = request.namespace.as_deref().unwrap_or("default");
            inject::inject(&tools.world, namespace, object)
        }
        "SpiderSubnet" => filled(object, fill_subnet, true),
        "SpiderReservedIP" => filled(object, fill_reserved, false),
        "SpiderCoordinator" => filled(object, fill_coordinator, false),
        "SpiderMultusConfig" => filled(object, fill_multus_config, false),
        _ => Ok(object),
    }
}

/// Fills what can be read; what cannot stays for validation, which says why. An object on its way out
/// is left alone: a finalizer that was taken away must not come back.
fn filled<R: Resource>(
    object: Value,
    fill: impl FnOnce(&mut R),
    finalizer: bool,
) -> Result<Value, String> {
    let Ok(mut typed) = serde_json::from_value::<R>(object.clone()) else { return Ok(object) };
    if typed.meta().is_terminating() {
        return Ok(object);
    }
    let before = serde_json::to_value(&typed).map_err(|e| e.to_string())?;
    fill(&mut typed);
    let finalizers = &mut typed.meta_mut().finalizers;
    if finalizer && !finalizers.iter().any(|f| f == SPIDERPOOL_FINALIZER) {
        finalizers.push(SPIDERPOOL_FINALIZER.into());
    }
    let after = serde_json::to_value(&typed).map_err(|e| e.to_string())?;
    // Only the difference is taken over: fields that the type does not know stay.
    let mut object = object;
    json_patch::patch(&mut object, &json_patch::diff(&before, &after))
        .map_err(|e| e.to_string())?;
    Ok(object)
}
