//! The per-node daemon: it turns the catalog into the data plane's desired state, serves the CNI
//! plugin, claims addresses, and makes what a pod needs in its network namespace.
#![deny(unsafe_code)]

pub mod catalog;
pub mod cni_server;
pub mod config;
pub mod core;
pub mod dataplane;
pub mod fault;
pub mod install;
pub mod journal;
pub mod metrics;
pub mod node;
pub mod nodestate;
pub mod notes;
pub mod pod;
pub mod sys;
pub mod uninstall;
