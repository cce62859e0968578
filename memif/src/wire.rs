//! The control messages of memif 2.0: eight kinds, 128 bytes each, little-endian.
//!
//! Decoding never fails on contents, only on the type: what a field may hold is for the handshake
//! to decide, which knows the state and the limits. Bytes that a message does not use are ignored
//! on receipt and zero on sending. Everything here is plain byte arithmetic, without `unsafe`.

use std::fmt;

/// Size of every control message; any other size is a protocol error.
pub const MESSAGE_BYTES: usize = 128;
/// The only protocol version in use: 2.0.
pub const VERSION: u16 = 0x0200;
/// First word of every ring header.
pub const RING_COOKIE: u32 = 0x03E3_1F20;
/// Bytes of a ring header on hosts with 64-byte cache lines; descriptors follow.
pub const RING_HEADER_BYTES: u64 = 128;
/// Bytes of one descriptor.
pub const DESCRIPTOR_BYTES: u64 = 16;
/// Descriptor flag: the frame goes on in the next descriptor.
pub const DESC_FLAG_NEXT: u16 = 1;
/// Ring flag, written by the ring's receiver: do not signal the eventfd.
pub const RING_FLAG_MASK_INT: u16 = 1;
/// ADD_RING flag: the ring carries frames from the client to the server.
pub const RING_IS_S2M: u16 = 1;

/// What the frames of an interface begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Mode {
    /// An Ethernet header.
    #[default]
    Ethernet,
    /// An IPv4 or IPv6 header.
    Ip,
    /// What an application's own protocol says; the library does not look at frames.
    PuntInject,
}

impl Mode {
    /// The byte on the wire.
    #[must_use]
    pub fn to_wire(self) -> u8 {
        match self {
            Self::Ethernet => 0,
            Self::Ip => 1,
            Self::PuntInject => 2,
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ethernet => "ethernet",
            Self::Ip => "ip",
            Self::PuntInject => "punt/inject",
        })
    }
}

/// A name or a secret in a fixed field of `N` bytes, ended by NUL or by the field's end.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Text<const N: usize>([u8; N]);

impl<const N: usize> Text<N> {
    /// Takes as many bytes of `text` as leave room for the final NUL.
    #[must_use]
    pub fn truncated(text: &str) -> Self {
        let mut bytes = [0; N];
        let mut len = text.len().min(N - 1);
        while !text.is_char_boundary(len) {
            len -= 1;
        }
        bytes[..len].copy_from_slice(&text.as_bytes()[..len]);
        Self(bytes)
    }

    /// The bytes before the first NUL.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        let len = self.0.iter().position(|&b| b == 0).unwrap_or(N);
        &self.0[..len]
    }

    /// Printable form: a peer's bytes may hold anything, so control characters are replaced.
    #[must_use]
    pub fn to_printable(&self) -> String {
        String::from_utf8_lossy(self.bytes())
            .chars()
            .map(|c| if c.is_control() { '\u{fffd}' } else { c })
            .collect()
    }
}

impl<const N: usize> fmt::Debug for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_printable())
    }
}

/// An interface or application name.
pub type Name = Text<32>;
/// A shared secret. Plain text on the wire, so defence in depth only.
pub type Secret = Text<24>;
/// The sentence of a DISCONNECT.
pub type Reason = Text<96>;

/// HELLO, server to client: what the server's implementation can take. The `max_*` are highest
/// indexes, not counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The server application's name.
    pub name: Name,
    /// Lowest version that the server speaks.
    pub min_version: u16,
    /// Highest version that the server speaks.
    pub max_version: u16,
    /// Highest region index.
    pub max_region: u16,
    /// Highest index of a server-to-client ring.
    pub max_m2s_ring: u16,
    /// Highest index of a client-to-server ring.
    pub max_s2m_ring: u16,
    /// Largest ring, as a power of two.
    pub max_log2_ring_size: u8,
}

/// INIT, client to server: which interface it wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Init {
    /// Protocol version.
    pub version: u16,
    /// Interface id on this socket.
    pub id: u32,
    /// [`Mode`] as on the wire.
    pub mode: u8,
    /// Secret, empty for none.
    pub secret: Secret,
    /// The client application's name.
    pub name: Name,
}

