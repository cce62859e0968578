//! Two nodes on one machine: namespaces, a fabric, the real processes, and checks that prove what
//! Bowline promises.
//!
//! # Parts
//! - [`lab`]: namespaces, devices, processes; knows nothing of Bowline.
//! - [`binaries`]: the only place that knows the programs' command lines.
//! - [`catalog`]: the Networks, pools and pods as YAML.
//! - [`cluster`]: the two nodes, brought up and down.
//! - [`pod`]: pods, attached through the CNI plugin as a runtime would do it.
//! - [`checks`]: what is proven.
//! - [`report`]: the table and `report.json`.
//!
//! *Invariant*: everything that a demo makes on the machine has a name that begins with
//! [`PREFIX`], or lies in [`RUN_DIR`]; [`clean`] removes all of that, whatever killed the demo.
#![forbid(unsafe_code)]

pub mod binaries;
pub mod catalog;
pub mod checks;
pub mod clean;
pub mod cluster;
pub mod lab;
pub mod pod;
pub mod report;

/// Namespaces and devices of the demo begin with this.
pub const PREFIX: &str = "bwd-";
/// Sockets, journals and the catalog.
pub const RUN_DIR: &str = "/run/bowline-demo";
