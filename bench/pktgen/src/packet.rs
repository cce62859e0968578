//! The frames that are sent, and how a receiver reads them.
//!
//! A frame is Ethernet (left out in IP mode), IPv4 or IPv6, UDP, and this payload, big-endian:
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 2 | [`MAGIC`] |
//! | 2 | 2 | stream: which sender |
//! | 4 | 2 | flow within the stream |
//! | 6 | 4 | sequence number within the flow |
//! | 10 | 8 | time of sending, monotonic, in ns |
//! | 18 | 2 | fix: makes the words above and the source port sum to nothing |
//! | 20 | … | body: a pattern; in each 64 bytes of it a tag of the sequence number and its complement |
//!
//! *Invariant*: what changes from frame to frame (flow, sequence, time, port, destination, tags)
//! adds up to the same one's complement sum, so that the UDP checksum of the template is right for
//! every frame and a receiver can verify all of it.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU16, Ordering};
use wire::checksum::{self, Sum};
use wire::{Ethernet, Header, Ipv4, Ipv6, Mac, Udp, ether_type, protocol};

/// First two bytes of every payload.
pub const MAGIC: u16 = 0xb0e1;
/// Where a sender's frames go unless it says otherwise.
pub const PORT: u16 = 9700;
/// Bytes of payload before the body.
pub const PAYLOAD_HEADER_BYTES: usize = 20;
const TAG_EVERY_BYTES: usize = 64;
/// UDP header and payload before the body.
const MARKED_BYTES: usize = Udp::BYTES + PAYLOAD_HEADER_BYTES;
/// The same behind an IP header without options.
const MARKED4_BYTES: usize = Ipv4::BYTES + MARKED_BYTES;
const MARKED6_BYTES: usize = Ipv6::BYTES + MARKED_BYTES;

/// A number for a stream that no other of this process has (but for the 65,000th after it).
#[must_use]
pub fn fresh_stream_id() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(1_000);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// What all frames of a stream have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// Its number.
    pub id: u16,
    /// Source and destination MAC; `None` in IP mode.
    pub macs: Option<(Mac, Mac)>,
    /// Sender.
    pub src: IpAddr,
    /// First receiver; the same family.
    pub dst: IpAddr,
    /// First source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
}

/// What differs from frame to frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Number of the flow.
    pub flow: u16,
    /// Number within the flow.
    pub seq: u32,
    /// When it was sent.
    pub time_ns: u64,
    /// Added to the first source port.
    pub port_offset: u16,
    /// Added to the first destination address (its last 16 bits).
    pub dst_offset: u16,
}

/// A frame to be marked and sent over and over.
#[derive(Debug, Clone)]
pub struct Template {
    bytes: Vec<u8>,
    /// Where the IP header begins.
    l3: usize,
    /// Where the UDP header begins.
    l4: usize,
    src_port: u16,
    /// Last two bytes of the first destination.
    dst_low: u16,
    /// Last two bytes of the destination that was written last.
    dst_low_now: u16,
    ipv4_checksum: Option<u16>,
}

/// Least frame of a family, in bytes.
#[must_use]
pub fn min_frame_bytes(dst: IpAddr, ethernet: bool) -> usize {
    let ip = if dst.is_ipv4() { Ipv4::BYTES } else { Ipv6::BYTES };
    let l2 = if ethernet { Ethernet::BYTES } else { 0 };
    l2 + ip + Udp::BYTES + PAYLOAD_HEADER_BYTES
}

