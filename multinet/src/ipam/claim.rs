//! Which address a request gets.
//!
//! For each candidate pool in turn, the first of these that has a free address:
//! 1. blocks bound to the node (no contention, one route);
//! 2. large pools: a new or idle block, bound to the node from now on;
//! 3. unbound blocks, and a new unbound one;
//! 4. idle blocks bound to another node: taken over;
//! 5. used blocks bound to another node: the address becomes a stray with its own route;
//! 6. addresses that still rest after their release, longest rest first, unless the delay is strict.
//!
//! Within one of them the pool's strategy decides. Blocks are compare-and-swapped whole, so that
//! agents which lost a race go on in an order of blocks of their own instead of racing for the lowest
//! again.

use std::fmt;
use std::net::IpAddr;

use super::view::View;
use crate::range::{AddressSet, Family, number};
use crate::rules::{Binding, Checked, Home, Pool, ReuseDelay, Strategy};
use crate::types::block::{AddressBlock, BLOCK_SIZE, Entry, EntryState, Owner, owner_hash};
use crate::types::mac::{mix, stable_hash};

/// Of blocks that are not at hand and may have a free address, so many are read at a time.
const FETCHED_AT_ONCE: usize = 2;

/// A pool that a request may be served from.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// Its name.
    pub pool: String,
    /// What may be handed out, see [`Checked::allocatable`].
    pub addresses: AddressSet,
    /// Which free address is taken.
    pub strategy: Strategy,
    /// How long a released address rests.
    pub reuse_delay: ReuseDelay,
    /// Whether nodes hold blocks of it.
    pub binding: Binding,
}

impl Candidate {
    /// The candidate that a checked pool is.
    #[must_use]
    pub fn new(checked: &Checked, home: &Home, pool: &Pool) -> Self {
        Candidate {
            pool: pool.name.clone(),
            addresses: checked.allocatable(home, pool),
            strategy: pool.strategy,
            reuse_delay: pool.reuse_delay,
            binding: pool.binding,
        }
    }

    /// Outlined blocks that may have an address for whoever reads them whole.
    fn roomy_outlines<'a>(&'a self, view: &'a View) -> impl Iterator<Item = &'a AddressBlock> {
        let of_family = view.outlines().filter(|b| b.family() == self.addresses.family());
        of_family.filter(|b| {
            let held = b.spec.left_out.as_ref().map_or(u64::MAX, |out| out.held);
            self.addresses.window(b.start()) & !held != 0
        })
    }

    /// Whether nodes hold blocks of it. Auto: where there are twice as many blocks as nodes and at
    /// least eight, so that a node which holds a block it hardly uses starves nobody.
    #[must_use]
    pub fn binds(&self, cluster_nodes: u32) -> bool {
        match self.binding {
            Binding::Always => true,
            Binding::Never => false,
            Binding::Auto => {
                self.addresses.window_count() >= u128::from(cluster_nodes).saturating_mul(2).max(8)
            }
        }
    }
}

/// One address wanted.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Who wants it.
    pub owner: Owner,
    /// For which interface.
    pub interface: String,
    /// IPv4 or IPv6.
    pub family: Family,
    /// For which sandbox; empty for a node.
    pub sandbox_id: String,
    /// Where it will be used.
    pub node: String,
    /// Pools, tried in this order.
    pub candidates: Vec<Candidate>,
    /// This address and no other; it must lie in a candidate.
    pub exact: Option<IpAddr>,
    /// StatefulSet pods and virtual machines: a claim of the same namespace and name is theirs,
    /// whatever the UID.
    pub sticky: bool,
    /// The target of a virtual machine's migration: the machine runs at its source, and what is held
    /// there stays there until the source gives it up.
    pub moves: bool,
    /// How many nodes the cluster has.
    pub cluster_nodes: u32,
}

impl Request {
    /// Whether an entry is this request's, held or released last.
    fn owns(&self, entry: &Entry) -> bool {
        Family::of(entry.address) == self.family
            && entry.interface == self.interface
            && entry.owner.as_ref().is_some_and(|o| same_owner(o, &self.owner, self.sticky))
    }

    /// The name of the outlined block around an exact address: it has to be read before this can be
    /// decided.
    pub(super) fn exact_block(&self, view: &View) -> Option<String> {
        self.exact.and_then(|address| view.outline_around(address))
    }

