//! Pods on one node with the data plane itself: they talk, and go on talking through the death of
//! either process; nothing is left of them afterwards.

mod common;

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use cni::result::CniResult;
use common::real::{RealDataplane, descriptors, wait_until_told};
use common::{Agent, Netns, Pod, TWO_NETWORKS, eventually, write};

struct Node {
    agent: Agent,
    dataplane: Option<RealDataplane>,
    _dir: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut agent = Agent::prepare(dir.path(), "n1", &dir.path().join("catalog"));
        write(&agent.catalog, "networks.yaml", TWO_NETWORKS);
        let dataplane = Some(RealDataplane::start(&agent));
        agent.start(&[]);
        wait_until_told(&agent);
        Self { agent, dataplane, _dir: dir }
    }

    fn restart_dataplane(&mut self) {
        self.dataplane.take().unwrap().kill();
        self.dataplane = Some(RealDataplane::start(&self.agent));
    }

    fn held_by_dataplane(&self) -> usize {
        self.dataplane.as_ref().unwrap().descriptors().len()
    }
}

fn address(result: &CniResult, n: usize) -> &str {
    result.ips[n].address.split('/').next().unwrap()
}

/// Pings run in the background, one each 10 ms.
struct Pings {
    child: Child,
}

impl Pings {
    fn start(netns: &Netns, to: &str) -> Self {
        let args = ["netns", "exec", &netns.name, "ping", "-D", "-i", "0.01", to];
        let child =
            Command::new("ip").args(args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        Self { child: child.unwrap() }
    }

    /// Longest time between two answers, and how many between the first and the last are missing.
    fn stop(self) -> (Duration, usize) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
        let output = self.child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let answers = text.lines().filter(|l| l.contains("bytes from"));
        let times: Vec<f64> =
            answers.filter_map(|l| l.strip_prefix('[')?.split(']').next()?.parse().ok()).collect();
        assert!(times.len() > 2, "{text}");
        let longest = times.windows(2).map(|w| w[1] - w[0]).fold(0.0, f64::max);
        let number = |l: &str| -> Option<usize> {
            l.split_once("icmp_seq=")?.1.split(' ').next()?.parse().ok()
        };
        let answers = text.lines().filter(|l| l.contains("bytes from"));
        let mut numbers: Vec<_> = answers.filter_map(number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let missing = numbers[numbers.len() - 1] - numbers[0] + 1 - numbers.len();
        (Duration::from_secs_f64(longest), missing)
    }
}

fn ping_once(netns: &Netns, to: &str) -> bool {
    ping(netns, &[to])
}

/// One ping, with these words behind it.
fn ping(netns: &Netns, words: &[&str]) -> bool {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &netns.name, "ping", "-c", "1", "-W", "1"]).args(words);
    command.stdout(Stdio::null()).status().unwrap().success()
}

fn received(netns: &Netns) -> u64 {
    let path = "/sys/class/net/eth0/statistics/rx_packets";
    let text = common::run("ip", &["netns", "exec", &netns.name, "cat", path]);
    text.trim().parse().unwrap()
}

#[test]
fn pods_talk_within_their_network_only() {
    let node = Node::new();
    let (a, b, twin) = (Netns::new(), Netns::new(), Netns::new());
    let first = node.agent.add(&Pod::new("a", &a, "blue", "eth0"));
    let second = node.agent.add(&Pod::new("b", &b, "blue", "eth0"));
    let red = Pod::new("c", &twin, "red", "eth0");
    node.agent.add(&red);
    let also_red = Netns::new();
    let same = node.agent.add(&Pod::new("d", &also_red, "red", "eth0"));
    assert_eq!(address(&same, 0), address(&second, 0), "the twin has the same address");
    let before = (received(&b), received(&also_red));
    for n in 0..2 {
        assert!(ping_once(&a, address(&second, n)), "{:?}", second.ips[n]);
        assert!(ping_once(&b, address(&first, n)), "{:?}", first.ips[n]);
    }
    assert!(received(&b) > before.0, "the positive control");
    assert_eq!(received(&also_red), before.1, "the twin in the other Network hears nothing");
}

#[test]
fn either_process_dies_under_traffic_and_pods_hardly_notice() {
    let mut node = Node::new();
    let (a, b, c) = (Netns::new(), Netns::new(), Netns::new());
    node.agent.add(&Pod::new("a", &a, "blue", "eth0"));
    let second = node.agent.add(&Pod::new("b", &b, "blue", "eth0"));
    node.agent.add(&Pod::new("c", &c, "blue", "memif1"));
    let to = address(&second, 0).to_owned();

    let pings = Pings::start(&a, &to);
    eventually("traffic flows", || ping_once(&a, &to).then_some(()));
    node.restart_dataplane();
    wait_until_told_again(&node);
    eventually("traffic is back", || ping_once(&a, &to).then_some(()));
    let (longest, _) = pings.stop();
    assert!(longest < Duration::from_secs(1), "the data plane's death cost {longest:?}");

    let pings = Pings::start(&a, &to);
    eventually("traffic flows", || ping_once(&a, &to).then_some(()));
    node.agent.kill();
    assert!(ping_once(&a, &to), "no agent is needed for traffic");
    node.agent.start(&[]);
    wait_until_told(&node.agent);
    assert!(ping_once(&a, &to));
    let (_, missing) = pings.stop();
    assert_eq!(missing, 0, "pings that the agent's death cost");

    // The new agent has no descriptors of the old one: it opens the devices again.
    let pings = Pings::start(&a, &to);
    eventually("traffic flows", || ping_once(&a, &to).then_some(()));
    node.restart_dataplane();
    eventually("traffic is back", || ping_once(&a, &to).then_some(()));
    let (longest, _) = pings.stop();
    assert!(longest < Duration::from_secs(1), "both deaths together cost {longest:?}");
    let sockets = common::run("ip", &["netns", "exec", &c.name, "cat", "/proc/net/unix"]);
    assert!(sockets.lines().any(|l| l.ends_with(" @memif1")), "{sockets}");
}

