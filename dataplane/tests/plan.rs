//! Tables that grew by any script of changes say the same as tables built at once.
//!
//! Numbers differ (they depend on history), so what they lead to is compared.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use dataplane::control::desired::Desired;
use dataplane::control::read::said_ip;
use dataplane::control::rewrite::Way;
use dataplane::control::{Books, Plan};
use dataplane::table::{HopKind, IfaceId, NextHop, NextHopId, Publisher, Tables, VrfId};
use wire::Mac;

const SCRIPTS: u64 = 50;
const STEPS: usize = 40;

/// xorshift64*: the seed is in every message.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

fn ip(text: &str) -> api::Ip {
    said_ip(text.parse::<IpAddr>().expect("an address"))
}

fn prefix(text: &str) -> api::Prefix {
    let (addr, len) = text.split_once('/').expect("a prefix");
    api::Prefix { addr: ip(addr).addr, len: len.parse().expect("bits") }
}

const VTEPS: [&str; 4] = ["192.0.2.1", "192.0.2.2", "fd00:99::1", "fd00:99::2"];

fn network(random: &mut Random, number: u64) -> api::Network {
    let mut routes = Vec::new();
    for r in 0..random.below(5) {
        let vtep = VTEPS[random.below(4) as usize];
        let via = match random.below(4) {
            0 => api::route::Via::Unreachable(true),
            _ => api::route::Via::Tunnel(api::TunnelVia {
                vtep: Some(ip(vtep)),
                inner_mac: vec![6, 0, 0, 0, 0, random.below(2) as u8],
            }),
        };
        let to = if random.one_in(2) { format!("10.{r}.0.0/16") } else { format!("fd00:{r}::/32") };
        routes.push(api::Route { prefix: Some(prefix(&to)), via: Some(via) });
    }
    let gateway = |text: &str| api::Gateway { ip: Some(ip(text)) };
    let mut gateways = vec![gateway("10.0.0.1")];
    if random.one_in(2) {
        gateways.push(gateway("fd00::1"));
    }
    let peers = if random.one_in(3) { vec![ip(VTEPS[random.below(4) as usize])] } else { vec![] };
    api::Network {
        name: format!("net{number}"),
        vni: number as u32 + 1,
        mtu: 1400 + random.below(3) as u32,
        gateways,
        routes,
        peer_vteps: peers,
        ..api::Network::default()
    }
}

fn interface(random: &mut Random, number: u64, network: String) -> api::Interface {
    let port = match number % 3 {
        0 => api::interface::Port::Tap(api::TapPort { queues: 1 }),
        kind => api::interface::Port::Memif(api::MemifPort {
            mode: kind as i32 - 1,
            rx_queues: 1,
            tx_queues: 1,
            ring_size: 1024,
            ..api::MemifPort::default()
        }),
    };
    let mut addresses = vec![ip(&format!("10.0.0.{}", 10 + number))];
    if random.one_in(2) {
        addresses.push(ip(&format!("fd00::{:x}", 16 + number)));
    }
    api::Interface {
        id: format!("pod{number}/if"),
        network,
        name: "if".into(),
        mac: vec![0x0e, 0, 0, 0, random.below(2) as u8, number as u8],
        addresses,
        mtu: if random.one_in(3) { 1300 } else { 0 },
        allowed_prefixes: if random.one_in(4) { vec![prefix("10.77.0.0/16")] } else { vec![] },
        port: Some(port),
        node_leg: random.one_in(5),
        ..api::Interface::default()
    }
}

/// Everything behind the API but the workers.
struct World {
    desired: Desired,
    books: Books,
    publisher: Publisher,
}

impl World {
    fn new() -> Self {
        let (books, tables) = Books::new(1, Mac([6; 6]), 4789);
        let (publisher, _) = Publisher::new(tables, 1);
        Self { desired: Desired::new(4789), books, publisher }
    }

    fn ways(&mut self, ways: HashMap<IpAddr, Way>) {
        let mut tables = (*self.publisher.current()).clone();
        self.books.set_ways(&mut tables, ways, &self.desired.node);
        self.publisher.publish(tables);
    }

