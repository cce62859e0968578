//! Attacks of a server on our client: lies in the handshake, lies in the shared memory.

mod common;

use common::{unique_name, wait_for};
use memif::wire::{AddRing, Hello, MESSAGE_BYTES, Message, Name, VERSION};
use memif::{
    Address, ClientConfig, ClientEvent, CloseReason, Connection, Connector, Reserved, RxQueue,
    Status, TxQueue, TxSegs, Violation,
};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, accept,
    bind, listen, recvmsg, send, socket,
};
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::Instant;

fn hello() -> Hello {
    Hello {
        name: Name::truncated("rogue"),
        min_version: VERSION,
        max_version: VERSION,
        max_region: 0,
        max_m2s_ring: 0,
        max_s2m_ring: 0,
        max_log2_ring_size: 6,
    }
}

/// A server that speaks only when the test says so.
struct RogueServer {
    socket: OwnedFd,
    connector: Connector,
    /// What the client passed along.
    region: Option<File>,
    rings: Vec<AddRing>,
}

impl RogueServer {
    fn new() -> Self {
        let name = unique_name();
        let flags = SockFlag::SOCK_CLOEXEC;
        let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).unwrap();
        bind(listener.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes()).unwrap()).unwrap();
        listen(&listener, Backlog::new(1).unwrap()).unwrap();
        let mut connector = Connector::new(ClientConfig::new(Address::Abstract(name), 0));
        assert!(matches!(connector.poll(Instant::now()), ClientEvent::Pending));
        let fd = accept(listener.as_raw_fd()).unwrap();
        // SAFETY: accept returned a new descriptor.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        Self { socket, connector, region: None, rings: Vec::new() }
    }

    fn say(&mut self, message: &Message) -> ClientEvent {
        send(self.socket.as_raw_fd(), &message.encode(), MsgFlags::MSG_NOSIGNAL).unwrap();
        self.connector.poll(Instant::now())
    }

    /// Reads the client's next message and keeps what comes along.
    fn hear(&mut self) -> Message {
        let mut bytes = [0; MESSAGE_BYTES];
        let mut space = nix::cmsg_space!([i32; 1]);
        let mut fd = None;
        {
            let mut iov = [std::io::IoSliceMut::new(&mut bytes)];
            let raw = self.socket.as_raw_fd();
            let received =
                recvmsg::<()>(raw, &mut iov, Some(&mut space), MsgFlags::MSG_DONTWAIT).unwrap();
            for cmsg in received.cmsgs().unwrap() {
                if let ControlMessageOwned::ScmRights(fds) = cmsg {
                    // SAFETY: the kernel installed this descriptor for us.
                    fd = Some(unsafe { OwnedFd::from_raw_fd(fds[0]) });
                }
            }
        }
        let message = Message::decode(&bytes).unwrap();
        match &message {
            Message::AddRegion { .. } => self.region = fd.map(File::from),
            Message::AddRing(ring) => self.rings.push(*ring),
            _ => {}
        }
        message
    }

    /// The whole handshake: the client's queues.
    fn establish(mut self) -> (Self, Connection, RxQueue, TxQueue) {
        assert!(matches!(self.say(&Message::Hello(hello())), ClientEvent::Pending));
        while !matches!(self.hear(), Message::Connect(_)) {
            assert!(matches!(self.say(&Message::Ack), ClientEvent::Pending));
        }
        let ClientEvent::Connected(mut connection) =
            self.say(&Message::Connected(Name::truncated("rogue0")))
        else {
            panic!("an honest handshake must succeed")
        };
        let (mut rx, mut tx) = connection.take_queues();
        (self, connection, rx.remove(0), tx.remove(0))
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        let (process, base) = mapping_of(self.region.as_ref().unwrap());
        process.write_all_at(bytes, base + at).unwrap();
    }

    fn ring_at(&self, index: usize) -> u64 {
        u64::from(self.rings[index].offset)
    }

    fn set_tail(&self, ring: usize, tail: u16) {
        self.write(self.ring_at(ring) + 64, &tail.to_le_bytes());
    }
}

