//! System calls: sockets with file descriptors, eventfds of peers, SIGBUS.

pub(crate) mod notify;
pub mod sigbus;
pub(crate) mod socket;
