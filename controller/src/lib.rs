//! The cluster daemon: validates, fills defaults, generates, reclaims.
#![forbid(unsafe_code)]
