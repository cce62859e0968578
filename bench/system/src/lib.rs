//! System benchmarks: Bowline beside its peers, in one run on one machine.
//!
//! # How it is measured
//! All candidates of a case are started once, connected to generators, and stopped by SIGSTOP; then
//! many short runs are interleaved, each with one candidate continued, so that noise of the machine
//! meets all alike. One thread on core 0 generates and counts, touching every byte; the device
//! under test has core 1.
//!
//! # Parts
//! - [`candidate`]: what is measured, and the freezing.
//! - [`peers`]: testpmd, OVS-DPDK, the kernel.
//! - [`kernel`]: the kernel's bridge and VXLAN between namespaces.
//! - [`ours`]: Bowline's data planes with pods attached through the CNI plugin.
//! - [`tunnel`]: the generator as the other node, at the far end of the uplink.
//! - [`dataplane`]: what is told and asked by the data plane's API.
//! - [`cases`]: what is run.
//! - [`report`], [`plot`]: `report.json` and an SVG of it.
#![forbid(unsafe_code)]

pub mod candidate;
pub mod cases;
pub mod dataplane;
pub mod kernel;
pub mod ours;
pub mod peers;
pub mod plot;
pub mod report;
pub mod tunnel;

/// Bowline's name among the candidates.
pub const OURS: &str = "bowline";
/// The generator's core.
pub const GENERATOR_CPU: usize = 0;
/// The core of the device under test.
pub const DEVICE_CPU: usize = 1;
