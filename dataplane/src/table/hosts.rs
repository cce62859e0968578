//! Host routes of all VRFs: one exact-match lookup of (VRF, address).
//!
//! Open addressing with linear probing over a [`PVec`], so that a snapshot copy is cheap and one
//! insert copies one leaf. Load stays at or below one half; removal shifts followers back, so
//! there are no tombstones and a miss stops at the first empty slot.

use super::pvec::PVec;
use super::{NextHopId, VrfId};

/// An address as key: IPv4 in `u32`, IPv6 in `u128`.
pub trait Key: Copy + Eq + Default + std::fmt::Debug {
    /// A hash whose low bits are well mixed.
    fn hash(self, vrf: VrfId) -> u32;
}

#[inline]
fn mix(x: u64) -> u32 {
    // One multiplication by an odd constant (the golden ratio) and a fold of the high half: the
    // high bits depend on every input bit.
    (x.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
}

impl Key for u32 {
    #[inline]
    fn hash(self, vrf: VrfId) -> u32 {
        mix(u64::from(vrf.0) << 32 | u64::from(self))
    }
}

impl Key for u128 {
    #[inline]
    fn hash(self, vrf: VrfId) -> u32 {
        let high = (self >> 64) as u64;
        let low = self as u64;
        let folded = high.rotate_left(23) ^ u64::from(vrf.0).wrapping_mul(0x8cb9_2ba7_2f3d_8dd7);
        mix(low ^ folded.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot<K> {
    key: K,
    vrf: VrfId,
    hop: NextHopId,
}

/// See the module. `NextHopId::NONE` marks an empty slot.
#[derive(Debug, Clone)]
pub struct Hosts<K> {
    slots: PVec<Slot<K>>,
    mask: u32,
    used: usize,
}

impl<K: Key> Default for Hosts<K> {
    fn default() -> Self {
        Self { slots: PVec::with_len(64), mask: 63, used: 0 }
    }
}

impl<K: Key> Hosts<K> {
    /// The next hop of exactly this address, or `NextHopId::NONE`.
    #[inline]
    pub fn lookup(&self, vrf: VrfId, key: K) -> NextHopId {
        let mut at = key.hash(vrf) & self.mask;
        while let Some(slot) = self.slots.get(at as usize) {
            if slot.hop == NextHopId::NONE {
                return NextHopId::NONE;
            }
            if slot.key == key && slot.vrf == vrf {
                return slot.hop;
            }
            at = (at + 1) & self.mask;
        }
        NextHopId::NONE
    }

    /// Adds or replaces.
    pub fn insert(&mut self, vrf: VrfId, key: K, hop: NextHopId) {
        debug_assert_ne!(hop, NextHopId::NONE);
        if (self.used + 1) * 2 > self.mask as usize + 1 {
            self.double();
        }
        let at = self.find(vrf, key);
        if self.slot(at).hop == NextHopId::NONE {
            self.used += 1;
        }
        self.slots.set(at as usize, Slot { key, vrf, hop });
    }

    /// Removes, if present.
    pub fn remove(&mut self, vrf: VrfId, key: K) {
        let mut hole = self.find(vrf, key);
        if self.slot(hole).hop == NextHopId::NONE {
            return;
        }
        self.used -= 1;
        let mut at = hole;
        loop {
            at = (at + 1) & self.mask;
            let slot = self.slot(at);
            if slot.hop == NextHopId::NONE {
                break;
            }
            // The follower may move into the hole unless its home lies behind the hole.
            let home = slot.key.hash(slot.vrf) & self.mask;
            let distance_from_home = at.wrapping_sub(home) & self.mask;
            let distance_from_hole = at.wrapping_sub(hole) & self.mask;
            if distance_from_home >= distance_from_hole {
                self.slots.set(hole as usize, slot);
                hole = at;
            }
        }
        self.slots.set(hole as usize, Slot::default());
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.used
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    fn slot(&self, at: u32) -> Slot<K> {
        self.slots.get(at as usize).copied().unwrap_or_default()
    }

    fn find(&self, vrf: VrfId, key: K) -> u32 {
        let mut at = key.hash(vrf) & self.mask;
        loop {
            let slot = self.slot(at);
            if slot.hop == NextHopId::NONE || (slot.key == key && slot.vrf == vrf) {
                return at;
            }
            at = (at + 1) & self.mask;
        }
    }

    fn double(&mut self) {
        let len = (self.mask as usize + 1) * 2;
        let old = std::mem::replace(
            self,
            Self { slots: PVec::with_len(len), mask: len as u32 - 1, used: 0 },
        );
        for slot in old.slots.iter().filter(|slot| slot.hop != NextHopId::NONE) {
            self.insert(slot.vrf, slot.key, slot.hop);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    /// A random script of inserts and removals gives the same answers as a map.
    #[test]
    fn behaves_as_a_map() {
        bolero::check!().with_type::<Vec<(bool, u8, u8, u16)>>().cloned().for_each(|script| {
            let mut hosts = Hosts::<u32>::default();
            let mut map = HashMap::new();
            for (insert, vrf, key, hop) in script {
                let (vrf, key, hop) =
                    (VrfId(u16::from(vrf % 3)), u32::from(key), NextHopId(u32::from(hop) + 1));
                if insert {
                    hosts.insert(vrf, key, hop);
                    map.insert((vrf, key), hop);
                } else {
                    hosts.remove(vrf, key);
                    map.remove(&(vrf, key));
                }
            }
            assert_eq!(hosts.len(), map.len());
            for vrf in 0..3 {
                for key in 0..256 {
                    let expected = map.get(&(VrfId(vrf), key)).copied();
                    assert_eq!(hosts.lookup(VrfId(vrf), key), expected.unwrap_or(NextHopId::NONE));
                }
            }
        });
    }

    #[test]
    fn grows_and_keeps_all() {
        let mut hosts = Hosts::<u128>::default();
        for i in 0..5_000u32 {
            hosts.insert(VrfId((i % 7) as u16), u128::from(i) << 64 | 1, NextHopId(i + 1));
        }
        for i in 0..5_000u32 {
            let hop = hosts.lookup(VrfId((i % 7) as u16), u128::from(i) << 64 | 1);
            assert_eq!(hop, NextHopId(i + 1));
        }
        assert_eq!(hosts.lookup(VrfId(9), 1), NextHopId::NONE);
    }
}