impl Template {
    /// A frame of `frame_bytes` (without the wire's checksum), or what is the matter with it.
    ///
    /// # Errors
    /// The size does not hold the headers or exceeds 64 KiB; the families differ.
    pub fn new(stream: &Stream, frame_bytes: usize) -> anyhow::Result<Self> {
        let min = min_frame_bytes(stream.dst, stream.macs.is_some());
        anyhow::ensure!(
            (min..=65_535).contains(&frame_bytes),
            "size {frame_bytes}: {min}..=65535 bytes are possible for this family and mode"
        );
        let mut bytes = vec![0; frame_bytes];
        let mut l3 = 0;
        if let Some((src, dst)) = stream.macs {
            let kind = if stream.dst.is_ipv4() { ether_type::IPV4 } else { ether_type::IPV6 };
            let eth = Ethernet { src, dst, ether_type: kind.into() };
            put(&mut bytes, 0, eth);
            l3 = Ethernet::BYTES;
        }
        let l4 = write_ip(&mut bytes, l3, stream)?;
        write_payload(&mut bytes[l4 + Udp::BYTES..], stream.id);
        let mut template = Self {
            l3,
            l4,
            src_port: stream.src_port,
            dst_low: u16::from_be_bytes(last_two(stream.dst)),
            dst_low_now: u16::from_be_bytes(last_two(stream.dst)),
            ipv4_checksum: None,
            bytes,
        };
        template.write_udp(stream);
        template.ipv4_checksum = stream
            .dst
            .is_ipv4()
            .then(|| Ipv4::at(&template.bytes, l3).map_or(0, |ip| ip.checksum.get()));
        Ok(template)
    }

    fn write_udp(&mut self, stream: &Stream) {
        // Marked once, so that the fix word is part of the sum; later marks keep it.
        self.mark(Mark { flow: 0, seq: 0, time_ns: 0, port_offset: 0, dst_offset: 0 });
        let len = self.bytes.len() - self.l4;
        let udp = Udp {
            src_port: stream.src_port.into(),
            dst_port: stream.dst_port.into(),
            len: (len as u16).into(),
            checksum: 0.into(),
        };
        put(&mut self.bytes, self.l4, udp);
        let sum = pseudo(&self.bytes[self.l3..], len).plus(Sum::of(&self.bytes[self.l4..]));
        let at = self.l4 + usize::from(Udp::CHECKSUM_OFFSET);
        self.bytes[at..at + 2].copy_from_slice(&sum.complement_udp().to_be_bytes());
    }

    /// Puts `outer` in front of every frame from now on: the headers of a tunnel.
    pub fn wrap(&mut self, outer: &[u8]) {
        self.bytes.splice(0..0, outer.iter().copied());
        self.l3 += outer.len();
        self.l4 += outer.len();
    }

    /// The frame with this mark.
    #[inline]
    pub fn mark(&mut self, mark: Mark) -> &[u8] {
        self.mark_tags(mark.seq);
        self.mark_header(mark)
    }

    /// The frame with this mark, and with tags in its body if its number has none of these bits.
    #[inline]
    pub fn marked(&mut self, mark: Mark, untagged_mask: u32) -> &[u8] {
        if mark.seq & untagged_mask == 0 { self.mark(mark) } else { self.mark_header(mark) }
    }

    /// The frame with this mark, but for the body's tags, which stay as they are: its checksum is
    /// right, [`read`] would take it for a mixture, [`read_header`] does not look.
    #[inline]
    pub fn mark_header(&mut self, mark: Mark) -> &[u8] {
        let port = self.src_port.wrapping_add(mark.port_offset);
        let dst_low = self.dst_low.wrapping_add(mark.dst_offset);
        if dst_low != self.dst_low_now {
            self.patch_dst(dst_low);
        }
        let time = mark.time_ns;
        let fix = Sum::from_word(mark.flow)
            .dword(mark.seq)
            .dword((time >> 32) as u32)
            .dword(time as u32)
            .word(port)
            .word(dst_low)
            .complement();
        // Every frame is as long as this; looked at once, all places below are known to be there.
        if let Some(udp) = self.bytes[self.l4..].first_chunk_mut::<MARKED_BYTES>() {
            udp[..2].copy_from_slice(&port.to_be_bytes());
            let payload = &mut udp[Udp::BYTES..];
            payload[4..6].copy_from_slice(&mark.flow.to_be_bytes());
            payload[6..10].copy_from_slice(&mark.seq.to_be_bytes());
            payload[10..18].copy_from_slice(&time.to_be_bytes());
            payload[18..20].copy_from_slice(&fix.to_be_bytes());
        }
        &self.bytes
    }

