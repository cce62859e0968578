//! A peer that does what it likes: raw messages on a raw socket, and shared memory written through
//! the file, so that this needs no `unsafe` (a memory file and its mappings are coherent).

#![allow(dead_code, reason = "each test file uses its own part of this module")]

use memif::wire::{
    AddRing, Init, MESSAGE_BYTES, Message, Name, RING_COOKIE, RING_IS_S2M, Secret, VERSION,
};
use memif::{Answer, CloseReason, Connection, Handshake, Listener, Progress};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, sendmsg, socket,
};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// Size of the region that a rogue brings: rings at 0 and at 0x10000, buffers from 0x20000.
pub(crate) const REGION_BYTES: u64 = 1 << 20;
pub(crate) const S2M_AT: u32 = 0;
pub(crate) const M2S_AT: u32 = 0x1_0000;
pub(crate) const BUFFERS_AT: u32 = 0x2_0000;

/// A memory file without seals, which may or may not be sealed later.
pub(crate) fn memory(bytes: u64, sealable: bool) -> File {
    let flags = if sealable { MFdFlags::MFD_ALLOW_SEALING } else { MFdFlags::empty() };
    let file = File::from(memfd_create(c"rogue", flags).unwrap());
    file.set_len(bytes).unwrap();
    file
}

pub(crate) fn eventfd() -> OwnedFd {
    EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK).unwrap().into()
}

pub(crate) fn init() -> Init {
    Init {
        version: VERSION,
        id: 0,
        mode: 0,
        secret: Secret::truncated(""),
        name: Name::truncated("rogue"),
    }
}

pub(crate) fn ring(s2m: bool, log2_ring_size: u8) -> AddRing {
    AddRing {
        flags: if s2m { RING_IS_S2M } else { 0 },
        index: 0,
        region: 0,
        offset: if s2m { S2M_AT } else { M2S_AT },
        log2_ring_size,
        private_hdr_size: 0,
    }
}

/// One end of a control socket, and the memory that goes with it.
pub(crate) struct Rogue {
    pub(crate) socket: OwnedFd,
    pub(crate) file: File,
}

impl Rogue {
    /// Connects to an abstract name and gives the server's side as well.
    pub(crate) fn connect(name: &str, listener: &mut Listener) -> (Self, Handshake) {
        let rogue = Self { socket: raw_connect(name), file: memory(REGION_BYTES, true) };
        rogue.write_ring_headers();
        (rogue, super::accept(listener))
    }

    pub(crate) fn write_ring_headers(&self) {
        for at in [S2M_AT, M2S_AT] {
            self.file.write_all_at(&RING_COOKIE.to_le_bytes(), u64::from(at)).unwrap();
        }
    }