    /// What a block's outline says of an entry that is this request's.
    pub(super) fn owner_hash(&self) -> u64 {
        owner_hash(&self.owner, &self.interface)
    }

    /// Names of outlined blocks of the first candidate that may have an address there, idle ones
    /// first, when the blocks at hand had none. Agents that come here at the same time begin at
    /// different ones.
    pub(super) fn could_use(&self, view: &View) -> Vec<String> {
        if self.exact.is_some() {
            return Vec::new();
        }
        let seed = self.own_order();
        let roomy = self.candidates.iter().map(|c| c.roomy_outlines(view).collect::<Vec<_>>());
        let first = roomy.into_iter().find(|blocks| !blocks.is_empty());
        let mut first = first.unwrap_or_default();
        first.sort_by_cached_key(|b| (!b.is_idle(), mix(stable_hash(&[b.name()]) ^ seed)));
        first.into_iter().take(FETCHED_AT_ONCE).map(|b| b.name().to_owned()).collect()
    }

    fn seed(&self, attempt: u32) -> u64 {
        let key = stable_hash(&[&self.owner.key(), &self.interface, &self.sandbox_id, &self.node]);
        mix(key ^ u64::from(attempt).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// The seed of the order in which this node goes through blocks that it shares with others. It stays
    /// the same: all that a node claims at a time is then one write, and of the block around which it
    /// has just lost a race it has a newer state than of any other.
    fn own_order(&self) -> u64 {
        mix(stable_hash(&[&self.node]))
    }

    fn entry(&self, address: IpAddr, pool: &str, now_ms: u64) -> Entry {
        Entry {
            address,
            state: EntryState::Intent,
            owner: Some(self.owner.clone()),
            interface: self.interface.clone(),
            pool: pool.into(),
            sandbox_id: self.sandbox_id.clone(),
            node: self.node.clone(),
            since_ms: now_ms,
            until_ms: None,
            reason: String::new(),
        }
    }
}

fn same_owner(had: &Owner, wants: &Owner, sticky: bool) -> bool {
    match (had, wants) {
        (
            Owner::Pod { namespace: a, name: b, uid: c },
            Owner::Pod { namespace: x, name: y, uid: z },
        ) => (sticky || c == z) && a == x && b == y,
        (Owner::Node { name: a }, Owner::Node { name: b }) => a == b,
        _ => false,
    }
}

/// An address given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The address.
    pub address: IpAddr,
    /// The pool that it is from.
    pub pool: String,
    /// Whether the holder did not have it before this call: to be undone if the call fails.
    pub fresh: bool,
    /// Another node holds it still, see [`Request::moves`]: to be claimed again until that is over.
    pub elsewhere: bool,
}

/// Why a pool did not serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The pool.
    pub pool: String,
    /// Why, to follow the pool's name in a sentence.
    pub why: String,
}

/// Why no pool served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rejections {
    /// What was asked for.
    pub wanted: String,
    /// Every pool that was considered.
    pub pools: Vec<Rejection>,
}

impl fmt::Display for Rejections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no address for {}", self.wanted)?;
        if self.pools.is_empty() {
            return f.write_str(": no pool is eligible; name one in the Network's spec.ipPools");
        }
        for (i, r) in self.pools.iter().enumerate() {
            write!(f, "{} pool {} {}", if i == 0 { ":" } else { ";" }, r.pool, r.why)?;
        }
        Ok(())
    }
}

impl std::error::Error for Rejections {}