/// The agent notices the death and has told the new process everything.
fn wait_until_told_again(node: &Node) {
    eventually("the data plane is told again", || {
        let socket = std::os::unix::net::UnixStream::connect(node.agent.dataplane_socket());
        socket.ok().map(drop)
    });
    wait_until_told(&node.agent);
}

#[test]
fn nothing_is_left_of_pods_that_are_gone() {
    let node = Node::new();
    let netns = Netns::new();
    let mut pod = Pod::new("warm", &netns, "blue", "eth0");
    pod.annotation = Some(r#"[{"name": "memif1", "network": "red", "rxQueues": 2}]"#.into());
    node.agent.add(&pod);
    node.agent.del(&pod);
    let count = || (node.held_by_dataplane(), descriptors(node.agent.pid()).len());
    // The first pod may have opened what stays open.
    let before = eventually("descriptors settle", || {
        let now = count();
        let nothing_of_it = !node.dataplane.as_ref().unwrap().descriptors().iter().any(is_tun);
        nothing_of_it.then_some(now)
    });
    for n in 0..8 {
        let pod =
            Pod { container_id: format!("sandbox-{n}"), name: format!("p{n}"), ..pod.clone() };
        node.agent.add(&pod);
        assert!(node.held_by_dataplane() > before.0);
        node.agent.del(&pod);
    }
    eventually("every descriptor is closed", || (count() <= before).then_some(()));
    assert_eq!(netns.devices(), Vec::<String>::new());
    assert_eq!(node.agent.held(), []);
    assert_eq!(node.agent.journal(), Vec::<std::path::PathBuf>::new());
}

fn is_tun(link: &String) -> bool {
    link == "/dev/net/tun"
}

#[test]
fn killed_at_any_step_of_add_the_data_plane_keeps_nothing() {
    let mut node = Node::new();
    let netns = Netns::new();
    let mut pod = Pod::new("a", &netns, "blue", "eth0");
    pod.annotation = Some(r#"[{"name": "memif1", "network": "red"}]"#.into());
    for step in agent::fault::ADD_STEPS {
        node.agent.kill();
        node.agent.start(&["--fault-step", step]);
        wait_until_told(&node.agent);
        let request = pod.request(cni::rpc::Command::Add);
        let asked = cni::client::ask(&node.agent.cni_socket(), &request, common::DEADLINE);
        assert!(asked.is_err(), "{step}: no answer can come from a dead agent");
        node.agent.wait_for_death();
        node.agent.start(&[]);
        wait_until_told(&node.agent);
        node.agent.del(&pod);
        eventually(&format!("{step}: the data plane closes the taps"), || {
            let links = node.dataplane.as_ref().unwrap().descriptors();
            (!links.iter().any(is_tun)).then_some(())
        });
        assert_eq!(netns.devices(), Vec::<String>::new(), "{step}");
        assert_eq!(node.agent.held(), [], "{step}");
    }
    node.agent.add(&pod);
}

/// Eight interfaces, four on each of two Networks that have the same addresses: each carries from the
/// moment that the ADD returns, and answers where it was asked.
#[test]
fn every_interface_of_many_carries_at_once() {
    let node = Node::new();
    let peers = [Netns::new(), Netns::new()];
    let at = |n: usize| ["red", "blue"][n % 2];
    let added = [0, 1].map(|n| node.agent.add(&Pod::new(at(n), &peers[n], at(n), "eth0")));
    let wishes: Vec<String> =
        (0..8).map(|n| format!(r#"{{"name": "net{n}", "network": "{}"}}"#, at(n))).collect();
    let netns = Netns::new();
    let mut pod = Pod::new("many", &netns, "blue", "eth0");
    pod.annotation = Some(format!("[{}]", wishes.join(",")));
    let result = node.agent.add(&pod);
    for n in (0..8).rev() {
        for family in 0..2 {
            let peer = address(&added[n % 2], family);
            let from = format!("net{n}");
            assert!(ping(&netns, &["-I", &from, peer]), "{from} to {peer}");
            let own = address(&result, 2 * (n + 1) + family);
            assert!(ping(&peers[n % 2], &[own]), "{} to {own} of {from}", at(n));
        }
    }
    let mut addresses: Vec<_> = result.ips.iter().map(|ip| &ip.address).collect();
    addresses.sort_unstable();
    addresses.dedup();
    assert_eq!(addresses.len(), 18, "an address is given to one interface only: {addresses:?}");
}

/// The pod has an address on one Network that its peer has on another: the peer keeps it, and they talk.
#[test]
fn a_peer_may_have_an_address_of_the_pods_own() {
    let node = Node::new();
    let (peer, netns) = (Netns::new(), Netns::new());
    let theirs = node.agent.add(&Pod::new("peer", &peer, "blue", "eth0"));
    let mut pod = Pod::new("a", &netns, "red", "eth0");
    pod.annotation = Some(r#"[{"name": "eth1", "network": "blue"}]"#.into());
    let own = node.agent.add(&pod);
    for family in 0..2 {
        let to = address(&theirs, family);
        assert_eq!(address(&own, family), to, "the pod's own on red");
        // RFC 6724 section 5 prefers the destination itself as the source, where that is an own address.
        let from = address(&own, 2 + family);
        assert!(ping(&netns, &["-I", "eth1", "-I", from, to]), "{from} to {to}");
    }
}
