//! The C interface: every function of libmemif 4.0, for applications that were written for it.
//!
//! Handles are pointers to boxes of ours. As with libmemif, one thread at a time may use a socket
//! and the interfaces on it, except that each queue may be used by a thread of its own while its
//! interface stays connected. Received data lies in shared memory: the application sees it while
//! the peer may still write to it; an application that minds must copy it first.
//!
//! Different from libmemif: peers' messages, indexes and descriptors are checked, and a peer that
//! breaks the rules is disconnected.
//! SIGBUS is left alone: an application that wants containment calls `memif_contain_sigbus`.

mod conn;
mod data;
mod details;
mod events;
mod socket;
mod types;

pub use conn::*;
pub use data::*;
pub use details::*;
pub use socket::*;
pub use types::*;
