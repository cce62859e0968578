//! Addresses and numbers in people's form.

use std::net::IpAddr;

/// An address; "" when there is none.
pub(crate) fn ip(ip: Option<&api::Ip>) -> String {
    ip.and_then(address).map_or_else(String::new, |ip| ip.to_string())
}

fn address(ip: &api::Ip) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(ip.addr.as_slice()).map(IpAddr::from);
    let v6 = || <[u8; 16]>::try_from(ip.addr.as_slice()).map(IpAddr::from);
    v4.or_else(|_| v6()).ok()
}

/// A prefix.
pub(crate) fn prefix(prefix: Option<&api::Prefix>) -> String {
    let Some(prefix) = prefix else { return String::new() };
    let addr = api::Ip { addr: prefix.addr.clone() };
    format!("{}/{}", ip(Some(&addr)), prefix.len)
}

/// An Ethernet address; "" when there is none.
pub(crate) fn mac(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

/// What the API takes for an address.
pub(crate) fn said_ip(ip: IpAddr) -> api::Ip {
    let addr = match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    api::Ip { addr }
}

/// `12.3k`, `4.56M`: three digits are enough to see a rate move.
pub(crate) fn rate(per_second: f64) -> String {
    let units = [(1e9, "G"), (1e6, "M"), (1e3, "k")];
    let found = units.iter().find(|(size, _)| per_second >= *size);
    let (value, unit) = found.map_or((per_second, ""), |(size, unit)| (per_second / size, *unit));
    match value {
        v if v >= 100.0 => format!("{v:.0}{unit}"),
        v if v >= 10.0 => format!("{v:.1}{unit}"),
        v if unit.is_empty() => format!("{v:.0}"),
        v => format!("{v:.2}{unit}"),
    }
}

/// Time of the day of a unix time, UTC: `05:06:07.123456`.
pub(crate) fn clock(time_ns: u64) -> String {
    let (seconds, micros) = (time_ns / 1_000_000_000 % 86_400, time_ns / 1000 % 1_000_000);
    format!("{:02}:{:02}:{:02}.{micros:06}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_addresses() {
        assert_eq!(rate(0.0), "0");
        assert_eq!(rate(999.0), "999");
        assert_eq!(rate(1234.0), "1.23k");
        assert_eq!(rate(12_345_678.0), "12.3M");
        assert_eq!(rate(2.5e11), "250G");
        assert_eq!(clock(86_400_000_000_000 + 3_723_000_456_000), "01:02:03.000456");
        let v6 = said_ip("fd00::1".parse().expect("an address"));
        assert_eq!(ip(Some(&v6)), "fd00::1");
        assert_eq!((ip(None), mac(&[1, 0xab])), (String::new(), "01:ab".into()));
    }
}
