//! The data plane as a process, between network namespaces and things nobody here wrote.
//!
//! Each module is one behaviour; [`lab`] makes namespaces, nodes and pods. Tests take turns (two
//! cores do not carry two of these at once), and every node checks both account equations before
//! it goes away.

mod attacks;
mod churn;
mod drops;
mod faults;
mod hostile;
mod idle;
mod isolation;
mod lab;
mod local;
mod local_memif;
mod mtu;
mod rewriting;
mod scrape;
mod stall;
mod testpmd;
mod tunnel_fields;
mod tunnel_guard;
mod two_nodes;
mod uplink_peer;
mod vxlan;
