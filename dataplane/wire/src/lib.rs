//! Packet headers viewed in place, checksums and the newtypes of the field.
//!
//! No I/O, no allocation, no `unsafe`: every header is a `#[repr(C)]` struct of unaligned
//! big-endian fields that is laid over bytes with `zerocopy`, see [`Header`]. Nothing here panics
//! on any input; what a header *means* (which values are legal where) is for the reader to decide.
#![forbid(unsafe_code)]

mod arp;
pub mod checksum;
mod ethernet;
mod header;
mod icmp4;
mod icmp6;
mod ipv4;
mod ipv6;
mod nd;
pub mod ports;
pub mod protocol;
mod tcp;
mod types;
mod udp;
mod virtio_net;
mod vlan;
mod vxlan;

pub use arp::Arp;
pub use ethernet::{Ethernet, ether_type};
pub use header::{Header, U16, U32, U128};
pub use icmp4::Icmp4;
pub use icmp6::Icmp6;
pub use ipv4::Ipv4;
pub use ipv6::{FragmentHeader, Ipv6, Piece, Upper, Walk};
pub use nd::{NdMessage, NdOption, NdOptions, link_local_of, solicited_node_of};
pub use tcp::Tcp;
pub use types::{Mac, Vni};
pub use udp::Udp;
pub use virtio_net::VirtioNet;
pub use vlan::Vlan;
pub use vxlan::Vxlan;
