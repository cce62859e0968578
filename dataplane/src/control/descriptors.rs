//! Descriptors of taps and listeners, given by the agent over a SEQPACKET socket.
//!
//! One message holds a `DescriptorOffer` and its descriptors; the answer is a `DescriptorReply`.
//! Whatever is received is owned at once, so that nothing leaks whichever way the message is
//! refused.

use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memif::Listener;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, bind,
    listen, recvmsg, sendmsg, socket,
};
use prost::Message;
use tokio::sync::{mpsc, oneshot};

use super::Ask;
use crate::sys::descriptor::{own_received, watched};

/// Most descriptors in one message.
const FDS_PER_OFFER: usize = 32;
/// Most that the kernel puts into one message (`SCM_MAX_FD`): with room for all of them none is cut
/// off, where it would be lost instead of closed.
const FDS_PER_MESSAGE: usize = 253;
/// Most bytes of the message itself.
const OFFER_BYTES: usize = 1024;
/// Most interfaces whose descriptors are kept.
const INTERFACES: usize = 8192;
/// How long an offer may wait for its interface after a full state without it: longer than a pod's
/// attachment takes, so that one under way keeps its queues.
const UNWANTED_FOR: Duration = Duration::from_secs(120);

/// What was offered for an interface.
#[derive(Debug)]
pub enum Offered {
    /// One descriptor for each queue.
    Tap(Vec<OwnedFd>),
    /// A listening socket, which knows how to be closed whatever waits in it.
    Listener(Listener),
}

/// What was offered, by interface id.
#[derive(Debug, Default)]
pub struct Descriptors(HashMap<Arc<str>, Held>);

#[derive(Debug)]
struct Held {
    offered: Offered,
    /// Since when a full state has been in force that does not name the interface.
    unwanted_since: Option<Instant>,
}

impl Descriptors {
    /// Keeps what was offered; what was offered before is closed.
    pub fn keep(&mut self, offer: &api::DescriptorOffer, fds: Vec<OwnedFd>) -> Result<(), String> {
        if offer.interface_id.is_empty() || offer.interface_id.len() > 255 {
            let bytes = offer.interface_id.len();
            return Err(format!("interface_id: {bytes} bytes; 1..=255 is allowed"));
        }
        if fds.is_empty() || fds.len() != offer.count as usize {
            return Err(format!(
                "count: {} does not match the {} descriptors that came with the message",
                offer.count,
                fds.len()
            ));
        }
        if self.0.len() >= INTERFACES && !self.0.contains_key(offer.interface_id.as_str()) {
            return Err(format!("descriptors of {INTERFACES} interfaces are held already"));
        }
        let offered = match api::descriptor_offer::Kind::try_from(offer.kind) {
            Ok(api::descriptor_offer::Kind::TapQueues) => Offered::Tap(fds),
            Ok(api::descriptor_offer::Kind::MemifListener) => {
                let mut fds = fds.into_iter();
                let (Some(fd), None) = (fds.next(), fds.next()) else {
                    return Err(format!("count: {} listeners; 1 is allowed", offer.count));
                };
                let listener = Listener::from_fd(fd);
                Offered::Listener(listener.map_err(|error| format!("the listener: {error}"))?)
            }
            Err(_) => return Err(format!("kind: {} is not known", offer.kind)),
        };
        let held = Held { offered, unwanted_since: None };
        self.0.insert(Arc::from(offer.interface_id.as_str()), held);
        Ok(())
    }

    /// What was offered for the interface.
    pub fn get(&self, id: &str) -> Option<&Offered> {
        self.0.get(id).map(|held| &held.offered)
    }

    /// Closes what was offered for the interface.
    pub fn forget(&mut self, id: &str) {
        self.0.remove(id);
    }

    /// A full state is in force: what it does not name begins to expire, unless it does already.
    pub fn wanted_are(&mut self, wanted: impl Fn(&str) -> bool, now: Instant) {
        for (id, held) in &mut self.0 {
            let since = held.unwanted_since.unwrap_or(now);
            held.unwanted_since = (!wanted(id)).then_some(since);
        }
    }

    /// Closes what has been unwanted for too long: whoever offered it died before the interface was
    /// applied. The interfaces' ids.
    pub fn expire(&mut self, wanted: impl Fn(&str) -> bool, now: Instant) -> Vec<Arc<str>> {
        let expired = |id: &Arc<str>, held: &mut Held| {
            let since = held.unwanted_since;
            since.is_some_and(|since| now.duration_since(since) >= UNWANTED_FOR) && !wanted(id)
        };
        self.0.extract_if(expired).map(|(id, _)| id).collect()
    }
}

