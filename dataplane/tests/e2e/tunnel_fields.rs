//! The wire as tshark sees it, field by field, for one packet of each kind.

use std::collections::HashMap;
use std::net::IpAddr;
use std::process::Command;

use crate::lab::uplink::{DEVICE, FAR4, FAR6, NODE4, NODE6, VXLAN};
use crate::lab::{Far, Lab, Netns, Node, Realm, TapPod, Uplink, wait};

const FIELDS: [&str; 30] = [
    "frame.len",
    "eth.dst",
    "eth.src",
    "eth.type",
    "ip.dsfield.dscp",
    "ip.dsfield.ecn",
    "ip.len",
    "ip.flags.df",
    "ip.frag_offset",
    "ip.ttl",
    "ip.proto",
    "ip.checksum.status",
    "ip.src",
    "ip.dst",
    "ipv6.plen",
    "ipv6.nxt",
    "ipv6.hlim",
    "ipv6.tclass.ecn",
    "ipv6.src",
    "ipv6.dst",
    "udp.srcport",
    "udp.dstport",
    "udp.length",
    "udp.checksum",
    "udp.checksum.status",
    "vxlan.flags",
    "vxlan.vni",
    "icmp.checksum.status",
    "icmpv6.checksum.status",
    "arp.src.proto_ipv4",
];

/// One decoded packet: each field with its values, outermost first.
type Decoded = HashMap<&'static str, Vec<String>>;

/// The packets of a capture that match a display filter.
fn decode(file: &std::path::Path, filter: &str) -> Vec<Decoded> {
    let mut command = Command::new("tshark");
    command.args(["-r", &file.to_string_lossy(), "-Y", filter, "-T", "fields"]);
    command.args(["-E", "separator=|", "-E", "aggregator=,", "-E", "occurrence=a"]);
    command.args(["-o", "ip.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE"]);
    for field in FIELDS {
        command.args(["-e", field]);
    }
    let output = command.output().expect("tshark");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let decode_line = |line: &str| {
        let values = line.split('|').map(|v| v.split(',').map(str::to_owned).collect());
        FIELDS.into_iter().zip(values).collect()
    };
    text.lines().map(decode_line).collect()
}