/// ADD_RING, client to server, with the ring's eventfd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddRing {
    /// [`RING_IS_S2M`] or nothing.
    pub flags: u16,
    /// Index within its direction.
    pub index: u16,
    /// Region that holds the ring.
    pub region: u16,
    /// Where in the region it begins.
    pub offset: u32,
    /// Slots, as a power of two.
    pub log2_ring_size: u8,
    /// Must be zero.
    pub private_hdr_size: u16,
}

/// One control message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// The message before was accepted.
    Ack,
    /// See [`Hello`].
    Hello(Hello),
    /// See [`Init`].
    Init(Init),
    /// A memory file, client to server.
    AddRegion {
        /// Region index.
        index: u16,
        /// Bytes that may be used.
        size: u64,
    },
    /// See [`AddRing`].
    AddRing(AddRing),
    /// The client is ready; its interface name.
    Connect(Name),
    /// The server is ready; its interface name.
    Connected(Name),
    /// The sender goes away.
    Disconnect {
        /// Always 0 in practice.
        code: u32,
        /// A sentence for a human.
        reason: Reason,
    },
}

impl Message {
    /// The message's name, for errors and logs.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Ack => "ACK",
            Self::Hello(_) => "HELLO",
            Self::Init(_) => "INIT",
            Self::AddRegion { .. } => "ADD_REGION",
            Self::AddRing(_) => "ADD_RING",
            Self::Connect(_) => "CONNECT",
            Self::Connected(_) => "CONNECTED",
            Self::Disconnect { .. } => "DISCONNECT",
        }
    }

    /// How many descriptors this message carries.
    #[must_use]
    pub fn fds(&self) -> usize {
        usize::from(matches!(self, Self::AddRegion { .. } | Self::AddRing(_)))
    }

    /// The bytes on the wire.
    #[must_use]
    pub fn encode(&self) -> [u8; MESSAGE_BYTES] {
        let mut w = Writer { out: [0; MESSAGE_BYTES], at: 0 };
        match self {
            Self::Ack => w.u16(1),
            Self::Hello(m) => {
                w.u16(2);
                w.bytes(&m.name.0);
                w.u16(m.min_version);
                w.u16(m.max_version);
                w.u16(m.max_region);
                w.u16(m.max_m2s_ring);
                w.u16(m.max_s2m_ring);
                w.bytes(&[m.max_log2_ring_size]);
            }
            Self::Init(m) => {
                w.u16(3);
                w.u16(m.version);
                w.u32(m.id);
                w.bytes(&[m.mode]);
                w.bytes(&m.secret.0);
                w.bytes(&m.name.0);
            }
            Self::AddRegion { index, size } => {
                w.u16(4);
                w.u16(*index);
                w.bytes(&size.to_le_bytes());
            }
            Self::AddRing(m) => {
                w.u16(5);
                w.u16(m.flags);
                w.u16(m.index);
                w.u16(m.region);
                w.u32(m.offset);
                w.bytes(&[m.log2_ring_size]);
                w.u16(m.private_hdr_size);
            }
            Self::Connect(name) => {
                w.u16(6);
                w.bytes(&name.0);
            }
            Self::Connected(name) => {
                w.u16(7);
                w.bytes(&name.0);
            }
            Self::Disconnect { code, reason } => {
                w.u16(8);
                w.u32(*code);
                w.bytes(&reason.0);
            }
        }
        w.out
    }

    /// Reads a message; `Err` holds a type that does not exist.
    ///
    /// # Errors
    /// The unknown type.
    pub fn decode(bytes: &[u8; MESSAGE_BYTES]) -> Result<Self, u16> {
        let mut r = Reader { bytes, at: 0 };
        Ok(match r.u16() {
            1 => Self::Ack,
            2 => Self::Hello(Hello {
                name: Text(r.array()),
                min_version: r.u16(),
                max_version: r.u16(),
                max_region: r.u16(),
                max_m2s_ring: r.u16(),
                max_s2m_ring: r.u16(),
                max_log2_ring_size: r.array::<1>()[0],
            }),
            3 => Self::Init(Init {
                version: r.u16(),
                id: r.u32(),
                mode: r.array::<1>()[0],
                secret: Text(r.array()),
                name: Text(r.array()),
            }),
            4 => Self::AddRegion { index: r.u16(), size: u64::from_le_bytes(r.array()) },
            5 => Self::AddRing(AddRing {
                flags: r.u16(),
                index: r.u16(),
                region: r.u16(),
                offset: r.u32(),
                log2_ring_size: r.array::<1>()[0],
                private_hdr_size: r.u16(),
            }),
            6 => Self::Connect(Text(r.array())),
            7 => Self::Connected(Text(r.array())),
            8 => Self::Disconnect { code: r.u32(), reason: Text(r.array()) },
            other => return Err(other),
        })
    }
}

