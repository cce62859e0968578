//! The `bowline` command beside a running agent and data plane: what a person types, and what
//! programs read.

mod common;

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use common::real::{RealDataplane, wait_until_told};
use common::{Agent, Netns, Pod, eventually, run, unique, write};
use serde_json::Value;

/// The foreign tunnel end is this test's own kernel, at the other end of the uplink.
const FAR: &str = "192.0.2.2";

const CATALOG: &str = r#"
apiVersion: bowline.dev/v1alpha1
kind: Network
metadata: {name: blue}
spec:
  vni: 56
  namespaceSelector: {}
  ipPools: {ipv4: [blue-v4], ipv6: [blue-v6]}
  peers: [{vtep: 192.0.2.2, mac: "02:00:00:00:00:99", prefixes: [10.8.0.0/24]}]
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: blue-v4, labels: {bowline.dev/network: blue}}
spec: {subnet: 10.7.0.0/24, ips: [10.7.0.2-10.7.0.250], gateway: 10.7.0.1}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: blue-v6, labels: {bowline.dev/network: blue}}
spec: {subnet: "fd07::/64", ips: ["fd07::2-fd07::fa"], gateway: "fd07::1"}
"#;

/// A node with an uplink, two tap pods and a memif pod. Fields go in this order.
struct Node {
    _dataplane: RealDataplane,
    agent: Agent,
    uplink: String,
    a: Netns,
    b: Netns,
    _c: Netns,
    _netns: Netns,
    far: Netns,
    dir: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        let (netns, far) = (Netns::new(), Netns::new());
        let uplink = unique("u");
        run(
            "ip",
            &[
                "link",
                "add",
                &uplink,
                "netns",
                &netns.name,
                "type",
                "veth",
                "peer",
                "name",
                "wire",
                "netns",
                &far.name,
            ],
        );
        netns.ip(&["link", "set", &uplink, "up"]);
        netns.ip(&["addr", "add", "192.0.2.1/24", "dev", &uplink]);
        far.ip(&["link", "set", "wire", "up"]);
        far.ip(&["addr", "add", &format!("{FAR}/24"), "dev", "wire"]);
        let dir = tempfile::tempdir().unwrap();
        let mut agent = Agent::prepare(dir.path(), "n1", &dir.path().join("catalog"));
        write(&agent.catalog, "blue.yaml", CATALOG);
        let dataplane = RealDataplane::start_in(&agent, &netns, &uplink);
        agent.start(&[]);
        wait_until_told(&agent);
        let (a, b, c) = (Netns::new(), Netns::new(), Netns::new());
        agent.add(&Pod::new("a", &a, "blue", "eth0"));
        agent.add(&Pod::new("b", &b, "blue", "eth0"));
        agent.add(&Pod::new("c", &c, "blue", "memif1"));
        Self { _dataplane: dataplane, agent, uplink, a, b, _c: c, _netns: netns, far, dir }
    }

    fn command(&self, words: &str) -> Command {
        bowline(&self.agent.dataplane_socket().display().to_string(), words)
    }

    fn ask(&self, words: &str) -> String {
        succeeded(words, &self.command(words).output().unwrap())
    }

    fn ask_json(&self, words: &str) -> Vec<Value> {
        let text = self.ask(&format!("{words} -o json"));
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{words}: {e}: {text}"))
    }

    /// Starts a command that goes on; `lines` of it are kept in a file.
    fn follow(&self, words: &str) -> Follow {
        let path = self.dir.path().join(unique("follow"));
        let file = std::fs::File::create(&path).unwrap();
        let child = self.command(words).stdout(file.try_clone().unwrap()).stderr(file).spawn();
        Follow { child: child.unwrap(), path }
    }

    fn ping(&self, to: &str) -> bool {
        let args = ["netns", "exec", &self.a.name, "ping", "-n", "-c", "1", "-W", "1", to];
        Command::new("ip").args(args).stdout(Stdio::null()).status().unwrap().success()
    }

    /// The address of pod `b`.
    fn to(&self) -> String {
        address_of(&self.b)
    }
}

fn address_of(netns: &Netns) -> String {
    let text = netns.ip(&["-4", "-o", "addr", "show", "eth0"]);
    let cidr = text.split_whitespace().nth(3).unwrap();
    cidr.split('/').next().unwrap().to_owned()
}

impl Drop for Node {
    fn drop(&mut self) {
        // The uplink's own namespace outlives a killed data plane, as it must.
        let listed = run("ip", &["netns", "list"]);
        let prefix = format!("bowline-{}-", self.uplink);
        for name in listed.lines().filter_map(|l| l.split_whitespace().next()) {
            if name.starts_with(&prefix) {
                let _ = Command::new("ip").args(["netns", "del", name]).status();
            }
        }
    }
}

