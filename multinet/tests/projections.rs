//! What people see of addresses.
#![allow(missing_docs, reason = "a test has no users")]

mod common;

use std::net::{IpAddr, Ipv4Addr};

use common::checked;
use multinet::project::{LISTED, by_pod, endpoint_status, pool_status, subnet_status};
use multinet::rules::Checked;
use multinet::types::block::{AddressBlock, Entry, EntryState, Owner, block_cidr};
use serde_json::{Value, json};

fn world() -> Checked {
    checked(
        "kind: SpiderSubnet
apiVersion: spiderpool.spidernet.io/v2beta1
metadata: {name: s}
spec: {subnet: 10.0.0.0/16, ips: [10.0.0.2-10.0.0.99, 10.0.64.0-10.0.127.255]}
---
kind: SpiderIPPool
apiVersion: spiderpool.spidernet.io/v2beta1
metadata: {name: p}
spec: {subnet: 10.0.0.0/16, ips: [10.0.0.2-10.0.0.9], gateway: 10.0.0.1, routes: [{dst: 10.9.0.0/16, gw: 10.0.0.1}]}
---
kind: SpiderIPPool
apiVersion: spiderpool.spidernet.io/v2beta1
metadata:
  name: auto4-web-eth0-abcde
  labels: {ipam.spidernet.io/owner-application-uid: u, ipam.spidernet.io/owner-application-gv: apps_v1,
    ipam.spidernet.io/owner-application-kind: Deployment, ipam.spidernet.io/owner-application-namespace: shop,
    ipam.spidernet.io/owner-application-name: web}
spec: {subnet: 10.0.0.0/16, ips: [10.0.64.0-10.0.127.255]}
---
kind: SpiderIPPool
apiVersion: spiderpool.spidernet.io/v2beta1
metadata: {name: q}
spec: {subnet: 'fd00::/64', ips: ['fd00::2-fd00::ffff:ffff:ffff:ffff'], gateway: 'fd00::1'}
---
kind: SpiderReservedIP
apiVersion: spiderpool.spidernet.io/v2beta1
metadata: {name: r}
spec: {ips: [10.0.0.9]}
",
    )
}

fn entry(address: &str, pool: &str, interface: &str, pod: &str) -> Entry {
    Entry {
        address: address.parse().unwrap(),
        state: EntryState::Allocated,
        owner: Some(Owner::Pod {
            namespace: "shop".into(),
            name: pod.into(),
            uid: format!("uid-{pod}"),
        }),
        interface: interface.into(),
        pool: pool.into(),
        sandbox_id: "s".into(),
        node: "n1".into(),
        since_ms: 1,
        until_ms: None,
        reason: String::new(),
    }
}

fn blocks(entries: Vec<Entry>) -> Vec<AddressBlock> {
    let mut blocks: std::collections::BTreeMap<String, AddressBlock> = Default::default();
    for entry in entries {
        let block = blocks
            .entry(block_cidr(entry.address).to_string())
            .or_insert_with(|| AddressBlock::around("", entry.address));
        block.put(entry);
    }
    blocks.into_values().collect()
}

#[test]
fn a_pools_status_lists_who_has_what() {
    let checked = world();
    let pool = &checked.pools["p"].1;
    let released = Entry { state: EntryState::Released, ..entry("10.0.0.4", "p", "eth0", "c") };
    let machine = entry("10.0.0.5", "p", "eth0", "virtualmachineinstance/vm");
    let elsewhere = entry("10.0.64.1", "auto4-web-eth0-abcde", "eth0", "d");
    let blocks = blocks(vec![entry("10.0.0.3", "p", "eth0", "a"), released, machine, elsewhere]);
    let projection = pool_status(&checked, pool, &blocks.iter().collect::<Vec<_>>());
    assert_eq!(projection.cut, None);
    let status = projection.status;
    let list: Value = serde_json::from_str(&status.allocated_ips.unwrap()).unwrap();
    let expected = json!({
        "10.0.0.3": {"pod": "shop/a", "podUid": "uid-a"},
        "10.0.0.5": {"pod": "shop/vm", "podUid": "uid-virtualmachineinstance/vm"},
    });
    assert_eq!(list, expected);
    assert_eq!(status.allocated_ip_count, Some(2));
    assert_eq!(status.total_ip_count, Some(7), "without the reserved address");
    let empty = pool_status(&checked, pool, &[]).status;
    assert_eq!((empty.allocated_ips, empty.allocated_ip_count), (None, Some(0)));
}