    pub(crate) fn send(&self, message: &Message, fds: &[BorrowedFd<'_>]) {
        self.send_bytes(&message.encode(), fds);
    }

    /// A server that has closed already is no failure: the test looks at what the server says.
    pub(crate) fn send_bytes(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let raw: Vec<i32> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
        let iov = [std::io::IoSlice::new(bytes)];
        let fd = self.socket.as_raw_fd();
        let _ = sendmsg::<()>(fd, &iov, control, MsgFlags::MSG_NOSIGNAL, None);
    }

    pub(crate) fn send_init(&self) {
        self.send(&Message::Init(init()), &[]);
    }

    pub(crate) fn send_region(&self) {
        let message = Message::AddRegion { index: 0, size: REGION_BYTES };
        self.send(&message, &[self.file.as_fd()]);
    }

    pub(crate) fn send_ring(&self, add: AddRing) {
        self.send(&Message::AddRing(add), &[eventfd().as_fd()]);
    }

    pub(crate) fn send_connect(&self) {
        self.send(&Message::Connect(Name::truncated("rogue0")), &[]);
    }

    /// The whole handshake with one ring each way; needs the server to be driven meanwhile.
    pub(crate) fn establish(
        name: &str,
        listener: &mut Listener,
        answer: &Answer,
        file: File,
        log2: u8,
    ) -> (Self, Connection) {
        Self::try_establish(name, listener, answer, file, log2)
            .unwrap_or_else(|reason| panic!("honest handshake refused: {reason}"))
    }

    /// The same, where the server may refuse.
    pub(crate) fn try_establish(
        name: &str,
        listener: &mut Listener,
        answer: &Answer,
        file: File,
        log2: u8,
    ) -> Result<(Self, Connection), CloseReason> {
        let (mut rogue, mut handshake) = Self::connect(name, listener);
        rogue.file = file;
        rogue.write_ring_headers();
        let steps: [fn(&Self, u8); 5] = [
            |r, _| r.send_init(),
            |r, _| r.send_region(),
            |r, log2| r.send_ring(ring(true, log2)),
            |r, log2| r.send_ring(ring(false, log2)),
            |r, _| r.send_connect(),
        ];
        for step in steps {
            step(&rogue, log2);
            match handshake.on_readable(&|_| answer.clone()) {
                Progress::Pending => {}
                Progress::Closed(reason) => return Err(reason),
                Progress::Connected(connection) => return Ok((rogue, connection)),
            }
        }
        panic!("no connection after CONNECT");
    }

    pub(crate) fn set_u16(&self, at: u32, value: u16) {
        self.file.write_all_at(&value.to_le_bytes(), u64::from(at)).unwrap();
    }

    pub(crate) fn get_u16(&self, at: u32) -> u16 {
        let mut bytes = [0; 2];
        self.file.read_exact_at(&mut bytes, u64::from(at)).unwrap();
        u16::from_le_bytes(bytes)
    }

    /// Moves the client's index of a ring.
    pub(crate) fn set_head(&self, ring_at: u32, head: u16) {
        self.set_u16(ring_at + 6, head);
    }

    pub(crate) fn set_descriptor(
        &self,
        ring_at: u32,
        slot: u32,
        (flags, region, length, offset): (u16, u16, u32, u32),
    ) {
        let mut bytes = [0; 16];
        bytes[0..2].copy_from_slice(&flags.to_le_bytes());
        bytes[2..4].copy_from_slice(&region.to_le_bytes());
        bytes[4..8].copy_from_slice(&length.to_le_bytes());
        bytes[8..12].copy_from_slice(&offset.to_le_bytes());
        self.file.write_all_at(&bytes, u64::from(ring_at + 128 + slot * 16)).unwrap();
    }
}

pub(crate) fn raw_connect(name: &str) -> OwnedFd {
    let flags = SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).unwrap();
    connect(fd.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes()).unwrap()).unwrap();
    fd
}

/// What a rogue sends, and what must come of it.
pub(crate) struct Attack {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&Rogue),
    /// Begins the close reason's text.
    pub(crate) expect: &'static str,
}

fn long_fds(count: usize) -> Vec<OwnedFd> {
    (0..count).map(|_| eventfd()).collect()
}

fn with_fds(rogue: &Rogue, message: &Message, count: usize) {
    let fds = long_fds(count);
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    rogue.send(message, &borrowed);
}

fn region_first(rogue: &Rogue) {
    rogue.send_init();
    rogue.send_region();
}

fn init_with(rogue: &Rogue, change: fn(&mut Init)) {
    let mut message = init();
    change(&mut message);
    rogue.send(&Message::Init(message), &[]);
}

fn ring_with(rogue: &Rogue, change: fn(&mut AddRing)) {
    region_first(rogue);
    let mut add = ring(true, 10);
    change(&mut add);
    rogue.send_ring(add);
}

fn region_of(rogue: &Rogue, index: u16, size: u64, file: &File) {
    rogue.send_init();
    rogue.send(&Message::AddRegion { index, size }, &[file.as_fd()]);
}

