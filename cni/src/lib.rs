//! CNI types: what the plugin binary and the agent say to each other, and what the container runtime
//! is told.
//!
//! | module | holds |
//! |---|---|
//! | [`error`] | the CNI error object and its codes |
//! | [`netconf`] | the network configuration on stdin |
//! | [`result`] | results, in the form of 1.1.0 inside and of any version outside |
//! | [`rpc`] | the one request and one response on the agent's socket |
//! | [`call`], [`client`], [`plugin`] | the plugin: checks its input, asks the agent, prints |
//! | [`tombstone`] | what a DEL leaves behind when the agent is away |
//!
//! No runtime, no network besides one unix socket; nothing here panics on any input.
#![forbid(unsafe_code)]

pub mod call;
pub mod client;
pub mod error;
pub mod netconf;
#[cfg(test)]
mod noise;
pub mod plugin;
pub mod result;
pub mod rpc;
pub mod tombstone;
