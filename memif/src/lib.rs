//! memif client and server that survive a hostile peer.
//!
//! memif is a packet interface in shared memory between two processes: the **client** brings the
//! memory and connects, the **server** listens and uses it. (The protocol's old words are slave
//! and master; S2M is client to server, M2S server to client.)
//!
//! # Parts
//! - [`Listener`] and [`Handshake`]: the server's side of the control socket, event driven.
//! - [`Connector`]: the client's side, which also reconnects by itself.
//! - [`Connection`]: an established connection; it yields [`RxQueue`]s and [`TxQueue`]s, each of which
//!   belongs to one thread and is polled without system calls or allocation.
//! - [`Notifier`]: wakes a sleeping peer, without any call that the peer could make block.
//! - [`sigbus`]: keeps a peer that truncates its memory from killing the process; explicit.
//!
//! # What holds whatever the peer does
//! Every index and descriptor is read once, checked on the copy, and used from the copy. A peer
//! that breaks the rules is reported as a [`Violation`] or a [`CloseReason`]; its connection is to be
//! dropped and no other is touched. No call blocks, no descriptor leaks, nothing is unmapped while
//! a queue or a [`RegionHold`] is alive. Foreign memory never appears as a `&[u8]`.

#[cfg(feature = "capi")]
pub mod capi;
mod client;
mod connection;
mod error;
mod region;
mod ring;
mod server;
mod sys;
pub mod wire;

pub use client::{ClientConfig, ClientEvent, Connector};
pub use connection::{Connection, Info, RegionHold, Status};
pub use error::{CloseReason, RegionError, RingError, Violation};
pub use region::MAX_REGIONS;
pub use region::account::MemoryAccount;
pub use ring::Role;
pub use ring::burst::{MAX_RX_SEGS, MAX_TX_SEGS, RxBurst, RxFrame, Seg, SegMut, TxSegs};
pub use ring::rx::RxQueue;
pub use ring::tx::{Reserved, TxQueue};
pub use server::handshake::{Answer, Handshake, Limits, Offer, Progress};
pub use server::listener::{Listener, ListenerLimits};
pub use sys::notify::Notifier;
pub use sys::sigbus;
pub use sys::socket::Address;
pub use wire::Mode;

/// The programs of the README compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
