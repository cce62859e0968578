//! IPv6 and the walk over its extension headers (RFC 8200).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::checksum::{self, Sum};
use crate::{Header, U16, U32, U128, protocol};

/// An IPv6 header.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Ipv6 {
    /// Version (4 bits), traffic class (8), flow label (20).
    pub version_class_flow: U32,
    /// Bytes that follow the header.
    pub payload_len: U16,
    /// What follows, see [`crate::protocol`].
    pub next_header: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source.
    pub src: U128,
    /// Destination.
    pub dst: U128,
}

const _: () = assert!(size_of::<Ipv6>() == 40);

/// A fragment header (RFC 8200 §4.5).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct FragmentHeader {
    /// What follows in the reassembled packet.
    pub next_header: u8,
    /// Zero when sent, ignored on receipt.
    pub reserved: u8,
    /// Offset in units of 8 bytes (13 bits), reserved (2), more fragments follow (1).
    pub offset_more: U16,
    /// Identification.
    pub id: U32,
}

const _: () = assert!(size_of::<FragmentHeader>() == 8);

/// Which piece of a packet follows the header chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// All of it (a so-called atomic fragment is all of it as well, RFC 6946).
    Whole,
    /// The first fragment.
    First,
    /// A fragment without the layer-4 header.
    Later,
}

/// Where the extension chain ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Upper {
    /// The first header that is not an extension.
    pub protocol: u8,
    /// Bytes from the IPv6 header to it.
    pub offset: usize,
    /// Whether all of it follows.
    pub piece: Piece,
}

/// What the walk over the extension headers found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Walk {
    /// The upper-layer header.
    Found(Upper),
    /// The chain goes on beyond the given bytes.
    Short,
    /// More extension headers than [`Ipv6::EXTENSIONS_MAX`].
    TooMany,
}

impl Ipv6 {
    /// Extension headers that are followed; real packets have at most three.
    pub const EXTENSIONS_MAX: usize = 8;

    /// The version field.
    #[inline]
    pub fn version(&self) -> u8 {
        (self.version_class_flow.get() >> 28) as u8
    }

    /// The ECN bits of the traffic class (RFC 3168 §5).
    #[inline]
    pub fn ecn(&self) -> u8 {
        (self.version_class_flow.get() >> 20) as u8 & 3
    }

    /// Replaces the ECN bits.
    #[inline]
    pub fn set_ecn(&mut self, ecn: u8) {
        let others = self.version_class_flow.get() & !(3 << 20);
        self.version_class_flow.set(others | u32::from(ecn & 3) << 20);
    }

    /// The pseudo header's sum for a payload of `l4_bytes` of `protocol`.
    #[inline]
    pub fn pseudo(&self, protocol: u8, l4_bytes: usize) -> Sum {
        checksum::pseudo6(self.src.get(), self.dst.get(), protocol, l4_bytes)
    }

    /// Follows the extension headers of the packet at the front of `bytes`, which begin with its
    /// IPv6 header.
    #[inline]
    pub fn walk(bytes: &[u8]) -> Walk {
        let Some((ip, _)) = Ipv6::split(bytes) else { return Walk::Short };
        match ip.next_header {
            protocol::TCP | protocol::UDP | protocol::ICMP6 => Walk::Found(Upper {
                protocol: ip.next_header,
                offset: Self::BYTES,
                piece: Piece::Whole,
            }),
            first => walk_extensions(bytes, first),
        }
    }
}

