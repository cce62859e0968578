//! What the API refuses, and with which words.

mod common;

use common::{Node, ip, network, prefix, state};

fn tap(id: &str, network: &str, address: &str) -> api::Interface {
    api::Interface {
        id: id.into(),
        network: network.into(),
        name: "eth1".into(),
        mac: vec![0x0e, 0, 0, 0, 0, 1],
        addresses: vec![ip(address)],
        port: Some(api::interface::Port::Tap(api::TapPort { queues: 1 })),
        ..api::Interface::default()
    }
}

fn tunnel(to: &str, vtep: &str) -> api::Route {
    let via = api::TunnelVia { vtep: Some(ip(vtep)), inner_mac: vec![6; 6] };
    api::Route { prefix: Some(prefix(to)), via: Some(api::route::Via::Tunnel(via)) }
}

#[test]
fn nonsense_is_refused_by_field_and_changes_nothing() {
    let node = Node::start("");
    let good = state(5, vec![network("blue", 56)], vec![tap("s/eth1", "blue", "10.1.0.10")]);
    node.apply(good.clone()).expect("a good state");
    let generation = node.state().generation;

    type Spoil = fn(&mut api::State);
    let cases: &[(&str, Spoil)] = &[
        ("networks[0].vni: 0 is not", |s| s.networks[0].vni = 0),
        ("networks[0].vni: 16777216 is not", |s| s.networks[0].vni = 1 << 24),
        ("networks[0].vni: 57 is not what \"blue\" has: 56", |s| s.networks[0].vni = 57),
        ("networks[1].vni: 56 is also the VNI of network \"", |s| {
            s.networks.push(network("red", 56));
        }),
        ("networks[0].name: \"\" must be", |s| s.networks[0].name.clear()),
        ("networks[1].name: \"blue\" is in the list twice", |s| {
            s.networks.push(network("blue", 58));
        }),
        ("networks[0].encapsulation: VLAN is not carried", |s| s.networks[0].encapsulation = 1),
        ("networks[0].mtu: 1279 bytes: 1280..=9216", |s| s.networks[0].mtu = 1279),
        ("networks[0].prefixes[0].len: 33 is too long", |s| s.networks[0].prefixes[0].len = 33),
        ("networks[0].prefixes[0]: 10.1.0.0/8 has bits set", |s| s.networks[0].prefixes[0].len = 8),
        ("networks[0].gateways[0].ip: 10.2.0.1 lies in none", |s| {
            s.networks[0].gateways[0].ip = Some(ip("10.2.0.1"));
        }),
        ("networks[0].routes[0].prefix.addr: 0 bytes", |s| {
            s.networks[0].routes.push(api::Route::default());
        }),
        ("networks[0].routes[0].tunnel.vtep: 192.0.2.1 is this node's own", |s| {
            s.networks[0].routes.push(tunnel("10.9.0.0/24", "192.0.2.1"));
            s.local_vteps.push(ip("192.0.2.1"));
        }),
        ("networks[0].routes[1].prefix: 10.9.0.0/24 has two routes", |s| {
            s.networks[0].routes.push(tunnel("10.9.0.0/24", "192.0.2.1"));
            s.networks[0].routes.push(tunnel("10.9.0.0/24", "192.0.2.2"));
        }),
        ("networks[0].routes[0].interface_id: \"x\" is no interface", |s| {
            let via = Some(api::route::Via::InterfaceId("x".into()));
            s.networks[0].routes.push(api::Route { prefix: Some(prefix("10.9.0.0/24")), via });
        }),
        ("interfaces[0].network: there is no network \"green\"", |s| {
            s.interfaces[0].network = "green".into();
        }),
        ("interfaces[0].mac: 5 bytes", |s| s.interfaces[0].mac.truncate(5)),
        ("interfaces[0].mac: 01:00:00:00:00:01", |s| s.interfaces[0].mac = vec![1, 0, 0, 0, 0, 1]),
        ("interfaces[0].addresses[0]: 10.1.0.1 is a gateway", |s| {
            s.interfaces[0].addresses[0] = ip("10.1.0.1");
        }),
        ("interfaces[1].addresses[0]: 10.1.0.10 of network \"blue\" is interface", |s| {
            s.interfaces.push(tap("t/eth1", "blue", "10.1.0.10"));
        }),
        ("interfaces[0].port: is missing", |s| s.interfaces[0].port = None),
        ("interfaces[0].tap.queues: 0 queues", |s| {
            s.interfaces[0].port = Some(api::interface::Port::Tap(api::TapPort { queues: 0 }));
        }),
        ("interfaces[0].memif.ring_size: 100 slots", |s| {
            let memif = api::MemifPort { ring_size: 100, ..api::MemifPort::default() };
            s.interfaces[0].port = Some(api::interface::Port::Memif(memif));
        }),
        ("interfaces[0].port: a tap of 1 queues can not become a tap of 2", |s| {
            s.interfaces[0].port = Some(api::interface::Port::Tap(api::TapPort { queues: 2 }));
        }),
        ("cluster_vteps[0]: 224.0.0.1 is not an address", |s| {
            s.cluster_vteps.push(ip("224.0.0.1"));
        }),
        ("local_vteps: has two addresses", |s| {
            s.local_vteps = vec![ip("192.0.2.1"), ip("192.0.2.2")];
        }),
        ("vxlan_port: 70000 is no UDP port", |s| s.vxlan_port = 70_000),
        ("revision: 4 is older than 5", |s| s.revision = 4),
        ("networks: \"blue\" still has the interface", |s| s.networks.clear()),
    ];
    for (want, spoil) in cases {
        let mut bad = good.clone();
        spoil(&mut bad);
        let status = node.apply(bad).expect_err(want);
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status}");
        assert!(status.message().starts_with(want), "{}\nwanted: {want}", status.message());
    }
    assert_eq!(node.state().generation, generation, "a refusal published something");
    assert_eq!(node.state().desired.expect("a state").networks, good.networks);
}

