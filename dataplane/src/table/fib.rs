//! Longest prefix match for one VRF and family.
//!
//! A path-compressed trie of 4-bit strides in one flat vector: a node is two cache lines, an empty
//! table has none, and bits that all prefixes below share are skipped by one masked compare. It is
//! built whole from the VRF's routes ("RIB") whenever those change: host routes live in
//! [`super::hosts`], so a pod that comes or goes does not rebuild anything here.

use super::NextHopId;

/// An address that can be cut into nibbles.
pub trait Addr: Copy + Eq + Ord + std::fmt::Debug {
    /// 32 or 128.
    const BITS: u8;
    /// All ones in the first `len` bits.
    fn mask(len: u8) -> Self;
    /// `(self ^ other) & mask == 0`.
    fn agrees(self, other: Self, mask: Self) -> bool;
    /// The four bits that end `shift` bits before the end.
    fn nibble(self, shift: u8) -> usize;
    /// How many leading bits two addresses share.
    fn shared(self, other: Self) -> u8;
}

macro_rules! addr {
    ($t:ty, $bits:literal) => {
        impl Addr for $t {
            const BITS: u8 = $bits;
            #[inline]
            fn mask(len: u8) -> Self {
                if len == 0 { 0 } else { <$t>::MAX << ($bits - len) }
            }
            #[inline]
            fn agrees(self, other: Self, mask: Self) -> bool {
                (self ^ other) & mask == 0
            }
            #[inline]
            fn nibble(self, shift: u8) -> usize {
                (self >> shift) as usize & 15
            }
            #[inline]
            fn shared(self, other: Self) -> u8 {
                (self ^ other).leading_zeros() as u8
            }
        }
    };
}
addr!(u32, 32);
addr!(u128, 128);

/// One route: `prefix/len` → `hop`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix<A> {
    /// Host bits are zero.
    pub addr: A,
    /// `0..=A::BITS`.
    pub len: u8,
    /// Where it leads; never `NextHopId::NONE`.
    pub hop: NextHopId,
}

/// An entry of a node: a next hop, or (highest bit set) the index of a node.
type Entry = u32;
const NODE: Entry = 1 << 31;

#[derive(Debug, Clone)]
struct Node<A> {
    addr: A,
    mask: A,
    shift: u8,
    /// Where addresses lead that do not share the skipped bits.
    miss: Entry,
    entries: [Entry; 16],
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Fib<A> {
    root: Entry,
    nodes: Vec<Node<A>>,
}

impl<A> Default for Fib<A> {
    fn default() -> Self {
        Self { root: NextHopId::NONE.0, nodes: Vec::new() }
    }
}

impl<A: Addr> Fib<A> {
    /// The table of these routes. Of two with the same prefix the last wins.
    pub fn build(routes: &[Prefix<A>]) -> Self {
        let mut sorted = routes.to_vec();
        // Stable, so that the last of equals stays last and overwrites the others.
        sorted.sort_by_key(|p| (p.addr, p.len));
        let mut fib = Self::default();
        fib.root = fib.subtree(&sorted, NextHopId::NONE.0);
        fib
    }

    /// The next hop of the longest prefix that contains `addr`, or `NextHopId::NONE`.
    #[inline]
    pub fn lookup(&self, addr: A) -> NextHopId {
        let mut entry = self.root;
        while entry & NODE != 0 {
            let Some(node) = self.nodes.get((entry & !NODE) as usize) else {
                return NextHopId::NONE;
            };
            entry = if addr.agrees(node.addr, node.mask) {
                node.entries[addr.nibble(node.shift)]
            } else {
                node.miss
            };
        }
        NextHopId(entry)
    }

    /// Bytes of heap that the table takes.
    pub fn heap_bytes(&self) -> usize {
        self.nodes.capacity() * size_of::<Node<A>>()
    }

