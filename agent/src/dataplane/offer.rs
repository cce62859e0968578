//! Handing descriptors to the data plane, over the SEQPACKET socket beside its API.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use api::{DescriptorOffer, DescriptorReply};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, sendmsg,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use prost::Message;

use super::DataplaneError;

/// The data plane answers an offer at once; a longer silence means that it hangs.
const ANSWER_WITHIN_S: i64 = 2;
/// A reply is one sentence.
const REPLY_BYTES: usize = 4096;

/// Where descriptors are handed over, given the API's socket.
pub(crate) fn socket_path(api_socket: &Path) -> PathBuf {
    let mut path = api_socket.as_os_str().to_owned();
    path.push(".fds");
    path.into()
}

/// One connection, for any number of offers. Its calls block.
#[derive(Debug)]
pub(crate) struct OfferSocket {
    socket: OwnedFd,
    path: PathBuf,
}

impl OfferSocket {
    /// Connects to the data plane behind `api_socket`.
    pub(crate) fn connect(api_socket: &Path) -> Result<Self, DataplaneError> {
        let path = socket_path(api_socket);
        let open = || -> nix::Result<OwnedFd> {
            let fd =
                socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
            let limit = TimeVal::seconds(ANSWER_WITHIN_S);
            setsockopt(&fd, sockopt::ReceiveTimeout, &limit)?;
            setsockopt(&fd, sockopt::SendTimeout, &limit)?;
            connect(fd.as_raw_fd(), &UnixAddr::new(&path)?)?;
            Ok(fd)
        };
        match open() {
            Ok(socket) => Ok(Self { socket, path }),
            Err(e) => {
                Err(DataplaneError::Away { socket: path, reason: io::Error::from(e).to_string() })
            }
        }
    }

    /// Offers the descriptors of one interface and waits for the answer.
    pub(crate) fn offer(
        &self,
        interface_id: &str,
        kind: api::descriptor_offer::Kind,
        descriptors: &[OwnedFd],
    ) -> Result<(), DataplaneError> {
        let offer = DescriptorOffer {
            interface_id: interface_id.to_owned(),
            kind: kind.into(),
            count: u32::try_from(descriptors.len()).unwrap_or(u32::MAX),
        };
        let bytes = offer.encode_to_vec();
        let raw: Vec<_> = descriptors.iter().map(|fd| fd.as_fd().as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let away = |e: nix::Error| DataplaneError::Away {
            socket: self.path.clone(),
            reason: io::Error::from(e).to_string(),
        };
        sendmsg::<()>(
            self.socket.as_raw_fd(),
            &[IoSlice::new(&bytes)],
            &rights,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )
        .map_err(away)?;
        let mut buffer = [0; REPLY_BYTES];
        let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).map_err(away)?;
        // A reply without error has no field and thus no byte: only a hang-up tells the end.
        if length == 0 && self.is_hung_up().map_err(away)? {
            return Err(away(nix::Error::ECONNRESET));
        }
        let reply = DescriptorReply::decode(&buffer[..length]).map_err(|e| {
            DataplaneError::Away { socket: self.path.clone(), reason: format!("nonsense: {e}") }
        })?;
        if reply.error.is_empty() {
            Ok(())
        } else {
            Err(DataplaneError::Refused { what: interface_id.to_owned(), reason: reply.error })
        }
    }

    fn is_hung_up(&self) -> nix::Result<bool> {
        // A hang-up is told without being asked for.
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::empty())];
        poll(&mut fds, PollTimeout::ZERO)?;
        let seen = fds[0].revents().unwrap_or(PollFlags::empty());
        Ok(seen.intersects(PollFlags::POLLHUP | PollFlags::POLLERR))
    }
}