/// Decides and notes the decision in the view. `attempt` counts lost races.
///
/// # Errors
/// Why each candidate did not serve; the view must not be written then.
pub fn plan_claim(
    view: &mut View,
    request: &Request,
    attempt: u32,
    now_ms: u64,
) -> Result<Claim, Rejections> {
    if let Some(claim) = existing(view, request, now_ms) {
        return Ok(claim);
    }
    let mut refused =
        Rejections { wanted: wanted(request), pools: Vec::with_capacity(request.candidates.len()) };
    for candidate in &request.candidates {
        let found = match request.exact {
            Some(address) => exact(view, candidate, address, now_ms),
            None => last_held(view, request, candidate, now_ms).map_or_else(
                || choose(view, request, candidate, attempt, now_ms),
                |address| Ok(Choice { address, bind: None }),
            ),
        };
        match found {
            Ok(choice) => {
                let entry = request.entry(choice.address, &candidate.pool, now_ms);
                let block = view.change(choice.address);
                block.put(entry);
                if let Some(node) = choice.bind {
                    block.spec.node = node;
                }
                let address = choice.address;
                let pool = candidate.pool.clone();
                return Ok(Claim { address, pool, fresh: true, elsewhere: false });
            }
            Err(why) => refused.pools.push(Rejection { pool: candidate.pool.clone(), why }),
        }
        // The next pool's turn comes when this one has none for certain.
        if request.exact.is_none() && candidate.roomy_outlines(view).next().is_some() {
            break;
        }
    }
    Err(refused)
}

fn wanted(request: &Request) -> String {
    let Request { owner, interface, family, .. } = request;
    match request.exact {
        Some(address) => format!("{interface} of {owner}, which wants {address}"),
        None => format!("{interface} of {owner} ({family})"),
    }
}

/// What the key holds already, moved to the request's sandbox and owner. Another address than an
/// exact one that is asked for is given back, and one of a pool that a pod's successor may not use.
fn existing(view: &mut View, request: &Request, now_ms: u64) -> Option<Claim> {
    let entry = view
        .owned(&request.owner, &request.interface)
        .find(|e| e.state.is_held() && request.owns(e))
        .cloned()?;
    let (address, pool) = (entry.address, entry.pool.clone());
    if request.moves && !entry.node.is_empty() && entry.node != request.node {
        return Some(Claim { address, pool, fresh: false, elsewhere: true });
    }
    // A pod that outlives its sandbox stays in its pool as long as that is one of its pools.
    let left_pool = request.sticky
        && entry.sandbox_id != request.sandbox_id
        && !request.candidates.iter().any(|candidate| candidate.pool == entry.pool);
    if left_pool || request.exact.is_some_and(|exact| exact != entry.address) {
        let block = view.change(entry.address);
        block.put(Entry { state: EntryState::Released, since_ms: now_ms, ..entry });
        return None;
    }
    let same = entry.owner.as_ref() == Some(&request.owner)
        && entry.sandbox_id == request.sandbox_id
        && entry.node == request.node;
    if !same {
        view.change(address).put(request.entry(address, &pool, now_ms));
    }
    Some(Claim { address, pool, fresh: false, elsewhere: false })
}

/// The address that the key had last, if nobody else wants it: a pod whose sandbox is made anew keeps
/// its address.
fn last_held(view: &View, request: &Request, candidate: &Candidate, now_ms: u64) -> Option<IpAddr> {
    let mut own = view.owned(&request.owner, &request.interface);
    let entry = own.find(|e| {
        e.state == EntryState::Released
            && request.owns(e)
            && candidate.addresses.contains(e.address)
    })?;
    exact(view, candidate, entry.address, now_ms).is_ok().then_some(entry.address)
}

/// An address, and the node that its block is bound to from now on (if that changes).
struct Choice {
    address: IpAddr,
    bind: Option<Option<String>>,
}

/// Said of addresses that cannot be given because of a damaged block.
const BROKEN: &str = "the AddressBlock around it breaks its rules, see its problems and mend it";

fn exact(
    view: &View,
    candidate: &Candidate,
    address: IpAddr,
    now_ms: u64,
) -> Result<Choice, String> {
    if !candidate.addresses.contains(address) {
        return Err(format!("does not hold {address}"));
    }
    if view.is_closed(Family::of(address), number(address)) {
        return Err(format!("cannot give {address}: {BROKEN}"));
    }
    match view.block_of(address).and_then(|b| b.entry(address)) {
        Some(e) if e.state.is_held() => {
            let holder = e.holder();
            Err(format!("has given {address} to {holder}"))
        }
        Some(e) if e.state == EntryState::Quarantined && e.until_ms > Some(now_ms) => {
            Err(format!("holds {address} in quarantine: {}", e.reason))
        }
        // Whoever names an address wants that one: its rest does not matter.
        _ => Ok(Choice { address, bind: None }),
    }
}

