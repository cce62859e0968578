//! Why a connection ended, and what a peer did wrong.
//!
//! [`Violation`] is found on the data path, by a worker; [`CloseReason`] on the control socket.
//! Both say what was seen and what is allowed; both mean that the connection is to be dropped.

use crate::wire::Mode;
use thiserror::Error;

/// A peer broke the rules of the shared memory. The connection must be dropped at once: nothing
/// that this peer says about its rings can be believed any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Violation {
    /// The peer's ring index ran past the ring, or went backwards.
    #[error("ring index {peer} is not within {ring_slots} slots after {ours}, with {held} held")]
    Index {
        /// The index that the peer wrote.
        peer: u16,
        /// Our published index.
        ours: u16,
        /// Slots that we hold beyond it.
        held: u16,
        /// Size of the ring.
        ring_slots: u32,
    },
    /// A descriptor names a region that was never added.
    #[error("slot {slot}: region {region} does not exist")]
    Region {
        /// Slot of the ring.
        slot: u16,
        /// Region named.
        region: u16,
    },
    /// A descriptor reaches outside its region.
    #[error("slot {slot}: {len_bytes} bytes at {offset} leave region {region}")]
    Bounds {
        /// Slot of the ring.
        slot: u16,
        /// Region named.
        region: u16,
        /// Offset named.
        offset: u32,
        /// Length named.
        len_bytes: u32,
    },
    /// A descriptor's length is zero, or less than a receive buffer must have.
    #[error("slot {slot}: length {len_bytes}, at least {min_bytes} wanted")]
    Length {
        /// Slot of the ring.
        slot: u16,
        /// Length named.
        len_bytes: u32,
        /// The least that is allowed.
        min_bytes: u32,
    },
    /// A server says that it wrote more than the buffer that it was given holds.
    #[error("slot {slot}: length {len_bytes} in a buffer of {capacity_bytes} bytes")]
    Overrun {
        /// Slot of the ring.
        slot: u16,
        /// Length named.
        len_bytes: u32,
        /// What the buffer holds.
        capacity_bytes: u32,
    },
    /// The whole ring is one chain that does not end, or a chain stayed unfinished too long.
    #[error("slot {slot}: a chain of {slots} slots that does not end")]
    EndlessChain {
        /// First slot of the chain.
        slot: u16,
        /// Slots that it has so far.
        slots: u16,
    },
    /// Touching the peer's memory raised SIGBUS: the file was truncated, or pages were taken out of it.
    #[error("memory of the peer vanished (SIGBUS)")]
    Sigbus,
    /// The peer makes signalling it expensive, by waiting for its eventfd many times over.
    #[error("signals to the peer take too long: its eventfd has too many waiters")]
    SlowSignals,
}

/// Why a memory file was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RegionError {
    /// Neither a memfd nor a file of tmpfs or hugetlbfs.
    #[error("not a memory file: seals cannot be read ({0})")]
    NotMemory(nix::errno::Errno),
    /// A directory, device or the like.
    #[error("not a regular file")]
    NotRegular,
    /// A file system that may stall or shrink at will.
    #[error("file system {0:#x} is neither tmpfs nor hugetlbfs")]
    FileSystem(u64),
    /// The file can be truncated under us.
    #[error("not sealed against shrinking (seals {0:#x}), which this interface requires")]
    Unsealed(i32),
    /// Pages can be taken out of the file under us.
    #[error(
        "cannot be sealed against holes (seals {0:#x}), which this interface requires: leave F_SEAL_SEAL out"
    )]
    Holes(i32),
    /// Claimed size is zero or beyond the file.
    #[error("claims {claimed_bytes} bytes, the file has {file_bytes}")]
    Size {
        /// What ADD_REGION said.
        claimed_bytes: u64,
        /// What fstat says.
        file_bytes: u64,
    },
    /// Pages so large that a first touch stalls a worker.
    #[error("pages of {page_bytes} bytes, at most {max_bytes} allowed")]
    PageSize {
        /// Page size of the file.
        page_bytes: u64,
        /// The limit.
        max_bytes: u64,
    },
    /// All regions of the interface together are too large.
    #[error("{total_bytes} bytes mapped with this region, at most {max_bytes} allowed")]
    TooLarge {
        /// Sum with this region.
        total_bytes: u64,
        /// The limit.
        max_bytes: u64,
    },
    /// Pages that we touch first are charged to us as long as their file exists.
    #[error(
        "{total_bytes} bytes with the memory files of earlier connections that somebody has still open, at most {max_bytes} allowed: close them"
    )]
    Kept {
        /// Sum with this region.
        total_bytes: u64,
        /// The limit.
        max_bytes: u64,
    },
    /// Nothing would tell us when the file is gone.
    #[error(
        "cannot be watched until its end (inotify: {0}): raise fs.inotify.max_user_instances or max_user_watches"
    )]
    Unaccounted(nix::errno::Errno),
    /// Bringing the memory of this interface's clients in has taken too much of our time.
    #[error("its fresh memory has cost too much time; come again in {0:?}")]
    TooOften(std::time::Duration),
    /// Nothing would tell us that pages were taken out.
    #[error(
        "is not sealed, and cannot be watched for holes (userfaultfd: {0}): seal it, or let this process call userfaultfd(2)"
    )]
    Unwatched(nix::errno::Errno),
    /// A system call failed.
    #[error("{call}: {errno}")]
    System {
        /// Which one.
        call: &'static str,
        /// How.
        errno: nix::errno::Errno,
    },
    /// The process-wide table of peer regions is full.
    #[error("all {0} places for regions of this process are taken")]
    TableFull(usize),
}