    /// Applies, or finds that the request makes no sense. One plan in three is thrown away first,
    /// as when a worker hangs.
    fn apply(&mut self, request: &api::ApplyRequest, random: &mut Random) -> bool {
        let Ok(change) = self.desired.change(request) else { return false };
        let current = self.publisher.current();
        if random.one_in(3) {
            let plan = self.plan(&change, &current);
            self.books.abandon(plan);
        }
        let plan = self.plan(&change, &current);
        self.publisher.publish(plan.tables.clone());
        self.books.commit(plan);
        self.desired.commit(change);
        true
    }

    fn plan(&mut self, change: &dataplane::control::desired::Change, current: &Tables) -> Plan {
        self.books.plan(&self.desired, change, current).expect("there is room")
    }
}

fn way(n: u8) -> Way {
    Way { out: IfaceId(40_000), from: Mac([2; 6]), to: Mac([n; 6]), mtu_bytes: 1500 + u16::from(n) }
}

/// What the tables lead to, in words that do not depend on numbers.
fn words(world: &World) -> BTreeMap<String, String> {
    let tables = world.publisher.current();
    let mut words = BTreeMap::new();
    let hop = |id: NextHopId| describe(&tables, id);
    for (index, vrf) in tables.vrfs.iter().enumerate() {
        let Some(vrf) = vrf else { continue };
        assert_eq!(usize::from(vrf.id.0), index);
        let name = &vrf.name;
        assert_eq!(tables.vrf_of_vni(vrf.vni.expect("VXLAN").get()), Some(vrf.id));
        words.insert(
            format!("{name}"),
            format!("{:?} {:?} {:?} {:?}", vrf.vni, vrf.gateways4, vrf.gateways6, vrf.peers),
        );
        for n in 0..40u32 {
            let (v4, v6) = (0x0a00_0000 + n, (0xfd00u128 << 112) + u128::from(n));
            words.insert(format!("{name} 10.0.0.{n}"), hop(tables.route4(vrf, v4)));
            words.insert(format!("{name} fd00::{n:x}"), hop(tables.route6(vrf, v6)));
        }
        for n in 0..6u32 {
            let (v4, v6) =
                (0x0a00_0909 + (n << 16), (0xfd00u128 << 112) + (u128::from(n) << 96) + 9);
            words.insert(format!("{name} 10.{n}.9.9"), hop(tables.route4(vrf, v4)));
            words.insert(format!("{name} fd00:{n}::9"), hop(tables.route6(vrf, v6)));
        }
    }
    for vni in 0..12 {
        let found =
            tables.vrf_of_vni(vni).and_then(|id| tables.vrf(id)).map(|vrf| vrf.name.clone());
        words.insert(format!("vni {vni}"), format!("{found:?}"));
    }
    for vtep in VTEPS {
        let what = match vtep.parse().expect("an address") {
            IpAddr::V4(ip) => tables.hosts4.lookup(VrfId::UNDERLAY, u32::from(ip)),
            IpAddr::V6(ip) => tables.hosts6.lookup(VrfId::UNDERLAY, u128::from(ip)),
        };
        words.insert(format!("vtep {vtep}"), format!("{what:?}"));
    }
    for iface in tables.ifaces.iter().flatten() {
        let vrf = tables.vrf(iface.vrf).map(|vrf| vrf.name.clone());
        let text = format!(
            "{:?} {vrf:?} {} {} {:?} {:?} {:?} {}",
            iface.kind,
            iface.mac,
            iface.mtu_bytes,
            iface.addrs4,
            iface.addrs6,
            iface.allowed4,
            iface.any_source
        );
        words.insert(format!("iface {}", iface.name), text);
    }
    let (mut host4, host6) = (tables.hosts4.len(), tables.hosts6.len());
    host4 += tables.vnis.len();
    words.insert("sizes".into(), format!("{host4} {host6}"));
    words.insert("node".into(), format!("{:?}", tables.node));
    words
}

fn describe(tables: &Tables, id: NextHopId) -> String {
    if id == NextHopId::NONE {
        return "no route".into();
    }
    let NextHop { kind, out, mtu_bytes, rewrite_len, rewrite } =
        tables.next_hop(id).expect("a next hop");
    let rewrite = &rewrite[..usize::from(*rewrite_len)];
    match kind {
        HopKind::Local => {
            let iface = tables.iface(*out).expect("a local hop leads to an interface");
            format!("to {} mtu {mtu_bytes} {rewrite:?}", iface.name)
        }
        kind => format!("{kind:?} {out:?} mtu {mtu_bytes} {rewrite:?}"),
    }
}

