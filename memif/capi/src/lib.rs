//! `libmemif.so`: the functions themselves are in `memif::capi`.

pub use memif_rust::capi::*;
