//! The judge: what may happen to addresses, decided on the JSON of every version of the AddressBlocks,
//! on what ADDs returned and on what pods' namespaces have.
//!
//! It uses no crate of this workspace, so that a mistake there is not repeated here.
//!
//! Whoever runs pods notes what it does as [`Event`]s, in the order in which it does it. A version may
//! be noted late, never early: then nothing that is right is ever called wrong.
#![forbid(unsafe_code)]

mod live;
mod version;

use std::collections::{BTreeMap, BTreeSet};

pub use live::namespace;
pub use version::Version;

/// What was seen.
#[derive(Clone, Debug)]
pub enum Event {
    /// A call begins that may release what this sandbox of this pod holds: a DEL, an ADD that fails, or
    /// a reclaim of exactly that record.
    MayRelease {
        /// The pod's UID.
        uid: String,
        /// The sandbox.
        sandbox: String,
    },
    /// An ADD has returned an address.
    Told(Told),
    /// Somebody's write was committed.
    Written {
        /// The version that it replaced; none: the object was created.
        from: Option<String>,
        /// The object as it is now.
        version: Version,
    },
    /// The store's own history goes on. An object has either versions that were written or versions
    /// that were seen.
    Seen(Version),
}

/// What an ADD has returned.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Told {
    /// The pod's UID.
    pub uid: String,
    /// The sandbox that the ADD was for.
    pub sandbox: String,
    /// The Network.
    pub network: String,
    /// The address, without prefix length.
    pub address: String,
}

/// Network and address.
pub type Place = (String, String);
/// Who holds an address: UID and sandbox.
pub type Holders = BTreeMap<Place, (String, String)>;

/// The judge, with what it has been told.
#[derive(Debug, Default)]
pub struct Judge {
    /// Not judged yet, each with its number.
    events: Vec<(usize, Event)>,
    noted: usize,
    /// Names and versions of what was written since the history was compared last.
    written: BTreeSet<(String, String)>,
    /// When the release of what a sandbox of a pod holds was asked for first.
    asked: BTreeMap<(String, String), usize>,
    /// The last version of each object whose writes are followed.
    last: BTreeMap<String, String>,
    holders: Holders,
    /// Who was told an address last and was not asked to release it since.
    up: BTreeMap<Place, Told>,
}

impl Judge {
    /// Something happens.
    pub fn note(&mut self, event: Event) {
        if let Event::Written { version, .. } = &event {
            self.written.insert((version.name.clone(), version.version.clone()));
        }
        self.events.push((self.noted, event));
        self.noted += 1;
    }

    /// Everything noted so far is judged, while nothing goes on: who holds addresses now.
    ///
    /// # Errors
    /// The first thing that must not happen.
    pub fn verdict(&mut self) -> Result<&Holders, String> {
        let events = std::mem::take(&mut self.events);
        let mut chains: BTreeMap<String, Chain> = BTreeMap::new();
        let mut results = BTreeSet::new();
        for (at, event) in events {
            match event {
                Event::MayRelease { uid, sandbox } => {
                    self.up.retain(|_, told| told.uid != uid || told.sandbox != sandbox);
                    self.asked.entry((uid, sandbox)).or_insert(at);
                }
                Event::Told(told) => {
                    self.once(&told)?;
                    results.insert(told);
                }
                Event::Written { from, version } => {
                    let chain = chains.entry(version.name.clone()).or_default();
                    chain.written.push((from, Step { version, at }));
                }
                Event::Seen(version) => {
                    let chain = chains.entry(version.name.clone()).or_default();
                    chain.seen.push(Step { version, at });
                }
            }
        }
        let mut recorded = BTreeSet::new();
        for (name, chain) in chains {
            for step in chain.in_order(&name, self.last.get(&name))? {
                self.enter(&step, &mut recorded)?;
                self.last.insert(name.clone(), step.version.version);
            }
        }
        match results.iter().find(|told| !recorded.contains(*told) && !self.records(told)) {
            None => Ok(&self.holders),
            Some(Told { uid, sandbox, network, address }) => Err(format!(
                "judge: an ADD gave {address} of {network} to {uid}, sandbox {sandbox}, of which no \
                 record ever spoke"
            )),
        }
    }

    /// The store's own history and what its users say that they wrote are the same, both since the
    /// last comparison.
    ///
    /// # Errors
    /// A write that was acknowledged and is not in the history, or a version that nobody wrote.
    pub fn same_history(&mut self, history: &[Version]) -> Result<(), String> {
        let written = std::mem::take(&mut self.written);
        let seen = history.iter().map(|v| (v.name.clone(), v.version.clone())).collect();
        if let Some(lost) = written.difference(&seen).next() {
            return Err(format!("judge: {lost:?} was acknowledged, and the history lacks it"));
        }
        match seen.difference(&written).next() {
            Some(foreign) => {
                Err(format!("judge: {foreign:?} is in the history, and nobody wrote it"))
            }
            None => Ok(()),
        }
    }