struct Writer {
    out: [u8; MESSAGE_BYTES],
    at: usize,
}

impl Writer {
    fn bytes(&mut self, bytes: &[u8]) {
        self.out[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }
    fn u16(&mut self, v: u16) {
        self.bytes(&v.to_le_bytes());
    }
    fn u32(&mut self, v: u32) {
        self.bytes(&v.to_le_bytes());
    }
}

struct Reader<'a> {
    bytes: &'a [u8; MESSAGE_BYTES],
    at: usize,
}

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        out.copy_from_slice(&self.bytes[self.at..self.at + N]);
        self.at += N;
        out
    }
    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }
    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Message> {
        vec![
            Message::Ack,
            Message::Hello(Hello {
                name: Name::truncated("server"),
                min_version: VERSION,
                max_version: VERSION,
                max_region: 7,
                max_m2s_ring: 15,
                max_s2m_ring: 14,
                max_log2_ring_size: 13,
            }),
            Message::Init(Init {
                version: VERSION,
                id: 0x0102_0304,
                mode: 1,
                secret: Secret::truncated("s3cret"),
                name: Name::truncated("client"),
            }),
            Message::AddRegion { index: 3, size: 0x0807_0605_0403_0201 },
            Message::AddRing(AddRing {
                flags: 1,
                index: 2,
                region: 3,
                offset: 0xfffff000,
                log2_ring_size: 10,
                private_hdr_size: 9,
            }),
            Message::Connect(Name::truncated("a")),
            Message::Connected(Name::truncated("b")),
            Message::Disconnect { code: 0, reason: Reason::truncated("gone") },
        ]
    }

    #[test]
    fn every_message_reads_back_as_written() {
        for m in samples() {
            assert_eq!(Message::decode(&m.encode()), Ok(m));
        }
    }

    #[test]
    fn fields_lie_where_other_implementations_put_them() {
        let all: Vec<_> = samples().iter().map(Message::encode).collect();
        assert_eq!(all[1][2 + 32..2 + 43], [0, 2, 0, 2, 7, 0, 15, 0, 14, 0, 13]);
        assert_eq!(all[2][2..2 + 13], *b"\0\x02\x04\x03\x02\x01\x01s3cret");
        assert_eq!(all[2][2 + 31..2 + 37], *b"client");
        assert_eq!(all[3][..12], [4, 0, 3, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(all[4][..15], [5, 0, 1, 0, 2, 0, 3, 0, 0, 0xf0, 0xff, 0xff, 10, 9, 0]);
        assert_eq!(all[7][..10], *b"\x08\0\0\0\0\0gone");
    }

    #[test]
    fn unknown_types_are_named() {
        let mut bytes = Message::Ack.encode();
        bytes[0] = 9;
        assert_eq!(Message::decode(&bytes), Err(9));
    }

    #[test]
    fn text_keeps_room_for_the_nul_and_whole_characters() {
        assert_eq!(Text::<4>::truncated("abcdef").bytes(), b"abc");
        assert_eq!(Text::<4>::truncated("aüü").bytes(), "aü".as_bytes());
        assert_eq!(Text::<4>(*b"abcd").bytes(), b"abcd");
        assert_eq!(Text::<4>(*b"a\x1b\0d").to_printable(), "a\u{fffd}");
    }
}