/// D00017: a pool larger than a number of JSON is counted as the largest there is.
#[test]
fn large_pools_count() {
    let checked = world();
    let status = pool_status(&checked, &checked.pools["q"].1, &[]).status;
    assert_eq!(status.total_ip_count, Some(i64::MAX));
}

#[test]
fn a_long_list_is_cut_and_says_so() {
    let checked = world();
    let pool = &checked.pools["auto4-web-eth0-abcde"].1;
    let start = u32::from(Ipv4Addr::new(10, 0, 64, 0));
    let held: Vec<Entry> = (0..=u32::try_from(LISTED).unwrap())
        .map(|i| IpAddr::from(Ipv4Addr::from(start + i)))
        .map(|a| entry(&a.to_string(), "auto4-web-eth0-abcde", "eth0", "a"))
        .collect();
    let projection = pool_status(&checked, pool, &blocks(held).iter().collect::<Vec<_>>());
    assert_eq!(projection.status.allocated_ip_count, Some(5_001), "the count stays exact");
    let list: Value = serde_json::from_str(&projection.status.allocated_ips.unwrap()).unwrap();
    assert_eq!(list.as_object().unwrap().len(), LISTED);
    assert!(projection.cut.unwrap().message.contains("5000 of 5001"));
}

#[test]
fn a_subnets_status_lists_its_pools() {
    let checked = world();
    let status = subnet_status(&checked, &checked.subnets["s"].1);
    assert_eq!(status.total_ip_count, Some(98 + 16_384));
    assert_eq!(status.allocated_ip_count, Some(8 + 16_384));
    let pools: Value = serde_json::from_str(&status.controlled_ip_pools.unwrap()).unwrap();
    let expected = json!({
        "p": {"ips": ["10.0.0.2-10.0.0.9"]},
        "auto4-web-eth0-abcde":
            {"ips": ["10.0.64.0-10.0.127.255"], "application": "apps_v1_Deployment_shop_web"},
    });
    assert_eq!(pools, expected);
}

#[test]
fn an_endpoint_has_one_element_per_interface() {
    let checked = world();
    let blocks = blocks(vec![
        entry("10.0.0.3", "p", "eth0", "a"),
        entry("fd00::5", "q", "eth0", "a"),
        entry("10.0.0.4", "p", "net1", "a"),
        entry("10.0.0.6", "p", "eth0", "b"),
    ]);
    let pods = by_pod(&blocks);
    assert_eq!(pods.len(), 2);
    let entries = &pods[&("shop".to_string(), "a".to_string())];
    let status = endpoint_status(&checked, entries, ("Deployment", "web")).unwrap();
    let route = json!([{"dst": "10.9.0.0/16", "gw": "10.0.0.1"}]);
    let expected = json!({
        "current": {"uid": "uid-a", "node": "n1", "ips": [
            {"interface": "eth0", "ipv4": "10.0.0.3/16", "ipv4Pool": "p", "ipv4Gateway": "10.0.0.1",
             "ipv6": "fd00::5/64", "ipv6Pool": "q", "ipv6Gateway": "fd00::1", "routes": route},
            {"interface": "net1", "ipv4": "10.0.0.4/16", "ipv4Pool": "p",
             "ipv4Gateway": "10.0.0.1", "routes": route},
        ]},
        "ownerControllerType": "Deployment", "ownerControllerName": "web",
    });
    assert_eq!(serde_json::to_value(status).unwrap(), expected);
    assert_eq!(endpoint_status(&checked, &[], ("Pod", "a")), None);
}
