//! The abstract SEQPACKET socket on which a memif server listens.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, setsockopt, socket,
    sockopt::PassCred,
};

use super::PodError;

/// Connections that may wait for the data plane, for instance while it restarts.
const BACKLOG: i32 = 64;

/// Listens on the abstract name in the calling thread's namespace. The socket keeps that namespace,
/// and the name lives as long as any descriptor of it.
pub fn listen_abstract(name: &str) -> Result<OwnedFd, PodError> {
    let work = || -> nix::Result<OwnedFd> {
        let fd = socket(
            AddressFamily::Unix,
            SockType::SeqPacket,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            None,
        )?;
        // Stock memif servers ask for credentials, and sockets that are accepted inherit it.
        setsockopt(&fd, PassCred, &true)?;
        // The name's length is exact, without padding (memif clients compute it that way).
        bind(fd.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes())?)?;
        listen(&fd, Backlog::new(BACKLOG)?)?;
        Ok(fd)
    };
    work().map_err(|e| {
        PodError::new(format!("listen on the abstract socket @{name}"), io::Error::from(e))
    })
}
