//! The Kubernetes API as a store of Bowline's objects. Agent and controller share it; the rules in
//! [`multinet`] do not know it.
//!
//! | module | holds |
//! |---|---|
//! | [`object`] | `multinet`'s kinds as the client library wants them |
//! | [`store`] | compare-and-swap |
//! | [`watch`] | what changes, as it changes |
//! | [`applications`] | whom automatic pools are made for |
//! | `install` | whether Bowline is still wanted |
//! | `patch` | an annotation, a taint |
//! | `spiderpool` | whether another allocator is at work |
//! | `workloads` | what outlives its pods |
//! | [`events`] | sentences for people, on the object concerned |
//!
//! Invariant: nothing here decides anything; a write either took place or its error says that it may
//! have.
#![forbid(unsafe_code)]

pub mod applications;
pub mod events;
mod install;
pub mod object;
mod patch;
mod spiderpool;
pub mod store;
pub mod watch;
mod workloads;

/// The time of a condition: RFC 3339, in seconds.
#[must_use]
pub fn now() -> String {
    k8s_openapi::jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

pub use events::{Events, Severity};
pub use install::{Presence, presence};
pub use patch::{annotate_pod, remove_taint};
pub use spiderpool::OtherAllocator;
pub use store::ApiStore;
pub use watch::{Change, Selection, follow, follow_reduced, follow_specs};
pub use workloads::addresses_outlive_pod;
