//! Wishes against the caps of the Network. What cannot be granted is refused with a sentence that
//! names the field, the value and the limit.

use serde::{Deserialize, Serialize};

use super::interfaces::Wish;
use crate::realm::state::{MemifMode, MemifPort, Port};
use crate::rules::{Problem, RING_RANGE};
use crate::types::network::{InterfaceType, Network};

/// How a memif client learns of packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RxMode {
    /// It looks.
    #[default]
    Polling,
    /// It is woken.
    Interrupt,
}

/// What an interface is made of, every field decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Granted {
    /// tap, memif or vhost-user.
    #[serde(rename = "type")]
    pub kind: InterfaceType,
    /// memif: what its frames are.
    pub mode: MemifMode,
    /// Queues that the pod receives from.
    pub rx_queues: u32,
    /// Queues that the pod sends to.
    pub tx_queues: u32,
    /// Slots of a ring.
    pub ring_size: u32,
    /// memif: how the pod waits; told to the pod, the data plane serves both.
    pub rx_mode: RxMode,
    /// Refuse memory that its owner can still shrink.
    pub require_sealed_memory: bool,
}

impl Granted {
    /// What the data plane is told. `None` for a type that it does not serve.
    #[must_use]
    pub fn port(&self) -> Option<Port> {
        match self.kind {
            // A tap queue carries both directions.
            InterfaceType::Tap => Some(Port::Tap { queues: self.rx_queues.max(self.tx_queues) }),
            InterfaceType::Memif => Some(Port::Memif(MemifPort {
                mode: self.mode,
                rx_queues: self.rx_queues,
                tx_queues: self.tx_queues,
                ring_size: self.ring_size,
                require_sealed_memory: self.require_sealed_memory,
                secret: Vec::new(),
                id: 0,
            })),
            InterfaceType::VhostUser => None,
        }
    }
}

/// What a wish gets on its Network.
///
/// # Errors
/// The first field that cannot be granted.
pub fn grant(wish: &Wish, network: &Network) -> Result<Granted, Problem> {
    let defaults = &network.spec.interface;
    let limit = |field: &str, wanted: Option<u32>, default: u32, cap: u32, name: &str| {
        let value = wanted.unwrap_or(default);
        if value > cap {
            let message = format!(
                "is more than Network {} allows: spec.interface.{name} is {cap}",
                network.metadata.name
            );
            return Err(Problem::error(format!("{}.{field}", wish.at), value, message));
        }
        Ok(value)
    };
    let queues = defaults.max_queues;
    let rx_queues = limit("rxQueues", wish.rx_queues, defaults.rx_queues, queues, "maxQueues")?;
    let tx_queues = limit("txQueues", wish.tx_queues, defaults.tx_queues, queues, "maxQueues")?;
    let rings = defaults.max_ring_size;
    let ring_size = limit("ringSize", wish.ring_size, defaults.ring_size, rings, "maxRingSize")?;
    if !ring_size.is_power_of_two() || ring_size < *RING_RANGE.start() {
        let message = format!("must be a power of two, {} at least", RING_RANGE.start());
        return Err(Problem::error(format!("{}.ringSize", wish.at), ring_size, message));
    }
    let kind = wish.kind.or(InterfaceType::of_name(&wish.name)).unwrap_or(defaults.kind);
    if kind != InterfaceType::Memif {
        let memif_only = [
            ("mode", wish.mode.is_some_and(|m| m != MemifMode::Ethernet)),
            ("rxMode", wish.rx_mode.is_some()),
        ];
        if let Some((field, _)) = memif_only.into_iter().find(|(_, set)| *set) {
            let message = format!("belongs to memif; interface {} is {}", wish.name, kind.as_str());
            return Err(Problem::error(format!("{}.{field}", wish.at), "", message));
        }
    }
    Ok(Granted {
        kind,
        mode: wish.mode.unwrap_or_default(),
        rx_queues,
        tx_queues,
        ring_size,
        rx_mode: wish.rx_mode.unwrap_or_default(),
        require_sealed_memory: defaults.require_sealed_memory,
    })
}