    /// No two pods are told the same address unless the first was asked to go in between.
    fn once(&mut self, told: &Told) -> Result<(), String> {
        let place = (told.network.clone(), told.address.clone());
        match self.up.insert(place, told.clone()).filter(|other| other.uid != told.uid) {
            None => Ok(()),
            Some(other) => Err(format!(
                "judge: {} of {} was given to {} and to {}",
                told.address, told.network, other.uid, told.uid
            )),
        }
    }

    fn records(&self, told: &Told) -> bool {
        let place = (told.network.clone(), told.address.clone());
        let holder = self.holders.get(&place);
        holder.is_some_and(|(uid, sandbox)| *uid == told.uid && *sandbox == told.sandbox)
    }

    fn enter(&mut self, step: &Step, recorded: &mut BTreeSet<Told>) -> Result<(), String> {
        let Version { name, network, entries, gone, .. } = &step.version;
        let mut seen = BTreeSet::new();
        for (address, holder) in entries {
            if !seen.insert(address) {
                return Err(format!("judge: {name}: {address} has two entries"));
            }
            let place = (network.clone(), address.clone());
            let now = holder.as_ref().filter(|_| !gone);
            self.one_entry(&place, now, step.at)?;
            if let Some((uid, sandbox)) = now {
                let (network, address) = place;
                let (uid, sandbox) = (uid.clone(), sandbox.clone());
                recorded.insert(Told { uid, sandbox, network, address });
            }
        }
        Ok(())
    }

    fn one_entry(
        &mut self,
        place: &Place,
        now: Option<&(String, String)>,
        at: usize,
    ) -> Result<(), String> {
        let before = self.holders.remove(place);
        match (&before, now) {
            (Some((uid, _)), Some((new, _))) if uid != new => {
                return Err(format!("judge: {place:?} goes from {uid} to {new} without release"));
            }
            (Some(holder), None) if self.asked.get(holder).is_none_or(|asked| *asked > at) => {
                return Err(format!("judge: {place:?} of {holder:?} is released unasked"));
            }
            _ => {}
        }
        if let Some(holder) = now {
            self.holders.insert(place.clone(), holder.clone());
        }
        Ok(())
    }
}

/// Pods that are up hold what they were told, and nobody holds anything else.
///
/// # Errors
/// What is missing, and what leaked.
pub fn settled<'a>(
    holders: &Holders,
    up: impl IntoIterator<Item = &'a Told>,
) -> Result<(), String> {
    let mut leaked = holders.clone();
    for told in up {
        let place = (told.network.clone(), told.address.clone());
        let wanted = (told.uid.clone(), told.sandbox.clone());
        match leaked.remove(&place) {
            Some(found) if found == wanted => {}
            found => {
                return Err(format!(
                    "judge: {place:?} is {wanted:?}'s, and recorded for {found:?}"
                ));
            }
        }
    }
    if leaked.is_empty() { Ok(()) } else { Err(format!("judge: leaked: {leaked:?}")) }
}

/// A version, and when it was noted.
#[derive(Debug)]
struct Step {
    version: Version,
    at: usize,
}

/// The versions of an object since the last verdict.
#[derive(Debug, Default)]
struct Chain {
    written: Vec<(Option<String>, Step)>,
    seen: Vec<Step>,
}

impl Chain {
    /// Agents see answers late, so that the order in which writes were noted is not the order in which
    /// they were made: each version is left once, and leads to the next.
    fn in_order(self, name: &str, last: Option<&String>) -> Result<Vec<Step>, String> {
        if self.written.is_empty() {
            return Ok(self.seen);
        }
        let count = self.written.len();
        let mut by_from = BTreeMap::new();
        for (from, step) in self.written {
            if by_from.insert(from.clone(), step).is_some() {
                return Err(format!("judge: {name}: version {from:?} was replaced twice"));
            }
        }
        let mut steps: Vec<Step> = Vec::with_capacity(count);
        let mut version = last.cloned();
        while let Some(step) = by_from.remove(&version) {
            version = Some(step.version.version.clone());
            steps.push(step);
        }
        let followed = steps.len();
        if followed == count {
            Ok(steps)
        } else {
            Err(format!("judge: {name}: {followed} of {count} writes follow each other"))
        }
    }
}

#[cfg(test)]
mod tests;