/// A SEQPACKET listener at `path`, which must not exist.
pub fn bind_at(path: &Path) -> io::Result<UnixListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&fd, Backlog::new(16)?)?;
    Ok(UnixListener::from(fd))
}

/// Accepts connections until the runtime ends.
pub async fn serve(listener: UnixListener, ask: mpsc::Sender<Ask>) -> io::Result<()> {
    let listener = watched(listener)?;
    loop {
        let mut guard = listener.readable().await?;
        match guard.try_io(|listener| listener.get_ref().0.accept()) {
            Ok(Ok((connection, _))) => {
                connection.set_nonblocking(true)?;
                let fd = OwnedFd::from(connection);
                let ask = ask.clone();
                tokio::spawn(async move {
                    if let Err(error) = converse(fd, ask).await {
                        tracing::debug!(%error, "a descriptor connection ended");
                    }
                });
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "can not accept on the descriptor socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(_would_block) => {}
        }
    }
}

async fn converse(fd: OwnedFd, ask: mpsc::Sender<Ask>) -> io::Result<()> {
    let fd = watched(fd)?;
    loop {
        let mut guard = fd.readable().await?;
        let Ok(received) = guard.try_io(|fd| receive(fd.as_raw_fd())) else { continue };
        let error = match received? {
            Received::End => return Ok(()),
            Received::Refused(why) => why,
            Received::Offer(offer, fds) => {
                let (reply, answer) = oneshot::channel();
                let gone = || io::Error::other("the control thread is gone");
                ask.send(Ask::Offer { offer, fds, reply }).await.map_err(|_| gone())?;
                answer.await.map_err(|_| gone())?
            }
        };
        let reply = api::DescriptorReply { error }.encode_to_vec();
        let sent = fd.async_io(tokio::io::Interest::WRITABLE, |fd| {
            let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
            let pieces = [IoSlice::new(&reply)];
            Ok(sendmsg::<UnixAddr>(fd.as_raw_fd(), &pieces, &[], flags, None)?)
        });
        sent.await?;
    }
}

enum Received {
    End,
    Refused(String),
    Offer(api::DescriptorOffer, Vec<OwnedFd>),
}

fn receive(socket: RawFd) -> io::Result<Received> {
    let mut bytes = [0u8; OFFER_BYTES];
    let mut pieces = [IoSliceMut::new(&mut bytes)];
    let mut space = nix::cmsg_space!([RawFd; FDS_PER_MESSAGE]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<UnixAddr>(socket, &mut pieces, Some(&mut space), flags)?;
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            fds.extend(own_received(raw));
        }
    }
    let (count, flags) = (message.bytes, message.flags);
    if count == 0 && fds.is_empty() {
        return Ok(Received::End);
    }
    if flags.contains(MsgFlags::MSG_TRUNC) || fds.len() > FDS_PER_OFFER {
        return Ok(Received::Refused(format!(
            "the message is too long: {OFFER_BYTES} bytes and {FDS_PER_OFFER} descriptors are allowed"
        )));
    }
    match api::DescriptorOffer::decode(&bytes[..count]) {
        Ok(offer) => Ok(Received::Offer(offer, fds)),
        Err(error) => Ok(Received::Refused(format!("not a DescriptorOffer: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(descriptors: &mut Descriptors, id: &str) {
        let kind = api::descriptor_offer::Kind::TapQueues as i32;
        let offer = api::DescriptorOffer { interface_id: id.into(), kind, count: 1 };
        let file = std::fs::File::open("/dev/null").expect("it is there");
        descriptors.keep(&offer, vec![file.into()]).expect("a good offer");
    }

    #[test]
    fn offers_expire_that_full_states_do_not_name() {
        let mut held = Descriptors::default();
        let begun = Instant::now();
        let later = begun + UNWANTED_FOR;
        for id in ["named", "lost", "again", "applied later"] {
            offer(&mut held, id);
        }
        held.wanted_are(|id| id == "named", begun);
        offer(&mut held, "again");
        offer(&mut held, "after the state");
        let just_before = later - Duration::from_millis(1);
        assert!(held.expire(|id| id == "named", just_before).is_empty());
        // Another full state does not begin the time anew.
        held.wanted_are(|id| id == "named", just_before);
        let expired = held.expire(|id| ["named", "applied later"].contains(&id), later);
        assert_eq!(expired, [Arc::from("lost")]);
        assert!(held.get("lost").is_none());
        for id in ["named", "again", "applied later", "after the state"] {
            assert!(held.get(id).is_some(), "{id}");
        }
    }
}
