//! The judge: what may happen to addresses, decided on the JSON of what was written and on the calls that
//! were made. It shares no code with the rest of the crate, so that a mistake there is not repeated here.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// What was seen, in the order in which it was seen.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// A call begins that may release what this sandbox of this pod holds: a DEL, an ADD that fails, or
    /// a reclaim of exactly that record.
    MayRelease { uid: String, sandbox: String },
    /// A write was committed: the object as it was read (its version) and as it is now.
    Written { from: Option<String>, object: Value },
}

/// Who holds an address: UID and sandbox.
pub(super) type Holders = BTreeMap<String, (String, String)>;

/// Holders at the end; `Err` is the first thing that must not happen.
pub(super) fn judge(events: &[Event]) -> Result<Holders, String> {
    let mut asked: Asked<'_> = BTreeMap::new();
    let mut chains: BTreeMap<String, Vec<Step<'_>>> = BTreeMap::new();
    for (at, event) in events.iter().enumerate() {
        match event {
            Event::MayRelease { uid, sandbox } => {
                asked.entry((uid, sandbox)).or_insert(at);
            }
            Event::Written { from, object } => {
                let name = text(&object["metadata"]["name"]);
                let to = text(&object["metadata"]["resourceVersion"]);
                let step = Step { from: from.clone(), to, object, at };
                chains.entry(name).or_default().push(step);
            }
        }
    }
    let mut holders = Holders::new();
    for (name, steps) in chains {
        follow(&name, steps, &asked, &mut holders)?;
    }
    Ok(holders)
}

/// When the release of what a sandbox of a pod holds was asked for first.
type Asked<'a> = BTreeMap<(&'a str, &'a str), usize>;

/// A write, and when it was seen.
struct Step<'a> {
    from: Option<String>,
    to: String,
    object: &'a Value,
    at: usize,
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_string()
}

/// Goes along an object's versions: each is left once. Agents see answers late, so that the order in
/// which writes were seen is not the order in which they were made.
fn follow(
    name: &str,
    steps: Vec<Step<'_>>,
    asked: &Asked<'_>,
    holders: &mut Holders,
) -> Result<(), String> {
    let count = steps.len();
    let mut by_from: BTreeMap<Option<String>, Step<'_>> = BTreeMap::new();
    for step in steps {
        let from = step.from.clone();
        if by_from.insert(from.clone(), step).is_some() {
            return Err(format!("{name}: version {from:?} was replaced twice"));
        }
    }
    let mut version = None;
    let mut gone = 0;
    while let Some(step) = by_from.remove(&version) {
        one_write(name, &step, asked, holders)?;
        version = Some(step.to);
        gone += 1;
    }
    if gone == count { Ok(()) } else { Err(format!("{name}: {gone} of {count} writes follow")) }
}

fn one_write(
    name: &str,
    step: &Step<'_>,
    asked: &Asked<'_>,
    holders: &mut Holders,
) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for entry in step.object["spec"]["entries"].as_array().into_iter().flatten() {
        let address = text(&entry["address"]);
        if !seen.insert(address.clone()) {
            return Err(format!("{name}: {address} has two entries"));
        }
        let state = text(&entry["state"]);
        let held = state == "Intent" || state == "Allocated";
        let now = (text(&entry["owner"]["uid"]), text(&entry["sandboxID"]));
        match (holders.remove(&address), held) {
            (Some((uid, _)), true) if uid != now.0 => {
                return Err(format!("{address} goes from {uid} to {} without release", now.0));
            }
            (Some((uid, sandbox)), false)
                if asked.get(&(uid.as_str(), sandbox.as_str())).is_none_or(|at| *at > step.at) =>
            {
                return Err(format!("{address} of {uid}, sandbox {sandbox}, is released unasked"));
            }
            _ => {}
        }
        if held {
            holders.insert(address, now);
        }
    }
    Ok(())
}
