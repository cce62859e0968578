//! Echo requests from a pod, and the replies: by raw sockets from a tap pod, by its endpoint from a
//! memif pod.

use anyhow::Context;
use bowline_pktgen::endpoint::Endpoint;
use bowline_pktgen::host::Pong;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recvfrom, sendto,
    socket,
};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;
use wire::checksum::Sum;
use wire::{Header, Icmp4, Icmp6, Ipv4};

/// Between two looks at the sockets.
const NAP: Duration = Duration::from_millis(1);

/// Asks for echoes.
pub(super) trait Echoes {
    /// Sends a request if that is possible now.
    fn ask(&mut self, dst: IpAddr, id: u16, seq: u16) -> anyhow::Result<()>;
    /// The replies that have come, after a short nap at most.
    fn answers(&mut self) -> anyhow::Result<Vec<Pong>>;
}

impl Echoes for Endpoint {
    fn ask(&mut self, dst: IpAddr, id: u16, seq: u16) -> anyhow::Result<()> {
        if let Some(question) = self.host.solicit(dst) {
            self.port.send_now(question)?;
        }
        self.send_echo(dst, id, seq, 56).map(drop)
    }

    fn answers(&mut self) -> anyhow::Result<Vec<Pong>> {
        self.poll_or_nap()?;
        Ok(self.host.take_pongs())
    }
}

/// Raw sockets of both families, in the namespace of the thread that opened them.
#[derive(Debug)]
pub(super) struct Raw {
    v4: OwnedFd,
    v6: OwnedFd,
}

impl Raw {
    pub(super) fn open() -> anyhow::Result<Self> {
        let open = |family, protocol| {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            socket(family, SockType::Raw, flags, protocol).context("opening a raw socket")
        };
        Ok(Self {
            v4: open(AddressFamily::Inet, SockProtocol::Icmp)?,
            v6: open(AddressFamily::Inet6, SockProtocol::IcmpV6)?,
        })
    }

    fn receive(&self, ipv4: bool) -> Option<Pong> {
        let socket = if ipv4 { &self.v4 } else { &self.v6 };
        let mut buffer = [0; 256];
        let (bytes, from) = recvfrom::<SockaddrStorage>(socket.as_raw_fd(), &mut buffer).ok()?;
        let from = from?;
        let from = from
            .as_sockaddr_in()
            .map(|v4| IpAddr::V4(v4.ip()))
            .or_else(|| from.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))?;
        // Only IPv4's raw sockets show the IP header.
        let l4 = if ipv4 { Ipv4::view(&buffer)?.header_bytes() } else { 0 };
        let icmp = Icmp4::at(&buffer[..bytes], l4)?;
        let reply = if ipv4 { Icmp4::ECHO_REPLY } else { Icmp6::ECHO_REPLY };
        let rest = icmp.rest.get();
        let pong = Pong { from, id: (rest >> 16) as u16, seq: rest as u16, frame_bytes: bytes };
        // What is no reply is answered to nobody: id 0 is never used.
        Some(if icmp.kind == reply { pong } else { Pong { id: 0, ..pong } })
    }
}

fn bytes_of<H: Header>(header: &H) -> &[u8] {
    header.as_bytes()
}

impl Echoes for Raw {
    fn ask(&mut self, dst: IpAddr, id: u16, seq: u16) -> anyhow::Result<()> {
        let kind = if dst.is_ipv4() { Icmp4::ECHO_REQUEST } else { Icmp6::ECHO_REQUEST };
        let rest = u32::from(id) << 16 | u32::from(seq);
        let mut icmp = Icmp4 { kind, code: 0, checksum: 0.into(), rest: rest.into() };
        // IPv6's covers addresses that the kernel chooses, and is the kernel's to fill in.
        if dst.is_ipv4() {
            let sum = Sum::of(bytes_of(&icmp)).complement();
            icmp.checksum.set(sum);
        }
        let socket = if dst.is_ipv4() { &self.v4 } else { &self.v6 };
        let to = SockaddrStorage::from(SocketAddr::new(dst, 0));
        // A full queue or an unresolved neighbour is silence, which is what is measured.
        let _ = sendto(socket.as_raw_fd(), bytes_of(&icmp), &to, MsgFlags::empty());
        Ok(())
    }

    fn answers(&mut self) -> anyhow::Result<Vec<Pong>> {
        let mut pongs = vec![];
        for ipv4 in [true, false] {
            while let Some(pong) = self.receive(ipv4) {
                pongs.push(pong);
            }
        }
        if pongs.is_empty() {
            std::thread::sleep(NAP);
        }
        Ok(pongs)
    }
}
