//! CNI types.
#![forbid(unsafe_code)]
