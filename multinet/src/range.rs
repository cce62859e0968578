//! Sets of addresses as sorted, disjoint ranges: pools of any size, /64 and larger included, cost
//! what their ranges cost, never what their addresses cost.
//!
//! Invariants of [`AddressSet`]: one family; ranges ascending, disjoint and not adjacent.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, IPv4 first.
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    /// The family of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// The family of a prefix.
    #[must_use]
    pub fn of_net(net: &IpNet) -> Self {
        Family::of(net.addr())
    }

    /// 4 or 6.
    #[must_use]
    pub fn number(self) -> i64 {
        if self == Family::V4 { 4 } else { 6 }
    }

    /// Length of an address in bits.
    #[must_use]
    pub fn bits(self) -> u8 {
        if self == Family::V4 { 32 } else { 128 }
    }

    /// The address of a number of this family; higher bits are dropped.
    #[must_use]
    pub fn address(self, number: u128) -> IpAddr {
        match self {
            #[expect(clippy::cast_possible_truncation, reason = "an IPv4 address has 32 bits")]
            Family::V4 => IpAddr::V4(Ipv4Addr::from_bits(number as u32)),
            Family::V6 => IpAddr::V6(Ipv6Addr::from_bits(number)),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Family::V4 { "IPv4" } else { "IPv6" })
    }
}

/// The address as a number.
#[must_use]
pub fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => a.to_bits().into(),
        IpAddr::V6(a) => a.to_bits(),
    }
}

/// Addresses of one family.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct AddressSet {
    family: Family,
    /// First and last address of each range.
    ranges: Vec<(u128, u128)>,
}

/// Text that is no address and no range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// Neither `a` nor `a-b`.
    #[error("is neither an address nor a range; write it like 10.0.0.5 or 10.0.0.5-10.0.0.9")]
    Syntax,
    /// The ends differ in family, or the family is not the expected one.
    #[error("is not {0}; addresses of one object are of one family")]
    Family(Family),
    /// The last address comes before the first.
    #[error("ends before it begins; write the lower address first")]
    Order,
}

impl AddressSet {
    /// No address.
    #[must_use]
    pub fn empty(family: Family) -> Self {
        AddressSet { family, ranges: Vec::new() }
    }

    /// Every address of a prefix.
    #[must_use]
    pub fn of_net(net: &IpNet) -> Self {
        let ends = (number(net.network()), number(net.broadcast()));
        AddressSet { family: Family::of_net(net), ranges: vec![ends] }
    }

