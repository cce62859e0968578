//! The blocks of one domain as they were read, and what plans changed in them since.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use crate::range::{Family, number};
use crate::rules::validate_block;
use crate::types::block::{AddressBlock, BLOCK_SIZE, Entry, Owner, block_name, owner_hash};

/// Blocks of one domain (a Network, or "" for the LAN), both families.
#[derive(Clone, Debug, Default)]
pub struct View {
    domain: String,
    blocks: BTreeMap<(Family, u128), Slot>,
    /// Windows of blocks that break their rules (somebody edited them): nothing is taken from there,
    /// because what is held there cannot be told.
    broken: BTreeSet<(Family, u128)>,
    /// Blocks that are not at hand whole: nothing is taken from there before they are fetched.
    outlines: BTreeMap<(Family, u128), Arc<AddressBlock>>,
    /// Where owners' entries were when their block was last clean, by [`owner_hash`]: a claim among
    /// 100,000 must not look at each. What it names is compared again before it is believed. Made for the
    /// first claim; nothing else asks.
    owners: OnceLock<HashMap<u64, Vec<IpAddr>>>,
    /// Blocks as they were before the changes since [`View::begin`]; `None`: there was none.
    before: BTreeMap<(Family, u128), Option<Slot>>,
}

#[derive(Clone, Debug)]
struct Slot {
    block: Arc<AddressBlock>,
    dirty: bool,
}

impl View {
    /// A view of what was read. Blocks of other domains are left out.
    #[must_use]
    pub fn new(domain: impl Into<String>, blocks: impl IntoIterator<Item = AddressBlock>) -> Self {
        Self::of(domain, blocks.into_iter().map(Arc::new))
    }

    /// The same of blocks that others look at as well; some may be outlines.
    #[must_use]
    pub fn of(
        domain: impl Into<String>,
        blocks: impl IntoIterator<Item = Arc<AddressBlock>>,
    ) -> Self {
        let mut view = View { domain: domain.into(), ..View::default() };
        for block in blocks {
            view.take(block);
        }
        view
    }

    fn take(&mut self, block: Arc<AddressBlock>) {
        let window = (block.family(), block.start() & !(BLOCK_SIZE - 1));
        if block.spec.network != self.domain {
            return;
        }
        if block.spec.left_out.is_some() {
            self.outlines.insert(window, block);
        } else if validate_block(&block).is_empty() {
            self.written(block);
        } else {
            self.broken.insert(window);
        }
    }

    /// The whole block in place of an outline's, or none if it is gone.
    pub(super) fn fetched(&mut self, outline: &str, block: Option<AddressBlock>) {
        self.outlines.retain(|_, known| known.name() != outline);
        if let Some(block) = block {
            self.take(Arc::new(block));
        }
    }

    /// Blocks that are there in outline.
    pub fn outlines(&self) -> impl Iterator<Item = &AddressBlock> {
        self.outlines.values().map(AsRef::as_ref)
    }

    /// Names of outlined blocks in which one of these may have, or have had, an address; by
    /// [`owner_hash`]. All are looked for at once: there may be 100,000 addresses.
    pub(super) fn outlines_with(&self, owners: &[u64]) -> impl Iterator<Item = &str> {
        let has = |block: &&AddressBlock| {
            let out = block.spec.left_out.as_ref();
            out.is_some_and(|out| owners.iter().any(|owner| out.owners.contains(owner)))
        };
        self.outlines().filter(has).map(AddressBlock::name)
    }

    /// The name of the outlined block around an address.
    pub(super) fn outline_around(&self, address: IpAddr) -> Option<String> {
        let window = (Family::of(address), number(address) & !(BLOCK_SIZE - 1));
        let known = self.outlines.contains_key(&window);
        known.then(|| block_name(&self.domain, address))
    }

    /// Whether nothing can be taken around an address: the block breaks its rules, or is not at hand.
    #[must_use]
    pub fn is_closed(&self, family: Family, start: u128) -> bool {
        let window = (family, start & !(BLOCK_SIZE - 1));
        self.broken.contains(&window) || self.outlines.contains_key(&window)
    }

