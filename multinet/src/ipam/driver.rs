//! Read, decide, compare-and-swap; on a lost race again. The driver holds no state: whoever drops it
//! between two writes (a crash) leaves the store in a state that the next call understands.

use std::collections::BTreeSet;

use super::claim::{Claim, Rejections, Request, plan_claim};
use super::view::View;
use crate::store::{Store, StoreError};
use crate::types::block::{AddressBlock, Entry, EntryState};

/// How often a call decides anew after losing a race. Each loss means that another call went ahead.
pub const MAX_ATTEMPTS: u32 = 256;

/// Why a claim failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// No pool served; every one is named with the reason.
    #[error("{0}")]
    Rejected(Rejections),
    /// The store failed. Claims may have been made: the same call again finds them, DEL frees them.
    #[error("addresses cannot be claimed now: {0}")]
    Store(#[from] StoreError),
    /// Others were always faster.
    #[error(
        "lost the race for addresses of {0} {MAX_ATTEMPTS} times; try again, or give the pool \
         more blocks"
    )]
    Contended(String),
}

/// The blocks of a domain as the store has them.
///
/// # Errors
/// The store's.
pub async fn load<S: Store>(store: &S, domain: &str) -> Result<View, StoreError> {
    Ok(View::of(domain, store.blocks(domain).await?))
}

/// Reads blocks whole that a view has in outline.
async fn fetch<S: Store>(
    store: &S,
    view: &mut View,
    names: impl IntoIterator<Item = String>,
) -> Result<(), StoreError> {
    let names: BTreeSet<String> = names.into_iter().collect();
    let read = names.iter().map(|name| store.get::<AddressBlock>(None, name));
    let blocks = futures::future::try_join_all(read).await?;
    for (name, block) in names.iter().zip(blocks) {
        view.fetched(name, block);
    }
    Ok(())
}

/// Claims an address for each request, all or none. Asking again for the same keys gives the same
/// addresses.
///
/// # Errors
/// [`ClaimError`]; a rejection leaves nothing claimed that was not before.
pub async fn claim<S: Store>(
    store: &S,
    domain: &str,
    requests: &[Request],
    now_ms: u64,
) -> Result<Vec<Claim>, ClaimError> {
    let mut outcomes = claim_groups(store, domain, &[requests], now_ms).await;
    // One group, one outcome.
    outcomes.pop().unwrap_or(Ok(Vec::new()))
}

/// Claims for several callers at once, so that claims in one block share a write. Each group is
/// served whole or not at all, and one that is rejected costs the others nothing.
pub async fn claim_groups<S: Store>(
    store: &S,
    domain: &str,
    groups: &[&[Request]],
    now_ms: u64,
) -> Vec<Result<Vec<Claim>, ClaimError>> {
    let mut work =
        Groups { groups, outcomes: vec![Ok(Vec::new()); groups.len()], fresh: Vec::new(), now_ms };
    for attempt in 0..MAX_ATTEMPTS {
        match work.attempt(store, domain, attempt).await {
            Ok(true) => return work.finish(),
            Ok(false) => {}
            Err(error) => return work.fail(&ClaimError::Store(error)),
        }
    }
    match give_back(store, domain, &work.fresh, now_ms).await {
        Ok(()) => work.fail(&ClaimError::Contended(domain_text(domain))),
        Err(error) => work.fail(&ClaimError::Store(error)),
    }
}

/// Several callers' claims on their way.
struct Groups<'a> {
    groups: &'a [&'a [Request]],
    /// What was planned in the last attempt, or why nothing ever will be.
    outcomes: Vec<Result<Vec<Claim>, ClaimError>>,
    /// What this call has claimed, over all attempts: `fresh` of a later attempt would say no.
    fresh: Vec<Entry>,
    now_ms: u64,
}

impl Groups<'_> {
    /// Plans all groups on what is stored now, and writes. `false`: a race was lost.
    async fn attempt<S: Store>(
        &mut self,
        store: &S,
        domain: &str,
        attempt: u32,
    ) -> Result<bool, StoreError> {
        let mut view = load(store, domain).await?;
        let requests = || self.groups.iter().flat_map(|group| group.iter());
        let owners: Vec<u64> = requests().map(Request::owner_hash).collect();
        let needed: Vec<String> = view
            .outlines_with(&owners)
            .map(str::to_owned)
            .chain(requests().filter_map(|request| request.exact_block(&view)))
            .collect();
        fetch(store, &mut view, needed).await?;
        for (group, outcome) in self.groups.iter().zip(&mut self.outcomes) {
            if outcome.is_ok() {
                *outcome =
                    plan_group_further(store, &mut view, group, attempt, self.now_ms).await?;
            }
            if outcome.is_err() {
                // What an earlier attempt has written for it.
                for entry in self.fresh.iter().filter(|entry| is_of(entry, group)) {
                    super::plan_free_record(&mut view, entry, self.now_ms);
                }
            }
        }
        let claims: Vec<Claim> = self.outcomes.iter().flatten().flatten().cloned().collect();
        write_claims(store, &view, &claims, &mut self.fresh).await
    }

    fn finish(mut self) -> Vec<Result<Vec<Claim>, ClaimError>> {
        for claim in self.outcomes.iter_mut().flatten().flatten() {
            claim.fresh |= self.fresh.iter().any(|e| e.address == claim.address);
        }
        self.outcomes
    }

    /// Everybody who was not rejected before fails by this.
    fn fail(self, error: &ClaimError) -> Vec<Result<Vec<Claim>, ClaimError>> {
        let outcomes = self.outcomes.into_iter();
        outcomes.map(|outcome| outcome.and_then(|_| Err(error.clone()))).collect()
    }
}

