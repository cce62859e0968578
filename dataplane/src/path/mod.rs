//! THE packet's path. Read this file to know what happens to a frame, in order.
//!
//! ```text
//! from a pod     parse → anti-spoof → [ARP/ND/gateway] → TTL → lookup → MTU → rewrite [+ encap]
//! from an uplink parse → ours? no: host tap, unchanged │ yes: VNI, VTEP → decap → parse → lookup → rewrite
//! from the host  parse → VXLAN injection? drop          │ else: uplink, unchanged
//! ```
//!
//! A stage decides by the head alone and returns a [`Verdict`]; nothing here allocates, locks,
//! logs or fails. Splitting and merging of frames ([`split`], [`coalesce`]) happen on the way out,
//! when the worker knows the port.

pub mod coalesce;
mod packet;
mod reason;
pub mod split;

pub use packet::{Checksum, Gso, HEAD_BYTES, HEAD_MAX_BYTES, HEADROOM_BYTES, Meta, Packet, Slot};
pub use reason::{DropReason, TxDropReason};

/// The fate of a received frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Rewritten completely; leaves by `meta.out`.
    Forward,
    /// Not Bowline's: crosses the layer-2 bump unchanged to `meta.out`. From an uplink it counts
    /// as punted (to the node's stack), from the host tap as forwarded.
    Bump,
    /// Turned into an answer that leaves by `meta.out`: consumed here, generated there.
    Answer,
    /// Dropped for the reason, and the packet was turned into an ICMP error that leaves by
    /// `meta.out`: dropped here, generated there.
    DropAnswer(DropReason),
    /// Absorbed.
    Consume,
    /// Dropped.
    Drop(DropReason),
    /// Parsing needs more bytes than the head has: refill it up to [`HEAD_MAX_BYTES`] and call
    /// again. The packet is unchanged.
    Refill,
}
