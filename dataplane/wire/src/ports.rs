//! UDP ports, and the source ports that carry a flow's entropy.

/// VXLAN (RFC 7348 §8.1).
pub const VXLAN: u16 = 4789;

/// First port that a tunnel's outer source port is chosen from (RFC 7348 §5, RFC 6335 §6).
pub const ENTROPY_FIRST: u16 = 49152;

/// The outer source port of an inner flow: the dynamic range, by the hash's upper bits (queues
/// are chosen by the lower ones).
#[inline]
pub const fn entropy_port(flow_hash: u32) -> u16 {
    ENTROPY_FIRST | (flow_hash >> 18) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropy_stays_in_the_dynamic_range() {
        assert_eq!(entropy_port(0), 49152);
        assert_eq!(entropy_port(u32::MAX), 65535);
        assert_ne!(entropy_port(1 << 18), entropy_port(0));
    }
}
