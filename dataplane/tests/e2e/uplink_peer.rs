//! A node whose wire is a memif of another program's: that program breaks the protocol, in either role,
//! and is disconnected; the node lives, and the next peer carries its frames.

use std::net::Ipv4Addr;
use std::time::Duration;

use memif::wire::Message;
use memif::{Address, ClientConfig, Connection, Connector, Listener, Notifier, Progress};

use crate::lab::memif::NAME;
use crate::lab::node::Start;
use crate::lab::rogue::{Descriptor, Rogue, S2M_AT};
use crate::lab::rogue_server::{RogueServer, Stall};
use crate::lab::{Footprint, Lab, Netns, Node, frame, wait};

const UPLINK: &str = "uplink/up0";
const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

fn node(role: &str) -> Node {
    let uplink = Some(format!("up0=memif,role={role},socket=@{NAME}"));
    let node = Node::start(Netns::new("node"), Start { uplink, ..Start::default() });
    node.netns.ip(&format!("addr add {NODE}/24 dev up0"));
    node
}

fn status(node: &Node) -> api::InterfaceStatus {
    node.status(UPLINK).expect("an uplink")
}

/// The peer was disconnected for this.
fn convicted(node: &Node, word: &str, violations: u64) {
    let status = wait(&format!("a peer that is convicted of {word}"), 5.0, || {
        Some(status(node)).filter(|status| status.violations >= violations)
    });
    assert_eq!(status.violations, violations, "once for each connection");
    assert!(status.reason.contains("\"rogue\"") && status.reason.contains(word), "{status:?}");
    let said = node.process.borrow().output();
    let events = said.lines().filter(|line| line.contains("peer-violation") && line.contains(word));
    assert!(events.count() > 0, "no event tells of {word}:\n{said}");
}

/// An honest peer's question is answered by the node's kernel.
fn carries(node: &Node, mut connection: Connection) {
    node.wait_up(UPLINK);
    let (mut rx, mut tx) = connection.take_queues();
    let arp = frame::arp(1, (PEER_MAC, PEER), ([0; 6], NODE));
    let question = frame::ethernet([0xff; 6], PEER_MAC, 0x0806, &arp);
    let mut notifier = Notifier::new().expect("a notifier");
    let mut buffer = [0; 9216];
    wait("the node's answer", 5.0, || {
        assert!(tx[0].send(&question).expect("an honest data plane"));
        tx[0].flush(&mut notifier).expect("a signal");
        while let Some(length) = rx[0].recv(&mut buffer).expect("an honest data plane") {
            let answer = &buffer[..length];
            if answer[12..14] == [8, 6] && answer[20..22] == [0, 2] && answer[..6] == PEER_MAC {
                return Some(());
            }
        }
        None
    });
}

#[test]
fn a_client_that_breaks_the_protocol_is_disconnected() {
    let _lab = Lab::new();
    let node = node("server");
    let good = Descriptor::GOOD;
    type Lie = (&'static str, fn(&Rogue));
    let lies: [Lie; 4] = [
        ("ring_index", |rogue| rogue.head(S2M_AT, 40_000)),
        ("region_unknown", |rogue| {
            rogue.describe(S2M_AT, &[Descriptor { region: 200, ..Descriptor::GOOD }; 4]);
            rogue.head(S2M_AT, 4);
        }),
        ("descriptor_bounds", |rogue| {
            rogue.describe(S2M_AT, &[Descriptor { offset: u32::MAX, ..Descriptor::GOOD }; 4]);
            rogue.head(S2M_AT, 4);
        }),
        ("unknown message", |rogue| rogue.send_bytes(&[0x77; 128], &[])),
    ];
    let mut kept = None;
    for (n, (word, lie)) in (1..).zip(lies) {
        let shaken = || Rogue::try_shaken(&node.netns, false);
        let rogue = wait("the next peer is let in", 10.0, shaken);
        node.wait_up(UPLINK);
        assert_eq!(status(&node).peer, "rogue");
        rogue.describe(S2M_AT, &[good; 256]);
        lie(&rogue);
        rogue.closed();
        convicted(&node, word, n);
        kept.get_or_insert_with(|| Footprint::of(node.process.borrow().pid()));
    }
    kept.expect("at least one lie").is_kept();
    let address = Address::Abstract(NAME.to_owned());
    let honest = node.netns.run(|| {
        let mut connector = Connector::new(ClientConfig::new(address, 0));
        connector.connect_blocking(Duration::from_secs(5)).expect("the data plane listens")
    });
    carries(&node, honest);
}

#[test]
fn a_server_that_breaks_the_protocol_is_left_and_met_again() {
    let _lab = Lab::new();
    let node = node("client");
    let stall = Stall::open(&node.netns, NAME);
    type Lie = (&'static str, fn(&RogueServer));
    let lies: [Lie; 4] = [
        ("ring_index", |server| server.tail(false, 40_000)),
        ("descriptor_overrun", |server| {
            server.length(60_000);
            server.tail(false, 1);
        }),
        ("descriptor_length", |server| {
            server.length(0);
            server.tail(false, 1);
        }),
        ("ACK", |server| server.say(&Message::Ack)),
    ];
    let mut kept = None;
    for (n, (word, lie)) in (1..).zip(lies) {
        let server = stall.serve();
        node.wait_up(UPLINK);
        lie(&server);
        server.closed();
        convicted(&node, word, n);
        kept.get_or_insert_with(|| Footprint::of(node.process.borrow().pid()));
    }
    kept.expect("at least one lie").is_kept();
    drop(stall);
    let honest = node.netns.run(|| {
        let mut listener = Listener::bind_abstract(NAME).expect("a free name");
        let offer = |_| memif::Answer::Accept(memif::Offer::default());
        let mut handshake = wait("the data plane comes again", 10.0, || {
            listener.accept().expect("a listening socket")
        });
        wait("an honest handshake", 2.0, || match handshake.on_readable(&offer) {
            Progress::Pending => None,
            Progress::Connected(connection) => Some(connection),
            Progress::Closed(reason) => panic!("{reason}"),
        })
    });
    carries(&node, honest);
}
