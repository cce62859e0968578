//! memif → route → memif through one real worker in this process: the quickest way to see what
//! a change of the path, of a port or of the copying costs.
//!
//! ```text
//! cargo run --release --example memif_route -- rate   [frame bytes] [rounds] [6]
//! cargo run --release --example memif_route -- turn   [frame bytes] [rounds] [6]
//! cargo run --release --example memif_route -- cross  [frame bytes] [rounds] [6]
//! cargo run --release --example memif_route -- stages [frame bytes] [rounds] [6]
//! ```
//!
//! With `6` the packets are IPv6.
//!
//! - `rate`: generator and sink on core 0, worker on core 1; millions of packets per second.
//! - `turn`: all on one core, a full burst per turn; nanoseconds per packet of the worker's turn
//!   alone. Repeats well on a noisy machine (look at the minimum), and under
//!   `valgrind --tool=callgrind --toggle-collect='*Worker*turn*'` it counts instructions.
//! - `cross`: as `turn`, with generator and sink on the other core, so that every line of the rings
//!   and buffers comes from there.
//! - `stages`: the same parts called one after the other with a clock in between.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dataplane::copy::CopyList;
use dataplane::path::{self, Events, IcmpLimiter, NoProbe, PathEvent, Verdict};
use dataplane::port::memif::{MemifRx, MemifTx};
use dataplane::port::{BURST_PKTS, BufferPool, Burst, Outgoing, Rx, Tx};
use dataplane::table::counters::per_worker;
use dataplane::table::{
    HopKind, Iface, IfaceId, IfaceKind, NextHop, NextHopId, Tables, TxOwner, Vrf, VrfId,
};
use dataplane::worker::{Command, Polling, Worker, setup};
use memif::{
    Address, Answer, ClientConfig, Connection, Connector, Listener, Notifier, Offer, Progress,
    RxBurst, RxQueue, TxQueue, TxSegs,
};
use wire::Mac;

const GATEWAY: Mac = Mac([2, 0xb0, 0, 0, 56, 1]);
const NET6: u128 = 0xfd00 << 112;
const PATIENCE: Duration = Duration::from_secs(5);
/// Turns of one round of `turn` and `stages`.
const TURNS: usize = 2_000;

fn main() {
    let mut args = std::env::args().skip(1);
    let mode = args.next().unwrap_or_else(|| "rate".to_owned());
    let mut numbers = args.filter_map(|a| a.parse::<usize>().ok());
    // One buffer each.
    let bytes = numbers.next().unwrap_or(64).clamp(64, 2048);
    let rounds = numbers.next().unwrap_or(9).max(1);
    let template = if numbers.next() == Some(6) { frame6(bytes) } else { frame(bytes) };
    let mut pods = Pods::new(template);
    match mode.as_str() {
        "turn" => turn(&mut pods, rounds),
        "cross" => cross(pods, rounds),
        "stages" => stages(&mut pods, rounds),
        _ => rate(&mut pods, rounds),
    }
}

/// The two pods: one sends, the other receives.
struct Pods {
    bytes: usize,
    template: Vec<u8>,
    tx: TxQueue,
    rx: RxQueue,
    places: TxSegs,
    burst: RxBurst,
    buffer: Vec<u8>,
    sum: u64,
    servers: Vec<(IfaceId, RxQueue, TxQueue)>,
    _connections: Vec<Connection>,
}

impl Pods {
    fn new(template: Vec<u8>) -> Self {
        let name = format!("memif-route-{}", std::process::id());
        let (mut client_a, server_a) = pair(&format!("{name}-a"));
        let (mut client_b, server_b) = pair(&format!("{name}-b"));
        let tx = client_a.take_queues().1.remove(0);
        let mut rx = client_b.take_queues().0.remove(0);
        let _ = rx.set_polling(true);
        let mut connections = vec![client_a, client_b];
        let mut servers = Vec::new();
        for (id, mut server) in [(1, server_a), (2, server_b)] {
            let (mut rx, mut tx) = server.take_queues();
            let _ = rx[0].set_polling(true);
            servers.push((IfaceId(id), rx.remove(0), tx.remove(0)));
            connections.push(server);
        }
        let (burst, buffer) = (RxBurst::new(256), vec![0; 16 << 10]);
        let (places, sum) = (TxSegs::new(), 0);
        Self {
            bytes: template.len(),
            template,
            tx,
            rx,
            places,
            burst,
            buffer,
            sum,
            servers,
            _connections: connections,
        }
    }

