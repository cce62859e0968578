//! Names of finalizers, and when they go.
//!
//! An object carries its finalizer from the beginning, not from the first claim on: a claim that races
//! with the deletion would slip through. The rules give nothing out of what waits for its end, so
//! that the last claim released is the last.

use std::net::IpAddr;

use multinet::types::meta::{Condition, ObjectMeta};

/// On Networks.
pub const NETWORK_FINALIZER: &str = "bowline.dev/in-use";
/// On pools and subnets: upstream's own, so that its tools understand the objects.
pub const SPIDERPOOL_FINALIZER: &str = "spiderpool.spidernet.io";
/// All of Bowline's.
pub const FINALIZERS: [&str; 2] = [NETWORK_FINALIZER, SPIDERPOOL_FINALIZER];
/// Holders that a sentence names.
const NAMED: usize = 5;

/// Sets or takes away a finalizer: it stays while the object lives or is held. Whether that changed
/// anything.
pub fn settle(meta: &mut ObjectMeta, finalizer: &str, held: bool) -> bool {
    let wanted = !meta.is_terminating() || held;
    let has = meta.finalizers.iter().any(|f| f == finalizer);
    if wanted && !has && !meta.is_terminating() {
        meta.finalizers.push(finalizer.into());
        return true;
    }
    if !wanted && has {
        meta.finalizers.retain(|f| f != finalizer);
        return true;
    }
    false
}

/// Takes a finalizer away that nobody serves any more. Whether it was there.
pub fn let_go(meta: &mut ObjectMeta, finalizer: &str) -> bool {
    let before = meta.finalizers.len();
    meta.finalizers.retain(|f| f != finalizer);
    meta.finalizers.len() < before
}

/// Who keeps an object from going, as a condition.
#[must_use]
pub fn waiting(holders: &[(IpAddr, String)]) -> Condition {
    let named = holders.iter().take(NAMED).map(|(address, who)| format!("{who} ({address})"));
    let mut names: Vec<String> = named.collect();
    if holders.len() > NAMED {
        names.push(format!("{} more", holders.len() - NAMED));
    }
    Condition {
        kind: "Terminating".into(),
        status: "True".into(),
        reason: "InUse".into(),
        message: format!("deletion waits for {}", names.join(", ")),
        ..Condition::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(terminating: bool, finalizers: &[&str]) -> ObjectMeta {
        ObjectMeta {
            deletion_timestamp: terminating.then(|| "2026-11-21T12:00:00Z".into()),
            finalizers: finalizers.iter().map(|f| (*f).to_owned()).collect(),
            ..ObjectMeta::named("x")
        }
    }

    #[test]
    fn a_living_object_gets_it_and_keeps_it() {
        let mut object = meta(false, &["other"]);
        assert!(settle(&mut object, NETWORK_FINALIZER, false));
        assert!(!settle(&mut object, NETWORK_FINALIZER, true));
        assert_eq!(object.finalizers, ["other", NETWORK_FINALIZER]);
    }

    #[test]
    fn a_dying_object_loses_it_when_nobody_holds_it_and_never_gets_it() {
        let mut object = meta(true, &[NETWORK_FINALIZER, "other"]);
        assert!(!settle(&mut object, NETWORK_FINALIZER, true));
        assert!(settle(&mut object, NETWORK_FINALIZER, false));
        assert_eq!(object.finalizers, ["other"]);
        assert!(!settle(&mut object, NETWORK_FINALIZER, true));
    }

    #[test]
    fn the_condition_names_some_holders_and_counts_the_rest() {
        let holder = |n: u8| (IpAddr::from([10, 0, 0, n]), format!("pod a/{n}"));
        let seven: Vec<_> = (1..=7).map(holder).collect();
        let message = waiting(&seven).message;
        assert!(message.contains("pod a/1 (10.0.0.1)") && message.ends_with("2 more"), "{message}");
    }
}
