//! Frames as they are: a packet socket on one interface.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

use super::{Netns, sys};

/// Sends and receives whole Ethernet frames on an interface. Does not see what it sends.
pub struct RawSocket {
    socket: OwnedFd,
}

impl RawSocket {
    /// On `interface` of `netns`. Frames from now on are received.
    pub fn open(netns: &Netns, interface: &str) -> Self {
        netns.run(|| {
            let socket = socket(
                AddressFamily::Packet,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
                SockProtocol::EthAll,
            )
            .expect("a packet socket");
            sys::bind_packet_socket(&socket, interface).expect("bind to the interface");
            // What came in between on other interfaces is not ours.
            while recv(socket.as_raw_fd(), &mut [0; 1], MsgFlags::empty()).is_ok() {}
            Self { socket }
        })
    }

    /// Sends one frame.
    pub fn send(&self, frame: &[u8]) {
        super::wait("room in the device's queue", 2.0, || {
            match send(self.socket.as_raw_fd(), frame, MsgFlags::empty()) {
                Ok(sent) => {
                    assert_eq!(sent, frame.len());
                    Some(())
                }
                Err(nix::Error::ENOBUFS | nix::Error::EAGAIN) => None,
                Err(error) => panic!("send {} bytes: {error}", frame.len()),
            }
        });
    }

    /// What has arrived, without waiting.
    pub fn take(&self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut buffer = vec![0; 70_000];
        while let Ok(length) = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            frames.push(buffer[..length].to_vec());
        }
        frames
    }

    /// Waits for the first frame that `accept` accepts; others are thrown away.
    pub fn expect(&self, what: &str, accept: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        super::wait(what, 3.0, || self.take().into_iter().find(|frame| accept(frame)))
    }

    /// All frames that `accept` accepts, until `count` are there.
    pub fn expect_count(
        &self,
        what: &str,
        count: usize,
        accept: impl Fn(&[u8]) -> bool,
    ) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        let start = Instant::now();
        while found.len() < count {
            assert!(
                start.elapsed() < Duration::from_secs(5),
                "{what}: {} of {count} frames came",
                found.len()
            );
            found.extend(self.take().into_iter().filter(|frame| accept(frame)));
            std::thread::sleep(Duration::from_millis(1));
        }
        found
    }
}