    /// Sends up to `count` frames, touching every byte.
    fn send(&mut self, count: usize) {
        let lengths = (0..count).map(|_| self.template.len() as u32);
        self.tx.reserve_run(lengths, &mut self.places).expect("honest");
        for place in self.places.as_slice() {
            assert!(self.tx.write_to(place, &self.template), "reserved for it");
        }
        self.tx.publish();
    }

    /// Receives what is there, reading every byte.
    fn receive(&mut self) -> usize {
        self.burst.clear();
        let count = self.rx.claim(256, &mut self.burst).expect("honest");
        let mut slots = 0;
        for frame in self.burst.frames() {
            if self.rx.copy_to(&self.burst, frame, &mut self.buffer).is_some() {
                self.sum += u64::from(self.buffer[40]);
            }
            slots += frame.n_slots;
        }
        self.rx.release(slots);
        count
    }

    /// A worker that serves both.
    fn worker(&mut self) -> Worker {
        let mut made = setup(1, Polling::Busy, tables()).expect("workers");
        for (iface, rx, tx) in self.servers.drain(..) {
            let rx = Rx::Memif(MemifRx::new(rx));
            made.handles[0].send(0, Command::AddRx { iface, rx }).expect("room");
            let tx = Tx::Memif(MemifTx::new(tx));
            made.handles[0].send(0, Command::AddTx { iface, queue: 0, tx }).expect("room");
        }
        made.workers.remove(0)
    }
}

fn rate(pods: &mut Pods, rounds: usize) {
    let worker = pods.worker();
    std::thread::spawn(move || {
        pin(1);
        worker.run();
    });
    pin(0);
    let mut rates = Vec::new();
    for _ in 0..rounds {
        let (start, mut received) = (Instant::now(), 0);
        while start.elapsed() < Duration::from_millis(400) {
            for _ in 0..8 {
                pods.send(BURST_PKTS);
                received += pods.receive();
            }
        }
        rates.push(received as f64 / start.elapsed().as_secs_f64() / 1e6);
    }
    rates.sort_by(f64::total_cmp);
    let (low, high) = (rates[0], rates[rates.len() - 1]);
    let (median, bytes, sum) = (rates[rates.len() / 2], pods.bytes, pods.sum);
    println!("{bytes} B: min {low:.2} median {median:.2} max {high:.2} Mpps ({sum})");
}

fn turn(pods: &mut Pods, rounds: usize) {
    let mut worker = pods.worker();
    pin(1);
    let mut cost = Cost::default();
    for _ in 0..rounds * TURNS {
        pods.send(BURST_PKTS);
        let start = Instant::now();
        let moved = worker.turn();
        cost.note(start.elapsed(), moved);
        let mut received = 0;
        while received < moved {
            received += pods.receive();
        }
    }
    println!("{} B: turn {cost} ({})", pods.bytes, pods.sum);
}

fn cross(mut pods: Pods, rounds: usize) {
    let mut worker = pods.worker();
    let bytes = pods.bytes;
    std::thread::spawn(move || {
        pin(0);
        loop {
            pods.send(BURST_PKTS);
            if pods.receive() == 0 {
                // On a busy machine the other side gets its turn, on an idle one this is nothing.
                std::thread::yield_now();
            }
        }
    });
    pin(1);
    let mut cost = Cost::default();
    while cost.0.len() < rounds * TURNS {
        let start = Instant::now();
        let moved = worker.turn();
        cost.note(start.elapsed(), moved);
        if moved == 0 {
            std::thread::yield_now();
        }
    }
    println!("{bytes} B: turn across cores {cost}");
}

