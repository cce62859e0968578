//! The per-node daemon.
#![forbid(unsafe_code)]
