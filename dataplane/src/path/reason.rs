//! Why a packet was dropped. Every reason is a name, a counter and a test.

macro_rules! reasons {
    ($(#[$meta:meta])* $name:ident { $($(#[doc = $help:literal])* $variant:ident = $word:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[doc = $help])* $variant,)* }

        impl $name {
            /// All of them, in order of their counters.
            pub const ALL: &'static [$name] = &[$($name::$variant,)*];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The word in counters, metrics and the API.
            pub const fn name(self) -> &'static str {
                match self { $($name::$variant => $word,)* }
            }

            /// One sentence for a person.
            pub const fn help(self) -> &'static str {
                match self { $($name::$variant => concat!($($help),*),)* }
            }
        }
    };
}

reasons! {
    /// Why a received packet went no further.
    DropReason {
        /// The frame is shorter than its headers claim or need.
        Runt = "runt",
        /// Headers reach beyond the first 256 bytes.
        HeadTooDeep = "head_too_deep",
        /// A pod's frame carries a VLAN tag; its interface is on one Network only.
        VlanTagged = "vlan_tagged",
        /// The destination MAC is neither the gateway's nor a group address.
        NotForRouter = "not_for_router",
        /// The source MAC is not the interface's.
        SpoofedMac = "spoofed_mac",
        /// The source address is not one that the interface may use.
        SpoofedSource = "spoofed_source",
        /// An ARP or neighbour discovery sender field is not the interface's own.
        SpoofedNeighbour = "spoofed_neighbour",
        /// The EtherType is neither IPv4, IPv6 nor ARP.
        EtherTypeUnsupported = "ethertype_unsupported",
        /// The IPv4 header is malformed.
        Ip4Malformed = "ip4_malformed",
        /// The IPv4 header checksum is wrong.
        Ip4BadChecksum = "ip4_bad_checksum",
        /// The IPv6 header or its extension chain is malformed.
        Ip6Malformed = "ip6_malformed",
        /// The ARP packet is malformed.
        ArpMalformed = "arp_malformed",
        /// The neighbour discovery message is malformed (RFC 4861 §7.1).
        NdMalformed = "nd_malformed",
        /// The source address can not be a sender's: loopback, multicast, broadcast, unspecified.
        MartianSource = "martian_source",
        /// The destination address is never routed: loopback, link-local, reserved.
        MartianDestination = "martian_destination",
        /// TTL or hop limit reached zero.
        TtlExpired = "ttl_expired",
        /// No route to the destination in this Network.
        NoRoute = "no_route",
        /// The packet is larger than the MTU on its way and must not be fragmented.
        TooBig = "too_big",
        /// Broadcast or multicast, which a routed realm does not carry.
        BumUnsupported = "bum_unsupported",
        /// The next hop on the underlay has no MAC address yet.
        NeighbourUnresolved = "neighbour_unresolved",
        /// Sent to the gateway's own address, which only answers ARP, ND and echo requests.
        GatewayUnserved = "gateway_unserved",
        /// A VXLAN packet to a tunnel end of this cluster that did not come from a data plane.
        VxlanInjection = "vxlan_injection",
        /// The VXLAN packet or its inner frame is malformed.
        VxlanMalformed = "vxlan_malformed",
        /// No Network with this VNI on this node.
        VniUnknown = "vni_unknown",
        /// The tunnel's other end is neither of the cluster nor one of the Network's peers.
        VtepUnknown = "vtep_unknown",
        /// The inner destination MAC is not this node's router MAC.
        VxlanNotForRouter = "vxlan_not_for_router",
        /// The underlay marked congestion on a packet whose flow does not understand it (RFC 6040
        /// §4.2).
        EcnCongested = "ecn_congested",
        /// Out of one tunnel into another: nodes are reached directly.
        TunnelHairpin = "tunnel_hairpin",
        /// The tap's virtio-net header contradicts the packet.
        OffloadMalformed = "offload_malformed",
        /// The receiving interface was removed while the packet was under way.
        IfaceGone = "iface_gone",
        /// A protocol that this kind of interface does not carry.
        ProtocolUnsupported = "protocol_unsupported",
    }
}

reasons! {
    /// Why a packet that was handed to an interface did not leave.
    TxDropReason {
        /// The receiver's ring is full.
        RingFull = "ring_full",
        /// No peer is connected, or the port is down.
        PortDown = "port_down",
        /// No buffer to send from.
        NoBuffer = "no_buffer",
        /// The frame is larger than the port can send.
        FrameTooBig = "frame_too_big",
        /// The kernel refused the frame.
        KernelRefused = "kernel_refused",
        /// The ring towards the worker that owns the queue is full.
        HandoverFull = "handover_full",
        /// The peer broke the protocol while the frame was being sent.
        PeerViolation = "peer_violation",
        /// The packet's length or offload fields do not allow it to be split.
        SplitImpossible = "split_impossible",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_unique_and_explained() {
        let mut words: Vec<_> = DropReason::ALL.iter().map(|r| r.name()).collect();
        words.extend(TxDropReason::ALL.iter().map(|r| r.name()));
        words.sort_unstable();
        let count = words.len();
        words.dedup();
        assert_eq!(words.len(), count);
        assert!(DropReason::ALL.iter().all(|r| r.help().trim().ends_with('.')));
        assert_eq!(DropReason::ALL[DropReason::NoRoute as usize], DropReason::NoRoute);
    }
}