/// The free and the resting addresses of a block, bit by bit.
struct Masks {
    free: u64,
    resting: u64,
}

fn masks(block: &AddressBlock, candidate: &Candidate, now_ms: u64) -> Masks {
    let mut free = candidate.addresses.window(block.start());
    let mut resting = 0;
    for entry in &block.spec.entries {
        let bit = 1u64 << ((number(entry.address) - block.start()) & (BLOCK_SIZE - 1));
        let taken = match entry.state {
            EntryState::Intent | EntryState::Allocated => true,
            EntryState::Quarantined => entry.until_ms.is_some_and(|until| until > now_ms),
            EntryState::Released => {
                let rests = now_ms < entry.since_ms.saturating_add(candidate.reuse_delay.ms);
                if rests && !candidate.reuse_delay.strict {
                    resting |= free & bit;
                }
                rests
            }
        };
        if taken {
            free &= !bit;
        }
    }
    Masks { free, resting }
}

fn choose(
    view: &View,
    request: &Request,
    candidate: &Candidate,
    attempt: u32,
    now_ms: u64,
) -> Result<Choice, String> {
    if candidate.addresses.is_empty() {
        return Err("holds no address; fill its spec.ips".into());
    }
    let picker = Picker { view, request, candidate, attempt, now_ms };
    let node = request.node.as_str();
    let binds = candidate.binds(request.cluster_nodes);
    let bound = |b: &AddressBlock| b.spec.node.as_deref() == Some(node);
    let unbound = |b: &AddressBlock| b.spec.node.is_none();
    let foreign = |b: &AddressBlock| b.spec.node.is_some() && !bound(b);
    let mine = Some(Some(node.to_string()));
    let taken_over = if binds { mine.clone() } else { Some(None) };
    let found = picker
        .pick(bound, false, None)
        .or_else(|| binds.then(|| picker.pick(|b| unbound(b) && b.is_idle(), true, mine))?)
        .or_else(|| picker.pick(unbound, !binds, None))
        .or_else(|| picker.pick(|b| foreign(b) && b.is_idle(), false, taken_over))
        .or_else(|| picker.pick(foreign, false, None))
        .or_else(|| picker.longest_rest());
    found.ok_or_else(|| picker.why_exhausted())
}

/// Where the block around an address comes in the order that a seed makes.
fn order_of_block(seed: Option<u64>, address: u128) -> u64 {
    #[expect(clippy::cast_possible_truncation, reason = "a hash of the low bits will do")]
    seed.map_or(0, |seed| mix(seed ^ (address / BLOCK_SIZE) as u64))
}

struct Picker<'a> {
    view: &'a View,
    request: &'a Request,
    candidate: &'a Candidate,
    attempt: u32,
    now_ms: u64,
}

