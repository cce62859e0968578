//! How long a publish takes: one pod added and removed among 1,000 networks of 100 routes, while
//! two readers look at the tables. Percentiles of checking, building and swapping; and what an empty
//! network costs. Fails when a goal is missed.
//!
//! `cargo bench -p bowline-dataplane --bench publish -- --write bench/results/publish.json`

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dataplane::control::Books;
use dataplane::control::desired::Desired;
use dataplane::table::{Publisher, Reader, VrfId};
use serde::Serialize;
use wire::Mac;

const NETWORKS: u32 = 1000;
const ROUTES: u32 = 100;
const ROUNDS: u32 = 5000;
/// Enough that their memory stands out of the process's other pages.
const EMPTY: u32 = 8000;
/// The goals.
const PUBLISH_P99_US: f64 = 100.0;
const EMPTY_VRF_BYTES: u64 = 4096;

fn ip(value: u32) -> api::Ip {
    api::Ip { addr: value.to_be_bytes().to_vec() }
}

fn network(number: u32) -> api::Network {
    api::Network { routes: routes(), ..empty(number) }
}

fn empty(number: u32) -> api::Network {
    api::Network {
        name: format!("net{number}"),
        vni: number + 1,
        mtu: 1450,
        gateways: vec![api::Gateway { ip: Some(ip(0x0a00_0001)) }],
        prefixes: vec![api::Prefix { addr: vec![10, 0, 0, 0], len: 8 }],
        ..api::Network::default()
    }
}

fn routes() -> Vec<api::Route> {
    let route = |r: u32| {
        let vtep = Some(ip(0xc000_0200 + r % 8));
        let via = api::TunnelVia { vtep, inner_mac: vec![6, 0, 0, 0, 0, (r % 8) as u8] };
        let prefix = api::Prefix { addr: (0x0b00_0000 + (r << 8)).to_be_bytes().to_vec(), len: 24 };
        api::Route { prefix: Some(prefix), via: Some(api::route::Via::Tunnel(via)) }
    };
    (0..ROUTES).map(route).collect()
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

/// Percentiles in microseconds.
#[derive(Debug, Serialize)]
struct Times {
    p50_us: f64,
    p90_us: f64,
    p99_us: f64,
    max_us: f64,
    count: usize,
}

impl Times {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |share: f64| {
            let nth = ((times.len() - 1) as f64 * share) as usize;
            (times[nth].as_nanos() as f64 / 100.0).round() / 10.0
        };
        let count = times.len();
        Self { p50_us: at(0.5), p90_us: at(0.9), p99_us: at(0.99), max_us: at(1.0), count }
    }
}

#[derive(Debug, Serialize)]
struct Report {
    networks: u32,
    routes_each: u32,
    readers: usize,
    load_average: String,
    first_state_ms: u128,
    add_one_pod: Times,
    remove_one_pod: Times,
    goal_p99_us: f64,
    empty_network_bytes: u64,
    goal_empty_network_bytes: u64,
}

impl Report {
    fn holds(&self) -> bool {
        let p99 = self.add_one_pod.p99_us.max(self.remove_one_pod.p99_us);
        p99 <= self.goal_p99_us && self.empty_network_bytes <= self.goal_empty_network_bytes
    }
}

/// Threads that look up without a pause, as workers do: until told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<u64>>,
}

impl Load {
    fn start(readers: Vec<Reader>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let start = |reader| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || look_up(reader, &stop))
        };
        let threads = readers.into_iter().map(start).collect();
        Self { stop, threads }
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            assert_ne!(thread.join().expect("a reader"), 0, "it has found nothing");
        }
    }
}

fn look_up(mut reader: Reader, stop: &AtomicBool) -> u64 {
    let mut sum = 0;
    while !stop.load(Ordering::Relaxed) {
        let tables = reader.take();
        for vrf in 1..64 {
            let Some(vrf) = tables.vrf(VrfId(vrf)) else { continue };
            sum += u64::from(tables.route4(vrf, 0x0b00_0101).0);
        }
        std::thread::yield_now();
    }
    sum
}

fn writer(readers: usize) -> (Writer, Vec<Reader>) {
    let (books, tables) = Books::new(readers, Mac([6; 6]), 4789);
    let (publisher, readers) = Publisher::new(tables, readers);
    (Writer { desired: Desired::new(4789), books, publisher }, readers)
}

fn whole(networks: Vec<api::Network>, interfaces: Vec<api::Interface>) -> api::ApplyRequest {
    let state = api::State { revision: 1, networks, interfaces, ..api::State::default() };
    api::ApplyRequest { state: Some(state), ..api::ApplyRequest::default() }
}

/// Adds and removes one pod again and again.
fn rounds(writer: &mut Writer) -> (Times, Times) {
    let (mut adds, mut removes) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let one = pod(NETWORKS + round);
        let id = one.id.clone();
        let state = api::State { interfaces: vec![one], ..api::State::default() };
        let request = partial(state, Vec::new());
        let start = Instant::now();
        writer.apply(&request);
        adds.push(start.elapsed());
        let request = partial(api::State::default(), vec![id]);
        let start = Instant::now();
        writer.apply(&request);
        removes.push(start.elapsed());
    }
    (Times::of(adds), Times::of(removes))
}

/// Resident memory of this process.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib * 1024
}

/// What one network without pods and routes costs: its VRF, and all that the writer knows of it.
fn empty_network_bytes() -> u64 {
    let (mut writer, _readers) = writer(1);
    let request = whole((0..EMPTY).map(empty).collect(), Vec::new());
    let before = resident_bytes();
    writer.apply(&request);
    resident_bytes().saturating_sub(before) / u64::from(EMPTY)
}

fn main() -> ExitCode {
    // First, while the heap has nothing to give back.
    let empty_network_bytes = empty_network_bytes();
    let (mut writer, readers) = writer(2);
    let count = readers.len();
    let load = Load::start(readers);
    let request = whole((0..NETWORKS).map(network).collect(), (0..NETWORKS).map(pod).collect());
    let start = Instant::now();
    writer.apply(&request);
    let first_state_ms = start.elapsed().as_millis();
    let (add_one_pod, remove_one_pod) = rounds(&mut writer);
    load.end();
    let load_average = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let report = Report {
        networks: NETWORKS,
        routes_each: ROUTES,
        readers: count,
        load_average: load_average.split(' ').next().unwrap_or_default().to_owned(),
        first_state_ms,
        add_one_pod,
        remove_one_pod,
        goal_p99_us: PUBLISH_P99_US,
        empty_network_bytes,
        goal_empty_network_bytes: EMPTY_VRF_BYTES,
    };
    let text = serde_json::to_string_pretty(&report).expect("plain numbers");
    println!("{text}");
    if let Some(file) = file_to_write() {
        std::fs::write(&file, text + "\n").expect("the file of --write can be written");
    }
    if report.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Cargo starts benches in the package's folder: a relative file is meant from the workspace's.
fn file_to_write() -> Option<PathBuf> {
    let mut args = std::env::args().skip_while(|arg| arg != "--write");
    let file = args.nth(1)?;
    Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file))
}
