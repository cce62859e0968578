//! What a monitoring system reads: metrics over HTTP, and the log.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::lab::node::{Start, drops};
use crate::lab::{End, Lab, MemifPod, Netns, Node, Realm, wait};

/// Free: the namespace is new.
const ADDRESS: &str = "127.0.0.1:9471";

/// The status line and the body of an answer, which must be as long as its head says.
fn get(node: &Node, path: &str) -> (String, String) {
    let mut answer = String::new();
    node.netns.run(|| {
        let mut stream = TcpStream::connect(ADDRESS).expect("the endpoint");
        let request = format!("GET {path} HTTP/1.1\r\nHost: {ADDRESS}\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("a reader");
        stream.read_to_string(&mut answer).expect("text, then the end");
    });
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    assert_eq!(length.and_then(|text| text.parse().ok()), Some(body.len()), "{head}");
    (head.lines().next().unwrap_or_default().to_owned(), body.to_owned())
}

/// The values of a metric's lines that have all of `labels`.
fn values(text: &str, metric: &str, labels: &[&str]) -> Vec<u64> {
    let start = format!("{metric}{{");
    text.lines()
        .filter(|line| line.starts_with(&start) && labels.iter().all(|label| line.contains(label)))
        .map(|line| line.rsplit(' ').next().and_then(|n| n.parse().ok()).expect("a count"))
        .collect()
}

#[test]
fn drops_are_scraped_by_interface_network_and_reason() {
    let _lab = Lab::new();
    let more = ["--metrics", ADDRESS].map(str::to_owned).to_vec();
    let mut node = Node::start(Netns::new("node"), Start { more, ..Start::default() });
    let (blue, red) = (Realm::new("blue", 56, 9000), Realm::new("red", 57, 9000));
    node.add_realm(&blue);
    node.add_realm(&red);
    let mut a = MemifPod::new(&mut node, &blue, 20);
    let b = MemifPod::new(&mut node, &red, 20);
    // Three to an address that nobody has, and one that is not from here.
    let nobody = a.datagram(1, (Realm::ip4(99), 2), b"nobody has this address");
    let mut spoofed = a.datagram(1, (Realm::ip4(99), 2), b"not from here");
    spoofed[11] ^= 1;
    for frame in [&nobody, &nobody, &nobody, &spoofed] {
        a.inject(frame);
    }
    let account = wait("the drops", 5.0, || {
        let account = node.account(&a.at.id);
        (account.drops.iter().map(|drop| drop.pkts).sum::<u64>() == 4).then_some(account)
    });
    assert_eq!((drops(&account, "no_route"), account.drops.len()), (3, 2), "{account:?}");

    let (status, text) = get(&node, "/metrics");
    assert_eq!(status, "HTTP/1.1 200 OK");
    assert!(text.ends_with("# EOF\n"), "{text}");
    for drop in &account.drops {
        let reason = format!("reason=\"{}\"", drop.reason);
        let of = |id: &str| format!("interface=\"{id}\"");
        let metric = "bowline_interface_drops_total";
        let labels = [&of(&a.at.id)[..], "network=\"blue\"", "direction=\"rx\"", &reason];
        assert_eq!(values(&text, metric, &labels), [drop.pkts], "{labels:?} in {text}");
        let others = values(&text, metric, &[&of(&b.at.id), &reason]);
        assert!(others.iter().all(|count| *count == 0), "{others:?}");
        let network = ["network=\"blue\"", &reason];
        assert_eq!(values(&text, "bowline_network_drops_total", &network), [drop.pkts]);
    }
    let received = ["network=\"blue\"", "fate=\"rx\""];
    assert_eq!(values(&text, "bowline_interface_packets_total", &received), [account.rx_pkts]);
    assert_eq!(get(&node, "/").0, "HTTP/1.1 404 Not Found");
}

#[test]
fn where_no_person_reads_the_log_has_an_object_in_each_line() {
    let _lab = Lab::new();
    let node = Node::local(1);
    let text = node.process.borrow().output();
    let objects = text.lines().map(serde_json::from_str::<serde_json::Value>);
    let objects = objects.collect::<Result<Vec<_>, _>>().unwrap_or_else(|e| panic!("{e}: {text}"));
    let ready = objects.iter().find(|o| o["message"] == "the data plane is ready");
    let ready = ready.unwrap_or_else(|| panic!("not said: {text}"));
    assert_eq!(ready["level"], "INFO");
    assert!(ready["timestamp"].is_string() && ready["socket"].is_string(), "{ready}");
    // A person may ask for text.
    let more = ["--log-format", "text"].map(str::to_owned).to_vec();
    let node = Node::start(Netns::new("node"), Start { more, ..Start::default() });
    let text = node.process.borrow().output();
    assert!(text.contains("INFO") && !text.contains('{'), "{text}");
}