impl Picker<'_> {
    /// The strategy's address among the blocks that pass, and (`create`) one that does not exist yet.
    fn pick(
        &self,
        pass: impl Fn(&AddressBlock) -> bool,
        create: bool,
        bind: Option<Option<String>>,
    ) -> Option<Choice> {
        let seed = self.request.seed(self.attempt);
        let random = self.candidate.strategy == Strategy::Random;
        let spread = self.detour().or(random.then_some(seed));
        let family = self.candidate.addresses.family();
        let options = self.blocks().filter(|b| pass(b)).filter_map(|b| {
            let free = masks(b, self.candidate, self.now_ms).free;
            (free != 0).then(|| self.best(b.start(), Some(b), free, seed))
        });
        let new = create
            .then(|| self.missing(spread.is_some() || bind.is_some()))
            .flatten()
            .map(|start| self.best(start, None, self.candidate.addresses.window(start), seed));
        let best =
            options.chain(new).min_by_key(|option| (order_of_block(spread, option.1), *option))?;
        Some(Choice { address: family.address(best.1), bind })
    }

    /// After a lost race any block is as good as the strategy's.
    fn detour(&self) -> Option<u64> {
        (self.attempt > 0).then(|| self.request.own_order())
    }

    /// The strategy's best address of a block: (order, address), lower is better.
    fn best(&self, start: u128, block: Option<&AddressBlock>, free: u64, seed: u64) -> (u64, u128) {
        let bits = (0..64u32).filter(|bit| free >> bit & 1 == 1);
        let family = self.candidate.addresses.family();
        let ranked = bits.map(|bit| {
            let address = start + u128::from(bit);
            let order = match self.candidate.strategy {
                Strategy::Lowest => 0,
                Strategy::Random => mix(seed ^ u64::from(bit)),
                // Never held is older than any release.
                Strategy::LeastRecentlyReleased => {
                    block.and_then(|b| b.entry(family.address(address))).map_or(0, |e| e.since_ms)
                }
            };
            (order, address)
        });
        ranked.min().unwrap_or((u64::MAX, start))
    }

    /// A window of the pool without block. Shared pools fill from below; where nodes hold blocks each
    /// passes over a number of its own first, so that starting nodes do not race, but not over many, so
    /// that addresses stay short for people.
    fn missing(&self, spread: bool) -> Option<u128> {
        let set = &self.candidate.addresses;
        let count = set.window_count();
        let passed_over = if spread {
            let room = u64::from(self.request.cluster_nodes).saturating_mul(4).max(64);
            let room = u64::try_from(count).unwrap_or(u64::MAX).clamp(1, room);
            stable_hash(&[&self.request.node]).wrapping_add(self.attempt.into()) % room
        } else {
            0
        };
        // At worst every window before has a block, sound or broken.
        let known = self.view.blocks_of(set.family()).count()
            + self.view.broken_count()
            + self.view.outlines().count();
        let tries = count.min(known as u128 + u128::from(passed_over) + 1);
        let missing = (0..tries).filter_map(|i| set.nth_window(i)).filter(|start| {
            let (family, start) = (set.family(), *start);
            self.view.block(family, start).is_none() && !self.view.is_closed(family, start)
        });
        let passed_over = usize::try_from(passed_over).unwrap_or_default();
        let missing: Vec<u128> = missing.take(passed_over + 1).collect();
        missing.get(passed_over % missing.len().max(1)).copied()
    }

    fn blocks(&self) -> impl Iterator<Item = &AddressBlock> {
        let set = &self.candidate.addresses;
        let sound = |b: &&AddressBlock| !self.view.is_broken(set.family(), b.start());
        self.view.blocks_of(set.family()).filter(|b| set.window(b.start()) != 0).filter(sound)
    }

    fn longest_rest(&self) -> Option<Choice> {
        let entries = self.blocks().flat_map(|b| {
            let resting = masks(b, self.candidate, self.now_ms).resting;
            b.spec.entries.iter().filter(move |e| {
                resting >> ((number(e.address) - b.start()) & (BLOCK_SIZE - 1)) & 1 == 1
            })
        });
        // Of what rests, that which costs no further write comes first.
        let order = |e: &Entry| {
            (!self.view.is_changed(e.address), order_of_block(self.detour(), number(e.address)))
        };
        let entry = entries.min_by_key(|e| (order(e), e.since_ms, e.address))?;
        Some(Choice { address: entry.address, bind: None })
    }

    fn held_in_outlines(&self) -> usize {
        let set = &self.candidate.addresses;
        let outlines = self.view.outlines().filter(|b| b.family() == set.family());
        let held = |b: &AddressBlock| {
            let out = b.spec.left_out.as_ref()?;
            Some((out.held & set.window(b.start())).count_ones() as usize)
        };
        outlines.filter_map(held).sum()
    }

    fn why_exhausted(&self) -> String {
        let count = |wanted: &dyn Fn(&Entry) -> bool| {
            let set = &self.candidate.addresses;
            self.blocks()
                .flat_map(|b| &b.spec.entries)
                .filter(|e| set.contains(e.address) && wanted(e))
                .count()
        };
        let held = count(&|e| e.state.is_held()) + self.held_in_outlines();
        let quarantined = count(&|e| e.state == EntryState::Quarantined);
        let resting = count(&|e| e.state == EntryState::Released);
        let mut text = format!("is used up ({held} of {} held", self.candidate.addresses.len());
        for (n, what) in [(quarantined, "in quarantine"), (resting, "resting after release")] {
            if n > 0 {
                text.push_str(&format!(", {n} {what}"));
            }
        }
        text.push(')');
        if self.view.broken_count() > 0 {
            text.push_str("; AddressBlocks that break their rules are left out, mend them");
        }
        text
    }
}
