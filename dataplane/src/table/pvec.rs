//! A growing vector whose copies share what did not change.
//!
//! Readers index it as three dependent loads. The writer clones it for the next snapshot (a few
//! reference counts) and changes single elements: only the leaf of 64 elements and its parent
//! are copied. That keeps the publish of one route among 100,000 in the microseconds.

use std::sync::Arc;

const FAN: usize = 64;

/// See the module.
///
/// *Invariant*: `len` elements are reachable; every leaf and inner node is full length.
#[derive(Debug, Clone)]
pub struct PVec<T> {
    top: Vec<Arc<Inner<T>>>,
    len: usize,
}

#[derive(Debug, Clone)]
struct Inner<T>([Arc<Leaf<T>>; FAN]);

#[derive(Debug, Clone)]
struct Leaf<T>([T; FAN]);

impl<T: Clone + Default> PVec<T> {
    /// An empty vector.
    pub fn new() -> Self {
        Self { top: Vec::new(), len: 0 }
    }

    /// A vector of `len` default elements; the leaves are one shared leaf until written.
    pub fn with_len(len: usize) -> Self {
        let mut vec = Self::new();
        vec.grow(len);
        vec
    }

    /// How many elements there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The element at `index`.
    #[inline]
    pub fn get(&self, index: usize) -> Option<&T> {
        let inner = self.top.get(index / (FAN * FAN))?;
        Some(&inner.0[index / FAN % FAN].0[index % FAN])
    }

    /// Replaces the element at `index`, growing the vector to hold it.
    pub fn set(&mut self, index: usize, value: T) {
        self.grow(index + 1);
        let inner = Arc::make_mut(&mut self.top[index / (FAN * FAN)]);
        let leaf = Arc::make_mut(&mut inner.0[index / FAN % FAN]);
        leaf.0[index % FAN] = value;
    }

    /// All elements in order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        let leaves = self.top.iter().flat_map(|inner| inner.0.iter());
        leaves.flat_map(|leaf| leaf.0.iter()).take(self.len)
    }

    fn grow(&mut self, len: usize) {
        if len <= self.len {
            return;
        }
        let wanted = len.div_ceil(FAN * FAN);
        if wanted > self.top.len() {
            let leaf = Arc::new(Leaf(std::array::from_fn(|_| T::default())));
            let inner = Arc::new(Inner(std::array::from_fn(|_| Arc::clone(&leaf))));
            self.top.resize(wanted, inner);
        }
        self.len = len;
    }
}

impl<T: Clone + Default> Default for PVec<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_do_not_see_later_writes() {
        let mut a: PVec<u32> = PVec::new();
        for i in 0..10_000 {
            a.set(i, i as u32);
        }
        let b = a.clone();
        a.set(77, 1);
        a.set(20_000, 2);
        assert_eq!(b.get(77), Some(&77));
        assert_eq!(b.len(), 10_000);
        assert_eq!((a.get(77), a.get(20_000), a.get(15_000)), (Some(&1), Some(&2), Some(&0)));
        assert!(b.iter().copied().eq(0..10_000));
    }
}
