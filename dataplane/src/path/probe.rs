//! Who wants to know which rule decided.
//!
//! `bowline trace` runs the same path with a probe that records; all other packets run it with
//! [`NoProbe`], for which every note is compiled away.

use std::fmt::Arguments;

/// A stage of the path, as a trace names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Link header, addresses, offload fields.
    Parse,
    /// Whether the sender may send this.
    Ingress,
    /// ARP and neighbour discovery.
    Neighbour,
    /// The node as the packet's destination.
    Gateway,
    /// Out of a tunnel.
    Decap,
    /// Route and next hop.
    Lookup,
    /// TTL and MTU.
    Limits,
    /// New headers.
    Rewrite,
    /// An error sent back.
    IcmpError,
    /// Between an uplink and the node's own stack.
    Bump,
}

impl Stage {
    /// The word in a trace.
    pub const fn name(self) -> &'static str {
        match self {
            Stage::Parse => "parse",
            Stage::Ingress => "ingress",
            Stage::Neighbour => "neighbour",
            Stage::Gateway => "gateway",
            Stage::Decap => "decap",
            Stage::Lookup => "lookup",
            Stage::Limits => "limits",
            Stage::Rewrite => "rewrite",
            Stage::IcmpError => "icmp-error",
            Stage::Bump => "bump",
        }
    }
}

/// Takes notes about a packet's way.
pub trait Probe {
    /// Whether notes are taken: callers make none otherwise.
    const ON: bool;

    /// `rule` decided in `stage`.
    fn note(&mut self, stage: Stage, rule: Arguments<'_>);
}

/// Nobody asks.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProbe;

impl Probe for NoProbe {
    const ON: bool = false;

    #[inline(always)]
    fn note(&mut self, _: Stage, _: Arguments<'_>) {}
}

/// Keeps all notes. For one packet at a time: it allocates.
#[derive(Debug, Clone, Default)]
pub struct Recorder {
    /// In order.
    pub notes: Vec<(Stage, String)>,
}

impl Probe for Recorder {
    const ON: bool = true;

    fn note(&mut self, stage: Stage, rule: Arguments<'_>) {
        self.notes.push((stage, rule.to_string()));
    }
}

/// Takes a note, if anybody asks.
macro_rules! note {
    ($probe:expr, $stage:ident, $($rule:tt)*) => {
        if P::ON {
            $probe.note($crate::path::Stage::$stage, format_args!($($rule)*));
        }
    };
}
pub(super) use note;
