//! The C interface's types, in C's order and alignment, and its error numbers.

use crate::error::{CloseReason, RegionError, RingError, Violation};
use nix::errno::Errno;
use std::ffi::{c_char, c_int, c_void};

/// `memif_fd_event_t`, passed by value.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct FdEvent {
    /// The descriptor.
    pub fd: c_int,
    /// What to wait for: [`EVENT_READ`] … [`EVENT_MOD`], combined.
    pub kind: c_int,
    /// To be handed to `memif_control_fd_handler`.
    pub private_ctx: *mut c_void,
}

/// The descriptor is readable.
pub const EVENT_READ: c_int = 1;
/// The other end is gone.
pub const EVENT_ERROR: c_int = 4;
/// Stop waiting for this descriptor.
pub const EVENT_DEL: c_int = 8;

/// Tells the application which descriptors to wait for.
pub type ControlFdUpdate = extern "C" fn(FdEvent, *mut c_void) -> c_int;
/// Tells the application that an interface is connected, or not any more.
pub type ConnectionUpdate = extern "C" fn(*mut c_void, *mut c_void) -> c_int;
/// Tells the application that a receive queue was signalled.
pub type OnInterrupt = extern "C" fn(*mut c_void, *mut c_void, u16) -> c_int;
/// Asks for memory for a client's buffers.
pub type AddExternalRegion = extern "C" fn(*mut *mut c_void, u32, *mut c_int, *mut c_void) -> c_int;
/// Asks where a server's application maps a region; its file is the application's from then on.
pub type GetExternalRegionAddr = extern "C" fn(u32, c_int, *mut c_void) -> *mut c_void;
/// Gives memory back.
pub type DelExternalRegion = extern "C" fn(*mut c_void, u32, c_int, *mut c_void) -> c_int;
/// Asks where in the external region the next buffer lies.
pub type GetExternalBufferOffset = extern "C" fn(*mut c_void) -> u32;

/// `memif_socket_args_t`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct SocketArgs {
    /// A path, or `@` and an abstract name.
    pub path: [u8; 108],
    /// The application's name.
    pub app_name: [u8; 32],
    /// How often disconnected clients ask for a connection; zero for never.
    pub connection_request_timer: libc::itimerspec,
    /// Null: the library waits by itself, in `memif_poll_event`.
    pub on_control_fd_update: Option<ControlFdUpdate>,
    /// Not used: memory comes from Rust's allocator.
    pub alloc: *mut c_void,
    /// Not used.
    pub realloc: *mut c_void,
    /// Not used.
    pub free: *mut c_void,
}

/// `memif_conn_args_t`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct ConnArgs {
    /// From `memif_create_socket`.
    pub socket: *mut c_void,
    /// Ended by NUL.
    pub secret: [u8; 24],
    /// 0 for 1.
    pub num_s2m_rings: u8,
    /// 0 for 1.
    pub num_m2s_rings: u8,
    /// 0 for 2048.
    pub buffer_size: u16,
    /// 0 for 10.
    pub log2_ring_size: u8,
    /// 1 for the server.
    pub is_master: u8,
    /// Id on the socket.
    pub interface_id: u32,
    /// Ended by NUL.
    pub interface_name: [u8; 32],
    /// 0 Ethernet, 1 IP.
    pub mode: u8,
}

/// `memif_buffer_t`: one descriptor's bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Buffer {
    /// Slot of the ring.
    pub desc_index: u16,
    /// The queue, opaque.
    pub queue: *mut c_void,
    /// Bytes.
    pub len: u32,
    /// [`BUFFER_NEXT`], [`BUFFER_RX`].
    pub flags: u8,
    /// In shared memory.
    pub data: *mut c_void,
}

/// The frame goes on in the next buffer.
pub const BUFFER_NEXT: u8 = 1;

/// `memif_queue_details_t`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct QueueDetails {
    /// Region of the ring.
    pub region: u8,
    /// Index.
    pub qid: u16,
    /// Slots.
    pub ring_size: u32,
    /// 1: polling.
    pub flags: u16,
    /// The client's index.
    pub head: u16,
    /// The server's index.
    pub tail: u16,
    /// Bytes per buffer.
    pub buffer_size: u16,
}