#[test]
fn the_same_twice_publishes_once_and_parts_add_up() {
    let node = Node::start("");
    let good = state(5, vec![network("blue", 56)], vec![tap("s/eth1", "blue", "10.1.0.10")]);
    let first = node.apply(good.clone()).expect("a good state").generation;
    assert_eq!(node.apply(good.clone()).expect("the same again").generation, first);
    assert_eq!(node.hello().state_revision, 5);

    // An address may move to another interface in one step.
    let part = api::ApplyRequest {
        state: Some(state(0, vec![network("red", 57)], vec![tap("t/eth1", "blue", "10.1.0.10")])),
        partial: true,
        remove_interfaces: vec!["s/eth1".into(), "never/there".into()],
        ..api::ApplyRequest::default()
    };
    node.apply_part(part).expect("a good part");
    let now = node.state();
    let desired = now.desired.expect("a state");
    let names: Vec<_> = desired.networks.iter().map(|n| n.name.as_str()).collect();
    assert_eq!((names, desired.revision), (vec!["blue", "red"], 5));
    let ids: Vec<_> = now.interfaces.iter().map(|i| i.id.as_str()).collect();
    assert_eq!(ids, ["t/eth1"]);
    // Networks may swap their VNIs only by going first.
    node.apply(state(6, vec![network("green", 56)], vec![])).expect("all else goes");
    let desired = node.state().desired.expect("a state");
    assert_eq!((desired.networks.len(), desired.interfaces.len()), (1, 0));
}

#[test]
fn hello_names_what_is_missing() {
    let node = Node::start("");
    let needs = vec!["vxlan".to_owned(), "teleport".to_owned()];
    let request = api::HelloRequest { client: "test".into(), needs };
    let status = node.call(async |c| c.hello(request).await).expect_err("nobody can");
    assert!(status.message().contains("\"teleport\" is not a feature"), "{status}");
}

/// The writer died between offer and Apply: naming the interface as removed closes its queues.
#[test]
fn what_was_offered_and_never_applied_is_closed_by_its_removal() {
    let node = Node::start("");
    let pod = common::TapPod::new("blue", 10, 2);
    let taps = || {
        let entries = std::fs::read_dir(format!("/proc/{}/fd", node.child.id())).expect("it runs");
        let links = entries.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        links.filter(|link| link.ends_with("net/tun")).count()
    };
    pod.offer_to(&node);
    assert_eq!(taps(), 2, "the control");
    let removal = |id: &str| api::ApplyRequest {
        partial: true,
        remove_interfaces: vec![id.to_owned()],
        ..api::ApplyRequest::default()
    };
    node.apply_part(removal("another/eth1")).expect("nothing to do");
    assert_eq!(taps(), 2, "another's removal");
    node.apply_part(removal(&pod.id)).expect("nothing to do");
    assert_eq!(taps(), 0);
    // An interface that comes back with a new offer is as good as any.
    pod.offer_to(&node);
    node.apply(state(1, vec![network("blue", 56)], vec![pod.interface()])).expect("a good state");
    assert!(pod.netns.pings("10.1.0.1", ""));
}

#[test]
fn offers_are_checked() {
    let node = Node::start("");
    let kind = api::descriptor_offer::Kind::TapQueues;
    let file = std::fs::File::open("/dev/null").expect("it is there");
    let error = node.offer("s/eth1", kind, &[file.into()]).expect_err("no tap");
    assert!(error.contains("is no queue of a tap"), "{error}");
    let path = dataplane::control::start::fds_path(&node.socket());
    let error = common::offer_raw(&path, &[0xff; 40], &[]);
    assert!(error.contains("not a DescriptorOffer"), "{error}");
    let fds: Vec<_> =
        (0..40).map(|_| std::fs::File::open("/dev/null").expect("it is there").into()).collect();
    let error = common::offer_raw(&path, &[], &fds);
    assert!(error.contains("too long"), "{error}");
    let before =
        std::fs::read_dir(format!("/proc/{}/fd", node.child.id())).expect("it runs").count();
    let error = common::offer_raw(&path, &[], &fds);
    assert!(error.contains("too long"), "{error}");
    common::wait_for("descriptors to be closed", || {
        let now = std::fs::read_dir(format!("/proc/{}/fd", node.child.id())).ok()?.count();
        (now <= before).then_some(())
    });
}
