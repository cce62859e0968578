//! What several tests need: objects from YAML, and a way to run futures without a runtime.
#![allow(dead_code, reason = "each test uses its part")]

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use multinet::ipam::{Candidate, Request};
use multinet::range::Family;
use multinet::rules::{Catalog, Checked, Problem};
use multinet::types::block::Owner;
use multinet::types::meta::Resource;
use multinet::types::network::Network;
use multinet::types::pool::{SpiderIPPool, SpiderReservedIP};
use multinet::types::subnet::SpiderSubnet;
use serde::Deserialize;
use serde_yaml_ng::Value;

/// Objects of a YAML text, by kind.
pub(crate) fn documents(text: &str) -> impl Iterator<Item = (String, Value)> + '_ {
    serde_yaml_ng::Deserializer::from_str(text).map(|document| {
        let value = Value::deserialize(document).unwrap();
        (value["kind"].as_str().unwrap().to_string(), value)
    })
}

pub(crate) fn parse<R: Resource>(value: Value) -> R {
    let object: R = serde_yaml_ng::from_value(value).unwrap();
    object
}

pub(crate) fn catalog(text: &str) -> Catalog {
    let mut catalog = Catalog::default();
    for (kind, value) in documents(text) {
        match kind.as_str() {
            "Network" => {
                let object: Network = parse(value);
                catalog.networks.insert(object.metadata.name.clone(), object);
            }
            "SpiderIPPool" => {
                let object: SpiderIPPool = parse(value);
                catalog.pools.insert(object.metadata.name.clone(), object);
            }
            "SpiderReservedIP" => {
                let object: SpiderReservedIP = parse(value);
                catalog.reserved.insert(object.metadata.name.clone(), object);
            }
            "SpiderSubnet" => {
                let object: SpiderSubnet = parse(value);
                catalog.subnets.insert(object.metadata.name.clone(), object);
            }
            other => panic!("{other}"),
        }
    }
    catalog
}

/// An object of metadata and spec in YAML.
pub(crate) fn object<R: Resource>(metadata: &str, spec: &str) -> R {
    let text = format!(
        "apiVersion: {}\nkind: {}\nmetadata: {metadata}\nspec: {spec}",
        R::API_VERSION,
        R::KIND
    );
    parse(serde_yaml_ng::from_str::<Value>(&text).unwrap())
}

pub(crate) fn texts(problems: &[Problem]) -> Vec<String> {
    problems.iter().map(ToString::to_string).collect()
}

/// Each text has exactly one problem, which begins as said; an empty beginning: none.
pub(crate) fn table(check: impl Fn(&str) -> Vec<Problem>, cases: &[(&str, &str)]) {
    for (text, expected) in cases {
        let found = texts(&check(text));
        if expected.is_empty() {
            assert_eq!(found, Vec::<String>::new(), "{text}");
        } else {
            assert_eq!(found.len(), 1, "{text}: {found:?}");
            assert!(found[0].starts_with(expected), "{text}: {found:?}");
        }
    }
}

/// The usable part of a catalog that has no problem at all.
pub(crate) fn checked(text: &str) -> Checked {
    let checked = Checked::new(&catalog(text));
    assert!(checked.problems.is_empty(), "{:?}", checked.problems);
    checked
}

pub(crate) fn pod(name: &str) -> Owner {
    Owner::Pod { namespace: "shop".into(), name: name.into(), uid: format!("uid-{name}") }
}

/// A request for `eth1` of a pod on node `n1`, sandbox `s1`, from the named pools.
pub(crate) fn request(checked: &Checked, name: &str, pools: &[&str]) -> Request {
    let candidates: Vec<Candidate> = pools
        .iter()
        .map(|p| {
            let (home, pool) = &checked.pools[*p];
            Candidate::new(checked, home, pool)
        })
        .collect();
    Request {
        owner: pod(name),
        interface: "eth1".into(),
        family: candidates.first().map_or(Family::V4, |c| c.addresses.family()),
        sandbox_id: "s1".into(),
        node: "n1".into(),
        candidates,
        exact: None,
        sticky: false,
        moves: false,
        cluster_nodes: 2,
    }
}

/// Runs a future that never waits for anything outside.
pub(crate) fn now<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..1_000_000 {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
    panic!("the future waits for something")
}
