//! The blocks of one domain as they were read, and what plans changed in them since.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::range::{Family, number};
use crate::types::block::{AddressBlock, BLOCK_SIZE, Entry};

/// Blocks of one domain (a Network, or "" for the LAN), both families.
#[derive(Clone, Debug, Default)]
pub struct View {
    domain: String,
    blocks: BTreeMap<(Family, u128), Slot>,
}

#[derive(Clone, Debug)]
struct Slot {
    block: AddressBlock,
    dirty: bool,
}

impl View {
    /// A view of what was read. Blocks of other domains are left out.
    #[must_use]
    pub fn new(domain: impl Into<String>, blocks: impl IntoIterator<Item = AddressBlock>) -> Self {
        let domain = domain.into();
        let own = blocks.into_iter().filter(|b| b.spec.network == domain);
        let slots =
            own.map(|block| ((block.family(), block.start()), Slot { block, dirty: false }));
        let blocks = slots.collect();
        View { domain, blocks }
    }

    /// The domain.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// All blocks, by family and address.
    pub fn blocks(&self) -> impl Iterator<Item = &AddressBlock> {
        self.blocks.values().map(|s| &s.block)
    }

    /// Blocks of a family, by address.
    pub fn blocks_of(&self, family: Family) -> impl Iterator<Item = &AddressBlock> {
        self.blocks.range((family, 0)..=(family, u128::MAX)).map(|(_, s)| &s.block)
    }

    /// The block that starts at `start`.
    #[must_use]
    pub fn block(&self, family: Family, start: u128) -> Option<&AddressBlock> {
        self.blocks.get(&(family, start)).map(|s| &s.block)
    }

    /// The block that an address lies in, if there is one.
    #[must_use]
    pub fn block_of(&self, address: IpAddr) -> Option<&AddressBlock> {
        self.block(Family::of(address), number(address) & !(BLOCK_SIZE - 1))
    }

    /// The block that an address lies in, made if there is none, to be changed.
    pub(super) fn change(&mut self, address: IpAddr) -> &mut AddressBlock {
        let key = (Family::of(address), number(address) & !(BLOCK_SIZE - 1));
        let domain = &self.domain;
        let slot = self
            .blocks
            .entry(key)
            .or_insert_with(|| Slot { block: AddressBlock::around(domain, address), dirty: true });
        slot.dirty = true;
        &mut slot.block
    }

    /// Every entry that satisfies `wanted`, with its block.
    pub fn entries<'a>(
        &'a self,
        mut wanted: impl FnMut(&Entry) -> bool + 'a,
    ) -> impl Iterator<Item = (&'a AddressBlock, &'a Entry)> {
        self.blocks()
            .flat_map(|b| b.spec.entries.iter().map(move |e| (b, e)))
            .filter(move |(_, e)| wanted(e))
    }

    /// What has to be written: a block without resource version is to be created, any other to be
    /// replaced if its version is still that one.
    pub fn writes(&self) -> impl Iterator<Item = &AddressBlock> {
        self.blocks.values().filter(|s| s.dirty).map(|s| &s.block)
    }

    /// Takes a block as the store returned it.
    pub fn written(&mut self, block: AddressBlock) {
        self.blocks.insert((block.family(), block.start()), Slot { block, dirty: false });
    }
}