fn colons(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

struct Ends {
    node: Node,
    far: Far,
    pod: TapPod,
    node_mac: String,
    far_mac: String,
}

fn ends(v6: bool) -> Ends {
    let (here, there) = (Netns::new("node"), Netns::new("far"));
    let uplink = Uplink::between(&here, &there, "packet", 1500);
    let (node_mac, far_mac) = (colons(here.mac(&uplink.name)), colons(there.mac(DEVICE)));
    let mut node = Node::with_uplink(here, uplink, 1);
    let blue = Realm::new("blue", 56, 1430);
    node.add_realm(&blue);
    let pod = TapPod::new(&mut node, &blue, 10);
    let far = Far::kernel(there, &mut node, &blue, v6);
    Ends { node, far, pod, node_mac, far_mac }
}

#[test]
fn every_field_is_as_it_should_be() {
    let _lab = Lab::new();
    for outer6 in [false, true] {
        let ends = ends(outer6);
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("wire.pcap");
        let words = format!("-i {DEVICE} -U -w {} udp port 4789", file.display());
        let mut tcpdump = ends.far.netns.spawn("tcpdump", &format!("--immediate-mode {words}"));
        tcpdump.wait_for("listening on", 5.0);
        // The far stack asks for the pod, the pod pings the far stack with ECT(0).
        let (size, ecn) = (100, 2);
        for to in [ends.far.ip4(), ends.far.ip6()] {
            wait("an echo", 5.0, || {
                ends.pod.ping(to, &format!("-c 1 -W 1 -s {size} -Q {ecn}")).0.then_some(())
            });
        }
        for (to, filter) in [
            (
                ends.far.ip4(),
                format!("icmp.type == 8 && frame.len == {}", frame_len(outer6, false)),
            ),
            (
                ends.far.ip6(),
                format!("icmpv6.type == 128 && frame.len == {}", frame_len(outer6, true)),
            ),
        ] {
            let mut found = Vec::new();
            wait("the echo request in the capture", 5.0, || {
                found = decode(&file, &filter);
                found.pop()
            });
            let packet = decode(&file, &filter).remove(0);
            check(&ends, &packet, outer6, to);
        }
        check_arp(&ends, &file);
        drop(ends.node);
    }
}

/// Ethernet, outer IP, UDP, VXLAN, Ethernet, inner IP, ICMP, payload.
fn frame_len(outer6: bool, inner6: bool) -> usize {
    let ip = |v6| if v6 { 40 } else { 20 };
    14 + ip(outer6) + 8 + 8 + 14 + ip(inner6) + 8 + 100
}

fn check(ends: &Ends, packet: &Decoded, outer6: bool, to: IpAddr) {
    let inner6 = to.is_ipv6();
    let is = |field: &str, values: &[&str]| {
        assert_eq!(packet[field], values, "{field}, outer {outer6}, inner {inner6}: {packet:#?}");
    };
    let router: [u8; 6] = ends.node.hello().router_mac.try_into().expect("6 bytes");
    is("eth.dst", &[&ends.far_mac, &colons(ends.far.mac)]);
    is("eth.src", &[&ends.node_mac, &colons(router)]);
    let ether = |v6| if v6 { "0x000086dd" } else { "0x00000800" };
    let types: Vec<String> = [outer6, inner6].map(|v6| ether(v6).replace("0x0000", "0x")).into();
    let types: Vec<&str> = types.iter().map(String::as_str).collect();
    is("eth.type", &types);
    let total = frame_len(outer6, inner6);
    is("frame.len", &[&total.to_string()]);
    let from = if inner6 { ends.pod.ip6() } else { ends.pod.ip4() };
    let (from, to) = (from.to_string(), to.to_string());
    let mut v4: Vec<(&str, &str, String, &str)> = Vec::new();
    let mut v6: Vec<(&str, &str, String, &str)> = Vec::new();
    let outer_ip_bytes = total - 14;
    match outer6 {
        false => v4.push((NODE4, FAR4, outer_ip_bytes.to_string(), "64")),
        true => v6.push((NODE6, FAR6, (outer_ip_bytes - 40).to_string(), "64")),
    }
    match inner6 {
        false => v4.push((&from, &to, "128".to_owned(), "63")),
        true => v6.push((&from, &to, "108".to_owned(), "63")),
    }
    let column = |rows: &[(&str, &str, String, &str)], n: usize| -> Vec<String> {
        let cell = |row: &(&str, &str, String, &str)| match n {
            0 => row.0.to_owned(),
            1 => row.1.to_owned(),
            2 => row.2.clone(),
            _ => row.3.to_owned(),
        };
        rows.iter().map(cell).collect()
    };
    let same = |field: &str, values: Vec<String>| {
        let values = if values.is_empty() { vec![String::new()] } else { values };
        let values: Vec<&str> = values.iter().map(String::as_str).collect();
        is(field, &values);
    };
    same("ip.src", column(&v4, 0));
    same("ip.dst", column(&v4, 1));
    same("ip.len", column(&v4, 2));
    same("ip.ttl", column(&v4, 3));
    same("ip.dsfield.ecn", v4.iter().map(|_| "2".to_owned()).collect());
    same("ip.checksum.status", v4.iter().map(|_| "1".to_owned()).collect());
    same("ip.frag_offset", v4.iter().map(|_| "0".to_owned()).collect());
    same("ipv6.src", column(&v6, 0));
    same("ipv6.dst", column(&v6, 1));
    same("ipv6.plen", column(&v6, 2));
    same("ipv6.hlim", column(&v6, 3));
    same("ipv6.tclass.ecn", v6.iter().map(|_| "2".to_owned()).collect());
    if !outer6 {
        assert!(["1", "True"].contains(&packet["ip.flags.df"][0].as_str()), "DF: {packet:#?}");
        is("udp.checksum", &["0x0000"]);
    } else {
        assert_ne!(packet["udp.checksum"], ["0x0000"], "RFC 8200 §8.1");
        is("udp.checksum.status", &["1"]);
    }
    is("udp.dstport", &["4789"]);
    is("udp.length", &[&(outer_ip_bytes - if outer6 { 40 } else { 20 }).to_string()]);
    let port: u16 = packet["udp.srcport"][0].parse().expect("a port");
    assert!(port >= 49_152, "source port {port}: RFC 7348 §5 recommends the dynamic range");
    is("vxlan.flags", &["0x0800"]);
    is("vxlan.vni", &["56"]);
    is(if inner6 { "icmpv6.checksum.status" } else { "icmp.checksum.status" }, &["1"]);
}

/// The answer to the far stack's question for the pod.
fn check_arp(ends: &Ends, file: &std::path::Path) {
    ends.far.netns.ip(&format!("neigh flush dev {VXLAN}"));
    assert!(ends.far.pings(ends.pod.ip4(), 56));
    let reply = wait("the ARP reply in the capture", 5.0, || {
        decode(file, "arp.opcode == 2 && vxlan").pop()
    });
    let router: [u8; 6] = ends.node.hello().router_mac.try_into().expect("6 bytes");
    assert_eq!(reply["eth.dst"], [ends.far_mac.clone(), colons(ends.far.mac)]);
    assert_eq!(reply["eth.src"], [ends.node_mac.clone(), colons(router)]);
    assert_eq!(reply["arp.src.proto_ipv4"], [ends.pod.ip4().to_string()]);
    assert_eq!(reply["vxlan.vni"], ["56"]);
}