    /// Reads `a` or `a-b`.
    ///
    /// # Errors
    /// [`RangeError`], which follows the quoted text in a sentence.
    pub fn parse_range(family: Family, text: &str) -> Result<(u128, u128), RangeError> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let parse = |end: &str| end.trim().parse::<IpAddr>().map_err(|_| RangeError::Syntax);
        let (first, last) = (parse(first)?, parse(last)?);
        if Family::of(first) != family || Family::of(last) != family {
            return Err(RangeError::Family(family));
        }
        if first > last {
            return Err(RangeError::Order);
        }
        Ok((number(first), number(last)))
    }

    /// Reads a list of `a` and `a-b`.
    ///
    /// # Errors
    /// The first text that is wrong, and how.
    pub fn parse(family: Family, texts: &[String]) -> Result<Self, (&str, RangeError)> {
        let mut ranges = Vec::with_capacity(texts.len());
        for text in texts {
            ranges.push(Self::parse_range(family, text).map_err(|e| (text.as_str(), e))?);
        }
        Ok(Self::merged(family, ranges))
    }

    /// A set of addresses.
    #[must_use]
    pub fn from_addresses(family: Family, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        let ranges = addresses.into_iter().filter(|a| Family::of(*a) == family);
        Self::merged(family, ranges.map(|a| (number(a), number(a))).collect())
    }

    fn merged(family: Family, mut ranges: Vec<(u128, u128)>) -> Self {
        ranges.sort_unstable();
        let mut merged: Vec<(u128, u128)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match merged.last_mut() {
                Some(previous) if first <= previous.1.saturating_add(1) => {
                    previous.1 = previous.1.max(last);
                }
                _ => merged.push((first, last)),
            }
        }
        AddressSet { family, ranges: merged }
    }

    /// The family of the addresses.
    #[must_use]
    pub fn family(&self) -> Family {
        self.family
    }

    /// Whether it holds no address.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many addresses; `u128::MAX` stands for that and one more.
    #[must_use]
    pub fn len(&self) -> u128 {
        self.ranges.iter().fold(0, |sum, (a, b)| sum.saturating_add(b - a).saturating_add(1))
    }

    /// Whether it holds `address`.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        Family::of(address) == self.family && self.contains_number(number(address))
    }

    fn contains_number(&self, n: u128) -> bool {
        let after = self.ranges.partition_point(|r| r.0 <= n);
        after > 0 && n <= self.ranges[after - 1].1
    }

    /// What this holds and `other` does not.
    #[must_use]
    pub fn minus(&self, other: &AddressSet) -> AddressSet {
        if self.family != other.family {
            return self.clone();
        }
        let mut left = Vec::with_capacity(self.ranges.len());
        for &(first, last) in &self.ranges {
            let mut from = first;
            let mut covered = false;
            for &(hole_first, hole_last) in other.overlapping(first, last) {
                if hole_first > from {
                    left.push((from, hole_first - 1));
                }
                covered = hole_last >= last;
                from = hole_last.saturating_add(1);
            }
            if !covered {
                left.push((from, last));
            }
        }
        AddressSet { family: self.family, ranges: left }
    }

    /// What both hold.
    #[must_use]
    pub fn and(&self, other: &AddressSet) -> AddressSet {
        let mut common = Vec::new();
        if self.family == other.family {
            for &(first, last) in &self.ranges {
                for &(a, b) in other.overlapping(first, last) {
                    common.push((a.max(first), b.min(last)));
                }
            }
        }
        AddressSet { family: self.family, ranges: common }
    }

    /// What either holds; both are of one family.
    #[must_use]
    pub fn or(&self, other: &AddressSet) -> AddressSet {
        Self::merged(self.family, [&self.ranges[..], &other.ranges].concat())
    }

    /// The ranges that share an address with `first..=last`.
    fn overlapping(&self, first: u128, last: u128) -> &[(u128, u128)] {
        let from = self.ranges.partition_point(|r| r.1 < first);
        let to = self.ranges.partition_point(|r| r.0 <= last);
        &self.ranges[from..to.max(from)]
    }

    /// Bit i is set where `start + i` is in the set, for the 64 addresses from `start` on.
    #[must_use]
    pub fn window(&self, start: u128) -> u64 {
        let end = start.saturating_add(63);
        let mut mask = 0u64;
        for &(first, last) in self.overlapping(start, end) {
            let from = first.max(start) - start;
            let count = last.min(end) - start - from + 1;
            let ones = if count >= 64 { u64::MAX } else { (1u64 << count) - 1 };
            mask |= ones << from;
        }
        mask
    }

    /// Starts of the aligned windows of 64 addresses that hold an address of the set, ascending.
    pub fn windows(&self) -> impl Iterator<Item = u128> + '_ {
        let mut done: Option<u128> = None;
        self.ranges.iter().flat_map(move |&(first, last)| {
            let from = first & !63;
            // The last window of one range may be the first of the next.
            let from = if done == Some(from) { from.checked_add(64) } else { Some(from) };
            done = Some(last & !63);
            std::iter::successors(from, |w| w.checked_add(64)).take_while(move |w| *w <= last)
        })
    }

    /// How many windows [`AddressSet::windows`] gives.
    #[must_use]
    pub fn window_count(&self) -> u128 {
        let mut count = 0u128;
        let mut done: Option<u128> = None;
        for &(first, last) in &self.ranges {
            let (from, to) = (first >> 6, last >> 6);
            count += to - from + u128::from(done != Some(from));
            done = Some(to);
        }
        count
    }

    /// The n-th of [`AddressSet::windows`], without walking there.
    #[must_use]
    pub fn nth_window(&self, mut n: u128) -> Option<u128> {
        let mut done: Option<u128> = None;
        for &(first, last) in &self.ranges {
            let from = (first >> 6) + u128::from(done == Some(first >> 6));
            let to = last >> 6;
            done = Some(to);
            let Some(span) = to.checked_sub(from) else { continue };
            if n <= span {
                return Some((from + n) << 6);
            }
            n -= span + 1;
        }
        None
    }

    /// Every address, ascending. Lazy: a /64 may be asked for its first few.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let family = self.family;
        self.ranges
            .iter()
            .flat_map(|&(a, b)| std::iter::successors(Some(a), move |n| (*n < b).then(|| n + 1)))
            .map(move |n| family.address(n))
    }

    /// The ranges as people write them, `a` or `a-b`.
    pub fn to_texts(&self) -> impl Iterator<Item = String> + '_ {
        self.ranges.iter().map(|&(a, b)| {
            let (first, last) = (self.family.address(a), self.family.address(b));
            if a == b { first.to_string() } else { format!("{first}-{last}") }
        })
    }
}

impl fmt::Display for AddressSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, text) in self.to_texts().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            f.write_str(&text)?;
        }
        Ok(())
    }
}

impl fmt::Debug for AddressSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{self}}}")
    }
}