fn step(random: &mut Random) -> api::ApplyRequest {
    let mut state = api::State::default();
    let mut request = api::ApplyRequest { partial: true, ..api::ApplyRequest::default() };
    for _ in 0..=random.below(2) {
        let number = random.below(4);
        match random.below(8) {
            0 | 1 => state.networks.push(network(random, number)),
            2..=4 => {
                let home = format!("net{}", random.below(4));
                let pod = random.below(9);
                state.interfaces.push(interface(random, pod, home));
            }
            5 => request.remove_interfaces.push(format!("pod{}/if", random.below(9))),
            6 => request.remove_networks.push(format!("net{number}")),
            _ => {
                let own = VTEPS[random.below(4) as usize];
                state.local_vteps.push(ip(own));
                state.cluster_vteps = VTEPS.iter().map(|v| ip(v)).collect();
                state.vxlan_port = 4789 + random.below(2) as u32;
            }
        }
    }
    request.state = Some(state);
    request
}

#[test]
fn any_script_leads_to_the_tables_that_are_built_at_once() {
    let mut accepted = 0;
    for seed in 1..=SCRIPTS {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut world = World::new();
        let mut ways: HashMap<IpAddr, Way> = HashMap::new();
        for at in 0..STEPS {
            if random.one_in(6) {
                let vtep = VTEPS[random.below(4) as usize].parse().expect("an address");
                if random.one_in(3) {
                    ways.remove(&vtep);
                } else {
                    ways.insert(vtep, way(random.below(3) as u8 * 2));
                }
                world.ways(ways.clone());
            }
            let request = step(&mut random);
            let before = words(&world);
            let done = world.apply(&request, &mut random);
            accepted += usize::from(done);
            if !done {
                assert_eq!(
                    words(&world),
                    before,
                    "seed {seed} step {at}: a refusal changed tables"
                );
                continue;
            }
            let mut fresh = World::new();
            fresh.ways(ways.clone());
            let whole = api::ApplyRequest {
                state: Some(world.desired.said()),
                ..api::ApplyRequest::default()
            };
            let change = fresh.desired.change(&whole).expect("what is in force makes sense");
            let current = fresh.publisher.current();
            let plan = fresh.plan(&change, &current);
            fresh.publisher.publish(plan.tables.clone());
            assert_eq!(words(&world), words(&fresh), "seed {seed} step {at}: {request:?}");
        }
    }
    assert!(accepted > 600, "only {accepted} steps made sense");
}

/// A rewrite goes to all tunnels that lead to an end, in all networks.
#[test]
fn a_new_way_reaches_every_tunnel() {
    let mut world = World::new();
    let mut random = Random(7);
    let route = |to: &str| api::Route {
        prefix: Some(prefix(to)),
        via: Some(api::route::Via::Tunnel(api::TunnelVia {
            vtep: Some(ip("192.0.2.9")),
            inner_mac: vec![6; 6],
        })),
    };
    let networks = (0..3)
        .map(|n| api::Network { routes: vec![route("10.9.0.0/16")], ..network(&mut random, n) })
        .collect();
    let local_vteps = vec![ip("192.0.2.1")];
    let state = api::State { revision: 1, networks, local_vteps, ..api::State::default() };
    let request = api::ApplyRequest { state: Some(state), ..api::ApplyRequest::default() };
    while !world.apply(&request, &mut random) {}
    let kinds = |world: &World| {
        let tables = world.publisher.current();
        let vrfs: Vec<_> = tables.vrfs.iter().flatten().map(Arc::clone).collect();
        let hop = |vrf: &Arc<_>| tables.next_hop(tables.route4(vrf, 0x0a09_0001)).map(|h| h.kind);
        vrfs.iter().map(hop).collect::<Vec<_>>()
    };
    assert_eq!(kinds(&world), [Some(HopKind::Unresolved); 3]);
    world.ways(HashMap::from([("192.0.2.9".parse().expect("an address"), way(2))]));
    assert_eq!(kinds(&world), [Some(HopKind::Tunnel4); 3]);
    world.ways(HashMap::new());
    assert_eq!(kinds(&world), [Some(HopKind::Unresolved); 3]);
}