/// `memif_region_details_t`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct RegionDetails {
    /// Index.
    pub index: u8,
    /// Where it is mapped.
    pub addr: *mut c_void,
    /// Bytes.
    pub size: u32,
    /// Of the memory's file.
    pub fd: c_int,
    /// Not zero: the application's memory.
    pub is_external: u8,
}

/// `memif_details_t`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Details {
    /// Ours.
    pub if_name: *mut u8,
    /// Ours.
    pub inst_name: *mut u8,
    /// The peer's.
    pub remote_if_name: *mut u8,
    /// The peer's.
    pub remote_inst_name: *mut u8,
    /// Id on the socket.
    pub id: u32,
    /// Null without one.
    pub secret: *mut u8,
    /// 0 server, 1 client.
    pub role: u8,
    /// 0 Ethernet, 1 IP.
    pub mode: u8,
    /// 108 bytes.
    pub socket_path: *mut u8,
    /// Number of regions.
    pub regions_num: u8,
    /// They.
    pub regions: *mut RegionDetails,
    /// Number of receive queues.
    pub rx_queues_num: u8,
    /// Number of transmit queues.
    pub tx_queues_num: u8,
    /// They.
    pub rx_queues: *mut QueueDetails,
    /// They.
    pub tx_queues: *mut QueueDetails,
    /// Why it was disconnected last.
    pub error: *mut u8,
    /// 1 connected, 0 not.
    pub link_up_down: u8,
}

/// `memif_desc_details_t`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct DescDetails {
    /// Flags.
    pub flags: u16,
    /// Region.
    pub region: u16,
    /// Length.
    pub length: u32,
    /// Offset.
    pub offset: u32,
    /// Not used by anybody.
    pub metadata: u32,
}

/// `memif_ring_details_t`, followed by the descriptors.
#[repr(C)]
#[derive(Debug)]
pub struct RingDetails {
    /// The client's index.
    pub head: u16,
    /// The server's index.
    pub tail: u16,
    /// Flags.
    pub flags: u16,
    /// Where the ring lies.
    pub offset: *mut c_void,
    /// Descriptors that follow.
    pub ndesc: u16,
    /// They.
    pub descs: [DescDetails; 0],
}

const _: () = {
    assert!(size_of::<FdEvent>() == 16);
    assert!(size_of::<SocketArgs>() == 208);
    assert!(size_of::<ConnArgs>() == 80);
    assert!(size_of::<Buffer>() == 32);
    assert!(size_of::<QueueDetails>() == 16 + 2 || size_of::<QueueDetails>() == 16);
    assert!(size_of::<RegionDetails>() == 32);
    assert!(size_of::<Details>() == 120);
};

