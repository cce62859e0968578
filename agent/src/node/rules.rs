//! The rules for what passes `bowline0`, as text for `nft`. Pure.
//!
//! Addresses are translated in three cases. What leaves `default` gets the node's address, since
//! nobody outside knows the way back. What is forwarded into `bowline0` for a pod of another node,
//! or from one pod to another (through a Service), gets `bowline0`'s address: the answer would
//! otherwise not come back through this node, which has to translate it. And host ports lead to
//! their pods.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::IpAddr;

use ipnet::IpNet;
use multinet::types::network::DEFAULT_NETWORK;
use multinet::types::node::NodeState;

use super::leg::INTERFACE;
use crate::core::Core;
use crate::journal::{Attachment, HostPort, Phase};

/// Our table.
const TABLE: &str = "inet bowline";
/// The script that leaves nothing.
pub(super) const NOTHING: &str = "add table inet bowline\ndelete table inet bowline\n";

/// What the rules follow from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Input {
    /// Prefixes of the pools of `default`.
    pub pods: BTreeSet<IpNet>,
    /// Those of them whose pods keep their address towards everything but nodes.
    pub keep_source: BTreeSet<IpNet>,
    /// This node's pods' addresses.
    pub local: BTreeSet<IpAddr>,
    /// `bowline0`'s addresses.
    pub own: BTreeSet<IpAddr>,
    /// All nodes' addresses.
    pub nodes: BTreeSet<IpAddr>,
    /// Host ports, with the addresses of their pods.
    pub host_ports: Vec<(HostPort, Vec<IpAddr>)>,
}

impl Input {
    /// As catalog and attachments are now.
    pub(super) fn of(core: &Core) -> Self {
        let snapshot = core.catalog.snapshot();
        let checked = core.checked(&snapshot);
        let mut input = Self {
            own: core.node_addresses().into_iter().collect(),
            nodes: snapshot
                .list::<NodeState>()
                .flat_map(|n| n.vteps().collect::<Vec<_>>())
                .collect(),
            ..Self::default()
        };
        for pool in checked.pools_of(DEFAULT_NETWORK) {
            input.pods.insert(pool.subnet);
            if !pool.masquerade {
                input.keep_source.insert(pool.subnet);
            }
        }
        let attachments = core.attachments();
        for attachment in attachments.iter().filter(|a| a.phase != Phase::Removing) {
            let addresses = addresses_in_default(attachment);
            if !attachment.is_node_leg() {
                input.local.extend(&addresses);
            }
            for port in &attachment.host_ports {
                input.host_ports.push((port.clone(), addresses.clone()));
            }
        }
        input
    }
}

fn addresses_in_default(attachment: &Attachment) -> Vec<IpAddr> {
    let interfaces = attachment.interfaces.iter().filter(|i| i.network == DEFAULT_NETWORK);
    interfaces.flat_map(|i| &i.plan.addresses).map(IpNet::addr).collect()
}

/// A script that replaces the table whole.
#[must_use]
pub fn text(input: &Input) -> String {
    let mut text = NOTHING.to_owned();
    // Writing to a string cannot fail.
    let _ = writeln!(text, "table {TABLE} {{");
    for v4 in [true, false] {
        let name = |set: &str| format!("{set}{}", if v4 { 4 } else { 6 });
        let nets = |set: &BTreeSet<IpNet>| of_family(set, v4, IpNet::addr);
        let addresses = |set: &BTreeSet<IpAddr>| of_family(set, v4, |address| *address);
        add_set(&mut text, &name("pods"), v4, &nets(&input.pods));
        add_set(&mut text, &name("keep"), v4, &nets(&input.keep_source));
        add_set(&mut text, &name("local"), v4, &addresses(&input.local));
        add_set(&mut text, &name("own"), v4, &addresses(&input.own));
        add_set(&mut text, &name("nodes"), v4, &addresses(&input.nodes));
    }
    text.push_str(
        " chain postrouting {\n  type nat hook postrouting priority srcnat; policy accept;\n",
    );
    for (ip, n) in [("ip", 4), ("ip6", 6)] {
        let _ = writeln!(
            text,
            "  oifname \"{INTERFACE}\" {ip} saddr @own{n} return\n  \
             oifname \"{INTERFACE}\" {ip} saddr @pods{n} masquerade\n  \
             oifname \"{INTERFACE}\" {ip} daddr @pods{n} {ip} daddr != @local{n} masquerade\n  \
             oifname != \"{INTERFACE}\" {ip} saddr @keep{n} {ip} daddr != @nodes{n} return\n  \
             oifname != \"{INTERFACE}\" {ip} saddr @pods{n} {ip} daddr != @pods{n} masquerade"
        );
    }
    // A host port that is called at 127.0.0.1.
    let _ = writeln!(text, "  oifname \"{INTERFACE}\" ip saddr 127.0.0.0/8 masquerade\n }}");
    add_host_ports(&mut text, &input.host_ports);
    text.push_str("}\n");
    text
}