    #[inline]
    fn mark_tags(&mut self, seq: u32) {
        let tag = tag_of(seq);
        let body = &mut self.bytes[self.l4 + Udp::BYTES + PAYLOAD_HEADER_BYTES..];
        for line in body.chunks_mut(TAG_EVERY_BYTES) {
            if let Some(place) = line.first_chunk_mut::<4>() {
                *place = tag;
            }
        }
    }

    #[inline]
    fn patch_dst(&mut self, dst_low: u16) {
        self.dst_low_now = dst_low;
        self.bytes[self.l4 - 2..self.l4].copy_from_slice(&dst_low.to_be_bytes());
        if let Some(checksum) = self.ipv4_checksum {
            let checksum = checksum::update(checksum, self.dst_low, dst_low);
            self.bytes[self.l3 + 10..self.l3 + 12].copy_from_slice(&checksum.to_be_bytes());
        }
    }

    /// The frame as it was marked last.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Bytes of the frame.
    #[must_use]
    pub fn frame_bytes(&self) -> usize {
        self.bytes.len()
    }
}

/// The tag of a frame: both halves together sum to nothing.
#[inline]
fn tag_of(seq: u32) -> [u8; 4] {
    let low = seq as u16;
    let ([a, b], [c, d]) = (low.to_be_bytes(), (!low).to_be_bytes());
    [a, b, c, d]
}

fn last_two(address: IpAddr) -> [u8; 2] {
    match address {
        IpAddr::V4(a) => [a.octets()[2], a.octets()[3]],
        IpAddr::V6(a) => [a.octets()[14], a.octets()[15]],
    }
}

fn put<H: Header>(bytes: &mut [u8], at: usize, header: H) {
    if let Some(place) = H::at_mut(bytes, at) {
        *place = header;
    }
}

/// Writes the IP header and says where UDP begins.
fn write_ip(bytes: &mut [u8], l3: usize, stream: &Stream) -> anyhow::Result<usize> {
    match (stream.src, stream.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let ip = Ipv4 {
                version_ihl: 0x45,
                tos: 0,
                total_len: ((bytes.len() - l3) as u16).into(),
                id: 0.into(),
                flags_offset: Ipv4::DF.into(),
                ttl: 64,
                protocol: protocol::UDP,
                checksum: 0.into(),
                src: src.to_bits().into(),
                dst: dst.to_bits().into(),
            };
            put(bytes, l3, ip);
            Ipv4::fill_checksum(&mut bytes[l3..]);
            Ok(l3 + Ipv4::BYTES)
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let ip = Ipv6 {
                version_class_flow: (6u32 << 28).into(),
                payload_len: ((bytes.len() - l3 - Ipv6::BYTES) as u16).into(),
                next_header: protocol::UDP,
                hop_limit: 64,
                src: src.to_bits().into(),
                dst: dst.to_bits().into(),
            };
            put(bytes, l3, ip);
            Ok(l3 + Ipv6::BYTES)
        }
        (src, dst) => anyhow::bail!("source {src} and destination {dst} are of different families"),
    }
}

fn write_payload(payload: &mut [u8], stream: u16) {
    payload[0..2].copy_from_slice(&MAGIC.to_be_bytes());
    payload[2..4].copy_from_slice(&stream.to_be_bytes());
    for (i, byte) in payload[PAYLOAD_HEADER_BYTES..].iter_mut().enumerate() {
        *byte = (i as u8).wrapping_mul(29).wrapping_add((i >> 8) as u8);
    }
    // A last tag that lacks room leaves odd bytes of the pattern, which are constant.
}

