//! The controller on a real API server: one of its own for each test. The programs come from
//! `$BOWLINE_KUBE_CACHE/bin`, which `deploy/e2e/build.sh` fills.
#![allow(clippy::needless_pass_by_value, reason = "callers write `json!({…})` in its place")]

mod admission;
mod batches;
mod certificate;
mod common;
mod coordinator;
mod definitions;
mod jobs;
mod leader;
mod reclaim;