fn walk_extensions(bytes: &[u8], first: u8) -> Walk {
    let mut at = Upper { protocol: first, offset: Ipv6::BYTES, piece: Piece::Whole };
    for _ in 0..=Ipv6::EXTENSIONS_MAX {
        // Each begins with the next header's number and (but for fragments) its own length.
        let unit = match at.protocol {
            protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION_OPTIONS => 8,
            protocol::AUTHENTICATION => 4,
            protocol::FRAGMENT => {
                let Some(header) = FragmentHeader::at(bytes, at.offset) else { return Walk::Short };
                at.protocol = header.next_header;
                at.offset += FragmentHeader::BYTES;
                match header.offset_more.get() {
                    value if value & 0xfff8 != 0 => {
                        return Walk::Found(Upper { piece: Piece::Later, ..at });
                    }
                    value if value & 1 != 0 => at.piece = Piece::First,
                    _ => (),
                }
                continue;
            }
            _ => return Walk::Found(at),
        };
        let Some(&[next, len]) = bytes.get(at.offset..at.offset + 2) else { return Walk::Short };
        at.protocol = next;
        at.offset += match unit {
            8 => (usize::from(len) + 1) * 8,
            // RFC 4302 §2.2: in words of 4 bytes, minus 2.
            _ => (usize::from(len) + 2) * 4,
        };
    }
    Walk::TooMany
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::header::check_noise;

    fn packet(next_header: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x60, 0x3f, 0x12, 0x34, 0, payload.len() as u8, next_header, 64];
        bytes.extend(0xfd00_0000_0000_0000_0000_0000_0000_0001u128.to_be_bytes());
        bytes.extend(0xfd00_0000_0000_0000_0000_0000_0000_0002u128.to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn golden() {
        let mut bytes = packet(protocol::UDP, &[0; 8]);
        let ip = Ipv6::view_mut(&mut bytes).unwrap();
        assert_eq!((ip.version(), ip.ecn()), (6, 3));
        assert_eq!((ip.payload_len.get(), ip.next_header, ip.hop_limit), (8, 17, 64));
        assert_eq!(ip.dst.get() & 0xff, 2);
        ip.set_ecn(1);
        assert_eq!(ip.version_class_flow.get(), 0x601f_1234);
        let upper = Upper { protocol: 17, offset: 40, piece: Piece::Whole };
        assert_eq!(Ipv6::walk(&bytes), Walk::Found(upper));
    }

    #[test]
    fn walks_extensions() {
        let mut payload = vec![60, 0, 5, 2, 0, 0, 1, 0]; // hop-by-hop
        payload.extend([44, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]); // destination options
        payload.extend([51, 0, 0, 1, 0, 0, 0, 9]); // first fragment
        payload.extend([58, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]); // authentication
        payload.extend([128, 0, 0, 0]);
        let bytes = packet(protocol::HOP_BY_HOP, &payload);
        let upper = Upper { protocol: 58, offset: 40 + 44, piece: Piece::First };
        assert_eq!(Ipv6::walk(&bytes), Walk::Found(upper));
        for end in 40..40 + 32 {
            assert_eq!(Ipv6::walk(&bytes[..end]), Walk::Short, "{end}");
        }
    }

    #[test]
    fn later_fragments_end_the_walk() {
        let bytes = packet(protocol::FRAGMENT, &[0, 0, 0, 8, 0, 0, 0, 9]);
        let upper = Upper { protocol: 0, offset: 48, piece: Piece::Later };
        assert_eq!(Ipv6::walk(&bytes), Walk::Found(upper));
        let atomic = packet(protocol::FRAGMENT, &[6, 0, 0, 0, 0, 0, 0, 9]);
        let upper = Upper { protocol: 6, offset: 48, piece: Piece::Whole };
        assert_eq!(Ipv6::walk(&atomic), Walk::Found(upper));
    }

    #[test]
    fn endless_chains_end() {
        let bytes = packet(protocol::DESTINATION_OPTIONS, &[60, 0, 0, 0, 0, 0, 0, 0].repeat(20));
        assert_eq!(Ipv6::walk(&bytes), Walk::TooMany);
    }

    #[test]
    fn noise() {
        check_noise::<FragmentHeader>(|_| ());
        check_noise::<Ipv6>(|ip| assert!(ip.ecn() < 4));
        bolero::check!().with_type::<(u8, Vec<u8>)>().for_each(|(first, payload)| {
            if let Walk::Found(upper) = Ipv6::walk(&packet(*first, payload)) {
                assert!(upper.offset >= 40);
            }
        });
    }
}
