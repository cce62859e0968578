//! A small blocking rtnetlink client, for the namespace of the thread that opens it.
//!
//! A takeover moves what the kernel tells about one device to another, attribute by attribute and
//! without loss. So messages stay bytes here; typed ones would drop what they do not know.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    socket,
};

pub(super) const RTM_NEWLINK: u16 = 16;
pub(super) const RTM_DELLINK: u16 = 17;
pub(super) const RTM_GETLINK: u16 = 18;
pub(super) const RTM_NEWADDR: u16 = 20;
pub(super) const RTM_GETADDR: u16 = 22;
pub(super) const RTM_NEWROUTE: u16 = 24;
pub(super) const RTM_GETROUTE: u16 = 26;
pub(super) const RTM_NEWNEIGH: u16 = 28;
pub(super) const RTM_GETNEIGH: u16 = 30;

pub(super) const CREATE: u16 = 0x400;
pub(super) const REPLACE: u16 = 0x100;
pub(super) const APPEND: u16 = 0x800;
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER_BYTES: usize = 16;

/// One connection.
#[derive(Debug)]
pub(super) struct Netlink {
    fd: OwnedFd,
    sequence: u32,
}

impl Netlink {
    pub(super) fn open() -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self { fd, sequence: 0 })
    }

    /// Sends one request and waits for the kernel's verdict.
    pub(super) fn request(&mut self, kind: u16, flags: u16, payload: &[u8]) -> io::Result<()> {
        self.transact(kind, flags | ACK, payload).map(drop)
    }

    /// Sends a request with one answer.
    pub(super) fn get(&mut self, kind: u16, payload: &[u8]) -> io::Result<Vec<u8>> {
        let mut answers = self.transact(kind, ACK, payload)?;
        answers.pop().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// All objects of a kind; the payloads.
    pub(super) fn dump(&mut self, kind: u16, payload: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        // A dump that changed under the kernel's hands is asked for again.
        for _ in 0..8 {
            match self.transact(kind, DUMP, payload) {
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                other => return other,
            }
        }
        Err(io::ErrorKind::Interrupted.into())
    }

    fn transact(&mut self, kind: u16, flags: u16, payload: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        self.sequence += 1;
        let mut message = Vec::with_capacity(HEADER_BYTES + payload.len());
        message.extend(((HEADER_BYTES + payload.len()) as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((flags | REQUEST).to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend(0_u32.to_ne_bytes());
        message.extend(payload);
        send(self.fd.as_raw_fd(), &message, MsgFlags::empty())?;
        let mut answers = Vec::new();
        let mut buffer = vec![0; 1 << 17];
        loop {
            let n = recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            if self.take(&buffer[..n], &mut answers)? {
                return Ok(answers);
            }
        }
    }

    /// Reads the messages of one datagram; whether the answer is complete.
    fn take(&self, mut datagram: &[u8], answers: &mut Vec<Vec<u8>>) -> io::Result<bool> {
        const DUMP_INTERRUPTED: u16 = 0x10;
        while let Some(header) = datagram.first_chunk::<HEADER_BYTES>() {
            let length = u32_at(header, 0) as usize;
            let Some(message) = datagram.get(HEADER_BYTES..length) else { break };
            let (kind, flags) = (u16_at(header, 4), u16_at(header, 6));
            if u32_at(header, 8) == self.sequence {
                match kind {
                    NLMSG_DONE if flags & DUMP_INTERRUPTED != 0 => {
                        return Err(io::Error::from_raw_os_error(libc::EINTR));
                    }
                    NLMSG_DONE => return Ok(true),
                    NLMSG_ERROR => {
                        let code = u32_at(message, 0) as i32;
                        if code == 0 {
                            return Ok(true);
                        }
                        return Err(io::Error::from_raw_os_error(-code));
                    }
                    _ => answers.push(message.to_vec()),
                }
            }
            datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        }
        Ok(false)
    }
}

/// The number at `at`; 0 where the message is too short.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_ne_bytes)
}

/// Appends one attribute.
pub(super) fn put(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    message.extend(((value.len() + 4) as u16).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// The attributes behind a fixed header of `header_bytes`.
pub(super) fn attributes(message: &[u8], header_bytes: usize) -> Attributes<'_> {
    Attributes(message.get(header_bytes..).unwrap_or(&[]))
}

/// The value of the first attribute of a kind.
pub(super) fn find(message: &[u8], header_bytes: usize, kind: u16) -> Option<&[u8]> {
    attributes(message, header_bytes).find(|a| a.kind == kind).map(|a| a.value)
}

/// One attribute of a message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attribute<'a> {
    /// Without the flags in its top bits.
    pub(super) kind: u16,
    pub(super) value: &'a [u8],
    /// As it came, header included, without padding.
    pub(super) raw: &'a [u8],
}

pub(super) struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = Attribute<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        const NESTED_OR_BIG_ENDIAN: u16 = 0xc000;
        let length = usize::from(u16_at(self.0, 0));
        let raw = self.0.get(..length)?;
        let value = raw.get(4..)?;
        let kind = u16_at(raw, 2) & !NESTED_OR_BIG_ENDIAN;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(Attribute { kind, value, raw })
    }
}