    /// Whether the block around an address breaks its rules.
    #[must_use]
    pub fn is_broken(&self, family: Family, start: u128) -> bool {
        self.broken.contains(&(family, start & !(BLOCK_SIZE - 1)))
    }

    /// How many windows are lost to broken blocks.
    #[must_use]
    pub fn broken_count(&self) -> usize {
        self.broken.len()
    }

    /// The domain.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// All blocks, by family and address.
    pub fn blocks(&self) -> impl Iterator<Item = &AddressBlock> {
        self.blocks.values().map(|s| s.block.as_ref())
    }

    /// Blocks of a family, by address.
    pub fn blocks_of(&self, family: Family) -> impl Iterator<Item = &AddressBlock> {
        self.blocks.range((family, 0)..=(family, u128::MAX)).map(|(_, s)| s.block.as_ref())
    }

    /// The block that starts at `start`.
    #[must_use]
    pub fn block(&self, family: Family, start: u128) -> Option<&AddressBlock> {
        self.blocks.get(&(family, start)).map(|s| s.block.as_ref())
    }

    /// The block that an address lies in, if there is one.
    #[must_use]
    pub fn block_of(&self, address: IpAddr) -> Option<&AddressBlock> {
        self.block(Family::of(address), number(address) & !(BLOCK_SIZE - 1))
    }

    /// The block that an address lies in, made if there is none, to be changed.
    pub(super) fn change(&mut self, address: IpAddr) -> &mut AddressBlock {
        let key = (Family::of(address), number(address) & !(BLOCK_SIZE - 1));
        self.before.entry(key).or_insert_with(|| self.blocks.get(&key).cloned());
        let domain = &self.domain;
        let slot = self.blocks.entry(key).or_insert_with(|| Slot {
            block: AddressBlock::around(domain, address).into(),
            dirty: true,
        });
        slot.dirty = true;
        Arc::make_mut(&mut slot.block)
    }

    /// Whether the block around an address will be written.
    pub(super) fn is_changed(&self, address: IpAddr) -> bool {
        let key = (Family::of(address), number(address) & !(BLOCK_SIZE - 1));
        self.blocks.get(&key).is_some_and(|slot| slot.dirty)
    }

    /// From here on [`View::roll_back`] leads back here.
    pub(super) fn begin(&mut self) {
        self.before.clear();
    }

    /// Undoes what was changed since [`View::begin`].
    pub(super) fn roll_back(&mut self) {
        for (key, slot) in std::mem::take(&mut self.before) {
            match slot {
                Some(slot) => drop(self.blocks.insert(key, slot)),
                None => drop(self.blocks.remove(&key)),
            }
        }
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
        self.blocks.values().filter(|s| s.dirty).map(|s| s.block.as_ref())
    }

    /// Entries, held or released, that may be `owner`'s for `interface`; the caller compares.
    pub(super) fn owned<'a>(
        &'a self,
        owner: &Owner,
        interface: &str,
    ) -> impl Iterator<Item = &'a Entry> + use<'a> {
        let owners = self.owners.get_or_init(|| {
            let mut owners = HashMap::new();
            self.blocks().for_each(|block| note_owners(&mut owners, block));
            owners
        });
        let indexed = owners.get(&owner_hash(owner, interface)).into_iter().flatten();
        let clean = indexed.filter_map(|address| {
            let key = (Family::of(*address), number(*address) & !(BLOCK_SIZE - 1));
            self.blocks.get(&key).filter(|s| !s.dirty).and_then(|s| s.block.entry(*address))
        });
        clean.chain(self.writes().flat_map(|b| &b.spec.entries))
    }

    /// Takes a block as the store has it.
    pub fn written(&mut self, block: impl Into<Arc<AddressBlock>>) {
        let block = block.into();
        if let Some(owners) = self.owners.get_mut() {
            note_owners(owners, &block);
        }
        self.blocks.insert((block.family(), block.start()), Slot { block, dirty: false });
    }
}

fn note_owners(owners: &mut HashMap<u64, Vec<IpAddr>>, block: &AddressBlock) {
    for entry in &block.spec.entries {
        if let Some(owner) = &entry.owner {
            let known = owners.entry(owner_hash(owner, &entry.interface)).or_default();
            if !known.contains(&entry.address) {
                known.push(entry.address);
            }
        }
    }
}
