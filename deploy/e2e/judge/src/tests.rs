//! The judge itself: each thing that must not happen is found, and what is right passes.

use serde_json::json;

use super::*;

/// A version of one block with one entry.
fn version(number: u32, uid: &str, sandbox: &str, state: &str) -> Version {
    Version::of(&json!({
        "metadata": {"name": "blue.10-0-0-0", "resourceVersion": number.to_string()},
        "spec": {"network": "blue", "entries": [{"address": "10.0.0.1", "state": state,
            "owner": {"kind": "Pod", "uid": uid}, "sandboxID": sandbox}]}
    }))
}

fn seen(number: u32, uid: &str, sandbox: &str, state: &str) -> Event {
    Event::Seen(version(number, uid, sandbox, state))
}

fn written(from: Option<u32>, to: u32) -> Event {
    let from = from.map(|n| n.to_string());
    Event::Written { from, version: version(to, "a", "s1", "Allocated") }
}

fn told(uid: &str, sandbox: &str) -> Told {
    let (uid, sandbox) = (uid.to_string(), sandbox.to_string());
    Told { uid, sandbox, network: "blue".into(), address: "10.0.0.1".into() }
}

fn may_release(uid: &str, sandbox: &str) -> Event {
    Event::MayRelease { uid: uid.into(), sandbox: sandbox.into() }
}

fn judge(events: &[Event]) -> Judge {
    let mut judge = Judge::default();
    events.iter().for_each(|event| judge.note(event.clone()));
    judge
}

/// The verdict on what must not happen names it.
fn finds(events: &[Event], what: &str) {
    let mut judge = judge(events);
    let verdict = judge.verdict().unwrap_err();
    assert!(verdict.contains(what), "{verdict}");
}

#[test]
fn a_life_without_fault_passes_at_once_or_bit_by_bit() {
    let life = [
        seen(1, "a", "s1", "Intent"),
        Event::Told(told("a", "s1")),
        seen(2, "a", "s2", "Allocated"), // a new sandbox of the same pod
        Event::Told(told("a", "s2")),
        may_release("a", "s2"),
        seen(3, "a", "", "Released"),
        seen(4, "b", "s3", "Intent"),
        Event::Told(told("b", "s3")),
    ];
    let mut bit_by_bit = Judge::default();
    for event in &life {
        bit_by_bit.note(event.clone());
        bit_by_bit.verdict().unwrap();
    }
    let mut at_once = judge(&life);
    let holders = at_once.verdict().unwrap();
    assert_eq!(holders, bit_by_bit.verdict().unwrap());
    assert_eq!(settled(holders, &[told("b", "s3")]), Ok(()));
    assert!(settled(holders, &[]).unwrap_err().contains("leaked"));
    assert!(settled(holders, &[told("b", "s4")]).unwrap_err().contains("recorded for"));
}

#[test]
fn an_address_given_twice_is_found_in_records_and_in_results() {
    let taken = [seen(1, "a", "s1", "Allocated"), seen(2, "b", "s2", "Allocated")];
    finds(&taken, "without release");
    finds(&[Event::Told(told("a", "s1")), Event::Told(told("b", "s2"))], "given to a and to b");
}

#[test]
fn what_nobody_asked_for_is_found() {
    let mut late = vec![seen(1, "a", "s2", "Allocated"), may_release("a", "s1")];
    late.push(seen(2, "a", "", "Released"));
    finds(&late, "released unasked");
    late[2] = Event::Seen(Version { gone: true, ..version(2, "a", "s2", "Allocated") });
    finds(&late, "released unasked");
}

#[test]
fn a_result_without_record_is_found() {
    finds(&[seen(1, "a", "s1", "Allocated"), Event::Told(told("a", "s2"))], "no record ever spoke");
}

#[test]
fn writes_that_do_not_follow_each_other_are_found() {
    finds(&[written(None, 1), written(Some(1), 2), written(Some(1), 3)], "replaced twice");
    finds(&[written(None, 1), written(Some(7), 8)], "1 of 2");
}

#[test]
fn a_history_that_differs_is_found() {
    let history = [version(1, "a", "s1", "Allocated")];
    let (first, second) = (written(None, 1), written(Some(1), 2));
    assert_eq!(judge(std::slice::from_ref(&first)).same_history(&history), Ok(()));
    let lost = judge(&[first, second]).same_history(&history).unwrap_err();
    assert!(lost.contains("lacks it"), "{lost}");
    let foreign = judge(&[]).same_history(&history).unwrap_err();
    assert!(foreign.contains("nobody wrote it"), "{foreign}");
}

#[test]
fn a_namespace_is_compared_with_what_was_given() {
    let ip = r#"[{"ifname": "lo", "addr_info": [{"local": "127.0.0.1"}, {"local": "::1"}]},
        {"ifname": "eth0", "addr_info": [{"local": "10.0.0.1"}, {"local": "fe80::1"}]}]"#;
    assert_eq!(namespace(ip, &[told("a", "s1")]), Ok(()));
    assert!(namespace(ip, &[]).unwrap_err().contains("unasked"));
    let other = Told { address: "10.0.0.2".into(), ..told("a", "s1") };
    assert!(namespace(ip, &[other]).unwrap_err().contains("lacks it"));
}

#[test]
fn a_watch_tells_versions() {
    let object = json!({"metadata": {"name": "n", "resourceVersion": "7"}, "spec": {}});
    let line = |kind: &str| json!({"type": kind, "object": object});
    assert!(!Version::of_watch(&line("MODIFIED")).unwrap().gone);
    assert!(Version::of_watch(&line("DELETED")).unwrap().gone);
    assert_eq!(Version::of_watch(&line("BOOKMARK")), None);
}
