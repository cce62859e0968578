//! A memif server that does what it likes: it shakes hands honestly, and then writes into the memory
//! that its client has brought.

use std::fs::File;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use memif::wire::{AddRing, Hello, MESSAGE_BYTES, Message, Name, RING_IS_S2M, VERSION};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, accept,
    bind, listen, recvmsg, send, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::Netns;
use super::sys::Mapped;

const TAIL: u64 = 64;
const DESCRIPTORS: u64 = 128;

/// Where clients come to.
pub struct Stall(OwnedFd);

/// One connection.
pub struct RogueServer {
    socket: OwnedFd,
    /// The client's memory, mapped before the client seals it.
    memory: Mapped,
    rings: Vec<AddRing>,
}

impl Stall {
    /// Listens on an abstract name in `netns`.
    pub fn open(netns: &Netns, name: &str) -> Self {
        Self(netns.run(|| {
            let flags = SockFlag::SOCK_CLOEXEC;
            let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).expect("one");
            setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(10)).expect("a timeout");
            let address = UnixAddr::new_abstract(name.as_bytes()).expect("a short name");
            bind(fd.as_raw_fd(), &address).expect("a free name");
            listen(&fd, Backlog::new(1).expect("small")).expect("a listening socket");
            fd
        }))
    }

    /// The next client, shaken hands with.
    pub fn serve(&self) -> RogueServer {
        let fd = accept(self.0.as_raw_fd()).expect("a client that comes again");
        // SAFETY: accept returned a new descriptor.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(5)).expect("a timeout");
        let hello = Hello {
            name: Name::truncated("rogue"),
            min_version: VERSION,
            max_version: VERSION,
            max_region: 0,
            max_m2s_ring: 0,
            max_s2m_ring: 0,
            max_log2_ring_size: 8,
        };
        say(&socket, &Message::Hello(hello));
        let (mut memory, mut rings) = (None, Vec::new());
        loop {
            let (message, fd) = hear(&socket).expect("a client that shakes hands");
            match message {
                Message::AddRegion { size, .. } => {
                    memory = fd.map(|fd| Mapped::new(&File::from(fd), size).expect("room"));
                }
                Message::AddRing(ring) => rings.push(ring),
                Message::Connect(_) => break,
                _ => {}
            }
            say(&socket, &Message::Ack);
        }
        say(&socket, &Message::Connected(Name::truncated("rogue0")));
        RogueServer { socket, memory: memory.expect("memory"), rings }
    }
}

impl RogueServer {
    fn ring(&self, s2m: bool) -> u64 {
        let is = |ring: &&AddRing| (ring.flags & RING_IS_S2M != 0) == s2m;
        u64::from(self.rings.iter().find(is).expect("a ring each way").offset)
    }

    /// Moves the tail of a ring, which is the server's to move.
    pub fn tail(&self, s2m: bool, to: u16) {
        self.memory.publish(self.ring(s2m) + TAIL, to);
    }

    /// Says how long the first frame towards the client is.
    pub fn length(&self, bytes: u32) {
        self.memory.write(self.ring(false) + DESCRIPTORS + 4, &bytes.to_le_bytes());
    }

    /// Sends a message that is due or not.
    pub fn say(&self, message: &Message) {
        say(&self.socket, message);
    }

    /// Waits until the client has closed the connection, whatever it says before.
    pub fn closed(&self) {
        while hear(&self.socket).is_some() {}
    }
}

fn say(socket: &OwnedFd, message: &Message) {
    // That the client has closed already is no failure.
    let _ = send(socket.as_raw_fd(), &message.encode(), MsgFlags::MSG_NOSIGNAL);
}

/// The client's next message and what comes along; `None` at the end.
fn hear(socket: &OwnedFd) -> Option<(Message, Option<OwnedFd>)> {
    let mut bytes = [0; MESSAGE_BYTES];
    let mut space = nix::cmsg_space!([i32; 1]);
    let mut pieces = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let got = match recvmsg::<()>(socket.as_raw_fd(), &mut pieces, Some(&mut space), flags) {
        Ok(got) => got,
        Err(nix::Error::ECONNRESET) => return None,
        Err(error) => panic!("the data plane says nothing: {error}"),
    };
    let mut fd = None;
    for message in got.cmsgs().expect("room for one descriptor") {
        if let ControlMessageOwned::ScmRights(fds) = message {
            // SAFETY: the kernel installed this descriptor for us.
            fd = fds.first().map(|&fd| unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
    let whole = got.bytes == MESSAGE_BYTES;
    whole.then(|| (Message::decode(&bytes).expect("a message of the protocol"), fd))
}