/// One burst, part by part, as the worker does it.
fn stages(pods: &mut Pods, rounds: usize) {
    pin(1);
    let tables = tables();
    let from = Arc::clone(tables.iface(IfaceId(1)).expect("made here"));
    let (_, rx, _) = pods.servers.remove(0);
    let (_, _, tx) = pods.servers.remove(0);
    let (mut rx, mut tx) = (Rx::Memif(MemifRx::new(rx)), Tx::Memif(MemifTx::new(tx)));
    let (mut burst, mut pool, mut list) =
        (Burst::default(), BufferPool::default(), CopyList::default());
    let mut limiter = IcmpLimiter::default();
    let mut notifier = Notifier::new().expect("io context");
    let names = ["claim + head", "path", "reserve + head", "copy", "publish", "release"];
    let mut costs: [Cost; 6] = Default::default();
    for _ in 0..rounds * TURNS {
        pods.send(BURST_PKTS);
        let mut clock = Clock(Instant::now());
        burst.clear();
        rx.poll(IfaceId(1), &mut burst, &mut pool, BURST_PKTS);
        let count = burst.len();
        costs[0].note(clock.lap(), count);
        for at in 0..count {
            let mut cx = path::Context {
                tables: &tables,
                now_ns: 0,
                limiter: &mut limiter,
                events: &mut Silent,
            };
            let verdict = path::forward(&mut cx, &from, &mut burst.packet(at), &mut NoProbe);
            assert_eq!(verdict, Verdict::Forward);
        }
        costs[1].note(clock.lap(), count);
        for at in 0..count {
            let (slot, meta, body) = burst.slot_mut(at);
            let head = &mut slot.0[usize::from(meta.start)..usize::from(meta.end)];
            tx.send(&Outgoing { head, body, meta }, &mut list).expect("room");
        }
        costs[2].note(clock.lap(), count);
        list.run();
        costs[3].note(clock.lap(), count);
        tx.flush(&mut notifier, 0);
        costs[4].note(clock.lap(), count);
        for at in 0..count {
            rx.release(burst.meta(at).claim, &mut pool);
        }
        rx.flush();
        costs[5].note(clock.lap(), count);
        while pods.receive() > 0 {}
    }
    for (name, cost) in names.iter().zip(&costs) {
        println!("{} B: {name:<15} {cost}", pods.bytes);
    }
}

/// Nobody to tell.
struct Silent;

impl Events for Silent {
    fn event(&mut self, _: PathEvent) {}
}

struct Clock(Instant);

impl Clock {
    fn lap(&mut self) -> Duration {
        let now = Instant::now();
        now - std::mem::replace(&mut self.0, now)
    }
}

/// What full bursts took, per packet.
#[derive(Default)]
struct Cost(Vec<f64>);

impl Cost {
    fn note(&mut self, time: Duration, count: usize) {
        if count == BURST_PKTS {
            self.0.push(time.as_nanos() as f64 / count as f64);
        }
    }
}

impl std::fmt::Display for Cost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |percent: usize| sorted.get(sorted.len() * percent / 100).copied().unwrap_or(0.0);
        write!(f, "min {:.2} p10 {:.2} median {:.2} ns/packet", at(0), at(10), at(50))
    }
}

fn pin(core: usize) {
    let mut set = nix::sched::CpuSet::new();
    if set.set(core).is_ok() {
        let _ = nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set);
    }
}

/// Client and server of one interface.
fn pair(name: &str) -> (Connection, Connection) {
    let mut listener = Listener::bind_abstract(name).expect("the name is free");
    let config = ClientConfig::new(Address::Abstract(name.to_owned()), 0);
    let client =
        std::thread::spawn(|| Connector::new(config).connect_blocking(PATIENCE).expect("connects"));
    let mut handshake = loop {
        if let Some(handshake) = listener.accept().expect("accepts") {
            break handshake;
        }
    };
    let server = loop {
        match handshake.on_readable(&|_| Answer::Accept(Offer::default())) {
            Progress::Connected(connection) => break connection,
            Progress::Pending => {}
            Progress::Closed(reason) => panic!("{reason}"),
        }
    };
    (client.join().expect("connected"), server)
}

