//! Packet headers viewed in place, checksums and the newtypes of the field.
//!
//! No I/O, no allocation, no `unsafe`: every header is a `#[repr(C)]` struct of unaligned
//! big-endian fields that is laid over bytes with `zerocopy`.
#![forbid(unsafe_code)]

mod types;

pub use types::{Mac, Vni};