/// A command that goes on until it is stopped.
struct Follow {
    child: Child,
    path: PathBuf,
}

impl Follow {
    fn text(&self) -> String {
        std::fs::read_to_string(&self.path).unwrap()
    }

    /// Waits for the end that `--count` brings.
    fn finish(mut self) -> String {
        let status = eventually("the command ends", || self.child.try_wait().unwrap());
        assert!(status.success(), "{}", self.text());
        self.text()
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn bowline(socket: &str, words: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bowline"));
    command.args(["--socket", socket]).args(words.split_whitespace()).stdin(Stdio::null());
    command
}

fn succeeded(words: &str, output: &Output) -> String {
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "bowline {words}: {complaint}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn failed(socket: &str, words: &str) -> String {
    let output = bowline(socket, words).output().unwrap();
    assert!(!output.status.success(), "bowline {words} succeeded");
    String::from_utf8(output.stderr).unwrap()
}

/// Each kind of thing, as a table and as JSON with the same facts.
#[test]
fn get_shows_what_is_there() {
    let node = Node::new();
    assert!(node.ping(&node.to()), "the control");
    assert!(!node.ping("10.7.0.200"), "nobody has it");

    let networks = node.ask_json("get networks");
    assert_eq!(
        (networks[0]["name"].as_str(), networks[0]["vni"].as_u64()),
        (Some("blue"), Some(56))
    );
    assert_eq!(networks[0]["interfaces"], 3);
    let table = node.ask("get networks");
    assert!(table.starts_with(" NAME"), "{table}");
    assert!(table.contains("blue") && table.contains("10.7.0.1"), "{table}");

    let interfaces = node.ask_json("get interfaces");
    let of = |kind: &str| interfaces.iter().filter(|i| i["kind"] == kind).collect::<Vec<_>>();
    assert_eq!((of("tap").len(), of("memif").len()), (2, 1), "{interfaces:#?}");
    assert_eq!((of("uplink").len(), of("host-tap").len()), (1, 1), "{interfaces:#?}");
    for tap in of("tap") {
        assert_eq!(tap["link"], "up");
        assert!(tap["pod"].as_str().unwrap().starts_with("test/"));
    }
    assert_eq!(of("memif")[0]["link"], "waiting");
    assert!(of("memif")[0]["reason"].as_str().unwrap().contains("no client"), "{interfaces:#?}");
    let mac = node.a.ip(&["-o", "link", "show", "eth0"]);
    let shown = of("tap").iter().any(|tap| mac.contains(tap["mac"].as_str().unwrap()));
    assert!(shown, "the pod's MAC: {mac}");

    let routes = node.ask_json("get routes");
    let route = |prefix: &str| routes.iter().find(|r| r["prefix"] == prefix);
    assert_eq!(route("10.8.0.0/24").unwrap()["via"], "tunnel");
    assert_eq!(route(&node.to()).unwrap()["via"], "interface");
    assert_eq!(route("10.7.0.1").unwrap()["via"], "gateway");

    let neighbour = eventually("the far end is resolved", || {
        node.ask_json("get neighbours").into_iter().find(|n| n["state"] == "reachable")
    });
    assert_eq!(
        (neighbour["ip"].as_str(), neighbour["uplink"].as_str()),
        (Some(FAR), Some(&*node.uplink))
    );
    let tunnels = node.ask_json("get tunnels");
    assert_eq!(
        (tunnels[0]["vtep"].as_str(), tunnels[0]["state"].as_str()),
        (Some(FAR), Some("reachable"))
    );

    let drops = node.ask_json("get drops");
    let no_route = drops.iter().find(|d| d["reason"] == "no_route").unwrap();
    assert_eq!((no_route["pkts"].as_u64(), no_route["pod"].as_str()), (Some(1), Some("test/a")));
    for words in ["interfaces", "routes", "neighbours", "tunnels", "drops", "counters", "workers"] {
        let rows = node.ask_json(&format!("get {words}")).len();
        assert_eq!(node.ask(&format!("get {words}")).lines().count(), rows + 1, "{words}");
    }
    // Whoever reads it may leave early, as `head` does.
    let (gone, nobody_reads) = std::io::pipe().unwrap();
    drop(gone);
    let end = node.command("get routes").stdout(nobody_reads).output().unwrap();
    let complaint = String::from_utf8_lossy(&end.stderr);
    assert_eq!((end.status.signal(), &*complaint), (Some(libc::SIGPIPE), ""));
    let workers = node.ask_json("get workers");
    assert!(workers[0]["packets"].as_u64().unwrap() > 0, "{workers:?}");
}

#[test]
fn top_shows_rates_and_drops() {
    let node = Node::new();
    let to = node.to();
    assert!(!node.ping("10.7.0.200"), "for a drop to be shown");
    let flood = ["netns", "exec", &node.a.name, "ping", "-n", "-q", "-i", "0.002", &to];
    let mut flood = Command::new("ip").args(flood).stdout(Stdio::null()).spawn().unwrap();
    let table = node.ask("top --count 1 --interval 0.5");
    let line = node.ask("top --count 1 --interval 0.5 -o json");
    flood.kill().unwrap();
    flood.wait().unwrap();
    assert!(table.contains("worker 0 cpu") && table.contains("RX PPS"), "{table}");
    assert!(table.contains("no_route"), "{table}");
    let look: Value = serde_json::from_str(&line).unwrap();
    let busiest = &look["interfaces"][0];
    assert!(busiest["rx_pps"].as_f64().unwrap() > 10.0, "{look:#}");
    assert_eq!(busiest["kind"], "tap");
    assert!(look["workers"][0]["load"].as_f64().unwrap() >= 0.0);
}

/// Stage by stage, to the rule that decided: a packet that arrives, one that is dropped, one that
/// goes into a tunnel.
#[test]
fn trace_names_the_rule_that_decided() {
    let node = Node::new();
    let to = node.to();
    let traced = |words: &str, send: &dyn Fn()| {
        let trace = node.follow(words);
        eventually("the trace sees a packet", || {
            send();
            (!trace.text().is_empty()).then_some(())
        });
        trace.finish()
    };
    let arrived = traced(&format!("trace --host {to} --protocol icmp --count 1"), &|| {
        node.ping(&to);
    });
    for part in
        ["ingress", "source is the address of", "lookup", &format!("{to} in blue"), "limits", "→ "]
    {
        assert!(arrived.contains(part), "`{part}` in:\n{arrived}");
    }
    let dropped = traced("trace --drops --network blue --protocol icmp --count 1", &|| {
        node.ping("10.7.0.200");
    });
    assert!(dropped.contains("10.7.0.200 in blue"), "{dropped}");
    assert!(dropped.lines().any(|l| l.contains("→") && l.contains("no_route")), "{dropped}");
    let line = traced("trace --host 10.8.0.5 --protocol icmp --count 1 -o json", &|| {
        node.ping("10.8.0.5");
    });
    let record: Value = serde_json::from_str(&line).unwrap();
    let steps = record["steps"].as_array().unwrap();
    let stages: Vec<_> = steps.iter().map(|step| step["stage"].as_str().unwrap()).collect();
    assert!(stages.starts_with(&["parse", "ingress"]) && stages.contains(&"rewrite"), "{line}");
    assert!(steps.iter().any(|step| step["note"].as_str().unwrap().contains(FAR)), "{line}");
}

/// tcpdump reads what was captured.
#[test]
fn capture_writes_what_tcpdump_reads() {
    let node = Node::new();
    let to = node.to();
    let file = node.dir.path().join("out.pcap");
    let words = format!("capture --host {to} --protocol icmp --count 4 -w {}", file.display());
    let mut capture = node.follow(&words);
    eventually("four frames", || {
        node.ping(&to);
        capture.child.try_wait().unwrap()
    });
    assert!(capture.finish().contains("4 frames in"));
    let read = run("tcpdump", &["-nn", "-e", "-r", &file.display().to_string()]);
    let packets: Vec<_> = read.lines().filter(|line| line.contains("ICMP echo")).collect();
    assert_eq!(packets.len(), 4, "{read}");
    let from = address_of(&node.a);
    assert!(packets[0].contains(&format!("{from} > {to}: ICMP echo request")), "{read}");
    assert!(
        packets.iter().any(|line| line.contains(&format!("{to} > {from}: ICMP echo reply"))),
        "{read}"
    );
}

#[test]
fn events_tell_of_ports() {
    let node = Node::new();
    let (text, json) = (node.follow("events"), node.follow("events -o json"));
    let mut number = 0;
    eventually("the port's event", || {
        let netns = Netns::new();
        let pod = Pod::new(&format!("e{number}"), &netns, "blue", "eth0");
        node.agent.add(&pod);
        node.agent.del(&pod);
        number += 1;
        (text.text().contains("port-up") && json.text().contains("port-up")).then_some(())
    });
    let json = json.text();
    let event: Value = serde_json::from_str(json.lines().next().unwrap()).unwrap();
    assert!(event["time_ns"].as_u64().unwrap() > 0 && event["message"].is_string(), "{event}");
}

/// What is found, and what to do about it; the exit status is for scripts.
#[test]
fn doctor_says_what_is_wrong_and_what_to_do() {
    let node = Node::new();
    let agent_socket = node.agent.cni_socket();
    let words = format!("doctor --agent-socket {}", agent_socket.display());
    let findings = node.ask_json(&words);
    let found = |what: &str| findings.iter().find(|f| f["what"] == what).unwrap();
    let fine = [
        "user",
        "/dev/net/tun",
        "inotify lists",
        "data plane",
        "uplink",
        "agent",
        "kernel's VXLAN",
    ];
    for what in fine {
        assert_eq!(found(what)["mark"], "ok", "{}", found(what));
    }
    assert!(found("uplink")["found"].as_str().unwrap().contains("by packet, MTU 1500"));
    let table = node.ask(&words);
    assert!(table.lines().next().unwrap().contains("REMEDY"), "{table}");

    // A socket on VXLAN's port is somebody else's tunnel.
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let output = node.command(&format!("{words} --vxlan-port {port} -o json")).output().unwrap();
    assert!(!output.status.success());
    let findings: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let bad = findings.iter().find(|f| f["what"] == "kernel's VXLAN").unwrap();
    assert_eq!(bad["mark"], "bad");
    assert!(bad["remedy"].as_str().unwrap().contains("--vxlan-port"), "{bad}");
}

#[test]
fn errors_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("none.sock").display().to_string();
    for words in ["get networks", "top", "trace", "capture -w -", "events"] {
        let error = failed(&missing, words);
        assert!(error.contains("start bowline-dataplane"), "{words}: {error}");
        assert!(error.contains(&missing), "{words}: {error}");
    }
    let dead = dir.path().join("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    let error = failed(&dead.display().to_string(), "get drops");
    assert!(error.contains("nobody answers") && error.contains("start it"), "{error}");
    let error = failed(&missing, "get wombats");
    assert!(error.contains("wombats") && error.contains("networks"), "{error}");
    let error = failed(&missing, "trace --protocol carrier-pigeon");
    assert!(error.contains("tcp, udp, icmp"), "{error}");
    let node = Node::new();
    let socket = node.agent.dataplane_socket().display().to_string();
    let error = failed(&socket, "trace --network green");
    assert!(error.contains("green"), "{error}");
    let error = failed(&socket, "top --interval 0");
    assert!(error.contains("at least 0.1 s"), "{error}");
    let error = failed(&socket, "capture -w /nowhere/x.pcap");
    assert!(error.contains("-w /nowhere/x.pcap"), "{error}");
}

/// Where the Network's spec.peers leads: a VXLAN device of the kernel, with 10.8.0.1 behind it. Packets go both
/// ways, with its VNI and with no other.
#[test]
fn a_foreign_tunnel_end_is_reached() {
    let node = Node::new();
    let words = |text: &str| node.far.ip(&text.split_whitespace().collect::<Vec<_>>());
    let own = address_of(&node.a);
    let router = eventually("the node's MAC in tunnels", || router_mac(&node.agent.catalog));
    for (device, vni) in [("good", 56), ("strange", 57)] {
        words(&format!(
            "link add {device} address 02:00:00:00:00:99 type vxlan id {vni} dstport 4789 \
             local {FAR} remote 192.0.2.1 dev wire"
        ));
        words(&format!("link set {device} up"));
        words(&format!("neigh replace {own} lladdr {router} dev {device}"));
    }
    words("address add 10.8.0.1/32 dev good");
    let lead = |device: &str| {
        words(&format!("route replace 10.7.0.0/24 dev {device} src 10.8.0.1"));
    };
    lead("good");
    let arrives = || {
        let args = ["netns", "exec", &node.far.name, "ping", "-c", "1", "-W", "1", &own];
        Command::new("ip").args(args).output().unwrap().status.success()
    };
    eventually("the pod reaches what is behind the peer", || node.ping("10.8.0.1").then_some(()));
    assert!(arrives(), "the peer reaches the pod");
    lead("strange");
    assert!(!arrives(), "another Network's number leads nowhere");
    lead("good");
    assert!(arrives());
}

/// As the NodeState says it.
fn router_mac(catalog: &std::path::Path) -> Option<String> {
    let found = Command::new("grep").args(["-rh", "routerMAC"]).arg(catalog).output().unwrap();
    let line = String::from_utf8(found.stdout).unwrap();
    let (_, rest) = line.split_once("routerMAC")?;
    Some(rest.trim_start_matches(['"', '\'', ':', ' ']).get(..17)?.to_owned())
}
