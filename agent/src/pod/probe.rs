//! Asking a link who has an address: ARP probes (RFC 5227 §2.1.1) and neighbour solicitations
//! (RFC 4861 §7.2, RFC 4862 §5.4.2), for all addresses of an interface at once, in the calling
//! thread's namespace.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recvfrom, send,
    socket,
};
use wire::{
    Arp, Ethernet, Header, Icmp6, Ipv6, Mac, NdMessage, NdOption, NdOptions, ether_type, protocol,
    solicited_node_of,
};

use super::{PodError, tune};

/// Neighbours answer within microseconds, and a pod waits for this: RFC 5227's seconds are for hosts
/// that nobody waits for.
const CONFLICT_PAUSE: Duration = Duration::from_millis(70);
/// PROBE_NUM of RFC 5227 §1.1.
const CONFLICT_TRIES: u32 = 3;
/// A gateway may be a busy router.
const GATEWAY_PAUSE: Duration = Duration::from_millis(100);
const GATEWAY_TRIES: u32 = 6;
/// The longest frame of interest: an advertisement with options.
const FRAME_BYTES: usize = 256;

/// What is to be found out about one address of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The address that the interface has or shall have.
    pub address: IpAddr,
    /// Does somebody else have it?
    pub conflict: bool,
    /// Is this gateway there?
    pub gateway: Option<IpAddr>,
}

/// An answer that keeps a pod from starting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// Somebody else has the address.
    Taken {
        /// The address.
        address: IpAddr,
        /// The other's Ethernet address.
        by: [u8; 6],
    },
    /// Nobody answers for the gateway.
    Silent {
        /// The gateway.
        gateway: IpAddr,
    },
}

/// Asks. Gateways are asked by the new address, and so only once nobody else is known to have any:
/// the question itself tells everybody who has it.
pub fn probe(name: &str, questions: &[Question]) -> Result<Vec<Finding>, PodError> {
    let doing = |e| PodError::new(format!("ask the link of {name} who has an address"), e);
    tune(name, None, None)?;
    if questions.iter().any(|q| q.address.is_ipv6()) {
        enable_ipv6(name)?;
    }
    let link = Link::open(name).map_err(doing)?;
    let doubtful = questions.iter().filter(|q| q.conflict);
    let doubtful: Vec<_> = doubtful.map(|q| (q.address, None)).collect();
    let taken = link.ask(&doubtful, CONFLICT_TRIES, CONFLICT_PAUSE).map_err(doing)?;
    if !taken.is_empty() {
        let taken = taken.into_iter();
        return Ok(taken.map(|(address, by)| Finding::Taken { address, by: by.0 }).collect());
    }
    let gateways = questions.iter().filter_map(|q| Some((q.gateway?, Some(q.address))));
    let gateways: Vec<_> = gateways.collect();
    let there = link.ask(&gateways, GATEWAY_TRIES, GATEWAY_PAUSE).map_err(doing)?;
    let silent = gateways.iter().filter(|(gateway, _)| !there.contains_key(gateway));
    Ok(silent.map(|(gateway, _)| Finding::Silent { gateway: *gateway }).collect())
}

/// Without IPv6 the interface hears no multicast of it; whoever configures the address enables it too.
fn enable_ipv6(name: &str) -> Result<(), PodError> {
    let path = PathBuf::from("/proc/sys/net/ipv6/conf").join(name).join("disable_ipv6");
    match std::fs::read_to_string(&path) {
        Ok(value) if value.trim() == "1" => std::fs::write(&path, "0")
            .map_err(|e| PodError::new(format!("write 0 to {}", path.display()), e)),
        _ => Ok(()),
    }
}

/// A packet socket on one interface.
struct Link {
    socket: OwnedFd,
    index: usize,
    mac: Mac,
}

