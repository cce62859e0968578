//! What a Network is.
#![forbid(unsafe_code)]