/// Where in this process a memory file is mapped, and a way to write there by address. A client seals its
/// memory when it is connected: from then on it can be written where it is mapped only.
fn mapping_of(memory: &File) -> (File, u64) {
    use std::os::unix::fs::MetadataExt;
    let inode = memory.metadata().unwrap().ino().to_string();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|l| l.split_whitespace().nth(4) == Some(&inode)).unwrap();
    let start = line.split('-').next().unwrap();
    let process = File::options().write(true).open("/proc/self/mem").unwrap();
    (process, u64::from_str_radix(start, 16).unwrap())
}

fn failed(event: ClientEvent) -> CloseReason {
    match event {
        ClientEvent::Failed(reason) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_server_out_of_turn_loses_its_client() {
    let unexpected = |kind, waiting_for| CloseReason::UnexpectedMessage { kind, waiting_for };
    let early = failed(RogueServer::new().say(&Message::Connected(Name::truncated("x"))));
    assert_eq!(early, unexpected("CONNECTED", "HELLO"));
    let early = failed(RogueServer::new().say(&Message::Ack));
    assert_eq!(early, unexpected("ACK", "HELLO"));
    let mut server = RogueServer::new();
    server.say(&Message::Hello(hello()));
    assert_eq!(failed(server.say(&Message::Hello(hello()))), unexpected("HELLO", "ACK"));
    let mut server = RogueServer::new();
    server.say(&Message::Hello(hello()));
    let early = failed(server.say(&Message::Connected(Name::truncated("x"))));
    assert_eq!(early, unexpected("CONNECTED", "ACK"));
    // One ACK more than there are messages.
    let mut server = RogueServer::new();
    server.say(&Message::Hello(hello()));
    while !matches!(server.hear(), Message::Connect(_)) {
        server.say(&Message::Ack);
    }
    assert_eq!(failed(server.say(&Message::Ack)), unexpected("ACK", "CONNECTED"));
    let other = Hello { min_version: 0x0300, max_version: 0x0301, ..hello() };
    let reason = failed(RogueServer::new().say(&Message::Hello(other)));
    assert_eq!(reason, CloseReason::Version(0x0301));
}

#[test]
fn the_exported_memory_cannot_be_resized() {
    let (server, ..) = RogueServer::new().establish();
    let region = server.region.as_ref().unwrap();
    assert!(region.set_len(0).is_err());
    assert!(region.set_len(1 << 30).is_err());
}

/// A worker that touches a page while it is taken out sleeps until that is done.
#[test]
fn the_exported_memory_has_no_holes() {
    use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
    let punch = |server: &RogueServer| {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(server.region.as_ref().unwrap(), flags, 0, 4096)
    };
    let (server, ..) = RogueServer::new().establish();
    assert_eq!(punch(&server), Err(nix::Error::EPERM));
    // A server that forbids further seals before has lost its client.
    let mut server = RogueServer::new();
    server.say(&Message::Hello(hello()));
    while !matches!(server.hear(), Message::Connect(_)) {
        server.say(&Message::Ack);
    }
    let seal = FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SEAL);
    fcntl(server.region.as_ref().unwrap(), seal).unwrap();
    let reason = failed(server.say(&Message::Connected(Name::truncated("x"))));
    assert!(matches!(reason, CloseReason::Region { index: 0, .. }), "{reason}");
    assert_eq!(punch(&server), Ok(()), "what it is refused for");
}

#[test]
fn lengths_beyond_the_buffer() {
    let cases = [
        (2049, Violation::Overrun { slot: 0, len_bytes: 2049, capacity_bytes: 2048 }),
        (60000, Violation::Overrun { slot: 0, len_bytes: 60000, capacity_bytes: 2048 }),
        (0, Violation::Length { slot: 0, len_bytes: 0, min_bytes: 1 }),
    ];
    for (length, expected) in cases {
        let (server, connection, mut rx, _tx) = RogueServer::new().establish();
        server.write(server.ring_at(1) + 128 + 4, &u32::to_le_bytes(length));
        server.set_tail(1, 1);
        // Lengths above what a frame may have are dropped if the buffer holds them; none does here.
        let got = rx.recv(&mut [0; 65536]);
        assert_eq!(got, Err(expected), "{length}");
        assert!(connection.poisoned());
    }
}

#[test]
fn scribbled_descriptors_lead_nowhere() {
    let (server, _connection, mut rx, mut tx) = RogueServer::new().establish();
    // The server fills buffer 0, then points the descriptor elsewhere.
    let descriptor = server.ring_at(1) + 128;
    let mut offset = [0; 4];
    let region = server.region.as_ref().unwrap();
    region.read_exact_at(&mut offset, descriptor + 8).unwrap();
    server.write(u64::from(u32::from_le_bytes(offset)), b"honest");
    server.write(descriptor, &[0, 0, 200, 0, 6, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    server.set_tail(1, 1);
    let mut buffer = [0; 64];
    assert_eq!(rx.recv(&mut buffer), Ok(Some(6)));
    assert_eq!(&buffer[..6], b"honest");
    // When the slot comes round, the descriptor is ours again.
    let mut again = [0; 16];
    region.read_exact_at(&mut again, descriptor).unwrap();
    assert_eq!(again[..8], [0, 0, 0, 0, 0, 8, 0, 0]);
    assert_eq!(again[8..12], offset);
    // The same for what we send.
    let descriptor = server.ring_at(0) + 128;
    server.write(descriptor, &[0xff; 16]);
    assert!(tx.send(b"ours").unwrap());
    tx.publish();
    region.read_exact_at(&mut again, descriptor).unwrap();
    assert_eq!(again[..8], [0, 0, 0, 0, 4, 0, 0, 0]);
}

#[test]
fn indexes_that_cannot_be() {
    let index = |peer, ours, held| Violation::Index { peer, ours, held, ring_slots: 64 };
    let (server, _c, rx, _tx) = RogueServer::new().establish();
    server.set_tail(1, 65);
    assert_eq!(rx.available(), Err(index(65, 0, 0)));
    // A server that has read what was never sent.
    let (server, _c, _rx, mut tx) = RogueServer::new().establish();
    server.set_tail(0, 1);
    assert_eq!(tx.free(), Err(index(1, 0, 0)));
    let (server, _c, _rx, mut tx) = RogueServer::new().establish();
    let mut out = TxSegs::new();
    for _ in 0..64 {
        assert_eq!(tx.reserve(60, &mut out), Ok(Reserved::Slots(1)));
    }
    tx.publish();
    server.set_tail(0, 10);
    assert_eq!(tx.free(), Ok(10));
    assert_eq!(tx.reserve(60, &mut out), Ok(Reserved::Slots(1)));
    tx.publish();
    server.set_tail(0, 0);
    assert_eq!(tx.free(), Err(index(0, 65, 0)), "backwards");
}

#[test]
fn our_indexes_are_not_the_servers_to_change() {
    let (server, _c, mut rx, mut tx) = RogueServer::new().establish();
    for ring in [0, 1] {
        server.write(server.ring_at(ring) + 6, &[0x55, 0x55]);
    }
    assert!(tx.send(&[1; 60]).unwrap());
    tx.publish();
    let head = |ring| {
        let mut bytes = [0; 2];
        let at = server.ring_at(ring) + 6;
        server.region.as_ref().unwrap().read_exact_at(&mut bytes, at).unwrap();
        u16::from_le_bytes(bytes)
    };
    assert_eq!(head(0), 1);
    server.write(server.ring_at(1) + 128 + 4, &60u32.to_le_bytes());
    server.set_tail(1, 1);
    assert_eq!(rx.recv(&mut [0; 64]), Ok(Some(60)));
    assert_eq!(head(1), 65);
}

#[test]
fn after_connected_a_server_may_only_say_goodbye() {
    let (server, mut connection, ..) = RogueServer::new().establish();
    send(server.socket.as_raw_fd(), &Message::Ack.encode(), MsgFlags::empty()).unwrap();
    let down = wait_for("the end", || match connection.on_readable() {
        Status::Up => None,
        Status::Down(reason) => Some(reason),
    });
    let waiting_for = "DISCONNECT";
    assert_eq!(down, CloseReason::UnexpectedMessage { kind: "ACK", waiting_for });
}
