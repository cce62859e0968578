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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::{DescriptorKind, Descriptors};
    use nix::sys::socket::{ControlMessage, MsgFlags, connect, getsockname, sendmsg, sockopt};
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    /// Not one that is in the backlog of its own listener.
    #[test]
    fn a_pods_socket_that_lingers_stops_nobody() {
        let name = format!("agent-lingers-{}", std::process::id());
        let listener = listen_abstract(&name).unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut lingers = TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        let (_neighbour, _) = tcp.accept().unwrap();
        let linger = libc::linger { l_onoff: 1, l_linger: 30 };
        setsockopt(&lingers, sockopt::Linger, &linger).unwrap();
        lingers.set_nonblocking(true).unwrap();
        while lingers.write(&[0; 1 << 16]).is_ok() {}
        let flags = SockFlag::SOCK_CLOEXEC;
        let pod = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).unwrap();
        let address: UnixAddr = getsockname(listener.as_raw_fd()).unwrap();
        connect(pod.as_raw_fd(), &address).unwrap();
        let raw = [lingers.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&raw)];
        let pieces = [io::IoSlice::new(&[1, 0])];
        sendmsg::<()>(pod.as_raw_fd(), &pieces, &rights, MsgFlags::empty(), None).unwrap();
        drop((pod, lingers));
        let held = Descriptors::new(DescriptorKind::MemifListener, vec![listener]);
        let start = Instant::now();
        drop(held);
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }
}
