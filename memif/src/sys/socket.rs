//! Control sockets: one 128-byte message per packet, at most one file descriptor with it.
//!
//! Every descriptor that the kernel installs is in a [`Given`] before the message is looked at, so that no
//! path can leak one, or wait for it to be closed. Nothing here blocks and nothing raises SIGPIPE.

use super::given::{Count, Given};
use crate::error::CloseReason;
use crate::wire::{MESSAGE_BYTES, Message};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// More descriptors than any message carries.
const MAX_FDS: usize = 4;
/// Room for as many as the kernel lets anybody send (253, unix(7)), and for SCM_CREDENTIALS: what does not
/// fit the kernel closes itself, on our time.
const CONTROL_BYTES: usize = 1152;

/// What one receive gave.
#[derive(Debug)]
pub(crate) enum Received {
    /// A message and the descriptor that belongs to it.
    Message(Message, Given),
    /// Nothing there now.
    Nothing,
}

/// What one system call gave.
enum Packet {
    /// Its real length, even when longer than the buffer; whether descriptors were cut off; and they.
    Whole(usize, bool, Given),
    Nothing,
    End,
}

/// A control socket. When it is dropped, the peer sees the end, and what nobody has read is thrown away.
#[derive(Debug)]
pub(crate) struct Control {
    socket: OwnedFd,
    /// Counts descriptors of the peer's that are being closed.
    open: Count,
}

impl Control {
    pub(crate) fn new(socket: OwnedFd, open: &Count) -> Self {
        // Credentials come with each packet, which tells one of no bytes from the end.
        let _ = setsockopt(&socket, sockopt::PassCred, &true);
        Self { socket, open: Count::clone(open) }
    }

    /// Counts descriptors of the peer's that are being closed.
    pub(crate) fn closing(&self) -> &Count {
        &self.open
    }

    /// Receives one message without blocking. Any breach of the framing is a reason to close.
    pub(crate) fn receive(&self) -> Result<Received, CloseReason> {
        let mut bytes = [0u8; MESSAGE_BYTES];
        let (len, truncated, given) = match self.receive_packet(&mut bytes)? {
            Packet::Whole(len, truncated, given) => (len, truncated, given),
            Packet::Nothing => return Ok(Received::Nothing),
            Packet::End => return Err(CloseReason::PeerClosed),
        };
        if len != MESSAGE_BYTES {
            return Err(CloseReason::MessageSize(len));
        }
        if truncated {
            return Err(CloseReason::TooManyFds);
        }
        let message = Message::decode(&bytes).map_err(CloseReason::UnknownMessage)?;
        let got = given.len();
        if got != message.fds() {
            return Err(CloseReason::FdCount { kind: message.kind(), got, want: message.fds() });
        }
        Ok(Received::Message(message, given))
    }

    fn receive_packet(&self, bytes: &mut [u8; MESSAGE_BYTES]) -> Result<Packet, CloseReason> {
        #[repr(align(8))]
        struct Control([u8; CONTROL_BYTES]);
        let mut control = Control([0; CONTROL_BYTES]);
        let mut iov = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        // SAFETY: an all-zero msghdr is valid: null pointers with zero lengths.
        let mut header: libc::msghdr = unsafe { mem::zeroed() };
        header.msg_iov = &raw mut iov;
        header.msg_iovlen = 1;
        header.msg_control = control.0.as_mut_ptr().cast();
        header.msg_controllen = CONTROL_BYTES;
        let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC | libc::MSG_TRUNC;
        // SAFETY: header points at live buffers of the lengths that it states.
        let len = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut header, flags) };
        let Ok(len) = usize::try_from(len) else {
            return match Errno::last() {
                Errno::EAGAIN | Errno::EINTR => Ok(Packet::Nothing),
                Errno::ECONNRESET => Ok(Packet::End),
                errno => Err(CloseReason::System { call: "recvmsg", errno }),
            };
        };
        let given = take_fds(&header, &self.open);
        if len == 0 && header.msg_controllen == 0 {
            return Ok(Packet::End);
        }
        let truncated = header.msg_flags & libc::MSG_CTRUNC != 0 || given.len() > MAX_FDS;
        Ok(Packet::Whole(len, truncated, given))
    }
}