/// Every attack on the control socket, with the reason that it must be closed for.
pub(crate) const ATTACKS: &[Attack] = &[
    Attack {
        name: "half a message",
        run: |r| r.send_bytes(&[0; MESSAGE_BYTES / 2], &[]),
        expect: "Invalid message size: 64 bytes",
    },
    Attack {
        name: "a message too long",
        run: |r| r.send_bytes(&[0; MESSAGE_BYTES + 1], &[]),
        expect: "Invalid message size: 129 bytes",
    },
    Attack {
        name: "a message too long with a descriptor",
        run: |r| r.send_bytes(&[0; 4096], &[eventfd().as_fd()]),
        expect: "Invalid message size: 4096 bytes",
    },
    Attack {
        name: "a type that does not exist",
        run: |r| r.send_bytes(&[9; MESSAGE_BYTES], &[]),
        expect: "unknown message type 2313",
    },
    Attack {
        name: "two descriptors on ACK",
        run: |r| with_fds(r, &Message::Ack, 2),
        expect: "ACK with 2 file descriptors, 0 wanted",
    },
    Attack {
        name: "two descriptors on ADD_REGION",
        run: |r| {
            r.send_init();
            with_fds(r, &Message::AddRegion { index: 0, size: 4096 }, 2);
        },
        expect: "ADD_REGION with 2 file descriptors, 1 wanted",
    },
    Attack {
        name: "a hundred descriptors on INIT",
        run: |r| with_fds(r, &Message::Init(init()), 100),
        expect: "message with more file descriptors",
    },
    Attack {
        name: "no descriptor on ADD_REGION",
        run: |r| {
            r.send_init();
            r.send(&Message::AddRegion { index: 0, size: 4096 }, &[]);
        },
        expect: "ADD_REGION with 0 file descriptors, 1 wanted",
    },
    Attack {
        name: "HELLO to a server",
        run: |r| {
            let mut bytes = [0; MESSAGE_BYTES];
            bytes[0] = 2;
            r.send_bytes(&bytes, &[]);
        },
        expect: "Unexpected message HELLO, waiting for INIT",
    },
    Attack {
        name: "CONNECTED to a server",
        run: |r| {
            r.send_init();
            r.send(&Message::Connected(Name::truncated("x")), &[]);
        },
        expect: "Unexpected message CONNECTED",
    },
    Attack {
        name: "ADD_REGION before INIT",
        run: |r| r.send_region(),
        expect: "Unexpected message ADD_REGION, waiting for INIT",
    },
    Attack {
        name: "INIT twice",
        run: |r| {
            r.send_init();
            r.send_init();
        },
        expect: "Unexpected message INIT, waiting for ADD_REGION",
    },
    Attack {
        name: "another version",
        run: |r| init_with(r, |i| i.version = 0x0300),
        expect: "protocol version 0x0300",
    },
    Attack {
        name: "another mode",
        run: |r| init_with(r, |i| i.mode = 2),
        expect: "mode 2, interface is ethernet",
    },
    Attack {
        name: "an unknown interface",
        run: |r| init_with(r, |i| i.id = 1),
        expect: "ID not found: 1",
    },
    Attack {
        name: "an interface in use",
        run: |r| init_with(r, |i| i.id = 2),
        expect: "Already connected: interface 2",
    },
    Attack { name: "no secret", run: |r| init_with(r, |i| i.id = 3), expect: "Secret required" },
    Attack {
        name: "a wrong secret",
        run: |r| {
            init_with(r, |i| {
                i.id = 3;
                i.secret = Secret::truncated("guess");
            });
        },
        expect: "Incorrect secret",
    },
    Attack {
        name: "region 255 first",
        run: |r| region_of(r, 255, 4096, &r.file),
        expect: "Invalid region index 255, 0 is next",
    },
    Attack {
        name: "a region larger than its file",
        run: |r| region_of(r, 0, REGION_BYTES + 1, &r.file),
        expect: "region 0: claims 1048577 bytes, the file has 1048576",
    },
    Attack {
        name: "an empty region",
        run: |r| region_of(r, 0, 0, &r.file),
        expect: "region 0: claims 0 bytes",
    },
    Attack {
        name: "a region of 2^64 - 1",
        run: |r| region_of(r, 0, u64::MAX, &r.file),
        expect: "region 0: claims 18446744073709551615 bytes",
    },
    Attack {
        name: "a sparse region beyond the cap",
        run: |r| region_of(r, 0, 1 << 40, &memory(1 << 40, true)),
        expect: "region 0: 1099511627776 bytes mapped with this region, at most 536870912",
    },
    Attack {
        name: "memory that cannot be sealed",
        run: |r| region_of(r, 0, 4096, &memory(4096, false)),
        expect: "region 0: not sealed against shrinking",
    },
    Attack {
        name: "memory that cannot be sealed against holes",
        run: |r| {
            use nix::fcntl::{FcntlArg, SealFlag, fcntl};
            let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
            fcntl(&r.file, FcntlArg::F_ADD_SEALS(seals)).unwrap();
            region_first(r);
            r.send_ring(ring(true, 10));
            r.send_connect();
        },
        expect: "region 0: cannot be sealed against holes",
    },
    Attack {
        name: "a file on disk",
        run: |r| region_of(r, 0, 1, &File::open("/proc/self/exe").unwrap()),
        expect: "region 0: not a memory file",
    },
    Attack {
        name: "a device",
        run: |r| region_of(r, 0, 4096, &File::open("/dev/zero").unwrap()),
        expect: "region 0: not a memory file",
    },
    Attack {
        name: "a pipe",
        run: |r| region_of(r, 0, 4096, &File::from(nix::unistd::pipe().unwrap().0)),
        expect: "region 0: not a memory file",
    },
    Attack {
        name: "memory that is read-only",
        run: |r| {
            let path = format!("/proc/self/fd/{}", r.file.as_raw_fd());
            region_of(r, 0, 4096, &File::open(path).unwrap());
        },
        expect: "region 0: ",
    },
    Attack {
        name: "nine regions",
        run: |r| {
            r.send_init();
            for index in 0..9 {
                r.send(&Message::AddRegion { index, size: 4096 }, &[r.file.as_fd()]);
            }
        },
        expect: "Invalid region index 8: this interface grants 8",
    },
    Attack {
        name: "a region after a ring",
        run: |r| {
            region_first(r);
            r.send_ring(ring(true, 10));
            r.send(&Message::AddRegion { index: 1, size: 4096 }, &[r.file.as_fd()]);
        },
        expect: "Unexpected message ADD_REGION, waiting for ADD_RING or CONNECT",
    },
    Attack {
        name: "a ring before any region",
        run: |r| {
            r.send_init();
            r.send_ring(ring(true, 10));
        },
        expect: "Unexpected message ADD_RING, waiting for ADD_REGION",
    },
    Attack {
        name: "a ring in a region that was not added",
        run: |r| ring_with(r, |a| a.region = 1),
        expect: "S2M ring 0: region 1 was not added",
    },
    Attack {
        name: "a ring at the end of 32 bits",
        run: |r| ring_with(r, |a| a.offset = 0xffff_f000),
        expect: "S2M ring 0: 16512 bytes at 4294963200 leave a region of 1048576",
    },
    Attack {
        name: "a ring that ends one line too late",
        run: |r| ring_with(r, |a| a.offset = REGION_BYTES as u32 - 16512 + 64),
        expect: "S2M ring 0: 16512 bytes at 1032128 leave",
    },
    Attack {
        name: "an odd offset",
        run: |r| ring_with(r, |a| a.offset = 4),
        expect: "S2M ring 0: offset 4 is not a multiple of 64",
    },
    Attack {
        name: "2^31 slots",
        run: |r| ring_with(r, |a| a.log2_ring_size = 31),
        expect: "S2M ring 0: 2^31 slots, 2^6 to 2^14 allowed",
    },
    Attack {
        name: "2^255 slots",
        run: |r| ring_with(r, |a| a.log2_ring_size = 255),
        expect: "S2M ring 0: 2^255 slots",
    },
    Attack {
        name: "2^5 slots",
        run: |r| ring_with(r, |a| a.log2_ring_size = 5),
        expect: "S2M ring 0: 2^5 slots",
    },
    Attack {
        name: "a private header",
        run: |r| ring_with(r, |a| a.private_hdr_size = 8),
        expect: "S2M ring 0: private header of 8 bytes",
    },
    Attack {
        name: "unknown ring flags",
        run: |r| ring_with(r, |a| a.flags = 0x8001),
        expect: "S2M ring 0: unknown flags 0x8001",
    },
    Attack {
        name: "ring 1 first",
        run: |r| ring_with(r, |a| a.index = 1),
        expect: "Invalid S2M ring index 1, 0 is next",
    },
    Attack {
        name: "a ring without a cookie",
        run: |r| ring_with(r, |a| a.offset = BUFFERS_AT),
        expect: "S2M ring 0: cookie 0x0 is wrong",
    },
    Attack {
        name: "two rings in one place",
        run: |r| {
            region_first(r);
            r.send_ring(ring(true, 10));
            r.send_ring(AddRing { offset: S2M_AT + 64, ..ring(false, 10) });
        },
        expect: "M2S ring 0: overlaps another ring",
    },
    Attack {
        name: "a pipe for an eventfd",
        run: |r| {
            region_first(r);
            let (pipe, _other) = nix::unistd::pipe().unwrap();
            r.send(&Message::AddRing(ring(true, 10)), &[pipe.as_fd()]);
        },
        expect: "S2M ring 0: the file passed along is not an eventfd",
    },
    Attack {
        name: "17 rings",
        run: |r| {
            region_first(r);
            for index in 0..17u16 {
                let offset = BUFFERS_AT + u32::from(index) * 4096;
                r.file.write_all_at(&RING_COOKIE.to_le_bytes(), u64::from(offset)).unwrap();
                r.send_ring(AddRing { index, offset, ..ring(true, 6) });
            }
        },
        expect: "Invalid S2M ring index 16: this interface grants 16",
    },
    Attack {
        name: "CONNECT without rings",
        run: |r| {
            region_first(r);
            r.send_connect();
        },
        expect: "CONNECT without any ring",
    },
    Attack { name: "nothing, then gone", run: |_| {}, expect: "peer closed the connection" },
    Attack {
        name: "gone in the middle",
        run: |r| region_first(r),
        expect: "peer closed the connection",
    },
];

/// The interfaces that the attacks know: 0 is open, 2 is taken, 3 has a secret.
pub(crate) fn answers(id: u32) -> Answer {
    match id {
        0 => Answer::Accept(super::offer()),
        2 => Answer::Busy,
        3 => Answer::Accept(memif::Offer { secret: "abc".to_owned(), ..super::offer() }),
        _ => Answer::Unknown,
    }
}

/// Runs one attack and gives the reason for which the server closed.
pub(crate) fn run(attack: &Attack, name: &str, listener: &mut Listener) -> CloseReason {
    let (rogue, mut handshake) = Rogue::connect(name, listener);
    (attack.run)(&rogue);
    // As long as the rogue stays, so that the kernel does not drop what it sent; then it goes.
    for _ in 0..8 {
        if let Progress::Closed(reason) = handshake.on_readable(&answers) {
            return reason;
        }
    }
    drop(rogue);
    match handshake.on_readable(&answers) {
        Progress::Closed(reason) => reason,
        other => panic!("{}: {other:?}", attack.name),
    }
}