/// The pseudo header's sum of the packet that begins with its IP header.
#[inline]
fn pseudo(l3: &[u8], l4_bytes: usize) -> Sum {
    match l3.first().map(|b| b >> 4) {
        Some(4) => Ipv4::view(l3).map_or(Sum::default(), |ip| ip.pseudo(l4_bytes)),
        _ => Ipv6::view(l3).map_or(Sum::default(), |ip| ip.pseudo(protocol::UDP, l4_bytes)),
    }
}

/// What a receiver found in a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// A generator's frame, whole.
    Ours {
        /// Which sender.
        stream: u16,
        /// Which flow of it.
        flow: u16,
        /// Number within the flow.
        seq: u32,
        /// When it was sent.
        time_ns: u64,
    },
    /// A generator's frame that was changed on its way.
    Corrupt,
    /// Something else.
    Other,
}

/// Reads a frame; `l3` is where its IP header begins.
#[inline]
#[must_use]
pub fn read(frame: &[u8], l3: usize) -> Seen {
    match read_header(frame, l3) {
        Seen::Ours { seq, .. } if !is_whole(frame, l3, seq) => Seen::Corrupt,
        seen => seen,
    }
}

/// Reads the headers of a frame and believes them: for benchmarks, which look at all of only some.
#[inline]
#[must_use]
pub fn read_header(frame: &[u8], l3: usize) -> Seen {
    let Some(head) = payload_header(frame, l3) else { return Seen::Other };
    let [m0, m1, s0, s1, f0, f1, q0, q1, q2, q3, t0, t1, t2, t3, t4, t5, t6, t7, _, _] = *head;
    if u16::from_be_bytes([m0, m1]) != MAGIC {
        return Seen::Other;
    }
    Seen::Ours {
        stream: u16::from_be_bytes([s0, s1]),
        flow: u16::from_be_bytes([f0, f1]),
        seq: u32::from_be_bytes([q0, q1, q2, q3]),
        time_ns: u64::from_be_bytes([t0, t1, t2, t3, t4, t5, t6, t7]),
    }
}

/// What stands before the body, if the frame has one.
#[inline]
fn payload_header(frame: &[u8], l3: usize) -> Option<&[u8; PAYLOAD_HEADER_BYTES]> {
    let packet = frame.get(l3..)?;
    let head = match packet.first_chunk::<MARKED4_BYTES>() {
        Some(head) if head[0] == 0x45 && head[9] == protocol::UDP => head.last_chunk()?,
        _ => {
            let head = packet.first_chunk::<MARKED6_BYTES>()?;
            (head[0] >> 4 == 6 && head[6] == protocol::UDP).then_some(head.last_chunk()?)?
        }
    };
    Some(head)
}

/// The UDP header and what follows it, if the frame has one.
#[inline]
fn udp_of(frame: &[u8], l3: usize) -> Option<&[u8]> {
    let packet = frame.get(l3..)?;
    let l4 = match packet.first() {
        Some(0x45) if packet.get(9) == Some(&protocol::UDP) => Ipv4::BYTES,
        Some(b) if b >> 4 == 6 && packet.get(6) == Some(&protocol::UDP) => Ipv6::BYTES,
        _ => return None,
    };
    packet.get(l4..)
}

/// Whether nothing of the frame was changed, lost or mixed with another.
#[inline]
fn is_whole(frame: &[u8], l3: usize, seq: u32) -> bool {
    let Some(rest) = udp_of(frame, l3) else { return false };
    let Some((udp, _)) = Udp::split(rest) else { return false };
    let len = usize::from(udp.len.get());
    let Some(covered) = rest.get(..len) else { return false };
    let sum = pseudo(&frame[l3..], len).plus(Sum::of(covered));
    udp.checksum.get() != 0 && sum.fold() == 0xffff && tags_match(covered, seq)
}

