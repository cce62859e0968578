//! System calls: sockets with file descriptors, eventfds of peers, their files and pages, SIGBUS.

pub(crate) mod files;
pub(crate) mod given;
pub(crate) mod holes;
pub(crate) mod notify;
pub(crate) mod pins;
pub mod sigbus;
pub(crate) mod socket;
