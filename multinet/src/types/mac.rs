//! Ethernet addresses, and the two schemes by which Bowline makes them.
//!
//! | address | form | same on |
//! |---|---|---|
//! | gateway of a Network | `0a:b0:VV:VV:VV:01`, V = the VNI | every node |
//! | interface of a pod | `0e:` + 40 bits of a hash of (owner's UID, interface) | every ADD of that pod |
//!
//! Both are locally administered unicast addresses (IEEE 802: bit 1 of the first byte set, bit 0
//! clear), and no address of one scheme is one of the other's.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A 48-bit Ethernet address, written `aa:bb:cc:dd:ee:ff`.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

/// Text that is no Ethernet address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is not an Ethernet address; write six bytes in hexadecimal, like 0e:12:34:56:78:9a"
)]
pub struct MacError(pub String);

impl Mac {
    /// Whether it can be the address of one interface: not multicast and not zero.
    #[must_use]
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }

    /// The address that every node answers with for the gateway of the Network with this VNI.
    #[must_use]
    pub fn gateway(vni: u32) -> Self {
        let [_, a, b, c] = vni.to_be_bytes();
        Mac([0x0a, 0xb0, a, b, c, 0x01])
    }

    /// The address of a pod's interface: stable over restarts of the pod's sandbox and of the agent.
    #[must_use]
    pub fn for_interface(owner_uid: &str, interface: &str) -> Self {
        let hash = stable_hash(&[owner_uid, interface]).to_be_bytes();
        Mac([0x0e, hash[0], hash[1], hash[2], hash[3], hash[4]])
    }
}

/// A 64-bit hash that is the same in every version and on every machine (FNV-1a, then the mixing
/// steps of splitmix64 so that near inputs differ in the high bits). Not for untrusted tables.
#[must_use]
pub fn stable_hash(parts: &[&str]) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for part in parts {
        // 0xff occurs in no UTF-8 text, so that ("a", "bc") and ("ab", "c") differ.
        for byte in part.bytes().chain([0xff]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    mix(hash)
}

/// The finishing steps of splitmix64.
#[must_use]
pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let error = || MacError(text.chars().take(64).collect());
        let mut bytes = [0u8; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(error)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(error());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        if parts.next().is_some() { Err(error()) } else { Ok(Mac(bytes)) }
    }
}

impl TryFrom<String> for Mac {
    type Error = MacError;
    fn try_from(text: String) -> Result<Self, MacError> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> String {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes_and_nothing_else() {
        let mac: Mac = "0E:12-34:56:78:9a".parse().unwrap();
        assert_eq!(mac.to_string(), "0e:12:34:56:78:9a");
        for bad in
            ["", "0e:12:34:56:78", "0e:12:34:56:78:9a:bc", "0e:12:34:56:78:+a", "é:12:34:56:78:9a"]
        {
            assert_eq!(bad.parse::<Mac>(), Err(MacError(bad.into())), "{bad}");
        }
    }

    #[test]
    fn schemes_are_local_unicast_and_apart() {
        let gateway = Mac::gateway(0x0a_0b_0c);
        assert_eq!(gateway.to_string(), "0a:b0:0a:0b:0c:01");
        let pod = Mac::for_interface("3f1c", "eth1");
        assert_eq!(pod, Mac::for_interface("3f1c", "eth1"));
        assert_ne!(pod, Mac::for_interface("3f1ce", "th1"));
        for mac in [gateway, pod] {
            assert!(mac.is_unicast() && mac.0[0] & 2 == 2);
        }
        assert_ne!(gateway.0[0], pod.0[0]);
    }
}