/// Whether all parts of the body belong to this frame and not to another one.
#[inline]
fn tags_match(udp: &[u8], seq: u32) -> bool {
    let Some(body) = udp.get(Udp::BYTES + PAYLOAD_HEADER_BYTES..) else { return false };
    let tag = tag_of(seq);
    body.chunks(TAG_EVERY_BYTES).all(|line| line.first_chunk::<4>().is_none_or(|t| *t == tag))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(dst: &str, src: &str, ethernet: bool) -> Stream {
        let macs = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));
        Stream {
            id: 7,
            macs: ethernet.then_some(macs),
            src: src.parse().unwrap(),
            dst: dst.parse().unwrap(),
            src_port: 60_000,
            dst_port: PORT,
        }
    }

    const V4: (&str, &str) = ("10.0.255.250", "10.0.0.1");
    const V6: (&str, &str) = ("fd00::fffa", "fd00::1");

    /// Whatever the mark and the size, the frame is valid and reads back; IPv4's checksum too.
    #[test]
    fn marks_keep_checksums_right() {
        for (dst, src) in [V4, V6] {
            for ethernet in [true, false] {
                let stream = stream(dst, src, ethernet);
                let l3 = if ethernet { 14 } else { 0 };
                let min = min_frame_bytes(stream.dst, ethernet);
                for size in (min..min + 140).chain([1499, 1500, 9000]) {
                    let mut template = Template::new(&stream, size).unwrap();
                    for n in 0..50u32 {
                        let mark = Mark {
                            flow: (n * 997) as u16,
                            seq: n.wrapping_mul(0x9e37_79b9),
                            time_ns: u64::from(n) << 37 | 12_345,
                            port_offset: (n * 301) as u16,
                            dst_offset: (n % 7) as u16 * 5,
                        };
                        let frame = template.mark(mark);
                        assert_eq!(frame.len(), size);
                        if let Some(ip) = Ipv4::at(frame, l3).filter(|ip| ip.version() == 4) {
                            assert_eq!(ip.sum().fold(), 0xffff, "IPv4 checksum");
                        }
                        let Mark { flow, seq, time_ns, .. } = mark;
                        let want = Seen::Ours { stream: 7, flow, seq, time_ns };
                        assert_eq!(read(frame, l3), want, "size {size}, frame {n}, {dst}");
                    }
                }
            }
        }
    }

    #[test]
    fn every_changed_payload_bit_is_noticed() {
        let mut template = Template::new(&stream(V4.0, V4.1, true), 200).unwrap();
        let mark = Mark { flow: 1, seq: 77, time_ns: 5, port_offset: 0, dst_offset: 0 };
        let frame = template.mark(mark).to_vec();
        for bit in 34 * 8..200 * 8 {
            let mut changed = frame.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(!matches!(read(&changed, 14), Seen::Ours { .. }), "bit {bit}");
        }
    }

    #[test]
    fn a_body_of_another_frame_is_noticed() {
        let mut template = Template::new(&stream(V6.0, V6.1, true), 1500).unwrap();
        let mut mark = Mark { flow: 0, seq: 1, time_ns: 5, port_offset: 0, dst_offset: 0 };
        let mut one = template.mark(mark).to_vec();
        mark.seq = 2;
        one[700..].copy_from_slice(&template.mark(mark)[700..]);
        assert_eq!(read(&one, 14), Seen::Corrupt);
    }

    #[test]
    fn sizes_have_limits() {
        let s = stream(V4.0, V4.1, true);
        let error = Template::new(&s, 61).unwrap_err().to_string();
        assert!(error.contains("62..=65535"), "{error}");
        assert!(Template::new(&s, 65_536).is_err());
    }

    #[test]
    fn noise_is_other() {
        for len in 0..80 {
            assert_eq!(read(&vec![0x45; len], 14), Seen::Other);
        }
    }
}
