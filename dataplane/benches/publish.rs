//! How long a publish takes: one pod added and removed among 1,000 networks of 100 routes, while
//! two readers look at the tables. Prints percentiles of checking, building and swapping.
//!
//! `cargo bench -p bowline-dataplane --bench publish`

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dataplane::control::Books;
use dataplane::control::desired::Desired;
use dataplane::table::{Publisher, VrfId};
use wire::Mac;

const NETWORKS: u32 = 1000;
const ROUTES: u32 = 100;
const ROUNDS: u32 = 5000;

fn ip(value: u32) -> api::Ip {
    api::Ip { addr: value.to_be_bytes().to_vec() }
}

fn network(number: u32) -> api::Network {
    let route = |r: u32| {
        let vtep = Some(ip(0xc000_0200 + r % 8));
        let via = api::TunnelVia { vtep, inner_mac: vec![6, 0, 0, 0, 0, (r % 8) as u8] };
        let prefix = api::Prefix { addr: (0x0b00_0000 + (r << 8)).to_be_bytes().to_vec(), len: 24 };
        api::Route { prefix: Some(prefix), via: Some(api::route::Via::Tunnel(via)) }
    };
    api::Network {
        name: format!("net{number}"),
        vni: number + 1,
        mtu: 1450,
        gateways: vec![api::Gateway { ip: Some(ip(0x0a00_0001)) }],
        prefixes: vec![api::Prefix { addr: vec![10, 0, 0, 0], len: 8 }],
        routes: (0..ROUTES).map(route).collect(),
        ..api::Network::default()
    }
}

fn pod(number: u32) -> api::Interface {
    api::Interface {
        id: format!("pod{number}/eth1"),
        network: format!("net{}", number % NETWORKS),
        name: "eth1".into(),
        mac: [&[0x0e, 0][..], &number.to_be_bytes()].concat(),
        addresses: vec![ip(0x0a00_0002 + number)],
        port: Some(api::interface::Port::Tap(api::TapPort { queues: 1 })),
        ..api::Interface::default()
    }
}

/// The control thread's part of a publish, without its sockets.
struct Writer {
    desired: Desired,
    books: Books,
    publisher: Publisher,
}

impl Writer {
    fn apply(&mut self, request: &api::ApplyRequest) {
        let change = self.desired.change(request).expect("a good state");
        let current = self.publisher.current();
        let plan = self.books.plan(&self.desired, &change, &current).expect("there is room");
        drop(current);
        self.publisher.publish(plan.tables.clone());
        let removed = request.remove_interfaces.first();
        let gone = removed.and_then(|id| self.books.ifaces.get(id.as_str())).map(|book| book.id);
        self.books.commit(plan);
        self.desired.commit(change);
        if let Some(id) = gone {
            self.books.iface_is_gone(id);
        }
    }
}

fn partial(state: api::State, remove: Vec<String>) -> api::ApplyRequest {
    api::ApplyRequest {
        state: Some(state),
        partial: true,
        remove_interfaces: remove,
        ..api::ApplyRequest::default()
    }
}

fn report(what: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let at =
        |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_nanos() as f64 / 1e3;
    println!(
        "{what}: p50 {:.1} µs, p90 {:.1} µs, p99 {:.1} µs, max {:.1} µs ({} times)",
        at(0.5),
        at(0.9),
        at(0.99),
        at(1.0),
        times.len()
    );
}

fn main() {
    let (books, tables) = Books::new(2, Mac([6; 6]), 4789);
    let (publisher, readers) = Publisher::new(tables, 2);
    let mut writer = Writer { desired: Desired::new(4789), books, publisher };
    let stop = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = readers
        .into_iter()
        .map(|mut reader| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                let mut sum = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    let tables = reader.take();
                    for vrf in 1..64 {
                        let Some(vrf) = tables.vrf(VrfId(vrf)) else { continue };
                        sum += u64::from(tables.route4(vrf, 0x0b00_0101).0);
                    }
                    std::thread::yield_now();
                }
                sum
            })
        })
        .collect();

    let interfaces = (0..NETWORKS).map(pod).collect();
    let networks = (0..NETWORKS).map(network).collect();
    let all = api::State { revision: 1, networks, interfaces, ..api::State::default() };
    let start = Instant::now();
    writer.apply(&api::ApplyRequest { state: Some(all), ..api::ApplyRequest::default() });
    println!("first state of {NETWORKS} networks × {ROUTES} routes: {:?}", start.elapsed());

    let (mut adds, mut removes) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let one = pod(NETWORKS + round);
        let id = one.id.clone();
        let state = api::State { interfaces: vec![one], ..api::State::default() };
        let start = Instant::now();
        writer.apply(&partial(state, Vec::new()));
        adds.push(start.elapsed());
        let start = Instant::now();
        writer.apply(&partial(api::State::default(), vec![id]));
        removes.push(start.elapsed());
    }
    report("add one pod", &mut adds);
    report("remove one pod", &mut removes);
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().expect("a reader");
    }
}
