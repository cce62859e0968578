//! The cluster's daemon: what needs more than one object to decide, and what must happen once in a
//! cluster.
//!
//! | module | holds |
//! |---|---|
//! | [`options`] | the command line |
//! | [`daemon`] | who starts what, and when it stops |
//! | [`world`] | the cluster's objects as watched |
//! | [`lease`] | who leads |
//! | [`webhook`] | early messages to people: admission |
//! | [`certificate`] | the webhooks' authority and certificate, made and rotated here |
//! | [`jobs`] | what the leader keeps in order |
//! | [`serve`], [`metrics`] | health and numbers over HTTP |
//! | [`uninstall`] | the way out |
//!
//! Webhooks are served by every replica; jobs run in the leader alone. Safety rests on neither: every
//! write is a compare-and-swap, so that two leaders cannot harm what one would not.
#![forbid(unsafe_code)]

pub mod certificate;
pub mod daemon;
pub mod jobs;
pub mod lease;
pub mod metrics;
pub mod options;
pub mod serve;
pub mod uninstall;
pub mod webhook;
pub mod world;
