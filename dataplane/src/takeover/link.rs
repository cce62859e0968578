//! One device: what it is, and changing it. In the calling thread's namespace.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::netlink::{
    Netlink, RTM_DELLINK, RTM_GETLINK, RTM_NEWLINK, attributes, find, put, u32_at,
};

const LINK_HEADER: usize = 16;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_TXQLEN: u16 = 13;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_CARRIER: u16 = 33;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_XDP: u16 = 43;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_XDP_FD: u16 = 1;

const IFF_UP: u32 = 1;
const IFF_LOOPBACK: u32 = 8;
const IFF_PROMISC: u32 = 0x100;

/// What the kernel says about a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) mac: [u8; 6],
    pub(super) mtu: u32,
    pub(super) tx_queue_len: u32,
    pub(super) up: bool,
    pub(super) loopback: bool,
    pub(super) carrier: bool,
    pub(super) rx_queues: u32,
    /// `veth`, `tun`, `bond` …; empty for hardware.
    pub(super) kind: String,
    /// The bond, bridge or VRF that it belongs to.
    pub(super) master: Option<u32>,
    /// The device below it in the same namespace.
    pub(super) below: Option<u32>,
}

impl Link {
    /// The device of this name; `NotFound` when there is none.
    pub(super) fn by_name(netlink: &mut Netlink, name: &str) -> io::Result<Self> {
        let mut ask = vec![0; LINK_HEADER];
        put(&mut ask, IFLA_IFNAME, &terminated(name));
        match netlink.get(RTM_GETLINK, &ask) {
            Ok(answer) => Ok(parse(&answer)),
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Err(io::ErrorKind::NotFound.into()),
            Err(e) => Err(e),
        }
    }

    /// As [`Link::by_name`], with `None` for "there is none".
    pub(super) fn find(netlink: &mut Netlink, name: &str) -> io::Result<Option<Self>> {
        match Self::by_name(netlink, name) {
            Ok(link) => Ok(Some(link)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn all(netlink: &mut Netlink) -> io::Result<Vec<Self>> {
        let links = netlink.dump(RTM_GETLINK, &[0; LINK_HEADER])?;
        Ok(links.iter().map(|message| parse(message)).collect())
    }
}

fn parse(message: &[u8]) -> Link {
    let flags = u32_at(message, 8);
    let mut link = Link {
        index: u32_at(message, 4),
        name: String::new(),
        mac: [0; 6],
        mtu: 0,
        tx_queue_len: 0,
        up: flags & IFF_UP != 0,
        loopback: flags & IFF_LOOPBACK != 0,
        carrier: false,
        rx_queues: 1,
        kind: String::new(),
        master: None,
        below: None,
    };
    let elsewhere = find(message, LINK_HEADER, IFLA_LINK_NETNSID).is_some();
    for attribute in attributes(message, LINK_HEADER) {
        let value = attribute.value;
        match attribute.kind {
            IFLA_ADDRESS => link.mac = value.try_into().unwrap_or_default(),
            IFLA_IFNAME => link.name = text(value),
            IFLA_MTU => link.mtu = u32_at(value, 0),
            IFLA_TXQLEN => link.tx_queue_len = u32_at(value, 0),
            IFLA_CARRIER => link.carrier = value.first() == Some(&1),
            IFLA_NUM_RX_QUEUES => link.rx_queues = u32_at(value, 0),
            IFLA_MASTER => link.master = Some(u32_at(value, 0)),
            IFLA_LINK if !elsewhere => link.below = Some(u32_at(value, 0)),
            IFLA_LINKINFO => {
                link.kind = find(value, 0, IFLA_INFO_KIND).map(text).unwrap_or_default();
            }
            _ => {}
        }
    }
    link
}

fn text(value: &[u8]) -> String {
    let end = value.iter().position(|&byte| byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

fn terminated(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

/// A change of one device, sent in one message.
#[derive(Debug)]
pub(super) struct Change(Vec<u8>);

impl Change {
    pub(super) fn of(index: u32) -> Self {
        let mut message = vec![0; LINK_HEADER];
        message[4..8].copy_from_slice(&index.to_ne_bytes());
        Self(message)
    }

    fn flag(mut self, flag: u32, on: bool) -> Self {
        let value = u32_at(&self.0, 8) | if on { flag } else { 0 };
        let mask = u32_at(&self.0, 12) | flag;
        self.0[8..12].copy_from_slice(&value.to_ne_bytes());
        self.0[12..16].copy_from_slice(&mask.to_ne_bytes());
        self
    }

    fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        put(&mut self.0, kind, value);
        self
    }

    pub(super) fn up(self, on: bool) -> Self {
        self.flag(IFF_UP, on)
    }

    pub(super) fn promiscuous(self, on: bool) -> Self {
        self.flag(IFF_PROMISC, on)
    }

    pub(super) fn name(self, name: &str) -> Self {
        self.attribute(IFLA_IFNAME, &terminated(name))
    }

    pub(super) fn mac(self, mac: [u8; 6]) -> Self {
        self.attribute(IFLA_ADDRESS, &mac)
    }

    pub(super) fn mtu(self, mtu: u32) -> Self {
        self.attribute(IFLA_MTU, &mtu.to_ne_bytes())
    }

    pub(super) fn tx_queue_len(self, frames: u32) -> Self {
        self.attribute(IFLA_TXQLEN, &frames.to_ne_bytes())
    }

    pub(super) fn namespace(self, netns: BorrowedFd<'_>) -> Self {
        self.attribute(IFLA_NET_NS_FD, &netns.as_raw_fd().to_ne_bytes())
    }

    /// Takes an XDP program off the device, as one that a killed driver left there.
    pub(super) fn without_xdp(self) -> Self {
        const NESTED: u16 = 0x8000;
        let mut nested = Vec::new();
        put(&mut nested, IFLA_XDP_FD, &(-1_i32).to_ne_bytes());
        self.attribute(IFLA_XDP | NESTED, &nested)
    }

    pub(super) fn send(self, netlink: &mut Netlink) -> io::Result<()> {
        netlink.request(RTM_NEWLINK, 0, &self.0)
    }
}

/// Deletes the device. Success when it is gone already.
pub(super) fn delete(netlink: &mut Netlink, index: u32) -> io::Result<()> {
    match netlink.request(RTM_DELLINK, 0, &Change::of(index).0) {
        Err(error) if error.raw_os_error() != Some(libc::ENODEV) => Err(error),
        _ => Ok(()),
    }
}
