//! How many ICMP errors a sender may cause (RFC 1812 §4.3.2.8, RFC 4443 §2.4 f), and how often a
//! person hears about it.

use wire::Mac;

use super::Context;
use crate::table::{IfaceId, VrfId};

/// Errors that may follow each other at once.
const BURST: u32 = 50;
/// Time after which one more is allowed: 100 per second and worker.
const INTERVAL_NS: u64 = 10_000_000;
/// Between two events about one interface.
const EVENT_INTERVAL_NS: u64 = 10_000_000_000;
const IFACES: usize = 4096;
const VRFS: usize = 1024;

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: u32,
    filled_ns: u64,
}

impl Bucket {
    fn take(&mut self, now_ns: u64) -> bool {
        let earned = now_ns.saturating_sub(self.filled_ns) / INTERVAL_NS;
        if earned > 0 {
            self.tokens = BURST.min(self.tokens.saturating_add(earned.min(1 << 20) as u32));
            self.filled_ns = self.filled_ns.saturating_add(earned * INTERVAL_NS);
        }
        let allowed = self.tokens > 0;
        self.tokens -= u32::from(allowed);
        allowed
    }
}

/// Token buckets of one worker: one per pod interface, and one per VRF for packets that came out
/// of tunnels, so that nobody uses up another's. Fixed size, made once.
#[derive(Debug)]
pub struct IcmpLimiter {
    ifaces: Box<[Bucket]>,
    vrfs: Box<[Bucket]>,
    /// When the next event about an interface may be told.
    next_event_ns: Box<[u64]>,
    /// Events of all interfaces.
    events: Bucket,
}

impl Default for IcmpLimiter {
    fn default() -> Self {
        let full = Bucket { tokens: BURST, filled_ns: 0 };
        Self {
            ifaces: vec![full; IFACES].into(),
            vrfs: vec![full; VRFS].into(),
            next_event_ns: vec![0; IFACES].into(),
            events: full,
        }
    }
}

impl IcmpLimiter {
    /// Whether an error about a packet from this interface may be sent now.
    pub(super) fn allow_iface(&mut self, iface: IfaceId, now_ns: u64) -> bool {
        let at = usize::from(iface.0) % IFACES;
        self.ifaces.get_mut(at).is_some_and(|bucket| bucket.take(now_ns))
    }

    /// Whether an error about a packet from a tunnel into this VRF may be sent now.
    pub(super) fn allow_vrf(&mut self, vrf: VrfId, now_ns: u64) -> bool {
        let at = usize::from(vrf.0) % VRFS;
        self.vrfs.get_mut(at).is_some_and(|bucket| bucket.take(now_ns))
    }

    /// Whether an event about this interface may be told now.
    fn allow_event(&mut self, iface: IfaceId, now_ns: u64) -> bool {
        let Some(next) = self.next_event_ns.get_mut(usize::from(iface.0) % IFACES) else {
            return false;
        };
        let allowed = now_ns >= *next && self.events.take(now_ns);
        if allowed {
            *next = now_ns + EVENT_INTERVAL_NS;
        }
        allowed
    }
}

/// What a person should hear about, beyond a counter. The path tells at most one per interface
/// in ten seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathEvent {
    /// A pod sends with a MAC that was not assigned to its interface.
    SpoofedMac {
        /// Where.
        iface: IfaceId,
        /// The MAC it used.
        claimed: Mac,
    },
    /// Two sides claim one address.
    AddressConflict {
        /// Who probed for an address that somebody else owns.
        iface: IfaceId,
        /// IPv4 addresses as `::ffff:a.b.c.d`.
        address: u128,
    },
}

/// Takes what the path has to tell.
pub trait Events {
    /// Called rarely, see [`PathEvent`].
    fn event(&mut self, event: PathEvent);
}

impl Context<'_> {
    /// Tells a person about `iface`, unless one heard of it a moment ago.
    #[cold]
    pub(super) fn tell(&mut self, iface: IfaceId, event: PathEvent) {
        if self.limiter.allow_event(iface, self.now_ns) {
            self.events.event(event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_the_rate() {
        let mut limiter = IcmpLimiter::default();
        let now = 1_000_000_000_000;
        let burst = (0..1000).filter(|_| limiter.allow_iface(IfaceId(1), now)).count();
        assert_eq!(burst, BURST as usize);
        assert!(limiter.allow_iface(IfaceId(2), now), "a neighbour has its own bucket");
        assert!(limiter.allow_vrf(VrfId(1), now));
        assert!(!limiter.allow_iface(IfaceId(1), now + INTERVAL_NS - 1));
        let second =
            (1..=1000).filter(|ms| limiter.allow_iface(IfaceId(1), now + ms * 1_000_000)).count();
        assert_eq!(second, 100);
    }

    #[test]
    fn events_do_not_repeat() {
        let mut limiter = IcmpLimiter::default();
        let now = 1_000_000_000_000;
        assert!(limiter.allow_event(IfaceId(1), now));
        assert!(!limiter.allow_event(IfaceId(1), now + EVENT_INTERVAL_NS - 1));
        assert!(limiter.allow_event(IfaceId(2), now));
        assert!(limiter.allow_event(IfaceId(1), now + EVENT_INTERVAL_NS));
        let told = (3..3000).filter(|i| limiter.allow_event(IfaceId(*i), now)).count();
        assert!(told <= BURST as usize, "{told}");
    }
}
