//! Raw bindings to the installed libdpdk (22.11 or newer) and to the per-burst C functions in
//! `csrc/shim.c`. The `dpdk` crate is the only user and makes them safe; nothing else may depend on
//! this one.
//!
//! Most of DPDK's packet functions are `static inline` in C and have no symbol: the shim gives each
//! that is needed one call per *burst*. Fields of `rte_mbuf` are reached by the `BL_OFF_*` offsets,
//! which the C compiler takes from the installed headers.

#![allow(
    missing_docs,
    missing_debug_implementations,
    non_camel_case_types,
    non_upper_case_globals,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    clippy::undocumented_unsafe_blocks,
    unused_qualifications,
    reason = "generated from C headers, whose names and documentation are DPDK's"
)]

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
