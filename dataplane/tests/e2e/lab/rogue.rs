//! A memif client that does what it likes: raw messages on a raw socket, and shared memory of its own.

use std::fs::File;
use std::io::{IoSlice, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use memif::wire::{
    AddRing, Init, MESSAGE_BYTES, Message, Name, RING_COOKIE, RING_IS_S2M, Secret, VERSION,
};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, sendmsg,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::Netns;
use super::memif::NAME;
use super::sys::{Mapped, punch_hole};

/// Bytes of the one region: rings first, then buffers.
pub const REGION_BYTES: u64 = 1 << 20;
/// Where the ring towards the data plane lies.
pub const S2M_AT: u32 = 0;
/// Where the ring from the data plane lies.
pub const M2S_AT: u32 = 0x1_0000;
/// Where buffers lie.
pub const BUFFERS_AT: u32 = 0x2_0000;
/// Slots of a ring, as a power of two.
pub const LOG2_RING: u8 = 8;
const HEAD: u64 = 6;
const TAIL: u64 = 64;
const DESCRIPTORS: u64 = 128;

/// One end of a control socket, and the memory that goes with it.
pub struct Rogue {
    socket: OwnedFd,
    /// The region.
    pub file: File,
    /// The way to write it once the data plane has sealed it; what is not sealed may shrink, and is
    /// written through its file.
    mapped: Option<Mapped>,
    /// The second region, if it has one.
    pub bodies: Option<Bodies>,
}

/// Memory for what comes behind the heads of frames, to be punched out.
pub struct Bodies {
    file: File,
    /// How many.
    pub count: u32,
    /// From one to the next: whole pages.
    pub stride: u32,
}

impl Bodies {
    /// Bodies of so many bytes at most, each in pages of its own.
    pub fn new(count: u32, huge: bool, sealed: bool) -> Self {
        let flags = MFdFlags::MFD_ALLOW_SEALING;
        let (flags, stride) = match huge {
            true => (flags | MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB, 2 << 20),
            false => (flags, 2 * 4096),
        };
        let file = File::from(memfd_create(c"bodies", flags).expect("a memory file"));
        file.set_len(u64::from(count) * u64::from(stride)).expect("room");
        seal(&file, sealed);
        Self { file, count, stride }
    }

    /// All its bytes.
    pub fn bytes(&self) -> u64 {
        u64::from(self.count) * u64::from(self.stride)
    }

    /// Takes all pages away, unless the data plane has sealed them; the next touch of each finds a
    /// fresh one.
    pub fn punch(&self) -> std::io::Result<()> {
        punch_hole(&self.file, 0, self.bytes())
    }

    /// The same memory for another thread.
    pub fn again(&self) -> Self {
        let file = self.file.try_clone().expect("a descriptor");
        Self { file, count: self.count, stride: self.stride }
    }

    /// The descriptor of one, with so many bytes in it.
    pub fn descriptor(&self, n: u32, length: u32) -> Descriptor {
        Descriptor { flags: 0, region: 1, length, offset: n % self.count * self.stride }
    }
}

/// A descriptor as the ring has it.
#[derive(Clone, Copy)]
pub struct Descriptor {
    /// Bit 0: the frame goes on in the next.
    pub flags: u16,
    /// Which region.
    pub region: u16,
    /// Bytes.
    pub length: u32,
    /// From the region's start.
    pub offset: u32,
}

impl Descriptor {
    /// An honest buffer.
    pub const GOOD: Self = Self { flags: 0, region: 0, length: 2048, offset: BUFFERS_AT };
}

/// A memory file.
pub fn memory(bytes: u64) -> File {
    let file = memfd_create(c"rogue", MFdFlags::MFD_ALLOW_SEALING).expect("a memory file");
    let file = File::from(file);
    file.set_len(bytes).expect("room");
    file
}

fn seal(file: &File, sealed: bool) {
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    // The data plane seals what it can; what may not be sealed any more stays open, as the memory
    // of DPDK's zero-copy clients does.
    let seals = if sealed { SealFlag::F_SEAL_SHRINK } else { SealFlag::F_SEAL_SEAL };
    fcntl(file, FcntlArg::F_ADD_SEALS(seals)).expect("sealable");
}

/// An eventfd; one that blocks is a weapon.
pub fn eventfd(blocks: bool) -> OwnedFd {
    let flags = if blocks { EfdFlags::empty() } else { EfdFlags::EFD_NONBLOCK };
    EventFd::from_value_and_flags(0, flags).expect("an eventfd").into()
}

/// A socket that nobody can close at once, by SO_LINGER (socket(7)), until its neighbour, who does not
/// read, is gone.
pub fn lingering() -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let mut sender = TcpStream::connect(listener.local_addr().expect("one")).expect("a neighbour");
    let linger = libc::linger { l_onoff: 1, l_linger: 600 };
    setsockopt(&sender, sockopt::Linger, &linger).expect("a TCP socket");
    sender.set_nonblocking(true).expect("a socket");
    while sender.write(&[0; 1 << 16]).is_ok() {}
    (sender.into(), listener.accept().expect("the one that has connected").0)
}

