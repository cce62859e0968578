//! A blocking route-netlink socket: one request, its answers, no runtime.
//!
//! It serves the short-lived threads inside pods' namespaces, where a socket bound to the async
//! runtime's reactor would cost more than the work itself.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// Must an object be new, or may it replace an equal one?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Put {
    /// It must not exist yet.
    Create,
    /// It may exist and is then replaced.
    Replace,
    /// It must exist and is changed.
    Change,
}

/// A connection to the namespace of the thread that opened it.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket in the calling thread's namespace.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Without this a dump filtered by interface returns everything.
        socket.set_netlink_get_strict_chk(true)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends a request that changes something and waits for the kernel's verdict.
    pub(super) fn put(&mut self, message: RouteNetlinkMessage, how: Put) -> io::Result<()> {
        let flags = match how {
            Put::Create => NLM_F_CREATE | NLM_F_EXCL,
            Put::Replace => NLM_F_CREATE | NLM_F_REPLACE,
            Put::Change => 0,
        };
        self.exchange(message, NLM_F_ACK | flags).map(drop)
    }

    /// Asks for one object.
    pub(super) fn get(
        &mut self,
        message: RouteNetlinkMessage,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.exchange(message, NLM_F_ACK)
    }

    /// Asks for all objects that the message describes.
    pub(super) fn dump(
        &mut self,
        message: RouteNetlinkMessage,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.exchange(message, NLM_F_DUMP)
    }

    fn exchange(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence += 1;
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            if self.read_datagram(&datagram, &mut answers)? {
                return Ok(answers);
            }
        }
    }

    /// Returns true when the exchange is complete.
    fn read_datagram(
        &self,
        mut bytes: &[u8],
        answers: &mut Vec<RouteNetlinkMessage>,
    ) -> io::Result<bool> {
        while !bytes.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes)
                .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
            // Messages are padded to four bytes (RFC 3549 §2.2).
            let length = (message.header.length as usize).next_multiple_of(4);
            bytes = bytes.get(length.max(16)..).unwrap_or_default();
            if message.header.sequence_number != self.sequence {
                continue;
            }
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(true),
                NetlinkPayload::Error(error) if error.code.is_none() => return Ok(true),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                _ => {}
            }
        }
        Ok(false)
    }
}