fn iface(id: u16) -> Arc<Iface> {
    Arc::new(Iface {
        id: IfaceId(id),
        kind: IfaceKind::MemifEthernet,
        name: format!("memif{id}").into(),
        vrf: VrfId(1),
        mac: Mac([2, 0, 0, 0, 0, id as u8]),
        mtu_bytes: 9000,
        addrs4: Box::new([0x0a00_0000 + u32::from(id)]),
        addrs6: Box::new([NET6 + u128::from(id)]),
        allowed4: Box::new([]),
        allowed6: Box::new([]),
        any_source: false,
        offloads: false,
        peer: IfaceId::NONE,
        workers: Arc::new([TxOwner::Worker(0)]),
        counters: per_worker(1),
    })
}

/// One Network with a host route to each pod.
fn tables() -> Tables {
    let mut tables = Tables::default();
    let vrf = Vrf {
        id: VrfId(1),
        name: "blue".into(),
        vni: wire::Vni::new(56),
        gateway_mac: GATEWAY,
        gateways4: Box::new([]),
        gateways6: Box::new([]),
        prefixes4: Box::new([(0x0a00_0000, 0xff00_0000)]),
        prefixes6: Box::new([(NET6, !0 << 64)]),
        peers: Box::new([]),
        fib4: Default::default(),
        fib6: Default::default(),
        counters: per_worker(1),
    };
    tables.vrfs.set(1, Some(Arc::new(vrf)));
    for id in [1, 2] {
        let mut rewrite = [0; 96];
        rewrite[..6].copy_from_slice(&[2, 0, 0, 0, 0, id as u8]);
        rewrite[6..12].copy_from_slice(&GATEWAY.0);
        let hop = NextHop {
            kind: HopKind::Local,
            out: IfaceId(id),
            mtu_bytes: 9000,
            rewrite_len: 14,
            rewrite,
        };
        tables.next_hops.set(usize::from(id), hop);
        tables.hosts4.insert(VrfId(1), 0x0a00_0000 + u32::from(id), NextHopId(u32::from(id)));
        tables.hosts6.insert(VrfId(1), NET6 + u128::from(id), NextHopId(u32::from(id)));
        tables.ifaces.set(usize::from(id), Some(iface(id)));
    }
    tables
}

/// UDP from the first pod to the second.
fn frame(bytes: usize) -> Vec<u8> {
    let mut f = GATEWAY.0.to_vec();
    f.extend([2, 0, 0, 0, 0, 1, 8, 0]);
    let total = (bytes - 14) as u16;
    f.extend([0x45, 0, (total >> 8) as u8, total as u8, 0, 0, 0x40, 0, 64, 17, 0, 0]);
    f.extend([10, 0, 0, 1, 10, 0, 0, 2]);
    wire::Ipv4::fill_checksum(&mut f[14..34]);
    let udp = total - 20;
    f.extend([0x30, 0, 0x40, 0, (udp >> 8) as u8, udp as u8, 0, 0]);
    f.resize(bytes, 0xab);
    f
}

/// The same over IPv6.
fn frame6(bytes: usize) -> Vec<u8> {
    let mut f = GATEWAY.0.to_vec();
    f.extend([2, 0, 0, 0, 0, 1, 0x86, 0xdd, 0x60, 0, 0, 0]);
    let udp = ((bytes - 54) as u16).to_be_bytes();
    f.extend([udp[0], udp[1], 17, 64]);
    f.extend((NET6 + 1).to_be_bytes());
    f.extend((NET6 + 2).to_be_bytes());
    f.extend([0x30, 0, 0x40, 0, udp[0], udp[1], 0x12, 0x34]);
    f.resize(bytes, 0xab);
    f
}