impl Drop for Control {
    /// What is left in the socket would be closed with it, on our time. Nothing comes after the end.
    fn drop(&mut self) {
        shut_down(self.socket.as_fd());
        while let Ok(Packet::Whole(..)) = self.receive_packet(&mut [0; MESSAGE_BYTES]) {}
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Takes ownership of every descriptor in the control data.
fn take_fds(header: &libc::msghdr, open: &Count) -> Given {
    let mut given = Given::none(open);
    // SAFETY: header was filled by recvmsg and its control buffer is alive.
    let mut cmsg = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !cmsg.is_null() {
        // SAFETY: CMSG_FIRSTHDR / NXTHDR return pointers to whole headers inside the buffer.
        let (level, kind, len) =
            unsafe { ((*cmsg).cmsg_level, (*cmsg).cmsg_type, (*cmsg).cmsg_len) };
        if level == libc::SOL_SOCKET && kind == libc::SCM_RIGHTS {
            // SAFETY: pure arithmetic on the header's size.
            let head = unsafe { libc::CMSG_LEN(0) } as usize;
            let count = len.saturating_sub(head) / size_of::<RawFd>();
            for i in 0..count {
                // SAFETY: the kernel wrote `count` descriptors at CMSG_DATA; each is new and ours.
                let fd = unsafe {
                    let data = libc::CMSG_DATA(cmsg).cast::<RawFd>();
                    OwnedFd::from_raw_fd(data.add(i).read_unaligned())
                };
                given.push(fd);
            }
        }
        // SAFETY: as above.
        cmsg = unsafe { libc::CMSG_NXTHDR(header, cmsg) };
    }
    given
}

/// Sends one message without blocking; a peer that does not read loses its connection.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    message: &Message,
    fd: Option<BorrowedFd<'_>>,
) -> Result<(), CloseReason> {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let bytes = message.encode();
    let iov = [std::io::IoSlice::new(&bytes)];
    let raw = fd.map(|fd| [fd.as_raw_fd()]);
    let rights = raw.as_ref().map(|raw| [ControlMessage::ScmRights(raw)]);
    let control: &[ControlMessage<'_>] = rights.as_ref().map_or(&[], |r| r.as_slice());
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    match sendmsg::<()>(socket.as_raw_fd(), &iov, control, flags, None) {
        Ok(MESSAGE_BYTES) => Ok(()),
        Ok(_) => Err(CloseReason::Unsendable(Errno::EMSGSIZE)),
        Err(errno) => Err(CloseReason::Unsendable(errno)),
    }
}

/// Lets the peer see the end before the descriptor is closed.
pub(crate) fn shut_down(socket: BorrowedFd<'_>) {
    let _ = nix::sys::socket::shutdown(socket.as_raw_fd(), nix::sys::socket::Shutdown::Both);
}

/// Whether this is an eventfd: only those may be polled and signalled. By its name, which no file can be
/// given: what fdinfo says of other kinds may be megabytes, or wait for a lock of the peer's.
pub(crate) fn is_eventfd(fd: &OwnedFd) -> bool {
    let name = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    name.is_ok_and(|name| name.as_os_str() == "anon_inode:[eventfd]")
}

/// Waits until one of the descriptors is readable or the time is over.
pub(crate) fn wait_readable(fd: &impl AsFd, timeout: std::time::Duration) -> std::io::Result<bool> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    // Rounded up: a timer that is due in 0.3 ms must not spin.
    let ms = timeout.as_millis() + u128::from(!timeout.subsec_nanos().is_multiple_of(1_000_000));
    let timeout = PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX);
    match poll(&mut fds, timeout) {
        Ok(n) => Ok(n > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Where a memif socket lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A name in the abstract namespace, which belongs to the network namespace.
    Abstract(String),
    /// A file.
    Path(std::path::PathBuf),
}

impl Address {
    /// `@name` is abstract, everything else a path.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match text.strip_prefix('@') {
            Some(name) => Self::Abstract(name.to_owned()),
            None => Self::Path(text.into()),
        }
    }

    fn to_sockaddr(&self) -> nix::Result<nix::sys::socket::UnixAddr> {
        use nix::sys::socket::UnixAddr;
        match self {
            Self::Abstract(name) => UnixAddr::new_abstract(name.as_bytes()),
            Self::Path(path) => UnixAddr::new(path),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Abstract(name) => write!(f, "@{name}"),
            Self::Path(path) => path.display().fmt(f),
        }
    }
}

fn new_socket() -> nix::Result<OwnedFd> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)
}

/// A listening socket that never blocks.
pub(crate) fn listen(address: &Address, backlog: i32) -> nix::Result<OwnedFd> {
    use nix::sys::socket::{Backlog, bind, listen};
    let socket = new_socket()?;
    bind(socket.as_raw_fd(), &address.to_sockaddr()?)?;
    listen(&socket, Backlog::new(backlog)?)?;
    Ok(socket)
}

/// A connected socket; UNIX sockets connect at once or not at all.
pub(crate) fn connect(address: &Address) -> nix::Result<OwnedFd> {
    let socket = new_socket()?;
    nix::sys::socket::connect(socket.as_raw_fd(), &address.to_sockaddr()?)?;
    Ok(socket)
}

/// The next connection in the backlog, not blocking and not inherited by children.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    use nix::sys::socket::{SockFlag, accept4};
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = accept4(listener.as_raw_fd(), flags)?;
    // SAFETY: accept4 returned a new descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Process and user at the other end when it connected; zero and nobody where the kernel will not say.
pub(crate) fn peer_credentials(socket: BorrowedFd<'_>) -> (i32, u32) {
    use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
    getsockopt(&socket, PeerCredentials).map_or((0, u32::MAX), |c| (c.pid(), c.uid()))
}