    /// Builds the tree for `routes` (sorted, all inside what the caller has decided so far) and
    /// returns the entry that leads to it. `default` is the covering route.
    fn subtree(&mut self, routes: &[Prefix<A>], mut default: Entry) -> Entry {
        // A zero-length prefix has no nibble of its own: it is the default for all the rest.
        let longer: Vec<Prefix<A>> = routes.iter().filter(|p| p.len > 0).copied().collect();
        if let Some(zero) = routes.iter().rfind(|p| p.len == 0) {
            default = zero.hop.0;
        }
        let (Some(first), Some(last)) = (longer.first(), longer.last()) else {
            return default;
        };
        let shortest = longer.iter().map(|p| p.len).min().unwrap_or(1);
        let depth = first.addr.shared(last.addr).min(shortest - 1) & !3;
        let shift = A::BITS - 4 - depth;
        let addr = first.addr;

        let mut entries = [default; 16];
        let mut ends_here: Vec<&Prefix<A>> = longer.iter().filter(|p| p.len <= depth + 4).collect();
        ends_here.sort_by_key(|p| p.len);
        for prefix in ends_here {
            let span = 1 << (depth + 4 - prefix.len);
            let from = prefix.addr.nibble(shift);
            entries[from..from + span].fill(prefix.hop.0);
        }
        let index = self.nodes.len();
        self.nodes.push(Node { addr, mask: A::mask(depth), shift, miss: default, entries });
        for (nibble, covering) in entries.into_iter().enumerate() {
            let below: Vec<Prefix<A>> = longer
                .iter()
                .filter(|p| p.len > depth + 4 && p.addr.nibble(shift) == nibble)
                .copied()
                .collect();
            if !below.is_empty() {
                let entry = self.subtree(&below, covering);
                self.nodes[index].entries[nibble] = entry;
            }
        }
        NODE | index as Entry
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn longest<A: Addr>(routes: &[Prefix<A>], addr: A) -> NextHopId {
        let matching = routes.iter().filter(|p| addr.agrees(p.addr, A::mask(p.len)));
        matching.max_by_key(|p| p.len).map_or(NextHopId::NONE, |p| p.hop)
    }

    /// FIB ≡ RIB: for any routes, and addresses in and around them, both give the same answer.
    #[test]
    fn equals_the_rib_v4() {
        bolero::check!().with_type::<(Vec<(u32, u8)>, Vec<u32>)>().cloned().for_each(
            |(routes, probes)| {
                let routes: Vec<Prefix<u32>> = routes
                    .into_iter()
                    .zip(1..)
                    .map(|((addr, len), hop)| {
                        // Half of them near each other, so that prefixes nest.
                        let addr = if len & 1 == 0 { addr } else { addr & 0xff | 0x0a00_0000 };
                        let len = len % 33;
                        Prefix { addr: addr & u32::mask(len), len, hop: NextHopId(hop) }
                    })
                    .collect();
                let fib = Fib::build(&routes);
                let edges = routes.iter().flat_map(|p| {
                    [p.addr, p.addr.wrapping_sub(1), p.addr | !u32::mask(p.len), p.addr ^ 1]
                });
                for addr in probes.into_iter().chain(edges) {
                    assert_eq!(fib.lookup(addr), longest(&routes, addr), "{addr:x}");
                }
            },
        );
    }

    #[test]
    fn equals_the_rib_v6() {
        bolero::check!().with_type::<Vec<(u128, u8, u8)>>().cloned().for_each(|routes| {
            let routes: Vec<Prefix<u128>> = routes
                .into_iter()
                .zip(1..)
                .map(|((addr, len, near), hop)| {
                    let addr = if near & 1 == 0 { addr } else { addr >> 64 | 0xfd << 120 };
                    let len = len % 129;
                    Prefix { addr: addr & u128::mask(len), len, hop: NextHopId(hop) }
                })
                .collect();
            let fib = Fib::build(&routes);
            for p in &routes {
                for addr in [p.addr, p.addr.wrapping_sub(1), p.addr | !u128::mask(p.len)] {
                    assert_eq!(fib.lookup(addr), longest(&routes, addr), "{addr:x}");
                }
            }
        });
    }

    #[test]
    fn an_empty_table_takes_no_heap() {
        assert_eq!(Fib::<u32>::build(&[]).heap_bytes(), 0);
        assert_eq!(Fib::<u128>::default().lookup(7), NextHopId::NONE);
    }
}