macro_rules! errors {
    ($($number:literal $name:ident $text:literal)*) => {
        /// `memif_err_t`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(i32)]
        pub enum Error { $(#[doc = $text] $name = $number),* }

        /// Sentences by number, ended by NUL.
        pub(super) const TEXTS: &[&std::ffi::CStr] = &[$(
            match std::ffi::CStr::from_bytes_with_nul(concat!($text, "\0").as_bytes()) {
                Ok(text) => text,
                Err(_) => panic!(),
            }
        ),*];
    };
}

errors! {
    0 Success "Success."
    1 Syscall "A system call failed."
    2 Connrefused "Nobody listens at the socket's address."
    3 Access "Permission denied."
    4 NoFile "No such file."
    5 FileLimit "The system is out of file descriptors."
    6 ProcFileLimit "This process is out of file descriptors."
    7 Already "A connection request is under way already."
    8 Again "Try again later."
    9 BadFd "Not an open file descriptor."
    10 Nomem "Out of memory."
    11 InvalArg "Invalid argument."
    12 Noconn "No such connection handle."
    13 Conn "The handle is in use."
    14 CbFdupdate "The application's callback for descriptors failed."
    15 FileNotSock "The file at the socket's address is no socket."
    16 NoShmfd "No file descriptor for shared memory came along."
    17 Cookie "A ring's cookie is wrong."
    18 NobufRing "The ring is full."
    19 Nobuf "There are more buffers than were asked for."
    20 NobufDet "The buffer is too short for all details."
    21 IntWrite "The peer could not be signalled."
    22 Mfmsg "A malformed message came."
    23 Qid "No such queue."
    24 Proto "The peer speaks another version."
    25 Id "No such interface, or the id is taken."
    26 Accslave "A client does not accept connections."
    27 Alrconn "The interface is connected already."
    28 Mode "The peer's mode differs."
    29 Secret "The secret is wrong."
    30 Nosecret "A secret is required."
    31 Maxreg "Too many regions."
    32 Maxring "Too many rings."
    33 NoIntfd "No eventfd came along."
    34 Disconnect "The peer asked to disconnect."
    35 Disconnected "The interface is not connected."
    36 UnknownMsg "A message of unknown type came."
    37 PollCancel "Polling was cancelled."
    38 MaxRing "The ring is too large."
    39 Privhdr "Private headers are not supported."
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::ECONNREFUSED => Self::Connrefused,
            Errno::EACCES | Errno::EPERM => Self::Access,
            Errno::ENOENT => Self::NoFile,
            Errno::ENFILE => Self::FileLimit,
            Errno::EMFILE => Self::ProcFileLimit,
            Errno::EALREADY => Self::Already,
            Errno::EAGAIN => Self::Again,
            Errno::EBADF => Self::BadFd,
            Errno::ENOMEM => Self::Nomem,
            Errno::EINVAL => Self::InvalArg,
            Errno::ENOTSOCK => Self::FileNotSock,
            _ => Self::Syscall,
        }
    }
}

impl From<&std::io::Error> for Error {
    fn from(error: &std::io::Error) -> Self {
        error.raw_os_error().map_or(Self::Syscall, |n| Errno::from_raw(n).into())
    }
}

impl From<&CloseReason> for Error {
    fn from(reason: &CloseReason) -> Self {
        match reason {
            CloseReason::PeerClosed => Self::Disconnected,
            CloseReason::PeerDisconnected(_) => Self::Disconnect,
            CloseReason::UnknownMessage(_) => Self::UnknownMsg,
            CloseReason::Version(_) => Self::Proto,
            CloseReason::UnknownId(_) => Self::Id,
            CloseReason::Busy(_) => Self::Alrconn,
            CloseReason::Mode { .. } => Self::Mode,
            CloseReason::SecretRequired => Self::Nosecret,
            CloseReason::SecretWrong => Self::Secret,
            CloseReason::TooMany { what: "region", .. } => Self::Maxreg,
            CloseReason::TooMany { .. } => Self::Maxring,
            CloseReason::FdCount { kind: "ADD_REGION", .. } => Self::NoShmfd,
            CloseReason::FdCount { kind: "ADD_RING", .. } => Self::NoIntfd,
            CloseReason::System { errno, .. }
            | CloseReason::Region { error: RegionError::System { errno, .. }, .. } => {
                (*errno).into()
            }
            CloseReason::Ring { error, .. } => match error {
                RingError::Cookie(_) => Self::Cookie,
                RingError::Size { .. } => Self::MaxRing,
                RingError::PrivateHeader(_) => Self::Privhdr,
                RingError::NotEventfd => Self::NoIntfd,
                _ => Self::Mfmsg,
            },
            CloseReason::Violation(violation) => (*violation).into(),
            _ => Self::Mfmsg,
        }
    }
}

impl From<Violation> for Error {
    /// A peer that broke the rules is as good as gone.
    fn from(_: Violation) -> Self {
        Self::Disconnected
    }
}

/// Bytes before the NUL, as text.
pub(super) fn text_of(field: &[u8]) -> String {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

/// The sentence for an error number.
pub(super) fn strerror(number: c_int) -> *const c_char {
    let known = usize::try_from(number).ok().and_then(|n| TEXTS.get(n));
    known.map_or(c"Unknown error.".as_ptr(), |text| text.as_ptr())
}