impl Link {
    fn open(name: &str) -> io::Result<Self> {
        let mut interfaces = nix::ifaddrs::getifaddrs()?.filter(|i| i.interface_name == name);
        let address = interfaces.find_map(|i| i.address?.as_link_addr().copied());
        let address = address.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
        let mac = address.addr().map(Mac).unwrap_or_default();
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let everything = SockProtocol::EthAll;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, everything)?;
        bind(socket.as_raw_fd(), &address)?;
        Ok(Self { socket, index: address.ifindex(), mac })
    }

    /// Who has each of `wanted`, asked by the address beside it; those that nobody answers for are
    /// left out.
    fn ask(
        &self,
        wanted: &[(IpAddr, Option<IpAddr>)],
        tries: u32,
        pause: Duration,
    ) -> io::Result<BTreeMap<IpAddr, Mac>> {
        let mut known = BTreeMap::new();
        let mut left = tries;
        while known.len() < wanted.len() && left > 0 {
            left -= 1;
            for (target, source) in wanted.iter().filter(|(target, _)| !known.contains_key(target))
            {
                self.send(&question(self.mac, *source, *target).unwrap_or_default())?;
            }
            let until = Instant::now() + pause;
            while known.len() < wanted.len()
                && let Some((address, mac)) = self.hear(until)?
            {
                if wanted.iter().any(|(target, _)| *target == address) {
                    known.insert(address, mac);
                }
            }
        }
        Ok(known)
    }

    fn send(&self, frame: &[u8]) -> io::Result<()> {
        match send(self.socket.as_raw_fd(), frame, MsgFlags::empty()) {
            // A full queue loses the frame, as a link may: it is sent again.
            Ok(_) | Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::EINTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// The next claim that somebody else makes; `None` when the time is over.
    fn hear(&self, until: Instant) -> io::Result<Option<(IpAddr, Mac)>> {
        loop {
            let mut frame = [0; FRAME_BYTES];
            match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut frame) {
                Ok((length, from)) => {
                    // Before it was bound the socket heard other interfaces too.
                    let here = from.is_some_and(|from| {
                        from.ifindex() == self.index && from.pkttype() != libc::PACKET_OUTGOING
                    });
                    let claim = claim_in(&frame[..length.min(FRAME_BYTES)], self.mac);
                    if let Some(claim) = claim.filter(|_| here) {
                        return Ok(Some(claim));
                    }
                }
                Err(Errno::EAGAIN) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Ok(None);
                    }
                    // Rounded up, so that the last part of a millisecond is not spent spinning.
                    let millis = u16::try_from(left.as_millis() + 1).unwrap_or(u16::MAX);
                    let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
                    match poll(&mut fds, PollTimeout::from(millis)) {
                        Ok(_) | Err(Errno::EINTR) => {}
                        Err(e) => return Err(e.into()),
                    }
                }
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// The frame that asks for `target`. Without a source it is a probe, which teaches nobody anything.
fn question(own: Mac, source: Option<IpAddr>, target: IpAddr) -> Option<Vec<u8>> {
    match target {
        IpAddr::V4(target) => {
            let source = match source {
                Some(IpAddr::V4(source)) => source,
                _ => Ipv4Addr::UNSPECIFIED,
            };
            arp_request(own, source, target)
        }
        IpAddr::V6(target) => {
            let source = match source {
                Some(IpAddr::V6(source)) => source,
                _ => Ipv6Addr::UNSPECIFIED,
            };
            solicitation(own, source, target)
        }
    }
}

fn arp_request(own: Mac, source: Ipv4Addr, target: Ipv4Addr) -> Option<Vec<u8>> {
    let mut frame = vec![0; Ethernet::BYTES + Arp::BYTES];
    *Ethernet::view_mut(&mut frame)? =
        Ethernet { dst: Mac::BROADCAST, src: own, ether_type: ether_type::ARP.into() };
    *Arp::at_mut(&mut frame, Ethernet::BYTES)? = Arp {
        hardware: 1.into(),
        protocol: ether_type::IPV4.into(),
        hardware_bytes: 6,
        protocol_bytes: 4,
        operation: Arp::REQUEST.into(),
        sender_mac: own,
        sender_ip: u32::from(source).into(),
        target_mac: Mac::default(),
        target_ip: u32::from(target).into(),
    };
    Some(frame)
}

fn solicitation(own: Mac, source: Ipv6Addr, target: Ipv6Addr) -> Option<Vec<u8>> {
    // Duplicate detection, whose source is unspecified, has no option (RFC 4861 §4.3).
    let options = if source.is_unspecified() { 0 } else { NdOption::BYTES };
    let at = Ethernet::BYTES + Ipv6::BYTES;
    let payload = NdMessage::BYTES + options;
    let mut frame = vec![0; at + payload];
    let group = solicited_node_of(target.into());
    let [.., a, b, c, d] = group.to_be_bytes();
    // RFC 2464 §7.
    let dst = Mac([0x33, 0x33, a, b, c, d]);
    *Ethernet::view_mut(&mut frame)? =
        Ethernet { dst, src: own, ether_type: ether_type::IPV6.into() };
    let header = Ipv6 {
        version_class_flow: (6 << 28).into(),
        payload_len: u16::try_from(payload).ok()?.into(),
        next_header: protocol::ICMP6,
        hop_limit: 255,
        src: u128::from(source).into(),
        dst: group.into(),
    };
    *Ipv6::at_mut(&mut frame, Ethernet::BYTES)? = header;
    let message = NdMessage::at_mut(&mut frame, at)?;
    message.icmp.kind = Icmp6::NEIGHBOUR_SOLICITATION;
    message.target = u128::from(target).into();
    if options > 0 {
        *NdOption::at_mut(&mut frame, at + NdMessage::BYTES)? =
            NdOption { kind: NdOption::SOURCE_MAC, units: 1, mac: own };
    }
    let sum = header.pseudo(protocol::ICMP6, payload).plus(wire::checksum::Sum::of(&frame[at..]));
    NdMessage::at_mut(&mut frame, at)?.icmp.checksum = sum.complement().into();
    Some(frame)
}

/// The address that somebody other than `own` says to have.
fn claim_in(frame: &[u8], own: Mac) -> Option<(IpAddr, Mac)> {
    let (ethernet, rest) = Ethernet::split(frame)?;
    let claim = match ethernet.ether_type.get() {
        ether_type::ARP => {
            // Requests too: whoever asks says who it is (RFC 5227 §2.1.1).
            let arp = Arp::view(rest).filter(|arp| arp.is_valid())?;
            (Ipv4Addr::from(arp.sender_ip.get()).into(), arp.sender_mac)
        }
        ether_type::IPV6 => {
            let (header, rest) = Ipv6::split(rest)?;
            let (message, options) = NdMessage::split(rest)?;
            // A hop limit of 255 proves that it comes from this link (RFC 4861 §7.1.2).
            let advertises = header.next_header == protocol::ICMP6
                && header.hop_limit == 255
                && message.icmp.kind == Icmp6::NEIGHBOUR_ADVERTISEMENT;
            if !advertises {
                return None;
            }
            let mac = NdOptions::new(options).mac(NdOption::TARGET_MAC).unwrap_or(ethernet.src);
            (Ipv6Addr::from(message.target.get()).into(), mac)
        }
        _ => return None,
    };
    (claim.1 != own && ethernet.src != own).then_some(claim)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const OTHER: Mac = Mac([2, 0, 0, 0, 0, 2]);

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn questions_are_well_formed() {
        let arp = question(OWN, None, address("10.0.0.7")).unwrap();
        let packet = Arp::at(&arp, Ethernet::BYTES).unwrap();
        assert!(packet.is_valid());
        assert_eq!((packet.sender_ip.get(), packet.target_ip.get()), (0, 0x0a00_0007));

        for (source, bytes) in [(None, 24), (Some(address("fd00::1")), 32)] {
            let frame = question(OWN, source, address("fd00::ab:cdef")).unwrap();
            assert_eq!(
                Ethernet::view(&frame).unwrap().dst,
                Mac([0x33, 0x33, 0xff, 0xab, 0xcd, 0xef])
            );
            let (header, payload) = Ipv6::split(&frame[Ethernet::BYTES..]).unwrap();
            assert_eq!(payload.len(), bytes);
            let sum = header.pseudo(protocol::ICMP6, bytes);
            assert!(sum.plus(wire::checksum::Sum::of(payload)).verifies());
        }
    }

    #[test]
    fn a_claim_is_somebody_elses_word() {
        let said = question(OTHER, Some(address("10.0.0.7")), address("10.0.0.9")).unwrap();
        assert_eq!(claim_in(&said, OWN), Some((address("10.0.0.7"), OTHER)));
        assert_eq!(claim_in(&said, OTHER), None, "one's own words are no claim");
        // A solicitation claims nothing, neither does an advertisement that was forwarded.
        let mut said = question(OTHER, None, address("fd00::7")).unwrap();
        assert_eq!(claim_in(&said, OWN), None);
        let at = Ethernet::BYTES + Ipv6::BYTES;
        NdMessage::at_mut(&mut said, at).unwrap().icmp.kind = Icmp6::NEIGHBOUR_ADVERTISEMENT;
        assert_eq!(claim_in(&said, OWN), Some((address("fd00::7"), OTHER)));
        Ipv6::at_mut(&mut said, Ethernet::BYTES).unwrap().hop_limit = 254;
        assert_eq!(claim_in(&said, OWN), None);
        for length in 0..said.len() {
            let _ = claim_in(&said[..length], OWN);
        }
    }
}
