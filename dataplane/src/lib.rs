//! The per-node poll-mode process: takes frames from ports, decides, and hands them on.
//!
//! Start reading at [`path`] (what happens to a packet) and at [`control`] (who changes what it
//! reads).
#![deny(unsafe_code)]

pub mod control;
pub mod copy;
pub mod observe;
pub mod path;
pub mod port;
pub mod sys;
pub mod table;
pub mod takeover;
pub mod worker;
