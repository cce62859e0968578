//! Address sets against the plainest model: a set of numbers.
#![allow(missing_docs, reason = "a test has no users")]

use std::collections::BTreeSet;
use std::net::IpAddr;

use multinet::range::{AddressSet, Family, RangeError, number};

/// Ranges within 256 addresses from a base, so that they meet, touch and overlap.
fn build(family: Family, ranges: &[(u8, u8)]) -> (AddressSet, BTreeSet<u128>) {
    let base: u128 = if family == Family::V4 { 0x0a00_0000 } else { 0xfd00 << 112 };
    let mut texts = Vec::new();
    let mut model = BTreeSet::new();
    for &(a, b) in ranges {
        let (a, b) = (base + u128::from(a.min(b)), base + u128::from(a.max(b)));
        texts.push(format!("{}-{}", family.address(a), family.address(b)));
        model.extend(a..=b);
    }
    (AddressSet::parse(family, &texts).unwrap(), model)
}

fn numbers(set: &AddressSet) -> BTreeSet<u128> {
    set.iter().map(number).collect()
}

#[test]
fn sets_agree_with_the_model() {
    bolero::check!().with_type::<(bool, Vec<(u8, u8)>, Vec<(u8, u8)>)>().for_each(|(v6, x, y)| {
        let family = if *v6 { Family::V6 } else { Family::V4 };
        let ((a, model_a), (b, model_b)) = (build(family, x), build(family, y));
        assert_eq!(numbers(&a), model_a);
        assert_eq!(a.len(), model_a.len() as u128);
        assert_eq!(numbers(&a.minus(&b)), &model_a - &model_b);
        assert_eq!(numbers(&a.and(&b)), &model_a & &model_b);
        assert_eq!(numbers(&a.or(&b)), &model_a | &model_b);
        // Equal sets are equal values, however they came about.
        assert_eq!(a.minus(&b).and(&a), a.minus(&a.and(&b)));
        let windows: BTreeSet<u128> = model_a.iter().map(|n| n & !63).collect();
        assert_eq!(a.windows().collect::<Vec<_>>(), windows.iter().copied().collect::<Vec<_>>());
        assert_eq!(a.window_count(), windows.len() as u128);
        for (n, window) in windows.iter().enumerate() {
            assert_eq!(a.nth_window(n as u128), Some(*window));
            let mask = a.window(*window);
            for bit in 0..64 {
                assert_eq!(mask >> bit & 1 == 1, model_a.contains(&(window + bit)));
            }
        }
        assert_eq!(a.nth_window(windows.len() as u128), None);
        // What is written is read again.
        let texts: Vec<String> = a.to_texts().collect();
        assert_eq!(AddressSet::parse(family, &texts).unwrap(), a);
    });
}

#[test]
fn noise_is_refused_or_read_and_never_panics() {
    bolero::check!().with_type::<String>().for_each(|text| {
        for family in Family::BOTH {
            if let Ok((first, last)) = AddressSet::parse_range(family, text) {
                assert!(first <= last);
            }
        }
    });
}

#[test]
fn ends_of_the_number_line_hold() {
    let all: IpAddr = "::".parse().unwrap();
    let net = ipnet::IpNet::new(all, 0).unwrap();
    let everything = AddressSet::of_net(&net);
    assert_eq!(everything.len(), u128::MAX);
    assert_eq!(everything.window(u128::MAX - 63), u64::MAX);
    assert!(everything.minus(&everything).is_empty());
    let top = AddressSet::from_addresses(
        Family::V6,
        ["ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap()],
    );
    let rest = everything.minus(&top);
    assert_eq!(rest.len(), u128::MAX);
    assert!(!rest.contains("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap()));
    assert_eq!(top.windows().count(), 1);
}

#[test]
fn errors_say_which_text_and_why() {
    let list = |s: &str| vec!["10.0.0.1".to_string(), s.to_string()];
    for (text, error) in [
        ("10.0.0", RangeError::Syntax),
        ("10.0.0.0/24", RangeError::Syntax),
        ("10.0.0.9-10.0.0.5", RangeError::Order),
        ("fd00::1", RangeError::Family(Family::V4)),
        ("10.0.0.1-fd00::1", RangeError::Family(Family::V4)),
    ] {
        assert_eq!(AddressSet::parse(Family::V4, &list(text)), Err((text, error)));
    }
}