/// Why a ring was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RingError {
    /// Its region was not added.
    #[error("region {0} was not added")]
    Region(u16),
    /// The offset is not a multiple of a cache line.
    #[error("offset {0} is not a multiple of 64")]
    Alignment(u32),
    /// It does not fit into its region.
    #[error("{ring_bytes} bytes at {offset} leave a region of {region_bytes}")]
    Bounds {
        /// Offset named.
        offset: u32,
        /// Header and descriptors.
        ring_bytes: u64,
        /// Size of the region.
        region_bytes: u64,
    },
    /// The size is out of range.
    #[error("2^{got} slots, 2^{min} to 2^{max} allowed")]
    Size {
        /// log2 named.
        got: u8,
        /// Least.
        min: u8,
        /// Most.
        max: u8,
    },
    /// It shares bytes with another ring.
    #[error("overlaps another ring")]
    Overlap,
    /// The header does not begin with the cookie.
    #[error("cookie {0:#x} is wrong")]
    Cookie(u32),
    /// A private header is asked for, which no implementation has.
    #[error("private header of {0} bytes, only 0 is supported")]
    PrivateHeader(u16),
    /// Flags that are not known.
    #[error("unknown flags {0:#x}")]
    Flags(u16),
    /// The descriptor passed along is not an eventfd.
    #[error("the file passed along is not an eventfd")]
    NotEventfd,
}

/// Why a handshake or a connection ended.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CloseReason {
    /// The peer closed the socket, or died.
    #[error("peer closed the connection")]
    PeerClosed,
    /// The peer said goodbye.
    #[error("peer disconnected: {0}")]
    PeerDisconnected(String),
    /// The handshake took too long.
    #[error("no connection after {limit_ms} ms, waiting for {waiting_for}")]
    Deadline {
        /// Time allowed.
        limit_ms: u64,
        /// What was due next.
        waiting_for: &'static str,
    },
    /// A message of the wrong size.
    #[error("Invalid message size: {0} bytes, 128 wanted")]
    MessageSize(usize),
    /// More file descriptors than any message has.
    #[error("message with more file descriptors than fit")]
    TooManyFds,
    /// The wrong number of file descriptors for this message.
    #[error("{kind} with {got} file descriptors, {want} wanted")]
    FdCount {
        /// The message.
        kind: &'static str,
        /// Received.
        got: usize,
        /// Wanted.
        want: usize,
    },
    /// A type that memif 2.0 does not have.
    #[error("unknown message type {0}")]
    UnknownMessage(u16),
    /// A message that has no place in this state, or comes from the wrong role.
    #[error("Unexpected message {kind}, waiting for {waiting_for}")]
    UnexpectedMessage {
        /// The message.
        kind: &'static str,
        /// What was due.
        waiting_for: &'static str,
    },
    /// A version that we do not speak.
    #[error("protocol version {0:#06x}, only 0x0200 is spoken")]
    Version(u16),
    /// No such interface here.
    #[error("ID not found: {0}")]
    UnknownId(u32),
    /// Another client has this interface.
    #[error("Already connected: interface {0}")]
    Busy(u32),
    /// Ethernet against IP.
    #[error("mode {got}, interface is {want}")]
    Mode {
        /// Mode byte of the peer.
        got: u8,
        /// Ours.
        want: Mode,
    },
    /// The interface has a secret, the client gave none.
    #[error("Secret required")]
    SecretRequired,
    /// The client gave another one.
    #[error("Incorrect secret")]
    SecretWrong,
    /// Indexes must count up from zero.
    #[error("Invalid {what} index {got}, {want} is next")]
    NotNext {
        /// Region or ring.
        what: &'static str,
        /// Index named.
        got: u16,
        /// Index due.
        want: u16,
    },
    /// More than the interface grants.
    #[error("Invalid {what} index {got}: this interface grants {max}")]
    TooMany {
        /// Region or ring.
        what: &'static str,
        /// Index named.
        got: u16,
        /// How many are granted.
        max: u16,
    },
    /// A memory file was refused.
    #[error("region {index}: {error}")]
    Region {
        /// Region index.
        index: u16,
        /// Why.
        error: RegionError,
    },
    /// A ring was refused.
    #[error("{what} {index}: {error}")]
    Ring {
        /// Direction.
        what: &'static str,
        /// Ring index.
        index: u16,
        /// Why.
        error: RingError,
    },
    /// CONNECT without a ring.
    #[error("CONNECT without any ring")]
    NoRings,
    /// Our reply did not fit into the peer's socket: it does not read.
    #[error("reply could not be sent: {0}")]
    Unsendable(nix::errno::Errno),
    /// A system call on the socket failed.
    #[error("{call}: {errno}")]
    System {
        /// Which one.
        call: &'static str,
        /// How.
        errno: nix::errno::Errno,
    },
    /// A worker found a violation.
    #[error("protocol violation: {0}")]
    Violation(#[from] Violation),
    /// We ended it ourselves.
    #[error("closed here: {0}")]
    Local(String),
}