/// A ring of the usual layout.
pub fn ring(s2m: bool) -> AddRing {
    AddRing {
        flags: if s2m { RING_IS_S2M } else { 0 },
        index: 0,
        region: 0,
        offset: if s2m { S2M_AT } else { M2S_AT },
        log2_ring_size: LOG2_RING,
        private_hdr_size: 0,
    }
}

fn init() -> Message {
    Message::Init(Init {
        version: VERSION,
        id: 0,
        mode: 0,
        secret: Secret::truncated(""),
        name: Name::truncated("rogue"),
    })
}

impl Rogue {
    /// Connects to the pod's listener; nothing is said yet. Its memory can not shrink, or can not
    /// be kept from it.
    pub fn connect(netns: &Netns, sealed: bool) -> Self {
        let socket = netns.run(|| {
            let flags = SockFlag::SOCK_CLOEXEC;
            let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).expect("one");
            setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(20)).expect("a timeout");
            let name = UnixAddr::new_abstract(NAME.as_bytes()).expect("a short name");
            connect(fd.as_raw_fd(), &name).expect("a listener");
            fd
        });
        let file = memory(REGION_BYTES);
        seal(&file, sealed);
        let mapped = sealed.then(|| Mapped::new(&file, REGION_BYTES).expect("room"));
        let rogue = Self { socket, file, mapped, bodies: None };
        for at in [S2M_AT, M2S_AT] {
            rogue.put(u64::from(at), &RING_COOKIE.to_le_bytes());
        }
        rogue
    }

    /// Sees an honest handshake through.
    pub fn shaken(netns: &Netns, sealed: bool) -> Self {
        let rogue = Self::connect(netns, sealed);
        rogue.up_to_rings();
        rogue.send_ring(&ring(true));
        rogue.answered();
        rogue.send_ring(&ring(false));
        rogue.answered();
        rogue.send(&Message::Connect(Name::truncated("rogue")), &[]);
        rogue.answered();
        rogue
    }

    /// The same, if the interface is free.
    pub fn try_shaken(netns: &Netns, sealed: bool) -> Option<Self> {
        Self::try_shaken_with(netns, sealed, None)
    }

    /// The same with a second region.
    pub fn try_shaken_with(netns: &Netns, sealed: bool, bodies: Option<Bodies>) -> Option<Self> {
        let rogue = Self { bodies, ..Self::connect(netns, sealed) };
        rogue.try_shake([ring(true), ring(false)], &eventfd(false)).then_some(rogue)
    }

    /// An honest handshake but for the descriptor to be signalled by; false when it was refused.
    pub fn try_shake(&self, rings: [AddRing; 2], signal: &OwnedFd) -> bool {
        let regions = [(&self.file, REGION_BYTES)].into_iter();
        let mut regions =
            (0..).zip(regions.chain(self.bodies.as_ref().map(|b| (&b.file, b.bytes()))));
        self.heard().is_some()
            && self.agreed(&init(), &[])
            && regions.all(|(index, (file, size))| {
                self.agreed(&Message::AddRegion { index, size }, &[file.as_fd()])
            })
            && rings.iter().all(|r| self.agreed(&Message::AddRing(*r), &[signal.as_fd()]))
            && self.agreed(&Message::Connect(Name::truncated("rogue")), &[])
    }

    fn agreed(&self, message: &Message, fds: &[BorrowedFd<'_>]) -> bool {
        self.send(message, fds);
        matches!(self.heard(), Some(Message::Ack | Message::Connected(_)))
    }

    /// The next message of the data plane; `None` when it has closed the connection.
    pub fn heard(&self) -> Option<Message> {
        let mut bytes = [0; MESSAGE_BYTES];
        match recv(self.socket.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
            Ok(MESSAGE_BYTES) => Message::decode(&bytes).ok(),
            Ok(_) | Err(nix::Error::ECONNRESET) => None,
            Err(error) => panic!("the data plane says nothing: {error}"),
        }
    }

    /// INIT, answered.
    pub fn init(&self) {
        self.send(&init(), &[]);
        self.heard();
    }

    /// False once the data plane has closed the connection; what it says is of no interest.
    pub fn is_open(&self) -> bool {
        let mut bytes = [0; MESSAGE_BYTES];
        loop {
            match recv(self.socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) => return error == nix::Error::EAGAIN,
            }
        }
    }

    /// A ring's tail.
    pub fn tail(&self, ring: u32) -> u16 {
        let mut bytes = [0; 2];
        let _ = self.file.read_exact_at(&mut bytes, u64::from(ring) + TAIL);
        u16::from_le_bytes(bytes)
    }

    /// HELLO, INIT and the region, each answered.
    pub fn up_to_rings(&self) {
        self.up_to_region();
        let message = Message::AddRegion { index: 0, size: REGION_BYTES };
        self.send(&message, &[self.file.as_fd()]);
        self.answered();
    }

    /// HELLO and INIT, each answered.
    pub fn up_to_region(&self) {
        self.answered();
        self.send(&init(), &[]);
        self.answered();
    }

    /// Announces a ring.
    pub fn send_ring(&self, ring: &AddRing) {
        let fd = eventfd(false);
        self.send(&Message::AddRing(*ring), &[fd.as_fd()]);
    }

    /// Sends a message; that the data plane has closed already is no failure.
    pub fn send(&self, message: &Message, fds: &[BorrowedFd<'_>]) {
        self.send_bytes(&message.encode(), fds);
    }

    /// Sends any bytes with any descriptors.
    pub fn send_bytes(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let raw: Vec<i32> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
        let pieces = [IoSlice::new(bytes)];
        let flags = MsgFlags::MSG_NOSIGNAL;
        let _ = sendmsg::<()>(self.socket.as_raw_fd(), &pieces, control, flags, None);
    }

    /// Waits for one message of the data plane.
    pub fn answered(&self) {
        let mut bytes = [0; MESSAGE_BYTES];
        let got = recv(self.socket.as_raw_fd(), &mut bytes, MsgFlags::empty());
        assert_eq!(got, Ok(MESSAGE_BYTES), "an answer of the data plane");
    }

    /// Waits until the data plane has closed the connection, whatever it says before.
    pub fn closed(&self) {
        let mut bytes = [0; MESSAGE_BYTES];
        loop {
            match recv(self.socket.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
                Ok(0) | Err(nix::Error::ECONNRESET) => return,
                Ok(_) => {}
                Err(error) => panic!("the data plane did not close the connection: {error}"),
            }
        }
    }

    /// Writes into the region.
    pub fn put(&self, at: u64, bytes: &[u8]) {
        match &self.mapped {
            Some(mapped) => mapped.write(at, bytes),
            // A region that was truncated cannot be written; that is what it was truncated for.
            None => drop(self.file.write_all_at(bytes, at)),
        }
    }

    /// Writes descriptors from slot 0 on.
    pub fn describe(&self, ring: u32, descriptors: &[Descriptor]) {
        for (slot, d) in (0_u64..).zip(descriptors) {
            let bytes = [
                &d.flags.to_le_bytes()[..],
                &d.region.to_le_bytes(),
                &d.length.to_le_bytes(),
                &d.offset.to_le_bytes(),
                &[0; 4],
            ]
            .concat();
            self.put(u64::from(ring) + DESCRIPTORS + slot * 16, &bytes);
        }
    }

    /// Moves a ring's head.
    pub fn head(&self, ring: u32, to: u16) {
        let at = u64::from(ring) + HEAD;
        match &self.mapped {
            Some(mapped) => mapped.publish(at, to),
            None => self.put(at, &to.to_le_bytes()),
        }
    }
}