fn of_family<T: ToString>(
    set: &BTreeSet<T>,
    v4: bool,
    address: impl Fn(&T) -> IpAddr,
) -> Vec<String> {
    set.iter().filter(|item| address(item).is_ipv4() == v4).map(ToString::to_string).collect()
}

fn add_set(text: &mut String, name: &str, v4: bool, elements: &[String]) {
    let kind = if v4 { "ipv4_addr" } else { "ipv6_addr" };
    // Pools may lie next to each other, or one in the other's remains.
    let _ = write!(text, " set {name} {{ type {kind}; flags interval; auto-merge;");
    if !elements.is_empty() {
        let _ = write!(text, " elements = {{ {} }}", elements.join(", "));
    }
    text.push_str(" }\n");
}

fn add_host_ports(text: &mut String, ports: &[(HostPort, Vec<IpAddr>)]) {
    for (chain, hook, priority) in
        [("prerouting", "prerouting", "dstnat"), ("output", "output", "-100")]
    {
        let _ = writeln!(
            text,
            " chain {chain} {{\n  type nat hook {hook} priority {priority}; policy accept;\n  \
             fib daddr type local jump hostports\n }}"
        );
    }
    // Chains may be named before they are defined within one script.
    text.push_str(" chain hostports {\n");
    for (port, addresses) in ports {
        for address in addresses {
            let _ = writeln!(text, "{}", host_port(port, *address).unwrap_or_default());
        }
    }
    text.push_str(" }\n");
}

/// One host port in one family; none where the node's address is of the other.
fn host_port(port: &HostPort, pod: IpAddr) -> Option<String> {
    let (ip, family, target) = match pod {
        IpAddr::V4(v4) => ("ip", "ipv4", format!("{v4}:{}", port.container_port)),
        IpAddr::V6(v6) => ("ip6", "ipv6", format!("[{v6}]:{}", port.container_port)),
    };
    let at = match port.host_ip {
        Some(host) if host.is_ipv4() != pod.is_ipv4() => return None,
        Some(host) if !host.is_unspecified() => format!("{ip} daddr {host}"),
        _ => format!("meta nfproto {family}"),
    };
    let HostPort { protocol, host_port, .. } = port;
    Some(format!("  {at} {} dport {host_port} dnat {ip} to {target}", protocol.as_str()))
}

#[cfg(test)]
mod tests {
    use crate::journal::Protocol;

    use super::*;

    fn port(host_ip: Option<&str>) -> HostPort {
        HostPort {
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
            host_port: 8080,
            container_port: 80,
            protocol: Protocol::Tcp,
        }
    }

    #[test]
    fn a_host_port_is_served_in_the_families_of_its_pod_and_its_address() {
        let v4 = "10.0.0.5".parse().unwrap();
        let v6 = "fd00::5".parse().unwrap();
        let text = |port: &HostPort, pod| host_port(port, pod).unwrap_or_default();
        assert_eq!(
            text(&port(None), v4),
            "  meta nfproto ipv4 tcp dport 8080 dnat ip to 10.0.0.5:80"
        );
        assert_eq!(
            text(&port(Some("127.0.0.1")), v4),
            "  ip daddr 127.0.0.1 tcp dport 8080 dnat ip to 10.0.0.5:80"
        );
        assert_eq!(text(&port(Some("127.0.0.1")), v6), "");
        assert_eq!(
            text(&port(Some("::1")), v6),
            "  ip6 daddr ::1 tcp dport 8080 dnat ip6 to [fd00::5]:80"
        );
    }

    #[test]
    fn nft_takes_the_script() {
        let input = Input {
            pods: ["10.0.0.0/16".parse().unwrap(), "fd00::/64".parse().unwrap()].into(),
            keep_source: ["10.0.0.0/16".parse().unwrap()].into(),
            local: ["10.0.0.5".parse().unwrap()].into(),
            own: ["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()].into(),
            nodes: ["192.0.2.1".parse().unwrap()].into(),
            host_ports: vec![(port(None), vec!["10.0.0.5".parse().unwrap()])],
        };
        // In a namespace of its own: the script is run, not only read.
        let mut nft = std::process::Command::new("unshare")
            .args(["--net", "nft", "-f", "-"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .expect("unshare and nft, of Debian's util-linux and nftables");
        let mut stdin = nft.stdin.take().unwrap();
        for script in [text(&Input::default()), text(&input)] {
            std::io::Write::write_all(&mut stdin, script.as_bytes()).unwrap();
        }
        drop(stdin);
        assert!(nft.wait().unwrap().success());
    }
}