/// Plans with more and more of the blocks that are not at hand, until one has an address or none is
/// left that may.
async fn plan_group_further<S: Store>(
    store: &S,
    view: &mut View,
    group: &[Request],
    attempt: u32,
    now_ms: u64,
) -> Result<Result<Vec<Claim>, ClaimError>, StoreError> {
    loop {
        let planned = plan_group(view, group, attempt, now_ms);
        let further: Vec<String> = match &planned {
            Ok(_) => Vec::new(),
            Err(_) => group.iter().flat_map(|r| r.could_use(view)).collect(),
        };
        if further.is_empty() {
            return Ok(planned);
        }
        fetch(store, view, further).await?;
    }
}

fn plan_group(
    view: &mut View,
    group: &[Request],
    attempt: u32,
    now_ms: u64,
) -> Result<Vec<Claim>, ClaimError> {
    view.begin();
    let planned: Result<Vec<Claim>, Rejections> =
        group.iter().map(|request| plan_claim(view, request, attempt, now_ms)).collect();
    planned.map_err(|rejections| {
        view.roll_back();
        ClaimError::Rejected(rejections)
    })
}

fn is_of(entry: &Entry, group: &[Request]) -> bool {
    group.iter().any(|r| entry.owner.as_ref() == Some(&r.owner) && entry.interface == r.interface)
}

/// Writes what a plan changed and notes the entries that are new. `false`: a race was lost.
async fn write_claims<S: Store>(
    store: &S,
    view: &View,
    claims: &[Claim],
    fresh: &mut Vec<Entry>,
) -> Result<bool, StoreError> {
    let mut failed = Vec::new();
    for (block, result) in write_blocks(store, view).await {
        match result {
            Ok(_) => {
                let new = claims.iter().filter(|c| c.fresh);
                fresh.extend(new.filter_map(|c| block.entry(c.address)).cloned());
            }
            Err(error) => failed.push(error),
        }
    }
    nothing_but_races(failed)
}

/// Writes the blocks that a plan changed, all at the same time: none waits for another, and what stands
/// when some fail is what a crash between two writes would leave.
async fn write_blocks<'v, S: Store>(
    store: &S,
    view: &'v View,
) -> Vec<(&'v AddressBlock, Result<AddressBlock, StoreError>)> {
    let write = |block: &'v AddressBlock| async move {
        let result = match block.metadata.resource_version {
            None => store.create(block).await,
            Some(_) => store.update(block).await,
        };
        (block, result)
    };
    futures::future::join_all(view.writes().map(write)).await
}

/// Whether nothing failed; what is worse than a lost race is the caller's error.
fn nothing_but_races(failed: Vec<StoreError>) -> Result<bool, StoreError> {
    let done = failed.is_empty();
    match failed.into_iter().find(|error| !error.is_race()) {
        Some(error) => Err(error),
        None => Ok(done),
    }
}

async fn give_back<S: Store>(
    store: &S,
    domain: &str,
    fresh: &[Entry],
    now_ms: u64,
) -> Result<(), StoreError> {
    if fresh.is_empty() {
        return Ok(());
    }
    modify(store, domain, |view| {
        for entry in fresh {
            super::plan_free_record(view, entry, now_ms);
        }
    })
    .await
}

/// Changes a domain by any of the plans of [`super`], again after each lost race, and returns what the
/// last run of `plan` returned. `plan` may run several times.
///
/// # Errors
/// The store's; `Conflict` after [`MAX_ATTEMPTS`] lost races. Part of the plan may be written.
pub async fn modify<S: Store, T>(
    store: &S,
    domain: &str,
    mut plan: impl FnMut(&mut View) -> T + Send,
) -> Result<T, StoreError>
where
    T: Send,
{
    let mut last = StoreError::NotFound { kind: "AddressBlock", name: domain_text(domain) };
    for _ in 0..MAX_ATTEMPTS {
        let mut view = load(store, domain).await?;
        let outcome = plan(&mut view);
        let written = write_blocks(store, &view).await;
        let failed: Vec<_> = written.into_iter().filter_map(|(_, result)| result.err()).collect();
        if let Some(race) = failed.iter().find(|error| error.is_race()) {
            last = race.clone();
        }
        if nothing_but_races(failed)? {
            return Ok(outcome);
        }
    }
    Err(last)
}

fn domain_text(domain: &str) -> String {
    if domain.is_empty() { "the LAN domain".into() } else { format!("Network {domain}") }
}

/// Whether a claim is a crash's remnant: an intent that nobody finished.
impl Entry {
    /// An intent older than `patience_ms`.
    #[must_use]
    pub fn is_stale_intent(&self, now_ms: u64, patience_ms: u64) -> bool {
        self.state == EntryState::Intent && self.since_ms.saturating_add(patience_ms) < now_ms
    }
}
